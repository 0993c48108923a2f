//! The text that clips carry for other programs, read back as AUTOMATIC1111's web UI reads it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::golden;
use crate::support::program::Folder;

/// What `parse_generation_parameters` of A1111 makes of a text, written anew from its description: the last line has at
/// least three fields of the form `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`, and a quoted value is JSON.
fn read(text: &str) -> (String, String, BTreeMap<String, String>) {
    let mut lines: Vec<&str> = text.trim().lines().collect();
    let mut fields = fields(lines.last().unwrap());
    if fields.len() < 3 {
        fields.clear();
    } else {
        lines.pop();
    }
    let (mut prompt, mut negative, mut is_negative) = (Vec::new(), Vec::new(), false);
    for line in lines {
        let mut line = line.trim();
        if let Some(rest) = line.strip_prefix("Negative prompt:") {
            is_negative = true;
            line = rest.trim();
        }
        if is_negative { negative.push(line) } else { prompt.push(line) }
    }
    (prompt.join("\n"), negative.join("\n"), fields.into_iter().collect())
}

fn fields(line: &str) -> Vec<(String, String)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut fields = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once(':').unwrap();
        assert!(key.starts_with(is_word) && key.len() > 1, "{key}");
        assert!(key.chars().all(|c| is_word(c) || " -/".contains(c)), "{key}");
        let value = after.trim_start();
        let end = if let Some(inside) = value.strip_prefix('"') {
            let mut escaped = false;
            let closing = inside.find(|c: char| {
                let closes = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            });
            closing.unwrap() + 2
        } else {
            value.find(',').unwrap_or(value.len())
        };
        let (value, after) = value.split_at(end);
        let value = if value.starts_with('"') {
            serde_json::from_str(value).unwrap()
        } else {
            value.to_owned()
        };
        fields.push((key.to_owned(), value));
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if after.is_empty() => after,
            None => panic!("`{after}` follows a value"),
        };
    }
    fields
}

/// The `parameters` in an APNG that the program wrote.
fn parameters(bytes: &[u8]) -> String {
    let decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    let reader = decoder.read_info().unwrap();
    let info = reader.info();
    let long = info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap()));
    let short = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone()));
    long.chain(short).find(|(key, _)| key == "parameters").unwrap().1
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn path(name: &str) -> String {
    golden::path(name).to_str().unwrap().to_owned()
}

/// The text of a clip of two frames.
fn made(folder: &Folder, args: &[&str]) -> String {
    let mut all = vec!["generate", "--frames=2", "--steps=1", "--seed=5", "-y", "-o", "clip.png"];
    all.extend(args);
    folder.run(&all).ok();
    parameters(&folder.read("clip.png"))
}

#[test]
fn a_plain_clip_has_the_fields_that_a1111_knows() {
    let folder = Folder::new();
    let text = made(&folder, &["a green ring", "-n", "grey"]);
    let (prompt, negative, fields) = read(&text);
    assert_eq!((prompt.as_str(), negative.as_str()), ("a green ring", "grey"));
    for (key, value) in [
        ("Steps", "1"),
        ("Sampler", "LCM"),
        ("Schedule type", "Automatic"),
        ("CFG scale", "1"),
        ("Seed", "5"),
        ("Size", "64x64"),
        ("Model", "pocket"),
        ("RNG", "CPU"),
        ("Frames", "2"),
        ("FPS", "8"),
    ] {
        assert_eq!(fields.get(key).map(String::as_str), Some(value), "{key}: {text}");
    }
    assert_eq!(fields["Model hash"].len(), 10);
    assert!(
        fields["AnimateDiff"].starts_with("enable: True, model: pocket, video_length: 2, fps: 8")
    );
    assert!(!fields.contains_key("Clip skip") && !fields.contains_key("Lora hashes"), "{text}");
}

#[test]
fn everything_that_made_a_clip_is_in_its_parameters() {
    let folder = Folder::new();
    let (model, lora) = (path("tiny/model"), path("tiny/extras/lora-kohya.safetensors"));
    let lora_bytes = std::fs::read(&lora).unwrap();
    folder.write("my, style: \"1\".safetensors", &lora_bytes);
    let embedding_bytes = std::fs::read(path("text/embeddings/bare.pt")).unwrap();
    folder.write("mine.pt", &embedding_bytes);
    let text = made(
        &folder,
        &[
            "a (mine:1.2) dog,\nsecond line",
            "-n",
            "-bad, (worse:1.5)",
            "--model",
            &model,
            "--cfg-scale=1.5",
            "--clip-skip=1",
            "--sampler=DPM++ 2M Karras",
            "--rng=cuda",
            "--lora",
            "\"my, style: \"\"1\"\".safetensors\":unet=0.8,text=0.5",
            "--embedding",
            "mine.pt:mine",
        ],
    );
    let (prompt, negative, fields) = read(&text);
    let tag = "<lora:my, style: \"1\":0.5:0.8>";
    assert_eq!(prompt, format!("a (mine:1.2) dog,\nsecond line {tag}"));
    assert_eq!(negative, "-bad, (worse:1.5)");
    // A1111's hash of a LoRA leaves the header out.
    let header = 8 + u64::from_le_bytes(lora_bytes[..8].try_into().unwrap()) as usize;
    let lora_hash = &sha256(&lora_bytes[header..])[..12];
    let unet = std::fs::read(path("tiny/model/unet/diffusion_pytorch_model.safetensors")).unwrap();
    for (key, value) in [
        ("Sampler", "DPM++ 2M"),
        ("Schedule type", "Karras"),
        ("CFG scale", "1.5"),
        ("Clip skip", "2"),
        ("Model", "model"),
        ("Model hash", &sha256(&unet)[..10]),
        ("Lora hashes", &format!("my, style: \"1\": {lora_hash}")),
        ("TI hashes", &format!("mine: {}", &sha256(&embedding_bytes)[..12])),
        ("RNG", "NV"),
    ] {
        assert_eq!(fields.get(key).map(String::as_str), Some(value), "{key}: {text}");
    }
    folder.run(&["replay", "clip.png"]).ok();
    assert!(folder.read("clip.png") == folder.read("clip-replay.png"));
}

#[test]
fn a_checkpoint_has_its_own_name_and_hash() {
    let folder = Folder::new();
    let checkpoint = std::fs::read(path("layouts/ldm.safetensors")).unwrap();
    folder.write("real, v1.5.safetensors", &checkpoint);
    let model = path("tiny/model");
    let text =
        made(&folder, &["a dog", "--model", &model, "--checkpoint", "real, v1.5.safetensors"]);
    let (_, _, fields) = read(&text);
    assert_eq!(fields["Model"], "real, v1.5");
    assert_eq!(fields["Model hash"], sha256(&checkpoint)[..10]);
    let request: Value = folder.run(&["inspect", "clip.png", "--json"]).ok().json();
    assert_eq!(request["models"]["checkpoint"], json!("real, v1.5.safetensors"));
}
