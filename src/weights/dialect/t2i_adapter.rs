//! T2I-Adapters under the names of TencentARC and of diffusers.

use super::{Dialect, Mapped, Mapper, Names, number};
use crate::weights::Component;

/// `T2IAdapter` of diffusers.
pub(super) const DIFFUSERS: Dialect = Dialect {
    name: "diffusers T2I-Adapter",
    detect: |names| names.has_prefix("adapter.body."),
    mapper: |_| {
        Box::new(|name| match name.strip_prefix("adapter.").and_then(|n| n.split('.').next()) {
            Some("conv_in" | "body") => Mapped::keep(Component::T2iAdapter, name),
            _ => Mapped::Unknown,
        })
    },
};

/// `Adapter` and `Adapter_light` of TencentARC/T2I-Adapter.
pub(super) const ORIGINAL: Dialect =
    Dialect { name: "T2I-Adapter", detect: is_original, mapper: original };

fn is_original(names: &Names) -> bool {
    names.has("body.0.block1.weight")
        || (names.has("body.0.in_conv.weight") && names.has("body.0.out_conv.weight"))
}

/// Returns whether these are the names of a T2I-Adapter.
pub(super) fn is_t2i_adapter(names: &Names) -> bool {
    names.has_prefix("adapter.body.") || is_original(names)
}

/// Number of input channels of the first layer.
pub(super) fn first_layer(names: &Names) -> Option<usize> {
    let first = ["adapter.conv_in.weight", "conv_in.weight"];
    let light = ["adapter.body.0.in_conv.weight", "body.0.in_conv.weight"];
    let shape = first.iter().chain(&light).find_map(|name| names.shape(name))?;
    shape.get(1).copied()
}

/// Translation for TencentARC's names. A light adapter numbers its layers within each stage, a full one across all
/// stages; the number of layers per stage is derived from the first layer that changes the width.
fn original(names: &Names) -> Mapper {
    let is_light = names.has("body.0.out_conv.weight");
    let blocks = || names.starting_with("body.").filter_map(number);
    let widening = blocks().filter(|(i, tail)| *i > 0 && tail.starts_with("in_conv."));
    let count = blocks().map(|(i, _)| i + 1).max().unwrap_or(0);
    let layers = widening.map(|(i, _)| i).min().unwrap_or(count / 4).max(1);
    Box::new(move |name| match canonical(name, is_light, layers) {
        Some(name) => Mapped::keep(Component::T2iAdapter, name),
        None => Mapped::Unknown,
    })
}

fn canonical(name: &str, is_light: bool, layers: usize) -> Option<String> {
    if name.starts_with("conv_in.") {
        return Some(format!("adapter.{name}"));
    }
    let (block, tail) = number(name.strip_prefix("body.")?)?;
    let (head, rest) = tail.split_once('.')?;
    match head {
        "in_conv" | "out_conv" if is_light => Some(format!("adapter.body.{block}.{tail}")),
        "body" if is_light => Some(format!("adapter.body.{block}.resnets.{rest}")),
        "in_conv" if block % layers == 0 => Some(format!("adapter.body.{}.{tail}", block / layers)),
        "block1" | "block2" if !is_light => {
            let (stage, layer) = (block / layers, block % layers);
            Some(format!("adapter.body.{stage}.resnets.{layer}.{tail}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_adapters_are_where_everybody_knows_them() {
        for (theirs, ours) in [
            ("conv_in.weight", "adapter.conv_in.weight"),
            ("body.0.block1.weight", "adapter.body.0.resnets.0.block1.weight"),
            ("body.2.in_conv.bias", "adapter.body.1.in_conv.bias"),
            ("body.7.block2.bias", "adapter.body.3.resnets.1.block2.bias"),
        ] {
            assert_eq!(canonical(theirs, false, 2).as_deref(), Some(ours), "{theirs}");
        }
        for (theirs, ours) in [
            ("body.0.in_conv.weight", "adapter.body.0.in_conv.weight"),
            ("body.3.body.2.block1.weight", "adapter.body.3.resnets.2.block1.weight"),
            ("body.3.out_conv.bias", "adapter.body.3.out_conv.bias"),
        ] {
            assert_eq!(canonical(theirs, true, 1).as_deref(), Some(ours), "{theirs}");
        }
        for unknown in ["body.3.in_conv.bias", "body.2.down_opt.op.weight", "body.0.skep.weight"] {
            assert_eq!(canonical(unknown, false, 2), None, "{unknown}");
        }
    }
}
