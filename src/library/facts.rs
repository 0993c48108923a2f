//! What is known of models before they are built: sizes, bytes, work.

use std::path::Path;

use super::{
    Base, Models, OpenDepth, OpenImageEncoder, OpenIpAdapter, OpenSideNetwork, SideConfig, VaeSizes,
};
use crate::adapters::lora::LoraReport;
use crate::device::Precision;
use crate::media::resize::Fit;
use crate::models::clip::VisionConfig;
use crate::models::i2v_encoder::I2vEncoderConfig;
use crate::models::image_projection::IpAdapterConfig;
use crate::models::unet::UNetConfig;
use crate::models::vae::VaeConfig;
use crate::request::{Request, Source as ClipSource};
use crate::sampler::{SamplerKind, Tcd};
use crate::schedule::{self, Spacing};
use crate::text::inversion::Inversion;
use crate::weights::{Checkpoint, Source};
use crate::{Error, Result};

/// Factor of the positions of AnimateLCM-I2V's encoder in the published code.
const MOTION_SCALE: f64 = 0.8;

/// Steps of AnimateLCM's teacher.
const ANIMATE_LCM_STEPS: usize = 100;

impl Models {
    /// All files that weights come from.
    pub fn sources(&self) -> Vec<Source> {
        let archives = self.checkpoint.archives().iter().map(|archive| archive.source().clone());
        let loras = self.loras.iter().map(|open| open.lora.archive().source().clone());
        let embeddings = self.embeddings.iter().map(|inversion| inversion.source().clone());
        let controls = self.side_networks.values().flat_map(OpenSideNetwork::sources);
        let ip_adapters = self.ip_adapters.values().flat_map(OpenIpAdapter::sources);
        let image_encoders = self.image_encoders.values().flat_map(OpenImageEncoder::sources);
        let depth = self.depth.iter().flat_map(OpenDepth::sources);
        let beside = controls.chain(ip_adapters).chain(image_encoders).chain(depth);
        let mut sources: Vec<Source> = Vec::new();
        for source in archives.chain(loras).chain(embeddings).chain(beside) {
            // A LoRA's file may hold embeddings, too.
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        sources
    }

    /// Bytes that the network for hints of depth needs, with its intermediate results; 0 if there is none.
    pub(crate) fn depth_bytes(&self, precision: Precision) -> u64 {
        self.depth.as_ref().map_or(0, |depth| {
            depth.bytes(precision.text).saturating_add(depth.config.work_bytes())
        })
    }

    /// The open base files: names, shapes, what was left aside.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What became of each LoRA.
    pub fn adapters(&self) -> &[LoraReport] {
        &self.adapters
    }

    /// The textual inversions.
    pub fn embeddings(&self) -> &[Inversion] {
        &self.embeddings
    }

    /// The textual inversions with files of their own, without those that LoRAs bring along.
    pub fn own_embeddings(&self) -> impl Iterator<Item = &Inversion> {
        let is_bundled = |inversion: &Inversion| {
            self.loras.iter().any(|open| open.lora.archive().source() == inversion.source())
        };
        self.embeddings.iter().filter(move |inversion| !is_bundled(inversion))
    }

    /// Returns whether the base is the small model inside the program, which knows the words of
    /// [`procedural`](crate::procedural) captions only.
    pub fn is_embedded(&self) -> bool {
        matches!(self.base, Base::Embedded)
    }

    /// The UNet's sizes.
    pub fn unet_config(&self) -> &UNetConfig {
        &self.unet
    }

    /// The sizes of AnimateLCM-I2V's image encoder, where the motion modules have one: such a model starts from an image.
    pub fn i2v_encoder_config(&self) -> Option<&I2vEncoderConfig> {
        self.i2v.as_ref()
    }

    /// Pixels (width, height) of the clips that the model was trained on.
    pub fn native_size(&self) -> (usize, usize) {
        let side = self.unet.sample_size * self.factor();
        (side, side)
    }

    /// How many pixels a latent is wide.
    pub fn factor(&self) -> usize {
        self.vae.factor()
    }

    /// Returns whether the latents are those of Stable Diffusion 1.5, whose colours are known without a decoder: of four
    /// channels and scaled by 0.18215.
    pub fn has_sd_latents(&self) -> bool {
        match &self.vae {
            VaeSizes::Kl(config) => {
                let published = VaeConfig::default();
                let scale = (config.scaling_factor - published.scaling_factor).abs();
                config.latent_channels == published.latent_channels && scale < 1e-4
            }
            VaeSizes::Tiny(_) => false,
        }
    }

    /// The size in pixels of the images that the autoencoder was trained on, which is that of its tiles.
    pub fn tile_size(&self) -> usize {
        match &self.vae {
            VaeSizes::Kl(config) => config.sample_size,
            VaeSizes::Tiny(_) => VaeConfig::default().sample_size,
        }
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.unet.in_channels
    }

    /// Channels of the decoder's last stage.
    pub fn decoder_width(&self) -> usize {
        match &self.vae {
            VaeSizes::Kl(config) => config.block_out_channels[0],
            VaeSizes::Tiny(config) => config.decoder_block_out_channels[0],
        }
    }

    /// Channels of the encoder's first stage.
    pub fn encoder_width(&self) -> usize {
        match &self.vae {
            VaeSizes::Kl(config) => config.block_out_channels[0],
            VaeSizes::Tiny(config) => config.encoder_block_out_channels[0],
        }
    }

    /// The most frames that the motion modules can tell apart.
    pub fn longest_clip(&self) -> Option<usize> {
        self.unet.motion.as_ref().map(|motion| motion.motion_max_seq_length)
    }

    /// The scheduler's configuration for a request: the model's, but for what the request says.
    pub fn scheduler(&self, request: &Request) -> schedule::Config {
        let (asked, own) = (&request.schedule, &self.scheduler);
        let is_betas_asked =
            asked.beta_schedule.is_some() || asked.beta_start.is_some() || asked.beta_end.is_some();
        schedule::Config {
            beta_schedule: asked.beta_schedule.unwrap_or(own.beta_schedule),
            beta_start: asked.beta_start.unwrap_or(own.beta_start),
            beta_end: asked.beta_end.unwrap_or(own.beta_end),
            trained_betas: own.trained_betas.clone().filter(|_| !is_betas_asked),
            prediction_type: asked.prediction.unwrap_or(own.prediction_type),
            rescale_betas_zero_snr: asked.zero_snr.unwrap_or(own.rescale_betas_zero_snr),
            set_alpha_to_one: asked.set_alpha_to_one.unwrap_or(own.set_alpha_to_one),
            steps_offset: asked.steps_offset.unwrap_or(own.steps_offset),
            ..own.clone()
        }
    }

    /// Steps of the teacher whose timesteps LCM takes.
    pub fn original_inference_steps(&self, request: &Request) -> usize {
        let asked = request.sampling.original_inference_steps;
        asked.or(self.scheduler.original_inference_steps).unwrap_or(ANIMATE_LCM_STEPS)
    }

    /// Fills in what a request leaves to the model.
    ///
    /// # Errors
    ///
    /// When the model's spacing is not known, or the model does not start from what the request does.
    pub(crate) fn complete(&self, request: &mut Request) -> Result<()> {
        self.complete_source(request.source.as_mut())?;
        let (width, height) = self.native_size();
        request.size.width.get_or_insert(width);
        request.size.height.get_or_insert(height);
        let config = self.scheduler(request);
        if config.beta_end < config.beta_start {
            let (first, last) = (config.beta_start, config.beta_end);
            let reason = format!("must be at least the first beta, {first}, got {last}");
            return Err(Error::request("beta-end", reason));
        }
        request.sampling.spacing = self.spacing(request, &config)?;
        if request.sampling.sampler.has_teacher() {
            let steps = self.original_inference_steps(request);
            request.sampling.original_inference_steps = Some(steps);
        }
        if request.sampling.sampler == SamplerKind::Tcd {
            request.sampling.tcd_gamma.get_or_insert(Tcd::GAMMA);
        }
        let asked = &mut request.schedule;
        // Betas that are listed one by one are the model's alone.
        if config.trained_betas.is_none() {
            asked.beta_schedule = Some(config.beta_schedule);
            asked.beta_start = Some(config.beta_start);
            asked.beta_end = Some(config.beta_end);
        }
        asked.prediction = Some(config.prediction_type);
        asked.zero_snr = Some(config.rescale_betas_zero_snr);
        asked.set_alpha_to_one = Some(config.set_alpha_to_one);
        asked.steps_offset = Some(config.steps_offset);
        Ok(())
    }

    /// AnimateLCM-I2V starts from noise and is told of an image, any other model from a noised image or video.
    fn complete_source(&self, source: Option<&mut ClipSource>) -> Result<()> {
        let Some(config) = &self.i2v else {
            let Some(source) = source else { return Ok(()) };
            if let Some(field) = source.i2v_only() {
                let error = Error::request(field, "the motion modules have no image encoder");
                return Err(error.with_hint("AnimateLCM-I2V's have one: --model animatelcm-i2v"));
            }
            source.strength.get_or_insert(ClipSource::STRENGTH);
            source.fit.get_or_insert_default();
            if source.keeping().is_some() {
                source.overlay.get_or_insert(true);
            }
            return Ok(());
        };
        let Some(source) = source else {
            let reason = "is missing: the motion modules are those of AnimateLCM-I2V";
            return Err(Error::request("image", reason).with_hint("--image FILE"));
        };
        if source.video.is_some() {
            let reason =
                "the motion modules are those of AnimateLCM-I2V, which start from an image";
            return Err(Error::request("video", reason)
                .with_hint("--image FILE, or --motion animatelcm-t2v for videos"));
        }
        if let Some(field) = source.keeping() {
            let reason = "AnimateLCM-I2V starts from noise and is only told of the image";
            return Err(Error::request(field, reason)
                .with_hint("--motion animatelcm-t2v keeps frames of an image"));
        }
        if let Some(weights) = &source.insertion_weights
            && weights.len() != config.channels.len()
        {
            let (given, blocks) = (weights.len(), config.channels.len());
            let reason = format!("{given} given for {blocks} down blocks");
            return Err(Error::request("insertion-weights", reason));
        }
        source.fit.get_or_insert(Fit::Cover);
        source.motion_scale.get_or_insert(MOTION_SCALE);
        source.color_match.get_or_insert(true);
        Ok(())
    }

    /// How timesteps are spread: as Stable Diffusion 1.5 was published, and for a schedule that ends in pure noise as
    /// the model says, because it has to be started from there. LCM and TCD take no spacing.
    fn spacing(&self, request: &Request, config: &schedule::Config) -> Result<Option<Spacing>> {
        let leading = Spacing::Leading { offset: config.steps_offset };
        let is_own = self.scheduler.rescale_betas_zero_snr;
        match (request.sampling.spacing, request.sampling.sampler) {
            (None, sampler) if sampler.has_teacher() => Ok(None),
            (Some(Spacing::Leading { .. }), _) if request.schedule.steps_offset.is_some() => {
                Ok(Some(leading))
            }
            (Some(spacing), _) => Ok(Some(spacing)),
            (None, _) => match (config.rescale_betas_zero_snr, is_own) {
                (false, _) => Ok(Some(leading)),
                (true, false) => Ok(Some(Spacing::Trailing)),
                (true, true) => config.spacing().map(Some),
            },
        }
    }

    /// The networks beside the UNet that requests may use, by name: what they are, and their sizes.
    pub fn side_networks(&self) -> impl Iterator<Item = (&str, &SideConfig)> {
        self.side_networks.iter().map(|(name, net)| (name.as_str(), net.config()))
    }

    /// What the network of that name is, if there is one.
    pub fn side_config(&self, name: &str) -> Option<&SideConfig> {
        self.side_networks.get(name).map(OpenSideNetwork::config)
    }

    /// The names of the IP-Adapters that requests may use.
    pub fn ip_adapters(&self) -> impl Iterator<Item = &str> {
        self.ip_adapters.keys().map(String::as_str)
    }

    /// An IP-Adapter's sizes, its image encoder and that one's sizes.
    ///
    /// # Errors
    ///
    /// When none of that name was opened.
    pub fn ip_adapter_config(
        &self,
        name: &str,
    ) -> Result<(&IpAdapterConfig, &Path, &VisionConfig)> {
        let adapter = self.open_ip_adapter(name)?;
        let encoder = self.open_image_encoder(&adapter.encoder)?;
        Ok((&adapter.config, &adapter.encoder, &encoder.config))
    }
}
