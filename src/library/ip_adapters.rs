//! IP-Adapters and the image encoder that they were trained with: open files, their sizes, and whether they fit.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use super::{Base, Source, configs, infer};
use crate::Quantize;
use crate::models::clip::{VisionConfig, VisionEncoder};
use crate::models::image_projection::{FeatureKind, IpAdapter, IpAdapterConfig};
use crate::models::unet::UNetConfig;
use crate::weights::{Checkpoint, Component, LoadReport, PatchStack, until};
use crate::{Error, Result, Stop};

/// An IP-Adapter to use.
#[derive(Clone, Debug, PartialEq)]
pub struct IpAdapterFile {
    /// What requests call it.
    pub name: String,
    /// Its file.
    pub source: Source,
}

/// An open IP-Adapter. Nothing is read until it is built.
#[derive(Debug)]
pub(super) struct OpenIpAdapter {
    pub(super) checkpoint: Checkpoint,
    pub(super) config: IpAdapterConfig,
    /// Where its image encoder is.
    pub(super) encoder: PathBuf,
}

impl OpenIpAdapter {
    /// Opens a file beside a UNet and finds its image encoder: `chosen`, or one near to the file or in the base model.
    ///
    /// # Errors
    ///
    /// When it is something else or was made for another model, or there is no image encoder.
    pub(super) fn open(
        file: &IpAdapterFile,
        unet: &UNetConfig,
        chosen: Option<&Path>,
        base: &Base,
    ) -> Result<Self> {
        if file.source.path().is_dir() {
            return Err(Error::format(file.source.path(), "is a folder, an IP-Adapter is a file"));
        }
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_component(Component::IpAdapter, &file.source)?;
        let shape = |name: &str| checkpoint.shape_of(Component::IpAdapter, name);
        let config = IpAdapterConfig::from_shapes(|name| shape(name).map(<[usize]>::to_vec))?;
        let attentions = unet.cross_attentions()?;
        let widths: Vec<usize> = attentions.iter().map(|attention| attention.width).collect();
        if config.widths != widths {
            let adapter = file.name.clone();
            let reason = format!(
                "is an IP-Adapter for cross attentions of {:?} channels, the model has {widths:?}",
                config.widths
            );
            let hint = "an IP-Adapter fits the kind of model that it was trained beside";
            return Err(Error::Adapter { adapter, reason }.with_hint(hint));
        }
        let encoder = match chosen {
            Some(path) => path.to_path_buf(),
            None => near(&file.source, base).ok_or_else(|| {
                let reason = "has no image encoder beside it, and neither has the model".into();
                Error::Adapter { adapter: file.name.clone(), reason }.with_hint(
                    "name one with --image-encoder: the folder models/image_encoder of \
                     h94/IP-Adapter, for instance",
                )
            })?,
        };
        Ok(Self { checkpoint, config, encoder })
    }

    /// Fails unless the encoder's features are those that the adapter was trained with.
    pub(super) fn check(&self, name: &str, encoder: &VisionConfig) -> Result<()> {
        let (what, found) = match self.config.feature_kind() {
            FeatureKind::Embedding => ("embeddings", encoder.projection_dim),
            FeatureKind::Penultimate => ("states", encoder.hidden_size),
        };
        let wanted = self.config.features;
        if wanted == found {
            return Ok(());
        }
        let reason = format!(
            "wants {what} of {wanted} channels, those of the image encoder {} have {found}",
            self.encoder.display()
        );
        let hint = match wanted {
            1024 => "it was trained with ViT-H: models/image_encoder of h94/IP-Adapter",
            1280 if found == 1024 || found == 1664 => {
                "models/image_encoder of h94/IP-Adapter is ViT-H, sdxl_models/image_encoder ViT-bigG"
            }
            _ => "an IP-Adapter works with the image encoder that it was trained with only",
        };
        Err(Error::Adapter { adapter: name.to_owned(), reason }.with_hint(hint))
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.checkpoint.archives().iter().map(|archive| archive.source().clone())
    }

    pub(super) fn bytes(&self, dtype: DType) -> u64 {
        super::stored(&self.checkpoint, Component::IpAdapter, dtype, Quantize::None)
    }

    /// Fails unless the shapes of the weights agree with each other.
    pub(super) fn check_weights(&self) -> Result<()> {
        let build = |vb| Ok(IpAdapter::new(&self.config, &vb)?);
        self.checkpoint.check(Component::IpAdapter, build)
    }

    pub(super) fn build(
        &self,
        dtype: DType,
        device: &Device,
        stop: &Stop,
    ) -> Result<(IpAdapter, LoadReport)> {
        let patches = PatchStack::new();
        self.checkpoint.build(Component::IpAdapter, dtype, device, &patches, |vb| {
            Ok(IpAdapter::new(&self.config, &until(vb, stop))?)
        })
    }
}

/// `image_encoder` beside the file, above it, or in the base model's folder.
fn near(source: &Source, base: &Base) -> Option<PathBuf> {
    const FOLDER: &str = "image_encoder";
    let beside = match source {
        Source::File(path) => path.ancestors().skip(1).take(2).map(Path::to_path_buf).collect(),
        Source::Embedded { .. } => vec![],
    };
    let model = match base {
        Base::Folder(folder) => Some(folder.clone()),
        Base::Embedded | Base::File(_) | Base::Random(_) => None,
    };
    beside.into_iter().chain(model).map(|folder| folder.join(FOLDER)).find(|path| path.is_dir())
}

/// An open image encoder. Nothing is read until it is built.
#[derive(Debug)]
pub(super) struct OpenImageEncoder {
    pub(super) checkpoint: Checkpoint,
    pub(super) config: VisionConfig,
}

impl OpenImageEncoder {
    /// Opens a folder of transformers, or a file with its `config.json` beside it or the sizes of a known network.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut checkpoint = Checkpoint::new();
        checkpoint.add_component(Component::ImageEncoder, &path.to_path_buf().into())?;
        let config = match own_config(path)? {
            Some(config) => config,
            None => infer::vision(&checkpoint)?,
        };
        config.validate()?;
        Ok(Self { checkpoint, config })
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.checkpoint.archives().iter().map(|archive| archive.source().clone())
    }

    pub(super) fn bytes(&self, dtype: DType) -> u64 {
        super::stored(&self.checkpoint, Component::ImageEncoder, dtype, Quantize::None)
    }

    /// Fails unless the file holds the network that its configuration describes.
    pub(super) fn check(&self) -> Result<()> {
        self.checkpoint.check(Component::ImageEncoder, |vb| VisionEncoder::new(&self.config, &vb))
    }

    pub(super) fn build(
        &self,
        dtype: DType,
        device: &Device,
        stop: &Stop,
    ) -> Result<(VisionEncoder, LoadReport)> {
        let patches = PatchStack::new();
        self.checkpoint.build(Component::ImageEncoder, dtype, device, &patches, |vb| {
            VisionEncoder::new(&self.config, &until(vb, stop))
        })
    }
}

/// The configuration in the folder, or beside the file, if it is an image encoder's or that of a whole CLIP.
fn own_config(path: &Path) -> Result<Option<VisionConfig>> {
    let source = Source::from(path.to_path_buf());
    let Some(path) = configs::beside(&source, "image_encoder") else { return Ok(None) };
    let Some(json) = configs::json(&path)? else { return Ok(None) };
    if let Some(vision) = json.get("vision_config") {
        let mut vision = vision.clone();
        if let (Some(fields), Some(dim)) = (vision.as_object_mut(), json.get("projection_dim")) {
            fields.entry("projection_dim").or_insert_with(|| dim.clone());
        }
        return configs::part(&path, &vision).map(Some);
    }
    let kind = json.get("model_type").and_then(serde_json::Value::as_str);
    if kind == Some("clip_vision_model") { configs::part(&path, &json).map(Some) } else { Ok(None) }
}
