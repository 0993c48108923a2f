//! Published models and the hub, against a server on loopback.

/// What is on disk.
mod cache;
/// The commands over it.
#[cfg(feature = "cli")]
mod command_line;
/// Downloads, whole and cut.
mod transfers;
/// What is not believed of a server.
mod trust;
