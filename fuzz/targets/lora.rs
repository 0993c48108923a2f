//! LoRAs and their relatives: names and shapes that are nearly those of published files, applied to the tiny model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use animatelcm::adapters::lora::{Lora, LoraOptions, LoraScale};
use animatelcm::weights::{Archive, Checkpoint, Component, PatchStack, Source};
use candle_core::{DType, Device};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::support::{Cursor, file, golden};

/// Bytes of all tensors of a file.
const MOST_BYTES: usize = 1 << 15;

/// Values of changed weights that are computed.
const MOST_VALUES: usize = 1 << 15;

/// Ends of names, of every family.
const ENDS: [&str; 24] = [
    ".alpha",
    ".lora_up.weight",
    ".lora_down.weight",
    ".lora_mid.weight",
    ".lora_A.weight",
    ".lora_B.weight",
    ".dora_scale",
    ".lora_magnitude_vector",
    ".hada_w1_a",
    ".hada_w1_b",
    ".hada_w2_a",
    ".hada_w2_b",
    ".hada_t1",
    ".lokr_w1",
    ".lokr_w2",
    ".lokr_w1_a",
    ".lokr_t2",
    ".a1.weight",
    ".b2.weight",
    ".oft_blocks",
    ".on_input",
    ".weight",
    ".diff",
    ".diff_b",
];

/// Writes a file of tensors that the input describes, opens it and applies it.
pub fn run(data: &[u8]) {
    let mut cursor = Cursor(data);
    let choice = cursor.byte();
    let options = options(choice);
    let tensors = tensors(&mut cursor);
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("bytes of that shape");
        (name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).expect("sound tensors");
    let Ok(lora) = Lora::open(&Source::from(file("lora.safetensors", &bytes)), "lora") else {
        return;
    };
    let mut patches = PatchStack::new();
    let Ok(report) = lora.apply(model(), &options, &mut patches) else { return };
    let _ = report.to_string();
    // One of both: the model costs more than the change.
    change(if choice & 0x10 == 0 { Component::UNet } else { Component::Text }, &patches);
}

/// Computes the weights that patches change, of a model that has no others.
fn change(component: Component, patches: &PatchStack) {
    let names = patches.names(component);
    let shape = |name: &str| model().shape_of(component, name).unwrap_or_default();
    let values: usize = names.iter().map(|name| shape(name).iter().product::<usize>()).sum();
    if names.is_empty() || values > MOST_VALUES {
        return;
    }
    let mut changed = model().clone();
    changed.ignore(component, "nothing changes it", |name| !names.contains(name));
    let _ = changed.build(component, DType::F32, &Device::Cpu, patches, |weights| {
        for name in &names {
            weights.get(shape(name), name)?;
        }
        Ok(())
    });
}

/// The tiny model's weights.
pub(crate) fn model() -> &'static Checkpoint {
    static MODEL: OnceLock<Checkpoint> = OnceLock::new();
    MODEL.get_or_init(|| {
        let source = Source::from(golden("tiny/model"));
        let mut checkpoint = Checkpoint::new();
        for component in [Component::UNet, Component::Text] {
            checkpoint.add_component(component, &source).expect("the tiny model");
        }
        let motion = Source::from(golden("tiny/model/motion_adapter"));
        checkpoint.add_motion(&motion).expect("the tiny model's motion modules");
        checkpoint
    })
}

fn options(byte: u8) -> LoraOptions {
    LoraOptions {
        unet_strength: if byte & 1 == 0 { 1.0 } else { -0.5 },
        text_strength: if byte & 2 == 0 { 1.0 } else { 0.0 },
        scale: if byte & 4 == 0 { LoraScale::AlphaOverRank } else { LoraScale::Fixed(0.125) },
        allow_partial: byte & 8 == 0,
        ..LoraOptions::default()
    }
}

/// Names and shapes in published files, in their order.
fn published() -> &'static [(String, Vec<usize>)] {
    static PUBLISHED: OnceLock<Vec<(String, Vec<usize>)>> = OnceLock::new();
    PUBLISHED.get_or_init(|| {
        let mut found = Vec::new();
        collect(&golden("lora"), &mut found);
        found
    })
}

fn collect(folder: &Path, found: &mut Vec<(String, Vec<usize>)>) {
    let entries = std::fs::read_dir(folder).expect("a folder of goldens");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            let archive = Archive::open(&Source::from(path)).expect("a LoRA of the goldens");
            found.extend(archive.tensors().map(|(name, info)| (name.into(), info.shape.clone())));
        }
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Tensors of published files, as they are or changed.
fn tensors(cursor: &mut Cursor<'_>) -> Tensors {
    let mut tensors = Tensors::new();
    let mut left = MOST_BYTES;
    while !cursor.is_empty() && left > 0 {
        let first = usize::from(cursor.short()) % published().len();
        let how = cursor.byte();
        let count = 1 + usize::from(how & 0x0f);
        for (name, shape) in published().iter().skip(first).take(count) {
            let (mut name, mut shape) = (name.clone(), shape.clone());
            if how & 0x10 != 0 {
                reshape(&mut shape, cursor);
            }
            if how & 0x20 != 0 {
                name = renamed(&name, cursor);
            }
            let dtype = if how & 0x40 == 0 { Dtype::F32 } else { Dtype::F16 };
            let size = if how & 0x40 == 0 { 4 } else { 2 };
            let bytes = shape.iter().try_fold(size, |bytes: usize, side| bytes.checked_mul(*side));
            let Some(bytes) = bytes.filter(|bytes| *bytes <= left) else { continue };
            left -= bytes;
            // Small numbers, or patterns that may be anything.
            let pattern =
                if how & 0x80 == 0 { [0x33; 4] } else { std::array::from_fn(|_| cursor.byte()) };
            tensors.insert(name, (dtype, shape, (0..bytes).map(|i| pattern[i % 4]).collect()));
        }
    }
    tensors
}

fn reshape(shape: &mut Vec<usize>, cursor: &mut Cursor<'_>) {
    let how = cursor.byte();
    let at = usize::from(how & 0x0f);
    match (how >> 4) % 6 {
        0 => drop(shape.pop()),
        1 => shape.push(1),
        2 => shape.reverse(),
        3 => shape.insert(at.min(shape.len()), usize::from(cursor.byte())),
        _ => {
            let count = shape.len().max(1);
            if let Some(side) = shape.get_mut(at % count) {
                *side = usize::from(cursor.byte());
            }
        }
    }
}

/// Another end, or other letters.
fn renamed(name: &str, cursor: &mut Cursor<'_>) -> String {
    let how = cursor.byte();
    if how & 0x80 != 0 {
        let more = String::from_utf8_lossy(cursor.bytes(usize::from(how & 0x1f))).into_owned();
        return if how & 0x40 == 0 { format!("{more}{name}") } else { format!("{name}{more}") };
    }
    let stem = ENDS.iter().find_map(|end| name.strip_suffix(end));
    let stem = stem.or_else(|| name.rsplit_once('.').map(|(stem, _)| stem)).unwrap_or(name);
    format!("{stem}{}", ENDS[usize::from(how) % ENDS.len()])
}
