//! What a stage will need, told before it starts.

use candle_core::Device;

use super::plan::Plan;
use super::run::{at_once, course};
use super::stages::Stage;

/// Values that a pass and its gradients hold for every value of the UNet's first stage's output. Measured peaks of the
/// preset `pocket` lie at about nine tenths of what comes out.
const UNET_VALUES: f64 = 175.0;

/// The same with motion modules.
const MOTION_VALUES: f64 = 350.0;

/// The same for the autoencoder, for every pixel and channel of its first stage.
const VAE_VALUES: f64 = 58.0;

/// Bytes of the program.
const PROGRAM: u64 = 64 << 20;

/// Bytes that a stage will need at its worst moment, about; without the weights of its networks, if those come from
/// files that do not exist yet.
pub fn memory(stage: Stage, plan: &Plan, device: &Device) -> u64 {
    let course = course(stage, plan);
    let factor = plan.vae.config.factor();
    let area = (plan.side / factor).pow(2);
    let (frames, unet_values) = match stage {
        Stage::Motion | Stage::Lcm => (plan.frames, MOTION_VALUES),
        _ => (1, UNET_VALUES),
    };
    let images = (course.batch * at_once(&course, device) * frames) as f64;
    let values = if stage == Stage::Vae {
        let width = plan.vae.config.block_out_channels.first().copied().unwrap_or(0);
        images * (plan.side * plan.side * width) as f64 * VAE_VALUES
    } else {
        let width = plan.base.unet.block_out_channels.first().copied().unwrap_or(0);
        images * (area * width) as f64 * unet_values
    };
    let clips = match &plan.data {
        super::plan::Data::Procedural(count) => *count,
        super::plan::Data::Folder(_) => 0,
    };
    // While a cache is written, the latents are there twice.
    let channels = plan.vae.config.latent_channels;
    let latents = if stage == Stage::Vae { 0 } else { 8 * clips * plan.frames * area * channels };
    PROGRAM + latents as u64 + (4.0 * values) as u64
}
