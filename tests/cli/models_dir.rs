//! Models by name in folders of one's own.

use std::fs;

use crate::support::golden;
use crate::support::program::Folder;

const QUICK: [&str; 5] = ["generate", "--frames=2", "--steps=1", "--seed=5", "--no-metadata"];

fn pocket_lora() -> Vec<u8> {
    fs::read(golden::path("../../assets/pocket/animatelcm_lora.safetensors")).unwrap()
}

#[test]
fn loras_are_found_by_name_in_flags_and_prompts() {
    let folder = Folder::new();
    folder.write("ui/models/Lora/people/style.safetensors", pocket_lora());
    let make = |args: &[&str], name: &str| {
        folder.run(&[&QUICK[..], args, &["-o", name]].concat()).ok();
        folder.read(name)
    };
    let named = make(&["a red star", "--lora", "style:0.5", "--models-dir", "ui"], "a.gif");
    let path = "ui/models/Lora/people/style.safetensors:0.5";
    assert!(named == make(&["a red star", "--lora", path], "b.gif"));
    let tagged = make(&["a red star<lora:style:0.5>", "--models-dir", "ui"], "c.gif");
    assert!(named == tagged, "the tag means another LoRA");

    let args = ["a red star", "--lora", "people/Style.safetensors:0.5", "-o", "d.gif"];
    let mut command = folder.command(&[&QUICK[..], &args].concat());
    assert!(command.env("ANIMATELCM_MODELS", "ui").status().unwrap().success());
    assert!(named == folder.read("d.gif"));
}

#[test]
fn names_that_lead_nowhere_get_advice() {
    let folder = Folder::new();
    folder.write("ui/checkpoints/dreamshaper_8.safetensors", "");
    let run = |model: &str| folder.run(&["generate", "x", "-m", model, "--models-dir", "ui"]);
    let near = run("dreamshaper");
    near.fails(3);
    assert_eq!(near.hint(), "did you mean `dreamshaper_8`?");
    // It was found, and is no checkpoint.
    assert!(run("dreamshaper_8").fails(3).contains("dreamshaper_8.safetensors"));
    let wrong = folder.run(&["generate", "x", "--models-dir", "nowhere"]);
    assert!(wrong.fails(2).contains("models-dir: nowhere is not a folder"), "{}", wrong.stderr);
}

#[test]
fn a_clip_is_made_again_with_the_named_file_only() {
    let folder = Folder::new();
    folder.write("ui/loras/style.safetensors", pocket_lora());
    let args = ["generate", "a red star", "--frames=2", "--steps=1", "--seed=5"];
    let more = ["--lora", "style:0.5", "--models-dir", "ui", "-o", "a.gif"];
    folder.run(&[&args[..], &more].concat()).ok();
    folder.run(&["replay", "a.gif", "--models-dir", "ui"]).ok();
    assert!(folder.read("a.gif") == folder.read("a-replay.gif"));
    assert!(folder.run(&["replay", "a.gif", "-y"]).fails(3).contains("style"));
    let mut other = pocket_lora();
    *other.last_mut().unwrap() ^= 1;
    folder.write("ui/loras/style.safetensors", other);
    let refused = folder.run(&["replay", "a.gif", "-y", "--models-dir", "ui"]);
    assert!(refused.fails(5).contains("was not opened"), "{}", refused.stderr);
}

#[test]
fn embeddings_of_the_folder_are_taken_where_a_prompt_names_them() {
    let folder = Folder::new();
    folder.write("ui/embeddings/EasyNegative.pt", "");
    let dump = |prompt: &str| {
        let args = ["generate", prompt, "--models-dir", "ui", "--dump-request"];
        folder.run(&args).ok().json()["models"]["embeddings"].clone()
    };
    assert_eq!(dump("a dog").as_array().unwrap().len(), 0);
    let file = dump("a dog, easynegative")[0]["file"].as_str().unwrap().to_owned();
    assert!(file.ends_with("EasyNegative.pt"), "{file}");
}
