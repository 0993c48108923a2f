//! Evaluation of a stage's result: generated clips and their score.

use image::RgbImage;

use super::data::Clips;
use super::files;
use super::places::Places;
use super::plan::{Data, Plan};
use super::stages::Stage;
use super::{Compute, builder};
use crate::device::{DtypeChoice, Precision};
use crate::library::{Base, Files, LoraFile, Models, Motion};
use crate::media::tensor;
use crate::models::vae::{AutoencoderKl, VaeConfig};
use crate::pipeline::{Event, Inputs, Pipeline, Residency};
use crate::procedural::{Caption, Oracle, Score};
use crate::request::{Request, Size};
use crate::rng::Uniform;
use crate::sampler::SamplerKind;
use crate::schedule::{BetaSchedule, Spacing};
use crate::weights::Component;
use crate::{Error, Result};

/// Clips generated from a stage's result, and their score if it can be measured.
#[derive(Clone, Debug, Default)]
pub struct Quality {
    /// Frames of each clip.
    pub clips: Vec<Vec<RgbImage>>,
    /// Score of procedural captions.
    pub score: Option<Score>,
}

/// Generates `count` clips from a stage's result.
///
/// Those of the autoencoder are reconstructions; those of the image stages have one frame. Teachers use 20 steps of
/// DDIM with guidance, consistency models four of LCM without. Later stages make none.
///
/// # Errors
///
/// Errors of loading and generation, and those returned by `go_on`.
pub fn quality(
    stage: Stage,
    plan: &Plan,
    places: &Places,
    compute: &Compute,
    count: usize,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<Quality> {
    if stage > Stage::Lcm {
        return Ok(Quality::default());
    }
    let is_procedural = matches!(plan.data, Data::Procedural(_));
    let mut quality = Quality { score: is_procedural.then(Score::default), ..Quality::default() };
    let mut maker = Maker::open(stage, plan, places, compute)?;
    // Captions that may occur in training, with positions and sizes that do not.
    let fresh = Plan { seed: plan.seed ^ 0x7465_7374, ..plan.clone() };
    let clips = Clips::open(if is_procedural { &fresh } else { plan })?;
    for index in 0..count.min(clips.len()) {
        go_on()?;
        let words = clips.words(index).whole();
        let frames = maker.make(&words, index, &clips, go_on)?;
        if let (Some(score), Ok(caption)) = (&mut quality.score, words.parse::<Caption>()) {
            score.add(&caption, Oracle::default().observe(&frames).matches(&caption));
        }
        quality.clips.push(frames);
    }
    Ok(quality)
}

enum Maker {
    Vae { vae: Box<AutoencoderKl>, frames: usize, compute: Compute },
    Model { pipeline: Box<Pipeline>, request: Box<Request>, seed: u64 },
}

impl Maker {
    fn open(stage: Stage, plan: &Plan, places: &Places, compute: &Compute) -> Result<Self> {
        let device = &compute.device;
        if stage == Stage::Vae {
            let config: VaeConfig = files::read_json(&places.base.join("vae/config.json"))?;
            let weights = files::read_component(&places.base, Component::Vae, device)?;
            let vae = AutoencoderKl::new(&config, &builder(&[&weights], &Compute::exact(device)))?;
            let (vae, compute) = (Box::new(vae), compute.clone());
            return Ok(Self::Vae { vae, frames: plan.frames, compute });
        }
        let mut files = Files::new(Base::Folder(places.base.clone()));
        files.motion = match stage {
            Stage::Motion => Motion::File(places.motion()),
            Stage::Lcm => Motion::File(places.lcm()),
            _ => Motion::None,
        };
        let is_joint = stage == Stage::Lcm && plan.lcm.joint;
        match stage {
            Stage::Lcm if is_joint => files.loras.push(LoraFile::new(places.joint_lora())),
            Stage::Lcm | Stage::Lora => files.loras.push(LoraFile::new(places.lora())),
            _ => {}
        }
        let is_consistent = matches!(stage, Stage::Lora | Stage::Lcm);
        let mut request = Request {
            size: Size {
                width: Some(plan.side),
                height: Some(plan.side),
                frames: Some(match stage {
                    Stage::Motion | Stage::Lcm => plan.frames,
                    _ => 1,
                }),
            },
            ..Request::default()
        };
        request.schedule.beta_schedule = Some(BetaSchedule::Linear);
        if !is_consistent {
            request.sampling.sampler = SamplerKind::Ddim;
            request.sampling.spacing = Some(Spacing::Trailing);
            request.sampling.steps = 20;
            request.sampling.cfg_scale = 2.5;
        }
        let precision = Precision::new(DtypeChoice::F32, device);
        let models = Models::open_until(&files, &compute.stop)?;
        let pipeline = Pipeline::new(models, device.clone(), precision, Residency::KeepAll);
        let pipeline = pipeline.until(&compute.stop);
        let (pipeline, request) = (Box::new(pipeline), Box::new(request));
        Ok(Self::Model { pipeline, request, seed: plan.seed })
    }

    fn make(
        &mut self,
        words: &str,
        index: usize,
        clips: &Clips,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<RgbImage>> {
        match self {
            Self::Vae { vae, frames, compute } => {
                let Compute { device, stop, .. } = &*compute;
                let all: Vec<usize> = (0..*frames).collect();
                let frames = clips.frames(index, &all)?;
                let x = tensor::from_rgb(&frames, device)?.affine(2.0, -1.0)?;
                let y = vae.decode(&vae.encode(&x, stop)?.mean, stop)?.affine(0.5, 0.5)?;
                (0..frames.len()).map(|i| tensor::to_rgb(&y.get(i)?)).collect()
            }
            Self::Model { pipeline, request, seed } => {
                words.clone_into(&mut request.prompt.text);
                request.sampling.seed = Some(Uniform::part(*seed, index as u64).bits() >> 32);
                let mut frames = Vec::new();
                let mut observer = |_: Event| go_on();
                let prepared = pipeline.prepare(request, &Inputs::default())?;
                pipeline.generate(&prepared, &mut observer, &mut &mut frames)?;
                Ok::<_, Error>(frames)
            }
        }
    }
}
