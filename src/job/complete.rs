//! Jobs as their clips carry them, known before any clip is made.

use std::collections::BTreeSet;

use super::open::open;
use super::record::{program, records};
use super::resolve::{Names, networks};
use super::tensors;
use super::trust::Known;
use crate::output::ClipInfo;
use crate::pipeline::{Inputs, Pipeline, Prepared, Residency};
use crate::request::{FileRecord, Job};
use crate::{Error, Result, Stop};

/// Reads what a job needs beside weights, and writes into it which files that are.
pub(super) fn inputs(job: &mut Job, names: &Names, stop: &Stop) -> Result<Inputs> {
    let place = |field, name: &str| names.input(field, name);
    let mut inputs = Inputs::read_by(&job.request, &place, stop)?;
    inputs.identify(&mut job.request)?;
    tensors::read(job, &mut inputs, stop)?;
    Ok(inputs)
}

/// Size, length and rate of the file that a prepared request becomes.
pub(super) fn clip_info(prepared: &Prepared) -> ClipInfo {
    let zoom = prepared.request.output.zoom;
    ClipInfo {
        width: (prepared.width * zoom) as u32,
        height: (prepared.height * zoom) as u32,
        frames: prepared.request.output.looping.frames(prepared.frames),
        fps: prepared.request.output.fps,
    }
}

/// The weights of a job, device and dtypes as text. Jobs that have the same take all networks from a
/// [`Library`](crate::Library) after the first.
///
/// # Errors
///
/// None that a job which was read can have.
pub fn networks_of(job: &Job) -> Result<String> {
    let adapters: BTreeSet<&str> =
        job.request.ip_adapters.iter().map(|adapter| adapter.model.as_str()).collect();
    serde_json::to_string(&(&job.models, networks(&job.request), adapters))
        .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })
}

/// Completes jobs by what the models say and by the hashes of all files. Networks are opened, not loaded; those of
/// consecutive jobs with the same weights once.
#[derive(Debug)]
pub struct Completion<'a> {
    names: &'a Names,
    known: Known,
    last: Option<Open>,
}

/// The networks of the last job.
#[derive(Debug)]
struct Open {
    networks: String,
    pipeline: Pipeline,
    weights: Vec<FileRecord>,
}

impl<'a> Completion<'a> {
    /// Nothing is opened yet.
    pub fn new(names: &'a Names) -> Self {
        Self { names, known: Known::default(), last: None }
    }

    /// The job as [`run`](super::run) writes it into its clip, and what the clip will be.
    ///
    /// # Errors
    ///
    /// Those that `run` has before it loads a network.
    pub fn complete(&mut self, mut job: Job, stop: &Stop) -> Result<(Job, ClipInfo)> {
        job.request.validate()?;
        let inputs = inputs(&mut job, self.names, stop)?;
        let networks = networks_of(&job)?;
        let open = match self.last.take().filter(|open| open.networks == networks) {
            Some(open) => open,
            None => {
                let (pipeline, _) = open(&job, self.names, Residency::Sequential, stop)?;
                let weights = records(&pipeline.models().sources(), &mut self.known, stop)?;
                Open { networks, pipeline, weights }
            }
        };
        let open = self.last.insert(open);
        let prepared = open.pipeline.prepare(&job.request, &inputs)?;
        let clip = clip_info(&prepared);
        job.request = prepared.request;
        job.weights.clone_from(&open.weights);
        job.program = Some(program(open.pipeline.device()));
        Ok((job, clip))
    }

    /// The hashes of all weight files so far.
    pub fn known(&self) -> &Known {
        &self.known
    }
}
