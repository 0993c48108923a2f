//! Pairs of neighbouring samples with the same noise: consistency without a teacher.
//!
//! AnimateLCM takes the score at a noisy sample to be that of the clean latents which it was made of. A solver's step
//! along the trajectory then leads to the same latents under the same noise at the nearer level, and no teacher is
//! needed (consistency training: Song et al. (2023), section 5).

use candle_core::Tensor;

use super::{Cell, Compute, Loss, PerImage};
use crate::{Error, Result};

/// Clips of one training step, each at both ends of a cell.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// Clean latents, `(clips*frames, channels, height, width)`.
    pub clean: Tensor,
    /// Noise of the same shape, that of both samples.
    pub noise: Tensor,
    /// Text states, `(clips, tokens, dim)`.
    pub context: Tensor,
    /// Number of frames per clip.
    pub frames: usize,
    /// Cells of the grid, one for each clip.
    pub cells: Vec<Cell>,
}

impl Pairs {
    /// Loss between what `online` makes of the noisier samples and what `target`, which gets no gradient, makes of the
    /// others; both predict the noise of samples at their levels.
    pub(super) fn loss(
        &self,
        compute: &Compute,
        loss: Loss,
        online: impl Fn(&Tensor, &PerImage) -> Result<Tensor>,
        target: impl Fn(&Tensor, &PerImage) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Self { clean, noise, frames, cells, .. } = self;
        if cells.len() * frames != clean.dim(0)? {
            let reason = format!("{} cells for {} images", cells.len(), clean.dim(0)?);
            return Err(Error::request("batch", reason));
        }
        let levels = |level: fn(&Cell) -> _| {
            PerImage::new(cells.iter().map(level).collect(), *frames, &compute.device)
        };
        let (from, to) = (levels(|cell| cell.from), levels(|cell| cell.to));
        let (x, next) = (from.add_noise(clean, noise)?, to.add_noise(clean, noise)?);
        let target = to.consistent(&next, &target(&next, &to)?)?;
        let online = from.consistent(&x, &online(&x, &from)?)?;
        loss.of(&online, &target.detach())
    }
}
