//! Configuration of the UNet, as in its `config.json`.

use std::ops::Range;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::models::motion::MotionConfig;
use crate::models::{MOST_CHANNELS, MOST_HEADS, MOST_LAYERS, possible_widths, supported, within};
use crate::nn::{TimestepEmbedding, timestep_features};
use crate::{Error, Result};

/// Configuration of a Stable Diffusion 1 UNet. The defaults are those of version 1.5, without motion modules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    /// Native height and width of the latents, 64.
    pub sample_size: usize,
    /// Number of input channels, 4.
    pub in_channels: usize,
    /// Number of output channels, 4.
    pub out_channels: usize,
    /// Types of the down blocks.
    pub down_block_types: Vec<String>,
    /// Types of the up blocks.
    pub up_block_types: Vec<String>,
    /// Channels of each block: 320, 640, 1280, 1280.
    pub block_out_channels: Vec<usize>,
    /// Number of layers per down block, 2; up blocks have one more.
    pub layers_per_block: usize,
    /// Width of the text embeddings, 768.
    pub cross_attention_dim: usize,
    /// Despite its name, the *number* of attention heads in this family: 8.
    pub attention_head_dim: usize,
    /// The number of attention heads under its proper name, if the file has it.
    pub num_attention_heads: Option<usize>,
    /// Transformer blocks per attention layer, 1.
    pub transformer_layers_per_block: usize,
    /// Whether the projections around the transformer blocks are linear layers. False.
    pub use_linear_projection: bool,
    /// Number of groups of all group norms, 32.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms in residual blocks, 1e-5.
    pub norm_eps: f64,
    /// Activation, `silu`.
    pub act_fn: String,
    /// Whether cosines precede sines in the timestep features. True.
    pub flip_sin_to_cos: bool,
    /// Frequency shift of the timestep features, 0.
    pub freq_shift: f64,
    /// Padding of the downsampling convolutions, 1.
    pub downsample_padding: usize,
    /// Method of applying the time embedding; only `default` is supported.
    pub resnet_time_scale_shift: String,
    /// Width of a guidance embedding, which is not supported.
    pub time_cond_proj_dim: Option<usize>,
    /// Additional conditioning of Stable Diffusion XL, which is not supported.
    pub addition_embed_type: Option<String>,
    /// Class conditioning, which is not supported.
    pub class_embed_type: Option<String>,
    /// The motion modules, if any. Not part of a published `unet/config.json`.
    #[serde(skip)]
    pub motion: Option<MotionConfig>,
}

/// A cross-attention layer of the UNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossAttention {
    /// Number of channels.
    pub width: usize,
    /// Number of downsamplings of the latents before the layer.
    pub level: usize,
}

/// Position of a block in the UNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the way down, from full resolution.
    Down(usize),
    /// At the lowest resolution.
    Mid,
    /// On the way up, from the lowest resolution.
    Up(usize),
}

/// One block of the UNet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageConfig {
    /// Its position.
    pub place: Place,
    /// Number of downsamplings of the latents before it.
    pub level: usize,
    /// Output channels of its layers.
    pub width: usize,
    /// Its layers.
    pub layers: Vec<LayerConfig>,
    /// Indices of its cross-attentions, counted as adapters do: down blocks, up blocks, mid block.
    pub cross_attentions: Range<usize>,
}

/// All blocks of the UNet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    /// The blocks on the way down, from full resolution.
    pub down: Vec<StageConfig>,
    /// The block at the lowest resolution.
    pub mid: StageConfig,
    /// The blocks on the way up, from the lowest resolution.
    pub up: Vec<StageConfig>,
}

/// One layer of a block: a residual block and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Input channels, including the skip connection's on the way up.
    pub inputs: usize,
    /// Whether a transformer follows.
    pub attention: bool,
    /// Whether a motion module follows.
    pub motion: bool,
}

impl StageConfig {
    /// Prefix of the names of its weights, such as `down_blocks.0`.
    pub fn name(&self) -> String {
        match self.place {
            Place::Down(i) => format!("down_blocks.{i}"),
            Place::Mid => "mid_block".to_owned(),
            Place::Up(i) => format!("up_blocks.{i}"),
        }
    }
}

/// Type of a down block or up block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BlockKind {
    Plain,
    Attention,
}

impl Default for UNetConfig {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        Self {
            sample_size: 64,
            in_channels: 4,
            out_channels: 4,
            down_block_types: names([
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "DownBlock2D",
            ]),
            up_block_types: names([
                "UpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
            ]),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            cross_attention_dim: 768,
            attention_head_dim: 8,
            num_attention_heads: None,
            transformer_layers_per_block: 1,
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            act_fn: "silu".into(),
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            downsample_padding: 1,
            resnet_time_scale_shift: "default".into(),
            time_cond_proj_dim: None,
            addition_embed_type: None,
            class_embed_type: None,
            motion: None,
        }
    }
}

/// Maximum height and width of the latents.
const MOST_PIXELS: usize = 8192;

impl UNetConfig {
    /// Stable Diffusion 1.5 without motion modules.
    pub fn sd15() -> Self {
        Self::default()
    }

    /// Adds motion modules to the configuration.
    #[must_use]
    pub fn with_motion(mut self, motion: MotionConfig) -> Self {
        self.motion = Some(motion);
        self
    }

    /// Checks that the configuration is supported.
    pub fn validate(&self) -> Result<()> {
        let stages = self.block_out_channels.len();
        if stages == 0
            || self.down_block_types.len() != stages
            || self.up_block_types.len() != stages
        {
            return Err(Error::Missing {
                name: "unet config".into(),
                reason: format!(
                    "{stages} widths, {} stages down, {} stages up",
                    self.down_block_types.len(),
                    self.up_block_types.len()
                ),
            });
        }
        let config = "unet";
        possible_widths(config, "block_out_channels", &self.block_out_channels)?;
        for (field, value, most) in [
            ("sample_size", self.sample_size, MOST_PIXELS),
            ("in_channels", self.in_channels, MOST_CHANNELS),
            ("out_channels", self.out_channels, MOST_CHANNELS),
            ("layers_per_block", self.layers_per_block, MOST_LAYERS),
            ("transformer_layers_per_block", self.transformer_layers_per_block, MOST_LAYERS),
            ("cross_attention_dim", self.cross_attention_dim, MOST_CHANNELS),
            ("attention_head_dim", self.heads(), MOST_HEADS),
            ("norm_num_groups", self.norm_num_groups, MOST_CHANNELS),
        ] {
            within(config, field, value, 1..=most)?;
        }
        within(config, "norm_eps", self.norm_eps, 0.0..=1.0)?;
        within(config, "freq_shift", self.freq_shift, 0.0..=1.0)?;
        let features = self.block_out_channels[0] / 2;
        if features as f64 <= self.freq_shift {
            let (shift, width) = (self.freq_shift, self.block_out_channels[0]);
            let reason = format!("`freq_shift` {shift} leaves no frequency of {width} channels");
            return Err(Error::Missing { name: "unet config".into(), reason });
        }
        if let Some(motion) = &self.motion {
            motion.validate()?;
        }
        for name in &self.down_block_types {
            kind(name, "Down")?;
        }
        for name in &self.up_block_types {
            kind(name, "Up")?;
        }
        let none = [None];
        supported(config, "act_fn", &self.act_fn, &["silu".to_owned(), "swish".to_owned()])?;
        supported(config, "downsample_padding", &self.downsample_padding, &[1])?;
        supported(
            config,
            "resnet_time_scale_shift",
            &self.resnet_time_scale_shift,
            &["default".to_owned()],
        )?;
        supported(config, "time_cond_proj_dim", &self.time_cond_proj_dim, &[None])?;
        supported(config, "addition_embed_type", &self.addition_embed_type, &none)?;
        supported(config, "class_embed_type", &self.class_embed_type, &[None])
    }

    /// The number of attention heads.
    pub fn heads(&self) -> usize {
        self.num_attention_heads.unwrap_or(self.attention_head_dim)
    }

    /// The cross-attentions of the down blocks, the up blocks and the mid block, in this order, which is the one in
    /// which adapters number them.
    pub fn cross_attentions(&self) -> Result<Vec<CrossAttention>> {
        self.validate()?;
        let Stages { down, mid, up } = self.stages()?;
        let of_stage = |stage: StageConfig| {
            let StageConfig { width, level, cross_attentions, .. } = stage;
            cross_attentions.map(move |_| CrossAttention { width, level })
        };
        Ok(down.into_iter().chain(up).chain([mid]).flat_map(of_stage).collect())
    }

    /// The blocks of the network: whatever depends on its shape is derived from this list.
    ///
    /// # Errors
    ///
    /// A block type that is not supported.
    pub fn stages(&self) -> Result<Stages> {
        let widths = &self.block_out_channels;
        let last = widths.len().saturating_sub(1);
        let width = |level: usize| widths.get(level).copied().unwrap_or_default();
        let motion = self.motion.is_some();
        let mut cross_attentions = 0;
        let mut stage = |place, level: usize, layers: Vec<LayerConfig>| {
            let first = cross_attentions;
            let attentions = layers.iter().filter(|layer| layer.attention).count();
            cross_attentions += attentions * self.transformer_layers_per_block;
            let width = width(level);
            StageConfig { place, level, width, layers, cross_attentions: first..cross_attentions }
        };
        let (mut down, mut up) = (vec![], vec![]);
        for (i, name) in self.down_block_types.iter().enumerate().take(widths.len()) {
            let attention = kind(name, "Down")? == BlockKind::Attention;
            let inputs = (0..self.layers_per_block)
                .map(|j| if j == 0 { width(i.saturating_sub(1)) } else { width(i) });
            let layer = |inputs| LayerConfig { inputs, attention, motion };
            down.push(stage(Place::Down(i), i, inputs.map(layer).collect()));
        }
        for (i, name) in self.up_block_types.iter().enumerate().take(widths.len()) {
            let attention = kind(name, "Up")? == BlockKind::Attention;
            let (level, count) = (last - i, self.layers_per_block + 1);
            // Skip connections come from this level, the last one from the level above.
            let inputs = (0..count).map(|j| {
                let x = if j == 0 { width((level + 1).min(last)) } else { width(level) };
                let from = if j + 1 == count { level.saturating_sub(1) } else { level };
                x + width(from)
            });
            let layer = |inputs| LayerConfig { inputs, attention, motion };
            up.push(stage(Place::Up(i), level, inputs.map(layer).collect()));
        }
        // The mid block has attention, and perhaps a motion module, only between its two residual blocks.
        let motion = self.motion.as_ref().is_some_and(|motion| motion.use_motion_mid_block);
        let inputs = width(last);
        let layers = vec![
            LayerConfig { inputs, attention: true, motion },
            LayerConfig { inputs, attention: false, motion: false },
        ];
        Ok(Stages { mid: stage(Place::Mid, last, layers), down, up })
    }

    /// Width of the time embedding: four times the first block's width.
    pub fn time_embedding_width(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    /// The time embeddings `(times, time_embedding_width)`, after the activation and in the dtype of `x`.
    pub(in crate::models) fn embed_time(
        &self,
        embedding: &TimestepEmbedding,
        timesteps: &[f64],
        x: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let features = |timestep: &f64| {
            timestep_features(
                *timestep,
                self.block_out_channels[0],
                self.flip_sin_to_cos,
                self.freq_shift,
                x.device(),
            )
        };
        let features = timesteps.iter().map(features).collect::<candle_core::Result<Vec<_>>>()?;
        let features = Tensor::cat(&features, 0)?;
        embedding.forward(&features.to_dtype(x.dtype())?)?.silu()
    }
}

/// Parses block types such as `CrossAttnDownBlock2D`, `DownBlock2D` and `DownBlockMotion`.
fn kind(name: &str, way: &str) -> Result<BlockKind> {
    let inner = name.strip_suffix("Block2D").or_else(|| name.strip_suffix("BlockMotion"));
    match inner.map(|inner| inner.strip_prefix("CrossAttn").map_or((false, inner), |w| (true, w))) {
        Some((attention, w)) if w == way => {
            Ok(if attention { BlockKind::Attention } else { BlockKind::Plain })
        }
        _ => Err(Error::Missing {
            name: "unet config".into(),
            reason: format!("block type `{name}` is not supported"),
        }),
    }
}
