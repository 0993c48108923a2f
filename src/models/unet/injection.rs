//! What the outside may hand the UNet for one pass. The UNet does not know who does.

use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::kernels::layout::add;
use crate::nn::SideContext;

/// Tensors that are added to parts of the UNet. Empty means "no effect".
///
/// Whoever fills it adds to what is there, so any number of adapters compose in any order.
#[derive(Clone, Debug, Default)]
pub struct Injection {
    residuals: Option<Residuals>,
    stage_features: Vec<Tensor>,
    /// For every cross attention what its queries look at beside the prompt.
    sides: Vec<Vec<SideContext>>,
}

/// What a copy of the UNet's first half adds to it.
#[derive(Clone, Debug)]
pub struct Residuals {
    /// Added to the skip connections, one each (12 for Stable Diffusion 1.5), the input's first:
    /// `(batch*frames, c_i, h_i, w_i)`.
    pub skips: Vec<Tensor>,
    /// Added to the middle stage's output, `(batch*frames, channels, height, width)`.
    pub mid: Tensor,
}

impl Injection {
    /// Adds residuals to the skips and to the middle.
    ///
    /// # Errors
    ///
    /// When others were added before and their number or shapes differ.
    pub fn add_residuals(&mut self, more: Residuals) -> Result<()> {
        self.residuals = Some(match self.residuals.take() {
            None => more,
            Some(before) => before.plus(more)?,
        });
        Ok(())
    }

    /// Adds features to the outputs of the stages down, one for each, before they are kept as skips and halved:
    /// `(batch*frames, c_i, h_i, w_i)`.
    ///
    /// # Errors
    ///
    /// When others were added before and their number or shapes differ.
    pub fn add_stage_features(&mut self, more: Vec<Tensor>) -> Result<()> {
        if self.stage_features.is_empty() {
            self.stage_features = more;
            return Ok(());
        }
        same_number("features", more.len(), "stages", self.stage_features.len())?;
        let sums = self.stage_features.iter().zip(more).map(|(a, b)| a + b);
        self.stage_features = sums.collect::<Result<_>>()?;
        Ok(())
    }

    /// What is added to each of so many stages down.
    pub(super) fn for_stages(&self, stages: usize) -> Result<Vec<Option<&Tensor>>> {
        if self.stage_features.is_empty() {
            return Ok(vec![None; stages]);
        }
        same_number("features", self.stage_features.len(), "stages", stages)?;
        Ok(self.stage_features.iter().map(Some).collect())
    }

    /// Has the queries of every cross attention look at something beside the prompt. There is one entry for each, in
    /// the order of [`UNetConfig::cross_attentions`](super::UNetConfig::cross_attentions).
    ///
    /// # Errors
    ///
    /// When others were added before and their number differs.
    pub fn add_sides(&mut self, more: Vec<SideContext>) -> Result<()> {
        if self.sides.is_empty() {
            self.sides.resize_with(more.len(), Vec::new);
        }
        same_number("side contexts", more.len(), "cross attentions", self.sides.len())?;
        for (sides, side) in self.sides.iter_mut().zip(more) {
            sides.push(side);
        }
        Ok(())
    }

    /// What some of the cross attentions look at beside the prompt.
    pub(super) fn sides(&self, crossing: Range<usize>) -> &[Vec<SideContext>] {
        self.sides.get(crossing).unwrap_or_default()
    }

    /// Fails if there are side contexts, but not for so many cross attentions.
    pub(super) fn check_sides(&self, attentions: usize) -> Result<()> {
        if self.sides.is_empty() {
            return Ok(());
        }
        same_number("side contexts", self.sides.len(), "cross attentions", attentions)
    }

    /// Gives every skip its residual.
    pub(super) fn onto_skips(&self, skips: &mut [Tensor]) -> Result<()> {
        let Some(residuals) = &self.residuals else { return Ok(()) };
        same_number("residuals", residuals.skips.len(), "skips", skips.len())?;
        for (skip, residual) in skips.iter_mut().zip(&residuals.skips) {
            *skip = add(skip, residual)?;
        }
        Ok(())
    }

    /// The middle stage's output with its residual.
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

    /// The residuals after `change`, which is told which one it has, from 0; the middle's is the last.
    ///
    /// # Errors
    ///
    /// What `change` says.
    pub fn map(&self, change: impl Fn(usize, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let skips = self.skips.iter().enumerate().map(|(i, skip)| change(i, skip));
        let skips: Vec<Tensor> = skips.collect::<Result<_>>()?;
        let mid = change(skips.len(), &self.mid)?;
        Ok(Self { skips, mid })
    }
}

/// Pairing lists off would silently leave out what one has more than the other.
fn same_number(what: &str, found: usize, places: &str, wanted: usize) -> Result<()> {
    if found != wanted {
        candle_core::bail!("{found} {what} for {wanted} {places}");
    }
    Ok(())
}
