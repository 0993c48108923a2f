//! What a run of a shard has to do: its items completed, named, and in the order of their weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::list::{Faults, Item, List};
use super::name::file_name;
use super::report;
use super::shard::Shard;
use crate::job::{self, Completion, Known, Names};
use crate::output::{Format, metadata};
use crate::request::Job;
use crate::{Error, Result, Stop, files};

/// Where clips go.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The folder of clips and reports.
    pub folder: &'a Path,
    /// The ending of the clips' names.
    pub ending: &'a str,
    /// The part of the manifest.
    pub shard: Shard,
}

/// An item whose clip has a name.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The item; its job is completed, with the hashes of all files.
    pub item: Item,
    /// The key.
    pub key: String,
    /// The clip's file.
    pub path: PathBuf,
    /// What is there now.
    pub state: State,
}

/// What lies where a clip goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Missing,
    /// The clip; its SHA-256, if it was computed.
    There(Option<String>),
    /// Another file.
    Other,
}

/// What a run has to do.
#[derive(Debug)]
pub struct Plan {
    /// The items of the shard in the order of their weights.
    pub items: Vec<Planned>,
    /// Items of the manifest.
    pub total: usize,
    pub(super) folder: PathBuf,
    pub(super) shard: Shard,
    pub(super) known: Known,
    format: Format,
}

impl Plan {
    /// Opens the models of all items of a shard, without loading any network, and looks which clips are there.
    ///
    /// # Errors
    ///
    /// When an item cannot be made; it is named by its line.
    pub fn new(list: List, names: &Names, settings: Settings<'_>, stop: &Stop) -> Result<Self> {
        let Settings { folder, ending, shard } = settings;
        let format = format_of(ending)?;
        let total = list.items.len();
        let own = list.items.into_iter().filter(|item| shard.holds(item.number));
        let hashes = report::hashes(folder);
        let mut completion = Completion::new(names);
        let (mut items, mut faults) = (Vec::new(), Faults::default());
        let mut files: HashMap<PathBuf, usize> = HashMap::new();
        for item in by_weights(own)? {
            stop.check()?;
            let Item { number, line, name, stem, job } = item;
            let completed = completion.complete(job, stop).and_then(|(job, clip)| {
                format.check_clip(&clip)?;
                let key = job::key(&job, format)?;
                let path = folder.join(file_name(&stem, &key, ending));
                if let Some(other) = files.insert(path.clone(), number) {
                    let reason = format!("is that of item {other}, too: {}", path.display());
                    return Err(Error::request("name", reason));
                }
                let state = state(&path, &key, format, &hashes, stop)?;
                Ok(Planned { item: Item { number, line, name, stem, job }, key, path, state })
            });
            match completed {
                Ok(planned) => items.push(planned),
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => faults.add(line, error),
            }
        }
        faults.first(&list.manifest)?;
        let (folder, known) = (folder.to_path_buf(), completion.known().clone());
        Ok(Self { items, total, folder, shard, known, format })
    }

    /// What lies where an item goes now, where nothing was before.
    pub(super) fn state(&self, planned: &Planned, stop: &Stop) -> Result<State> {
        match planned.state {
            State::Missing if planned.path.exists() => {
                let hashes = report::hashes(&self.folder);
                state(&planned.path, &planned.key, self.format, &hashes, stop)
            }
            ref known => Ok(known.clone()),
        }
    }
}

/// The format of an ending.
fn format_of(ending: &str) -> Result<Format> {
    const KNOWN: [&str; 6] = ["gif", "webp", "png", "apng", "mp4", "y4m"];
    if !KNOWN.contains(&ending) {
        let reason = format!("`{ending}` is none of {}", KNOWN.join(", "));
        return Err(Error::request("format", reason));
    }
    let format = Format::from_path(Path::new(&format!("x.{ending}")))?;
    if format.is_available() { Ok(format) } else { Err(Error::Feature { feature: format.name() }) }
}

/// Items with those that have the same weights one after the other, in the order in which the weights come first.
fn by_weights(items: impl Iterator<Item = Item>) -> Result<impl Iterator<Item = Item>> {
    let (mut places, mut groups) = (HashMap::new(), Vec::<Vec<Item>>::new());
    for item in items {
        let place = *places.entry(job::networks_of(&item.job)?).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(item),
            None => groups.push(vec![item]),
        }
    }
    Ok(groups.into_iter().flatten())
}

/// What lies at a path: the clip says itself of what key it is, or the report by its hash.
fn state(
    path: &Path,
    wanted: &str,
    format: Format,
    hashes: &HashMap<(String, String), String>,
    stop: &Stop,
) -> Result<State> {
    if !path.exists() {
        return Ok(State::Missing);
    }
    let said = metadata::read(path).ok().flatten();
    let job = said.and_then(|said| Job::from_json(&said.request_json).ok());
    if job.is_some_and(|job| job::key(&job, format).is_ok_and(|key| key == wanted)) {
        return Ok(State::There(None));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(hash) = hashes.get(&(name, wanted.to_owned()))
        && path.is_file()
        && files::sha256(path, |_| Ok(stop.check()?))? == *hash
    {
        return Ok(State::There(Some(hash.clone())));
    }
    Ok(State::Other)
}
