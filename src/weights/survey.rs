//! Comparison of the weights a constructor requests with the file headers, before any weight is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;

use super::VarBuilder;

use super::Located;
use super::format::quoted;

/// Maximum number of mismatches to collect: a configuration may request millions of weights.
const MOST: usize = 4096;

/// The names and shapes that a constructor requested.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) used: BTreeSet<String>,
    pub(super) missing: BTreeSet<String>,
    /// Name to stored shape and requested shape.
    pub(super) misshapen: BTreeMap<String, (Vec<usize>, Vec<usize>)>,
}

impl Survey {
    /// Runs `model` on placeholders for the weights of `index`; returns the requested weights and the error of `model`.
    pub(super) fn of<T, E>(
        index: &Arc<BTreeMap<String, Located>>,
        dtype: DType,
        model: impl FnOnce(VarBuilder<'static>) -> std::result::Result<T, E>,
    ) -> (Self, Option<E>) {
        let survey = Arc::new(Mutex::new(Self::default()));
        let backend = Surveyor { index: Arc::clone(index), survey: Arc::clone(&survey) };
        let error = model(VarBuilder::from_backend(Box::new(backend), dtype, Device::Cpu)).err();
        let survey = std::mem::take(&mut *survey.lock().unwrap_or_else(PoisonError::into_inner));
        (survey, error)
    }

    /// Returns whether the survey stopped early because of too many mismatches.
    pub(super) fn is_cut(&self) -> bool {
        self.missing.len() + self.misshapen.len() >= MOST
    }

    /// Returns whether the files have every requested weight in the requested shape.
    pub(super) fn fits(&self) -> bool {
        self.missing.is_empty() && self.misshapen.is_empty()
    }
}

/// A tensor of any shape that takes no memory: a scalar, broadcast.
///
/// It tracks gradients, so that layers keep it as is instead of packing it.
pub(super) fn placeholder(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    Var::zeros((), dtype, &Device::Cpu)?.as_tensor().broadcast_as(shape)
}

struct Surveyor {
    index: Arc<BTreeMap<String, Located>>,
    survey: Arc<Mutex<Survey>>,
}

impl Surveyor {
    fn survey(&self) -> MutexGuard<'_, Survey> {
        self.survey.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimpleBackend for Surveyor {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        let mut survey = self.survey();
        match self.index.get(name) {
            None => {
                survey.missing.insert(name.to_owned());
            }
            Some(at) => {
                survey.used.insert(name.to_owned());
                if at.shape != shape.dims() {
                    let pair = (at.shape.clone(), shape.dims().to_vec());
                    survey.misshapen.insert(name.to_owned(), pair);
                }
            }
        }
        if survey.is_cut() {
            candle_core::bail!("more than {MOST} weights do not fit");
        }
        // Returns a placeholder so that the constructor goes on and all mismatches are found at once.
        placeholder(shape, dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        let mut survey = self.survey();
        let Some(at) = self.index.get(name) else {
            survey.missing.insert(name.to_owned());
            candle_core::bail!("{} is missing", quoted(name));
        };
        survey.used.insert(name.to_owned());
        placeholder(at.shape.as_slice(), dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }
}
