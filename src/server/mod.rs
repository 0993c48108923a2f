//! HTTP over a queue: `/v1/jobs` with this program's own requests, `/v1/videos` in OpenAI's shape, and a page.
//!
//! Clients name models of a catalog and what they uploaded, never files. A connection that breaks loses nothing: jobs
//! are in the queue, and events can be asked for again from any of them on.

mod answer;
mod auth;
mod body;
mod catalog;
mod content;
mod events;
mod guard;
mod info;
mod jobs;
mod keys;
mod metrics;
mod names;
mod openapi;
mod page;
mod prepare;
mod previews;
mod routes;
mod run;
mod sessions;
mod state;
mod tasks;
mod uploads;
mod videos;
mod work;

pub use catalog::Catalog;
pub use keys::{Keys, add as add_key};
pub use run::serve;
pub use state::{Limits, Settings};
pub use work::{WorkSettings, work};
