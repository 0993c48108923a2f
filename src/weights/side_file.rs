//! Small text files next to weights: configurations, indexes, vocabularies.

use std::io::ErrorKind;
use std::path::Path;

use crate::files;
use crate::{Error, Result};

/// The contents of a text file that belongs to a model.
///
/// # Errors
///
/// A file that is missing, too large, not text or not a regular file is a model error ([`Error::Missing`] or
/// [`Error::Format`]); everything else is a file error.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    files::read_text(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Error::Missing { name: path.display().to_string(), reason: "no such file".to_owned() }
        }
        ErrorKind::IsADirectory => Error::format(path, "is a folder, a file is needed"),
        ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::FileTooLarge => {
            Error::format(path, error.to_string())
        }
        _ => Error::file(path)(error),
    })
}

/// The contents of an optional text file of a model, or `None` if it does not exist.
pub(crate) fn find_text(path: &Path) -> Result<Option<String>> {
    if path.exists() { read_text(path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_file_is_a_model_that_does_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert!(matches!(read_text(&path), Err(Error::Missing { .. })));
        assert_eq!(find_text(&path).unwrap(), None);
        assert!(matches!(read_text(folder.path()), Err(Error::Format { .. })));
        std::fs::write(&path, [0xff]).unwrap();
        assert!(matches!(find_text(&path), Err(Error::Format { .. })));
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(find_text(&path).unwrap().as_deref(), Some("{}"));
        #[cfg(unix)]
        {
            let device = read_text(Path::new("/dev/zero")).unwrap_err();
            assert_eq!(device.to_string(), "/dev/zero: is not an ordinary file");
        }
    }
}
