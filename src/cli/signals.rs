//! Ctrl-C and its relatives: the first asks the work to stop, the second ends the program.

use std::io::IsTerminal;

use serde_json::json;

use super::terminal;
use crate::{Error, ErrorKind, Result, Stop};

/// The acknowledgement of the first signal on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A line.
    Line,
    /// A JSON event.
    Json,
}

/// A stop that SIGINT, SIGTERM, SIGHUP and their like request. A second signal ends the program at once.
///
/// # Errors
///
/// When the thread that waits for signals cannot be started.
pub(super) fn stop(answer: Answer) -> Result<Stop> {
    const SAID: &str = "stopping; again to end at once";
    let stop = Stop::default();
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.request() {
            end();
        }
        match answer {
            Answer::Json => {
                terminal::line(&json!({"event": "warning", "message": SAID}).to_string());
            }
            // A terminal shows `^C` where the cursor is.
            Answer::Line if std::io::stderr().is_terminal() => terminal::line(&format!("\n{SAID}")),
            Answer::Line => terminal::line(SAID),
        }
    })
    .map_err(|error| Error::no_thread(&error))?;
    Ok(stop)
}

/// Ends the program without waiting for anything, and leaves no draft behind.
#[allow(clippy::exit, reason = "nobody else can end a thread that is busy")]
fn end() -> ! {
    crate::files::remove_drafts();
    std::process::exit(ErrorKind::Cancelled.exit_code().into())
}
