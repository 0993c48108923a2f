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
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod heun;
mod lcm;
mod plan;
mod run;
mod windows;

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

pub use self::ddim::Ddim;
pub use self::dpmpp_2m::Dpmpp2m;
pub use self::euler::Euler;
pub use self::euler_ancestral::EulerAncestral;
pub use self::heun::Heun;
pub use self::lcm::Lcm;
pub use self::plan::{Plan, PlanSettings, Step, kept_steps};
pub use self::run::{Observer, Progress, Run};
pub use self::windows::{Fuse, Window, WindowPlan, WindowSchedule, WindowSettings};
use crate::schedule::{NoiseLevel, Spacing};
use crate::spelling::{bare, nearest};
use crate::{Error, Result};

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
/// Deserialized from any name that [`from_str`](Self::from_str) accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum SamplerKind {
    /// [`Lcm`].
    #[default]
    #[serde(rename = "lcm")]
    Lcm,
    /// [`Ddim`] with `eta` 0.
    #[serde(rename = "ddim")]
    Ddim,
    /// [`Euler`].
    #[serde(rename = "euler")]
    Euler,
    /// [`EulerAncestral`].
    #[serde(rename = "euler-a")]
    EulerAncestral,
    /// [`Heun`].
    #[serde(rename = "heun")]
    Heun,
    /// [`Dpmpp2m`].
    #[serde(rename = "dpmpp-2m")]
    Dpmpp2m,
}

impl SamplerKind {
    /// All samplers.
    pub const ALL: [Self; 6] =
        [Self::Lcm, Self::Ddim, Self::Euler, Self::EulerAncestral, Self::Heun, Self::Dpmpp2m];

    /// Name of the sampler on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lcm => "lcm",
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::Heun => "heun",
            Self::Dpmpp2m => "dpmpp-2m",
        }
    }

    /// The sampler with its default settings.
    pub fn build(self) -> Box<dyn Sampler> {
        match self {
            Self::Lcm => Box::new(Lcm::default()),
            Self::Ddim => Box::new(Ddim::default()),
            Self::Euler => Box::new(Euler),
            Self::EulerAncestral => Box::new(EulerAncestral),
            Self::Heun => Box::new(Heun),
            Self::Dpmpp2m => Box::new(Dpmpp2m),
        }
    }

    /// Parses a sampler name with an optional spacing suffix, as in `dpmpp-2m-karras` or `DPM++ 2M Karras`.
    ///
    /// Accepts the names of A1111, ComfyUI, stable-diffusion.cpp and diffusers; case, spaces, hyphens and underscores
    /// are ignored.
    pub fn with_spacing(name: &str) -> Result<(Self, Option<Spacing>)> {
        let bare = bare(name);
        let spaced =
            |suffix: &str, spacing| Some((Self::named(bare.strip_suffix(suffix)?)?, Some(spacing)));
        Self::named(&bare)
            .map(|kind| (kind, None))
            .or_else(|| spaced("karras", Spacing::Karras))
            .or_else(|| spaced("trailing", Spacing::Trailing))
            .ok_or_else(|| {
                let known = Self::ALL.map(|kind| format!("`{kind}`")).join(", ");
                let reason =
                    format!("unknown name `{name}`; expected one of {known}, `dpmpp-2m-karras`");
                let error = Error::request("sampler", reason);
                let names = Self::ALL.map(Self::name);
                match nearest(&name.to_lowercase().replace(['_', ' '], "-"), names) {
                    Some(near) => error.with_hint(format!("did you mean `{near}`?")),
                    None => error,
                }
            })
    }

    /// Looks up a sampler by a name reduced to letters, digits and plus signs.
    fn named(bare: &str) -> Option<Self> {
        let bare = bare.strip_prefix("sample").unwrap_or(bare);
        Some(match bare.strip_prefix('k').unwrap_or(bare) {
            "lcm" | "lcmscheduler" => Self::Lcm,
            "ddim" | "ddimscheduler" => Self::Ddim,
            "euler" | "eulerdiscrete" | "eulerdiscretescheduler" => Self::Euler,
            "eulera"
            | "eulerancestral"
            | "eulerancestraldiscrete"
            | "eulerancestraldiscretescheduler" => Self::EulerAncestral,
            "heun" | "heundiscrete" | "heundiscretescheduler" => Self::Heun,
            "dpmpp2m"
            | "dpm++2m"
            | "dpmsolver++2m"
            | "dpmsolvermultistep"
            | "dpmsolvermultistepscheduler" => Self::Dpmpp2m,
            _ => return None,
        })
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TryFrom<String> for SamplerKind {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    /// Parses a name as [`with_spacing`](Self::with_spacing) does, but rejects a spacing suffix.
    fn from_str(name: &str) -> Result<Self> {
        match Self::with_spacing(name)? {
            (kind, None) => Ok(kind),
            (kind, Some(spacing)) => {
                let reason = format!("`{name}` is `{kind}` with the spacing `{spacing}`");
                Err(Error::request("sampler", reason).with_hint("name the spacing by itself"))
            }
        }
    }
}
