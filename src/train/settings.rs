//! Settings of the stages in a training plan.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Insertion, Loss, Pace};
use crate::models::clip::TextConfig;
use crate::models::motion::MotionConfig;
use crate::models::unet::UNetConfig;
use crate::models::vae::VaeConfig;
use crate::preprocess::Preprocessor;
use crate::{Error, Result};

/// Training settings of a stage: steps, batch, learning rate, loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Course {
    /// Optimizer steps.
    pub steps: usize,
    /// Batch size of one pass, in images or clips.
    pub batch: usize,
    /// Passes per step; their gradients are averaged.
    pub accumulate: usize,
    /// Peak learning rate.
    pub rate: f64,
    /// Warmup steps.
    pub warmup: usize,
    /// Final learning rate as a fraction of the peak.
    pub floor: f64,
    /// Weight decay.
    pub decay: f64,
    /// Maximum norm of the gradient.
    pub clip: f64,
    /// Maximum decay of the EMA of the weights, which is what is written.
    pub average: f64,
    /// Loss function; the autoencoder has its own.
    pub loss: Loss,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 16,
            accumulate: 1,
            rate: 1e-3,
            warmup: 20,
            floor: 0.02,
            decay: 0.0,
            clip: 1.0,
            average: 0.995,
            loss: Loss::Mse,
        }
    }
}

impl Course {
    /// The learning rate schedule.
    pub fn pace(&self) -> Pace {
        Pace { rate: self.rate, warmup: self.warmup, steps: self.steps, floor: self.floor }
    }

    pub(super) fn validate(&self, stage: &'static str) -> Result<()> {
        let positive = [
            ("steps", self.steps as f64),
            ("batch", self.batch as f64),
            ("accumulate", self.accumulate as f64),
            ("rate", self.rate),
            ("clip", self.clip),
        ];
        for (field, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                let reason = format!("`{field}` must be above 0, got {value}");
                return Err(Error::request(stage, reason));
            }
        }
        for (field, value) in
            [("floor", self.floor), ("decay", self.decay), ("average", self.average)]
        {
            if !(0.0..1.0).contains(&value) {
                let reason = format!("`{field}` must be at least 0 and below 1, got {value}");
                return Err(Error::request(stage, reason));
            }
        }
        self.loss.validate()
    }
}

/// Settings of the `vae` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeStage {
    /// Training settings.
    pub course: Course,
    /// Weight of the Kullback-Leibler divergence.
    pub divergence: f64,
    /// Additional weight of pixels that differ from an image's median colour.
    pub emphasis: f64,
    /// Standard deviation of scaled latents. Below 1 for small and plain images: otherwise what all pixels have in
    /// common would remain visible in the strongest noise, whereas sampling begins with pure noise.
    pub deviation: f64,
    /// Sizes of the autoencoder; the scaling factor is measured.
    pub config: VaeConfig,
}

impl Default for VaeStage {
    fn default() -> Self {
        Self {
            course: Course::default(),
            divergence: 0.0,
            emphasis: 0.0,
            deviation: 1.0,
            config: VaeConfig::default(),
        }
    }
}

/// Settings of the `base` stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaseStage {
    /// Training settings.
    pub course: Course,
    /// Probability of dropping the caption.
    pub no_caption: f64,
    /// Probability of dropping one part of the caption.
    pub no_part: f64,
    /// Sizes of the UNet.
    pub unet: UNetConfig,
    /// Sizes of the text encoder.
    pub text: TextConfig,
}

/// Settings of the `motion` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MotionStage {
    /// Training settings.
    pub course: Course,
    /// Probability of dropping the caption.
    pub no_caption: f64,
    /// Probability of dropping one part of the caption.
    pub no_part: f64,
    /// Exponent `p` of the timesteps `T uᵖ` for uniform `u`: below 1 favours noisy ones, which determine motion.
    pub power: f64,
    /// Weight of errors at high noise levels: 0 weights all errors of predicted noise alike, 1 as errors of velocity.
    pub balance: f64,
    /// Sizes of the motion modules.
    pub config: MotionConfig,
}

impl Default for MotionStage {
    fn default() -> Self {
        Self {
            course: Course::default(),
            no_caption: 0.1,
            no_part: 0.0,
            power: 1.0,
            balance: 0.0,
            config: MotionConfig::default(),
        }
    }
}

/// Settings of consistency distillation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Consistency {
    /// Number of cells of the timestep grid.
    pub cells: usize,
    /// Number of cells spanned by one solver step.
    pub skip: usize,
    /// Range of the teacher's guidance scale, which is drawn at random.
    pub guidance: [f64; 2],
    /// EMA decay of the target network.
    pub follow: f64,
}

impl Default for Consistency {
    fn default() -> Self {
        Self { cells: 100, skip: 5, guidance: [2.0, 3.5], follow: 0.95 }
    }
}

impl Consistency {
    pub(super) fn validate(&self, stage: &'static str) -> Result<()> {
        let [low, high] = self.guidance;
        if !(low >= 1.0 && high >= low && high.is_finite()) {
            let reason = format!("`guidance` must rise from at least 1, got {low} to {high}");
            return Err(Error::request(stage, reason));
        }
        check_follow(stage, self.follow)
    }
}

/// Settings of the `lora` stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraStage {
    /// Training settings.
    pub course: Course,
    /// Distillation settings.
    pub consistency: Consistency,
    /// Rank of the LoRA.
    pub rank: usize,
    /// Alpha of the LoRA.
    pub alpha: f64,
}

impl Default for LoraStage {
    fn default() -> Self {
        let (course, consistency) = (Course::default(), Consistency::default());
        Self { course, consistency, rank: 64, alpha: 8.0 }
    }
}

/// Settings of the `lcm` stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LcmStage {
    /// Training settings.
    pub course: Course,
    /// Distillation settings.
    pub consistency: Consistency,
    /// Insertion of the LoRA into the target.
    pub insertion: Insertion,
    /// Whether a new LoRA is trained together with the motion modules, instead of using the one of the `lora` stage:
    /// the ablation of the decoupling.
    pub joint: bool,
}

/// Settings of the `adapt` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptStage {
    /// The control network, a file or folder as of `--control`: a ControlNet, a SparseCtrl network or a T2I-Adapter.
    pub network: PathBuf,
    /// What makes hints of frames; frames are hints if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocessor>,
    /// The frames that a SparseCtrl network has hints for; the first if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hint_frames: Vec<usize>,
    /// Training settings.
    #[serde(default)]
    pub course: Course,
    /// Number of cells of the timestep grid.
    #[serde(default = "cells")]
    pub cells: usize,
    /// Number of cells between the two samples of a pair.
    #[serde(default = "skip")]
    pub skip: usize,
    /// EMA decay of the target network.
    #[serde(default = "follow")]
    pub follow: f64,
    /// Rank of the LoRA.
    #[serde(default = "rank")]
    pub rank: usize,
    /// Alpha of the LoRA.
    #[serde(default = "alpha")]
    pub alpha: f64,
}

/// Settings of the `i2v` stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct I2vStage {
    /// Training settings.
    pub course: Course,
    /// Number of cells of the timestep grid.
    pub cells: usize,
    /// Number of cells between the two samples of a pair.
    pub skip: usize,
    /// EMA decay of the target network.
    pub follow: f64,
    /// Factor of the frames' positions in the image encoder.
    pub motion_scale: f64,
}

impl Default for I2vStage {
    fn default() -> Self {
        let Consistency { cells, skip, follow, .. } = Consistency::default();
        Self { course: Course::default(), cells, skip, follow, motion_scale: 0.8 }
    }
}

impl I2vStage {
    pub(super) fn validate(&self) -> Result<()> {
        self.course.validate("i2v")?;
        check_follow("i2v", self.follow)?;
        if !(0.0..=100.0).contains(&self.motion_scale) {
            let reason =
                format!("`motion_scale` must be between 0 and 100, got {}", self.motion_scale);
            return Err(Error::request("i2v", reason));
        }
        Ok(())
    }
}

/// Fails unless the decay of a target's EMA is possible.
fn check_follow(stage: &'static str, follow: f64) -> Result<()> {
    if (0.0..1.0).contains(&follow) {
        return Ok(());
    }
    Err(Error::request(stage, format!("`follow` must be at least 0 and below 1, got {follow}")))
}

fn cells() -> usize {
    Consistency::default().cells
}

fn skip() -> usize {
    Consistency::default().skip
}

fn follow() -> f64 {
    Consistency::default().follow
}

fn rank() -> usize {
    LoraStage::default().rank
}

fn alpha() -> f64 {
    LoraStage::default().alpha
}

impl AdaptStage {
    pub(super) fn validate(&self, frames: usize) -> Result<()> {
        let wrong = |reason: String| Err(Error::request("adapt", reason));
        self.course.validate("adapt")?;
        if self.network.as_os_str().is_empty() {
            return wrong("`network` is empty".into());
        }
        check_follow("adapt", self.follow)?;
        if !self.alpha.is_finite() {
            return wrong(format!("`alpha` must be a number, got {}", self.alpha));
        }
        for (i, frame) in self.hint_frames.iter().enumerate() {
            if *frame >= frames {
                return wrong(format!("`hint_frames`: {frame} is not in a clip of {frames}"));
            }
            if self.hint_frames[..i].contains(frame) {
                return wrong(format!("`hint_frames`: {frame} is listed twice"));
            }
        }
        if let Some(preprocess) = &self.preprocess {
            preprocess.validate()?;
            if preprocess.needs_network() {
                let reason = format!("`preprocess`: `{}` needs a network", preprocess.name());
                return Err(Error::request("adapt", reason)
                    .with_hint("formulas such as canny, or no preprocess"));
            }
        }
        Ok(())
    }
}
