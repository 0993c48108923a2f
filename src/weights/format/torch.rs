//! Files written by `torch.save`: a zip file with a pickle, or the legacy sequence of pickles.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Cursor, Read};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Heap, TensorRef, Value};
use super::{Bytes, ElementType, Entry, Parsed, Place, TensorInfo, quoted};

/// Maximum size of a pickle in bytes. That of a Stable Diffusion checkpoint is below one megabyte.
const LARGEST_PICKLE: u64 = 32 << 20;
/// Maximum ratio of uncompressed to compressed size of a pickle above [`SMALL_PICKLE`]. `torch.save` does not compress;
/// pickles compressed by other tools shrink to about a tenth.
const MOST_GROWTH: u64 = 64;
/// Size in bytes up to which a pickle may have any compression ratio.
const SMALL_PICKLE: u64 = 1 << 20;

/// Maximum number of bytes to decompress per byte of the tensors in compressed storages, beyond [`SMALL_DETOUR`].
const MOST_DETOUR: usize = 8;
/// Number of bytes that may always be decompressed.
const SMALL_DETOUR: usize = 256 << 20;

/// The central directory of a zip file; cheap to clone.
pub(super) type Zip = ZipArchive<Cursor<Bytes>>;

/// Keys under which a file may nest its state dict; the second is used by textual inversions, the last two by
/// SparseCtrl and T2I-Adapter.
const WEIGHTS: [&str; 4] = ["state_dict", "string_to_param", "controlnet", "adapter"];

/// The name given to a tensor saved on its own, which is the name of unnamed textual inversions.
const BARE: &str = "*";

/// Magic bytes of the legacy format: the pickled integer 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Returns whether `bytes` begin like a zip file.
pub(super) fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

/// Returns whether `bytes` begin like a file from before torch 1.6.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.starts_with(LEGACY_MAGIC)
}

/// Parses the central directory and the pickle of a zip file.
pub(super) fn parse_zip(bytes: &Bytes) -> Result<(Parsed, Zip), String> {
    let broken =
        |e: zip::result::ZipError| format!("its zip table cannot be read: {e} (cut short?)");
    let mut zip = ZipArchive::new(Cursor::new(bytes.clone())).map_err(broken)?;
    let mut members: HashMap<String, Place> = HashMap::new();
    let mut pickles: Vec<(String, usize)> = Vec::new();
    for index in 0..zip.len() {
        let member = zip.by_index_raw(index).map_err(broken)?;
        let name = member.name().map_err(broken)?.into_owned();
        let len = usize::try_from(member.size()).map_err(|_| "a member is too large".to_owned())?;
        let place = match member.compression() {
            CompressionMethod::Stored => {
                let start = member.data_start().and_then(|start| usize::try_from(start).ok());
                let start = start
                    .filter(|start| start.checked_add(len).is_some_and(|end| end <= bytes.len()));
                let start = start
                    .ok_or_else(|| format!("member {} lies outside the file", quoted(&name)))?;
                Place::Plain { start, len }
            }
            _ => Place::Packed { member: index, len },
        };
        if name == "data.pkl" || name.ends_with("/data.pkl") {
            pickles.push((name.clone(), index));
        }
        members.insert(name, place);
    }
    let (name, index) = pickles
        .into_iter()
        .min_by_key(|(name, _)| name.len())
        .ok_or("is a zip file without tensors: there is no `data.pkl` in it")?;
    let root = name.trim_end_matches("data.pkl");

    let order = members.get(&format!("{root}byteorder")).copied();
    if let Some(Place::Plain { start, len }) = order
        && bytes.get(start..start + len) == Some(b"big")
    {
        return Err("was written on a big-endian machine, which is not supported".into());
    }

    let mut program = Vec::new();
    let member = zip.by_index(index).map_err(broken)?;
    let packed = member.compressed_size().min(bytes.len() as u64);
    let most = (packed.saturating_mul(MOST_GROWTH)).clamp(SMALL_PICKLE, LARGEST_PICKLE);
    member
        .take(most + 1)
        .read_to_end(&mut program)
        .map_err(|e| format!("its pickle cannot be unpacked: {e}"))?;
    if program.len() as u64 > most {
        let packed =
            if most < LARGEST_PICKLE { format!(", packed in {packed}") } else { String::new() };
        return Err(format!("its pickle has more than {most} bytes{packed}"));
    }
    let (heap, result, _) = pickle::run(&program)?;
    let parsed = entries(&heap, result, |key| members.get(&format!("{root}data/{key}")).copied())?;
    check_detours(&parsed)?;
    Ok((parsed, zip))
}

/// Rejects files whose compressed storages are much larger than their tensors: for each tensor, its storage must be
/// decompressed up to the tensor's end.
fn check_detours(parsed: &Parsed) -> Result<(), String> {
    let packed =
        parsed.entries.values().filter(|entry| matches!(entry.place, Place::Packed { .. }));
    let (way, own) = packed.fold((0usize, 0usize), |(way, own), entry| {
        (way.saturating_add(entry.range().end), own.saturating_add(entry.len()))
    });
    if way > SMALL_DETOUR.saturating_add(own.saturating_mul(MOST_DETOUR)) {
        return Err(format!(
            "{way} bytes would have to be unpacked for the {own} of its tensors: save it without compression"
        ));
    }
    Ok(())
}

/// Parses a legacy file: magic number, protocol version, system info, object, storage keys, storages.
pub(super) fn parse_legacy(bytes: &[u8]) -> Result<Parsed, String> {
    let mut at = 0;
    for _ in 0..3 {
        at += pickle::run(program(bytes, at))?.2;
    }
    let (heap, result, taken) = pickle::run(program(bytes, at))?;
    at += taken;
    let (key_heap, keys, taken) = pickle::run(program(bytes, at))?;
    at += taken;

    let sizes: HashMap<&str, usize> = heap
        .storages
        .iter()
        .filter_map(|storage| Some((heap.text(storage.key)?, storage.element)))
        .map(|(key, element)| (key, element.map_or(1, ElementType::size)))
        .collect();
    let mut places: HashMap<String, Place> = HashMap::new();
    for key in key_heap.items(keys).ok_or("its storages are not listed")? {
        let key = key_heap.text(*key).ok_or("a storage without a name")?;
        let outside = || format!("storage {} lies outside the file: cut short?", quoted(key));
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or_else(outside)?;
        let count = usize::try_from(u64::from_le_bytes(*count)).map_err(|_| outside())?;
        let size = sizes
            .get(key)
            .copied()
            .ok_or_else(|| format!("storage {} has a type that is not supported", quoted(key)))?;
        let (start, len) = (at + 8, count.checked_mul(size).ok_or_else(outside)?);
        at = start.checked_add(len).filter(|end| *end <= bytes.len()).ok_or_else(outside)?;
        places.insert(key.to_owned(), Place::Plain { start, len });
    }
    entries(&heap, result, |key| places.get(key).copied())
}

/// The bytes at `at` that a pickle may occupy.
fn program(bytes: &[u8], at: usize) -> &[u8] {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.get(..LARGEST_PICKLE as usize).unwrap_or(rest)
}

/// Decompresses a member of `len` bytes up to the end of `wanted`, and returns only the bytes of `wanted`.
pub(super) fn unpack(
    zip: &Zip,
    member: usize,
    wanted: Range<usize>,
    len: usize,
) -> Result<Vec<u8>, String> {
    let broken = |e: &dyn std::fmt::Display| format!("it cannot be unpacked: {e}");
    let mut zip = zip.clone();
    let mut member = zip.by_index(member).map_err(|e| broken(&e))?;
    let mut before = member.by_ref().take(wanted.start as u64);
    let skipped = io::copy(&mut before, &mut io::sink()).map_err(|e| broken(&e))?;
    // Not preallocated, because the claimed size is not trusted.
    let mut out = Vec::new();
    let mut own = member.by_ref().take(wanted.len() as u64);
    own.read_to_end(&mut out).map_err(|e| broken(&e))?;
    // Reading to the end verifies the checksum.
    let mut end = member.take(u64::from(wanted.end == len));
    let more = end.read(&mut [0]).map_err(|e| broken(&e))?;
    let found = skipped + (out.len() + more) as u64;
    if found != wanted.end as u64 {
        return Err(format!("it has {found} bytes unpacked, not {len}"));
    }
    Ok(out)
}

/// Finds the state dict and converts its tensors to entries.
fn entries(
    heap: &Heap<'_>,
    root: Value,
    place: impl Fn(&str) -> Option<Place>,
) -> Result<Parsed, String> {
    if let Some(tensor) = heap.tensor(root) {
        let name = BARE.to_owned();
        let entries = BTreeMap::from([(name, entry(heap, BARE, tensor, &place)?)]);
        return Ok(Parsed { entries, metadata: BTreeMap::new() });
    }
    if let Some(tensors) = list(heap, root) {
        let mut entries = BTreeMap::new();
        for (number, tensor) in tensors.into_iter().enumerate() {
            let name = number.to_string();
            let entry = entry(heap, &name, tensor, &place)?;
            entries.insert(name, entry);
        }
        return Ok(Parsed { entries, metadata: BTreeMap::new() });
    }
    if let Some(dicts) = named_dicts(heap, root) {
        let mut entries = BTreeMap::new();
        for (outer, dict) in dicts {
            for (inner, tensor) in heap.tensors_of(dict) {
                let name = format!("{outer}.{inner}");
                let entry = entry(heap, &name, tensor, &place)?;
                entries.insert(name, entry);
            }
        }
        return Ok(Parsed { entries, metadata: BTreeMap::new() });
    }
    let Some(dict) = state_dict(heap, root) else {
        let foreign: Vec<String> = heap.foreign().map(quoted).collect();
        return Err(if foreign.is_empty() {
            "holds no tensors by name".into()
        } else {
            format!("holds no tensors by name, but objects such as {}", foreign.join(", "))
        });
    };
    let mut entries = BTreeMap::new();
    for (name, tensor) in heap.tensors_of(dict) {
        entries.insert(name.to_owned(), entry(heap, name, tensor, &place)?);
    }
    let name = heap.text_of(root, "name").map(|name| ("name".to_owned(), name.to_owned()));
    Ok(Parsed { entries, metadata: name.into_iter().collect() })
}

/// The state dict: nested under one of [`WEIGHTS`], or at the top level, or the only dict with tensors.
fn state_dict(heap: &Heap<'_>, root: Value) -> Option<Value> {
    let has_tensors = |dict: &Value| heap.tensors_of(*dict).next().is_some();
    let nested = heap.dicts_of(root).find(|(key, _)| WEIGHTS.contains(key));
    if let Some(dict) = nested.map(|(_, id)| Value::Dict(id)).filter(has_tensors) {
        return Some(dict);
    }
    if has_tensors(&root) {
        return Some(root);
    }
    // Deduplicated, because a dict may be referenced several times.
    let inner: BTreeSet<u32> = heap.dicts_of(root).map(|(_, id)| id).collect();
    let mut inner = inner.into_iter().map(Value::Dict).filter(has_tensors);
    inner.next().filter(|_| inner.next().is_none())
}

/// The tensors of a list, which is how the first LoRAs were saved; their indices become their names.
fn list<'a>(heap: &'a Heap<'_>, root: Value) -> Option<Vec<&'a TensorRef>> {
    let items = heap.items(root).filter(|items| !items.is_empty())?;
    items.iter().map(|item| heap.tensor(*item)).collect()
}

/// The two dicts of an IP-Adapter checkpoint.
fn named_dicts<'a>(heap: &'a Heap<'_>, root: Value) -> Option<Vec<(&'a str, Value)>> {
    let dicts: BTreeMap<&str, u32> = heap.dicts_of(root).collect();
    let wanted = ["image_proj", "ip_adapter"];
    wanted
        .iter()
        .map(|name| dicts.get_key_value(name))
        .map(|found| found.map(|(name, id)| (*name, Value::Dict(*id))))
        .collect()
}

fn entry(
    heap: &Heap<'_>,
    name: &str,
    tensor: &TensorRef,
    place: impl Fn(&str) -> Option<Place>,
) -> Result<Entry, String> {
    let size = tensor.element.size();
    let storage = heap
        .storages
        .get(tensor.storage as usize)
        .ok_or_else(|| format!("tensor {} has no storage", quoted(name)))?;
    let key = heap.text(storage.key).unwrap_or_default();
    let place = place(key).ok_or_else(|| {
        format!("tensor {} has its data in {}, which is not there", quoted(name), quoted(key))
    })?;
    let claimed = storage.count.checked_mul(storage.element.map_or(1, ElementType::size));
    if claimed.is_none_or(|claimed| claimed > place.len()) {
        return Err(format!(
            "storage {} of tensor {} has {} bytes, fewer than its {} elements need",
            quoted(key),
            quoted(name),
            place.len(),
            storage.count
        ));
    }
    tensor
        .view
        .check(&tensor.shape, place.len() / size)
        .map_err(|reason| format!("tensor {} {reason}", quoted(name)))?;
    let info = TensorInfo { element: tensor.element, shape: tensor.shape.clone() };
    Ok(Entry { info, place, view: Some(tensor.view.clone()), scale: None })
}
