//! Training clips and their captions, and the latents of a clip.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;

use super::Compute;
use super::plan::{Data, Plan};
use crate::media::read::{self, Selection};
use crate::media::resize::{Fit, resize};
use crate::media::tensor;
use crate::models::vae::AutoencoderKl;
use crate::procedural::grammar::Part;
use crate::procedural::{Caption, Scene};
use crate::rng::Uniform;
use crate::{Error, Result, Stop};

/// Caption of a clip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// A caption of the procedural grammar, whose parts are known.
    Known(Caption),
    /// Free text.
    Text(String),
}

impl Words {
    /// Caption for one pass; randomly dropped as a whole or in part.
    pub(super) fn draw(&self, random: &mut Uniform, no_caption: f64, no_part: f64) -> String {
        let (whole, part) = (random.unit(), random.unit());
        let which = Part::ALL[random.below(Part::ALL.len())];
        if whole < no_caption {
            return String::new();
        }
        match self {
            Self::Known(caption) => caption.without((part < no_part).then_some(which)),
            Self::Text(text) => text.clone(),
        }
    }

    /// The complete caption.
    pub(super) fn whole(&self) -> String {
        match self {
            Self::Known(caption) => caption.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// Training clips, by index.
#[derive(Debug)]
pub(super) struct Clips {
    side: usize,
    frames: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Procedural { seed: u64, count: usize },
    Folder { stride: usize, clips: Vec<(PathBuf, String)> },
}

impl Clips {
    /// Opens the clips of a plan.
    ///
    /// # Errors
    ///
    /// When a folder cannot be read, or a clip of it has no caption.
    pub(super) fn open(plan: &Plan) -> Result<Self> {
        let kind = match &plan.data {
            Data::Procedural(count) => Kind::Procedural { seed: plan.seed, count: *count },
            Data::Folder(folder) => {
                Kind::Folder { stride: folder.stride, clips: captioned(&folder.path)? }
            }
        };
        Ok(Self { side: plan.side, frames: plan.frames, kind })
    }

    /// Number of clips; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub(super) fn len(&self) -> usize {
        match &self.kind {
            Kind::Procedural { count, .. } => *count,
            Kind::Folder { clips, .. } => clips.len(),
        }
    }

    /// Identity of the clips, used in the cache of latents.
    pub(super) fn fingerprint(&self) -> String {
        let Self { side, frames, .. } = self;
        match &self.kind {
            Kind::Procedural { seed, count } => {
                format!("procedural/1 seed {seed} clips {count} side {side} frames {frames}")
            }
            Kind::Folder { stride, clips } => {
                let names: Vec<String> = clips
                    .iter()
                    .map(|(path, words)| format!("{}:{words}", path.display()))
                    .collect();
                format!("folder {} stride {stride} side {side} frames {frames}", names.join("|"))
            }
        }
    }

    /// Caption of a clip.
    pub(super) fn words(&self, index: usize) -> Words {
        match &self.kind {
            Kind::Procedural { seed, .. } => Words::Known(scene(*seed, index).caption()),
            Kind::Folder { clips, .. } => Words::Text(clips[index % clips.len()].1.clone()),
        }
    }

    /// Frames of a clip, by their indices in `wanted`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or has too few frames.
    pub(super) fn frames(&self, index: usize, wanted: &[usize]) -> Result<Vec<RgbImage>> {
        match &self.kind {
            Kind::Procedural { seed, .. } => {
                let scene = scene(*seed, index);
                Ok(wanted.iter().map(|i| scene.frame(self.side, *i, self.frames)).collect())
            }
            Kind::Folder { stride, clips } => {
                let (path, _) = &clips[index % clips.len()];
                let stop = Stop::default();
                let some = Selection { from: 0, every: *stride, count: Some(self.frames) };
                let read::Frames { images, seen } = read::frames("data", path, some, &stop)?;
                // An image is a clip of identical frames.
                let is_still = seen == 1;
                if images.len() < self.frames && !is_still {
                    let needed = (self.frames - 1) * stride + 1;
                    let reason =
                        format!("{} has {seen} frames, {needed} are needed", path.display());
                    return Err(Error::request("data", reason));
                }
                let side = self.side as u32;
                let frame = |i: &usize| {
                    let at = if is_still { 0 } else { *i };
                    resize(&images[at], side, side, Fit::Crop, &stop)
                };
                wanted.iter().map(frame).collect()
            }
        }
    }

    /// Images `(count, 3, side, side)` in `[-1, 1]`: one frame of each chosen clip.
    ///
    /// # Errors
    ///
    /// As [`frames`](Self::frames).
    pub(super) fn images(&self, chosen: &[(usize, usize)], device: &Device) -> Result<Tensor> {
        let frames: Vec<RgbImage> = chosen
            .par_iter()
            .map(|(clip, frame)| self.frames(*clip, &[*frame]))
            .collect::<Result<Vec<_>>>()?
            .concat();
        Ok(tensor::from_rgb(&frames, device)?.affine(2.0, -1.0)?)
    }

    /// Scaled latents of one clip, `(frames, channels, height, width)`.
    ///
    /// # Errors
    ///
    /// As [`frames`](Self::frames).
    pub(super) fn latents(
        &self,
        index: usize,
        vae: &AutoencoderKl,
        compute: &Compute,
    ) -> Result<Tensor> {
        let all: Vec<usize> = (0..self.frames).collect();
        let frames = self.frames(index, &all)?;
        let images = tensor::from_rgb(&frames, &compute.device)?.affine(2.0, -1.0)?;
        Ok((vae.encode(&images, &compute.stop)?.mean * vae.config().scaling_factor)?)
    }
}

/// Scene of clip `index` in the procedural data set of `seed`.
fn scene(seed: u64, index: usize) -> Scene {
    let mut random = Uniform::part(seed, index as u64);
    let caption = Caption::draw(&mut random);
    Scene::new(caption, random.bits())
}

/// Clips of a folder or of a list, with their captions.
fn captioned(path: &Path) -> Result<Vec<(PathBuf, String)>> {
    let found = match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl") => listed(path, json_line)?,
        Some("csv") => listed(path, csv_line)?,
        _ => beside(path)?,
    };
    if found.is_empty() {
        let reason = format!("{} names no clip with a text", path.display());
        return Err(Error::request("data", reason));
    }
    Ok(found)
}

/// Images, animations and folders of images with a `.txt` of the same name beside them, sorted by name.
fn beside(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let unreadable =
        |e: std::io::Error| Error::request("data", format!("{}: {e}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let text = path.with_extension("txt");
        if path == text || !text.is_file() {
            continue;
        }
        let words = crate::files::read_text(&text)
            .map_err(|e| Error::request("data", format!("{}: {e}", text.display())))?;
        found.push((path, words.trim().to_owned()));
    }
    found.sort();
    Ok(found)
}

/// File and caption of each line of a list; files are relative to the list.
fn listed(
    list: &Path,
    read: fn(&str) -> Option<(String, String)>,
) -> Result<Vec<(PathBuf, String)>> {
    let text = crate::files::read_text(list)
        .map_err(|e| Error::request("data", format!("{}: {e}", list.display())))?;
    let folder = list.parent().unwrap_or(Path::new("."));
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .filter(|(number, line)| !(*number == 0 && line.trim() == "file,text"))
        .map(|(number, line)| match read(line) {
            Some((file, text)) => Ok((folder.join(file), text)),
            None => {
                let at = format!("line {} of {}", number + 1, list.display());
                Err(Error::request("data", format!("{at} is not a file and its text")))
            }
        })
        .collect()
}

/// Parses `{"file": "...", "text": "..."}`.
fn json_line(line: &str) -> Option<(String, String)> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    Some((field("file")?, field("text")?))
}

/// Parses `file,text`; either may be quoted, with quotes inside doubled.
fn csv_line(line: &str) -> Option<(String, String)> {
    let (file, rest) = csv_field(line.trim_end())?;
    let (text, rest) = csv_field(rest.strip_prefix(',')?)?;
    (rest.is_empty() && !file.is_empty()).then_some((file, text))
}

fn csv_field(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut field = String::new();
    let mut rest = quoted;
    loop {
        let (part, after) = rest.split_once('"')?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Some((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_line_by_line() {
        let pair = |file: &str, text: &str| Some((file.to_owned(), text.to_owned()));
        assert_eq!(json_line(r#"{"file":"a.gif","text":"b, c","more":1}"#), pair("a.gif", "b, c"));
        assert_eq!(json_line(r#"{"file":"a.gif"}"#), None);
        assert_eq!(json_line("a.gif"), None);
        assert_eq!(csv_line("a.gif,a cat"), pair("a.gif", "a cat"));
        assert_eq!(csv_line(r#"a.gif,"a ""big"", cat""#), pair("a.gif", "a \"big\", cat"));
        assert_eq!(csv_line("\"a,b.gif\","), pair("a,b.gif", ""));
        for wrong in ["a.gif", "a,b,c", "\"a,b", ",text", "a,\"b\"c"] {
            assert_eq!(csv_line(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn captions_are_left_out_about_as_often_as_asked() {
        let caption: Caption = "a red star moving up on a navy background".parse().unwrap();
        let (known, mut random) = (Words::Known(caption), Uniform::new(3));
        let drawn: Vec<String> = (0..2000).map(|_| known.draw(&mut random, 0.2, 0.5)).collect();
        let empty = drawn.iter().filter(|text| text.is_empty()).count();
        let whole = drawn.iter().filter(|text| **text == known.whole()).count();
        assert!((320..480).contains(&empty) && (720..880).contains(&whole), "{empty} {whole}");
        let text = Words::Text("hello".into());
        assert_eq!(text.draw(&mut random, 0.0, 1.0), "hello");
        assert_eq!(text.draw(&mut random, 1.0, 0.0), "");
    }
}
