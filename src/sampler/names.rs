//! Names of the samplers, here and in other programs.

use std::fmt;
use std::str::FromStr;

use super::SamplerKind;
use crate::schedule::Spacing;
use crate::spelling::{bare, nearest};
use crate::{Error, Result};

/// Spacings that a sampler's name may end in.
const SUFFIXES: [(&str, Spacing); 7] = [
    ("karras", Spacing::Karras),
    ("exponential", Spacing::Exponential),
    ("trailing", Spacing::Trailing),
    ("linspace", Spacing::Linspace),
    ("sgmuniform", Spacing::SgmUniform),
    ("alignyoursteps", Spacing::Ays),
    ("ays", Spacing::Ays),
];

impl SamplerKind {
    /// Name of the sampler on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lcm => "lcm",
            Self::Tcd => "tcd",
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::Heun => "heun",
            Self::Lms => "lms",
            Self::Pndm => "pndm",
            Self::Deis => "deis",
            Self::UniPc => "unipc",
            Self::Dpmpp2m => "dpmpp-2m",
            Self::Dpmpp2mSde => "dpmpp-2m-sde",
            Self::Dpmpp3mSde => "dpmpp-3m-sde",
            Self::DpmppSde => "dpmpp-sde",
        }
    }

    /// Parses a sampler name with an optional spacing suffix, as in `dpmpp-2m-karras` or `DPM++ 2M Karras`.
    ///
    /// Accepts the names of A1111, ComfyUI, stable-diffusion.cpp and diffusers; case, spaces, hyphens and underscores
    /// are ignored.
    pub fn with_spacing(name: &str) -> Result<(Self, Option<Spacing>)> {
        let bare = bare(name);
        let spaced = |(suffix, spacing): &(&str, Spacing)| {
            Some((Self::named(bare.strip_suffix(suffix)?)?, Some(*spacing)))
        };
        Self::named(&bare)
            .map(|kind| (kind, None))
            .or_else(|| SUFFIXES.iter().find_map(spaced))
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
        let bare = bare.strip_prefix('k').unwrap_or(bare);
        let bare = bare.strip_suffix("scheduler").unwrap_or(bare);
        Some(match bare {
            "lcm" => Self::Lcm,
            "tcd" => Self::Tcd,
            "ddim" => Self::Ddim,
            "ddpm" => Self::Ddpm,
            "euler" | "eulerdiscrete" => Self::Euler,
            "eulera" | "eulerancestral" | "eulerancestraldiscrete" => Self::EulerAncestral,
            "heun" | "heundiscrete" => Self::Heun,
            "lms" | "lmsdiscrete" => Self::Lms,
            "pndm" | "plms" => Self::Pndm,
            "deis" | "deismultistep" => Self::Deis,
            "unipc" | "unipcbh2" | "unipcmultistep" => Self::UniPc,
            "dpmpp2m" | "dpm++2m" | "dpmsolver++2m" | "dpmsolvermultistep" => Self::Dpmpp2m,
            "dpmpp2msde" | "dpmpp2msdegpu" | "dpm++2msde" => Self::Dpmpp2mSde,
            "dpmpp3msde" | "dpmpp3msdegpu" | "dpm++3msde" => Self::Dpmpp3mSde,
            "dpmppsde" | "dpmppsdegpu" | "dpm++sde" | "dpmsolversde" => Self::DpmppSde,
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
