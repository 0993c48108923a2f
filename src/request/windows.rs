//! Context windows and loops.

use serde::{Deserialize, Serialize};

use crate::sampler::{Fuse, WindowSchedule, WindowSettings};
use crate::spelling::named;

/// Frames that motion modules were trained on, AnimateLCM's as AnimateDiff's.
const LENGTH: usize = 16;

/// The usual overlap, in frames.
const OVERLAP: usize = 4;

/// Context windows, in which clips are denoised that are longer than the motion modules know.
///
/// A shorter clip has windows only if something here is said, it is a closed loop, or its noise goes by windows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Windows {
    /// Frames of a window; 16, or as many as the motion modules know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Frames that a window shares with the next; 4, and at most half of the length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<usize>,
    /// Number of distances between the frames of a window, 1, 2, 4 and so on; 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Which windows a step has; uniform, and in closed loops uniform-looped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<WindowSchedule>,
    /// How windows are blended; pyramid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuse: Option<Fuse>,
}

impl Windows {
    /// The settings, completed for motion modules that know so many frames.
    pub(crate) fn settings(&self, longest: Option<usize>, looping: Loop) -> WindowSettings {
        let length = self.length.unwrap_or_else(|| longest.map_or(LENGTH, |l| l.min(LENGTH)));
        let is_closed = looping == Loop::Closed;
        let schedule =
            if is_closed { WindowSchedule::UniformLooped } else { WindowSchedule::Uniform };
        WindowSettings {
            length,
            overlap: self.overlap.unwrap_or(OVERLAP.min(length / 2)),
            stride: self.stride.unwrap_or(1),
            schedule: self.schedule.unwrap_or(schedule),
            fuse: self.fuse.unwrap_or_default(),
            is_closed,
        }
    }
}

impl From<WindowSettings> for Windows {
    fn from(settings: WindowSettings) -> Self {
        let WindowSettings { length, overlap, stride, schedule, fuse, is_closed: _ } = settings;
        Self {
            length: Some(length),
            overlap: Some(overlap),
            stride: Some(stride),
            schedule: Some(schedule),
            fuse: Some(fuse),
        }
    }
}

/// How a clip begins again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loop {
    /// With a jump.
    #[default]
    None,
    /// The first frame follows the last, by windows that have both.
    Closed,
    /// Backwards: the file has the frames between the last and the first once more.
    #[serde(rename = "pingpong")]
    PingPong,
}

impl Loop {
    /// Frames of the file of a clip of so many.
    pub fn frames(self, frames: usize) -> usize {
        match self {
            Self::PingPong if frames > 2 => 2 * frames - 2,
            _ => frames,
        }
    }
}

named!(Loop, "loop", {
    None = "none",
    Closed = "closed",
    PingPong = "pingpong",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_follows_the_motion_modules() {
        let settings = |longest| Windows::default().settings(longest, Loop::None);
        let usual = WindowSettings {
            length: 16,
            overlap: 4,
            stride: 1,
            schedule: WindowSchedule::Uniform,
            fuse: Fuse::Pyramid,
            is_closed: false,
        };
        assert_eq!(settings(Some(64)), usual);
        assert_eq!(settings(None), usual);
        assert_eq!(settings(Some(6)), WindowSettings { length: 6, overlap: 3, ..usual });
        let closed = Windows::default().settings(Some(64), Loop::Closed);
        let looped = WindowSchedule::UniformLooped;
        assert_eq!(closed, WindowSettings { schedule: looped, is_closed: true, ..usual });
        // A completed request means the same.
        assert_eq!(Windows::from(closed).settings(Some(8), Loop::Closed), closed);
    }

    #[test]
    fn a_pingpong_has_no_frame_twice_in_a_row() {
        let frames = |count| Loop::PingPong.frames(count);
        assert_eq!([1, 2, 3, 4, 16].map(frames), [1, 2, 4, 6, 30]);
        assert_eq!(Loop::Closed.frames(16), 16);
    }
}
