//! Low-rank adaptation (LoRA): Hu et al. (2021). The factors are merged into the frozen weights before each pass, so
//! layers need no LoRA code, and gradients reach both factors through the product.

use candle_core::{DType, Tensor, Var};

use super::{Vars, Weights};
use crate::rng::Uniform;
use crate::{Error, Result};

/// A LoRA in training, or a trained one.
///
/// The weight of module `m` becomes `W + (alpha / rank) · B A`. The factors are the variables `m.lora_down.weight`,
/// `(rank, inputs..)`, and `m.lora_up.weight`, `(outputs, rank)`; for convolutions `(outputs, rank, 1, 1)`.
#[derive(Clone, Debug)]
pub struct LowRank {
    rank: usize,
    alpha: f64,
    modules: Vec<String>,
    vars: Vars,
}

const DOWN: &str = ".lora_down.weight";
const UP: &str = ".lora_up.weight";

/// Returns whether the published consistency LoRAs change a module of the UNet: all linear layers and convolutions of
/// the spatial blocks.
pub fn is_spatial_module(name: &str) -> bool {
    const ENDS: [&str; 14] = [
        ".to_q",
        ".to_k",
        ".to_v",
        ".to_out.0",
        ".proj_in",
        ".proj_out",
        ".ff.net.0.proj",
        ".ff.net.2",
        ".conv1",
        ".conv2",
        ".time_emb_proj",
        ".conv_shortcut",
        ".downsamplers.0.conv",
        ".upsamplers.0.conv",
    ];
    !name.contains(".motion_modules.") && ENDS.iter().any(|end| name.ends_with(end))
}

impl LowRank {
    /// A LoRA over the modules of `base` for which `is_wanted` is true. `B` is zero, so it does not change the
    /// weights yet.
    ///
    /// # Errors
    ///
    /// When there is no such module, or the rank is 0.
    pub fn new(
        base: &Weights,
        rank: usize,
        alpha: f64,
        seed: u64,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        if rank == 0 || !alpha.is_finite() {
            return Err(Error::request("rank", format!("rank {rank} with alpha {alpha}")));
        }
        let (mut modules, mut vars) = (Vec::new(), Vars::new());
        for (number, (name, weight)) in base.iter().enumerate() {
            let Some(module) = name.strip_suffix(".weight").filter(|module| is_wanted(module))
            else {
                continue;
            };
            let mut random = Uniform::part(seed, number as u64);
            let mut down = weight.dims().to_vec();
            let outputs = std::mem::replace(&mut down[0], rank);
            let mut up = vec![1; down.len()];
            (up[0], up[1]) = (outputs, rank);
            let inputs: usize = down.iter().skip(1).product();
            let limit = 1.0 / (inputs.max(1) as f64).sqrt();
            let values: Vec<f32> =
                (0..rank * inputs).map(|_| random.between(-limit, limit) as f32).collect();
            let down = Var::from_vec(values, down, weight.device())?;
            vars.insert(format!("{module}{DOWN}"), down);
            vars.insert(format!("{module}{UP}"), Var::zeros(up, DType::F32, weight.device())?);
            modules.push(module.to_owned());
        }
        if modules.is_empty() {
            return Err(Error::request(
                "rank",
                "the network has no module that a LoRA could change",
            ));
        }
        Ok(Self { rank, alpha, modules, vars })
    }

    /// A LoRA of existing factors, with the names of [`vars`](Self::vars).
    ///
    /// # Errors
    ///
    /// When a module has only one factor.
    pub fn from_factors(factors: &Weights, alpha: f64) -> Result<Self> {
        let vars = super::variables(factors)?;
        let modules: Vec<String> =
            vars.keys().filter_map(|name| name.strip_suffix(DOWN)).map(str::to_owned).collect();
        let mut rank = 0;
        for module in &modules {
            let Some(up) = vars.get(&format!("{module}{UP}")) else {
                let reason = "has no lora_up".into();
                return Err(Error::Missing { name: module.clone(), reason });
            };
            rank = up.dim(1)?;
        }
        if rank == 0 || vars.len() != 2 * modules.len() {
            let reason = "its factors do not come in pairs".into();
            return Err(Error::Missing { name: "lora".into(), reason });
        }
        Ok(Self { rank, alpha, modules, vars })
    }

    /// The LoRA of the same modules with other factors.
    ///
    /// # Errors
    ///
    /// When a module has only one factor.
    pub fn with_factors(&self, factors: &Weights) -> Result<Self> {
        Self::from_factors(factors, self.alpha)
    }

    /// Variables: both factors of every module.
    pub fn vars(&self) -> &Vars {
        &self.vars
    }

    /// Merged weights of the modules of `base`, by name; gradients reach the factors unless `frozen`.
    pub fn composed(&self, base: &Weights, frozen: bool) -> Result<Weights> {
        let scale = self.alpha / self.rank as f64;
        let mut composed = Weights::new();
        for module in &self.modules {
            let name = format!("{module}.weight");
            let Some(weight) = base.get(&name) else {
                let reason = "is not there to be changed".into();
                return Err(Error::Missing { name, reason });
            };
            let factor = |end: &str| -> Result<Tensor> {
                let name = format!("{module}{end}");
                let var = self
                    .vars
                    .get(&name)
                    .ok_or_else(|| Error::Missing { name, reason: "is not there".into() })?;
                let tensor =
                    if frozen { var.as_detached_tensor() } else { var.as_tensor().clone() };
                Ok(tensor.flatten_from(1)?)
            };
            let change = factor(UP)?.matmul(&factor(DOWN)?)?.reshape(weight.shape())?;
            composed.insert(name, (weight + (change * scale)?)?);
        }
        Ok(composed)
    }

    /// The LoRA under kohya's names, with `alpha`; `factors` may be the EMA of the variables.
    pub fn to_kohya(&self, factors: &Weights) -> Result<Weights> {
        let mut out = Weights::new();
        for module in &self.modules {
            let kohya = format!("lora_unet_{}", module.replace('.', "_"));
            for end in [DOWN, UP] {
                let name = format!("{module}{end}");
                let Some(factor) = factors.get(&name) else {
                    return Err(Error::Missing { name, reason: "is not there".into() });
                };
                out.insert(format!("{kohya}{end}"), factor.clone());
            }
            let alpha = Tensor::new(self.alpha as f32, &candle_core::Device::Cpu)?;
            out.insert(format!("{kohya}.alpha"), alpha);
        }
        Ok(out)
    }
}
