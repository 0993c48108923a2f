//! Adapters, encoders and images that do not go together.

use std::collections::BTreeMap;
use std::path::Path;

use animatelcm::library::{Base, Files, IpAdapterFile, Models};
use animatelcm::pipeline::{Event, Residency};
use animatelcm::weights::Source;
use animatelcm::{Error, Result};
use candle_core::{DType, Device, Tensor};

use crate::support::golden;
use crate::support::ip_adapter::{
    ENCODER, Images, files, pipeline, request, run, save, weights_of,
};
use crate::support::run::{Runs, Tensors, With};
use crate::support::tiny;

fn open(adapter: &Path, encoder: Option<&Path>) -> Result<Models> {
    let source = Source::from(adapter.to_path_buf());
    Models::open(&Files {
        ip_adapters: vec![IpAdapterFile { name: "mine".into(), source }],
        image_encoder: encoder.map(Path::to_path_buf),
        ..files()
    })
}

fn refusal(adapter: &Path, encoder: Option<&Path>) -> Error {
    let error = open(adapter, encoder).unwrap_err();
    assert_eq!(error.kind().exit_code(), 3, "{error}");
    error
}

/// A changed adapter in a folder of its own, away from any image encoder.
struct Changed(tempfile::TempDir, BTreeMap<String, Tensor>);

impl Changed {
    fn of(kind: &str) -> Self {
        let tensors = tiny::tensors(&[&weights_of(kind)]).into_iter().collect();
        Self(tempfile::tempdir().unwrap(), tensors)
    }

    fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        self.1.insert(name.into(), zeros);
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.1.remove(name).unwrap();
        self
    }

    fn save(&self) -> std::path::PathBuf {
        // Two levels deep, so that nothing is above it either.
        let folder = self.0.path().join("x");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("adapter.safetensors");
        save(&self.1, &path);
        path
    }
}

#[test]
fn adapters_that_cannot_work_are_called_by_their_name() {
    let encoder = golden::path("tiny/extras/image_encoder");
    let encoder = Some(encoder.as_path());
    let key = "ip_adapter.1.to_k_ip.weight";
    for (adapter, part) in [
        (Changed::of("base").with("ip_adapter.0.to_k_lora.down.weight", &[4, 8]), "FaceID"),
        (
            Changed::of("plus").with("image_proj.perceiver_resampler.proj_in.weight", &[4, 4]),
            "FaceID",
        ),
        (Changed::of("full").with("image_proj.norm.weight", &[12]), "face recognition"),
        (Changed::of("base").with(key, &[640, 2048]), "is an IP-Adapter for Stable Diffusion XL"),
        (Changed::of("base").with(key, &[320, 1024]), "is an IP-Adapter for Stable Diffusion 2"),
        (Changed::of("base").with(key, &[24, 12]), "attentions of [24, 8, 16"),
        (
            Changed::of("base").without("image_proj.norm.weight"),
            "`image_proj.norm.weight` is missing",
        ),
        (Changed::of("base").with("ip_adapter.3.to_q_ip.weight", &[8, 12]), "not known"),
        (
            Changed::of("base").with("image_proj.proj.weight", &[48, 1280]),
            "1280 channels, those of",
        ),
    ] {
        let error = refusal(&adapter.save(), encoder).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let missing = Changed::of("base").without("ip_adapter.31.to_v_ip.weight");
    let error = refusal(&missing.save(), encoder).to_string();
    assert!(error.contains("1 weights missing (`ip_adapter.31.to_v_ip.weight`)"), "{error}");
    for (file, part, hint) in [
        ("tiny/extras/lora-kohya.safetensors", "is a LoRA", "--lora"),
        ("tiny/extras/controlnet/diffusion_pytorch_model.safetensors", "a ControlNet", "--control"),
        (ENCODER, "has no ip-adapter weights", ""),
        ("tiny/extras", "is a folder", ""),
    ] {
        let error = refusal(&golden::path(file), encoder);
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{:?}", error.hint());
    }
    let model = Files::new(Base::File(golden::path(&weights_of("base"))));
    let error = Models::open(&model).unwrap_err();
    assert!(error.to_string().ends_with("is an IP-Adapter"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("give it with --ip-adapter"));
}

#[test]
fn the_image_encoder_is_found_or_asked_for() {
    // Beside the adapter, above it, and in the model's folder.
    let changed = Changed::of("base");
    let adapter = changed.save();
    let error = refusal(&adapter, None);
    assert!(error.to_string().contains("`mine`: has no image encoder beside it"), "{error}");
    assert!(error.hint().unwrap().contains("--image-encoder"));
    let place = |folder: &Path| {
        std::fs::create_dir_all(folder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let from = golden::path("tiny/extras/image_encoder").join(file);
            std::fs::copy(from, folder.join(file)).unwrap();
        }
    };
    for folder in [adapter.parent(), adapter.parent().and_then(Path::parent)] {
        let folder = folder.unwrap().join("image_encoder");
        place(&folder);
        let models = open(&adapter, None).unwrap();
        assert_eq!(models.ip_adapter_config("mine").unwrap().1, folder);
        std::fs::remove_dir_all(folder).unwrap();
    }
    // A single file with its configuration beside it, and without one.
    let folder = tempfile::tempdir().unwrap();
    place(folder.path());
    let file = folder.path().join("model.safetensors");
    assert!(open(&adapter, Some(&file)).is_ok());
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let error = refusal(&adapter, Some(&file));
    assert!(error.to_string().contains("14 channels"), "{error}");
    assert!(error.hint().unwrap().contains("config.json"));
    // Something else.
    let error = refusal(&adapter, Some(&golden::path("tiny/model/text_encoder")));
    assert!(error.to_string().contains("has no image encoder weights"), "{error}");
    let error = refusal(&adapter, Some(Path::new("nowhere.safetensors")));
    assert!(error.to_string().contains("nowhere.safetensors"), "{error}");
}

#[test]
fn an_encoder_without_a_configuration_is_known_by_its_width() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clip.safetensors");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
    // As far as shapes are asked for: a small ViT-bigG.
    let mut tensors = BTreeMap::from([
        ("vision_model.embeddings.class_embedding".to_owned(), zeros(&[1664])),
        ("vision_model.embeddings.patch_embedding.weight".to_owned(), zeros(&[1664, 3, 14, 14])),
        ("vision_model.embeddings.position_embedding.weight".to_owned(), zeros(&[5, 1664])),
        ("vision_model.encoder.layers.0.layer_norm1.weight".to_owned(), zeros(&[1664])),
        ("vision_model.encoder.layers.0.mlp.fc1.weight".to_owned(), zeros(&[8192, 1664])),
        ("visual_projection.weight".to_owned(), zeros(&[1280, 1664])),
    ]);
    save(&tensors, &file);
    // Trained with ViT-H, whose embeddings have 1024 channels and whose states 1280.
    for (kind, name, shape) in [
        ("base", "image_proj.proj.weight", [48, 1024]),
        ("plus", "image_proj.proj_in.weight", [10, 1280]),
    ] {
        let adapter = Changed::of(kind).with(name, &shape);
        let error = refusal(&adapter.save(), Some(&file));
        let found = if kind == "base" { "1280" } else { "1664" };
        let text = error.to_string();
        assert!(
            text.contains(&shape[1].to_string()) && text.contains(&format!("have {found}")),
            "{text}"
        );
        assert!(error.hint().unwrap().contains("h94/IP-Adapter"), "{:?}", error.hint());
    }
    // And one that goes with it, once the rest is there.
    let fits = Changed::of("base").with("image_proj.proj.weight", &[48, 1280]);
    let error = refusal(&fits.save(), Some(&file)).to_string();
    assert!(error.contains("image encoder: 18 weights missing"), "{error}");
    let layer = "encoder.layers.0";
    let norms = [format!("{layer}.layer_norm1"), format!("{layer}.layer_norm2")];
    for name in norms.into_iter().chain(["pre_layrnorm".into(), "post_layernorm".into()]) {
        for end in ["weight", "bias"] {
            tensors.insert(format!("vision_model.{name}.{end}"), zeros(&[1664]));
        }
    }
    for (name, outputs, inputs) in [
        ("self_attn.q_proj", 1664, 1664),
        ("self_attn.k_proj", 1664, 1664),
        ("self_attn.v_proj", 1664, 1664),
        ("self_attn.out_proj", 1664, 1664),
        ("mlp.fc1", 8192, 1664),
        ("mlp.fc2", 1664, 8192),
    ] {
        let name = format!("vision_model.{layer}.{name}");
        tensors.insert(format!("{name}.weight"), zeros(&[outputs, inputs]));
        tensors.insert(format!("{name}.bias"), zeros(&[outputs]));
    }
    save(&tensors, &file);
    let models = open(&fits.save(), Some(&file)).unwrap();
    let (_, _, config) = models.ip_adapter_config("mine").unwrap();
    assert_eq!((config.image_size, config.patch_size), (28, 14));
    assert_eq!((config.num_attention_heads, config.hidden_act.as_str()), (16, "gelu"));
}

#[test]
fn images_that_do_not_fit_are_refused_before_anything_is_loaded() {
    let images = Images::new();
    std::fs::write(images.path("text.png"), "this is no image").unwrap();
    for (text, parts) in [
        ("a.png,per-frame", ["1 images for 6 frames", "a.png"]),
        ("a.png,image=b.png,mask=mask0.png", ["2 images have 1 masks", "a.png"]),
        ("text.png", ["text.png", "ip-adapter"]),
        ("a.png,image=nowhere.png", ["nowhere.png", "ip-adapter"]),
        ("a.png,mask=nowhere.png", ["nowhere.png", "ip-adapter"]),
    ] {
        let request = request().with(|r| {
            r.ip_adapters = vec![images.adapter("plus", text)];
        });
        let mut loaded = 0;
        let mut listener = |_: Event| {
            loaded += 1;
            Ok(())
        };
        let mut frames = Vec::new();
        let error = pipeline(Residency::Sequential)
            .run(&request, &mut Tensors::default(), &mut listener, &mut &mut frames)
            .unwrap_err();
        assert_eq!(error.kind().exit_code(), 2, "{error}");
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        assert_eq!(loaded, 0, "{text}");
    }
    let error = run(&[images.adapter("other", "a.png")], request()).unwrap_err();
    assert!(error.to_string().contains("`other` was not opened"), "{error}");
}
