//! Configurations of models, in folders whose weights are those of the tiny model.

use std::fs;
use std::path::{Path, PathBuf};

use animatelcm::adapters::lora::{Lora, LoraOptions};
use animatelcm::device::{DtypeChoice, Precision};
use animatelcm::library::{Base, ControlFile, Files, IpAdapterFile, Models};
use animatelcm::pipeline::memory::Plan;
use animatelcm::request::Request;
use animatelcm::weights::{PatchStack, Source};
use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::lora::model;
use super::support::{Cursor, copy_golden, folder};

/// A configuration: its file, and what the program does with it.
type Config = (&'static str, fn(&Path));

const CONFIGS: [Config; 11] = [
    ("model/unet/config.json", unet),
    ("model/vae/config.json", vae),
    ("model/text_encoder/config.json", text),
    ("model/scheduler/scheduler_config.json", unet),
    ("model/motion_adapter/config.json", unet),
    ("extras/taesd/config.json", taesd),
    ("extras/controlnet/config.json", |root| control(&root.join("extras/controlnet"))),
    ("extras/sparsectrl/config.json", |root| control(&root.join("extras/sparsectrl"))),
    ("adapter/config.json", |root| control(&root.join("adapter"))),
    ("extras/image_encoder/config.json", image_encoder),
    ("peft/adapter_config.json", peft),
];

/// Opens and builds a model with a configuration that the first byte chooses. If the second is odd, the rest is the
/// configuration; otherwise the rest says how it differs from the sound one.
pub fn run(data: &[u8]) {
    let root = root();
    let mut cursor = Cursor(data);
    let (name, open) = CONFIGS[usize::from(cursor.byte()) % CONFIGS.len()];
    let path = root.join(name);
    let sound = fs::read(&path).expect("the sound configuration");
    let config = if cursor.byte() % 2 == 1 { cursor.0.to_vec() } else { edited(&sound, cursor) };
    fs::write(&path, config).expect("room for a configuration");
    open(&root);
    fs::write(&path, sound).expect("room for a configuration");
}

/// The folder with all that configurations belong to.
fn root() -> PathBuf {
    let root = folder().join("configs");
    if !root.exists() {
        copy_golden("tiny/model", &root.join("model"));
        copy_golden("tiny/extras", &root.join("extras"));
        copy_golden("t2i_adapter/light", &root.join("adapter"));
        copy_golden("lora/families/peft_dora", &root.join("peft"));
    }
    root
}

fn files(root: &Path) -> Files {
    Files::new(Base::Folder(root.join("model")))
}

fn unet(root: &Path) {
    if let Some(models) = opened(&files(root)) {
        let _ = models.unet(DType::F32, &Device::Cpu);
    }
}

fn vae(root: &Path) {
    if let Some(models) = opened(&files(root)) {
        let _ = models.vae(DType::F32, &Device::Cpu);
        let _ = models.vae_encoder(DType::F32, &Device::Cpu);
    }
}

fn text(root: &Path) {
    if let Some(models) = opened(&files(root)) {
        let _ = models.text(DType::F32, &Device::Cpu);
    }
}

fn taesd(root: &Path) {
    let files = Files { vae: Some(root.join("extras/taesd")), ..files(root) };
    if let Some(models) = opened(&files) {
        let _ = models.vae(DType::F32, &Device::Cpu);
    }
}

fn control(net: &Path) {
    let root = root();
    let net = ControlFile { name: "net".into(), source: Source::from(net.to_path_buf()) };
    if let Some(models) = opened(&Files { controls: vec![net], ..files(&root) }) {
        let _ = models.side_network("net", plain(), &Device::Cpu);
    }
}

fn image_encoder(root: &Path) {
    let encoder = root.join("extras/image_encoder");
    let adapter = IpAdapterFile {
        name: "ip".into(),
        source: Source::from(root.join("extras/ip-adapter.safetensors")),
    };
    let files =
        Files { ip_adapters: vec![adapter], image_encoder: Some(encoder.clone()), ..files(root) };
    if let Some(models) = opened(&files) {
        let _ = models.ip_adapter("ip", DType::F32, &Device::Cpu);
        let _ = models.image_encoder(&encoder, DType::F32, &Device::Cpu);
    }
}

fn peft(root: &Path) {
    if let Ok(lora) = Lora::open(&Source::from(root.join("peft")), "peft") {
        let _ = lora.apply(model(), &LoraOptions::default(), &mut PatchStack::new());
    }
}

fn plain() -> Precision {
    Precision::new(DtypeChoice::default(), &Device::Cpu)
}

/// Opens a model and works out everything that is known of it before it is built.
fn opened(files: &Files) -> Option<Models> {
    let models = Models::open(files).ok()?;
    let (width, height) = models.native_size();
    let request = Request::default();
    let precision = plain();
    let _ = models.scheduler(&request).schedule();
    for size in [(width, height), (64, 64)] {
        let plan = Plan::new(&models, precision, &Device::Cpu, &request, size);
        let _ = plan.choose(Some(1 << 30));
    }
    let _ = (models.longest_clip(), models.encoder_width());
    Some(models)
}

/// A sound configuration with some of its values replaced.
fn edited(sound: &[u8], mut cursor: Cursor<'_>) -> Vec<u8> {
    let mut json: Value = serde_json::from_slice(sound).expect("a sound configuration");
    while !cursor.is_empty() {
        let mut place = usize::from(cursor.byte()) % count(&json);
        let mut replace = Some(&mut cursor);
        visit(&mut json, &mut place, &mut |value| {
            if let Some(cursor) = replace.take() {
                *value = replacement(value, cursor);
            }
        });
    }
    json.to_string().into_bytes()
}

/// How many values there are, the whole among them.
fn count(json: &Value) -> usize {
    1 + match json {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// Calls `each` with the value that has `place` others before it.
fn visit(json: &mut Value, place: &mut usize, each: &mut dyn FnMut(&mut Value)) -> bool {
    if *place == 0 {
        each(json);
        return true;
    }
    *place -= 1;
    match json {
        Value::Array(values) => values.iter_mut().any(|value| visit(value, place, each)),
        Value::Object(fields) => fields.values_mut().any(|value| visit(value, place, each)),
        _ => false,
    }
}

/// Words that configurations know.
const WORDS: [&str; 12] = [
    "",
    "CrossAttnDownBlock2D",
    "CrossAttnUpBlock2D",
    "DownBlock2D",
    "UpBlock2D",
    "gelu",
    "relu",
    "silu",
    "v_prediction",
    "linspace",
    "squaredcos_cap_v2",
    "LORA",
];

fn replacement(value: &Value, cursor: &mut Cursor<'_>) -> Value {
    match cursor.byte() % 20 {
        0 => json!(0),
        1 => json!(1),
        2 => json!(-1),
        3 => json!(cursor.byte()),
        4 => json!(cursor.short()),
        5 => json!(1_u64 << 31),
        6 => json!(u32::MAX),
        7 => json!(1_u64 << 53),
        8 => json!(i64::MAX),
        9 => json!(u64::MAX),
        10 => json!(0.5),
        11 => json!(1e308),
        12 => json!(WORDS[usize::from(cursor.byte()) % WORDS.len()]),
        13 => Value::Null,
        14 => json!(cursor.byte().is_multiple_of(2)),
        15 => json!([]),
        16 => json!({}),
        17 => json!(vec![value.clone(); usize::from(cursor.byte())]),
        18 => json!(cursor.long()),
        _ => json!([value.clone()]),
    }
}
