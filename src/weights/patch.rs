//! Changes of weights on their way into a model.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;

use super::Component;
use crate::Result;

/// Changes weights as they are loaded: LoRA and its relatives.
pub trait WeightPatch: fmt::Debug + Send + Sync {
    /// What reports and errors call it.
    fn label(&self) -> &str;

    /// The canonical names of the weights that it changes.
    fn names(&self) -> &BTreeSet<String>;

    /// The weight after the patch at `strength`.
    ///
    /// `weight` is in `f32` on the CPU, whatever the file and the model hold, and so is the result; its
    /// shape must stay.
    fn apply(&self, name: &str, weight: &Tensor, strength: f64) -> Result<Tensor>;
}

/// Patches with their strengths, applied in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct PatchStack {
    entries: Vec<PatchEntry>,
}

#[derive(Clone, Debug)]
pub(super) struct PatchEntry {
    pub(super) component: Component,
    pub(super) patch: Arc<dyn WeightPatch>,
    pub(super) strength: f64,
}

impl PatchStack {
    /// No patches.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a patch of a component's weights.
    pub fn push(&mut self, component: Component, patch: Arc<dyn WeightPatch>, strength: f64) {
        self.entries.push(PatchEntry { component, patch, strength });
    }

    /// Adds the patches of another stack behind its own.
    pub fn append(&mut self, more: &Self) {
        self.entries.extend(more.entries.iter().cloned());
    }

    /// The canonical names of the weights of a component that are changed.
    pub fn names(&self, component: Component) -> BTreeSet<&str> {
        self.of(component).flat_map(|entry| entry.patch.names()).map(String::as_str).collect()
    }

    /// Whether there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The patches of one component.
    pub(super) fn of(&self, component: Component) -> impl Iterator<Item = &PatchEntry> {
        self.entries.iter().filter(move |entry| entry.component == component)
    }
}
