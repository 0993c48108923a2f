//! A sampler of one's own: Heun's method, two questions a step, asked of anything that denoises.
//! `cargo run --release --example custom_sampler`

#![allow(clippy::print_stdout)]

use animatelcm::Result;
use animatelcm::rng::{Noise, RngKind};
use animatelcm::sampler::{Denoiser, Observer, PlanSettings, Progress, Sampler, SamplerKind, Step};
use animatelcm::schedule::{BetaSchedule, NoiseLevel, NoiseSchedule};
use candle_core::{Device, Tensor};

/// Karras et al. (2022), algorithm 1: the mean of the slopes at both ends of a step.
struct Heun;

impl Sampler for Heun {
    fn sample(
        &self,
        denoiser: &mut dyn Denoiser,
        mut x: Tensor,
        steps: &[Step],
        _: &mut Noise,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        for (step, &Step { at, next }) in steps.iter().enumerate() {
            let denoised = denoiser.denoise(&x, at)?;
            observer.step(Progress { step, steps: steps.len(), at, denoised: &denoised })?;
            let scaled = (x / at.alpha)?;
            let mut slope = ((&scaled - denoised)? / at.ratio())?;
            let stride = next.ratio() - at.ratio();
            if next.ratio() > 0.0 {
                let euler = (&scaled + (&slope * stride)?)?;
                let denoised = denoiser.denoise(&(&euler * next.alpha)?, next)?;
                slope = ((slope + ((euler - denoised)? / next.ratio())?)? / 2.0)?;
            }
            x = ((scaled + (slope * stride)?)? * next.alpha)?;
        }
        Ok(x)
    }
}

fn main() -> Result<()> {
    let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000)?;
    // Of normally distributed latents the best guess is known. A network's is `pipeline::denoiser::Guided`.
    let deviation = 0.5f64;
    let mut normal = |x: &Tensor, at: NoiseLevel| {
        let variance = (at.alpha * deviation).powi(2) + at.sigma.powi(2);
        Ok((x * (at.alpha * deviation.powi(2) / variance))?)
    };
    for (name, sampler) in [("euler", SamplerKind::Euler.build()), ("heun", Box::new(Heun) as _)] {
        let settings = PlanSettings { steps: 50, ..PlanSettings::default() };
        let plan = SamplerKind::Euler.plan(&schedule, &settings)?;
        let mut noise = Noise::new(RngKind::Cpu, 42);
        let x = (noise.latents((1, 16, 4, 8, 8), &Device::Cpu)? * plan.initial_scale)?;
        let x = sampler.sample(&mut normal, x, &plan.steps, &mut noise, &mut ())?;
        let found = x.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt();
        println!("{name}: deviation {found:.3}, should be near {deviation}");
    }
    Ok(())
}
