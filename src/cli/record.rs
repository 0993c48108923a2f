//! What a finished clip says about itself, and the check of it when the clip is made again.

use std::fmt::Write;
use std::path::Path;
use std::thread::JoinHandle;

use candle_core::Device;

use crate::output::Metadata;
use crate::pipeline::request::{FileRecord, Job, Program};
use crate::sampler::SamplerKind;
use crate::weights::{Source, sha256};
use crate::{Error, Result};

/// A device's kind.
pub(super) fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// This program.
pub(super) fn program(device: &Device) -> Program {
    Program {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: device_name(device).into(),
    }
}

/// The texts that travel in the file.
pub(super) fn metadata(job: &Job) -> Result<Metadata> {
    let json = serde_json::to_string(job)
        .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
    Ok(Metadata { request_json: json, parameters: parameters(job) })
}

/// The request as A1111 writes it.
fn parameters(job: &Job) -> String {
    let request = &job.request;
    let mut text = request.prompt.clone();
    if !request.negative_prompt.is_empty() {
        text.push_str("\nNegative prompt: ");
        text.push_str(&request.negative_prompt);
    }
    let sampler = match request.sampler {
        SamplerKind::Lcm => "LCM",
        SamplerKind::Ddim => "DDIM",
        SamplerKind::Euler => "Euler",
        SamplerKind::EulerAncestral => "Euler a",
        SamplerKind::Heun => "Heun",
        SamplerKind::Dpmpp2m => "DPM++ 2M",
    };
    let stem = |file: &str| {
        let stem = Path::new(file).file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    };
    let model = job.models.model.as_deref().map_or_else(|| "pocket".to_owned(), stem);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\nSteps: {}, Sampler: {sampler}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {model}",
        request.steps,
        request.cfg_scale,
        request.seed.unwrap_or_default(),
        request.width.unwrap_or_default(),
        request.height.unwrap_or_default(),
    );
    if let Some(hash) = job.weights.first().and_then(|file| file.sha256.as_ref()) {
        let _ = write!(text, ", Model hash: {}", hash.get(..10).unwrap_or(hash));
    }
    let _ = write!(
        text,
        ", Frames: {}, FPS: {}, Version: animatelcm {}",
        request.frames,
        request.fps,
        env!("CARGO_PKG_VERSION")
    );
    text
}

/// The hashes of weight files, on their way in a thread of their own.
pub(super) struct Hashes(Option<JoinHandle<Result<Vec<FileRecord>>>>);

impl Hashes {
    pub(super) fn start(sources: Vec<Source>) -> Self {
        Self(Some(std::thread::spawn(move || {
            sources
                .iter()
                .map(|source| {
                    let file = source.path().file_name().unwrap_or_default();
                    let file = match source {
                        // Folders of the user say nothing to anybody else.
                        Source::File(_) => file.to_string_lossy().into_owned(),
                        Source::Embedded { name, .. } => (*name).to_owned(),
                    };
                    let hash = sha256(source, &crate::Stop::default())?;
                    Ok(FileRecord { file, sha256: Some(hash) })
                })
                .collect()
        })))
    }

    pub(super) fn join(&mut self) -> Result<Vec<FileRecord>> {
        match self.0.take().map(JoinHandle::join) {
            Some(Ok(records)) => records,
            _ => Err(Error::Encode { format: "sha256", reason: "the hashing thread died".into() }),
        }
    }
}

/// A clip can only be made again with the weights that it was made with.
pub(super) fn check_weights(wanted: &[FileRecord], found: &[FileRecord]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let hash = |record: &FileRecord| record.sha256.clone().unwrap_or_default();
    for (wanted, found) in wanted.iter().zip(found) {
        if hash(wanted) != hash(found) {
            return Err(Error::Refused {
                name: found.file.clone(),
                reason: format!(
                    "sha256 is {}, the clip was made with {} ({})",
                    hash(found),
                    hash(wanted),
                    wanted.file
                ),
            });
        }
    }
    if wanted.len() != found.len() {
        return Err(Error::Refused {
            name: "weights".into(),
            reason: format!("{} files, the clip was made with {}", found.len(), wanted.len()),
        });
    }
    Ok(())
}
