//! Configurations inferred from the shapes of their weights.
//!
//! A single file has no configuration. What no shape tells (heads, groups) is Stable Diffusion 1.5's.

use crate::models::clip::{TextConfig, VisionConfig};
use crate::models::unet::UNetConfig;
use crate::models::vae::VaeConfig;
use crate::weights::{Checkpoint, Component};
use crate::{Error, Result};

/// Shapes of one component.
pub(super) struct Shapes<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) component: Component,
}

impl Shapes<'_> {
    fn has(&self, name: &str) -> bool {
        self.checkpoint.shape_of(self.component, name).is_some()
    }

    /// One dimension of a weight.
    pub(super) fn dim(&self, name: &str, axis: usize) -> Result<usize> {
        let shape = self.checkpoint.shape_of(self.component, name);
        shape.and_then(|shape| shape.get(axis)).copied().ok_or_else(|| Error::Weights {
            component: self.component.to_string(),
            summary: format!("`{name}` is missing, so its size cannot be told"),
        })
    }

    /// How many of `prefix.0.suffix`, `prefix.1.suffix` and so on there are.
    pub(super) fn count(&self, prefix: &str, suffix: &str) -> usize {
        (0..).take_while(|i| self.has(&format!("{prefix}.{i}.{suffix}"))).count()
    }
}

/// A UNet without motion modules.
pub(super) fn unet(checkpoint: &Checkpoint) -> Result<UNetConfig> {
    let shapes = Shapes { checkpoint, component: Component::UNet };
    let stages = shapes.count("down_blocks", "resnets.0.conv1.weight");
    let widths = (0..stages)
        .map(|i| shapes.dim(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<Vec<_>>>()?;
    let kind = |side: &str, way: &str, i: usize| {
        let attention = shapes.has(&format!("{side}.{i}.attentions.0.norm.weight"));
        format!("{}{way}Block2D", if attention { "CrossAttn" } else { "" })
    };
    let mid = "mid_block.attentions.0";
    let config = UNetConfig {
        in_channels: shapes.dim("conv_in.weight", 1)?,
        out_channels: shapes.dim("conv_out.weight", 0)?,
        down_block_types: (0..stages).map(|i| kind("down_blocks", "Down", i)).collect(),
        up_block_types: (0..stages).map(|i| kind("up_blocks", "Up", i)).collect(),
        block_out_channels: widths,
        layers_per_block: shapes.count("down_blocks.0.resnets", "conv1.weight"),
        cross_attention_dim: shapes
            .dim(&format!("{mid}.transformer_blocks.0.attn2.to_k.weight"), 1)?,
        transformer_layers_per_block: shapes
            .count(&format!("{mid}.transformer_blocks"), "norm1.weight"),
        use_linear_projection: shapes.dim(&format!("{mid}.proj_in.weight"), 2).is_err(),
        ..UNetConfig::sd15()
    };
    divisible(Component::UNet, &config.block_out_channels, config.norm_num_groups)?;
    Ok(config)
}

/// Stable Diffusion's autoencoder.
pub(super) fn vae(checkpoint: &Checkpoint) -> Result<VaeConfig> {
    let shapes = Shapes { checkpoint, component: Component::Vae };
    let stages = shapes.count("decoder.up_blocks", "resnets.0.conv1.weight");
    let mut widths = (0..stages)
        .map(|i| shapes.dim(&format!("decoder.up_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<Vec<_>>>()?;
    widths.reverse();
    let blocks = shapes.count("decoder.up_blocks.0.resnets", "conv1.weight");
    let config = VaeConfig {
        out_channels: shapes.dim("decoder.conv_out.weight", 0)?,
        latent_channels: shapes.dim("decoder.conv_in.weight", 1)?,
        block_out_channels: widths,
        layers_per_block: blocks.saturating_sub(1),
        use_quant_conv: shapes.has("quant_conv.weight"),
        use_post_quant_conv: shapes.has("post_quant_conv.weight"),
        ..VaeConfig::default()
    };
    divisible(Component::Vae, &config.block_out_channels, config.norm_num_groups)?;
    Ok(config)
}

/// A CLIP text encoder; its heads are 64 wide.
pub(super) fn text(checkpoint: &Checkpoint) -> Result<TextConfig> {
    let shapes = Shapes { checkpoint, component: Component::Text };
    let embeddings = "text_model.embeddings";
    let hidden_size = shapes.dim(&format!("{embeddings}.token_embedding.weight"), 1)?;
    if hidden_size % 64 != 0 {
        return Err(unknown(Component::Text, &format!("{hidden_size} channels")));
    }
    Ok(TextConfig {
        vocab_size: shapes.dim(&format!("{embeddings}.token_embedding.weight"), 0)?,
        hidden_size,
        intermediate_size: shapes.dim("text_model.encoder.layers.0.mlp.fc1.weight", 0)?,
        num_hidden_layers: shapes.count("text_model.encoder.layers", "layer_norm1.weight"),
        num_attention_heads: hidden_size / 64,
        max_position_embeddings: shapes
            .dim(&format!("{embeddings}.position_embedding.weight"), 0)?,
        ..TextConfig::default()
    })
}

/// One of the CLIP image encoders that are in use; heads and activation are in no shape.
pub(super) fn vision(checkpoint: &Checkpoint) -> Result<VisionConfig> {
    let shapes = Shapes { checkpoint, component: Component::ImageEncoder };
    let embeddings = "vision_model.embeddings";
    let hidden_size = shapes.dim(&format!("{embeddings}.class_embedding"), 0)?;
    let (num_attention_heads, hidden_act) = match hidden_size {
        // OpenAI's ViT-L/14; LAION's ViT-H/14 and ViT-bigG/14.
        1024 => (16, "quick_gelu"),
        1280 | 1664 => (16, "gelu"),
        _ => {
            let summary = format!("{hidden_size} channels are those of no known image encoder");
            let component = Component::ImageEncoder.to_string();
            return Err(Error::Weights { component, summary }
                .with_hint("put its `config.json` beside the file"));
        }
    };
    let patch_size = shapes.dim(&format!("{embeddings}.patch_embedding.weight"), 2)?;
    let patches = shapes.dim(&format!("{embeddings}.position_embedding.weight"), 0)?;
    Ok(VisionConfig {
        hidden_size,
        intermediate_size: shapes.dim("vision_model.encoder.layers.0.mlp.fc1.weight", 0)?,
        num_hidden_layers: shapes.count("vision_model.encoder.layers", "layer_norm1.weight"),
        num_attention_heads,
        image_size: patches.saturating_sub(1).isqrt().saturating_mul(patch_size),
        patch_size,
        projection_dim: shapes.dim("visual_projection.weight", 0)?,
        hidden_act: hidden_act.into(),
        ..VisionConfig::default()
    })
}

fn divisible(component: Component, widths: &[usize], groups: usize) -> Result<()> {
    match widths.iter().find(|width| !width.is_multiple_of(groups)) {
        Some(width) => Err(unknown(component, &format!("{width} channels"))),
        None => Ok(()),
    }
}

/// The sizes are not those of Stable Diffusion 1.5, and the shapes do not tell the rest.
fn unknown(component: Component, what: &str) -> Error {
    Error::Weights {
        component: component.to_string(),
        summary: format!(
            "{what} are not Stable Diffusion 1.5's, and heads and groups are in no shape"
        ),
    }
    .with_hint("name a folder with the configurations as --model-config")
}
