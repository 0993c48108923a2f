//! Configurations of the CLIP encoders, as in their `config.json`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::models::{MOST_CHANNELS, MOST_HEADS, MOST_LAYERS, supported, within};
use crate::{Error, Result};

/// Configuration of a CLIP text encoder. The defaults are those of Stable Diffusion 1.5's ViT-L/14.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Vocabulary size in tokens, 49408.
    pub vocab_size: usize,
    /// Hidden size, 768.
    pub hidden_size: usize,
    /// Hidden size of the MLP, 3072.
    pub intermediate_size: usize,
    /// Number of layers, 12.
    pub num_hidden_layers: usize,
    /// Number of attention heads, 12.
    pub num_attention_heads: usize,
    /// Maximum prompt length in tokens, 77.
    pub max_position_embeddings: usize,
    /// Activation of the MLP: `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Epsilon of the layer norms, 1e-5.
    pub layer_norm_eps: f64,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

/// Maximum vocabulary size.
const MOST_TOKENS: usize = 1 << 24;
/// Maximum prompt length in tokens.
const MOST_POSITIONS: usize = 1 << 16;
/// Maximum width and height of an image encoder's input, in pixels.
const MOST_PIXELS: usize = 4096;

impl TextConfig {
    /// The defaults of transformers, those of ViT-B/32.
    fn of_transformers() -> Self {
        Self {
            hidden_size: 512,
            intermediate_size: 2048,
            num_attention_heads: 8,
            ..Self::default()
        }
    }

    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        const NAME: &str = "text encoder";
        let known = ["quick_gelu".to_owned(), "gelu".to_owned()];
        supported(NAME, "hidden_act", &self.hidden_act, &known)?;
        for (field, value, most) in [
            ("vocab_size", self.vocab_size, MOST_TOKENS),
            ("hidden_size", self.hidden_size, MOST_CHANNELS),
            ("intermediate_size", self.intermediate_size, MOST_CHANNELS),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MOST_HEADS),
            ("max_position_embeddings", self.max_position_embeddings, MOST_POSITIONS),
        ] {
            within(NAME, field, value, 1..=most)?;
        }
        within(NAME, "layer_norm_eps", self.layer_norm_eps, 0.0..=1.0)
    }
}

/// Configuration of a CLIP image encoder.
///
/// The defaults are those of transformers, whose configurations may omit them, and not those of a published model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Hidden size; 1280 in ViT-H/14.
    pub hidden_size: usize,
    /// Hidden size of the MLP; 5120.
    pub intermediate_size: usize,
    /// Number of layers; 32.
    pub num_hidden_layers: usize,
    /// Number of attention heads; 16.
    pub num_attention_heads: usize,
    /// Number of image channels; 3.
    pub num_channels: usize,
    /// Width and height of an image in pixels; 224.
    pub image_size: usize,
    /// Width and height of a patch in pixels; 14. Each patch becomes a token.
    pub patch_size: usize,
    /// Width of the joint embedding of images and texts; 1024.
    pub projection_dim: usize,
    /// Activation of the MLP; `gelu`.
    pub hidden_act: String,
    /// Epsilon of the layer norms; 1e-5.
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            projection_dim: 512,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

/// Configuration of both encoders of a CLIP and of their joint space, as in the `config.json` of transformers'
/// `CLIPModel`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct JointConfig {
    /// The text encoder. What its `config.json` omits has transformers' defaults, which are not those of
    /// [`TextConfig`].
    #[serde(deserialize_with = "text_of_transformers")]
    pub text_config: TextConfig,
    /// The image encoder.
    pub vision_config: VisionConfig,
    /// Width of the joint space, whatever the encoders' own configurations say of it; 512.
    pub projection_dim: usize,
}

impl Default for JointConfig {
    fn default() -> Self {
        Self {
            text_config: TextConfig::of_transformers(),
            vision_config: VisionConfig::default(),
            projection_dim: 512,
        }
    }
}

impl JointConfig {
    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        self.text_config.validate()?;
        self.vision_config.validate()?;
        within("CLIP", "projection_dim", self.projection_dim, 1..=MOST_CHANNELS)
    }
}

/// A text encoder's configuration over the defaults of transformers.
fn text_of_transformers<'de, D: Deserializer<'de>>(
    json: D,
) -> std::result::Result<TextConfig, D::Error> {
    use serde::de::Error as _;
    let given = serde_json::Map::deserialize(json)?;
    let defaults = serde_json::to_value(TextConfig::of_transformers()).map_err(D::Error::custom)?;
    let serde_json::Value::Object(mut all) = defaults else {
        return Err(D::Error::custom("no defaults"));
    };
    all.extend(given);
    serde_json::from_value(all.into()).map_err(D::Error::custom)
}

impl VisionConfig {
    /// LAION's ViT-H/14, the image encoder of the IP-Adapters for Stable Diffusion 1.5.
    pub fn vit_h() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 16,
            patch_size: 14,
            projection_dim: 1024,
            hidden_act: "gelu".into(),
            ..Self::default()
        }
    }

    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        const NAME: &str = "image encoder";
        let known = ["quick_gelu".to_owned(), "gelu".to_owned()];
        supported(NAME, "hidden_act", &self.hidden_act, &known)?;
        supported(NAME, "num_channels", &self.num_channels, &[3])?;
        for (field, value, most) in [
            ("hidden_size", self.hidden_size, MOST_CHANNELS),
            ("intermediate_size", self.intermediate_size, MOST_CHANNELS),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MOST_HEADS),
            ("image_size", self.image_size, MOST_PIXELS),
            ("patch_size", self.patch_size, MOST_PIXELS),
            ("projection_dim", self.projection_dim, MOST_CHANNELS),
        ] {
            within(NAME, field, value, 1..=most)?;
        }
        within(NAME, "layer_norm_eps", self.layer_norm_eps, 0.0..=1.0)?;
        if self.image_size < self.patch_size {
            let (image, patch) = (self.image_size, self.patch_size);
            let reason = format!("images of {image} pixels have no patches of {patch}");
            return Err(Error::Missing { name: format!("{NAME} config"), reason });
        }
        Ok(())
    }

    /// Number of tokens of an image: the class token and the patches.
    pub fn tokens(&self) -> usize {
        let side = self.image_size / self.patch_size.max(1);
        1 + side * side
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_configuration_may_omit_what_transformers_does() {
        let json = r#"{"text_config": {"num_hidden_layers": 3}, "projection_dim": 5}"#;
        let config: JointConfig = serde_json::from_str(json).unwrap();
        assert_eq!(config.projection_dim, 5);
        let TextConfig { hidden_size, num_hidden_layers, num_attention_heads, .. } =
            config.text_config;
        assert_eq!((hidden_size, num_hidden_layers, num_attention_heads), (512, 3, 8));
        assert_eq!(config.vision_config, VisionConfig::default());
        let none: JointConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(none, JointConfig::default());
        assert!(none.validate().is_ok());
        assert!(serde_json::from_str::<JointConfig>(r#"{"text_config": 3}"#).is_err());
    }
}
