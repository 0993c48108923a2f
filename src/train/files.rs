//! Files of training: models in published layouts, and training state.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{LowRank, Weights, is_spatial_module};
use crate::files::{self, Existing, Place};
use crate::library::{ControlFile, SideConfig, open_side_network};
use crate::models::clip::TextConfig;
use crate::models::unet::UNetConfig;
use crate::models::vae::VaeConfig;
use crate::schedule::{self, Prediction};
use crate::weights::{Archive, Checkpoint, Component, PatchStack, Source, write_safetensors};
use crate::{Error, Result};

/// Request field named in errors about the output folder.
const FIELD: &str = "out";

/// Writes a file atomically: afterwards it holds either the new content or the old.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    make_folder_of(path)?;
    files::write(FIELD, path, bytes)
}

fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::file(folder))
}

/// Writes tensors as safetensors, atomically. Equal tensors give equal bytes.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &Weights,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    make_folder_of(path)?;
    let mut draft = Place::resolve(FIELD, path, Existing::Replace)?.draft()?;
    write_safetensors(&mut draft, tensors, Some(metadata)).map_err(Error::file(path))?;
    draft.commit()
}

/// Writes weights as f16 safetensors, as in published files.
pub(super) fn publish(path: &Path, weights: &Weights) -> Result<()> {
    let half = |(name, tensor): (&String, &Tensor)| {
        Ok((name.clone(), tensor.detach().to_dtype(DType::F16)?))
    };
    let weights: Weights = weights.iter().map(half).collect::<Result<_>>()?;
    write_tensors(path, &weights, &[("format".to_owned(), "pt".to_owned())].into())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
    write_bytes(path, (text + "\n").as_bytes())
}

/// A configuration with additional fields that diffusers or transformers require.
fn config(config: &impl serde::Serialize, more: Value) -> Result<Value> {
    let mut value = serde_json::to_value(config)
        .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    Ok(value)
}

/// Writes the `vae` folder of a diffusers pipeline.
pub(super) fn write_vae(
    base: &Path,
    sizes: &VaeConfig,
    side: usize,
    weights: &Weights,
) -> Result<()> {
    let stages = sizes.block_out_channels.len();
    let more = json!({
        "_class_name": "AutoencoderKL",
        "down_block_types": vec!["DownEncoderBlock2D"; stages],
        "up_block_types": vec!["UpDecoderBlock2D"; stages],
        "sample_size": side,
        "force_upcast": true,
    });
    write_json(&base.join("vae/config.json"), &config(sizes, more)?)?;
    publish(&base.join("vae/diffusion_pytorch_model.safetensors"), weights)
}

/// Tokenizer files of models trained from scratch: byte pairs of the procedural grammar's words.
pub(super) const TOKENIZER: [(&str, &str); 4] = [
    ("vocab.json", include_str!("../../assets/pocket/base/tokenizer/vocab.json")),
    ("merges.txt", include_str!("../../assets/pocket/base/tokenizer/merges.txt")),
    (
        "tokenizer_config.json",
        include_str!("../../assets/pocket/base/tokenizer/tokenizer_config.json"),
    ),
    (
        "special_tokens_map.json",
        include_str!("../../assets/pocket/base/tokenizer/special_tokens_map.json"),
    ),
];

/// Vocabulary size of [`TOKENIZER`].
pub(super) const VOCABULARY: usize = 614;

/// Writes a diffusers pipeline's folder, except the VAE.
pub(super) fn write_base(
    base: &Path,
    (unet, unet_weights): (&UNetConfig, &Weights),
    (text, text_weights): (&TextConfig, &Weights),
) -> Result<()> {
    let more = json!({
        "_class_name": "UNet2DConditionModel",
        "mid_block_type": "UNetMidBlock2DCrossAttn",
    });
    write_json(&base.join("unet/config.json"), &config(unet, more)?)?;
    publish(&base.join("unet/diffusion_pytorch_model.safetensors"), unet_weights)?;
    let (bos, eos) = (text.vocab_size.saturating_sub(2), text.vocab_size.saturating_sub(1));
    let more = json!({
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "projection_dim": text.hidden_size,
        "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos,
        "dtype": "float16",
    });
    write_json(&base.join("text_encoder/config.json"), &config(text, more)?)?;
    publish(&base.join("text_encoder/model.safetensors"), text_weights)?;
    for (name, content) in TOKENIZER {
        write_bytes(&base.join("tokenizer").join(name), content.as_bytes())?;
    }
    let scheduler = json!({
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear",
        "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1,
        "prediction_type": "epsilon", "timestep_spacing": "leading",
    });
    write_json(&base.join("scheduler/scheduler_config.json"), &scheduler)?;
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [null, null], "image_encoder": [null, null],
        "safety_checker": [null, null], "requires_safety_checker": false,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    write_json(&base.join("model_index.json"), &index)
}

/// Reads a JSON configuration.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = crate::files::read(path, crate::files::MOST_TEXT)
        .map_err(|e| Error::Missing { name: path.display().to_string(), reason: e.to_string() })?;
    serde_json::from_slice(&bytes).map_err(|e| Error::format(path, e.to_string()))
}

/// Reads all weights of a component of a diffusers folder, in f32.
pub(super) fn read_component(
    base: &Path,
    component: Component,
    device: &Device,
) -> Result<Weights> {
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_component(component, &Source::from(base.to_path_buf()))?;
    collect(&checkpoint, component, device)
}

/// Reads all weights of a file or folder of motion modules, in f32.
pub(super) fn read_motion(path: &Path, device: &Device) -> Result<Weights> {
    let mut checkpoint = Checkpoint::new();
    checkpoint.add_motion(&Source::from(path.to_path_buf()))?;
    collect(&checkpoint, Component::UNet, device)
}

/// Reads a control network beside the UNet of a diffusers folder, and what it is, in f32.
pub(super) fn read_control(
    path: &Path,
    base: &Path,
    unet: &UNetConfig,
    device: &Device,
) -> Result<(SideConfig, Weights)> {
    let vae: VaeConfig = read_json(&base.join("vae/config.json"))?;
    let source = Source::from(path.to_path_buf());
    let file = ControlFile { name: path.display().to_string(), source };
    let (config, checkpoint) = open_side_network(&file, unet, vae.factor())?;
    let weights = collect(&checkpoint, config.component(), device)?;
    Ok((config, weights))
}

/// Names of the files of a control network.
pub(super) const CONTROL: [&str; 2] = ["config.json", "diffusion_pytorch_model.safetensors"];

/// Writes the diffusers folder of a control network.
pub(super) fn write_control(folder: &Path, sizes: &SideConfig, weights: &Weights) -> Result<()> {
    let class = |name: &str| json!({ "_class_name": name });
    let json = match sizes {
        SideConfig::ControlNet(sizes) => config(sizes, class("ControlNetModel"))?,
        SideConfig::SparseCtrl(sizes) => config(sizes, class("SparseControlNetModel"))?,
        SideConfig::T2iAdapter(sizes) => config(sizes, class("T2IAdapter"))?,
    };
    let [about, tensors] = CONTROL;
    write_json(&folder.join(about), &json)?;
    publish(&folder.join(tensors), weights)
}

fn collect(checkpoint: &Checkpoint, component: Component, device: &Device) -> Result<Weights> {
    let shapes: Vec<(String, Vec<usize>)> = checkpoint
        .names(component)
        .filter_map(|name| Some((name.to_owned(), checkpoint.shape_of(component, name)?.to_vec())))
        .collect();
    let (weights, _) =
        checkpoint.build(component, DType::F32, device, &PatchStack::new(), |vb| {
            let get = |(name, shape): (String, Vec<usize>)| {
                let tensor = vb.get(shape, &name)?;
                Ok((name, tensor))
            };
            shapes.iter().cloned().map(get).collect::<Result<Weights>>()
        })?;
    Ok(weights)
}

/// Reads a LoRA under kohya's names that changes spatial modules of `base`.
pub(super) fn read_lora(path: &Path, base: &Weights, device: &Device) -> Result<LowRank> {
    let archive = Archive::open(&Source::from(path.to_path_buf()))?;
    let mut factors = Weights::new();
    let mut alpha = None;
    for module in base.keys().filter_map(|name| name.strip_suffix(".weight")) {
        let kohya = format!("lora_unet_{}", module.replace('.', "_"));
        if !is_spatial_module(module) || archive.info(&format!("{kohya}.alpha")).is_none() {
            continue;
        }
        let read = |end: &str| archive.tensor(&format!("{kohya}.{end}"), DType::F32, device);
        alpha = Some(f64::from(read("alpha")?.flatten_all()?.to_vec1::<f32>()?[0]));
        for end in ["lora_down.weight", "lora_up.weight"] {
            factors.insert(format!("{module}.{end}"), read(end)?);
        }
    }
    match alpha {
        Some(alpha) => LowRank::from_factors(&factors, alpha),
        None => Err(Error::format(path, "changes no module of the base model")),
    }
}

/// Reads the noise schedule of a diffusers folder. The model must predict noise, as losses and solver assume.
pub(super) fn read_schedule(base: &Path) -> Result<schedule::NoiseSchedule> {
    let path = base.join("scheduler/scheduler_config.json");
    let config: schedule::Config = read_json(&path)?;
    config.validate()?;
    if config.prediction_type != Prediction::Epsilon || config.rescale_betas_zero_snr {
        let reason =
            "only models that predict noise, on a schedule that does not end in it, are trained";
        return Err(Error::format(path, reason));
    }
    config.schedule()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_has_as_many_tokens_as_it_is_said_to_have() {
        let vocabulary: serde_json::Map<String, Value> =
            serde_json::from_str(TOKENIZER[0].1).unwrap();
        assert_eq!(vocabulary.len(), VOCABULARY);
    }

    #[test]
    fn equal_tensors_are_equal_files_that_others_read() {
        let folder = tempfile::tempdir().unwrap();
        let tensors: Weights = [
            ("b \"quoted\"", Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap()),
            ("a", Tensor::new(&[1f32], &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap()),
            ("c", Tensor::new(&[5f32, 6.0, 7.0], &Device::Cpu).unwrap()),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into();
        let metadata: BTreeMap<String, String> =
            ["step", "plan", "more"].map(|key| (key.to_owned(), format!("{key}\n"))).into();
        let path = folder.path().join("made/now.safetensors");
        write_tensors(&path, &tensors, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        write_tensors(&path, &tensors, &metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        // The reference implementation reads it, and writes the same except for the order of metadata.
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let found: BTreeMap<_, _> = header.metadata().clone().unwrap().into_iter().collect();
        assert_eq!(found, metadata);
        let single: BTreeMap<String, String> = [("step".into(), "1".into())].into();
        write_tensors(&path, &tensors, &single).unwrap();
        let reference = safetensors::serialize(&tensors, Some(single.into_iter().collect()));
        assert_eq!(std::fs::read(&path).unwrap(), reference.unwrap());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let plain = folder.path().join("plain");
            std::fs::write(&plain, "").unwrap();
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(&path), mode(&plain));
        }
        assert_eq!(std::fs::read_dir(folder.path().join("made")).unwrap().count(), 1);
    }
}
