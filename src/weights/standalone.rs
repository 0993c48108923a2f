//! Networks that are no part of a model, such as those that measure clips: built under the names of their own files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device};

use super::backend::{Backend, Record};
use super::{Archive, Checkpoint, Component, Located, Source, VarBuilder, archives_in, quoted};
use crate::{Error, Result};

/// The files of a network, of which every tensor is used or ignored for a stated reason.
#[derive(Debug)]
pub struct Standalone {
    name: &'static str,
    archives: Vec<Arc<Archive>>,
    index: Arc<BTreeMap<String, Located>>,
}

impl Standalone {
    /// Opens a file, or the weights in a folder of transformers' or diffusers' layout. `name` is what messages call
    /// the network; `ignored` gives the reason why a tensor is not used.
    ///
    /// # Errors
    ///
    /// A file that is missing or damaged, or two with a tensor of the same name.
    pub fn open(
        name: &'static str,
        path: &Path,
        ignored: impl Fn(&str) -> Option<&'static str>,
    ) -> Result<Self> {
        let archives = if path.is_dir() {
            archives_in(path, Component::ImageEncoder.stems(), &[])?
        } else {
            vec![Arc::new(Archive::open(&Source::from(path.to_path_buf()))?)]
        };
        let mut index = BTreeMap::new();
        for (number, archive) in archives.iter().enumerate() {
            for (stored, info) in archive.tensors().filter(|(name, _)| ignored(name).is_none()) {
                let shape = info.shape.clone();
                let located = Located { archive: number, stored: stored.to_owned(), shape };
                if index.insert(stored.to_owned(), located).is_some() {
                    let reason = format!("has {} again", quoted(stored));
                    return Err(Error::format(archive.path(), reason));
                }
            }
        }
        if index.is_empty() {
            return Err(Error::format(path, "holds no tensors"));
        }
        Ok(Self { name, archives, index: Arc::new(index) })
    }

    /// The shape of a tensor.
    pub fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|at| at.shape.as_slice())
    }

    /// The number of values of all tensors.
    pub(crate) fn values(&self) -> u64 {
        let values = |at: &Located| at.shape.iter().map(|side| *side as u64).product::<u64>();
        self.index.values().map(values).fold(0, u64::saturating_add)
    }

    /// The files.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Source> {
        self.archives.iter().map(|archive| archive.source().clone())
    }

    /// Path, length and time of change of each file.
    pub(crate) fn identity(&self) -> String {
        let all: Vec<&str> = self.archives.iter().map(|archive| archive.identity()).collect();
        all.join(", ")
    }

    /// Checks that the files hold what `model` wants, and nothing else, without reading any tensor.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, has another shape or was not requested; any error of `model`.
    pub(crate) fn check<T>(&self, model: impl Fn(VarBuilder<'static>) -> Result<T>) -> Result<()> {
        Checkpoint::survey(self.name, &self.index, DType::F32, model)
    }

    /// Builds the network with `model`, which receives tensors of `dtype` (`F32`, `F16` or `BF16`) on `device`.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, has another shape, is not finite, or was not requested; any error of `model`.
    pub fn build<T>(
        &self,
        dtype: DType,
        device: &Device,
        model: impl Fn(VarBuilder<'static>) -> Result<T>,
    ) -> Result<T> {
        Checkpoint::survey(self.name, &self.index, dtype, &model)?;
        let record = Arc::new(Mutex::new(Record::default()));
        let backend = Backend {
            archives: self.archives.clone(),
            index: Arc::clone(&self.index),
            patches: Vec::new(),
            record: Arc::clone(&record),
        };
        let built = model(VarBuilder::from_backend(Box::new(backend), dtype, device.clone()));
        // The first error that is not about names and shapes says more than what candle makes of it.
        match record.lock().unwrap_or_else(PoisonError::into_inner).failure.take() {
            Some(failure) => Err(failure),
            None => built,
        }
    }
}
