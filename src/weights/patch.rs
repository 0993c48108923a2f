//! Patches applied to weights while they are loaded.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;

use super::Component;
use crate::Result;

/// A change of weights applied while they are loaded, such as a LoRA.
pub trait WeightPatch: fmt::Debug + Send + Sync {
    /// The name used in reports and errors.
    fn label(&self) -> &str;

    /// The canonical names of the weights it changes.
    fn names(&self) -> &BTreeSet<String>;

    /// The patched weight at `strength`.
    ///
    /// `weight` and the result are in `f32` on the CPU, whatever dtypes the file and the model have; the shape must not
    /// change.
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
    /// Creates an empty stack.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a patch of a component's weights.
    pub fn push(&mut self, component: Component, patch: Arc<dyn WeightPatch>, strength: f64) {
        self.entries.push(PatchEntry { component, patch, strength });
    }

    /// Appends the patches of another stack.
    pub fn append(&mut self, more: &Self) {
        self.entries.extend(more.entries.iter().cloned());
    }

    /// The canonical names of a component's weights that any patch changes.
    pub fn names(&self, component: Component) -> BTreeSet<&str> {
        self.of(component).flat_map(|entry| entry.patch.names()).map(String::as_str).collect()
    }

    /// Returns whether the stack has no patches.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The patches of one component.
    pub(super) fn of(&self, component: Component) -> impl Iterator<Item = &PatchEntry> {
        self.entries.iter().filter(move |entry| entry.component == component)
    }
}
