//! Depth Anything: an open file, and the network that is built of it.

use std::path::Path;

use candle_core::{DType, Device};

use super::{Source, configs};
use crate::models::depth_anything::{DepthAnything, DepthAnythingConfig};
use crate::weights::{Standalone, until};
use crate::{Result, Stop};

/// What messages call the network.
const NAME: &str = "Depth Anything";

/// An open network. Nothing is read until it is built.
#[derive(Debug)]
pub(super) struct OpenDepth {
    network: Standalone,
    pub(super) config: DepthAnythingConfig,
}

impl OpenDepth {
    /// Opens a folder of transformers, or a file with its `config.json` beside it.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub(super) fn open(path: &Path) -> Result<Self> {
        const HINT: &str =
            "a model for depth is a folder as of depth-anything/Depth-Anything-V2-Small-hf";
        let (_, config) = configs::of_type::<DepthAnythingConfig>(path, "depth_anything", HINT)?;
        let network = Standalone::open(NAME, path, DepthAnythingConfig::ignored)?;
        network.check(|vb| DepthAnything::new(&config, &vb))?;
        Ok(Self { network, config })
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.network.sources()
    }

    /// Bytes of its weights.
    pub(super) fn bytes(&self, dtype: DType) -> u64 {
        self.network.values().saturating_mul(dtype.size_in_bytes() as u64)
    }

    /// What makes it, beside device and dtype.
    pub(super) fn identity(&self) -> String {
        self.network.identity()
    }

    pub(super) fn build(
        &self,
        dtype: DType,
        device: &Device,
        stop: &Stop,
    ) -> Result<DepthAnything> {
        let model = |vb| DepthAnything::new(&self.config, &until(vb, stop));
        self.network.build(dtype, device, model)
    }
}

/// The network for depth in a folder of transformers, or in a file with its `config.json` beside it.
///
/// # Errors
///
/// When it is something else, or its weights do not fit.
pub fn depth_network(
    path: &Path,
    dtype: DType,
    device: &Device,
    stop: &Stop,
) -> Result<DepthAnything> {
    OpenDepth::open(path)?.build(dtype, device, stop)
}
