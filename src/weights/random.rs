//! Random weights seeded by tensor names, for building a full-size network without a checkpoint.
//!
//! The reference definition is `benches/reference/named_weights.py`, which generates the same numbers bit for bit for
//! the reference implementation. Each tensor is generated from its full name, such as `unet.conv_in.weight`: the FNV-1a
//! hash of the name seeds splitmix64 (Steele et al., 2014), whose upper 24 bits become a number in `[-1, 1)`. Matrices
//! and convolution kernels are scaled so that every layer roughly preserves the variance.
//!
//! ```
//! use animatelcm::weights::{Component, random};
//! use candle_core::{DType, Device};
//!
//! let (scale, _) = random::build(Component::UNet, DType::F32, &Device::Cpu, |vb| {
//!     Ok(vb.get(320, "conv_norm_out.weight")?)
//! })?;
//! assert_eq!(scale.dims(), [320]);
//! # Ok::<(), animatelcm::Error>(())
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;

use super::VarBuilder;
use rayon::prelude::*;

use super::survey::placeholder;
use super::{Component, LoadReport};
use crate::{Error, Result};

/// Builds a model with random weights. `model` receives the builder for the component's canonical names.
///
/// Values are generated in f32 on the CPU, then converted to `dtype` and moved to `device`.
///
/// # Errors
///
/// Any error of the constructor; a weight requested without a shape.
pub fn build<T>(
    component: Component,
    dtype: DType,
    device: &Device,
    model: impl FnOnce(VarBuilder<'static>) -> Result<T>,
) -> Result<(T, LoadReport)> {
    let (built, shapes) = serve(Some(component), dtype, device, model)?;
    let values: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
    let report = LoadReport {
        component,
        used: shapes.len(),
        reused: 0,
        bytes: (values * dtype.size_in_bytes()) as u64,
        files: BTreeMap::from([(PathBuf::from("random numbers"), shapes.len())]),
        ignored: vec![],
        replaced: vec![],
        patched: vec![],
    };
    Ok((built, report))
}

/// The names and shapes of all weights a constructor requests. No values are generated, so it needs almost no memory.
///
/// # Errors
///
/// Any error of the constructor; a weight requested without a shape.
pub fn inventory<T>(
    model: impl FnOnce(VarBuilder<'static>) -> Result<T>,
) -> Result<BTreeMap<String, Vec<usize>>> {
    Ok(serve(None, DType::F32, &Device::Cpu, model)?.1)
}

/// The values of a tensor in row-major order, given its full name: component, dot, canonical name.
pub fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    /// Values generated per task.
    const CHUNK: usize = 1 << 16;
    let (scale, shift) = spread(name, shape);
    let seed = fnv1a(name);
    let mut values = vec![0f32; shape.iter().product()];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (i, value) in values.iter_mut().enumerate() {
            *value = uniform(seed, (chunk * CHUNK + i) as u64) * scale + shift;
        }
    });
    values
}

/// Half width and centre of the uniform distribution.
fn spread(name: &str, shape: &[usize]) -> (f32, f32) {
    let leaf = name.rsplit('.').next();
    if leaf == Some("bias") {
        (0.1, 0.0)
    } else if shape.len() == 1 && leaf == Some("weight") {
        (0.25, 1.0)
    } else if name.contains("token_embedding") || name.contains("position_embedding") {
        (0.5, 0.0)
    } else if name.starts_with("input.") {
        (3f64.sqrt() as f32, 0.0)
    } else {
        let fan_in: usize = shape.iter().skip(1).product();
        ((3.0 / fan_in.max(1) as f64).sqrt() as f32, 0.0)
    }
}

/// The 64-bit FNV-1a hash.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Number `index` of the stream seeded by `seed`, in `[-1, 1)`; exact in f32.
fn uniform(seed: u64, index: u64) -> f32 {
    let z = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let z = z ^ (z >> 31);
    (z >> 40) as f32 * 2f32.powi(-23) - 1.0
}

/// The component's prefix in full names.
fn prefix(component: Component) -> &'static str {
    match component {
        Component::UNet => "unet",
        Component::Vae => "vae",
        Component::Text => "text_encoder",
        Component::ControlNet => "controlnet",
        Component::SparseCtrl => "sparsectrl",
        Component::T2iAdapter => "t2i_adapter",
        Component::I2vEncoder => "i2v_encoder",
        Component::ImageEncoder => "image_encoder",
        Component::IpAdapter => "ip_adapter",
    }
}

type Shapes = BTreeMap<String, Vec<usize>>;

/// Runs a constructor on random weights, or on placeholders if `component` is `None`.
fn serve<T>(
    component: Option<Component>,
    dtype: DType,
    device: &Device,
    model: impl FnOnce(VarBuilder<'static>) -> Result<T>,
) -> Result<(T, Shapes)> {
    let shapes = Arc::new(Mutex::new(Shapes::new()));
    let backend = Drawn { component, shapes: Arc::clone(&shapes) };
    let built = model(VarBuilder::from_backend(Box::new(backend), dtype, device.clone()))?;
    // Taken out of the mutex, because the model may keep its builder and with it the backend.
    let shapes = std::mem::take(&mut *shapes.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((built, shapes))
}

/// A backend that provides every tensor requested.
struct Drawn {
    component: Option<Component>,
    shapes: Arc<Mutex<Shapes>>,
}

impl SimpleBackend for Drawn {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let dims = shape.dims().to_vec();
        let tensor = match self.component {
            Some(component) => {
                let full = format!("{}.{name}", prefix(component));
                Tensor::from_vec(values(&full, &dims), shape, &Device::Cpu)?
                    .to_dtype(dtype)?
                    .to_device(device)?
            }
            None => placeholder(shape, dtype)?,
        };
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), dims);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let error = Error::Missing { name: name.to_owned(), reason: "has no known shape".into() };
        Err(candle_core::Error::msg(error.to_string()))
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First values of weights as reported by benches/reference/sd15_parity.py.
    const KNOWN: [(&str, &[usize], [f32; 4]); 7] = [
        (
            "text_encoder.text_model.embeddings.token_embedding.weight",
            &[49408, 768],
            [0.028_633_296, 0.237_923_15, 0.003_427_386_3, -0.186_651_94],
        ),
        (
            "text_encoder.text_model.final_layer_norm.weight",
            &[768],
            [1.053_347_8, 1.029_707_8, 0.838_149_13, 0.832_995_9],
        ),
        (
            "vae.decoder.conv_in.bias",
            &[512],
            [-0.076_551_154, 0.057_119_694, -0.080_353_14, -0.057_284_225],
        ),
        (
            "vae.quant_conv.weight",
            &[8, 8, 1, 1],
            [0.132_157_89, 0.346_016_23, 0.463_363_35, 0.107_554_32],
        ),
        (
            "unet.conv_in.weight",
            &[320, 4, 3, 3],
            [-0.068_942_52, -0.194_201_89, 0.091_180_08, -0.144_925_95],
        ),
        (
            "unet.down_blocks.0.motion_modules.0.proj_out.weight",
            &[320, 320],
            [0.002_815_881_5, -0.085_928_395, 0.068_042_7, -0.072_002_93],
        ),
        (
            "unet.mid_block.attentions.0.norm.weight",
            &[1280],
            [0.977_511_5, 0.822_629_1, 0.889_686_47, 1.010_608_1],
        ),
    ];

    #[test]
    fn numbers_are_those_of_the_reference_to_the_bit() {
        for (name, shape, first) in KNOWN {
            assert_eq!(values(name, shape)[..4], first, "{name}");
        }
    }

    #[test]
    fn numbers_do_not_depend_on_how_the_work_is_divided() {
        let all = values("unet.x", &[3, 100_000]);
        let (scale, _) = spread("unet.x", &[3, 100_000]);
        for i in [0, 65_535, 65_536, 299_999] {
            assert_eq!(all[i], uniform(fnv1a("unet.x"), i as u64) * scale);
        }
    }

    #[test]
    fn weights_keep_the_variance() {
        let weights = values("unet.conv.weight", &[64, 32, 3, 3]);
        let variance = weights.iter().map(|w| f64::from(w * w)).sum::<f64>() / weights.len() as f64;
        assert!((variance * (32.0 * 9.0) - 1.0).abs() < 0.03, "{variance}");
    }

    #[test]
    fn a_report_counts_what_was_drawn() {
        let (_, report) = build(Component::Vae, DType::F16, &Device::Cpu, |vb| {
            let bias = vb.get(7, "a.bias")?;
            assert_eq!((bias.dtype(), bias.dims()), (DType::F16, &[7][..]));
            Ok(vb.get((2, 3), "a.weight")?)
        })
        .unwrap();
        assert_eq!((report.used, report.bytes), (2, 2 * (7 + 6)));
    }

    #[test]
    fn an_inventory_lists_names_and_shapes() {
        let shapes = inventory(|vb| {
            vb.get((1 << 20, 1 << 20), "a.weight")?;
            Ok(vb.pp("b").get(3, "bias")?)
        })
        .unwrap();
        let wanted = [("a.weight".to_owned(), vec![1 << 20, 1 << 20]), ("b.bias".into(), vec![3])];
        assert_eq!(shapes, BTreeMap::from(wanted));
        assert!(inventory(|vb| Ok(candle_nn::VarBuilder::from(vb).get_unchecked("a")?)).is_err());
    }
}
