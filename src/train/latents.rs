//! Latents of all clips, encoded once and cached.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::data::{Clips, Words};
use super::files;
use super::places::Places;
use super::{Compute, Weights, builder};
use crate::Result;
use crate::models::vae::{AutoencoderKl, VaeConfig};
use crate::rng::Uniform;
use crate::weights::Component;

/// Scaled latents and captions of all clips.
pub(super) struct Latents {
    /// Latents of each clip, `(frames, channels, height, width)`.
    clips: Vec<Tensor>,
    words: Vec<Words>,
}

impl Latents {
    /// Reads the latents from the cache, or encodes the clips with the VAE of the base folder.
    pub(super) fn open(
        clips: &Clips,
        places: &Places,
        compute: &Compute,
        say: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Self> {
        let device = &compute.device;
        let vae_file = places.base.join("vae/diffusion_pytorch_model.safetensors");
        let config: VaeConfig = files::read_json(&places.base.join("vae/config.json"))?;
        let hash = crate::weights::sha256(&vae_file.clone().into(), &compute.stop)?;
        let factor = config.scaling_factor;
        let fingerprint = format!("{} vae {hash} scaled by {factor}", clips.fingerprint());
        let words = (0..clips.len()).map(|i| clips.words(i)).collect();
        let cache = places.out.join("latents.safetensors");
        if let Some(kept) = cached(&cache, &fingerprint, device)? {
            return Ok(Self { clips: kept, words });
        }
        let weights = files::read_component(&places.base, Component::Vae, device)?;
        let vae = AutoencoderKl::new(&config, &builder(&[&weights], &Compute::exact(device)))?;
        let mut latents = Vec::with_capacity(clips.len());
        for index in 0..clips.len() {
            if index.is_multiple_of(64) {
                say(&format!("latents of clip {index} of {}", clips.len()))?;
            }
            latents.push(clips.latents(index, &vae, compute)?);
        }
        let all: Weights = [("latents".to_owned(), Tensor::stack(&latents, 0)?)].into();
        let metadata = [("fingerprint".to_owned(), fingerprint)].into();
        files::write_tensors(&cache, &all, &metadata)?;
        Ok(Self { clips: latents, words })
    }

    /// One random frame of each of `count` random clips, `(count, channels, height, width)`, and the clips' indices.
    pub(super) fn images(
        &self,
        random: &mut Uniform,
        count: usize,
    ) -> Result<(Tensor, Vec<usize>)> {
        let mut chosen = Vec::with_capacity(count);
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let clip = random.below(self.clips.len());
            let latents = &self.clips[clip];
            frames.push(latents.narrow(0, random.below(latents.dim(0)?), 1)?);
            chosen.push(clip);
        }
        Ok((Tensor::cat(&frames, 0)?, chosen))
    }

    /// `count` random clips, `(count*frames, channels, height, width)`, and their indices.
    pub(super) fn clips(&self, random: &mut Uniform, count: usize) -> Result<(Tensor, Vec<usize>)> {
        let chosen: Vec<usize> = (0..count).map(|_| random.below(self.clips.len())).collect();
        let latents: Vec<&Tensor> = chosen.iter().map(|i| &self.clips[*i]).collect();
        Ok((Tensor::cat(&latents, 0)?, chosen))
    }

    pub(super) fn captions(
        &self,
        chosen: &[usize],
        random: &mut Uniform,
        (no_caption, no_part): (f64, f64),
    ) -> Vec<String> {
        chosen.iter().map(|i| self.words[*i].draw(random, no_caption, no_part)).collect()
    }

    pub(super) fn whole_captions(&self, chosen: &[usize]) -> Vec<String> {
        chosen.iter().map(|i| self.words[*i].whole()).collect()
    }
}

fn cached(path: &Path, fingerprint: &str, device: &Device) -> Result<Option<Vec<Tensor>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let archive = crate::weights::Archive::open(&path.to_path_buf().into())?;
    if archive.metadata().get("fingerprint").map(String::as_str) != Some(fingerprint) {
        return Ok(None);
    }
    let all = archive.tensor("latents", candle_core::DType::F32, device)?;
    let clips = (0..all.dim(0)?).map(|i| Ok(all.get(i)?)).collect::<Result<Vec<_>>>()?;
    Ok(Some(clips))
}
