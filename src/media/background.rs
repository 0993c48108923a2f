//! The colour that transparent pictures are put on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, spelling};

/// The colour names of HTML 4, with `orange`, `cyan`, `magenta` and both spellings of grey.
const NAMES: [(&str, [u8; 3]); 20] = [
    ("black", [0, 0, 0]),
    ("white", [255, 255, 255]),
    ("gray", [128, 128, 128]),
    ("grey", [128, 128, 128]),
    ("silver", [192, 192, 192]),
    ("red", [255, 0, 0]),
    ("maroon", [128, 0, 0]),
    ("orange", [255, 165, 0]),
    ("yellow", [255, 255, 0]),
    ("olive", [128, 128, 0]),
    ("lime", [0, 255, 0]),
    ("green", [0, 128, 0]),
    ("cyan", [0, 255, 255]),
    ("aqua", [0, 255, 255]),
    ("teal", [0, 128, 128]),
    ("blue", [0, 0, 255]),
    ("navy", [0, 0, 128]),
    ("magenta", [255, 0, 255]),
    ("fuchsia", [255, 0, 255]),
    ("purple", [128, 0, 128]),
];

/// A colour, red, green and blue, that transparent pictures are put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Background(pub [u8; 3]);

impl Background {
    /// The colour of an RGBA pixel in front of this one, rounded as in PIL's `paste` with a mask.
    pub(super) fn behind(self, [red, green, blue, alpha]: [u8; 4]) -> [u8; 3] {
        let alpha = u32::from(alpha);
        let mix = |above: u8, below: u8| {
            let sum = u32::from(above) * alpha + u32::from(below) * (255 - alpha) + 128;
            // A division by 255.
            (((sum >> 8) + sum) >> 8) as u8
        };
        [mix(red, self.0[0]), mix(green, self.0[1]), mix(blue, self.0[2])]
    }
}

/// `#rrggbb`.
impl fmt::Display for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}

impl From<Background> for String {
    fn from(background: Background) -> Self {
        background.to_string()
    }
}

impl TryFrom<String> for Background {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// A name of HTML, `#rrggbb` or `#rgb`.
impl FromStr for Background {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(color) = spelling::find(text, &NAMES) {
            return Ok(Self(color));
        }
        let digits: Option<Vec<u8>> = text.strip_prefix('#').and_then(|digits| {
            digits.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect()
        });
        match digits.as_deref() {
            Some(&[red, green, blue]) => Ok(Self([red, green, blue].map(|digit| 17 * digit))),
            Some(&[a, b, c, d, e, f]) => Ok(Self([16 * a + b, 16 * c + d, 16 * e + f])),
            _ => {
                let error = Error::request("background-color", format!("`{text}` is not a colour"));
                Err(error.with_hint("a name such as white or navy, or #rrggbb"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_names_or_hexadecimal() {
        for (text, want) in [
            ("white", [255; 3]),
            ("Grey", [128; 3]),
            ("#0a80ff", [10, 128, 255]),
            ("#F0a", [255, 0, 170]),
        ] {
            let color: Background = text.parse().unwrap();
            assert_eq!(color.0, want, "{text}");
            assert_eq!(color.to_string().parse::<Background>().unwrap(), color);
        }
        for wrong in ["", "#", "#12345", "#1234567", "#gg0000", "blueish", "#é12", "0a80ff"] {
            let error = wrong.parse::<Background>().unwrap_err();
            assert!(error.to_string().starts_with("background-color: "), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_mixture_is_rounded_to_the_nearest() {
        for (above, below, alpha) in (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b, 77))) {
            let exact = (f64::from(above) * f64::from(alpha)
                + f64::from(below) * f64::from(255 - alpha))
                / 255.0;
            let mixed = Background([below; 3]).behind([above, above, above, alpha]);
            assert_eq!(mixed, [exact.round() as u8; 3], "{above} {below}");
        }
        let color = Background([1, 2, 3]);
        assert_eq!(color.behind([9, 8, 7, 255]), [9, 8, 7]);
        assert_eq!(color.behind([9, 8, 7, 0]), [1, 2, 3]);
    }
}
