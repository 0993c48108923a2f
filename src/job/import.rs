//! Requests from elsewhere: this program's clips, images and texts of AUTOMATIC1111's web UI, images and graphs of
//! ComfyUI; and lists of requests, as JSON lines.

mod a1111;
mod comfy;
mod graph;
mod hires;
mod nodes;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::files::{self, Lines};
use crate::output::metadata;
use crate::request::{Job, Request, Spec};
use crate::{Error, Result, Stop};

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
    /// The program whose form it has.
    pub origin: Origin,
}

/// A program that writes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This one.
    Own,
    /// AUTOMATIC1111's web UI, or one that writes its parameters.
    A1111,
    /// ComfyUI.
    ComfyUi,
}

impl Origin {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "animatelcm",
            Self::A1111 => "A1111",
            Self::ComfyUi => "ComfyUI",
        }
    }
}

/// What is said of an image without any request.
pub const NO_REQUEST: &str =
    "has no request in it, neither this program's nor A1111's nor ComfyUI's";

impl Imported {
    /// This program's request.
    fn own(json: &str, is_of_clip: bool) -> Result<Self> {
        Ok(Self { job: Job::from_json(json)?, is_of_clip, notes: vec![], origin: Origin::Own })
    }

    /// Another program's request, which names no files.
    fn foreign(request: Request, notes: Vec<String>, origin: Origin) -> Self {
        Self { job: Job::new(Spec::default(), request), is_of_clip: false, notes, origin }
    }
}

/// The requests of a file.
#[derive(Debug)]
pub enum Requests {
    /// One.
    One(Box<Imported>),
    /// Several: JSON lines or a JSON array.
    Many(Batch),
}

/// Requests that are read one after the other, perhaps from a pipe that is still written to.
#[derive(Debug)]
pub struct Batch {
    lines: Lines,
    has_sampler: bool,
    /// Lines that were read.
    count: usize,
    /// What is counted.
    unit: &'static str,
}

impl Batch {
    /// The next request; none at the end. The inner error is that of one request, after which others may follow.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or `stop` is requested.
    pub fn next_request(&mut self, stop: &Stop) -> Result<Option<Result<Imported>>> {
        while let Some(line) = self.lines.next_line(stop)? {
            self.count += 1;
            if line.trim().is_empty() {
                continue;
            }
            let read = of_text(&line, self.has_sampler).map_err(|error| {
                self.lines.wrong(&format!("{} {}: {}", self.unit, self.count, reason(&error)))
            });
            return Ok(Some(read));
        }
        Ok(None)
    }
}

/// Opens a request file, or standard input as `-`. `has_sampler` says that the one in it does not matter.
///
/// On standard input and in files that end in `.jsonl` or `.ndjson` a request on one line is the first of JSON lines;
/// elsewhere another one has to follow.
///
/// # Errors
///
/// When the file cannot be read, or is the only request and wrong.
pub fn open(path: &Path, has_sampler: bool, stop: &Stop) -> Result<Requests> {
    let is_stdin = path.as_os_str() == "-";
    if !is_stdin && is_media(path)? {
        return of_media(path, has_sampler).map(Box::new).map(Requests::One);
    }
    let mut lines = Lines::open("request", path)?;
    let mut read: Vec<String> = Vec::new();
    let mut is_batch = is_stdin || has_ending(path, &["jsonl", "ndjson"]);
    // The first line that is not empty, and whether a second one is needed and there.
    while let Some(line) = lines.next_line(stop)? {
        let is_empty = line.trim().is_empty();
        let begins = read.iter().any(|line| !line.trim().is_empty());
        let is_request = !is_empty && !begins && is_whole_request(&line);
        read.push(line);
        if is_empty || (is_request && !is_batch) {
            continue;
        }
        is_batch = begins || is_request;
        if is_batch {
            lines.put_back(read);
            return Ok(Requests::Many(Batch { lines, has_sampler, count: 0, unit: "line" }));
        }
        break;
    }
    lines.put_back(read);
    let text = lines.rest(stop)?;
    if let Ok(Value::Array(all)) = serde_json::from_str(&text)
        && all.iter().any(Value::is_object)
    {
        lines.put_back(all.iter().map(Value::to_string).collect());
        return Ok(Requests::Many(Batch { lines, has_sampler, count: 0, unit: "request" }));
    }
    let imported = of_text(&text, has_sampler).map_err(|error| lines.wrong(&reason(&error)))?;
    Ok(Requests::One(Box::new(imported)))
}

/// What is wrong with a request, without the field's name.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    text.strip_prefix("request: ").unwrap_or(&text).to_owned()
}

/// Reads a file with one request.
///
/// # Errors
///
/// Those of [`open`], and when the file has several.
pub fn read(path: &Path, has_sampler: bool, stop: &Stop) -> Result<Imported> {
    match open(path, has_sampler, stop)? {
        Requests::One(imported) => Ok(*imported),
        Requests::Many(_) => Err(wrong(path, "has several requests")),
    }
}

/// A prompt from standard input.
///
/// # Errors
///
/// When there is none, or it is longer than any request.
pub fn prompt(stop: &Stop) -> Result<String> {
    let text = Lines::open("request", Path::new("-"))?.rest(stop)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Error::request("prompt", "standard input is empty"));
    }
    Ok(text.to_owned())
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    endings.iter().any(|known| known.eq_ignore_ascii_case(ending))
}

/// Whether a line is a JSON object by itself.
fn is_whole_request(line: &str) -> bool {
    line.trim_start().starts_with('{')
        && serde_json::from_str::<Value>(line).is_ok_and(|json| json.is_object())
}

/// A request as text; errors do not name the file.
fn of_text(text: &str, has_sampler: bool) -> Result<Imported> {
    let wrong = |reason: String| Error::request("request", reason);
    match serde_json::from_str::<Value>(text) {
        Ok(json) if is_job(&json) => Imported::own(text, false),
        Ok(json) => comfy::request(&json, has_sampler).map_err(wrong),
        Err(_) if a1111::is_parameters(text) => a1111::request(text, has_sampler).map_err(wrong),
        // The error says where the JSON is wrong.
        Err(_) => Imported::own(text, false),
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
        || head.starts_with(b"\xff\xd8\xff")
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
        return Err(wrong(path, NO_REQUEST));
    };
    let graph = serde_json::from_str(&prompt)
        .map_err(|error| wrong(path, &format!("its graph is not JSON: {error}")))?;
    comfy::request(&graph, has_sampler).map_err(|error| wrong(path, &error))
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
