//! The connection to a NATS server.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, ServerAddr};
use tokio::runtime::{Handle, Runtime};

use crate::files::read_text;
use crate::{Error, Result};

/// The subject on which workers are told that there may be work.
pub(super) const WAKE: &str = "anim.wake";

/// How long an answer of the server may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long those are kept waiting who could as well ask again.
pub(super) const SHORTLY: Duration = Duration::from_secs(10);

/// Pause before the first repetition of what failed.
const PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two repetitions.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where the NATS server is, and how jobs are kept there.
#[derive(Clone, Debug)]
pub struct NatsSettings {
    /// Addresses of one server or of a cluster's servers, with commas between them: `nats://host:4222`,
    /// `tls://user:password@host`.
    pub url: String,
    /// A file of credentials, or one with the seed of an nkey.
    pub credentials: Option<PathBuf>,
    /// A file of certificates of authorities to trust beside those of the system.
    pub authorities: Option<PathBuf>,
    /// Jobs that may be there at once; those that run count, too.
    pub most_jobs: usize,
    /// Time without a beat after which a worker counts as lost. Only whoever makes the queue decides on it.
    pub lease: Duration,
    /// Time after which a job that nothing has happened to is looked after.
    pub patience: Duration,
    /// How long what fails because the server is away is tried again.
    pub persistence: Duration,
}

impl NatsSettings {
    /// The usual settings with a server's address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            authorities: None,
            most_jobs: 64 + 1024,
            lease: Duration::from_secs(30),
            patience: Duration::from_secs(60),
            persistence: Duration::from_secs(120),
        }
    }
}

/// An error of the server or of the way to it.
pub(super) fn away(reason: impl std::fmt::Display) -> Error {
    let reason = reason.to_string().replace('\n', " ");
    Error::Device { device: "nats".into(), reason }
}

/// A connection with the threads that serve it.
pub(super) struct Link {
    runtime: Option<Runtime>,
    handle: Handle,
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) persistence: Duration,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects; from then on a connection that breaks is made again by itself.
    pub(super) fn open(settings: &NatsSettings) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("nats")
            .enable_all()
            .build()
            .map_err(|error| Error::no_thread(&error))?;
        let addresses = addresses(&settings.url)?;
        let mut options = ConnectOptions::new()
            .name("animatelcm")
            .connection_timeout(ANSWER)
            .request_timeout(Some(ANSWER));
        options = match &settings.credentials {
            Some(path) => authenticated(options, path)?,
            None => named(options, &addresses),
        };
        if let Some(path) = &settings.authorities {
            options = options.add_root_certificates(path.clone());
        }
        // Without passwords.
        let shown: Vec<_> =
            addresses.iter().map(|a| format!("{}:{}", a.host(), a.port())).collect();
        let failed = |error: &dyn std::fmt::Display| {
            away(format!("{}: {error}", shown.join(", ")))
                .with_hint("--nats names a nats-server with JetStream, 2.10 or newer")
        };
        let client = runtime
            .block_on(async { tokio::time::timeout(2 * ANSWER, options.connect(addresses)).await });
        let client = match client {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(failed(&"no answer")),
        };
        if !client.is_server_compatible(2, 10, 0) {
            let version = client.server_info().version;
            return Err(failed(&format!("is a nats-server {version}")));
        }
        // It starts a task of its own.
        let entered = runtime.enter();
        let mut context = jetstream::new(client.clone());
        drop(entered);
        context.set_timeout(ANSWER);
        let persistence = settings.persistence;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle, client, context, persistence })
    }

    /// Waits for what is done with the server. Not to be called by threads that serve asynchronous tasks.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.handle.block_on(work)
    }

    /// Starts a task beside others.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    /// Tells workers that there may be work. One that does not hear it looks by itself, somewhat later.
    pub(super) async fn wake(&self) {
        let _ = self.client.publish(WAKE, "".into()).await;
    }

    /// Whether the server can be reached, as far as is known.
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Does something again and again until it works, at most so long.
    pub(super) async fn again<T, F: Future<Output = Result<T>>>(
        &self,
        at_most: Duration,
        mut work: impl FnMut() -> F,
    ) -> Result<T> {
        let (started, mut pause) = (Instant::now(), PAUSE);
        loop {
            match work().await {
                Ok(done) => return Ok(done),
                Err(error) if started.elapsed() + pause > at_most => return Err(error),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The last owner may be a task of another runtime, which must not wait.
            runtime.shutdown_background();
        }
    }
}

fn addresses(url: &str) -> Result<Vec<ServerAddr>> {
    let address = |text: &str| {
        text.parse::<ServerAddr>().map_err(|_| {
            Error::request("nats", "is no address of a NATS server")
                .with_hint("nats://host:4222, tls://user:password@host; several with commas")
        })
    };
    url.split(',').map(str::trim).map(address).collect()
}

/// With the user and password of an address, or the token that stands alone; `async-nats` leaves both to its caller.
fn named(options: ConnectOptions, addresses: &[ServerAddr]) -> ConnectOptions {
    let user = addresses.iter().find_map(|a| Some((a.username()?, a.password())));
    match user {
        Some((user, Some(password))) => options.user_and_password(plain(user), plain(password)),
        Some((token, None)) => options.token(plain(token)),
        None => options,
    }
}

/// A part of an address without its percent signs.
fn plain(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        let code = more.get(..2).filter(|_| *first == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// With what a file says: the seed of an nkey alone, or credentials with a token.
fn authenticated(options: ConnectOptions, path: &Path) -> Result<ConnectOptions> {
    let text =
        read_text(path).map_err(|error| Error::unreadable("nats-credentials", path, &error))?;
    let seed = text.trim();
    if seed.starts_with("SU") && seed.lines().count() == 1 {
        return Ok(options.nkey(seed.to_owned()));
    }
    options.credentials(&text).map_err(|_| {
        let reason = format!("{}: holds no credentials and no seed of an nkey", path.display());
        Error::request("nats-credentials", reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_one_or_several_and_never_shown() {
        assert_eq!(addresses("nats://127.0.0.1:4222").unwrap().len(), 1);
        assert_eq!(addresses("a:1, tls://user:secret@b").unwrap().len(), 2);
        let error = addresses("http://user:secret@host").unwrap_err();
        assert!(!error.to_string().contains("secret") && error.kind().exit_code() == 2);
    }

    #[test]
    fn passwords_may_have_any_letter() {
        let password = |text: &str| {
            let address: ServerAddr = text.parse().unwrap();
            plain(address.password().unwrap())
        };
        assert_eq!(password("nats://ann:a%40b%2fc%@host"), "a@b/c%");
        assert_eq!(password("nats://ann:p%C3%A4ss@host"), "päss");
    }

    #[test]
    fn credentials_are_a_token_or_a_seed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed");
        std::fs::write(&path, "SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU\n")
            .unwrap();
        assert!(authenticated(ConnectOptions::new(), &path).is_ok());
        std::fs::write(&path, "nothing of the kind").unwrap();
        let error = authenticated(ConnectOptions::new(), &path).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(authenticated(ConnectOptions::new(), &folder.path().join("none")).is_err());
    }
}
