//! Requests as the program understands them.

use serde_json::Value;

use crate::support::golden;
use crate::support::program::{Folder, Outcome};

pub(crate) fn path(name: &str) -> String {
    golden::path(name).to_str().unwrap().to_owned()
}

/// The request that the words mean.
pub(crate) fn dumped(folder: &Folder, args: &[&str]) -> Value {
    folder.run(&[&["generate", "--dump-request"], args].concat()).ok().json()
}

/// A clip of the tiny model.
pub(crate) fn tiny(folder: &Folder, args: &[&str]) -> Outcome {
    let model = path("tiny/model");
    let all = ["generate", "--model", &model, "--frames=2", "--steps=1", "-y", "-o", "clip.gif"];
    folder.run(&[&all[..], args].concat())
}

/// A PNG of one pixel with a text.
pub(crate) fn png(key: &str, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.add_text_chunk(key.to_owned(), text.to_owned()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    bytes
}
