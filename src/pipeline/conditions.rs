//! What a run is conditioned on beside its prompts: hints, images, and conditioners of one's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};

use super::denoiser::{Guided, Settings};
use super::hints::Hint;
use super::states::States;
use super::{Observer, Pipeline, Prepared, lock};
use crate::adapters::ip_adapter::{ImageFeatures, ImagePrompt, UNetInfo};
use crate::adapters::{Conditioner, Pass};
use crate::library::SideNetwork;
use crate::media::tensor::from_rgb;
use crate::models::Predict;
use crate::models::unet::Injection;
use crate::rng::Noise;
use crate::{Error, Result};

impl Pipeline {
    /// The network with its prompts, `context` and perhaps a negative one.
    pub(super) fn guided<'a>(
        &self,
        unet: &'a dyn Predict,
        prepared: &Prepared,
        (context, negative): (States, Option<States>),
    ) -> Result<Guided<'a>> {
        let settings = Settings {
            prediction: self.models.scheduler(&prepared.request).prediction_type,
            dtype: self.precision.unet,
            motion_norm: prepared.request.sampling.motion_norm,
        };
        let request = &prepared.request;
        let mut guided = Guided::new(unet, settings, context)?
            .until(&self.stop)
            .with_free_u(request.quality.free_u)
            .perturb(prepared.perturbed.clone());
        if let Some(negative) = negative {
            guided = guided
                .guide(negative, request.sampling.cfg_scale, prepared.guidance)?
                .rescale(request.quality.guidance_rescale);
        }
        Ok(guided.computed(prepared.guidance))
    }

    /// Latents of the hints that have to be latents, `(hints, channels, height, width)` in f32, by the control's place
    /// in the request.
    ///
    /// Their noise has a generator of its own, seeded like that of the clip: diffusers draws it from torch's global
    /// one, and a control changes no other noise.
    pub(super) fn encode_hints(
        &self,
        prepared: &Prepared,
        hints: &[Hint],
        observer: &mut dyn Observer,
    ) -> Result<BTreeMap<usize, Tensor>> {
        let request = &prepared.request;
        let wanted = super::hints::of_latents(request, &self.models);
        let mut all = BTreeMap::new();
        if wanted.is_empty() {
            return Ok(all);
        }
        let encoder = self.vae_encoder(observer)?;
        let mut noise = Noise::new(request.sampling.rng, request.sampling.seed.unwrap_or_default());
        let factor = self.models.factor();
        let (height, width) = (prepared.height / factor, prepared.width / factor);
        for (i, control) in wanted {
            let Some(hint) = hints.get(i) else { continue };
            let shape = (hint.images.len(), self.models.latent_channels(), height, width);
            let drawn = match prepared.hint_noise.get(&control.name) {
                Some(given) if given.shape() == &shape.into() => given.clone(),
                Some(given) => {
                    let (name, got) = (&control.name, given.dims());
                    let reason = format!("`noise.control.{name}` is {got:?}, not {shape:?}");
                    return Err(Error::request("tensors-in", reason));
                }
                None => {
                    let count = shape.0 * shape.1 * shape.2 * shape.3;
                    Tensor::from_vec(noise.normal(count), shape, &Device::Cpu)?
                }
            };
            let drawn = drawn.to_dtype(self.precision.vae)?.to_device(&self.device)?;
            let images = from_rgb(&hint.images, &self.device)?.affine(2.0, -1.0)?;
            let images = images.to_dtype(self.precision.vae)?;
            // One at a time: the encoder works at full size.
            let latents = (0..shape.0).map(|i| {
                let (image, drawn) = (images.narrow(0, i, 1)?, drawn.narrow(0, i, 1)?);
                encoder.sample_tiled(&image, &drawn, prepared.tiling, &self.stop)
            });
            let latents = Tensor::cat(&latents.collect::<Result<Vec<_>>>()?, 0)?;
            all.insert(i, latents.to_dtype(DType::F32)?);
        }
        Ok(all)
    }

    /// What the IP-Adapters of a request make of their images. No network that took part is needed after that.
    pub(super) fn image_prompts(
        &self,
        prepared: &Prepared,
        observer: &mut dyn Observer,
    ) -> Result<Vec<ImagePrompt>> {
        let request = &prepared.request;
        if request.ip_adapters.is_empty() {
            return Ok(vec![]);
        }
        // Image encoders are large: one after the other looks at all of its images.
        let mut paths = Vec::new();
        for adapter in &request.ip_adapters {
            paths.push(self.models.ip_adapter_config(&adapter.model)?.1.to_path_buf());
        }
        let mut encoded = BTreeMap::new();
        for path in paths.iter().collect::<BTreeSet<_>>() {
            let encoder = self.image_encoder(path, observer)?;
            let all =
                request.ip_adapters.iter().zip(&prepared.adapter_images).zip(&paths).enumerate();
            for (i, ((adapter, given), own)) in all {
                if own == path {
                    let kind = self.models.ip_adapter_config(&adapter.model)?.0.feature_kind();
                    let is_guided = request.is_guided();
                    let images = &given.images;
                    let features =
                        ImageFeatures::encode(&encoder, images, kind, is_guided, &self.stop)?;
                    encoded.insert(i, features);
                }
            }
        }
        let factor = self.models.factor();
        let unet = UNetInfo {
            attentions: self.models.unet_config().cross_attentions()?,
            dtype: self.precision.unet,
            height: prepared.height / factor,
            width: prepared.width / factor,
        };
        let (mut prompts, mut networks) = (Vec::new(), BTreeMap::new());
        for (i, (adapter, given)) in
            request.ip_adapters.iter().zip(&prepared.adapter_images).enumerate()
        {
            let name = adapter.model.as_str();
            if !networks.contains_key(name) {
                networks.insert(name, self.ip_adapter(name, observer)?);
            }
            let (Some(net), Some(features)) = (networks.get(name), encoded.get(&i)) else {
                continue;
            };
            self.stop.check()?;
            prompts.push(ImagePrompt::new(net, features, given.settings.clone(), &unet)?);
        }
        Ok(prompts)
    }

    /// Everything that acts beside the prompt: the request's controls, its image prompts, and the pipeline's own.
    pub(super) fn conditioners<'a>(
        &'a self,
        prepared: &Prepared,
        networks: &'a BTreeMap<String, Arc<SideNetwork>>,
        (hints, latents): (&[Hint], &BTreeMap<usize, Tensor>),
        image_prompts: Vec<ImagePrompt>,
    ) -> Result<Vec<Box<dyn Conditioner + 'a>>> {
        let parts = super::hints::Parts {
            networks,
            stop: &self.stop,
            hints,
            latents,
            dtype: self.precision.unet,
            device: &self.device,
        };
        let mut conditioners = super::hints::conditioners(&prepared.request, &parts)?;
        let boxed = |prompt| Box::new(prompt) as Box<dyn Conditioner>;
        conditioners.extend(image_prompts.into_iter().map(boxed));
        let own = self.own_conditioners.iter().map(|own| Box::new(Borrowed::new(own)) as _);
        conditioners.extend(own);
        Ok(conditioners)
    }
}

/// A conditioner that a run has and the pipeline keeps.
#[derive(Debug)]
struct Borrowed<'a> {
    label: String,
    own: &'a Mutex<Box<dyn Conditioner>>,
}

impl<'a> Borrowed<'a> {
    fn new(own: &'a Mutex<Box<dyn Conditioner>>) -> Self {
        let label = lock(own).label().to_owned();
        Self { label, own }
    }
}

impl Conditioner for Borrowed<'_> {
    fn label(&self) -> &str {
        &self.label
    }

    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()> {
        lock(self.own).inject(pass, injection)
    }
}
