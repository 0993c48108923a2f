//! A sink of one's own: the frames of a clip as letters in the terminal.
//! `cargo run --release --example custom_sink`

#![allow(clippy::print_stdout)]

use animatelcm::{
    DtypeChoice, Event, Files, FrameSink, Inputs, Models, Pipeline, Precision, Request, Residency,
    Result, RgbImage,
};
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
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let models = Models::open(&Files::embedded())?;
    let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::KeepAll);
    let mut request = Request::new("a white circle on a black background");
    request.sampling.seed = Some(7);
    request.size.frames = Some(4);
    let mut sink = Box::new(Terminal::default());
    let mut silent = |_: Event| Ok(());
    let prepared = pipeline.prepare(&request, &Inputs::default())?;
    pipeline.generate(&prepared, &mut silent, &mut *sink)?;
    sink.finish()
}
