//! I3D: Inception-v1 inflated to three dimensions, which names actions in videos.
//!
//! Carreira and Zisserman (2017), figure 3. The names are those of the port pytorch-i3d. Batch norms, with the epsilon
//! of 1e-5 that AnimateLCM's own measurement has, are folded into the convolutions before them.

use candle_core::{D, DType, Result as TensorResult, Tensor};

use super::{MOST_CHANNELS, within};
use crate::kernels::{self, Weights};
use crate::nn::{Conv3d, max_pool3d};
use crate::weights::VarBuilder;
use crate::{Error, Result, Stop};

/// Epsilon of all batch norms.
const EPS: f64 = 1e-5;

/// The Inception modules, in order.
const MIXED: [&str; 9] = [
    "Mixed_3b", "Mixed_3c", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "Mixed_5b",
    "Mixed_5c",
];

/// Channels of an Inception module's branches: 1×1; 1×1 and the 3×3 after it; another such pair; 1×1 after pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branches {
    /// Alone.
    pub b0: usize,
    /// Before the first 3×3.
    pub b1a: usize,
    /// The first 3×3.
    pub b1b: usize,
    /// Before the second 3×3.
    pub b2a: usize,
    /// The second 3×3.
    pub b2b: usize,
    /// After pooling.
    pub b3b: usize,
}

impl Branches {
    const fn outputs(&self) -> usize {
        self.b0 + self.b1b + self.b2b + self.b3b
    }
}

/// Configuration of an I3D. It is derived from the weight shapes, as there is no configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I3dConfig {
    /// Channels of the three convolutions before the Inception modules: 64, 64, 192.
    pub stem: [usize; 3],
    /// The nine Inception modules.
    pub mixed: [Branches; 9],
    /// Number of classes, 400 of Kinetics.
    pub classes: usize,
}

impl I3dConfig {
    /// The configuration derived from the shapes of the weights.
    ///
    /// # Errors
    ///
    /// A weight that is missing, or a side of no possible size.
    pub fn from_shapes<'a>(shape: impl Fn(&str) -> Option<&'a [usize]>) -> Result<Self> {
        let outputs = |name: &str| -> Result<usize> {
            let name = format!("{name}.conv3d.weight");
            let Some(found) = shape(&name).and_then(|shape| shape.first().copied()) else {
                let summary = format!("`{name}` is missing, so its size cannot be told");
                return Err(Error::Weights { component: "I3D".into(), summary }.with_hint(
                    "the weights are those of pytorch-i3d: a state dict, no TorchScript",
                ));
            };
            within("I3D", "channels", found, 1..=MOST_CHANNELS)?;
            Ok(found)
        };
        let branches = |name: &str| -> Result<Branches> {
            let of = |branch: &str| outputs(&format!("{name}.{branch}"));
            Ok(Branches {
                b0: of("b0")?,
                b1a: of("b1a")?,
                b1b: of("b1b")?,
                b2a: of("b2a")?,
                b2b: of("b2b")?,
                b3b: of("b3b")?,
            })
        };
        let mut mixed = [Branches { b0: 0, b1a: 0, b1b: 0, b2a: 0, b2b: 0, b3b: 0 }; 9];
        for (to, name) in mixed.iter_mut().zip(MIXED) {
            *to = branches(name)?;
        }
        let stem =
            [outputs("Conv3d_1a_7x7")?, outputs("Conv3d_2b_1x1")?, outputs("Conv3d_2c_3x3")?];
        Ok(Self { stem, mixed, classes: outputs("logits")? })
    }
}

/// Why a tensor of an I3D file is not used.
pub fn ignored(name: &str) -> Option<&'static str> {
    name.ends_with(".num_batches_tracked").then_some("counts the batches of the training")
}

/// An I3D for RGB.
#[derive(Clone, Debug)]
pub struct I3d {
    stem: [Unit; 3],
    mixed: Vec<Mixed>,
    logits: Weights,
}

impl I3d {
    /// Width and height of the frames that it takes, in pixels.
    pub const SIDE: usize = 224;

    /// The least number of frames that it takes.
    pub const LEAST_FRAMES: usize = 9;

    /// Loads all weights but [`ignored`] ones.
    pub fn new(config: &I3dConfig, vb: &VarBuilder) -> TensorResult<Self> {
        let [first, second, third] = config.stem;
        let stem = [
            Unit::new((3, first), (7, 2), &vb.pp("Conv3d_1a_7x7"))?,
            Unit::new((first, second), (1, 1), &vb.pp("Conv3d_2b_1x1"))?,
            Unit::new((second, third), (3, 1), &vb.pp("Conv3d_2c_3x3"))?,
        ];
        let mut inputs = third;
        let mut mixed = Vec::with_capacity(MIXED.len());
        for (name, branches) in MIXED.into_iter().zip(&config.mixed) {
            mixed.push(Mixed::new(inputs, branches, &vb.pp(name))?);
            inputs = branches.outputs();
        }
        let last = vb.pp("logits.conv3d");
        let weight = last.get((config.classes, inputs, 1, 1, 1), "weight")?;
        let weight = weight.reshape((config.classes, inputs))?;
        let logits = Weights::new(&weight, Some(&last.get(config.classes, "bias")?))?;
        Ok(Self { stem, mixed, logits })
    }

    /// The logits of a clip, `(classes)`: their mean over time.
    ///
    /// # Errors
    ///
    /// Those of [`pooled`](Self::pooled).
    pub fn logits(&self, x: &Tensor, stop: &Stop) -> Result<Tensor> {
        Ok(kernels::linear(&self.pooled(x, stop)?, &self.logits, None)?.mean(0)?)
    }

    /// The features before the last layer, `(positions in time, channels)`: the mean over space and over two
    /// neighbours in time.
    ///
    /// `x` is `(frames, 3, 224, 224)` in `[-1, 1]`.
    ///
    /// # Errors
    ///
    /// Another size, fewer frames than [`LEAST_FRAMES`](Self::LEAST_FRAMES), or a requested `stop`.
    pub fn pooled(&self, x: &Tensor, stop: &Stop) -> Result<Tensor> {
        let (frames, channels, height, width) = x.dims4()?;
        if frames < Self::LEAST_FRAMES {
            let reason = format!("{frames}, an I3D takes {} or more", Self::LEAST_FRAMES);
            return Err(Error::request("frames", reason));
        }
        if (channels, height, width) != (3, Self::SIDE, Self::SIDE) {
            return Err(candle_core::Error::msg(format!("frames {:?} for an I3D", x.dims())).into());
        }
        let [first, second, third] = &self.stem;
        let x = max_pool3d(&first.forward(x, stop)?, (1, 3), (1, 2))?;
        let x = third.forward(&second.forward(&x, stop)?, stop)?;
        let mut x = max_pool3d(&x, (1, 3), (1, 2))?;
        for (name, mixed) in MIXED.into_iter().zip(&self.mixed) {
            x = match name {
                "Mixed_4b" => max_pool3d(&x, (3, 3), (2, 2))?,
                "Mixed_5b" => max_pool3d(&x, (2, 2), (2, 2))?,
                _ => x,
            };
            x = mixed.forward(&x, stop)?;
        }
        // The kernel of the mean is as large as what is left of an image.
        let x = x.mean((D::Minus2, D::Minus1))?;
        let pairs = x.dim(0)? - 1;
        Ok(((x.narrow(0, 0, pairs)? + x.narrow(0, 1, pairs)?)? * 0.5)?)
    }
}

/// A convolution, a batch norm and a ReLU.
#[derive(Clone, Debug)]
struct Unit(Conv3d);

impl Unit {
    fn new(
        (inputs, outputs): (usize, usize),
        (kernel, stride): (usize, usize),
        vb: &VarBuilder,
    ) -> TensorResult<Self> {
        let weight = vb.get((outputs, inputs, kernel, kernel, kernel), "conv3d.weight")?;
        let norm = vb.pp("bn");
        let of = |name: &str| norm.get(outputs, name)?.to_dtype(DType::F32);
        let deviation = (of("running_var")? + EPS)?.sqrt()?;
        let scale = (of("weight")? / deviation)?;
        let bias = (of("bias")? - (of("running_mean")? * &scale)?)?;
        let folded = weight
            .to_dtype(DType::F32)?
            .broadcast_mul(&scale.reshape((outputs, 1, 1, 1, 1))?)?
            .to_dtype(weight.dtype())?;
        Ok(Self(Conv3d::new(&folded, Some(&bias.to_dtype(weight.dtype())?), stride)?))
    }

    fn forward(&self, x: &Tensor, stop: &Stop) -> TensorResult<Tensor> {
        self.0.forward(x, stop)?.relu()
    }
}

/// An Inception module.
#[derive(Clone, Debug)]
struct Mixed {
    b0: Unit,
    b1: [Unit; 2],
    b2: [Unit; 2],
    b3: Unit,
}

impl Mixed {
    fn new(inputs: usize, branches: &Branches, vb: &VarBuilder) -> TensorResult<Self> {
        let Branches { b0, b1a, b1b, b2a, b2b, b3b } = *branches;
        let point =
            |inputs, outputs, name: &str| Unit::new((inputs, outputs), (1, 1), &vb.pp(name));
        let cube = |inputs, outputs, name: &str| Unit::new((inputs, outputs), (3, 1), &vb.pp(name));
        Ok(Self {
            b0: point(inputs, b0, "b0")?,
            b1: [point(inputs, b1a, "b1a")?, cube(b1a, b1b, "b1b")?],
            b2: [point(inputs, b2a, "b2a")?, cube(b2a, b2b, "b2b")?],
            b3: point(inputs, b3b, "b3b")?,
        })
    }

    fn forward(&self, x: &Tensor, stop: &Stop) -> TensorResult<Tensor> {
        let pair = |[point, cube]: &[Unit; 2]| cube.forward(&point.forward(x, stop)?, stop);
        let pooled = max_pool3d(x, (3, 3), (1, 1))?;
        let branches = [
            self.b0.forward(x, stop)?,
            pair(&self.b1)?,
            pair(&self.b2)?,
            self.b3.forward(&pooled, stop)?,
        ];
        Tensor::cat(&branches, 1)
    }
}
