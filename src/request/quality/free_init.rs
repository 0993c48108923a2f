//! FreeInit's settings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Items;
use crate::request::grammar::{Key, Kind};
use crate::request::{at_least, between};
use crate::{Error, Result};

const FIELD: &str = "free-init";

const GRAMMAR: &str =
    "N, or iterations=3,filter=butterworth,order=4,spatial=0.25,temporal=0.25,fast";

const KEYS: [Key; 6] = [
    Key::new("iterations", Kind::Text),
    Key::new("filter", Kind::Text),
    Key::new("order", Kind::Text),
    Key::new("spatial", Kind::Text),
    Key::new("temporal", Kind::Text),
    Key::new("fast", Kind::Word),
];

/// The most iterations.
const MOST_ITERATIONS: usize = 100;
/// The highest order of a filter.
const HIGHEST_ORDER: usize = 64;

/// FreeInit: Wu et al. (2023), arXiv 2312.07537. The clip is sampled several times; each time the low frequencies of
/// the noise are those of the clip before, noised again. The settings are those of diffusers' `enable_free_init`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FreeInit {
    /// How often the clip is sampled: `num_iters`.
    pub iterations: usize,
    /// The low-pass filter: `method`.
    pub filter: Filter,
    /// Order of the Butterworth filter.
    pub order: usize,
    /// Stop frequency along height and width, from 0 to 1: `spatial_stop_frequency`.
    pub spatial: f64,
    /// Stop frequency along the frames, from 0 to 1: `temporal_stop_frequency`.
    pub temporal: f64,
    /// Whether the first iterations have fewer steps: `use_fast_sampling`.
    pub fast: bool,
}

impl Default for FreeInit {
    fn default() -> Self {
        Self {
            iterations: 3,
            filter: Filter::Butterworth,
            order: 4,
            spatial: 0.25,
            temporal: 0.25,
            fast: false,
        }
    }
}

/// A low-pass filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Level, then falling by its order.
    #[default]
    Butterworth,
    /// A bell.
    Gaussian,
    /// All or nothing, a ball.
    Ideal,
    /// All or nothing, a box; in the official code, but not in diffusers.
    Box,
}

impl Filter {
    const ALL: [(&'static str, Self); 4] = [
        ("butterworth", Self::Butterworth),
        ("gaussian", Self::Gaussian),
        ("ideal", Self::Ideal),
        ("box", Self::Box),
    ];
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::ALL.iter().find(|(_, filter)| filter == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

impl FreeInit {
    pub(super) fn validate(&self) -> Result<()> {
        at_least(FIELD, self.iterations, 1)?;
        at_least(FIELD, self.order, 1)?;
        for (what, value, most) in
            [("iterations", self.iterations, MOST_ITERATIONS), ("order", self.order, HIGHEST_ORDER)]
        {
            if value > most {
                let reason = format!("`{what}` must be at most {most}, got {value}");
                return Err(Error::request(FIELD, reason));
            }
        }
        between(FIELD, Some(self.spatial), 0.0, 1.0)?;
        between(FIELD, Some(self.temporal), 0.0, 1.0)
    }

    /// The steps of an iteration, counted from 0, of a clip with so many.
    pub fn steps(&self, iteration: usize, steps: usize) -> usize {
        if !self.fast {
            return steps;
        }
        // In the order in which diffusers divides and multiplies.
        let share = steps as f64 / self.iterations.max(1) as f64 * (iteration + 1) as f64;
        (share as usize).max(1)
    }
}

impl FromStr for FreeInit {
    type Err = Error;

    /// Reads the number of iterations, or `iterations=3,filter=gaussian,fast` and so on.
    fn from_str(text: &str) -> Result<Self> {
        let mut free_init = Self::default();
        if let Ok(iterations) = text.trim().parse() {
            free_init.iterations = iterations;
            return Ok(free_init);
        }
        let items = Items::read((FIELD, GRAMMAR), &KEYS, text)?;
        items.set("iterations", &mut free_init.iterations)?;
        items.set("order", &mut free_init.order)?;
        items.set("spatial", &mut free_init.spatial)?;
        items.set("temporal", &mut free_init.temporal)?;
        free_init.fast = items.text("fast").is_some();
        if let Some(name) = items.text("filter") {
            let found = crate::spelling::find(name, &Filter::ALL);
            let known = "one of `butterworth`, `gaussian`, `ideal`, `box`";
            free_init.filter = found.ok_or_else(|| items.wrong("filter", name, known))?;
        }
        Ok(free_init)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_a_number_of_iterations_or_items() {
        let read = |text: &str| text.parse::<FreeInit>();
        let usual = FreeInit::default();
        assert_eq!(read("2").unwrap(), FreeInit { iterations: 2, ..usual });
        let all = read("iterations=5,filter=Box,order=2,spatial=0.5,temporal=0.75,fast").unwrap();
        let want = FreeInit {
            iterations: 5,
            filter: Filter::Box,
            order: 2,
            spatial: 0.5,
            temporal: 0.75,
            fast: true,
        };
        assert_eq!(all, want);
        assert!(want.validate().is_ok());
        let json = serde_json::to_string(&want).unwrap();
        assert_eq!(serde_json::from_str::<FreeInit>(&json).unwrap(), want);
        for wrong in ["", "x", "-1", "filter=none", "order=1.5", "fast=1", "fast,fast", "d_s=1"] {
            assert_eq!(read(wrong).unwrap_err().kind().exit_code(), 2, "{wrong}");
        }
        for wrong in ["0", "101", "order=0", "order=65", "spatial=1.1", "temporal=NaN"] {
            assert!(read(wrong).unwrap().validate().is_err(), "{wrong}");
        }
    }

    #[test]
    fn fast_sampling_comes_to_all_steps() {
        let steps = |fast, iterations, all| -> Vec<usize> {
            let free_init = FreeInit { iterations, fast, ..FreeInit::default() };
            (0..iterations).map(|i| free_init.steps(i, all)).collect()
        };
        assert_eq!(steps(false, 3, 4), [4, 4, 4]);
        // int(n / iterations * (i + 1)), at least 1.
        assert_eq!(steps(true, 3, 4), [1, 2, 4]);
        assert_eq!(steps(true, 5, 4), [1, 1, 2, 3, 4]);
        assert_eq!(steps(true, 3, 25), [8, 16, 25]);
    }
}
