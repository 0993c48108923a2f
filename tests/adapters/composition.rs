//! Everything that can be added to a model, in one run: as diffusers does it, and so that nothing can be ignored
//! unseen.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde_json::Value;

use crate::support::close::assert_close;
use crate::support::golden;
use crate::support::program::Folder;

/// Whole runs in f32, absolute on frames in `[0, 1]`. Measured: 2.4e-6.
const FRAMES: f64 = 1e-3;

/// How much less a missing part may change the clip than in the reference, or more. Measured: 5e-6, which is the
/// rounding there.
const CHANGE: f64 = 1e-4;

/// A folder with the inputs of the golden, and what the golden says.
struct Composition {
    folder: Folder,
    about: Value,
}

/// A part of the run and its share of the command line at a strength.
type Part = (&'static str, Vec<String>);

impl Composition {
    fn new() -> Self {
        let folder = Folder::new();
        let inputs = golden::load("composition/inputs");
        for name in ["hint_a", "hint_b"] {
            let images = inputs.tensor(&format!("{name}_u8"));
            for i in 0..images.dim(0).unwrap() {
                save_image(&folder, &format!("{name}/{i}.png"), &images.get(i).unwrap());
            }
        }
        save_image(&folder, "picture.png", &inputs.tensor("picture_u8"));
        let noise = golden::load("tiny/cases/noise");
        let name = |i| format!("noise.{i}");
        let mut tensors: HashMap<_, _> =
            (0..3).map(|i| (name(i), noise.tensor(&name(i)))).collect();
        tensors.insert("latents".into(), golden::load("tiny/cases/unet").tensor("x"));
        candle_core::safetensors::save(&tensors, folder.path("in.safetensors")).unwrap();
        Self { folder, about: golden::json("composition/composition") }
    }

    /// All parts, each at `strength` times its strength.
    fn parts(&self, strength: f64) -> Vec<Part> {
        let file = |name: &str| golden::path(name).display().to_string();
        let number = |of: &Value| of.as_f64().unwrap() * strength;
        let lora = |flag: &str, name: &str, path: &str| {
            let scale = number(&self.about["loras"][name]);
            vec![flag.to_owned(), format!("{}.safetensors:{scale}", file(path))]
        };
        let control = |name: &str, path: &str| {
            let Value::Object(about) = &self.about["controls"][name] else { panic!("{name}") };
            let (scale, start, end) = (number(&about["scale"]), &about["start"], &about["end"]);
            let model = file(path);
            let control =
                format!("{name}=hint_{name},model={model},scale={scale},start={start},end={end}");
            vec!["--control".to_owned(), control]
        };
        let image = format!(
            "picture.png,model={},scale={}",
            file("tiny/extras/ip-adapter.safetensors"),
            number(&self.about["ip_adapter"])
        );
        let ip_adapter =
            ["--ip-adapter", &image, "--image-encoder", &file("tiny/extras/image_encoder")];
        let word = ["--embedding", &file("composition/word.safetensors")];
        let owned = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect();
        vec![
            ("lcm", lora("--lcm-lora", "lcm", "composition/lcm-lora")),
            ("lora_kohya", lora("--lora", "lora_kohya", "tiny/extras/lora-kohya")),
            ("lora_peft", lora("--lora", "lora_peft", "tiny/extras/lora-peft")),
            ("motion", lora("--lora", "motion", "tiny/extras/motion-lora")),
            ("a", control("a", "tiny/extras/controlnet")),
            ("b", control("b", "composition/controlnet")),
            ("ip_adapter", owned(&ip_adapter)),
            ("word", owned(&word)),
        ]
    }

    /// What a run with these parts leaves in `--tensors-out`.
    fn run(&self, parts: &[Part], more: &[&str]) -> HashMap<String, Tensor> {
        let text = |name: &str| self.about[name].as_str().unwrap();
        let cfg = self.about["guidance_scale"].to_string();
        let model = golden::path("tiny/model");
        let mut args = vec!["generate", text("prompt"), "-n", text("negative_prompt")];
        args.extend(["--model", model.to_str().unwrap(), "--cfg-scale", &cfg, "--dtype=f32", "-q"]);
        args.extend(["--frames=6", "-W", "64", "-H", "32", "--device=cpu", "-y", "-o", "clip.png"]);
        args.extend(["--tensors-in", "in.safetensors", "--tensors-out", "out.safetensors"]);
        // AnimateLCM's; the model's own file says 50.
        args.extend(["--original-inference-steps", "100"]);
        if parts.iter().all(|(name, _)| *name != "lcm") {
            args.extend(["--lcm-lora", "none"]);
        }
        args.extend(parts.iter().flat_map(|(_, args)| args).map(String::as_str));
        args.extend(more);
        self.folder.run(&args).ok();
        candle_core::safetensors::load(self.folder.path("out.safetensors"), &Device::Cpu).unwrap()
    }

    fn without(&self, part: &str) -> Vec<Part> {
        self.parts(1.0).into_iter().filter(|(name, _)| *name != part).collect()
    }

    /// A run without a part must differ from the whole one by what it differs by in diffusers, and by much.
    #[track_caller]
    fn leave_out(&self, part: &str) {
        let got = self.run(&self.without(part), &[]);
        let whole = golden::load("composition/run").tensor("frames");
        let about = &self.about["without"][part];
        let (largest, rms) = difference(&got["frames"], &whole);
        for (name, got) in [("largest", largest), ("rms", rms)] {
            let want = about[name].as_f64().unwrap();
            assert!(
                (got - want).abs() < CHANGE,
                "without {part}: {name} {got}, in diffusers {want}"
            );
        }
        assert!(largest > 50.0 * FRAMES, "without {part} the clip changes by {largest} only");
    }
}

fn save_image(folder: &Folder, name: &str, pixels: &Tensor) {
    let (height, width, _) = pixels.dims3().unwrap();
    let bytes = pixels.to_dtype(DType::U8).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let image = RgbImage::from_raw(width as u32, height as u32, bytes).unwrap();
    let path = folder.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save(path).unwrap();
}

fn bits(tensors: &HashMap<String, Tensor>) -> Vec<u32> {
    let values = tensors["frames"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// The largest difference of two tensors, and the root of the mean of all squared ones.
fn difference(a: &Tensor, b: &Tensor) -> (f64, f64) {
    let values = (a - b).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    (largest.into(), (squares / values.len() as f64).sqrt())
}

#[test]
fn everything_together_equals_diffusers() {
    let (composition, want) = (Composition::new(), golden::load("composition/run"));
    let got = composition.run(&composition.parts(1.0), &[]);
    assert_close(&got["context"], &want.tensor("context"), 1e-4);
    assert_close(&got["negative_context"], &want.tensor("negative_context"), 1e-4);
    assert_close(&got["latents"], &want.tensor("latents.final"), 1e-3);
    assert_close(&got["frames"], &want.tensor("frames"), FRAMES);

    // What adds up does not mind the order.
    let mut parts = composition.parts(1.0);
    parts.reverse();
    let reversed = composition.run(&parts, &[]);
    assert_close(&reversed["frames"], &want.tensor("frames"), FRAMES);
}

#[test]
fn leaving_any_part_out_changes_the_clip_exactly_as_in_diffusers() {
    let composition = Composition::new();
    for (part, _) in composition.parts(1.0) {
        composition.leave_out(part);
    }
}

#[test]
fn strength_zero_of_any_part_is_bit_identical_to_its_absence() {
    let composition = Composition::new();
    let steps = ["--steps=2"];
    let zeros = composition.parts(0.0);
    // A word has no strength.
    for (part, zero) in zeros.iter().filter(|(name, _)| *name != "word") {
        let absent = composition.without(part);
        let mut idle = composition.parts(1.0);
        idle.iter_mut().find(|(name, _)| name == part).unwrap().1.clone_from(zero);
        let (idle, absent) = (composition.run(&idle, &steps), composition.run(&absent, &steps));
        assert!(bits(&idle) == bits(&absent), "{part} at strength 0 changes the clip");
    }
}
