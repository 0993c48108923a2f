//! ComfyUI's nodes beside sampler, prompts and LoRAs, those of AnimateDiff-Evolved and Video Helper Suite among them.
//!
//! What means the same here is taken over, everything else that changes a clip becomes a note.

use super::graph::{Node, chain};
use crate::request::{Filter, FreeInit, Key, Loop, Pag, Request, Travel, VaeTiling, Windows};
use crate::rng::NoiseKind;
use crate::sampler::WindowSchedule;
use crate::schedule::Prediction;

/// Loaders, and nodes that others here look at.
const LOADERS: [&str; 5] = [
    "CheckpointLoader",
    "CheckpointLoaderSimple",
    "UNETLoader",
    "LoraLoader",
    "LoraLoaderModelOnly",
];

/// Takes over what the nodes say that a sampler's model comes through, and those that make a file of its latents.
pub(super) fn options(sampler: Node<'_>, request: &mut Request, notes: &mut Vec<String>) {
    for node in chain(sampler.linked("model"), &["model"]) {
        of_model(node, request, notes);
    }
    for node in sampler.others() {
        of_file(node, request, notes);
    }
}

fn of_model(node: Node<'_>, request: &mut Request, notes: &mut Vec<String>) {
    let context = node.linked("context_options");
    if let Some(context) = context {
        windows(context, request, notes);
    }
    if let Some(settings) = node.linked("sample_settings") {
        self::settings(settings, request, notes);
    }
    let usual = ["autoselect", "use existing", "sqrt_linear (AnimateDiff)"];
    if let Some(betas) = node.text("beta_schedule").filter(|betas| !usual.contains(betas)) {
        notes.push(format!("`beta_schedule: {betas}` is not taken over; --beta-schedule chooses"));
    }
    let class = node.class();
    match class {
        "PerturbedAttentionGuidance" => {
            // The middle block's self-attention, as the default here.
            let scale = node.number("scale").unwrap_or(Pag::default().scale);
            request.quality.pag = (scale > 0.0).then(|| Pag { scale, ..Pag::default() });
        }
        "ModelSamplingDiscrete" => {
            if node.text("sampling") == Some("v_prediction") {
                request.schedule.prediction = Some(Prediction::V);
            }
            if node.is_on("zsnr") {
                request.schedule.zero_snr = Some(true);
            }
        }
        "FreeU" | "FreeU_V2" => {
            let values = ["b1", "b2", "s1", "s2"].map(|name| node.number(name).unwrap_or(1.0));
            let [b1, b2, s1, s2] = values;
            notes.push(format!(
                "`{class}` acts on layers by their width, --freeu on the first two up blocks: not taken over; \
                 --freeu b1={b1},b2={b2},s1={s1},s2={s2} is near"
            ));
        }
        "RescaleCFG" => {
            let phi = node.number("multiplier").unwrap_or(0.7);
            notes.push(format!(
                "`RescaleCFG` compares velocities, --guidance-rescale what the network predicts: not taken over; \
                 --guidance-rescale {phi} is near"
            ));
        }
        _ if class.starts_with("DynamicThresholding") => notes.push(format!(
            "`{class}` mimics a smaller scale, which --dynamic-thresholding does not: not taken over"
        )),
        _ => {
            let names = ["lora_name", "ckpt_name", "unet_name", "model_name", "beta_schedule"];
            let is_known = LOADERS.contains(&class)
                || context.is_some()
                || names.iter().any(|name| node.input(name).is_some());
            if !is_known {
                notes.push(format!("`{class}` is not taken over"));
            }
        }
    }
}

/// Context windows of AnimateDiff-Evolved.
fn windows(node: Node<'_>, request: &mut Request, notes: &mut Vec<String>) {
    let class = node.class();
    let (schedule, fuse) = match class {
        "ADE_StandardUniformContextOptions" => (WindowSchedule::Uniform, "pyramid"),
        "ADE_StandardStaticContextOptions" => (WindowSchedule::Static, "pyramid"),
        "ADE_LoopedUniformContextOptions" | "ADE_AnimateDiffUniformContextOptions" => {
            (WindowSchedule::UniformLooped, "flat")
        }
        _ => return notes.push(format!("`{class}` is not taken over")),
    };
    let mut other = |what: String| notes.push(format!("`{class}`: {what} is not taken over"));
    let fuse = node.text("fuse_method").unwrap_or(fuse);
    let fuse = fuse.parse().map_err(|_| other(format!("`fuse_method: {fuse}`"))).ok();
    if node.input("prev_context").is_some() {
        other("the context before it".into());
    }
    if node.input("view_opts").is_some() {
        other("`view_opts`".into());
    }
    if node.number("start_percent").is_some_and(|start| start > 0.0) {
        other("`start_percent`".into());
    }
    request.windows = Windows {
        length: node.count("context_length"),
        overlap: node.count("context_overlap"),
        stride: node.count("context_stride"),
        schedule: Some(schedule),
        fuse,
    };
    if node.is_on("closed_loop") {
        request.output.looping = Loop::Closed;
    }
}

/// Sample settings of AnimateDiff-Evolved: noise and iterations.
fn settings(node: Node<'_>, request: &mut Request, notes: &mut Vec<String>) {
    let mut other = |what: String| notes.push(format!("`{what}` is not taken over"));
    match node.text("noise_type") {
        None | Some("default") => {}
        Some("FreeNoise") => request.sampling.noise = NoiseKind::FreeNoise,
        Some("repeated_context") => request.sampling.noise = NoiseKind::Repeat,
        Some(kind) => other(format!("noise_type: {kind}")),
    }
    if let Some(kind) = node.text("seed_gen").filter(|kind| *kind != "comfy") {
        other(format!("seed_gen: {kind}"));
    }
    for name in ["batch_offset", "seed_offset"] {
        if let Some(offset) = node.number(name).filter(|offset| *offset != 0.0) {
            other(format!("{name}: {offset}"));
        }
    }
    for name in ["noise_layers", "custom_cfg", "sigma_schedule", "image_inject", "seed_override"] {
        if node.input(name).is_some() {
            other(name.into());
        }
    }
    let Some(iterations) = node.linked("iteration_opts") else { return };
    if iterations.class() != "ADE_IterationOptsFreeInit" {
        return other(iterations.class().to_owned());
    }
    let filter = iterations.text("filter").unwrap_or("gaussian");
    let usual = FreeInit::default();
    let Ok(filter) = serde_json::from_value::<Filter>(filter.into()) else {
        return other(format!("FreeInit's filter: {filter}"));
    };
    for (name, is_other) in [
        ("apply_to_1st_iter", iterations.is_on("apply_to_1st_iter")),
        ("sigma_step", iterations.count("sigma_step").is_some_and(|step| step != 999)),
    ] {
        if is_other {
            other(name.into());
        }
    }
    request.quality.free_init = Some(FreeInit {
        iterations: iterations.count("iterations").unwrap_or(2),
        filter,
        order: iterations.count("n_butterworth").unwrap_or(usual.order),
        spatial: iterations.number("d_s").unwrap_or(usual.spatial),
        temporal: iterations.number("d_t").unwrap_or(usual.temporal),
        fast: false,
    });
    notes.push("FreeInit draws other noise for its later iterations than ComfyUI".into());
}

/// What becomes of decoded frames.
fn of_file(node: Node<'_>, request: &mut Request, notes: &mut Vec<String>) {
    match node.class() {
        "VHS_VideoCombine" => {
            if let Some(fps) = node.number("frame_rate") {
                request.output.fps = fps;
            }
            if node.is_on("pingpong") && request.output.looping == Loop::None {
                request.output.looping = Loop::PingPong;
            }
        }
        "SaveAnimatedWEBP" | "SaveAnimatedPNG" => {
            if let Some(fps) = node.number("fps") {
                request.output.fps = fps;
            }
        }
        class @ ("VAEDecodeTiled" | "VAEEncodeTiled") if request.quality.vae_tiling.is_none() => {
            let size = node.count("tile_size").filter(|size| *size > 0);
            let share = node.number("overlap").zip(size).map(|(o, size)| o / size as f64);
            let overlap = share.unwrap_or(VaeTiling::default().overlap).clamp(0.0, 0.5);
            request.quality.vae_tiling = Some(VaeTiling { size, overlap });
            notes.push(format!("`{class}` blends its tiles by another rule"));
        }
        _ => {}
    }
}

/// The prompts of a node that schedules them: FizzNodes' and AnimateDiff-Evolved's. `None` if it is another node.
///
/// # Errors
///
/// When its text is no list of frames with prompts.
pub(super) fn schedule(node: Node<'_>, notes: &mut Vec<String>) -> Option<Result<Travel, String>> {
    let class = node.class();
    let (field, before, after, gap) = match class {
        "BatchPromptSchedule" => ("text", "pre_text", "app_text", " "),
        "ADE_PromptScheduling" | "ADE_PromptSchedulingLatents" => {
            ("prompts", "prepend_text", "append_text", ", ")
        }
        _ => return None,
    };
    let [before, after] = [before, after].map(|name| node.text(name).unwrap_or_default().trim());
    let text = node.text(field).unwrap_or_default();
    if field == "prompts" {
        notes.push(format!("`{class}` goes from prompt to prompt along another curve"));
    }
    let wrong = |reason: &str| Err(format!("`{class}`: {reason}"));
    if text.contains("--neg") {
        return Some(wrong("its negative parts (--neg) cannot travel here"));
    }
    if text.contains('`') {
        return Some(wrong("its prompts compute with the frame, which is not known here"));
    }
    let keys = pairs(text).into_iter().flatten().map(|(frame, text)| {
        let texts = [before, text.trim(), after].into_iter().filter(|text| !text.is_empty());
        let text = texts.collect::<Vec<_>>().join(gap);
        Some(Key { frame: frame.trim().parse().ok()?, text })
    });
    let Some(mut keys) = keys.collect::<Option<Vec<Key>>>().filter(|keys| !keys.is_empty()) else {
        return Some(wrong("its prompts are not of the form \"0\": \"…\", \"16\": \"…\""));
    };
    keys.sort_by_key(|key| key.frame);
    Some(Travel::new(keys).map_err(|error| format!("`{class}`: {error}")))
}

/// The frames and prompts of `"0": "a", "16": "b"` or `0 = "a", 16 = "b"`; `None` where something else stands between.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (frame, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?),
        };
        let prompt = after.trim_start().strip_prefix([':', '='])?.trim_start().strip_prefix('"')?;
        let (prompt, after) = prompt.split_once('"')?;
        pairs.push((frame.to_owned(), prompt.to_owned()));
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_prompts_are_written_in_two_ways() {
        let pair = |frame: &str, prompt: &str| (frame.to_owned(), prompt.to_owned());
        let want = Some(vec![pair("0", "a, b"), pair("16", "c: d")]);
        assert_eq!(pairs("\"0\" :\"a, b\",\n\"16\":\"c: d\",\n"), want);
        assert_eq!(pairs("0 = \"a, b\", 16=\"c: d\""), want);
        assert_eq!(pairs("a cat"), None);
        assert_eq!(pairs("\"0\": \"a\" \"1\": \"b\""), None);
        assert_eq!(pairs("\"0:8\": \"a\""), Some(vec![pair("0:8", "a")]));
    }
}
