//! Foreign names to canonical ones: the only code that knows how other programs call weights.
//!
//! Canonical names are those of diffusers' SD1.5 folders, with motion modules where `UNetMotionModel`
//! puts them (`down_blocks.0.motion_modules.1.transformer_blocks.0.attn1.to_q.weight`) and the text
//! encoder under `text_model.`. A [`Dialect`] is chosen by the names in a file, once, when the file is
//! opened; every name in it then becomes a [`Mapped`].

mod animatediff;
mod diffusers;
mod foreign;
mod ip_adapter;
mod ldm;
mod t2i_adapter;

use std::collections::BTreeMap;

pub(crate) use self::animatediff::canonical as canonical_motion_name;
pub(super) use self::animatediff::{POSITION_TOLERANCE, position};
pub(super) use self::foreign::{Foreign, misfit, recognise, recognise_in_lora};
pub(crate) use self::ldm::unet_module as ldm_unet_module;
use super::Component;

/// One way in which people name weights.
pub(super) struct Dialect {
    /// What messages call it.
    pub(super) name: &'static str,
    /// Whether a file with these names speaks it. The first that says yes is taken.
    pub(super) detect: fn(&Names) -> bool,
    /// Reads from all the names what one name alone does not tell, and returns the translation.
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
    ldm::BARE_VAE,
    diffusers::CLIP,
    diffusers::TEXT,
    ip_adapter::PUBLISHED,
];

/// What a stored name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mapped {
    /// A weight of a component.
    To {
        /// Whose weight it is.
        component: Component,
        /// Its canonical name.
        name: String,
        /// What it needs beside the new name.
        transform: Transform,
    },
    /// A table of sinusoidal positions: computed here, so it is compared and then not used.
    Positions,
    /// Known and deliberately unused.
    Ignored {
        /// Why.
        why: &'static str,
    },
    /// Not a name of this dialect, but in the place of a component.
    UnknownIn(Component),
    /// Not a name of this dialect.
    Unknown,
}

impl Mapped {
    fn keep(component: Component, name: impl Into<String>) -> Self {
        Self::To { component, name: name.into(), transform: Transform::Keep }
    }
}

/// What a tensor needs beside a new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    /// Nothing.
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
    /// Whether the file has exactly this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether any name begins so.
    pub(super) fn has_prefix(&self, prefix: &str) -> bool {
        self.starting_with(prefix).next().is_some()
    }

    /// Whether any name contains this.
    pub(super) fn any_contains(&self, part: &str) -> bool {
        self.0.keys().any(|name| name.contains(part))
    }

    /// The names that begin so, without that beginning.
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

/// The VAE's four matrices of attention under any of the names that they have had.
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
