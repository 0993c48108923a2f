//! The hints and pictures of a request: which files they are, so that a clip can be made again.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::media::read;
use crate::pipeline::control::Control;
use crate::pipeline::ip_adapter::IpAdapter;
use crate::weights::{Source, sha256};
use crate::{Error, Result, Stop};

/// Writes down which hints they are, and refuses others than those that a clip was made with.
pub(super) fn check_hints(controls: &mut [Control], stop: &Stop) -> Result<()> {
    let check_hint = |c: &mut Control| check("control", &c.hint, &mut c.sha256, stop);
    controls.iter_mut().try_for_each(check_hint)
}

/// The same for the pictures and masks of IP-Adapters.
pub(super) fn check_pictures(adapters: &mut [IpAdapter], stop: &Stop) -> Result<()> {
    let pictures = adapters.iter_mut().flat_map(|a| a.images.iter_mut().chain(&mut a.masks));
    for picture in pictures {
        check("ip-adapter", &picture.file, &mut picture.sha256, stop)?;
    }
    Ok(())
}

/// Puts a file's hash into `sha256`; another one that was there is refused.
fn check(field: &'static str, file: &str, sha256: &mut Option<String>, stop: &Stop) -> Result<()> {
    let found = digest(field, Path::new(file), stop)?;
    match sha256.replace(found.clone()) {
        Some(wanted) if wanted != found => {
            let reason = format!("sha256 is {found}, the clip was made with {wanted}");
            Err(Error::Refused { name: file.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

/// A file's SHA-256; of a folder, that of its pictures' in order, written one after the other.
fn digest(field: &'static str, hint: &Path, stop: &Stop) -> Result<String> {
    let hash = |file: &Path| {
        let found = std::fs::metadata(file);
        let found = found.map_err(|e| super::generate::unreadable(field, file, &e))?;
        if !found.is_file() {
            // A pipe could not be read twice, and a device has no end.
            let reason = format!("{} is not an ordinary file", file.display());
            return Err(Error::request(field, reason));
        }
        if found.len() > read::MOST_BYTES {
            // Nothing of it will be read, so it is not hashed either.
            let most = read::MOST_BYTES >> 20;
            let reason = format!("{} is larger than {most} MiB", file.display());
            return Err(Error::request(field, reason));
        }
        sha256(&Source::from(file.to_path_buf()), stop)
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
