//! The `vae` stage: training of the autoencoder.

use candle_core::{DType, Tensor};

use super::{Task, normal, sub_weights};
use crate::models::vae::{AutoencoderKl, VaeConfig};
use crate::rng::Uniform;
use crate::train::data::Clips;
use crate::train::places::Places;
use crate::train::plan::Plan;
use crate::train::{Compute, Network, Vars, Weights, builder, files, fresh, variables};
use crate::{Result, Stop};

pub(super) struct Vae {
    vars: Vars,
    vae: Network<AutoencoderKl>,
    config: VaeConfig,
    clips: Clips,
    plan: Plan,
    compute: Compute,
}

impl Vae {
    pub(super) fn new(plan: &Plan, clips: Clips, compute: &Compute) -> Result<Self> {
        let config = plan.vae.config.clone();
        let make = |vb| AutoencoderKl::new(&config, &vb);
        let vars = variables(&fresh(make, plan.seed, |_| false, &compute.device)?)?;
        let (weights, sizes) = (sub_weights(&vars, ""), config.clone());
        let make =
            move |compute: &Compute| AutoencoderKl::new(&sizes, &builder(&[&weights], compute));
        let vae = Network::new(compute, make)?;
        Ok(Self { vars, vae, config, clips, plan: plan.clone(), compute: compute.clone() })
    }

    fn images(&self, random: &mut Uniform, count: usize) -> Result<Tensor> {
        let mut draw = || (random.below(self.clips.len()), random.below(self.plan.frames));
        let chosen: Vec<(usize, usize)> = (0..count).map(|_| draw()).collect();
        self.clips.images(&chosen, &self.compute.device)
    }
}

impl Task for Vae {
    fn vars(&self) -> &Vars {
        &self.vars
    }

    fn loss(&self, random: &mut Uniform) -> Result<Tensor> {
        let stage = &self.plan.vae;
        let x = self.images(random, stage.course.batch)?;
        let vae = self.vae.get()?;
        let stop = &self.compute.stop;
        let posterior = vae.encode(&self.compute.narrow(&x)?, stop)?;
        let (mean, log_variance) =
            (posterior.mean.to_dtype(DType::F32)?, posterior.log_variance.to_dtype(DType::F32)?);
        let noise = normal(random, mean.dims(), &self.compute.device)?;
        let deviation = (&log_variance * 0.5)?.exp()?;
        let z = (&mean + (deviation * noise)?)?;
        let y = vae.decode(&self.compute.narrow(&z)?, stop)?;
        let d = (y.to_dtype(DType::F32)? - &x)?;
        let weight = ((foreground(&x)? * stage.emphasis)? + 0.6)?;
        let weighted = (d.sqr()? + (d.abs()? * 0.3)?)?.broadcast_mul(&weight)?.mean_all()?;
        let divergence =
            ((mean.sqr()? + log_variance.exp()?)? - (&log_variance + 1.0)?)?.mean_all()?;
        Ok((weighted + (divergence * (0.5 * stage.divergence))?)?)
    }

    fn write(&self, average: &Weights, places: &Places) -> Result<()> {
        let vae = AutoencoderKl::new(
            &self.config,
            &builder(&[average], &Compute::exact(&self.compute.device)),
        )?;
        let x = self.images(&mut Uniform::part(self.plan.seed, u64::MAX), 64)?;
        let z = vae.encode(&x, &Stop::default())?.mean.flatten_all()?.to_vec1::<f32>()?;
        let count = z.len().max(1) as f64;
        let mean = z.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
        let variance = z.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
        let scaling_factor = self.plan.vae.deviation / variance.sqrt().max(1e-6);
        let config = VaeConfig { scaling_factor, ..self.config.clone() };
        files::write_vae(&places.base, &config, self.plan.side, average)
    }
}

/// Distance of each pixel from its image's median colour, `(batch, 1, height, width)` in `[0, 1]`.
fn foreground(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let area = height * width;
    let mut out = Vec::with_capacity(batch * area);
    for image in values.chunks_exact(channels * area) {
        let typical: Vec<f32> = image
            .chunks_exact(area)
            .map(|plane| {
                let mut plane = plane.to_vec();
                let middle = plane.len() / 2;
                *plane.select_nth_unstable_by(middle, f32::total_cmp).1
            })
            .collect();
        out.extend((0..area).map(|i| {
            let far = |(c, typical): (usize, &f32)| (image[c * area + i] - typical).abs();
            let most = typical.iter().enumerate().map(far).fold(0.0, f32::max);
            // A sixteenth of the range already counts as 1.
            (8.0 * most).min(1.0)
        }));
    }
    Ok(Tensor::from_vec(out, (batch, 1, height, width), x.device())?)
}
