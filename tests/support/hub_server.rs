//! A small hub on loopback: the requests that a pull makes, and the ways in which a real hub fails.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The commit that every repository of the server is at.
pub(crate) const COMMIT: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

/// sha256 in lowercase hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The path of the address.
    pub path: String,
    /// The range header, if any.
    pub range: Option<String>,
    /// The authorization header, if any.
    pub token: Option<String>,
    /// Which encodings of the body are welcome.
    pub encodings: Option<String>,
}

impl Asked {
    /// Whether it asked for contents rather than for what is known about a file.
    pub(crate) fn is_transfer(&self) -> bool {
        self.range.as_deref() != Some("bytes=0-0")
    }
}

/// How a transfer goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The connection closes after this many bytes.
    Cut(usize),
    /// The range is not looked at: all of the file comes, with status 200.
    IgnoresRange,
    /// The same, and the connection closes after this many bytes.
    IgnoresRangeUntil(usize),
    /// After this many bytes nothing comes any more, and the connection stays open.
    Stalls(usize),
    /// It begins well and never ends.
    Endless,
    /// The body is longer than the whole file, and says so.
    Longer,
    /// The body is said to be compressed.
    Compressed,
    /// The range that comes begins one byte too early.
    Shifted,
}

struct Published {
    bytes: Vec<u8>,
    etag: String,
    /// Large files are sent from another address, to which the hub redirects.
    large: bool,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Published>,
    statuses: BTreeMap<String, u16>,
    faults: Vec<Fault>,
    asked: Vec<Asked>,
    slow: bool,
    /// Where large files are, if not here.
    elsewhere: Option<String>,
    /// Whether the size of a large file stays a secret of that place.
    silent: bool,
    /// What every request is answered with: a redirect, perhaps without a `Location`.
    redirect: Option<Redirect>,
}

struct Redirect {
    location: Option<String>,
}

/// The server. It stops when it is dropped.
pub(crate) struct HubServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl HubServer {
    /// An empty hub.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    /// An empty hub at one of this machine's addresses.
    pub(crate) fn start_at(host: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, ended) = (state.clone(), stop.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let (shared, ended) = (shared.clone(), ended.clone());
                // A client that goes away in the middle is part of the game.
                thread::spawn(move || serve(&stream.unwrap(), address, &shared, &ended));
            }
        });
        Self { address, state, stop }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Publishes a small file: sent directly, with an etag that is not its sha256.
    pub(crate) fn small(&self, repo: &str, path: &str, bytes: &[u8]) {
        let etag = sha256(bytes)[..40].to_owned();
        self.publish(repo, path, bytes, &etag, false);
    }

    /// Publishes a large file: redirected, with its sha256 as etag.
    pub(crate) fn large(&self, repo: &str, path: &str, bytes: &[u8]) {
        self.publish(repo, path, bytes, &sha256(bytes), true);
    }

    pub(crate) fn publish(&self, repo: &str, path: &str, bytes: &[u8], etag: &str, large: bool) {
        let published = Published { bytes: bytes.to_vec(), etag: etag.to_owned(), large };
        self.state().files.insert(format!("{repo}/{path}"), published);
    }

    /// Answers every request for a repository with a status.
    pub(crate) fn answer(&self, repo: &str, status: u16) {
        self.state().statuses.insert(repo.to_owned(), status);
    }

    /// Redirects large files to another place; only that one tells their size if the hub is `silent`.
    pub(crate) fn keep_elsewhere(&self, place: &str, silent: bool) {
        let mut state = self.state();
        (state.elsewhere, state.silent) = (Some(place.to_owned()), silent);
    }

    /// Answers every request with a redirect; `%` in its target is the number of the request.
    pub(crate) fn redirect(&self, location: Option<&str>) {
        self.state().redirect = Some(Redirect { location: location.map(str::to_owned) });
    }

    /// Makes one transfer after another go wrong.
    pub(crate) fn fail(&self, faults: &[Fault]) {
        self.state().faults.extend(faults);
    }

    /// Sends transfers in small pieces with pauses between them.
    pub(crate) fn slow_down(&self) {
        self.state().slow = true;
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: &TcpStream,
    address: SocketAddr,
    state: &Mutex<State>,
    ended: &AtomicBool,
) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let asked = Asked {
        path: path.clone(),
        range: headers.remove("range"),
        token: headers.remove("authorization"),
        encodings: headers.remove("accept-encoding"),
    };

    let mut state = state.lock().unwrap();
    state.asked.push(asked.clone());
    if let Some(Redirect { location }) = &state.redirect {
        let number = state.asked.len().to_string();
        let location = location.as_ref().map(|location| location.replace('%', &number));
        let headers: Vec<_> = location.iter().map(|l| ("Location", l.as_str())).collect();
        return respond(stream, 302, &headers, b"");
    }
    let is_cdn = path.starts_with("/cdn/");
    let (repo, file) = if is_cdn {
        ("", path["/cdn/".len()..].to_owned())
    } else {
        let (repo, rest) = path[1..].split_once("/resolve/")?;
        (repo, format!("{repo}/{}", rest.split_once('/')?.1))
    };
    if let Some(status) = state.statuses.get(repo) {
        return respond(stream, *status, &[], b"no");
    }
    let Some(published) = state.files.get(&file) else {
        return respond(stream, 404, &[], b"Entry not found");
    };
    let etag = format!("\"{}\"", published.etag);
    let total = published.bytes.len();
    if published.large && !is_cdn {
        let here = format!("http://{address}");
        let location = format!("{}/cdn/{file}", state.elsewhere.as_ref().unwrap_or(&here));
        let size = total.to_string();
        let mut headers = vec![
            ("Location", location.as_str()),
            ("X-Repo-Commit", COMMIT),
            ("X-Linked-Etag", etag.as_str()),
            ("ETag", "\"of-the-pointer\""),
        ];
        if !state.silent {
            headers.push(("X-Linked-Size", size.as_str()));
        }
        return respond(stream, 302, &headers, b"");
    }

    let bytes = published.bytes.clone();
    let fault = if asked.is_transfer() && !state.faults.is_empty() {
        Some(state.faults.remove(0))
    } else {
        None
    };
    let slow = state.slow && asked.is_transfer();
    drop(state);

    let ignores = matches!(fault, Some(Fault::IgnoresRange | Fault::IgnoresRangeUntil(_)));
    let range = asked.range.filter(|_| !ignores);
    let (first, last) = match range.as_deref().and_then(|r| r.strip_prefix("bytes=")) {
        Some(range) => {
            let (first, last) = range.split_once('-')?;
            (first.parse().ok()?, last.parse().unwrap_or(total.max(1) - 1))
        }
        None => (0, total - 1),
    };
    if first >= total {
        let range = format!("bytes */{total}");
        let headers =
            [("ETag", etag.as_str()), ("X-Repo-Commit", COMMIT), ("Content-Range", range.as_str())];
        return respond(stream, 416, &headers, b"");
    }
    let first = if matches!(fault, Some(Fault::Shifted)) { first - 1 } else { first };
    let content_range = format!("bytes {first}-{last}/{total}");
    let mut headers = vec![("ETag", etag.as_str()), ("X-Repo-Commit", COMMIT)];
    if range.is_some() {
        headers.push(("Content-Range", &content_range));
    }
    let body = &bytes[first..=last];
    match fault {
        Some(Fault::Endless) => {
            let mut text = String::from("HTTP/1.1 206 -\r\nTransfer-Encoding: chunked\r\n");
            for (name, value) in &headers {
                text.extend([*name, ": ", *value, "\r\n"]);
            }
            (&*stream).write_all((text + "\r\n").as_bytes()).ok()?;
            let piece = [&b"10000\r\n"[..], &vec![b'A'; 0x10000], b"\r\n"].concat();
            // A client without a limit would fill the disk; this one is let go at 256 MiB.
            for _ in 0..4096 {
                (&*stream).write_all(&piece).ok()?;
            }
            return Some(());
        }
        Some(Fault::Longer) => {
            let longer = [body, b"more"].concat();
            return respond(stream, 206, &headers, &longer);
        }
        Some(Fault::Compressed) => {
            headers.push(("Content-Encoding", "gzip"));
            return respond(stream, 206, &headers, body);
        }
        _ => {}
    }
    let status = if ignores { 200 } else { 206 };
    let cuts = fault.and_then(|fault| match fault {
        Fault::Cut(sent) | Fault::Stalls(sent) | Fault::IgnoresRangeUntil(sent) => Some(sent),
        _ => None,
    });
    let Some(sent) = cuts else {
        let status = if range.is_some() { 206 } else { 200 };
        head(stream, status, &headers, body.len())?;
        for piece in body.chunks(if slow { 16_384 } else { body.len().max(1) }) {
            (&*stream).write_all(piece).ok()?;
            if slow {
                thread::sleep(Duration::from_millis(20));
            }
        }
        return Some(());
    };
    head(stream, status, &headers, body.len())?;
    (&*stream).write_all(&body[..sent.min(body.len())]).ok()?;
    while matches!(fault, Some(Fault::Stalls(_))) && !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(20));
    }
    stream.shutdown(Shutdown::Both).ok()
}

fn respond(stream: &TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Option<()> {
    head(stream, status, headers, body.len())?;
    (&*stream).write_all(body).ok()
}

fn head(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    length: usize,
) -> Option<()> {
    let mut text =
        format!("HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        text.extend([*name, ": ", *value, "\r\n"]);
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).ok()
}
