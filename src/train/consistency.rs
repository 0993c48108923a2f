//! Consistency model parametrisation, and the solver along a teacher's trajectories.

use candle_core::{Device, Tensor};

use crate::sampler::Lcm;
use crate::schedule::{NoiseLevel, NoiseSchedule};
use crate::{Error, Result};

/// Two noise levels of one trajectory: the online network's, and the one that the solver steps to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// The noisier end.
    pub from: NoiseLevel,
    /// The cleaner end.
    pub to: NoiseLevel,
}

/// Timesteps of distillation: `cells` of the training timesteps, evenly spaced.
///
/// Timesteps are `k·(i+1) - 1` with `k = train steps / cells`; the first cell ends at timestep 0, as in the official
/// code's solver.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    levels: Vec<NoiseLevel>,
    first: NoiseLevel,
    skip: usize,
}

impl Grid {
    /// A grid of `cells` cells whose solver step spans `skip` of them.
    ///
    /// # Errors
    ///
    /// When `cells` is 0 or more than the training steps, or `skip` is 0 or more than `cells`.
    pub fn new(schedule: &NoiseSchedule, cells: usize, skip: usize) -> Result<Self> {
        let steps = schedule.train_steps();
        if cells == 0 || cells > steps {
            let reason = format!("must lie between 1 and {steps}, got {cells}");
            return Err(Error::request("cells", reason));
        }
        if skip == 0 || skip > cells {
            let reason = format!("must lie between 1 and {cells}, got {skip}");
            return Err(Error::request("skip", reason));
        }
        let each = steps / cells;
        let levels =
            (1..=cells).map(|i| schedule.level(each * i - 1)).collect::<Result<Vec<_>>>()?;
        Ok(Self { levels, first: schedule.level(0)?, skip })
    }

    /// Number of cells.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.levels.len()
    }

    /// The cell at `index`, counted from the cleanest; the last one if `index` is beyond it.
    pub fn cell(&self, index: usize) -> Cell {
        let index = index.min(self.levels.len() - 1);
        let to = match index.checked_sub(self.skip) {
            Some(before) => self.levels[before],
            None => self.first,
        };
        Cell { from: self.levels[index], to }
    }
}

/// Noise levels of the images in a batch, as factors of shape `(images, 1, 1, 1)`.
///
/// Each level applies to several consecutive images: the frames of a clip.
#[derive(Clone, Debug)]
pub struct PerImage {
    levels: Vec<NoiseLevel>,
    each: usize,
    device: Device,
}

impl PerImage {
    /// Levels for `each` consecutive images.
    pub fn new(levels: Vec<NoiseLevel>, each: usize, device: &Device) -> Self {
        Self { levels, each, device: device.clone() }
    }

    /// Timesteps, one per level.
    pub fn timesteps(&self) -> Vec<f64> {
        self.levels.iter().map(|level| level.timestep).collect()
    }

    fn column(&self, value: impl Fn(NoiseLevel) -> f64) -> Result<Tensor> {
        let values: Vec<f32> = self
            .levels
            .iter()
            .flat_map(|level| std::iter::repeat_n(value(*level) as f32, self.each))
            .collect();
        let count = values.len();
        Ok(Tensor::from_vec(values, (count, 1, 1, 1), &self.device)?)
    }

    /// `a x + b y` with factors per image.
    fn combine(
        &self,
        (x, a): (&Tensor, impl Fn(NoiseLevel) -> f64),
        (y, b): (&Tensor, impl Fn(NoiseLevel) -> f64),
    ) -> Result<Tensor> {
        Ok((x.broadcast_mul(&self.column(a)?)? + y.broadcast_mul(&self.column(b)?)?)?)
    }

    /// Noises `clean` with `noise` to each image's level; all are `(images, channels, height, width)`.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
        self.combine((clean, |at| at.alpha), (noise, |at| at.sigma))
    }

    /// Multiplies `x` by `alpha^-balance` of each image. In losses, 0 weights all errors of predicted noise alike; 1
    /// weights them as errors of the velocity (Salimans and Ho 2022), by which the first steps of sampling count
    /// more.
    pub fn weigh(&self, x: &Tensor, balance: f64) -> Result<Tensor> {
        if balance == 0.0 {
            return Ok(x.clone());
        }
        Ok(x.broadcast_mul(&self.column(|at| at.alpha.powf(-balance))?)?)
    }

    /// Clean latents predicted by a consistency model from `x` and its network's predicted noise.
    ///
    /// `c_skip(t) x + c_out(t) (x - sigma ε) / alpha`: Luo et al. (2023), with the same boundary scalings as in
    /// sampling.
    pub fn consistent(&self, x: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let boundary = |at: NoiseLevel| Lcm::default().boundary(at.timestep);
        let of_x = |at: NoiseLevel| boundary(at).0 + boundary(at).1 / at.alpha;
        let of_noise = |at: NoiseLevel| -boundary(at).1 * at.sigma / at.alpha;
        self.combine((x, of_x), (noise, of_noise))
    }

    /// Takes a DDIM step from `x` to the levels of `to`, which correspond one to one to these levels.
    pub fn solve(&self, x: &Tensor, noise: &Tensor, to: &Self) -> Result<Tensor> {
        let pairs: Vec<(NoiseLevel, NoiseLevel)> =
            self.levels.iter().copied().zip(to.levels.iter().copied()).collect();
        let column = |value: &dyn Fn(NoiseLevel, NoiseLevel) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = pairs
                .iter()
                .flat_map(|(at, to)| std::iter::repeat_n(value(*at, *to) as f32, self.each))
                .collect();
            let count = values.len();
            Ok(Tensor::from_vec(values, (count, 1, 1, 1), &self.device)?)
        };
        let of_x = column(&|at, to| to.alpha / at.alpha)?;
        let of_noise = column(&|at, to| to.sigma - to.alpha * at.sigma / at.alpha)?;
        Ok((x.broadcast_mul(&of_x)? + noise.broadcast_mul(&of_noise)?)?)
    }
}
