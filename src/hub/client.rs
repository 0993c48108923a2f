//! HTTP client of a hub.
//!
//! Redirects are followed here and not by the HTTP library, so that the token is sent only to the hub itself.

use std::fs;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ureq::http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE,
};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::Settings;
use super::address::{Origin, Target, follow};

/// Maximum number of redirects.
const REDIRECTS: u32 = 10;

/// Reason for a failed request.
#[derive(Debug)]
pub(super) enum Fault {
    /// Error status of the hub.
    Status(u16),
    /// Error status of a host that the hub redirects to.
    StatusElsewhere(u16),
    /// Network error.
    Wire(ureq::Error),
    /// Response that is not that of a hub.
    Answer(String),
    /// More bytes than announced.
    Excess,
    /// Local I/O error.
    Disk(io::Error),
    /// Stopped by the meter.
    Stopped,
}

impl From<ureq::Error> for Fault {
    fn from(error: ureq::Error) -> Self {
        Self::Wire(error)
    }
}

/// Metadata of a file, requested before its download.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Commit of the file.
    pub(super) commit: String,
    /// Name of the blob: for large files their sha256.
    pub(super) etag: String,
    /// Size in bytes.
    pub(super) size: u64,
}

/// Byte counter of a transfer, which can also stop it.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Meter {
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Client of one hub.
#[derive(Clone, Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// A request along a chain of redirects.
struct Hop {
    uri: Uri,
    redirects: u32,
    /// Whether a redirect contained a host.
    is_elsewhere: bool,
    /// Whether all hosts so far were the hub.
    is_trusted: bool,
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Self {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            // A compressed response would be useless, and a small one could expand without limit.
            .accept_encoding("identity")
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, endpoint: settings.endpoint.clone(), token: settings.token.clone() }
    }

    /// Requests the metadata of a file.
    pub(super) fn facts(&self, repo: &str, revision: &str, path: &str) -> Result<Facts, Fault> {
        let mut hop = self.start(repo, revision, path)?;
        let mut known: Option<(String, String, Option<u64>)> = None;
        loop {
            let (response, next) = self.ask(&hop, "bytes=0-0")?;
            let headers = response.headers();
            // The hub's latest metadata takes precedence; other hosts' counts only if the hub sent none.
            if (known.is_none() || !hop.is_elsewhere)
                && let Some(commit) = text(headers, "x-repo-commit")?
            {
                let etag = text(headers, "x-linked-etag")?.or(text(headers, ETAG.as_str())?);
                let etag = etag.ok_or_else(|| missing("etag"))?.replace('"', "");
                let size = text(headers, "x-linked-size")?.map(number).transpose()?;
                known = Some((commit.to_owned(), etag, size));
            }
            match (next, &known) {
                (Some(next), Some((commit, etag, Some(size)))) if next.is_elsewhere => {
                    return Ok(Facts { commit: commit.clone(), etag: etag.clone(), size: *size });
                }
                (Some(next), _) => hop = next,
                (None, _) => {
                    let size = size_of(&response)?;
                    let (commit, etag, linked) = known.ok_or_else(|| missing("x-repo-commit"))?;
                    return Ok(Facts { commit, etag, size: linked.unwrap_or(size) });
                }
            }
        }
    }

    /// Downloads the missing bytes of a file of `size` bytes, or starts over if the server does not support ranges.
    ///
    /// The file may still be too short afterwards, but never longer than `size`.
    pub(super) fn download(
        &self,
        (repo, revision, path): (&str, &str, &str),
        file: &mut fs::File,
        size: u64,
        meter: &Meter,
    ) -> Result<(), Fault> {
        let mut start = file.metadata().map_err(Fault::Disk)?.len();
        let range = format!("bytes={start}-");
        let mut hop = self.start(repo, revision, path)?;
        let response = loop {
            match self.ask(&hop, &range)? {
                (response, None) => break response,
                (_, Some(next)) => hop = next,
            }
        };
        match response.status().as_u16() {
            206 => {
                let (first, total) = content_range(response.headers())?;
                if first != Some(start) || total.is_some_and(|total| total != size) {
                    return Err(Fault::Answer("it sends another range than was asked for".into()));
                }
            }
            200 => {
                file.set_len(0).map_err(Fault::Disk)?;
                start = 0;
            }
            status => return Err(status_fault(status, &hop)),
        }
        let mut left = size.saturating_sub(start);
        let announced =
            text(response.headers(), CONTENT_LENGTH.as_str())?.map(number).transpose()?;
        if announced.is_some_and(|announced| announced > left) {
            return Err(Fault::Excess);
        }
        meter.done.store(start, Ordering::Relaxed);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            if meter.stop.load(Ordering::Relaxed) {
                return Err(Fault::Stopped);
            }
            let read = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Fault::Wire(ureq::Error::from(e))),
            };
            left = left.checked_sub(read as u64).ok_or(Fault::Excess)?;
            file.write_all(buffer.get(..read).unwrap_or_default()).map_err(Fault::Disk)?;
            meter.done.fetch_add(read as u64, Ordering::Relaxed);
        }
    }

    fn start(&self, repo: &str, revision: &str, path: &str) -> Result<Hop, Fault> {
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/{repo}/resolve/{revision}/{path}", self.endpoint);
        match url.parse::<Uri>() {
            Ok(uri) if Origin::of(&uri).is_some() => {
                Ok(Hop { uri, redirects: 0, is_elsewhere: false, is_trusted: true })
            }
            _ => Err(Fault::Answer("its address cannot be read".into())),
        }
    }

    /// Sends one request. A redirect is returned with its next hop.
    fn ask(&self, hop: &Hop, range: &str) -> Result<(Response<Body>, Option<Hop>), Fault> {
        let mut request = self.agent.get(&hop.uri).header(RANGE, range);
        if let Some(token) = self.token.as_ref().filter(|_| hop.is_trusted) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request.call()?;
        let headers = response.headers();
        match response.status().as_u16() {
            301 | 302 | 303 | 307 | 308 => {
                if hop.redirects == REDIRECTS {
                    let reason = format!("it redirects more than {REDIRECTS} times");
                    return Err(Fault::Answer(reason));
                }
                let location = text(headers, LOCATION.as_str())?.unwrap_or_default();
                let Target { uri, is_absolute } =
                    follow(&hop.uri, location).map_err(|reason| Fault::Answer(reason.into()))?;
                let next = Hop {
                    redirects: hop.redirects + 1,
                    is_elsewhere: hop.is_elsewhere || is_absolute,
                    is_trusted: hop.is_trusted && Origin::of(&uri) == Origin::of(&hop.uri),
                    uri,
                };
                Ok((response, Some(next)))
            }
            200 | 206 | 416 => {
                let encoding = text(headers, CONTENT_ENCODING.as_str())?;
                if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
                    return Err(Fault::Answer("it sends the file in another encoding".into()));
                }
                Ok((response, None))
            }
            status => Err(status_fault(status, hop)),
        }
    }
}

fn status_fault(status: u16, hop: &Hop) -> Fault {
    if hop.is_trusted { Fault::Status(status) } else { Fault::StatusElsewhere(status) }
}

fn missing(header: &str) -> Fault {
    Fault::Answer(format!("its answer has no `{header}`"))
}

/// Value of a header as text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Fault> {
    let value = headers.get(name).map(|value| value.to_str());
    value.transpose().map_err(|_| Fault::Answer(format!("its `{name}` cannot be read")))
}

fn number(text: &str) -> Result<u64, Fault> {
    text.trim().parse().map_err(|_| Fault::Answer("it reports a size that is not a number".into()))
}

/// First byte and total size in `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`.
fn content_range(headers: &HeaderMap) -> Result<(Option<u64>, Option<u64>), Fault> {
    let range = text(headers, CONTENT_RANGE.as_str())?.ok_or_else(|| missing("content-range"))?;
    let known = |part: &str| if part == "*" { Ok(None) } else { number(part).map(Some) };
    match range.trim().strip_prefix("bytes").and_then(|range| range.trim().split_once('/')) {
        Some((part, total)) => {
            Ok((known(part.split_once('-').map_or(part, |(first, _)| first))?, known(total)?))
        }
        None => Err(Fault::Answer("it sends a range that cannot be read".into())),
    }
}

/// Total size of a file, from the response to a request for its first byte.
fn size_of(response: &Response<Body>) -> Result<u64, Fault> {
    let headers = response.headers();
    if response.status().as_u16() == 200 {
        return number(text(headers, "content-length")?.ok_or_else(|| missing("content-length"))?);
    }
    let (_, total) = content_range(headers)?;
    match (response.status().as_u16(), total) {
        (206, Some(total)) => Ok(total),
        // An empty file has no first byte.
        (416, Some(0)) => Ok(0),
        _ => Err(Fault::Answer("it does not tell the file's size".into())),
    }
}
