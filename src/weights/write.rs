//! Writer of safetensors files.

use std::collections::BTreeMap;
use std::io::{self, Write};

use candle_core::Tensor;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, View};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Writes tensors as a safetensors file, copying at most one tensor at a time. Equal tensors and metadata give equal
/// bytes.
///
/// The order is that of the `safetensors` crate: the widest dtypes first, then by name.
pub(crate) fn write_safetensors<'a>(
    out: &mut impl Write,
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
    metadata: Option<&BTreeMap<String, String>>,
) -> io::Result<()> {
    let mut tensors: Vec<(Dtype, &String, &Tensor)> =
        tensors.into_iter().map(|(name, tensor)| (tensor.dtype().into(), name, tensor)).collect();
    tensors.sort_by(|(a_type, a, _), (b_type, b, _)| b_type.cmp(a_type).then(a.cmp(b)));
    let mut offset = 0;
    let infos = tensors.iter().map(|&(dtype, name, tensor)| {
        let start = offset;
        offset += View::data_len(&tensor);
        let shape = tensor.dims().to_vec();
        (name, TensorInfo { dtype, shape, data_offsets: (start, offset) })
    });
    let header = Header { metadata, infos: infos.collect() };
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, _, tensor) in tensors {
        out.write_all(&View::data(&tensor))?;
    }
    out.flush()
}

struct Header<'a> {
    metadata: Option<&'a BTreeMap<String, String>>,
    infos: Vec<(&'a String, TensorInfo)>,
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(metadata) = self.metadata {
            map.serialize_entry("__metadata__", metadata)?;
        }
        for (name, info) in &self.infos {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_bytes_are_those_of_the_safetensors_crate() {
        let tensor = |shape: &[usize], dtype| {
            let count = shape.iter().product::<usize>() as f32;
            Tensor::arange(0.0, count, &Device::Cpu)
                .and_then(|tensor| tensor.reshape(shape)?.to_dtype(dtype))
                .unwrap()
        };
        let tensors = BTreeMap::from([
            ("b.\"quoted\"".to_owned(), tensor(&[2, 3], DType::F32)),
            ("a".to_owned(), tensor(&[5], DType::F16)),
            ("c".to_owned(), tensor(&[], DType::U8)),
            ("d".to_owned(), tensor(&[1, 0], DType::F64)),
            ("e".to_owned(), tensor(&[4, 2], DType::F32).t().unwrap()),
        ]);
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        for metadata in [None, Some(&metadata)] {
            let mut bytes = Vec::new();
            write_safetensors(&mut bytes, &tensors, metadata).unwrap();
            let theirs = metadata.map(|metadata| metadata.clone().into_iter().collect());
            assert_eq!(bytes, safetensors::serialize(&tensors, theirs).unwrap());
        }
    }

    #[test]
    fn texts_are_in_order() {
        let metadata = (0..20).map(|i| (format!("key {i}"), String::new())).collect();
        let mut bytes = Vec::new();
        write_safetensors(&mut bytes, [], Some(&metadata)).unwrap();
        let text = String::from_utf8(bytes[8..].to_vec()).unwrap();
        assert!(
            text.starts_with(r#"{"__metadata__":{"key 0":"","key 1":"","key 10":"","#),
            "{text}"
        );
    }
}
