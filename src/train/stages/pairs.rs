//! Random pairs of noised clips, which stages without a teacher learn from.

use candle_core::Device;

use super::{Setup, normal};
use crate::Result;
use crate::rng::Uniform;
use crate::train::latents::Latents;
use crate::train::text::Frozen;
use crate::train::{Grid, Pairs, files};

/// Clips with captions, and the noise levels that they are noised to.
pub(super) struct PairsOfClips {
    grid: Grid,
    text: Frozen,
    latents: Latents,
    frames: usize,
    device: Device,
}

impl PairsOfClips {
    /// Clips of a plan, on a grid of so many cells, of which a pair's levels are `skip` apart.
    pub(super) fn new(
        setup: Setup<'_>,
        latents: Latents,
        (cells, skip): (usize, usize),
    ) -> Result<Self> {
        let Setup { plan, places, compute } = setup;
        Ok(Self {
            grid: Grid::new(&files::read_schedule(&places.base)?, cells, skip)?,
            text: Frozen::open(&places.base, compute)?,
            latents,
            frames: plan.frames,
            device: compute.device.clone(),
        })
    }

    /// Pairs of `count` random clips, and which clips these are.
    pub(super) fn draw(&self, random: &mut Uniform, count: usize) -> Result<(Pairs, Vec<usize>)> {
        let (clean, chosen) = self.latents.clips(random, count)?;
        let context = self.text.states(&self.latents.whole_captions(&chosen))?;
        let cells = (0..count).map(|_| self.grid.cell(random.below(self.grid.len()))).collect();
        let noise = normal(random, clean.dims(), &self.device)?;
        Ok((Pairs { clean, noise, context, frames: self.frames, cells }, chosen))
    }
}
