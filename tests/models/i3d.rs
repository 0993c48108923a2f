//! I3D, its convolutions and its pooling, against torch.

use animatelcm::Stop;
use animatelcm::metrics::pixels;
use animatelcm::models::i3d::{I3d, I3dConfig};
use animatelcm::nn::{Conv3d, max_pool3d};
use candle_core::{DType, Device, Tensor};

use crate::support::close::{assert_close, assert_relative};
use crate::support::{golden, tiny};

/// `(channels, frames, height, width)` as torch has it, and the other way round.
fn turned(x: &Tensor) -> Tensor {
    x.transpose(0, 1).unwrap().contiguous().unwrap()
}

fn network() -> (I3dConfig, I3d) {
    let tensors = tiny::tensors(&["i3d/i3d.safetensors"]);
    let shape = |name: &str| tensors.get(name).map(Tensor::dims);
    let config = I3dConfig::from_shapes(shape).unwrap();
    let network = I3d::new(&config, &tiny::vb(&["i3d/i3d.safetensors"], DType::F32)).unwrap();
    (config, network)
}

#[test]
fn convolutions_and_pooling_in_three_dimensions_equal_torch() {
    let case = golden::load("i3d/units");
    let stop = Stop::default();
    for (n, stride) in [2, 2, 1, 1].into_iter().enumerate() {
        let of = |what: &str| case.tensor(&format!("conv.{n}.{what}"));
        let conv = Conv3d::new(&of("weight"), None, stride).unwrap();
        let y = conv.forward(&turned(&of("x")), &stop).unwrap();
        assert_relative(&turned(&y), &of("y"), 1e-5);
        // A bias is added once, whatever the kernel's depth.
        let bias = Tensor::new(&[1f32, -2.0, 3.0, 0.5], &Device::Cpu).unwrap();
        let conv = Conv3d::new(&of("weight"), Some(&bias), stride).unwrap();
        let more = (conv.forward(&turned(&of("x")), &stop).unwrap() - &y).unwrap();
        let expected = bias.reshape((1, 4, 1, 1)).unwrap().broadcast_as(y.shape()).unwrap();
        assert_close(&more, &expected, 1e-4);
    }
    let kinds = [((1, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (2, 2)), ((3, 3), (1, 1))];
    for (n, (kernel, stride)) in kinds.into_iter().enumerate() {
        for m in 0..2 {
            let of = |what: &str| case.tensor(&format!("pool.{n}.{m}.{what}"));
            let y = max_pool3d(&turned(&of("x")), kernel, stride).unwrap();
            assert_close(&turned(&y), &of("y"), 0.0);
        }
    }
}

#[test]
fn images_of_two_shapes_are_padded_on_each_side_by_itself() {
    // Height and width need different zeros: the result is that of the larger image with a border of zeros.
    let device = Device::Cpu;
    let x = Tensor::rand(-1f32, 1.0, (3, 2, 6, 9), &device).unwrap();
    let weight = Tensor::rand(-1f32, 1.0, (4, 2, 7, 7, 7), &device).unwrap();
    let conv = Conv3d::new(&weight, None, 2).unwrap();
    let y = conv.forward(&x, &Stop::default()).unwrap();
    assert_eq!(y.dims(), [2, 4, 3, 5]);
    let upright = conv.forward(&x.transpose(2, 3).unwrap().contiguous().unwrap(), &Stop::default());
    let mirrored = weight.transpose(3, 4).unwrap().contiguous().unwrap();
    let mirrored = Conv3d::new(&mirrored, None, 2).unwrap();
    let again =
        mirrored.forward(&x.transpose(2, 3).unwrap().contiguous().unwrap(), &Stop::default());
    assert_relative(&again.unwrap().transpose(2, 3).unwrap().contiguous().unwrap(), &y, 1e-5);
    assert_eq!(upright.unwrap().dims(), [2, 4, 5, 3]);
}

#[test]
fn features_and_logits_equal_torch() {
    let (config, network) = network();
    assert_eq!((config.stem, config.classes), ([5, 6, 7], 13));
    let case = golden::load("i3d/cases");
    let stop = Stop::default();
    // 16 frames as in papers; 17, of which two positions in time are left; 9, the fewest.
    for n in 0..3 {
        let frames = case.images(&format!("{n}.u8"));
        let x = pixels(&frames, &Device::Cpu).unwrap();
        let pooled = network.pooled(&x, &stop).unwrap();
        assert_relative(&pooled, &case.tensor(&format!("{n}.pooled")), 1e-5);
        let logits = network.logits(&x, &stop).unwrap();
        assert_relative(&logits, &case.tensor(&format!("{n}.logits")), 1e-5);
    }
}

#[test]
fn clips_that_an_i3d_cannot_take_are_refused() {
    let (_, network) = network();
    let logits = |shape| {
        let x = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        network.logits(&x, &Stop::default())
    };
    let error = logits((8, 3, 224, 224)).unwrap_err();
    assert_eq!(error.to_string(), "frames: 8, an I3D takes 9 or more");
    assert!(logits((9, 3, 112, 112)).is_err());
    assert!(logits((9, 1, 224, 224)).is_err());
    let stop = Stop::default();
    stop.request();
    let x = Tensor::zeros((9, 3, 224, 224), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(network.logits(&x, &stop).unwrap_err().kind().exit_code(), 130);
}
