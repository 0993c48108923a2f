//! Bounds on the numbers of a training plan.
//!
//! They lie beyond all sensible values, so that a typo is reported by field name and not by a failed allocation.

use toml::Value;

use crate::{Error, Result};

/// Maximum number of steps of a stage.
pub(super) const MOST_STEPS: i64 = 1_000_000_000;

/// Minimum and maximum of an integer, by field name.
fn bounds(field: &str) -> (i64, i64) {
    match field {
        "seed" => (0, i64::MAX),
        "side" => (1, 1 << 14),
        "frames" | "motion_max_seq_length" => (1, 1 << 10),
        "procedural" => (1, 1 << 24),
        "steps" => (1, MOST_STEPS),
        "warmup" => (0, MOST_STEPS),
        "batch" => (1, 1 << 20),
        "stride" | "accumulate" => (1, 1 << 16),
        "block_out_channels" | "cross_attention_dim" | "hidden_size" | "rank" | "sample_size" => {
            (1, 1 << 14)
        }
        "intermediate_size" => (1, 1 << 16),
        "in_channels" | "out_channels" | "latent_channels" => (1, 1 << 10),
        "norm_num_groups" | "attention_head_dim" | "num_attention_heads" => (1, 1 << 10),
        "layers_per_block" => (1, 16),
        "transformer_layers_per_block" => (1, 32),
        "vocab_size" => (1, 1 << 20),
        "num_hidden_layers" => (1, 128),
        "max_position_embeddings" => (3, 1 << 12),
        "cells" | "skip" => (1, 1000),
        _ => (0, 1 << 16),
    }
}

/// Maximum length of a list: stages of a network.
const MOST_ELEMENTS: usize = 8;

/// Checks every number in `value`; `path` is its location in the plan.
pub(super) fn check(value: &Value, path: &str) -> Result<()> {
    let refuse = |reason: String| Err(Error::request("config", format!("`{path}` {reason}")));
    match value {
        Value::Integer(number) => {
            let (least, most) = bounds(path.rsplit('.').next().unwrap_or(path));
            if !(least..=most).contains(number) {
                return refuse(format!("must lie between {least} and {most}, got {number}"));
            }
        }
        Value::Float(number) if !number.is_finite() => {
            return refuse(format!("must be a number, got {number}"));
        }
        Value::Array(elements) => {
            if elements.len() > MOST_ELEMENTS {
                let count = elements.len();
                return refuse(format!("may have {MOST_ELEMENTS} elements, not {count}"));
            }
            elements.iter().try_for_each(|element| check(element, path))?;
        }
        Value::Table(fields) => {
            for (field, value) in fields {
                let path = if path.is_empty() { field } else { &format!("{path}.{field}") };
                check(value, path)?;
            }
        }
        _ => {}
    }
    Ok(())
}
