//! Networks beside the UNet: open files, what they are, their sizes, and whether they belong to the UNet.

use crate::weights::VarBuilder;
use candle_core::Device;

use super::configs::{self, Config};
use super::infer::Shapes;
use super::{DrawnShapes, Source};
use crate::device::Precision;
use crate::models::control_net::{ControlNet, ControlNetConfig};
use crate::models::sparse_ctrl::{SparseCtrl, SparseCtrlConfig};
use crate::models::t2i_adapter::{T2iAdapter, T2iAdapterConfig};
use crate::models::unet::UNetConfig;
use crate::weights::{Checkpoint, Component, LoadReport, PatchStack, random, until};
use crate::{Error, Result, Stop};

/// A network that steers the UNet by hints: a ControlNet, a SparseCtrl network or a T2I-Adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlFile {
    /// What requests call it.
    pub name: String,
    /// Its file, in any layout, or its folder. Beside random weights the name of its kind: `controlnet`,
    /// `sparsectrl-rgb`, `sparsectrl-scribble`, `t2i-adapter` or `t2i-adapter-light`.
    pub source: Source,
}

/// A network beside the UNet.
#[derive(Clone, Debug)]
pub enum SideNetwork {
    /// Follows a hint in every frame.
    ControlNet(Box<ControlNet>),
    /// Follows hints for some frames.
    SparseCtrl(Box<SparseCtrl>),
    /// Makes features of its hint, once.
    T2iAdapter(Box<T2iAdapter>),
}

/// What a network beside the UNet is, with its sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum SideConfig {
    /// A ControlNet.
    ControlNet(ControlNetConfig),
    /// A SparseCtrl network.
    SparseCtrl(SparseCtrlConfig),
    /// A T2I-Adapter.
    T2iAdapter(T2iAdapterConfig),
}

impl SideConfig {
    /// What messages call it, with its article.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ControlNet(_) => "a ControlNet",
            Self::SparseCtrl(_) => "a SparseCtrl network",
            Self::T2iAdapter(_) => "a T2I-Adapter",
        }
    }

    /// The component whose weights it has.
    pub fn component(&self) -> Component {
        match self {
            Self::ControlNet(_) => Component::ControlNet,
            Self::SparseCtrl(_) => Component::SparseCtrl,
            Self::T2iAdapter(_) => Component::T2iAdapter,
        }
    }

    /// Whether its hints are latents of images.
    pub fn sees_latents(&self) -> bool {
        matches!(self, Self::SparseCtrl(config) if config.factor().is_none())
    }

    fn validate(&self) -> Result<()> {
        match self {
            Self::ControlNet(config) => config.validate(),
            Self::SparseCtrl(config) => config.validate(),
            Self::T2iAdapter(config) => config.validate(),
        }
    }

    /// The network of that kind beside a UNet, with the usual sizes.
    fn of_kind(kind: &str, unet: &UNetConfig) -> Option<Self> {
        let channels = unet.block_out_channels.clone();
        Some(match kind {
            "controlnet" => Self::ControlNet(ControlNetConfig::beside(unet)),
            "sparsectrl-rgb" => Self::SparseCtrl(SparseCtrlConfig::beside(unet)),
            "sparsectrl-scribble" => Self::SparseCtrl(SparseCtrlConfig::beside(unet).scribble()),
            "t2i-adapter" => {
                Self::T2iAdapter(T2iAdapterConfig { channels, ..T2iAdapterConfig::default() })
            }
            "t2i-adapter-light" => Self::T2iAdapter(T2iAdapterConfig::light()),
            _ => return None,
        })
    }

    /// The network of these sizes.
    pub(crate) fn build(&self, vb: &VarBuilder<'_>) -> Result<SideNetwork> {
        Ok(match self {
            Self::ControlNet(config) => {
                SideNetwork::ControlNet(Box::new(ControlNet::new(config, vb)?))
            }
            Self::SparseCtrl(config) => {
                SideNetwork::SparseCtrl(Box::new(SparseCtrl::new(config, vb)?))
            }
            Self::T2iAdapter(config) => {
                SideNetwork::T2iAdapter(Box::new(T2iAdapter::new(config, vb)?))
            }
        })
    }
}

const T2I_FITS: &str = "a T2I-Adapter fits the kind of model that it was trained beside";

/// An open network. Nothing is read until it is built.
#[derive(Debug)]
pub(super) struct OpenSideNetwork {
    pub(super) checkpoint: Checkpoint,
    pub(super) config: SideConfig,
    /// Shapes of its weights, where they are drawn and not in `checkpoint`.
    pub(super) drawn: Option<DrawnShapes>,
}

impl OpenSideNetwork {
    /// Opens a file beside a UNet, whose latents have `factor` pixels a side.
    ///
    /// # Errors
    ///
    /// When it is something else, or was made for another model.
    pub(super) fn open(file: &ControlFile, unet: &UNetConfig, factor: usize) -> Result<Self> {
        let mut checkpoint = Checkpoint::new();
        let component = checkpoint.add_control(&file.source)?;
        let shapes = Shapes { checkpoint: &checkpoint, component };
        let config = match component {
            Component::SparseCtrl => {
                let longest = checkpoint.stored_positions();
                let own: Option<SparseCtrlConfig> =
                    own_config(&file.source, "SparseControlNetModel")?;
                let config = own.map_or_else(|| sparse_ctrl(&shapes, unet, longest), Ok)?;
                SideConfig::SparseCtrl(config)
            }
            Component::T2iAdapter => {
                // Its shapes tell all that its configuration does.
                SideConfig::T2iAdapter(t2i_adapter(&shapes, factor, &file.name)?)
            }
            _ => {
                let own: Option<ControlNetConfig> = own_config(&file.source, "ControlNetModel")?;
                SideConfig::ControlNet(own.map_or_else(|| control_net(&shapes, unet), Ok)?)
            }
        };
        config.validate()?;
        if let Err(reason) = fits(&config, unet, factor) {
            let hint = match config {
                SideConfig::ControlNet(_) => {
                    "a ControlNet fits the kind of model that it was trained beside"
                }
                SideConfig::SparseCtrl(_) => {
                    "a SparseCtrl network fits the kind of model that it was trained beside"
                }
                SideConfig::T2iAdapter(_) => T2I_FITS,
            };
            let adapter = file.name.clone();
            return Err(Error::Adapter { adapter, reason }.with_hint(hint));
        }
        Ok(Self { checkpoint, config, drawn: None })
    }

    /// A network whose weights are drawn; the file's path is the name of its kind.
    pub(super) fn random(file: &ControlFile, unet: &UNetConfig, stop: &Stop) -> Result<Self> {
        let kind = file.source.path().to_string_lossy();
        let Some(config) = SideConfig::of_kind(&kind, unet) else {
            let reason = format!("`{kind}` is no kind of network with random weights");
            return Err(Error::request("control", reason).with_hint(
                "controlnet, sparsectrl-rgb, sparsectrl-scribble, t2i-adapter or t2i-adapter-light",
            ));
        };
        let shapes = random::inventory(|vb| config.build(&until(vb, stop)))?;
        let drawn = shapes.into_values().collect();
        Ok(Self { checkpoint: Checkpoint::new(), config, drawn: Some(drawn) })
    }

    pub(super) fn config(&self) -> &SideConfig {
        &self.config
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.checkpoint.archives().iter().map(|archive| archive.source().clone())
    }

    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        let Precision { unet: dtype, quantize, .. } = precision;
        match &self.drawn {
            Some(shapes) => super::bytes(shapes, dtype, quantize),
            None => super::stored(&self.checkpoint, self.config.component(), dtype, quantize),
        }
    }

    /// Fails unless the file holds the network that its configuration describes.
    pub(super) fn check(&self) -> Result<()> {
        match self.drawn {
            Some(_) => Ok(()),
            None => self.checkpoint.check(self.config.component(), |vb| self.config.build(&vb)),
        }
    }

    pub(super) fn build(
        &self,
        precision: Precision,
        device: &Device,
        stop: &Stop,
    ) -> Result<(SideNetwork, LoadReport)> {
        let component = self.config.component();
        let Precision { unet: dtype, quantize, .. } = precision;
        let build =
            |vb: VarBuilder<'static>| self.config.build(&until(vb, stop).quantized(quantize));
        match self.drawn {
            Some(_) => random::build(component, dtype, device, build),
            None => self.checkpoint.build(component, dtype, device, &PatchStack::new(), build),
        }
    }
}

/// What the network of a file beside a UNet is, whose latents have `factor` pixels a side, and its weights.
///
/// # Errors
///
/// When it is something else, or was made for another model.
pub(crate) fn open_side_network(
    file: &ControlFile,
    unet: &UNetConfig,
    factor: usize,
) -> Result<(SideConfig, Checkpoint)> {
    let open = OpenSideNetwork::open(file, unet, factor)?;
    open.check()?;
    Ok((open.config, open.checkpoint))
}

/// Whether a network belongs to a UNet whose latents have `factor` pixels a side; else why not.
fn fits(config: &SideConfig, unet: &UNetConfig, factor: usize) -> Result<(), String> {
    let shrinks = |own: Option<usize>| match own {
        Some(own) if own != factor => {
            Err(format!("shrinks hints to 1/{own}, the autoencoder images to 1/{factor}"))
        }
        _ => Ok(()),
    };
    let channels = |own: usize, wanted: usize, of: &str| {
        if own == wanted {
            return Ok(());
        }
        Err(format!("wants hints of {own} channels, {of} have {wanted}"))
    };
    match config {
        SideConfig::ControlNet(config) => {
            same_half("a ControlNet", &config.unet, unet)?;
            shrinks(Some(config.factor()))?;
            channels(config.conditioning_channels, 3, "pictures")
        }
        SideConfig::SparseCtrl(config) => {
            same_half("a SparseCtrl network", &config.unet, unet)?;
            shrinks(config.factor())?;
            match config.factor() {
                Some(_) => channels(config.conditioning_channels, 3, "pictures"),
                None => channels(config.conditioning_channels, unet.in_channels, "latents"),
            }
        }
        SideConfig::T2iAdapter(config) => {
            let (own, models) = (config.widths(), &unet.block_out_channels);
            if own != *models {
                return Err(format!(
                    "is a T2I-Adapter for stages of the widths {own:?}, the model has {models:?}"
                ));
            }
            shrinks(Some(config.downscale_factor))
        }
    }
}

/// Whether a network is the first half of a UNet of this size.
fn same_half(kind: &str, own: &UNetConfig, unet: &UNetConfig) -> Result<(), String> {
    let sizes = |config: &UNetConfig| {
        let UNetConfig { in_channels, block_out_channels, cross_attention_dim, .. } = config;
        format!(
            "{in_channels} channels in, widths {block_out_channels:?} and a context of \
             {cross_attention_dim}"
        )
    };
    let (ours, models) = (sizes(own), sizes(unet));
    if ours != models {
        return Err(format!("is {kind} for {ours}, the model has {models}"));
    }
    if own.layers_per_block != unet.layers_per_block {
        return Err(format!(
            "has {} layers a stage, the model {}",
            own.layers_per_block, unet.layers_per_block
        ));
    }
    Ok(())
}

/// The configuration in the folder, or beside the file, if it is that of a `class`.
fn own_config<T: Config>(source: &Source, class: &str) -> Result<Option<T>> {
    let Some(path) = configs::beside(source, "controlnet") else { return Ok(None) };
    let Some(json) = configs::json(&path)? else { return Ok(None) };
    let found = json.get("_class_name").and_then(serde_json::Value::as_str);
    if found == Some(class) { configs::part(&path, &json).map(Some) } else { Ok(None) }
}

/// What shapes tell of the first half of a UNet; the rest is the UNet's.
fn half(shapes: &Shapes<'_>, unet: &UNetConfig) -> Result<UNetConfig> {
    let stages = shapes.count("down_blocks", "resnets.0.conv1.weight");
    Ok(UNetConfig {
        in_channels: shapes.dim("conv_in.weight", 1)?,
        block_out_channels: (0..stages)
            .map(|i| shapes.dim(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0))
            .collect::<Result<_>>()?,
        layers_per_block: shapes.count("down_blocks.0.resnets", "conv1.weight"),
        cross_attention_dim: shapes
            .dim("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1)?,
        motion: None,
        ..unet.clone()
    })
}

/// The network that shrinks hints.
const HINT: &str = "controlnet_cond_embedding";

/// Its widths. Of every two layers the second goes to the next width.
fn hint_widths(shapes: &Shapes<'_>) -> Result<Vec<usize>> {
    let mut widths = vec![shapes.dim(&format!("{HINT}.conv_in.weight"), 0)?];
    for block in (1..shapes.count(&format!("{HINT}.blocks"), "weight")).step_by(2) {
        widths.push(shapes.dim(&format!("{HINT}.blocks.{block}.weight"), 0)?);
    }
    Ok(widths)
}

fn control_net(shapes: &Shapes<'_>, unet: &UNetConfig) -> Result<ControlNetConfig> {
    Ok(ControlNetConfig {
        conditioning_channels: shapes.dim(&format!("{HINT}.conv_in.weight"), 1)?,
        conditioning_embedding_out_channels: hint_widths(shapes)?,
        unet: half(shapes, unet)?,
        ..ControlNetConfig::beside(unet)
    })
}

fn sparse_ctrl(
    shapes: &Shapes<'_>,
    unet: &UNetConfig,
    longest: Option<usize>,
) -> Result<SparseCtrlConfig> {
    let usual = SparseCtrlConfig::beside(unet);
    // The last channel is the mask.
    let without_mask = |name: &str| {
        let channels = shapes.dim(&format!("{HINT}.{name}"), 1)?;
        Ok::<_, Error>(channels.saturating_sub(1))
    };
    let of_latents = without_mask("weight");
    Ok(SparseCtrlConfig {
        use_simplified_condition_embedding: of_latents.is_ok(),
        conditioning_embedding_out_channels: match of_latents {
            Ok(_) => usual.conditioning_embedding_out_channels.clone(),
            Err(_) => hint_widths(shapes)?,
        },
        conditioning_channels: of_latents.or_else(|_| without_mask("conv_in.weight"))?,
        motion_max_seq_length: longest.unwrap_or(usual.motion_max_seq_length),
        unet: half(shapes, unet)?,
        ..usual
    })
}

/// `name` is what messages call the file.
fn t2i_adapter(shapes: &Shapes<'_>, factor: usize, name: &str) -> Result<T2iAdapterConfig> {
    let body = "adapter.body";
    let light = shapes.count(body, "out_conv.weight");
    let layers = shapes.count(&format!("{body}.0.resnets"), "block1.weight");
    let (inputs, mut channels) = if light > 0 {
        let inputs = shapes.dim(&format!("{body}.0.in_conv.weight"), 1)?;
        let widths = (0..light).map(|i| shapes.dim(&format!("{body}.{i}.out_conv.weight"), 0));
        (inputs, widths.collect::<Result<Vec<_>>>()?)
    } else {
        let stages = shapes.count(body, "resnets.0.block1.weight");
        let width = |i| shapes.dim(&format!("{body}.{i}.resnets.0.block1.weight"), 0);
        let inputs = shapes.dim("adapter.conv_in.weight", 1)?;
        (inputs, (0..stages).map(width).collect::<Result<Vec<_>>>()?)
    };
    if light > 0 {
        // The last stage's width is that of the one before it.
        channels.pop();
    }
    let pixels = factor * factor;
    if !inputs.is_multiple_of(pixels) || ![1, 3].contains(&(inputs / pixels)) {
        let reason =
            format!("{inputs} channels are not those of {factor}x{factor} grey or coloured pixels");
        return Err(Error::Adapter { adapter: name.to_owned(), reason }.with_hint(T2I_FITS));
    }
    let config = T2iAdapterConfig {
        in_channels: inputs / pixels,
        channels,
        num_res_blocks: layers,
        downscale_factor: factor,
        ..T2iAdapterConfig::default()
    };
    Ok(if light > 0 { config.lighter() } else { config })
}
