//! Parser of the safetensors header, which validates it completely.
//!
//! The format is eight bytes of header length, a JSON header of that length, then the tensor data without gaps. See
//! <https://github.com/huggingface/safetensors#format>. The `safetensors` crate's parser is not used because errors
//! must include the tensor name and both numbers, and because duplicate names must be rejected.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::{ElementType, Entry, Parsed, Place, quoted};

/// Maximum header length in bytes, the limit of the reference implementation.
const LONGEST_HEADER: u64 = 100_000_000;

/// Returns whether `bytes` begin like a safetensors file.
pub(super) fn detect(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

/// Parses the header of a file.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| format!("{} bytes are too few for a safetensors file", bytes.len()))?;
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER {
        return Err(format!(
            "its header claims {length} bytes, more than the {LONGEST_HEADER} allowed"
        ));
    }
    let (header, data) = rest.split_at_checked(length as usize).ok_or_else(|| {
        format!("its header claims {length} bytes, the file has {} more: cut short?", rest.len())
    })?;
    let header: Header =
        serde_json::from_slice(header).map_err(|e| format!("its header cannot be read: {e}"))?;

    let mut ends: Vec<(usize, usize, &str)> = Vec::with_capacity(header.tensors.len());
    let mut entries = BTreeMap::new();
    for (name, stored) in &header.tensors {
        let (start, end) = (stored.data_offsets.0, stored.data_offsets.1);
        let element = element_type(&stored.dtype).ok_or_else(|| {
            format!("tensor {} has the unsupported type {}", quoted(name), quoted(&stored.dtype))
        })?;
        let count = stored.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let wanted = count.and_then(|n| n.checked_mul(element.size())).ok_or_else(|| {
            format!("tensor {} has the impossible shape {:?}", quoted(name), stored.shape)
        })?;
        if end.checked_sub(start) != Some(wanted) {
            return Err(format!(
                "tensor {} of shape {:?} in {element} needs {wanted} bytes, its offsets are {start}..{end}",
                quoted(name),
                stored.shape
            ));
        }
        ends.push((start, end, name));
        let place =
            Place::Plain { start: start.saturating_add(bytes.len() - data.len()), len: wanted };
        let entry = Entry::contiguous(element, stored.shape.clone(), place);
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {} is there twice", quoted(name)));
        }
    }

    ends.sort_unstable();
    let mut position = 0;
    for (start, end, name) in ends {
        if start != position {
            let fault =
                if start < position { "overlaps the one before it" } else { "leaves a hole" };
            return Err(format!(
                "tensor {} {fault}: it starts at {start}, not at {position}",
                quoted(name)
            ));
        }
        position = end;
    }
    if position != data.len() {
        let fault = if position > data.len() { ": cut short?" } else { "" };
        return Err(format!("its tensors need {position} bytes, {} are there{fault}", data.len()));
    }
    Ok(Parsed { entries, metadata: header.metadata })
}

fn element_type(name: &str) -> Option<ElementType> {
    Some(match name {
        "F16" => ElementType::F16,
        "BF16" => ElementType::BF16,
        "F32" => ElementType::F32,
        "F64" => ElementType::F64,
        "F8_E4M3" => ElementType::F8E4M3,
        "F8_E5M2" => ElementType::F8E5M2,
        "BOOL" => ElementType::Bool,
        "U8" => ElementType::U8,
        "I8" => ElementType::I8,
        "U16" => ElementType::U16,
        "I16" => ElementType::I16,
        "U32" => ElementType::U32,
        "I32" => ElementType::I32,
        "U64" => ElementType::U64,
        "I64" => ElementType::I64,
        _ => return None,
    })
}

#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Stored)>,
}

#[derive(serde::Deserialize)]
struct Stored {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Implemented by hand, because deserializing into a map would silently keep the last of two equal names.
impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else {
                        let stored = map.next_value().map_err(|e| {
                            A::Error::custom(format_args!("tensor {}: {e}", quoted(&name)))
                        })?;
                        header.tensors.push((name, stored));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn reason(header: &str, data: usize) -> String {
        parse(&file(header, data)).map(|_| ()).unwrap_err()
    }

    #[test]
    fn a_sound_file_is_accepted() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F16","shape":[2,2],"data_offsets":[4,12]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
            "empty":{"dtype":"F32","shape":[0,3],"data_offsets":[12,12]}}"#;
        let parsed = parse(&file(header, 12)).unwrap();
        assert_eq!(parsed.metadata["format"], "pt");
        assert_eq!(parsed.entries["b"].info.shape, [2, 2]);
        assert_eq!(parsed.entries.len(), 3);
    }

    #[test]
    fn a_header_longer_than_the_file_is_refused() {
        let mut bytes = file("{}", 0);
        bytes[0] = 200;
        assert!(parse(&bytes).map(|_| ()).unwrap_err().contains("cut short"));
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(parse(&bytes).map(|_| ()).unwrap_err().contains("allowed"));
        assert!(parse(&bytes[..5]).is_err());
    }

    #[test]
    fn missing_and_surplus_data_are_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#;
        assert!(reason(header, 11).contains("need 12 bytes, 11 are there"));
        assert!(reason(header, 13).contains("need 12 bytes, 13 are there"));
    }

    #[test]
    fn overlaps_and_holes_are_refused() {
        let pair = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            )
        };
        assert!(parse(&file(&pair("[0,4]", "[4,8]"), 8)).is_ok());
        assert!(reason(&pair("[0,4]", "[2,6]"), 8).contains("`b` overlaps"));
        assert!(reason(&pair("[0,4]", "[0,4]"), 8).contains("overlaps"));
        assert!(reason(&pair("[0,4]", "[6,10]"), 10).contains("`b` leaves a hole"));
    }

    #[test]
    fn lying_sizes_are_refused() {
        let one = |shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert!(reason(&one("[2]", "[0,4]"), 4).contains("needs 8 bytes"));
        assert!(reason(&one("[1]", "[4,0]"), 4).contains("needs 4 bytes"));
        assert!(reason(&one("[18446744073709551615,2]", "[0,4]"), 4).contains("impossible"));
        assert!(reason(&one("[4611686018427387904]", "[0,0]"), 0).contains("impossible"));
        assert!(reason(&one("[-1]", "[0,4]"), 4).contains("cannot be read"));
        assert!(
            reason(&one("[1]", "[18446744073709551612,18446744073709551615]"), 4).contains("needs")
        );
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                         "a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        assert!(reason(header, 2).contains("`a` is there twice"));
    }

    #[test]
    fn json_that_nests_without_end_is_refused() {
        assert!(reason(&format!("{{\"a\":{}", "[".repeat(100_000)), 0).contains("cannot be read"));
        assert!(reason("{not json", 0).contains("cannot be read"));
        assert!(
            reason(r#"{"a":{"dtype":"F3","shape":[],"data_offsets":[0,4]}}"#, 4).contains("F3")
        );
    }
}
