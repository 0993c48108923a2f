//! Translation of other programs' tensor names to canonical ones.
//!
//! Canonical names are those of diffusers' SD 1.5 folders, with motion modules where `UNetMotionModel` puts them
//! (`down_blocks.0.motion_modules.1.transformer_blocks.0.attn1.to_q.weight`) and the text encoder under `text_model.`.
//! A [`Dialect`] is detected once per file from its tensor names; every name is then translated to a [`Mapped`].

mod animatediff;
mod diffusers;
mod foreign;
mod ip_adapter;
mod ldm;
mod t2i_adapter;
mod taesd;

use std::collections::BTreeMap;

pub(crate) use self::animatediff::canonical as canonical_motion_name;
pub(super) use self::animatediff::{POSITION_TOLERANCE, position};
pub(super) use self::foreign::{Foreign, misfit, recognise, recognise_in_lora};
pub(crate) use self::ldm::unet_module as ldm_unet_module;
use super::Component;

/// A naming scheme of weights.
pub(super) struct Dialect {
    /// The name used in messages.
    pub(super) name: &'static str,
    /// Returns whether a file with these names uses the dialect. The first matching dialect is used.
    pub(super) detect: fn(&Names) -> bool,
    /// Returns the translation for a file; depends on all names, where a single name is ambiguous.
    pub(super) mapper: fn(&Names) -> Mapper,
}

/// Translates one stored name.
pub(super) type Mapper = Box<dyn Fn(&str) -> Mapped>;

/// All dialects, in the order in which they are tried.
pub(super) const DIALECTS: &[Dialect] = &[
    ldm::CONTROL_NET,
    animatediff::SPARSE_CTRL,
    diffusers::CONTROL_NET,
    t2i_adapter::DIFFUSERS,
    t2i_adapter::ORIGINAL,
    ldm::CHECKPOINT,
    animatediff::ORIGINAL,
    diffusers::UNET,
    diffusers::MOTION_ADAPTER,
    diffusers::VAE,
    diffusers::TINY_VAE,
    taesd::ORIGINAL,
    ldm::BARE_VAE,
    diffusers::CLIP,
    diffusers::TEXT,
    ip_adapter::PUBLISHED,
];

/// Translation of a stored name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mapped {
    /// A weight of a component.
    To {
        /// The component of the weight.
        component: Component,
        /// The canonical name of the weight.
        name: String,
        /// The transform of the tensor.
        transform: Transform,
    },
    /// A sinusoidal position table: compared with the computed one and then not used.
    Positions,
    /// A recognized tensor that is deliberately unused.
    Ignored {
        /// The reason it is not used.
        why: &'static str,
    },
    /// A name unknown to this dialect, under the prefix of a component.
    UnknownIn(Component),
    /// A name unknown to this dialect.
    Unknown,
}

impl Mapped {
    fn keep(component: Component, name: impl Into<String>) -> Self {
        Self::To { component, name: name.into(), transform: Transform::Keep }
    }
}

/// A change of a tensor's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    /// No change.
    Keep,
    /// A 1x1 convolution `(out, in, 1, 1)` becomes a linear layer `(out, in)`.
    Squeeze,
}

impl Transform {
    /// The shape after the transform.
    pub(super) fn shape(self, stored: &[usize]) -> Vec<usize> {
        match (self, stored) {
            (Self::Squeeze, [out, input, 1, 1]) => vec![*out, *input],
            _ => stored.to_vec(),
        }
    }
}

/// The names and shapes in a file.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, Vec<usize>>);

impl Names {
    /// Returns whether the file has exactly this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns whether any name starts with `prefix`.
    pub(super) fn has_prefix(&self, prefix: &str) -> bool {
        self.starting_with(prefix).next().is_some()
    }

    /// Returns whether any name contains `part`.
    pub(super) fn any_contains(&self, part: &str) -> bool {
        self.0.keys().any(|name| name.contains(part))
    }

    /// The names that start with `prefix`, with the prefix removed.
    pub(super) fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .map_while(move |(name, _)| name.strip_prefix(prefix))
    }

    /// The shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// All names with their shapes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.0.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }
}

impl<N: Into<String>, S: Into<Vec<usize>>> FromIterator<(N, S)> for Names {
    fn from_iter<I: IntoIterator<Item = (N, S)>>(names: I) -> Self {
        Self(names.into_iter().map(|(name, shape)| (name.into(), shape.into())).collect())
    }
}

/// The canonical name of one of the four linear layers of the VAE's attention, for any of its known names.
fn vae_attention(layer: &str) -> Option<&'static str> {
    Some(match layer {
        "q" | "query" | "to_q" => "to_q",
        "k" | "key" | "to_k" => "to_k",
        "v" | "value" | "to_v" => "to_v",
        "proj_out" | "proj_attn" | "to_out.0" | "to_out" => "to_out.0",
        _ => return None,
    })
}

/// Splits `12.rest` into `(12, "rest")`.
fn number(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_looked_up_as_prefixes() {
        let names: Names =
            ["a.b", "a.c", "ab", "b"].into_iter().map(|name| (name, vec![])).collect();
        assert_eq!(names.starting_with("a.").collect::<Vec<_>>(), ["b", "c"]);
        assert!(names.has_prefix("ab"));
        assert!(!names.has_prefix("c"));
    }

    #[test]
    fn dialects_have_distinct_names() {
        let mut names: Vec<_> = DIALECTS.iter().map(|dialect| dialect.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DIALECTS.len());
    }
}
