//! Texts in clips: those of this program and of others.

use animatelcm::output::metadata;

use super::{request, support::file};

/// Reads the texts of a file of any format, and the request in them.
pub fn run(data: &[u8]) {
    if let Ok(Some(found)) = metadata::read(&file("clip", data)) {
        assert!(!found.is_empty());
        request::read(&found.request_json);
    }
}
