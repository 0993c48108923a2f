//! The spatial transformer over the pixels of an image.

use crate::weights::VarBuilder;
use candle_core::{Result, Tensor};

use super::{
    Attention, Conv2d, ConvOptions, FeedForward, GroupNorm, ImageContext, LayerNorm, Linear,
};
use crate::Stop;
use crate::kernels::ConvArgs;
use crate::kernels::layout::{feature_map, tokens};

/// Options of a [`SpatialTransformer`].
#[derive(Clone, Copy, Debug)]
pub struct TransformerOptions {
    /// Number of input and output channels.
    pub channels: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the text embeddings.
    pub context: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Number of groups of the norm.
    pub groups: usize,
    /// Whether the projections are linear layers (Stable Diffusion 2) rather than 1×1 convolutions (1.5).
    pub linear_projection: bool,
}

/// Spatial transformer: norm, projection, transformer blocks over the pixels, projection, plus the input.
#[derive(Clone, Debug)]
pub struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<Block>,
    proj_out: Projection,
}

#[derive(Clone, Debug)]
enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

impl Projection {
    fn new(options: &TransformerOptions, vb: &VarBuilder) -> Result<Self> {
        let channels = options.channels;
        Ok(if options.linear_projection {
            Self::Linear(Linear::new(channels, channels, vb)?)
        } else {
            Self::Conv(Conv2d::new(channels, channels, ConvOptions::POINT, vb)?)
        })
    }
}

/// Self-attention, cross-attention and feed-forward network, each pre-norm with a residual.
#[derive(Clone, Debug)]
struct Block {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl Block {
    fn new(options: &TransformerOptions, vb: &VarBuilder) -> Result<Self> {
        let TransformerOptions { channels, heads, context, .. } = *options;
        let norm = |name: &str| LayerNorm::new(channels, 1e-5, &vb.pp(name));
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(channels, channels, heads, &vb.pp("attn1"))?,
            norm2: norm("norm2")?,
            attn2: Attention::new(channels, context, heads, &vb.pp("attn2"))?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(channels, &vb.pp("ff"))?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        (images, alone): (&[ImageContext], usize),
        stop: &Stop,
    ) -> Result<Tensor> {
        let y = self.norm1.forward(x)?;
        let x = self.attn1.forward_self(&y, x, alone, stop)?;
        let y = self.norm2.forward(&x)?;
        let x = self.attn2.forward_decoupled(&y, context, images, &x, stop)?;
        self.ff.forward(&self.norm3.forward(&x)?, &x, stop)
    }
}

impl SpatialTransformer {
    /// Loads `norm`, `proj_in`, `transformer_blocks.N` and `proj_out`.
    pub fn new(options: &TransformerOptions, vb: &VarBuilder) -> Result<Self> {
        let blocks = (0..options.depth)
            .map(|i| Block::new(options, &vb.pp("transformer_blocks").pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            norm: GroupNorm::new(options.groups, options.channels, 1e-6, &vb.pp("norm"))?,
            proj_in: Projection::new(options, &vb.pp("proj_in"))?,
            blocks,
            proj_out: Projection::new(options, &vb.pp("proj_out"))?,
        })
    }

    /// The number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Maps `(batch*frames, channels, height, width)` to the same shape; `context` is `(batch, tokens, dim)`.
    ///
    /// `images` has a list of image contexts per block, or is empty; so has `alone` the number of images at the end of
    /// the batch whose pixels attend to themselves alone.
    pub fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        (images, alone): (&[Vec<ImageContext>], &[usize]),
        stop: &Stop,
    ) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let y = self.norm.forward(x)?;
        let mut y = match &self.proj_in {
            Projection::Conv(conv) => tokens(&conv.forward(&y)?)?,
            Projection::Linear(linear) => linear.forward(&tokens(&y)?)?,
        }; // (batch*frames, height*width, channels)
        for (i, block) in self.blocks.iter().enumerate() {
            let images = images.get(i).map(Vec::as_slice).unwrap_or_default();
            let alone = alone.get(i).copied().unwrap_or_default();
            y = block.forward(&y, context, (images, alone), stop)?;
        }
        match &self.proj_out {
            Projection::Conv(conv) => {
                let args = ConvArgs { residual: Some(x), ..ConvArgs::default() };
                conv.forward_with(&feature_map(&y, height, width)?, args)
            }
            Projection::Linear(linear) => {
                feature_map(&linear.forward_residual(&y, &tokens(x)?)?, height, width)
            }
        }
    }
}
