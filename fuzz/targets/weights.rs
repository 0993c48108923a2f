//! Everything that opens a weight file.

use std::path::Path;

use animatelcm::adapters::lora::{Lora, LoraOptions};
use animatelcm::text::inversion::Inversion;
use animatelcm::weights::{Archive, Checkpoint, Component, PatchStack, Source};
use candle_core::{DType, Device};

/// Bytes of tensors that are read of a file, in f32.
const BUDGET: usize = 4 << 20;

/// Opens a file in every way in which weights are opened, and reads its tensors within a budget.
pub(crate) fn open(path: &Path) {
    let source = Source::from(path.to_path_buf());
    // What cannot be opened is refused by all others in the same place.
    let Ok(archive) = Archive::open(&source) else { return };
    let mut left = BUDGET;
    for (name, info) in archive.tensors() {
        let count = info.shape.iter().try_fold(4_usize, |count, side| count.checked_mul(*side));
        if let Some(rest) = count.and_then(|count| left.checked_sub(count)) {
            left = rest;
            let _ = archive.tensor(name, DType::F32, &Device::Cpu);
        }
    }
    drop(archive);

    let mut checkpoint = Checkpoint::new();
    let _ = checkpoint.add_single_file(&source);
    let _ = checkpoint.add_motion(&source);
    let _ = checkpoint.add_control(&source);
    for component in Component::BASE.into_iter().chain(Component::OPTIONAL) {
        let _ = checkpoint.add_component(component, &source);
    }
    let _ = Inversion::open(&source, None);
    if let Ok(lora) = Lora::open(&source, "lora") {
        let _ = lora.apply(&checkpoint, &LoraOptions::default(), &mut PatchStack::new());
    }
}
