//! Damaged and hostile files.

use std::io::{Cursor, Write};

use animatelcm::ErrorKind;
use candle_core::{DType, Device};
use zip::write::SimpleFileOptions;

use crate::support::golden;
use crate::support::weights::opened;

#[test]
fn what_is_no_weight_file_is_said_to_be_what_it_is() {
    for (bytes, says) in [
        (&b""[..], "is empty"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0", "zeros"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git-lfs"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x80\x02}q\0.", "is a pickle, but not one"),
        (b"hello, world, I am a text", "neither"),
        (b"PK\x03\x04", "zip"),
        (b"\x02\0\0\0\0\0\0\0{}x", "0 bytes, 1 are there"),
        (b"\x02\0\0\0\0\0\0\0{", "cut short"),
    ] {
        let error = opened(bytes.to_vec()).unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
        assert_eq!(error.kind(), ErrorKind::Weights);
    }
}

/// A torch zip file with this pickle, and one storage of six floats.
fn torch_zip(pickle: &[u8], method: zip::CompressionMethod) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(method);
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("archive/data.pkl", options).unwrap();
    zip.write_all(pickle).unwrap();
    zip.start_file("archive/data/0", options).unwrap();
    let floats: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    zip.write_all(&floats).unwrap();
    zip.finish().unwrap().into_inner()
}

/// `{"state_dict": {"w": tensor of `shape` with `strides`}, "x": <attack>}`.
fn pickle(attack: &[u8], count: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
    let mut p = b"\x80\x02}(X\x01\x00\x00\x00x".to_vec();
    p.extend(attack);
    p.extend(b"X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00w");
    p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage");
    p.extend(b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK");
    p.extend([count]);
    p.extend(b"tQK\x00K");
    p.extend([shape[0], b'K', shape[1], 0x86, b'K', strides[0], b'K', strides[1], 0x86]);
    p.extend(b"\x89}tRsu.");
    p
}

#[test]
fn a_pickle_never_runs_code_and_its_tensors_still_load() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let command = format!("touch {}", witness.display());
    let mut attack = b"cposix\nsystem\n(X".to_vec();
    attack.extend((command.len() as u32).to_le_bytes());
    attack.extend(command.as_bytes());
    attack.extend(b"tR");
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let archive = opened(torch_zip(&pickle(&attack, 6, [2, 3], [3, 1]), method)).unwrap();
        let w = archive.tensor("w", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(w.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    }
    assert!(!witness.exists());
    // Only the attack and no tensors: an error that names the culprit.
    let mut lone = b"\x80\x02".to_vec();
    lone.extend(&attack);
    lone.push(b'.');
    let error = opened(torch_zip(&lone, zip::CompressionMethod::Stored)).unwrap_err();
    assert!(error.to_string().contains("`posix.system`"), "{error}");
    assert!(!witness.exists());
}

#[test]
fn pickled_tensors_beyond_their_storage_are_refused() {
    let stored = zip::CompressionMethod::Stored;
    let open =
        |count, shape, strides| opened(torch_zip(&pickle(b"N", count, shape, strides), stored));
    assert!(open(6, [3, 2], [1, 3]).is_ok());
    for (count, shape, strides) in
        [(6, [2, 4], [4, 1]), (6, [2, 3], [9, 1]), (200, [2, 3], [3, 1]), (6, [200, 200], [0, 0])]
    {
        let error = open(count, shape, strides).unwrap_err();
        assert!(error.to_string().contains("`w`"), "{error}");
    }
}

#[test]
fn pickles_with_an_unknown_opcode_are_refused() {
    let error = opened(torch_zip(b"\x80\x02\xf5.", zip::CompressionMethod::Stored)).unwrap_err();
    assert!(error.to_string().contains("opcode 0xf5 is unknown"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Weights);
}

#[test]
fn truncated_files_are_refused_wherever_they_are_cut() {
    for name in
        ["layouts/pickle_views.pt", "layouts/pickle_views.safetensors", "layouts/pickle_legacy.pt"]
    {
        let whole = std::fs::read(golden::path(name)).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            assert!(opened(whole[..cut].to_vec()).is_err(), "{name} cut at {cut}");
        }
    }
}

#[test]
fn damaged_files_never_panic() {
    // A fixed generator (Marsaglia's xorshift), so that a failure can be seen again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for name in
        ["layouts/pickle_views.pt", "layouts/pickle_views.safetensors", "layouts/pickle_legacy.pt"]
    {
        let whole = std::fs::read(golden::path(name)).unwrap();
        let mut survivors = 0;
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..=random() % 4 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            if let Ok(archive) = opened(bytes) {
                survivors += 1;
                for tensor in archive.names() {
                    let _ = archive.tensor(tensor, DType::F32, &Device::Cpu);
                }
            }
        }
        assert!(survivors > 0, "{name}: nothing was exercised");
    }
}
