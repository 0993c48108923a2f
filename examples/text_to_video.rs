//! A clip from a prompt, with the small model inside the crate.
//! `cargo run --release --example text_to_video -- "a blue square on a white background" clip.webp`

#![allow(clippy::print_stdout, clippy::print_stderr)]

use animatelcm::Stop;
use animatelcm::device::{DeviceChoice, DtypeChoice, Precision};
use animatelcm::output::{self, ClipInfo, Existing, Metadata};
use animatelcm::pipeline::load::{Base, Files, LoraFile, Models};
use animatelcm::pipeline::request::Request;
use animatelcm::pipeline::{Event, Pipeline, Residency, Tensors};

fn main() -> animatelcm::Result<()> {
    let mut words = std::env::args().skip(1);
    let prompt = words.next().unwrap_or("a red circle on a black background".into());
    let path = words.next().unwrap_or("clip.gif".into());

    // Any other model: `Base::Folder(path)` or `Base::File(path)`, and `files.motion = Motion::File(path)`.
    let mut files = Files::new(Base::Embedded);
    files.loras.push(LoraFile::new(Files::embedded_lora()));
    let device = DeviceChoice::Auto.open()?;
    let precision = Precision::new(DtypeChoice::Auto, &device);
    let models = Models::open(&files)?;
    let mut pipeline = Pipeline::new(models, device, precision, Residency::OneAtATime);

    let request = Request { prompt, seed: Some(7), ..Request::default() };
    let prepared = pipeline.prepare(&request)?;
    let clip = ClipInfo {
        width: prepared.width as u32,
        height: prepared.height as u32,
        frames: request.frames,
        fps: request.fps,
    };
    let mut sink = output::open(
        path.as_ref(),
        &clip,
        &Metadata::default(),
        Existing::Replace,
        &Stop::default(),
    )?;
    let mut listener = |event: Event| {
        if let Event::Step { step, steps, .. } = event {
            eprintln!("step {step} of {steps}");
        }
        Ok(())
    };
    pipeline.generate(&request, &mut Tensors::default(), &mut listener, &mut *sink)?;
    sink.finish()?;
    println!("{path}");
    Ok(())
}
