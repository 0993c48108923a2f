//! A denoising network of another family, in the place of the UNet.

use animatelcm::Result;
use animatelcm::models::Predict;
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::{StageConfig, UNetConfig, UNetInput};
use animatelcm::pipeline::denoiser::{Guidance, Guided, Settings};
use animatelcm::sampler::Denoiser;
use animatelcm::schedule::{NoiseLevel, Prediction};
use candle_core::{DType, Device, Tensor};

/// Predicts the mean of the context of every clip as its clean latents.
#[derive(Debug)]
struct MeanOfContext;

impl Predict for MeanOfContext {
    fn predict(&self, x: &Tensor, input: &UNetInput<'_>) -> Result<Tensor> {
        let clips = x.dim(0)? / input.frames;
        let means = input.context.mean((1, 2))?.reshape((clips, 1, 1, 1, 1))?;
        let (_, channels, height, width) = x.dims4()?;
        let shape = (clips, input.frames, channels, height, width);
        Ok(means.broadcast_as(shape)?.flatten(0, 1)?)
    }
}

#[test]
fn guidance_asks_a_network_of_any_family() {
    let settings = Settings {
        prediction: Prediction::Sample,
        dtype: DType::F32,
        motion_norm: MotionNorm::PerFrame,
    };
    let context = |value: f32| Tensor::full(value, (2, 7, 5), &Device::Cpu).unwrap();
    let at = NoiseLevel { timestep: 500.0, alpha: 0.6, sigma: 0.8 };
    let x = Tensor::ones((2, 3, 4, 2, 6), DType::F32, &Device::Cpu).unwrap();
    for guidance in [Guidance::Batched, Guidance::TwoPasses] {
        let mut guided = Guided::new(&MeanOfContext, settings, &context(1.0))
            .unwrap()
            .guide(&context(0.25), 3.0, guidance)
            .unwrap();
        let denoised = guided.denoise(&x, at).unwrap();
        assert_eq!(denoised.dims(), x.dims());
        // 0.25 + 3 (1 - 0.25)
        let values = denoised.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| (value - 2.5).abs() < 1e-6), "{values:?}");
    }
}

#[test]
fn the_shape_of_a_unet_is_one_list() {
    let stages = UNetConfig::sd15().stages().unwrap();
    let inputs = |i: usize| stages.up[i].layers.iter().map(|l| l.inputs).collect::<Vec<_>>();
    // Channels of diffusers' `up_blocks.{i}.resnets.{j}.conv1` for Stable Diffusion 1.5.
    assert_eq!(inputs(0), [2560, 2560, 2560]);
    assert_eq!(inputs(1), [2560, 2560, 1920]);
    assert_eq!(inputs(2), [1920, 1280, 960]);
    assert_eq!(inputs(3), [960, 640, 640]);
    let names: Vec<_> = stages.down.iter().chain([&stages.mid]).map(StageConfig::name).collect();
    assert_eq!(names.last().unwrap(), "mid_block");
    assert_eq!(names[3], "down_blocks.3");
    // 6 on the way down, 9 on the way up, 1 in the middle, each counted once.
    let all = stages.down.iter().chain(&stages.up).chain([&stages.mid]);
    let numbers: Vec<usize> = all.flat_map(|stage| stage.cross_attentions.clone()).collect();
    assert_eq!(numbers, (0..16).collect::<Vec<_>>());
    assert_eq!(UNetConfig::sd15().cross_attentions().unwrap().len(), 16);
}
