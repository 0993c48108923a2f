//! A `nats-server` of a test, on a free port of loopback, with a folder of its own.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use animatelcm::queue::NatsSettings;

/// A running server.
pub(crate) struct Broker {
    program: PathBuf,
    folder: tempfile::TempDir,
    args: Vec<String>,
    port: u16,
    child: Option<Child>,
}

impl Broker {
    /// Starts one; `None`, with a line that says so, if there is no program.
    pub(crate) fn start() -> Option<Self> {
        Self::with(&[])
    }

    /// Starts one with more arguments.
    pub(crate) fn with(args: &[&str]) -> Option<Self> {
        let Some(program) = std::env::var_os("ANIMATELCM_NATS") else {
            eprintln!("SKIPPED: ANIMATELCM_NATS names no nats-server (see tests/nats/server.sh)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let args = args.iter().map(ToString::to_string).collect();
        let mut broker = Self { program: program.into(), folder, args, port, child: None };
        broker.restart();
        Some(broker)
    }

    /// Starts the server again, with what it had stored.
    pub(crate) fn restart(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(["-a", "127.0.0.1", "-p"]).arg(self.port.to_string());
        command.arg("-sd").arg(self.folder.path()).args(&self.args);
        if !self.args.iter().any(|arg| arg == "-c") {
            command.arg("-js");
        }
        command.env("FRONT_PASSWORD", "front-secret").env("WORKER_PASSWORD", "worker-secret");
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "nats-server does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its address for a user.
    pub(crate) fn url_of(&self, user: &str) -> String {
        format!("nats://{user}@127.0.0.1:{}", self.port)
    }

    /// Settings whose leases last a second.
    pub(crate) fn settings(&self) -> NatsSettings {
        NatsSettings { lease: Duration::from_secs(1), ..NatsSettings::new(self.url()) }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
