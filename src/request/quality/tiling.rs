//! Tiles of the autoencoder.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Items;
use crate::request::between;
use crate::request::grammar::{Key, Kind};
use crate::{Error, Result};

const FIELD: &str = "vae-tiling";

const GRAMMAR: &str = "nothing, or size=512,overlap=0.25";

const KEYS: [Key; 2] = [Key::new("size", Kind::Text), Key::new("overlap", Kind::Text)];

/// Tiles in which frames are encoded and decoded, which takes the memory of a tile: diffusers' `enable_tiling`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeTiling {
    /// Width and height of a tile in pixels; what the autoencoder was trained on if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Share of a tile that it has in common with the next.
    pub overlap: f64,
}

impl Default for VaeTiling {
    fn default() -> Self {
        Self { size: None, overlap: 0.25 }
    }
}

impl VaeTiling {
    pub(super) fn validate(&self) -> Result<()> {
        between(FIELD, Some(self.overlap), 0.0, 0.5)
    }
}

impl FromStr for VaeTiling {
    type Err = Error;

    /// Reads `size=512,overlap=0.25`; what is left out is the default, and so is all of an empty text.
    fn from_str(text: &str) -> Result<Self> {
        let mut tiling = Self::default();
        if text.is_empty() {
            return Ok(tiling);
        }
        let items = Items::read((FIELD, GRAMMAR), &KEYS, text)?;
        if items.text("size").is_some() {
            items.set("size", tiling.size.insert(0))?;
        }
        items.set("overlap", &mut tiling.overlap)?;
        Ok(tiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_may_be_left_to_the_model() {
        let read = |text: &str| text.parse::<VaeTiling>();
        assert_eq!(read("").unwrap(), VaeTiling::default());
        assert_eq!(read("size=256").unwrap(), VaeTiling { size: Some(256), overlap: 0.25 });
        assert_eq!(read("overlap=0.5").unwrap(), VaeTiling { size: None, overlap: 0.5 });
        for wrong in ["x", "256", "size=x", "size=-1", "overlap="] {
            assert_eq!(read(wrong).unwrap_err().kind().exit_code(), 2, "{wrong}");
        }
        for wrong in ["overlap=0.6", "overlap=NaN", "overlap=-0.1"] {
            assert!(read(wrong).unwrap().validate().is_err(), "{wrong}");
        }
    }
}
