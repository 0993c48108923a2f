//! TAESD, an autoencoder of convolutions and ReLU only, <https://github.com/madebyollin/taesd>.

use crate::weights::VarBuilder;
use candle_core::Tensor;

use super::TinyVaeConfig;
use crate::kernels::layout::map;
use crate::kernels::{Activation, ConvArgs};
use crate::nn::{Conv2d, ConvOptions};
use crate::{Result, Stop};

type TensorResult = candle_core::Result<Tensor>;

/// The TAESD autoencoder.
#[derive(Clone, Debug)]
pub struct AutoencoderTiny {
    config: TinyVaeConfig,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
}

#[derive(Clone, Debug)]
enum Layer {
    Conv(Conv2d),
    Residual([Conv2d; 3]),
    Relu,
    Double,
}

/// Runs layers in sequence.
fn run(layers: &[Layer], mut x: Tensor, stop: &Stop) -> TensorResult {
    let plain = ConvArgs { stop: Some(stop), ..ConvArgs::default() };
    let relu = ConvArgs { activation: Activation::Relu, ..plain };
    // Upsampled size for the next convolution.
    let mut stretch = None;
    for layer in layers {
        x = match layer {
            Layer::Conv(conv) => {
                conv.forward_with(&x, ConvArgs { stretch: stretch.take(), ..plain })?
            }
            Layer::Residual([a, b, c]) => {
                let y = b.forward_with(&a.forward_with(&x, relu)?, relu)?;
                map(&c.forward_with(&y, ConvArgs { residual: Some(&x), ..plain })?, Tensor::relu)?
            }
            Layer::Relu => map(&x, Tensor::relu)?,
            Layer::Double => {
                let (_, _, height, width) = x.dims4()?;
                stretch = Some((2 * height, 2 * width));
                x
            }
        };
    }
    x.contiguous()
}

/// Builder of a list of layers that are named by their index.
struct Sequence<'a> {
    layers: Vec<Layer>,
    vb: VarBuilder<'a>,
}

impl Sequence<'_> {
    fn conv(&mut self, inputs: usize, outputs: usize, options: ConvOptions) -> Result<()> {
        let conv = Conv2d::new(inputs, outputs, options, &self.vb.pp(self.layers.len()))?;
        self.layers.push(Layer::Conv(conv));
        Ok(())
    }

    fn residual(&mut self, width: usize) -> Result<()> {
        let vb = self.vb.pp(self.layers.len()).pp("conv");
        let conv = |i: usize| Conv2d::new(width, width, ConvOptions::SAME_3X3, &vb.pp(i));
        let block = [conv(0)?, conv(2)?, conv(4)?];
        self.layers.push(Layer::Residual(block));
        Ok(())
    }
}

impl AutoencoderTiny {
    /// Loads encoder and decoder.
    pub fn new(config: &TinyVaeConfig, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let same = ConvOptions::SAME_3X3;
        let unbiased = ConvOptions { bias: false, ..same };

        let mut encoder = Sequence { layers: vec![], vb: vb.pp("encoder.layers") };
        let mut inputs = config.in_channels;
        let stages = config.encoder_block_out_channels.iter().zip(&config.num_encoder_blocks);
        for (i, (&width, &blocks)) in stages.enumerate() {
            let options = if i == 0 { same } else { ConvOptions { stride: 2, ..unbiased } };
            encoder.conv(inputs, width, options)?;
            for _ in 0..blocks {
                encoder.residual(width)?;
            }
            inputs = width;
        }
        encoder.conv(inputs, config.latent_channels, same)?;

        let mut decoder = Sequence { layers: vec![], vb: vb.pp("decoder.layers") };
        let widths = &config.decoder_block_out_channels;
        decoder.conv(config.latent_channels, widths[0], same)?;
        decoder.layers.push(Layer::Relu);
        for (i, (&width, &blocks)) in widths.iter().zip(&config.num_decoder_blocks).enumerate() {
            for _ in 0..blocks {
                decoder.residual(width)?;
            }
            if i + 1 < widths.len() {
                decoder.layers.push(Layer::Double);
                decoder.conv(width, width, unbiased)?;
            } else {
                decoder.conv(width, config.out_channels, same)?;
            }
        }
        Ok(Self { config: config.clone(), encoder: encoder.layers, decoder: decoder.layers })
    }

    /// The configuration.
    pub fn config(&self) -> &TinyVaeConfig {
        &self.config
    }

    /// Decodes latents `(batch, 4, height', width')` to images `(batch, 3, height, width)`, about `[-1, 1]`.
    pub fn decode(&self, z: &Tensor, stop: &Stop) -> Result<Tensor> {
        let magnitude = self.config.latent_magnitude;
        let x = ((z / magnitude)?.tanh()? * magnitude)?;
        Ok(run(&self.decoder, x, stop)?.affine(2.0, -1.0)?)
    }

    /// Encodes images `(batch, 3, height, width)` in `[-1, 1]` to latents `(batch, 4, height', width')`.
    pub fn encode(&self, images: &Tensor, stop: &Stop) -> Result<Tensor> {
        Ok(run(&self.encoder, images.affine(0.5, 0.5)?, stop)?)
    }
}
