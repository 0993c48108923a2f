//! Self-attentions that are switched off for a part of the batch.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Stages, UNetConfig};
use crate::Result;

/// Self-attentions in which every place attends to itself alone, for the last clips of the batch: arXiv 2403.17377,
/// section 4.
#[derive(Clone, Debug)]
pub struct Perturbation {
    /// Number of clips at the end of the batch.
    pub clips: usize,
    /// Names of the self-attentions, of [`UNetConfig::self_attentions`].
    pub layers: Arc<BTreeSet<String>>,
}

impl Perturbation {
    /// The number of clips for which a self-attention is switched off.
    pub(super) fn clips(&self, name: &str) -> usize {
        if self.layers.contains(name) { self.clips } else { 0 }
    }
}

impl UNetConfig {
    /// The names of all self-attentions, those of motion modules among them.
    ///
    /// # Errors
    ///
    /// A block type that is not supported.
    pub fn self_attentions(&self) -> Result<Vec<String>> {
        let Stages { down, mid, up } = self.stages()?;
        let mut names = Vec::new();
        for stage in down.iter().chain([&mid]).chain(&up) {
            for (j, layer) in stage.layers.iter().enumerate() {
                if layer.attention {
                    let blocks = 0..self.transformer_layers_per_block;
                    names.extend(blocks.map(|block| spatial(&stage.name(), j, block)));
                }
                if layer.motion {
                    let count = match &self.motion {
                        Some(motion) if motion.double_self_attention => 2,
                        _ => 1,
                    };
                    names.extend((0..count).map(|i| temporal(&stage.name(), j, i)));
                }
            }
        }
        Ok(names)
    }
}

/// The name of a spatial self-attention: its stage, and the places of its layer and of its block there.
pub(super) fn spatial(stage: &str, layer: usize, block: usize) -> String {
    format!("{stage}.attentions.{layer}.transformer_blocks.{block}.attn1")
}

/// The name of the first (0) or second self-attention of a motion module.
pub(super) fn temporal(stage: &str, layer: usize, which: usize) -> String {
    format!("{stage}.motion_modules.{layer}.transformer_blocks.0.attn{}", which + 1)
}
