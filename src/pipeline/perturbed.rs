//! Perturbed-attention guidance: Ahn et al. (2024), arXiv 2403.17377, as `PAGMixin` of diffusers 0.42.1.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Tensor;

use crate::models::unet::{Perturbation, UNetConfig};
use crate::request::Pag;
use crate::{Error, Result};

/// The settings, and the self-attentions of a UNet that they name.
#[derive(Clone, Debug)]
pub struct Perturbed {
    pag: Pag,
    layers: Arc<BTreeSet<String>>,
}

impl Perturbed {
    /// For the self-attentions of a UNet.
    ///
    /// # Errors
    ///
    /// When a pattern names none of them.
    pub fn new(pag: &Pag, unet: &UNetConfig) -> Result<Self> {
        let names = unet.self_attentions()?;
        let mut layers = BTreeSet::new();
        for pattern in pag.patterns()? {
            let found: Vec<_> = names.iter().filter(|name| pattern.is_match(name)).collect();
            if found.is_empty() {
                let reason = format!("`{}` is in the name of no self-attention", pattern.as_str());
                let example = names.first().map(String::as_str).unwrap_or_default();
                return Err(Error::request("pag-layers", reason)
                    .with_hint(format!("their names are like {example}")));
            }
            layers.extend(found.into_iter().cloned());
        }
        Ok(Self { pag: pag.clone(), layers: Arc::new(layers) })
    }

    /// The perturbation of the last clips of a batch.
    pub(super) fn of(&self, clips: usize) -> Perturbation {
        Perturbation { clips, layers: Arc::clone(&self.layers) }
    }

    /// A `guided` output, guided away from the `perturbed` one of the same prompt as `cond`.
    pub(super) fn guide(
        &self,
        guided: &Tensor,
        (cond, perturbed): (&Tensor, &Tensor),
        timestep: f64,
    ) -> Result<Tensor> {
        Ok((guided + ((cond - perturbed)? * self.pag.scale_at(timestep))?)?)
    }
}
