//! `animatelcm replay`: a clip's own metadata, run again.

use std::path::{Path, PathBuf};

use super::flags::ReplayArgs;
use super::generate::{Answer, Requested, make};
use crate::job::{self, Known, Names, Target};
use crate::output::{Existing, metadata};
use crate::request::Job;
use crate::{Error, Result, Stop};

pub(super) fn run(args: &ReplayArgs, stop: &Stop) -> Result<()> {
    let job = job(&args.clip)?;
    let names = Names::new(true)?.with_folders(&args.models_dir)?;
    let known =
        if args.trust_paths { Known::default() } else { job::check_trust(&job, &names, stop)? };
    let output = match &args.output {
        Some(path) => path.clone(),
        None => beside(&args.clip),
    };
    let target = Target {
        path: &output,
        existing: if args.overwrite { Existing::Replace } else { Existing::Refuse },
        has_metadata: true,
        tensors: None,
    };
    let answer = Answer::of(&args.reporting, false);
    let asked = Requested { job, notes: vec![], known };
    make(asked, &names, None, &target, (&args.reporting, answer), stop)?;
    Ok(())
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
