//! Lines of `metrics.jsonl`.

use serde::{Deserialize, Serialize};

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Name of the stage.
    pub stage: String,
    /// Step, counted from 1.
    pub step: usize,
    /// Loss of the step.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub norm: f64,
    /// Learning rate.
    pub rate: f64,
    /// Duration of the step in seconds.
    pub seconds: f64,
}
