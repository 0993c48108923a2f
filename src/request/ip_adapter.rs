//! IP-Adapters with their images.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::grammar::{self, First, Item, Key, Kind, items};
use super::{FileRecord, one};
use crate::adapters::{ActiveRange, Strength};
use crate::{Error, Result};

/// The name of the option and of errors about it.
const FIELD: &str = "ip-adapter";

/// The form of the option.
const GRAMMAR: &str = "IMAGE,model=FILE[,scale=0.6][,start=0][,end=1][,image=MORE][,mask=IMAGE][,per-frame]\
                       [,name=NAME]; a path with commas in double quotes: \"a, b.png\"";

/// Keys that may follow the first image. A curve contains commas: `scale=0:1.0,8:0.2`.
const KEYS: [Key; 8] = [
    Key::repeated("image", Kind::Path),
    Key::repeated("mask", Kind::Path),
    Key::new("model", Kind::Path),
    Key::new("name", Kind::Text),
    Key::new("scale", Kind::List(|part| part.contains(':'))),
    Key::new("start", Kind::Text),
    Key::new("end", Kind::Text),
    Key::new("per-frame", Kind::Word),
];

/// An IP-Adapter and the images that it has the clip resemble.
///
/// On the command line `IMAGE,model=FILE` and perhaps `,scale=0.6`, `,start=0`, `,end=1`, `,image=MORE`, `,mask=IMAGE`,
/// `,per-frame` and `,name=NAME`; `image` and `mask` may be repeated. Paths with commas are in double quotes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpAdapter {
    /// The name used in messages; the first image if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Images, animations and folders of images. In a clip their SHA-256 is always there.
    pub images: Vec<FileRecord>,
    /// The IP-Adapter's file. Several entries may share one.
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
    /// Masks of the regions where the images apply, one for each: white where it does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masks: Vec<FileRecord>,
    /// Whether every frame has an image of its own.
    #[serde(default)]
    pub per_frame: bool,
}

impl IpAdapter {
    /// Reads `IMAGE,model=FILE,...`; a path that is `there` may have commas without quotes.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] with the grammar.
    pub fn parse(text: &str, there: &dyn Fn(&str) -> bool) -> Result<Self> {
        let wrong = |reason: String| Error::request(FIELD, reason).with_hint(GRAMMAR);
        let file = |value: &str| FileRecord { file: value.to_owned(), sha256: None };
        let items = items(text, First::Path("image"), &KEYS, there).map_err(wrong)?;
        let mut adapter = Self {
            name: None,
            images: vec![],
            model: String::new(),
            scale: Strength::default(),
            start: 0.0,
            end: 1.0,
            masks: vec![],
            per_frame: false,
        };
        let first = items.first().map(|item| item.value.clone()).unwrap_or_default();
        for (i, Item { key, value }) in items.into_iter().enumerate() {
            let number = || {
                let wrong = |_| wrong(format!("`{key}={value}` in `{text}` is not a number"));
                value.parse::<f64>().map_err(wrong)
            };
            if value.is_empty() && i > 0 && key != "per-frame" {
                return Err(wrong(format!("`{key}` in `{text}` has no value")));
            }
            match key.as_str() {
                "image" => adapter.images.push(file(&value)),
                "mask" => adapter.masks.push(file(&value)),
                "model" => adapter.model = value,
                "name" => adapter.name = Some(value),
                "scale" => adapter.scale = value.parse()?,
                "start" => adapter.start = number()?,
                "end" => adapter.end = number()?,
                _ => adapter.per_frame = true,
            }
        }
        if first.is_empty() {
            return Err(wrong(format!("`{text}` does not begin with an image")));
        }
        if adapter.model.is_empty() {
            return Err(wrong(format!("`{first}` has no model")));
        }
        Ok(adapter)
    }
}

grammar::from_text!(IpAdapter);

impl IpAdapter {
    /// The name used in messages.
    pub fn label(&self) -> &str {
        match (&self.name, self.images.first()) {
            (Some(name), _) => name,
            (None, Some(image)) => &image.file,
            (None, None) => &self.model,
        }
    }

    /// The part of the run in which it is active.
    pub(crate) fn range(&self) -> Result<ActiveRange> {
        ActiveRange::new(self.start, self.end).map_err(|error| self.wrong(error))
    }

    pub(crate) fn wrong(&self, reason: impl std::fmt::Display) -> Error {
        Error::request(FIELD, format!("`{}`: {reason}", self.label()))
    }
}

/// Checks what can be checked without a model.
pub(super) fn validate(adapters: &[IpAdapter]) -> Result<()> {
    let mut names = HashSet::new();
    for adapter in adapters {
        adapter.range()?;
        if adapter.images.is_empty() {
            return Err(adapter.wrong("there is no image"));
        }
        if adapter.per_frame && !adapter.masks.is_empty() {
            return Err(adapter.wrong("images of frames have no masks"));
        }
        if adapter.name.as_ref().is_some_and(|name| !names.insert(name)) {
            return Err(Error::request(FIELD, format!("two are called `{}`", adapter.label())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> IpAdapter {
        text.parse().unwrap()
    }

    fn files(records: &[FileRecord]) -> Vec<&str> {
        records.iter().map(|record| record.file.as_str()).collect()
    }

    #[test]
    fn a_flag_says_which_images_count_and_how() {
        let adapter = parsed("a=b.png,model=c.safetensors");
        assert_eq!(files(&adapter.images), ["a=b.png"]);
        assert_eq!((adapter.label(), adapter.model.as_str()), ("a=b.png", "c.safetensors"));
        assert_eq!(adapter.scale, Strength::constant(1.0));
        assert_eq!((adapter.start, adapter.end, adapter.per_frame), (0.0, 1.0, false));

        let text = "image=a.png,mask=1.png,scale=0:1.0,8:0.2,image=b.png,mask=2.png,end=0.6,\
                    model=C:\\m,start=0.1,name=hat";
        let adapter = parsed(text);
        assert_eq!(files(&adapter.images), ["a.png", "b.png"]);
        assert_eq!(files(&adapter.masks), ["1.png", "2.png"]);
        assert_eq!(adapter.scale, "0:1,8:0.2".parse().unwrap());
        assert_eq!((adapter.start, adapter.end, adapter.label()), (0.1, 0.6, "hat"));
        assert_eq!(adapter.model, "C:\\m");
        let json = serde_json::to_string(&adapter).unwrap();
        assert_eq!(serde_json::from_str::<IpAdapter>(&json).unwrap(), adapter);
        assert!(parsed("many/,per-frame,model=m").per_frame);
        let short = r#"{"images":[{"file":"a.png"}],"model":"m"}"#;
        assert_eq!(serde_json::from_str::<IpAdapter>(short).unwrap(), parsed("a.png,model=m"));
    }

    #[test]
    fn a_mistyped_flag_is_refused_with_its_grammar() {
        for (text, part) in [
            ("", "begin with an image"),
            (",model=b", "begin with an image"),
            ("a.png", "has no model"),
            ("a.png,model=", "`model`"),
            ("a.png,b.png,model=c", "`b.png`"),
            ("a.png,model=c,weight=1", "`weight`"),
            ("a.png,model=c,model=d", "two values for `model`"),
            ("a.png,model=c,per-frame,per-frame", "two values"),
            ("a.png,model=c,end=x", "not a number"),
            ("a.png,model=c,scale=x", "neither"),
            ("a.png,model=c,8:0.2", "`8:0.2`"),
        ] {
            let error = text.parse::<IpAdapter>().unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert_eq!(error.kind().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn names_ranges_and_masks_are_checked() {
        let wrong = |adapters: &[IpAdapter]| validate(adapters).unwrap_err().to_string();
        let named = parsed("a.png,model=m,name=x");
        assert!(wrong(&[named.clone(), named]).contains("two are called `x`"));
        assert!(wrong(&[parsed("a.png,model=m,start=0.7,end=0.3")]).contains("`a.png`"));
        assert!(wrong(&[parsed("a,model=m,mask=b,per-frame")]).contains("no masks"));
        let none = IpAdapter { images: vec![], ..parsed("a.png,model=m") };
        assert!(wrong(&[none]).contains("no image"));
        // One file may serve twice, and so may one image.
        let twice = [parsed("a.png,model=m,scale=0.2"), parsed("a.png,model=m,end=0.5")];
        assert!(validate(&twice).is_ok());
    }
}
