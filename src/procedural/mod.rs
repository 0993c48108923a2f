//! Procedural clips with exact captions, for training and for evaluation of a model.
//!
//! A caption is `a COLOR SHAPE MOTION on a BACKGROUND background`; [`grammar`] has the words and their numerical
//! meanings. [`Scene`] renders a caption and a seed to exactly one clip, at any size. [`Oracle`] recognises the
//! content of any clip; it uses the same words but shares no code with the renderer.
//!
//! ```
//! use animatelcm::procedural::{Caption, Oracle, Scene};
//!
//! let caption: Caption = "a red circle moving right on a black background".parse()?;
//! let frames = Scene::new(caption, 42).frames(64, 16);
//! let observation = Oracle::default().observe(&frames);
//! assert!(observation.matches(&caption).all());
//! # Ok::<(), animatelcm::Error>(())
//! ```

pub mod grammar;
mod oracle;
mod outline;
pub mod reading;
mod scene;
mod score;

pub use grammar::{Background, Caption, Color, Motion, Shape};
pub use oracle::{Matches, Observation, Oracle};
pub use scene::Scene;
pub use score::{Count, Score};
