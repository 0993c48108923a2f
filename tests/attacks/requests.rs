//! Impossible requests, and clips and tensors that are not to be believed.

use std::collections::HashMap;
use std::fs;

use candle_core::{DType, Device, Tensor};

use crate::support::attack::{generate, refused, refuses, safetensors};
use crate::support::program::Folder;

#[test]
fn impossible_numbers_are_refused_by_name() {
    let folder = Folder::new();
    for (args, parts) in [
        (&["--frames", "0"][..], &["--frames", "'0'", "at least 1"][..]),
        (&["--context-length", "65"], &["context-length", "65", "64"]),
        (&["--context-length", "0"], &["context-length", "got 0"]),
        (&["--context-length", "1"], &["context-length", "got 1"]),
        (&["--context-overlap", "16"], &["context-overlap", "length 16", "got 16"]),
        (&["--context-stride", "0"], &["context-stride", "got 0"]),
        (&["--context-stride", "-1"], &["-1"]),
        (&["--context-schedule", "batched"], &["batched"]),
        (&["--context-fuse", "gauss"], &["gauss"]),
        (&["--noise", "pink"], &["pink"]),
        (&["--loop", "twice"], &["twice"]),
        (&["--frames", "-1"], &["-1"]),
        (&["--frames", "99999999999999999999"], &["99999999999999999999"]),
        (&["--steps", "0"], &["--steps", "'0'", "at least 1"]),
        (&["--steps", "101"], &["101"]),
        (&["--steps", "4000000000"], &["4000000000"]),
        (&["--original-inference-steps", "0"], &["0"]),
        (&["--original-inference-steps", "1001"], &["1001"]),
        (&["--width", "9"], &["width", "multiple of 4", "got 9"]),
        (&["--width", "0"], &["--width", "'0'", "at least 8"]),
        (&["--height", "7"], &["--height", "'7'", "at least 8"]),
        (&["--height", "102"], &["height", "multiple of 4", "got 102"]),
        (&["--width", "8200"], &["width", "8192", "8200"]),
        (&["--width", "18446744073709551615"], &["width", "18446744073709551615"]),
        (&["--fps", "NaN"], &["fps", "NaN"]),
        (&["--fps", "0"], &["fps", "got 0"]),
        (&["--fps", "1e9"], &["fps"]),
        (&["--fps", "100"], &["fps", "gif", "100"]),
        (&["--cfg-scale", "NaN"], &["cfg-scale", "NaN"]),
        (&["--cfg-scale", "inf"], &["cfg-scale", "inf"]),
        (&["--cfg-scale=-1"], &["cfg-scale", "-1"]),
        (&["--beta-start", "NaN"], &["beta-start", "NaN"]),
        (&["--beta-end", "2"], &["beta-end", "2"]),
        (&["--beta-start", "0.5"], &["beta-end"]),
        (&["--lora", "x.safetensors:NaN"], &["x.safetensors:NaN"]),
        (&["--clip-skip", "99"], &["99"]),
        (&["--seed", "-2"], &["-2"]),
        (&["--sampler", "magic"], &["magic"]),
        (&["--spacing", "odd"], &["odd"]),
        (&["--rng", "dice"], &["dice"]),
        (&["--motion-norm", "none"], &["none"]),
        (&["--beta-schedule", "cosine"], &["cosine"]),
        (&["--device", "cuda:x"], &["cuda:x"]),
    ] {
        let flag = args[0].split('=').next().unwrap();
        // --seed is given already; the last one must count or be refused, not both be ignored.
        let outcome = if flag == "--seed" {
            folder.run(&[&["generate", "x", "-o", "clip.gif"], args].concat())
        } else if ["--frames", "--steps"].contains(&flag) {
            folder.run(&[&["generate", "x", "--seed=1", "-o", "clip.gif"], args].concat())
        } else {
            generate(&folder, args)
        };
        refused(&folder, &outcome, 2, parts, &[]);
        assert!(!outcome.stderr.contains("step 1/"), "{args:?} was found out too late");
    }
    assert!(generate(&folder, &["--height", "102"]).hint().contains("100 or 104"));
    for (flag, word) in
        [("--model", "sd99"), ("--motion", "sd99"), ("--lora", "sd99"), ("--vae", "sd99")]
    {
        let outcome = refuses(&folder, &[flag, word], 3, &[flag, word]);
        assert!(outcome.hint().contains("models list"), "{}", outcome.stderr);
    }
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_numbers() {
    let folder = Folder::new();
    let args = ["generate", "x", "-W", "8192", "-H", "8192", "--frames", "64", "-o", "a.png"];
    let outcome = folder.run(&args);
    refused(&folder, &outcome, 4, &["needs about", "iB", "free"], &[]);
    assert!(outcome.hint().contains("--width"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("loading"), "{}", outcome.stderr);
}

#[test]
fn requests_are_read_with_suspicion() {
    let folder = Folder::new();
    let deep = "[".repeat(200_000);
    let long = format!(r#"{{"schema":"animatelcm/v1","prompt":"{}"}}"#, "x".repeat(2 << 20));
    for (text, part) in [
        ("", "not a request"),
        ("not json", "not a request"),
        (&deep, "not a request"),
        (r#"{"schema":"animatelcm/v9"}"#, "animatelcm/v9"),
        (r#"{"schema":"animatelcm/v1","promt":"x"}"#, "promt"),
        (r#"{"schema":"animatelcm/v1","sampling":{"steps":-4}}"#, "-4"),
        (r#"{"schema":"animatelcm/v1","output":{"fps":1e999}}"#, "request"),
        (r#"{"schema":"animatelcm/v1","size":{"width":1e30}}"#, "1e+30"),
        (r#"{"schema":"animatelcm/v1","models":{"device":"toaster"}}"#, "toaster"),
        (&long, "prompt: 2097152 bytes"),
    ] {
        folder.write("r.json", text);
        let outcome = folder.run(&["generate", "--request", "r.json", "-o", "a.gif"]);
        refused(&folder, &outcome, 2, &[part], &["r.json".into()]);
    }
    refuses(&folder, &["--request", "nowhere.json"], 2, &["nowhere.json"]);
}

#[test]
fn tensors_from_outside_are_read_with_suspicion() {
    let folder = Folder::new();
    let shape = [1, 4, 2, 16, 16];
    let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let file = |tensors: &[(&str, Tensor)]| {
        let tensors: HashMap<_, _> = tensors.iter().cloned().collect();
        safetensors::serialize(&tensors, None).unwrap()
    };
    let nan = (tensor(&shape) * f64::NAN).unwrap();
    let wide = tensor(&[1, 4, 2, 16, 32]);
    for (bytes, parts) in [
        (vec![], &["t.safetensors"][..]),
        (b"not tensors at all, only text".to_vec(), &["t.safetensors"]),
        (
            safetensors(
                "{\"latents\":{\"dtype\":\"F32\",\"shape\":[9],\"data_offsets\":[0,36]}}",
                &[0; 4],
            ),
            &["t.safetensors"],
        ),
        (file(&[]), &["no tensors"]),
        (file(&[("latent", tensor(&shape))]), &["`latent`"]),
        (file(&[("noise.1", tensor(&shape))]), &["`noise.1`"]),
        (
            file(&[("latents", wide.clone())]),
            &["`latents`", "[1, 4, 2, 16, 32]", "[1, 4, 2, 16, 16]"],
        ),
        (file(&[("latents", tensor(&[4]))]), &["`latents`", "[4]"]),
        (file(&[("latents", nan.clone())]), &["`latents`", "NaN"]),
        (file(&[("noise.0", tensor(&[4]))]), &["`noise.0`", "[4]"]),
        (file(&[("noise.0", wide)]), &["`noise.0`", "[1, 4, 2, 16, 32]"]),
        (file(&[("noise.0", nan)]), &["`noise.0`", "NaN"]),
    ] {
        folder.write("t.safetensors", bytes);
        let args = ["generate", "x", "--frames=2", "--steps=2", "--seed=1", "-o", "clip.gif"];
        let outcome = folder.run(&[&args[..], &["--tensors-in", "t.safetensors"]].concat());
        refused(
            &folder,
            &outcome,
            2,
            &[&["tensors-in"], parts].concat(),
            &["t.safetensors".into()],
        );
        assert!(!outcome.stderr.contains("step 1/"), "{parts:?} was found out too late");
    }
    refuses(&folder, &["--tensors-in", "nowhere.safetensors"], 2, &["nowhere.safetensors"]);
}

#[test]
fn a_prompt_of_a_hundred_thousand_characters_is_cut_with_a_warning() {
    let folder = Folder::new();
    for (i, prompt) in
        ["a red star ".repeat(9_091), "x".repeat(100_000), "🙂".repeat(25_000)].iter().enumerate()
    {
        let name = format!("{i}.webp");
        let args = ["generate", prompt, "--frames=1", "--steps=1", "--seed=1", "-o", &name];
        let done = folder.run(&args).ok();
        assert!(done.stderr.contains("too long"), "{}", done.stderr);
        assert!(done.stderr.len() < 2000, "{}", done.stderr);
        let job = folder.run(&["inspect", "--json", &name]).ok().json();
        assert_eq!(job["prompt"]["text"], **prompt);
    }
    let done = folder.run(&["generate", "", "--frames=1", "--steps=1", "-o", "empty.gif"]).ok();
    assert_eq!(done.stdout(), "empty.gif\n");
}

#[test]
fn control_characters_come_back_exactly_and_never_reach_the_terminal() {
    let folder = Folder::new();
    let prompt = "a\u{0}b\u{1b}[2J\u{7}\u{9b}c\r\n\u{ffff}<&>\"']]>";
    let job = serde_json::json!({
        "schema": "animatelcm/v1",
        "prompt": prompt,
        "size": {"frames": 1},
        "sampling": {"seed": 1, "steps": 1},
    });
    folder.write("r.json", job.to_string());
    for name in ["a.gif", "a.webp", "a.png", "a.mp4"] {
        folder.run(&["generate", "--request", "r.json", "-o", name]).ok();
        let inside = folder.run(&["inspect", "--json", name]).ok().json();
        assert_eq!(inside["prompt"]["text"], prompt, "{name}");
        let shown = folder.run(&["inspect", name]).ok();
        let is_safe = |c: char| c == '\n' || !c.is_control();
        assert!(shown.stdout().chars().all(is_safe), "{name}: {:?}", shown.stdout());
    }
}

#[test]
fn damaged_clips_are_refused() {
    let folder = Folder::new();
    for name in ["a.gif", "a.webp", "a.png", "a.mp4"] {
        let args = ["generate", "x", "--frames=2", "--steps=1", "--seed=1", "-o", name];
        folder.run(&args).ok();
        let whole = folder.read(name);
        for end in [1, 11, 13, 40, whole.len() / 2] {
            folder.write(name, &whole[..end]);
            let before = folder.names();
            for command in ["inspect", "replay"] {
                let outcome = folder.run(&[command, name]);
                // A request that was whole is still there when the images are cut.
                if outcome.code == Some(0) {
                    assert!(end == whole.len() / 2, "{name} of {end} bytes");
                    let _ = fs::remove_file(folder.path(&name.replace('.', "-replay.")));
                } else {
                    refused(&folder, &outcome, outcome.code.unwrap().clamp(2, 3), &[name], &before);
                }
            }
        }
        fs::remove_file(folder.path(name)).unwrap();
    }
}
