//! The pickle in a torch file, inside a sound zip file with three storages.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::support::file;
use super::weights;

/// Runs the pickle and reads what it describes.
pub fn run(data: &[u8]) {
    weights::open(&file("w.ckpt", &container(data).expect("a zip file in memory")));
}

fn container(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let packed = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let members: [(&str, &[u8], SimpleFileOptions); 5] = [
        ("a/data.pkl", pickle, stored),
        ("a/data/0", &[0; 256], stored),
        ("a/data/1", &[1; 64], stored),
        ("a/data/2", &[0; 64], packed),
        ("a/version", b"3\n", stored),
    ];
    for (name, bytes, options) in members {
        zip.start_file(name, options)?;
        zip.write_all(bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}
