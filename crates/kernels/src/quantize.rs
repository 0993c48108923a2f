//! Quantization of weights.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Quantization of large layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// No quantization.
    #[default]
    None,
    /// 8-bit weights with one scale per output; the largest weight maps to 127.
    Int8,
    /// W8A8: as [`Int8`](Self::Int8), plus 8-bit inputs of linear layers and 1×1 convolutions with one scale per
    /// token or pixel; the minimum maps to 0, the maximum to 255.
    W8A8,
}

impl Quantize {
    /// All values.
    pub const ALL: [Self; 3] = [Self::None, Self::Int8, Self::W8A8];

    /// The name in flags and requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::W8A8 => "w8a8",
        }
    }

    /// Suffix of the dtype in descriptions; empty without quantization.
    pub fn words(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Int8 => " with int8 weights",
            Self::W8A8 => " with int8 weights and activations",
        }
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads a name in any case.
impl FromStr for Quantize {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found =
            Self::ALL.into_iter().find(|value| value.name().eq_ignore_ascii_case(name.trim()));
        found.ok_or_else(|| format!("`{name}` is none of `none`, `int8`, `w8a8`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case() {
        for value in Quantize::ALL {
            assert_eq!(value.to_string().to_uppercase().parse(), Ok(value));
        }
        let error = "int4".parse::<Quantize>().unwrap_err();
        assert_eq!(error, "`int4` is none of `none`, `int8`, `w8a8`");
    }
}
