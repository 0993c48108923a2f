//! The autoencoders against diffusers.

use animatelcm::Stop;
use animatelcm::models::vae::{AutoencoderKl, AutoencoderTiny, TinyVaeConfig, VaeConfig};
use candle_core::DType;

use crate::support::close::assert_relative;
use crate::support::tiny::{self, case};

const F32: f64 = 1e-5;

fn vae() -> AutoencoderKl {
    let config: VaeConfig = tiny::config("tiny/model/vae/config.json");
    let vb = tiny::vb(&["tiny/model/vae/diffusion_pytorch_model.safetensors"], DType::F32);
    AutoencoderKl::new(&config, &vb).unwrap()
}

#[test]
fn decoding_equals_diffusers() {
    let case = case("vae");
    assert_relative(&vae().decode(&case["z"], &Stop::default()).unwrap(), &case["dec"], F32);
}

#[test]
fn encoding_equals_diffusers() {
    let case = case("vae");
    let posterior = vae().encode(&case["img"], &Stop::default()).unwrap();
    assert_relative(&posterior.mean, &case["mean"], F32);
    assert_relative(&posterior.log_variance, &case["logvar"], F32);
}

#[test]
fn the_tiny_autoencoder_equals_diffusers() {
    let config: TinyVaeConfig = tiny::config("tiny/extras/taesd/config.json");
    let vb = tiny::vb(&["tiny/extras/taesd/diffusion_pytorch_model.safetensors"], DType::F32);
    let taesd = AutoencoderTiny::new(&config, &vb).unwrap();
    let (kl, want) = (case("vae"), case("taesd"));
    let z = kl["z"].narrow(0, 0, 1).unwrap();
    assert_relative(&taesd.decode(&z, &Stop::default()).unwrap(), &want["dec"], F32);
    assert_relative(&taesd.encode(&kl["img"], &Stop::default()).unwrap(), &want["enc"], F32);
}
