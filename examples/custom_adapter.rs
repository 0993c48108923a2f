//! A change of weights of one's own: how much motion modules count, and with them how alike frames are.
//! `cargo run --release --example custom_adapter`

#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;
use std::sync::Arc;

use animatelcm::{
    Component, DtypeChoice, Event, Files, Inputs, Models, Pipeline, Precision, Request, Residency,
    Result, WeightPatch,
};
use candle_core::{Device, Tensor};

/// Multiplies what motion modules add to the images by 1 plus its strength.
#[derive(Debug)]
struct MotionGain(BTreeSet<String>);

impl WeightPatch for MotionGain {
    fn label(&self) -> &'static str {
        "motion gain"
    }

    fn names(&self) -> &BTreeSet<String> {
        &self.0
    }

    fn apply(&self, _: &str, weight: &Tensor, strength: f64) -> Result<Tensor> {
        Ok((weight * (1.0 + strength))?)
    }
}

fn main() -> Result<()> {
    let mut request = Request::new("a red circle moving down on a white background");
    request.sampling.seed = Some(1);
    request.size.frames = Some(8);
    for strength in [-1.0, 0.0, 0.5] {
        let mut models = Models::open(&Files::embedded())?;
        let names = models.checkpoint().names(Component::UNet);
        let names =
            names.filter(|name| name.contains(".motion_modules.") && name.contains(".proj_out."));
        let gain = MotionGain(names.map(str::to_owned).collect());
        models.add_patch(Component::UNet, Arc::new(gain), strength);
        let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
        let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
        let (mut frames, mut silent) = (Vec::new(), |_: Event| Ok(()));
        let prepared = pipeline.prepare(&request, &Inputs::default())?;
        pipeline.generate(&prepared, &mut silent, &mut &mut frames)?;
        let pixels = frames.windows(2).flat_map(|pair| pair[0].iter().zip(pair[1].iter()));
        let moved: Vec<f64> = pixels.map(|(a, b)| f64::from(a.abs_diff(*b))).collect();
        let mean = moved.iter().sum::<f64>() / moved.len() as f64;
        println!("gain {}: neighbouring frames differ by {mean:.2} of 255", 1.0 + strength);
    }
    Ok(())
}
