//! What a finished clip says about itself, and the check of it when the clip is made again.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::thread::JoinHandle;

use candle_core::Device;
use sha2::{Digest, Sha256};

use super::parameters::{self, Made};
use super::trust::Known;
use crate::files::hex;
use crate::output::Metadata;
use crate::request::{FileRecord, Job, Program};
use crate::weights::{Archive, Source, sha256};
use crate::{Error, Result, Stop};

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
pub(super) fn metadata(job: &Job, made: &Made<'_>) -> Result<Metadata> {
    let json = serde_json::to_string(job)
        .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
    Ok(Metadata { request_json: json, parameters: parameters::text(job, made) })
}

/// The hash that A1111 has for each LoRA.
pub(super) type LoraHashes = Vec<(Source, String)>;

/// What the thread finds.
type Found = (Vec<FileRecord>, LoraHashes);

/// The hashes of weight files, on their way in a thread of their own.
pub(super) struct Hashes(Option<JoinHandle<Result<Found>>>);

impl Hashes {
    /// `loras` are the files or folders of those sources that are LoRAs.
    pub(super) fn start(
        sources: Vec<Source>,
        loras: Vec<PathBuf>,
        mut known: Known,
        stop: &Stop,
    ) -> Result<Self> {
        let stop = stop.clone();
        let hash = move || {
            let is_lora = |source: &&Source| match source {
                Source::File(path) => loras.iter().any(|lora| path.starts_with(lora)),
                Source::Embedded { .. } => false,
            };
            let loras = sources
                .iter()
                .filter(is_lora)
                .map(|source| Ok((source.clone(), lora_hash(source, &stop)?)))
                .collect::<Result<_>>()?;
            Ok((records(&sources, &mut known, &stop)?, loras))
        };
        let thread = std::thread::Builder::new().name("hashes".into()).spawn(hash);
        thread.map(|thread| Self(Some(thread))).map_err(|error| Error::no_thread(&error))
    }

    pub(super) fn join(&mut self) -> Result<Found> {
        match self.0.take().map(JoinHandle::join) {
            Some(Ok(hashes)) => hashes,
            _ => Err(Error::Encode { format: "sha256", reason: "the hashing thread died".into() }),
        }
    }
}

/// The names and hashes of weight files.
pub(super) fn records(
    sources: &[Source],
    known: &mut Known,
    stop: &Stop,
) -> Result<Vec<FileRecord>> {
    let record = |source: &Source| {
        let file = source.path().file_name().unwrap_or_default();
        let file = match source {
            // Folders of the user say nothing to anybody else.
            Source::File(_) => file.to_string_lossy().into_owned(),
            Source::Embedded { name, .. } => (*name).to_owned(),
        };
        Ok(FileRecord { file, sha256: Some(known.sha256(source, stop)?) })
    };
    sources.iter().map(record).collect()
}

/// A LoRA's hash as A1111 and Kohya's tools count it: of a safetensors file without its header, so that metadata do not
/// matter, unless the metadata have it; of another file as it is.
fn lora_hash(source: &Source, stop: &Stop) -> Result<String> {
    let path = source.path();
    if path.extension().is_none_or(|extension| extension != "safetensors") {
        return sha256(source, stop);
    }
    if let Some(hash) = Archive::open(source)?.metadata().get("sshs_model_hash")
        && hash.len() == 64
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return Ok(hash.to_lowercase());
    }
    let read = || {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut header = file.by_ref().take(u64::from_le_bytes(length));
        io::copy(&mut header, &mut io::sink())?;
        let mut hash = Sha256::new();
        io::copy(&mut file, &mut hash)?;
        Ok(hex(hash))
    };
    read().map_err(Error::file(path))
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
