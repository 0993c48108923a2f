//! Per-block strength factors of the UNet, as in A1111's extension LoRA Block Weight (`lbw=`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::weights::Component;
use crate::{Error, Result};

/// Number of blocks on the input path and on the output path.
const PATH: usize = 12;

/// Number of factors: text encoder, input blocks, middle block, output blocks.
const ALL: usize = 2 + 2 * PATH;

/// Indices among [`ALL`] of the blocks with attention, the ones changed by an attention LoRA: BASE, IN01 IN02 IN04 IN05
/// IN07 IN08, M00, OUT03 to OUT11.
const ATTENDING: [usize; 17] = [0, 2, 3, 5, 6, 8, 9, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25];

/// Presets of the extension, with factors for [`ATTENDING`].
const PRESETS: [(&str, [f64; 17]); 10] = {
    const fn from(text: &[u8; 17]) -> [f64; 17] {
        let mut factors = [0.0; 17];
        let mut i = 0;
        while i < 17 {
            factors[i] = if text[i] == b'1' { 1.0 } else { 0.0 };
            i += 1;
        }
        factors
    }
    [
        ("NONE", from(b"00000000000000000")),
        ("ALL", from(b"11111111111111111")),
        ("INS", from(b"11110000000000000")),
        ("IND", from(b"10001110000000000")),
        ("INALL", from(b"11111110000000000")),
        ("MIDD", from(b"10001111111100000")),
        ("OUTD", from(b"10000000111100000")),
        ("OUTS", from(b"10000000000011111")),
        ("OUTALL", from(b"10000000111111111")),
        ("ALL0.5", [0.5; 17]),
    ]
};

/// A strength factor per block; weights outside of all blocks, such as the time embedding, have factor 1.
///
/// Written as 26 numbers, as 17 numbers for the blocks with attention (the others are 0), or as the name of a preset.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockFactors([f64; ALL]);

impl BlockFactors {
    /// The factor of a weight by its canonical name; `layers` is the number of residual blocks per level of the down
    /// path.
    ///
    /// # Errors
    ///
    /// A weight of a block beyond the last factor.
    pub(super) fn of(&self, component: Component, name: &str, layers: usize) -> Result<f64> {
        let place = match component {
            Component::Text => Some(0),
            _ => block(name, layers),
        };
        let Some(place) = place else { return Ok(1.0) };
        self.0.get(place).copied().ok_or_else(|| {
            Error::request("lora", format!("lbw has no factor for `{name}`: the model is too deep"))
        })
    }
}

/// Index of a UNet weight's block among [`ALL`]; [`ALL`] itself if the block is beyond the last factor.
fn block(name: &str, layers: usize) -> Option<usize> {
    let numbers = |path: &str| {
        let mut parts = name.strip_prefix(path)?.split('.');
        let level: usize = parts.next()?.parse().ok()?;
        let kind = parts.next()?;
        Some((level, kind, parts.next()?.parse::<usize>().ok()?))
    };
    let on_path = |index: usize| if index < PATH { index + 1 } else { ALL };
    if let Some((level, kind, layer)) = numbers("down_blocks.") {
        let layer = if kind == "downsamplers" { layers } else { layer };
        return Some(on_path(level * (layers + 1) + layer + 1));
    }
    if let Some((level, kind, layer)) = numbers("up_blocks.") {
        let layer = if kind == "upsamplers" { layers } else { layer };
        let index = on_path(level * (layers + 1) + layer);
        return Some(if index < ALL { index + 1 + PATH } else { ALL });
    }
    match name {
        _ if name.starts_with("mid_block.") => Some(1 + PATH),
        _ if name.starts_with("conv_in.") => Some(1),
        _ => None,
    }
}

impl FromStr for BlockFactors {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let known = PRESETS.map(|(name, _)| name).join(", ");
            let reason = format!("`lbw={text}` is neither 17 nor 26 numbers nor one of {known}");
            Error::request("lora", reason)
        };
        let of_17 = |factors: &[f64]| {
            let mut all = [0.0; ALL];
            for (place, factor) in ATTENDING.into_iter().zip(factors) {
                if let Some(slot) = all.get_mut(place) {
                    *slot = *factor;
                }
            }
            Self(all)
        };
        let name = text.trim();
        let mut presets = PRESETS.iter();
        if let Some((_, factors)) = presets.find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            return Ok(of_17(factors));
        }
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|f| f.is_finite());
        let numbers: Vec<f64> =
            text.split(',').take(ALL + 1).map(number).collect::<Option<_>>().ok_or_else(wrong)?;
        match <[f64; ALL]>::try_from(numbers) {
            Ok(all) => Ok(Self(all)),
            Err(few) if few.len() == ATTENDING.len() => Ok(of_17(&few)),
            Err(_) => Err(wrong()),
        }
    }
}

impl fmt::Display for BlockFactors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

impl TryFrom<String> for BlockFactors {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BlockFactors> for String {
    fn from(factors: BlockFactors) -> Self {
        factors.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The extension's name of a weight's block.
    fn named(name: &str) -> String {
        match block(name, 2) {
            None => "-".into(),
            Some(0) => "BASE".into(),
            Some(i @ 1..=12) => format!("IN{:02}", i - 1),
            Some(13) => "M00".into(),
            Some(i @ 14..=25) => format!("OUT{:02}", i - 14),
            Some(_) => "beyond".into(),
        }
    }

    #[test]
    fn weights_are_in_the_blocks_of_the_original_layout() {
        for (name, block) in [
            ("conv_in.weight", "IN00"),
            ("down_blocks.0.resnets.0.conv1.weight", "IN01"),
            ("down_blocks.0.attentions.1.proj_in.weight", "IN02"),
            ("down_blocks.0.downsamplers.0.conv.weight", "IN03"),
            ("down_blocks.1.attentions.0.proj_in.weight", "IN04"),
            ("down_blocks.1.motion_modules.1.proj_in.weight", "IN05"),
            ("down_blocks.2.attentions.1.proj_in.weight", "IN08"),
            ("down_blocks.3.resnets.1.conv2.weight", "IN11"),
            ("mid_block.attentions.0.proj_in.weight", "M00"),
            ("up_blocks.0.resnets.0.conv1.weight", "OUT00"),
            ("up_blocks.0.upsamplers.0.conv.weight", "OUT02"),
            ("up_blocks.1.attentions.0.proj_in.weight", "OUT03"),
            ("up_blocks.2.attentions.2.proj_in.weight", "OUT08"),
            ("up_blocks.3.attentions.2.proj_in.weight", "OUT11"),
            ("up_blocks.4.resnets.0.conv1.weight", "beyond"),
            ("down_blocks.4.resnets.0.conv1.weight", "beyond"),
            ("time_embedding.linear_1.weight", "-"),
            ("conv_out.weight", "-"),
        ] {
            assert_eq!(named(name), block, "{name}");
        }
    }

    #[test]
    fn seventeen_numbers_are_those_of_blocks_with_attention() {
        let text = (0..17).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        let factors: BlockFactors = text.parse().unwrap();
        let of = |component, name| factors.of(component, name, 2).unwrap();
        assert_eq!(of(Component::Text, "text_model.x.weight"), 0.0);
        assert_eq!(of(Component::UNet, "down_blocks.0.attentions.0.x"), 1.0);
        assert_eq!(of(Component::UNet, "down_blocks.2.attentions.1.x"), 6.0);
        assert_eq!(of(Component::UNet, "mid_block.attentions.0.x"), 7.0);
        assert_eq!(of(Component::UNet, "up_blocks.1.attentions.0.x"), 8.0);
        assert_eq!(of(Component::UNet, "up_blocks.3.attentions.2.x"), 16.0);
        assert_eq!(of(Component::UNet, "conv_in.weight"), 0.0);
        assert_eq!(of(Component::UNet, "conv_out.weight"), 1.0);
        assert!(factors.of(Component::UNet, "up_blocks.4.resnets.0.x", 2).is_err());
    }

    #[test]
    fn factors_are_read_back_as_written() {
        for text in ["MIDD", "all0.5", "1,0,0,0,0,0,0,0,-1.5,1,1,1,1,1,1,1,1"] {
            let factors: BlockFactors = text.parse().unwrap();
            assert_eq!(factors.to_string().parse::<BlockFactors>().unwrap(), factors, "{text}");
        }
        assert_eq!("midd".parse::<BlockFactors>().unwrap(), "MIDD".parse().unwrap());
        for wrong in [
            "",
            "1",
            "1,2",
            "X",
            "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,x",
            "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,inf",
        ] {
            let error = wrong.parse::<BlockFactors>().unwrap_err().to_string();
            assert!(error.contains("neither 17 nor 26"), "{error}");
        }
    }
}
