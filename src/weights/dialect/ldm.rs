//! Single-file checkpoints with the names of CompVis' latent-diffusion: `.ckpt` files and most shared checkpoints.
//!
//! The UNet's blocks are numbered consecutively (`input_blocks.0..`), so mapping them to down blocks and up blocks
//! needs the number of layers per level. It is derived from the position of the first downsampler, which supports every
//! size of the family, not only SD 1.5.

use super::{Dialect, Mapped, Mapper, Names, Transform, diffusers, number, vae_attention};
use crate::weights::Component;

const UNET: &str = "model.diffusion_model.";
const VAE_PREFIXES: [&str; 2] = ["first_stage_model.", "vae."];
const TEXT: &str = "cond_stage_model.transformer.";

const AVERAGED: &str = "averaged copies; the plain weights are used";

/// A complete checkpoint, or any of its three components under its prefix.
pub(super) const CHECKPOINT: Dialect = Dialect {
    name: "LDM checkpoint",
    detect: |names| {
        names.has_prefix(UNET)
            || names.has_prefix(TEXT)
            || VAE_PREFIXES.iter().any(|prefix| names.has_prefix(&format!("{prefix}decoder.")))
    },
    mapper: checkpoint,
};

/// A ControlNet in its original format, alone or in one file with its base model.
pub(super) const CONTROL_NET: Dialect = Dialect {
    name: "LDM ControlNet",
    detect: |names| control_net_prefix(names).is_some(),
    mapper: control_net,
};

/// A VAE without a prefix, as published in `vae-ft-mse-840000`.
pub(super) const BARE_VAE: Dialect = Dialect {
    name: "LDM VAE",
    detect: |names| names.has_prefix("decoder.up.") && names.has("decoder.conv_in.weight"),
    mapper: |names| {
        let levels = vae_levels(names, "");
        Box::new(move |name| vae(name, levels))
    },
};

fn checkpoint(names: &Names) -> Mapper {
    let layers = layers_per_level(names, UNET);
    let levels = VAE_PREFIXES.map(|prefix| vae_levels(names, prefix));
    Box::new(move |name| {
        if let Some(name) = name.strip_prefix(UNET) {
            return match unet(name, layers) {
                Some(name) => Mapped::keep(Component::UNet, name),
                None => Mapped::UnknownIn(Component::UNet),
            };
        }
        let of = |component, mapped| match mapped {
            Mapped::Unknown => Mapped::UnknownIn(component),
            known => known,
        };
        for (prefix, levels) in VAE_PREFIXES.iter().zip(levels) {
            if let Some(name) = name.strip_prefix(prefix) {
                return of(Component::Vae, vae(name, levels));
            }
        }
        if let Some(name) = name.strip_prefix(TEXT) {
            return of(Component::Text, diffusers::text(name));
        }
        match name.split('.').next() {
            // The original AnimateLCM, A1111 and diffusers all use the non-averaged weights.
            Some("model_ema") => Mapped::Ignored { why: AVERAGED },
            Some(
                "betas"
                | "alphas_cumprod"
                | "alphas_cumprod_prev"
                | "sqrt_alphas_cumprod"
                | "sqrt_one_minus_alphas_cumprod"
                | "log_one_minus_alphas_cumprod"
                | "sqrt_recip_alphas_cumprod"
                | "sqrt_recipm1_alphas_cumprod"
                | "posterior_variance"
                | "posterior_log_variance_clipped"
                | "posterior_mean_coef1"
                | "posterior_mean_coef2"
                | "logvar"
                | "lvlb_weights",
            ) => Mapped::Ignored { why: "the trainer's noise table; schedules are computed" },
            Some("global_step" | "epoch" | "iter") => {
                Mapped::Ignored { why: "a note of the trainer" }
            }
            // Empty tensors that mark v-prediction and a zero-terminal-SNR schedule.
            Some("v_pred" | "ztsnr") => Mapped::Ignored { why: "says how the model is sampled" },
            Some("embedding_manager") => Mapped::Ignored { why: "a trainer's textual inversion" },
            Some("cond_stage_model")
                if ["cond_stage_model.logit_scale", "cond_stage_model.text_projection"]
                    .iter()
                    .any(|known| name.starts_with(known)) =>
            {
                Mapped::Ignored { why: "belongs to CLIP's comparison with images" }
            }
            _ => Mapped::Unknown,
        }
    })
}

/// Number of residual blocks per level: the first downsampler is block `layers + 1`.
fn layers_per_level(names: &Names, prefix: &str) -> usize {
    let prefix = format!("{prefix}input_blocks.");
    let blocks = || names.starting_with(&prefix).filter_map(number);
    blocks()
        .filter(|(_, tail)| tail.starts_with("0.op."))
        .map(|(block, _)| block)
        .min()
        .map(|block| block.saturating_sub(1))
        .or_else(|| blocks().map(|(block, _)| block).max())
        .unwrap_or(0)
        .max(1)
}

fn vae_levels(names: &Names, prefix: &str) -> usize {
    let count = |part: &str| {
        let prefix = format!("{prefix}{part}");
        names.starting_with(&prefix).filter_map(number).map(|(level, _)| level + 1).max()
    };
    count("decoder.up.").or_else(|| count("encoder.down.")).unwrap_or(0)
}

/// The canonical name of a UNet tensor, or `None` if it is not one.
fn unet(name: &str, layers: usize) -> Option<String> {
    let (head, tail) = name.split_once('.')?;
    match head {
        "time_embed" => {
            let (n, tail) = number(tail)?;
            let layer = match n {
                0 => 1,
                2 => 2,
                _ => return None,
            };
            Some(format!("time_embedding.linear_{layer}.{tail}"))
        }
        "out" => match number(tail)? {
            (0, tail) => Some(format!("conv_norm_out.{tail}")),
            (2, tail) => Some(format!("conv_out.{tail}")),
            _ => None,
        },
        "middle_block" => match number(tail)? {
            (0, tail) => Some(format!("mid_block.resnets.0.{}", resnet(tail)?)),
            (1, tail) => Some(format!("mid_block.attentions.0.{tail}")),
            (2, tail) => Some(format!("mid_block.resnets.1.{}", resnet(tail)?)),
            _ => None,
        },
        "input_blocks" => {
            let (block, tail) = number(tail)?;
            let (part, tail) = number(tail)?;
            let Some(block) = block.checked_sub(1) else {
                return (part == 0).then(|| format!("conv_in.{tail}"));
            };
            let (level, layer) = (block / (layers + 1), block % (layers + 1));
            match (part, layer == layers) {
                (0, true) => {
                    let tail = tail.strip_prefix("op.")?;
                    Some(format!("down_blocks.{level}.downsamplers.0.conv.{tail}"))
                }
                (0, false) => {
                    Some(format!("down_blocks.{level}.resnets.{layer}.{}", resnet(tail)?))
                }
                (1, false) => Some(format!("down_blocks.{level}.attentions.{layer}.{tail}")),
                _ => None,
            }
        }
        "output_blocks" => {
            let (block, tail) = number(tail)?;
            let (part, tail) = number(tail)?;
            let (level, layer) = (block / (layers + 1), block % (layers + 1));
            match (part, tail.strip_prefix("conv.")) {
                (0, _) => Some(format!("up_blocks.{level}.resnets.{layer}.{}", resnet(tail)?)),
                // Part 1 is the upsampler on levels without attention.
                (1 | 2, Some(tail)) if layer == layers => {
                    Some(format!("up_blocks.{level}.upsamplers.0.conv.{tail}"))
                }
                (1, None) => Some(format!("up_blocks.{level}.attentions.{layer}.{tail}")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The prefix of a ControlNet's names, if the file contains one.
fn control_net_prefix(names: &Names) -> Option<&'static str> {
    ["control_model.", ""]
        .into_iter()
        .find(|prefix| names.has_prefix(&format!("{prefix}input_hint_block.")))
}

fn control_net(names: &Names) -> Mapper {
    let prefix = control_net_prefix(names).unwrap_or_default();
    let layers = layers_per_level(names, prefix);
    let hint = format!("{prefix}input_hint_block.");
    let last_hint = names.starting_with(&hint).filter_map(number).map(|(layer, _)| layer).max();
    let last_hint = last_hint.unwrap_or_default();
    let others = checkpoint(names);
    Box::new(move |name| match name.strip_prefix(prefix) {
        Some(name) => match control_net_name(name, layers, last_hint) {
            Some(name) => Mapped::keep(Component::ControlNet, name),
            None => Mapped::Unknown,
        },
        None => others(name),
    })
}

/// The canonical name of a ControlNet tensor. `last_hint` is the index of the hint network's last layer; odd indices
/// are activations.
fn control_net_name(name: &str, layers: usize, last_hint: usize) -> Option<String> {
    let (head, tail) = name.split_once('.')?;
    match head {
        "input_hint_block" => {
            let (layer, tail) = number(tail)?;
            let layer = match layer {
                0 => "conv_in".to_owned(),
                _ if layer == last_hint => "conv_out".to_owned(),
                _ if layer.is_multiple_of(2) => format!("blocks.{}", layer / 2 - 1),
                _ => return None,
            };
            Some(format!("controlnet_cond_embedding.{layer}.{tail}"))
        }
        "zero_convs" => {
            let (skip, tail) = number(tail)?;
            Some(format!("controlnet_down_blocks.{skip}.{}", tail.strip_prefix("0.")?))
        }
        "middle_block_out" => Some(format!("controlnet_mid_block.{}", tail.strip_prefix("0.")?)),
        "time_embed" | "input_blocks" | "middle_block" => unet(name, layers),
        _ => None,
    }
}

/// Names inside a residual block: LDM's and the canonical ones.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

fn resnet(name: &str) -> Option<String> {
    let (layer, kind) = name.rsplit_once('.')?;
    let (_, ours) = RESNET.iter().find(|(theirs, _)| *theirs == layer)?;
    Some(format!("{ours}.{kind}"))
}

/// LDM's name of a canonical UNet module (a weight's name without `.weight`), the inverse of the above.
///
/// `layers` is the number of layers per level. `attends` returns whether a level of the up path has attention, which
/// determines the index of its upsampler.
pub(crate) fn unet_module(
    name: &str,
    layers: usize,
    attends: impl Fn(usize) -> bool,
) -> Option<String> {
    let theirs = |tail: &str| {
        RESNET.iter().find(|(_, ours)| *ours == tail).map(|(theirs, _)| (*theirs).to_owned())
    };
    match name {
        "conv_in" => return Some("input_blocks.0.0".into()),
        "conv_norm_out" => return Some("out.0".into()),
        "conv_out" => return Some("out.2".into()),
        "time_embedding.linear_1" => return Some("time_embed.0".into()),
        "time_embedding.linear_2" => return Some("time_embed.2".into()),
        _ => {}
    }
    if let Some(tail) = name.strip_prefix("mid_block.") {
        return if let Some(tail) = tail.strip_prefix("attentions.0.") {
            Some(format!("middle_block.1.{tail}"))
        } else {
            let (n, tail) = number(tail.strip_prefix("resnets.")?)?;
            Some(format!("middle_block.{}.{}", 2 * n, theirs(tail)?))
        };
    }
    let (side, tail) = name.split_once('.')?;
    let (level, tail) = number(tail)?;
    let (kind, tail) = tail.split_once('.')?;
    let (layer, tail) = number(tail)?;
    match (side, kind) {
        ("down_blocks", "resnets") => {
            Some(format!("input_blocks.{}.0.{}", 1 + level * (layers + 1) + layer, theirs(tail)?))
        }
        ("down_blocks", "attentions") => {
            Some(format!("input_blocks.{}.1.{tail}", 1 + level * (layers + 1) + layer))
        }
        ("down_blocks", "downsamplers") => {
            Some(format!("input_blocks.{}.0.op", (level + 1) * (layers + 1)))
        }
        ("up_blocks", "resnets") => {
            Some(format!("output_blocks.{}.0.{}", level * (layers + 1) + layer, theirs(tail)?))
        }
        ("up_blocks", "attentions") => {
            Some(format!("output_blocks.{}.1.{tail}", level * (layers + 1) + layer))
        }
        ("up_blocks", "upsamplers") => {
            let part = if attends(level) { 2 } else { 1 };
            Some(format!("output_blocks.{}.{part}.conv", level * (layers + 1) + layers))
        }
        _ => None,
    }
}

/// The canonical name of a VAE tensor. The decoder's levels are numbered in reverse.
fn vae(name: &str, levels: usize) -> Mapped {
    match name.split('.').next() {
        Some("loss") => return Mapped::Ignored { why: "only used to train the VAE" },
        Some("model_ema") => {
            return Mapped::Ignored { why: AVERAGED };
        }
        _ => {}
    }
    vae_name(name, levels).unwrap_or(Mapped::Unknown)
}

fn vae_name(name: &str, levels: usize) -> Option<Mapped> {
    let keep = |name: String| Some(Mapped::keep(Component::Vae, name));
    let (side, tail) = name.split_once('.')?;
    match side {
        "quant_conv" | "post_quant_conv" => return keep(name.to_owned()),
        "encoder" | "decoder" => {}
        _ => return None,
    }
    let (head, rest) = tail.split_once('.')?;
    let shortcut = |name: &str| name.replace("nin_shortcut.", "conv_shortcut.");
    match (side, head) {
        (_, "conv_in" | "conv_out") => keep(name.to_owned()),
        (_, "norm_out") => keep(format!("{side}.conv_norm_out.{rest}")),
        (_, "mid") => {
            let (part, rest) = rest.split_once('.')?;
            let middle = format!("{side}.mid_block");
            match part {
                "block_1" => keep(format!("{middle}.resnets.0.{}", shortcut(rest))),
                "block_2" => keep(format!("{middle}.resnets.1.{}", shortcut(rest))),
                "attn_1" => {
                    let (layer, kind) = rest.rsplit_once('.')?;
                    if matches!(layer, "norm" | "group_norm") {
                        return keep(format!("{middle}.attentions.0.group_norm.{kind}"));
                    }
                    Some(Mapped::To {
                        component: Component::Vae,
                        name: format!("{middle}.attentions.0.{}.{kind}", vae_attention(layer)?),
                        transform: Transform::Squeeze,
                    })
                }
                _ => None,
            }
        }
        ("encoder", "down") => {
            let (level, rest) = number(rest)?;
            let (part, rest) = rest.split_once('.')?;
            match part {
                "block" => keep(format!("encoder.down_blocks.{level}.resnets.{}", shortcut(rest))),
                "downsample" => keep(format!("encoder.down_blocks.{level}.downsamplers.0.{rest}")),
                _ => None,
            }
        }
        ("decoder", "up") => {
            let (level, rest) = number(rest)?;
            let level = levels.checked_sub(level + 1)?;
            let (part, rest) = rest.split_once('.')?;
            match part {
                "block" => keep(format!("decoder.up_blocks.{level}.resnets.{}", shortcut(rest))),
                "upsample" => keep(format!("decoder.up_blocks.{level}.upsamplers.0.{rest}")),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_sd15_are_where_everybody_knows_them() {
        for (theirs, ours) in [
            ("input_blocks.0.0.weight", "conv_in.weight"),
            ("input_blocks.3.0.op.bias", "down_blocks.0.downsamplers.0.conv.bias"),
            (
                "input_blocks.4.0.skip_connection.weight",
                "down_blocks.1.resnets.0.conv_shortcut.weight",
            ),
            ("input_blocks.11.0.out_layers.3.weight", "down_blocks.3.resnets.1.conv2.weight"),
            ("middle_block.1.proj_in.weight", "mid_block.attentions.0.proj_in.weight"),
            ("middle_block.2.emb_layers.1.bias", "mid_block.resnets.1.time_emb_proj.bias"),
            ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
            ("output_blocks.5.1.norm.weight", "up_blocks.1.attentions.2.norm.weight"),
            ("output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
            ("output_blocks.11.1.proj_out.bias", "up_blocks.3.attentions.2.proj_out.bias"),
            ("out.2.weight", "conv_out.weight"),
        ] {
            assert_eq!(unet(theirs, 2).as_deref(), Some(ours), "{theirs}");
        }
        for unknown in
            ["input_blocks.0.1.weight", "input_blocks.3.1.norm.weight", "label_emb.0.0.weight"]
        {
            assert_eq!(unet(unknown, 2), None, "{unknown}");
        }
    }

    #[test]
    fn layers_of_a_control_net_are_where_everybody_knows_them() {
        for (theirs, ours) in [
            ("input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"),
            ("input_hint_block.2.bias", "controlnet_cond_embedding.blocks.0.bias"),
            ("input_hint_block.12.weight", "controlnet_cond_embedding.blocks.5.weight"),
            ("input_hint_block.14.weight", "controlnet_cond_embedding.conv_out.weight"),
            ("zero_convs.11.0.bias", "controlnet_down_blocks.11.bias"),
            ("middle_block_out.0.weight", "controlnet_mid_block.weight"),
            ("input_blocks.3.0.op.bias", "down_blocks.0.downsamplers.0.conv.bias"),
            ("middle_block.1.norm.bias", "mid_block.attentions.0.norm.bias"),
            ("time_embed.2.weight", "time_embedding.linear_2.weight"),
        ] {
            assert_eq!(control_net_name(theirs, 2, 14).as_deref(), Some(ours), "{theirs}");
        }
        for unknown in ["input_hint_block.3.weight", "output_blocks.0.0.in_layers.0.bias", "out.0"]
        {
            assert_eq!(control_net_name(unknown, 2, 14), None, "{unknown}");
        }
    }

    #[test]
    fn blocks_of_other_sizes_are_numbered_by_their_downsamplers() {
        // Three levels of one layer: conv_in; 1, down 2; 3, down 4; 5. Up: 0, 1 with upsampler; ...
        let names: Names = ["1.0.in_layers.0.weight", "2.0.op.weight", "4.0.op.weight", "5.0.x"]
            .iter()
            .map(|tail| (format!("{UNET}input_blocks.{tail}"), vec![1]))
            .collect();
        let layers = layers_per_level(&names, UNET);
        assert_eq!(layers, 1);
        for (theirs, ours) in [
            ("input_blocks.2.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
            ("input_blocks.3.1.norm.weight", "down_blocks.1.attentions.0.norm.weight"),
            ("input_blocks.5.0.in_layers.2.bias", "down_blocks.2.resnets.0.conv1.bias"),
            ("output_blocks.1.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
            ("output_blocks.3.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
            ("output_blocks.5.1.norm.weight", "up_blocks.2.attentions.1.norm.weight"),
        ] {
            assert_eq!(unet(theirs, layers).as_deref(), Some(ours), "{theirs}");
        }
        // A single level has no downsampler from which to derive the number of layers.
        let names: Names =
            [(format!("{UNET}input_blocks.3.0.in_layers.0.weight"), vec![1])].into_iter().collect();
        assert_eq!(layers_per_level(&names, UNET), 3);
    }

    #[test]
    fn module_names_lead_there_and_back() {
        for (layers, ours) in [
            (2, "down_blocks.2.resnets.1.time_emb_proj"),
            (2, "up_blocks.0.upsamplers.0.conv"),
            (2, "up_blocks.2.upsamplers.0.conv"),
            (2, "mid_block.resnets.1.conv1"),
            (1, "down_blocks.1.downsamplers.0.conv"),
            (1, "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj"),
            (3, "time_embedding.linear_2"),
        ] {
            let theirs = unet_module(ours, layers, |level| level > 0).unwrap();
            let back = unet(&format!("{theirs}.weight"), layers).unwrap();
            assert_eq!(back, format!("{ours}.weight"), "{theirs}");
        }
        assert_eq!(unet_module("down_blocks.0.motion_modules.0.proj_in", 2, |_| true), None);
    }

    #[test]
    fn the_decoder_counts_from_the_other_end() {
        let name = |name| match vae(name, 4) {
            Mapped::To { name, transform, .. } => (name, transform),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            name("decoder.up.0.block.2.nin_shortcut.weight").0,
            "decoder.up_blocks.3.resnets.2.conv_shortcut.weight"
        );
        assert_eq!(
            name("encoder.mid.attn_1.proj_out.weight"),
            ("encoder.mid_block.attentions.0.to_out.0.weight".into(), Transform::Squeeze)
        );
        assert_eq!(vae("decoder.up.4.block.0.conv1.weight", 4), Mapped::Unknown);
    }

    #[test]
    fn attention_in_the_vae_has_had_four_sets_of_names() {
        let published = ["q", "k", "v", "proj_out", "norm"];
        for names in [
            ["to_q", "to_k", "to_v", "to_out.0", "norm"],
            ["to_q", "to_k", "to_v", "to_out.0", "group_norm"],
            ["query", "key", "value", "proj_attn", "group_norm"],
            ["q", "k", "v", "to_out", "norm"],
        ] {
            for (name, published) in names.iter().zip(published) {
                for kind in ["weight", "bias"] {
                    let of = |layer: &str| vae(&format!("decoder.mid.attn_1.{layer}.{kind}"), 4);
                    assert_eq!(of(name), of(published), "{name}");
                    assert_ne!(of(name), Mapped::Unknown);
                }
            }
        }
        assert_eq!(vae("decoder.mid.attn_1.to_add.weight", 4), Mapped::Unknown);
    }
}
