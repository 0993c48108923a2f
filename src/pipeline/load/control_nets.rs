//! ControlNets: open files, their sizes, and whether they belong to the UNet.

use std::path::Path;

use candle_core::{DType, Device};

use super::{Source, parse_json};
use crate::models::control_net::{ControlNet, ControlNetConfig};
use crate::models::unet::UNetConfig;
use crate::weights::{Checkpoint, Component, LoadReport, PatchStack};
use crate::{Error, Result};

/// A ControlNet to use.
#[derive(Clone, Debug)]
pub struct ControlFile {
    /// What requests call it.
    pub name: String,
    /// Its file, in any layout, or its folder.
    pub source: Source,
}

/// An open ControlNet. Nothing is read until it is built.
#[derive(Debug)]
pub(super) struct OpenControlNet {
    checkpoint: Checkpoint,
    config: ControlNetConfig,
}

impl OpenControlNet {
    /// Opens a file beside a UNet, whose latents have `factor` pixels a side.
    ///
    /// # Errors
    ///
    /// When it is something else, or was made for another model.
    pub(super) fn open(file: &ControlFile, unet: &UNetConfig, factor: usize) -> Result<Self> {
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_component(Component::ControlNet, &file.source)?;
        let config = match own_config(&file.source)? {
            Some(config) => config,
            None => from_shapes(&checkpoint, unet)?,
        };
        let wrong = |reason: String| {
            let adapter = file.name.clone();
            let hint = "a ControlNet fits the kind of model that it was trained beside";
            Err(Error::Adapter { adapter, reason }.with_hint(hint))
        };
        let sizes = |config: &UNetConfig| {
            let UNetConfig { in_channels, block_out_channels, cross_attention_dim, .. } = config;
            format!(
                "{in_channels} channels in, widths {block_out_channels:?} and a context of \
                 {cross_attention_dim}"
            )
        };
        let (own, models) = (sizes(&config.unet), sizes(unet));
        if own != models {
            return wrong(format!("is a ControlNet for {own}, the model has {models}"));
        }
        if config.unet.layers_per_block != unet.layers_per_block {
            return wrong(format!(
                "has {} layers a stage, the model {}",
                config.unet.layers_per_block, unet.layers_per_block
            ));
        }
        if config.factor() != factor {
            return wrong(format!(
                "shrinks hints to 1/{}, the autoencoder pictures to 1/{factor}",
                config.factor()
            ));
        }
        if config.conditioning_channels != 3 {
            return wrong(format!(
                "wants hints of {} channels, pictures have 3",
                config.conditioning_channels
            ));
        }
        Ok(Self { checkpoint, config })
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.checkpoint.archives().iter().map(|archive| archive.source().clone())
    }

    pub(super) fn bytes(&self, dtype: DType) -> u64 {
        super::bytes(&self.checkpoint, Component::ControlNet, dtype)
    }

    pub(super) fn build(&self, dtype: DType, device: &Device) -> Result<(ControlNet, LoadReport)> {
        let patches = PatchStack::new();
        self.checkpoint.build(Component::ControlNet, dtype, device, &patches, |vb| {
            ControlNet::new(&self.config, &vb)
        })
    }
}

/// The configuration in the folder, or beside the file if it is a ControlNet's.
fn own_config(source: &Source) -> Result<Option<ControlNetConfig>> {
    let Source::File(path) = source else { return Ok(None) };
    let folder = if path.is_dir() {
        let inner = path.join("controlnet");
        if inner.is_dir() { inner } else { path.clone() }
    } else {
        path.parent().map(Path::to_path_buf).unwrap_or_default()
    };
    let path = folder.join("config.json");
    let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
    let json: serde_json::Value = parse_json(&path, &bytes)?;
    let class = json.get("_class_name").and_then(serde_json::Value::as_str).unwrap_or_default();
    if class != "ControlNetModel" {
        return Ok(None);
    }
    parse_json(&path, &bytes).map(Some)
}

/// What shapes tell; the rest is the UNet's, half of which a ControlNet is a copy of.
fn from_shapes(checkpoint: &Checkpoint, unet: &UNetConfig) -> Result<ControlNetConfig> {
    let dim = |name: &str, axis: usize| {
        let shape = checkpoint.shape_of(Component::ControlNet, name)?;
        shape.get(axis).copied()
    };
    let need = |name: &str, axis: usize| {
        dim(name, axis).ok_or_else(|| Error::Weights {
            component: Component::ControlNet.to_string(),
            summary: format!("`{name}` is missing, so its size cannot be told"),
        })
    };
    let count = |prefix: &str, suffix: &str| {
        (0..).take_while(|i| dim(&format!("{prefix}.{i}.{suffix}"), 0).is_some()).count()
    };
    let hint = "controlnet_cond_embedding";
    let mut config = ControlNetConfig::beside(unet);
    config.conditioning_channels = need(&format!("{hint}.conv_in.weight"), 1)?;
    // Of every two layers the second goes to the next width.
    let mut widths = vec![need(&format!("{hint}.conv_in.weight"), 0)?];
    for block in (1..count(&format!("{hint}.blocks"), "weight")).step_by(2) {
        widths.push(need(&format!("{hint}.blocks.{block}.weight"), 0)?);
    }
    config.conditioning_embedding_out_channels = widths;
    let stages = count("down_blocks", "resnets.0.conv1.weight");
    config.unet.in_channels = need("conv_in.weight", 1)?;
    config.unet.block_out_channels = (0..stages)
        .map(|i| need(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<_>>()?;
    config.unet.layers_per_block = count("down_blocks.0.resnets", "conv1.weight");
    config.unet.cross_attention_dim =
        need("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1)?;
    Ok(config)
}
