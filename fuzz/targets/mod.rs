//! Fuzz targets: what each does with its input, shared by libFuzzer (`fuzz/fuzz_targets`) and `tests/attacks/fuzz.rs`.
//!
//! Whatever the input, a target must return: errors of the program are expected, panics that leave it are not, and
//! neither is memory beyond [`allowance`]. Some also check that what was read is written and read back the same.

mod support;
mod weights;

pub mod batch;
pub mod bmp;
pub mod clip_metadata;
pub mod config_json;
pub mod configs;
pub mod flags;
pub mod foreign_request;
pub mod gif;
pub mod index_json;
pub mod inversion;
pub mod jpeg;
pub mod lora;
pub mod manifest;
pub mod mp4;
pub mod pickle;
pub mod png;
pub mod prompt;
pub mod request;
pub mod safetensors_file;
pub mod tiff;
pub mod tokenizer_files;
pub mod tokenizer_json;
pub mod torch_legacy;
pub mod torch_zip;
pub mod train_plan;
pub mod webp;
pub mod y4m;

/// Whether an input is an image on so large a canvas that it takes long within the limits of the program. Such ones are
/// in `fuzz/bombs`, which `tests/attacks/fuzz.rs` executes; libFuzzer would spend its time on them.
#[allow(dead_code, reason = "for libFuzzer")]
pub fn is_slow(data: &[u8]) -> bool {
    support::pixels(data) > 1 << 20
}

/// What a target does with an input.
pub type Run = fn(&[u8]);

/// Every target by its name, which is also that of its corpus.
pub const ALL: [(&str, Run); 27] = [
    ("batch", batch::run),
    ("bmp", bmp::run),
    ("clip_metadata", clip_metadata::run),
    ("config_json", config_json::run),
    ("configs", configs::run),
    ("flags", flags::run),
    ("foreign_request", foreign_request::run),
    ("gif", gif::run),
    ("index_json", index_json::run),
    ("inversion", inversion::run),
    ("jpeg", jpeg::run),
    ("lora", lora::run),
    ("manifest", manifest::run),
    ("mp4", mp4::run),
    ("pickle", pickle::run),
    ("png", png::run),
    ("prompt", prompt::run),
    ("request", request::run),
    ("safetensors_file", safetensors_file::run),
    ("tiff", tiff::run),
    ("tokenizer_files", tokenizer_files::run),
    ("tokenizer_json", tokenizer_json::run),
    ("torch_legacy", torch_legacy::run),
    ("torch_zip", torch_zip::run),
    ("train_plan", train_plan::run),
    ("webp", webp::run),
    ("y4m", y4m::run),
];

/// Bytes that reading an input of `len` bytes may take.
pub fn allowance(len: usize) -> usize {
    (512 << 20) + 20 * len
}
