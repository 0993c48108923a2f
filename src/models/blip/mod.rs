//! BLIP's captions of images: a vision transformer, and a decoder of text that attends to it.
//!
//! Li et al. (2022), [2201.12086](https://arxiv.org/abs/2201.12086). The names are those of transformers'
//! `BlipForConditionalGeneration`, such as Salesforce/blip-image-captioning-base.

mod text;
mod vision;

use candle_core::{D, DType, Device, Tensor};
use serde::Deserialize;

pub use text::{BlipText, BlipTextConfig, Context};
pub use vision::{BlipVision, BlipVisionConfig};

use super::{clip, supported};
use crate::media::RgbImage;
use crate::media::resize::bicubic_to;
use crate::media::tensor::normalized;
use crate::weights::VarBuilder;
use crate::{Result, Stop};

/// Tokens of a caption with its first, which is none of the vocabulary, and its end: transformers' `max_length`.
const MOST_TOKENS: usize = 20;

/// Configuration of a [`Blip`], as transformers writes it; what is missing is as in its `BlipConfig`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct BlipConfig {
    /// The decoder of text.
    pub text_config: BlipTextConfig,
    /// The encoder of images.
    pub vision_config: BlipVisionConfig,
    /// Whether the scores of tokens are products with their embeddings.
    pub tie_word_embeddings: bool,
}

impl Default for BlipConfig {
    fn default() -> Self {
        Self {
            text_config: BlipTextConfig::default(),
            vision_config: BlipVisionConfig::default(),
            tie_word_embeddings: true,
        }
    }
}

impl BlipConfig {
    /// Checks that every value is possible and supported.
    pub fn validate(&self) -> Result<()> {
        self.text_config.validate()?;
        self.vision_config.validate()?;
        supported("BLIP", "tie_word_embeddings", &self.tie_word_embeddings, &[true])
    }

    /// Why a tensor of a file is not used, if it is none of the network's.
    pub fn ignored(name: &str) -> Option<&'static str> {
        if name == "text_decoder.bert.embeddings.position_ids" {
            return Some("positions are counted");
        }
        let tied = name.starts_with("text_decoder.cls.predictions.decoder.");
        tied.then_some("the embeddings and the bias beside it are the same")
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct Blip {
    vision: BlipVision,
    text: BlipText,
    side: usize,
    dtype: DType,
    device: Device,
}

impl Blip {
    /// Loads `vision_model` and `text_decoder`.
    pub fn new(config: &BlipConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let width = config.vision_config.hidden_size;
        Ok(Self {
            vision: BlipVision::new(&config.vision_config, &vb.pp("vision_model"))?,
            text: BlipText::new(&config.text_config, width, &vb.pp("text_decoder"))?,
            side: config.vision_config.image_size,
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// The encoder of images.
    pub fn vision(&self) -> &BlipVision {
        &self.vision
    }

    /// The decoder of text.
    pub fn text(&self) -> &BlipText {
        &self.text
    }

    /// Pixels of an image, `(1, 3, side, side)`: resized without its proportions and normalized, as by
    /// `BlipImageProcessor`.
    pub fn pixels(&self, image: &RgbImage, stop: &Stop) -> Result<Tensor> {
        let side = self.side as u32;
        let pixels =
            normalized(&bicubic_to(image, (side, side), stop)?, clip::MEAN, clip::DEVIATION)?;
        Ok(pixels.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    /// The tokens of the caption of an image `(1, 3, side, side)`, the best one at each place; from the first token,
    /// which is of no word, to the end, at most 20.
    pub fn tokens(&self, pixels: &Tensor, stop: &Stop) -> Result<Vec<u32>> {
        let contexts = self.text.contexts(&self.vision.forward(pixels, stop)?)?;
        let (first, end, longest) = self.text.bounds();
        let mut tokens = vec![first];
        while tokens.len() < MOST_TOKENS.min(longest) {
            let ids = Tensor::new(tokens.as_slice(), &self.device)?.unsqueeze(0)?;
            let states = self.text.forward(&ids, &contexts, stop)?;
            let last = self.text.scores(&states.narrow(1, tokens.len() - 1, 1)?)?;
            let best = last.flatten_all()?.argmax(D::Minus1)?.to_scalar::<u32>()?;
            tokens.push(best);
            if best == end {
                break;
            }
        }
        Ok(tokens)
    }
}
