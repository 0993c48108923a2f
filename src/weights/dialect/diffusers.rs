//! Names of diffusers and transformers, old and new.

use super::{Dialect, Mapped, Mapper, Names, Transform, vae_attention};
use crate::weights::Component;

/// `UNet2DConditionModel` and `UNetMotionModel`.
pub(super) const UNET: Dialect = Dialect {
    name: "diffusers UNet",
    detect: |names| names.has("conv_in.weight") && names.has_prefix("down_blocks."),
    mapper: |_| Box::new(unet),
};

/// `MotionAdapter`: only the motion modules of a `UNetMotionModel`.
pub(super) const MOTION_ADAPTER: Dialect = Dialect {
    name: "diffusers motion adapter",
    detect: |names| names.any_contains(".motion_modules."),
    mapper: |_| Box::new(unet),
};

/// `ControlNetModel`.
pub(super) const CONTROL_NET: Dialect = Dialect {
    name: "diffusers ControlNet",
    detect: |names| names.has_prefix("controlnet_cond_embedding."),
    mapper: |_| {
        Box::new(|name| match name.split('.').next() {
            Some(
                "conv_in"
                | "time_embedding"
                | "down_blocks"
                | "mid_block"
                | "controlnet_cond_embedding"
                | "controlnet_down_blocks"
                | "controlnet_mid_block",
            ) => Mapped::keep(Component::ControlNet, name),
            _ => Mapped::Unknown,
        })
    },
};

/// `AutoencoderKL`.
pub(super) const VAE: Dialect = Dialect {
    name: "diffusers VAE",
    detect: |names| {
        names.has_prefix("decoder.up_blocks.") || names.has_prefix("encoder.down_blocks.")
    },
    mapper: |_| Box::new(vae),
};

/// `AutoencoderTiny`.
pub(super) const TINY_VAE: Dialect = Dialect {
    name: "diffusers tiny VAE",
    detect: |names| names.has("decoder.layers.0.weight"),
    mapper: |_| {
        Box::new(|name| match name.split('.').next() {
            Some("encoder" | "decoder") => Mapped::keep(Component::Vae, name),
            _ => Mapped::Unknown,
        })
    },
};

/// `CLIPTextModel`, and the text encoder of `CLIPModel`.
pub(super) const TEXT: Dialect = Dialect {
    name: "transformers CLIP text encoder",
    detect: |names| {
        names.has("text_model.embeddings.token_embedding.weight")
            || names.has("embeddings.token_embedding.weight")
    },
    mapper: text_mapper,
};

/// `CLIPVisionModelWithProjection`, and the complete `CLIPModel`.
pub(super) const CLIP: Dialect = Dialect {
    name: "transformers CLIP",
    detect: |names| names.has("vision_model.embeddings.patch_embedding.weight"),
    mapper: |_| Box::new(clip),
};

fn unet(name: &str) -> Mapped {
    if name.contains(".motion_modules.") && name.ends_with(".pos_embed.pe") {
        return Mapped::Positions;
    }
    match name.split('.').next() {
        Some(
            "conv_in" | "time_embedding" | "down_blocks" | "mid_block" | "up_blocks"
            | "conv_norm_out" | "conv_out",
        ) => Mapped::keep(Component::UNet, name),
        Some("img_encoder") => Mapped::keep(Component::I2vEncoder, name),
        _ => Mapped::Unknown,
    }
}

/// Before diffusers 0.18, the four linear layers of the attention had other names, and some were 1x1 convolutions.
fn vae(name: &str) -> Mapped {
    match name.split('.').next() {
        Some("encoder" | "decoder" | "quant_conv" | "post_quant_conv") => {}
        Some("loss") => return Mapped::Ignored { why: "only used to train the VAE" },
        _ => return Mapped::Unknown,
    }
    let Some((block, tail)) = name.split_once(".attentions.0.") else {
        return Mapped::keep(Component::Vae, name);
    };
    let Some((layer, kind)) = tail.rsplit_once('.') else { return Mapped::Unknown };
    let layer = vae_attention(layer).unwrap_or(layer);
    let transform = if layer.starts_with("to_") { Transform::Squeeze } else { Transform::Keep };
    Mapped::To {
        component: Component::Vae,
        name: format!("{block}.attentions.0.{layer}.{kind}"),
        transform,
    }
}

/// Files saved by transformers 5.6 and later lack the prefix `text_model.`.
fn text_mapper(_: &Names) -> Mapper {
    Box::new(text)
}

/// Maps a name of the text encoder, also inside single-file checkpoints.
pub(super) fn text(name: &str) -> Mapped {
    let bare = name.strip_prefix("text_model.").unwrap_or(name);
    if bare == "embeddings.position_ids" {
        return Mapped::Ignored { why: "counts 0, 1, 2, ..." };
    }
    let known = ["embeddings.token_embedding.", "embeddings.position_embedding."]
        .iter()
        .chain(&["encoder.layers.", "final_layer_norm."])
        .any(|prefix| bare.starts_with(prefix));
    if known {
        return Mapped::keep(Component::Text, format!("text_model.{bare}"));
    }
    match name.split('.').next() {
        Some("text_projection" | "logit_scale") => {
            Mapped::Ignored { why: "belongs to CLIP's comparison with images" }
        }
        Some("vision_model" | "visual_projection") => {
            Mapped::Ignored { why: "belongs to CLIP's image half" }
        }
        _ => Mapped::Unknown,
    }
}

fn clip(name: &str) -> Mapped {
    match name.split('.').next() {
        _ if name == "vision_model.embeddings.position_ids" => {
            Mapped::Ignored { why: "counts 0, 1, 2, ..." }
        }
        Some("vision_model" | "visual_projection") => Mapped::keep(Component::ImageEncoder, name),
        _ => text(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_attention_names_become_new_ones() {
        let renamed = vae("decoder.mid_block.attentions.0.proj_attn.weight");
        let kept = vae("decoder.mid_block.attentions.0.to_out.0.weight");
        assert_eq!(renamed, kept);
        assert_eq!(
            vae("encoder.mid_block.attentions.0.group_norm.bias"),
            Mapped::keep(Component::Vae, "encoder.mid_block.attentions.0.group_norm.bias")
        );
    }

    #[test]
    fn text_names_get_their_level_once() {
        let name = "encoder.layers.0.mlp.fc1.weight";
        assert_eq!(text(name), text(&format!("text_model.{name}")));
        assert!(matches!(text("embeddings.position_ids"), Mapped::Ignored { .. }));
        assert!(matches!(text("text_model.embeddings.position_ids"), Mapped::Ignored { .. }));
        assert_eq!(text("encoder.block.0.mlp.weight"), Mapped::Unknown);
    }

    #[test]
    fn a_whole_clip_has_two_halves() {
        let image = "vision_model.pre_layrnorm.weight";
        assert_eq!(clip(image), Mapped::keep(Component::ImageEncoder, image));
        let words = "text_model.final_layer_norm.weight";
        assert_eq!(clip(words), Mapped::keep(Component::Text, words));
        for name in
            ["logit_scale", "text_projection.weight", "vision_model.embeddings.position_ids"]
        {
            assert!(matches!(clip(name), Mapped::Ignored { .. }), "{name}");
        }
    }

    #[test]
    fn position_tables_of_the_motion_modules_are_not_weights() {
        let block = "up_blocks.1.motion_modules.0.transformer_blocks.0";
        assert_eq!(unet(&format!("{block}.pos_embed.pe")), Mapped::Positions);
        assert!(matches!(unet(&format!("{block}.norm1.weight")), Mapped::To { .. }));
        assert_eq!(unet("add_embedding.linear_1.weight"), Mapped::Unknown);
    }
}
