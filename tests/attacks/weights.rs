//! Hostile files of weights, given to the real program.

use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Write};
use std::process::Command;

use animatelcm::weights::{Archive, Source};
use candle_core::{DType, Device, Tensor};

use crate::support::attack::{LORA, refused, refuses, safetensors, zeros};
use crate::support::golden;
use crate::support::program::Folder;

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
        let archive = Archive::open(&Source::from(golden::path(file))).unwrap();
        let read = |name: &str| archive.tensor(name, DType::F32, &Device::Cpu).unwrap();
        let all = archive.names().map(|name| (name.to_owned(), read(name)));
        let all: HashMap<_, _> = all.map(nan).collect();
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
