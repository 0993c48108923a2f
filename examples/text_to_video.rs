//! A clip from a prompt, with the small model inside the crate.
//! `cargo run --release --example text_to_video -- "a blue square on a white background" clip.webp`

#![allow(clippy::print_stdout, clippy::print_stderr)]

use animatelcm::output::{self, ClipInfo, Existing, Metadata};
use animatelcm::{
    DeviceChoice, DtypeChoice, Event, Files, Inputs, Models, Pipeline, Precision, Request,
    Residency, Stop,
};

fn main() -> animatelcm::Result<()> {
    let mut words = std::env::args().skip(1);
    let prompt = words.next().unwrap_or("a red circle moving down on a white background".into());
    let path = words.next().unwrap_or("clip.gif".into());

    // Any other model: `Files::new(Base::Folder(path)` or `Base::File(path)`), and `files.motion = Motion::File(path)`.
    let device = DeviceChoice::Auto.open()?;
    let precision = Precision::new(DtypeChoice::Auto, &device);
    let models = Models::open(&Files::embedded())?;
    let mut pipeline = Pipeline::new(models, device, precision, Residency::Sequential);

    let mut request = Request::new(prompt);
    request.sampling.seed = Some(7);
    let prepared = pipeline.prepare(&request, &Inputs::default())?;
    let clip = ClipInfo {
        width: prepared.width as u32,
        height: prepared.height as u32,
        frames: prepared.frames,
        fps: request.output.fps,
    };
    let mut sink = output::open(
        path.as_ref(),
        &clip,
        &Metadata::default(),
        Existing::Replace,
        &Stop::default(),
    )?;
    let mut observer = |event: Event| {
        if let Event::Step { step, steps, .. } = event {
            eprintln!("step {step} of {steps}");
        }
        Ok(())
    };
    pipeline.generate(&prepared, &mut observer, &mut *sink)?;
    sink.finish()?;
    println!("{path}");
    Ok(())
}
