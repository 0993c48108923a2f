//! Text that comes line by line, from a file or from a pipe that somebody still writes to.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::{Error, Result, Stop};

/// The longest line, and the longest rest of a text: bytes.
const LONGEST: u64 = 16 << 20;

/// The lines of a text file, or of standard input as `-`.
#[derive(Debug)]
pub(crate) struct Lines {
    field: &'static str,
    path: PathBuf,
    next: Receiver<io::Result<String>>,
    /// Lines that were put back.
    ready: VecDeque<String>,
}

impl Lines {
    /// Nothing is read yet. `field` is used in messages. A pipe is waited for in a thread, because neither opening nor
    /// reading it can be ended.
    pub(crate) fn open(field: &'static str, path: &Path) -> Result<Self> {
        let (send, next) = sync_channel(1);
        let file = path.to_path_buf();
        let read = move || {
            if file.as_os_str() == "-" {
                send_lines(io::stdin().lock(), &send);
                return;
            }
            match File::open(file) {
                Ok(file) => send_lines(BufReader::new(file), &send),
                Err(error) => drop(send.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("lines".into()).spawn(read);
        thread.map_err(|error| Error::no_thread(&error))?;
        Ok(Self { field, path: path.to_path_buf(), next, ready: VecDeque::new() })
    }

    /// The next line with its end; none after the last.
    pub(crate) fn next_line(&mut self, stop: &Stop) -> Result<Option<String>> {
        const TICK: Duration = Duration::from_millis(50);
        if let Some(line) = self.ready.pop_front() {
            return Ok(Some(line));
        }
        loop {
            stop.check()?;
            match self.next.recv_timeout(TICK) {
                Ok(Ok(line)) => return Ok(Some(line)),
                Ok(Err(error)) => return Err(self.wrong(&error.to_string())),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// Puts lines in front of those that are left.
    pub(crate) fn put_back(&mut self, lines: Vec<String>) {
        for line in lines.into_iter().rev() {
            self.ready.push_front(line);
        }
    }

    /// All that is left, as one text.
    pub(crate) fn rest(&mut self, stop: &Stop) -> Result<String> {
        let mut text = String::new();
        while let Some(line) = self.next_line(stop)? {
            text.push_str(&line);
            if text.len() as u64 > LONGEST {
                return Err(self.wrong(&too_long()));
            }
        }
        Ok(text)
    }

    /// What is wrong with the text.
    pub(crate) fn wrong(&self, reason: &str) -> Error {
        Error::request(self.field, format!("{}: {reason}", text_name(&self.path)))
    }
}

/// The name of a text in messages, which is standard input as `-`.
pub(crate) fn text_name(path: &Path) -> Cow<'_, str> {
    if path.as_os_str() == "-" { "standard input".into() } else { path.to_string_lossy() }
}

fn too_long() -> String {
    format!("has more than {LONGEST} bytes")
}

/// Sends lines until the end, an error, or nobody listens.
fn send_lines(mut text: impl BufRead, send: &SyncSender<io::Result<String>>) {
    loop {
        let mut line = Vec::new();
        let read = text.by_ref().take(LONGEST + 1).read_until(b'\n', &mut line);
        let sent = match read {
            Ok(0) => return,
            Ok(_) if line.len() as u64 > LONGEST => {
                Err(io::Error::new(io::ErrorKind::InvalidData, too_long()))
            }
            Ok(_) => String::from_utf8(line)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8 text")),
            Err(error) => Err(error),
        };
        let is_last = sent.is_err();
        if send.send(sent).is_err() || is_last {
            return;
        }
    }
}
