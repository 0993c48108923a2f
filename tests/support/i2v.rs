//! AnimateLCM-I2V at the size of the tiny model: its motion modules and its image encoder in one file.

use std::collections::BTreeMap;
use std::path::Path;

use animatelcm::library::{Base, Files, Motion};
use candle_core::Tensor;
use zip::CompressionMethod::Stored;

use crate::support::control::save;
use crate::support::golden;
use crate::support::tiny;
use crate::support::torch::{Pickler, torch_zip};

/// All tensors of the file under the names of AnimateLCM, without positions.
pub(crate) fn tensors() -> BTreeMap<String, Tensor> {
    let all = tiny::tensors(&[tiny::MOTION, "i2v/encoder.safetensors"]);
    let own = all.into_iter().filter(|(name, _)| !name.ends_with(".pe"));
    own.map(|(name, tensor)| (original(&name), tensor)).collect()
}

fn original(name: &str) -> String {
    let Some((head, tail)) = name.split_once(".motion_modules.") else { return name.to_owned() };
    let (number, tail) = tail.split_once('.').unwrap();
    let tail = tail
        .replace(".norm1.", ".norms.0.")
        .replace(".norm2.", ".norms.1.")
        .replace(".norm3.", ".ff_norm.")
        .replace(".attn1.", ".attention_blocks.0.")
        .replace(".attn2.", ".attention_blocks.1.");
    format!("{head}.motion_modules.{number}.temporal_transformer.{tail}")
}

/// The tiny model with the motion modules of this file.
pub(crate) fn files(motion: &Path) -> Files {
    let base = Base::Folder(golden::path("tiny/model"));
    Files { motion: Motion::File(motion.to_path_buf()), ..Files::new(base) }
}

/// The tiny model with AnimateLCM-I2V's file, written into a folder.
pub(crate) fn files_in(folder: &Path) -> Files {
    let path = folder.join("i2v.safetensors");
    save(&tensors(), &path);
    files(&path)
}

/// A torch file of these tensors by name.
pub(crate) fn pickled(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let mut pickle = Pickler::new();
    pickle.begin_dict();
    let mut members = Vec::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        let shape: Vec<u32> = tensor.dims().iter().map(|dim| *dim as u32).collect();
        pickle.text(name);
        pickle.view(&i.to_string(), tensor.elem_count() as u32, 0, &shape);
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        members.push((format!("data/{i}"), bytes));
    }
    pickle.end_dict();
    let pickle = pickle.finish();
    let mut all: Vec<(&str, &[u8])> = vec![("data.pkl", &pickle)];
    all.extend(members.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])));
    torch_zip(Stored, &all)
}
