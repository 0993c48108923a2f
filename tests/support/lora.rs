//! The tiny model under LoRAs, and small LoRAs made for a test.

use std::collections::BTreeMap;

use animatelcm::adapters::lora::{Lora, LoraOptions, LoraReport};
use animatelcm::library::{Base, Files, LoraFile};
use animatelcm::weights::{Checkpoint, Component, PatchStack, Source};
use animatelcm::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};

use crate::support::golden;
use crate::support::weights::{build, source, write};

pub(crate) fn tiny() -> Checkpoint {
    let mut checkpoint = Checkpoint::new();
    for component in Component::BASE {
        checkpoint.add_component(component, &source("tiny/model")).unwrap();
    }
    checkpoint.add_motion(&source("tiny/model/motion_adapter")).unwrap();
    checkpoint
}

pub(crate) fn all(checkpoint: &Checkpoint, patches: &PatchStack) -> BTreeMap<String, Tensor> {
    [Component::UNet, Component::Text]
        .into_iter()
        .flat_map(|component| build(checkpoint, component, DType::F32, patches).unwrap().0)
        .collect()
}

pub(crate) fn apply(
    checkpoint: &Checkpoint,
    lora: &Source,
    options: &LoraOptions,
) -> Result<(LoraReport, BTreeMap<String, Tensor>)> {
    let mut patches = PatchStack::new();
    let report = Lora::open(lora, "test")?.apply(checkpoint, options, &mut patches)?;
    Ok((report, all(checkpoint, &patches)))
}

pub(crate) fn differs(a: &Tensor, b: &Tensor) -> bool {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    flat(a) != flat(b)
}

pub(crate) fn matrix(rows: usize, columns: usize, value: f32) -> Tensor {
    Tensor::full(value, (rows, columns), &Device::Cpu).unwrap()
}

pub(crate) fn scalar(value: f32) -> Tensor {
    Tensor::full(value, (), &Device::Cpu).unwrap()
}

pub(crate) struct SavedLora {
    pub(crate) folder: tempfile::TempDir,
}

impl SavedLora {
    pub(crate) fn new(tensors: &[(&str, Tensor)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("lora.safetensors"), tensors);
        Self { folder }
    }

    pub(crate) fn source(&self) -> Source {
        self.folder.path().join("lora.safetensors").into()
    }

    pub(crate) fn open(&self) -> Result<Lora> {
        Lora::open(&self.source(), "made")
    }

    pub(crate) fn apply(&self, options: &LoraOptions) -> Result<LoraReport> {
        self.open()?.apply(&tiny(), options, &mut PatchStack::new())
    }

    pub(crate) fn error(&self) -> Error {
        let error = self.apply(&LoraOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weights);
        error
    }
}

pub(crate) const Q: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";

pub(crate) const Q_WEIGHT: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight";

/// A LoRA of rank 2 of one 16x16 matrix, each element of whose product is 6.
pub(crate) fn one(extra: &[(&str, Tensor)]) -> SavedLora {
    let (down, up) = (format!("{Q}.lora_down.weight"), format!("{Q}.lora_up.weight"));
    let mut tensors = vec![(down.as_str(), matrix(2, 16, 3.0)), (up.as_str(), matrix(16, 2, 1.0))];
    tensors.extend(extra.iter().cloned());
    SavedLora::new(&tensors)
}

/// By how much a LoRA changes each element of its one matrix.
pub(crate) fn change(saved: &SavedLora, options: &LoraOptions) -> f32 {
    let checkpoint = tiny();
    let (_, patched) = apply(&checkpoint, &saved.source(), options).unwrap();
    let plain = all(&checkpoint, &PatchStack::new());
    let first = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
    first(&patched[Q_WEIGHT]) - first(&plain[Q_WEIGHT])
}

pub(crate) fn close(got: f32, want: f32) {
    assert!((got - want).abs() < 1e-4, "{got} is not {want}");
}

pub(crate) fn files(loras: Vec<LoraFile>) -> Files {
    Files { loras, ..Files::new(Base::Folder(golden::path("tiny/model"))) }
}
