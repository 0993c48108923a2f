//! Weights in 8 bits with their scales beside them, as ComfyUI stores them: each pair becomes one tensor.
//!
//! `LAYER.weight` is in fp8 or `i8`, and `LAYER.weight_scale` (older: `LAYER.scale_weight`) is one factor or one for
//! every row. `LAYER.comfy_quant` or the metadata `_quantization_metadata` name the form (ComfyUI, `comfy/quant_ops.py`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ElementType, Entry, count, quoted};

/// The key of the forms in the metadata of a safetensors file.
const METADATA: &str = "_quantization_metadata";
/// Ending of the name of a weight's form.
const FORM: &str = ".comfy_quant";
/// Endings of the names of a weight's scales.
const SCALES: [&str; 2] = [".weight_scale", ".scale_weight"];
/// Endings of the names of scales for what a layer is given, which is not rounded here.
const INPUT_SCALES: [&str; 2] = [".input_scale", ".scale_input"];
/// Name of a tensor that only says that the file is in fp8.
const MARK: &str = "scaled_fp8";
/// The longest form, in bytes.
const LONGEST_FORM: usize = 4096;

/// The form of a layer's weight.
#[derive(Debug, Deserialize)]
struct Form {
    format: String,
    #[serde(default)]
    convrot: bool,
    #[serde(default)]
    params: Params,
}

#[derive(Debug, Default, Deserialize)]
struct Params {
    #[serde(default)]
    convrot: bool,
}

#[derive(Debug, Deserialize)]
struct Forms {
    layers: BTreeMap<String, Form>,
}

impl Form {
    fn check(&self, layer: &str) -> Result<(), String> {
        let is_rotated = self.convrot || self.params.convrot;
        match self.format.as_str() {
            "float8_e4m3fn" | "float8_e5m2" => Ok(()),
            "int8_tensorwise" if !is_rotated => Ok(()),
            "int8_tensorwise" => Err(format!("the weight of {} is rotated int8", quoted(layer))),
            other => Err(format!("the weight of {} is stored as {}", quoted(layer), quoted(other))),
        }
    }
}

/// Gives weights in 8 bits their scales, which are no tensors of their own then. `read` returns the bytes of an entry.
///
/// # Errors
///
/// A form that is not supported, a scale that fits no weight, and integers without scales.
pub(super) fn pair(
    entries: &mut BTreeMap<String, Entry>,
    metadata: &BTreeMap<String, String>,
    read: impl Fn(&Entry) -> Result<Vec<u8>, String>,
) -> Result<(), String> {
    for (layer, form) in forms(entries, metadata, read)? {
        form.check(&layer)?;
    }
    entries.retain(|name, _| {
        !name.ends_with(FORM) && name != MARK && !name.ends_with(&format!(".{MARK}"))
    });
    let weights = entries.iter().filter(|(_, entry)| is_narrow(entry.info.element));
    let layers: Vec<String> =
        weights.filter_map(|(name, _)| name.strip_suffix(".weight")).map(str::to_owned).collect();
    for layer in layers {
        let scales = SCALES.map(|ending| entries.remove(&format!("{layer}{ending}")));
        let scale = match scales {
            [Some(_), Some(_)] => return Err(format!("{} has two scales", quoted(&layer))),
            [one, other] => one.or(other),
        };
        let weight = format!("{layer}.weight");
        let Some(entry) = entries.get_mut(&weight) else { continue };
        let is_integer = entry.info.element == ElementType::I8;
        match scale {
            Some(scale) => {
                check(&scale, &entry.info.shape)
                    .map_err(|reason| format!("the scale of {} {reason}", quoted(&weight)))?;
                entry.scale = Some(Box::new(scale));
                for ending in INPUT_SCALES {
                    entries.remove(&format!("{layer}{ending}"));
                }
            }
            None if is_integer && entry.info.shape.len() > 1 => {
                return Err(format!("{} is in 8-bit integers without a scale", quoted(&weight)));
            }
            None => {}
        }
    }
    let is_scale = |name: &&String| SCALES.iter().any(|ending| name.ends_with(ending));
    match entries.keys().find(is_scale) {
        Some(left) => Err(format!("{} belongs to no weight in 8 bits", quoted(left))),
        None => Ok(()),
    }
}

/// The forms that a file names, by layer.
fn forms(
    entries: &BTreeMap<String, Entry>,
    metadata: &BTreeMap<String, String>,
    read: impl Fn(&Entry) -> Result<Vec<u8>, String>,
) -> Result<BTreeMap<String, Form>, String> {
    let mut found = match metadata.get(METADATA) {
        Some(text) => {
            let read = serde_json::from_str::<Forms>(text);
            read.map_err(|error| format!("its {METADATA}: {error}"))?.layers
        }
        None => BTreeMap::new(),
    };
    for (name, entry) in entries {
        let Some(layer) = name.strip_suffix(FORM) else { continue };
        let wrong = |reason: String| format!("{}: {reason}", quoted(name));
        if entry.len() > LONGEST_FORM {
            return Err(wrong(format!("{} bytes are too many", entry.len())));
        }
        let bytes = read(entry).map_err(wrong)?;
        let form = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        found.insert(layer.to_owned(), form);
    }
    Ok(found)
}

/// Whether elements of a weight have to be multiplied by a scale, if there is one.
fn is_narrow(element: ElementType) -> bool {
    matches!(element, ElementType::F8E4M3 | ElementType::F8E5M2 | ElementType::I8)
}

/// Checks that there is one scale, or one for every row.
fn check(scale: &Entry, weight: &[usize]) -> Result<(), String> {
    let scales = count(&scale.info.shape);
    let rows = weight.first().copied().unwrap_or(1);
    if !matches!(scale.info.element, ElementType::F32 | ElementType::F16 | ElementType::BF16) {
        return Err(format!("is in {}", scale.info.element));
    }
    if scales != 1 && (scales != rows || scale.info.shape.first() != Some(&rows)) {
        return Err(format!("has shape {:?} for a weight of {weight:?}", scale.info.shape));
    }
    Ok(())
}
