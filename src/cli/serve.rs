//! `animatelcm serve` and `animatelcm keys`: flags to a server's settings.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{examples, print, terminal};
use crate::device::{DeviceChoice, available_memory};
use crate::job::Names;
use crate::queue::{Places, Retention};
use crate::server::{Keys, Limits, Settings, add_key, serve};
use crate::{Error, Result, Stop};

/// Jobs that may run at once on all machines.
#[cfg(feature = "nats")]
const MOST_RUNNING: usize = 1024;

/// The arguments of `animatelcm serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Address and port to listen at [default: 127.0.0.1:7870].
    ///
    /// An address that other machines reach needs --api-keys or --no-auth. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    bind: Option<SocketAddr>,
    /// Device with a worker of its own: auto, cpu, cuda:N or metal; repeatable [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Vec<DeviceChoice>,
    /// Folder of the queue, the clips and the uploads [default: animatelcm in the user's folder of data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Models that clients may name: a TOML file, or a folder arranged as in ComfyUI or A1111.
    #[arg(long, value_name = "FILE|DIR")]
    catalog: Option<PathBuf>,
    /// Folder of models that are found by name, arranged as in ComfyUI or A1111; repeatable. Also
    /// `ANIMATELCM_MODELS`.
    #[arg(long, value_name = "DIR", aliases = ["ckpt-dir", "models-path"], hide_short_help = true)]
    models_dir: Vec<PathBuf>,
    /// File of keys, one of which a client must have (`animatelcm keys new`).
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Let everybody in who reaches the address.
    #[arg(long, conflicts_with = "api_keys")]
    no_auth: bool,
    /// Name by which the server may be called, beside localhost and addresses; repeatable.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    allow_host: Vec<String>,
    /// Most jobs that wait.
    #[arg(long, value_name = "N", default_value_t = 64, hide_short_help = true)]
    queue: usize,
    /// Most jobs of one key that wait [default: as --queue].
    #[arg(long, value_name = "N", hide_short_help = true)]
    share: Option<usize>,
    /// How long clips are kept: 90m, 12h, 7d.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = time, hide_short_help = true)]
    keep: Duration,
    /// Most bytes of clips that are kept; the oldest go first.
    #[arg(long, value_name = "BYTES", default_value = "20GiB", value_parser = bytes, hide_short_help = true)]
    keep_bytes: u64,
    /// Most bytes of an upload.
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = bytes, hide_short_help = true)]
    max_upload: u64,
    /// Most bytes of weights that stay loaded between jobs [default: half of the free memory].
    #[arg(long, value_name = "BYTES", value_parser = bytes, hide_short_help = true)]
    memory: Option<u64>,
    /// How long a job may go on after the server is told to stop; then it is given back to the queue.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, hide_short_help = true)]
    grace: Duration,
    /// Serve the API only, without the page.
    #[arg(long, hide_short_help = true)]
    no_ui: bool,
    /// With --nats: how long a worker may be silent before its job is given to another.
    #[cfg(feature = "nats")]
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, hide_short_help = true)]
    lease: Duration,
    #[cfg(feature = "nats")]
    #[command(flatten)]
    fleet: super::fleet::FleetArgs,
}

/// The arguments of `animatelcm keys`.
#[derive(Debug, Args)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key and print it; the file gets its hash only.
    #[command(after_long_help = examples::KEYS)]
    New {
        /// Whose it is; the name stands in records of jobs.
        name: String,
        /// File of keys [default: keys.toml in the folder of data].
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

pub(super) fn run(args: ServeArgs, stop: &Stop) -> Result<()> {
    let bind = args.bind.unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7870));
    if !bind.ip().is_loopback() && args.api_keys.is_none() && !args.no_auth {
        let reason = format!("other machines reach {bind}, and everybody there could use it");
        return Err(Error::request("bind", reason)
            .with_hint("--api-keys FILE asks for keys, --no-auth lets everybody in"));
    }
    let keys = args.api_keys.as_deref().map(Keys::open).transpose()?;
    let data = data(args.data.clone())?;
    let (name, places) = places(&args, &data)?;
    let (catalog, folders) = catalog(args.catalog, args.models_dir);
    let names = Names::new(true)?.with_folders(&folders)?;
    // Other machines may be there to make clips.
    let is_alone = name.is_empty() && args.device.is_empty();
    let devices = if is_alone { vec![DeviceChoice::Auto] } else { args.device };
    let memory = memory(args.memory, &devices)?;
    let share = args.share.unwrap_or(args.queue);
    let settings = Settings {
        bind,
        devices,
        name,
        keys,
        allow_hosts: args.allow_host,
        limits: Limits { share, ..Limits::new(args.queue, args.max_upload) },
        retention: Retention { keep: args.keep, keep_bytes: args.keep_bytes },
        grace: args.grace,
        memory,
        has_page: !args.no_ui,
    };
    let started = |address: SocketAddr| print(&format!("animatelcm is at http://{address}/\n"));
    serve(settings, &places, catalog.as_deref(), names, stop, started)
}

/// The queue and the files: in a folder, or on a server for many machines; then with a name for this process.
fn places(args: &ServeArgs, folder: &Path) -> Result<(String, Places)> {
    #[cfg(feature = "nats")]
    if let Some(mut settings) = args.fleet.settings() {
        // Those that run are in the stream, too.
        settings.most_jobs = args.queue.saturating_add(MOST_RUNNING);
        settings.lease = args.lease;
        let places = super::fleet::open(folder, &settings, false)?;
        return Ok((super::fleet::own_name()?, places));
    }
    let _ = args;
    Ok((String::new(), Places::open(folder)?))
}

/// The file of a catalog, and the folders of models: a catalog may be a folder.
pub(super) fn catalog(
    catalog: Option<PathBuf>,
    mut folders: Vec<PathBuf>,
) -> (Option<PathBuf>, Vec<PathBuf>) {
    match catalog {
        Some(folder) if folder.is_dir() => {
            folders.push(folder);
            (None, folders)
        }
        file => (file, folders),
    }
}

/// Bytes of weights that stay loaded. A device that is not there is an error now, not of the first job.
pub(super) fn memory(given: Option<u64>, devices: &[DeviceChoice]) -> Result<u64> {
    let mut free = None;
    for device in devices {
        free = free.or(available_memory(&device.open()?));
    }
    Ok(given.or(free.map(|free| free / 2)).unwrap_or(u64::MAX))
}

pub(super) fn keys(args: &KeysArgs) -> Result<()> {
    let KeysCommand::New { name, file } = &args.command;
    let path = match file {
        Some(file) => file.clone(),
        None => data(None)?.join("keys.toml"),
    };
    let key = add_key(&path, name)?;
    terminal::line(&format!(
        "its hash is in {}; the key itself is kept nowhere. Serve with --api-keys {0}",
        path.display()
    ));
    print(&format!("{key}\n"))
}

pub(super) fn data(given: Option<PathBuf>) -> Result<PathBuf> {
    let place = || place(&|name| std::env::var_os(name), std::env::home_dir().as_deref());
    given.or_else(place).ok_or_else(|| {
        Error::request("data", "there is no folder of data of the user")
            .with_hint("--data DIR names one")
    })
}

/// The user's folder for this program's data.
fn place(variable: &dyn Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Option<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let local = if cfg!(windows) { folder("LOCALAPPDATA") } else { None };
    let own =
        if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" };
    let folder = folder("XDG_DATA_HOME").or(local).or_else(|| Some(home?.join(own)))?;
    Some(folder.join("animatelcm"))
}

/// `127.0.0.1:7870`, `[::1]:7870`, `localhost:7870`, or a port alone.
fn address(text: &str) -> Result<SocketAddr, String> {
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let port = text.strip_prefix("localhost").unwrap_or(text).trim_start_matches(':');
    let port = port.parse().ok().map(|port| SocketAddr::new(loopback, port));
    text.parse().ok().or(port).ok_or_else(|| "is not ADDRESS:PORT".to_owned())
}

/// A number and one of the units.
fn with_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim();
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    Some(number * factor).filter(|number| number.is_finite() && *number <= 1e18)
}

pub(super) fn time(text: &str) -> Result<Duration, String> {
    let units = [("s", 1.0), ("", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];
    let seconds = with_unit(text, &units).filter(|seconds| *seconds <= 1e10);
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "is not a time such as 30s, 12h or 7d".into())
}

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let binary = |power: i32| 1024_f64.powi(power);
    let units = [
        ("", 1.0),
        ("B", 1.0),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("KiB", binary(1)),
        ("MiB", binary(2)),
        ("GiB", binary(3)),
        ("TiB", binary(4)),
    ];
    with_unit(text, &units)
        .map(|bytes| bytes as u64)
        .ok_or_else(|| "is not a number of bytes such as 64MiB or 20GB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_times_and_sizes_are_read() {
        let local = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        assert_eq!(address("127.0.0.1:0"), Ok(local(0)));
        assert_eq!(address("localhost:80"), Ok(local(80)));
        assert_eq!(address(":80"), Ok(local(80)));
        assert_eq!(address("80"), Ok(local(80)));
        assert!(address("[::1]:80").unwrap().ip().is_loopback());
        assert!(address("example.com:80").is_err() && address("80000").is_err());
        assert_eq!(time("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(time("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(time("7 d"), Ok(Duration::from_secs(604_800)));
        assert!(time("d").is_err() && time("-1s").is_err() && time("7w").is_err());
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("2gb"), Ok(2_000_000_000));
        assert_eq!(bytes("17"), Ok(17));
        assert!(bytes("many").is_err());
    }

    #[test]
    fn data_lie_where_the_system_wants_them() {
        let home = Path::new("/home/ann");
        let variable = |name: &str| (name == "XDG_DATA_HOME").then(|| "/data".into());
        assert_eq!(place(&variable, Some(home)), Some("/data/animatelcm".into()));
        assert_eq!(place(&|_| None, None), None);
        assert!(place(&|_| None, Some(home)).unwrap().starts_with(home));
    }
}
