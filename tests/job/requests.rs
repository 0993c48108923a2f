//! Where requests come from: other programs' names and images, folders of embeddings, several clips.

use serde_json::{Value, json};

use crate::support::program::Folder;
use crate::support::requests::{dumped, jpeg, path, png, tiny, webp};

#[test]
fn names_of_other_programs_are_understood() {
    let folder = Folder::new();
    for (args, field, value) in [
        (["--sampler", "DPM++ 2M Karras"], "sampling/sampler", "dpmpp-2m"),
        (["--sampler", "DPM++ 2M Karras"], "sampling/spacing", "karras"),
        (["--sampler", "euler_a"], "sampling/sampler", "euler-a"),
        (["--sampler", "dpmpp_2m_sde_gpu"], "sampling/sampler", "dpmpp-2m-sde"),
        (["--sampler", "UniPC"], "sampling/sampler", "unipc"),
        (["--spacing", "sgm_uniform"], "sampling/spacing", "sgm-uniform"),
        (["--spacing", "Align Your Steps"], "sampling/spacing", "ays"),
        (["--beta-schedule", "Scaled_Linear"], "schedule/beta_schedule", "scaled-linear"),
        (["--motion-norm", "per_frame"], "sampling/motion_norm", "per-frame"),
        (["--rng", "CUDA"], "sampling/rng", "cuda"),
        (["--prompt-mode", "Plain"], "prompt/mode", "plain"),
    ] {
        let request = dumped(&folder, &[&["x"], &args[..]].concat());
        assert_eq!(request.pointer(&format!("/{field}")).unwrap(), value, "{args:?}");
    }
    let models = dumped(&folder, &["x", "--dtype", "torch.float16", "--device", "CPU"]);
    assert_eq!(models["models"]["dtype"], "f16");
    assert_eq!(models["models"]["device"], "cpu");
    let wrong = folder.run(&["generate", "x", "--sampler", "dpmpp_2s_ancestral"]);
    assert!(wrong.fails(2).contains("`dpmpp-2m-karras`"), "{}", wrong.stderr);
}

#[test]
fn prompts_for_other_programs_are_warned_about() {
    let folder = Folder::new();
    let prompt = "a [cat|dog] | AND <hypernet:x:1> <lora:y:1";
    let said = tiny(&folder, &[prompt, "--seed=1", "--progress=json"]).ok();
    let warnings: Vec<String> = said
        .events()
        .iter()
        .filter(|event| event["event"] == "warning")
        .map(|event| event["message"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    for part in ["`<lora:y:1` has no `>`", "`<hypernet:x:1>` is left out", "`[cat|dog]`", "`AND`"] {
        assert!(warnings.iter().any(|w| w.starts_with("prompt: ") && w.contains(part)), "{part}");
    }
    let lines = tiny(&folder, &["[a:b:0.5] | c", "--seed=1"]).ok().stderr;
    assert!(lines.contains("warning: prompt: `[a:b:0.5]` only weakens"), "{lines}");
    // Once for all clips.
    let two = tiny(&folder, &["a <hypernet:x:1>", "--seed=1", "--count=2"]).ok();
    assert_eq!(two.stderr.matches("warning: ").count(), 1, "{}", two.stderr);
    let plain = tiny(&folder, &[prompt, "--seed=1", "--prompt-mode=plain"]).ok().stderr;
    assert!(!plain.contains("warning"), "{plain}");
    let tag = tiny(&folder, &["a <LORA:x:1>", "--seed=1"]);
    assert!(tag.fails(2).contains("`<LORA:x:1>` asks for a LoRA"));
}

#[test]
fn images_of_other_programs_are_requests() {
    let folder = Folder::new();
    let text = "a cat,\nbig\nNegative prompt: bad\nSteps: 6, Sampler: Euler a, Schedule type: Karras, CFG scale: 2.5, \
                Seed: 9, Size: 64x48, Model hash: 0123456789, Model: real, Clip skip: 2, Version: v1.10.1";
    folder.write("a1111.png", png("parameters", text));
    folder.write("a1111.txt", text);
    folder.write("a1111.jpg", jpeg(text));
    folder.write("a1111.webp", webp(text));
    for file in ["a1111.png", "a1111.txt", "a1111.jpg", "a1111.webp"] {
        let request = dumped(&folder, &["--request", file]);
        for (field, value) in [
            ("prompt/text", json!("a cat,\nbig")),
            ("prompt/negative", json!("bad")),
            ("sampling/steps", json!(6)),
            ("sampling/sampler", json!("euler-a")),
            ("sampling/spacing", json!("karras")),
            ("sampling/cfg_scale", json!(2.5)),
            ("sampling/seed", json!(9)),
            ("size/width", json!(64)),
            ("size/height", json!(48)),
            ("prompt/clip_skip", json!(1)),
            ("sampling/rng", json!("cuda")),
        ] {
            assert_eq!(request.pointer(&format!("/{field}")).unwrap(), &value, "{file}: {field}");
        }
    }
    let over = dumped(&folder, &["--request", "a1111.png", "--seed=3", "--steps=1"]);
    assert_eq!((&over["sampling"]["seed"], &over["sampling"]["steps"]), (&json!(3), &json!(1)));

    let graph = json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "real.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "5": {"class_type": "KSampler", "inputs": {"seed": 11, "steps": 1, "cfg": 1.0, "sampler_name": "lcm",
            "scheduler": "sgm_uniform", "denoise": 1.0, "model": ["1", 0], "positive": ["2", 0],
            "negative": ["3", 0], "latent_image": ["4", 0]}},
    });
    folder.write("comfy.png", png("prompt", &graph.to_string()));
    folder.write("comfy.json", graph.to_string());
    for file in ["comfy.png", "comfy.json"] {
        let request = dumped(&folder, &["--request", file]);
        let (prompt, sampling) = (&request["prompt"]["text"], &request["sampling"]);
        assert_eq!((prompt, &sampling["seed"]), (&json!("a cat"), &json!(11)), "{file}");
        let frames = &request["size"]["frames"];
        assert_eq!((&sampling["sampler"], frames), (&json!("lcm"), &json!(2)), "{file}");
    }
    let said = tiny(&folder, &["--request", "comfy.png"]).ok().stderr;
    assert!(
        said.contains("warning: comfy.png: was made with the model `real.safetensors`"),
        "{said}"
    );

    // This program's own clips, whose weights need not be the same.
    tiny(&folder, &["a dog", "--seed=4"]).ok();
    let first = folder.read("clip.gif");
    folder.run(&["generate", "--request", "clip.gif", "-o", "again.gif"]).ok();
    assert!(first == folder.read("again.gif"), "another clip");
    folder.write("empty.png", png("Comment", "x"));
    folder.write("ui.json", r#"{"nodes": [], "links": []}"#);
    for (file, part) in
        [("empty.png", "no request in it"), ("ui.json", "Export (API)"), ("none.png", "none.png")]
    {
        let wrong = folder.run(&["generate", "--request", file]);
        assert!(wrong.fails(2).contains(part), "{}", wrong.stderr);
    }
}

#[test]
fn several_clips_have_seeds_in_order_and_numbers() {
    let folder = Folder::new();
    let base = ["generate", "a green ring", "--frames=1", "--steps=1", "-q"];
    let run = |args: &[&str]| folder.run(&[&base[..], args].concat());
    let json = run(&["--seed=7", "--count=3", "-o", "c.png", "--json"]).ok();
    let lines: Vec<Value> =
        json.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seeds: Vec<_> = lines.iter().map(|line| line["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [7, 8, 9]);
    assert_eq!(lines[2]["path"], "c-3.png");
    assert_eq!(folder.names(), ["c-1.png", "c-2.png", "c-3.png"]);
    run(&["--seed=8", "-o", "alone.png"]).ok();
    assert!(folder.read("alone.png") == folder.read("c-2.png"), "another clip for seed 8");
    // Nothing is made where one name is taken.
    folder.write("d-2.png", "mine");
    assert!(run(&["--count=2", "-o", "d.png"]).fails(2).contains("d-2.png"));
    assert!(!folder.names().contains(&"d-1.png".to_owned()));
    let named = run(&["--seed=18446744073709551615", "--count=2"]).ok();
    assert_eq!(named.stdout(), "a-green-ring-18446744073709551615.gif\na-green-ring-0.gif\n");
    for args in [&["--count=0"][..], &["--count=2", "-o", "-"], &["--count=2", "--tensors-out=t"]] {
        assert!(run(args).fails(2).contains("count"), "{args:?}");
    }
}

#[test]
fn a_folder_of_embeddings_is_searched_for_the_words_of_a_prompt() {
    let folder = Folder::new();
    let bytes = std::fs::read(path("text/embeddings/bare.pt")).unwrap();
    folder.write("embeddings/sub/my-style.pt", &bytes);
    folder.write("embeddings/other.pt", &bytes);
    let args = ["a My-Style dog", "--seed=1", "--embedding-dir", "embeddings"];
    let request = dumped(&folder, &args);
    let found = request["models"]["embeddings"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0]["file"].as_str().unwrap().ends_with("my-style.pt"));
    tiny(&folder, &args).ok();
    let by_folder = folder.read("clip.gif");
    tiny(&folder, &["a My-Style dog", "--seed=1", "--embedding", "embeddings/sub/my-style.pt"])
        .ok();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).matches("my-style").count();
    assert!(text(by_folder) > 0);
    let wrong = tiny(&folder, &["x", "--embedding-dir", "nowhere"]);
    assert!(wrong.fails(2).contains("nowhere is not a folder"), "{}", wrong.stderr);
}

#[test]
fn factors_of_blocks_come_by_flag_and_by_tag() {
    let folder = Folder::new();
    let lora = std::fs::read(path("tiny/extras/lora-kohya.safetensors")).unwrap();
    folder.write("loras/mine.safetensors", lora);
    let clip = |args: &[&str]| {
        tiny(&folder, &[args, &["--seed=1", "--no-metadata"]].concat()).ok();
        folder.read("clip.gif")
    };
    let flag = |text: &str| clip(&["a dog", "--lora", &format!("loras/mine.safetensors:{text}")]);
    let insert = flag("0.7,lbw=INS");
    assert!(insert == clip(&["a dog<lora:mine:0.7:lbw=ins>", "--lora-dir", "loras"]));
    let numbers = "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0";
    assert!(insert == flag(&format!("0.7,lbw={numbers}")));
    assert!(insert != flag("0.7"), "the factors did nothing");
    assert!(flag("0.7,lbw=NONE") == flag("0"), "factors of 0 are not absence");
    let wrong = tiny(&folder, &["x", "--lora", "loras/mine.safetensors:lbw=1,2"]);
    assert!(wrong.fails(2).contains("neither 17 nor 26"), "{}", wrong.stderr);
}
