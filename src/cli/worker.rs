//! `animatelcm worker`: flags to a process of workers.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::fleet::{self, FleetArgs};
use super::{print, serve};
use crate::device::DeviceChoice;
use crate::job::Names;
use crate::server::{WorkSettings, work};
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm worker`.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    #[command(flatten)]
    fleet: FleetArgs,
    /// Device with a worker of its own: auto, cpu, cuda:N or metal; repeatable [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Vec<DeviceChoice>,
    /// Models by the names that the front end has for them: a TOML file, or a folder arranged as in ComfyUI or A1111.
    #[arg(long, value_name = "FILE|DIR")]
    catalog: Option<PathBuf>,
    /// Folder of models that are found by name, arranged as in ComfyUI or A1111; repeatable. Also
    /// `ANIMATELCM_MODELS`.
    #[arg(long, value_name = "DIR", aliases = ["ckpt-dir", "models-path"], hide_short_help = true)]
    models_dir: Vec<PathBuf>,
    /// Prefix of the workers' names [default: the machine's name and a few digits].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Folder of files that are being made, for this process alone [default: `worker` in the user's folder of data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Most bytes of weights that stay loaded between jobs [default: half of the free memory].
    #[arg(long, value_name = "BYTES", value_parser = serve::bytes, hide_short_help = true)]
    memory: Option<u64>,
    /// Grace period of a running job at shutdown; after it the job is given back to the queue.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = serve::time, hide_short_help = true)]
    grace: Duration,
}

pub(super) fn run(args: WorkerArgs, stop: &Stop) -> Result<()> {
    let Some(settings) = args.fleet.settings() else {
        return Err(Error::request("nats", "where the queue is must be said").with_hint(
            "--nats nats://HOST:4222 names the server that `animatelcm serve --nats` has",
        ));
    };
    let (catalog, folders) = serve::catalog(args.catalog, args.models_dir);
    let names = Names::new(true)?.with_folders(&folders)?;
    let devices = if args.device.is_empty() { vec![DeviceChoice::Auto] } else { args.device };
    let memory = serve::memory(args.memory, &devices)?;
    let name = args.name.map_or_else(fleet::own_name, Ok)?;
    let data = match args.data {
        Some(data) => data,
        None => serve::data(None)?.join("worker"),
    };
    let places = fleet::open(&data, &settings, true)?;
    let started = || print(&format!("animatelcm works as {name}\n"));
    let settings = WorkSettings { name: name.clone(), devices, grace: args.grace, memory };
    work(&settings, &places, catalog.as_deref(), names, stop, started)
}
