//! IP-Adapter: projects image encoder features to keys and values for the UNet's cross-attentions.
//!
//! Ye et al. (2023). The names are those of the published files, `image_proj` and `ip_adapter`. Keys and values are
//! computed here, outside the UNet, because they only depend on the image.

use crate::weights::VarBuilder;
use candle_core::{D, Result as TensorResult, Tensor};

use crate::models::MOST_CHANNELS;
use crate::nn::{LayerNorm, Linear};
use crate::{Error, Result, kernels};

/// Channels per attention head of the resampler.
const HEAD: usize = 64;

/// Epsilon of all layer norms.
const EPS: f64 = 1e-5;

/// Image encoder features that an adapter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureKind {
    /// The image embedding, `(images, features)`.
    Embedding,
    /// The hidden states before the image encoder's last layer, `(images, tokens, features)`.
    Penultimate,
}

/// Projection from image features to tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// A linear layer: the original adapter and its light version.
    Linear {
        /// Number of tokens per embedding, 4.
        tokens: usize,
    },
    /// Learned queries that attend to the features, as in Flamingo: the "plus" adapters.
    Resampler {
        /// Number of queries, 16.
        tokens: usize,
        /// Width of the queries, 768.
        width: usize,
        /// Number of blocks, 4.
        layers: usize,
        /// Number of attention heads with 64 channels each, 12.
        heads: usize,
        /// Hidden size of the feed-forward layers, 3072.
        inner: usize,
    },
    /// A two-layer MLP applied to every hidden state: the "full" adapter.
    Mlp {
        /// Hidden size, 1280.
        inner: usize,
    },
}

/// Configuration of an IP-Adapter. It is derived from the weight shapes, as there is no configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpAdapterConfig {
    /// The projection from image features to tokens.
    pub projection: Projection,
    /// Width of the image features: 1024 for embeddings, 1280 for hidden states.
    pub features: usize,
    /// Width of a token, 768.
    pub context: usize,
    /// The width of every cross-attention, in the order of
    /// [`UNetConfig::cross_attentions`](crate::models::unet::UNetConfig::cross_attentions).
    pub widths: Vec<usize>,
}

impl IpAdapterConfig {
    /// The configuration derived from the shapes of the weights.
    ///
    /// # Errors
    ///
    /// Shapes of no known projection.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<usize>>) -> Result<Self> {
        let wrong = |summary: String| Error::Weights { component: "ip-adapter".into(), summary };
        let dim = |name: &str, axis: usize| {
            let found = shape(name).and_then(|shape| shape.get(axis).copied());
            let found = found
                .ok_or_else(|| wrong(format!("`{name}` is missing, so its size cannot be told")))?;
            if (1..=MOST_CHANNELS).contains(&found) {
                return Ok(found);
            }
            Err(wrong(format!("`{name}` has a side of {found}, not between 1 and {MOST_CHANNELS}")))
        };
        let has = |name: &str| shape(name).is_some();
        let (projection, features, context) = if has("image_proj.proj.weight") {
            let context = dim("image_proj.norm.weight", 0)?;
            let tokens = dim("image_proj.proj.weight", 0)? / context;
            (Projection::Linear { tokens }, dim("image_proj.proj.weight", 1)?, context)
        } else if has("image_proj.latents") {
            let count = |i: &usize| has(&format!("image_proj.layers.{i}.0.to_q.weight"));
            let projection = Projection::Resampler {
                tokens: dim("image_proj.latents", 1)?,
                width: dim("image_proj.latents", 2)?,
                layers: (0..).take_while(count).count(),
                heads: dim("image_proj.layers.0.0.to_q.weight", 0)? / HEAD,
                inner: dim("image_proj.layers.0.1.1.weight", 0)?,
            };
            let context = dim("image_proj.proj_out.weight", 0)?;
            (projection, dim("image_proj.proj_in.weight", 1)?, context)
        } else if has("image_proj.proj.3.weight") {
            let inner = dim("image_proj.proj.0.weight", 0)?;
            let features = dim("image_proj.proj.0.weight", 1)?;
            (Projection::Mlp { inner }, features, dim("image_proj.proj.3.weight", 0)?)
        } else {
            return Err(wrong("unknown projection of image features to tokens".into()));
        };
        let key = |i: usize| shape(&format!("{}.to_k_ip.weight", module(i)));
        let widths = (0..).map_while(|i| key(i)?.first().copied()).collect();
        Ok(Self { projection, features, context, widths })
    }

    /// The image encoder features that the adapter takes.
    pub fn feature_kind(&self) -> FeatureKind {
        match self.projection {
            Projection::Linear { .. } => FeatureKind::Embedding,
            Projection::Resampler { .. } | Projection::Mlp { .. } => FeatureKind::Penultimate,
        }
    }

    /// Number of tokens per image, if the image encoder returns `states` hidden states.
    pub fn tokens(&self, states: usize) -> usize {
        match self.projection {
            Projection::Linear { tokens } | Projection::Resampler { tokens, .. } => tokens,
            Projection::Mlp { .. } => states,
        }
    }
}

/// Name of a cross-attention's weights in the published files. Even numbers are self-attentions.
fn module(attention: usize) -> String {
    format!("ip_adapter.{}", 2 * attention + 1)
}

/// An IP-Adapter.
#[derive(Clone, Debug)]
pub struct IpAdapter {
    config: IpAdapterConfig,
    projection: Network,
    /// Key and value projections of every cross-attention.
    attentions: Vec<(Linear, Linear)>,
}

#[derive(Clone, Debug)]
enum Network {
    Linear { proj: Linear, norm: LayerNorm },
    Resampler(Resampler),
    Mlp { first: Linear, second: Linear, norm: LayerNorm },
}

impl IpAdapter {
    /// Loads `image_proj` and `ip_adapter`.
    pub fn new(config: &IpAdapterConfig, vb: &VarBuilder) -> TensorResult<Self> {
        let IpAdapterConfig { features, context, .. } = *config;
        let image_proj = vb.pp("image_proj");
        let projection = match config.projection {
            Projection::Linear { tokens } => Network::Linear {
                proj: Linear::new(features, tokens * context, &image_proj.pp("proj"))?,
                norm: LayerNorm::new(context, EPS, &image_proj.pp("norm"))?,
            },
            Projection::Resampler { .. } => {
                Network::Resampler(Resampler::new(config, &image_proj)?)
            }
            Projection::Mlp { inner } => Network::Mlp {
                first: Linear::new(features, inner, &image_proj.pp("proj.0"))?,
                second: Linear::new(inner, context, &image_proj.pp("proj.2"))?,
                norm: LayerNorm::new(context, EPS, &image_proj.pp("proj.3"))?,
            },
        };
        let attention = |(i, width): (usize, &usize)| {
            let vb = vb.pp(module(i));
            let linear = |name: &str| Linear::without_bias(context, *width, &vb.pp(name));
            Ok((linear("to_k_ip")?, linear("to_v_ip")?))
        };
        let attentions = config.widths.iter().enumerate().map(attention);
        Ok(Self {
            projection,
            attentions: attentions.collect::<TensorResult<_>>()?,
            config: config.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &IpAdapterConfig {
        &self.config
    }

    /// Projects image features of the kind [wanted](IpAdapterConfig::feature_kind) to `(images, tokens, context)`.
    pub fn tokens(&self, features: &Tensor) -> TensorResult<Tensor> {
        match &self.projection {
            Network::Linear { proj, norm } => {
                let context = self.config.context;
                norm.forward(&proj.forward(features)?.reshape((features.dim(0)?, (), context))?)
            }
            Network::Resampler(resampler) => resampler.forward(features),
            Network::Mlp { first, second, norm } => {
                norm.forward(&second.forward(&first.forward(features)?.gelu_erf()?)?)
            }
        }
    }

    /// The keys and values of every cross-attention, `(batch, tokens, width)` each, for tokens
    /// `(batch, tokens, context)`.
    pub fn keys_and_values(&self, tokens: &Tensor) -> TensorResult<Vec<(Tensor, Tensor)>> {
        let attentions = self.attentions.iter();
        attentions.map(|(to_k, to_v)| Ok((to_k.forward(tokens)?, to_v.forward(tokens)?))).collect()
    }
}

/// Learned queries that repeatedly attend to the image features.
#[derive(Clone, Debug)]
struct Resampler {
    latents: Tensor,
    proj_in: Linear,
    layers: Vec<Block>,
    proj_out: Linear,
    norm_out: LayerNorm,
}

#[derive(Clone, Debug)]
struct Block {
    features_norm: LayerNorm,
    latents_norm: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
    norm: LayerNorm,
    expand: Linear,
    shrink: Linear,
}

impl Resampler {
    fn new(config: &IpAdapterConfig, vb: &VarBuilder) -> TensorResult<Self> {
        let Projection::Resampler { tokens, width, layers, heads, inner } = config.projection
        else {
            candle_core::bail!("no resampler");
        };
        let block = |i: usize| {
            let vb = vb.pp("layers").pp(i);
            let (attention, feed_forward) = (vb.pp("0"), vb.pp("1"));
            let linear = Linear::without_bias;
            Ok(Block {
                features_norm: LayerNorm::new(width, EPS, &attention.pp("norm1"))?,
                latents_norm: LayerNorm::new(width, EPS, &attention.pp("norm2"))?,
                to_q: linear(width, heads * HEAD, &attention.pp("to_q"))?,
                to_kv: linear(width, 2 * heads * HEAD, &attention.pp("to_kv"))?,
                to_out: linear(heads * HEAD, width, &attention.pp("to_out"))?,
                heads,
                norm: LayerNorm::new(width, EPS, &feed_forward.pp("0"))?,
                expand: linear(width, inner, &feed_forward.pp("1"))?,
                shrink: linear(inner, width, &feed_forward.pp("3"))?,
            })
        };
        Ok(Self {
            latents: vb.get((1, tokens, width), "latents")?,
            proj_in: Linear::new(config.features, width, &vb.pp("proj_in"))?,
            layers: (0..layers).map(block).collect::<TensorResult<_>>()?,
            proj_out: Linear::new(width, config.context, &vb.pp("proj_out"))?,
            norm_out: LayerNorm::new(config.context, EPS, &vb.pp("norm_out"))?,
        })
    }

    fn forward(&self, features: &Tensor) -> TensorResult<Tensor> {
        let x = self.proj_in.forward(features)?;
        let mut latents = self.latents.repeat((x.dim(0)?, 1, 1))?;
        for block in &self.layers {
            latents = block.forward(&x, &latents)?;
        }
        self.norm_out.forward(&self.proj_out.forward(&latents)?)
    }
}

impl Block {
    fn forward(&self, x: &Tensor, latents: &Tensor) -> TensorResult<Tensor> {
        // The queries attend to the features and to themselves.
        let seen = self.latents_norm.forward(latents)?;
        let all = Tensor::cat(&[&self.features_norm.forward(x)?, &seen], 1)?;
        let split = |y: &Tensor| y.reshape((y.dim(0)?, y.dim(1)?, self.heads, HEAD));
        let kv = self.to_kv.forward(&all)?.chunk(2, D::Minus1)?;
        let q = split(&self.to_q.forward(&seen)?)?;
        let y = kernels::attention(&q, &split(&kv[0])?, &split(&kv[1])?, (HEAD as f64).powf(-0.5))?;
        let latents = (self.to_out.forward(&y.flatten_from(D::Minus2)?)? + latents)?;
        let y = self.expand.forward(&self.norm.forward(&latents)?)?.gelu_erf()?;
        self.shrink.forward(&y)? + latents
    }
}
