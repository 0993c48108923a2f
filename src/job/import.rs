//! Requests from elsewhere: this program's clips, images and texts of AUTOMATIC1111's web UI, images and graphs of
//! ComfyUI.

mod a1111;
mod comfy;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::Value;

use crate::files;
use crate::output::metadata;
use crate::request::{Job, Request, Spec};
use crate::{Error, Result, Stop};

/// The longest text of a request: bytes.
const LONGEST: u64 = 16 << 20;

/// The largest image whose texts are read: bytes.
const LARGEST: u64 = 256 << 20;

/// A request, and what of its source could not be taken over, a line each.
#[derive(Debug)]
pub struct Imported {
    /// The job.
    pub job: Job,
    /// Whether a clip carried it, which a stranger may have made.
    pub is_of_clip: bool,
    /// What could not be taken over, a line each.
    pub notes: Vec<String>,
}

impl Imported {
    /// This program's request.
    fn own(json: &str, is_of_clip: bool) -> Result<Self> {
        Ok(Self { job: Job::from_json(json)?, is_of_clip, notes: vec![] })
    }

    /// Another program's request, which names no files.
    fn foreign(request: Request, notes: Vec<String>) -> Self {
        Self { job: Job::new(Spec::default(), request), is_of_clip: false, notes }
    }
}

/// Reads a request file. `has_sampler` says that the one in it does not matter.
pub fn read(path: &Path, has_sampler: bool, stop: &Stop) -> Result<Imported> {
    if is_media(path)? {
        return of_media(path, has_sampler);
    }
    let text = read_text(path, stop)?;
    let wrong = |reason: String| wrong(path, &reason);
    match serde_json::from_str::<Value>(&text) {
        Ok(json) if is_job(&json) => Imported::own(&text, false),
        Ok(json) => comfy::request(&json, has_sampler).map_err(wrong),
        Err(_) if a1111::is_parameters(&text) => a1111::request(&text, has_sampler).map_err(wrong),
        // The error says where the JSON is wrong.
        Err(_) => Imported::own(&text, false),
    }
}

/// Whether JSON is meant for this program; ComfyUI's objects hold nodes and nothing else.
fn is_job(json: &Value) -> bool {
    let is_node = |node: &Value| node.get("class_type").is_some();
    !json
        .as_object()
        .is_some_and(|object| object.contains_key("nodes") || object.values().any(is_node))
}

fn wrong(path: &Path, reason: &str) -> Error {
    Error::request("request", format!("{}: {reason}", path.display()))
}

/// Whether a file is an image or a video by its first bytes. Pipes are not looked at.
fn is_media(path: &Path) -> Result<bool> {
    let failed = |error| Error::unreadable("request", path, &error);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(12).read_to_end(&mut head)).map_err(failed)?;
    Ok(head.starts_with(b"\x89PNG")
        || head.starts_with(b"GIF8")
        || head.starts_with(b"RIFF")
        || head.get(4..8) == Some(b"ftyp"))
}

fn of_media(path: &Path, has_sampler: bool) -> Result<Imported> {
    let found = metadata::read(path)?.unwrap_or_default();
    if !found.request_json.is_empty() {
        return Imported::own(&found.request_json, true);
    }
    if a1111::is_parameters(&found.parameters) {
        return a1111::request(&found.parameters, has_sampler).map_err(|e| wrong(path, &e));
    }
    let bytes =
        files::read(path, LARGEST).map_err(|error| Error::unreadable("request", path, &error))?;
    let Some(prompt) = png_text(&bytes, "prompt") else {
        let reason = "has no request in it, neither this program's nor A1111's nor ComfyUI's";
        return Err(wrong(path, reason));
    };
    let graph = serde_json::from_str(&prompt)
        .map_err(|error| wrong(path, &format!("its graph is not JSON: {error}")))?;
    comfy::request(&graph, has_sampler).map_err(|error| wrong(path, &error))
}

/// The text of a request file, which may be a pipe but not without end.
fn read_text(path: &Path, stop: &Stop) -> Result<String> {
    const TICK: Duration = Duration::from_millis(50);
    let (send, receive) = channel();
    let file = path.to_path_buf();
    // A pipe is waited for in a thread, because neither opening nor reading it can be ended.
    let read = move || {
        let mut text = String::new();
        let read =
            File::open(file).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
        let _ = send.send(read.map(|_| text));
    };
    let thread = std::thread::Builder::new().name("request".into()).spawn(read);
    thread.map_err(|error| Error::no_thread(&error))?;
    let text = loop {
        stop.check()?;
        match receive.recv_timeout(TICK) {
            Ok(text) => break text.map_err(|error| Error::unreadable("request", path, &error))?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(wrong(path, "cannot be read")),
        }
    };
    if text.len() as u64 > LONGEST {
        return Err(wrong(path, &format!("has more than {LONGEST} bytes")));
    }
    Ok(text)
}

/// An uncompressed text of a PNG, as ComfyUI writes them.
fn png_text(png: &[u8], key: &str) -> Option<String> {
    let mut rest = png.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let (data, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = after.get(4..)?;
        let text = data.strip_prefix(key.as_bytes()).and_then(|text| text.strip_prefix(b"\0"));
        match (kind, text) {
            (b"tEXt", Some(text)) => return Some(text.iter().map(|b| char::from(*b)).collect()),
            // Flags, language and translated keyword stand before the text.
            (b"iTXt", Some([0, 0, text @ ..])) => {
                let text = text.splitn(3, |byte| *byte == 0).nth(2)?;
                return String::from_utf8(text.to_vec()).ok();
            }
            (b"IEND", _) => return None,
            _ => {}
        }
    }
}
