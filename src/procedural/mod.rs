//! Clips whose caption is the whole truth about them: data to train on, and to measure a model with.
//!
//! A caption is `a COLOR SHAPE MOTION on a BACKGROUND background`; [`grammar`] has the words and what they mean in
//! numbers. [`Scene`] turns a caption and a seed into exactly one clip, at any size. [`Oracle`] looks at a clip,
//! whoever made it, and says what it shows; it knows the words but shares no code with the renderer.
//!
//! ```
//! use animatelcm::procedural::{Caption, Oracle, Scene};
//!
//! let caption: Caption = "a red circle moving right on a black background".parse()?;
//! let frames = Scene::new(caption, 42).frames(64, 16);
//! let seen = Oracle::default().look(&frames);
//! assert!(seen.matches(&caption).all());
//! # Ok::<(), animatelcm::Error>(())
//! ```

pub mod grammar;
mod oracle;
mod outline;
mod scene;
mod score;

pub use grammar::{Background, Caption, Color, Motion, Shape};
pub use oracle::{Matches, Oracle, Seen};
pub use scene::Scene;
pub use score::{Count, Score};
