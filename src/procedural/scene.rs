//! Renderer: draws exactly one clip from a caption and a seed.
//!
//! All lengths are fractions of the image's side, so a clip is the same at every size. A pixel's coverage is computed
//! from the distance of its centre to the outline, and is partial within half a pixel of the outline.

use std::f64::consts::{PI, TAU};

use image::{Rgb, RgbImage};

use super::outline::Outline;
use super::{Caption, Motion};
use crate::rng::Uniform;

/// Maximum opacity of a cue; the object itself is opaque.
const CUE: f64 = 0.45;

/// Height of the floor for bouncing objects, from the top.
const FLOOR: f64 = 0.88;

/// Position, size and angle of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pose {
    x: f64,
    y: f64,
    radius: f64,
    /// Angle in radians, clockwise.
    angle: f64,
}

/// A clip before it is rendered.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    caption: Caption,
    /// Poses at the beginning and at the end; the bounce height of a bouncing object is added.
    from: Pose,
    to: Pose,
    /// Bounce height, and initial phase of the bounce.
    height: f64,
    phase: f64,
}

impl Scene {
    /// Draws what the caption leaves open: position, size, angle.
    pub fn new(caption: Caption, seed: u64) -> Self {
        let mut random = Uniform::new(seed);
        let mut between = |from: f64, to: f64| random.between(from, to);
        let (height, phase) = (between(0.4, 0.48), between(0.0, 1.0));
        let (across, start, end) = (between(0.3, 0.7), between(0.72, 0.77), between(0.23, 0.28));
        let (x, y) = (between(0.36, 0.64), between(0.36, 0.64));
        let (small, large) = (between(0.1, 0.12), between(0.26, 0.3));
        let radius = between(0.15, 0.19);
        let turn = between(2.5, 2.8);
        let tilt = between(-0.12, 0.12);
        // Moving objects are smaller, to leave room for their trail.
        let light = 0.8 * radius;

        let place = |x: f64, y: f64, radius: f64| Pose { x, y, radius, angle: tilt };
        let (from, to) = match caption.motion {
            Motion::Left => (place(start, across, light), place(end, across, light)),
            Motion::Right => (place(1.0 - start, across, light), place(1.0 - end, across, light)),
            Motion::Up => (place(across, start, light), place(across, end, light)),
            Motion::Down => (place(across, 1.0 - start, light), place(across, 1.0 - end, light)),
            Motion::Growing | Motion::Shrinking => {
                // Closer to the centre, to leave room for the largest size.
                let near = |v: f64| 0.5 + (v - 0.5) * 0.3;
                let (small, large) =
                    (place(near(x), near(y), small), place(near(x), near(y), large));
                if caption.motion == Motion::Growing { (small, large) } else { (large, small) }
            }
            Motion::Spinning => {
                let from = place(x, y, 1.15 * radius);
                (from, Pose { angle: from.angle + turn, ..from })
            }
            Motion::Bouncing => {
                let pose = place(across, FLOOR - light, light);
                (pose, pose)
            }
            Motion::Still => (place(x, y, radius), place(x, y, radius)),
        };
        Self { caption, from, to, height, phase }
    }

    /// Caption of the scene.
    pub fn caption(&self) -> Caption {
        self.caption
    }

    /// Renders all frames, `side` pixels wide and high.
    pub fn frames(&self, side: usize, frames: usize) -> Vec<RgbImage> {
        (0..frames).map(|i| self.frame(side, i, frames)).collect()
    }

    /// Renders frame `index` of `frames`.
    pub fn frame(&self, side: usize, index: usize, frames: usize) -> RgbImage {
        let time = index as f64 / frames.saturating_sub(1).max(1) as f64;
        let pose = self.pose(time);
        let outline = Outline::new(self.caption.shape);
        let pixel = 1.0 / side.max(1) as f64;
        let ghosts = self.ghosts(pose);
        let object = self.caption.color.meaning();
        let background = self.caption.background.meaning();
        let is_dark = background.iter().map(|v| u32::from(*v)).sum::<u32>() < 3 * 180;
        let floor = mix(background, if is_dark { [255; 3] } else { [0; 3] }, 0.25);
        let has_floor = self.caption.motion == Motion::Bouncing;
        RgbImage::from_fn(side as u32, side as u32, |column, row| {
            let (x, y) = ((column as f64 + 0.5) * pixel, (row as f64 + 0.5) * pixel);
            let below = if has_floor { covered(FLOOR - y, pixel) } else { 0.0 };
            let ground = mix(background, floor, below);
            let cover = |pose: &Pose| covered(pose.distance(&outline, x, y), pixel);
            let whole = cover(&pose);
            if whole >= 1.0 {
                return Rgb(object);
            }
            let mut opacity = ghosts.iter().map(|(a, pose)| a * cover(pose)).fold(0.0, f64::max);
            if self.caption.motion == Motion::Growing {
                let line = (pose.distance(&outline, x, y) - (0.045 + 0.12 * pose.radius)).abs();
                opacity = CUE * covered(line - 0.012, pixel);
            }
            Rgb(mix(ground, object, opacity.max(whole)))
        })
    }

    /// Pose of the object at `time` in `[0, 1]`.
    fn pose(&self, time: f64) -> Pose {
        let along = |from: f64, to: f64| from + (to - from) * time;
        let (from, to) = (self.from, self.to);
        let mut pose = Pose {
            x: along(from.x, to.x),
            y: along(from.y, to.y),
            radius: along(from.radius, to.radius),
            angle: along(from.angle, to.angle),
        };
        if self.caption.motion == Motion::Bouncing {
            pose.y -= self.height * (PI * (2.0 * time + self.phase)).sin().abs();
        }
        pose
    }

    /// Earlier poses that show the motion in a still image, each with its opacity.
    fn ghosts(&self, pose: Pose) -> Vec<(f64, Pose)> {
        let fading = |count: usize, former: &dyn Fn(f64) -> Pose| {
            let one = |i: usize| {
                let age = (i + 1) as f64;
                (CUE * (1.0 - i as f64 / count as f64), former(age))
            };
            (0..count).map(one).collect()
        };
        let behind = |x: f64, y: f64| {
            fading(9, &|age: f64| Pose {
                x: pose.x + 0.26 * age * pose.radius * x,
                y: pose.y + 0.26 * age * pose.radius * y,
                radius: pose.radius * (0.95 - 0.07 * age),
                ..pose
            })
        };
        match self.caption.motion {
            Motion::Left => behind(1.0, 0.0),
            Motion::Right => behind(-1.0, 0.0),
            Motion::Up => behind(0.0, 1.0),
            Motion::Down => behind(0.0, -1.0),
            Motion::Shrinking => {
                fading(6, &|age: f64| Pose { radius: pose.radius + 0.022 * age, ..pose })
            }
            Motion::Spinning => {
                fading(6, &|age: f64| Pose { angle: pose.angle - TAU / 36.0 * age, ..pose })
            }
            Motion::Growing | Motion::Bouncing | Motion::Still => vec![],
        }
    }
}

impl Pose {
    /// Signed distance of a point to the object; negative inside.
    fn distance(&self, outline: &Outline, x: f64, y: f64) -> f64 {
        let (sin, cos) = self.angle.sin_cos();
        let (x, y) = ((x - self.x) / self.radius, (y - self.y) / self.radius);
        outline.distance(cos * x + sin * y, cos * y - sin * x) * self.radius
    }
}

/// Coverage of a pixel by an outline at signed distance `distance` from its centre.
fn covered(distance: f64, pixel: f64) -> f64 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}

fn mix(from: [u8; 3], to: [u8; 3], share: f64) -> [u8; 3] {
    let channel = |i: usize| {
        let (from, to) = (f64::from(from[i]), f64::from(to[i]));
        (from + (to - from) * share).round() as u8
    };
    [channel(0), channel(1), channel(2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(text: &str, seed: u64) -> Scene {
        Scene::new(text.parse().unwrap(), seed)
    }

    #[test]
    fn a_seed_draws_the_same_clip_and_another_seed_another() {
        let text = "a green star spinning on a white background";
        assert_eq!(scene(text, 1).frames(64, 3), scene(text, 1).frames(64, 3));
        assert_ne!(scene(text, 1).frames(64, 3), scene(text, 2).frames(64, 3));
    }

    #[test]
    fn a_clip_is_the_same_at_every_size() {
        let scene = scene("a blue triangle moving up on a grey background", 3);
        let small = scene.frame(64, 5, 16);
        let large = scene.frame(256, 5, 16);
        let mut worst = 0;
        for (x, y, pixel) in small.enumerate_pixels() {
            for channel in 0..3 {
                let block = (0..16)
                    .map(|i| u32::from(large.get_pixel(4 * x + i % 4, 4 * y + i / 4)[channel]));
                let mean = block.sum::<u32>() as i32 / 16;
                worst = worst.max((mean - i32::from(pixel[channel])).abs());
            }
        }
        // Coverage by distance differs from the exact area only at corners.
        assert!(worst < 40, "{worst}");
    }

    #[test]
    fn the_object_has_exactly_its_colour() {
        let scene = scene("a purple square standing still on a brown background", 4);
        let frame = scene.frame(64, 0, 16);
        let middle = (scene.from.x * 64.0, scene.from.y * 64.0);
        assert_eq!(frame.get_pixel(middle.0 as u32, middle.1 as u32).0, [160, 60, 220]);
        assert_eq!(frame.get_pixel(0, 0).0, [95, 55, 25]);
    }
}
