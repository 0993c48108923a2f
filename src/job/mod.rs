//! From a job to a file: the one way of `generate`, `replay`, `bench`, `eval` and whoever else takes jobs.
//!
//! Names become files ([`Names`]), inputs are read once, networks opened ([`open`]), the clip made, and what was used is
//! written into it ([`run`]).

mod caption;
mod compare;
mod complete;
mod embeddings;
mod folders;
mod import;
mod key;
mod lora_tags;
mod open;
mod parameters;
mod preview;
mod prompts;
mod record;
mod resolve;
mod run;
mod tensors;
mod trust;

pub use caption::caption;
pub use compare::{Likeness, compare};
pub use complete::{Completion, networks_of};
pub use import::{
    Batch, Imported, NO_REQUEST, Origin, Requests, open as requests, prompt, read as import,
};
pub use key::key;
pub(crate) use key::{hash, json_of};
pub use lora_tags::resolve_by as resolve_lora_tags;
pub use open::{open, open_files};
pub use preview::check as check_preview;
pub use prompts::{Folders, resolve as resolve_prompts};
pub use resolve::{
    Inputs as ListedInputs, Listed, Names, apply_defaults, controls, depth, depth_model, files,
    ip_adapters, networks,
};
pub use run::{Target, run};
pub use trust::{Known, check as check_trust};
