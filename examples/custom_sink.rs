//! A sink of one's own: the frames of a clip as letters in the terminal.
//! `cargo run --release --example custom_sink`

#![allow(clippy::print_stdout)]

use animatelcm::Result;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::media::{FrameSink, RgbImage};
use animatelcm::pipeline::load::{Base, Files, LoraFile, Models};
use animatelcm::pipeline::request::Request;
use animatelcm::pipeline::{Event, Pipeline, Residency, Tensors};
use candle_core::Device;

/// Prints every frame, a letter for four columns and eight rows.
#[derive(Default)]
struct Terminal {
    frames: usize,
}

impl FrameSink for Terminal {
    fn frame(&mut self, frame: &RgbImage) -> Result<()> {
        const INK: &[u8] = b" .:-=+*#%@";
        self.frames += 1;
        println!("frame {}", self.frames);
        for y in (0..frame.height()).step_by(8) {
            let letter = |x: u32| {
                let [r, g, b] = frame.get_pixel(x, y).0.map(usize::from);
                char::from(INK[(r + g + b) * (INK.len() - 1) / (3 * 255)])
            };
            println!("{}", (0..frame.width()).step_by(4).map(letter).collect::<String>());
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        println!("{} frames", self.frames);
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut files = Files::new(Base::Embedded);
    files.loras.push(LoraFile::new(Files::embedded_lora()));
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let models = Models::open(&files)?;
    let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::KeepAll);
    let prompt = "a white circle on a black background".to_owned();
    let request = Request { prompt, seed: Some(7), frames: 4, ..Request::default() };
    let mut sink = Box::new(Terminal::default());
    let mut silent = |_: Event| Ok(());
    pipeline.generate(&request, &mut Tensors::default(), &mut silent, &mut *sink)?;
    sink.finish()
}
