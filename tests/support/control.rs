//! Runs of the tiny model with controls.

use std::collections::BTreeMap;
use std::path::Path;

use animatelcm::Result;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Files, Models};
use animatelcm::media::RgbImage;
use animatelcm::models::motion::MotionNorm;
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::Request;
use animatelcm::weights::{Checkpoint, Component, PatchStack, Source};
use candle_core::{DType, Device, Tensor};

use crate::support::golden;
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny::case;

pub(crate) fn images(case: &str, name: &str) -> Vec<RgbImage> {
    let tensor = golden::load(case).tensor(name);
    let (_, height, width, _) = tensor.dims4().unwrap();
    let bytes = tensor.to_dtype(DType::U8).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let frame = |bytes: &[u8]| RgbImage::from_raw(width as u32, height as u32, bytes.to_vec());
    bytes.chunks(height * width * 3).map(|bytes| frame(bytes).unwrap()).collect()
}

/// Names and shapes in `tests/goldens/names/<list>.txt`, in order.
pub(crate) fn published(list: &str) -> Vec<(String, Vec<usize>)> {
    let text = std::fs::read_to_string(golden::path(&format!("names/{list}.txt"))).unwrap();
    let line = |line: &str| {
        let (name, shape) = line.split_once('\t').unwrap();
        (name.to_owned(), serde_json::from_str(shape).unwrap())
    };
    text.lines().map(line).collect()
}

pub(crate) fn save(tensors: &BTreeMap<String, Tensor>, path: &Path) {
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

/// Every weight of a network beside the UNet, which must be of that kind.
pub(crate) fn all_weights(component: Component, source: &Source) -> BTreeMap<String, Vec<f32>> {
    let mut checkpoint = Checkpoint::new();
    assert_eq!(checkpoint.add_control(source).unwrap(), component);
    let names: Vec<String> = checkpoint.names(component).map(str::to_owned).collect();
    let read = |vb: animatelcm::weights::VarBuilder<'static>| {
        let values = names.iter().map(|name| {
            let shape = checkpoint.shape_of(component, name).unwrap();
            let tensor = vb.get(shape, name)?;
            Ok((name.clone(), tensor.flatten_all()?.to_vec1()?))
        });
        values.collect()
    };
    let none = PatchStack::new();
    checkpoint.build(component, DType::F32, &Device::Cpu, &none, read).unwrap().0
}

pub(crate) fn request() -> Request {
    Request::default().with(|r| {
        r.prompt.text = "A corgi walking in the park, 4k!!".into();
        r.prompt.negative = "bad quality".into();
        r.size.width = Some(64);
        r.size.height = Some(32);
        r.size.frames = Some(6);
        r.sampling.seed = Some(0);
        r.sampling.original_inference_steps = Some(50);
        r.sampling.motion_norm = MotionNorm::Pooled;
        r.sampling.cfg_scale = 1.5;
    })
}

/// A folder with a GIF-free, lossless hint: one PNG a frame.
pub(crate) fn hint_folder(folder: &Path, name: &str, images: &[RgbImage]) -> String {
    let place = folder.join(name);
    std::fs::create_dir_all(&place).unwrap();
    for (i, image) in images.iter().enumerate() {
        image.save(place.join(format!("{i}.png"))).unwrap();
    }
    place.to_str().unwrap().to_owned()
}

/// The latents and the noise that the whole runs of the goldens have.
pub(crate) fn tensors() -> Tensors {
    let noise = case("noise");
    Tensors {
        latents: Some(case("unet")["x"].clone()),
        noise: (0..3).map(|i| noise[&format!("noise.{i}")].clone()).collect(),
        ..Tensors::default()
    }
}

/// Everything that a run keeps.
pub(crate) fn run_from(
    files: &Files,
    request: &Request,
    tensors: Tensors,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = Tensors { recorded: Some(BTreeMap::new()), ..tensors };
    let precision = Precision::new(DtypeChoice::F32, &Device::Cpu);
    let models = Models::open(files)?;
    let mut pipeline = Pipeline::new(models, Device::Cpu, precision, Residency::Sequential);
    let mut frames = Vec::new();
    pipeline.run(request, &mut tensors, &mut |_: Event| Ok(()), &mut &mut frames)?;
    Ok(tensors.recorded.unwrap())
}

pub(crate) fn bits(recorded: &BTreeMap<String, Tensor>) -> Vec<u32> {
    let values = recorded["frames"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}
