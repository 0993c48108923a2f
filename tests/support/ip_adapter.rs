//! The tiny model's image encoder and IP-Adapters.

use std::collections::BTreeMap;
use std::path::Path;

use animatelcm::Result;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, Files, IpAdapterFile, Models};
use animatelcm::media::RgbImage;
use animatelcm::models::clip::{VisionConfig, VisionEncoder};
use animatelcm::models::image_projection::{IpAdapter, IpAdapterConfig};
use animatelcm::models::motion::MotionNorm;
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::{IpAdapter as Asked, Request};
use animatelcm::weights::Source;
use candle_core::{DType, Device, Tensor};

use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::{self, case};

/// Modules and single passes in f32, relative L2.
pub(crate) const F32: f64 = 1e-5;

pub(crate) const ENCODER: &str = "tiny/extras/image_encoder/model.safetensors";

pub(crate) fn weights_of(kind: &str) -> String {
    let more = if kind == "base" { String::new() } else { format!("-{kind}") };
    format!("tiny/extras/ip-adapter{more}.safetensors")
}

pub(crate) fn encoder() -> VisionEncoder {
    let config: VisionConfig = tiny::config("tiny/extras/image_encoder/config.json");
    VisionEncoder::new(&config, &tiny::vb(&[ENCODER], DType::F32)).unwrap()
}

pub(crate) fn net(kind: &str) -> IpAdapter {
    let tensors = tiny::tensors(&[&weights_of(kind)]);
    let shape = |name: &str| tensors.get(name).map(|tensor| tensor.dims().to_vec());
    let config = IpAdapterConfig::from_shapes(shape).unwrap();
    IpAdapter::new(&config, &tiny::vb(&[&weights_of(kind)], DType::F32)).unwrap()
}

/// An image `(height, width, 3)`.
pub(crate) fn image(file: &str, name: &str) -> RgbImage {
    let tensor = golden::load(file).tensor(name).to_dtype(DType::U8).unwrap();
    let (height, width, _) = tensor.dims3().unwrap();
    let bytes = tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

/// The two images of the goldens.
pub(crate) fn refs() -> [RgbImage; 2] {
    [image("tiny/cases/image_encoder", "ref_u8"), image("tiny/cases/ip_masked", "ref2_u8")]
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn save(tensors: &BTreeMap<String, Tensor>, path: &Path) {
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

pub(crate) fn request() -> Request {
    Request::default().with(|r| {
        r.prompt.text = "A corgi walking in the park, 4k!!".into();
        r.prompt.negative = "bad quality".into();
        r.size.width = Some(64);
        r.size.height = Some(32);
        r.size.frames = Some(6);
        r.sampling.steps = 2;
        r.sampling.seed = Some(0);
        r.sampling.original_inference_steps = Some(50);
        r.sampling.motion_norm = MotionNorm::Pooled;
        r.sampling.cfg_scale = 1.5;
    })
}

pub(crate) fn files() -> Files {
    let adapter = |kind: &str| IpAdapterFile {
        name: kind.into(),
        source: Source::from(golden::path(&weights_of(kind))),
    };
    Files {
        ip_adapters: ["base", "plus", "full"].map(adapter).to_vec(),
        ..Files::new(Base::Folder(golden::path("tiny/model")))
    }
}

pub(crate) fn pipeline(residency: Residency) -> Pipeline {
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    Pipeline::new(Models::open(&files()).unwrap(), Device::Cpu, precision, residency)
}

/// The goldens' images and masks as files: `a.png`, `b.png`, `mask0.png`, `mask2.png`.
pub(crate) struct Images(tempfile::TempDir);

impl Images {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = refs();
        a.save(folder.path().join("a.png")).unwrap();
        b.save(folder.path().join("b.png")).unwrap();
        for i in [0, 2] {
            let mask = image("ip_adapter/masks", &format!("{i}.u8"));
            mask.save(folder.path().join(format!("mask{i}.png"))).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// An adapter of a kind; `text` begins with an image's name, and names after `=` are looked up here, too.
    pub(crate) fn adapter(&self, kind: &str, text: &str) -> Asked {
        let place = format!("{}{}", self.0.path().display(), std::path::MAIN_SEPARATOR);
        let mut text = text.to_owned();
        for key in ["image=", "mask="] {
            text = text.replace(key, &format!("{key}{place}"));
        }
        format!("{place}{text},model={kind}").parse().unwrap()
    }
}

/// Everything that a run with these adapters keeps.
pub(crate) fn run(adapters: &[Asked], request: Request) -> Result<BTreeMap<String, Tensor>> {
    let noise = case("noise");
    let mut tensors = Tensors {
        latents: Some(case("unet")["x"].clone()),
        noise: (0..3).map(|i| noise[&format!("noise.{i}")].clone()).collect(),
        recorded: Some(BTreeMap::new()),
        ..Tensors::default()
    };
    let request = request.with(|r| {
        r.ip_adapters = adapters.to_vec();
    });
    let mut frames = Vec::new();
    pipeline(Residency::Sequential).run(
        &request,
        &mut tensors,
        &mut |_: Event| Ok(()),
        &mut &mut frames,
    )?;
    Ok(tensors.recorded.unwrap())
}
