//! The second pass at a larger size.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Items;
use crate::request::between;
use crate::request::grammar::{First, Key, Kind};
use crate::sampler::kept_steps;
use crate::{Error, Result};

const FIELD: &str = "hires";

const GRAMMAR: &str = "SCALE[,strength=0.5][,steps=N][,upscale=bicubic|nearest|pixels]";

const KEYS: [Key; 4] = [
    Key::new("scale", Kind::Text),
    Key::new("strength", Kind::Text),
    Key::new("steps", Kind::Text),
    Key::new("upscale", Kind::Text),
];

/// A second pass of the sampler, from the clip of the first one enlarged and noised again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hires {
    /// How many times wider and higher the clip becomes; sides are rounded to whole latents.
    pub scale: f64,
    /// Share of the steps that are made, above 0 and at most 1.
    #[serde(default = "half")]
    pub strength: f64,
    /// Steps that the share is of; as many as in the first pass if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// How the clip is enlarged.
    #[serde(default)]
    pub upscale: Upscale,
}

/// How a clip is enlarged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Upscale {
    /// Its latents, by bicubic interpolation.
    #[default]
    Bicubic,
    /// Its latents, each repeated.
    Nearest,
    /// Its decoded frames, which are encoded again.
    Pixels,
}

impl Upscale {
    const ALL: [(&'static str, Self); 3] =
        [("bicubic", Self::Bicubic), ("nearest", Self::Nearest), ("pixels", Self::Pixels)];
}

impl fmt::Display for Upscale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::ALL.iter().find(|(_, upscale)| upscale == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

fn half() -> f64 {
    0.5
}

impl Hires {
    /// Checks the settings, of a clip with so many steps.
    pub(super) fn validate(&self, steps: usize) -> Result<()> {
        between(FIELD, Some(self.scale), 1.0, 8.0)?;
        kept_steps(self.steps.unwrap_or(steps), self.strength).map(|_| ())
    }

    /// The larger size (width, height) in pixels, for latents of `factor` pixels.
    pub fn size(&self, (width, height): (usize, usize), factor: usize) -> (usize, usize) {
        let larger = |side: usize| {
            let latents = (side as f64 * self.scale / factor as f64).round() as usize;
            latents.max(1) * factor
        };
        (larger(width), larger(height))
    }
}

impl FromStr for Hires {
    type Err = Error;

    /// Reads `1.5`, `2,strength=0.6,upscale=pixels` and so on.
    fn from_str(text: &str) -> Result<Self> {
        let items = Items::read_after(First::Path("scale"), (FIELD, GRAMMAR), &KEYS, text)?;
        let mut hires =
            Self { scale: 0.0, strength: half(), steps: None, upscale: Upscale::default() };
        items.set("scale", &mut hires.scale)?;
        items.set("strength", &mut hires.strength)?;
        if items.text("steps").is_some() {
            items.set("steps", hires.steps.insert(0))?;
        }
        if let Some(name) = items.text("upscale") {
            let found = crate::spelling::find(name, &Upscale::ALL);
            let known = "one of `bicubic`, `nearest`, `pixels`";
            hires.upscale = found.ok_or_else(|| items.wrong("upscale", name, known))?;
        }
        Ok(hires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_comes_first_and_the_rest_may_be_left_out() {
        let read = |text: &str| text.parse::<Hires>();
        let usual = Hires { scale: 1.5, strength: 0.5, steps: None, upscale: Upscale::Bicubic };
        assert_eq!(read("1.5").unwrap(), usual);
        let all = Hires { scale: 2.0, strength: 0.25, steps: Some(8), upscale: Upscale::Pixels };
        assert_eq!(read("scale=2,strength=0.25,steps=8,upscale=pixels").unwrap(), all);
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Hires>(&json).unwrap(), all);
        assert_eq!(serde_json::from_str::<Hires>(r#"{"scale":1.5}"#).unwrap(), usual);
        for wrong in ["", "x", "2,steps=-1", "2,upscale=esrgan", "2,2", "strength=0.5"] {
            assert_eq!(read(wrong).unwrap_err().kind().exit_code(), 2, "{wrong}");
        }
        for wrong in ["0.9", "NaN", "9", "2,strength=0.2", "2,strength=0", "2,steps=0"] {
            assert!(read(wrong).unwrap().validate(4).is_err(), "{wrong}");
        }
        assert!(read("2,strength=0.2,steps=5").unwrap().validate(1).is_ok());
    }

    #[test]
    fn sides_are_whole_latents() {
        let size = |text: &str| text.parse::<Hires>().unwrap().size((512, 384), 8);
        assert_eq!(size("1.5"), (768, 576));
        assert_eq!((size("1.3"), size("1")), ((664, 496), (512, 384)));
    }
}
