//! Adapters in a running pipeline: other strengths, and changes and conditioners of one's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use animatelcm::Result;
use animatelcm::adapters::{Conditioner, Pass};
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, Files, LoraFile, Models};
use animatelcm::models::unet::Injection;
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::Request;
use animatelcm::weights::{
    Checkpoint, Component, LoadReport, PatchStack, Resident, Source, WeightPatch,
};
use candle_core::{DType, Device, Tensor};

use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};

/// Two LoRAs: 20 modules of the UNet and 4 of the text encoder, and 168 of motion modules.
fn files(strengths: [(f64, f64); 2]) -> Files {
    let loras = ["lora/kohya.safetensors", "lora/motion_original.safetensors"];
    let lora = |(name, (scale, text)): (&str, (f64, f64))| LoraFile {
        scale,
        text_scale: Some(text),
        ..LoraFile::new(golden::path(name))
    };
    Files {
        loras: loras.into_iter().zip(strengths).map(lora).collect(),
        ..Files::new(Base::Folder(golden::path("tiny/model")))
    }
}

fn pipeline(models: Models, residency: Residency) -> Pipeline {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(models, Device::Cpu, precision, residency)
}

/// The values of all that a run records, by name.
type Recorded = BTreeMap<String, Vec<f32>>;

/// What a run records, and the reports of what it loads.
fn run(pipeline: &mut Pipeline) -> Result<(Recorded, Vec<LoadReport>)> {
    let request = Request::default().with(|r| {
        r.prompt.text = "a corgi".into();
        r.size.width = Some(32);
        r.size.height = Some(32);
        r.size.frames = Some(2);
        r.sampling.steps = 2;
        r.sampling.seed = Some(3);
    });
    let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..Tensors::default() };
    let (mut frames, mut reports) = (Vec::new(), Vec::new());
    let mut listener = |event: Event| {
        if let Event::Report { report } = event {
            reports.push(report);
        }
        Ok(())
    };
    pipeline.run(&request, &mut tensors, &mut listener, &mut &mut frames)?;
    let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let recorded = tensors.recorded.unwrap();
    Ok((recorded.into_iter().map(|(name, tensor)| (name, flat(tensor))).collect(), reports))
}

/// Component, tensors that were read, and tensors that were in memory.
fn loads(reports: &[LoadReport]) -> Vec<(Component, usize, usize)> {
    reports
        .iter()
        .map(|report| (report.component, report.used - report.reused, report.reused))
        .collect()
}

#[test]
fn another_strength_is_as_if_it_had_been_given_and_touches_only_what_changes() {
    let first = [(1.0, 1.0), (0.5, 1.0)];
    let fresh = |strengths| {
        let models = Models::open(&files(strengths)).unwrap();
        run(&mut pipeline(models, Residency::Sequential)).unwrap().0
    };
    let mut running = pipeline(Models::open(&files(first)).unwrap(), Residency::KeepAll);
    let (clip, reports) = run(&mut running).unwrap();
    assert_eq!(clip, fresh(first));
    let total = |component| reports.iter().find(|r| r.component == component).unwrap().used;
    let (unet, text) = (total(Component::UNet), total(Component::Text));
    assert!(reports.iter().all(|report| report.reused == 0));

    // (which, UNet, text), then how many weights change.
    let mut models = Models::open(&files(first)).unwrap();
    for (change, strengths, wanted) in [
        (
            (0, 0.3, 0.7),
            [(0.3, 0.7), (0.5, 1.0)],
            vec![(Component::Text, 4), (Component::UNet, 20)],
        ),
        ((0, 0.3, 0.2), [(0.3, 0.2), (0.5, 1.0)], vec![(Component::Text, 4)]),
        ((1, 0.0, 1.0), [(0.3, 0.2), (0.0, 1.0)], vec![(Component::UNet, 168)]),
        // What is not changed is not touched.
        ((1, 0.0, 1.0), [(0.3, 0.2), (0.0, 1.0)], vec![]),
        ((1, 0.0, 0.0), [(0.3, 0.2), (0.0, 0.0)], vec![]),
        ((1, -0.4, 0.0), [(0.3, 0.2), (-0.4, 0.0)], vec![(Component::UNet, 168)]),
        (
            (0, 0.0, 0.0),
            [(0.0, 0.0), (-0.4, 0.0)],
            vec![(Component::Text, 4), (Component::UNet, 20)],
        ),
    ] {
        let (lora, in_unet, in_text) = change;
        running.set_lora_strength(lora, in_unet, in_text).unwrap();
        let (clip, reports) = run(&mut running).unwrap();
        assert_eq!(clip, fresh(strengths), "{change:?}");
        let changed = models.set_lora_strength(lora, in_unet, in_text).unwrap();
        let changed = changed.into_iter().filter(|(_, names)| !names.is_empty());
        let changed: BTreeMap<_, _> = changed.map(|(part, names)| (part, names.len())).collect();
        assert_eq!(changed, wanted.iter().copied().collect(), "{change:?}");
        // On the CPU packed weights are all that stays, so a part is read again as a whole, or not at all.
        let whole = |part| if part == Component::UNet { unet } else { text };
        let read: Vec<_> = wanted.iter().map(|(part, _)| (*part, whole(*part), 0)).collect();
        assert_eq!(loads(&reports), read, "{change:?}");
    }
    let report = &running.models().adapters()[0];
    assert_eq!((report.in_unet, report.in_text, report.switched_off), (0, 0, 24));
    // Both off: as if there were none.
    running.set_lora_strength(1, 0.0, 0.0).unwrap();
    let none = Files::new(Base::Folder(golden::path("tiny/model")));
    let none = run(&mut pipeline(Models::open(&none).unwrap(), Residency::Sequential)).unwrap().0;
    assert_eq!(run(&mut running).unwrap().0, none);
}

#[test]
fn several_strengths_may_change_before_anything_is_loaded() {
    let mut running =
        pipeline(Models::open(&files([(1.0, 1.0), (1.0, 1.0)])).unwrap(), Residency::Sequential);
    running.set_lora_strength(0, 0.2, 0.2).unwrap();
    running.set_lora_strength(1, 0.4, 0.4).unwrap();
    let models = Models::open(&files([(0.2, 0.2), (0.4, 0.4)])).unwrap();
    let want = run(&mut pipeline(models, Residency::Sequential)).unwrap().0;
    let (clip, reports) = run(&mut running).unwrap();
    assert_eq!(clip, want);
    assert!(reports.iter().all(|report| report.reused == 0));
    let (_, reports) = run(&mut running).unwrap();
    assert!(reports.iter().all(|report| report.reused == 0), "one at a time keeps nothing");
}

#[test]
fn impossible_strengths_are_refused_and_change_nothing() {
    let mut running =
        pipeline(Models::open(&files([(1.0, 1.0), (0.5, 0.5)])).unwrap(), Residency::KeepAll);
    let before = run(&mut running).unwrap().0;
    let error = running.set_lora_strength(2, 1.0, 1.0).unwrap_err();
    assert_eq!(error.to_string(), "lora: there is none of number 2 of 2");
    for (unet, text) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
        let error = running.set_lora_strength(0, unet, text).unwrap_err();
        assert!(error.to_string().ends_with("is not a strength"), "{error}");
    }
    let (clip, reports) = run(&mut running).unwrap();
    assert_eq!(clip, before);
    assert!(reports.is_empty());
}

#[test]
fn a_model_that_is_built_again_shares_the_memory_of_what_is_kept() {
    let mut checkpoint = Checkpoint::new();
    let source = Source::from(golden::path("tiny/model"));
    checkpoint.add_component(Component::Text, &source).unwrap();
    let names: Vec<String> = checkpoint.names(Component::Text).map(str::to_owned).collect();
    let mut resident = Resident::new(DType::F32, &Device::Cpu);
    let build = |resident: &mut Resident| {
        let shape = |name: &str| checkpoint.shape_of(Component::Text, name).unwrap().to_vec();
        let model = |vb: animatelcm::weights::VarBuilder<'static>| {
            names.iter().map(|name| Ok(vb.get(shape(name), name)?)).collect::<Result<Vec<_>>>()
        };
        checkpoint.rebuild(Component::Text, &PatchStack::new(), resident, model).unwrap().0
    };
    let before = build(&mut resident);
    resident.forget([&names[1], &names[3]]);
    let after = build(&mut resident);
    for (i, (old, new)) in before.iter().zip(&after).enumerate() {
        assert_eq!(old.id() == new.id(), i != 1 && i != 3, "{}", names[i]);
    }
}

/// Adds its strength to every value of a bias.
#[derive(Debug)]
struct Shift(BTreeSet<String>);

impl WeightPatch for Shift {
    fn label(&self) -> &'static str {
        "shift"
    }

    fn names(&self) -> &BTreeSet<String> {
        &self.0
    }

    fn apply(&self, _: &str, weight: &Tensor, strength: f64) -> Result<Tensor> {
        Ok((weight + strength)?)
    }
}

#[test]
fn changes_of_weights_of_ones_own_are_made_after_those_of_loras() {
    let mut models = Models::open(&files([(1.0, 1.0), (0.0, 0.0)])).unwrap();
    let name = "decoder.conv_out.bias".to_owned();
    models.add_patch(Component::Vae, Arc::new(Shift(BTreeSet::from([name]))), 1e4);
    let (clip, reports) = run(&mut pipeline(models, Residency::Sequential)).unwrap();
    assert!(clip["frames"].iter().all(|value| *value == 1.0), "all white");
    let vae = reports.iter().find(|report| report.component == Component::Vae).unwrap();
    assert_eq!(vae.patched, [("shift".to_owned(), 1)]);

    let mut models = Models::open(&files([(1.0, 1.0), (0.0, 0.0)])).unwrap();
    let lost = Shift(BTreeSet::from(["nowhere.weight".to_owned()]));
    models.add_patch(Component::UNet, Arc::new(lost), 1.0);
    let error = run(&mut pipeline(models, Residency::Sequential)).unwrap_err();
    assert!(error.to_string().contains("adapter `shift`: 1 of the 1 weights"), "{error}");
}

/// Looks on, and fails at the step that it is told to.
#[derive(Debug)]
struct Witness {
    passes: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<(usize, usize)>>>,
    fails_at: Option<usize>,
}

impl Conditioner for Witness {
    fn label(&self) -> &'static str {
        "witness"
    }

    fn inject(&mut self, pass: &Pass<'_>, _: &mut Injection) -> Result<()> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.seen.lock().unwrap().push((pass.progress.step, pass.frames.len()));
        if self.fails_at == Some(pass.progress.step) {
            return Ok(Err(candle_core::Error::Msg("lost".into()))?);
        }
        Ok(())
    }
}

#[test]
fn conditioners_of_ones_own_see_every_pass_of_every_run() {
    let models = || Models::open(&files([(1.0, 1.0), (0.0, 0.0)])).unwrap();
    let want = run(&mut pipeline(models(), Residency::Sequential)).unwrap().0;
    let (passes, seen) = (Arc::default(), Arc::default());
    let witness = Witness { passes: Arc::clone(&passes), seen: Arc::clone(&seen), fails_at: None };
    let mut own = pipeline(models(), Residency::KeepAll);
    own.add_conditioner(Box::new(witness));
    for count in [2, 4] {
        // What adds nothing changes nothing.
        assert_eq!(run(&mut own).unwrap().0, want);
        assert_eq!(passes.load(Ordering::Relaxed), count);
    }
    assert_eq!(*seen.lock().unwrap(), [(0, 2), (1, 2), (0, 2), (1, 2)]);

    let witness = Witness { passes, seen, fails_at: Some(1) };
    own.add_conditioner(Box::new(witness));
    for _ in 0..2 {
        let error = run(&mut own).unwrap_err();
        assert!(error.to_string().starts_with("adapter `witness`: lost"), "{error}");
    }
}
