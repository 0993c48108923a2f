//! Batches: the clips of a list, made in one or several processes, and made once.
//!
//! A manifest ([`list()`]) becomes items in the order of its lines. Those of a [`Shard`] are completed, named by the key of
//! what they are made of ([`Plan`]), and made in the order of their weights ([`run()`]). A clip whose file is there is not
//! made again; a report has a line for each item.

mod columns;
mod entry;
mod fields;
mod lines;
mod list;
mod manifest;
mod matrix;
mod name;
mod plan;
mod report;
mod run;
mod shard;

pub use list::{Item, List, list};
pub use manifest::{Kind, entries};
pub use name::Template;
pub use plan::{Plan, Planned, Settings, State};
pub use report::{Failure, Record, Status};
pub use run::{At, Counts, Options, Watch, run};
pub use shard::{Found, Shard};

/// The most clips of a manifest.
pub const MOST_ITEMS: usize = 100_000;

/// The option that the manifest is given by.
const FIELD: &str = "manifest";
