//! Manifests to items: every line read and checked, with its seed and its name.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;

use super::entry::Entry;
use super::manifest::{self, Kind, too_many};
use super::name::{self, Template, Values};
use super::{FIELD, MOST_ITEMS};
use crate::files::text_name;
use crate::job::{self, Folders, Names};
use crate::request::{Job, Request};
use crate::{Error, Result, Stop};

/// A clip to be made.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its number among all, from 1.
    pub number: usize,
    /// The line of the manifest that it stands on.
    pub line: usize,
    /// Its own name.
    pub name: Option<String>,
    /// The name of its file, without key and ending.
    pub stem: String,
    /// Its job, whose seed is known.
    pub job: Job,
}

impl Item {
    /// The seed.
    pub fn seed(&self) -> u64 {
        self.job.request.sampling.seed.unwrap_or_default()
    }
}

/// The items of a manifest.
#[derive(Clone, Debug)]
pub struct List {
    /// The manifest's name in messages.
    pub manifest: String,
    /// Its items, in order.
    pub items: Vec<Item>,
}

/// Reads a manifest, or JSON lines from standard input as `-`, and checks all of its items.
///
/// # Errors
///
/// When the manifest cannot be read, or with the lines that are wrong.
pub fn list(
    path: &Path,
    template: &Template,
    (names, folders): (&Names, Folders<'_>),
    stop: &Stop,
) -> Result<List> {
    let kind = Kind::of(path)?;
    let text = manifest::text(path, stop)?;
    let manifest = text_name(path).into_owned();
    let mut reading = Reading {
        folder: path.parent().filter(|_| path.as_os_str() != "-"),
        template,
        names: (names, folders),
        items: vec![],
        count: 0,
        known: Known::default(),
        faults: Faults::default(),
    };
    let read = manifest::entries(kind, &text, &mut |entry| {
        stop.check()?;
        reading.add(entry)
    });
    read.map_err(|error| match error {
        Error::Located { place, error } => error.at(format!("{manifest}: {place}")),
        Error::Cancelled => error,
        error => error.at(manifest.clone()),
    })?;
    reading.faults.first(&manifest)?;
    Ok(List { manifest, items: reading.items })
}

/// State of reading a manifest: items, names and errors so far.
struct Reading<'a> {
    /// The manifest's.
    folder: Option<&'a Path>,
    template: &'a Template,
    names: (&'a Names, Folders<'a>),
    items: Vec<Item>,
    /// Items so far, wrong ones included.
    count: usize,
    known: Known,
    faults: Faults,
}

/// Lines by what may be there once.
#[derive(Default)]
struct Known {
    names: HashMap<String, usize>,
    /// Names of files, with the hash of what is in them.
    files: HashMap<(String, String), usize>,
}

impl Reading<'_> {
    fn add(&mut self, entry: Entry) -> Result<()> {
        let (line, part) = (entry.line, entry.part);
        match entry.read() {
            Ok((job, name, repeat)) => {
                if self.count.checked_add(repeat).is_none_or(|count| count > MOST_ITEMS) {
                    return Err(too_many());
                }
                let first = self.count;
                self.count += repeat;
                if let Err(error) =
                    self.add_all((line, part), job, name.as_deref(), (first, repeat))
                {
                    self.faults.add(line, error);
                }
            }
            Err(error) => {
                self.count += 1;
                self.faults.add(line, error);
            }
        }
        Ok(())
    }

    /// Adds the clips of consecutive seeds that an entry stands for.
    fn add_all(
        &mut self,
        (line, part): (usize, (usize, usize)),
        mut job: Job,
        name: Option<&str>,
        (first, repeat): (usize, usize),
    ) -> Result<()> {
        if let Some(name) = name {
            name::check(name).map_err(|e| Error::request("name", format!("`{name}`: {e}")))?;
        }
        let seed = match job.request.sampling.seed {
            Some(seed) => seed,
            // Of paths as they are written.
            None => derived_seed(&job, first + 1)?,
        };
        if let Some(folder) = self.folder {
            place_below(folder, &mut job);
        }
        job::resolve_prompts(&mut job, self.names.0, self.names.1)?;
        job.request.validate()?;
        let slug = job.request.prompt.slug();
        for i in 0..repeat {
            let number = first + i + 1;
            let mut job = job.clone();
            job.request.sampling.seed = Some(seed.wrapping_add(i as u64));
            let (at, of) = (part.0 * repeat + i, part.1 * repeat);
            let name = name.map(|name| match of {
                1 => name.to_owned(),
                _ => format!("{name}-{}", at + 1),
            });
            let values = Values {
                number,
                seed: seed.wrapping_add(i as u64),
                slug: &slug,
                name: name.as_deref(),
            };
            let stem = self.template.fill(values)?;
            if let Some(name) = &name
                && let Some(other) = self.known.names.insert(name.clone(), line)
            {
                let reason = format!("`{name}` is that of line {other}, too");
                return Err(Error::request("name", reason));
            }
            let file = (stem.clone(), job::hash(&job::json_of(&job)?));
            if let Some(other) = self.known.files.insert(file, line) {
                let reason = format!("is that of line {other}, too, and would have the same file");
                return Err(Error::request(FIELD, format!("the clip {reason}"))
                    .with_hint("`{number}` in --name tells them apart"));
            }
            self.items.push(Item { number, line, name, stem, job });
        }
        Ok(())
    }
}

/// Takes files beside weights from a folder, unless their paths are absolute.
fn place_below(folder: &Path, job: &mut Job) {
    let place = |file: &mut String| *file = folder.join(&*file).to_string_lossy().into_owned();
    let Request { source, controls, ip_adapters, .. } = &mut job.request;
    let video = source.as_ref().and_then(|source| source.video.clone());
    for control in controls {
        // The word for the source's video.
        if video.is_none() || control.hint != "video" {
            place(&mut control.hint);
        }
    }
    if let Some(source) = source {
        for file in [&mut source.image, &mut source.video].into_iter().flatten() {
            place(file);
        }
        if let Some(mask) = &mut source.mask {
            place(&mut mask.file);
        }
    }
    for adapter in ip_adapters {
        for image in adapter.images.iter_mut().chain(&mut adapter.masks) {
            place(&mut image.file);
        }
    }
    if let Some(tensors) = &mut job.tensors_in {
        place(&mut tensors.file);
    }
}

/// Lines that are wrong.
#[derive(Default)]
pub(super) struct Faults {
    first: Option<(usize, Error)>,
    others: Vec<usize>,
}

impl Faults {
    /// Lines that are listed.
    const LISTED: usize = 10;

    pub(super) fn add(&mut self, line: usize, error: Error) {
        match &self.first {
            None => self.first = Some((line, error)),
            Some((first, _)) if *first == line || self.others.last() == Some(&line) => {}
            Some(_) => self.others.push(line),
        }
    }

    /// Fails with the first fault and the lines of the others, if there are any.
    pub(super) fn first(self, manifest: &str) -> Result<()> {
        let Some((line, error)) = self.first else { return Ok(()) };
        let listed: Vec<String> =
            self.others.iter().take(Self::LISTED).map(usize::to_string).collect();
        let also = match (self.others.len(), listed.join(", ")) {
            (0, _) => String::new(),
            (1, line) => format!(" (and line {line})"),
            (count, lines) if count > Self::LISTED => {
                format!(" (and lines {lines} and {} more)", count - Self::LISTED)
            }
            (_, lines) => format!(" (and lines {lines})"),
        };
        Err(error.at(format!("{manifest}: line {line}{also}")))
    }
}

/// The seed of an item that has none: 53 bits, which every reader of JSON keeps, of a hash of the item and its number.
///
/// It depends on nothing but the manifest, so that another run of it, perhaps elsewhere, makes the same clips.
fn derived_seed(job: &Job, number: usize) -> Result<u64> {
    let hash = job::hash(&json!([job::json_of(job)?, number]));
    let first = hash.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    Ok(first.unwrap_or_default() >> 11)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Spec;

    #[test]
    fn a_seed_follows_from_the_item_and_its_number() {
        let mut job = Job::new(Spec::default(), Request::new("a cat"));
        let (one, two) = (derived_seed(&job, 1).unwrap(), derived_seed(&job, 2).unwrap());
        assert!(one != two && one < 1 << 53 && two < 1 << 53);
        assert_eq!(derived_seed(&job, 1).unwrap(), one);
        job.request.prompt.text.push('s');
        assert_ne!(derived_seed(&job, 1).unwrap(), one);
    }
}
