//! Names and shapes of published files map onto the canonical ones.

use animatelcm::models::i2v_encoder::{I2vEncoder, I2vEncoderConfig};
use animatelcm::models::unet::UNetConfig;
use animatelcm::weights::{Checkpoint, Component, random};

use crate::support::weights::{index, list, published_source};

#[test]
fn a_published_single_file_maps_onto_the_canonical_names_one_to_one() {
    let (file, source) = published_source(&["ldm", "ldm_ignored"]);
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_single_file(&source).unwrap();
    assert_eq!(index(&checkpoint, Component::UNet), list("unet"));
    assert_eq!(index(&checkpoint, Component::Vae), list("vae"));
    assert_eq!(index(&checkpoint, Component::Text), list("text_encoder"));
    assert_eq!(checkpoint.names(Component::UNet).count(), 686);
    assert_eq!(checkpoint.ignored().count(), list("ldm_ignored").len());
    drop(file);
}

#[test]
fn published_folders_map_onto_the_canonical_names_one_to_one() {
    for (component, stored, canonical) in [
        (Component::UNet, "unet", "unet"),
        (Component::Vae, "vae", "vae"),
        (Component::Vae, "vae_old", "vae"),
        (Component::Text, "text_encoder", "text_encoder"),
    ] {
        let (_file, source) = published_source(&[stored]);
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_component(component, &source).unwrap();
        assert_eq!(index(&checkpoint, component), list(canonical), "{stored}");
    }
}

#[test]
fn published_motion_modules_map_onto_the_canonical_names_one_to_one() {
    let all = list("motion");
    assert_eq!(all.len(), 546);
    for (stored, mid, frames) in [
        ("motion_animatelcm", true, None),
        ("motion_animatediff_v1", false, Some(24)),
        ("motion_animatediff_v2", true, Some(32)),
        ("motion_animatediff_v3", false, Some(32)),
        ("motion_adapter", true, Some(32)),
    ] {
        let (_file, source) = published_source(&[stored]);
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_motion(&source).unwrap();
        let mut wanted = all.clone();
        if !mid {
            wanted.retain(|name, _| !name.starts_with("mid_block"));
        }
        assert_eq!(index(&checkpoint, Component::UNet), wanted, "{stored}");
        assert_eq!(checkpoint.stored_positions(), frames, "{stored}");
    }
}

#[test]
fn every_tensor_of_animatelcm_i2v_is_a_weight() {
    let (_file, source) = published_source(&["motion_animatelcm", "i2v_encoder"]);
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_motion(&source).unwrap();
    assert_eq!(index(&checkpoint, Component::UNet), list("motion"));
    assert_eq!(index(&checkpoint, Component::I2vEncoder), list("i2v_encoder"));
    assert_eq!(checkpoint.names(Component::I2vEncoder).count(), 38);
    assert_eq!(checkpoint.ignored().count(), 0);
    let config = I2vEncoderConfig::beside(&UNetConfig::sd15());
    let wanted = random::inventory(|vb| I2vEncoder::new(&config, &vb)).unwrap();
    assert_eq!(wanted, list("i2v_encoder"));
}

#[test]
fn published_controls_map_onto_the_canonical_names_one_to_one() {
    let (net, sparse, t2i) = (Component::ControlNet, Component::SparseCtrl, Component::T2iAdapter);
    for (file, canonical, component, positions) in [
        ("control_net", "control_net", net, None),
        ("control_net_ldm", "control_net", net, None),
        ("sparse_ctrl_rgb", "sparse_ctrl_rgb", sparse, None),
        ("sparse_ctrl_rgb_animatediff", "sparse_ctrl_rgb", sparse, Some(32)),
        ("sparse_ctrl_scribble_animatediff", "sparse_ctrl_scribble", sparse, Some(32)),
        ("t2i_adapter_full", "t2i_adapter_full", t2i, None),
        ("t2i_adapter_full_original", "t2i_adapter_full", t2i, None),
        ("t2i_adapter_light", "t2i_adapter_light", t2i, None),
        ("t2i_adapter_light_original", "t2i_adapter_light", t2i, None),
    ] {
        let (_file, source) = published_source(&[file]);
        let mut checkpoint = Checkpoint::new();
        assert_eq!(checkpoint.add_control(&source).unwrap(), component, "{file}");
        assert_eq!(index(&checkpoint, component), list(canonical), "{file}");
        assert_eq!(checkpoint.stored_positions(), positions, "{file}");
    }
}
