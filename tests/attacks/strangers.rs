//! Clips and files of strangers: what they may not do to a terminal, and which files they may not have opened.

use std::fs;

use crate::support::golden;
use crate::support::program::{Folder, Outcome};
use serde_json::{Value, json};

/// A still PNG that carries a request.
fn clip(folder: &Folder, name: &str, request: &Value) {
    let file = fs::File::create(folder.path(name)).unwrap();
    let mut encoder = png::Encoder::new(file, 1, 1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.add_itxt_chunk("animatelcm".into(), request.to_string()).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0; 3]).unwrap();
    writer.finish().unwrap();
}

fn job(models: &Value, request: &Value) -> Value {
    let mut all = json!({
        "schema": "animatelcm/v1",
        "models": models,
        "prompt": "x",
        "size": {"frames": 1},
        "sampling": {"seed": 1, "steps": 1},
    });
    all.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
    all
}

/// A title, colours, cleared lines, the same by one character, and text from right to left.
const EVIL: &str = "x\u{1b}]0;PWNED\u{7}\u{1b}[31m\u{9b}2J\u{7f}\u{202e}\r";

/// Everything that was printed must show what a terminal would have obeyed.
#[track_caller]
fn is_plain(outcome: &Outcome) {
    obeys_nothing(outcome);
    let both = format!("{}{}", outcome.stdout(), outcome.stderr);
    assert!(both.contains(r"\u001b]0;PWNED\u0007"), "{both}");
}

/// Nothing that was printed may be obeyed.
#[track_caller]
fn obeys_nothing(outcome: &Outcome) {
    for text in [outcome.stdout(), &outcome.stderr] {
        let obeyed =
            |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!text.contains(obeyed), "{text:?}");
    }
}

#[test]
fn no_escape_sequence_of_a_file_reaches_the_terminal() {
    let folder = Folder::new();
    let run = |args: &[&str]| folder.run(args);
    let mut field = job(&json!({}), &json!({}));
    field[EVIL] = json!(1);
    let mut schema = job(&json!({}), &json!({}));
    schema["schema"] = json!(EVIL);
    for request in [
        field,
        schema,
        job(&json!({}), &json!({"sampling": {"sampler": EVIL}})),
        job(&json!({ "model": format!("{EVIL}/nofile") }), &json!({})),
        job(&json!({}), &json!({"prompt": EVIL, "sampling": {"sampler": "nothing"}})),
    ] {
        clip(&folder, "a.png", &request);
        is_plain(&run(&["inspect", "a.png"]));
        is_plain(&run(&["inspect", "--json", "a.png"]));
        let replayed = run(&["replay", "a.png"]);
        replayed.fails(replayed.code.unwrap());
    }
    clip(&folder, "a.png", &job(&json!({}), &json!({"prompt": EVIL})));
    is_plain(&run(&["inspect", "a.png"]).ok());
    let shown = run(&["inspect", "--json", "a.png"]).ok();
    is_plain(&shown);
    assert_eq!(shown.json()["prompt"], EVIL);

    // A folder's kind, and a block of its network.
    folder.write("m/model_index.json", json!({ "_class_name": EVIL }).to_string());
    folder.write("m/unet/config.json", json!({"down_block_types": [EVIL]}).to_string());
    is_plain(&run(&["inspect", "m"]));
    is_plain(&run(&["inspect", "m", "--json"]));
    // A header of raw video.
    folder.write("a.y4m", format!("YUV4MPEG2 W16 H16 F8:1 C{EVIL}\nFRAME\n").replace('\r', ""));
    let control = "c=a.y4m,model=none.safetensors";
    let outcome = run(&["generate", "x", "--frames=1", "--control", control, "-o", "b.gif"]);
    outcome.fails(outcome.code.unwrap());
    // Metadata of weights, and the name of a tensor.
    let header = json!({
        "__metadata__": {EVIL: EVIL, "ss_network_module": EVIL},
        format!("{EVIL}.weight"): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    })
    .to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 4]);
    folder.write("evil.safetensors", bytes);
    is_plain(&run(&["inspect", "evil.safetensors"]).ok());
    is_plain(&run(&["inspect", "evil.safetensors", "--json"]).ok());
    // What was typed, and names of files.
    is_plain(&run(&["generate", "x", "--sampler", EVIL]));
    // The parser of arguments leaves out what it knows of escape sequences.
    obeys_nothing(&run(&["generate", "x", EVIL]));
    is_plain(&run(&["inspect", EVIL]));
    let events = run(&["generate", "x", "--model", EVIL, "--progress=json", "-o", "b.gif"]);
    is_plain(&events);
    assert_eq!(events.events()[0]["event"], "error");
    #[cfg(unix)]
    {
        let name = format!("{EVIL}.gif");
        let small = ["--frames=1", "--steps=1", "-q", "-o", name.as_str()];
        is_plain(&run(&[&["generate", "x"][..], &small].concat()).ok());
        is_plain(&run(&["inspect", &name]).ok());
    }
}

/// The only error line of a replay that was refused because of `name`.
#[track_caller]
fn is_refused(folder: &Folder, name: &str) {
    let before = folder.names();
    for command in [&["replay", "evil.png"][..], &["generate", "--request=evil.png", "-oa.gif"]] {
        let outcome = folder.run(command);
        let line = outcome.fails(5);
        assert!(line.contains(name) && line.contains("was not opened"), "{line}");
        assert!(outcome.hint().contains("--trust-paths"), "{}", outcome.stderr);
        assert_eq!(folder.names(), before);
    }
}

#[test]
fn a_clip_has_no_file_opened_that_it_does_not_know() {
    let folder = Folder::new();
    folder.write("secret", "root:x:0:0");
    fs::copy(golden::path("lora/kohya.safetensors"), folder.path("other.safetensors")).unwrap();
    #[cfg(unix)]
    {
        let made = std::process::Command::new("mkfifo").arg(folder.path("pipe")).status();
        assert!(made.unwrap().success());
        // To open it would be to wait for ever.
        clip(&folder, "evil.png", &job(&json!({"vae": "pipe"}), &json!({})));
        is_refused(&folder, "pipe");
    }
    let model = golden::path("tiny/model");
    let model = model.to_str().unwrap();
    for models in [
        json!({"vae": "secret"}),
        json!({"checkpoint": "other.safetensors"}),
        json!({"motion": "secret"}),
        json!({"lcm_lora": {"file": "secret"}}),
        json!({"loras": [{"file": "secret"}]}),
        json!({"embeddings": [{"file": "secret"}]}),
        json!({"image_encoder": "secret"}),
        json!({ "model": model }),
        json!({ "model_config": model }),
    ] {
        clip(&folder, "evil.png", &job(&models, &json!({})));
        let named = models.to_string();
        let names = ["secret", "other.safetensors", model];
        is_refused(&folder, names.into_iter().find(|name| named.contains(name)).unwrap());
        // A hash of something else helps no more than none.
        let mut known = job(&models, &json!({}));
        known["weights"] = json!([{"file": "secret", "sha256": "0".repeat(64)}]);
        clip(&folder, "evil.png", &known);
        is_refused(&folder, "");
    }
    for request in [
        json!({"source": {"image": "secret"}}),
        json!({"source": {"video": "secret"}}),
        json!({"controls": [{"name": "a", "hint": "secret", "model": "nowhere"}]}),
        json!({"controls": [{"name": "a", "hint": "nowhere", "model": "secret"}]}),
        json!({"ip_adapters": [{"images": [{"file": "secret"}], "model": "nowhere"}]}),
        json!({"ip_adapters": [{
            "images": [{"file": "a", "sha256": "0".repeat(64)}],
            "masks": [{"file": "secret"}],
            "model": "nowhere",
        }]}),
    ] {
        clip(&folder, "evil.png", &job(&json!({}), &request));
        is_refused(
            &folder,
            if request.to_string().contains("nowhere\",\"model\":\"secret") {
                "secret"
            } else {
                ""
            },
        );
    }
    // Sources and hints are compared with their hashes before they are read, by both commands.
    let source = json!({"image": "secret", "sha256": "0".repeat(64), "strength": 1.0});
    clip(&folder, "evil.png", &job(&json!({}), &json!({"source": source})));
    for command in [&["replay", "evil.png"][..], &["generate", "--request=evil.png", "-oa.gif"]] {
        let outcome = folder.run(command);
        let line = outcome.fails(5);
        assert!(line.contains("secret") && line.contains("the clip was made with"), "{line}");
    }
    let control = golden::path("pocket_adapters/controlnet");
    let weights = control.join("diffusion_pytorch_model.safetensors");
    let known = animatelcm::weights::sha256(&weights.into(), &animatelcm::Stop::default()).unwrap();
    let control = control.to_str().unwrap();
    let hint = json!({"name": "a", "hint": "secret", "sha256": "0".repeat(64), "model": control});
    let mut foreign = job(&json!({}), &json!({"controls": [hint]}));
    foreign["weights"] = json!([{"file": "a", "sha256": known}]);
    clip(&folder, "evil.png", &foreign);
    for command in [&["replay", "evil.png"][..], &["generate", "--request=evil.png", "-oa.gif"]] {
        let outcome = folder.run(command);
        let line = outcome.fails(5);
        assert!(line.contains("secret") && line.contains("the clip was made with"), "{line}");
    }
    let mut tensors = job(&json!({}), &json!({}));
    tensors["tensors_in"] = json!({"file": "secret"});
    clip(&folder, "evil.png", &tensors);
    is_refused(&folder, "secret");
    // Who trusts the clip gets what it names, and what is wrong with it.
    clip(&folder, "evil.png", &job(&json!({"vae": "secret"}), &json!({})));
    for command in [&["replay", "evil.png"][..], &["generate", "--request=evil.png", "-oa.gif"]] {
        let outcome = folder.run(&[command, &["--trust-paths"]].concat());
        assert!(!outcome.fails(3).contains("was not opened"));
    }
    // What a flag replaces is not asked for.
    let vae = golden::path("../../assets/pocket/base/vae");
    let given = ["generate", "--request=evil.png", "--vae", vae.to_str().unwrap(), "-oa.gif", "-q"];
    folder.run(&given).ok();
}

#[test]
fn clips_of_files_that_are_still_the_same_replay_without_a_word() {
    let folder = Folder::new();
    let model = golden::path("tiny/model");
    let lora = golden::path("lora/kohya.safetensors");
    let (model, lora) = (model.to_str().unwrap(), lora.to_str().unwrap());
    let small = ["--frames=2", "--steps=1", "-q", "-o", "a.gif"];
    let named = ["generate", "x", "--model", model, "--lora", lora];
    folder.run(&[&named[..], &small].concat()).ok();
    folder.run(&["replay", "a.gif", "-q"]).ok();
    assert_eq!(folder.read("a.gif"), folder.read("a-replay.gif"));
}
