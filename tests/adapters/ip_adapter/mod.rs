//! IP-Adapters and the image encoder, against diffusers and transformers.

/// Features, masks, names, layouts.
mod networks;
/// The program with image prompts.
#[cfg(feature = "cli")]
mod program;
/// Single passes of the UNet.
mod prompts;
/// What does not go together.
mod refusals;
/// Whole runs.
mod runs;
