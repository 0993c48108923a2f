//! Samplers: loops from noise to clean latents.
//!
//! A [`Denoiser`] predicts clean latents from noisy ones, a [`Plan`] lists the noise levels of a run, and a
//! [`Sampler`] is the loop over them. A closure is a denoiser:
//!
//! ```
//! use animatelcm::rng::{Noise, RngKind};
//! use animatelcm::sampler::{PlanSettings, Run, SamplerKind};
//! use animatelcm::schedule::{BetaSchedule, NoiseLevel, NoiseSchedule};
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> animatelcm::Result<()> {
//! let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000)?;
//! let plan = SamplerKind::Lcm.plan(&schedule, &PlanSettings::default())?;
//! let mut noise = Noise::new(RngKind::Cpu, 42);
//! let x = (noise.latents((1, 16, 4, 8, 8), &Device::Cpu)? * plan.initial_scale)?;
//! let mut black = |x: &Tensor, _: NoiseLevel| Ok(x.zeros_like()?);
//! let mut run = Run::new(&mut black, &plan.steps, &mut noise);
//! let clean = SamplerKind::Lcm.build().sample(&mut run, x)?;
//! # assert!(clean.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
//! # Ok(())
//! # }
//! ```

mod ddim;
mod deis;
mod dpmpp_2m;
mod dpmpp_2m_sde;
mod dpmpp_3m_sde;
mod dpmpp_sde;
mod euler;
mod euler_ancestral;
mod heun;
mod lcm;
mod levels;
mod lms;
mod multistep;
mod names;
mod plan;
mod pndm;
mod run;
mod tcd;
mod unipc;
mod windows;

use std::fmt;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

pub use self::ddim::Ddim;
pub use self::deis::Deis;
pub use self::dpmpp_2m::Dpmpp2m;
pub use self::dpmpp_2m_sde::Dpmpp2mSde;
pub use self::dpmpp_3m_sde::Dpmpp3mSde;
pub use self::dpmpp_sde::DpmppSde;
pub use self::euler::Euler;
pub use self::euler_ancestral::EulerAncestral;
pub use self::heun::Heun;
pub use self::lcm::Lcm;
pub use self::lms::Lms;
pub use self::plan::{Plan, PlanSettings, Step, kept_steps};
pub use self::pndm::Pndm;
pub use self::run::{Observer, Progress, Run};
pub use self::tcd::Tcd;
pub use self::unipc::UniPc;
pub use self::windows::{Fuse, Window, WindowPlan, WindowSchedule, WindowSettings};
use crate::Result;
use crate::schedule::NoiseLevel;

/// A model that predicts clean latents from noisy ones.
pub trait Denoiser {
    /// Predicts the clean latents from `x` at noise level `at`.
    ///
    /// `x` and the result are `(batch, frames, channels, height, width)` in f32.
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor>;

    /// Announces the step, counted from 0, to which the next evaluations belong.
    fn begin_step(&mut self, _step: usize, _steps: usize) {}
}

impl<F: FnMut(&Tensor, NoiseLevel) -> Result<Tensor>> Denoiser for F {
    fn denoise(&mut self, x: &Tensor, at: NoiseLevel) -> Result<Tensor> {
        self(x, at)
    }
}

/// A sampling loop from noise to clean latents.
pub trait Sampler: fmt::Debug {
    /// Brings `x` from the first step's `at` to the last step's `next`.
    ///
    /// `x` and the result are `(batch, frames, channels, height, width)` in f32.
    ///
    /// # Errors
    ///
    /// Errors of the model and of the observer.
    fn sample(&self, run: &mut Run<'_>, x: Tensor) -> Result<Tensor>;
}

/// The available samplers.
///
/// Deserialized from any name that [`from_str`](std::str::FromStr::from_str) accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum SamplerKind {
    /// [`Lcm`].
    #[default]
    #[serde(rename = "lcm")]
    Lcm,
    /// [`Tcd`].
    #[serde(rename = "tcd")]
    Tcd,
    /// [`Ddim`] with `eta` 0.
    #[serde(rename = "ddim")]
    Ddim,
    /// DDPM: [`Ddim`] with `eta` 1, from each timestep to the following one.
    #[serde(rename = "ddpm")]
    Ddpm,
    /// [`Euler`].
    #[serde(rename = "euler")]
    Euler,
    /// [`EulerAncestral`].
    #[serde(rename = "euler-a")]
    EulerAncestral,
    /// [`Heun`].
    #[serde(rename = "heun")]
    Heun,
    /// [`Lms`].
    #[serde(rename = "lms")]
    Lms,
    /// [`Pndm`].
    #[serde(rename = "pndm")]
    Pndm,
    /// [`Deis`].
    #[serde(rename = "deis")]
    Deis,
    /// [`UniPc`].
    #[serde(rename = "unipc")]
    UniPc,
    /// [`Dpmpp2m`].
    #[serde(rename = "dpmpp-2m")]
    Dpmpp2m,
    /// [`Dpmpp2mSde`].
    #[serde(rename = "dpmpp-2m-sde")]
    Dpmpp2mSde,
    /// [`Dpmpp3mSde`].
    #[serde(rename = "dpmpp-3m-sde")]
    Dpmpp3mSde,
    /// [`DpmppSde`].
    #[serde(rename = "dpmpp-sde")]
    DpmppSde,
}

impl SamplerKind {
    /// All samplers.
    pub const ALL: [Self; 15] = [
        Self::Lcm,
        Self::Tcd,
        Self::Ddim,
        Self::Ddpm,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Lms,
        Self::Pndm,
        Self::Deis,
        Self::UniPc,
        Self::Dpmpp2m,
        Self::Dpmpp2mSde,
        Self::Dpmpp3mSde,
        Self::DpmppSde,
    ];

    /// The sampler with its default settings.
    pub fn build(self) -> Box<dyn Sampler> {
        match self {
            Self::Lcm => Box::new(Lcm::default()),
            Self::Tcd => Box::new(Tcd),
            Self::Ddim => Box::new(Ddim::default()),
            Self::Ddpm => Box::new(Ddim { eta: 1.0 }),
            Self::Euler => Box::new(Euler),
            Self::EulerAncestral => Box::new(EulerAncestral),
            Self::Heun => Box::new(Heun),
            Self::Lms => Box::new(Lms),
            Self::Pndm => Box::new(Pndm),
            Self::Deis => Box::new(Deis),
            Self::UniPc => Box::new(UniPc),
            Self::Dpmpp2m => Box::new(Dpmpp2m),
            Self::Dpmpp2mSde => Box::new(Dpmpp2mSde),
            Self::Dpmpp3mSde => Box::new(Dpmpp3mSde),
            Self::DpmppSde => Box::new(DpmppSde),
        }
    }

    /// Returns whether the sampler is for consistency models, and takes its timesteps from those of their teacher.
    pub fn has_teacher(self) -> bool {
        matches!(self, Self::Lcm | Self::Tcd)
    }
}
