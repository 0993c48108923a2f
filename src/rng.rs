//! Seeded normal noise, generated on the host: the same values as torch for the same seed.
//!
//! It follows two of torch's generators, [`RngKind::Cpu`] and [`RngKind::Cuda`]. Both are computed on the CPU, so a
//! seed gives the same clip on every device. Latents are drawn in diffusers' order (channels before frames) and
//! returned with frames before channels.

mod mersenne;
mod philox;
mod uniform;

use std::collections::VecDeque;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use self::mersenne::Mersenne;
use self::philox::Philox;
pub use self::uniform::Uniform;
use crate::spelling::named;
use crate::{Error, Result};

/// Choice of torch generator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RngKind {
    /// `torch.Generator("cpu")`: used in diffusers' documentation.
    #[default]
    Cpu,
    /// `torch.Generator("cuda")`: used in the official AnimateLCM scripts.
    Cuda,
}

named!(RngKind, "rng", {
    Cpu = "cpu",
    Cuda = "cuda" | "gpu" | "nv",
});

/// How the first noise of a clip that is longer than a context window is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseKind {
    /// Every frame has its own.
    #[default]
    Independent,
    /// That of the first window, its frames shuffled for each later one: Qiu et al. (2023), "FreeNoise", as
    /// `shuffle_context` in diffusers.
    FreeNoise,
    /// That of the first window, again and again.
    Repeat,
}

named!(NoiseKind, "noise", {
    Independent = "independent" | "random",
    FreeNoise = "free-noise" | "shuffle-context",
    Repeat = "repeat" | "repeated-context" | "repeat-context",
});

/// Generator of standard normal noise.
#[derive(Clone, Debug)]
pub struct Noise {
    generator: Generator,
    replay: VecDeque<Tensor>,
}

#[derive(Clone, Debug)]
enum Generator {
    Cpu(Box<Mersenne>),
    Cuda(Philox),
}

impl Noise {
    /// A generator at the beginning of the stream of `seed`.
    ///
    /// [`RngKind::Cpu`] uses the low 32 bits of the seed, as torch does. [`RngKind::Cuda`] assumes a GPU with one
    /// thread for every value of a draw; see [`with_cuda_threads`](Self::with_cuda_threads) for larger draws.
    pub fn new(kind: RngKind, seed: u64) -> Self {
        let generator = match kind {
            RngKind::Cpu => Generator::Cpu(Box::new(Mersenne::new(seed as u32))),
            RngKind::Cuda => Generator::Cuda(Philox::new(seed, None)),
        };
        Self { generator, replay: VecDeque::new() }
    }

    /// A [`RngKind::Cuda`] generator for a GPU that runs at most `threads` threads at once.
    ///
    /// torch's values depend on this limit for draws that exceed it. It is the number of multiprocessors times the
    /// resident threads per multiprocessor, such as 128 · 1536 on an RTX 4090, 108 · 2048 on an A100 and 132 · 2048
    /// on an H100; it is rounded down to whole blocks of 256 threads, as in torch.
    pub fn with_cuda_threads(seed: u64, threads: usize) -> Self {
        let generator = Generator::Cuda(Philox::new(seed, Some(threads)));
        Self { generator, replay: VecDeque::new() }
    }

    /// Returns `tensors` for the first draws of latents, each `(batch, frames, channels, height, width)`, before
    /// drawing from the generator.
    ///
    /// Replayed draws do not advance the generator.
    #[must_use]
    pub fn with_replay(mut self, tensors: Vec<Tensor>) -> Self {
        self.replay = tensors.into();
        self
    }

    /// Draws `n` values: `torch.randn(n)`.
    ///
    /// The stream depends on the draw sizes: two draws of 8 differ from one of 16.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        match &mut self.generator {
            Generator::Cpu(mersenne) => mersenne.normal(n),
            Generator::Cuda(philox) => philox.normal(n),
        }
    }

    /// Draws latents of `shape`, which is `(batch, frames, channels, height, width)`, in f32.
    ///
    /// The values are drawn in the order `(batch, channels, frames, height, width)`.
    ///
    /// # Errors
    ///
    /// When the next replayed tensor has another shape.
    pub fn latents(
        &mut self,
        shape: (usize, usize, usize, usize, usize),
        device: &Device,
    ) -> Result<Tensor> {
        let (batch, frames, channels, height, width) = shape;
        if let Some(tensor) = self.replay.pop_front() {
            let wanted = [batch, frames, channels, height, width];
            if tensor.dims() != wanted {
                return Err(Error::request(
                    "noise",
                    format!("a replayed tensor is {:?}, the run needs {wanted:?}", tensor.dims()),
                ));
            }
            return Ok(tensor.to_dtype(DType::F32)?.to_device(device)?);
        }
        let drawn = self.normal(batch * frames * channels * height * width);
        let drawn =
            Tensor::from_vec(drawn, (batch, channels, frames, height, width), &Device::Cpu)?;
        Ok(drawn.transpose(1, 2)?.contiguous()?.to_device(device)?) // (batch, frames, channels, height, width)
    }

    /// Draws the first latents of a clip, of `shape` as in [`latents`](Self::latents), for context windows of `length`
    /// frames of which one begins every `hop` frames. Clips up to that length have independent noise.
    ///
    /// # Errors
    ///
    /// As [`latents`](Self::latents).
    pub fn clip(
        &mut self,
        kind: NoiseKind,
        shape: (usize, usize, usize, usize, usize),
        (length, hop): (usize, usize),
        device: &Device,
    ) -> Result<Tensor> {
        let (batch, frames, channels, height, width) = shape;
        let length = length.clamp(1, frames.max(1));
        let (drawn, sources) = match kind {
            NoiseKind::Independent => return self.latents(shape, device),
            // All are drawn, so that the first window is that of independent noise, and seeds are those of diffusers.
            NoiseKind::FreeNoise => {
                (self.latents(shape, device)?, self.shuffled(frames, length, hop.clamp(1, length)))
            }
            NoiseKind::Repeat => {
                let first = self.latents((batch, length, channels, height, width), device)?;
                (first, (0..frames).map(|frame| frame % length).collect())
            }
        };
        let sources: Vec<u32> = sources.into_iter().map(|frame| frame as u32).collect();
        Ok(drawn.index_select(&Tensor::new(sources, device)?, 1)?)
    }

    /// The frame whose noise each of `frames` has: from `length` on, every `hop` frames have that of as many frames
    /// `length` before, in random order. So have all windows the same noise.
    fn shuffled(&mut self, frames: usize, length: usize, hop: usize) -> Vec<usize> {
        let mut sources: Vec<usize> = (0..frames).collect();
        for start in (length..frames).step_by(hop) {
            for (i, place) in self.permutation(hop).into_iter().enumerate() {
                if start + i < frames {
                    sources[start + i] = sources[start - length + place];
                }
            }
        }
        sources
    }

    /// A random order of `0..n`: `torch.randperm(n)` of the CPU generator. On CUDA torch's depends on how it sorts; this
    /// is the order of `n` normal values.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        match &mut self.generator {
            Generator::Cpu(mersenne) => mersenne.permutation(n),
            Generator::Cuda(philox) => {
                let keys = philox.normal(n);
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
                order
            }
        }
    }

    /// Draws latents with the shape and device of `x`, in f32.
    ///
    /// `x` and the result are `(batch, frames, channels, height, width)`.
    ///
    /// # Errors
    ///
    /// As [`latents`](Self::latents).
    pub fn like(&mut self, x: &Tensor) -> Result<Tensor> {
        self.latents(x.dims5()?, x.device())
    }
}
