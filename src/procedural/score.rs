//! Score of a model's clips against their captions, with confidence intervals.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{Background, Caption, Color, Matches, Motion, Shape};

/// Number of hits and trials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of correct results.
    pub hits: usize,
    /// Number of trials.
    pub trials: usize,
}

impl Count {
    fn add(&mut self, hit: bool) {
        self.hits += usize::from(hit);
        self.trials += 1;
    }

    /// Share of hits; 0 without trials.
    pub fn share(self) -> f64 {
        self.hits as f64 / self.trials.max(1) as f64
    }

    /// The 95 % confidence interval of the share: Wilson (1927). `(0, 1)` without trials.
    pub fn interval(self) -> (f64, f64) {
        const Z: f64 = 1.959_963_984_540_054;
        if self.trials == 0 {
            return (0.0, 1.0);
        }
        let (n, p) = (self.trials as f64, self.share());
        let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        // Keeps the ends exact in spite of rounding.
        let low = if self.hits == 0 { 0.0 } else { middle - half };
        let high = if self.hits == self.trials { 1.0 } else { middle + half };
        (low, high)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (low, high) = self.interval();
        let mut object = serializer.serialize_struct("Count", 5)?;
        object.serialize_field("hits", &self.hits)?;
        object.serialize_field("trials", &self.trials)?;
        object.serialize_field("share", &self.share())?;
        object.serialize_field("low", &low)?;
        object.serialize_field("high", &high)?;
        object.end()
    }
}

/// Counts of correct parts over many clips.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Correct backgrounds.
    pub background: Count,
    /// Correct colours.
    pub color: Count,
    /// Correct shapes.
    pub shape: Count,
    /// Correct motions.
    pub motion: Count,
    /// Clips that are correct in all four.
    pub all: Count,
    /// Steady clips, regardless of their content.
    pub steady: Count,
    /// Correct motions, by the caption's motion.
    pub motion_by_word: BTreeMap<&'static str, Count>,
    /// Correct shapes, by the caption's shape.
    pub shape_by_word: BTreeMap<&'static str, Count>,
}

impl Score {
    /// Adds one clip.
    pub fn add(&mut self, caption: &Caption, matches: Matches) {
        self.background.add(matches.background);
        self.color.add(matches.color);
        self.shape.add(matches.shape);
        self.motion.add(matches.motion);
        self.all.add(matches.all());
        self.steady.add(matches.steady);
        self.motion_by_word.entry(caption.motion.word()).or_default().add(matches.motion);
        self.shape_by_word.entry(caption.shape.word()).or_default().add(matches.shape);
    }

    /// Counts by name in display order, each with the share expected by chance.
    pub fn rows(&self) -> [(&'static str, Count, Option<f64>); 6] {
        let chance = |words: usize| Some(1.0 / words as f64);
        let (colors, shapes) = (Color::ALL.len(), Shape::ALL.len());
        let (motions, backgrounds) = (Motion::ALL.len(), Background::ALL.len());
        let everything = backgrounds * colors * shapes * motions;
        [
            ("background", self.background, chance(backgrounds)),
            ("colour", self.color, chance(colors)),
            ("shape", self.shape, chance(shapes)),
            ("motion", self.motion, chance(motions)),
            ("all four", self.all, chance(everything)),
            ("steady", self.steady, None),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_that_were_published() {
        // Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
        let expected = [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ];
        for (hits, trials, low, high) in expected {
            let (got_low, got_high) = Count { hits, trials }.interval();
            assert!((got_low - low).abs() < 1e-4, "{hits}/{trials}: {got_low}");
            assert!((got_high - high).abs() < 1e-4, "{hits}/{trials}: {got_high}");
        }
        assert_eq!(Count::default().interval(), (0.0, 1.0));
    }
}
