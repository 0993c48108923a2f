//! Hints for controls made of ordinary pictures by formulas without a network: edges, lines, blurred and grey pictures;
//! and of depths that a network estimates.
//!
//! | Kind | Result | As |
//! |---|---|---|
//! | `canny` | edges, white on black | `cv2.Canny(rgb, low, high)`, bit for bit |
//! | `softedge` | length of the gradient | Sobel of the grey over 4, so that a step keeps its height |
//! | `lineart` | dark lines, white on black | `lineart_standard` of ComfyUI's ControlNet preprocessors |
//! | `scribble` | thick lines, white on black | `scribble_xdog` of sd-webui-controlnet |
//! | `blur` | a Gaussian blur | `cv2.GaussianBlur` in f32, rounded |
//! | `tile` | fewer pixels, enlarged again | PIL: `BOX` down by a factor, `BICUBIC` up |
//! | `gray` | grey | PIL's `convert("L")` |
//! | `invert` | 255 minus each value | |
//! | `depth` | near is white | Depth Anything V2, a network that is [given](EstimateDepth) |
//!
//! ```
//! use animatelcm::Stop;
//! use animatelcm::media::RgbImage;
//! use animatelcm::preprocess::{Preprocessor, Settings};
//!
//! let canny = Preprocessor::new("canny", &Settings { low: Some(50.0), ..Settings::default() })?;
//! let edges = canny.apply(&RgbImage::new(64, 32), &Stop::default())?;
//! assert_eq!(edges, RgbImage::new(64, 32)); // no edge in a black picture
//! # Ok::<(), animatelcm::Error>(())
//! ```

mod canny;
mod depth;
mod filters;
mod names;

use std::fmt;

pub use depth::{DepthMap, EstimateDepth, greys, hints as depth_hints};
use serde::{Deserialize, Serialize};

use crate::media::resize::coarse;
use crate::media::tensor::luma;
use crate::media::{Rgb, RgbImage};
use crate::{Error, Result, Stop};

/// The name of the option and of errors about it.
const FIELD: &str = "preprocess";

/// The largest gradient of an 8-bit picture by Sobel's filter, as the sum of both directions.
const MOST_GRADIENT: f64 = 2040.0;

/// A preprocessor with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Preprocessor {
    /// Edges by Canny's method, white on black.
    Canny {
        /// Gradient above which a pixel continues an edge.
        #[serde(default = "low")]
        low: f64,
        /// Gradient above which a pixel begins an edge.
        #[serde(default = "high")]
        high: f64,
    },
    /// The length of Sobel's gradient.
    SoftEdge {},
    /// What is darker than its surroundings, white on black.
    Lineart {},
    /// Thick lines by a difference of Gaussians.
    Scribble {
        /// Least difference, doubled, that makes a line.
        #[serde(default = "threshold")]
        threshold: f64,
    },
    /// A Gaussian blur.
    Blur {
        /// Standard deviation in pixels.
        #[serde(default = "sigma")]
        sigma: f64,
    },
    /// A picture of fewer pixels, enlarged again.
    Tile {
        /// How many times fewer pixels a side has.
        #[serde(default = "factor")]
        factor: f64,
    },
    /// Grey.
    Gray {},
    /// 255 minus each value.
    Invert {},
    /// Depths that a network estimates, near is white.
    Depth {
        /// Whether each picture has its own range of depths rather than all of a clip one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        per_picture: bool,
    },
}

fn low() -> f64 {
    100.0
}

fn high() -> f64 {
    200.0
}

fn threshold() -> f64 {
    32.0
}

fn sigma() -> f64 {
    9.0
}

fn factor() -> f64 {
    8.0
}

/// Parameters by name, each of which belongs to one kind; defaults where `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// Lower threshold of `canny` \[default: 100\].
    pub low: Option<f64>,
    /// Higher threshold of `canny` \[default: 200\].
    pub high: Option<f64>,
    /// Threshold of `scribble` \[default: 32\].
    pub threshold: Option<f64>,
    /// Standard deviation of `blur` in pixels \[default: 9\].
    pub sigma: Option<f64>,
    /// Factor of `tile` \[default: 8\].
    pub factor: Option<f64>,
    /// Whether `depth` has a range for each picture.
    pub per_picture: bool,
}

impl Settings {
    /// The names of the parameters that are numbers.
    pub const NAMES: [&str; 5] = ["low", "high", "threshold", "sigma", "factor"];

    /// The parameters that `value` gives by their names.
    ///
    /// # Errors
    ///
    /// Those of `value`.
    pub fn from_names(mut value: impl FnMut(&str) -> Result<Option<f64>>) -> Result<Self> {
        let [low, high, threshold, sigma, factor] = Self::NAMES;
        Ok(Self {
            low: value(low)?,
            high: value(high)?,
            threshold: value(threshold)?,
            sigma: value(sigma)?,
            factor: value(factor)?,
            per_picture: false,
        })
    }

    /// The name of a parameter that is given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let Self { low, high, threshold, sigma, factor, per_picture } = *self;
        let values = [low, high, threshold, sigma, factor];
        let given =
            Self::NAMES.into_iter().zip(values).find_map(|(name, value)| value.map(|_| name));
        given.or(per_picture.then_some("per-picture"))
    }
}

impl Preprocessor {
    /// The preprocessor of a name, also in the spelling of other programs.
    ///
    /// # Errors
    ///
    /// An unknown name, one that needs a network, parameters of another kind or out of range.
    pub fn new(name: &str, settings: &Settings) -> Result<Self> {
        let mut rest = *settings;
        let mut take = |slot: fn(&mut Settings) -> &mut Option<f64>, default: fn() -> f64| {
            slot(&mut rest).take().unwrap_or_else(default)
        };
        let made = match names::kind(name)? {
            "canny" => {
                Self::Canny { low: take(|s| &mut s.low, low), high: take(|s| &mut s.high, high) }
            }
            "scribble" => Self::Scribble { threshold: take(|s| &mut s.threshold, threshold) },
            "blur" => Self::Blur { sigma: take(|s| &mut s.sigma, sigma) },
            "tile" => Self::Tile { factor: take(|s| &mut s.factor, factor) },
            "softedge" => Self::SoftEdge {},
            "lineart" => Self::Lineart {},
            "gray" => Self::Gray {},
            "depth" => Self::Depth { per_picture: std::mem::take(&mut rest.per_picture) },
            _ => Self::Invert {},
        };
        if let Some(stranger) = rest.given() {
            let reason = format!("`{}` has no parameter `{stranger}`", made.name());
            return Err(Error::request(FIELD, reason));
        }
        made.validate()?;
        Ok(made)
    }

    /// The name of the kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Canny { .. } => "canny",
            Self::SoftEdge {} => "softedge",
            Self::Lineart {} => "lineart",
            Self::Scribble { .. } => "scribble",
            Self::Blur { .. } => "blur",
            Self::Tile { .. } => "tile",
            Self::Gray {} => "gray",
            Self::Invert {} => "invert",
            Self::Depth { .. } => "depth",
        }
    }

    /// Returns whether a name is one of [`names`](Self::names) in any spelling.
    pub fn is_known(name: &str) -> bool {
        names::kind(name).is_ok()
    }

    /// The names of all kinds.
    pub fn names() -> &'static [&'static str] {
        &names::KINDS
    }

    /// Whether the hint is made by a network, with [`depth_hints`].
    pub fn needs_network(&self) -> bool {
        matches!(self, Self::Depth { .. })
    }

    /// Returns whether the result are lines on black.
    pub(crate) fn makes_lines(&self) -> bool {
        matches!(
            self,
            Self::Canny { .. } | Self::SoftEdge {} | Self::Lineart {} | Self::Scribble { .. }
        )
    }

    /// Checks the parameters.
    ///
    /// # Errors
    ///
    /// One that is out of range.
    pub fn validate(&self) -> Result<()> {
        let within = |name: &str, value: f64, least: f64, most: f64| {
            if value >= least && value <= most {
                return Ok(());
            }
            let reason = format!("`{name}` must be between {least} and {most}, got {value}");
            Err(Error::request(FIELD, reason))
        };
        match *self {
            Self::Canny { low, high } => {
                within("low", low, 0.0, MOST_GRADIENT)?;
                within("high", high, 0.0, MOST_GRADIENT)?;
                if low > high {
                    let reason = format!("`low` is {low}, above `high`, which is {high}");
                    return Err(Error::request(FIELD, reason));
                }
                Ok(())
            }
            Self::Scribble { threshold } => within("threshold", threshold, 0.0, 510.0),
            Self::Blur { sigma } => within("sigma", sigma, 0.1, 100.0),
            Self::Tile { factor } => within("factor", factor, 1.0, 64.0),
            Self::SoftEdge {} | Self::Lineart {} | Self::Gray {} | Self::Invert {} => Ok(()),
            Self::Depth { .. } => Ok(()),
        }
    }

    /// The hint of a picture, in its size.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`] once `stop` is requested; a kind that needs a network, see [`depth_hints`].
    pub fn apply(&self, image: &RgbImage, stop: &Stop) -> Result<RgbImage> {
        if image.width() == 0 || image.height() == 0 {
            return Ok(image.clone());
        }
        let made = match *self {
            Self::Canny { low, high } => canny::edges(image, low, high, stop)?,
            Self::SoftEdge {} => filters::soft_edges(image, stop),
            Self::Lineart {} => filters::lineart(image, stop)?,
            Self::Scribble { threshold } => filters::scribble(image, threshold, stop),
            Self::Blur { sigma } => filters::blur(image, sigma, stop),
            Self::Tile { factor } => coarse(image, factor, stop)?,
            Self::Gray {} => mapped(image, |pixel| [luma(pixel); 3]),
            Self::Invert {} => mapped(image, |pixel| pixel.0.map(|value| u8::MAX - value)),
            Self::Depth { .. } => {
                return Err(Error::request(
                    FIELD,
                    "`depth` is made by a network, by `depth_hints`",
                ));
            }
        };
        stop.check()?;
        Ok(made)
    }
}

/// The kind and its parameters: `canny (low 100, high 200)`.
impl fmt::Display for Preprocessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Canny { low, high } => write!(f, " (low {low}, high {high})"),
            Self::Scribble { threshold } => write!(f, " (threshold {threshold})"),
            Self::Blur { sigma } => write!(f, " (sigma {sigma})"),
            Self::Tile { factor } => write!(f, " (factor {factor})"),
            Self::Depth { per_picture: true } => f.write_str(" (per picture)"),
            Self::Depth { per_picture: false } => Ok(()),
            Self::SoftEdge {} | Self::Lineart {} | Self::Gray {} | Self::Invert {} => Ok(()),
        }
    }
}

/// A picture with each pixel changed.
fn mapped(image: &RgbImage, change: impl Fn(Rgb<u8>) -> [u8; 3]) -> RgbImage {
    let mut image = image.clone();
    for pixel in image.pixels_mut() {
        pixel.0 = change(*pixel);
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_belong_to_their_kind_and_have_a_range() {
        let new = |name: &str, settings: Settings| Preprocessor::new(name, &settings);
        let none = Settings::default();
        let canny = new("Canny", Settings { low: Some(20.0), ..none }).unwrap();
        assert_eq!(canny, Preprocessor::Canny { low: 20.0, high: 200.0 });
        assert_eq!(canny.to_string(), "canny (low 20, high 200)");
        for (name, settings, part) in [
            ("canny", Settings { sigma: Some(1.0), ..none }, "`canny` has no parameter `sigma`"),
            ("gray", Settings { low: Some(1.0), ..none }, "`gray` has no parameter `low`"),
            ("tile", Settings { per_picture: true, ..none }, "no parameter `per-picture`"),
            ("canny", Settings { low: Some(201.0), ..none }, "`low` is 201, above `high`"),
            ("canny", Settings { high: Some(2041.0), ..none }, "between 0 and 2040"),
            ("canny", Settings { low: Some(f64::NAN), ..none }, "`low` must be between"),
            ("blur", Settings { sigma: Some(0.0), ..none }, "`sigma` must be between 0.1"),
            ("tile", Settings { factor: Some(0.5), ..none }, "`factor` must be between 1"),
            ("scribble", Settings { threshold: Some(-1.0), ..none }, "`threshold` must be"),
        ] {
            let error = new(name, settings).unwrap_err();
            assert!(error.to_string().starts_with("preprocess: "), "{error}");
            assert!(error.to_string().contains(part), "{part}: {error}");
            assert_eq!(error.kind().exit_code(), 2);
        }
    }

    #[test]
    fn every_kind_is_read_back_as_written() {
        for name in Preprocessor::names() {
            let made = Preprocessor::new(name, &Settings::default()).unwrap();
            assert_eq!(made.name(), *name);
            let json = serde_json::to_string(&made).unwrap();
            assert_eq!(serde_json::from_str::<Preprocessor>(&json).unwrap(), made, "{json}");
            let short = format!(r#"{{"kind":"{name}"}}"#);
            assert_eq!(serde_json::from_str::<Preprocessor>(&short).unwrap(), made, "{short}");
            let more = format!(r#"{{"kind":"{name}","x":1}}"#);
            assert!(serde_json::from_str::<Preprocessor>(&more).is_err(), "{more}");
        }
        assert!(serde_json::from_str::<Preprocessor>(r#"{"kind":"pose"}"#).is_err());
        let own = Preprocessor::Depth { per_picture: true };
        let json = serde_json::to_string(&own).unwrap();
        assert_eq!(json, r#"{"kind":"depth","per_picture":true}"#);
        assert_eq!(serde_json::from_str::<Preprocessor>(&json).unwrap(), own);
    }

    #[test]
    fn every_kind_takes_every_size_and_ends_with_the_stop() {
        let stopped = Stop::default();
        stopped.request();
        for name in Preprocessor::names() {
            let made = Preprocessor::new(name, &Settings::default()).unwrap();
            if made.needs_network() {
                let error = made.apply(&RgbImage::new(4, 4), &Stop::default()).unwrap_err();
                assert!(error.to_string().contains("made by a network"), "{error}");
                continue;
            }
            for (width, height) in [(0, 0), (1, 1), (1, 5), (7, 1), (3, 2)] {
                let image = RgbImage::from_pixel(width, height, Rgb([90, 100, 110]));
                let hint = made.apply(&image, &Stop::default()).unwrap();
                assert_eq!(hint.dimensions(), (width, height), "{name}");
            }
            let error = made.apply(&RgbImage::new(4, 4), &stopped).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Cancelled, "{name}");
        }
    }
}
