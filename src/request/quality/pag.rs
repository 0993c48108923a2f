//! Perturbed-attention guidance.

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::request::between;
use crate::{Error, Result};

/// The name of the option, for errors about layers.
const LAYERS: &str = "pag-layers";

/// The most patterns.
const MOST_LAYERS: usize = 64;
/// The longest pattern, in bytes.
const LONGEST: usize = 256;
/// The largest compiled pattern, in bytes.
const LARGEST: usize = 1 << 18;

/// Perturbed-attention guidance: Ahn et al. (2024), arXiv 2403.17377. Guides away from what the network predicts when
/// some of its self-attentions attend to nothing else than the place itself. The settings are those of diffusers'
/// `AnimateDiffPAGPipeline`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pag {
    /// The scale: `pag_scale`.
    pub scale: f64,
    /// How much smaller the scale becomes with every timestep below 1000, but not below 0: `pag_adaptive_scale`.
    pub adaptive_scale: f64,
    /// Regular expressions that are searched in the names of the self-attentions: `pag_applied_layers`.
    pub layers: Vec<String>,
}

impl Default for Pag {
    fn default() -> Self {
        Self { scale: 3.0, adaptive_scale: 0.0, layers: vec!["mid_block.*attn1".into()] }
    }
}

impl Pag {
    pub(super) fn validate(&self) -> Result<()> {
        between("pag-scale", Some(self.scale), 0.0, 1000.0)?;
        between("pag-adaptive-scale", Some(self.adaptive_scale), 0.0, 1000.0)?;
        let count = self.layers.len();
        if !(1..=MOST_LAYERS).contains(&count) {
            let reason = format!("takes 1 to {MOST_LAYERS} patterns, got {count}");
            return Err(Error::request(LAYERS, reason));
        }
        self.patterns().map(|_| ())
    }

    /// The compiled patterns.
    pub(crate) fn patterns(&self) -> Result<Vec<Regex>> {
        let compiled = |text: &String| {
            let wrong = |reason: &str| Error::request(LAYERS, format!("`{text}` {reason}"));
            if text.is_empty() || text.len() > LONGEST {
                return Err(wrong(&format!("is not of 1 to {LONGEST} bytes")));
            }
            let regex = RegexBuilder::new(text).size_limit(LARGEST).build();
            regex.map_err(|_| wrong("is not a regular expression, or too large a one"))
        };
        self.layers.iter().map(compiled).collect()
    }

    /// The scale at a timestep.
    pub(crate) fn scale_at(&self, timestep: f64) -> f64 {
        if self.adaptive_scale > 0.0 {
            (self.scale - self.adaptive_scale * (1000.0 - timestep)).max(0.0)
        } else {
            self.scale
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_falls_with_the_timestep_to_zero() {
        let pag = Pag { scale: 2.0, adaptive_scale: 0.004, ..Pag::default() };
        assert_eq!([1000.0, 750.0, 500.0, 259.0].map(|t| pag.scale_at(t)), [2.0, 1.0, 0.0, 0.0]);
        assert_eq!(Pag::default().scale_at(1.0), 3.0);
    }

    #[test]
    fn impossible_settings_are_refused() {
        let pag = |layers: Vec<&str>| Pag {
            layers: layers.into_iter().map(str::to_owned).collect(),
            ..Pag::default()
        };
        assert!(Pag::default().validate().is_ok());
        assert!(pag(vec!["blocks.(0|1)", "mid"]).validate().is_ok());
        for wrong in [vec![], vec![""], vec!["("], vec!["(a{999}){999}"], vec!["x"; 65]] {
            let error = pag(wrong.clone()).validate().unwrap_err();
            assert!(error.to_string().starts_with("pag-layers"), "{wrong:?}: {error}");
        }
        assert!(Pag { scale: f64::NAN, ..Pag::default() }.validate().is_err());
        assert!(Pag { adaptive_scale: -1.0, ..Pag::default() }.validate().is_err());
    }
}
