//! Devices and dtypes of a run.

mod memory;

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::kernels::{self, Quantize};
use crate::spelling::named;
use crate::spelling::{bare, find};
use crate::{Error, Result};

/// Device option of the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU supported by the build and present on the machine, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by index.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(i) => write!(f, "cuda:{i}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        // torch calls Metal `mps`.
        let known = [
            ("auto", Self::Auto),
            ("cpu", Self::Cpu),
            ("cuda", Self::Cuda(0)),
            ("metal", Self::Metal),
            ("mps", Self::Metal),
        ];
        let numbered = || match s.split_once(':') {
            Some((name, number)) if bare(name) == "cuda" => number.parse().ok().map(Self::Cuda),
            _ => None,
        };
        find(s, &known).or_else(numbered).ok_or_else(|| {
            let known = "`auto`, `cpu`, `cuda`, `cuda:N` or `metal`";
            Error::request("device", format!("`{s}` is not {known}"))
        })
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`Error::Feature`] if the build does not support the device, [`Error::Device`] if it cannot be used. `auto`
    /// never fails.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Auto => Ok(open_cuda(0).or_else(|_| open_metal()).unwrap_or(Device::Cpu)),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(i) => open_cuda(i),
            Self::Metal => open_metal(),
        }
    }
}

fn open_cuda(index: usize) -> Result<Device> {
    if !cfg!(feature = "cuda") {
        return Err(Error::Feature { feature: "cuda" });
    }
    Device::new_cuda(index).map_err(|e| Error::Device {
        device: format!("cuda:{index}"),
        reason: first_line(&e.to_string()),
    })
}

fn open_metal() -> Result<Device> {
    if !cfg!(feature = "metal") {
        return Err(Error::Feature { feature: "metal" });
    }
    Device::new_metal(0)
        .map_err(|e| Error::Device { device: "metal".into(), reason: first_line(&e.to_string()) })
}

fn first_line(s: &str) -> String {
    s.lines().next().unwrap_or_default().to_owned()
}

/// Memory available to a run on a device, in bytes, without swapping or evicting; `None` if unknown.
pub fn available_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => memory::available(),
        Device::Cuda(_) => cuda_memory(),
        Device::Metal(_) => None,
    }
}

#[cfg(feature = "cuda")]
fn cuda_memory() -> Option<u64> {
    let (free, _) = candle_core::cuda::cudarc::driver::result::mem_get_info().ok()?;
    Some(free as u64)
}

#[cfg(not(feature = "cuda"))]
fn cuda_memory() -> Option<u64> {
    None
}

/// Dtype option of the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// f32 on the CPU, f16 elsewhere.
    #[default]
    Auto,
    /// IEEE single precision, 32 bits.
    F32,
    /// IEEE half precision, 16 bits.
    F16,
    /// bfloat16: 16 bits with the range of f32.
    Bf16,
}

named!(DtypeChoice, "dtype", {
    Auto = "auto",
    F32 = "f32" | "fp32" | "float32" | "float" | "torch.float32",
    F16 = "f16" | "fp16" | "float16" | "half" | "torch.float16",
    Bf16 = "bf16" | "bfloat16" | "torch.bfloat16",
});

/// Choice of GPU kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// candle's kernels, which are widely used.
    #[default]
    Default,
    /// Kernels tested only on a CPU: own ones for NVIDIA GPUs, whose source is also run on the CPU, and attention on
    /// Metal.
    Experimental,
}

named!(KernelChoice, "kernels", {
    Default = "default",
    Experimental = "experimental",
});

impl KernelChoice {
    /// Chooses the kernels of `device`, as it was opened: the same GPU opened once more may have others. Models are to
    /// be loaded by the same choice.
    ///
    /// # Errors
    ///
    /// When there are no experimental ones for `device`.
    pub fn apply(self, device: &Device) -> Result<()> {
        let experimental = self == Self::Experimental;
        if experimental && device.is_cpu() {
            let error = Error::request("kernels", "experimental ones are for GPUs");
            return Err(error.with_hint("--device cuda or --device metal, or leave --kernels out"));
        }
        Ok(kernels::choose(experimental, device)?)
    }

    /// Suffix of the dtype in descriptions; empty for the default kernels.
    pub fn words(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::Experimental => " by experimental kernels",
        }
    }
}

/// Dtype of each component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Dtype of the text encoder: always f32, because it is small and runs once.
    pub text: DType,
    /// Dtype of the UNet.
    pub unet: DType,
    /// Dtype of the autoencoder. f16 overflows in published ones, so it is f32 unless bf16 was requested.
    pub vae: DType,
    /// Quantization of the UNet and of its auxiliary networks.
    pub quantize: Quantize,
}

impl Precision {
    /// The dtypes of `choice` on `device`.
    pub fn new(choice: DtypeChoice, device: &Device) -> Self {
        let unet = match choice {
            DtypeChoice::Auto if device.is_cpu() => DType::F32,
            DtypeChoice::Auto | DtypeChoice::F16 => DType::F16,
            DtypeChoice::F32 => DType::F32,
            DtypeChoice::Bf16 => DType::BF16,
        };
        let vae = if unet == DType::BF16 { DType::BF16 } else { DType::F32 };
        Self { text: DType::F32, unet, vae, quantize: Quantize::None }
    }

    /// These dtypes with quantized weights.
    ///
    /// # Errors
    ///
    /// When `device` is not the CPU, the only one with quantized kernels.
    pub fn quantized(self, quantize: Quantize, device: &Device) -> Result<Self> {
        if quantize != Quantize::None && !device.is_cpu() {
            let error = Error::request("quantize", "rounded weights are for the CPU");
            return Err(error.with_hint("--device cpu, or --dtype bf16 on a GPU"));
        }
        Ok(Self { quantize, ..self })
    }

    /// Short description of the UNet's dtype and quantization.
    pub fn describe(&self) -> String {
        format!("{}{}", self.unet.as_str(), self.quantize.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_words_are_read_back_as_written() {
        for word in ["auto", "cpu", "cuda:0", "cuda:3", "metal"] {
            assert_eq!(word.parse::<DeviceChoice>().unwrap().to_string(), word);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for word in ["", "gpu", "cuda:", "cuda:-1", "cpu:0", "cuda 1"] {
            assert!(word.parse::<DeviceChoice>().is_err(), "{word}");
        }
    }

    #[test]
    fn device_and_dtype_are_read_as_torch_writes_them() {
        for (word, device) in [
            ("CPU", DeviceChoice::Cpu),
            ("Cuda:1", DeviceChoice::Cuda(1)),
            ("mps", DeviceChoice::Metal),
        ] {
            assert_eq!(word.parse::<DeviceChoice>().unwrap(), device, "{word}");
        }
        for (word, dtype) in [
            ("torch.float16", DtypeChoice::F16),
            ("FP32", DtypeChoice::F32),
            ("float32", DtypeChoice::F32),
            ("bfloat16", DtypeChoice::Bf16),
        ] {
            assert_eq!(word.parse::<DtypeChoice>().unwrap(), dtype, "{word}");
        }
        assert!("fp8".parse::<DtypeChoice>().is_err());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_missing_feature_names_itself() {
        let error = DeviceChoice::Cuda(0).open().unwrap_err();
        assert_eq!(error.kind().exit_code(), 4);
        assert!(error.hint().unwrap().contains("--features cuda"));
    }
}
