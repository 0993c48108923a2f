//! ComfyUI's graphs in the form of its API, which its images hold as `prompt`: as much as one sampler needs.

use serde_json::Value;

use super::graph::{Node, chain};
use super::hires::second_pass;
use super::{Imported, Origin, nodes};
use crate::request::{Hires, Request, Upscale};
use crate::sampler::SamplerKind;
use crate::schedule::Spacing;

/// Bytes of all LoRA tags; a circle repeats them.
const LONGEST_TAGS: usize = 1 << 16;

/// The request that a graph describes.
pub(super) fn request(graph: &Value, has_sampler: bool) -> Result<Imported, String> {
    if graph.get("nodes").is_some() {
        return Err(
            "is a workflow of ComfyUI's editor; its `Export (API)` writes what can be read".into(),
        );
    }
    let samplers: Vec<Node<'_>> = Node::all(graph).filter(|node| node.is_sampler()).collect();
    // The one that starts from no other one's latents.
    let starts = |node: &&Node<'_>| latents(**node).all(|before| !before.is_sampler());
    let Some(&sampler) = samplers.iter().find(starts).or(samplers.first()) else {
        return Err("its graph has no KSampler".into());
    };
    let mut notes = Vec::new();
    let seed = ["seed", "noise_seed"].iter().find_map(|name| sampler.value(name));
    let mut request = Request::default();
    request.sampling.seed = seed.and_then(Value::as_u64);
    request.sampling.steps = sampler.count("steps").ok_or("its sampler has no steps")?;
    request.sampling.cfg_scale = sampler.number("cfg").ok_or("its sampler has no cfg")?;
    if !has_sampler {
        how(sampler, &mut request)?;
    }
    if sampler.number("denoise").is_some_and(|denoise| denoise < 1.0) {
        notes.push("`denoise` below 1 is not taken over: the clip begins with noise".into());
    }
    let encoder = |input, through| {
        let has_text =
            |node: &Node<'_>| node.input("text").is_some() || node.input("prompts").is_some();
        chain(sampler.linked(input), through).find(has_text)
    };
    let positive = encoder("positive", &["conditioning", "positive", "conditioning_to"])
        .ok_or("its prompt is in no CLIPTextEncode")?;
    let prompt = |node: Node<'_>| node.text("text").map(|text| text.replace("embedding:", ""));
    match nodes::schedule(positive, &mut notes) {
        Some(travel) => request.prompt.travel = travel?,
        None => request.prompt.text = prompt(positive).ok_or("its prompt is not a text")?,
    }
    request.prompt.negative = encoder("negative", &["conditioning", "negative", "conditioning_to"])
        .and_then(prompt)
        .unwrap_or_default();
    for node in chain(positive.linked("clip"), &["clip"]) {
        if let Some(layer) = node.value("stop_at_clip_layer").and_then(Value::as_i64) {
            request.prompt.clip_skip = layer.unsigned_abs().saturating_sub(1) as usize;
        }
    }
    match latents(sampler).find(|node| node.input("width").is_some()) {
        Some(latents) => {
            (request.size.width, request.size.height) =
                (latents.count("width"), latents.count("height"));
            // A batch of one is an image; a clip has the usual number of frames then.
            if let Some(frames) = latents.count("batch_size").filter(|frames| *frames > 1) {
                request.size.frames = Some(frames);
            }
        }
        None => {
            notes.push("its graph begins with no empty latents; the size is the model's".into());
        }
    }
    let mut tags = String::new();
    for node in chain(sampler.linked("model"), &["model"]) {
        if let Some(name) = node.text("lora_name") {
            let unet = node.number("strength_model").unwrap_or(1.0);
            let text = node.number("strength_clip").unwrap_or(0.0);
            let name = name.replace('\\', "/");
            let endings = [".safetensors", ".ckpt", ".pt", ".bin"];
            let stem = endings.iter().find_map(|ending| name.strip_suffix(ending));
            let name = stem.unwrap_or(&name);
            // Those nearest to the model come first.
            tags.insert_str(0, &format!(" <lora:{name}:{text}:{unet}>"));
            if tags.len() > LONGEST_TAGS {
                return Err("its LoRAs have names without end".into());
            }
        } else if let Some(name) = node.text("ckpt_name").or_else(|| node.text("unet_name")) {
            notes.push(format!(
                "was made with the model `{name}`; --model and --checkpoint say what is used"
            ));
        } else if let Some(name) = node.text("model_name") {
            notes.push(format!(
                "was made with the motion modules `{name}`; --motion says which are used"
            ));
        }
    }
    request.prompt.text.push_str(&tags);
    nodes::options(sampler, &mut request, &mut notes);
    if samplers.len() > 1 {
        request.quality.hires = second_sampler(&samplers, sampler, &mut notes);
        if samplers.len() > 2 || request.quality.hires.is_none() {
            notes.push("its graph has several samplers; the first one is used".to_owned());
        }
    }
    Ok(Imported::foreign(request, notes, Origin::ComfyUi))
}

/// The nodes that a sampler's latents come through.
fn latents(sampler: Node<'_>) -> impl Iterator<Item = Node<'_>> {
    chain(sampler.linked("latent_image"), &["samples", "latent", "latent_image"])
}

/// The one node between a sampler and the latents of another, if it enlarges them.
fn upscaler(sampler: Node<'_>) -> Option<Node<'_>> {
    let between: Vec<Node<'_>> = latents(sampler).take_while(|node| !node.is_sampler()).collect();
    match between.as_slice() {
        [node] if node.class() == "LatentUpscaleBy" => Some(*node),
        _ => None,
    }
}

/// The second pass of a sampler that starts from the enlarged latents of the first one.
fn second_sampler(
    samplers: &[Node<'_>],
    first: Node<'_>,
    notes: &mut Vec<String>,
) -> Option<Hires> {
    let (second, upscaler) = samplers.iter().find_map(|node| Some((*node, upscaler(*node)?)))?;
    let scale = upscaler.number("scale_by").filter(|scale| *scale >= 1.0)?;
    let strength = second.number("denoise").filter(|denoise| *denoise > 0.0)?.min(1.0);
    let steps = second.count("steps").filter(|steps| *steps > 0)?;
    let method = upscaler.text("upscale_method").unwrap_or_default();
    let upscale = match method {
        "bicubic" => Upscale::Bicubic,
        "nearest-exact" => Upscale::Nearest,
        _ => {
            notes.push(format!("`upscale_method: {method}` is not known; bicubic is used"));
            Upscale::Bicubic
        }
    };
    for name in ["sampler_name", "scheduler", "cfg", "positive", "negative", "model"] {
        if second.input(name) != first.input(name) {
            notes.push(format!("its second sampler's own `{name}` is not taken over"));
        }
    }
    notes.push("the noise of the second pass goes on from the first one's seed".into());
    Some(second_pass(scale, steps, strength, upscale))
}

/// Sampler and scheduler.
fn how(sampler: Node<'_>, request: &mut Request) -> Result<(), String> {
    let name = sampler.text("sampler_name").ok_or("its sampler has no sampler_name")?;
    let choose = |error| format!("{error}; --sampler chooses another");
    let (kind, spacing) = SamplerKind::with_spacing(name).map_err(choose)?;
    request.sampling.sampler = kind;
    request.sampling.spacing = match sampler.text("scheduler") {
        // Their timesteps are the teacher's.
        _ if kind.has_teacher() => None,
        Some(scheduler) => Some(scheduler.parse::<Spacing>().map_err(choose)?),
        None => spacing,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{FreeInit, Loop, Pag, VaeTiling, Windows};
    use crate::rng::NoiseKind;
    use crate::sampler::{Fuse, WindowSchedule};
    use serde_json::json;

    fn graph() -> Value {
        json!({
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "real.safetensors"}},
            "2": {"class_type": "LoraLoader", "inputs": {
                "lora_name": "a\\b.v2.safetensors", "strength_model": 0.8, "strength_clip": 0.5,
                "model": ["1", 0], "clip": ["1", 1]}},
            "3": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["2", 1]}},
            "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat, embedding:EasyStyle", "clip": ["3", 0]}},
            "5": {"class_type": "CLIPTextEncode", "inputs": {"text": ["10", 0], "clip": ["3", 0]}},
            "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 48, "batch_size": 8}},
            "7": {"class_type": "ADE_AnimateDiffLoaderGen1", "inputs": {"model_name": "mm.ckpt", "model": ["2", 0]}},
            "8": {"class_type": "KSampler", "inputs": {
                "seed": 18_446_744_073_709_551_615_u64, "steps": 6, "cfg": 2.5, "sampler_name": "euler_ancestral",
                "scheduler": "sgm_uniform", "denoise": 1.0, "model": ["7", 0], "positive": ["9", 0],
                "negative": ["9", 1], "latent_image": ["6", 0]}},
            "9": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["4", 0], "negative": ["5", 0]}},
            "10": {"class_type": "PrimitiveString", "inputs": {"value": "blurry"}},
        })
    }

    #[test]
    fn a_graph_becomes_a_request() {
        let mut graph = graph();
        // The negative prompt directly: a node for both has it under another name.
        graph["8"]["inputs"]["negative"] = json!(["5", 0]);
        let Imported { job, notes, .. } = request(&graph, false).unwrap();
        let request = job.request;
        assert_eq!(request.prompt.text, "a cat, EasyStyle <lora:a/b.v2:0.5:0.8>");
        assert_eq!(request.prompt.negative, "blurry");
        assert_eq!(
            (request.sampling.steps, request.sampling.cfg_scale, request.sampling.seed),
            (6, 2.5, Some(u64::MAX))
        );
        assert_eq!(
            (request.size.width, request.size.height, request.frames()),
            (Some(64), Some(48), 8)
        );
        assert_eq!(
            (request.sampling.sampler, request.sampling.spacing),
            (SamplerKind::EulerAncestral, Some(Spacing::SgmUniform))
        );
        assert_eq!(request.prompt.clip_skip, 1);
        assert!(notes.iter().any(|note| note.contains("`real.safetensors`")), "{notes:?}");
        assert!(notes.iter().any(|note| note.contains("`mm.ckpt`")), "{notes:?}");
    }

    #[test]
    fn windows_noise_and_iterations_of_animate_diff_evolved_are_taken_over() {
        let mut graph = graph();
        graph["7"] = json!({"class_type": "ADE_UseEvolvedSampling", "inputs": {
            "model": ["11", 0], "beta_schedule": "autoselect", "context_options": ["12", 0], "sample_settings": ["13", 0]}});
        graph["11"] = json!({"class_type": "PerturbedAttentionGuidance", "inputs": {"model": ["2", 0], "scale": 2.5}});
        graph["12"] = json!({"class_type": "ADE_LoopedUniformContextOptions", "inputs": {
            "context_length": 12, "context_stride": 2, "context_overlap": 3, "closed_loop": true}});
        graph["13"] = json!({"class_type": "ADE_AnimateDiffSamplingSettings", "inputs": {
            "batch_offset": 0, "noise_type": "FreeNoise", "seed_gen": "comfy", "seed_offset": 0, "iteration_opts": ["14", 0]}});
        graph["14"] = json!({"class_type": "ADE_IterationOptsFreeInit", "inputs": {
            "iterations": 4, "filter": "butterworth", "d_s": 0.2, "d_t": 0.3, "n_butterworth": 5, "sigma_step": 999,
            "apply_to_1st_iter": false, "init_type": "FreeInit [model sigma]"}});
        graph["15"] = json!({"class_type": "VHS_VideoCombine", "inputs": {"frame_rate": 12, "pingpong": true}});
        graph["16"] = json!({"class_type": "VAEDecodeTiled", "inputs": {"samples": ["8", 0], "tile_size": 256, "overlap": 64}});
        let Imported { job, notes, .. } = request(&graph, false).unwrap();
        let request = job.request;
        let windows = Windows {
            length: Some(12),
            overlap: Some(3),
            stride: Some(2),
            schedule: Some(WindowSchedule::UniformLooped),
            fuse: Some(Fuse::Flat),
        };
        assert_eq!(request.windows, windows);
        // The file's pingpong is one more loop; a closed one comes first.
        assert_eq!((request.output.looping, request.output.fps), (Loop::Closed, 12.0));
        assert_eq!(request.sampling.noise, NoiseKind::FreeNoise);
        let free_init = FreeInit {
            iterations: 4,
            order: 5,
            spatial: 0.2,
            temporal: 0.3,
            ..FreeInit::default()
        };
        assert_eq!(request.quality.free_init, Some(free_init));
        assert_eq!(request.quality.pag, Some(Pag { scale: 2.5, ..Pag::default() }));
        let tiling = VaeTiling { size: Some(256), overlap: 0.25 };
        assert_eq!(request.quality.vae_tiling, Some(tiling));
        assert!(notes.iter().any(|note| note.contains("another rule")), "{notes:?}");

        let noted = |node: &str, inputs: Value| {
            let mut graph = graph.clone();
            let mut inputs = inputs;
            inputs["model"] = json!(["2", 0]);
            graph["11"] = json!({"class_type": node, "inputs": inputs});
            let notes = self::request(&graph, false).unwrap().notes;
            notes.join("; ")
        };
        let free_u = json!({"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2});
        assert!(noted("FreeU_V2", free_u).contains("--freeu b1=1.3,b2=1.4,s1=0.9,s2=0.2 is near"));
        let rescale = json!({"multiplier": 0.6});
        assert!(noted("RescaleCFG", rescale).contains("--guidance-rescale 0.6 is near"));
        assert!(noted("DynamicThresholdingFull", json!({})).contains("mimics a smaller scale"));
        assert!(noted("SomeOtherPatch", json!({})).contains("`SomeOtherPatch` is not taken over"));
        let mut static_ = graph.clone();
        static_["12"] = json!({"class_type": "ADE_StandardStaticContextOptions", "inputs": {
            "context_length": 16, "context_overlap": 4, "fuse_method": "random", "start_percent": 0.5}});
        static_["13"]["inputs"]["noise_type"] = json!("constant");
        let Imported { job, notes, .. } = self::request(&static_, false).unwrap();
        assert_eq!(job.request.windows.schedule, Some(WindowSchedule::Static));
        assert_eq!((job.request.windows.fuse, job.request.output.looping), (None, Loop::PingPong));
        let notes = notes.join("; ");
        for what in ["`fuse_method: random`", "`start_percent`", "`noise_type: constant`"] {
            assert!(notes.contains(what), "{what}: {notes}");
        }
    }

    #[test]
    fn prompts_by_frame_become_keys() {
        let mut graph = graph();
        graph["4"] = json!({"class_type": "BatchPromptSchedule", "inputs": {
            "text": "\"0\" :\"a bud\",\n\"12\" :\"a rose\"\n", "pre_text": "photo", "app_text": "4k", "clip": ["3", 0]}});
        let prompt = request(&graph, false).unwrap().job.request.prompt;
        let keys: Vec<_> =
            prompt.travel.keys().iter().map(|key| (key.frame, key.text.as_str())).collect();
        assert_eq!(keys, [(0, "photo a bud 4k"), (12, "photo a rose 4k")]);
        assert_eq!(prompt.text, " <lora:a/b.v2:0.5:0.8>");
        graph["4"] = json!({"class_type": "ADE_PromptScheduling", "inputs": {
            "prompts": "0 = \"a bud\", 12 = \"a rose\"", "prepend_text": "photo", "clip": ["3", 0]}});
        let Imported { job, notes, .. } = request(&graph, false).unwrap();
        assert_eq!(job.request.prompt.travel.keys()[1].text, "photo, a rose");
        assert!(notes.iter().any(|note| note.contains("another curve")), "{notes:?}");
        graph["4"]["inputs"]["prompts"] = json!("0:8 = \"a bud\"");
        assert!(request(&graph, false).err().unwrap().contains("ADE_PromptScheduling"));
        graph["4"]["inputs"]["prompts"] = json!("0 = \"(a bud:`x`)\"");
        assert!(request(&graph, false).err().unwrap().contains("compute"));
    }

    #[test]
    fn a_second_sampler_over_larger_latents_is_a_second_pass() {
        let mut graph = graph();
        let mut second = graph["8"].clone();
        second["inputs"]["denoise"] = json!(0.5);
        second["inputs"]["steps"] = json!(5);
        second["inputs"]["latent_image"] = json!(["17", 0]);
        // Before the first one in the order of the graph.
        graph["0"] = second;
        graph["17"] = json!({"class_type": "LatentUpscaleBy", "inputs": {
            "samples": ["8", 0], "upscale_method": "bicubic", "scale_by": 1.5}});
        let Imported { job, notes, .. } = request(&graph, false).unwrap();
        assert_eq!(job.request.sampling.steps, 6);
        let hires = job.request.quality.hires.unwrap();
        assert_eq!((hires.scale, hires.strength, hires.steps), (1.5, 0.5, Some(10)));
        assert_eq!(hires.upscale, Upscale::Bicubic);
        assert!(!notes.iter().any(|note| note.contains("several samplers")), "{notes:?}");
        graph["0"]["inputs"]["cfg"] = json!(9.0);
        graph["17"]["inputs"]["upscale_method"] = json!("bislerp");
        let notes = request(&graph, false).unwrap().notes.join("; ");
        assert!(notes.contains("`cfg`") && notes.contains("bislerp"), "{notes}");
        graph["17"]["class_type"] = json!("LatentComposite");
        let Imported { job, notes, .. } = request(&graph, false).unwrap();
        assert!(job.request.quality.hires.is_none());
        assert!(notes.iter().any(|note| note.contains("several samplers")), "{notes:?}");
    }

    #[test]
    fn a_node_for_both_prompts_is_passed_through() {
        let request = request(&graph(), false).unwrap().job.request;
        assert_eq!(
            (request.prompt.text.starts_with("a cat"), request.prompt.negative.as_str()),
            (true, "blurry")
        );
    }

    #[test]
    fn graphs_that_say_too_little_are_named() {
        let error = |change: fn(&mut Value)| {
            let mut graph = graph();
            change(&mut graph);
            request(&graph, false).err().unwrap()
        };
        assert!(error(|g| *g = json!({"nodes": []})).contains("Export (API)"));
        assert!(error(|g| *g = json!([])).contains("no KSampler"));
        assert!(error(|g| g["8"]["inputs"]["steps"] = json!(["8", 0])).contains("steps"));
        assert!(error(|g| g["8"]["inputs"]["sampler_name"] = json!("dpm_2")).contains("`dpm_2`"));
        assert!(error(|g| g["8"]["inputs"]["scheduler"] = json!("beta")).contains("`beta`"));
        assert!(
            error(|g| g["8"]["inputs"]["positive"] = json!(["8", 0])).contains("CLIPTextEncode")
        );
        // A circle ends.
        let mut circle = graph();
        circle["2"]["inputs"]["model"] = json!(["7", 0]);
        assert!(request(&circle, false).is_ok());
    }
}
