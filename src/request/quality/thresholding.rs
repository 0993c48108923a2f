//! Dynamic thresholding.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Items;
use crate::request::between;
use crate::request::grammar::{Key, Kind};
use crate::{Error, Result};

const FIELD: &str = "dynamic-thresholding";

const GRAMMAR: &str = "RATIO, or ratio=0.995,max=1";

const KEYS: [Key; 2] = [Key::new("ratio", Kind::Text), Key::new("max", Kind::Text)];

/// Dynamic thresholding of the predicted clean latents (arXiv 2205.11487, section 2.3), as the schedulers of diffusers
/// do it: they are cut off at a quantile of their absolute values and divided by it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DynamicThresholding {
    /// The quantile, from 0 to 1: diffusers' `dynamic_thresholding_ratio`.
    pub ratio: f64,
    /// The largest threshold; the least is 1. diffusers' `sample_max_value`.
    pub max: f64,
}

impl Default for DynamicThresholding {
    fn default() -> Self {
        Self { ratio: 0.995, max: 1.0 }
    }
}

impl DynamicThresholding {
    pub(super) fn validate(&self) -> Result<()> {
        between(FIELD, Some(self.ratio), 0.0, 1.0)?;
        between(FIELD, Some(self.max), 1.0, 1e6)
    }
}

impl FromStr for DynamicThresholding {
    type Err = Error;

    /// Reads `RATIO` or `ratio=RATIO,max=LIMIT`.
    fn from_str(text: &str) -> Result<Self> {
        let mut thresholding = Self::default();
        if let Ok(ratio) = text.trim().parse() {
            thresholding.ratio = ratio;
            return Ok(thresholding);
        }
        let items = Items::read((FIELD, GRAMMAR), &KEYS, text)?;
        items.set("ratio", &mut thresholding.ratio)?;
        items.set("max", &mut thresholding.max)?;
        Ok(thresholding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_stands_alone_or_beside_the_largest_threshold() {
        let read = |text: &str| text.parse::<DynamicThresholding>();
        assert_eq!(read("0.9").unwrap(), DynamicThresholding { ratio: 0.9, max: 1.0 });
        assert_eq!(read("max=2.5").unwrap(), DynamicThresholding { ratio: 0.995, max: 2.5 });
        assert_eq!(read("ratio=0.5,max=3").unwrap(), DynamicThresholding { ratio: 0.5, max: 3.0 });
        for wrong in ["", "x", "ratio=x", "ratio=1,ratio=1", "percentile=0.9", "0.9,max=2"] {
            assert_eq!(read(wrong).unwrap_err().kind().exit_code(), 2, "{wrong}");
        }
        for wrong in ["1.1", "-1", "max=0.5", "NaN", "max=inf"] {
            assert!(read(wrong).unwrap().validate().is_err(), "{wrong}");
        }
    }
}
