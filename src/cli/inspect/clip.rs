//! A clip: the request that it carries.

use std::path::Path;

use serde_json::{Value, json};

use super::super::to_json;
use super::Table;
use super::media::Seen;
use crate::job::{self, Imported};
use crate::models::unet::FreeU;
use crate::output::Metadata;
use crate::request::{
    Control, DynamicThresholding, FreeInit, Hires, Interpolation, Job, Loop, Pag, Quality, Request,
    Source, Spec, VaeTiling, Windows,
};
use crate::rng::NoiseKind;
use crate::text::prompt::PromptMode;
use crate::{Error, Result};

/// The metadata of a clip, as a table or as JSON: the job if there is one, else an object with `parameters` and what can
/// be seen. `foreign` is the request of another program, if there is no own one.
pub(super) fn show(
    path: &Path,
    metadata: &Metadata,
    seen: Option<&Seen>,
    foreign: Option<Result<Imported>>,
    as_json: bool,
) -> Result<String> {
    let Metadata { request_json, parameters } = metadata;
    // A file without any request has an error that says no more than that.
    let foreign = foreign.filter(|read| !matches!(read, Err(error) if is_none(error)));
    if as_json {
        let value: Value = match (request_json.as_str(), &foreign) {
            ("", foreign) => {
                let parameters = Some(parameters).filter(|text| !text.is_empty());
                let mut value = json!({ "parameters": parameters, "seen": seen });
                if let Some(Ok(read)) = foreign {
                    value["made_by"] = json!(read.origin.name());
                    value["request"] = json!(read.job);
                    value["notes"] = json!(read.notes);
                }
                value
            }
            (text, _) => serde_json::from_str(text)
                .map_err(|e| Error::format(path, format!("its request is not JSON: {e}")))?,
        };
        return to_json(&value);
    }
    let kind = match seen {
        Some(seen) if request_json.is_empty() => seen.to_string(),
        _ => "a clip".to_owned(),
    };
    let mut text = format!("{}: {kind}", path.display());
    match (request_json.as_str(), foreign) {
        ("", None) if parameters.is_empty() => return Ok(text + ", without a request in it\n"),
        ("", None) => text.push_str("\n  no request in it\n"),
        ("", Some(Ok(read))) => {
            text.push_str(&format!(", with the request of {}\n", read.origin.name()));
            let mut table = Table::default();
            request_rows(&read.job.request, &mut table);
            read.notes.iter().for_each(|note| table.row("note", note));
            text.push_str(&table.0);
        }
        ("", Some(Err(error))) => {
            text.push_str(&format!(", whose request cannot be taken\n  {error}\n"));
        }
        (json, _) => match Job::from_json(json) {
            Ok(job) => text.push_str(&format!("\n{}", rows(&job))),
            // Another program's, or of a later version: shown, not understood.
            Err(error) => text.push_str(&format!("\n  {error}\n  {request_json}\n")),
        },
    }
    if !parameters.is_empty() {
        text.push_str(&format!("\nparameters\n{parameters}\n"));
    }
    Ok(text)
}

/// Whether an import failed because there is nothing to import.
fn is_none(error: &Error) -> bool {
    error.to_string().ends_with(job::NO_REQUEST)
}

/// A request file.
pub(super) fn request(path: &Path, job: &Job, as_json: bool) -> Result<String> {
    if as_json {
        return to_json(job);
    }
    Ok(format!("{}: a request\n{}", path.display(), rows(job)))
}

fn rows(job: &Job) -> String {
    let Job { models, request, .. } = job;
    let mut table = Table::default();
    request_rows(request, &mut table);
    for (label, value) in parts(models) {
        table.row(label, value);
    }
    if let Some(record) = &job.tensors_in {
        table.row("tensors in", &record.file);
    }
    for record in &job.weights {
        let sha256 = record.sha256.as_deref().unwrap_or("unknown");
        table.row("weights", format!("{sha256}  {}", record.file));
    }
    if let Some(program) = &job.program {
        table.row("made by", format!("{} {} on {}", program.name, program.version, program.device));
    }
    table.0
}

fn request_rows(request: &Request, table: &mut Table) {
    let prompt = &request.prompt;
    if prompt.travel.is_empty() {
        table.row("prompt", &prompt.text);
    } else {
        table.row_if("prompt", &prompt.text);
    }
    for key in prompt.travel.keys() {
        table.row("travel", format!("{}: {}", key.frame, key.text));
    }
    table.row_if("negative", &request.prompt.negative);
    table.row(
        "seed",
        request.sampling.seed.map_or_else(
            || "random".into(),
            |s| format!("{s}, {} generator", request.sampling.rng),
        ),
    );
    table.row("clip", size(request));
    if let Some(source) = &request.source {
        table.row("source", self::source(source));
    }
    table.row("sampling", sampling(request));
    table.row_if("windows", &windows(request));
    table.row_if("quality", &quality(request));
    for control in &request.controls {
        let Control { name, hint, model, scale, preprocess, .. } = control;
        let made = preprocess.map(|made| format!(", hint by {made}")).unwrap_or_default();
        table.row("control", format!("{name}: {hint} by {model} at {scale}{made}"));
    }
    if let Some(color) = request.background_color {
        table.row("background", color);
    }
    for adapter in &request.ip_adapters {
        let images: Vec<&str> = adapter.images.iter().map(|image| image.file.as_str()).collect();
        let (images, model, scale) = (images.join(", "), &adapter.model, &adapter.scale);
        table.row("ip-adapter", format!("{images} by {model} at {scale}"));
    }
}

fn size(request: &Request) -> String {
    let side = |side: Option<usize>| side.map_or_else(|| "?".into(), |side| side.to_string());
    let zoom = match request.output.zoom {
        1 => String::new(),
        zoom => format!(", enlarged {zoom} times"),
    };
    let looping = match request.output.looping {
        Loop::None => String::new(),
        looping => format!(", loop {looping}"),
    };
    format!(
        "{} frames of {}x{}, {} a second{zoom}{looping}",
        request.frames(),
        side(request.size.width),
        side(request.size.height),
        request.output.fps
    )
}

/// What the clip starts from.
fn source(source: &Source) -> String {
    let mut words = vec![match source.strength {
        Some(strength) => format!("{} at strength {strength}", source.file()),
        None => source.file().to_owned(),
    }];
    words.extend(source.fps.map(|fps| format!("{fps} frames a second")));
    if source.from > 0 {
        words.push(format!("from frame {}", source.from));
    }
    if source.every > 1 {
        words.push(format!("one frame of {}", source.every));
    }
    words.extend(source.fit.map(|fit| format!("fit {}", word(&fit))));
    words.extend(source.motion_scale.map(|scale| format!("motion scale {scale}")));
    if let Some(weights) = &source.insertion_weights {
        let weights: Vec<String> = weights.iter().map(ToString::to_string).collect();
        words.push(format!("insertion weights {}", weights.join(",")));
    }
    if source.color_match == Some(true) {
        words.push("colours matched".to_owned());
    }
    if !source.keep.is_empty() {
        let frames: Vec<String> = source.keep.iter().map(usize::to_string).collect();
        words.push(format!("frames {} kept", frames.join(" ")));
    }
    words.extend(source.mask.as_ref().map(|mask| format!("mask {}", mask.file)));
    words.extend((source.overlay == Some(false)).then(|| "overlay off".to_owned()));
    words.join(", ")
}

/// Everything that changes the frames beside prompt, seed and size.
fn sampling(request: &Request) -> String {
    let mut words = vec![
        format!("{} steps of {}", request.sampling.steps, request.sampling.sampler),
        format!("guidance {}", request.sampling.cfg_scale),
    ];
    if let Some(spacing) = request.sampling.spacing {
        words.push(format!("{spacing} spacing"));
    }
    if let Some(steps) = request.sampling.original_inference_steps {
        words.push(format!("{steps} original steps"));
    }
    words.extend(request.sampling.tcd_gamma.map(|gamma| format!("gamma {gamma}")));
    let schedule = &request.schedule;
    if let (Some(first), Some(last)) = (schedule.beta_start, schedule.beta_end) {
        let name = schedule.beta_schedule.map(|betas| format!("{betas} ")).unwrap_or_default();
        words.push(format!("{name}betas {first} to {last}"));
    }
    words.push(format!("motion norm {}", word(&request.sampling.motion_norm)));
    if request.prompt.mode != PromptMode::default() {
        words.push(format!("{} prompts", request.prompt.mode));
    }
    if request.prompt.interpolation != Interpolation::default() {
        words.push(format!("{} travel", request.prompt.interpolation));
    }
    if request.prompt.clip_skip > 0 {
        words.push(format!("clip skip {}", request.prompt.clip_skip));
    }
    words.join(", ")
}

/// The context windows in words, if there are any.
fn windows(request: &Request) -> String {
    let Windows { length, overlap, stride, schedule, fuse } = &request.windows;
    let mut words = Vec::new();
    words.extend(length.map(|length| format!("{length} frames")));
    words.extend(overlap.map(|overlap| format!("overlap {overlap}")));
    words.extend(stride.map(|stride| format!("stride {stride}")));
    words.extend(schedule.map(|schedule| schedule.to_string()));
    words.extend(fuse.map(|fuse| fuse.to_string()));
    if request.sampling.noise != NoiseKind::Independent {
        words.push(format!("{} noise", request.sampling.noise));
    }
    words.join(", ")
}

/// The options for quality in words, those that are on.
fn quality(request: &Request) -> String {
    let Quality {
        guidance_rescale,
        dynamic_thresholding,
        free_u,
        free_init,
        pag,
        vae_tiling,
        hires,
    } = &request.quality;
    let mut words = Vec::new();
    if *guidance_rescale > 0.0 {
        words.push(format!("guidance rescaled by {guidance_rescale}"));
    }
    words.extend(dynamic_thresholding.map(|DynamicThresholding { ratio, max }| {
        format!("dynamic thresholding at {ratio} up to {max}")
    }));
    words.extend(
        free_u.map(|FreeU { b1, b2, s1, s2 }| format!("FreeU b1 {b1} b2 {b2} s1 {s1} s2 {s2}")),
    );
    words.extend(free_init.map(|free_init| {
        let FreeInit { iterations, filter, order, spatial, temporal, fast } = free_init;
        let fast = if fast { ", fast" } else { "" };
        format!(
            "FreeInit {iterations} times, {filter} of order {order} to {spatial} and {temporal}{fast}"
        )
    }));
    words.extend(pag.iter().map(|Pag { scale, adaptive_scale, layers }| {
        let layers = layers.join(" ");
        format!("perturbed attention {scale}, adaptive {adaptive_scale}, in {layers}")
    }));
    words.extend(vae_tiling.map(|VaeTiling { size, overlap }| {
        let size = size.map(|size| format!(" of {size} pixels")).unwrap_or_default();
        format!("tiles{size} with an overlap of {overlap}")
    }));
    words.extend(hires.map(|Hires { scale, strength, steps, upscale }| {
        let steps = steps.map(|steps| format!(" of {steps} steps")).unwrap_or_default();
        format!("again at {scale} times the size by {upscale}, strength {strength}{steps}")
    }));
    words.join(", ")
}

/// The parts that were named, in the words of the command line.
fn parts(spec: &Spec) -> Vec<(&'static str, String)> {
    let mut parts = vec![(
        "model",
        spec.model.clone().unwrap_or_else(|| "the small one inside the program".into()),
    )];
    let named = [("checkpoint", &spec.checkpoint), ("vae", &spec.vae), ("motion", &spec.motion)];
    parts.extend(named.into_iter().filter_map(|(label, name)| Some((label, name.clone()?))));
    parts.extend(spec.lcm_lora.iter().map(|file| ("lcm lora", file.to_string())));
    parts.extend(spec.loras.iter().map(|file| ("lora", file.to_string())));
    parts.extend(spec.embeddings.iter().map(|embedding| {
        let word = embedding.word.as_deref().map(|word| format!(" as {word}"));
        ("embedding", format!("{}{}", embedding.file, word.unwrap_or_default()))
    }));
    let how = [spec.quantize.words(), spec.kernels.words()].concat();
    parts.push(("runs on", format!("{}, {}{how}", spec.device, word(&spec.dtype))));
    parts
}

/// A value's word in request files, which is also that of the command line.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::resize::Fit;

    fn metadata(request_json: &str, parameters: &str) -> Metadata {
        Metadata { request_json: request_json.into(), parameters: parameters.into() }
    }

    fn shown(request_json: &str, parameters: &str) -> String {
        show(Path::new("a.gif"), &metadata(request_json, parameters), None, None, false).unwrap()
    }

    #[test]
    fn a_request_of_another_version_is_shown_as_it_is() {
        let text = shown(r#"{"schema":"animatelcm/v9","seed":5}"#, "");
        assert!(text.contains("animatelcm/v9") && text.contains("\"seed\":5"), "{text}");
    }

    #[test]
    fn clips_of_other_programs_show_their_parameters() {
        let text = shown("", "a cat\nSteps: 4");
        assert!(text.contains("no request") && text.contains("a cat\nSteps: 4"), "{text}");
        let json = show(Path::new("a.gif"), &metadata("", "a cat"), None, None, true).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json, json!({"parameters": "a cat", "seen": null}));
    }

    #[test]
    fn everything_that_was_named_is_shown() {
        let spec = Spec {
            motion: Some("mm.ckpt".into()),
            loras: vec!["style.safetensors:0.5".parse().unwrap()],
            ..Spec::default()
        };
        let mut request = Request::new("a cat");
        request.sampling.seed = Some(7);
        request.output.zoom = 4;
        request.background_color = Some("white".parse().unwrap());
        request.source = Some(Source {
            strength: Some(0.8),
            fps: Some(6.0),
            every: 2,
            fit: Some(Fit::Stretch),
            ..Source::video("v.mp4")
        });
        let text = rows(&Job::new(spec, request));
        for part in [
            "a cat",
            "7, cpu",
            "16 frames of ?x?, 8 a second, enlarged 4 times",
            "mm.ckpt",
            "v.mp4 at strength 0.8, 6 frames a second, one frame of 2, fit stretch",
            "#ffffff",
            "style.safetensors at 0.5",
            "4 steps of lcm",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
