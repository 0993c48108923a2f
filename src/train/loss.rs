//! Loss functions between a prediction and its target.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Loss function, averaged over all values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// `d²`.
    Mse,
    /// `d² / 2` up to a limit, linear beyond it: torch's `huber_loss`.
    Huber(f64),
    /// `sqrt(d² + c²) - c`, smooth everywhere: Song and Dhariwal (2023).
    PseudoHuber(f64),
}

impl Loss {
    /// Checks that the limit, if any, is positive and finite.
    pub fn validate(self) -> Result<()> {
        match self {
            Self::Huber(c) | Self::PseudoHuber(c) if !(c > 0.0 && c.is_finite()) => {
                Err(Error::request("loss", format!("its limit must be above 0, got {c}")))
            }
            _ => Ok(()),
        }
    }

    /// Loss of two tensors of the same shape, a scalar.
    pub fn of(self, prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
        let d = (prediction - target)?;
        let each = match self {
            Self::Mse => d.sqr()?,
            Self::Huber(limit) => {
                let size = d.abs()?;
                let near = size.minimum(limit)?;
                ((near.sqr()? * 0.5)? + ((size - near)? * limit)?)?
            }
            Self::PseudoHuber(c) => (((d.sqr()? + c * c)?.sqrt()?) - c)?,
        };
        Ok(each.mean_all()?)
    }
}
