//! The tiny model of the goldens, straight from its files.

use std::collections::HashMap;
use std::path::PathBuf;

use animatelcm::models::motion::MotionConfig;
use animatelcm::models::unet::{UNet, UNetConfig};
use animatelcm::weights::VarBuilder;
use candle_core::{DType, Device, Tensor};

/// A file or folder under `tests/goldens`.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

/// All tensors of safetensors files, in f32.
pub(crate) fn tensors(names: &[&str]) -> HashMap<String, Tensor> {
    let mut all = HashMap::new();
    for name in names {
        let file = candle_core::safetensors::load(path(name), &Device::Cpu).unwrap();
        for (name, tensor) in file {
            let float = tensor.dtype().is_float();
            all.insert(name, if float { tensor.to_dtype(DType::F32).unwrap() } else { tensor });
        }
    }
    all
}

/// One case of reference tensors.
pub(crate) fn case(name: &str) -> HashMap<String, Tensor> {
    tensors(&[&format!("tiny/cases/{name}.safetensors")])
}

/// Weights as the constructors want them.
pub(crate) fn vb(names: &[&str], dtype: DType) -> VarBuilder<'static> {
    VarBuilder::from_tensors(tensors(names), dtype, &Device::Cpu)
}

/// A JSON configuration under `tests/goldens`.
pub(crate) fn config<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

pub(crate) const UNET: &str = "tiny/model/unet/diffusion_pytorch_model.safetensors";
pub(crate) const MOTION: &str = "tiny/model/motion_adapter/diffusion_pytorch_model.safetensors";

/// The tiny UNet with its motion modules.
pub(crate) fn unet(dtype: DType) -> UNet {
    let motion: MotionConfig = config("tiny/model/motion_adapter/config.json");
    let config: UNetConfig = config("tiny/model/unet/config.json");
    let config = config.with_motion(motion);
    UNet::new(&config, &vb(&[UNET, MOTION], dtype)).unwrap()
}

/// Latents in the layout of files, `(batch, channels, frames, height, width)`, as the UNet wants them:
/// `(batch*frames, channels, height, width)`.
pub(crate) fn fold(x: &Tensor) -> Tensor {
    x.transpose(1, 2).unwrap().contiguous().unwrap().flatten(0, 1).unwrap()
}

/// The inverse of [`fold`].
pub(crate) fn unfold(x: &Tensor, batch: usize) -> Tensor {
    let (images, channels, height, width) = x.dims4().unwrap();
    x.reshape((batch, images / batch, channels, height, width))
        .unwrap()
        .transpose(1, 2)
        .unwrap()
        .contiguous()
        .unwrap()
}
