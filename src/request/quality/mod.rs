//! Options that trade time or closeness for quality; all are off by default.

mod free_init;
mod free_u;
mod hires;
mod pag;
mod thresholding;
mod tiling;

use serde::{Deserialize, Serialize};

pub use free_init::{Filter, FreeInit};
pub use hires::{Hires, Upscale};
pub use pag::Pag;
pub use thresholding::DynamicThresholding;
pub use tiling::VaeTiling;

use super::grammar::{First, Item, Key, items};
use super::{between, is_default};
use crate::models::unet::FreeU;
use crate::{Error, Result};

/// Options for quality. A request has the section if any of them is on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quality {
    /// Share in which guidance is rescaled to the standard deviation of the prompt's prediction, from 0 (not at all) to
    /// 1: arXiv 2305.08891, section 3.4.
    #[serde(skip_serializing_if = "is_default")]
    pub guidance_rescale: f64,
    /// Limits of the predicted clean latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_thresholding: Option<DynamicThresholding>,
    /// FreeU's factors.
    #[serde(rename = "freeu", skip_serializing_if = "Option::is_none")]
    pub free_u: Option<FreeU>,
    /// Sampling again from noise with the low frequencies of the clip before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_init: Option<FreeInit>,
    /// Perturbed-attention guidance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pag: Option<Pag>,
    /// Tiles of the autoencoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_tiling: Option<VaeTiling>,
    /// A second pass at a larger size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hires: Option<Hires>,
}

impl Quality {
    /// Checks what can be checked without a model.
    pub(super) fn validate(&self, steps: usize, has_source: bool) -> Result<()> {
        between("guidance-rescale", Some(self.guidance_rescale), 0.0, 1.0)?;
        self.dynamic_thresholding.iter().try_for_each(DynamicThresholding::validate)?;
        self.free_u.iter().try_for_each(free_u::validate)?;
        self.free_init.iter().try_for_each(FreeInit::validate)?;
        self.pag.iter().try_for_each(Pag::validate)?;
        self.vae_tiling.iter().try_for_each(VaeTiling::validate)?;
        self.hires.iter().try_for_each(|hires| hires.validate(steps))?;
        if self.free_init.is_some() && has_source {
            let reason = "is for clips from noise, not from an image or a video";
            return Err(Error::request("free-init", reason));
        }
        Ok(())
    }
}

/// The items of an option that is `KEY=VALUE,KEY=VALUE`, and how its errors begin.
struct Items {
    items: Vec<Item>,
    field: &'static str,
    grammar: &'static str,
}

impl Items {
    /// # Errors
    ///
    /// [`Error::Request`] with the grammar.
    fn read(about: (&'static str, &'static str), keys: &[Key], text: &str) -> Result<Self> {
        Self::read_after(First::Key, about, keys, text)
    }

    /// [`read`](Self::read), where the first item may be another one.
    fn read_after(
        first: First,
        (field, grammar): (&'static str, &'static str),
        keys: &[Key],
        text: &str,
    ) -> Result<Self> {
        let wrong = |reason| Error::request(field, reason).with_hint(grammar);
        let items = items(text, first, keys, &|_| false).map_err(wrong)?;
        Ok(Self { items, field, grammar })
    }

    /// The text of a key.
    fn text(&self, key: &str) -> Option<&str> {
        self.items.iter().find(|item| item.key == key).map(|item| item.value.as_str())
    }

    /// Puts the value of a key, if it is there, into a slot.
    fn set<T: std::str::FromStr>(&self, key: &str, slot: &mut T) -> Result<()> {
        let Some(value) = self.text(key) else { return Ok(()) };
        *slot = value.trim().parse().map_err(|_| self.wrong(key, value, "a number"))?;
        Ok(())
    }

    fn wrong(&self, key: &str, value: &str, wanted: &str) -> Error {
        let reason = format!("`{key}={value}` is not {wanted}");
        Error::request(self.field, reason).with_hint(self.grammar)
    }
}
