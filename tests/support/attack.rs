//! What the program must do with hostile input: one error, and nothing left behind.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use crate::support::program::{Folder, Outcome};

pub(crate) const LORA: &str = "../../assets/pocket/animatelcm_lora.safetensors";

/// Makes a clip that takes no time, if nothing is wrong.
pub(crate) fn generate(folder: &Folder, more: &[&str]) -> Outcome {
    let args = ["generate", "a red star", "--frames=2", "--steps=1", "--seed=1", "-o", "clip.gif"];
    folder.run(&[&args[..], more].concat())
}

/// The program must refuse with `code`, in one line with all of `parts` in it, and leave nothing behind.
#[track_caller]
pub(crate) fn refused(
    folder: &Folder,
    outcome: &Outcome,
    code: i32,
    parts: &[&str],
    before: &[String],
) {
    let line = outcome.fails(code);
    for part in parts {
        assert!(line.contains(part), "`{part}` is not in: {line}");
    }
    assert_eq!(folder.names(), before, "after: {line}");
}

/// As [`refused`], for flags of `generate`.
#[track_caller]
pub(crate) fn refuses(folder: &Folder, args: &[&str], code: i32, parts: &[&str]) -> Outcome {
    let before = folder.names();
    let outcome = generate(folder, args);
    refused(folder, &outcome, code, parts, &before);
    outcome
}

/// A safetensors file with whatever header and data.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A sound safetensors file with zeros under these names.
pub(crate) fn zeros(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let tensors: HashMap<_, _> = tensors
        .iter()
        .map(|(name, shape)| (*name, Tensor::zeros(*shape, DType::F32, &Device::Cpu).unwrap()))
        .collect();
    safetensors::serialize(&tensors, None).unwrap()
}
