//! Single files: what says which tokenizer and which prediction is theirs is obeyed.

use std::collections::HashMap;
use std::fs;

use animatelcm::Error;
use animatelcm::request::Job;
use animatelcm::schedule::Prediction;
use candle_core::{DType, Device, Tensor};
use serde_json::json;

use crate::support::golden;
use crate::support::program::Folder;
use crate::support::tiny_folder::{change, tiny};

/// The frames of a clip of a single file with the configurations of `model`.
#[track_caller]
fn frames(folder: &Folder, args: &[&str]) -> Vec<u8> {
    const OUTPUT: [&str; 6] = ["-o", "-", "-q", "--frames=2", "--seed=3", "--steps=2"];
    let args = [&["generate", "a corgi"], &OUTPUT[..], args].concat();
    folder.run(&args).ok().bytes
}

const MOTION: &str = "--motion=model/motion_adapter";

#[test]
fn a_single_file_has_the_tokenizer_of_its_configurations() {
    let folder = Folder::new();
    let model = tiny(&folder);
    fs::copy(golden::path("layouts/ldm.safetensors"), folder.path("ldm.safetensors")).unwrap();
    let whole = frames(&folder, &["--model=model"]);
    let single = ["--model=ldm.safetensors", "--model-config=model", MOTION, "--lcm-lora=none"];
    assert_eq!(frames(&folder, &single), whole);
    // Another tokenizer makes another clip, and CLIP's own has more tokens than this encoder.
    let merges = fs::read_to_string(model.join("tokenizer/merges.txt")).unwrap();
    let few: Vec<&str> = merges.lines().take(merges.lines().count() / 8).collect();
    fs::write(model.join("tokenizer/merges.txt"), few.join("\n")).unwrap();
    assert_ne!(frames(&folder, &single), whole);
    fs::remove_dir_all(model.join("tokenizer")).unwrap();
    let args = [&["generate", "a", "--frames=1", "-o", "clip.gif"], &single[..]].concat();
    let line = folder.run(&args).fails(3).to_owned();
    assert!(line.contains("the tokenizer knows 49408 tokens, the weights 542"), "{line}");
}

/// The single-file layout of the tiny model with more tensors and metadata.
fn single(folder: &Folder, name: &str, keys: &[&str], metadata: Option<(&str, &str)>) {
    let path = golden::path("layouts/ldm.safetensors");
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    for key in keys {
        tensors.insert((*key).into(), Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap());
    }
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.into(), value.into())]));
    folder.write(name, safetensors::serialize(&tensors, metadata).unwrap());
}

#[test]
fn what_a_single_file_says_of_its_prediction_is_obeyed() {
    const SPEC: &str = "modelspec.prediction_type";
    let folder = Folder::new();
    tiny(&folder);
    let base = ["--model=model", "--sampler=euler"];
    let epsilon = frames(&folder, &base);
    change(&folder, "scheduler/scheduler_config.json", &json!({"prediction_type": "sample"}));
    let sample = frames(&folder, &base);
    change(&folder, "scheduler/scheduler_config.json", &json!({"prediction_type": "v_prediction"}));
    let v = frames(&folder, &base);
    assert!(epsilon != v && epsilon != sample && v != sample);
    fs::remove_dir_all(folder.path("model/scheduler")).unwrap();

    single(&folder, "plain.safetensors", &[], None);
    single(&folder, "key.safetensors", &["v_pred"], None);
    single(&folder, "meta.safetensors", &[], Some((SPEC, "v")));
    single(&folder, "meta_eps.safetensors", &["v_pred"], Some((SPEC, "epsilon")));
    for name in ["yaml", "yaml_eps", "yaml_x0"] {
        single(&folder, &format!("{name}.safetensors"), &[], Some((SPEC, "v")));
    }
    folder.write("yaml.yaml", "model:\n  params:\n    parameterization: \"v\"\n");
    folder.write("yaml_eps.yaml", "model:\n  params:\n    parameterization: eps # as ever\n");
    folder.write("yaml_x0.yaml", "model:\n  params: {parameterization: 'x0'}\n");
    for (name, flags, wanted) in [
        ("plain", &[][..], &epsilon),
        ("plain", &["--prediction=v"], &v),
        ("plain", &["--prediction=sample"], &sample),
        ("key", &[], &v),
        ("key", &["--prediction=epsilon"], &epsilon),
        ("meta", &[], &v),
        ("meta_eps", &[], &v),
        ("yaml", &[], &v),
        ("yaml_eps", &[], &epsilon),
        ("yaml_x0", &[], &sample),
    ] {
        let model = format!("--model={name}.safetensors");
        let args = [&[&model, "--model-config=model", "--sampler=euler", MOTION], flags].concat();
        let args = [&args[..], &["--lcm-lora=none"]].concat();
        assert!(frames(&folder, &args) == *wanted, "{name} {flags:?}");
        // Laid over a folder that says nothing else.
        let over = format!("--checkpoint={name}.safetensors");
        let args = [&["--model=model", &over, "--sampler=euler"], flags].concat();
        assert!(frames(&folder, &args) == *wanted, "over a folder: {name} {flags:?}");
    }
    folder.write("plain.yaml", "    parameterization: velocity");
    let args = ["generate", "a", "-o", "x.gif", "--model=model", "--checkpoint=plain.safetensors"];
    let line = folder.run(&args).fails(3).to_owned();
    assert!(line.contains("plain.yaml") && line.contains("`velocity`"), "{line}");
}

#[test]
fn a_schedule_that_ends_in_pure_noise_is_obeyed_and_written_down() {
    let folder = Folder::new();
    tiny(&folder);
    single(&folder, "both.safetensors", &["v_pred", "ztsnr"], None);
    single(&folder, "ztsnr.safetensors", &["ztsnr"], None);
    let model = ["--model=both.safetensors", "--model-config=model", MOTION, "--lcm-lora=none"];
    let args = |more: &[&'static str]| [&model[..], more].concat();
    for sampler in ["--sampler=lcm", "--sampler=ddim", "--sampler=euler"] {
        let rescaled = frames(&folder, &args(&[sampler]));
        let plain = frames(&folder, &args(&[sampler, "--zero-snr=false"]));
        assert!(rescaled != plain, "{sampler}");
        // The same as a folder says it.
        let says = json!({
            "prediction_type": "v_prediction", "rescale_betas_zero_snr": true,
            "timestep_spacing": "trailing",
        });
        change(&folder, "scheduler/scheduler_config.json", &says);
        assert!(frames(&folder, &["--model=model", sampler]) == rescaled, "{sampler}");
        fs::copy(
            golden::path("tiny/model/scheduler/scheduler_config.json"),
            folder.path("model/scheduler/scheduler_config.json"),
        )
        .unwrap();
    }
    // The clip says how it was made, and is made again of the same.
    let args =
        [&["generate", "a", "--frames=1", "--steps=2", "--sampler=ddim"], &model[..]].concat();
    folder.run(&[&args[..], &["-o", "clip.gif"]].concat()).ok();
    let about = folder.run(&["inspect", "clip.gif", "--json"]).ok().json();
    assert_eq!(about["schedule"]["prediction"], "v-prediction", "{about}");
    assert_eq!(about["schedule"]["zero_snr"], true, "{about}");
    assert_eq!(about["sampling"]["spacing"], "trailing", "{about}");
    folder.run(&["replay", "clip.gif", "-o", "again.gif", "--trust-paths"]).ok();
    assert_eq!(folder.read("again.gif"), folder.read("clip.gif"));
    // Noise alone says nothing of what it hides.
    let args = ["--model=model", "--checkpoint=ztsnr.safetensors", "--frames=1", "-o", "x.gif"];
    let outcome = folder.run(&[&["generate", "a"], &args[..]].concat());
    let line = outcome.fails(2);
    assert!(line.contains("prediction: "), "{line}");
    assert!(outcome.hint().contains("--prediction v"), "{}", outcome.hint());
}

#[test]
fn a_request_says_what_is_predicted() {
    let json =
        r#"{"schema":"animatelcm/v1","schedule":{"prediction":"v_prediction","zero_snr":true}}"#;
    let request = Job::from_json(json).unwrap().request;
    assert_eq!(
        (request.schedule.prediction, request.schedule.zero_snr),
        (Some(Prediction::V), Some(true))
    );
    let json = r#"{"schema":"animatelcm/v1","schedule":{"prediction":"flow"}}"#;
    let error: Error = Job::from_json(json).unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
}
