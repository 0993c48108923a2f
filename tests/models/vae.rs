//! The autoencoders against diffusers.

use animatelcm::Stop;
use animatelcm::models::Decode;
use animatelcm::models::vae::{
    AutoencoderKl, AutoencoderTiny, KlEncoder, Tiled, Tiling, TinyVaeConfig, Vae, VaeConfig,
    VaeEncoder,
};
use candle_core::DType;

use crate::support::close::assert_relative;
use crate::support::golden;
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

#[test]
fn tiles_equal_diffusers_where_images_are_larger_than_one() {
    let golden = golden::load("quality/tiling");
    let stop = Stop::default();
    let config: VaeConfig = tiny::config("tiny/model/vae/config.json");
    assert_eq!((config.sample_size, config.factor()), (32, 4));
    let tiling = Some(Tiling::new(32, 0.25, 4).unwrap());
    let scale = config.scaling_factor;
    let vae = Vae::Kl(Box::new(vae()));
    let scaled = (golden.tensor("z") * scale).unwrap();
    let decoded = Tiled::new(&vae, tiling).decode(&scaled, 1, &stop).unwrap();
    assert_relative(&decoded, &golden.tensor("decoded"), F32);
    let vb = tiny::vb(&["tiny/model/vae/diffusion_pytorch_model.safetensors"], DType::F32);
    let encoder = VaeEncoder::Kl(Box::new(KlEncoder::new(&config, &vb).unwrap()));
    let (image, moments) = (golden.tensor("image"), golden.tensor("moments"));
    let (mean, log_variance) = (moments.narrow(1, 0, 4).unwrap(), moments.narrow(1, 4, 4).unwrap());
    let deviation = (log_variance.clamp(-30.0, 20.0).unwrap() * 0.5).unwrap().exp().unwrap();
    for (noise, want) in [
        (mean.zeros_like().unwrap(), mean.clone()),
        (mean.ones_like().unwrap(), (&mean + deviation).unwrap()),
    ] {
        let got = encoder.sample_tiled(&image, &noise, tiling, &stop).unwrap();
        assert_relative(&got, &(want * scale).unwrap(), F32);
    }
    // What is no larger than a tile is not cut.
    let small = scaled.narrow(2, 0, 8).unwrap().narrow(3, 0, 8).unwrap().contiguous().unwrap();
    let got = Tiled::new(&vae, tiling).decode(&small, 1, &stop).unwrap();
    assert_relative(&got, &vae.decode(&small, 1, &stop).unwrap(), 0.0);
}

#[test]
fn tiles_are_of_whole_latents() {
    assert!(Tiling::new(512, 0.25, 8).is_ok() && Tiling::new(512, 0.0, 8).is_ok());
    for (size, overlap) in [(0, 0.25), (4, 0.25), (500, 0.25), (64, 0.3)] {
        let error = Tiling::new(size, overlap, 8).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.to_string().starts_with("vae-tiling: "), "{error}");
    }
}
