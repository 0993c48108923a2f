//! Requests: the vocabulary of the command line, of request files and of the metadata in clips.
//!
//! Text only: nothing here opens a file, reads weights or knows a device. A [`Job`] is a whole document; its JSON has
//! the sections `models` ([`Spec`]), `prompt`, `source`, `size`, `sampling`, `schedule`, `quality`, `controls`,
//! `ip_adapters`, `windows`, `background_color` and `output` (those of [`Request`]). Every section and every field may be left out; what is `None` the
//! model decides.
//!
//! ```
//! use animatelcm::request::Job;
//!
//! let job = Job::from_json(r#"{"schema": "animatelcm/v1", "prompt": "a red circle", "size": {"frames": 8}}"#)?;
//! assert_eq!((job.request.prompt.text.as_str(), job.request.size.frames), ("a red circle", Some(8)));
//! # Ok::<(), animatelcm::Error>(())
//! ```

mod control;
mod grammar;
mod ip_adapter;
mod job;
mod prompt;
mod quality;
mod source;
mod spec;
mod travel;
mod windows;

use serde::{Deserialize, Serialize};

pub use control::Control;
pub use ip_adapter::IpAdapter;
pub use job::{FileRecord, Job, Program, SCHEMA};
pub use prompt::Prompt;
pub use quality::{DynamicThresholding, Filter, FreeInit, Hires, Pag, Quality, Upscale, VaeTiling};
pub use source::Source;
pub use spec::{Embedding, Spec, WeightedFile};
pub use travel::{Interpolation, Key, Travel};
pub use windows::{Loop, Windows};

use crate::media::Background;
use crate::models::motion::MotionNorm;
use crate::rng::{NoiseKind, RngKind};
use crate::sampler::SamplerKind;
use crate::schedule::{BetaSchedule, Prediction, Spacing};
use crate::{Error, Result};

/// The shortest side of a frame, in pixels.
pub(crate) const LEAST_PIXELS: usize = 8;
/// The longest side of a frame, in pixels.
pub(crate) const MOST_PIXELS: usize = 8192;

/// The most that an output is enlarged.
const MOST_ZOOM: usize = 64;

/// The usual length of a clip, in frames.
const FRAMES: usize = 16;

/// The longest clip that any output holds, in frames.
const MOST_FRAMES: usize = 1 << 24;

/// Contents of a clip, and how it is sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The prompts.
    pub prompt: Prompt,
    /// The image or video that the clip starts from; noise if `None`.
    pub source: Option<Source>,
    /// Width, height and length of the clip.
    pub size: Size,
    /// The sampler and its settings.
    pub sampling: Sampling,
    /// The noise schedule that the model was trained on.
    pub schedule: Schedule,
    /// Options for quality.
    pub quality: Quality,
    /// ControlNets, SparseCtrl networks and T2I-Adapters with their hints.
    pub controls: Vec<Control>,
    /// IP-Adapters with their images.
    pub ip_adapters: Vec<IpAdapter>,
    /// Context windows of a long clip.
    pub windows: Windows,
    /// The colour behind transparent parts of the source, the hints and the images of IP-Adapters; their alpha is dropped
    /// if `None`. Masks are read without it.
    pub background_color: Option<Background>,
    /// Settings of the output.
    pub output: Output,
}

/// Width, height and length of a clip.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Size {
    /// Width in pixels.
    pub width: Option<usize>,
    /// Height in pixels.
    pub height: Option<usize>,
    /// Number of frames. `None` stands for 16 or, with a video as the source, all of its frames that the model knows
    /// positions for.
    pub frames: Option<usize>,
}

/// The sampler and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// The sampler.
    pub sampler: SamplerKind,
    /// Denoising steps.
    pub steps: usize,
    /// Scale of classifier-free guidance; none at 1 or below.
    pub cfg_scale: f64,
    /// Spacing of the timesteps; LCM and TCD take none.
    pub spacing: Option<Spacing>,
    /// Steps of the teacher whose timesteps LCM and TCD take.
    pub original_inference_steps: Option<usize>,
    /// TCD's gamma: 0 adds no noise between the steps, 1 is as random as LCM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcd_gamma: Option<f64>,
    /// Axes over which the motion modules' group norm normalizes.
    pub motion_norm: MotionNorm,
    /// The seed; random if `None` or, in JSON, -1.
    #[serde(deserialize_with = "seed")]
    pub seed: Option<u64>,
    /// The generator that the seed is for: torch's on the CPU or on CUDA.
    pub rng: RngKind,
    /// How the first noise of a long clip is made.
    #[serde(skip_serializing_if = "is_default")]
    pub noise: NoiseKind,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            sampler: SamplerKind::Lcm,
            steps: 4,
            cfg_scale: 1.0,
            spacing: None,
            original_inference_steps: None,
            tcd_gamma: None,
            motion_norm: MotionNorm::PerFrame,
            seed: None,
            rng: RngKind::Cpu,
            noise: NoiseKind::Independent,
        }
    }
}

/// The noise schedule that a model was trained on; what is `None` its scheduler's file says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Interpolation of the betas from the first to the last.
    pub beta_schedule: Option<BetaSchedule>,
    /// The first beta.
    pub beta_start: Option<f64>,
    /// The last beta.
    pub beta_end: Option<f64>,
    /// Meaning of the UNet's output: noise, velocity or sample.
    pub prediction: Option<Prediction>,
    /// Whether the betas are rescaled so that the schedule ends in pure noise.
    pub zero_snr: Option<bool>,
    /// Whether DDIM's last step ends without noise instead of at the first training timestep.
    pub set_alpha_to_one: Option<bool>,
    /// Offset that `leading` spacing adds to each timestep.
    pub steps_offset: Option<usize>,
}

/// Settings of the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Output {
    /// Frames a second.
    pub fps: f64,
    /// How many pixels of the file a pixel of the clip is wide and high.
    #[serde(skip_serializing_if = "is_one")]
    pub zoom: usize,
    /// How the clip begins again.
    #[serde(rename = "loop", skip_serializing_if = "is_default")]
    pub looping: Loop,
}

impl Default for Output {
    fn default() -> Self {
        Self { fps: 8.0, zoom: 1, looping: Loop::None }
    }
}

/// Clips that are not enlarged do not mention it.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(zoom: &usize) -> bool {
    *zoom == 1
}

/// Reads a seed; -1 stands for a random one.
fn seed<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    use serde::de::Error as _;
    let Some(number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(None) };
    match (number.as_u64(), number.as_i64()) {
        (Some(seed), _) => Ok(Some(seed)),
        (None, Some(-1)) => Ok(None),
        _ => Err(D::Error::custom(format!(
            "`seed` must be from 0 to {}, or -1 for a random one, got {number}",
            u64::MAX
        ))),
    }
}

impl Request {
    /// A request for a clip of that prompt, everything else by default.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: Prompt { text: prompt.into(), ..Prompt::default() }, ..Self::default() }
    }

    /// Checks everything that can be checked without a model.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] with the field that is wrong.
    pub fn validate(&self) -> Result<()> {
        let (frames, looping) = (self.frames(), self.output.looping);
        at_least("frames", frames, 1)?;
        if frames > MOST_FRAMES {
            let reason = format!("must be at most {MOST_FRAMES}, got {frames}");
            return Err(Error::request("frames", reason));
        }
        let count = looping.frames(frames);
        if count > MOST_FRAMES {
            let reason = format!("{frames} make {count} there and back, at most {MOST_FRAMES}");
            return Err(Error::request("frames", reason));
        }
        self.windows.settings(None, looping).check()?;
        at_least("steps", self.sampling.steps, 1)?;
        between("fps", Some(self.output.fps), 0.1, 240.0)?;
        at_least("zoom", self.output.zoom, 1)?;
        if self.output.zoom > MOST_ZOOM {
            let reason = format!("must be at most {MOST_ZOOM}, got {}", self.output.zoom);
            return Err(Error::request("zoom", reason));
        }
        between("cfg-scale", Some(self.sampling.cfg_scale), 0.0, 1000.0)?;
        between("tcd-gamma", self.sampling.tcd_gamma, 0.0, 1.0)?;
        let Schedule { beta_start, beta_end, .. } = self.schedule;
        between("beta-start", beta_start, 1e-9, 0.999)?;
        between("beta-end", beta_end, beta_start.unwrap_or(1e-9), 0.999)?;
        self.prompt.validate(self.sampling.steps, (!self.is_open()).then_some(frames))?;
        self.quality.validate(self.sampling.steps, self.source.is_some())?;
        if let Some(source) = &self.source {
            source.validate(self.sampling.steps, (!self.is_open()).then_some(frames))?;
            if let Some(field) = source.keeping().filter(|_| self.quality.hires.is_some()) {
                let reason =
                    "cannot be combined with hires, whose second pass changes all of the clip";
                return Err(Error::request(field, reason).with_hint("leave out --hires"));
            }
        }
        for control in &self.controls {
            let chooses = control.from.is_some() || control.every.is_some();
            if chooses && self.shared_video(control).is_some() {
                let reason =
                    format!("`{}`: `from` and `every` are those of the video", control.name);
                return Err(Error::request("control", reason)
                    .with_hint("--video-from and --video-every choose for both"));
            }
        }
        if self.background_color.is_some() && !self.has_pictures() {
            let reason = "there is no image, video or hint to put on it";
            return Err(Error::request("background-color", reason));
        }
        control::validate(&self.controls, if self.is_open() { usize::MAX } else { frames })?;
        ip_adapter::validate(&self.ip_adapters)?;
        for (field, value) in [("width", self.size.width), ("height", self.size.height)] {
            let Some(value) = value else { continue };
            at_least(field, value, LEAST_PIXELS)?;
            if value > MOST_PIXELS {
                let reason = format!("must be at most {MOST_PIXELS}, got {value}");
                return Err(Error::request(field, reason));
            }
        }
        Ok(())
    }

    /// Whether pictures are read: a source, hints or images of IP-Adapters.
    fn has_pictures(&self) -> bool {
        self.source.is_some() || !self.controls.is_empty() || !self.ip_adapters.is_empty()
    }

    /// Number of frames; 16 where neither the request nor, yet, its video says.
    pub fn frames(&self) -> usize {
        self.size.frames.unwrap_or(FRAMES)
    }

    /// Returns whether the source's video decides the number of frames.
    pub fn is_open(&self) -> bool {
        self.size.frames.is_none() && self.source_video().is_some()
    }

    /// The video that the clip starts from.
    pub fn source_video(&self) -> Option<&str> {
        self.source.as_ref()?.video.as_deref()
    }

    /// The source's video, where it is the hint of a control.
    pub(crate) fn shared_video(&self, control: &Control) -> Option<&str> {
        source::shared(self.source.as_ref(), control)
    }

    /// Takes source, hints and images as they are now, whatever they were when their hashes were written.
    pub(crate) fn forget_hashes(&mut self) {
        if let Some(source) = &mut self.source {
            source.sha256 = None;
            if let Some(mask) = &mut source.mask {
                mask.sha256 = None;
            }
        }
        for control in &mut self.controls {
            control.sha256 = None;
        }
        for adapter in &mut self.ip_adapters {
            for image in adapter.images.iter_mut().chain(&mut adapter.masks) {
                image.sha256 = None;
            }
        }
    }

    /// Returns whether guidance is on, and the negative prompt has an effect.
    pub fn is_guided(&self) -> bool {
        self.sampling.cfg_scale > 1.0
    }
}

fn at_least(field: &'static str, value: usize, least: usize) -> Result<()> {
    if value < least {
        return Err(Error::request(field, format!("must be at least {least}, got {value}")));
    }
    Ok(())
}

fn between(field: &'static str, value: Option<f64>, least: f64, most: f64) -> Result<()> {
    match value {
        Some(value) if !(value >= least && value <= most) => {
            let reason = format!("must be between {least} and {most}, got {value}");
            Err(Error::request(field, reason))
        }
        _ => Ok(()),
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::WindowSchedule;

    #[test]
    fn a_seed_of_minus_one_is_random() {
        let seed = |seed: &str| {
            let json = format!(r#"{{"schema":"animatelcm/v1","sampling":{{"seed":{seed}}}}}"#);
            Job::from_json(&json).map(|job| job.request.sampling.seed)
        };
        assert_eq!(seed("-1").unwrap(), None);
        assert_eq!(seed("null").unwrap(), None);
        assert_eq!(seed("18446744073709551615").unwrap(), Some(u64::MAX));
        for wrong in ["-2", "1.5", "18446744073709551616", "\"7\""] {
            assert_eq!(seed(wrong).unwrap_err().kind().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn samplers_have_the_names_of_other_programs() {
        let sampler = |name: &str| {
            let json = format!(r#"{{"schema":"animatelcm/v1","sampling":{{"sampler":"{name}"}}}}"#);
            Job::from_json(&json).map(|job| job.request.sampling.sampler)
        };
        assert_eq!(sampler("euler_ancestral").unwrap(), SamplerKind::EulerAncestral);
        assert_eq!(sampler("DPM++ 2M").unwrap(), SamplerKind::Dpmpp2m);
        // A request has a field for the spacing.
        let error = sampler("dpmpp-2m-karras").unwrap_err().to_string();
        assert!(error.contains("`dpmpp-2m` with the spacing `karras`"), "{error}");
        assert!(sampler("dpm2").unwrap_err().to_string().contains("expected one of `lcm`"));
    }

    #[test]
    fn impossible_requests_name_their_field() {
        const STATIC: Option<WindowSchedule> = Some(WindowSchedule::Static);
        let bad = |change: fn(&mut Request), field: &str| {
            let mut request = Request::default();
            change(&mut request);
            let error = request.validate().unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            assert!(error.to_string().starts_with(field), "{error}");
        };
        assert!(Request::default().validate().is_ok());
        bad(|r| r.size.frames = Some(0), "frames");
        bad(|r| r.sampling.steps = 0, "steps");
        bad(|r| r.output.fps = f64::NAN, "fps");
        bad(|r| r.output.fps = 0.0, "fps");
        bad(|r| r.output.zoom = 0, "zoom");
        bad(|r| r.output.zoom = 65, "zoom");
        bad(|r| r.windows.length = Some(0), "context-length");
        bad(|r| r.windows.length = Some(1), "context-length");
        bad(|r| r.windows.overlap = Some(16), "context-overlap");
        bad(|r| r.windows.stride = Some(0), "context-stride");
        bad(|r| (r.windows.schedule, r.windows.stride) = (STATIC, Some(2)), "context-stride");
        bad(|r| (r.windows.schedule, r.output.looping) = (STATIC, Loop::Closed), "loop");
        bad(|r| (r.size.frames, r.output.looping) = (Some(MOST_FRAMES), Loop::PingPong), "frames");
        bad(|r| r.sampling.cfg_scale = -1.0, "cfg-scale");
        bad(|r| r.quality.guidance_rescale = 1.1, "guidance-rescale");
        bad(|r| r.quality.guidance_rescale = f64::NAN, "guidance-rescale");
        bad(|r| r.schedule.beta_end = Some(0.0), "beta-end");
        bad(|r| r.schedule.beta_start = Some(1.0), "beta-start");
        bad(|r| r.background_color = Some(Background([0; 3])), "background-color");
        bad(|r| r.size.width = Some(0), "width");
        bad(|r| r.size.height = Some(1 << 20), "height");
        bad(|r| r.prompt.text = "x".repeat(2 << 20), "prompt");
    }
}
