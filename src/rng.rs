//! Seeded normal noise, drawn on the host: the values that torch draws for the same seed.
//!
//! Two of torch's generators are here, [`RngKind::Cpu`] and [`RngKind::Cuda`]. Both are computed in
//! plain arithmetic, so a seed gives the same clip on every device. Latents are drawn in diffusers'
//! order (channels before frames) and handed out with frames before channels.

mod mersenne;
mod philox;
mod uniform;

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use self::mersenne::Mersenne;
use self::philox::Philox;
pub use self::uniform::Uniform;
use crate::{Error, Result};

/// Which of torch's generators to follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RngKind {
    /// `torch.Generator("cpu")`: the one that diffusers' documentation uses.
    #[default]
    Cpu,
    /// `torch.Generator("cuda")`: the one that the official AnimateLCM scripts use.
    Cuda,
}

impl fmt::Display for RngKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

impl FromStr for RngKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        // A1111 calls the second one GPU or, computed on the CPU, NV.
        let known =
            [("cpu", Self::Cpu), ("cuda", Self::Cuda), ("gpu", Self::Cuda), ("nv", Self::Cuda)];
        crate::spelling::find(name, &known)
            .ok_or_else(|| Error::request("rng", format!("`{name}` is none of `cpu`, `cuda`")))
    }
}

/// Draws standard normal numbers.
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
    /// A generator at the beginning of the stream that belongs to `seed`.
    ///
    /// [`RngKind::Cpu`] uses the low 32 bits of the seed, as torch does. [`RngKind::Cuda`] assumes
    /// a GPU that gives every value of a draw a thread of its own; see
    /// [`with_cuda_threads`](Self::with_cuda_threads) for draws beyond that.
    pub fn new(kind: RngKind, seed: u64) -> Self {
        let generator = match kind {
            RngKind::Cpu => Generator::Cpu(Box::new(Mersenne::new(seed as u32))),
            RngKind::Cuda => Generator::Cuda(Philox::new(seed, None)),
        };
        Self { generator, replay: VecDeque::new() }
    }

    /// Like [`RngKind::Cuda`], on a GPU that runs at most `threads` threads at once.
    ///
    /// torch's numbers depend on this limit for draws that exceed it. It is the number of
    /// multiprocessors times the resident threads of each, such as 128 · 1536 on an RTX 4090,
    /// 108 · 2048 on an A100 and 132 · 2048 on an H100; torch works in blocks of 256 threads, so it
    /// is rounded down to whole blocks.
    pub fn with_cuda_threads(seed: u64, threads: usize) -> Self {
        let generator = Generator::Cuda(Philox::new(seed, Some(threads)));
        Self { generator, replay: VecDeque::new() }
    }

    /// Hands out `tensors` for the first draws of latents, each `(batch, frames, channels, height,
    /// width)`, before the generator is asked.
    ///
    /// Replayed draws leave the generator where it is.
    #[must_use]
    pub fn with_replay(mut self, tensors: Vec<Tensor>) -> Self {
        self.replay = tensors.into();
        self
    }

    /// Draws `n` numbers: `torch.randn(n)`.
    ///
    /// The stream depends on how it is cut: two draws of 8 are not one of 16.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        match &mut self.generator {
            Generator::Cpu(mersenne) => mersenne.normal(n),
            Generator::Cuda(philox) => philox.normal(n),
        }
    }

    /// Draws latents of `shape`, which is `(batch, frames, channels, height, width)`, in f32.
    ///
    /// The numbers are drawn in the order `(batch, channels, frames, height, width)`.
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

    /// Draws latents of the shape and on the device of `x`, in f32.
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
