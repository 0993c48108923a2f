//! Manifests of batches: CSV, TOML with a matrix, JSON lines.

use animatelcm::batch::{Kind, entries};
use animatelcm::{Error, Stop};

/// A matrix of a few bytes may mean many clips, which are made one by one.
const MOST: usize = 200;

/// Reads a text as each kind of manifest.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let stop = Stop::default();
    for kind in [Kind::Jsonl, Kind::Csv, Kind::Toml] {
        let mut count = 0;
        let _ = entries(kind, text, &mut |entry| {
            count += 1;
            if count > MOST {
                stop.request();
            }
            stop.check()?;
            let Ok((job, _, repeat)) = entry.read() else { return Ok(()) };
            if repeat == 0 {
                return Err(Error::request("repeat", "cannot be 0"));
            }
            let _ = job.request.validate();
            Ok(())
        });
    }
}
