//! What a run will need, worked out before it starts.

use std::collections::BTreeSet;

use candle_core::{DType, Device};

use super::denoiser::Guidance;
use super::images::AdapterImages;
use crate::device::Precision;
use crate::library::{Models, Part, SideConfig};
use crate::request::{Loop, Request, Upscale};
use crate::{Error, Result};

/// Bytes that a run will need at its worst moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Weights that are loaded during denoising.
    pub weights: u64,
    /// Intermediate results of one pass of the UNet over one clip.
    pub pass: u64,
    /// Clips in a batched pass: one more with guidance by a negative prompt, and with perturbed attention.
    pub clips: u64,
    /// What is kept of all frames of a clip in context windows: latents, their sums, embedded hints; and of a clip that
    /// goes back again the decoded frames.
    pub clip: u64,
    /// Intermediate results of decoding.
    pub decode: u64,
    /// The autoencoder's encoder and its intermediate results, which are gone before the rest is loaded; 0 where
    /// neither a source nor a hint is encoded.
    pub encode: u64,
    /// The same, where frames are encoded while the rest is loaded; else 0.
    pub encode_again: u64,
    /// What is needed whatever the size of the clip: the program itself, the largest kernel while it is packed, and
    /// what convolutions transform of their input.
    pub fixed: u64,
    /// What is loaded before denoising, to look at images, and not needed then.
    pub image_encoder: u64,
}

/// Values alive at the worst moment of a UNet pass, for every value of the first stage's output: the skips, a
/// feed-forward layer's eightfold width and its result, convolution buffers. Measured (see benches/RESULTS.md).
const UNET_VALUES: f64 = 28.0;

/// Values of a ControlNet's residuals, for every value of the first stage's output: counted for the widths of Stable
/// Diffusion 1.5. Those of a second one come before they are added up.
const RESIDUAL_VALUES: f64 = 5.5;

/// The same for the features of a T2I-Adapter. They are kept for the whole run, and scaled once more for a pass.
const FEATURE_VALUES: f64 = 1.9;

/// The same for what AnimateLCM-I2V's encoder holds at its worst moment, at full size: positions and what comes of them,
/// the input of a convolution, its output and their sum.
const I2V_VALUES: f64 = 5.0;

/// Copies of all latents in f32 that samplers and blending hold at once, an upper bound.
const LATENT_COPIES: f64 = 12.0;

/// Copies of all latents in f64 that FreeInit's transform holds at once, an upper bound.
const SPECTRA: f64 = 10.0;

/// Values alive at the worst moment of encoding, for every value of the encoder's first stage's output.
const ENCODER_VALUES: f64 = 5.0;

/// The same for the decoder, for every value of its last stage's output.
const DECODER_VALUES: f64 = 8.0;

/// Values of what is kept of tiles, for every pixel: rows of tiles, what they are joined to, and a copy.
const TILED_VALUES: f64 = 12.0;

/// Bytes of the program, the tokenizer's tables and the like.
const PROGRAM: usize = 48 << 20;

/// Bytes of transformed inputs that convolutions on the CPU hold at once, twice: a buffer that grows is copied.
const TRANSFORMED: usize = 32 << 20;

/// Bytes in which a thread holds sums and transformed weights; an upper bound.
const SUMS: usize = 8 << 20;

/// Values that a prompt of its own takes for each frame of a pass: states, and the keys and values of the widest
/// cross-attention. 0 where a clip has one prompt, whose states count little.
fn context_values(models: &Models, request: &Request) -> f64 {
    /// Tokens of a chunk.
    const TOKENS: f64 = 77.0;
    /// Bytes of prompt that a chunk holds at least, as English words are.
    const BYTES: usize = 75 * 3;
    let Ok(keys) = request.prompt.keys() else { return 0.0 };
    if keys.len() < 2 {
        return 0.0;
    }
    let longest = keys.iter().map(|key| key.text.len()).max().unwrap_or(0);
    let longest = longest.max(request.prompt.negative.len());
    let unet = models.unet_config();
    let widest = unet.block_out_channels.iter().max().copied().unwrap_or(0);
    TOKENS * longest.div_ceil(BYTES).max(1) as f64 * (unet.cross_attention_dim + 2 * widest) as f64
}

/// A product that stays at the largest number where it would go beyond.
fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |all, factor| all.saturating_mul(*factor as u64))
}

impl Plan {
    /// For a request at `size` (width, height) in pixels.
    pub fn new(
        models: &Models,
        precision: Precision,
        device: &Device,
        request: &Request,
        size: (usize, usize),
    ) -> Self {
        // Kernels for the CPU compute in f32 where its instructions know no other format.
        let bytes = |dtype: DType| {
            let size = dtype.size_in_bytes();
            (if device.is_cpu() { size.max(4) } else { size }) as f64
        };
        // Products are of floats, and whole numbers stay at the largest: what is asked for may be absurd.
        let area = |(width, height): (usize, usize)| width as f64 * height as f64;
        let latents = area((size.0 / models.factor(), size.1 / models.factor()));
        let first = models.unet_config().block_out_channels[0];
        let kinds = request.controls.iter().filter_map(|c| models.side_config(&c.model));
        let (adapters, others): (Vec<_>, Vec<_>) =
            kinds.partition(|config| matches!(config, SideConfig::T2iAdapter(_)));
        let is_i2v = models.i2v_encoder_config().is_some();
        let features = match adapters.len() + usize::from(is_i2v) {
            0 => 0.0,
            // Those of a second one come before they are added up.
            count => (count + count.min(2)) as f64 * FEATURE_VALUES,
        };
        let residuals = others.len().min(2) as f64 * RESIDUAL_VALUES;
        let frames = request.frames() as f64;
        // A completed request with context windows says how long they are.
        let at_once = request.windows.length.map_or(frames, |length| frames.min(length as f64));
        let values = at_once * latents * first as f64 * (UNET_VALUES + residuals + features)
            + at_once * context_values(models, request);
        // As if each frame had a hint of its own.
        let kept = frames
            * latents
            * first as f64
            * (others.len() as f64 + adapters.len() as f64 * FEATURE_VALUES);
        // Loaded before denoising; its features are counted with those of the pass.
        let image_encoder = if is_i2v {
            let values = at_once * latents * first as f64 * I2V_VALUES * bytes(precision.unet);
            models.bytes(&Part::I2vEncoder, precision).saturating_add(values as u64)
        } else {
            0
        };
        let has_depth = request
            .controls
            .iter()
            .any(|control| control.preprocess.is_some_and(|made| made.needs_network()));
        let depth = if has_depth { models.depth_bytes(precision) } else { 0 };
        let image_encoder = image_encoder.max(depth);
        let mut clip = 0.0;
        if request.windows.length.is_some() {
            let copies = frames * latents * models.latent_channels() as f64 * LATENT_COPIES;
            clip += copies * DType::F32.size_in_bytes() as f64 + kept * bytes(precision.unet);
        }
        if request.quality.free_init.is_some() {
            let values = frames * latents * models.latent_channels() as f64 * SPECTRA;
            clip += values * DType::F64.size_in_bytes() as f64;
        }
        if request.output.looping == Loop::PingPong {
            clip += frames * area(size) * 3.0;
        }
        // A request whose tiles are left to the model is not completed.
        let tiles = request.quality.vae_tiling.and_then(|tiling| tiling.size);
        let tile = tiles.map_or(size, |tile| (size.0.min(tile), size.1.min(tile)));
        // A second pass from pixels encodes the frames of the first while the rest is loaded.
        let is_again = request.quality.hires.is_some_and(|hires| hires.upscale == Upscale::Pixels);
        let is_encoded = is_again
            || request.source.is_some()
            || others.iter().any(|config| config.sees_latents());
        let encode = if is_encoded {
            let encoded = area(tile) * models.encoder_width() as f64 * ENCODER_VALUES;
            let values = (encoded * bytes(precision.vae)) as u64;
            models.bytes(&Part::VaeEncoder, precision).saturating_add(values)
        } else {
            0
        };
        // A decoder's last stages work at full size, the one before the last in twice the channels.
        let at_once = (64.0 * 64.0 / latents.max(1.0)).floor().clamp(1.0, frames.max(1.0));
        let mut decoded = area(tile) * at_once * models.decoder_width() as f64 * DECODER_VALUES;
        if tile != size {
            decoded += area(size) * at_once * TILED_VALUES;
        }
        // The way up begins with a convolution of twice the channels that it makes, which is packed from a copy.
        let deepest = models.unet_config().block_out_channels.iter().max().copied().unwrap_or(0);
        let kernel = product(&[2, deepest, deepest, 9]);
        let copies = if device.is_cpu() {
            let sums = product(&[SUMS, rayon::current_num_threads()]);
            kernel.saturating_mul(4).saturating_add(TRANSFORMED as u64).saturating_add(sums)
        } else {
            0
        };
        // Controls may share a network.
        let nets: BTreeSet<&str> = request.controls.iter().map(|c| c.model.as_str()).collect();
        let nets =
            nets.into_iter().map(|net| models.bytes(&Part::SideNetwork(net.to_owned()), precision));
        Self {
            weights: [Part::UNet, Part::Vae]
                .iter()
                .map(|part| models.bytes(part, precision))
                .chain(nets)
                .fold(0, u64::saturating_add),
            pass: (values * bytes(precision.unet)) as u64,
            clips: 1 + u64::from(request.is_guided()) + u64::from(request.quality.pag.is_some()),
            clip: clip as u64,
            decode: (decoded * bytes(precision.vae)) as u64,
            encode,
            encode_again: if is_again { encode } else { 0 },
            fixed: copies.saturating_add(PROGRAM as u64),
            image_encoder,
        }
    }

    /// With the images of the request's IP-Adapters: image encoders are loaded one at a time, then all adapters, and
    /// only the keys and values that come of the images stay.
    pub fn with_adapter_images(
        mut self,
        models: &Models,
        precision: Precision,
        request: &Request,
        given: &[AdapterImages],
    ) -> Result<Self> {
        let attentions = models.unet_config().cross_attentions()?;
        let width: usize = attentions.iter().map(|attention| attention.width).sum();
        let names: BTreeSet<&str> = request.ip_adapters.iter().map(|a| a.model.as_str()).collect();
        let bytes = |part| models.bytes(&part, precision);
        let adapters = names.iter().map(|name| bytes(Part::IpAdapter((*name).into()))).sum();
        self.image_encoder = self.image_encoder.max(adapters);
        for (adapter, given) in request.ip_adapters.iter().zip(given) {
            let (config, path, encoder) = models.ip_adapter_config(&adapter.model)?;
            self.image_encoder = self.image_encoder.max(bytes(Part::ImageEncoder(path.into())));
            let tokens = config.tokens(encoder.tokens());
            let values = product(&[2, given.images.len(), tokens, width]);
            let values = values.saturating_mul(self.clips);
            let kept = values.saturating_mul(precision.unet.size_in_bytes() as u64);
            self.fixed = self.fixed.saturating_add(kept);
        }
        Ok(self)
    }

    /// Bytes at the worst moment.
    pub fn total(&self, guidance: Guidance) -> u64 {
        let clips = match guidance {
            Guidance::Batched => self.clips,
            Guidance::TwoPasses => 1,
        };
        let values = self.pass.saturating_mul(clips).max(self.decode).max(self.encode_again);
        let steps = self.weights.saturating_add(values).saturating_add(self.clip);
        steps.max(self.encode).max(self.image_encoder).saturating_add(self.fixed)
    }

    /// How guidance is to be computed so that the run fits.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] when it does not fit either way. Nothing is refused where the free memory is unknown.
    pub fn choose(&self, available: Option<u64>) -> Result<Guidance> {
        let Some(available) = available else { return Ok(Guidance::Batched) };
        for guidance in [Guidance::Batched, Guidance::TwoPasses] {
            if self.total(guidance) <= available {
                return Ok(guidance);
            }
        }
        let needed = self.total(Guidance::TwoPasses);
        let error = Error::Memory { what: "the run".into(), needed, available };
        Err(if self.image_encoder > available {
            error.with_hint("the image encoder alone does not fit")
        } else if self.weights > available {
            error.with_hint(
                "the weights alone do not fit: try --dtype bf16, on the CPU --quantize int8, or a smaller model",
            )
        } else {
            error.with_hint("try fewer --frames, or a smaller --width and --height")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_sizes_stay_at_the_largest_number() {
        let most = u64::MAX;
        let plan = Plan {
            weights: most,
            pass: most,
            clips: 2,
            clip: most,
            decode: 1,
            encode: 0,
            encode_again: 0,
            image_encoder: 0,
            fixed: 9,
        };
        assert_eq!(plan.total(Guidance::Batched), most);
        assert!(plan.choose(Some(1 << 40)).is_err());
    }

    #[test]
    fn guidance_takes_two_passes_where_one_would_not_fit() {
        let plan = Plan {
            weights: 90,
            pass: 50,
            clips: 2,
            clip: 0,
            decode: 60,
            encode: 0,
            encode_again: 0,
            image_encoder: 0,
            fixed: 10,
        };
        assert_eq!(plan.choose(None).unwrap(), Guidance::Batched);
        assert_eq!(plan.choose(Some(200)).unwrap(), Guidance::Batched);
        assert_eq!(plan.choose(Some(199)).unwrap(), Guidance::TwoPasses);
        assert_eq!(plan.choose(Some(160)).unwrap(), Guidance::TwoPasses);
        let error = plan.choose(Some(159)).unwrap_err();
        assert_eq!(error.kind().exit_code(), 4);
        assert!(error.to_string().contains("160 bytes") && error.to_string().contains("159"));
        assert!(error.hint().unwrap().contains("--frames"));
        assert!(plan.choose(Some(89)).unwrap_err().hint().unwrap().contains("--dtype"));
        assert_eq!(Plan { clip: 7, ..plan }.total(Guidance::TwoPasses), 167);
        // What comes before denoising counts only where it needs more.
        assert_eq!(Plan { image_encoder: 150, ..plan }.total(Guidance::TwoPasses), 160);
        let large = Plan { image_encoder: 300, ..plan };
        assert_eq!(large.total(Guidance::Batched), 310);
        assert!(large.choose(Some(299)).unwrap_err().hint().unwrap().contains("image encoder"));
    }
}
