//! `animatelcm inspect`: what a file or folder is.
//!
//! The contents decide, not the name. A clip shows the request that it was made by, weights show what they are, as
//! far as the loaders can tell; what no loader accepts is still named, with the reason why it cannot be used.

mod clip;
mod header;
mod media;
mod weights;

use std::io::Read;
use std::path::Path;

use self::media::Seen;
use super::flags::InspectArgs;
use super::{print, to_json};
use crate::job::{self, Requests};
use crate::output::{Format, metadata};
use crate::weights::{Archive, Source};
use crate::{Error, Result, Stop, files};

pub(super) fn run(args: &InspectArgs, stop: &Stop) -> Result<()> {
    let path = args.file.as_path();
    if path.is_dir() {
        return print(&weights::folder(path, args.json, stop)?);
    }
    let source = Source::from(path.to_path_buf());
    match Archive::open(&source) {
        Ok(archive) => print(&weights::file(&archive, args.json, stop)?),
        Err(no_weights) if path.is_file() => print(&other(path, no_weights, args.json, stop)?),
        Err(error) => Err(error),
    }
}

/// Describes a file without weights: a clip, an image, a request, a plan; `no_weights` says why it has none.
fn other(path: &Path, no_weights: Error, as_json: bool, stop: &Stop) -> Result<String> {
    match metadata::read(path) {
        Ok(Some(found)) if !found.request_json.is_empty() => {
            return clip::show(path, &found, None, None, as_json);
        }
        // Without a text a JPEG is an image like any other.
        Ok(None) if begins_with(path, b"\xff\xd8\xff") => {}
        Ok(found) => {
            let seen = Seen::of(path, stop).ok();
            stop.check()?;
            let found = found.unwrap_or_default();
            // Only PNGs carry graphs of ComfyUI.
            let may_have = !found.parameters.is_empty() || begins_with(path, b"\x89PNG\r\n\x1a\n");
            let foreign = may_have.then(|| job::import(path, false, stop));
            return clip::show(path, &found, seen.as_ref(), foreign, as_json);
        }
        Err(no_clip) if claims_to_be_a_clip(path) => return Err(no_clip),
        Err(_) => {}
    }
    if let Ok(seen) = Seen::of(path, stop) {
        return if as_json { to_json(&seen) } else { Ok(format!("{}: {seen}\n", path.display())) };
    }
    if let Some(kind) = plan(path) {
        return about(path, &kind, as_json);
    }
    match job::requests(path, true, stop) {
        Ok(Requests::One(read)) => clip::request(path, &read.job, as_json),
        Ok(Requests::Many(_)) => about(path, "requests, made one after the other", as_json),
        Err(_) if no_weights.hint().is_some() => Err(no_weights),
        Err(_) => Err(no_weights
            .with_hint("it is no weights, image, video or request that this program reads")),
    }
}

fn begins_with<const N: usize>(path: &Path, magic: &[u8; N]) -> bool {
    let mut head = [0; N];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head == *magic
}

/// A description in words alone.
fn about(path: &Path, kind: &str, as_json: bool) -> Result<String> {
    if as_json {
        return to_json(&serde_json::json!({ "kind": kind }));
    }
    Ok(format!("{}: {kind}\n", path.display()))
}

/// What a TOML file is for.
fn plan(path: &Path) -> Option<String> {
    if path.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("toml")) {
        return None;
    }
    let text = files::read_text(path).ok()?;
    #[cfg(feature = "hub")]
    if let Ok(entry) = crate::hub::manifest::Entry::parse(&text, path) {
        return Some(format!("a manifest of the model `{}`, for `models pull`", entry.name()));
    }
    #[cfg(feature = "train")]
    if crate::train::Plan::from_toml(&path.display().to_string(), &text).is_ok() {
        return Some("a plan for `train --config`".to_owned());
    }
    let _ = text;
    None
}

/// Returns whether a file's name is that of an output of this program.
fn claims_to_be_a_clip(path: &Path) -> bool {
    path != Path::new("-") && Format::from_path(path).is_ok()
}

/// Lines of a label and its value, the values under each other; further lines of a value are indented.
#[derive(Debug, Default)]
struct Table(String);

impl Table {
    fn row(&mut self, label: &str, value: impl std::fmt::Display) {
        let value = value.to_string();
        let mut lines = value.lines();
        let first = lines.next().unwrap_or_default();
        self.0.push_str(format!("  {label:<11} {first}").trim_end());
        for line in lines {
            self.0.push_str(format!("\n  {:<11} {line}", "").trim_end());
        }
        self.0.push('\n');
    }

    /// A row that is left out when there is nothing to say.
    fn row_if(&mut self, label: &str, value: &str) {
        if !value.is_empty() {
            self.row(label, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_lines_stand_under_the_first() {
        let mut table = Table::default();
        table.row("a", "one\ntwo");
        table.row_if("b", "");
        assert_eq!(table.0, "  a           one\n              two\n");
    }
}
