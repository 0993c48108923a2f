//! Encoding and decoding in tiles that overlap, as `enable_tiling` of diffusers' `AutoencoderKL` (0.42.1).

use candle_core::Tensor;

use super::{Vae, VaeEncoder};
use crate::models::Decode;
use crate::{Error, Result, Stop};

/// Tiles of an autoencoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    /// Width and height of a tile in pixels: `tile_sample_min_size`.
    size: usize,
    /// The same in latents: `tile_latent_min_size`.
    latents: usize,
    /// Share of a tile that it has in common with the next: `tile_overlap_factor`.
    overlap: f64,
}

/// Tiles on one side of the autoencoder: their distance, and on the other side how much of each is blended and kept.
#[derive(Clone, Copy)]
struct Grid {
    size: usize,
    stride: usize,
    blended: usize,
    kept: usize,
}

impl Tiling {
    /// Tiles of `size` pixels for an autoencoder whose latents are `factor` pixels wide.
    ///
    /// # Errors
    ///
    /// When tiles are not of whole latents, or their overlap is not.
    pub fn new(size: usize, overlap: f64, factor: usize) -> Result<Self> {
        let wrong = |reason: String| Err(Error::request("vae-tiling", reason));
        if size < factor || !size.is_multiple_of(factor) {
            return wrong(format!("`size` must be a multiple of {factor}, got {size}"));
        }
        let tiling = Self { size, latents: size / factor, overlap };
        let (encoding, decoding) = (tiling.encoding(), tiling.decoding());
        let is_whole = encoding.stride == encoding.kept * factor
            && decoding.stride * factor == decoding.kept
            && decoding.stride > 0;
        if !is_whole {
            let reason = format!("{overlap} of {size} pixels is not a whole number of latents");
            let error = Error::request("vae-tiling", reason);
            return Err(error.with_hint(format!("their size is {factor} pixels")));
        }
        Ok(tiling)
    }

    /// The size of a tile in pixels.
    pub fn size(self) -> usize {
        self.size
    }

    fn encoding(self) -> Grid {
        self.grid(self.size, self.latents)
    }

    fn decoding(self) -> Grid {
        self.grid(self.latents, self.size)
    }

    /// Tiles of a size that become tiles of another.
    fn grid(self, size: usize, becomes: usize) -> Grid {
        let blended = (becomes as f64 * self.overlap) as usize;
        let stride = (size as f64 * (1.0 - self.overlap)) as usize;
        Grid { size, stride, blended, kept: becomes.saturating_sub(blended) }
    }

    /// Unscaled moments or latents of images `(batch, channels, height, width)`, by `encode` of tiles.
    pub(super) fn encode(
        self,
        images: &Tensor,
        encode: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.encoding().run(images, encode)
    }

    /// Images of latents `(batch, channels, height, width)`, by `decode` of tiles.
    pub(super) fn decode(
        self,
        latents: &Tensor,
        decode: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.decoding().run(latents, decode)
    }
}

impl Grid {
    /// Runs `network` on tiles of `x` and joins what it makes; on the whole where that is no larger than a tile.
    fn run(self, x: &Tensor, network: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        if height <= self.size && width <= self.size {
            return network(x);
        }
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in (0..height).step_by(self.stride) {
            let strip = x.narrow(2, top, self.size.min(height - top))?;
            let mut row: Vec<Tensor> = Vec::new();
            for (j, left) in (0..width).step_by(self.stride).enumerate() {
                let tile = strip.narrow(3, left, self.size.min(width - left))?.contiguous()?;
                let mut tile = network(&tile)?.contiguous()?;
                // Neighbours are blended already, as in diffusers, where that happens in place.
                if let Some(above) = above.get(j) {
                    tile = blended(above, &tile, 2, self.blended)?;
                }
                if let Some(left) = row.last() {
                    tile = blended(left, &tile, 3, self.blended)?;
                }
                row.push(tile);
            }
            let kept: Vec<Tensor> =
                row.iter().map(|tile| self.kept(tile)).collect::<Result<_>>()?;
            rows.push(Tensor::cat(&kept, 3)?);
            above = row;
        }
        Ok(Tensor::cat(&rows, 2)?)
    }

    /// What no later tile covers.
    fn kept(self, tile: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = tile.dims4()?;
        Ok(tile.narrow(2, 0, self.kept.min(height))?.narrow(3, 0, self.kept.min(width))?)
    }
}

/// `tile` whose beginning along an axis passes over from the end of the one `before`.
fn blended(before: &Tensor, tile: &Tensor, axis: usize, extent: usize) -> Result<Tensor> {
    let (size, size_before) = (tile.dim(axis)?, before.dim(axis)?);
    let extent = extent.min(size).min(size_before);
    if extent == 0 {
        return Ok(tile.clone());
    }
    let shares: Vec<f32> = (0..extent).map(|at| at as f32 / extent as f32).collect();
    let shape = if axis == 2 { (1, 1, extent, 1) } else { (1, 1, 1, extent) };
    let shares = Tensor::from_vec(shares, shape, tile.device())?.to_dtype(tile.dtype())?;
    let end = before.narrow(axis, size_before - extent, extent)?;
    let begin = tile.narrow(axis, 0, extent)?.broadcast_mul(&shares)?;
    let begin = (end.broadcast_mul(&shares.affine(-1.0, 1.0)?)? + begin)?;
    Ok(Tensor::cat(&[begin, tile.narrow(axis, extent, size - extent)?], axis)?)
}

/// An autoencoder that decodes in tiles, if there are any.
#[derive(Debug)]
pub struct Tiled<'a> {
    vae: &'a Vae,
    tiling: Option<Tiling>,
}

impl<'a> Tiled<'a> {
    /// Without tiles images are decoded whole.
    pub fn new(vae: &'a Vae, tiling: Option<Tiling>) -> Self {
        Self { vae, tiling }
    }
}

impl Decode for Tiled<'_> {
    fn decode(&self, latents: &Tensor, frames: usize, stop: &Stop) -> Result<Tensor> {
        match self.tiling {
            Some(tiling) => tiling.decode(latents, |tile| self.vae.decode(tile, frames, stop)),
            None => self.vae.decode(latents, frames, stop),
        }
    }
}

impl VaeEncoder {
    /// [`sample`](Self::sample), in tiles if there are any.
    ///
    /// # Errors
    ///
    /// Mismatched shapes, or a requested `stop`.
    pub fn sample_tiled(
        &self,
        images: &Tensor,
        noise: &Tensor,
        tiling: Option<Tiling>,
        stop: &Stop,
    ) -> Result<Tensor> {
        let Some(tiling) = tiling else { return self.sample(images, noise, stop) };
        self.scaled(&tiling.encode(images, |tile| self.moments(tile, stop))?, noise)
    }
}
