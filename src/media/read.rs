//! Reader of images, animations and videos, which serve as adapter inputs.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use image::ImageFormat;
use sha2::{Digest, Sha256};

use super::fault::Fault;
use super::guard::guarded;
pub use super::take::Selection;
use super::take::{Budget, Chosen, MOST_FRAMES, Take, Taken};
use super::{Background, RgbImage, animation, foreign, still, timing, video, webp};
use crate::{Result, Stop, files};

/// Maximum size of a file: 1 GiB.
const MOST_BYTES: u64 = 1 << 30;

/// Bytes hashed between two checks of the stop flag.
const BLOCK: usize = 1 << 20;

/// File extensions of the images in a folder.
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// Frames read from an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The selected frames.
    pub images: Vec<RgbImage>,
    /// Number of frames encountered: all frames of the input, unless decoding ended early at [`Selection::count`].
    pub seen: usize,
}

/// The files of an image, an animation, or a folder of images, in order.
///
/// Files of a folder are ordered by name, with numbers compared numerically: `2.png` before `10.png`. Other file types
/// and hidden files are skipped.
///
/// # Errors
///
/// A missing file, or a folder without images. `field` is the user's name of the option.
fn files(field: &'static str, path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let wrong = |reason: String| Fault::from(reason).error(field, path);
    let unreadable = |e: std::io::Error| wrong(e.to_string());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if EXTENSIONS.contains(&extension.as_str()) && !name.starts_with('.') && file.is_file() {
            found.push((name, file));
        }
    }
    if found.is_empty() {
        return Err(wrong(format!("no image in it ({})", EXTENSIONS.join(", "))));
    }
    found.sort_by(|(a, _), (b, _)| natural(a, b));
    Ok(found.into_iter().map(|(_, file)| file).collect())
}

/// The contents of an image, an animation, a video or a folder of images, read once, with their SHA-256.
///
/// ```
/// use animatelcm::Stop;
/// use animatelcm::media::read::{Media, Selection};
///
/// let y4m = b"YUV4MPEG2 W2 H2 F8:1 C444\nFRAME\n\0\0\0\0\x80\x80\x80\x80\x80\x80\x80\x80";
/// let media = Media::new("two.y4m", y4m.to_vec());
/// let frames = media.frames("control", Selection::default(), &Stop::default())?;
/// assert_eq!(frames.images[0].dimensions(), (2, 2));
/// # Ok::<(), animatelcm::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Media {
    /// The name used in messages.
    name: PathBuf,
    /// The file, or the files of a folder in order.
    files: Vec<MediaFile>,
    is_folder: bool,
    sha256: String,
}

#[derive(Clone, PartialEq, Eq)]
struct MediaFile {
    name: PathBuf,
    /// The contents; `None` for files of a folder that were not selected.
    bytes: Option<Vec<u8>>,
}

impl std::fmt::Debug for Media {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, files, sha256, .. } = self;
        let mut fields = f.debug_struct("Media");
        fields.field("name", name).field("files", &files.len()).field("sha256", sha256);
        fields.finish_non_exhaustive()
    }
}

impl Media {
    /// Creates media from the contents of a file, such as an upload.
    pub fn new(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        let name = name.into();
        let sha256 = files::hex(Sha256::new_with_prefix(&bytes));
        let file = MediaFile { name: name.clone(), bytes: Some(bytes) };
        Self { name, files: vec![file], is_folder: false, sha256 }
    }

    /// Reads a file, or the images of a folder whose indices are `wanted`; the others are only hashed.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, is not a regular file or is too large; a folder without images;
    /// [`crate::Error::Cancelled`] once `stop` is requested. `field` is the user's name of the option.
    pub fn read(
        field: &'static str,
        path: &Path,
        wanted: impl Fn(usize) -> bool,
        stop: &Stop,
    ) -> Result<Self> {
        let is_folder = path.is_dir();
        let (mut kept, mut hashes, mut all) = (Vec::new(), Vec::new(), 0);
        for (number, name) in self::files(field, path)?.into_iter().enumerate() {
            let bytes = files::read(&name, MOST_BYTES);
            let bytes = bytes.map_err(|e| Fault::from(e.to_string()).error(field, &name))?;
            let mut hash = Sha256::new();
            for block in bytes.chunks(BLOCK) {
                stop.check()?;
                hash.update(block);
            }
            hashes.push(files::hex(hash));
            let bytes = (!is_folder || wanted(number)).then_some(bytes);
            all += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            if all > MOST_BYTES {
                let reason = format!("its images have more than {} MiB", MOST_BYTES >> 20);
                return Err(Fault::TooLong(reason).error(field, path));
            }
            kept.push(MediaFile { name, bytes });
        }
        let sha256 = match hashes.as_slice() {
            [only] if !is_folder => only.clone(),
            // For a folder, the hash of the concatenated hex hashes of its files.
            hashes => files::hex(Sha256::new_with_prefix(hashes.concat())),
        };
        Ok(Self { name: path.to_path_buf(), files: kept, is_folder, sha256 })
    }

    /// The SHA-256 of the file; for a folder, that of the concatenated hex hashes of its images in order.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The frames of an image (one), an animation (GIF, WebP, PNG), a video (H.264 in MP4, Y4M), or a folder of images.
    ///
    /// Frames are rotated upright according to the metadata. Transparency is dropped, as in PIL, unless the media
    /// are put [on](Self::on) a colour. Nothing is resized. The memory that an input needs is determined and checked before it is allocated.
    ///
    /// # Errors
    ///
    /// An unsupported format, damaged data, or more pixels than the limit; [`crate::Error::Cancelled`] once `stop` is
    /// requested. `field` is the user's name of the option.
    pub fn frames(&self, field: &'static str, selection: Selection, stop: &Stop) -> Result<Frames> {
        self.on(None).frames(field, selection, stop)
    }

    /// The frames of these numbers, which are in ascending order without repetition. Those that are not there are
    /// left out.
    ///
    /// # Errors
    ///
    /// Those of [`frames`](Self::frames).
    pub fn frames_at(&self, field: &'static str, numbers: &[usize], stop: &Stop) -> Result<Frames> {
        self.on(None).frames_at(field, numbers, stop)
    }

    /// The same media in front of a colour; the alpha of transparent pixels is dropped if `None`.
    pub fn on(&self, background: Option<Background>) -> OnBackground<'_> {
        OnBackground { media: self, background }
    }

    /// Seconds for which each frame of an animation or video is shown, in order; `None` for images and folders. Nothing
    /// is decoded.
    ///
    /// # Errors
    ///
    /// A video whose tables are damaged or say no frame rate. `field` is the user's name of the option.
    pub fn durations(&self, field: &'static str) -> Result<Option<Vec<f64>>> {
        match self.files.as_slice() {
            [only] if !self.is_folder => {
                let bytes = only.bytes.as_deref().unwrap_or_default();
                timing::durations(bytes).map_err(|fault| fault.error(field, &self.name))
            }
            _ => Ok(None),
        }
    }

    fn chosen(
        &self,
        field: &'static str,
        chosen: Chosen<'_>,
        background: Option<Background>,
        stop: &Stop,
    ) -> Result<Frames> {
        if let [only] = self.files.as_slice()
            && !self.is_folder
        {
            let bytes = only.bytes.as_deref().unwrap_or_default();
            let take = Take::new(chosen, Budget::new(bytes.len() as u64), stop).on(background);
            let taken = file(bytes, take).and_then(|taken| match taken.seen {
                0 => Err("has no frames".into()),
                _ => Ok(taken),
            });
            let taken = taken.map_err(|fault| fault.error(field, &self.name))?;
            return Ok(Frames { images: taken.frames, seen: taken.seen });
        }
        let places = chosen.places(self.files.len());
        let chosen: Vec<_> = places.iter().filter_map(|at| self.files.get(*at)).collect();
        if chosen.len() > MOST_FRAMES {
            let reason = format!("{} images, at most {MOST_FRAMES} are read", chosen.len());
            return Err(Fault::TooLong(reason).error(field, &self.name));
        }
        let length = |file: &&MediaFile| file.bytes.as_ref().map_or(0, |b| b.len() as u64);
        let mut budget = Budget::new(chosen.iter().map(length).sum());
        let mut images = Vec::with_capacity(chosen.len());
        for MediaFile { name, bytes } in chosen {
            let first = Selection { count: Some(1), ..Selection::default() };
            let taken = match bytes {
                Some(bytes) => file(bytes, Take::new(first, budget, stop).on(background)),
                None => Err("was not read".into()),
            };
            let taken = taken.map_err(|fault| fault.error(field, name))?;
            images.extend(taken.frames);
            budget = taken.budget;
        }
        Ok(Frames { images, seen: self.files.len() })
    }
}

/// Media whose transparent pixels are put on a colour.
#[derive(Clone, Copy, Debug)]
pub struct OnBackground<'a> {
    media: &'a Media,
    background: Option<Background>,
}

impl OnBackground<'_> {
    /// The frames, as by [`Media::frames`], on the colour.
    ///
    /// # Errors
    ///
    /// Those of [`Media::frames`].
    pub fn frames(&self, field: &'static str, selection: Selection, stop: &Stop) -> Result<Frames> {
        self.media.chosen(field, selection.into(), self.background, stop)
    }

    /// The frames of these numbers, as by [`Media::frames_at`], on the colour.
    ///
    /// # Errors
    ///
    /// Those of [`Media::frames`].
    pub fn frames_at(&self, field: &'static str, numbers: &[usize], stop: &Stop) -> Result<Frames> {
        self.media.chosen(field, Chosen::Numbers(numbers), self.background, stop)
    }
}

/// The frames of a file or folder: [`Media::read`] followed by [`Media::frames`].
///
/// # Errors
///
/// Those of both.
pub fn frames(
    field: &'static str,
    path: &Path,
    selection: Selection,
    stop: &Stop,
) -> Result<Frames> {
    Media::read(field, path, |number| selection.takes(number), stop)?.frames(field, selection, stop)
}

/// Reads the frames of a file with these contents.
fn file(bytes: &[u8], mut take: Take<'_>) -> Result<Taken, Fault> {
    take.check()?;
    guarded(|| {
        if let Some((name, convert)) = foreign::of_brand(bytes) {
            return Err(Fault::Foreign(format!("is {name}, which is not read"), convert));
        }
        if let Some(kind) = video::Kind::of(bytes) {
            return video::read(kind, bytes, &mut take);
        }
        let format = image::guess_format(bytes);
        let bytes = match format {
            Ok(ImageFormat::WebP) => webp::whole(bytes)?,
            _ => bytes,
        };
        match format {
            Ok(ImageFormat::Gif) => animation::gif(bytes, &mut take),
            Ok(ImageFormat::Png) if animation::is_apng(bytes) => animation::apng(bytes, &mut take),
            Ok(ImageFormat::WebP) if webp::is_animated(bytes) => webp::read(bytes, &mut take),
            Ok(
                format @ (ImageFormat::Png
                | ImageFormat::WebP
                | ImageFormat::Jpeg
                | ImageFormat::Bmp
                | ImageFormat::Tiff),
            ) => still::read(format, bytes, &mut take),
            _ => Err(foreign::fault(bytes)),
        }
    })?;
    Ok(take.finish())
}

/// Natural sort order: numbers in names are compared numerically.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (text, number, rest) = piece(left);
        let (other_text, other_number, other_rest) = piece(right);
        let order = text.cmp(other_text).then(number.cmp(&other_number));
        if order != Ordering::Equal || (rest.is_empty() && other_rest.is_empty()) {
            return order.then(rest.cmp(other_rest)).then(a.cmp(b));
        }
        (left, right) = (rest, other_rest);
    }
}

/// Splits a name into the text before the first number, that number (its length without leading zeros, and its digits),
/// and the rest.
fn piece(name: &str) -> (&str, (usize, &str), &str) {
    let start = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    let (text, rest) = name.split_at(start);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, rest) = rest.split_at(end);
    let digits = digits.trim_start_matches('0');
    (text, (digits.len(), digits), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["f10.png", "f2.png", "f1.png", "f02.png", "a.png", "f2b.png", "f"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a.png", "f", "f1.png", "f02.png", "f2.png", "f2b.png", "f10.png"]);
    }
}
