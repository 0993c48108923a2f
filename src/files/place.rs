//! Output paths: checked before any work, and restricted to regular files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Treatment of an existing output file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// The file is kept and the request fails.
    #[default]
    Refuse,
    /// The file is replaced once the new one is complete.
    Replace,
}

/// Path of an output file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    field: &'static str,
    /// Target path, with links resolved.
    path: PathBuf,
    folder: PathBuf,
    existing: Existing,
}

impl Place {
    /// Checks a path, its folder and any existing file, without modifying anything. `field` is used in messages.
    pub(crate) fn resolve(field: &'static str, path: &Path, existing: Existing) -> Result<Self> {
        let refuse = |reason: &str| Error::request(field, format!("`{}` {reason}", path.display()));
        let mut target = path.to_path_buf();
        match fs::symlink_metadata(path) {
            Ok(found) => {
                if found.is_symlink() {
                    // The rename must replace the file, not the link to it.
                    target = fs::canonicalize(path)
                        .map_err(|e| refuse(&format!("is a link that leads nowhere: {e}")))?;
                }
                let found = fs::metadata(&target).map_err(Error::file(path))?;
                if found.is_dir() {
                    return Err(refuse("is a folder").with_hint("add a file name"));
                }
                if !found.is_file() {
                    return Err(refuse("is not an ordinary file"));
                }
                if existing == Existing::Refuse {
                    return Err(exists(field, path));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
                return Err(refuse("is too long a name").with_hint("choose a shorter one"));
            }
            // Errors of the folder are reported below.
            Err(_) => {}
        }
        let folder = folder_of(field, &target)?;
        Ok(Self { field, path: target, folder, existing })
    }

    pub(super) fn field(&self) -> &'static str {
        self.field
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn existing(&self) -> Existing {
        self.existing
    }

    /// Error for an existing file that must be kept.
    pub(super) fn exists(&self) -> Error {
        exists(self.field, &self.path)
    }
}

/// Error for an existing file that must be kept.
pub(crate) fn exists(field: &'static str, path: &Path) -> Error {
    Error::request(field, format!("`{}` exists", path.display()))
        .with_hint("-y replaces it, or choose another name")
}

/// Error for a folder that is not writable.
pub(crate) fn unwritable(field: &'static str, folder: &Path, error: &io::Error) -> Error {
    Error::request(field, format!("cannot write to `{}`: {error}", folder.display()))
}

/// Folder of an output file, which must exist.
pub(crate) fn folder_of(field: &'static str, path: &Path) -> Result<PathBuf> {
    let names_none = || Error::request(field, format!("`{}` names no file", path.display()));
    path.file_name().ok_or_else(names_none)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let name = folder.display();
    match fs::metadata(&folder) {
        Ok(found) if found.is_dir() => Ok(folder),
        Ok(_) => Err(Error::request(field, format!("`{name}` is not a folder"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!("the folder `{name}` does not exist");
            Err(Error::request(field, reason).with_hint("create it first"))
        }
        Err(error) => Err(Error::request(field, format!("`{name}`: {error}"))),
    }
}
