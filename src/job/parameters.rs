//! A request as AUTOMATIC1111's web UI writes it, for people and other programs: its `create_infotext`, whose text its
//! `parse_generation_parameters` reads.

use std::fmt::Write;
use std::path::Path;

use crate::library::{Base, Files, Motion};
use crate::media::resize::Fit;
use crate::request::Control;
use crate::request::IpAdapter;
use crate::request::{FileRecord, Job, Request, Upscale};
use crate::rng::RngKind;
use crate::sampler::{SamplerKind, kept_steps};
use crate::schedule::Spacing;
use crate::weights::Source;

/// What the text is made of beside the job.
pub(super) struct Made<'a> {
    /// The files that the job's names stood for.
    pub(super) files: &'a Files,
    /// All weight files, in the order of the job's records.
    pub(super) sources: &'a [Source],
    /// The hashes of A1111 for LoRAs, by file.
    pub(super) lora_hashes: &'a [(Source, String)],
    /// Whether there are motion modules.
    pub(super) has_motion: bool,
}

/// Digits of hashes: of checkpoints and autoencoders, and of what prompts name.
const SHORT: usize = 10;
const SHORT_NAMED: usize = 12;

/// The text.
pub(super) fn text(job: &Job, made: &Made<'_>) -> String {
    let request = &job.request;
    let mut text = prompt(request);
    // Behind lines for frames a line of its own belongs to all of them.
    let travels = request.prompt.keys().is_ok_and(|keys| keys.len() > 1);
    for (i, (tag, _)) in loras(job, made).into_iter().enumerate() {
        if !text.is_empty() {
            text.push(if travels && i == 0 { '\n' } else { ' ' });
        }
        text.push_str(&tag);
    }
    if !request.prompt.negative.trim().is_empty() {
        text.push_str("\nNegative prompt: ");
        text.push_str(request.prompt.negative.trim());
    }
    let fields: Vec<String> = fields(job, made)
        .into_iter()
        .map(|(key, value)| format!("{key}: {}", quoted(&value)))
        .collect();
    text.push('\n');
    text.push_str(&fields.join(", "));
    text
}

/// The prompt; if it travels, with a line for each key, as A1111's extension for AnimateDiff reads it.
fn prompt(request: &Request) -> String {
    let prompt = &request.prompt;
    let mut text = prompt.text.trim().to_owned();
    for key in prompt.travel.keys() {
        if !text.is_empty() {
            text.push('\n');
        }
        let words: Vec<&str> = key.text.lines().map(str::trim).collect();
        // Writing to a string cannot fail.
        let _ = write!(text, "{}: {}", key.frame, words.join(" "));
    }
    text
}

/// A value as A1111's `quote` writes it.
fn quoted(value: &str) -> String {
    if value.contains([',', '\n', ':']) {
        // Writing a string as JSON cannot fail.
        serde_json::to_string(value).unwrap_or_default()
    } else {
        value.to_owned()
    }
}

fn fields(job: &Job, made: &Made<'_>) -> Vec<(String, String)> {
    let request = &job.request;
    let mut fields: Vec<(String, String)> = Vec::new();
    let mut field = |key: &str, value: String| fields.push((key.to_owned(), value));
    field("Steps", request.sampling.steps.to_string());
    field("Sampler", sampler(request.sampling.sampler).to_owned());
    field("Schedule type", schedule_type(request).to_owned());
    field("CFG scale", request.sampling.cfg_scale.to_string());
    field("Seed", request.sampling.seed.unwrap_or_default().to_string());
    let (width, height) =
        (request.size.width.unwrap_or_default(), request.size.height.unwrap_or_default());
    field("Size", format!("{width}x{height}"));
    let (model, path) = model(job, made.files);
    if let Some(hash) = made.hash(job, path, SHORT) {
        field("Model hash", hash);
    }
    field("Model", model.clone());
    if let Some(vae) = &made.files.vae {
        if let Some(hash) = made.hash(job, Some(vae), SHORT) {
            field("VAE hash", hash);
        }
        field("VAE", file_name(vae));
    }
    if request.prompt.clip_skip > 0 {
        // A1111 counts from the last layer, which is 1.
        field("Clip skip", (request.prompt.clip_skip + 1).to_string());
    }
    if let Some(strength) = request.source.as_ref().and_then(|source| source.strength) {
        field("Denoising strength", strength.to_string());
    }
    if let Some(hires) = &request.quality.hires {
        if request.source.is_none() {
            field("Denoising strength", hires.strength.to_string());
        }
        field("Hires upscale", hires.scale.to_string());
        // A1111 counts the steps that are made.
        let steps = hires.steps.unwrap_or(request.sampling.steps);
        if let Ok(steps) = kept_steps(steps, hires.strength) {
            field("Hires steps", steps.to_string());
        }
        let upscaler = match hires.upscale {
            Upscale::Bicubic => "Latent (bicubic)",
            Upscale::Nearest => "Latent (nearest)",
            Upscale::Pixels => "Lanczos",
        };
        field("Hires upscaler", upscaler.to_owned());
    }
    let hashes = |named: Vec<(String, Option<String>)>| {
        let named: Vec<String> = named
            .into_iter()
            .filter_map(|(name, hash)| Some(format!("{name}: {}", hash?)))
            .collect();
        (!named.is_empty()).then(|| named.join(", "))
    };
    let named = loras(job, made);
    if let Some(hashes) = hashes(named.into_iter().map(|(_, named)| named).collect()) {
        field("Lora hashes", hashes);
    }
    let embeddings = job.models.embeddings.iter().zip(&made.files.embeddings);
    let named = embeddings.map(|(embedding, file)| {
        let path = file.source.path();
        let name = embedding.word.clone().unwrap_or_else(|| stem(path));
        (name, made.hash(job, Some(path), SHORT_NAMED))
    });
    if let Some(hashes) = hashes(named.collect()) {
        field("TI hashes", hashes);
    }
    let units =
        request.controls.iter().map(control).chain(request.ip_adapters.iter().map(ip_adapter));
    for (i, unit) in units.enumerate() {
        field(&format!("ControlNet {i}"), unit);
    }
    if made.has_motion {
        field("AnimateDiff", animate_diff(job, made, &model));
    }
    field("Frames", request.frames().to_string());
    field("FPS", request.output.fps.to_string());
    field("RNG", if request.sampling.rng == RngKind::Cpu { "CPU" } else { "NV" }.to_owned());
    field("Version", format!("animatelcm {}", env!("CARGO_PKG_VERSION")));
    fields
}

impl Made<'_> {
    /// The beginning of the SHA-256 of the first weight file that is at a path or in it.
    fn hash(&self, job: &Job, path: Option<&Path>, digits: usize) -> Option<String> {
        let is_at = |source: &Source| match path {
            Some(path) => source.path().starts_with(path),
            None => true,
        };
        let at = self.sources.iter().position(is_at)?;
        let record: &FileRecord = job.weights.get(at)?;
        record.sha256.as_ref()?.get(..digits).map(str::to_owned)
    }
}

/// The name of the checkpoint, and where it is; the model inside the program is nowhere.
fn model<'a>(job: &Job, files: &'a Files) -> (String, Option<&'a Path>) {
    if let Some(file) = &files.checkpoint {
        return (stem(file), Some(file));
    }
    let named = job.models.model.as_deref();
    match &files.base {
        Base::File(path) => (stem(path), Some(path)),
        Base::Folder(path) => {
            // A published model is known by its name, not by the folder of the cache.
            let published = named.filter(|name| !Path::new(name).exists());
            let name = published.map_or_else(|| file_name(path), str::to_owned);
            (name, Some(path))
        }
        Base::Embedded | Base::Random(_) => ("pocket".to_owned(), None),
    }
}

/// The LoRAs that come from files: the tag of each for a prompt, its name and its hash.
fn loras(job: &Job, made: &Made<'_>) -> Vec<(String, (String, Option<String>))> {
    let files = made.files.loras.iter().filter(|lora| matches!(lora.source, Source::File(_)));
    files
        .map(|lora| {
            let path = lora.source.path();
            let name = if path.is_dir() { file_name(path) } else { stem(path) };
            let mut tag = format!("<lora:{name}");
            // Writing to a string cannot fail.
            let _ = match lora.text_scale {
                Some(text) if text != lora.scale => write!(tag, ":{text}:{}", lora.scale),
                _ => write!(tag, ":{}", lora.scale),
            };
            if let Some(blocks) = lora.blocks {
                let _ = write!(tag, ":lbw={blocks}");
            }
            tag.push('>');
            let own = made.lora_hashes.iter().find(|(source, _)| source.path().starts_with(path));
            let hash = match own {
                Some((_, hash)) => hash.get(..SHORT_NAMED).map(str::to_owned),
                None => made.hash(job, Some(path), SHORT_NAMED),
            };
            (tag, (name, hash))
        })
        .collect()
}

/// A1111's name of a sampler.
fn sampler(kind: SamplerKind) -> &'static str {
    match kind {
        SamplerKind::Lcm => "LCM",
        SamplerKind::Tcd => "TCD",
        SamplerKind::Ddim => "DDIM",
        SamplerKind::Ddpm => "DDPM",
        SamplerKind::Euler => "Euler",
        SamplerKind::EulerAncestral => "Euler a",
        SamplerKind::Heun => "Heun",
        SamplerKind::Lms => "LMS",
        SamplerKind::Pndm => "PLMS",
        SamplerKind::Deis => "DEIS",
        SamplerKind::UniPc => "UniPC",
        SamplerKind::Dpmpp2m => "DPM++ 2M",
        SamplerKind::Dpmpp2mSde => "DPM++ 2M SDE",
        SamplerKind::Dpmpp3mSde => "DPM++ 3M SDE",
        SamplerKind::DpmppSde => "DPM++ SDE",
    }
}

/// A1111's name of the way in which timesteps are spread.
fn schedule_type(request: &Request) -> &'static str {
    match (request.sampling.spacing, request.sampling.sampler) {
        (None, SamplerKind::Lcm | SamplerKind::Tcd)
        | (None | Some(Spacing::Leading { .. }), SamplerKind::Ddim | SamplerKind::Pndm) => {
            "Automatic"
        }
        (Some(Spacing::Leading { .. }) | None, _) => "DDIM",
        (Some(Spacing::Trailing), _) => "Simple",
        (Some(Spacing::Linspace), _) => "Uniform",
        (Some(Spacing::Karras), _) => "Karras",
        (Some(Spacing::Exponential), _) => "Exponential",
        (Some(Spacing::SgmUniform), _) => "SGM Uniform",
        (Some(Spacing::Ays), _) => "Align Your Steps",
    }
}

/// A unit of A1111's extension for ControlNets.
fn control(control: &Control) -> String {
    let fit = match control.fit {
        Fit::Stretch => "Just Resize",
        Fit::Crop | Fit::Cover => "Crop and Resize",
        Fit::Pad => "Resize and Fill",
    };
    let mode = if control.guess { "ControlNet is more important" } else { "Balanced" };
    format!(
        "Module: none, Model: {}, Weight: {}, Resize Mode: {fit}, Guidance Start: {}, Guidance End: {}, Control Mode: \
         {mode}",
        unit_model(&control.model),
        control.scale,
        control.start,
        control.end,
    )
}

/// The same extension has IP-Adapters, too.
fn ip_adapter(adapter: &IpAdapter) -> String {
    format!(
        "Module: ip-adapter-auto, Model: {}, Weight: {}, Guidance Start: {}, Guidance End: {}",
        unit_model(&adapter.model),
        adapter.scale,
        adapter.start,
        adapter.end,
    )
}

/// A unit's text is split at commas and colons without any quotes.
fn unit_model(model: &str) -> String {
    stem(Path::new(model)).replace([',', ':'], " ")
}

/// The fields of A1111's extension for AnimateDiff, as far as there are such things here.
fn animate_diff(job: &Job, made: &Made<'_>, model: &str) -> String {
    let (frames, fps) = (job.request.frames(), job.request.output.fps);
    let (name, hash) = match &made.files.motion {
        Motion::File(path) => {
            let named = job.models.motion.as_deref().filter(|name| !Path::new(name).exists());
            let name = named.map_or_else(|| file_name(path), str::to_owned);
            (name, made.hash(job, Some(path), 8))
        }
        Motion::Base | Motion::None => (model.to_owned(), None),
    };
    let name = name.replace([',', ':'], " ");
    let hash = hash.map(|hash| format!(", mm_hash: {hash}")).unwrap_or_default();
    format!(
        "enable: True, model: {name}, video_length: {frames}, fps: {fps}, loop_number: 0, closed_loop: N{hash}"
    )
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
