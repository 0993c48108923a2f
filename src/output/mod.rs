//! Encoders: each takes the frames of one clip and leaves one file (or one numbered series) behind.
//!
//! | Name of the output | Format | Pixels | Request and `parameters` are in | Feature |
//! |---|---|---|---|---|
//! | `.gif` | GIF, loops | 255 colours for the whole clip, dithered | application and comment extension | `gif` |
//! | `.webp` | animated WebP, loops | exact | XMP; `parameters` also in EXIF | `webp` |
//! | `.png`, `.apng` | APNG, loops | exact | text chunks | `apng` |
//! | `name_%03d.png` | one PNG a frame, from 0 | exact | text chunks of every file | `png` |
//! | `.mp4` | H.264 4:2:0, BT.709 | lossy, QP 20 | `mdta` keys; `parameters` also as comment | `mp4` |
//! | `.y4m`, `-` (standard output) | raw YUV 4:4:4, BT.601 | rounded to YCbCr | nowhere: readers refuse long headers | |
//!
//! An encoder writes to a temporary file beside the target; [`FrameSink::finish`] renames it. Whatever goes
//! wrong before that leaves nothing behind. The same frames and metadata give the same bytes.
//!
//! ```
//! # fn main() -> animatelcm::Result<()> {
//! use animatelcm::media::{FrameSink, RgbImage};
//! use animatelcm::Stop;
//! use animatelcm::output::{self, ClipInfo, Existing, Metadata};
//!
//! # let folder = tempfile::tempdir().map_err(animatelcm::Error::file("."))?;
//! # let path = folder.path().join("clip.y4m");
//! output::check(&path, Existing::Refuse)?; // before any work
//! let clip = ClipInfo { width: 8, height: 8, frames: 2, fps: 8.0 };
//! let stop = Stop::default();
//! let mut sink = output::open(&path, &clip, &Metadata::default(), Existing::Refuse, &stop)?;
//! for _ in 0..clip.frames {
//!     sink.frame(&RgbImage::new(8, 8))?;
//! }
//! sink.finish()?;
//! # assert!(path.exists());
//! # Ok(())
//! # }
//! ```

// Encoders share code, some of which nothing uses when only a few of them are built.
#![cfg_attr(
    not(all(
        feature = "gif",
        feature = "webp",
        feature = "apng",
        feature = "png",
        feature = "mp4"
    )),
    allow(dead_code, unused_variables)
)]

mod clip;
mod exif;
pub mod metadata;
mod target;
mod y4m;
mod ycbcr;

#[cfg(feature = "apng")]
mod apng;
#[cfg(feature = "mp4")]
mod boxes;
#[cfg(feature = "gif")]
mod gif;
#[cfg(feature = "mp4")]
mod mp4;
#[cfg(feature = "gif")]
mod palette;
#[cfg(any(feature = "png", feature = "apng"))]
mod png;
#[cfg(feature = "png")]
mod sequence;
#[cfg(feature = "webp")]
mod webp;

use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

pub use clip::ClipInfo;
pub use metadata::Metadata;

pub use crate::files::Existing;
use crate::files::Place;
use crate::kernels::Cancelled;
use crate::media::{FrameSink, RgbImage};
use crate::{Error, Result, Stop};
use target::{Draft, Target};

/// File formats of clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// A GIF with one palette.
    Gif,
    /// A lossless animated WebP.
    Webp,
    /// An animated PNG.
    Apng,
    /// Numbered PNGs, one per frame.
    Png,
    /// H.264 in MP4.
    Mp4,
    /// Raw YUV with a one-line header.
    Y4m,
}

impl Format {
    /// Every format.
    pub const ALL: &[Self] = &[Self::Gif, Self::Webp, Self::Apng, Self::Png, Self::Mp4, Self::Y4m];

    /// The format that the name of an output asks for.
    pub fn from_path(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Y4m);
        }
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let is_numbered = target::Pattern::parse(path)?.is_some();
        match (extension.as_deref(), is_numbered) {
            (Some("png"), true) => Ok(Self::Png),
            (Some("png" | "apng"), false) => Ok(Self::Apng),
            (_, true) => Err(Error::request(
                "output",
                format!("`{}`: only png files can be numbered", path.display()),
            )),
            (Some("gif"), _) => Ok(Self::Gif),
            (Some("webp"), _) => Ok(Self::Webp),
            (Some("mp4"), _) => Ok(Self::Mp4),
            (Some("y4m"), _) => Ok(Self::Y4m),
            _ => Err(Error::request(
                "output",
                format!(
                    "`{}` has none of the known endings .gif .webp .png .apng .mp4 .y4m",
                    path.display()
                ),
            )
            .with_hint("name_%03d.png writes one file a frame, - writes y4m to standard output")),
        }
    }

    /// The name, as printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gif => "gif",
            Self::Webp => "webp",
            Self::Apng => "apng",
            Self::Png => "png",
            Self::Mp4 => "mp4",
            Self::Y4m => "y4m",
        }
    }

    /// Returns whether this build can write the format.
    pub fn is_available(self) -> bool {
        match self {
            Self::Gif => cfg!(feature = "gif"),
            Self::Webp => cfg!(feature = "webp"),
            Self::Apng => cfg!(feature = "apng"),
            Self::Png => cfg!(feature = "png"),
            Self::Mp4 => cfg!(feature = "mp4"),
            Self::Y4m => true,
        }
    }

    /// Checks that a clip of this size and rate can be written at all.
    pub fn check_clip(self, clip: &ClipInfo) -> Result<()> {
        clip.check()?;
        let (least, most) = match self {
            Self::Gif => (1, 65_535),
            Self::Webp => (1, 16_384),
            Self::Mp4 => (16, 3840),
            Self::Apng | Self::Png | Self::Y4m => (1, 1 << 24),
        };
        let ClipInfo { width, height, fps, .. } = *clip;
        let (short, long) = (width.min(height), width.max(height));
        if short < least || long > most || (self == Self::Mp4 && short > 2160) {
            let range = if self == Self::Mp4 {
                "16 by 16 to 3840 by 2160".to_owned()
            } else {
                format!("{least} to {most} a side")
            };
            return Err(Error::request(
                "output",
                format!("{} holds images of {range}, got {width} by {height}", self.name()),
            )
            .with_hint("png and y4m take any size"));
        }
        if self == Self::Gif && fps > 50.0 {
            return Err(Error::request(
                "fps",
                format!("browsers play a gif at no more than 50 frames a second, got {fps}"),
            )
            .with_hint("webp, png and mp4 can be faster"));
        }
        Ok(())
    }

    /// Checks that this build can write the format.
    fn need(self) -> Result<()> {
        if self.is_available() { Ok(()) } else { Err(Error::Feature { feature: self.name() }) }
    }
}

/// Checks, before any work, that an output can be written: its name, its folder, and what is there.
pub fn check(path: &Path, existing: Existing) -> Result<Format> {
    let format = Format::from_path(path)?;
    format.need()?;
    if format == Format::Png {
        // A series that a killed run was renaming is made whole before its files are looked at.
        Target::resolve(path, format, Existing::Replace)?.probe()?;
    }
    Target::resolve(path, format, existing)?.probe()?;
    Ok(format)
}

/// A sentence about the files of an older, longer series that this one would delete, if there are any.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) fn surplus(path: &Path, frames: usize, existing: Existing) -> Result<Option<String>> {
    let Target::Series(series) = Target::resolve(path, Format::from_path(path)?, existing)? else {
        return Ok(None);
    };
    Ok(series.surplus(frames).map(|[first, last]| {
        let to = if first == last { String::new() } else { format!(" to `{last}`") };
        format!("`{first}`{to} of an older series will be removed: this one is shorter")
    }))
}

/// The files of a clip of so many frames: one, or one a frame.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) fn files(path: &Path, frames: usize) -> Result<Vec<PathBuf>> {
    Ok(match Target::resolve(path, Format::from_path(path)?, Existing::Replace)? {
        Target::Series(series) => (0..frames).map(|frame| series.path(frame)).collect(),
        _ => vec![path.to_path_buf()],
    })
}

/// Checks, before any work, that a further file can be written and is not the output, or one of its frames.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) fn check_beside(
    output: &Path,
    field: &'static str,
    path: &Path,
    existing: Existing,
) -> Result<Place> {
    let place = Place::resolve(field, path, existing)?;
    if Target::resolve(output, Format::from_path(output)?, Existing::Replace)?.holds(&place) {
        let reason = format!("`{}` is where the clip goes", path.display());
        return Err(Error::request(field, reason).with_hint("choose another name"));
    }
    place.probe()?;
    Ok(place)
}

/// Opens an output for the frames of one clip. After `stop` was requested the sink takes no frame and does not finish.
pub fn open(
    path: &Path,
    clip: &ClipInfo,
    metadata: &Metadata,
    existing: Existing,
    stop: &Stop,
) -> Result<Box<dyn FrameSink + Send>> {
    let format = Format::from_path(path)?;
    format.need()?;
    format.check_clip(clip)?;
    match Target::resolve(path, format, existing)? {
        #[cfg(feature = "png")]
        Target::Series(series) => {
            let metadata = metadata.printable();
            Ok(Box::new(sequence::Sequence::new(series, clip, &metadata, stop)?))
        }
        target => {
            let (path, folder) = (target.path(), target.folder().to_path_buf());
            encoder(format, (path, &folder), target.draft()?, (clip, metadata), stop)
        }
    }
}

/// An encoder of a clip to any writer, such as the body of an answer. All formats but the numbered PNGs.
///
/// Nothing is written after `stop` was requested, but what was written stays.
///
/// ```
/// use animatelcm::Stop;
/// use animatelcm::media::RgbImage;
/// use animatelcm::output::{self, ClipInfo, Format, Metadata};
///
/// let clip = ClipInfo { width: 8, height: 8, frames: 1, fps: 8.0 };
/// let file = tempfile::tempfile().unwrap();
/// let copy = file.try_clone().unwrap();
/// let mut sink = output::to_writer(Format::Y4m, file, &clip, &Metadata::default(), &Stop::default())?;
/// sink.frame(&RgbImage::new(8, 8))?;
/// sink.finish()?;
/// assert!(copy.metadata().unwrap().len() > 8 * 8);
/// # Ok::<(), animatelcm::Error>(())
/// ```
///
/// # Errors
///
/// When the format cannot hold the clip or is not in this build, or the header cannot be written.
pub fn to_writer(
    format: Format,
    writer: impl Write + Seek + Send + 'static,
    clip: &ClipInfo,
    metadata: &Metadata,
    stop: &Stop,
) -> Result<Box<dyn FrameSink + Send>> {
    format.need()?;
    format.check_clip(clip)?;
    let (name, folder) = (PathBuf::from(format.name()), std::env::temp_dir());
    let draft = Draft::Writer(BufWriter::new(Box::new(writer)));
    encoder(format, (name, &folder), draft, (clip, metadata), stop)
}

/// Puts an encoder between the frames and a stream. `path` is for messages, `folder` where a GIF's frames wait.
fn encoder(
    format: Format,
    (path, folder): (PathBuf, &Path),
    stream: Draft,
    (clip, metadata): (&ClipInfo, &Metadata),
    stop: &Stop,
) -> Result<Box<dyn FrameSink + Send>> {
    let metadata = &metadata.printable();
    match format {
        #[cfg(feature = "gif")]
        Format::Gif => single(path, clip, stop, gif::Gif::new(stream, clip, metadata, folder)),
        #[cfg(feature = "webp")]
        Format::Webp => single(path, clip, stop, webp::Webp::new(stream, clip, metadata)),
        #[cfg(feature = "apng")]
        Format::Apng => single(path, clip, stop, apng::Apng::new(stream, clip, metadata)),
        #[cfg(feature = "mp4")]
        Format::Mp4 => single(path, clip, stop, mp4::Mp4::new(stream, clip, metadata)),
        Format::Y4m => single(path, clip, stop, y4m::Y4m::new(stream, clip)),
        Format::Png => {
            Err(Error::request("output", "numbered PNGs are many files, not one stream"))
        }
        #[allow(unreachable_patterns)]
        _ => Err(Error::Feature { feature: format.name() }),
    }
}

/// Holds a started encoder to what was announced.
fn single<E: Encode<Draft> + 'static>(
    path: PathBuf,
    clip: &ClipInfo,
    stop: &Stop,
    started: Result<E, Fault>,
) -> Result<Box<dyn FrameSink + Send>> {
    let encoder = started.map_err(|fault| fault.of(E::NAME, &path))?;
    Ok(Box::new(Single { encoder, path, clip: *clip, stop: stop.clone(), seen: 0 }))
}

/// An encoder of one stream of bytes.
trait Encode<W>: Send {
    /// The format's name, for messages.
    const NAME: &'static str;

    /// Takes a frame of the announced size.
    fn frame(&mut self, frame: &RgbImage) -> Result<(), Fault>;

    /// Writes what is left and gives the sink back, unless it is stopped meanwhile. Exactly the announced number of
    /// frames came before.
    fn finish(self, stop: &Stop) -> Result<W, Fault>;
}

/// A [`FrameSink`] that holds an encoder to what was announced and its file to the last step.
#[derive(Debug)]
struct Single<E> {
    encoder: E,
    path: PathBuf,
    clip: ClipInfo,
    stop: Stop,
    seen: usize,
}

impl<E: Encode<Draft>> FrameSink for Single<E> {
    fn frame(&mut self, frame: &RgbImage) -> Result<()> {
        self.stop.check()?;
        self.clip.check_frame(frame, self.seen, E::NAME)?;
        self.encoder.frame(frame).map_err(|fault| fault.of(E::NAME, &self.path))?;
        self.seen += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.clip.check_end(self.seen, E::NAME)?;
        let Self { encoder, path, stop, .. } = *self;
        let draft = encoder.finish(&stop).map_err(|fault| fault.of(E::NAME, &path))?;
        stop.check()?;
        draft.commit()
    }
}

/// Errors of encoders.
#[derive(Debug)]
enum Fault {
    /// The bytes could not be written.
    Io(io::Error),
    /// The codec refused.
    Codec(String),
    /// Nobody wants the clip any more, or something else that is no fault of the encoder.
    Other(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Cancelled> for Fault {
    fn from(error: Cancelled) -> Self {
        Self::Other(error.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Fault {
    fn of(self, format: &'static str, path: &Path) -> Error {
        match self {
            Self::Io(source) => Error::file(path)(source),
            Self::Codec(reason) => Error::Encode { format, reason },
            Self::Other(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Seek, SeekFrom, Write};

    /// A sink that holds so many bytes and then is a full disk.
    #[derive(Debug, Default)]
    struct Disk {
        bytes: Cursor<Vec<u8>>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if self.bytes.position() as usize + data.len() > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.write(data)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.bytes.seek(to)
        }
    }

    const CLIP: ClipInfo = ClipInfo { width: 24, height: 16, frames: 3, fps: 8.0 };

    fn noise(index: usize) -> RgbImage {
        let mut state = index as u32 + 1;
        RgbImage::from_fn(CLIP.width, CLIP.height, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb([(state >> 24) as u8, (state >> 16) as u8, (state >> 8) as u8])
        })
    }

    fn run<E: Encode<Disk>>(
        room: usize,
        start: impl FnOnce(Disk) -> Result<E, Fault>,
    ) -> Result<usize, Fault> {
        let mut encoder = start(Disk { room, ..Disk::default() })?;
        for index in 0..CLIP.frames {
            encoder.frame(&noise(index))?;
        }
        Ok(encoder.finish(&Stop::default())?.bytes.into_inner().len())
    }

    /// Wherever the disk ends, the encoder says so: it neither panics nor succeeds.
    fn fails_on_a_full_disk<E: Encode<Disk>>(start: impl Fn(Disk) -> Result<E, Fault>) {
        let size = run(usize::MAX, &start).unwrap();
        for room in [0, 1, 40, size / 3, size / 2, size - 1] {
            match run(room, &start) {
                Err(Fault::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
                other => panic!("{}: {room} of {size} bytes: {other:?}", E::NAME),
            }
        }
        assert_eq!(run(size, &start).unwrap(), size);
    }

    fn texts() -> Metadata {
        Metadata { request_json: r#"{"seed":1}"#.into(), parameters: "a cat".into() }
    }

    #[test]
    fn y4m_reports_a_full_disk() {
        fails_on_a_full_disk(|disk| y4m::Y4m::new(disk, &CLIP));
    }

    #[cfg(feature = "gif")]
    #[test]
    fn gif_reports_a_full_disk() {
        let folder = std::env::temp_dir();
        fails_on_a_full_disk(|disk| gif::Gif::new(disk, &CLIP, &texts(), &folder));
    }

    #[cfg(feature = "webp")]
    #[test]
    fn webp_reports_a_full_disk() {
        fails_on_a_full_disk(|disk| webp::Webp::new(disk, &CLIP, &texts()));
    }

    #[cfg(feature = "apng")]
    #[test]
    fn apng_reports_a_full_disk() {
        fails_on_a_full_disk(|disk| apng::Apng::new(disk, &CLIP, &texts()));
    }

    #[cfg(feature = "mp4")]
    #[test]
    fn mp4_reports_a_full_disk() {
        fails_on_a_full_disk(|disk| mp4::Mp4::new(disk, &CLIP, &texts()));
    }

    #[test]
    fn a_full_disk_names_the_file_and_gives_advice() {
        let error = Fault::Io(io::ErrorKind::StorageFull.into()).of("gif", Path::new("clip.gif"));
        assert!(error.to_string().starts_with("clip.gif: "), "{error}");
        assert!(error.hint().is_some());
    }
}
