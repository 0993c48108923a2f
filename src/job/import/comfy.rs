//! ComfyUI's graphs in the form of its API, which its images hold as `prompt`: as much as one sampler needs.

use serde_json::Value;

use super::{Imported, Origin};
use crate::request::Request;
use crate::sampler::SamplerKind;
use crate::schedule::Spacing;

/// Links that are followed from the sampler; a graph has no longer way, except in a circle.
const FARTHEST: usize = 64;

/// Bytes of all LoRA tags; a circle repeats them.
const LONGEST_TAGS: usize = 1 << 16;

/// A node of a graph.
#[derive(Clone, Copy)]
struct Node<'a> {
    graph: &'a Value,
    node: &'a Value,
}

impl<'a> Node<'a> {
    fn class(self) -> &'a str {
        self.node.get("class_type").and_then(Value::as_str).unwrap_or_default()
    }

    fn input(self, name: &str) -> Option<&'a Value> {
        self.node.get("inputs")?.get(name)
    }

    /// The node that an input is linked to: `["4", 0]`.
    fn linked(self, name: &str) -> Option<Self> {
        let id = self.input(name)?.as_array()?.first()?;
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        Some(Self { graph: self.graph, node: self.graph.get(id)? })
    }

    /// The value of an input, also of a node that holds nothing but one.
    fn value(self, name: &str) -> Option<&'a Value> {
        let mut value = self.input(name)?;
        let mut node = self;
        let mut name = name.to_owned();
        for _ in 0..FARTHEST {
            if !value.is_array() {
                return Some(value);
            }
            node = node.linked(&name)?;
            // A sampler's inputs are not what it hands on.
            if is_sampler(&node) {
                return None;
            }
            let known = ["value", "text", "string", "seed", "noise_seed", "int", "float", "number"];
            name = known.into_iter().find(|name| node.input(name).is_some())?.to_owned();
            value = node.input(&name)?;
        }
        None
    }

    fn number(self, name: &str) -> Option<f64> {
        self.value(name)?.as_f64()
    }

    fn count(self, name: &str) -> Option<usize> {
        self.value(name)?.as_u64().map(|count| count as usize)
    }

    fn text(self, name: &str) -> Option<&'a str> {
        self.value(name)?.as_str()
    }
}

fn is_sampler(node: &Node<'_>) -> bool {
    matches!(node.class(), "KSampler" | "KSamplerAdvanced")
}

/// The nodes from one on, each linked to the one before by the first of these inputs that it has.
fn chain<'a>(first: Option<Node<'a>>, inputs: &'static [&str]) -> impl Iterator<Item = Node<'a>> {
    let next = |node: &Node<'a>| inputs.iter().find_map(|name| node.linked(name));
    std::iter::successors(first, next).take(FARTHEST)
}

/// The request that a graph describes.
pub(super) fn request(graph: &Value, has_sampler: bool) -> Result<Imported, String> {
    if graph.get("nodes").is_some() {
        return Err(
            "is a workflow of ComfyUI's editor; its `Export (API)` writes what can be read".into(),
        );
    }
    let nodes = graph.as_object().into_iter().flat_map(|nodes| nodes.values());
    let mut samplers = nodes.map(|node| Node { graph, node }).filter(is_sampler);
    let Some(sampler) = samplers.next() else {
        return Err("its graph has no KSampler".into());
    };
    let mut notes = Vec::new();
    if samplers.next().is_some() {
        notes.push("its graph has several samplers; the first one is used".to_owned());
    }
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
        chain(sampler.linked(input), through).find(|node| node.input("text").is_some())
    };
    let positive = encoder("positive", &["conditioning", "positive", "conditioning_to"])
        .ok_or("its prompt is in no CLIPTextEncode")?;
    let prompt = |node: Node<'_>| node.text("text").map(|text| text.replace("embedding:", ""));
    request.prompt.text = prompt(positive).ok_or("its prompt is not a text")?;
    request.prompt.negative = encoder("negative", &["conditioning", "negative", "conditioning_to"])
        .and_then(prompt)
        .unwrap_or_default();
    for node in chain(positive.linked("clip"), &["clip"]) {
        if let Some(layer) = node.value("stop_at_clip_layer").and_then(Value::as_i64) {
            request.prompt.clip_skip = layer.unsigned_abs().saturating_sub(1) as usize;
        }
    }
    let latents = chain(sampler.linked("latent_image"), &["samples", "latent", "latent_image"]);
    match latents.into_iter().find(|node| node.input("width").is_some()) {
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
    Ok(Imported::foreign(request, notes, Origin::ComfyUi))
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
