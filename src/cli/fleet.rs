//! Flags of a queue for many machines, and what they open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::Result;
use crate::queue::{NatsQueue, NatsSettings, NatsStore, Places};

/// Flags for the NATS server of a queue.
#[derive(Debug, Args)]
pub(super) struct FleetArgs {
    /// NATS server with JetStream that has the queue: nats://HOST:4222, tls://USER:PASSWORD@HOST; several with commas.
    ///
    /// Machines of one server share jobs and clips. See `animatelcm worker`.
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// File of credentials for it, or with the seed of an nkey.
    #[arg(long, value_name = "FILE", requires = "nats", hide_short_help = true)]
    nats_credentials: Option<PathBuf>,
    /// File of certificates of authorities to trust beside those of the system.
    #[arg(long, value_name = "FILE", requires = "nats", hide_short_help = true)]
    nats_ca: Option<PathBuf>,
}

impl FleetArgs {
    /// The settings; `None` if the queue is on this machine.
    pub(super) fn settings(&self) -> Option<NatsSettings> {
        let mut settings = NatsSettings::new(self.nats.clone()?);
        settings.credentials.clone_from(&self.nats_credentials);
        settings.authorities.clone_from(&self.nats_ca);
        Some(settings)
    }
}

/// Opens a folder for copies of what is on the server.
pub(super) fn open(folder: &Path, settings: &NatsSettings, is_worker: bool) -> Result<Places> {
    Places::with(folder, |_, clips, uploads| {
        let queue = if is_worker { NatsQueue::join(settings) } else { NatsQueue::open(settings) }?;
        let clips = NatsStore::open(&queue, NatsStore::CLIPS, clips)?;
        let uploads = NatsStore::open(&queue, NatsStore::INPUTS, uploads)?;
        Ok((Arc::new(queue), Arc::new(clips), Arc::new(uploads)))
    })
}

/// A name that no other process has: that of the machine, and a few digits.
pub(super) fn own_name() -> Result<String> {
    let host = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    let host = host.or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    let host: String = host
        .as_deref()
        .unwrap_or("worker")
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(40)
        .collect();
    Ok(format!("{host}-{}", crate::queue::random::<3>()?))
}
