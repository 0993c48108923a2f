//! A training step of consistency distillation, of images or of clips.
//!
//! The guided teacher takes one solver step from a noisy sample along its trajectory; the target network predicts the
//! clean latents there; the online network is trained to predict the same at the start of the step. The target is an
//! EMA of the online network.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{
    Cell, Compute, Loss, LowRank, PerImage, Vars, Weights, builder, move_towards, restore,
};
use crate::models::motion::MotionNorm;
use crate::models::unet::{UNet, UNetConfig};
use crate::{Error, Result};

/// Initialisation of the target network with respect to the spatial LoRA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Insertion {
    /// Gradual, with the EMA of all weights: the target begins as the teacher. AnimateLCM's initialisation strategy.
    /// After `n` steps it holds `1 - μⁿ` of the LoRA.
    #[default]
    Gradual,
    /// Immediate: the target begins as the online network. The ablation.
    Plain,
}

/// Trained parts of the online network.
#[derive(Clone, Debug, Default)]
pub struct Student {
    /// LoRA over the spatial weights.
    pub lora: Option<LowRank>,
    /// Whether that LoRA is trained.
    pub lora_learns: bool,
    /// Whether the motion modules are trained.
    pub motion_learns: bool,
    /// Insertion of the LoRA into the target.
    pub insertion: Insertion,
}

/// Inputs of one training step.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Clean latents, `(clips*frames, channels, height, width)`.
    pub clean: Tensor,
    /// Noise of the same shape.
    pub noise: Tensor,
    /// Text states, `(clips, tokens, dim)`.
    pub context: Tensor,
    /// Text states of the empty caption, of the same shape.
    pub empty: Tensor,
    /// Number of frames per clip.
    pub frames: usize,
    /// Cells of the grid, one for each clip.
    pub cells: Vec<Cell>,
    /// Guidance scale of the teacher for each clip; 1 is no guidance.
    pub scales: Vec<f64>,
}

/// Teacher, online network (student), and the target network that follows it.
#[derive(Debug)]
pub struct Distillation {
    config: UNetConfig,
    norm: MotionNorm,
    compute: Compute,
    /// All weights of the teacher.
    base: Weights,
    teacher: UNet,
    student: Student,
    /// Motion module weights, if they are trained.
    learning: Vars,
    /// Current weights of the target that differ from the teacher.
    target: Weights,
}

impl Distillation {
    /// A teacher with the weights `base` and a student that begins as its copy.
    ///
    /// # Errors
    ///
    /// When nothing would be trained, or the weights do not fit `config`.
    pub fn new(
        config: UNetConfig,
        norm: MotionNorm,
        base: Weights,
        student: Student,
        compute: &Compute,
    ) -> Result<Self> {
        let teacher = UNet::new(&config, &builder(&[&base], compute))?;
        let chosen: Weights = base
            .iter()
            .filter(|(name, _)| student.motion_learns && name.contains(".motion_modules."))
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        if chosen.is_empty() && !(student.lora_learns && student.lora.is_some()) {
            return Err(Error::request("train", "nothing of the network would learn"));
        }
        let learning = super::variables(&chosen)?;
        let (compute, target) = (compute.clone(), Weights::new());
        let mut this = Self { config, norm, compute, base, teacher, student, learning, target };
        let online = this.online_weights(true)?;
        let of_teacher = |name: &String| Some((name.clone(), this.base.get(name)?.clone()));
        this.target = match this.student.insertion {
            // A copy, because the online network's own tensors would change in training.
            Insertion::Plain => online
                .iter()
                .map(|(name, tensor)| Ok((name.clone(), tensor.copy()?)))
                .collect::<Result<_>>()?,
            Insertion::Gradual => online.keys().filter_map(of_teacher).collect(),
        };
        Ok(this)
    }

    /// All trained variables, under names that do not clash.
    pub fn vars(&self) -> Vars {
        let mut vars = self.learning.clone();
        if let Some(lora) = self.student.lora.as_ref().filter(|_| self.student.lora_learns) {
            vars.extend(lora.vars().clone());
        }
        vars
    }

    /// The LoRA, if any.
    pub fn lora(&self) -> Option<&LowRank> {
        self.student.lora.as_ref()
    }

    /// Weights of the target that differ from the teacher.
    pub fn target(&self) -> &Weights {
        &self.target
    }

    /// Restores a target from a checkpoint.
    ///
    /// # Errors
    ///
    /// When its weight names differ.
    pub fn set_target(&mut self, target: Weights) -> Result<()> {
        restore(&mut self.target, target)
    }

    /// Weights of the online network that differ from the teacher.
    fn online_weights(&self, frozen: bool) -> Result<Weights> {
        let mut weights = match &self.student.lora {
            Some(lora) => lora.composed(&self.base, frozen || !self.student.lora_learns)?,
            None => Weights::new(),
        };
        let tensor = |var: &candle_core::Var| {
            if frozen { var.as_detached_tensor() } else { var.as_tensor().clone() }
        };
        weights.extend(self.learning.iter().map(|(name, var)| (name.clone(), tensor(var))));
        Ok(weights)
    }

    fn network(&self, changed: &Weights) -> Result<UNet> {
        UNet::new(&self.config, &builder(&[&self.base, changed], &self.compute))
    }

    /// Loss of a batch; gradients reach [`vars`](Self::vars).
    ///
    /// # Errors
    ///
    /// When the shapes of the batch do not match.
    pub fn loss(&self, batch: &Batch, loss: Loss) -> Result<Tensor> {
        let Batch { clean, noise, context, empty, frames, cells, scales } = batch;
        if cells.len() * frames != clean.dim(0)? || scales.len() != cells.len() {
            let reason = format!("{} cells for {} images", cells.len(), clean.dim(0)?);
            return Err(Error::request("batch", reason));
        }
        let levels = |level: fn(&Cell) -> _| {
            PerImage::new(cells.iter().map(level).collect(), *frames, &self.compute.device)
        };
        let (from, to) = (levels(|cell| cell.from), levels(|cell| cell.to));
        let x = from.add_noise(clean, noise)?;
        let predict = |unet: &UNet, x: &Tensor, at: &PerImage, context: &Tensor| {
            self.compute.predict(unet, x, at, context, (*frames, self.norm))
        };

        // One solver step of the guided teacher along its trajectory.
        let cond = predict(&self.teacher, &x, &from, context)?;
        let guided = if scales.iter().all(|scale| *scale == 1.0) {
            cond
        } else {
            let uncond = predict(&self.teacher, &x, &from, empty)?;
            let scales: Vec<f32> =
                scales.iter().flat_map(|s| std::iter::repeat_n(*s as f32, *frames)).collect();
            let scales = Tensor::from_vec(scales, (clean.dim(0)?, 1, 1, 1), &self.compute.device)?;
            (&uncond + (cond - &uncond)?.broadcast_mul(&scales)?)?
        };
        let next = from.solve(&x, &guided, &to)?;

        let target = self.network(&self.target)?;
        let target = to.consistent(&next, &predict(&target, &next, &to, context)?)?;
        let online = self.network(&self.online_weights(false)?)?;
        let prediction = from.consistent(&x, &predict(&online, &x, &from, context)?)?;
        loss.of(&prediction, &target.detach())
    }

    /// Updates the target after an optimizer step: `target ← μ target + (1 - μ) online`, for all weights alike.
    pub fn follow(&mut self, mu: f64) -> Result<()> {
        let online = self.online_weights(true)?;
        move_towards(&mut self.target, &online, 1.0 - mu)
    }
}
