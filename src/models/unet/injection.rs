//! What a pass of the UNet is given beside its inputs: tensors that conditioners add, and changes of its layers.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{FreeU, Perturbation};
use crate::kernels::layout::add;
use crate::nn::ImageContext;

/// Tensors that are added to activations of the UNet, and changes of its layers. Empty by default, which has no
/// effect.
///
/// Contributions are accumulated, so any number of adapters can be combined in any order.
#[derive(Clone, Debug, Default)]
pub struct Injection {
    residuals: Option<Residuals>,
    stage_features: Vec<Tensor>,
    motion_inputs: Vec<Tensor>,
    /// Image contexts of every cross-attention, attended to in addition to the prompt.
    image_contexts: Vec<Vec<ImageContext>>,
    /// Factors where the skip connections meet the backbone.
    pub free_u: Option<FreeU>,
    /// Self-attentions that are switched off for a part of the batch.
    pub perturbation: Option<Perturbation>,
}

/// Features that are added in one down block.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::models) struct StageFeatures<'a> {
    /// Added to the input of the second layer's motion module.
    pub(in crate::models) motion_input: Option<&'a Tensor>,
    /// Added to the output of the last layer.
    pub(in crate::models) output: Option<&'a Tensor>,
}

/// Residuals of a ControlNet or SparseCtrl network.
#[derive(Clone, Debug)]
pub struct Residuals {
    /// Residuals of the skip connections (12 for Stable Diffusion 1.5), with the input's first:
    /// `(batch*frames, c_i, h_i, w_i)`.
    pub skips: Vec<Tensor>,
    /// Residual of the mid block's output, `(batch*frames, channels, height, width)`.
    pub mid: Tensor,
}

impl Injection {
    /// Adds residuals to the skip connections and the mid block.
    ///
    /// # Errors
    ///
    /// Previously added residuals with another number or other shapes.
    pub fn add_residuals(&mut self, more: Residuals) -> Result<()> {
        self.residuals = Some(match self.residuals.take() {
            None => more,
            Some(before) => before.plus(more)?,
        });
        Ok(())
    }

    /// Adds features to the outputs of the down blocks, one for each, before the skip connection and downsampler:
    /// `(batch*frames, c_i, h_i, w_i)`.
    ///
    /// # Errors
    ///
    /// Previously added features with another number or other shapes.
    pub fn add_stage_features(&mut self, more: Vec<Tensor>) -> Result<()> {
        add_each(&mut self.stage_features, more)
    }

    /// Adds features in the second layer of each down block, between its spatial attention and its motion module, where
    /// AnimateLCM-I2V has them: `(batch*frames, c_i, h_i, w_i)`.
    ///
    /// # Errors
    ///
    /// Previously added features with another number or other shapes.
    pub fn add_motion_inputs(&mut self, more: Vec<Tensor>) -> Result<()> {
        add_each(&mut self.motion_inputs, more)
    }

    /// The features of each of `stages` down blocks.
    pub(super) fn for_stages(&self, stages: usize) -> Result<Vec<StageFeatures<'_>>> {
        for features in [&self.stage_features, &self.motion_inputs] {
            if !features.is_empty() {
                same_number("features", features.len(), "stages", stages)?;
            }
        }
        let features = |i| StageFeatures {
            motion_input: self.motion_inputs.get(i),
            output: self.stage_features.get(i),
        };
        Ok((0..stages).map(features).collect())
    }

    /// Adds an image context to every cross-attention, in the order of
    /// [`UNetConfig::cross_attentions`](super::UNetConfig::cross_attentions).
    ///
    /// # Errors
    ///
    /// Previously added image contexts with another number.
    pub fn add_image_contexts(&mut self, more: Vec<ImageContext>) -> Result<()> {
        if self.image_contexts.is_empty() {
            self.image_contexts.resize_with(more.len(), Vec::new);
        }
        same_number("image contexts", more.len(), "cross-attentions", self.image_contexts.len())?;
        for (contexts, context) in self.image_contexts.iter_mut().zip(more) {
            contexts.push(context);
        }
        Ok(())
    }

    /// The image contexts of a range of cross-attentions.
    pub(super) fn image_contexts(&self, attentions: Range<usize>) -> &[Vec<ImageContext>] {
        self.image_contexts.get(attentions).unwrap_or_default()
    }

    /// Checks that the image contexts, if any, are for `attentions` cross-attentions.
    pub(super) fn check_image_contexts(&self, attentions: usize) -> Result<()> {
        if self.image_contexts.is_empty() {
            return Ok(());
        }
        same_number("image contexts", self.image_contexts.len(), "cross-attentions", attentions)
    }

    /// Adds the residuals to the skip connections.
    pub(super) fn onto_skips(&self, skips: &mut [Tensor]) -> Result<()> {
        let Some(residuals) = &self.residuals else { return Ok(()) };
        same_number("residuals", residuals.skips.len(), "skips", skips.len())?;
        for (skip, residual) in skips.iter_mut().zip(&residuals.skips) {
            *skip = add(skip, residual)?;
        }
        Ok(())
    }

    /// Adds the residual to the mid block's output.
    pub(super) fn onto_mid(&self, x: Tensor) -> Result<Tensor> {
        match &self.residuals {
            Some(residuals) => add(&x, &residuals.mid),
            None => Ok(x),
        }
    }
}

impl Residuals {
    fn plus(self, more: Self) -> Result<Self> {
        same_number("residuals", more.skips.len(), "skips", self.skips.len())?;
        let skips = self.skips.into_iter().zip(more.skips).map(|(a, b)| add(&a, &b));
        Ok(Self { skips: skips.collect::<Result<_>>()?, mid: add(&self.mid, &more.mid)? })
    }

    /// Applies `change` to each residual and its index, from 0; the mid block's is the last.
    ///
    /// # Errors
    ///
    /// Any error of `change`.
    pub fn map(&self, change: impl Fn(usize, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let skips = self.skips.iter().enumerate().map(|(i, skip)| change(i, skip));
        let skips: Vec<Tensor> = skips.collect::<Result<_>>()?;
        let mid = change(skips.len(), &self.mid)?;
        Ok(Self { skips, mid })
    }
}

/// Adds features to those of the same stages.
fn add_each(features: &mut Vec<Tensor>, more: Vec<Tensor>) -> Result<()> {
    if features.is_empty() {
        *features = more;
        return Ok(());
    }
    same_number("features", more.len(), "stages", features.len())?;
    *features = features.iter().zip(more).map(|(a, b)| a + b).collect::<Result<_>>()?;
    Ok(())
}

/// Checks that lists have the same length, because zipping would silently truncate the longer one.
fn same_number(what: &str, found: usize, places: &str, wanted: usize) -> Result<()> {
    if found != wanted {
        candle_core::bail!("{found} {what} for {wanted} {places}");
    }
    Ok(())
}
