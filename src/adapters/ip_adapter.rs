//! IP-Adapters: pictures that the UNet looks at beside the prompt.

use candle_core::{DType, Device, Tensor};

use super::{ActiveRange, Conditioner, Mask, Pass, Strength};
use crate::media::RgbImage;
use crate::models::clip::VisionEncoder;
use crate::models::image_projection::{Features, IpAdapter};
use crate::models::unet::{CrossAttention, Injection};
use crate::nn::SideContext;
use crate::{Error, Result, Stop};

/// Pictures as an image encoder sees them.
#[derive(Clone, Debug)]
pub struct Sight {
    /// `(pictures, features)` or `(pictures, tokens, features)`.
    pictures: Tensor,
    /// What stands for no picture, in the same form; with guidance only.
    nothing: Option<Tensor>,
}

impl Sight {
    /// Looks at pictures, one after the other. `with_nothing` is for clips with guidance.
    ///
    /// # Errors
    ///
    /// When there is no picture.
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
            return Err(Error::request("ip-adapter", "there is no picture"));
        };
        let nothing = match wants {
            _ if !with_nothing => None,
            // The embedding of nothing is zero; the states are those of a grey picture.
            Features::Embedding => Some(first.zeros_like()?),
            Features::Penultimate => {
                let grey = encoder.pixels(picture)?.zeros_like()?;
                Some(encoder.penultimate(&grey, stop)?)
            }
        };
        Ok(Self { pictures: Tensor::cat(&seen, 0)?, nothing })
    }
}

/// How an IP-Adapter is used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImagePromptSettings {
    /// What messages call it.
    pub label: String,
    /// How strongly it counts, frame by frame.
    pub strength: Strength,
    /// When it works.
    pub range: ActiveRange,
    /// What its pictures are for.
    pub share: Share,
}

/// What several pictures of an adapter are for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Share {
    /// All are seen together, everywhere.
    #[default]
    Everything,
    /// Each is seen where its mask is white.
    Masks(Vec<Mask>),
    /// Each is for a frame of the clip.
    Frames,
}

/// What an adapter has to know of the UNet beside which it works.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// [`UNetConfig::cross_attentions`](crate::models::unet::UNetConfig::cross_attentions).
    pub attentions: Vec<CrossAttention>,
    /// The number format of its weights.
    pub dtype: DType,
    /// Height of its latents.
    pub height: usize,
    /// Width of its latents.
    pub width: usize,
}

/// An IP-Adapter's view of its pictures: keys and values, ready for every pass. Its networks are needed no more.
#[derive(Debug)]
pub struct ImagePrompt {
    settings: ImagePromptSettings,
    parts: Vec<Part>,
    attentions: Vec<CrossAttention>,
}

/// What is looked at together.
#[derive(Debug)]
struct Part {
    /// For every cross attention keys and values, `(1, tokens, width)`, or of each frame `(frames, tokens, width)`.
    pictures: Vec<(Tensor, Tensor)>,
    /// The same for no picture, `(1, tokens, width)`.
    nothing: Option<Vec<(Tensor, Tensor)>>,
    /// The mask at every level of the UNet, `(1, height*width, 1)`; nothing without a mask.
    mask: Vec<Tensor>,
}

impl ImagePrompt {
    /// Computes all that does not depend on the step.
    ///
    /// # Errors
    ///
    /// When masks and pictures are not equally many, or the adapter is for another image encoder.
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
                    let reason = format!("has {count} pictures and {} masks", masks.len());
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

    /// The side contexts of a pass, one for every cross attention.
    fn sides(&self, part: &Part, pass: &Pass<'_>, strengths: &[f64]) -> Result<Vec<SideContext>> {
        let clips = pass.clips;
        let negatives = pass.negatives.min(clips);
        if negatives > 0 && part.nothing.is_none() {
            return Err(self.wrong("does not know what no picture looks like".into()));
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
                // A strength that is the same everywhere costs nothing on the few tokens of a picture.
                values: if factor == 1.0 { values } else { (values * factor)? },
                weights: match (mask, &weights) {
                    (Some(mask), Some(weights)) => Some(mask.broadcast_mul(weights)?),
                    (mask, weights) => mask.or(weights.as_ref()).cloned(),
                },
            })
        };
        part.pictures.iter().enumerate().map(|(i, layer)| side(i, layer)).collect()
    }

    /// The entries of some frames.
    fn frames_of(&self, x: &Tensor, frames: &[usize]) -> Result<Tensor> {
        let count = x.dim(0)?;
        if let Some(frame) = frames.iter().find(|frame| **frame >= count) {
            let reason = format!("has pictures for {count} frames, frame {frame} is asked for");
            return Err(self.wrong(reason));
        }
        let index: Vec<u32> = frames.iter().map(|frame| *frame as u32).collect();
        Ok(x.index_select(&Tensor::new(index, x.device())?, 0)?)
    }
}

impl Neighbour {
    /// A mask at every level, `(1, height*width, 1)`.
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
