//! Layers, built from sizes and a [`VarBuilder`](crate::weights::VarBuilder), with a `forward` function. They are
//! independent of any model.
//!
//! Tensor names are those of diffusers.

mod attention;
mod conv;
mod conv3d;
mod feed_forward;
mod interpolate;
mod linear;
mod norm;
mod position;
mod resample;
mod resnet;
mod timestep;
mod transformer;

pub use attention::{Attention, ImageContext};
pub(crate) use attention::{causal_mask, check_heads, masked_attention};
pub use conv::{Conv2d, ConvOptions};
pub use conv3d::{Conv3d, max_pool3d};
pub use feed_forward::FeedForward;
pub use interpolate::{Interpolation, interpolate};
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
pub use position::sinusoidal_positions;
pub use resample::{Downsample, DownsamplePadding, Upsample};
pub use resnet::{ResnetBlock, ResnetOptions};
pub use timestep::{TimestepEmbedding, timestep_features};
pub use transformer::{SpatialTransformer, TransformerOptions};
