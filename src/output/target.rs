//! Destination of an output: one file, a numbered series, or standard output.

use std::fmt;
use std::fs;
use std::io::{self, BufWriter, IsTerminal, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

use super::{Existing, Format};
use crate::files::{self, DraftSeries, Place};
use crate::{Error, Result};

/// A file name with the frame's number in it, such as `name_%03d.png`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    before: String,
    digits: usize,
    after: String,
}

impl Pattern {
    /// Reads the last part of a path; `None` when there is no number in it.
    ///
    /// A percent sign in the name of a PNG is `%d`, `%0Nd` or, for itself, `%%`.
    pub(super) fn parse(path: &Path) -> Result<Option<Self>> {
        let Some(name) = path.file_name().map(|name| name.to_string_lossy()) else {
            return Ok(None);
        };
        let is_png = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
        let bad = |reason: &str| {
            Err(Error::request("output", format!("`{}`: {reason}", path.display()))
                .with_hint("write %03d for the frame's number, %% for a percent sign"))
        };
        let (mut before, mut number, mut after) = (String::new(), None, String::new());
        let mut rest = name.as_ref();
        while let Some((text, tail)) = rest.split_once('%') {
            let part = if number.is_none() { &mut before } else { &mut after };
            part.push_str(text);
            if let Some(tail) = tail.strip_prefix('%') {
                part.push('%');
                rest = tail;
                continue;
            }
            let Some((digits, tail)) = number_field(tail) else {
                if is_png {
                    return bad("this percent sign is not followed by a frame number");
                }
                return Ok(None);
            };
            if number.replace(digits).is_some() {
                return bad("the frame's number is in it twice");
            }
            rest = tail;
        }
        let part = if number.is_none() { &mut before } else { &mut after };
        part.push_str(rest);
        if number.is_some() && name.contains(char::REPLACEMENT_CHARACTER) {
            return bad("a numbered name must be valid unicode");
        }
        Ok(number.map(|digits| Self { before, digits, after }))
    }

    /// The file name of a frame.
    pub(super) fn name(&self, index: usize) -> String {
        format!("{}{index:0width$}{}", self.before, self.after, width = self.digits)
    }

    /// Returns whether a file name could be one of the series.
    fn matches(&self, name: &str) -> bool {
        name.strip_prefix(&self.before).and_then(|rest| rest.strip_suffix(&self.after)).is_some_and(
            |n| n.len() >= self.digits.max(1) && n.bytes().all(|byte| byte.is_ascii_digit()),
        )
    }
}

/// The digits of `d` or `0Nd` and what follows.
fn number_field(text: &str) -> Option<(usize, &str)> {
    if let Some(rest) = text.strip_prefix('d') {
        return Some((0, rest));
    }
    let (width, rest) = text.strip_prefix('0')?.split_once('d')?;
    let is_one_digit = width.len() == 1 && width.bytes().all(|b| (b'1'..=b'9').contains(&b));
    is_one_digit.then(|| (width.parse().unwrap_or(1), rest))
}

const FIELD: &str = "output";

/// A checked place for an output.
#[derive(Debug)]
pub(super) enum Target {
    File(Place),
    Series(Series),
    Stdout,
}

impl Target {
    /// Checks the name, the folder and what is already there, without touching anything.
    pub(super) fn resolve(path: &Path, format: Format, existing: Existing) -> Result<Self> {
        if path.as_os_str() == "-" {
            Ok(Self::Stdout)
        } else if format == Format::Png {
            Series::resolve(path, existing).map(Self::Series)
        } else {
            Place::resolve(FIELD, path, existing).map(Self::File)
        }
    }

    /// Checks that something can be written there, by doing so.
    pub(super) fn probe(&self) -> Result<()> {
        match self {
            Self::File(place) => place.probe(),
            Self::Series(series) => series.probe(),
            Self::Stdout if io::stdout().is_terminal() => {
                Err(Error::request(FIELD, "raw video does not go to a terminal")
                    .with_hint("pipe it into a program, or name a file"))
            }
            Self::Stdout => Ok(()),
        }
    }

    /// The file that will appear, for messages; of a series the first.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::File(place) => place.path().to_path_buf(),
            Self::Series(series) => series.path(0),
            Self::Stdout => "standard output".into(),
        }
    }

    /// The folder that it will appear in.
    pub(super) fn folder(&self) -> &Path {
        match self {
            Self::File(place) => place.folder(),
            Self::Series(series) => &series.folder,
            Self::Stdout => Path::new("."),
        }
    }

    /// A stream that becomes the file.
    pub(super) fn draft(self) -> Result<Draft> {
        match self {
            Self::File(place) => Ok(Draft::File(place.draft()?)),
            Self::Stdout => Ok(Draft::Stdout(BufWriter::new(io::stdout()))),
            Self::Series(series) => {
                let reason = format!("`{}` is one of many files", series.path(0).display());
                Err(Error::request(FIELD, reason))
            }
        }
    }

    /// Returns whether the output has or may have a file of this name.
    pub(super) fn holds(&self, other: &Place) -> bool {
        let is_same_folder = |folder: &Path| {
            let [a, b] = [folder, other.folder()].map(fs::canonicalize);
            matches!((a, b), (Ok(a), Ok(b)) if a == b)
        };
        let name = other.path().file_name();
        match self {
            Self::File(place) => is_same_folder(place.folder()) && place.path().file_name() == name,
            Self::Series(series) => {
                is_same_folder(&series.folder)
                    && name
                        .and_then(|name| name.to_str())
                        .is_some_and(|n| series.pattern.matches(n))
            }
            Self::Stdout => false,
        }
    }
}

/// Destination of an encoder's bytes.
pub(super) trait Stream: Write + Seek + Send {}

impl<W: Write + Seek + Send> Stream for W {}

/// A stream of bytes that becomes a file when it is committed.
pub(super) enum Draft {
    /// A file beside its target, removed when dropped.
    File(files::Draft),
    /// Standard output, where nothing can be taken back.
    Stdout(BufWriter<Stdout>),
    /// A writer of the caller, where nothing can be taken back either.
    Writer(BufWriter<Box<dyn Stream>>),
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File(_) => "File",
            Self::Stdout(_) => "Stdout",
            Self::Writer(_) => "Writer",
        })
    }
}

impl Draft {
    /// Makes the file visible under its name.
    pub(super) fn commit(self) -> Result<()> {
        match self {
            Self::File(draft) => draft.commit(),
            Self::Stdout(mut out) => out.flush().map_err(Error::file("standard output")),
            Self::Writer(mut out) => out.flush().map_err(Error::file("the output")),
        }
    }
}

impl Write for Draft {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(data),
            Self::Stdout(out) => out.write(data),
            Self::Writer(out) => out.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stdout(out) => out.flush(),
            Self::Writer(out) => out.flush(),
        }
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Stdout(_) => Err(io::ErrorKind::Unsupported.into()),
            Self::Writer(out) => out.seek(to),
        }
    }
}

/// A checked place for numbered files.
#[derive(Debug)]
pub(super) struct Series {
    folder: PathBuf,
    pattern: Pattern,
    existing: Existing,
}

impl Series {
    fn resolve(path: &Path, existing: Existing) -> Result<Self> {
        let no_number =
            || Error::request(FIELD, format!("`{}` has no frame number", path.display()));
        let pattern = Pattern::parse(path)?.ok_or_else(no_number)?;
        let series = Self { folder: files::folder_of(FIELD, path)?, pattern, existing };
        series.check_name(0)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&series.folder).map_err(Error::file(&series.folder))? {
            let entry = entry.map_err(Error::file(&series.folder))?;
            if entry.file_name().to_str().is_some_and(|name| series.pattern.matches(name)) {
                found.push(entry.path());
            }
        }
        found.sort();
        if existing == Existing::Refuse {
            return found.first().map_or(Ok(series), |first| Err(files::exists(FIELD, first)));
        }
        for path in found {
            let kind = fs::symlink_metadata(&path).map_err(Error::file(&path))?.file_type();
            if !kind.is_file() && !kind.is_symlink() {
                let reason = format!("`{}` is not an ordinary file", path.display());
                return Err(Error::request(FIELD, reason));
            }
        }
        Ok(series)
    }

    /// Checks that the system takes a name as long as that of a frame.
    pub(super) fn check_name(&self, index: usize) -> Result<()> {
        let path = self.path(index);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
                let reason = format!("`{}` is too long a name", path.display());
                Err(Error::request(FIELD, reason).with_hint("choose a shorter one"))
            }
            _ => Ok(()),
        }
    }

    /// The first and the last file of an older series that go on after `frames` frames: they are removed with those
    /// that are replaced.
    pub(super) fn surplus(&self, frames: usize) -> Option<[String; 2]> {
        if self.existing == Existing::Refuse {
            return None;
        }
        let is_there = |index: &usize| fs::symlink_metadata(self.path(*index)).is_ok();
        let last = (frames..).take_while(is_there).last()?;
        Some([frames, last].map(|index| self.pattern.name(index)))
    }

    fn probe(&self) -> Result<()> {
        match DraftSeries::new(FIELD, &self.folder, self.existing) {
            Ok(_) => Ok(()),
            Err(error) => Err(files::unwritable(FIELD, &self.folder, &error)),
        }
    }

    /// The file of a frame.
    pub(super) fn path(&self, index: usize) -> PathBuf {
        self.folder.join(self.pattern.name(index))
    }

    /// A new folder beside the files to be.
    pub(super) fn draft(&self) -> Result<DraftSeries> {
        DraftSeries::new(FIELD, &self.folder, self.existing).map_err(Error::file(self.path(0)))
    }

    /// Gives the frames of a draft their names.
    pub(super) fn commit(&self, draft: DraftSeries, frames: usize) -> Result<()> {
        draft.commit(frames, |index| self.pattern.name(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Option<[String; 2]> {
        let pattern = Pattern::parse(Path::new(name)).unwrap()?;
        Some([pattern.name(0), pattern.name(1234)])
    }

    #[test]
    fn patterns_number_the_frames() {
        assert_eq!(names("a_%03d.png").unwrap(), ["a_000.png", "a_1234.png"]);
        assert_eq!(names("%d.png").unwrap(), ["0.png", "1234.png"]);
        assert_eq!(names("50%%_%02d%%.png").unwrap(), ["50%_00%.png", "50%_1234%.png"]);
        assert_eq!(names("a.png"), None);
        assert_eq!(names("100%.gif"), None);
        assert_eq!(names("folder_%03d/a.png"), None);
    }

    #[test]
    fn odd_patterns_are_refused() {
        for name in ["%s.png", "%.png", "%3d.png", "%00d.png", "%012d.png", "%d_%d.png", "a%"] {
            let name = format!("{}.png", name.trim_end_matches(".png"));
            assert!(Pattern::parse(Path::new(&name)).is_err(), "{name}");
        }
    }

    #[test]
    fn patterns_know_their_files() {
        let pattern = Pattern::parse(Path::new("a_%03d.png")).unwrap().unwrap();
        assert!(pattern.matches("a_000.png") && pattern.matches("a_12345.png"));
        assert!(!pattern.matches("a_00.png") && !pattern.matches("a_00x.png"));
        assert!(!pattern.matches("b_000.png") && !pattern.matches("a_000.png.bak"));
    }
}
