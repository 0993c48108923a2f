//! Weight files made for a test, and what is read of them.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use animatelcm::Result;
use animatelcm::weights::{Archive, Checkpoint, Component, LoadReport, PatchStack, Source};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use crate::support::golden;

pub(crate) type Bits = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// A file under `tests/goldens`.
pub(crate) fn source(name: &str) -> Source {
    Source::File(golden::path(name))
}

/// Builds a component that asks for exactly the weights that are there.
pub(crate) fn build(
    checkpoint: &Checkpoint,
    component: Component,
    dtype: DType,
    patches: &PatchStack,
) -> Result<(BTreeMap<String, Tensor>, LoadReport)> {
    let names: Vec<String> = checkpoint.names(component).map(str::to_owned).collect();
    checkpoint.build(component, dtype, &Device::Cpu, patches, |vb| {
        let get = |name: &String| {
            let shape = checkpoint.shape_of(component, name).unwrap();
            Ok((name.clone(), vb.get(shape, name)?))
        };
        names.iter().map(get).collect()
    })
}

pub(crate) fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::F32 => flat.to_vec1::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => flat.to_vec1::<f16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::BF16 => {
            flat.to_vec1::<bf16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn bits(checkpoint: &Checkpoint, component: Component, dtype: DType) -> Bits {
    let (tensors, report) = build(checkpoint, component, dtype, &PatchStack::new()).unwrap();
    assert_eq!(report.used, tensors.len());
    tensors.into_iter().map(|(name, t)| (name, (t.dims().to_vec(), bytes_of(&t)))).collect()
}

pub(crate) fn tiny() -> Checkpoint {
    let mut checkpoint = Checkpoint::new();
    for component in Component::BASE {
        checkpoint.add_component(component, &source("tiny/model")).unwrap();
    }
    checkpoint
}

/// A sparse safetensors file with the names and shapes of a list; only `contents` is really written.
pub(crate) fn published(
    lists: &[&str],
    contents: impl Fn(&str, &[usize]) -> Option<Vec<u8>>,
) -> tempfile::NamedTempFile {
    let mut header = serde_json::Map::new();
    let (mut end, mut written) = (0, Vec::new());
    for list in lists {
        let text = std::fs::read_to_string(golden::path(&format!("names/{list}.txt"))).unwrap();
        for line in text.lines() {
            let (name, shape) = line.split_once('\t').unwrap();
            let shape: Vec<usize> = serde_json::from_str(shape).unwrap();
            let data = contents(name, &shape);
            let dtype = if data.is_some() { "F32" } else { "U8" };
            let len = data.as_ref().map_or(shape.iter().product(), Vec::len);
            let entry = serde_json::json!({
                "dtype": dtype, "shape": shape, "data_offsets": [end, end + len]
            });
            assert!(header.insert(name.to_owned(), entry).is_none());
            written.extend(data.map(|data| (end, data)));
            end += len;
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let start = 8 + header.len();
    file.as_file().set_len((start + end) as u64).unwrap();
    for (at, data) in written {
        file.seek(SeekFrom::Start((start + at) as u64)).unwrap();
        file.write_all(&data).unwrap();
    }
    file
}

pub(crate) fn published_source(lists: &[&str]) -> (tempfile::NamedTempFile, Source) {
    let file = published(lists, positions);
    let source = Source::from(file.path());
    (file, source)
}

/// The contents of a position table, if the name is one's.
pub(crate) fn positions(name: &str, shape: &[usize]) -> Option<Vec<u8>> {
    let [1, length, channels] = *shape else { return None };
    name.rsplit('.').next().filter(|last| *last == "pe")?;
    // The formula of the original, in its own order of operations.
    let frequency = |i: usize| (-(10000f64.ln()) * (2 * i) as f64 / channels as f64).exp();
    let at = |p: usize, c: usize| {
        let angle = p as f64 * frequency(c / 2);
        (if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
    };
    let values = (0..length).flat_map(|p| (0..channels).map(move |c| at(p, c)));
    Some(values.flat_map(f32::to_le_bytes).collect())
}

/// The names and shapes in a list, sorted.
pub(crate) fn list(name: &str) -> BTreeMap<String, Vec<usize>> {
    let text = std::fs::read_to_string(golden::path(&format!("names/{name}.txt"))).unwrap();
    text.lines()
        .map(|line| {
            let (name, shape) = line.split_once('\t').unwrap();
            (name.to_owned(), serde_json::from_str(shape).unwrap())
        })
        .collect()
}

pub(crate) fn index(checkpoint: &Checkpoint, component: Component) -> BTreeMap<String, Vec<usize>> {
    let shape = |name: &str| checkpoint.shape_of(component, name).unwrap().to_vec();
    checkpoint.names(component).map(|name| (name.to_owned(), shape(name))).collect()
}

pub(crate) fn opened(bytes: Vec<u8>) -> Result<Archive> {
    Archive::open(&Source::Embedded { name: "test", bytes: bytes.leak() })
}

pub(crate) fn f32s(shape: &[usize], value: f32) -> Tensor {
    Tensor::full(value, shape, &Device::Cpu).unwrap()
}

pub(crate) fn write(path: &Path, tensors: &[(&str, Tensor)]) {
    let tensors: std::collections::HashMap<String, Tensor> =
        tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}
