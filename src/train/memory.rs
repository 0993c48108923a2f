//! Memory estimate of a stage.

use candle_core::Device;

use super::is_spatial_module;
use super::plan::{Data, Plan};
use super::run::{at_once, course};
use super::stages::Stage;
use crate::models::clip::TextEncoder;
use crate::models::unet::UNet;
use crate::models::vae::AutoencoderKl;
use crate::weights::random::inventory;
use crate::{Error, Result};

/// Values held by a pass and its gradients per value of the UNet's first stage's output. Measured peaks of the preset
/// `pocket` are about nine tenths of the estimate.
const UNET_VALUES: f64 = 175.0;

/// [`UNET_VALUES`] with motion modules.
const MOTION_VALUES: f64 = 350.0;

/// [`UNET_VALUES`] of the autoencoder, per pixel and channel of its first stage.
const VAE_VALUES: f64 = 58.0;

/// Memory of the program itself, in bytes.
const PROGRAM: u64 = 64 << 20;

/// Approximate peak memory of a stage, in bytes.
///
/// # Errors
///
/// When networks of the plan's sizes cannot be built.
pub fn memory(stage: Stage, plan: &Plan, device: &Device) -> Result<u64> {
    let course = course(stage, plan);
    let at_once = at_once(&course, device) as f64;
    let area = ((plan.side / plan.vae.config.factor()) as f64).powi(2);
    let (frames, unet_values) = match stage {
        Stage::Motion | Stage::Lcm | Stage::I2v => (plan.frames, MOTION_VALUES),
        // The network beside it is at most a half with motion modules of its own.
        Stage::Adapt => (plan.frames, 1.5 * MOTION_VALUES),
        _ => (1, UNET_VALUES),
    };
    let images = course.batch as f64 * at_once * frames as f64;
    let first = |widths: &[usize]| widths.first().copied().unwrap_or(0) as f64;
    let values = if stage == Stage::Vae {
        let width = first(&plan.vae.config.block_out_channels);
        images * (plan.side as f64).powi(2) * width * VAE_VALUES
    } else {
        images * area * first(&plan.base.unet.block_out_channels) * unet_values
    };
    let clips = match &plan.data {
        Data::Procedural(count) => *count as f64,
        Data::Folder(_) => 0.0,
    };
    // The latents exist twice while their cache is written.
    let channels = plan.vae.config.latent_channels as f64;
    let latents =
        if stage == Stage::Vae { 0.0 } else { 2.0 * clips * plan.frames as f64 * area * channels };
    let (learned, frozen) = weights(stage, plan)?;
    // Trained weights also have an EMA, two moments, the moments' successor, and a gradient per pass and in total.
    let weights = learned * (6.0 + at_once) + frozen * at_once.max(2.0);
    // The cast saturates.
    Ok(PROGRAM.saturating_add((4.0 * (values + latents + weights)) as u64))
}

/// Number of trained and of frozen weights of a stage.
fn weights(stage: Stage, plan: &Plan) -> Result<(f64, f64)> {
    let complain =
        |part: &'static str| move |e: Error| Error::request("config", format!("`{part}`: {e}"));
    let size = |shape: &Vec<usize>| shape.iter().map(|n| *n as f64).product::<f64>();
    if stage == Stage::Vae {
        let shapes = inventory(|vb| AutoencoderKl::new(&plan.vae.config, &vb));
        let shapes = shapes.map_err(complain("vae.config"))?;
        return Ok((shapes.values().map(size).sum(), 0.0));
    }
    let sizes = &plan.base.unet;
    let unet = inventory(|vb| UNet::new(sizes, &vb)).map_err(complain("base.unet"))?;
    let text = inventory(|vb| TextEncoder::new(&plan.base.text, &vb));
    let text = text.map_err(complain("base.text"))?;
    let all = unet.values().chain(text.values()).map(size).sum::<f64>();
    let lora: f64 = unet
        .iter()
        .filter(|(name, _)| name.strip_suffix(".weight").is_some_and(is_spatial_module))
        .map(|(_, shape)| {
            let outputs = shape.first().map_or(0.0, |n| *n as f64);
            plan.lora.rank as f64 * (outputs + size(shape) / outputs.max(1.0))
        })
        .sum();
    // Two attention layers of four matrices, a feed-forward layer of twelve, and two projections, after every
    // residual block.
    let places = 2.0 * sizes.layers_per_block as f64 + 1.0;
    let squares: f64 = sizes.block_out_channels.iter().map(|n| (*n as f64).powi(2)).sum();
    let last = sizes.block_out_channels.last().map_or(0.0, |n| *n as f64);
    let motion = 22.0 * (places * squares + last.powi(2));
    Ok(match stage {
        Stage::Vae | Stage::Base => (all, 0.0),
        // Changed weights exist twice.
        Stage::Lora => (lora, 2.0 * all),
        Stage::Motion => (motion, all),
        Stage::Lcm if plan.lcm.joint => (lora + motion, 2.0 * all + motion),
        Stage::Lcm => (motion, 2.0 * all + motion + lora),
        // The encoder is a sixth of the modules; the target has both again.
        Stage::I2v => (7.0 / 6.0 * motion, all + lora + 7.0 / 6.0 * motion),
        // Beside it the network, its two changed copies and the target.
        Stage::Adapt => (lora, 2.0 * all + motion + 4.0 * (all / 2.0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_counted() {
        // Published sizes: 83.7 million, 859.5 and 123.1 million, and 417 in motion modules without the mid block.
        let text = "side = 512\ndata = { procedural = 4 }";
        let plan = Plan::from_toml("sd15", text).unwrap();
        let millions = |stage| weights(stage, &plan).unwrap().0 / 1e6;
        assert!((millions(Stage::Vae) - 83.65).abs() < 0.1, "{}", millions(Stage::Vae));
        assert!((millions(Stage::Base) - 982.6).abs() < 0.5, "{}", millions(Stage::Base));
        let motion = millions(Stage::Motion);
        assert!((415.0..480.0).contains(&motion), "{motion}");
    }
}
