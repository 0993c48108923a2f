//! Removal of what killed processes left behind.

use std::fs::{self, File};
use std::path::Path;

use super::live::{PREFIX, SUFFIX, lock_stale};
use super::renames;

/// Removes the drafts of killed processes of the same user from a folder, and completes the series they were
/// renaming, as far as possible. `own` is a file of this process in that folder; `is_renaming` tells whether this
/// process holds the lock for renaming series.
pub(super) fn clean(folder: &Path, own: &File, is_renaming: bool) {
    let (Ok(own), Ok(entries)) = (own.metadata(), fs::read_dir(folder)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_draft =
            name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if !is_draft {
            continue;
        }
        // Links are not followed, because their targets are not drafts.
        let found = match entry.metadata() {
            Ok(found) if is_of_same_owner(&found, &own) => found,
            _ => continue,
        };
        let path = entry.path();
        if found.is_dir() {
            renames::clean(folder, &path, is_renaming);
        } else if found.is_file()
            && let Some(_held) = lock_stale(&path)
        {
            // While it is locked, no process takes it for its own new draft; another process may have removed it
            // first.
            let _ = fs::remove_file(&path);
        }
    }
}

fn is_of_same_owner(found: &fs::Metadata, own: &fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        found.uid() == own.uid()
    }
    #[cfg(not(unix))]
    {
        let _ = (found, own);
        true
    }
}
