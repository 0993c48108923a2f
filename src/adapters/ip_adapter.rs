//! IP-Adapters: image prompts, which the UNet attends to in addition to the text prompt.

use candle_core::{DType, Device, Tensor};

use super::{ActiveRange, Conditioner, Mask, Pass, Strength};
use crate::media::RgbImage;
use crate::models::clip::VisionEncoder;
use crate::models::image_projection::{FeatureKind, IpAdapter};
use crate::models::unet::{CrossAttention, Injection};
use crate::nn::ImageContext;
use crate::{Error, Result, Stop};

/// Features of image prompts, as computed by the image encoder.
#[derive(Clone, Debug)]
pub struct ImageFeatures {
    /// `(images, features)` or `(images, tokens, features)`.
    cond: Tensor,
    /// Features of the unconditional input, in the same shape; only with classifier-free guidance.
    uncond: Option<Tensor>,
}

impl ImageFeatures {
    /// Encodes images one after the other. `with_uncond` adds the unconditional features, for classifier-free
    /// guidance.
    ///
    /// # Errors
    ///
    /// An empty list of images.
    pub fn encode(
        encoder: &VisionEncoder,
        images: &[RgbImage],
        kind: FeatureKind,
        with_uncond: bool,
        stop: &Stop,
    ) -> Result<Self> {
        let encode = |image: &RgbImage| {
            let pixels = encoder.pixels(image)?;
            match kind {
                FeatureKind::Embedding => encoder.embed(&pixels, stop),
                FeatureKind::Penultimate => encoder.penultimate(&pixels, stop),
            }
        };
        let encoded: Vec<Tensor> = images.iter().map(encode).collect::<candle_core::Result<_>>()?;
        let (Some(first), Some(image)) = (encoded.first(), images.first()) else {
            return Err(Error::request("ip-adapter", "there is no image"));
        };
        let uncond = match kind {
            _ if !with_uncond => None,
            // The unconditional embedding is zero; unconditional hidden states are those of a zero input.
            FeatureKind::Embedding => Some(first.zeros_like()?),
            FeatureKind::Penultimate => {
                let zeros = encoder.pixels(image)?.zeros_like()?;
                Some(encoder.penultimate(&zeros, stop)?)
            }
        };
        Ok(Self { cond: Tensor::cat(&encoded, 0)?, uncond })
    }
}

/// Settings of an IP-Adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImagePromptSettings {
    /// The name used in messages.
    pub label: String,
    /// Strength per frame.
    pub strength: Strength,
    /// The part of the run in which the adapter is active.
    pub range: ActiveRange,
    /// Assignment of the images to regions or frames.
    pub scope: ImageScope,
}

/// Assignment of an adapter's images to regions or frames.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ImageScope {
    /// All images apply together to the whole of every frame.
    #[default]
    All,
    /// Each image applies where its mask is white.
    Masks(Vec<Mask>),
    /// Each image applies to one frame of the clip.
    PerFrame,
}

/// Properties of the UNet that an adapter depends on.
#[derive(Clone, Debug)]
pub struct UNetInfo {
    /// [`UNetConfig::cross_attentions`](crate::models::unet::UNetConfig::cross_attentions).
    pub attentions: Vec<CrossAttention>,
    /// The dtype of the UNet's weights.
    pub dtype: DType,
    /// Height of the latents.
    pub height: usize,
    /// Width of the latents.
    pub width: usize,
}

/// Precomputed keys and values of an IP-Adapter's images. The networks are no longer needed.
#[derive(Debug)]
pub struct ImagePrompt {
    settings: ImagePromptSettings,
    parts: Vec<Part>,
    attentions: Vec<CrossAttention>,
}

/// Images that are attended to together.
#[derive(Debug)]
struct Part {
    /// Keys and values of every cross-attention, `(1, tokens, width)`, or `(frames, tokens, width)` with one image per
    /// frame.
    cond: Vec<(Tensor, Tensor)>,
    /// Unconditional keys and values, `(1, tokens, width)`.
    uncond: Option<Vec<(Tensor, Tensor)>>,
    /// The mask at every level of the UNet, `(1, height*width, 1)`; empty without a mask.
    mask: Vec<Tensor>,
}

impl ImagePrompt {
    /// Computes everything that does not depend on the step.
    ///
    /// # Errors
    ///
    /// Different numbers of masks and images, or an adapter for another image encoder.
    pub fn new(
        net: &IpAdapter,
        features: &ImageFeatures,
        settings: ImagePromptSettings,
        unet: &UNetInfo,
    ) -> Result<Self> {
        let dtype = unet.dtype;
        let context = |tokens: &Tensor| -> Result<Vec<(Tensor, Tensor)>> {
            let layers = net.keys_and_values(tokens)?.into_iter();
            layers.map(|(k, v)| Ok((k.to_dtype(dtype)?, v.to_dtype(dtype)?))).collect()
        };
        let tokens = net.tokens(&features.cond)?;
        let (count, each, width) = tokens.dims3()?;
        let uncond = features.uncond.as_ref().map(|uncond| net.tokens(uncond)).transpose()?;
        let repeated_uncond = |times: usize| -> Result<_> {
            let repeated =
                uncond.as_ref().map(|tokens| tokens.repeat((1, times, 1))).transpose()?;
            repeated.map(|tokens| context(&tokens)).transpose()
        };
        let parts = match &settings.scope {
            ImageScope::All => vec![Part {
                cond: context(&tokens.reshape((1, count * each, width))?)?,
                uncond: repeated_uncond(count)?,
                mask: vec![],
            }],
            ImageScope::PerFrame => {
                let cond = context(&tokens)?;
                vec![Part { cond, uncond: repeated_uncond(1)?, mask: vec![] }]
            }
            ImageScope::Masks(masks) => {
                if masks.len() != count {
                    let reason = format!("has {count} images and {} masks", masks.len());
                    return Err(Error::Adapter { adapter: settings.label, reason });
                }
                let part = |(i, mask): (usize, &Mask)| {
                    Ok(Part {
                        cond: context(&tokens.narrow(0, i, 1)?)?,
                        uncond: repeated_uncond(1)?,
                        mask: unet.levels(mask, tokens.device())?,
                    })
                };
                masks.iter().enumerate().map(part).collect::<Result<_>>()?
            }
        };
        Ok(Self { settings, parts, attentions: unet.attentions.clone() })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Adapter { adapter: self.settings.label.clone(), reason }
    }

    /// The image contexts of a pass, one for every cross-attention.
    fn contexts(
        &self,
        part: &Part,
        pass: &Pass<'_>,
        strengths: &[f64],
    ) -> Result<Vec<ImageContext>> {
        let clips = pass.clips;
        let negatives = pass.negatives.min(clips);
        if negatives > 0 && part.uncond.is_none() {
            return Err(self.wrong("has no unconditional image features".into()));
        }
        let first = strengths.first().copied().unwrap_or_default();
        let is_uniform = strengths.iter().all(|strength| *strength == first);
        let factor = if is_uniform { first } else { 1.0 };
        let by_frame =
            if is_uniform { None } else { Some(Tensor::new(strengths, pass.x.device())?) };
        let weights = by_frame
            .map(|weights| weights.repeat(clips)?.reshape(((), 1, 1))?.to_dtype(pass.x.dtype()))
            .transpose()?;
        let join = |cond: &Tensor, uncond: Option<&Tensor>| -> Result<Tensor> {
            let (cond, times) = if self.settings.scope == ImageScope::PerFrame {
                (self.frames_of(cond, pass.frames)?, pass.frames.len())
            } else {
                (cond.clone(), 1)
            };
            let mut all = Vec::new();
            if let Some(uncond) = uncond.filter(|_| negatives > 0) {
                all.extend(vec![uncond.clone(); negatives * times]);
            }
            all.extend(vec![cond; clips - negatives]);
            Ok(if let [one] = all.as_slice() { one.clone() } else { Tensor::cat(&all, 0)? })
        };
        let image_context = |i: usize, (keys, values): &(Tensor, Tensor)| -> Result<ImageContext> {
            let uncond = part.uncond.as_ref().and_then(|uncond| uncond.get(i));
            let values = join(values, uncond.map(|(_, values)| values))?;
            let mask = self.attentions.get(i).and_then(|attention| part.mask.get(attention.level));
            Ok(ImageContext {
                keys: join(keys, uncond.map(|(keys, _)| keys))?,
                // A uniform strength is applied to the values, which is cheap for the few tokens of an image.
                values: if factor == 1.0 { values } else { (values * factor)? },
                weights: match (mask, &weights) {
                    (Some(mask), Some(weights)) => Some(mask.broadcast_mul(weights)?),
                    (mask, weights) => mask.or(weights.as_ref()).cloned(),
                },
            })
        };
        part.cond.iter().enumerate().map(|(i, layer)| image_context(i, layer)).collect()
    }

    /// Selects the entries of some frames.
    fn frames_of(&self, x: &Tensor, frames: &[usize]) -> Result<Tensor> {
        let count = x.dim(0)?;
        if let Some(frame) = frames.iter().find(|frame| **frame >= count) {
            let reason = format!("has images for {count} frames, frame {frame} is asked for");
            return Err(self.wrong(reason));
        }
        let index: Vec<u32> = frames.iter().map(|frame| *frame as u32).collect();
        Ok(x.index_select(&Tensor::new(index, x.device())?, 0)?)
    }
}

impl UNetInfo {
    /// The mask at every level, `(1, height*width, 1)`.
    fn levels(&self, mask: &Mask, device: &Device) -> Result<Vec<Tensor>> {
        let deepest = self.attentions.iter().map(|attention| attention.level).max();
        let (mut height, mut width) = (self.height, self.width);
        let mut levels = Vec::new();
        for _ in 0..=deepest.unwrap_or_default() {
            let values = Tensor::from_vec(mask.at(height, width), (1, height * width, 1), device)?;
            levels.push(values.to_dtype(self.dtype)?);
            (height, width) = (height.div_ceil(2), width.div_ceil(2));
        }
        Ok(levels)
    }
}

impl Conditioner for ImagePrompt {
    fn label(&self) -> &str {
        &self.settings.label
    }

    fn inject(&mut self, pass: &Pass<'_>, injection: &mut Injection) -> Result<()> {
        let strengths: Vec<f64> =
            pass.frames.iter().map(|frame| self.settings.strength.at(*frame)).collect();
        let is_idle = strengths.iter().all(|strength| *strength == 0.0)
            || !self.settings.range.contains(pass.progress);
        if is_idle {
            return Ok(());
        }
        for part in &self.parts {
            injection.add_image_contexts(self.contexts(part, pass, &strengths)?)?;
        }
        Ok(())
    }
}
