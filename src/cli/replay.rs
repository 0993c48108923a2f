//! `animatelcm replay`: a clip's own metadata, run again.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::flags::ReplayArgs;
use super::generate::watched;
use super::progress::Progress;
use super::terminal::line;
use super::{print, to_json};
use crate::job::{self, Known, Likeness, Names, Target};
use crate::media::read::{Selection, frames};
use crate::output::{Existing, metadata};
use crate::pipeline::Event;
use crate::request::{Job, Program};
use crate::{Error, Result, Stop};

pub(super) fn run(args: &ReplayArgs, stop: &Stop) -> Result<()> {
    let job = job(&args.clip)?;
    let names = Names::new(true)?.with_folders(&args.models_dir)?;
    let known =
        if args.trust_paths { Known::default() } else { job::check_trust(&job, &names, stop)? };
    let frame = frame(&args.clip, &job, stop);
    let program = job.program.clone();
    if args.check {
        let folder = tempfile::tempdir().map_err(Error::file(std::env::temp_dir()))?;
        let name = args.clip.file_name().unwrap_or_default();
        let made = Made::new(args, &folder.path().join(name), frame);
        made.make((job, known), &names, args, stop)?;
        let likeness = made.compare(&args.clip, frame, stop)?;
        return told_check(args, likeness, program.as_ref());
    }
    let output = match &args.output {
        Some(path) => path.clone(),
        None => beside(&args.clip),
    };
    let made = Made { path: output };
    let done = made.make((job, known), &names, args, stop)?;
    // The clip is made; that it cannot be compared is no failure.
    let likeness = made.compare(&args.clip, frame, stop).ok();
    let words = likeness.map(|likeness| words(likeness, program.as_ref()));
    if args.reporting.json {
        let mut value = json!(Event::Done(done));
        value["likeness"] = json!(likeness);
        return print(&to_json(&value)?);
    }
    if let (Some(words), false) = (words, args.reporting.quiet) {
        line(&format!("{}: {words}", args.clip.display()));
    }
    print(&format!("{}\n", made.path.display()))
}

/// A clip that is made again.
struct Made {
    path: PathBuf,
}

impl Made {
    /// At a path, or as a series of frames where the old clip is one of these.
    fn new(args: &ReplayArgs, path: &Path, frame: Option<usize>) -> Self {
        let name = args.clip.file_name().unwrap_or_default().to_string_lossy();
        match (frame, number_in(&name)) {
            (Some(_), Some((at, digits))) => {
                let (before, after) = (&name[..at], &name[at + digits..]);
                let name = format!("{}%0{digits}d{after}", before.replace('%', "_"));
                Self { path: path.with_file_name(name) }
            }
            _ => Self { path: path.to_path_buf() },
        }
    }

    fn make(
        &self,
        job: (Job, Known),
        names: &Names,
        args: &ReplayArgs,
        stop: &Stop,
    ) -> Result<crate::pipeline::Done> {
        let target = Target {
            path: &self.path,
            existing: if args.overwrite { Existing::Replace } else { Existing::Refuse },
            has_metadata: true,
            tensors: None,
            preview: None,
        };
        watched(job, names, None, &target, &mut Progress::new(&args.reporting, stop))
    }

    fn compare(&self, clip: &Path, frame: Option<usize>, stop: &Stop) -> Result<Likeness> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let path = match (frame, pattern_in(&name)) {
            (Some(frame), Some((from, to, digits))) => {
                let name = format!("{}{frame:0digits$}{}", &name[..from], &name[to..]);
                self.path.with_file_name(name)
            }
            _ => self.path.clone(),
        };
        job::compare(clip, &path, frame, stop)
    }
}

/// Answers `--check`.
fn told_check(args: &ReplayArgs, likeness: Likeness, program: Option<&Program>) -> Result<()> {
    let is_same = likeness == Likeness::Identical;
    if args.reporting.json {
        print(&to_json(&json!({ "clip": args.clip.to_string_lossy(), "likeness": likeness }))?)?;
    } else if is_same {
        print(&format!("{}: {likeness}\n", args.clip.display()))?;
    }
    if is_same {
        return Ok(());
    }
    let reason = format!("made again it {}", words(likeness, program));
    let error = Error::Refused { name: args.clip.display().to_string(), reason };
    Err(error.with_hint("bytes are the same for the same program on the same kind of processor"))
}

/// The likeness, and who made the clip if it is not identical.
fn words(likeness: Likeness, program: Option<&Program>) -> String {
    let text = match likeness {
        Likeness::SameFrames => format!("has {likeness}"),
        _ => likeness.to_string(),
    };
    match program {
        Some(Program { name, version, device }) if likeness != Likeness::Identical => {
            format!("{text} (it was made by {name} {version} on {device})")
        }
        _ => text,
    }
}

/// The number of the frame that a clip is, where it is one of a series.
fn frame(clip: &Path, job: &Job, stop: &Stop) -> Option<usize> {
    let name = clip.file_name()?.to_string_lossy();
    let (at, digits) = number_in(&name)?;
    let is_png = clip.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    if !is_png || job.request.frames() < 2 {
        return None;
    }
    let two = Selection { count: Some(2), ..Selection::default() };
    let is_single = frames("clip", clip, two, stop).is_ok_and(|found| found.images.len() == 1);
    is_single.then(|| name[at..at + digits].parse().ok()).flatten()
}

/// Start and length of the last digits of a file's name, its ending aside.
fn number_in(name: &str) -> Option<(usize, usize)> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let end = stem.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = stem[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| at + stem[at..].chars().next().map_or(1, char::len_utf8));
    Some((start, end - start))
}

/// Start, end and digits of `%03d` in a name.
fn pattern_in(name: &str) -> Option<(usize, usize, usize)> {
    let from = name.find('%')?;
    let to = from + name[from..].find('d')? + 1;
    let digits = name.get(from + 1..to - 1)?.trim_start_matches('0').parse().unwrap_or(1);
    Some((from, to, digits))
}

/// The job that a clip was made by.
fn job(clip: &Path) -> Result<Job> {
    if !clip.is_file() {
        return Err(Error::request("clip", format!("{} is not a file", clip.display())));
    }
    let found = metadata::read(clip)?.filter(|metadata| !metadata.request_json.is_empty());
    let Some(found) = found else {
        let reason = format!("{} has no request in it", clip.display());
        return Err(Error::request("clip", reason));
    };
    Job::from_json(&found.request_json)
}

/// `clip.gif` becomes `clip-replay.gif`.
fn beside(clip: &Path) -> PathBuf {
    let mut name = clip.file_stem().unwrap_or_default().to_os_string();
    name.push("-replay.");
    name.push(clip.extension().unwrap_or_default());
    clip.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_patterns_are_found_in_names() {
        assert_eq!(number_in("f_001.png"), Some((2, 3)));
        assert_eq!(number_in("é12b7.png"), Some((5, 1)));
        assert_eq!(number_in("7.png"), Some((0, 1)));
        assert_eq!(number_in("clip.png"), None);
        assert_eq!(pattern_in("f_%03d.png"), Some((2, 6, 3)));
        assert_eq!(pattern_in("f_%d.png"), Some((2, 4, 1)));
        assert_eq!(pattern_in("clip.png"), None);
    }

    #[test]
    fn what_differs_is_told_with_who_made_it() {
        let program =
            Program { name: "animatelcm".into(), version: "0.0.1".into(), device: "cuda".into() };
        assert_eq!(words(Likeness::Identical, Some(&program)), "identical");
        let text = words(Likeness::Differs { pixels: 0.018, most: 15 }, Some(&program));
        assert_eq!(
            text,
            "differs in 1.80 % of the pixels, by at most 15 of 255 (it was made by animatelcm 0.0.1 on cuda)"
        );
    }
}
