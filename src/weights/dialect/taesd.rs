//! TAESD under its author's names, where layers are numbered and the decoder's first one, which clamps, counts.
//!
//! <https://github.com/madebyollin/taesd>; ComfyUI's `vae_approx` has the same files. Encoder and decoder usually are
//! files of their own without a prefix.

use super::{Dialect, Mapped, Mapper, Names, number};
use crate::weights::Component;

/// `taesd_encoder` and `taesd_decoder` of madebyollin/taesd, and both in one file.
pub(super) const ORIGINAL: Dialect = Dialect {
    name: "TAESD",
    detect: |names| HALVES.iter().any(|(prefix, half)| half.is_in(names, prefix)),
    mapper,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Encoder,
    Decoder,
}

/// The prefixes that a half's names may have.
const HALVES: [(&str, Half); 6] = [
    ("taesd_encoder.", Half::Encoder),
    ("taesd_decoder.", Half::Decoder),
    ("encoder.", Half::Encoder),
    ("decoder.", Half::Decoder),
    ("", Half::Encoder),
    ("", Half::Decoder),
];

impl Half {
    /// Returns whether the first convolution and the first block of this half are there: layers 0 and 1 of an encoder,
    /// 1 and 3 of a decoder.
    fn is_in(self, names: &Names, prefix: &str) -> bool {
        let (first, block) = match self {
            Self::Encoder => (0, 1),
            Self::Decoder => (1, 3),
        };
        let is_first = names.shape(&format!("{prefix}{first}.weight")).is_some_and(|shape| {
            shape.len() == 4 && (self == Self::Decoder || shape.get(1) == Some(&3))
        });
        let has_block = |i: usize| names.has(&format!("{prefix}{block}.conv.{i}.weight"));
        is_first && [0, 2, 4].into_iter().all(has_block)
    }
}

fn mapper(names: &Names) -> Mapper {
    let bare = HALVES.into_iter().find(|(prefix, half)| prefix.is_empty() && half.is_in(names, ""));
    let bare = bare.map(|(_, half)| half);
    Box::new(move |name| match canonical(name, bare) {
        Some(name) => Mapped::keep(Component::Vae, name),
        None => Mapped::Unknown,
    })
}

/// The canonical name of a layer's weight; names without a prefix are those of the `bare` half.
fn canonical(name: &str, bare: Option<Half>) -> Option<String> {
    let prefixed = HALVES.iter().filter(|(prefix, _)| !prefix.is_empty());
    let mut named = prefixed.filter_map(|(prefix, half)| Some((*half, name.strip_prefix(prefix)?)));
    let (half, rest) = named.next().or_else(|| Some((bare?, name)))?;
    let (layer, rest) = number(rest)?;
    Some(match half {
        Half::Encoder => format!("encoder.layers.{layer}.{rest}"),
        Half::Decoder => format!("decoder.layers.{}.{rest}", layer.checked_sub(1)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbered_from_the_first_one_with_weights() {
        let encoder = |name| canonical(name, Some(Half::Encoder));
        assert_eq!(encoder("0.weight").as_deref(), Some("encoder.layers.0.weight"));
        assert_eq!(encoder("5.conv.4.bias").as_deref(), Some("encoder.layers.5.conv.4.bias"));
        let decoder = |name| canonical(name, Some(Half::Decoder));
        assert_eq!(decoder("1.weight").as_deref(), Some("decoder.layers.0.weight"));
        assert_eq!(decoder("18.conv.0.bias").as_deref(), Some("decoder.layers.17.conv.0.bias"));
        assert_eq!(decoder("0.weight"), None);
        let both = |name| canonical(name, None);
        assert_eq!(both("taesd_decoder.7.weight").as_deref(), Some("decoder.layers.6.weight"));
        assert_eq!(both("encoder.2.weight").as_deref(), Some("encoder.layers.2.weight"));
        assert_eq!(both("7.weight"), None);
        assert_eq!(both("vae_scale"), None);
    }

    #[test]
    fn halves_are_known_by_their_first_layers() {
        let names = |conv: &str, channels, block: usize| -> Names {
            let blocks = [0, 2, 4].map(|i| (format!("{block}.conv.{i}.weight"), vec![6, 6, 3, 3]));
            let first = (conv.to_owned(), vec![6, channels, 3, 3]);
            blocks.into_iter().chain([first]).collect()
        };
        assert!((ORIGINAL.detect)(&names("0.weight", 3, 1)));
        assert!((ORIGINAL.detect)(&names("1.weight", 4, 3)));
        assert!(!(ORIGINAL.detect)(&names("0.weight", 4, 1)), "an encoder sees colours");
        assert!(!(ORIGINAL.detect)(&names("1.weight", 4, 1)));
    }
}
