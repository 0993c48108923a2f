//! How many multiplications a run takes: convolutions, linear layers and attention, counted from the configurations.
//!
//! Norms, activations and additions are left out, as everywhere. What this program does not compute is not counted:
//! the keys and values of a prompt are computed once a clip, not once a frame.

use std::ops::{Add, AddAssign, Mul};

use serde::Serialize;

use crate::models::clip::{TextConfig, VisionConfig};
use crate::models::image_projection::{IpAdapterConfig, Projection};
use crate::models::t2i_adapter::T2iAdapterConfig;
use crate::models::unet::UNetConfig;
use crate::models::vae::{TinyVaeConfig, VaeConfig};

/// A product that stays at the largest number where it would go beyond.
pub(super) fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |all, factor| all.saturating_mul(*factor as u64))
}

/// Multiplications, each with its addition, by kind of layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Of convolutions of 3×3.
    pub convolution: u64,
    /// Of linear layers and convolutions of 1×1.
    pub linear: u64,
    /// Of scores and of weighted sums.
    pub attention: u64,
}

impl Work {
    /// Multiplications with their additions.
    pub fn macs(self) -> u64 {
        self.convolution.saturating_add(self.linear).saturating_add(self.attention)
    }

    /// Floating-point operations: two for each multiplication with its addition.
    pub fn flops(self) -> u64 {
        self.macs().saturating_mul(2)
    }

    fn conv3x3(inputs: usize, outputs: usize, pixels: usize) -> Self {
        Self { convolution: product(&[9, inputs, outputs, pixels]), ..Self::default() }
    }

    fn linear(inputs: usize, outputs: usize, tokens: usize) -> Self {
        Self { linear: product(&[inputs, outputs, tokens]), ..Self::default() }
    }

    /// Scores of `queries` with `keys`, and the sums of values, over all heads together `width` wide.
    fn attention(queries: usize, keys: usize, width: usize) -> Self {
        Self { attention: product(&[2, queries, keys, width]), ..Self::default() }
    }

    fn resnet(inputs: usize, outputs: usize, pixels: usize) -> Self {
        let shortcut =
            if inputs == outputs { Self::default() } else { Self::linear(inputs, outputs, pixels) };
        Self::conv3x3(inputs, outputs, pixels) + Self::conv3x3(outputs, outputs, pixels) + shortcut
    }

    /// The gated feed-forward part of a transformer block.
    fn feed_forward(width: usize, tokens: usize) -> Self {
        Self::linear(width, 8 * width, tokens) + Self::linear(4 * width, width, tokens)
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            convolution: self.convolution.saturating_add(other.convolution),
            linear: self.linear.saturating_add(other.linear),
            attention: self.attention.saturating_add(other.attention),
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<usize> for Work {
    type Output = Self;

    fn mul(self, times: usize) -> Self {
        let times = times as u64;
        Self {
            convolution: self.convolution.saturating_mul(times),
            linear: self.linear.saturating_mul(times),
            attention: self.attention.saturating_mul(times),
        }
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Add::add)
    }
}

/// The sizes of a clip in latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipSize {
    /// Frames.
    pub frames: usize,
    /// Latents a frame is high.
    pub height: usize,
    /// Latents a frame is wide.
    pub width: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
}

/// A pass of the UNet over a clip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UNetWork {
    /// The network of images.
    pub spatial: Work,
    /// The motion modules.
    pub motion: Work,
}

impl UNetWork {
    /// Both together.
    pub fn total(self) -> Work {
        self.spatial + self.motion
    }
}

/// One pass of the UNet over one clip.
pub fn unet(config: &UNetConfig, clip: ClipSize) -> UNetWork {
    let mut counter = Counter { config, clip, work: UNetWork::default() };
    let skips = counter.down();
    counter.up(skips);
    counter.work
}

/// One pass over one clip of a UNet's first half, whose results each have a convolution of 1×1 behind them.
pub fn trunk(config: &UNetConfig, clip: ClipSize) -> UNetWork {
    let mut counter = Counter { config, clip, work: UNetWork::default() };
    counter.down();
    let outs = &config.block_out_channels;
    let last = outs.len().saturating_sub(1);
    for (level, &width) in outs.iter().enumerate() {
        // Of the layers; of the input or the halved result that came before; of the middle.
        let before = outs[level.saturating_sub(1)];
        let pixels = counter.area(level) * clip.frames;
        let extra = usize::from(level == last);
        let layers = config.layers_per_block + extra;
        counter.work.spatial +=
            Work::linear(width, width, pixels) * layers + Work::linear(before, before, pixels);
    }
    counter.work
}

/// Shrinking a hint of `channels` channels for every frame of a clip through these widths, or by one convolution at the
/// size of latents where there are none, to `outputs` channels.
pub fn hint(channels: usize, widths: &[usize], outputs: usize, clip: ClipSize) -> Work {
    let mut pixels = clip.height * clip.width * clip.frames;
    pixels <<= 2 * widths.len().saturating_sub(1);
    let Some(&first) = widths.first() else { return Work::conv3x3(channels, outputs, pixels) };
    let mut work = Work::conv3x3(channels, first, pixels);
    for pair in widths.windows(2) {
        if let [from, to] = *pair {
            work += Work::conv3x3(from, from, pixels) + Work::conv3x3(from, to, pixels / 4);
            pixels /= 4;
        }
    }
    work + Work::conv3x3(widths.last().copied().unwrap_or(first), outputs, pixels)
}

/// The features of a hint for every frame of a clip.
pub fn t2i_adapter(config: &T2iAdapterConfig, clip: ClipSize) -> Work {
    let (mut height, mut width) = (clip.height, clip.width);
    let widths = config.widths();
    let mut inputs = config.unshuffled();
    let mut work = Work::default();
    for (i, &outputs) in widths.iter().enumerate() {
        if i > 0 {
            (height, width) = (height.div_ceil(2), width.div_ceil(2));
        }
        let pixels = height * width * clip.frames;
        let layers = config.num_res_blocks;
        if config.is_light() {
            let inner = outputs / 4;
            work += Work::linear(inputs, inner, pixels) + Work::linear(inner, outputs, pixels);
            work += Work::conv3x3(inner, inner, pixels) * (2 * layers);
        } else {
            if i == 0 {
                work += Work::conv3x3(inputs, outputs, pixels);
            } else if inputs != outputs {
                work += Work::linear(inputs, outputs, pixels);
            }
            work += (Work::conv3x3(outputs, outputs, pixels)
                + Work::linear(outputs, outputs, pixels))
                * layers;
        }
        inputs = outputs;
    }
    work
}

fn has_attention(names: &[String], i: usize) -> bool {
    names.get(i).is_some_and(|name| name.starts_with("CrossAttn"))
}

/// Walks through a UNet as [`UNet::forward`](crate::models::unet::UNet::forward) does.
struct Counter<'a> {
    config: &'a UNetConfig,
    clip: ClipSize,
    work: UNetWork,
}

impl Counter<'_> {
    /// A frame's latents at a level; a convolution of stride 2 rounds up.
    fn area(&self, level: usize) -> usize {
        (0..level).fold(self.clip.height, |size, _| size.div_ceil(2))
            * (0..level).fold(self.clip.width, |size, _| size.div_ceil(2))
    }

    /// The way down and the middle; the widths of the skips.
    fn down(&mut self) -> Vec<usize> {
        let config = self.config;
        let widths = &config.block_out_channels;
        let (Some(&first), Some(&deepest)) = (widths.first(), widths.last()) else {
            return vec![];
        };
        let levels = widths.len();
        let frames = self.clip.frames;
        let time = config.time_embedding_width();
        self.work.spatial += Work::linear(first, time, 1) + Work::linear(time, time, 1);
        self.work.spatial += Work::conv3x3(config.in_channels, first, self.area(0) * frames);

        let mut channels = first;
        let mut skips = vec![first];
        for (level, &width) in widths.iter().enumerate() {
            let attention = has_attention(&config.down_block_types, level);
            for _ in 0..config.layers_per_block {
                self.layer(channels, width, self.area(level), attention, true);
                channels = width;
                skips.push(width);
            }
            if level + 1 < levels {
                self.work.spatial += Work::conv3x3(width, width, self.area(level + 1) * frames);
                skips.push(width);
            }
        }
        let mid_motion = config.motion.as_ref().is_some_and(|m| m.use_motion_mid_block);
        self.layer(deepest, deepest, self.area(levels - 1), true, mid_motion);
        self.layer(deepest, deepest, self.area(levels - 1), false, false);
        skips
    }

    /// The way up and out.
    fn up(&mut self, mut skips: Vec<usize>) {
        let config = self.config;
        let widths = &config.block_out_channels;
        let (Some(&first), Some(&deepest)) = (widths.first(), widths.last()) else { return };
        let levels = widths.len();
        let frames = self.clip.frames;
        let mut channels = deepest;
        for (i, level) in (0..levels).rev().enumerate() {
            let width = widths[level];
            let attention = has_attention(&config.up_block_types, i);
            for _ in 0..=config.layers_per_block {
                let inputs = channels + skips.pop().unwrap_or(0);
                self.layer(inputs, width, self.area(level), attention, true);
                channels = width;
            }
            if level > 0 {
                self.work.spatial += Work::conv3x3(width, width, self.area(level - 1) * frames);
            }
        }
        self.work.spatial += Work::conv3x3(first, config.out_channels, self.area(0) * frames);
    }

    /// Residual block, attention over space, attention over frames.
    fn layer(&mut self, inputs: usize, width: usize, area: usize, attention: bool, motion: bool) {
        let config = self.config;
        let ClipSize { frames, tokens, .. } = self.clip;
        let pixels = area * frames;
        let work = &mut self.work.spatial;
        *work += Work::resnet(inputs, width, pixels);
        *work += Work::linear(config.time_embedding_width(), width, 1);
        if attention {
            let block = Work::linear(width, width, 6 * pixels) // queries twice; keys, values, outputs
                + Work::attention(area, area, width) * frames
                + Work::linear(config.cross_attention_dim, 2 * width, tokens)
                + Work::attention(pixels, tokens, width)
                + Work::feed_forward(width, pixels);
            *work += Work::linear(width, width, 2 * pixels); // the projections around the blocks
            *work += block * config.transformer_layers_per_block;
        }
        if motion && config.motion.is_some() {
            let twice = config.motion.as_ref().is_some_and(|motion| motion.double_self_attention);
            let work = &mut self.work.motion;
            *work += Work::linear(width, width, 2 * pixels);
            *work += (Work::linear(width, width, 4 * pixels)
                + Work::attention(frames, frames, width) * area)
                * if twice { 2 } else { 1 };
            *work += Work::feed_forward(width, pixels);
        }
    }
}

/// Decoding one frame of `height` × `width` latents.
pub fn decoder(config: &VaeConfig, height: usize, width: usize) -> Work {
    let mut pixels = height * width;
    let Some(&deepest) = config.block_out_channels.last() else { return Work::default() };
    let latents = config.latent_channels;
    let mut work =
        Work::conv3x3(latents, deepest, pixels) + Work::resnet(deepest, deepest, pixels) * 2;
    if config.use_post_quant_conv {
        work += Work::linear(latents, latents, pixels);
    }
    if config.mid_block_add_attention {
        work +=
            Work::linear(deepest, deepest, 4 * pixels) + Work::attention(pixels, pixels, deepest);
    }
    let mut channels = deepest;
    for (level, &width) in config.block_out_channels.iter().enumerate().rev() {
        for _ in 0..=config.layers_per_block {
            work += Work::resnet(channels, width, pixels);
            channels = width;
        }
        if level > 0 {
            pixels *= 4;
            work += Work::conv3x3(width, width, pixels);
        }
    }
    work + Work::conv3x3(channels, config.out_channels, pixels)
}

/// Decoding one frame of `height` × `width` latents with TAESD.
pub fn tiny_decoder(config: &TinyVaeConfig, height: usize, width: usize) -> Work {
    let mut pixels = height * width;
    let widths = &config.decoder_block_out_channels;
    let Some(&first) = widths.first() else { return Work::default() };
    let mut work = Work::conv3x3(config.latent_channels, first, pixels);
    for (i, (&width, &blocks)) in widths.iter().zip(&config.num_decoder_blocks).enumerate() {
        work += Work::conv3x3(width, width, pixels) * (3 * blocks);
        let is_last = i + 1 == widths.len();
        if !is_last {
            pixels *= 4;
        }
        let outputs = if is_last { config.out_channels } else { width };
        work += Work::conv3x3(width, outputs, pixels);
    }
    work
}

/// Encoding one prompt.
pub fn text(config: &TextConfig) -> Work {
    let (tokens, width) = (config.max_position_embeddings, config.hidden_size);
    clip_layer(tokens, width, config.intermediate_size) * config.num_hidden_layers
}

/// Looking at one picture.
pub fn vision(config: &VisionConfig) -> Work {
    let (tokens, width) = (config.tokens(), config.hidden_size);
    let patch = config.num_channels * config.patch_size * config.patch_size;
    Work::linear(patch, width, tokens.saturating_sub(1))
        + clip_layer(tokens, width, config.intermediate_size) * config.num_hidden_layers
        + Work::linear(width, config.projection_dim, 1)
}

fn clip_layer(tokens: usize, width: usize, inner: usize) -> Work {
    Work::linear(width, width, 4 * tokens)
        + Work::attention(tokens, tokens, width)
        + Work::linear(width, inner, 2 * tokens)
}

/// What an IP-Adapter makes of one picture, of which the image encoder has made `states`.
pub fn ip_adapter(config: &IpAdapterConfig, states: usize) -> Work {
    let IpAdapterConfig { features, context, .. } = *config;
    let projection = match config.projection {
        Projection::Linear { tokens } => Work::linear(features, tokens * context, 1),
        Projection::Mlp { inner } => {
            Work::linear(features, inner, states) + Work::linear(inner, context, states)
        }
        Projection::Resampler { tokens, width, layers, heads, inner } => {
            let all = 64 * heads;
            let block = Work::linear(width, all, 2 * tokens)
                + Work::linear(width, 2 * all, states + tokens)
                + Work::attention(tokens, states + tokens, all)
                + Work::linear(width, inner, 2 * tokens);
            Work::linear(features, width, states)
                + block * layers
                + Work::linear(width, context, tokens)
        }
    };
    let width: usize = config.widths.iter().sum();
    projection + Work::linear(context, 2 * width, config.tokens(states))
}

/// What an IP-Adapter adds to a pass of the UNet: its pictures have `tokens` tokens in all.
pub fn image_prompt(config: &UNetConfig, clip: ClipSize, tokens: usize) -> crate::Result<Work> {
    let mut sizes = vec![(clip.height, clip.width)];
    let mut work = Work::default();
    for attention in config.cross_attentions()? {
        while sizes.len() <= attention.level {
            let (height, width) = sizes[sizes.len() - 1];
            sizes.push((height.div_ceil(2), width.div_ceil(2)));
        }
        let (height, width) = sizes[attention.level];
        work += Work::attention(height * width * clip.frames, tokens, attention.width);
    }
    Ok(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::motion::MotionConfig;
    use crate::models::sparse_ctrl::SparseCtrlConfig;

    /// Stable Diffusion 1.5 with motion at 512×512.
    fn sd15(frames: usize, side: usize) -> UNetWork {
        let config = UNetConfig::sd15().with_motion(MotionConfig::default());
        unet(&config, ClipSize { frames, height: side, width: side, tokens: 77 })
    }

    /// Within one in a hundred.
    fn near(got: u64, giga: f64) -> bool {
        (got as f64 / (giga * 1e9) - 1.0).abs() < 0.01
    }

    #[test]
    fn stable_diffusion_takes_the_known_number_of_multiplications() {
        let one = sd15(1, 64).spatial;
        assert!(near(one.macs(), 402.0), "{one:?}");
        assert!(near(one.convolution + one.linear, 339.0), "{one:?}");
        assert!(near(one.attention, 63.0), "{one:?}");
        let motion = sd15(16, 64).motion;
        // 22 channels² a pixel and module: 5 modules at each of the first three resolutions, 6 at the last.
        let module = |pixels: u64, channels: u64| 22 * pixels * channels * channels;
        let first_three = module(4096, 320) + module(1024, 640) + module(256, 1280);
        assert_eq!(motion.linear, 16 * (5 * first_three + 6 * module(64, 1280)));
        let vae = decoder(&VaeConfig::default(), 64, 64);
        assert!(near(vae.macs(), 1257.0), "{vae:?}");
        assert!(near(sd15(8, 32).total().flops(), 2040.0), "{:?}", sd15(8, 32).total());
    }

    /// Numbers of PyTorch's modules in diffusers' networks, counted by hooks.
    #[test]
    fn networks_beside_the_unet_take_the_known_number_of_multiplications() {
        let clip = ClipSize { frames: 1, height: 64, width: 64, tokens: 77 };
        let net = trunk(&UNetConfig::sd15(), clip).spatial;
        assert_eq!((net.convolution, net.linear), (51_951_697_920, 57_108_971_520));
        let widths = [16, 32, 96, 256];
        assert_eq!(hint(3, &widths, 320, clip).macs(), 7_361_003_520);
        let full = t2i_adapter(&T2iAdapterConfig::default(), clip);
        assert_eq!((full.convolution, full.linear), (26_801_602_560, 3_145_728_000));
        let light = t2i_adapter(&T2iAdapterConfig::light(), clip);
        assert_eq!((light.convolution, light.linear), (6_134_169_600, 534_773_760));

        let sparse = SparseCtrlConfig::default().with_motion();
        let two = ClipSize { frames: 2, ..clip };
        assert_eq!(trunk(&sparse, two).motion.linear, 98_146_713_600);
        assert_eq!(hint(5, &[], 320, two).macs(), 117_964_800);
        assert_eq!(hint(4, &widths, 320, two).macs(), 14_797_504_512);
    }

    #[test]
    fn without_motion_there_is_no_work_for_it() {
        let clip = ClipSize { frames: 4, height: 8, width: 8, tokens: 77 };
        let still = unet(&UNetConfig::sd15(), clip);
        assert_eq!(still.motion, Work::default());
        let no_mid = MotionConfig { use_motion_mid_block: false, ..MotionConfig::default() };
        let without = unet(&UNetConfig::sd15().with_motion(no_mid), clip);
        let with = unet(&UNetConfig::sd15().with_motion(MotionConfig::default()), clip);
        assert!(without.motion.macs() < with.motion.macs());
        assert_eq!(without.spatial, still.spatial);
    }

    #[test]
    fn a_small_decoder_is_far_cheaper() {
        let tiny = tiny_decoder(&TinyVaeConfig::default(), 64, 64).macs();
        let whole = decoder(&VaeConfig::default(), 64, 64).macs();
        assert!(tiny * 15 < whole && tiny * 20 > whole, "{tiny} and {whole}");
    }

    #[test]
    fn the_text_encoder_reads_77_tokens() {
        // 12 layers of 12 · 768² weights on 77 tokens, and the attention.
        let linear = 12 * 12 * 768 * 768 * 77;
        assert_eq!(text(&TextConfig::default()).linear, linear);
    }

    #[test]
    fn pictures_cost_little_in_every_step() {
        let encoder = vision(&VisionConfig::vit_h());
        // 630 million weights, for almost all of which there are 257 tokens; attention over 257 tokens 32 times.
        assert!(near(encoder.linear, 161.9), "{encoder:?}");
        assert_eq!(encoder.attention, 2 * 257 * 257 * 1280 * 32);
        let unet = UNetConfig::sd15();
        let widths: Vec<usize> =
            unet.cross_attentions().unwrap().iter().map(|attention| attention.width).collect();
        assert_eq!(widths.iter().sum::<usize>(), 12480);
        let base = IpAdapterConfig {
            projection: Projection::Linear { tokens: 4 },
            features: 1024,
            context: 768,
            widths,
        };
        let once = 1024 * 4 * 768 + 768 * 2 * 12480 * 4;
        assert_eq!(ip_adapter(&base, 257), Work { linear: once, ..Work::default() });
        let clip = ClipSize { frames: 16, height: 64, width: 64, tokens: 77 };
        let step = image_prompt(&unet, clip, 4).unwrap();
        let share = step.macs() as f64 / sd15(16, 64).total().macs() as f64;
        assert!(share < 0.0002, "{share}");
        // The cross attention of a prompt, over as many tokens.
        let prompt = |tokens| sd15_tokens(tokens).attention;
        assert_eq!(step.attention, prompt(81) - prompt(77));
    }

    fn sd15_tokens(tokens: usize) -> Work {
        let clip = ClipSize { frames: 16, height: 64, width: 64, tokens };
        unet(&UNetConfig::sd15(), clip).spatial
    }
}
