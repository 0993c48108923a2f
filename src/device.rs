//! Where a run happens and how precisely.

mod memory;

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::spelling::{bare, find};
use crate::{Error, Result};

/// The user's words for a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU that this build and this machine have, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by its number.
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
    /// [`Error::Feature`] where the build lacks it, [`Error::Device`] where the machine does. `auto` never fails.
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

/// Bytes that a run may take on a device without pushing anything out; `None` where that cannot be told.
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

/// The user's words for a number format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// f32 on the CPU, f16 elsewhere.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// 16 bits with the range of f32.
    Bf16,
}

impl FromStr for DtypeChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = [
            ("auto", Self::Auto),
            ("f32", Self::F32),
            ("fp32", Self::F32),
            ("float32", Self::F32),
            ("float", Self::F32),
            ("f16", Self::F16),
            ("fp16", Self::F16),
            ("float16", Self::F16),
            ("half", Self::F16),
            ("bf16", Self::Bf16),
            ("bfloat16", Self::Bf16),
        ];
        find(s.strip_prefix("torch.").unwrap_or(s), &known).ok_or_else(|| {
            let reason = format!("`{s}` is not `auto`, `f32`, `f16` or `bf16`");
            Error::request("dtype", reason)
        })
    }
}

/// To how many bits large layers are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// Not at all.
    #[default]
    None,
    /// Weights to 8, by a scale for every output: the largest weight is 127.
    Int8,
    /// The same, and what linear layers and 1×1 convolutions are given, by a scale for every token or pixel: its
    /// least value is 0, its greatest 255.
    W8A8,
}

impl FromStr for Quantize {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        find(s, &[("none", Self::None), ("int8", Self::Int8), ("w8a8", Self::W8A8)]).ok_or_else(
            || Error::request("quantize", format!("`{s}` is not `none`, `int8` or `w8a8`")),
        )
    }
}

impl Quantize {
    /// What comes after the name of a number format; nothing where weights are as they were.
    pub fn words(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Int8 => " with int8 weights",
            Self::W8A8 => " with int8 weights and activations",
        }
    }
}

/// Which kernels run on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// candle's, which others run there.
    #[default]
    Default,
    /// Others that have only been tested on a CPU: own ones for NVIDIA GPUs, whose source is run there, and Metal's
    /// attention.
    Experimental,
}

impl FromStr for KernelChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        find(s, &[("default", Self::Default), ("experimental", Self::Experimental)]).ok_or_else(
            || Error::request("kernels", format!("`{s}` is not `default` or `experimental`")),
        )
    }
}

impl KernelChoice {
    /// What comes after the name of a number format; nothing where it is the default.
    pub fn words(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::Experimental => " by experimental kernels",
        }
    }
}

/// Which part runs in which number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// The text encoder: always f32, it is small and runs once.
    pub text: DType,
    /// The UNet.
    pub unet: DType,
    /// The autoencoder. f16 overflows in published ones, so it runs in f32 unless bf16 was asked for.
    pub vae: DType,
    /// The weights of the UNet and of networks beside it.
    pub quantize: Quantize,
}

impl Precision {
    /// What `choice` means on `device`.
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

    /// The same with rounded weights.
    ///
    /// # Errors
    ///
    /// On another `device` than the CPU, whose kernels alone know such weights.
    pub fn quantized(self, quantize: Quantize, device: &Device) -> Result<Self> {
        if quantize != Quantize::None && !device.is_cpu() {
            let error = Error::request("quantize", "rounded weights are for the CPU");
            return Err(error.with_hint("--device cpu, or --dtype bf16 on a GPU"));
        }
        Ok(Self { quantize, ..self })
    }

    /// The UNet's number formats in a few letters.
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
