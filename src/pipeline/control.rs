//! ControlNets in a request: what is asked of them, and their hints made ready.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::request::Request;
use crate::adapters::control_net::{self, ControlSettings};
use crate::adapters::{ActiveRange, Conditioner, Strength};
use crate::media::RgbImage;
use crate::media::read;
use crate::media::resize::{Fit, resize};
use crate::media::tensor::from_rgb;
use crate::models::control_net::ControlNet;
use crate::{Error, Result};

/// The name of the option and of errors about it.
const FIELD: &str = "control";

/// A ControlNet and the hint that it has the clip follow.
///
/// On the command line `NAME=HINT,model=FILE` and perhaps `,scale=0.8`, `,start=0`, `,end=0.6`, `,fit=crop` and
/// `,guess`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// What messages call it; no two may have the same name.
    pub name: String,
    /// A picture for all frames; or an animation or a folder of pictures, one for each frame.
    pub hint: String,
    /// The hint's SHA-256; in a clip always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The ControlNet's file or folder. Several controls may share one.
    pub model: String,
    /// How strongly it counts: a number, or a curve over the frames such as `0:1.0,8:0.2`.
    #[serde(default)]
    pub scale: Strength,
    /// Which part of the run it works in: 0 is the beginning.
    #[serde(default)]
    pub start: f64,
    /// The end of that part; 1 is the end of the run.
    #[serde(default = "one")]
    pub end: f64,
    /// Guess mode: shallow residuals count less, and the negative prompt goes without.
    #[serde(default)]
    pub guess: bool,
    /// How a hint of another size is brought to the clip's.
    #[serde(default)]
    pub fit: Fit,
}

fn one() -> f64 {
    1.0
}

impl FromStr for Control {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: String| {
            Error::request(FIELD, reason).with_hint(
                "NAME=HINT,model=FILE[,scale=0.8][,start=0][,end=0.6][,fit=crop][,guess]",
            )
        };
        let mut name = None;
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        let mut last = String::new();
        for part in text.split(',') {
            match part.split_once('=') {
                Some((key, value)) if name.is_none() => {
                    name = Some(key.to_owned());
                    last.clear();
                    values.insert("hint".into(), value.to_owned());
                }
                Some((key, value)) => {
                    key.clone_into(&mut last);
                    if values.insert(key.to_owned(), value.to_owned()).is_some() {
                        return Err(wrong(format!("`{text}` has two values for `{key}`")));
                    }
                }
                None if part == "guess" && name.is_some() => {
                    values.insert(part.to_owned(), "true".into());
                }
                // A curve has commas of its own: scale=0:1.0,8:0.2.
                None if last == "scale" && part.contains(':') => {
                    if let Some(curve) = values.get_mut("scale") {
                        curve.push(',');
                        curve.push_str(part);
                    }
                }
                None => return Err(wrong(format!("`{part}` in `{text}` is not KEY=VALUE"))),
            }
        }
        let mut take = |key: &str| values.remove(key).filter(|value| !value.is_empty());
        let (Some(name), Some(hint)) = (name.filter(|name| !name.is_empty()), take("hint")) else {
            return Err(wrong(format!("`{text}` does not begin with NAME=HINT")));
        };
        let Some(model) = take("model") else {
            return Err(wrong(format!("`{name}` has no model")));
        };
        let number = |value: Option<String>, default: f64| match value {
            None => Ok(default),
            Some(value) => {
                value.parse().map_err(|_| wrong(format!("`{value}` in `{text}` is not a number")))
            }
        };
        let control = Self {
            name,
            hint,
            sha256: None,
            model,
            scale: take("scale").map(|scale| scale.parse()).transpose()?.unwrap_or_default(),
            start: number(take("start"), 0.0)?,
            end: number(take("end"), 1.0)?,
            guess: take("guess").is_some(),
            fit: take("fit").map(|fit| fit.parse()).transpose()?.unwrap_or_default(),
        };
        match values.keys().next() {
            Some(key) => Err(wrong(format!("`{key}` in `{text}` is not known"))),
            None => Ok(control),
        }
    }
}

impl Control {
    /// When it works.
    fn range(&self) -> Result<ActiveRange> {
        ActiveRange::new(self.start, self.end)
            .map_err(|error| Error::request(FIELD, format!("`{}`: {error}", self.name)))
    }

    /// Its pictures in the clip's size: one, or as many as the clip has frames.
    fn pictures(&self, frames: usize, (width, height): (usize, usize)) -> Result<Vec<RgbImage>> {
        let pictures = read::frames(FIELD, Path::new(&self.hint))?;
        let found = pictures.len();
        if found != 1 && found != frames {
            let (name, hint) = (&self.name, &self.hint);
            let reason = format!("`{name}`: {hint} has {found} frames, the clip {frames}");
            let hint = format!("--frames {found}, or one picture for all frames");
            return Err(Error::request(FIELD, reason).with_hint(hint));
        }
        let fit = |picture| resize(picture, width as u32, height as u32, self.fit);
        Ok(pictures.iter().map(fit).collect())
    }
}

/// Checks what can be checked without a model.
pub(super) fn validate(controls: &[Control]) -> Result<()> {
    for (i, control) in controls.iter().enumerate() {
        control.range()?;
        if controls.iter().take(i).any(|other| other.name == control.name) {
            let reason = format!("two are called `{}`", control.name);
            return Err(Error::request(FIELD, reason));
        }
    }
    Ok(())
}

/// The pictures of every control of a request, for a clip of that size (width, height).
pub(super) fn hints(request: &Request, size: (usize, usize)) -> Result<Vec<Vec<RgbImage>>> {
    request.controls.iter().map(|control| control.pictures(request.frames, size)).collect()
}

/// The networks with their hints.
pub(super) fn conditioners<'a>(
    controls: &[Control],
    hints: &[Vec<RgbImage>],
    nets: &'a BTreeMap<String, ControlNet>,
    dtype: DType,
    device: &Device,
) -> Result<Vec<Box<dyn Conditioner + 'a>>> {
    let build = |(control, hint): (&Control, &Vec<RgbImage>)| {
        let Some(net) = nets.get(&control.model) else { return Err(unopened(control)) };
        let settings = ControlSettings {
            label: control.name.clone(),
            strength: control.scale.clone(),
            range: control.range()?,
            guess: control.guess,
        };
        let hint = from_rgb(hint, device)?.to_dtype(dtype)?;
        let conditioner = control_net::Control::new(net, &hint, settings)?;
        Ok(Box::new(conditioner) as Box<dyn Conditioner + 'a>)
    };
    controls.iter().zip(hints).map(build).collect()
}

/// A request may only use networks that the pipeline was given.
pub(super) fn unopened(control: &Control) -> Error {
    let reason = format!("`{}`: the ControlNet `{}` was not opened", control.name, control.model);
    Error::request(FIELD, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_says_what_is_followed_and_how() {
        let control: Control = "canny=a=b.gif,model=c.safetensors".parse().unwrap();
        assert_eq!((control.name.as_str(), control.hint.as_str()), ("canny", "a=b.gif"));
        assert_eq!(control.scale, Strength::constant(1.0));
        assert_eq!((control.start, control.end, control.guess), (0.0, 1.0, false));

        let text = "d=hint/,guess,scale=0:1.0,8:0.2,12:0,start=0.1,model=C:\\net,fit=crop,end=0.6";
        let control: Control = text.parse().unwrap();
        assert_eq!(control.scale, "0:1,8:0.2,12:0".parse().unwrap());
        assert_eq!((control.start, control.end, control.guess), (0.1, 0.6, true));
        assert_eq!((control.model.as_str(), control.fit), ("C:\\net", Fit::Crop));
        let json = serde_json::to_string(&control).unwrap();
        assert_eq!(serde_json::from_str::<Control>(&json).unwrap(), control);
    }

    #[test]
    fn a_mistyped_flag_is_refused_with_its_grammar() {
        for (text, part) in [
            ("", "is not KEY=VALUE"),
            ("canny.gif", "is not KEY=VALUE"),
            ("guess", "is not KEY=VALUE"),
            ("=a.gif,model=b", "NAME=HINT"),
            ("a=,model=b", "NAME=HINT"),
            ("a=b.gif", "has no model"),
            ("a=b.gif,model=", "has no model"),
            ("a=b.gif,model=c,weight=1", "`weight`"),
            ("a=b.gif,model=c,model=d", "two values for `model`"),
            ("a=b.gif,model=c,end=x", "not a number"),
            ("a=b.gif,model=c,scale=x", "neither"),
            ("a=b.gif,model=c,fit=x", "`stretch`"),
            ("a=b,c.gif,model=c", "`c.gif`"),
        ] {
            let error = text.parse::<Control>().unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert_eq!(error.kind().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn names_and_ranges_are_checked() {
        let control = |text: &str| text.parse::<Control>().unwrap();
        let two = [control("a=b,model=c"), control("a=d,model=e")];
        assert!(validate(&two).unwrap_err().to_string().contains("two are called `a`"));
        let error = validate(&[control("a=b,model=c,start=0.7,end=0.3")]).unwrap_err();
        assert!(error.to_string().starts_with("control: `a`"), "{error}");
        assert!(validate(&two[..1]).is_ok());
    }
}
