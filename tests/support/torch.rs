//! Torch files, written byte by byte.

use std::io::{Cursor, Write};

use candle_core::Tensor;
use zip::CompressionMethod::Stored;
use zip::write::SimpleFileOptions;

/// A torch zip file of these members, below `archive/`.
pub(crate) fn torch_zip(method: zip::CompressionMethod, members: &[(&str, &[u8])]) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(method);
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Writes pickles as torch does: protocol 2, every object memorised, what was there already taken from the memo.
pub(crate) struct Pickler {
    pub(crate) bytes: Vec<u8>,
    pub(crate) memo: u32,
    /// The numbers of the words `torch._utils._rebuild_tensor_v2`, `storage`, `FloatStorage`, `cpu`, `OrderedDict`.
    pub(crate) words: [Option<u32>; 5],
}

impl Pickler {
    pub(crate) fn new() -> Self {
        Self { bytes: b"\x80\x02".to_vec(), memo: 0, words: [None; 5] }
    }

    pub(crate) fn put(&mut self) -> u32 {
        match u8::try_from(self.memo) {
            Ok(number) => self.bytes.extend([b'q', number]),
            Err(_) => {
                self.bytes.push(b'r');
                self.bytes.extend(self.memo.to_le_bytes());
            }
        }
        self.memo += 1;
        self.memo - 1
    }

    pub(crate) fn get(&mut self, number: u32) {
        match u8::try_from(number) {
            Ok(number) => self.bytes.extend([b'h', number]),
            Err(_) => {
                self.bytes.push(b'j');
                self.bytes.extend(number.to_le_bytes());
            }
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self.put();
    }

    pub(crate) fn word(&mut self, slot: usize, opcodes: &[u8]) {
        match self.words[slot] {
            Some(number) => self.get(number),
            None => {
                self.bytes.extend(opcodes);
                self.words[slot] = Some(self.put());
            }
        }
    }

    pub(crate) fn int(&mut self, value: u32) {
        match (u8::try_from(value), u16::try_from(value)) {
            (Ok(value), _) => self.bytes.extend([b'K', value]),
            (_, Ok(value)) => {
                self.bytes.push(b'M');
                self.bytes.extend(value.to_le_bytes());
            }
            _ => {
                self.bytes.push(b'J');
                self.bytes.extend(value.to_le_bytes());
            }
        }
    }

    /// A view of `count` floats from `offset` on, of a storage of `size` floats.
    pub(crate) fn tensor(&mut self, storage: &str, size: u32, offset: u32, count: u32) {
        self.view(storage, size, offset, &[count]);
    }

    /// A view of this shape, row after row.
    pub(crate) fn view(&mut self, storage: &str, size: u32, offset: u32, shape: &[u32]) {
        self.word(0, b"ctorch._utils\n_rebuild_tensor_v2\n");
        self.bytes.extend(b"((");
        self.word(1, b"X\x07\0\0\0storage");
        self.word(2, b"ctorch\nFloatStorage\n");
        self.text(storage);
        self.word(3, b"X\x03\0\0\0cpu");
        self.int(size);
        self.bytes.push(b't');
        self.put();
        self.bytes.push(b'Q');
        self.int(offset);
        let strides: Vec<u32> =
            (1..=shape.len()).map(|dim| shape[dim..].iter().product()).collect();
        for values in [shape, &strides] {
            self.bytes.push(b'(');
            for value in values {
                self.int(*value);
            }
            self.bytes.push(b't');
            self.put();
        }
        self.bytes.push(0x89);
        self.word(4, b"ccollections\nOrderedDict\n");
        self.bytes.push(b')');
        self.bytes.push(b'R');
        self.put();
        self.bytes.push(b't');
        self.put();
        self.bytes.push(b'R');
        self.put();
    }

    pub(crate) fn begin_dict(&mut self) {
        self.bytes.push(b'}');
        self.put();
        self.bytes.push(b'(');
    }

    pub(crate) fn end_dict(&mut self) {
        self.bytes.push(b'u');
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }
}

/// A torch zip file that is a list of these tensors.
pub(crate) fn torch_list(tensors: &[Tensor]) -> Vec<u8> {
    let mut pickle = Pickler::new();
    pickle.bytes.push(b']');
    pickle.put();
    pickle.bytes.push(b'(');
    let mut members = Vec::new();
    for (i, tensor) in tensors.iter().enumerate() {
        let shape: Vec<u32> = tensor.dims().iter().map(|dim| *dim as u32).collect();
        pickle.view(&i.to_string(), tensor.elem_count() as u32, 0, &shape);
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        members.push((format!("data/{i}"), bytes));
    }
    pickle.bytes.push(b'e');
    let pickle = pickle.finish();
    let mut all: Vec<(&str, &[u8])> = vec![("data.pkl", &pickle)];
    all.extend(members.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])));
    torch_zip(Stored, &all)
}
