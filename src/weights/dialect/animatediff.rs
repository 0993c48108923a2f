//! Motion modules under the names of AnimateDiff and AnimateLCM.
//!
//! `down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q` is translated to
//! diffusers' name by six substitutions. AnimateDiff stores a sinusoidal position table in each attention
//! (`pos_encoder.pe`), AnimateLCM none; positions are computed here, as in `PositionalEncoding` of
//! guoyww/AnimateDiff@cf80ddeb47b69cf0b16f225800de081d486d7f21, `animatediff/models/motion_module.py`. The file of
//! AnimateLCM-I2V also has an image encoder, `img_encoder.*`, which keeps its names.

use super::{Dialect, Mapped, Mapper, Names};
use crate::weights::Component;

/// Motion modules under their original names.
pub(super) const ORIGINAL: Dialect = Dialect {
    name: "AnimateDiff motion module",
    detect: |names| names.any_contains(".temporal_transformer."),
    mapper: |_| Box::new(map),
};

/// SparseCtrl. Its motion modules have AnimateDiff's or diffusers' names; all other names are diffusers'.
pub(super) const SPARSE_CTRL: Dialect = Dialect {
    name: "SparseCtrl network",
    detect: |names| is_sparse_ctrl(names),
    mapper: sparse_ctrl,
};

/// Returns whether these are the names of a SparseCtrl network.
pub(super) fn is_sparse_ctrl(names: &Names) -> bool {
    names.any_contains("controlnet_cond_embedding.") && names.any_contains(".motion_modules.")
}

fn sparse_ctrl(names: &Names) -> Mapper {
    // A wrapper's prefix from training, such as `controlnet.` or `module.`.
    let prefix = names
        .iter()
        .find_map(|(name, _)| name.strip_suffix("controlnet_mid_block.weight"))
        .unwrap_or_default()
        .to_owned();
    Box::new(move |name| {
        if name.ends_with(".pos_encoder.pe") || name.ends_with(".pos_embed.pe") {
            return Mapped::Positions;
        }
        let Some(name) = name.strip_prefix(&prefix) else { return Mapped::Unknown };
        match name.split('.').next() {
            Some(
                "conv_in"
                | "time_embedding"
                | "down_blocks"
                | "mid_block"
                | "controlnet_cond_embedding"
                | "controlnet_down_blocks"
                | "controlnet_mid_block",
            ) => Mapped::keep(Component::SparseCtrl, canonical(name)),
            Some("animatediff_config" | "epoch" | "global_step") => {
                Mapped::Ignored { why: "a note of the trainer" }
            }
            _ => Mapped::Unknown,
        }
    })
}

/// Maximum difference between a stored position table and the computed one: the rounding of a table that was stored in
/// bfloat16. Trained or stretched tables differ much more.
pub(in crate::weights) const POSITION_TOLERANCE: f32 = 2.5e-3;

/// Value of the sinusoidal position table at `position` and `channel` of `channels`.
pub(in crate::weights) fn position(position: usize, channel: usize, channels: usize) -> f32 {
    let exponent = (channel - channel % 2) as f64 / channels as f64;
    let angle = position as f64 * 10000f64.powf(-exponent);
    (if channel.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
}

fn map(name: &str) -> Mapped {
    if name.contains(".pos_encoder.") {
        return Mapped::Positions;
    }
    match name.split('.').next() {
        Some("down_blocks" | "mid_block" | "up_blocks") if name.contains(".motion_modules.") => {
            Mapped::keep(Component::UNet, canonical(name))
        }
        Some("img_encoder") => Mapped::keep(Component::I2vEncoder, name),
        Some("animatediff_config" | "epoch" | "global_step") => {
            Mapped::Ignored { why: "a note of the trainer" }
        }
        _ => Mapped::Unknown,
    }
}

/// The canonical name of a motion module's weight or submodule.
pub(crate) fn canonical(name: &str) -> String {
    name.replace(".temporal_transformer.", ".")
        .replace(".attention_blocks.0.", ".attn1.")
        .replace(".attention_blocks.1.", ".attn2.")
        .replace(".norms.0.", ".norm1.")
        .replace(".norms.1.", ".norm2.")
        .replace(".ff_norm.", ".norm3.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_substitutions_lead_to_canonical_names() {
        let block = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0";
        let ours = "mid_block.motion_modules.0.transformer_blocks.0";
        for (theirs, canonical_tail) in [
            ("attention_blocks.0.to_out.0.bias", "attn1.to_out.0.bias"),
            ("attention_blocks.1.to_q.weight", "attn2.to_q.weight"),
            ("norms.0.weight", "norm1.weight"),
            ("norms.1.weight", "norm2.weight"),
            ("ff_norm.bias", "norm3.bias"),
            ("ff.net.0.proj.weight", "ff.net.0.proj.weight"),
        ] {
            assert_eq!(canonical(&format!("{block}.{theirs}")), format!("{ours}.{canonical_tail}"));
        }
        assert_eq!(
            canonical("up_blocks.0.motion_modules.2.temporal_transformer.proj_in.weight"),
            "up_blocks.0.motion_modules.2.proj_in.weight"
        );
    }

    #[test]
    fn positions_are_sines_and_cosines_of_falling_frequency() {
        assert_eq!((position(0, 0, 8), position(0, 1, 8)), (0.0, 1.0));
        assert!((position(3, 0, 8) - 3f32.sin()).abs() < 1e-6);
        assert!((position(3, 3, 8) - 0.3f32.cos()).abs() < 1e-6);
    }
}
