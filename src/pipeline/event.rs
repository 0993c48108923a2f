//! What happens during a run, and who hears of it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Instant;

use candle_core::Tensor;
use serde::{Serialize, Serializer};

use super::preview::Preview;
use crate::adapters::lora::LoraReport;
use crate::request::FileRecord;
use crate::sampler::Progress;
use crate::weights::LoadReport;
use crate::{Error, Result};

/// Something that happened during a run.
///
/// Its JSON is an object whose field `event` names the variant in snake case.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run is prepared and fits.
    Start {
        /// The base model's name or path; `None` for the one inside the program.
        model: Option<String>,
        /// Width of the frames in pixels.
        width: usize,
        /// Height of the frames in pixels.
        height: usize,
        /// Number of frames.
        frames: usize,
        /// Denoising steps.
        steps: usize,
        /// The sampler's name.
        sampler: &'static str,
        /// The seed.
        seed: u64,
        /// `cpu`, `cuda` or `metal`.
        device: &'static str,
        /// The dtypes of the networks, in words.
        dtype: String,
    },
    /// A LoRA is open and fits.
    Adapter {
        /// Its modules, applied and skipped; in JSON as text.
        #[serde(serialize_with = "as_text")]
        report: LoraReport,
    },
    /// A part is about to be loaded.
    Load {
        /// Which: `text`, `image-encoder`, `ip-adapter`, `unet`, `vae`, `vae-encoder`, `i2v-encoder`, `controlnet`,
        /// `sparsectrl`, `t2i-adapter` or `depth-anything`.
        part: &'static str,
        /// Bytes that it will have in memory.
        bytes: u64,
    },
    /// A part is loaded; every tensor of its files is accounted for.
    Report {
        /// What was used, changed and left aside; in JSON as text.
        #[serde(serialize_with = "as_text")]
        report: LoadReport,
    },
    /// Frames of the source or of a hint are encoded: none yet, or one more.
    Source {
        /// The network: `vae-encoder`, `i2v-encoder`, or `depth-anything` for those of a hint.
        part: &'static str,
        /// How many are done, from 0. AnimateLCM-I2V's encoder does all at once.
        frame: usize,
        /// Of how many.
        frames: usize,
    },
    /// Everything is loaded and encoded; the first step begins.
    Ready,
    /// A prompt was made of the image that the clip starts from.
    Caption {
        /// The prompt.
        prompt: String,
    },
    /// Something is not as it was probably meant.
    Warning {
        /// What, in one line.
        message: String,
    },
    /// The clip is sampled once more, or for the first time of several.
    Pass {
        /// Which pass, from 1.
        pass: usize,
        /// Of how many.
        passes: usize,
    },
    /// A denoising step is done; those of several passes are counted on.
    Step {
        /// Which, from 1.
        step: usize,
        /// Of how many.
        steps: usize,
        /// The timestep that the UNet was told.
        timestep: f64,
        /// Seconds that it took.
        seconds: f64,
        /// Seconds that the remaining steps will take at the mean pace so far.
        eta_seconds: f64,
    },
    /// What the clip looks like after a step; only for observers that [want previews](Observer::wants_previews). It
    /// comes before the [`Step`](Self::Step) that it is of.
    Preview(Preview),
    /// A frame is decoded and with the sink.
    Decode {
        /// Which, from 1.
        frame: usize,
        /// Of how many.
        frames: usize,
    },
    /// All frames are decoded; the encoder writes what is left.
    Encode {
        /// The format's name.
        format: &'static str,
    },
    /// The file is complete.
    Done(Done),
    /// The run failed.
    Error {
        /// The program's exit code for this kind of error.
        code: u8,
        /// What went wrong, in one line.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// A finished clip.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// Where it is; a path need not be text, but JSON is.
    pub path: String,
    /// The seed.
    pub seed: u64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
    /// Seconds from the beginning of the job to the complete file.
    pub seconds: f64,
    /// Seconds of each denoising step.
    pub step_seconds: Vec<f64>,
    /// The weight files that it was made with.
    pub weights: Vec<FileRecord>,
    /// The messages of all warnings on the way.
    pub warnings: Vec<String>,
}

impl Event {
    /// The event on one line of JSON.
    pub fn to_json(&self) -> String {
        // Texts and finite numbers: nothing that JSON lacks.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl From<&Error> for Event {
    fn from(error: &Error) -> Self {
        Self::Error {
            code: error.kind().exit_code(),
            message: error.to_string(),
            hint: error.hint().map(std::borrow::Cow::into_owned),
        }
    }
}

fn as_text<S: Serializer>(report: &impl Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(report)
}

/// Hears of a run. An error stops it; [`Error::Cancelled`] is how to cancel between two events,
/// [`Pipeline::until`](super::Pipeline::until) how to cancel at once.
///
/// Closures over events are observers.
pub trait Observer {
    /// Something happened.
    ///
    /// # Errors
    ///
    /// Whatever is to end the run.
    fn event(&mut self, event: Event) -> Result<()>;

    /// A denoising step is done; `x` and `denoised` are `(1, frames, channels, height, width)` in f32.
    ///
    /// # Errors
    ///
    /// Whatever is to end the run.
    fn step(&mut self, _progress: &Progress<'_>) -> Result<()> {
        Ok(())
    }

    /// Whether an [`Event::Preview`] is to come after this step; asked after each. Nothing is computed for it otherwise.
    fn wants_previews(&self) -> bool {
        false
    }

    /// Whether [`tensor`](Self::tensor) is to be called.
    fn wants_tensors(&self) -> bool {
        false
    }

    /// An intermediate result in the layout of files: `context`, `negative_context` (those of the first step, one for
    /// each frame if they differ), `latents.0` and so on after each
    /// step, `latents` at the end, all `(1, channels, frames, height, width)`, and `frames`,
    /// `(frames, 3, height, width)` in `[0, 1]`.
    fn tensor(&mut self, _name: &str, _tensor: Tensor) {}
}

impl<F: FnMut(Event) -> Result<()>> Observer for F {
    fn event(&mut self, event: Event) -> Result<()> {
        self(event)
    }
}

/// An observer that keeps the intermediate tensors of a run for comparison.
pub struct Recorder<'a> {
    inner: &'a mut dyn Observer,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl std::fmt::Debug for Recorder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("tensors", &self.tensors.keys()).finish_non_exhaustive()
    }
}

impl<'a> Recorder<'a> {
    /// Hands everything on to `inner`.
    pub fn new(inner: &'a mut dyn Observer) -> Self {
        Self { inner, tensors: BTreeMap::new() }
    }
}

impl Observer for Recorder<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        self.inner.event(event)
    }

    fn step(&mut self, progress: &Progress<'_>) -> Result<()> {
        self.inner.step(progress)
    }

    fn wants_previews(&self) -> bool {
        self.inner.wants_previews()
    }

    fn wants_tensors(&self) -> bool {
        true
    }

    fn tensor(&mut self, name: &str, tensor: Tensor) {
        self.tensors.insert(name.to_owned(), tensor);
    }
}

/// Gives the observer a tensor if it wants any.
pub(super) fn record(
    observer: &mut dyn Observer,
    name: &str,
    tensor: impl FnOnce() -> Result<Tensor>,
) -> Result<()> {
    if observer.wants_tensors() {
        observer.tensor(name, tensor()?);
    }
    Ok(())
}

/// The times of steps.
#[derive(Debug)]
pub(super) struct Pace {
    started: Instant,
    before: f64,
}

impl Pace {
    /// The first step begins now.
    pub(super) fn start() -> Self {
        Self { started: Instant::now(), before: 0.0 }
    }

    /// Seconds of the step that ends now, the `done`-th of `steps`, and seconds of the rest at the mean pace.
    pub(super) fn lap(&mut self, done: usize, steps: usize) -> (f64, f64) {
        let all = self.started.elapsed().as_secs_f64();
        let seconds = all - std::mem::replace(&mut self.before, all);
        (seconds, all / done.max(1) as f64 * steps.saturating_sub(done) as f64)
    }
}
