//! Requests to a hub.
//!
//! Redirects are followed here and not by the HTTP library, so that the token goes to nobody but the hub itself.

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

/// The most redirects that are followed.
const REDIRECTS: u32 = 10;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// The hub answers with this status.
    Status(u16),
    /// So does a host that the hub redirects to.
    StatusElsewhere(u16),
    /// Something between here and there.
    Wire(ureq::Error),
    /// No hub answers like this.
    Answer(String),
    /// More bytes than were announced.
    Excess,
    /// Something here.
    Disk(io::Error),
    /// The meter was told to stop.
    Stopped,
}

impl From<ureq::Error> for Fault {
    fn from(error: ureq::Error) -> Self {
        Self::Wire(error)
    }
}

/// What a hub says about a file before any of it is fetched.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The commit that it is of.
    pub(super) commit: String,
    /// What its bytes are called: for large files their sha256.
    pub(super) etag: String,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// Counts the bytes of a transfer, and ends it on request.
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

/// Speaks to one hub.
#[derive(Clone, Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// A request on its way along redirects.
struct Hop {
    uri: Uri,
    redirects: u32,
    /// Whether a redirect has named a host.
    is_elsewhere: bool,
    /// Whether all hosts so far were the hub.
    is_trusted: bool,
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Self {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            // Other encodings are not only useless here: a small body may become an endless one.
            .accept_encoding("identity")
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, endpoint: settings.endpoint.clone(), token: settings.token.clone() }
    }

    /// Asks about a file.
    pub(super) fn facts(&self, repo: &str, revision: &str, path: &str) -> Result<Facts, Fault> {
        let mut hop = self.start(repo, revision, path)?;
        let mut known: Option<(String, String, Option<u64>)> = None;
        loop {
            let (response, next) = self.ask(&hop, "bytes=0-0")?;
            let headers = response.headers();
            // The hub's last word. What others say counts if the hub has left it to them.
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

    /// Appends what a file of `size` bytes lacks, or begins it anew where the server knows no ranges.
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

    /// One request. A redirect comes with the hop that it leads to.
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

/// A header as text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Fault> {
    let value = headers.get(name).map(|value| value.to_str());
    value.transpose().map_err(|_| Fault::Answer(format!("its `{name}` cannot be read")))
}

fn number(text: &str) -> Result<u64, Fault> {
    text.trim().parse().map_err(|_| Fault::Answer("it tells a size that is no number".into()))
}

/// The first byte and the size of the whole in `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`.
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

/// The size of a whole file, from the answer to a request for its first byte.
fn size_of(response: &Response<Body>) -> Result<u64, Fault> {
    let headers = response.headers();
    if response.status().as_u16() == 200 {
        return number(text(headers, "content-length")?.ok_or_else(|| missing("content-length"))?);
    }
    let (_, total) = content_range(headers)?;
    match (response.status().as_u16(), total) {
        (206, Some(total)) => Ok(total),
        // There is no first byte.
        (416, Some(0)) => Ok(0),
        _ => Err(Fault::Answer("it does not tell the file's size".into())),
    }
}
