//! Reference data under `tests/goldens`.

use std::collections::HashMap;
use std::path::PathBuf;

use animatelcm::RgbImage;
use candle_core::{DType, Device, Tensor};

/// The tensors of one golden file.
#[derive(Debug)]
pub(crate) struct Golden {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

/// Loads `tests/goldens/<name>.safetensors`.
#[track_caller]
pub(crate) fn load(name: &str) -> Golden {
    let path = path(&format!("{name}.safetensors"));
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Golden { path, tensors }
}

/// Loads `tests/goldens/<name>.json`.
#[track_caller]
pub(crate) fn json(name: &str) -> serde_json::Value {
    let path = path(&format!("{name}.json"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Where `tests/goldens/<name>` is.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

impl Golden {
    /// The tensor of that name.
    #[track_caller]
    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("{} has no tensor `{name}`", self.path.display()))
            .clone()
    }

    /// A tensor's values as `f64`, whatever its dtype and shape.
    #[track_caller]
    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        let tensor = self.tensor(name).to_dtype(DType::F64).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Images in bytes, `(images, height, width, 3)`.
    #[track_caller]
    pub(crate) fn images(&self, name: &str) -> Vec<RgbImage> {
        let bytes = self.tensor(name);
        let (count, height, width, _) = bytes.dims4().unwrap();
        let image = |i| {
            let values = bytes.get(i).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            RgbImage::from_raw(width as u32, height as u32, values).unwrap()
        };
        (0..count).map(image).collect()
    }

    /// All names, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}
