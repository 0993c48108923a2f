//! Where an output goes: names, what is already there, and files that appear only when complete.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

use tempfile::{TempDir, TempPath};

use super::{Existing, Format, file_error};
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
                    return bad("this percent sign is no frame number");
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

    /// Whether a file name could be one of the series.
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

/// A checked place for an output.
#[derive(Debug)]
pub(super) struct Target {
    /// What to write, links followed.
    path: PathBuf,
    folder: PathBuf,
    place: Place,
    existing: Existing,
}

#[derive(Debug)]
enum Place {
    File,
    Series(Pattern),
    Stdout,
}

impl Target {
    /// Checks the name, the folder and what is already there, without touching anything.
    pub(super) fn resolve(path: &Path, format: Format, existing: Existing) -> Result<Self> {
        if path.as_os_str() == "-" {
            let (path, folder) = (PathBuf::from("standard output"), PathBuf::new());
            return Ok(Self { path, folder, place: Place::Stdout, existing });
        }
        let refuse =
            |reason: String| Error::request("output", format!("`{}` {reason}", path.display()));
        let (mut path_buf, mut place) = (path.to_path_buf(), Place::File);
        if format == Format::Png {
            let pattern =
                Pattern::parse(path)?.ok_or_else(|| refuse("has no frame number".into()))?;
            place = Place::Series(pattern);
        } else if let Ok(found) = fs::symlink_metadata(path) {
            if found.is_symlink() {
                // The rename must replace the file, not the link to it.
                path_buf = fs::canonicalize(path)
                    .map_err(|source| refuse(format!("is a link that leads nowhere: {source}")))?;
            }
            let found = fs::metadata(&path_buf).map_err(Error::file(path))?;
            if found.is_dir() {
                return Err(
                    refuse("is a folder".into()).with_hint("add a file name, such as clip.webp")
                );
            }
            if !found.is_file() {
                return Err(refuse("is not an ordinary file".into()));
            }
            if existing == Existing::Refuse {
                return Err(exists(path));
            }
        }
        let folder = match path_buf.parent() {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_path_buf(),
            None => return Err(refuse("names no file".into())),
        };
        match fs::metadata(&folder) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                let reason = format!("`{}` is not a folder", folder.display());
                return Err(Error::request("output", reason));
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                let reason = format!("the folder `{}` does not exist", folder.display());
                return Err(Error::request("output", reason).with_hint("create it first"));
            }
            Err(source) => {
                let reason = format!("`{}`: {source}", folder.display());
                return Err(Error::request("output", reason));
            }
        }
        let target = Self { path: path_buf, folder, place, existing };
        if existing == Existing::Refuse
            && let Some(found) = target.first_of_series()?
        {
            return Err(exists(&found));
        }
        Ok(target)
    }

    /// Checks that something can be written there, by doing so.
    pub(super) fn probe(&self) -> Result<()> {
        if matches!(self.place, Place::Stdout) {
            if io::stdout().is_terminal() {
                return Err(Error::request("output", "raw video does not go to a terminal")
                    .with_hint("pipe it into a program, or name a file"));
            }
            return Ok(());
        }
        match draft_in(&self.folder) {
            Ok(_) => Ok(()),
            Err(source) => {
                let reason = format!("cannot write to `{}`: {source}", self.folder.display());
                Err(Error::request("output", reason))
            }
        }
    }

    /// The file that will appear, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that it will appear in.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A new file beside the target.
    pub(super) fn draft(self) -> Result<Draft> {
        let Self { path, folder, place, existing } = self;
        if matches!(place, Place::Stdout) {
            return Ok(Draft::Stdout(BufWriter::new(io::stdout())));
        }
        let draft = draft_in(&folder).map_err(|source| file_error(&path, source))?;
        let (file, draft) = draft.into_parts();
        Ok(Draft::File { draft, file: BufWriter::with_capacity(1 << 16, file), path, existing })
    }

    /// A new folder beside the series.
    pub(super) fn draft_series(self) -> Result<DraftSeries> {
        let Self { path, folder, place, existing } = self;
        let Place::Series(pattern) = place else {
            let reason = format!("`{}` has no frame number", path.display());
            return Err(Error::request("output", reason));
        };
        let drafts = temporary().tempdir_in(&folder).map_err(|source| file_error(&path, source))?;
        Ok(DraftSeries { drafts, folder, pattern, existing })
    }

    /// The first file, by name, that is already one of the series.
    fn first_of_series(&self) -> Result<Option<PathBuf>> {
        let Place::Series(pattern) = &self.place else { return Ok(None) };
        let mut first: Option<PathBuf> = None;
        for entry in fs::read_dir(&self.folder).map_err(Error::file(&self.folder))? {
            let entry = entry.map_err(Error::file(&self.folder))?;
            let is_one = entry.file_name().to_str().is_some_and(|name| pattern.matches(name));
            if is_one && first.as_ref().is_none_or(|first| entry.path() < *first) {
                first = Some(entry.path());
            }
        }
        Ok(first)
    }
}

fn exists(path: &Path) -> Error {
    Error::request("output", format!("`{}` exists", path.display()))
        .with_hint("-y replaces it, or choose another name")
}

/// How temporary files and folders are called.
fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".animatelcm-").suffix(".part");
    builder
}

/// A temporary file with the permissions of an ordinary new file, since it becomes one.
pub(crate) fn draft_in(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = temporary();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // Errors of `tempfile` name the temporary file, which nobody asked about.
    builder.tempfile_in(folder).map_err(|error| io::Error::from(error.kind()))
}

/// A stream of bytes that becomes a file when it is committed.
pub(super) enum Draft {
    /// A temporary file beside its target, removed when dropped.
    File {
        /// The temporary file.
        file: BufWriter<File>,
        /// Its name for now; the file goes when this does.
        draft: TempPath,
        /// Its name to be.
        path: PathBuf,
        /// What happens to a file of that name.
        existing: Existing,
    },
    /// Standard output, where nothing can be taken back.
    Stdout(BufWriter<Stdout>),
}

impl Draft {
    /// Makes the file visible under its name.
    pub(super) fn commit(mut self) -> Result<()> {
        let flushed = self.flush();
        let Self::File { file, draft, path, existing } = self else {
            return flushed.map_err(Error::file("standard output"));
        };
        let fail = |source| file_error(&path, source);
        flushed.map_err(fail)?;
        let file = file.into_inner().map_err(|error| fail(error.into_error()))?;
        // Some file systems find out only here that they are full.
        file.sync_all().map_err(fail)?;
        drop(file);
        let renamed = match existing {
            Existing::Replace => draft.persist(&path),
            Existing::Refuse => draft.persist_noclobber(&path),
        };
        match renamed {
            Ok(()) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Err(exists(&path)),
            Err(error) => Err(fail(error.error)),
        }
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => f.debug_tuple("File").field(path).finish(),
            Self::Stdout(_) => f.write_str("Stdout"),
        }
    }
}

impl Write for Draft {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::File { file, .. } => file.write(data),
            Self::Stdout(out) => out.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File { file, .. } => file.flush(),
            Self::Stdout(out) => out.flush(),
        }
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File { file, .. } => file.seek(to),
            Self::Stdout(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A folder of numbered files that move to their place together.
#[derive(Debug)]
pub(super) struct DraftSeries {
    drafts: TempDir,
    folder: PathBuf,
    pattern: Pattern,
    existing: Existing,
}

impl DraftSeries {
    /// Where a frame is written for now.
    pub(super) fn draft(&self, index: usize) -> PathBuf {
        self.drafts.path().join(format!("new-{index}"))
    }

    /// Where it will be, for messages.
    pub(super) fn place(&self, index: usize) -> PathBuf {
        self.folder.join(self.pattern.name(index))
    }

    /// Moves `count` frames to their names: all of them, or none.
    pub(super) fn commit(self, count: usize) -> Result<()> {
        for index in 0..count {
            if let Err(error) = self.swap_in(index) {
                for index in (0..index).rev() {
                    self.swap_out(index);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Puts a frame in its place and keeps what was there.
    fn swap_in(&self, index: usize) -> Result<()> {
        let place = self.place(index);
        let is_taken = fs::symlink_metadata(&place).is_ok();
        if is_taken {
            if self.existing == Existing::Refuse {
                return Err(exists(&place));
            }
            fs::rename(&place, self.old(index)).map_err(Error::file(&place))?;
        }
        fs::rename(self.draft(index), &place).map_err(|source| {
            if is_taken {
                // Nothing more can be done if this fails too.
                let _ = fs::rename(self.old(index), &place);
            }
            file_error(&place, source)
        })
    }

    /// Undoes [`swap_in`](Self::swap_in) as far as the system lets it.
    fn swap_out(&self, index: usize) {
        let place = self.place(index);
        let _ = fs::remove_file(&place);
        let _ = fs::rename(self.old(index), &place);
    }

    fn old(&self, index: usize) -> PathBuf {
        self.drafts.path().join(format!("old-{index}"))
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

    #[test]
    fn a_series_that_cannot_be_completed_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("%d.png");
        fs::write(folder.path().join("0.png"), "old").unwrap();
        let target = Target::resolve(&path, Format::Png, Existing::Replace).unwrap();
        let series = target.draft_series().unwrap();
        fs::write(series.draft(0), "new").unwrap();
        fs::write(series.draft(1), "new").unwrap(); // and no frame 2
        assert!(series.commit(3).is_err());
        assert_eq!(fs::read_to_string(folder.path().join("0.png")).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gif");
        let target = Target::resolve(&path, Format::Gif, Existing::Refuse).unwrap();
        let draft = target.draft().unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(draft.commit().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real.gif"), folder.path().join("link.gif"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let target = Target::resolve(&link, Format::Gif, Existing::Replace).unwrap();
        let mut draft = target.draft().unwrap();
        draft.write_all(b"new").unwrap();
        draft.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }

    #[cfg(unix)]
    #[test]
    fn outputs_have_the_permissions_of_ordinary_files() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let ordinary = folder.path().join("ordinary");
        fs::write(&ordinary, "").unwrap();
        let path = folder.path().join("a.gif");
        let target = Target::resolve(&path, Format::Gif, Existing::Refuse).unwrap();
        target.draft().unwrap().commit().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&ordinary));
    }
}
