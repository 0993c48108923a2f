//! CLIP as a whole: both encoders, and the projections into the space in which they are compared.

use candle_core::Tensor;

use super::{JointConfig, TextEncoder, VisionEncoder};
use crate::media::RgbImage;
use crate::nn::Linear;
use crate::weights::VarBuilder;
use crate::{Error, Result, Stop};

/// transformers' `CLIPModel`, without the scale of its logits.
#[derive(Clone, Debug)]
pub struct Clip {
    text: TextEncoder,
    text_projection: Linear,
    vision: VisionEncoder,
}

impl Clip {
    /// Loads all weights under `text_model` and `vision_model`, `text_projection` and `visual_projection`.
    pub fn new(config: &JointConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let mut vision = config.vision_config.clone();
        vision.projection_dim = config.projection_dim;
        let width = config.text_config.hidden_size;
        Ok(Self {
            text: TextEncoder::new(&config.text_config, vb)?,
            text_projection: Linear::without_bias(
                width,
                config.projection_dim,
                &vb.pp("text_projection"),
            )?,
            vision: VisionEncoder::new(&vision, vb)?,
        })
    }

    /// Maximum number of tokens of a text.
    pub fn max_tokens(&self) -> usize {
        self.text.max_tokens()
    }

    /// The embedding of a text in the joint space, `(1, projection_dim)`, not normalized.
    ///
    /// `ids` are the tokens from the beginning to the end token, which comes last and whose state is the text's. As
    /// attention is causal, what would follow has no influence on it.
    ///
    /// # Errors
    ///
    /// No tokens, more than [`max_tokens`](Self::max_tokens), or a requested `stop`.
    pub fn embed_text(&self, ids: &[u32], stop: &Stop) -> Result<Tensor> {
        let (count, most) = (ids.len(), self.max_tokens());
        if !(1..=most).contains(&count) {
            let reason = format!("{count} tokens, CLIP takes 1 to {most}");
            return Err(Error::request("prompt", reason));
        }
        let device = self.text.device();
        let states = self.text.forward(&Tensor::new(ids, device)?.unsqueeze(0)?, 0, stop)?;
        let last = states.narrow(1, count - 1, 1)?.squeeze(1)?;
        Ok(self.text_projection.forward(&last.contiguous()?)?)
    }

    /// The embeddings of images in the joint space, `(images, projection_dim)`, not normalized.
    ///
    /// # Errors
    ///
    /// No images, or a requested `stop`.
    pub fn embed_images(&self, images: &[RgbImage], stop: &Stop) -> Result<Tensor> {
        let pixels = images.iter().map(|image| self.vision.pixels(image));
        let pixels = Tensor::cat(&pixels.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(self.vision.embed(&pixels, stop)?)
    }
}
