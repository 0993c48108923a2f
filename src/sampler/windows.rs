//! Context windows: parts of a long clip that are denoised one after the other and blended.
//!
//! Schedules and weights are those of ComfyUI-AnimateDiff-Evolved (`animatediff/context.py` at d8d163c), with three
//! differences: no window spans more than the clip, so that none holds a frame twice; no frame is left out; and clips up
//! to a window's length have several windows in a closed loop, so that their ends meet.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::spelling::named;
use crate::{Error, Result};

/// Which windows a step has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowSchedule {
    /// Begins elsewhere at every step; no window has both ends of the clip.
    #[default]
    Uniform,
    /// The same, but windows go on from the last frame to the first.
    UniformLooped,
    /// The same at every step.
    Static,
}

named!(WindowSchedule, "context-schedule", {
    Uniform = "uniform" | "standard-uniform",
    UniformLooped = "uniform-looped" | "looped-uniform",
    Static = "static" | "standard-static",
});

/// How much each frame of a window counts where windows overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fuse {
    /// All the same.
    Flat,
    /// More towards the middle of the window: 1, 2, 3, … 3, 2, 1.
    #[default]
    Pyramid,
    /// Rising and falling over the overlap, and the same between; level at the ends of the clip.
    OverlapLinear,
    /// From 1 in the middle of the window to nearly 0 at its ends.
    Relative,
}

named!(Fuse, "context-fuse", {
    Flat = "flat",
    Pyramid = "pyramid",
    OverlapLinear = "overlap-linear",
    Relative = "relative",
});

/// Settings of a [`WindowPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSettings {
    /// Frames of a window.
    pub length: usize,
    /// Frames that a window shares with the next.
    pub overlap: usize,
    /// Number of distances between the frames of a window: 1, 2, 4 and so on, as far as the clip is long enough.
    pub stride: usize,
    /// Which windows a step has.
    pub schedule: WindowSchedule,
    /// How windows are blended.
    pub fuse: Fuse,
    /// Whether the first frame follows the last.
    pub is_closed: bool,
}

impl WindowSettings {
    /// Checks the settings by themselves.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] with the field that is wrong.
    pub fn check(&self) -> Result<()> {
        let Self { length, overlap, stride, schedule, .. } = *self;
        if length < 2 {
            let reason = format!("must be at least 2, got {length}");
            return Err(Error::request("context-length", reason));
        }
        if overlap >= length {
            let reason = format!("must be less than the length {length}, got {overlap}");
            let hint = format!("use at most {}; a quarter of the length is usual", length - 1);
            return Err(Error::request("context-overlap", reason).with_hint(hint));
        }
        if stride == 0 {
            return Err(Error::request("context-stride", "must be at least 1, got 0"));
        }
        if stride > 1 && schedule == WindowSchedule::Static {
            let reason = format!("the schedule `static` has none, got {stride}");
            return Err(Error::request("context-stride", reason));
        }
        if self.is_closed && schedule != WindowSchedule::UniformLooped {
            let reason = format!("`closed` takes the schedule `uniform-looped`, not `{schedule}`");
            let hint = "leave out the schedule, or --loop none";
            return Err(Error::request("loop", reason).with_hint(hint));
        }
        Ok(())
    }
}

/// A part of a clip that is denoised at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Indices of its frames in the clip.
    pub frames: Vec<usize>,
    /// The weight of each; those of a frame in all windows of a step sum to 1.
    pub weights: Vec<f64>,
}

/// The windows of every step over a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPlan {
    frames: usize,
    settings: WindowSettings,
}

impl WindowPlan {
    /// Windows over so many frames. They are no longer than the clip.
    ///
    /// # Errors
    ///
    /// Those of [`WindowSettings::check`], and a clip without frames.
    pub fn new(frames: usize, settings: WindowSettings) -> Result<Self> {
        settings.check()?;
        if frames == 0 {
            return Err(Error::request("frames", "must be at least 1, got 0"));
        }
        let (length, overlap) = (settings.length, settings.overlap);
        let settings = if frames < length {
            WindowSettings { length: frames, overlap: overlap.min(frames / 2), ..settings }
        } else {
            settings
        };
        Ok(Self { frames, settings })
    }

    /// Frames of the clip.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Frames of a window.
    pub fn length(&self) -> usize {
        self.settings.length
    }

    /// Frames from the beginning of a window to that of the next.
    pub fn hop(&self) -> usize {
        self.settings.length - self.settings.overlap
    }

    /// Returns whether every step has one window, the whole clip.
    pub fn is_whole(&self) -> bool {
        self.frames == self.settings.length && (!self.settings.is_closed || self.frames == 1)
    }

    /// The windows of a step, counted from 0.
    pub fn at(&self, step: usize) -> Vec<Window> {
        let spans = if self.is_whole() {
            vec![(0..self.frames).collect()]
        } else {
            match self.settings.schedule {
                WindowSchedule::Uniform => self.unrolled(self.looped(step)),
                WindowSchedule::UniformLooped => self.looped(step),
                WindowSchedule::Static => self.fixed(),
            }
        };
        let mut totals = vec![0.0; self.frames];
        let weights: Vec<Vec<f64>> = spans.iter().map(|span| self.weights(span)).collect();
        for (frame, weight) in spans.iter().flatten().zip(weights.iter().flatten()) {
            totals[*frame] += weight;
        }
        let window = |(frames, weights): (Vec<usize>, Vec<f64>)| {
            let share = |(frame, weight): (&usize, f64)| weight / totals[*frame];
            let weights = frames.iter().zip(weights).map(share).collect();
            Window { frames, weights }
        };
        spans.into_iter().zip(weights).map(window).collect()
    }

    /// Windows that go on from the last frame to the first.
    fn looped(&self, step: usize) -> Vec<Vec<usize>> {
        let WindowSettings { length, overlap, stride, is_closed, .. } = self.settings;
        let phase = ordered_halving(step);
        // As Python rounds.
        let shift = (self.frames as f64 * phase).round_ties_even() as usize;
        let end = self.frames + shift - if is_closed { 0 } else { overlap };
        let levels = (self.frames / length).ilog2() as usize + 1;
        let mut windows = Vec::new();
        for apart in (0..levels.min(stride)).map(|level| 1 << level) {
            let first = (phase * apart as f64) as usize + shift;
            let hop = length * apart - overlap;
            let span = |start| (0..length).map(|i| (start + i * apart) % self.frames).collect();
            windows.extend((first..end).step_by(hop).map(span));
        }
        windows
    }

    /// The same without those that go over the end: they are moved before it, and what they had at the beginning goes
    /// into a window there.
    fn unrolled(&self, mut windows: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
        let mut i = 0;
        while let Some(window) = windows.get(i) {
            let turn = window.windows(2).find(|pair| pair[1] < pair[0]).map(|pair| pair[1]);
            if let Some(turn) = turn {
                let (first, count) = (window[0], self.frames);
                let from_first = |frame: &usize| (frame + count - first) % count;
                let places: Vec<usize> = window.iter().map(from_first).collect();
                let shift = count - 1 - places[places.len() - 1];
                windows[i] = places.into_iter().map(|place| place + shift).collect();
                if !windows[(i + 1) % windows.len()].contains(&turn) {
                    windows.insert(i + 1, (turn..turn + self.settings.length).collect());
                }
            }
            i += 1;
        }
        let mut seen = BTreeSet::new();
        windows.retain(|window| seen.insert(window.clone()));
        // With strides the reference leaves frames out, such as frame 1 of 34 in windows of 15 with a stride of 2.
        let mut is_covered = vec![false; self.frames];
        for frame in windows.iter().flatten() {
            is_covered[*frame] = true;
        }
        while let Some(frame) = is_covered.iter().position(|is_covered| !is_covered) {
            let first = frame.min(self.frames - self.settings.length);
            let span = first..first + self.settings.length;
            is_covered[span.clone()].fill(true);
            windows.push(span.collect());
        }
        windows
    }

    /// Windows one after the other; the last is moved before the end.
    fn fixed(&self) -> Vec<Vec<usize>> {
        let last = self.frames - self.settings.length;
        let starts = (0..last).step_by(self.hop()).chain([last]);
        starts.map(|start| (start..start + self.settings.length).collect()).collect()
    }

    /// The weights of a window's frames before they are divided by their sum.
    fn weights(&self, frames: &[usize]) -> Vec<f64> {
        let WindowSettings { overlap, fuse, is_closed, .. } = self.settings;
        let count = frames.len();
        let (first, last) = (frames[0], frames[count - 1]);
        let weight = |i: usize| match fuse {
            Fuse::Flat => 1.0,
            Fuse::Pyramid => (i + 1).min(count - i) as f64,
            Fuse::OverlapLinear => {
                let rising = if first > 0 || is_closed { ramp(i, overlap) } else { 1.0 };
                let is_inner = last + 1 < self.frames || is_closed;
                let falling = if is_inner { ramp(count - 1 - i, overlap) } else { 1.0 };
                rising.min(falling)
            }
            Fuse::Relative => {
                let apart =
                    frames.get(1).map_or(1, |next| (next + self.frames - first) % self.frames);
                let whole = ((count - 1) * apart) as f64;
                let from_middle = ((i * apart) as f64 - whole / 2.0).abs();
                (1.0 - from_middle / f64::midpoint(whole, 1e-2)).max(1e-2)
            }
        };
        (0..count).map(weight).collect()
    }
}

/// Value `i` of so many from nearly 0 to 1; 1 beyond them.
fn ramp(i: usize, count: usize) -> f64 {
    /// What the reference has in place of 0, so that no frame is without weight.
    const LEAST: f64 = 1e-37;
    match count {
        _ if i >= count => 1.0,
        1 => LEAST,
        _ => LEAST + (1.0 - LEAST) * i as f64 / (count - 1) as f64,
    }
}

/// The bits of a step after the point in reverse: 0, 1/2, 1/4, 3/4, 1/8 and so on, spread evenly over `[0, 1)`.
fn ordered_halving(step: usize) -> f64 {
    (step as u64).reverse_bits() as f64 / 2f64.powi(64)
}
