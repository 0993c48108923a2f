//! Controls in a request: ControlNets, SparseCtrl networks and T2I-Adapters, and their hints made ready.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::grammar::{First, Key, Kind, exists, items};
use super::load::{Models, SideConfig, SideNetwork};
use super::request::Request;
use crate::adapters::control_net::Control as ControlNetControl;
use crate::adapters::sparse_ctrl::{SparseControl, SparseHint};
use crate::adapters::t2i_adapter::T2iControl;
use crate::adapters::{ActiveRange, Conditioner, ControlSettings, Strength};
use crate::media::RgbImage;
use crate::media::read::{self, Selection};
use crate::media::resize::{Fit, resize};
use crate::media::tensor::{from_rgb, to_grey};
use crate::{Error, Result, Stop};

/// The name of the option and of errors about it.
const FIELD: &str = "control";

/// The form of the option.
const GRAMMAR: &str = "NAME=HINT,model=FILE[,scale=0.8][,start=0][,end=0.6][,fit=crop][,frames=0,8][,from=0][,every=2]\
                       [,guess]; \
                       a path with commas in double quotes: NAME=\"a, b.png\"";

/// What may follow `NAME=HINT`. Curves and lists have commas of their own: `scale=0:1.0,8:0.2`, `frames=0,8,15`.
const KEYS: [Key; 9] = [
    Key::new("model", Kind::Path),
    Key::new("scale", Kind::List(|part| part.contains(':'))),
    Key::new("start", Kind::Text),
    Key::new("end", Kind::Text),
    Key::new("fit", Kind::Text),
    Key::new("frames", Kind::List(|part| part.trim().parse::<usize>().is_ok())),
    Key::new("from", Kind::Text),
    Key::new("every", Kind::Text),
    Key::new("guess", Kind::Word),
];

/// A network and the hint that it has the clip follow. The network's file tells whether it is a ControlNet, a SparseCtrl
/// network or a T2I-Adapter.
///
/// On the command line `NAME=HINT,model=FILE` and perhaps `,scale=0.8`, `,start=0`, `,end=0.6`, `,fit=crop`,
/// `,frames=0,8`, `,from=0`, `,every=2` and `,guess`. Paths with commas are in double quotes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// What messages call it; no two may have the same name.
    pub name: String,
    /// A picture for all frames (for SparseCtrl, of frame 0); or an animation or a folder of pictures, one for each
    /// frame (for SparseCtrl, for each of `frames`).
    pub hint: String,
    /// The hint's SHA-256; in a clip always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The network's file or folder. Several controls may share one.
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
    /// The frames, from 0, that the pictures are for: SparseCtrl only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<usize>,
    /// The first frame of the hint's animation, video or folder that is taken, from 0.
    ///
    /// With it or `every` as many frames are taken as the clip (or `frames`) needs, and the others passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<usize>,
    /// Every so many frames one is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<usize>,
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
        let wrong = |reason: String| Error::request(FIELD, reason).with_hint(GRAMMAR);
        let items = items(text, First::Named, &KEYS, &exists).map_err(wrong)?;
        let mut items = items.into_iter();
        let (name, hint) = items.next().map(|item| (item.key, item.value)).unwrap_or_default();
        if name.is_empty() || hint.is_empty() {
            return Err(wrong(format!("`{text}` does not begin with NAME=HINT")));
        }
        let guess = items.as_slice().iter().any(|item| item.key == "guess");
        let mut values: BTreeMap<String, String> =
            items.map(|item| (item.key, item.value)).collect();
        let mut take = |key: &str| values.remove(key).filter(|value| !value.is_empty());
        let Some(model) = take("model") else {
            return Err(wrong(format!("`{name}` has no model")));
        };
        let number = |value: Option<String>, default: f64| match value {
            None => Ok(default),
            Some(value) => {
                value.parse().map_err(|_| wrong(format!("`{value}` in `{text}` is not a number")))
            }
        };
        let frames = |value: Option<String>| -> Result<Vec<usize>> {
            let Some(value) = value else { return Ok(vec![]) };
            let frame = |text: &str| text.trim().parse().ok();
            let frames: Option<_> = value.split(',').map(frame).collect();
            frames.ok_or_else(|| wrong(format!("`{value}` in `{text}` is not a list of frames")))
        };
        let whole = |value: Option<String>| match value {
            None => Ok(None),
            Some(value) => value
                .parse()
                .map(Some)
                .map_err(|_| wrong(format!("`{value}` in `{text}` is not a number of frames"))),
        };
        Ok(Self {
            name,
            hint,
            sha256: None,
            model,
            scale: take("scale").map(|scale| scale.parse()).transpose()?.unwrap_or_default(),
            start: number(take("start"), 0.0)?,
            end: number(take("end"), 1.0)?,
            frames: frames(take("frames"))?,
            from: whole(take("from"))?,
            every: whole(take("every"))?,
            guess,
            fit: take("fit").map(|fit| fit.parse()).transpose()?.unwrap_or_default(),
        })
    }
}

impl Control {
    /// When it works.
    fn range(&self) -> Result<ActiveRange> {
        ActiveRange::new(self.start, self.end)
            .map_err(|error| Error::request(FIELD, format!("`{}`: {error}", self.name)))
    }

    /// Its pictures in the clip's size, and the frames that they are for if its network wants to know.
    fn hint(
        &self,
        config: &SideConfig,
        clip: usize,
        longest: Option<usize>,
        (width, height): (usize, usize),
        stop: &Stop,
    ) -> Result<Hint> {
        let wrong = |reason: String| Error::request(FIELD, format!("`{}`: {reason}", self.name));
        let pictures = self.pictures(clip, stop)?;
        let found = pictures.len();
        let fit = |picture| resize(picture, width as u32, height as u32, self.fit, stop);
        let all = longest.unwrap_or(usize::MAX);
        let frames = match config {
            SideConfig::SparseCtrl(config) => {
                let longest = config.motion_max_seq_length;
                if clip > longest {
                    let reason = format!("{clip} frames asked for, the network knows {longest}");
                    let known = longest.min(all);
                    return Err(wrong(reason).with_hint(format!("--frames {known} or fewer")));
                }
                self.sparse_frames(found, clip)?
            }
            other if !self.frames.is_empty() => {
                let reason =
                    format!("`frames` is for SparseCtrl, {} is {}", self.model, other.kind());
                return Err(wrong(reason).with_hint("a curve does that: scale=0:1,1:0"));
            }
            _ if found == 1 || found == clip => vec![],
            _ => {
                let reason = format!("{} has {found} frames, the clip {clip}", self.hint);
                let some = "one image for all frames";
                // Never a number that the motion modules refuse.
                let hint = match (found > clip, found <= all) {
                    (true, true) => format!("{}, or --frames {found}", some_of(found, clip)),
                    (true, false) => some_of(found, clip),
                    (false, _) => format!("--frames {found}, or {some}"),
                };
                return Err(wrong(reason).with_hint(hint));
            }
        };
        if self.guess && matches!(config, SideConfig::T2iAdapter(_)) {
            return Err(wrong(format!("{} has no guess mode", config.kind())));
        }
        Ok(Hint { pictures: pictures.iter().map(fit).collect::<Result<_>>()?, frames })
    }

    /// The pictures of its hint that are taken, in their own size.
    fn pictures(&self, clip: usize, stop: &Stop) -> Result<Vec<RgbImage>> {
        let path = Path::new(&self.hint);
        if self.from.is_none() && self.every.is_none() {
            return Ok(read::frames(FIELD, path, Selection::default(), stop)?.images);
        }
        let (from, every) = (self.from.unwrap_or(0), self.every.unwrap_or(1));
        let count = if self.frames.is_empty() { clip } else { self.frames.len() };
        let found = read::frames(FIELD, path, Selection { from, every, count: Some(count) }, stop)?;
        let taken = found.images.len();
        // A still image is for all frames, whatever is taken of it.
        let is_still = found.seen == 1 && taken == 1;
        if taken < count && !is_still {
            let (name, hint, seen) = (&self.name, &self.hint, found.seen);
            let reason = format!(
                "`{name}`: {hint} has {seen} frames, from={from},every={every} takes {taken} of {count}"
            );
            let error = Error::request(FIELD, reason);
            return Err(if seen >= count { error.with_hint(some_of(seen, count)) } else { error });
        }
        Ok(found.images)
    }

    /// The frame of each of so many pictures.
    fn sparse_frames(&self, found: usize, clip: usize) -> Result<Vec<usize>> {
        let wrong = |reason: String| Error::request(FIELD, format!("`{}`: {reason}", self.name));
        if self.frames.is_empty() && (found == 1 || found == clip) {
            return Ok((0..found).collect());
        }
        let pictures = if found == 1 { "picture" } else { "pictures" };
        if self.frames.is_empty() {
            let reason = format!("{} has {found} {pictures}, but for which frames", self.hint);
            let hint = "say so: frames=0,8,15";
            return Err(wrong(reason).with_hint(if found > clip {
                format!("{hint}; or {}", some_of(found, clip))
            } else {
                hint.to_owned()
            }));
        }
        if self.frames.len() != found {
            let (hint, wanted) = (&self.hint, self.frames.len());
            return Err(wrong(format!("{hint} has {found} {pictures}, for {wanted} frames")));
        }
        Ok(self.frames.clone())
    }

    /// Whether it never adds anything.
    fn is_idle(&self, clip: usize) -> bool {
        (0..clip).all(|frame| self.scale.at(frame) == 0.0)
    }
}

/// How so many frames of a longer hint are taken, spread over it.
fn some_of(found: usize, count: usize) -> String {
    format!("from=0,every={} takes {count} of them", found / count.max(1))
}

/// The pictures of a control.
#[derive(Clone, Debug)]
pub struct Hint {
    /// In the clip's size: one for all frames, or one for each; of SparseCtrl one for each of `frames`.
    pub pictures: Vec<RgbImage>,
    /// The frames of SparseCtrl's pictures; of others empty.
    pub frames: Vec<usize>,
}

/// Checks what can be checked without a model, for a clip of so many frames.
pub(super) fn validate(controls: &[Control], clip: usize) -> Result<()> {
    let mut names = HashSet::new();
    for control in controls {
        control.range()?;
        let name = &control.name;
        let wrong = |reason: String| Err(Error::request(FIELD, reason));
        if !names.insert(name) {
            return wrong(format!("two are called `{name}`"));
        }
        if control.every == Some(0) {
            return wrong(format!("`{name}`: `every` must be at least 1"));
        }
        let mut seen = HashSet::new();
        for &frame in &control.frames {
            if frame >= clip {
                return wrong(format!(
                    "`{name}`: frame {frame} is not in the clip, 0 to {}",
                    clip.saturating_sub(1)
                ));
            }
            if !seen.insert(frame) {
                return wrong(format!("`{name}`: frame {frame} is listed twice"));
            }
        }
    }
    Ok(())
}

/// The hint of every control of a request, for a clip of that size (width, height).
pub(super) fn hints(
    request: &Request,
    models: &Models,
    size: (usize, usize),
    stop: &Stop,
) -> Result<Vec<Hint>> {
    let hint = |control: &Control| {
        let Some(config) = models.side_config(&control.model) else {
            return Err(unopened(control));
        };
        if config.sees_latents() {
            models.check_encoder()?;
        }
        control.hint(config, request.frames, models.longest_clip(), size, stop)
    };
    request.controls.iter().map(hint).collect()
}

/// The controls whose hints are latents, with their places in the request. What never counts needs none.
pub(super) fn of_latents<'a>(request: &'a Request, models: &Models) -> Vec<(usize, &'a Control)> {
    let sees_latents = |control: &Control| {
        !control.is_idle(request.frames)
            && models.side_config(&control.model).is_some_and(SideConfig::sees_latents)
    };
    request.controls.iter().enumerate().filter(|(_, control)| sees_latents(control)).collect()
}

/// What conditioners are made of.
pub(super) struct Parts<'a, 'b> {
    pub(super) networks: &'a BTreeMap<String, SideNetwork>,
    pub(super) hints: &'b [Hint],
    /// Latents of hints, by the control's place in the request.
    pub(super) latents: &'b BTreeMap<usize, Tensor>,
    pub(super) dtype: DType,
    pub(super) device: &'b Device,
    pub(super) stop: &'b Stop,
}

/// The networks with their hints.
pub(super) fn conditioners<'a>(
    request: &Request,
    parts: &Parts<'a, '_>,
) -> Result<Vec<Box<dyn Conditioner + 'a>>> {
    let controls = request.controls.iter().zip(parts.hints).enumerate();
    // What never counts is not even computed.
    let working = controls.filter(|(_, (control, _))| !control.is_idle(request.frames));
    working
        .map(|(i, (control, hint))| {
            let Some(network) = parts.networks.get(&control.model) else {
                return Err(unopened(control));
            };
            let settings = ControlSettings {
                label: control.name.clone(),
                strength: control.scale.clone(),
                range: control.range()?,
                guess: control.guess,
            };
            let pixels = || -> Result<Tensor> {
                Ok(from_rgb(&hint.pictures, parts.device)?.to_dtype(parts.dtype)?)
            };
            Ok(match network {
                SideNetwork::ControlNet(net) => {
                    Box::new(ControlNetControl::new(net, &pixels()?, settings, parts.stop)?)
                        as Box<dyn Conditioner + 'a>
                }
                SideNetwork::SparseCtrl(net) => {
                    let hints = match parts.latents.get(&i) {
                        Some(latents) => latents.to_dtype(parts.dtype)?,
                        None => pixels()?,
                    };
                    let (frames, clip) = (&hint.frames, request.frames);
                    let hint = SparseHint { hints: &hints, frames, clip };
                    Box::new(SparseControl::new(net, hint, settings, parts.stop)?)
                }
                SideNetwork::T2iAdapter(net) => {
                    let hint = if net.config().in_channels == 1 {
                        to_grey(&hint.pictures, parts.device)?.to_dtype(parts.dtype)?
                    } else {
                        pixels()?
                    };
                    Box::new(T2iControl::new(net, &hint, settings, parts.stop)?)
                }
            })
        })
        .collect()
}

/// A request may only use networks that the pipeline was given.
fn unopened(control: &Control) -> Error {
    let reason = format!("`{}`: the network `{}` was not opened", control.name, control.model);
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
        assert!(control.frames.is_empty());
        let json = serde_json::to_string(&control).unwrap();
        assert_eq!(serde_json::from_str::<Control>(&json).unwrap(), control);

        // Lists and curves have commas of their own, in any order.
        for text in [
            "a=b,model=c,frames=0,8,15,scale=0:1,8:0.5,end=0.5",
            "a=b,scale=0:1,8:0.5,frames=0,8,15,end=0.5,model=c",
        ] {
            let control: Control = text.parse().unwrap();
            assert_eq!(control.frames, [0, 8, 15]);
            assert_eq!(control.scale, "0:1,8:0.5".parse().unwrap());
            let json = serde_json::to_string(&control).unwrap();
            assert_eq!(serde_json::from_str::<Control>(&json).unwrap(), control);
        }
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
            ("a=b,model=c,frames=0,-1", "`-1`"),
            ("a=b,model=c,frames=x", "not a list of frames"),
            ("a=b,model=c,from=-1", "`-1`"),
            ("a=b,model=c,every=x", "not a number of frames"),
            ("a=b,model=c,frames=0,scale=1,8", "`8`"),
            ("a=b,model=c,frames=0,1:2", "`1:2`"),
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
        assert!(validate(&two, 4).unwrap_err().to_string().contains("two are called `a`"));
        let error = validate(&[control("a=b,model=c,start=0.7,end=0.3")], 4).unwrap_err();
        assert!(error.to_string().starts_with("control: `a`"), "{error}");
        assert!(validate(&two[..1], 4).is_ok());
        let error = validate(&[control("a=b,model=c,every=0")], 4).unwrap_err().to_string();
        assert!(error.contains("`every` must be at least 1"), "{error}");
        assert!(validate(&[control("a=b,model=c,frames=3,0")], 4).is_ok());
        for (frames, part) in [("0,4", "frame 4 is not in the clip, 0 to 3"), ("1,2,1", "twice")] {
            let control = control(&format!("a=b,model=c,frames={frames}"));
            let error = validate(&[control], 4).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
