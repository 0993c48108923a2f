//! Configurations that lie, and files that contradict them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use animatelcm::Result;
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, ControlFile, Files, IpAdapterFile, Models, Motion};
use animatelcm::media::{FrameSink, RgbImage};
use animatelcm::pipeline::{Event, Pipeline, Residency};
use animatelcm::request::Request;
use candle_core::Device;
use serde_json::{Value, json};

use crate::support::golden;
use crate::support::program::{Folder, Outcome};
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny_folder::{change, copy, read, tiny, write};

/// What stands for every number of a configuration, one after the other.
fn absurd() -> Vec<Value> {
    vec![
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(4096),
        json!(1_048_576),
        json!(1_u64 << 31),
        json!(1_u64 << 32),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(-1e300),
        json!(1e308),
        json!([-0.0]),
        Value::Null,
    ]
}

/// The JSON pointers of all numbers.
fn numbers(json: &Value, at: &str) -> Vec<String> {
    let below = |key: &str, value| numbers(value, &format!("{at}/{key}"));
    match json {
        Value::Number(_) => vec![at.to_owned()],
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(i, item)| below(&i.to_string(), item)).collect()
        }
        Value::Object(fields) => fields.iter().flat_map(|(key, field)| below(key, field)).collect(),
        _ => vec![],
    }
}

struct Nowhere;

impl FrameSink for Nowhere {
    fn frame(&mut self, _: &RgbImage) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Makes a frame, where the model can be opened. Returns whether it could.
fn try_model(files: &Files, request: &Request) -> Result<()> {
    let models = Models::open(files)?;
    let cpu = Device::Cpu;
    let precision = Precision::new(DtypeChoice::F32, &cpu);
    let mut pipeline = Pipeline::new(models, cpu, precision, Residency::Sequential);
    let mut quiet = |_: Event| Ok(());
    pipeline.run(request, &mut Tensors::default(), &mut quiet, &mut Nowhere)
}

/// Puts every absurd value in place of every number of a configuration. What is refused is refused as weights that do
/// not fit; everything else makes a clip of `request`, if that is given.
#[track_caller]
fn scan(config: &Path, files: &Files, request: Option<&Request>) {
    let open = || Models::open(files).map(|_| ());
    let clip = || request.map_or_else(open, |request| try_model(files, request));
    let original = read(config);
    let fields = numbers(&original, "");
    assert!(!fields.is_empty(), "{}", config.display());
    let put = |field: &str, value: &Value| {
        let mut changed = original.clone();
        *changed.pointer_mut(field).unwrap() = value.clone();
        write(config, &changed);
    };
    for field in fields {
        // Only what nobody reads may be a text in place of a number; the tokenizer's limit is read by hand.
        put(&field, &json!("8"));
        let is_read = open().is_err() || field == "/model_max_length";
        let values = if is_read { absurd() } else { vec![json!(u64::MAX)] };
        for value in values {
            put(&field, &value);
            let start = Instant::now();
            let result = clip();
            let (place, took) = (format!("{} {field} {value}", config.display()), start.elapsed());
            assert!(took < Duration::from_secs(5), "{place}: {took:?}");
            if let Err(error) = result {
                let code = error.kind().exit_code();
                assert_eq!(code, 3, "{place}: {error}");
                assert!(!error.to_string().contains('\n'), "{place}: {error}");
            }
        }
    }
    write(config, &original);
    clip().unwrap();
}

fn request() -> Request {
    Request::default().with(|r| {
        r.prompt.text = "a".into();
        r.size.frames = Some(1);
        r.sampling.steps = 1;
        r.sampling.seed = Some(1);
    })
}

#[test]
fn no_number_of_a_models_configurations_brings_the_program_down() {
    let folder = Folder::new();
    let model = tiny(&folder);
    let files = Files::new(Base::Folder(model.clone()));
    for part in ["unet", "vae", "text_encoder", "motion_adapter"] {
        scan(&model.join(part).join("config.json"), &files, Some(&request()));
    }
    scan(&model.join("scheduler/scheduler_config.json"), &files, Some(&request()));
    scan(&model.join("tokenizer/tokenizer_config.json"), &files, Some(&request()));
}

#[test]
fn no_number_beside_a_control_or_an_image_encoder_does() {
    let folder = Folder::new();
    let model = tiny(&folder);
    folder.write("hint.png", fs::read(golden::path("pocket_adapters/red_on_white.png")).unwrap());
    let hint = folder.path("hint.png");
    let net = folder.path("controlnet");
    copy(&golden::path("tiny/extras/controlnet"), &net);
    let control = |name: &str, net: &Path, base| Files {
        controls: vec![ControlFile { name: name.into(), source: net.to_path_buf().into() }],
        ..Files::new(base)
    };
    let files = control("net", &net, Base::Folder(model.clone()));
    let hinted = format!("c={},model=net", hint.display());
    let hinted = request().with(|r| {
        r.controls = vec![hinted.parse().unwrap()];
    });
    scan(&net.join("config.json"), &files, Some(&hinted));
    let net = folder.path("sparsectrl");
    copy(&golden::path("pocket_adapters/sparsectrl"), &net);
    let pocket = golden::path("pocket_adapters/model");
    let files = Files {
        motion: Motion::File(pocket.join("motion_lcm.safetensors")),
        ..control("sparse", &net, Base::Folder(pocket.join("base")))
    };
    scan(&net.join("config.json"), &files, None);
    let encoder = folder.path("image_encoder");
    copy(&golden::path("tiny/extras/image_encoder"), &encoder);
    let adapter = golden::path("tiny/extras/ip-adapter.safetensors");
    let files = Files {
        ip_adapters: vec![IpAdapterFile { name: "ip".into(), source: adapter.into() }],
        image_encoder: Some(encoder.clone()),
        ..Files::new(Base::Folder(model))
    };
    let adapter = format!("{},model=ip", hint.display());
    let request = request().with(|r| {
        r.ip_adapters = vec![adapter.parse().unwrap()];
    });
    scan(&encoder.join("config.json"), &files, Some(&request));
}

/// Runs `generate` on the folder `model` within limits of memory and time that no absurd size fits into.
#[track_caller]
fn generate(folder: &Folder, more: &[&str]) -> Outcome {
    let args = ["generate", "a", "--model=model", "--frames=1", "--steps=1", "-o", "clip.gif"];
    let args = [&args[..], more].concat();
    let program = folder.command(&args);
    let mut limited = std::process::Command::new("sh");
    limited
        .args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir(program.get_current_dir().unwrap())
        .env("RAYON_NUM_THREADS", "2")
        // Errors of the tensor library carry a backtrace then.
        .env("RUST_BACKTRACE", "1");
    for (key, value) in program.get_envs() {
        match value {
            Some(value) => limited.env(key, value),
            None => limited.env_remove(key),
        };
    }
    let start = Instant::now();
    let outcome = Outcome::new(&args, limited.output().unwrap());
    assert!(start.elapsed() < Duration::from_secs(10), "{args:?}: {:?}", start.elapsed());
    outcome
}

#[cfg(unix)]
#[test]
fn sizes_that_no_memory_holds_are_refused_by_name() {
    for (config, changes, parts) in [
        ("unet", json!({"cross_attention_dim": 1_u64 << 31}), ["`cross_attention_dim`", "65536"]),
        (
            "unet",
            json!({"block_out_channels": [8, 16, 16, 1_u64 << 31]}),
            ["`block_out_channels`", "2147483648"],
        ),
        ("unet", json!({"layers_per_block": 1_048_576}), ["`layers_per_block`", "1048576"]),
        ("unet", json!({"sample_size": 4096}), ["`sample_size` 4096", "16384x16384"]),
        ("vae", json!({"latent_channels": i64::MAX}), ["`latent_channels`", "9223372036854775807"]),
        ("vae", json!({"layers_per_block": u32::MAX}), ["`layers_per_block`", "4294967295"]),
        ("text_encoder", json!({"num_hidden_layers": 1_u64 << 32}), ["`num_hidden_layers`", "256"]),
        ("motion_adapter", json!({"motion_max_seq_length": u64::MAX}), ["`motion_max", "4096"]),
        // Within the bounds, but not what the file holds.
        ("unet", json!({"in_channels": 65_536}), ["vae: makes latents of 4 channels", "65536"]),
        (
            "unet",
            json!({"layers_per_block": 256}),
            ["at least 4096 weights missing", "down_blocks.0"],
        ),
        ("unet", json!({"block_out_channels": [65_536, 65_536, 65_536, 65_536]}), ["shape", "8"]),
        ("vae", json!({"block_out_channels": [65_536, 8, 8]}), ["of another shape", "65536"]),
        ("text_encoder", json!({"intermediate_size": 65_536}), ["of another shape", "65536"]),
        ("text_encoder", json!({"vocab_size": 1 << 24}), ["of another shape", "16777216"]),
        // In no shape at all.
        ("unet", json!({"attention_head_dim": 3}), ["unet: ", "8 channels do not divide into 3"]),
        ("unet", json!({"norm_num_groups": 3}), ["unet: ", "channels do not divide into 3 groups"]),
        ("vae", json!({"norm_num_groups": 3}), ["vae: ", "channels do not divide into 3 groups"]),
        (
            "motion_adapter",
            json!({"motion_num_attention_heads": 3}),
            ["motion_modules.0", "do not divide into 3 heads"],
        ),
        ("text_encoder", json!({"num_attention_heads": 5}), ["text encoder: ", "into 5 heads"]),
        ("vae", json!({"scaling_factor": 0.0}), ["`scaling_factor` 0", "not between"]),
    ] {
        let folder = Folder::new();
        tiny(&folder);
        change(&folder, &format!("{config}/config.json"), &changes);
        let outcome = generate(&folder, &["--progress=json"]);
        let events = outcome.events();
        assert_eq!(outcome.code, Some(3), "{changes}: {}", outcome.stderr);
        // The error is the first that is heard: nothing was loaded.
        assert_eq!(events.len(), 1, "{changes}: {}", outcome.stderr);
        let message = events[0]["message"].as_str().unwrap();
        assert!(!message.contains('\n'), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{changes}: {message}");
    }
}

#[test]
fn networks_that_belong_to_different_models_are_refused_before_any_is_loaded() {
    let folder = Folder::new();
    tiny(&folder);
    let pocket = golden::path("../../assets/pocket");
    let motion = pocket.join("motion_lcm.safetensors");
    let outcome = generate(&folder, &["--motion", motion.to_str().unwrap(), "--lcm-lora=none"]);
    let line = outcome.fails(3);
    assert!(line.contains("unet: ") && line.contains("motion_modules"), "{line}");
    let vae = pocket.join("base/vae");
    let mut changed = read(&vae.join("config.json"));
    copy(&vae, &folder.path("vae"));
    changed["latent_channels"] = json!(7);
    write(&folder.path("vae/config.json"), &changed);
    let line = generate(&folder, &["--vae=vae"]).fails(3).to_owned();
    assert!(line.contains("latents of 7 channels, the unet takes 4"), "{line}");
}

#[cfg(unix)]
#[test]
fn a_configuration_that_has_no_end_is_not_read() {
    use std::os::unix::fs::symlink;
    let configs = [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "motion_adapter/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ];
    for config in configs {
        for is_pipe in [false, true] {
            let folder = Folder::new();
            let path = tiny(&folder).join(config);
            if config.ends_with("index.json") {
                fs::remove_file(path.with_file_name("diffusion_pytorch_model.safetensors"))
                    .unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            endless(&path, is_pipe);
            let line = generate(&folder, &[]).fails(3).to_owned();
            let file = Path::new(config).file_name().unwrap().to_str().unwrap();
            assert!(line.contains(file) && line.contains("is not an ordinary file"), "{line}");
        }
    }
    let folder = Folder::new();
    let model = tiny(&folder);
    symlink("/dev/zero", model.join("config.json")).unwrap();
    fs::remove_file(model.join("model_index.json")).unwrap();
    let line = folder.run(&["inspect", "model"]).fails(3).to_owned();
    assert!(line.contains("config.json: is not an ordinary file"), "{line}");
    endless(&model.join("model_index.json"), true);
    let line = folder.run(&["inspect", "model"]).fails(3).to_owned();
    assert!(line.contains("model_index.json: is not an ordinary file"), "{line}");
    // PEFT's folder: without its configuration a strength would be another.
    let lora = folder.path("adapter_model.safetensors");
    fs::copy(golden::path("tiny/extras/lora-peft.safetensors"), &lora).unwrap();
    endless(&folder.path("adapter_config.json"), true);
    fs::remove_file(model.join("config.json")).unwrap();
    let line = generate(&folder, &["--lora=adapter_model.safetensors"]).fails(3).to_owned();
    assert!(line.contains("adapter_config.json: is not an ordinary file"), "{line}");
    // Beside a checkpoint.
    let folder = Folder::new();
    tiny(&folder);
    fs::copy(golden::path("layouts/ldm.safetensors"), folder.path("ldm.safetensors")).unwrap();
    endless(&folder.path("ldm.yaml"), true);
    let line = generate(&folder, &["--checkpoint=ldm.safetensors"]).fails(3).to_owned();
    assert!(line.contains("ldm.yaml: is not an ordinary file"), "{line}");
    // A file of zeros that fits on no disk.
    let folder = Folder::new();
    let path = tiny(&folder).join("unet/config.json");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let line = generate(&folder, &[]).fails(3).to_owned();
    assert!(line.contains("config.json: is larger than 64 MiB"), "{line}");
}

/// A link to a device without end, or a pipe that nobody writes to.
#[cfg(unix)]
fn endless(path: &Path, is_pipe: bool) {
    if is_pipe {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    } else {
        std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    }
}

/// A safetensors file of zeros. A shape with a side of 0 takes no room, however large its other sides are.
fn of_shapes(tensors: &[(&str, &[u64])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<u64>();
        let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).into(), info);
    }
    let header = Value::Object(header).to_string();
    let length = header.len() as u64;
    [&length.to_le_bytes()[..], header.as_bytes(), &vec![0; end as usize]].concat()
}

#[test]
fn sizes_that_are_told_by_shapes_have_bounds_as_well() {
    const BIG: u64 = 1 << 62;
    let folder = Folder::new();
    let model = tiny(&folder);
    folder.write(
        "clip.safetensors",
        of_shapes(&[
            ("vision_model.embeddings.class_embedding", &[1280]),
            ("vision_model.embeddings.patch_embedding.weight", &[0, 3, BIG, BIG]),
            ("vision_model.embeddings.position_embedding.weight", &[0, BIG]),
            ("vision_model.encoder.layers.0.layer_norm1.weight", &[0]),
            ("vision_model.encoder.layers.0.mlp.fc1.weight", &[BIG, 0]),
            ("visual_projection.weight", &[BIG, 0]),
        ]),
    );
    folder.write(
        "ip.safetensors",
        of_shapes(&[
            ("image_proj.proj.weight", &[BIG, 0]),
            ("image_proj.proj.bias", &[0]),
            ("image_proj.norm.weight", &[12]),
            ("image_proj.norm.bias", &[12]),
            ("ip_adapter.1.to_k_ip.weight", &[8, 12]),
            ("ip_adapter.1.to_v_ip.weight", &[8, 12]),
        ]),
    );
    let open = |adapter: PathBuf| {
        let files = Files {
            ip_adapters: vec![IpAdapterFile { name: "ip".into(), source: adapter.into() }],
            image_encoder: Some(folder.path("clip.safetensors")),
            ..Files::new(Base::Folder(model.clone()))
        };
        let error = Models::open(&files).unwrap_err();
        assert_eq!(error.kind().exit_code(), 3, "{error}");
        error.to_string()
    };
    let error = open(golden::path("tiny/extras/ip-adapter.safetensors"));
    assert!(error.contains("`intermediate_size` 4611686018427387904 is not between"), "{error}");
    let error = open(folder.path("ip.safetensors"));
    assert!(
        error.contains("`image_proj.proj.weight` has a side of 4611686018427387904"),
        "{error}"
    );
}
