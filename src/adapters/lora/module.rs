//! A module of an adapter: its stored tensors, and the family that reads them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::LoraScale;
use super::change::{ModuleChange, Stored};
use super::peft::ModuleConfig;
use crate::Result;
use crate::weights::Archive;

/// A method to compute a change from stored tensors. A new family needs a module and an entry in [`FAMILIES`].
#[derive(Debug)]
pub(super) struct Family {
    /// The name used in reports.
    pub(super) name: &'static str,
    /// Suffixes of stored names, and the part for each.
    pub(super) suffixes: &'static [(&'static str, &'static str)],
    /// A suffix that must be present in the module, for families whose other suffixes are ambiguous.
    pub(super) mark: Option<&'static str>,
    /// Creates the change.
    pub(super) read: fn(&Parts<'_>) -> Result<ModuleChange, String>,
}

/// The stored tensors of one module, with its alpha and configuration.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) archive: &'a Arc<Archive>,
    pub(super) stored: &'a BTreeMap<&'static str, String>,
    /// The alpha stored for this module.
    pub(super) alpha: Option<f64>,
    /// The configuration of this module.
    pub(super) config: ModuleConfig,
    pub(super) scale: LoraScale,
}

impl Parts<'_> {
    /// A part, if the module has it.
    pub(super) fn get(&self, part: &str) -> Option<Stored> {
        Stored::find(self.archive, self.stored.get(part)?)
    }

    /// A required part.
    pub(super) fn need(&self, part: &str) -> Result<Stored, String> {
        self.get(part).ok_or_else(|| format!("it has no {part} matrix"))
    }

    /// The scale of the module, given its rank.
    pub(super) fn factor(&self, rank: Option<usize>) -> f64 {
        match (self.scale, self.alpha, rank.or(self.config.rank)) {
            (LoraScale::Fixed(factor), ..) => factor,
            (LoraScale::AlphaOverRank, Some(alpha), Some(rank)) if self.config.by_root => {
                alpha / (rank as f64).sqrt()
            }
            (LoraScale::AlphaOverRank, Some(alpha), Some(rank)) => alpha / rank as f64,
            (LoraScale::AlphaOverRank, ..) => 1.0,
        }
    }
}
