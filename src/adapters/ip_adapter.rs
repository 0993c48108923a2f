//! IP-Adapters: image prompts, which the UNet attends to in addition to the text prompt.

use candle_core::{DType, Device, Tensor};

use super::{ActiveRange, Conditioner, Mask, Pass, Strength};
use crate::media::RgbImage;
use crate::models::clip::VisionEncoder;
use crate::models::image_projection::{Features, IpAdapter};
use crate::models::unet::{CrossAttention, Injection};
use crate::nn::SideContext;
use crate::{Error, Result, Stop};

/// Features of image prompts, as computed by the image encoder.
#[derive(Clone, Debug)]
pub struct Sight {
    /// `(images, features)` or `(images, tokens, features)`.
    pictures: Tensor,
    /// Features of the unconditional input, in the same shape; only with classifier-free guidance.
    nothing: Option<Tensor>,
}

impl Sight {
    /// Encodes images one after the other. `with_nothing` adds the unconditional features, for classifier-free
    /// guidance.
    ///
    /// # Errors
    ///
    /// An empty list of images.
    pub fn of(
        encoder: &VisionEncoder,
        pictures: &[RgbImage],
        wants: Features,
        with_nothing: bool,
        stop: &Stop,
    ) -> Result<Self> {
        let see = |picture: &RgbImage| {
            let pixels = encoder.pixels(picture)?;
            match wants {
                Features::Embedding => encoder.embed(&pixels, stop),
                Features::Penultimate => encoder.penultimate(&pixels, stop),
            }
        };
        let seen: Vec<Tensor> = pictures.iter().map(see).collect::<candle_core::Result<_>>()?;
        let (Some(first), Some(picture)) = (seen.first(), pictures.first()) else {
            return Err(Error::request("ip-adapter", "there is no image"));
        };
        let nothing = match wants {
            _ if !with_nothing => None,
            // The unconditional embedding is zero; unconditional hidden states are those of a zero input.
            Features::Embedding => Some(first.zeros_like()?),
            Features::Penultimate => {
                let grey = encoder.pixels(picture)?.zeros_like()?;
                Some(encoder.penultimate(&grey, stop)?)
            }
        };
        Ok(Self { pictures: Tensor::cat(&seen, 0)?, nothing })
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
    pub share: Share,
}

/// Assignment of an adapter's images to regions or frames.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Share {
    /// All images apply together to the whole of every frame.
    #[default]
    Everything,
    /// Each image applies where its mask is white.
    Masks(Vec<Mask>),
    /// Each image applies to one frame of the clip.
    Frames,
}

/// Properties of the UNet that an adapter depends on.
#[derive(Clone, Debug)]
pub struct Neighbour {
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
    pictures: Vec<(Tensor, Tensor)>,
    /// Unconditional keys and values, `(1, tokens, width)`.
    nothing: Option<Vec<(Tensor, Tensor)>>,
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
        sight: &Sight,
        settings: ImagePromptSettings,
        unet: &Neighbour,
    ) -> Result<Self> {
        let dtype = unet.dtype;
        let context = |tokens: &Tensor| -> Result<Vec<(Tensor, Tensor)>> {
            let layers = net.keys_and_values(tokens)?.into_iter();
            layers.map(|(k, v)| Ok((k.to_dtype(dtype)?, v.to_dtype(dtype)?))).collect()
        };
        let tokens = net.tokens(&sight.pictures)?;
        let (count, each, width) = tokens.dims3()?;
        let nothing = sight.nothing.as_ref().map(|nothing| net.tokens(nothing)).transpose()?;
        let nothing_like = |times: usize| -> Result<_> {
            let repeated =
                nothing.as_ref().map(|tokens| tokens.repeat((1, times, 1))).transpose()?;
            repeated.map(|tokens| context(&tokens)).transpose()
        };
        let parts = match &settings.share {
            Share::Everything => vec![Part {
                pictures: context(&tokens.reshape((1, count * each, width))?)?,
                nothing: nothing_like(count)?,
                mask: vec![],
            }],
            Share::Frames => {
                let pictures = context(&tokens)?;
                vec![Part { pictures, nothing: nothing_like(1)?, mask: vec![] }]
            }
            Share::Masks(masks) => {
                if masks.len() != count {
                    let reason = format!("has {count} images and {} masks", masks.len());
                    return Err(Error::Adapter { adapter: settings.label, reason });
                }
                let part = |(i, mask): (usize, &Mask)| {
                    Ok(Part {
                        pictures: context(&tokens.narrow(0, i, 1)?)?,
                        nothing: nothing_like(1)?,
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

    /// The side contexts of a pass, one for every cross-attention.
    fn sides(&self, part: &Part, pass: &Pass<'_>, strengths: &[f64]) -> Result<Vec<SideContext>> {
        let clips = pass.clips;
        let negatives = pass.negatives.min(clips);
        if negatives > 0 && part.nothing.is_none() {
            return Err(self.wrong("does not know what no image looks like".into()));
        }
        let first = strengths.first().copied().unwrap_or_default();
        let is_level = strengths.iter().all(|strength| *strength == first);
        let factor = if is_level { first } else { 1.0 };
        let by_frame = if is_level { None } else { Some(Tensor::new(strengths, pass.x.device())?) };
        let weights = by_frame
            .map(|weights| weights.repeat(clips)?.reshape(((), 1, 1))?.to_dtype(pass.x.dtype()))
            .transpose()?;
        let join = |some: &Tensor, nothing: Option<&Tensor>| -> Result<Tensor> {
            let (some, times) = if self.settings.share == Share::Frames {
                (self.frames_of(some, pass.frames)?, pass.frames.len())
            } else {
                (some.clone(), 1)
            };
            let mut all = Vec::new();
            if let Some(nothing) = nothing.filter(|_| negatives > 0) {
                all.extend(vec![nothing.clone(); negatives * times]);
            }
            all.extend(vec![some; clips - negatives]);
            Ok(if let [one] = all.as_slice() { one.clone() } else { Tensor::cat(&all, 0)? })
        };
        let side = |i: usize, (keys, values): &(Tensor, Tensor)| -> Result<SideContext> {
            let nothing = part.nothing.as_ref().and_then(|nothing| nothing.get(i));
            let values = join(values, nothing.map(|(_, values)| values))?;
            let mask = self.attentions.get(i).and_then(|attention| part.mask.get(attention.level));
            Ok(SideContext {
                keys: join(keys, nothing.map(|(keys, _)| keys))?,
                // A uniform strength is applied to the values, which is cheap for the few tokens of an image.
                values: if factor == 1.0 { values } else { (values * factor)? },
                weights: match (mask, &weights) {
                    (Some(mask), Some(weights)) => Some(mask.broadcast_mul(weights)?),
                    (mask, weights) => mask.or(weights.as_ref()).cloned(),
                },
            })
        };
        part.pictures.iter().enumerate().map(|(i, layer)| side(i, layer)).collect()
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

impl Neighbour {
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
            injection.add_sides(self.sides(part, pass, &strengths)?)?;
        }
        Ok(())
    }
}
