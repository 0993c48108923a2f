//! Recognition of unsupported files, so that errors can describe them instead of listing unknown names.

use super::Names;
use super::animatediff::is_sparse_ctrl;
use super::t2i_adapter::{first_layer, is_t2i_adapter};
use crate::weights::Component;

/// A kind of file that cannot be used as a checkpoint here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::weights) struct Foreign {
    /// Description that follows "is" in a message.
    pub(in crate::weights) what: &'static str,
    /// A hint for the user.
    pub(in crate::weights) hint: &'static str,
}

const SD15_ONLY: &str = "only models of the Stable Diffusion 1.5 family are supported";

const SD15_MOTION: &str =
    "use motion modules for Stable Diffusion 1.5, such as animatelcm-t2v or mm_sd_v15_v2";

const CONTROL_NET_SD15: &str = "use the full ControlNet for Stable Diffusion 1.5";

const fn foreign(what: &'static str, hint: &'static str) -> Foreign {
    Foreign { what, hint }
}

const LORA: Foreign = foreign("a LoRA", "give it with --lora");

/// Supported files that were given where a model was expected.
const OPTIONAL: [(Component, Foreign); 4] = [
    (Component::ControlNet, foreign("a ControlNet", "give it with --control")),
    (Component::SparseCtrl, foreign("a SparseCtrl network", "give it with --control")),
    (Component::T2iAdapter, foreign("a T2I-Adapter", "give it with --control")),
    (Component::IpAdapter, foreign("an IP-Adapter", "give it with --ip-adapter")),
];

/// A kind of file and the predicate on its names that detects it.
type Sign = (fn(&Names) -> bool, Foreign);

/// Most specific first.
const SIGNS: &[Sign] = &[
    (is_face_id, FACE_ID),
    (
        |n| n.any_contains("encoder_down_conv_blocks.") || n.any_contains(".qkv_merge."),
        foreign(
            "CameraCtrl, whose encoder of camera poses is not built in",
            "use a motion LoRA for pans and zooms, such as v2_lora_PanLeft",
        ),
    ),
    (
        |n| n.iter().any(|(name, _)| name.contains("temporal") && name.contains(".cc_projection.")),
        foreign(
            "MotionCtrl's camera module, which adds camera poses to motion modules and is not built in",
            "use a motion LoRA for pans and zooms, such as v2_lora_PanLeft",
        ),
    ),
    (
        is_motion_ctrl,
        foreign(
            "MotionCtrl's object module, which wants trajectories and is not built in",
            "use SparseCtrl (--control) or --mask to say what is where",
        ),
    ),
    (
        is_pia,
        foreign(
            "PIA's motion module, whose UNet begins with 9 channels, for an image and its mask",
            "use AnimateLCM-I2V (--model animatelcm-i2v --image FILE), or --image with --keep 0",
        ),
    ),
    (
        |n| n.has_prefix("lllite_"),
        foreign("a ControlNet-LLLite, which Stable Diffusion XL has", CONTROL_NET_SD15),
    ),
    (
        |n| {
            n.has_prefix("control_add_embedding.")
                || n.has("task_embedding")
                || n.has_prefix("controlnet_mode_embedder.")
                || (n.has_prefix("transformer_layes.") && n.has_prefix("spatial_ch_projs."))
        },
        foreign("a union ControlNet (ControlNet++, promax) for a larger model", CONTROL_NET_SD15),
    ),
    (
        |n| is_control_net(n) && (n.has_prefix("add_embedding.") || n.any_contains("label_emb.")),
        foreign("a ControlNet for Stable Diffusion XL", SD15_ONLY),
    ),
    (
        |n| is_control_net(n) && n.has("difference"),
        foreign(
            "a ControlNet stored as its difference from Stable Diffusion 1.5",
            "use the full ControlNet",
        ),
    ),
    (|n| n.has("lora_controlnet"), foreign("a Control-LoRA", CONTROL_NET_SD15)),
    // Precedes the base models of the LoRAs, whose names they contain.
    (is_lora, LORA),
    (
        |n| {
            n.has_prefix("conditioner.embedders.")
                || n.has_prefix("model.diffusion_model.label_emb.")
        },
        foreign("a Stable Diffusion XL checkpoint", SD15_ONLY),
    ),
    (|n| n.has_prefix("add_embedding."), foreign("the UNet of Stable Diffusion XL", SD15_ONLY)),
    (
        |n| n.has_prefix("cond_stage_model.model."),
        foreign("a Stable Diffusion 2 checkpoint", SD15_ONLY),
    ),
    (
        |n| n.any_contains("token_refiner.") || n.any_contains("double_blocks.0.img_attn_qkv."),
        foreign("a HunyuanVideo checkpoint", SD15_ONLY),
    ),
    (|n| n.any_contains("blocks.0.attn1.Wqkv."), foreign("a Hunyuan-DiT checkpoint", SD15_ONLY)),
    (
        |n| {
            n.any_contains("blocks.0.cross_attn.")
                || n.has_prefix("condition_embedder.text_embedder.")
        },
        foreign("a Wan checkpoint", SD15_ONLY),
    ),
    (|n| n.any_contains("patchify_proj."), foreign("an LTX-Video checkpoint", SD15_ONLY)),
    (
        |n| n.any_contains("transformer_blocks.0.img_mlp."),
        foreign("a Qwen-Image checkpoint", SD15_ONLY),
    ),
    (
        |n| n.any_contains("noise_refiner.0."),
        foreign("a checkpoint of Z-Image or Lumina", SD15_ONLY),
    ),
    (|n| n.has("patch_embed.text_proj.weight"), foreign("a CogVideoX checkpoint", SD15_ONLY)),
    (|n| n.has_prefix("adaln_single."), foreign("a PixArt checkpoint", SD15_ONLY)),
    (
        |n| n.any_contains("encoder.block.0.layer.0.SelfAttention."),
        foreign("a T5 text encoder", SD15_ONLY),
    ),
    (
        |n| n.any_contains("joint_blocks.") || n.any_contains("joint_transformer_blocks."),
        foreign("a Stable Diffusion 3 checkpoint", SD15_ONLY),
    ),
    (
        |n| n.any_contains("double_blocks.") || n.has_prefix("single_transformer_blocks."),
        foreign("a Flux checkpoint", SD15_ONLY),
    ),
    (
        |n| n.any_contains("transformer_blocks.0.attn.add_k_proj."),
        foreign("a Stable Diffusion 3 checkpoint", SD15_ONLY),
    ),
    (
        |n| {
            n.any_contains(".time_mixer.")
                || n.any_contains(".temporal_res_block.")
                || n.any_contains(".time_stack.")
                || n.any_contains(".temporal_transformer_blocks.")
        },
        foreign("a Stable Video Diffusion checkpoint", SD15_ONLY),
    ),
    (is_sparse_ctrl, OPTIONAL[1].1),
    (is_control_net, OPTIONAL[0].1),
    (
        // A 16x16 pixel unshuffle gives 256 channels for grayscale hints and 768 for RGB hints.
        |n| is_t2i_adapter(n) && first_layer(n).is_some_and(|inputs| [256, 768].contains(&inputs)),
        foreign("a T2I-Adapter for Stable Diffusion XL", SD15_ONLY),
    ),
    (is_t2i_adapter, OPTIONAL[2].1),
    (
        |n| n.has("style_embedding") || n.has_prefix("spatial_feat_mapping."),
        foreign(
            "a T2I-Adapter that adds words (for style, or CoAdapter's fuser)",
            "use one that adds features, such as canny, depth or sketch",
        ),
    ),
    (
        |n| n.has_prefix("img_encoder.") && !n.any_contains(".motion_modules."),
        foreign(
            "the image encoder of AnimateLCM-I2V without its motion modules",
            "use AnimateLCM_sd15_i2v, which has both",
        ),
    ),
    (
        |n| {
            n.any_contains(".pos_encoder.positional_encoding")
                || n.any_contains(".temporal_attentions.")
        },
        foreign("a HotShot-XL motion module, for Stable Diffusion XL", SD15_MOTION),
    ),
    (
        |n| n.any_contains(".processor.to_k_ip."),
        foreign("a UNet with an IP-Adapter in it", "use the model's and the adapter's own files"),
    ),
    (|n| n.has_prefix("ip_adapter.") || n.has_prefix("image_proj."), OPTIONAL[3].1),
    (
        |n| n.has_prefix("visual.transformer.resblocks."),
        foreign("a CLIP under open_clip's names", "use the version for transformers"),
    ),
    (
        |n| n.has("emb_params") || n.has_prefix("string_to_param"),
        foreign("a textual inversion embedding", "it adds words to a model and cannot be one"),
    ),
    (
        |n| {
            n.any_contains("motion_modules.")
                && !n.has_prefix("down_blocks.3.")
                && n.shape("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight")
                    .or_else(|| n.shape("down_blocks.0.motion_modules.0.norm.weight"))
                    == Some(&[320][..])
        },
        foreign("a motion module for Stable Diffusion XL", SD15_MOTION),
    ),
];

/// Needs face embeddings of a face recognition network; some files also contain LoRAs.
const FACE_ID: Foreign = foreign(
    "an IP-Adapter FaceID, which wants the features of a face recognition network",
    "IP-Adapters for faces that do with CLIP are ip-adapter-plus-face and ip-adapter-full-face",
);

fn is_face_id(names: &Names) -> bool {
    names.has_prefix("image_proj.perceiver_resampler.")
        || (names.has("image_proj.norm.weight") && names.has("image_proj.proj.2.weight"))
        || (names.has_prefix("ip_adapter.") && names.any_contains(".to_k_lora."))
}

/// Motion modules with a first layer for noise, a mask and an image.
fn is_pia(names: &Names) -> bool {
    let is_nine = |(name, shape): (&str, &[usize])| {
        (name == "conv_in.weight" || name.ends_with(".conv_in.weight")) && shape.get(1) == Some(&9)
    };
    names.any_contains("motion_modules.") && !is_control_net(names) && names.iter().any(is_nine)
}

/// A T2I-Adapter's layers for trajectories; some files have `module.` before every name.
fn is_motion_ctrl(names: &Names) -> bool {
    let inputs = match names.shape("module.conv_in.weight") {
        Some(shape) if names.has("module.body.0.block1.weight") => shape.get(1).copied(),
        _ => first_layer(names).filter(|_| is_t2i_adapter(names)),
    };
    // Pixel unshuffle of both directions by 8x8.
    inputs == Some(128)
}

fn is_lora(names: &Names) -> bool {
    [".lora_down.", ".lora_up.", "_lora.down.", "_lora.up.", ".lora.down.", ".lora_A."]
        .iter()
        .chain(&[".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".lora_linear_layer."])
        .chain(&["unet:0:up", "text_encoder:0:up"])
        .any(|part| names.any_contains(part))
}

fn is_control_net(names: &Names) -> bool {
    names.has_prefix("control_model.")
        || names.any_contains("controlnet_cond_embedding.")
        || names.has_prefix("input_hint_block.")
        || names.has_prefix("controlnet_down_blocks.")
}

/// Description of the file if it is neither a model nor one of the `wanted` components.
pub(in crate::weights) fn recognise(names: &Names, wanted: &[Component]) -> Option<Foreign> {
    let foreign = SIGNS.iter().find(|(sign, _)| sign(names)).map(|(_, foreign)| *foreign)?;
    let is_wanted = OPTIONAL.iter().any(|(c, known)| *known == foreign && wanted.contains(c));
    (!is_wanted).then_some(foreign)
}

/// Description of a file that has a LoRA's names but cannot be applied as one.
pub(in crate::weights) fn recognise_in_lora(names: &Names) -> Option<Foreign> {
    let mut signs = SIGNS.iter().take_while(|(_, foreign)| *foreign != LORA);
    signs.find(|(sign, _)| sign(names)).map(|(_, foreign)| *foreign)
}

/// Description of a component with the right names but the sizes of another model.
///
/// `shape` returns the shape of a canonical name.
pub(in crate::weights) fn misfit(
    component: Component,
    names: &[&str],
    shape: impl Fn(&str) -> Option<Vec<usize>>,
) -> Option<Foreign> {
    if component == Component::IpAdapter {
        let key = names.iter().find(|name| name.ends_with(".to_k_ip.weight"))?;
        return match shape(key).as_deref() {
            Some([_, 1024]) => Some(foreign("an IP-Adapter for Stable Diffusion 2", SD15_ONLY)),
            Some([_, 2048]) => Some(foreign("an IP-Adapter for Stable Diffusion XL", SD15_ONLY)),
            _ => None,
        };
    }
    if component == Component::Vae
        && let Some([_, 16, ..]) = shape("decoder.layers.0.weight").as_deref()
    {
        let what = "a TAESD for latents of 16 channels, as of Stable Diffusion 3 and Flux";
        return Some(foreign(what, "use taesd_decoder and taesd_encoder"));
    }
    let is_control = match component {
        Component::UNet => false,
        Component::ControlNet | Component::SparseCtrl => true,
        _ => return None,
    };
    match shape("conv_in.weight").as_deref() {
        Some([_, 9, ..]) => {
            return Some(foreign(
                "an inpainting model (9 input channels)",
                "use the ordinary version of this model",
            ));
        }
        Some([_, 8, ..]) => {
            return Some(foreign(
                "an InstructPix2Pix model (8 input channels)",
                "use the ordinary version of this model",
            ));
        }
        _ => {}
    }
    let cross = names
        .iter()
        .find(|name| name.contains(".attentions.") && name.ends_with(".attn2.to_k.weight"))?;
    match shape(cross).as_deref() {
        Some([_, 1024]) if is_control => {
            Some(foreign("a ControlNet for Stable Diffusion 2", SD15_ONLY))
        }
        Some([_, 2048]) if is_control => {
            Some(foreign("a ControlNet for Stable Diffusion XL", SD15_ONLY))
        }
        Some([_, 1024]) => Some(foreign("a Stable Diffusion 2 model", SD15_ONLY)),
        Some([_, 1280]) => Some(foreign("the refiner of Stable Diffusion XL", SD15_ONLY)),
        Some([_, 2048]) => Some(foreign("a Stable Diffusion XL model", SD15_ONLY)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Names {
        names.iter().map(|name| (*name, vec![1])).collect()
    }

    #[test]
    fn foreign_files_are_called_by_their_name() {
        for (name, what) in [
            ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "XL"),
            ("model.diffusion_model.label_emb.0.0.weight", "XL"),
            ("cond_stage_model.model.ln_final.weight", "Diffusion 2"),
            ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight", "Diffusion 3"),
            ("double_blocks.0.img_attn.proj.weight", "Flux"),
            ("control_model.zero_convs.0.0.weight", "ControlNet"),
            ("controlnet_cond_embedding.conv_in.weight", "ControlNet"),
            ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "LoRA"),
            ("unet.conv_in.lora_A.weight", "LoRA"),
            ("img_encoder.conv_in.weight", "without its motion modules"),
            ("lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight", "ControlNet-LLLite"),
            ("control_add_embedding.linear_1.weight", "union ControlNet"),
            ("controlnet_mode_embedder.weight", "union ControlNet"),
            ("double_blocks.0.img_attn_qkv.weight", "HunyuanVideo"),
            ("txt_in.individual_token_refiner.blocks.0.norm1.weight", "HunyuanVideo"),
            ("blocks.0.attn1.Wqkv.weight", "Hunyuan-DiT"),
            ("model.diffusion_model.blocks.0.cross_attn.k.weight", "Wan"),
            ("patchify_proj.weight", "LTX-Video"),
            ("transformer_blocks.0.img_mlp.net.0.proj.weight", "Qwen-Image"),
            ("noise_refiner.0.attention.qkv.weight", "Z-Image"),
            ("transformer_blocks.0.attn.add_k_proj.weight", "Diffusion 3"),
            ("encoder.block.0.layer.0.SelfAttention.k.weight", "T5"),
            ("diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight", "LoRA"),
            ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "LoRA"),
            ("unet:0:up", "LoRA"),
        ] {
            let found = recognise(&names(&[name]), &[]).map(|foreign| foreign.what);
            assert!(found.is_some_and(|found| found.contains(what)), "{name}: {found:?}");
        }
        assert_eq!(
            recognise(&names(&["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"]), &[]),
            None
        );
    }

    #[test]
    fn a_control_is_a_stranger_unless_it_is_wanted() {
        let what =
            |names_: &[&str], wanted: &[_]| recognise(&names(names_), wanted).map(|f| f.what);
        let wanted = &Component::CONTROLS[..];
        let hint = "controlnet_cond_embedding.conv_in.weight";
        let motion = "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight";
        for (names, kind) in [
            (vec![hint], "a ControlNet"),
            (vec![hint, motion], "a SparseCtrl network"),
            (vec!["controlnet.controlnet_cond_embedding.weight", motion], "a SparseCtrl network"),
            (vec!["adapter.body.0.resnets.0.block1.weight"], "a T2I-Adapter"),
            (vec!["conv_in.weight", "body.0.block1.weight"], "a T2I-Adapter"),
            (vec!["body.0.in_conv.weight", "body.0.out_conv.weight"], "a T2I-Adapter"),
        ] {
            assert_eq!(what(&names, &[]), Some(kind));
            assert_eq!(what(&names, wanted), None, "{kind}");
        }
        assert_eq!(what(&[hint], wanted), None);
        assert_eq!(what(&["control_model.input_hint_block.0.bias"], wanted), None);
        for (other, found) in [
            ("add_embedding.linear_1.weight", "Stable Diffusion XL"),
            ("control_model.label_emb.0.0.weight", "Stable Diffusion XL"),
            ("difference", "difference"),
            ("lora_controlnet", "Control-LoRA"),
        ] {
            let what = what(&[hint, other], wanted);
            assert!(what.is_some_and(|what| what.contains(found)), "{other}: {what:?}");
        }
    }

    #[test]
    fn ip_adapters_are_told_apart() {
        let what = |names_: &[&str], wanted| recognise(&names(names_), wanted).map(|f| f.what);
        let wanted = &[Component::IpAdapter][..];
        let key = "ip_adapter.1.to_k_ip.weight";
        assert_eq!(what(&[key, "image_proj.norm.weight"], wanted), None);
        assert_eq!(
            what(&[key, "image_proj.proj.0.weight", "image_proj.proj.2.weight"], wanted),
            None
        );
        assert_eq!(what(&[key], &[Component::UNet]), Some("an IP-Adapter"));
        for face in [
            &["image_proj.norm.weight", "image_proj.proj.0.weight", "image_proj.proj.2.weight"][..],
            &["image_proj.perceiver_resampler.proj_in.weight"],
            &[key, "ip_adapter.0.to_k_lora.down.weight"],
        ] {
            assert!(what(face, wanted).is_some_and(|what| what.contains("FaceID")), "{face:?}");
            assert_eq!(recognise_in_lora(&names(face)), Some(FACE_ID));
        }
        let inside =
            ["mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight"];
        assert!(what(&inside, wanted).is_some_and(|what| what.starts_with("a UNet")));
        let size = |width| misfit(Component::IpAdapter, &[key], |_| Some(vec![640, width]));
        assert_eq!(size(768), None);
        assert!(size(2048).is_some_and(|foreign| foreign.what.contains("XL")));
    }

    #[test]
    fn motion_modules_of_other_kinds_are_called_by_their_name() {
        let motion = "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight";
        let what = |names: &[(&str, &[usize])]| {
            let names: Names = names.iter().map(|(name, shape)| (*name, shape.to_vec())).collect();
            recognise(&names, &[]).map(|foreign| (foreign.what, foreign.hint))
        };
        let plain = [(motion, &[320][..]), ("down_blocks.3.motion_modules.0.norm.weight", &[1280])];
        assert_eq!(what(&plain), None);
        let block = "down_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0";
        let (merge, camera) = (
            format!("{block}.attention_blocks.0.processor.qkv_merge.weight"),
            format!("{block}.cc_projection.weight"),
        );
        let hotshot = "up_blocks.0.temporal_attentions.0.transformer_blocks.0.norms.0.weight";
        let body = ("body.0.block1.weight", &[320, 320, 3, 3][..]);
        for (names, name, instead) in [
            (
                &[plain[0], plain[1], ("conv_in.weight", &[320, 9, 3, 3])][..],
                "PIA",
                "animatelcm-i2v",
            ),
            (&[plain[0], plain[1], ("module.conv_in.weight", &[320, 9, 3, 3])], "PIA", "--keep 0"),
            (&[("encoder_down_conv_blocks.0.0.block1.weight", &[1])], "CameraCtrl", "motion LoRA"),
            (&[plain[0], (&merge, &[320, 320])], "CameraCtrl", "motion LoRA"),
            (&[plain[0], (&camera, &[320, 332])], "MotionCtrl's camera", "motion LoRA"),
            (&[("conv_in.weight", &[320, 128, 3, 3]), body], "MotionCtrl's object", "SparseCtrl"),
            (
                &[
                    ("module.conv_in.weight", &[320, 128, 3, 3]),
                    ("module.body.0.block1.weight", &[320, 320, 3, 3]),
                ],
                "MotionCtrl's object",
                "--mask",
            ),
            (&[(hotshot, &[320])], "HotShot-XL", "animatelcm-t2v"),
            (&[plain[0]], "for Stable Diffusion XL", "animatelcm-t2v"),
        ] {
            let (what, hint) = what(names).unwrap();
            assert!(what.contains(name) && hint.contains(instead), "{names:?}: {what}; {hint}");
        }
        // What is like them but is not.
        let unet = [plain[0], plain[1], ("conv_in.weight", &[320, 4, 3, 3][..])];
        assert_eq!(what(&unet), None);
        let depth = [("conv_in.weight", &[320, 192, 3, 3][..]), body];
        assert_eq!(what(&depth).unwrap().0, "a T2I-Adapter");
    }

    #[test]
    fn other_sizes_are_called_by_their_name() {
        let what = |name: &str, shape: &[usize]| {
            misfit(Component::UNet, &[name], |n| (n == name).then(|| shape.to_vec()))
                .map(|f| f.what)
        };
        let key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
        assert!(what("conv_in.weight", &[320, 9, 3, 3]).unwrap().contains("inpainting"));
        assert!(what(key, &[320, 1024]).unwrap().contains("Diffusion 2"));
        assert_eq!(what(key, &[320, 768]), None);
        assert_eq!(what("conv_in.weight", &[320, 4, 3, 3]), None);
    }
}
