//! Weights by canonical name, outside a model, for training, averaging, merging and writing.

use std::collections::{BTreeMap, HashMap};

use crate::weights::VarBuilder;
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::Compute;
use crate::{Error, Result};

/// Tensors by canonical name.
pub type Weights = BTreeMap<String, Tensor>;

/// Trainable weights by canonical name. A tensor taken from one shares its storage and sees later values.
pub type Vars = BTreeMap<String, Var>;

/// A builder for a model's constructor, in the dtype that the model computes in: later lists take precedence over
/// earlier ones. Gradients reach the lists' own tensors.
pub fn builder(lists: &[&Weights], compute: &Compute) -> VarBuilder<'static> {
    let all: HashMap<String, Tensor> = lists
        .iter()
        .flat_map(|list| list.iter().map(|(name, tensor)| (name.clone(), tensor.clone())))
        .collect();
    VarBuilder::from_tensors(all, compute.dtype, &compute.device)
}

/// Trainable copies of weights.
pub fn variables(weights: &Weights) -> Result<Vars> {
    let var = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), Var::from_tensor(tensor)?));
    weights.iter().map(var).collect()
}

/// Gradients of all variables.
///
/// # Errors
///
/// When a variable has none: something then cuts the gradient off, and training it would have no effect.
pub fn gradients(store: &mut GradStore, vars: &Vars) -> Result<Weights> {
    vars.iter()
        .map(|(name, var)| match store.remove(var) {
            // Detached, because a gradient with its graph would keep that in memory, and the moments would keep all
            // of them.
            Some(gradient) => Ok((name.clone(), gradient.detach())),
            None => {
                let name = format!("weight `{name}`");
                Err(Error::Missing { name, reason: "has no gradient".into() })
            }
        })
        .collect()
}

/// EMA update of the weights in `target`: `target ← (1 - share) target + share source`.
///
/// # Errors
///
/// When `source` lacks one of the names.
pub fn move_towards(target: &mut Weights, source: &Weights, share: f64) -> Result<()> {
    for (name, average) in target.iter_mut() {
        let Some(new) = source.get(name) else {
            let name = format!("weight `{name}`");
            return Err(Error::Missing { name, reason: "is not part of the average".into() });
        };
        *average = ((&*average * (1.0 - share))? + (new.detach() * share)?)?;
    }
    Ok(())
}

/// Replaces the weights of a target network by those of a checkpoint.
///
/// # Errors
///
/// When their names differ.
pub(super) fn restore(target: &mut Weights, kept: Weights) -> Result<()> {
    if !kept.keys().eq(target.keys()) {
        let reason = "its target has other weights".into();
        return Err(Error::Missing { name: "checkpoint".into(), reason });
    }
    *target = kept;
    Ok(())
}

/// AnimateDiff's name of a motion module weight, the inverse of the renaming when reading.
pub fn animatediff_name(name: &str) -> String {
    let Some((place, rest)) = name.split_once(".motion_modules.") else { return name.to_owned() };
    let Some((index, rest)) = rest.split_once('.') else { return name.to_owned() };
    let rest = rest
        .replace(".attn1.", ".attention_blocks.0.")
        .replace(".attn2.", ".attention_blocks.1.")
        .replace(".norm1.", ".norms.0.")
        .replace(".norm2.", ".norms.1.")
        .replace(".norm3.", ".ff_norm.");
    format!("{place}.motion_modules.{index}.temporal_transformer.{rest}")
}
