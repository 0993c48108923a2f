//! A sampler of one's own on the model inside: consistency sampling that replaces only a part of the noise.
//! `cargo run --release --example custom_sampler`

#![allow(clippy::print_stdout)]

use animatelcm::sampler::{Run, Sampler, Step};
use animatelcm::{
    DtypeChoice, Event, Files, Inputs, Models, Pipeline, Precision, Request, Residency, Result,
};
use candle_core::{Device, Tensor};

/// The variance `gamma`² of the next level's noise is fresh, the rest is the predicted noise: 1 is LCM without its
/// boundary scalings, 0 is DDIM.
#[derive(Debug)]
struct Partial {
    gamma: f64,
}

impl Sampler for Partial {
    fn sample(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, &Step { at, next, .. }) in run.steps().iter().enumerate() {
            let denoised = run.denoise(i, &x)?;
            let predicted = ((x - (&denoised * at.alpha)?)? / at.sigma)?;
            let kept = (predicted * (1.0 - self.gamma.powi(2)).sqrt())?;
            let noise = (kept + (run.noise_like(&denoised)? * self.gamma)?)?;
            x = next.add_noise(&denoised, &noise)?;
        }
        Ok(x)
    }
}

fn main() -> Result<()> {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let models = Models::open(&Files::embedded())?;
    let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::KeepAll);
    let mut request = Request::new("a red circle moving down on a white background");
    request.sampling.seed = Some(1);
    for gamma in [0.0, 0.5, 1.0] {
        pipeline.set_sampler(Box::new(Partial { gamma }));
        let (mut frames, mut silent) = (Vec::new(), |_: Event| Ok(()));
        let prepared = pipeline.prepare(&request, &Inputs::default())?;
        pipeline.generate(&prepared, &mut silent, &mut &mut frames)?;
        let sum: f64 = frames.iter().flat_map(|frame| frame.iter()).map(|v| f64::from(*v)).sum();
        let mean = sum / (frames.len() * frames[0].len()) as f64;
        println!("gamma {gamma}: {} frames, mean brightness {mean:.1} of 255", frames.len());
    }
    Ok(())
}
