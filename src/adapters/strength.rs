//! Adapter strength per frame.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A strength curve over the frames of a clip: linear between keyframes, constant before the first and after the last.
///
/// Written as one number, or as `frame:value` pairs such as `0:1.0,8:0.2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Strength(Vec<(usize, f64)>);

/// The largest absolute strength: beyond it, sums between two keyframes would not be finite.
const LARGEST: f64 = 1e6;

/// JSON representation of a strength.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Text(String),
}

impl Strength {
    /// A constant strength for all frames.
    pub fn constant(value: f64) -> Self {
        Self(vec![(0, value)])
    }

    /// The strength at a frame, counted from 0.
    pub fn at(&self, frame: usize) -> f64 {
        let after = self.0.partition_point(|(key, _)| *key <= frame);
        let before = after.checked_sub(1).and_then(|i| self.0.get(i));
        match (before, self.0.get(after)) {
            (Some(&(from, a)), Some(&(to, b))) => {
                a + (b - a) * (frame - from) as f64 / (to - from) as f64
            }
            (Some(&(_, value)), None) | (None, Some(&(_, value))) => value,
            (None, None) => 1.0,
        }
    }

    fn new(keys: Vec<(usize, f64)>) -> Result<Self> {
        let wrong = |reason: String| Err(Error::request("scale", reason));
        if keys.is_empty() {
            return wrong("has no value".into());
        }
        if let Some((_, value)) =
            keys.iter().find(|(_, value)| value.is_nan() || value.abs() > LARGEST)
        {
            return wrong(format!("{value} is not a strength"));
        }
        for pair in keys.windows(2) {
            if let [(before, _), (after, _)] = pair
                && before >= after
            {
                return wrong(format!("frame {before} stands before frame {after}"));
            }
        }
        Ok(Self(keys))
    }
}

impl Default for Strength {
    fn default() -> Self {
        Self::constant(1.0)
    }
}

impl FromStr for Strength {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::request("scale", format!("`{text}` is neither 0.8 nor 0:1.0,8:0.2 or the like"))
        };
        if !text.contains(':') {
            return Self::new(vec![(0, text.trim().parse().map_err(|_| wrong())?)]);
        }
        let key = |pair: &str| {
            let (frame, value) = pair.split_once(':')?;
            Some((frame.trim().parse().ok()?, value.trim().parse().ok()?))
        };
        Self::new(text.split(',').map(key).collect::<Option<_>>().ok_or_else(wrong)?)
    }
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(0, value)] = self.0.as_slice() {
            return write!(f, "{value}");
        }
        for (i, (frame, value)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{frame}:{value}")?;
        }
        Ok(())
    }
}

impl TryFrom<Written> for Strength {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Number(value) => Self::new(vec![(0, value)]),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Strength> for Written {
    fn from(strength: Strength) -> Self {
        match strength.0.as_slice() {
            [(0, value)] => Self::Number(*value),
            _ => Self::Text(strength.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(text: &str) -> Strength {
        text.parse().unwrap()
    }

    #[test]
    fn a_curve_is_linear_between_keys_and_level_outside() {
        let curve = curve("2:1.0,6:0.2,7:-1");
        let want = [1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, -1.0, -1.0];
        for (frame, want) in want.into_iter().enumerate() {
            assert!((curve.at(frame) - want).abs() < 1e-12, "{frame}: {}", curve.at(frame));
        }
        assert_eq!(Strength::constant(0.3).at(99), 0.3);
    }

    #[test]
    fn a_strength_is_read_back_as_written() {
        for text in ["0.8", "0", "-1.5", "0:1,8:0.2", "3:0.5"] {
            let strength = curve(text);
            assert_eq!(strength.to_string(), text);
            let json = serde_json::to_string(&strength).unwrap();
            assert_eq!(serde_json::from_str::<Strength>(&json).unwrap(), strength, "{json}");
        }
        assert_eq!(serde_json::to_string(&curve("0.8")).unwrap(), "0.8");
    }

    #[test]
    fn what_is_no_curve_is_refused() {
        for text in ["", "x", "nan", "inf", "0:1,0:2", "8:1,0:2", "0:1,", "0:1,8", "-1:1", "1:x"] {
            let error = text.parse::<Strength>().unwrap_err();
            assert!(error.to_string().starts_with("scale: "), "{text}: {error}");
        }
    }
}
