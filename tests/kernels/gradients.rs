//! Gradients of every layer and network: torch's, and finite differences.

use std::collections::{BTreeMap, HashMap};

use animatelcm::Stop;
use animatelcm::kernels::{self, ConvArgs, GroupNormOptions, Weights};
use animatelcm::models::clip::{TextConfig, TextEncoder};
use animatelcm::models::motion::{MotionConfig, MotionNorm};
use animatelcm::models::unet::{Injection, UNet, UNetConfig, UNetInput};
use animatelcm::models::vae::{AutoencoderKl, VaeConfig};
use animatelcm::weights::VarBuilder;
use animatelcm::weights::random;
use candle_core::{DType, Device, Result, Tensor, Var};

use crate::support::close::assert_relative;
use crate::support::golden::{self, Golden};
use crate::support::tiny;

/// How far a gradient may be from torch's, relative to its norm.
const LAYER: f64 = 2e-6;
/// The same for what comes through a whole network.
const MODEL: f64 = 5e-5;

fn drawn(name: &str, shape: &[usize]) -> Tensor {
    let values = random::values(&format!("input.{name}"), shape);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A convolution without anything before or after it.
fn convolved(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
) -> Result<Tensor> {
    let args = ConvArgs { padding: (padding, padding), stride, ..ConvArgs::default() };
    kernels::conv2d(x, &Weights::new(weight, bias)?, &args)
}

/// The result of a layer and the gradients of its inputs, against torch's.
fn layer(
    golden: &Golden,
    name: &str,
    inputs: &[&str],
    forward: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let input =
        |input: &&str| Var::from_tensor(&golden.tensor(&format!("{name}.{input}"))).unwrap();
    let vars: Vec<Var> = inputs.iter().map(input).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = forward(&tensors).unwrap();
    assert_relative(&y, &golden.tensor(&format!("{name}.y")), LAYER);
    // Without gradients the same values come another way.
    let detached: Vec<Tensor> = tensors.iter().map(Tensor::detach).collect();
    let plain = forward(&detached).unwrap();
    assert!(!plain.track_op(), "{name} leaves a trace");
    assert_relative(&y, &plain, LAYER);

    let slope = golden.tensor(&format!("{name}.slope"));
    let loss = |y: &Tensor| y.mul(&slope).unwrap().sum_all().unwrap();
    let gradients = loss(&y).backward().unwrap();
    for (input, var) in inputs.iter().zip(&vars) {
        let got = gradients.get(var).unwrap_or_else(|| panic!("{name}: {input} has no gradient"));
        assert_relative(got, &golden.tensor(&format!("{name}.d.{input}")), LAYER);
    }
    // One input at a time: what is frozen changes nothing for the rest, and gets nothing.
    for (i, input) in inputs.iter().enumerate() {
        let mut mixed = detached.clone();
        mixed[i] = tensors[i].clone();
        let gradients = loss(&forward(&mixed).unwrap()).backward().unwrap();
        let got = gradients.get(&vars[i]).unwrap();
        assert_relative(got, &golden.tensor(&format!("{name}.d.{input}")), LAYER);
    }
}

#[test]
fn layers_have_the_gradients_of_torch() {
    let golden = golden::load("gradients/layers");
    layer(&golden, "linear", &["x", "weight", "bias"], |t| {
        kernels::linear(&t[0], &Weights::new(&t[1], Some(&t[2]))?, None)
    });
    layer(&golden, "linear_without_bias", &["x", "weight"], |t| {
        kernels::linear(&t[0], &Weights::new(&t[1], None)?, None)
    });
    for (name, padding, stride) in [
        ("conv3", 1, 1),
        ("conv3_stride2", 1, 2),
        ("conv3_stride2_unpadded", 0, 2),
        ("conv1", 0, 1),
        ("conv5_wide", 3, 1),
    ] {
        layer(&golden, name, &["x", "weight", "bias"], |t| {
            convolved(&t[0], &t[1], Some(&t[2]), padding, stride)
        });
    }
    let options = GroupNormOptions { groups: 2, eps: 1e-5, frames: 1, silu: false };
    for (name, options) in [
        ("group_norm", options),
        ("group_norm_silu", GroupNormOptions { silu: true, ..options }),
        ("group_norm_pooled", GroupNormOptions { frames: 3, eps: 1e-6, ..options }),
    ] {
        layer(&golden, name, &["x", "weight", "bias"], |t| {
            kernels::group_norm(&t[0], &t[1], &t[2], &options)
        });
    }
    layer(&golden, "layer_norm", &["x", "weight", "bias"], |t| {
        kernels::layer_norm(&t[0], &t[1], &t[2], 1e-5, None)
    });
    for name in ["attention", "attention_long"] {
        layer(&golden, name, &["q", "k", "v"], |t| {
            kernels::attention(&t[0], &t[1], &t[2], 1.0 / (t[0].dims()[3] as f64).sqrt())
        });
    }
    layer(&golden, "geglu", &["x"], |t| kernels::geglu(&t[0]));
    layer(&golden, "upsample", &["x"], |t| kernels::upsample_nearest(&t[0], (6, 8)));
    layer(&golden, "upsample_odd", &["x"], |t| kernels::upsample_nearest(&t[0], (5, 7)));
    layer(&golden, "shift", &["x", "shift"], |t| kernels::add_per_channel(&t[0], &t[1]));
}

#[test]
fn gradients_pass_through_views() {
    let golden = golden::load("gradients/layers");
    // The same numbers, stored the other way round.
    let turned = |name: &str| {
        let x = golden.tensor(name).transpose(1, 2).unwrap().contiguous().unwrap();
        Var::from_tensor(&x).unwrap()
    };
    let [q, k, v] = ["q", "k", "v"].map(|x| turned(&format!("attention.{x}")));
    let heads_last = |x: &Var| x.transpose(1, 2).unwrap();
    let y = kernels::attention(&heads_last(&q), &heads_last(&k), &heads_last(&v), 0.5).unwrap();
    let loss = (y * golden.tensor("attention.slope")).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    for (name, var) in [("q", &q), ("k", &k), ("v", &v)] {
        let got = gradients.get(var).unwrap().transpose(1, 2).unwrap();
        assert_relative(&got, &golden.tensor(&format!("attention.d.{name}")), LAYER);
    }
}

/// How far a value is moved to see what changes.
const STEP: f32 = 1.0 / 64.0;

#[test]
fn gradients_are_those_of_finite_differences() {
    // A norm over two frames with SiLU, then a convolution with a stride: values in f32, so the differences are coarse.
    let shape = [2, 4, 5, 3];
    let x = drawn("differences", &shape);
    let (weight, bias) = (drawn("weight", &[4]), drawn("bias", &[4]));
    let kernel = drawn("kernel", &[3, 4, 3, 3]);
    let slope = drawn("slope", &[2, 3, 3, 2]);
    let options = GroupNormOptions { groups: 2, eps: 1e-5, frames: 2, silu: true };
    let f = |x: &Tensor| -> Tensor {
        let y = kernels::group_norm(x, &weight, &bias, &options).unwrap();
        let y = convolved(&y, &kernel, None, 1, 2).unwrap();
        (y * &slope).unwrap()
    };
    let var = Var::from_tensor(&x).unwrap();
    let gradients = f(&var).sum_all().unwrap().backward().unwrap();
    let got: Vec<f32> = gradients.get(&var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    let sum = |values: Vec<f32>| -> f64 {
        let x = Tensor::from_vec(values, &shape[..], &Device::Cpu).unwrap();
        let y: Vec<f32> = f(&x).flatten_all().unwrap().to_vec1().unwrap();
        y.into_iter().map(f64::from).sum()
    };
    for i in (0..values.len()).step_by(7) {
        let moved = |by: f32| {
            let mut values = values.clone();
            values[i] += by;
            sum(values)
        };
        // Fourth order: two steps on each side.
        let near = moved(STEP) - moved(-STEP);
        let far = moved(2.0 * STEP) - moved(-2.0 * STEP);
        let difference = (8.0 * near - far) / (12.0 * f64::from(STEP));
        assert!(
            (difference - f64::from(got[i])).abs() < 2e-3 * (1.0 + difference.abs()),
            "{i}: {} but {difference} by differences",
            got[i]
        );
    }
}

/// Weights as variables, by name.
fn variables(files: &[&str]) -> BTreeMap<String, Var> {
    let var = |(name, tensor): (String, Tensor)| (name, Var::from_tensor(&tensor).unwrap());
    let floats = tiny::tensors(files).into_iter().filter(|(_, t)| t.dtype().is_float());
    floats.map(var).collect()
}

fn builder(vars: &BTreeMap<String, Var>) -> VarBuilder<'static> {
    let tensors: HashMap<String, Tensor> =
        vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

/// The gradients of a network's inputs and of all its weights, against torch's.
fn network(
    golden: &Golden,
    name: &str,
    y: &Tensor,
    inputs: &[(&str, &Var)],
    vars: &BTreeMap<String, Var>,
) {
    assert_relative(y, &golden.tensor(&format!("{name}.y")), MODEL);
    let slope = drawn(&format!("{name}.slope"), y.dims());
    let gradients = (y * slope).unwrap().sum_all().unwrap().backward().unwrap();
    for (input, var) in inputs {
        let got = gradients.get(var).unwrap_or_else(|| panic!("{name}: {input} has no gradient"));
        assert_relative(got, &golden.tensor(&format!("{name}.d.{input}")), MODEL);
    }
    let prefix = format!("{name}.w.");
    let mut count = 0;
    for key in golden.names() {
        let Some(weight) = key.strip_prefix(&prefix) else { continue };
        let var = vars.get(weight).unwrap_or_else(|| panic!("{weight} is unknown"));
        let got = gradients.get(var).unwrap_or_else(|| panic!("{weight} has no gradient"));
        let norm = got.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let wanted = golden.values(key);
        for (which, wanted) in ["first", "second"].iter().zip(wanted) {
            let with = drawn(&format!("{weight}.{which}"), got.dims());
            let product: Vec<f32> =
                (got * &with).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let product: f64 = product.into_iter().map(f64::from).sum();
            let size = with.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let scale = f64::from(norm * size);
            assert!(
                (product - wanted).abs() <= MODEL * scale + 1e-5,
                "{weight}: {product} instead of {wanted}, of at most {scale}"
            );
        }
        count += 1;
    }
    assert!(count > 20, "{name} has {count} weights with gradients only");
}

#[test]
fn the_unet_has_the_gradients_of_torch() {
    let golden = golden::load("gradients/models");
    let config: UNetConfig = tiny::config("tiny/model/unet/config.json");
    let vars = variables(&[tiny::UNET]);
    let unet = UNet::new(&config, &builder(&vars)).unwrap();
    let [x, context] =
        ["x", "context"].map(|k| Var::from_tensor(&golden.tensor(&format!("unet.{k}"))).unwrap());
    let input = UNetInput {
        timestep: 0.0,
        frames: 1,
        context: &context,
        motion_norm: MotionNorm::Pooled,
        injection: &Injection::default(),
        stop: &Stop::default(),
    };
    let y = unet.forward_with_timesteps(&x, &[999.0, 430.0, 7.0], &input).unwrap();
    network(&golden, "unet", &y, &[("x", &x), ("context", &context)], &vars);
    // Every weight of the file has a gradient.
    assert_eq!(golden.names().iter().filter(|n| n.starts_with("unet.w.")).count(), vars.len());
    assert!(unet.forward_with_timesteps(&x, &[1.0, 2.0], &input).is_err());
    assert!(unet.forward_with_timesteps(&x, &[], &input).is_err());
}

#[test]
fn motion_modules_have_the_gradients_of_torch() {
    let golden = golden::load("gradients/models");
    let motion: MotionConfig = tiny::config("tiny/model/motion_adapter/config.json");
    let config: UNetConfig = tiny::config("tiny/model/unet/config.json");
    let vars = variables(&[tiny::UNET, tiny::MOTION]);
    let unet = UNet::new(&config.with_motion(motion), &builder(&vars)).unwrap();
    let [x, context] =
        ["x", "context"].map(|k| Var::from_tensor(&golden.tensor(&format!("motion.{k}"))).unwrap());
    let input = UNetInput {
        timestep: 0.0,
        frames: 3,
        context: &context,
        motion_norm: MotionNorm::Pooled,
        injection: &Injection::default(),
        stop: &Stop::default(),
    };
    let y = unet.forward_with_timesteps(&tiny::fold(&x), &[640.0, 81.0], &input).unwrap();
    let y = tiny::unfold(&y, 2);
    network(&golden, "motion", &y, &[("x", &x), ("context", &context)], &vars);
}

const VAE: &str = "tiny/model/vae/diffusion_pytorch_model.safetensors";

#[test]
fn the_autoencoder_has_the_gradients_of_torch() {
    let golden = golden::load("gradients/models");
    let config: VaeConfig = tiny::config("tiny/model/vae/config.json");
    let vars = variables(&[VAE]);
    let vae = AutoencoderKl::new(&config, &builder(&vars)).unwrap();
    let x = Var::from_tensor(&golden.tensor("encoder.x")).unwrap();
    let posterior = vae.encode(&x, &Stop::default()).unwrap();
    let y = Tensor::cat(&[&posterior.mean, &posterior.log_variance], 1).unwrap();
    network(&golden, "encoder", &y, &[("x", &x)], &vars);
    let x = Var::from_tensor(&golden.tensor("decoder.x")).unwrap();
    let y = vae.decode(&x, &Stop::default()).unwrap();
    network(&golden, "decoder", &y, &[("x", &x)], &vars);
}

#[test]
fn the_text_encoder_has_the_gradients_of_torch() {
    let golden = golden::load("gradients/models");
    let config: TextConfig = tiny::config("tiny/model/text_encoder/config.json");
    let vars = variables(&["tiny/model/text_encoder/model.safetensors"]);
    let text = TextEncoder::new(&config, &builder(&vars)).unwrap();
    let ids = golden.tensor("text.ids").to_dtype(DType::U32).unwrap();
    let y = text.forward(&ids, 0, &Stop::default()).unwrap();
    network(&golden, "text", &y, &[], &vars);
}

#[test]
fn gradients_are_the_same_bits_every_time() {
    let x = Var::from_tensor(&drawn("repeat.x", &[40, 6, 8, 8])).unwrap();
    let weight = Var::from_tensor(&drawn("repeat.weight", &[5, 6, 3, 3])).unwrap();
    let run = || {
        let y = convolved(&x, &weight, None, 1, 1).unwrap();
        let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let bits = |var: &Var| {
            gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        (bits(&x), bits(&weight))
    };
    let first = run();
    assert!((0..5).all(|_| run() == first));
}
