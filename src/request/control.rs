//! Controls: ControlNets, SparseCtrl networks and T2I-Adapters with their hints.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::grammar::{self, First, Key, Kind, items};
use super::one;
use crate::adapters::{ActiveRange, Strength};
use crate::media::resize::Fit;
use crate::preprocess::{Preprocessor, Settings};
use crate::{Error, Result};

/// The name of the option and of errors about it.
const FIELD: &str = "control";

/// The form of the option.
const GRAMMAR: &str = "NAME=HINT,model=FILE[,scale=0.8][,start=0][,end=0.6][,fit=crop][,frames=0,8][,from=0][,every=2]\
                       [,preprocess[=canny]][,guess]; \
                       a path with commas in double quotes: NAME=\"a, b.png\"";

/// Keys that may follow `NAME=HINT`. Curves and lists contain commas: `scale=0:1.0,8:0.2`, `frames=0,8,15`.
const KEYS: [Key; 16] = [
    Key::new("model", Kind::Path),
    Key::new("scale", Kind::List(|part| part.contains(':'))),
    Key::new("start", Kind::Text),
    Key::new("end", Kind::Text),
    Key::new("fit", Kind::Text),
    Key::new("frames", Kind::List(|part| part.trim().parse::<usize>().is_ok())),
    Key::new("from", Kind::Text),
    Key::new("every", Kind::Text),
    Key::new("guess", Kind::Word),
    Key::new("preprocess", Kind::Either),
    Key::new("low", Kind::Text),
    Key::new("high", Kind::Text),
    Key::new("threshold", Kind::Text),
    Key::new("sigma", Kind::Text),
    Key::new("factor", Kind::Text),
    Key::new("per-picture", Kind::Word),
];

/// A network and the hint that it has the clip follow. The network's file tells whether it is a ControlNet, a
/// SparseCtrl network or a T2I-Adapter.
///
/// On the command line `NAME=HINT,model=FILE` and perhaps `,scale=0.8`, `,start=0`, `,end=0.6`, `,fit=crop`,
/// `,frames=0,8`, `,from=0`, `,every=2`, `,guess` and `,preprocess` with its parameters. Paths with commas are in double
/// quotes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// The name used in messages, unique in a request.
    pub name: String,
    /// An image for all frames (for SparseCtrl, of frame 0); or an animation or a folder of images, one for each
    /// frame (for SparseCtrl, for each of `frames`).
    pub hint: String,
    /// The hint's SHA-256; in a clip always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The network's file or folder. Several controls may share one.
    pub model: String,
    /// Strength: a number, or a curve over the frames such as `0:1.0,8:0.2`.
    #[serde(default)]
    pub scale: Strength,
    /// Start of the part of the run in which it is active, from 0.
    #[serde(default)]
    pub start: f64,
    /// The end of that part; 1 is the end of the run.
    #[serde(default = "one")]
    pub end: f64,
    /// The frames, from 0, that the images are for: SparseCtrl only.
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
    /// Resizing of hints of another size than the clip's.
    #[serde(default)]
    pub fit: Fit,
    /// What makes the hint of pictures that are none yet, after they are resized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocessor>,
}

impl Control {
    /// Reads `NAME=HINT,model=FILE,...`; a path that is `there` may have commas without quotes.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] with the grammar.
    pub fn parse(text: &str, there: &dyn Fn(&str) -> bool) -> Result<Self> {
        let wrong = |reason: String| Error::request(FIELD, reason).with_hint(GRAMMAR);
        let items = items(text, First::Named, &KEYS, there).map_err(wrong)?;
        let mut items = items.into_iter();
        let (name, hint) = items.next().map(|item| (item.key, item.value)).unwrap_or_default();
        if name.is_empty() || hint.is_empty() {
            return Err(wrong(format!("`{text}` does not begin with NAME=HINT")));
        }
        let has = |word: &str| items.as_slice().iter().any(|item| item.key == word);
        let (guess, per_picture) = (has("guess"), has("per-picture"));
        let mut values: BTreeMap<String, String> =
            items.map(|item| (item.key, item.value)).collect();
        let kind = values.remove("preprocess");
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
        let settings = Settings::from_names(|key| match take(key) {
            None => Ok(None),
            Some(value) => number(Some(value), 0.0).map(Some),
        })?;
        let settings = Settings { per_picture, ..settings };
        let preprocess = match kind {
            // The control's own name says which.
            Some(kind) if kind.is_empty() => Some(Preprocessor::new(&name, &settings)?),
            Some(kind) => Some(Preprocessor::new(&kind, &settings)?),
            None => None,
        };
        if let (None, Some(key)) = (preprocess, settings.given()) {
            return Err(wrong(format!("`{key}` in `{text}` is for `preprocess`")));
        }
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
            preprocess,
        })
    }
}

grammar::from_text!(Control);

impl Control {
    /// The part of the run in which it works.
    pub(crate) fn range(&self) -> Result<ActiveRange> {
        ActiveRange::new(self.start, self.end)
            .map_err(|error| Error::request(FIELD, format!("`{}`: {error}", self.name)))
    }
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
        if let Some(preprocess) = &control.preprocess {
            preprocess.validate()?;
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
            ("canny=b,model=c,low=50", "`low` in"),
            ("canny=b,model=c,preprocess,sigma=2", "`canny` has no parameter `sigma`"),
            ("canny=b,model=c,preprocess,low=x", "not a number"),
            ("a=b,model=c,preprocess", "`a` is none of `canny`"),
            ("midas=b,model=c,preprocess", "`midas` needs a network"),
            ("depth=b,model=c,per-picture", "`per-picture` in"),
            ("gray=b,model=c,preprocess,per-picture", "no parameter `per-picture`"),
            ("a=b,model=c,preprocess=mlsd", "`mlsd` needs a network"),
        ] {
            let error = text.parse::<Control>().unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert_eq!(error.kind().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn a_preprocessor_is_that_of_the_name_or_another() {
        let made = |text: &str| text.parse::<Control>().unwrap().preprocess;
        let canny = Preprocessor::Canny { low: 100.0, high: 200.0 };
        assert_eq!(made("canny=b,model=c"), None);
        assert_eq!(made("canny=b,model=c,preprocess"), Some(canny));
        assert_eq!(made("canny=b,preprocess,model=c"), Some(canny));
        assert_eq!(made("x=b,model=c,preprocess=canny,end=0.5"), Some(canny));
        let depth = |per_picture| Some(Preprocessor::Depth { per_picture });
        assert_eq!(made("depth=b,model=c,preprocess"), depth(false));
        assert_eq!(made("depth=b,model=c,per-picture,preprocess"), depth(true));
        let wide = made("canny=b,model=c,low=20,preprocess,high=60.5");
        assert_eq!(wide, Some(Preprocessor::Canny { low: 20.0, high: 60.5 }));
        let control: Control = "a=b,model=c,preprocess=tile,factor=4".parse().unwrap();
        let json = serde_json::to_string(&control).unwrap();
        assert!(json.contains(r#""preprocess":{"kind":"tile","factor":4.0}"#), "{json}");
        assert_eq!(serde_json::from_str::<Control>(&json).unwrap(), control);
        let wrong = json.replace("4.0", "400");
        let control: Control = serde_json::from_str(&wrong).unwrap();
        assert!(validate(&[control], 4).unwrap_err().to_string().contains("`factor` must be"));
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
