//! Weight file formats: the only module that reads their layout.
//!
//! Every format is parsed into a table from tensor name to element type, shape and position in the file. [`Archive`]
//! holds that table over the memory-mapped file and reads one tensor at a time.

mod element;
mod pickle;
mod safetensors;
mod scaled;
mod torch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use self::element::ElementType;
use self::element::Refusal;
pub(super) use self::element::misfit;
use crate::{Error, Result};

/// Location of a weight file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, or a folder where a folder is allowed.
    File(PathBuf),
    /// A file embedded in the program.
    Embedded {
        /// The name used in reports and errors.
        name: &'static str,
        /// The contents of the file.
        bytes: &'static [u8],
    },
}

impl Source {
    /// The path, or the name of an embedded file.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Embedded { name, .. } => Path::new(name),
        }
    }
}

impl<P: Into<PathBuf>> From<P> for Source {
    fn from(path: P) -> Self {
        Self::File(path.into())
    }
}

/// Element type and shape of one tensor, as given by the file header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The element type in the file.
    pub element: ElementType,
    /// The shape of the tensor.
    pub shape: Vec<usize>,
}

/// The format of a weight file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// A safetensors file.
    Safetensors,
    /// A zip file with a pickle, as written by torch 1.6 and later.
    TorchZip,
    /// Pickles followed by storages, as written by torch before 1.6.
    TorchLegacy,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "torch zip",
            Self::TorchLegacy => "torch legacy",
        })
    }
}

/// An open weight file: tensor names and shapes, with tensors read on demand.
///
/// The file is memory-mapped. It must not be truncated while it is open: accessing a mapped page that no longer exists
/// terminates the process.
#[derive(Debug)]
pub struct Archive {
    source: Source,
    identity: String,
    layout: Layout,
    bytes: Bytes,
    /// The central directory of a torch zip file, for compressed storages.
    zip: Option<torch::Zip>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl Archive {
    /// Opens a file and validates all of its headers.
    ///
    /// The format is detected from the contents, not from the file extension. The `state_dict` of a torch file is
    /// unwrapped, and the prefix `module.` is removed if all names have it.
    pub fn open(source: &Source) -> Result<Self> {
        let (bytes, identity) = match source {
            Source::File(path) => map(path)?,
            Source::Embedded { name, bytes } => {
                (Bytes(Arc::new(Held::Static(bytes))), format!("embedded {name}"))
            }
        };
        let wrong = |reason: String| Error::format(source.path(), reason);
        let mut zip = None;
        let (layout, parsed) = if torch::is_zip(&bytes) {
            let (parsed, table) = torch::parse_zip(&bytes).map_err(wrong)?;
            zip = Some(table);
            (Layout::TorchZip, parsed)
        } else if torch::is_legacy(&bytes) {
            (Layout::TorchLegacy, torch::parse_legacy(&bytes).map_err(wrong)?)
        } else if safetensors::detect(&bytes) {
            (Layout::Safetensors, safetensors::parse(&bytes).map_err(wrong)?)
        } else {
            let (reason, hint) = guess(&bytes);
            let error = wrong(reason.to_owned());
            return Err(match hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            });
        };
        let Parsed { entries, metadata } = parsed;
        let mut entries = without_common_prefix(entries, "module.");
        let source = source.clone();
        let mut archive =
            Self { source, identity, layout, bytes, zip, entries: BTreeMap::new(), metadata };
        let read = |entry: &Entry| archive.elements(entry).map(Cow::into_owned);
        scaled::pair(&mut entries, &archive.metadata, read).map_err(|reason| {
            let hint = "use the version in f16, or in fp8 as ComfyUI reads it";
            Error::format(archive.path(), reason).with_hint(hint)
        })?;
        archive.entries = entries;
        Ok(archive)
    }

    /// The location the archive was opened from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Path, length and time of change of the file as it was opened, or the name of an embedded file.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// The path, or the name of an embedded file.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The format of the file.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), &entry.info))
    }

    /// Element type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entries.get(name).map(|entry| &entry.info)
    }

    /// The metadata of a safetensors header, or the `name` entry of a torch file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads a tensor as `dtype`, which is `F32`, `F16` or `BF16`.
    ///
    /// # Errors
    ///
    /// A value that is not finite, or that `dtype` cannot represent. The error includes the tensor name.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let wrong = |reason: String| Error::format(self.path(), reason);
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| wrong(format!("there is no tensor {}", quoted(name))))?;
        let bytes = self
            .elements(entry)
            .map_err(|reason| wrong(format!("tensor {}: {reason}", quoted(name))))?;
        let scales = entry.scale.as_deref().map(|scale| self.scales(scale)).transpose();
        let scales =
            scales.map_err(|reason| wrong(format!("the scale of {}: {reason}", quoted(name))))?;
        let TensorInfo { element, shape } = &entry.info;
        let made = match scales {
            Some(scales) => element::scaled(*element, &bytes, shape, &scales, (dtype, device)),
            None => element::tensor(*element, &bytes, shape, dtype, device),
        };
        made.map_err(|refusal| match refusal {
            Refusal::NotFinite(value) => {
                wrong(format!("tensor {} holds the value {value}", quoted(name)))
                    .with_hint("the file is damaged; get it again from where it was published")
            }
            Refusal::TooLarge(value) => wrong(format!(
                "tensor {} holds the value {value}, too large for {}",
                quoted(name),
                dtype.as_str()
            ))
            .with_hint("compute in a wider type: f32 or bf16"),
            Refusal::Target(dtype) => Error::request(
                "dtype",
                format!("weights cannot be `{}`, only f32, f16 and bf16", dtype.as_str()),
            ),
            Refusal::Tensor(error) => Error::Tensor(error),
        })
    }

    /// The factors of a weight in 8 bits.
    fn scales(&self, scale: &Entry) -> Result<Vec<f32>, String> {
        let bytes = self.elements(scale)?;
        element::values(scale.info.element, &bytes).map_err(|_| "is not finite".to_owned())
    }

    /// The values of a small tensor, in `f32`.
    ///
    /// # Errors
    ///
    /// Those of [`tensor`](Self::tensor), and a tensor of more than `most` values, which is not read.
    pub(crate) fn values(&self, name: &str, most: usize) -> Result<Vec<f32>> {
        let count = self.info(name).map_or(0, |info| count(&info.shape));
        if count > most {
            let expected = if most == 1 { "one is".into() } else { format!("at most {most} are") };
            let name = quoted(name);
            let reason = format!("tensor {name} has {count} values where {expected} expected");
            return Err(Error::format(self.path(), reason));
        }
        Ok(self.tensor(name, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    /// The elements of a tensor in row-major order.
    fn elements(&self, entry: &Entry) -> Result<Cow<'_, [u8]>, String> {
        let Range { start, end } = entry.range();
        let bytes = match entry.place {
            Place::Plain { start: at, len } => {
                let outside = || "it lies outside the file".to_owned();
                let storage = at.checked_add(len).and_then(|end| self.bytes.get(at..end));
                let bytes = storage.ok_or_else(outside)?.get(start..end);
                Cow::Borrowed(bytes.ok_or("it lies outside its storage")?)
            }
            Place::Packed { member, len } => {
                let zip = self.zip.as_ref().ok_or("its zip table is gone")?;
                Cow::Owned(torch::unpack(zip, member, start..end, len)?)
            }
        };
        match &entry.view {
            Some(view) if !view.is_contiguous(&entry.info.shape) => {
                view.gather(&entry.info.shape, entry.info.element.size(), &bytes).map(Cow::Owned)
            }
            _ => Ok(bytes),
        }
    }
}

/// Number of elements of a shape, saturating.
fn count(shape: &[usize]) -> usize {
    shape.iter().fold(1, |count: usize, dim| count.saturating_mul(*dim))
}

/// Result of a format's parser.
struct Parsed {
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
struct Entry {
    info: TensorInfo,
    place: Place,
    /// The elements of the storage that belong to the tensor; `None` means all of them, in order.
    view: Option<View>,
    /// Factors of a weight in 8 bits: one, or one for every row.
    scale: Option<Box<Self>>,
}

impl Entry {
    fn contiguous(element: ElementType, shape: Vec<usize>, place: Place) -> Self {
        Self { info: TensorInfo { element, shape }, place, view: None, scale: None }
    }

    /// The byte range within the storage from the tensor's first to its last element.
    fn range(&self) -> Range<usize> {
        let elements = match &self.view {
            Some(view) => view.span(&self.info.shape),
            None => 0..count(&self.info.shape),
        };
        let size = self.info.element.size();
        elements.start.saturating_mul(size)..elements.end.saturating_mul(size)
    }

    /// Size of the tensor's elements in bytes.
    fn len(&self) -> usize {
        count(&self.info.shape).saturating_mul(self.info.element.size())
    }
}

/// Location of a storage.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Uncompressed in the file.
    Plain { start: usize, len: usize },
    /// A compressed member of a zip file; `len` is its uncompressed size in bytes.
    Packed { member: usize, len: usize },
}

impl Place {
    fn len(self) -> usize {
        match self {
            Self::Plain { len, .. } | Self::Packed { len, .. } => len,
        }
    }
}

/// A torch tensor's view of its storage: an offset and one stride per dimension, in elements.
#[derive(Clone, Debug)]
struct View {
    offset: usize,
    strides: Vec<usize>,
}

impl View {
    /// Checks that the view stays within `available` elements and returns its number of elements.
    fn check(&self, shape: &[usize], available: usize) -> Result<usize, String> {
        if self.strides.len() != shape.len() {
            return Err(format!(
                "has {} dimensions but {} strides",
                shape.len(),
                self.strides.len()
            ));
        }
        let count = shape
            .iter()
            .try_fold(1usize, |n, d| n.checked_mul(*d))
            .ok_or_else(|| format!("has the impossible shape {shape:?}"))?;
        if count == 0 {
            return Ok(0);
        }
        let end = shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |end, (d, stride)| {
                end.checked_add((d - 1).checked_mul(*stride)?)
            })
            .and_then(|last| last.checked_add(1));
        match end {
            // The count is checked too, because a stride of 0 could turn one byte into gigabytes.
            Some(end) if end <= available && count <= available => Ok(count),
            _ => Err(format!(
                "of shape {shape:?}, strides {:?} and offset {} does not fit its storage of {available} elements",
                self.strides, self.offset
            )),
        }
    }

    /// The range of storage elements from the first to the last of the view.
    fn span(&self, shape: &[usize]) -> Range<usize> {
        if shape.contains(&0) {
            return 0..0;
        }
        let steps = shape.iter().zip(&self.strides);
        let last = steps.map(|(d, stride)| (d - 1).saturating_mul(*stride));
        let end = last.fold(self.offset, usize::saturating_add).saturating_add(1);
        self.offset..end
    }

    /// Returns whether the elements are in row-major order without gaps.
    fn is_contiguous(&self, shape: &[usize]) -> bool {
        if shape.contains(&0) {
            return true;
        }
        let mut expected = 1;
        for (d, stride) in shape.iter().zip(&self.strides).rev() {
            if *d != 1 && *stride != expected {
                return false;
            }
            expected *= d;
        }
        true
    }

    /// Copies the elements in row-major order out of the bytes of the [`span`](Self::span).
    fn gather(&self, shape: &[usize], size: usize, span: &[u8]) -> Result<Vec<u8>, String> {
        let count: usize = shape.iter().product();
        let mut out = Vec::with_capacity(count * size);
        let mut index = vec![0usize; shape.len()];
        for _ in 0..count {
            let at = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>();
            let element = span.get(at * size..(at + 1) * size);
            out.extend_from_slice(element.ok_or("it lies outside its storage")?);
            for (i, d) in index.iter_mut().zip(shape).rev() {
                *i += 1;
                if *i < *d {
                    break;
                }
                *i = 0;
            }
        }
        Ok(out)
    }
}

/// The bytes of a file, shared between all readers.
#[derive(Clone, Debug)]
struct Bytes(Arc<Held>);

#[derive(Debug)]
enum Held {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Held::Mapped(map) => map,
            Held::Static(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The contents of a file, and what it can be recognized by.
fn map(path: &Path) -> Result<(Bytes, String)> {
    let refused = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound => {
            Error::Missing { name: path.display().to_string(), reason: "no such file".to_owned() }
        }
        _ => Error::file(path)(e),
    };
    // Checked before opening, because opening a pipe would block until it has a writer.
    let metadata = std::fs::metadata(path).map_err(refused)?;
    if metadata.is_dir() {
        return Err(Error::format(path, "is a folder, a weight file is needed"));
    }
    if !metadata.is_file() {
        return Err(Error::format(path, "is not an ordinary file"));
    }
    if metadata.len() == 0 {
        return Err(Error::format(path, "is empty"));
    }
    let file = File::open(path).map_err(refused)?;
    let metadata = file.metadata().map_err(refused)?;
    let changed = metadata.modified().map_err(refused)?;
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let identity = format!("{} {} {changed:?}", path.display(), metadata.len());
    let map = map_file(&file).map_err(refused)?;
    Ok((Bytes(Arc::new(Held::Mapped(map))), identity))
}

/// Memory-maps a whole file for reading.
#[allow(unsafe_code)]
fn map_file(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only and private to this process, and every read of it is bounds-checked against the
    // length mapped here. What cannot be excluded is that another process changes the file meanwhile: changed bytes are
    // changed weights (any bit pattern is a valid number), and a truncation ends the program with a signal. `Archive`
    // documents that its file must stay; this program itself writes files under another name and renames them, which
    // leaves maps intact.
    unsafe { memmap2::Mmap::map(file) }
}

/// Likely reason why a file has no known format, and a hint.
fn guess(bytes: &[u8]) -> (&'static str, Option<&'static str>) {
    let head = bytes.get(..bytes.len().min(512)).unwrap_or_default();
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start();
    let lower = text.to_ascii_lowercase();
    if bytes.is_empty() {
        ("is empty", None)
    } else if bytes.iter().take(4096).all(|b| *b == 0) {
        (
            "begins with zeros only",
            Some("the download may have been interrupted; get the file again"),
        )
    } else if text.starts_with("version https://git-lfs") {
        ("is a git-lfs pointer, not the file itself", Some("run `git lfs pull` where it came from"))
    } else if lower.starts_with("<!doctype") || lower.starts_with("<html") {
        ("is a web page", Some("download the file itself; the site may want you to log in"))
    } else if head.starts_with(b"GGUF") {
        (
            "is a GGUF file, which is not supported",
            Some("use the safetensors file of the same model"),
        )
    } else if text.starts_with('{') {
        ("is a JSON file, a weight file is needed", None)
    } else if head.starts_with(&[0x80]) {
        ("is a pickle, but not one that torch.save made", None)
    } else {
        ("is neither a safetensors nor a torch file", None)
    }
}

fn without_common_prefix(
    entries: BTreeMap<String, Entry>,
    prefix: &str,
) -> BTreeMap<String, Entry> {
    if entries.keys().all(|name| name.len() > prefix.len() && name.starts_with(prefix)) {
        let strip = |name: String| name.strip_prefix(prefix).map(str::to_owned).unwrap_or(name);
        entries.into_iter().map(|(name, entry)| (strip(name), entry)).collect()
    } else {
        entries
    }
}

/// Formats a name from a file for a message: in backticks, escaped, cut to 160 characters.
pub(crate) fn quoted(name: &str) -> String {
    const LONGEST: usize = 160;
    let escaped: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    let more = if name.chars().nth(LONGEST).is_some() { "..." } else { "" };
    format!("`{escaped}{more}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_is_gathered_in_row_order() {
        let view = View { offset: 1, strides: vec![1, 2] };
        let storage = [9, 0, 1, 2, 3, 4, 5];
        assert_eq!(view.check(&[2, 3], 7), Ok(6));
        assert!(!view.is_contiguous(&[2, 3]));
        assert_eq!(view.span(&[2, 3]), 1..7);
        assert_eq!(view.gather(&[2, 3], 1, &storage[1..]).unwrap(), [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn strides_of_single_rows_do_not_matter() {
        let view = View { offset: 4, strides: vec![77, 1] };
        assert!(view.is_contiguous(&[1, 3]));
        assert_eq!(view.span(&[1, 3]), 4..7);
        assert_eq!(view.span(&[0, 3]), 0..0);
        assert_eq!(View { offset: 0, strides: vec![] }.span(&[]), 0..1);
    }

    #[test]
    fn views_beyond_their_storage_are_refused() {
        let view = |offset, strides: &[usize]| View { offset, strides: strides.to_vec() };
        assert!(view(0, &[3, 1]).check(&[2, 3], 6).is_ok());
        assert!(view(1, &[3, 1]).check(&[2, 3], 6).is_err());
        assert!(view(0, &[3, 1]).check(&[3, 3], 6).is_err());
        assert!(view(0, &[0]).check(&[1 << 40], 6).is_err());
        assert!(view(usize::MAX, &[1]).check(&[2], 6).is_err());
        assert!(view(0, &[usize::MAX, 1]).check(&[3, 1], 6).is_err());
        assert!(view(0, &[1]).check(&[2, 3], 6).is_err());
        assert_eq!(view(9, &[1]).check(&[0], 6), Ok(0));
    }

    #[test]
    fn names_in_messages_stay_on_one_line() {
        assert_eq!(quoted("a\nb\u{1b}[31m"), r"`a\nb\u{1b}[31m`");
        assert!(quoted(&"x".repeat(1000)).len() < 200);
    }
}
