//! The hints of a request: which files they are, so that a clip can be made again.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::media::read;
use crate::pipeline::control::Control;
use crate::weights::{Source, sha256};
use crate::{Error, Result};

/// Writes down which hints they are, and refuses others than those that a clip was made with.
pub(super) fn check_hints(controls: &mut [Control]) -> Result<()> {
    for control in controls {
        let found = digest(Path::new(&control.hint))?;
        if let Some(wanted) = control.sha256.replace(found.clone())
            && wanted != found
        {
            let reason = format!("sha256 is {found}, the clip was made with {wanted}");
            return Err(Error::Refused { name: control.hint.clone(), reason });
        }
    }
    Ok(())
}

/// A file's SHA-256; of a folder, that of its pictures' in order, written one after the other.
fn digest(hint: &Path) -> Result<String> {
    let field = "control";
    let hash = |file: &Path| {
        let found = std::fs::metadata(file);
        let found = found.map_err(|e| super::generate::unreadable(field, file, &e))?;
        if !found.is_file() {
            // A pipe could not be read twice, and a device has no end.
            let reason = format!("{} is not an ordinary file", file.display());
            return Err(Error::request(field, reason));
        }
        sha256(&Source::from(file.to_path_buf()))
    };
    if !hint.is_dir() {
        return hash(hint);
    }
    let mut all = Sha256::new();
    for file in read::files(field, hint)? {
        all.update(hash(&file)?);
    }
    Ok(format!("{:x}", all.finalize()))
}
