//! The one error type, its kinds (which become exit codes) and its hints.
//!
//! It holds plain data only, so every floor of the crate can use it. Messages are one line, lowercase,
//! without a period, and name the culprit.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that the user asked for cannot be used.
    #[error("{field}: {reason}")]
    Request {
        /// The option or request field.
        field: Cow<'static, str>,
        /// What is wrong with its value.
        reason: String,
    },
    /// The operating system refused something about a file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's bytes are not what its name promises, or not what is needed.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with its contents.
        reason: String,
    },
    /// A model or one of its files is not there.
    #[error("{name}: {reason}")]
    Missing {
        /// The model, repository or file.
        name: String,
        /// Why it could not be had.
        reason: String,
    },
    /// A component's weights are not exactly those that its configuration asks for.
    #[error("{component}: {summary}")]
    Weights {
        /// The component, such as `unet`.
        component: String,
        /// Counts and the first few names of each kind of misfit.
        summary: String,
    },
    /// An adapter cannot be applied.
    #[error("adapter `{adapter}`: {reason}")]
    Adapter {
        /// The adapter's file or name.
        adapter: String,
        /// Why not.
        reason: String,
    },
    /// A file is not the file that was published, or may not be used.
    #[error("{name}: {reason}")]
    Refused {
        /// The file or model.
        name: String,
        /// Which hash or licence is the trouble.
        reason: String,
    },
    /// The build lacks a feature.
    #[error("this build has no `{feature}` support")]
    Feature {
        /// The cargo feature.
        feature: &'static str,
    },
    /// A device cannot be used.
    #[error("device {device}: {reason}")]
    Device {
        /// What was asked for, such as `cuda:0`.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The run does not fit into memory.
    #[error("{what} needs about {}, {} are free", Bytes(*needed), Bytes(*available))]
    Memory {
        /// What needs it.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// An encoder failed.
    #[error("{format} encoder: {reason}")]
    Encode {
        /// The container or codec.
        format: &'static str,
        /// What it said.
        reason: String,
    },
    /// Somebody asked the run to stop.
    #[error("interrupted")]
    Cancelled,
    /// The tensor library failed.
    #[error("{}", Self::of_tensors(.0))]
    Tensor(candle_core::Error),
    /// Another error with advice of its own.
    #[error("{error}")]
    Hinted {
        /// The error.
        error: Box<Self>,
        /// What to try.
        hint: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error means to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A defect, a full disk, or something else nobody asked for: exit code 1.
    Internal,
    /// The request or the command line is wrong: exit code 2.
    Request,
    /// Weights are missing or do not fit: exit code 3.
    Weights,
    /// Memory or device: exit code 4.
    Environment,
    /// A hash or a licence was refused: exit code 5.
    Refused,
    /// Interrupted: exit code 130.
    Cancelled,
}

impl ErrorKind {
    /// The exit code of the program.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Request => 2,
            Self::Weights => 3,
            Self::Environment => 4,
            Self::Refused => 5,
            Self::Cancelled => 130,
        }
    }
}

impl Error {
    /// A request that cannot be met.
    pub fn request(field: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::Request { field: field.into(), reason: reason.into() }
    }

    /// A file whose contents are wrong.
    pub fn format(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// Something the system said about a file. To be used with `map_err`.
    pub fn file(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::File { path, source }
    }

    /// The same error with advice.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self::Hinted { error: Box::new(self), hint: hint.into() }
    }

    /// What the tensor library says, without the backtrace that its errors carry where `RUST_BACKTRACE` is set.
    pub(crate) fn of_tensors(error: &candle_core::Error) -> String {
        let text = error.to_string();
        // Each frame begins with its number, and the first is 0.
        let is_frame = |line: &&str| line.trim_start().starts_with("0: ");
        let lines: Vec<&str> = text.lines().take_while(|line| !is_frame(line)).collect();
        lines.join(" ").trim_end().to_owned()
    }

    /// What the error means to a caller.
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
            Self::Cancelled => ErrorKind::Cancelled,
            Self::File { .. } | Self::Encode { .. } | Self::Tensor(_) => ErrorKind::Internal,
            Self::Hinted { error, .. } => error.kind(),
        }
    }

    /// A file that the user named as `field` cannot be read.
    pub(crate) fn unreadable(field: &'static str, path: &Path, error: &std::io::Error) -> Self {
        Self::request(field, format!("{}: {error}", path.display()))
    }

    /// The system refused a thread.
    pub(crate) fn no_thread(error: &dyn std::fmt::Display) -> Self {
        let reason = format!("the system starts no more threads: {error}");
        Self::Device { device: "cpu".into(), reason }
            .with_hint("raise the limit of processes (`ulimit -u`) or that of memory (`ulimit -v`)")
    }

    /// What to try.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Hinted { hint, .. } => Some(Cow::Borrowed(hint)),
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

/// An error of this crate that went through the tensor library comes out as it went in.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        match error {
            candle_core::Error::Io(error) => {
                error.downcast().unwrap_or_else(|other| Self::Tensor(candle_core::Error::Io(other)))
            }
            other => Self::Tensor(other),
        }
    }
}

/// Carries an error of this crate through the tensor library.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Tensor(error) => error,
            other => Self::Io(std::io::Error::other(other)),
        }
    }
}

/// Whether the system says that there is no room left.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// A number of bytes, printed for people: `1.3 GiB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

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
    fn an_error_passes_through_the_tensor_library_unchanged() {
        let within = |error: Error| -> candle_core::Result<()> { Err(error.into()) };
        let through = |error: Error| Error::from(within(error).unwrap_err());
        assert!(matches!(through(Error::Cancelled), Error::Cancelled));
        let hinted = Error::request("frames", "must be at least 1").with_hint("try 16");
        let back = through(hinted);
        assert_eq!(back.to_string(), "frames: must be at least 1");
        assert_eq!((back.kind().exit_code(), back.hint().as_deref()), (2, Some("try 16")));
        // What is not ours stays the tensor library's.
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
