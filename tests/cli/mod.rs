//! The real program, as people and scripts run it.

/// Standard input, many clips of one run.
mod batch;
/// What `bench` prints.
mod bench;
/// `config.toml`.
mod config;
/// How often clips show what their prompts say.
mod eval;
/// Clips, events, exit codes.
mod generate;
/// Help, completions, manual pages.
mod help;
/// Clips of AnimateLCM-I2V.
mod i2v;
/// What `inspect` says of weights.
mod inspect;
/// Long clips and loops.
mod long;
/// Models by name in folders of one's own.
mod models_dir;
/// Hints made of pictures and videos.
mod preprocess;
/// Clips that are shown in a file while they are made.
#[cfg(all(feature = "gif", feature = "webp"))]
mod preview;
/// Options for quality.
mod quality;
/// Signals and limits of the system.
mod signals;
/// Clips that start from images and videos.
mod source;
/// What people see on a terminal.
#[cfg(target_os = "linux")]
mod terminal;
/// Prompts for single frames.
mod travel;
