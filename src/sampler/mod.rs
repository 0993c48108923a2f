//! Samplers: whole loops from noise to clean latents over one question, "what is hidden in this?".
//!
//! A [`Denoiser`] answers it, a [`Plan`] says at which noise levels it is asked, a [`Sampler`]
//! walks the plan. A closure is a denoiser:
//!
//! ```
//! use animatelcm::rng::{Noise, RngKind};
//! use animatelcm::sampler::{PlanSettings, SamplerKind};
//! use animatelcm::schedule::{BetaSchedule, NoiseLevel, NoiseSchedule};
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> animatelcm::Result<()> {
//! let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000)?;
//! let plan = SamplerKind::Lcm.plan(&schedule, &PlanSettings::default())?;
//! let mut noise = Noise::new(RngKind::Cpu, 42);
//! let x = (noise.latents((1, 16, 4, 8, 8), &Device::Cpu)? * plan.initial_scale)?;
//! let mut black = |x: &Tensor, _: NoiseLevel| Ok(x.zeros_like()?);
//! let clean = SamplerKind::Lcm.build().sample(&mut black, x, &plan.steps, &mut noise, &mut ())?;
//! # assert!(clean.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
//! # Ok(())
//! # }
//! ```

mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod lcm;
mod plan;

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

pub use self::ddim::Ddim;
pub use self::dpmpp_2m::Dpmpp2m;
pub use self::euler::Euler;
pub use self::euler_ancestral::EulerAncestral;
pub use self::lcm::Lcm;
pub use self::plan::{Plan, PlanSettings, Step};
use crate::rng::Noise;
use crate::schedule::{NoiseLevel, Spacing};
use crate::{Error, Result};

/// Anything that can say what clean latents hide in noisy ones.
pub trait Denoiser {
    /// The clean latents in `x`, which is at noise level `at`.
    ///
    /// `x` and the result are `(batch, frames, channels, height, width)` in f32.
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor>;
}

impl<F: FnMut(&Tensor, NoiseLevel) -> Result<Tensor>> Denoiser for F {
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        self(x, at)
    }
}

/// A way from noise to clean latents.
pub trait Sampler {
    /// Walks `x` down `steps`.
    ///
    /// `x` is at the first step's `at`, the result at the last step's `next`; both are
    /// `(batch, frames, channels, height, width)` in f32.
    ///
    /// # Errors
    ///
    /// Whatever the denoiser or the observer returns ends the walk.
    fn sample(
        &self,
        denoiser: &mut dyn Denoiser,
        x: Tensor,
        steps: &[Step],
        noise: &mut Noise,
        observer: &mut dyn Observer,
    ) -> Result<Tensor>;
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The step that the network was just asked for, from 0.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// The noise level it was asked at.
    pub at: NoiseLevel,
    /// Its answer, `(batch, frames, channels, height, width)`: a preview of the result.
    pub denoised: &'a Tensor,
}

/// Is told of every step.
///
/// An error stops the run; [`Error::Cancelled`] is how somebody else stops one.
pub trait Observer {
    /// Hears that a step's network pass is done.
    fn step(&mut self, progress: Progress<'_>) -> Result<()>;
}

/// Hears and says nothing.
impl Observer for () {
    fn step(&mut self, _: Progress<'_>) -> Result<()> {
        Ok(())
    }
}

/// The samplers by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplerKind {
    /// [`Lcm`].
    #[default]
    #[serde(rename = "lcm")]
    Lcm,
    /// [`Ddim`] without added noise.
    #[serde(rename = "ddim")]
    Ddim,
    /// [`Euler`].
    #[serde(rename = "euler")]
    Euler,
    /// [`EulerAncestral`].
    #[serde(rename = "euler-a")]
    EulerAncestral,
    /// [`Dpmpp2m`].
    #[serde(rename = "dpmpp-2m")]
    Dpmpp2m,
}

impl SamplerKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Lcm, Self::Ddim, Self::Euler, Self::EulerAncestral, Self::Dpmpp2m];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lcm => "lcm",
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::Dpmpp2m => "dpmpp-2m",
        }
    }

    /// The sampler with its usual settings.
    pub fn build(self) -> Box<dyn Sampler> {
        match self {
            Self::Lcm => Box::new(Lcm::default()),
            Self::Ddim => Box::new(Ddim::default()),
            Self::Euler => Box::new(Euler),
            Self::EulerAncestral => Box::new(EulerAncestral),
            Self::Dpmpp2m => Box::new(Dpmpp2m),
        }
    }

    /// Reads a sampler's name and the spacing that may be a part of it, as in `dpmpp-2m-karras`.
    pub fn with_spacing(name: &str) -> Result<(Self, Option<Spacing>)> {
        match name.strip_suffix("-karras") {
            Some(kind) => Ok((kind.parse()?, Some(Spacing::Karras))),
            None => Ok((name.parse()?, None)),
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(|kind| format!("`{kind}`")).join(", ");
            Error::request("sampler", format!("`{name}` is none of {known}"))
        })
    }
}
