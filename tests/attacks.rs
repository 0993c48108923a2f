use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};

use crate::support::golden;
use crate::support::program::{Folder, Outcome};

const LORA: &str = "../../assets/pocket/animatelcm_lora.safetensors";

/// Makes a clip that takes no time, if nothing is wrong.
fn generate(folder: &Folder, more: &[&str]) -> Outcome {
    let args = ["generate", "a red star", "--frames=2", "--steps=1", "--seed=1", "-o", "clip.gif"];
    folder.run(&[&args[..], more].concat())
}

/// The program must refuse with `code`, in one line with all of `parts` in it, and leave nothing behind.
#[track_caller]
fn refused(folder: &Folder, outcome: &Outcome, code: i32, parts: &[&str], before: &[String]) {
    let line = outcome.fails(code);
    for part in parts {
        assert!(line.contains(part), "`{part}` is not in: {line}");
    }
    assert_eq!(folder.names(), before, "after: {line}");
}

/// As [`refused`], for flags of `generate`.
#[track_caller]
fn refuses(folder: &Folder, args: &[&str], code: i32, parts: &[&str]) -> Outcome {
    let before = folder.names();
    let outcome = generate(folder, args);
    refused(folder, &outcome, code, parts, &before);
    outcome
}

/// Gives a file to every flag that takes weights, and to `inspect`.
#[track_caller]
fn refuses_as_weights(name: &str, bytes: &[u8], parts: &[&str]) {
    let folder = Folder::new();
    folder.write(name, bytes);
    let parts = [&[name], parts].concat();
    for flag in ["--model", "--checkpoint", "--vae", "--motion", "--lora", "--lcm-lora"] {
        refuses(&folder, &[flag, name], 3, &parts);
    }
    let before = folder.names();
    refused(&folder, &folder.run(&["inspect", name]), 3, &parts, &before);
}

/// A safetensors file with whatever header and data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A sound safetensors file with zeros under these names.
fn zeros(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let tensors: HashMap<_, _> = tensors
        .iter()
        .map(|(name, shape)| (*name, Tensor::zeros(*shape, DType::F32, &Device::Cpu).unwrap()))
        .collect();
    safetensors::serialize(&tensors, None).unwrap()
}

/// A file as `torch.save` writes it, around a pickle.
fn torch_zip(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(pickle).unwrap();
    zip.start_file("archive/version", stored).unwrap();
    zip.write_all(b"3\n").unwrap();
    zip.finish().unwrap().into_inner()
}

#[test]
fn safetensors_headers_cannot_lie() {
    let entry = |name: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let a = entry("a", "[2]", "[0,8]");
    let one = |entry: String| format!("{{{entry}}}");
    let two = |a: &str, b: &str| format!("{{{a},{b}}}");
    let sound = one(a.clone());
    let huge = [&u64::MAX.to_le_bytes()[..], b"{\"a\":1}"].concat();
    let over = [&200_000_000u64.to_le_bytes()[..], b"{\"a\":1}"].concat();
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("cut-header", safetensors(&sound, &[])[..20].to_vec(), &["claims", "cut short"]),
        ("cut-data", safetensors(&sound, &[0; 5]), &["8 bytes, 5 are there"]),
        ("more-data", safetensors(&sound, &[0; 9]), &["8 bytes, 9 are there"]),
        ("huge-header", huge, &["18446744073709551615"]),
        ("over-the-limit", over, &["200000000"]),
        ("no-json", safetensors("{\"a\": nonsense}", &[]), &["header cannot be read"]),
        ("deep-json", safetensors(&deep, &[]), &["header cannot be read"]),
        (
            "overlap",
            safetensors(&two(&a, &entry("b", "[2]", "[4,12]")), &[0; 12]),
            &["`b`", "overlaps"],
        ),
        ("same-place", safetensors(&two(&a, &entry("b", "[2]", "[0,8]")), &[0; 8]), &["overlaps"]),
        ("hole", safetensors(&two(&a, &entry("b", "[2]", "[12,20]")), &[0; 20]), &["`b`", "hole"]),
        ("twice", safetensors(&two(&a, &entry("a", "[2]", "[8,16]")), &[0; 16]), &["`a`", "twice"]),
        ("too-short", safetensors(&one(entry("a", "[4]", "[0,8]")), &[0; 8]), &["16 bytes"]),
        ("backwards", safetensors(&one(entry("a", "[2]", "[8,0]")), &[0; 8]), &["8..0"]),
        ("negative", safetensors(&one(entry("a", "[2]", "[-8,0]")), &[0; 8]), &["header cannot"]),
        (
            "impossible",
            safetensors(&one(entry("a", "[4294967296,4294967296]", "[0,0]")), &[]),
            &["impossible shape"],
        ),
        (
            "beyond",
            safetensors(&one(entry("a", "[1099511627776]", "[0,4398046511104]")), &[0; 8]),
            &["4398046511104"],
        ),
        ("strange-type", safetensors(&sound.replace("F32", "Q4_K"), &[0; 8]), &["`Q4_K`"]),
        (
            "escape",
            safetensors(&one(entry("\\u001b[2J", "[4]", "[0,8]")), &[0; 8]),
            &["[2J", "16 bytes"],
        ),
    ];
    for (name, bytes, parts) in cases {
        let name = format!("{name}.safetensors");
        refuses_as_weights(&name, bytes, parts);
    }
}

#[test]
fn pickles_run_nothing() {
    // Each would leave a file behind, or take all memory or stack.
    let system = b"\x80\x02cos\nsystem\nX\x0b\0\0\0touch owned\x85R.";
    let nested = b"\x80\x02cbuiltins\neval\nX\x14\0\0\0open('owned','w').a()\x85R.";
    let built = b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\0\0\0acos\nsystem\nX\x0b\0\0\0touch owned\x85Rsb.";
    let tuples = [b"\x80\x02)".as_slice(), &vec![0x85; 2_000_000], b"."].concat();
    let marks = [b"\x80\x02".as_slice(), &vec![b'('; 2_000_000], b"."].concat();
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("system", system, &["os", "system"]),
        ("eval", nested, &["eval"]),
        ("hidden", built, &["os", "system"]),
        ("inst", b"\x80\x02(X\x0b\0\0\0touch ownedios\nsystem\n.", &[]),
        ("obj", b"\x80\x02(cos\nsystem\nX\x0b\0\0\0touch ownedo.", &[]),
        ("newobj", b"\x80\x02csubprocess\nPopen\nX\x05\0\0\0touch\x85\x81.", &[]),
        ("extension", b"\x80\x02\x82\x01.", &[]),
        ("unknown-opcode", b"\x80\x02\xff.", &["ff"]),
        ("empty", b"", &[]),
        ("no-stop", b"\x80\x02}", &[]),
        ("underflow", b"\x80\x020000.", &[]),
        ("memo", b"\x80\x02h\x07.", &[]),
        ("long-text", b"\x80\x02X\xff\xff\xff\x7fabc.", &[]),
        ("long-number", b"\x80\x02\x8b\xff\xff\xff\x7f.", &[]),
        ("tuples", &tuples, &[]),
        ("marks", &marks, &[]),
        ("no-dict", b"\x80\x02K\x07.", &[]),
    ];
    for (name, pickle, parts) in cases {
        refuses_as_weights(&format!("{name}.ckpt"), &torch_zip(pickle), parts);
    }
    // Outside of a zip.
    refuses_as_weights("bare.pt", system, &["pickle"]);
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    refuses_as_weights(
        "legacy.pt",
        &[&magic[..], b"\x80\x02M\xe9\x03.", b"\x80\x02}.", system].concat(),
        &[],
    );
    let zip = torch_zip(b"\x80\x02}.");
    refuses_as_weights("cut.ckpt", &zip[..zip.len() / 2], &["zip"]);
    refuses_as_weights(
        "no-pickle.zip",
        b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        &["data.pkl"],
    );
}

#[test]
fn files_that_are_no_weights_are_called_what_they_are() {
    let gguf = [&b"GGUF"[..], &[3; 60]].concat();
    for (name, bytes, part) in [
        ("zero.safetensors", &b""[..], "is empty"),
        ("zeros.safetensors", &[0; 10_000], "zeros"),
        (
            "lfs.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "git-lfs",
        ),
        ("page.safetensors", b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        ("model.gguf", &gguf, "GGUF"),
        ("config.json", b"{\"a\": 1}", "JSON"),
        ("notes.txt", b"buy milk, and then some more milk", "neither"),
    ] {
        refuses_as_weights(name, bytes, &[part]);
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let folder = Folder::new();
    // Every number of every matrix, so that it does not matter which are used.
    let damaged = |file: &str| {
        let nan = |(name, tensor): (String, Tensor)| {
            let is_weight = name.ends_with(".weight");
            (name, if is_weight { (tensor * f64::NAN).unwrap() } else { tensor })
        };
        let all = candle_core::safetensors::load(golden::path(file), &Device::Cpu).unwrap();
        let all: HashMap<_, _> = all.into_iter().map(nan).collect();
        safetensors::serialize(&all, None).unwrap()
    };
    folder.write("lora.safetensors", damaged(LORA));
    folder.write("motion.safetensors", damaged("../../assets/pocket/motion_lcm.safetensors"));
    for part in ["unet", "vae"] {
        let file = format!("{part}/diffusion_pytorch_model.safetensors");
        let config = format!("{part}/config.json");
        for other in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
            copy(
                &format!("../../assets/pocket/base/{other}"),
                &folder,
                &format!("bad-{part}/{other}"),
            );
        }
        assert!(folder.path(&format!("bad-{part}/{config}")).exists());
        let bytes = damaged(&format!("../../assets/pocket/base/{file}"));
        folder.write(&format!("bad-{part}/{file}"), bytes);
    }
    let motion = golden::path("../../assets/pocket/motion_lcm.safetensors");
    let motion = motion.to_str().unwrap();
    for args in [
        &["--lora", "lora.safetensors"][..],
        &["--motion", "motion.safetensors"],
        &["--model", "bad-unet", "--motion", motion, "--lcm-lora=none"],
        &["--model", "bad-vae", "--motion", motion, "--lcm-lora=none"],
    ] {
        let outcome = refuses(&folder, args, 3, &["NaN", "tensor `"]);
        assert!(outcome.hint().contains("damaged"), "{}", outcome.stderr);
    }
}

fn copy(from: &str, folder: &Folder, to: &str) {
    for entry in fs::read_dir(golden::path(from)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        folder.write(&format!("{to}/{name}"), fs::read(entry.path()).unwrap());
    }
}

#[test]
fn a_folder_where_a_file_should_be_and_the_other_way_round() {
    let folder = Folder::new();
    fs::create_dir(folder.path("dir")).unwrap();
    folder.write("file", "not a folder");
    for flag in ["--model", "--checkpoint", "--vae", "--motion", "--lora", "--lcm-lora"] {
        refuses(&folder, &[flag, "dir"], 3, &["dir"]);
    }
    for (code, args) in [
        (2, ["--request", "dir"]),
        (2, ["--tensors-in", "dir"]),
        (2, ["--tensors-out", "dir"]),
        (2, ["--tensors-out", "file/out.safetensors"]),
        (3, ["--model-config", "file"]),
        (3, ["--model", "file/model.safetensors"]),
    ] {
        refuses(
            &folder,
            &args,
            code,
            &[args[0].trim_start_matches('-'), args[1].split('/').next().unwrap()],
        );
    }
    fs::create_dir(folder.path("dir.gif")).unwrap();
    let before = folder.names();
    for (output, part) in
        [("dir.gif", "is a folder"), ("file/clip.gif", "file"), ("no/clip.gif", "no")]
    {
        let outcome = folder.run(&["generate", "a red star", "-o", output]);
        refused(&folder, &outcome, 2, &[part], &before);
    }
    refused(&folder, &folder.run(&["inspect", "dir"]), 3, &["dir"], &before);
    refused(&folder, &folder.run(&["replay", "dir"]), 2, &["dir"], &before);
    refused(
        &folder,
        &folder.run(&["inspect", "nowhere"]),
        3,
        &["nowhere", "no such file"],
        &before,
    );
}

#[cfg(unix)]
#[test]
fn devices_and_pipes_are_no_weights() {
    let folder = Folder::new();
    let pipe = Command::new("mkfifo").arg(folder.path("pipe")).status();
    assert!(pipe.unwrap().success());
    for file in ["/dev/zero", "/dev/null", "pipe"] {
        for flag in ["--model", "--lora", "--motion"] {
            refuses(&folder, &[flag, file], 3, &[file]);
        }
        let before = folder.names();
        refused(&folder, &folder.run(&["inspect", file]), 3, &[file], &before);
        refuses(&folder, &["--tensors-in", file], 2, &[file]);
        let control = format!("a={file},model=pipe");
        refuses(&folder, &["--control", &control], 2, &[file]);
    }
    refuses(&folder, &["--request", "/dev/zero"], 2, &["/dev/zero"]);
    refuses(&folder, &["--request", "/dev/null"], 2, &["not a request"]);
}

#[test]
fn models_of_other_families_are_called_by_their_name() {
    type Names<'a> = &'a [(&'a str, &'a [usize])];
    let xl: Names = &[
        (
            "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
            &[2, 2],
        ),
        ("model.diffusion_model.label_emb.0.0.weight", &[2, 2]),
        ("model.diffusion_model.input_blocks.0.0.weight", &[2, 4, 3, 3]),
    ];
    let sd2: Names = &[
        ("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", &[2, 2]),
        ("model.diffusion_model.input_blocks.0.0.weight", &[2, 4, 3, 3]),
    ];
    let sd2_unet: Names = &[
        ("conv_in.weight", &[4, 4, 3, 3]),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", &[4, 1024]),
    ];
    let flux: Names = &[("double_blocks.0.img_attn.proj.weight", &[2, 2])];
    let control: Names = &[("controlnet_cond_embedding.conv_in.weight", &[2, 2])];
    for (names, what) in [
        (xl, "Stable Diffusion XL"),
        (sd2, "Stable Diffusion 2"),
        (sd2_unet, "Stable Diffusion 2"),
        (flux, "Flux"),
        (control, "ControlNet"),
    ] {
        let folder = Folder::new();
        folder.write("other.safetensors", zeros(names));
        for flag in ["--model", "--checkpoint", "--motion", "--vae"] {
            // Nobody looks at a UNet where something else is wanted.
            if names == sd2_unet && ["--motion", "--vae"].contains(&flag) {
                refuses(&folder, &[flag, "other.safetensors"], 3, &["it is a diffusers UNet"]);
                continue;
            }
            let outcome =
                refuses(&folder, &[flag, "other.safetensors"], 3, &["other.safetensors", what]);
            assert!(!outcome.hint().is_empty(), "{}", outcome.stderr);
        }
        refuses(&folder, &["--lora", "other.safetensors"], 3, &["other.safetensors", "not a LoRA"]);
        // To say what it is, is no failure.
        let shown = folder.run(&["inspect", "other.safetensors"]).ok();
        assert!(shown.stdout().contains(what), "{}", shown.stdout());
        let json = folder.run(&["inspect", "--json", "other.safetensors"]).ok().json();
        assert_eq!(json["supported"], names == control, "{json}");
    }
}

#[test]
fn a_lora_that_does_not_fit_is_refused() {
    let folder = Folder::new();
    let up_and_down = |module: &str, input: usize, output: usize| {
        let (down, up) = (format!("{module}.lora_down.weight"), format!("{module}.lora_up.weight"));
        zeros(&[(&down, &[4, input]), (&up, &[output, 4])])
    };
    for (name, module, parts) in [
        (
            "nothing",
            "lora_unet_no_such_layer",
            &["none of its 1 modules", "`lora_unet_no_such_layer`"][..],
        ),
        ("xl", "lora_te2_text_model_encoder_layers_0_mlp_fc1", &["none of its 1 modules"]),
        (
            "shape",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
            &["does not fit"],
        ),
    ] {
        let file = format!("{name}.safetensors");
        folder.write(&file, up_and_down(module, 7, 7));
        let outcome = refuses(&folder, &["--lora", &file], 3, &[&[file.as_str()], parts].concat());
        assert!(outcome.hint().contains("made for"), "{}", outcome.stderr);
        if name == "nothing" {
            refuses(&folder, &["--lora", &file, "--allow-partial"], 3, parts);
        }
        if name == "xl" {
            assert!(outcome.hint().contains("XL"), "{}", outcome.stderr);
        }
    }
    // One for the other.
    let unet = golden::path("../../assets/pocket/base/unet/diffusion_pytorch_model.safetensors");
    let outcome = refuses(&folder, &["--lora", unet.to_str().unwrap()], 3, &["not a LoRA"]);
    assert!(outcome.hint().contains("--model"), "{}", outcome.stderr);
    let lora = golden::path(LORA);
    let outcome = refuses(&folder, &["--model", lora.to_str().unwrap()], 3, &["is a LoRA"]);
    assert!(outcome.hint().contains("--lora"), "{}", outcome.stderr);
}

#[test]
fn impossible_numbers_are_refused_by_name() {
    let folder = Folder::new();
    for (args, parts) in [
        (&["--frames", "0"][..], &["frames", "got 0"][..]),
        (&["--frames", "65"], &["frames", "65", "64"]),
        (&["--frames", "-1"], &["-1"]),
        (&["--frames", "99999999999999999999"], &["99999999999999999999"]),
        (&["--steps", "0"], &["steps", "got 0"]),
        (&["--steps", "101"], &["101"]),
        (&["--steps", "4000000000"], &["4000000000"]),
        (&["--original-inference-steps", "0"], &["0"]),
        (&["--original-inference-steps", "1001"], &["1001"]),
        (&["--width", "9"], &["width", "multiple of 4", "got 9"]),
        (&["--width", "0"], &["width", "got 0"]),
        (&["--height", "7"], &["height", "got 7"]),
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

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_written_is_refused_before_any_work() {
    let folder = Folder::new();
    for args in [
        ["-o", "/proc/clip.gif"],
        ["-o", "/proc/clip_%03d.png"],
        ["--tensors-out", "/proc/t.safetensors"],
    ] {
        let words = ["generate", "a red star", "--seed=1"];
        let output: &[&str] = if args[0] == "-o" { &[] } else { &["-o", "clip.gif"] };
        let outcome = folder.run(&[&words[..], &args, output].concat());
        refused(&folder, &outcome, 2, &["/proc"], &[]);
        assert!(!outcome.stderr.contains("loading"), "{}", outcome.stderr);
    }
}

/// Runs the program on a file system of so many KiB that it has for itself, and lists what is left on it.
#[cfg(target_os = "linux")]
fn on_a_disk_of(kib: u32, folder: &Folder, args: &[&str]) -> Option<(Outcome, String)> {
    let program = folder.command(&[]).get_program().to_owned();
    fs::create_dir_all(folder.path("disk")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={kib}k tmpfs disk || exit 99; cd disk; \"$@\"; code=$?; ls -A > ../left; exit $code"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"]).arg(program).args(args);
    command.current_dir(folder.path("")).env("HF_HOME", folder.path("no-models"));
    let output = command.output().ok()?;
    if output.status.code() == Some(99)
        || String::from_utf8_lossy(&output.stderr).contains("unshare:")
    {
        return None;
    }
    let left = String::from_utf8(folder.read("left")).unwrap();
    Some((Outcome::new(args, output), left))
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let words = ["generate", "a red star", "--frames=16", "--steps=1", "--seed=1"];
    for output in [
        &["-o", "a.gif"][..],
        &["-o", "a.webp"],
        &["-o", "a.png"],
        &["-o", "a.mp4"],
        &["-o", "a.y4m"],
        &["-o", "f_%03d.png"],
    ] {
        // The size of the first is less than any clip, that of the second less than most.
        for kib in [4, 16] {
            let Some((outcome, left)) = on_a_disk_of(kib, &folder, &[&words[..], output].concat())
            else {
                println!("SKIPPED: no small file system can be mounted here");
                return;
            };
            if kib == 16 && outcome.code == Some(0) {
                continue;
            }
            assert!(
                outcome.fails(1).contains(output[1].split('_').next().unwrap()),
                "{}",
                outcome.stderr
            );
            assert!(outcome.hint().contains("space"), "{}", outcome.stderr);
            assert_eq!(left, "", "{output:?}");
        }
    }
    // A clip that fits and tensors that do not: neither is left.
    let more = ["-o", "a.gif", "--tensors-out", "t.safetensors"];
    let (outcome, left) = on_a_disk_of(128, &folder, &[&words[..], &more].concat()).unwrap();
    assert!(outcome.fails(1).contains("t.safetensors"), "{}", outcome.stderr);
    assert!(outcome.hint().contains("space"), "{}", outcome.stderr);
    assert_eq!(left, "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_pipe_is_an_error() {
    let folder = Folder::new();
    let full = fs::OpenOptions::new().write(true).open(Path::new("/dev/full")).unwrap();
    let args = ["generate", "x", "--frames=2", "--steps=1", "-q", "-o", "-"];
    let output = folder.command(&args).stdout(full).output().unwrap();
    let outcome = Outcome::new(&args, output);
    refused(&folder, &outcome, 1, &["standard output"], &[]);
}
