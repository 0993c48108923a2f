//! From what is asked to a file, and from files to requests.

/// The text that clips carry for other programs.
#[cfg(feature = "cli")]
mod parameters;
/// What is typed and where requests come from.
#[cfg(feature = "cli")]
mod requests;
