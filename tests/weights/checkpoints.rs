//! Torch files of every size: large honest ones are read, small ones that grow without end are refused at once.

use std::fmt::Write as _;
use std::io::{Cursor, Write};
use std::time::{Duration, Instant};

use animatelcm::weights::{Archive, Source};
use animatelcm::{ErrorKind, Result};
use candle_core::{DType, Device};
use zip::CompressionMethod::{Deflated, Stored};
use zip::write::SimpleFileOptions;

use crate::support::torch::{Pickler, torch_zip};

fn opened(bytes: &[u8]) -> Result<Archive> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Archive::open(&Source::from(file.path()))
}

/// The pickle of a trainer's checkpoint: weights, their averages, and the optimizer's two moments and numbers for each.
fn trainers_checkpoint(weights: u32) -> Vec<u8> {
    let mut pickle = Pickler::new();
    pickle.begin_dict();
    pickle.text("epoch");
    pickle.int(7);
    pickle.text("state_dict");
    pickle.begin_dict();
    let mut storage = 0;
    let mut name = String::new();
    for (part, copies) in [("model.diffusion_model.", 1), ("model_ema.diffusion_model", 1)] {
        for weight in 0..weights * copies {
            name.clear();
            let (block, layer) = (weight % 12, weight / 12);
            write!(name, "{part}input_blocks.{block}.1.transformer_blocks.0.ff.net.{layer}.weight")
                .unwrap();
            pickle.text(&name);
            pickle.tensor(&storage.to_string(), 1, 0, 1);
            storage += 1;
        }
    }
    pickle.end_dict();
    pickle.text("optimizer_states");
    pickle.begin_dict();
    for weight in 0..weights {
        pickle.int(weight);
        pickle.begin_dict();
        pickle.text("step");
        pickle.int(1000);
        for moment in ["exp_avg", "exp_avg_sq"] {
            pickle.text(moment);
            pickle.tensor(&storage.to_string(), 1, 0, 1);
            storage += 1;
        }
        pickle.end_dict();
    }
    pickle.text("params");
    pickle.bytes.push(b']');
    pickle.put();
    pickle.bytes.push(b'(');
    for weight in 0..weights {
        pickle.int(weight);
    }
    pickle.bytes.push(b'e');
    pickle.end_dict();
    pickle.end_dict();
    pickle.finish()
}

#[test]
fn a_trainers_checkpoint_of_tens_of_thousands_of_tensors_is_read() {
    let weights = 20_000;
    let pickle = trainers_checkpoint(weights);
    assert!(pickle.len() > 10 << 20, "{}", pickle.len());
    for method in [Stored, Deflated] {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file("archive/data.pkl", options).unwrap();
        zip.write_all(&pickle).unwrap();
        let stored = SimpleFileOptions::default().compression_method(Stored);
        for storage in 0..2 * weights {
            zip.start_file(format!("archive/data/{storage}"), stored).unwrap();
            zip.write_all(&(storage as f32).to_le_bytes()).unwrap();
        }
        let archive = opened(&zip.finish().unwrap().into_inner()).unwrap();
        assert_eq!(archive.names().count(), 2 * weights as usize, "{method:?}");
        let name = "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.ff.net.5.weight";
        let tensor = archive.tensor(name, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [63.0]);
    }
}

#[test]
fn pickles_that_are_packed_to_a_thousandth_are_refused_at_once() {
    let length = (32 << 20) - 64;
    let storage = b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tq\x01";
    for (start, again) in [
        (&b"\x80\x02"[..], &b")"[..]),
        (b"\x80\x02", b"}"),
        (b"\x80\x02)", b"\x85"),
        (b"\x80\x02N", b"\x94"),
        (b"\x80\x02", b"U\x00"),
        (b"\x80\x02N", b"2"),
        (b"\x80\x02", b"("),
        (storage, b"h\x01Q"),
    ] {
        let mut pickle = start.to_vec();
        pickle.extend(again.repeat((length - start.len()) / again.len()));
        pickle.push(b'.');
        let file = torch_zip(Deflated, &[("data.pkl", &pickle), ("data/0", &[0; 4])]);
        assert!(file.len() < 200_000, "{}", file.len());
        let started = Instant::now();
        let error = opened(&file).unwrap_err();
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
        assert!(error.to_string().contains("its pickle has more than"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Weights);
    }
}

/// A file with one compressed storage of a million floats, which count upwards, and these views of it.
fn packed(views: &[(&str, u32, u32)]) -> Vec<u8> {
    let size = 1 << 20;
    let mut pickle = Pickler::new();
    pickle.begin_dict();
    for (name, offset, count) in views {
        pickle.text(name);
        pickle.tensor("0", size, *offset, *count);
    }
    pickle.end_dict();
    let floats: Vec<u8> = (0..size).flat_map(|i| (i as f32).to_le_bytes()).collect();
    torch_zip(Deflated, &[("data.pkl", &pickle.finish()), ("data/0", &floats)])
}

/// Where the compressed bytes of a member lie in a zip file.
fn place(file: &[u8], name: &str) -> std::ops::Range<usize> {
    let mut zip = zip::ZipArchive::new(Cursor::new(file)).unwrap();
    let member = zip.by_name(name).unwrap();
    let start = member.data_start().unwrap() as usize;
    start..start + member.compressed_size() as usize
}

#[test]
fn a_compressed_storage_is_unpacked_only_as_far_as_a_tensor_reaches() {
    let mut file = packed(&[("alpha", 0, 1), ("middle", 500_000, 3), ("last", (1 << 20) - 2, 2)]);
    let values = |file: &[u8], name: &str| -> Result<Vec<f32>> {
        let tensor = opened(file)?.tensor(name, DType::F32, &Device::Cpu)?;
        Ok(tensor.to_vec1()?)
    };
    assert_eq!(values(&file, "alpha").unwrap(), [0.0]);
    assert_eq!(values(&file, "middle").unwrap(), [500_000.0, 500_001.0, 500_002.0]);
    assert_eq!(values(&file, "last").unwrap(), [1_048_574.0, 1_048_575.0]);
    // What lies behind a tensor is not looked at.
    let place = place(&file, "archive/data/0");
    let behind = place.start + place.len() * 3 / 4;
    file[behind..place.end].fill(0xff);
    assert_eq!(values(&file, "alpha").unwrap(), [0.0]);
    assert_eq!(values(&file, "middle").unwrap(), [500_000.0, 500_001.0, 500_002.0]);
    let error = values(&file, "last").unwrap_err();
    assert!(error.to_string().contains("`last`: it cannot be unpacked"), "{error}");
}

#[test]
fn a_compressed_storage_much_larger_than_its_tensors_is_refused() {
    let open = |offset: u32, size: u32| {
        let mut pickle = Pickler::new();
        pickle.begin_dict();
        pickle.text("alpha");
        pickle.tensor("0", size, offset, 1);
        pickle.end_dict();
        let zeros = vec![0; 1000];
        let mut file = torch_zip(Deflated, &[("data.pkl", &pickle.finish()), ("data/0", &zeros)]);
        // The size that the directory claims; both members' names follow theirs by 22 bytes.
        let name = b"archive/data/0";
        let at = file.windows(name.len()).rposition(|found| found == name).unwrap();
        assert_eq!(file[at - 46..at - 42], *b"PK\x01\x02");
        file[at - 22..at - 18].copy_from_slice(&(size * 4).to_le_bytes());
        opened(&file)
    };
    // A number at the beginning costs nothing, wherever the storage ends.
    let archive = open(0, 1_000_000_000).unwrap();
    let alpha = archive.tensor("alpha", DType::F32, &Device::Cpu).unwrap();
    assert_eq!(alpha.to_vec1::<f32>().unwrap(), [0.0]);
    assert!(open(60_000_000, 1_000_000_000).is_ok());
    let error = open(900_000_000, 1_000_000_000).unwrap_err();
    let reason = "3600000004 bytes would have to be unpacked for the 4 of its tensors";
    assert!(error.to_string().contains(reason), "{error}");
}

#[test]
fn thousands_of_compressed_storages_are_read_in_a_moment() {
    let count = 4000;
    let mut pickle = Pickler::new();
    pickle.begin_dict();
    for i in 0..count {
        pickle.text(&format!("w{i}"));
        pickle.tensor(&i.to_string(), 1, 0, 1);
    }
    pickle.end_dict();
    let pickle = pickle.finish();
    let names: Vec<String> = (0..count).map(|i| format!("data/{i}")).collect();
    let values: Vec<[u8; 4]> = (0..count).map(|i| (i as f32).to_le_bytes()).collect();
    let mut members: Vec<(&str, &[u8])> = vec![("data.pkl", &pickle)];
    members.extend(names.iter().zip(&values).map(|(name, value)| (name.as_str(), &value[..])));
    let file = torch_zip(Deflated, &members);
    let started = Instant::now();
    let archive = opened(&file).unwrap();
    for i in 0..count {
        let tensor = archive.tensor(&format!("w{i}"), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [i as f32]);
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}
