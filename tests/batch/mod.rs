//! Batches: lists of clips, made once.

/// Manifests of every form, and what is wrong in them.
mod manifests;
/// The real program: interruptions, resumption, shards.
#[cfg(all(feature = "cli", feature = "gif"))]
mod program;
/// Environments of schedulers.
mod shards;
