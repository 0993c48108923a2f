//! The crate's error type, with its kinds (which determine exit codes) and hints.
//!
//! It holds plain data only, so every module of the crate can use it. Messages are one line, lowercase, without a
//! period, and name the cause.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::kernels::Cancelled;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Invalid value of an option or request field.
    #[error("{field}: {reason}")]
    Request {
        /// Name of the option or request field.
        field: Cow<'static, str>,
        /// Reason why the value is invalid.
        reason: String,
    },
    /// I/O error of a file.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// Invalid or unsuitable contents of a file.
    #[error("{}: {reason}", path.display())]
    Format {
        /// Path of the file.
        path: PathBuf,
        /// Reason why the contents are invalid.
        reason: String,
    },
    /// Missing model, or a missing file of a model.
    #[error("{name}: {reason}")]
    Missing {
        /// Name of the model, repository or file.
        name: String,
        /// Reason why it is missing.
        reason: String,
    },
    /// Weights that do not match the configuration of a component.
    #[error("{component}: {summary}")]
    Weights {
        /// Name of the component, such as `unet`.
        component: String,
        /// Counts and the first few names of each kind of mismatch.
        summary: String,
    },
    /// Adapter that cannot be applied.
    #[error("adapter `{adapter}`: {reason}")]
    Adapter {
        /// File or name of the adapter.
        adapter: String,
        /// Reason why it cannot be applied.
        reason: String,
    },
    /// File that differs from the published one, or that may not be used.
    #[error("{name}: {reason}")]
    Refused {
        /// Name of the file or model.
        name: String,
        /// The hash or licence in question.
        reason: String,
    },
    /// Requests of a batch that failed; each one's error was reported before.
    #[error("{failed} of {total} clips failed")]
    Batch {
        /// Number of requests that failed.
        failed: usize,
        /// Number of all requests.
        total: usize,
    },
    /// Clips of a batch that are not there.
    #[error("{missing} of {total} clips are missing")]
    Unfinished {
        /// Number of clips that are not there.
        missing: usize,
        /// Number of all clips.
        total: usize,
    },
    /// Error of one part of a list.
    #[error("{place}: {error}")]
    Located {
        /// The part: a file and a line, or the name of a clip.
        place: String,
        /// The underlying error.
        error: Box<Self>,
    },
    /// Feature that the build lacks.
    #[error("this build has no `{feature}` support")]
    Feature {
        /// Name of the cargo feature.
        feature: &'static str,
    },
    /// Device that cannot be used.
    #[error("device {device}: {reason}")]
    Device {
        /// Requested device, such as `cuda:0`.
        device: String,
        /// Reason why it cannot be used.
        reason: String,
    },
    /// Insufficient memory for the run.
    #[error("{what} needs about {}, {} are free", Bytes(*needed), Bytes(*available))]
    Memory {
        /// The part that needs the memory.
        what: String,
        /// Memory needed, in bytes.
        needed: u64,
        /// Memory available, in bytes.
        available: u64,
    },
    /// Failed encoder.
    #[error("{format} encoder: {reason}")]
    Encode {
        /// Name of the container or codec.
        format: &'static str,
        /// Error message of the encoder.
        reason: String,
    },
    /// Cancelled run.
    #[error("interrupted")]
    Cancelled,
    /// Error of the tensor library.
    #[error("{}", Self::of_tensors(.0))]
    Tensor(candle_core::Error),
    /// Another error with a hint.
    #[error("{error}")]
    Hinted {
        /// The underlying error.
        error: Box<Self>,
        /// Suggested action.
        hint: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Category of an error, which determines the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A defect, a full disk, or another unexpected failure: exit code 1.
    Internal,
    /// An invalid request or command line: exit code 2.
    Request,
    /// Missing or mismatched weights: exit code 3.
    Weights,
    /// Insufficient memory, an unusable device, or a feature missing from the build: exit code 4.
    Environment,
    /// A rejected hash or licence: exit code 5.
    Refused,
    /// Failure of a part of a batch: exit code 6.
    Batch,
    /// Interruption: exit code 130.
    Cancelled,
}

impl ErrorKind {
    /// Exit code of the program.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Request => 2,
            Self::Weights => 3,
            Self::Environment => 4,
            Self::Refused => 5,
            Self::Batch => 6,
            Self::Cancelled => 130,
        }
    }
}

impl Error {
    /// An [`Error::Request`] for an invalid value.
    pub fn request(field: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::Request { field: field.into(), reason: reason.into() }
    }

    /// An [`Error::Format`] for a file with invalid contents.
    pub fn format(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// Converts an I/O error of a file to [`Error::File`], for use with `map_err`.
    pub fn file(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::File { path, source }
    }

    /// Adds a hint to the error.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self::Hinted { error: Box::new(self), hint: hint.into() }
    }

    /// Names the part of a list that the error is of.
    #[must_use]
    pub fn at(self, place: impl Into<String>) -> Self {
        Self::Located { place: place.into(), error: Box::new(self) }
    }

    /// Message of a tensor library error, without the backtrace that it contains if `RUST_BACKTRACE` is set.
    pub(crate) fn of_tensors(error: &candle_core::Error) -> String {
        let text = error.to_string();
        // Each frame begins with its number, and the first is 0.
        let is_frame = |line: &&str| line.trim_start().starts_with("0: ");
        let lines: Vec<&str> = text.lines().take_while(|line| !is_frame(line)).collect();
        lines.join(" ").trim_end().to_owned()
    }

    /// Category of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Request { .. } => ErrorKind::Request,
            Self::Format { .. }
            | Self::Missing { .. }
            | Self::Weights { .. }
            | Self::Adapter { .. } => ErrorKind::Weights,
            Self::Feature { .. } | Self::Device { .. } | Self::Memory { .. } => {
                ErrorKind::Environment
            }
            Self::Refused { .. } => ErrorKind::Refused,
            Self::Batch { .. } | Self::Unfinished { .. } => ErrorKind::Batch,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::File { .. } | Self::Encode { .. } | Self::Tensor(_) => ErrorKind::Internal,
            Self::Hinted { error, .. } | Self::Located { error, .. } => error.kind(),
        }
    }

    /// A file that the user named as `field` cannot be read.
    pub(crate) fn unreadable(field: &'static str, path: &Path, error: &std::io::Error) -> Self {
        Self::request(field, format!("{}: {error}", path.display()))
    }

    /// Error for a thread that could not be started.
    pub(crate) fn no_thread(error: &dyn std::fmt::Display) -> Self {
        let reason = format!("the system starts no more threads: {error}");
        Self::Device { device: "cpu".into(), reason }
            .with_hint("raise the limit of processes (`ulimit -u`) or that of memory (`ulimit -v`)")
    }

    /// Suggested action, if any.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Hinted { hint, .. } => Some(Cow::Borrowed(hint)),
            Self::Located { error, .. } => error.hint(),
            Self::Feature { feature } => {
                Some(Cow::Owned(format!("rebuild with `--features {feature}`")))
            }
            Self::File { source, .. } if is_full(source) => {
                Some(Cow::Borrowed("free some space or choose another folder"))
            }
            _ => None,
        }
    }
}

impl From<Cancelled> for Error {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// Unwraps an error of this crate that was passed through the tensor library.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        match error {
            candle_core::Error::Io(error)
                if error.get_ref().is_some_and(
                    <dyn std::error::Error + std::marker::Send + std::marker::Sync + 'static>::is::<
                        Cancelled,
                    >,
                ) =>
            {
                Self::Cancelled
            }
            candle_core::Error::Io(error) => {
                error.downcast().unwrap_or_else(|other| Self::Tensor(candle_core::Error::Io(other)))
            }
            other => Self::Tensor(other),
        }
    }
}

/// Wraps an error of this crate to pass it through the tensor library.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Tensor(error) => error,
            other => Self::Io(std::io::Error::other(other)),
        }
    }
}

/// Returns whether the error means that the disk is full.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Number of bytes, displayed in binary units: `1.3 GiB`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_changes_neither_message_nor_kind() {
        let plain = Error::request("frames", "must be at least 1, got 0");
        let message = plain.to_string();
        let hinted = plain.with_hint("try --frames 16");
        assert_eq!(hinted.to_string(), message);
        assert_eq!(hinted.kind(), ErrorKind::Request);
        assert_eq!(hinted.hint().as_deref(), Some("try --frames 16"));
    }

    #[test]
    fn a_place_stands_before_the_message_and_keeps_kind_and_hint() {
        let error = Error::request("frames", "must be at least 1, got 0").with_hint("try 16");
        let error = error.at("jobs.csv: line 3");
        assert_eq!(error.to_string(), "jobs.csv: line 3: frames: must be at least 1, got 0");
        assert_eq!((error.kind(), error.hint().as_deref()), (ErrorKind::Request, Some("try 16")));
    }

    #[test]
    fn an_error_passes_through_the_tensor_library_unchanged() {
        let within = |error: Error| -> candle_core::Result<()> { Err(error.into()) };
        let through = |error: Error| Error::from(within(error).unwrap_err());
        assert!(matches!(through(Error::Cancelled), Error::Cancelled));
        let hinted = Error::request("frames", "must be at least 1").with_hint("try 16");
        let back = through(hinted);
        assert_eq!(back.to_string(), "frames: must be at least 1");
        assert_eq!((back.kind().exit_code(), back.hint().as_deref()), (2, Some("try 16")));
        // Other errors of the tensor library are kept.
        let own = std::io::Error::other("a disk");
        let own = Error::from(candle_core::Error::Io(own));
        assert!(matches!(own, Error::Tensor(candle_core::Error::Io(_))), "{own:?}");
    }

    #[test]
    fn tensor_errors_have_no_backtrace() {
        let trace = "shape mismatch\n   0: std::backtrace::Backtrace::create\n             at lib.rs:1\n   1: main";
        let error = Error::from(candle_core::Error::Msg(trace.into()));
        assert_eq!(error.to_string(), "shape mismatch");
        let context = candle_core::Error::Msg(trace.into()).context("while loading");
        let text = Error::from(context).to_string();
        assert!(text.contains("while loading") && text.contains("shape mismatch"), "{text}");
        assert!(!text.contains("main"), "{text}");
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(Bytes(12).to_string(), "12 bytes");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(5 << 30).to_string(), "5.0 GiB");
    }
}
