//! The measurements, as a table and as JSON.

use serde::Serialize;

use crate::procedural::{Caption, Count, Matches, Score};

/// The measurements, and their settings.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) settings: Settings,
    pub(super) prompts: usize,
    pub(super) clips_per_prompt: usize,
    pub(super) seed: u64,
    /// How often captions are true; only of the grammar's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) score: Option<Score>,
    /// What is left of the videos that clips start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<SourceReport>,
    #[serde(flatten)]
    pub(super) measured: Measured,
    /// Every clip, in order.
    pub(super) rows: Vec<Row>,
}

/// How the clips were made.
#[derive(Debug, Serialize)]
pub(super) struct Settings {
    pub(super) clips: String,
    pub(super) sampler: Option<String>,
    pub(super) steps: Option<usize>,
    pub(super) cfg_scale: Option<f64>,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) frames: usize,
}

/// What is left of the videos that clips start from.
#[derive(Debug, Serialize)]
pub(super) struct SourceReport {
    pub(super) strength: f64,
    /// The frames that are kept.
    pub(super) keep: Vec<usize>,
    /// How often the captions of the videos are true of the clips.
    pub(super) score: Score,
    /// Mean absolute error of kept frames, of 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kept_error: Option<f64>,
}

/// The measures of papers, as far as they were asked for.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clip_score: Option<Similarity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fvd: Option<Fvd>,
}

/// CLIP score over all clips.
#[derive(Debug, Serialize)]
pub(super) struct Similarity {
    pub(super) mean: f64,
    pub(super) clips: usize,
}

/// Fréchet video distance.
#[derive(Debug, Serialize)]
pub(super) struct Fvd {
    pub(super) distance: f64,
    pub(super) generated_clips: usize,
    pub(super) real_clips: usize,
}

/// One clip.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) prompt: String,
    /// Seed of the clip's first noise; none of a rendered clip.
    pub(super) seed: Option<u64>,
    #[serde(flatten)]
    pub(super) verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clip_score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<SourceRow>,
}

/// The video that a clip starts from.
#[derive(Debug, Serialize)]
pub(super) struct SourceRow {
    pub(super) caption: String,
    /// What of it is true of the clip.
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

impl SourceRow {
    /// The caption, above the video's own frames.
    pub(super) fn label(&self) -> String {
        format!("from {}", self.caption)
    }
}

/// What of a caption is true.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    #[serde(flatten)]
    matches: Matches,
    all: bool,
}

impl From<Matches> for Verdict {
    fn from(matches: Matches) -> Self {
        Self { matches, all: matches.all() }
    }
}

impl Row {
    /// The prompt, what of it is not true, and how near the clip is.
    pub(super) fn label(&self) -> String {
        let mut text = self.prompt.clone();
        if let Some(Verdict { matches, .. }) = &self.verdict {
            let Matches { background, color, shape, motion, steady } = *matches;
            let parts = [
                ("background", background),
                ("colour", color),
                ("shape", shape),
                ("motion", motion),
            ];
            let wrong: Vec<&str> =
                parts.iter().filter(|(_, hit)| !hit).map(|(part, _)| *part).collect();
            text.push_str(" - ");
            text.push_str(&if wrong.is_empty() {
                "all true".into()
            } else {
                format!("wrong: {}", wrong.join(", "))
            });
            text.push_str(if steady { "" } else { ", unsteady" });
        }
        if let Some(score) = self.clip_score {
            text.push_str(&format!(" - clip score {score:.1}"));
        }
        text
    }
}

/// A caption and what of it is true.
pub(super) fn said(caption: Caption, matches: Matches) -> String {
    let word = |hit: bool, word: &str| if hit { word.to_owned() } else { format!("[{word}]") };
    format!(
        "{} {} {} on {}",
        word(matches.color, caption.color.word()),
        word(matches.shape, caption.shape.word()),
        word(matches.motion, caption.motion.word()),
        word(matches.background, caption.background.word()),
    )
}

impl Report {
    pub(super) fn table(&self) -> String {
        let Settings { clips, sampler, steps, cfg_scale, width, height, frames } = &self.settings;
        let mut text = format!(
            "{clips}, {frames} frames of {width}x{height}, {} prompts, seed {}",
            self.prompts, self.seed
        );
        if self.clips_per_prompt > 1 {
            text.push_str(&format!(", {} clips each", self.clips_per_prompt));
        }
        if let (Some(sampler), Some(steps), Some(scale)) = (sampler, steps, cfg_scale) {
            text.push_str(&format!(", {steps} steps of {sampler}, guidance {scale}"));
        }
        text.push('\n');
        if let Some(score) = &self.score {
            text.push_str(&truth(score));
        }
        if let Some(SourceReport { strength, keep, score, kept_error }) = &self.source {
            text.push_str(&format!(
                "\nof the videos that clips start from, at strength {strength}\n"
            ));
            text.push_str(&rates(score));
            if let Some(error) = kept_error {
                let frames: Vec<String> = keep.iter().map(usize::to_string).collect();
                let frames = frames.join(", ");
                text.push_str(&format!("kept frames {frames}: mean error {error:.2} of 255\n"));
            }
        }
        let Measured { clip_score, fvd } = &self.measured;
        if clip_score.is_some() || fvd.is_some() {
            text.push('\n');
        }
        if let Some(Similarity { mean, clips }) = clip_score {
            text.push_str(&format!("CLIP score {mean:10.2}  {clips} clips\n"));
        }
        if let Some(Fvd { distance, generated_clips, real_clips }) = fvd {
            let of = format!("{generated_clips} clips and {real_clips} real ones");
            text.push_str(&format!("FVD        {distance:10.2}  {of}\n"));
        }
        text
    }
}

/// How often captions are true, and by their words.
fn truth(score: &Score) -> String {
    let mut text = rates(score);
    for words in [&score.shape_by_word, &score.motion_by_word] {
        text.push('\n');
        for (word, count) in words {
            text.push_str(&format!("{word:<15}{:4} of {}\n", count.hits, count.trials));
        }
    }
    text
}

/// How often captions are true.
fn rates(score: &Score) -> String {
    let mut text = String::from("\n                 rate         95 % CI   chance\n");
    let row = |name: &str, count: Count, chance: Option<f64>| {
        let (low, high) = count.interval();
        let chance = chance.map_or(String::new(), |c| format!("{:6.1}%", 100.0 * c));
        let line = format!(
            "{name:<15}{:5.1}%  {:5.1} - {:5.1}%  {chance}",
            100.0 * count.share(),
            100.0 * low,
            100.0 * high,
        );
        format!("{}\n", line.trim_end())
    };
    for (name, count, chance) in score.rows() {
        text.push_str(&row(name, count, chance));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_what_is_wrong() {
        let matches =
            Matches { background: true, color: true, shape: false, motion: false, steady: false };
        let row = |verdict, clip_score| Row {
            prompt: "p".into(),
            seed: None,
            verdict,
            clip_score,
            source: None,
        };
        let label = row(Some(matches.into()), None).label();
        assert_eq!(label, "p - wrong: shape, motion, unsteady");
        let right = Matches { shape: true, motion: true, steady: true, ..matches };
        assert_eq!(row(Some(right.into()), Some(21.46)).label(), "p - all true - clip score 21.5");
        assert_eq!(row(None, None).label(), "p");
    }

    #[test]
    fn only_what_was_measured_is_printed() {
        let report = |measured| Report {
            settings: Settings {
                clips: "m".into(),
                sampler: Some("lcm".into()),
                steps: Some(4),
                cfg_scale: Some(1.0),
                width: 64,
                height: 48,
                frames: 16,
            },
            prompts: 3,
            clips_per_prompt: 2,
            seed: 5,
            score: None,
            source: None,
            measured,
            rows: vec![],
        };
        let heading =
            "m, 16 frames of 64x48, 3 prompts, seed 5, 2 clips each, 4 steps of lcm, guidance 1\n";
        assert_eq!(report(Measured { clip_score: None, fvd: None }).table(), heading);
        let clip_score = Some(Similarity { mean: 27.306, clips: 6 });
        let fvd = Some(Fvd { distance: 910.337, generated_clips: 6, real_clips: 9 });
        let table = report(Measured { clip_score, fvd }).table();
        let lines =
            "\nCLIP score      27.31  6 clips\nFVD            910.34  6 clips and 9 real ones\n";
        assert_eq!(table, format!("{heading}{lines}"));
    }
}
