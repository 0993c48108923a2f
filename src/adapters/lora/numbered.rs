//! Modules without names (`unet:0:up`), as written by cloneofsimo's `lora`, the first LoRAs for images.
//!
//! A module's number is its index among the layers found by the trainer. The trainer traversed the blocks of the
//! classes listed in the file's header, in the order in which diffusers and transformers had created them, and the
//! layers of each (`_find_modules_v2` in cloneofsimo/lora, `lora_diffusion/lora.py`). That is not the order of names.
//! diffusers changed it in 2023, when the feed-forward network was moved after the second attention; the order of a
//! file is derived from the shapes.

use std::collections::BTreeMap;

use crate::weights::{Archive, Checkpoint, Component, quoted};

/// Parses the component and the number of a module's name.
pub(super) fn number(module: &str) -> Option<(Component, usize)> {
    let (component, number) = module.split_once(':')?;
    let component = match component {
        "unet" => Component::UNet,
        "text_encoder" => Component::Text,
        _ => return None,
    };
    // In Python's notation, so that no two names map to one module.
    let parsed = number.parse::<usize>().ok().filter(|parsed| parsed.to_string() == number)?;
    Some((component, parsed))
}

/// Names of the tensors of a file that is a list, as a safetensors file would have them; the list alternates between up
/// and down of each module. The component is given only by the name of the file.
pub(super) fn listed(archive: &Archive) -> BTreeMap<&str, String> {
    let numbers = archive.names().map(|name| Some((name, name.parse::<usize>().ok()?)));
    let Some(numbers) = numbers.collect::<Option<Vec<_>>>() else { return BTreeMap::new() };
    let stem = archive.path().file_stem().unwrap_or_default().to_string_lossy();
    let component = if stem.ends_with("text_encoder") { "text_encoder" } else { "unet" };
    let name = |number: usize| {
        let part = if number.is_multiple_of(2) { "up" } else { "down" };
        format!("{component}:{}:{part}", number / 2)
    };
    numbers.into_iter().map(|(stored, number)| (stored, name(number))).collect()
}

/// Returns whether a tensor is a textual inversion: the header marks it with `<embed>`.
pub(super) fn is_word(archive: &Archive, stored: &str) -> bool {
    archive.metadata().get(stored).is_some_and(|flag| flag == "<embed>")
}

/// Creation orders of a network's layers.
const ORDERS: [Order; 4] = [
    Order { mid_is_last: true, feed_forward_is_last: false },
    Order { mid_is_last: true, feed_forward_is_last: true },
    Order { mid_is_last: false, feed_forward_is_last: false },
    Order { mid_is_last: false, feed_forward_is_last: true },
];

/// Traversal order of the UNet's layers, by which modules without names are numbered.
#[derive(Clone, Copy, Debug)]
struct Order {
    /// Whether the middle block is numbered after the up blocks.
    mid_is_last: bool,
    /// Whether the feed-forward network is numbered after both attentions rather than between them.
    feed_forward_is_last: bool,
}

/// The weights of the numbered modules of a file.
#[derive(Debug, Default)]
pub(super) struct Numbered {
    weights: BTreeMap<Component, Vec<String>>,
}

impl Numbered {
    /// Finds the layer order in which all modules fit; the first one if there is none.
    ///
    /// `fits` returns whether the module with a number fits a weight.
    ///
    /// # Errors
    ///
    /// A header that lists unknown classes of blocks.
    pub(super) fn new(
        archive: &Archive,
        checkpoint: &Checkpoint,
        modules: &BTreeMap<Component, Vec<usize>>,
        fits: impl Fn(Component, usize, &str) -> bool,
    ) -> Result<Self, String> {
        let mut weights = BTreeMap::new();
        for (component, numbers) in modules {
            let classes = classes(archive, *component)?;
            let mut orders = match component {
                Component::Text => vec![text_layers(checkpoint, &classes)],
                _ => ORDERS.iter().map(|order| order.layers(checkpoint, &classes)).collect(),
            };
            let fit = orders.iter().position(|order| {
                let fits = |number: &usize| {
                    order.get(*number).is_some_and(|weight| fits(*component, *number, weight))
                };
                numbers.iter().all(fits)
            });
            weights.insert(*component, orders.swap_remove(fit.unwrap_or(0)));
        }
        Ok(Self { weights })
    }

    /// The component and canonical name of a module's weight.
    pub(super) fn find(&self, module: &str) -> Option<(Component, &str)> {
        let (component, number) = number(module)?;
        Some((component, self.weights.get(&component)?.get(number)?.as_str()))
    }
}

/// Classes of blocks whose layers have modules.
#[derive(Debug, Default)]
struct Classes {
    attentions: bool,
    feed_forward: bool,
    resnets: bool,
}

/// The classes listed in the header for a component, or the defaults.
fn classes(archive: &Archive, component: Component) -> Result<Classes, String> {
    let key = if component == Component::Text { "text_encoder" } else { "unet" };
    let Some(listed) = archive.metadata().get(key) else {
        return Ok(Classes {
            attentions: true,
            feed_forward: component == Component::UNet,
            resnets: false,
        });
    };
    let listed: Vec<String> = serde_json::from_str(listed)
        .map_err(|_| format!("its header has no list of classes under {}", quoted(key)))?;
    let mut classes = Classes::default();
    for class in &listed {
        match (component, class.as_str()) {
            (Component::UNet, "CrossAttention" | "Attention")
            | (Component::Text, "CLIPAttention") => classes.attentions = true,
            (Component::UNet, "GEGLU") | (Component::Text, "CLIPMLP") => {
                classes.feed_forward = true;
            }
            (Component::UNet, "ResnetBlock2D") => classes.resnets = true,
            _ => {
                return Err(format!(
                    "numbers its modules by blocks of the class {}, whose order is not known",
                    quoted(class)
                ));
            }
        }
    }
    Ok(classes)
}

/// The layers of transformers' text encoder. Its attention creates keys and values before queries.
fn text_layers(checkpoint: &Checkpoint, classes: &Classes) -> Vec<String> {
    let has = |name: &str| checkpoint.shape_of(Component::Text, name).is_some();
    let mut names = Vec::new();
    for layer in 0.. {
        let layer = format!("text_model.encoder.layers.{layer}");
        if !has(&format!("{layer}.self_attn.k_proj.weight")) {
            return names;
        }
        if classes.attentions {
            let parts = ["k_proj", "v_proj", "q_proj", "out_proj"];
            names.extend(parts.map(|part| format!("{layer}.self_attn.{part}.weight")));
        }
        if classes.feed_forward {
            names.extend(["fc1", "fc2"].map(|part| format!("{layer}.mlp.{part}.weight")));
        }
    }
    names
}

impl Order {
    /// The layers of diffusers' UNet.
    fn layers(self, checkpoint: &Checkpoint, classes: &Classes) -> Vec<String> {
        let has = |name: &str| checkpoint.shape_of(Component::UNet, name).is_some();
        let mut names = Vec::new();
        let mut sides = vec!["down_blocks.", "mid_block", "up_blocks."];
        if self.mid_is_last {
            sides.swap(1, 2);
        }
        for side in sides {
            for number in 0.. {
                let block = match side.strip_suffix('.') {
                    Some(_) => format!("{side}{number}"),
                    None => side.to_owned(),
                };
                if !has(&format!("{block}.resnets.0.conv1.weight")) {
                    break;
                }
                self.block(&block, classes, &has, &mut names);
                if block == side {
                    break;
                }
            }
        }
        names
    }

    /// The layers of a block: attentions are created before residual blocks.
    fn block(
        self,
        block: &str,
        classes: &Classes,
        has: &impl Fn(&str) -> bool,
        names: &mut Vec<String>,
    ) {
        for attention in 0.. {
            let inner = format!("{block}.attentions.{attention}.transformer_blocks");
            if !has(&format!("{inner}.0.attn1.to_q.weight")) {
                break;
            }
            let blocks = (0..).map(|number| format!("{inner}.{number}"));
            for inner in blocks.take_while(|inner| has(&format!("{inner}.attn1.to_q.weight"))) {
                let attention = |name: &str| {
                    let parts = ["to_q", "to_k", "to_v", "to_out.0"];
                    parts.map(|part| format!("{inner}.{name}.{part}.weight"))
                };
                let feed_forward =
                    classes.feed_forward.then(|| format!("{inner}.ff.net.0.proj.weight"));
                let (mut between, mut last) = (feed_forward, None);
                if self.feed_forward_is_last {
                    std::mem::swap(&mut between, &mut last);
                }
                if classes.attentions {
                    names.extend(attention("attn1"));
                }
                names.extend(between);
                if classes.attentions {
                    names.extend(attention("attn2"));
                }
                names.extend(last);
            }
        }
        if classes.resnets {
            let blocks = (0..).map(|number| format!("{block}.resnets.{number}"));
            for resnet in blocks.take_while(|resnet| has(&format!("{resnet}.conv1.weight"))) {
                let parts = ["conv1", "time_emb_proj", "conv2", "conv_shortcut"];
                let parts = parts.map(|part| format!("{resnet}.{part}.weight"));
                names.extend(parts.into_iter().filter(|name| has(name)));
            }
        }
    }
}
