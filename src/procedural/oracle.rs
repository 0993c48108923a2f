//! Recognition of a clip's content by measurement, without reference images.
//!
//! The background is the median of the border; the object's colour is the median of the pixels which differ most from
//! it. A pixel's opacity is its position between the two colours, and only nearly opaque pixels count, so trails and
//! halos are ignored. The largest connected region of each frame is the object. Its shape follows from the Fourier
//! components of its radius around its centre (three, four or five corners, or none, or a hole), and its motion from
//! the tracks of its centre, its size and the phase of those components.

use std::f64::consts::{PI, TAU};

use image::RgbImage;
use serde::Serialize;

use super::{Background, Caption, Color, Motion, Shape};

/// Recogniser of procedural clips. The fields are its thresholds; lengths are fractions of the image's side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Oracle {
    /// Minimum difference between object and background, in 8-bit levels.
    pub contrast: f64,
    /// Minimum area of an object.
    pub area: f64,
    /// Minimum travel of a moving object.
    pub travel: f64,
    /// Maximum travel of an object standing still.
    pub rest: f64,
    /// Minimum size ratio of a growing object.
    pub growth: f64,
    /// Minimum rotation of a spinning object, in radians.
    pub turn: f64,
    /// Minimum amplitude of the shape's Fourier component of a shape with corners, as a fraction of the mean radius.
    pub corners: f64,
    /// Maximum jerk of a steady object: the median third difference of its position and size.
    pub jerk: f64,
    /// Maximum deviation of a steady background, in 8-bit levels.
    pub flicker: f64,
}

impl Default for Oracle {
    fn default() -> Self {
        Self {
            contrast: 40.0,
            area: 0.006,
            travel: 0.2,
            rest: 0.08,
            growth: 1.5,
            turn: 1.0,
            corners: 0.06,
            jerk: 0.06,
            flicker: 12.0,
        }
    }
}

/// Recognised content of a clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Nearest known background.
    pub background: Background,
    /// Nearest known colour, if there is an object.
    pub color: Option<Color>,
    /// Most frequent shape of the frames, weighted by object size.
    pub shape: Option<Shape>,
    /// Motion, if it matches a known one.
    pub motion: Option<Motion>,
    /// Travel of the object's centre, as a fraction of the image's side.
    pub travel: f64,
    /// Ratio of the final to the initial size.
    pub growth: f64,
    /// Rotation in radians, clockwise.
    pub turn: f64,
    /// Whether object, shape and background are consistent from frame to frame without jumps.
    pub is_steady: bool,
}

/// Comparison of a clip with the parts of a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(clippy::struct_excessive_bools)]
pub struct Matches {
    /// Whether the background is right.
    pub background: bool,
    /// Whether the colour is right.
    pub color: bool,
    /// Whether the shape is right.
    pub shape: bool,
    /// Whether the motion is right.
    pub motion: bool,
    /// Whether the clip is steady, regardless of its content.
    pub steady: bool,
}

impl Matches {
    /// Returns whether all parts of the caption are right.
    pub fn all(self) -> bool {
        self.background && self.color && self.shape && self.motion
    }
}

impl Observation {
    /// Compares the content with a caption.
    pub fn matches(&self, caption: &Caption) -> Matches {
        Matches {
            background: self.background == caption.background,
            color: self.color == Some(caption.color),
            shape: self.shape == Some(caption.shape),
            motion: self.motion == Some(caption.motion),
            steady: self.is_steady,
        }
    }
}

/// RGB colour with fractional components.
type Rgb = [f64; 3];

/// Object in one frame; lengths are fractions of the image's side.
#[derive(Clone, Copy, Debug)]
struct Object {
    x: f64,
    y: f64,
    /// Radius of a disc of the same area.
    size: f64,
    shape: Shape,
    /// Complex Fourier components 3, 4 and 5 of the radius as a function of the angle.
    components: [(f64, f64); 3],
}

impl Oracle {
    /// Recognises the content of a clip, whose frames have one size.
    pub fn observe(&self, frames: &[RgbImage]) -> Observation {
        let borders: Vec<Rgb> = frames.iter().map(|frame| median(border(frame))).collect();
        let ground = median(frames.iter().flat_map(border));
        let flicker = borders.iter().map(|b| distance(*b, ground)).fold(0.0, f64::max);
        let mut observation = Observation {
            background: nearest(Background::ALL, ground, Background::meaning),
            color: None,
            shape: None,
            motion: None,
            travel: 0.0,
            growth: 1.0,
            turn: 0.0,
            is_steady: false,
        };
        let Some(color) = self.object_color(frames, ground) else { return observation };
        observation.color = Some(nearest(Color::ALL, color, Color::meaning));

        let objects: Vec<Option<Object>> =
            frames.iter().map(|frame| self.object(frame, ground, color)).collect();
        let found: Vec<Object> = objects.iter().copied().flatten().collect();
        // An object missing in more than a quarter of the frames has no track.
        if found.len() * 4 < frames.len() * 3 || found.is_empty() {
            return observation;
        }
        let weight =
            |shape: Shape| found.iter().filter(|o| o.shape == shape).map(|o| o.size).sum::<f64>();
        let total: f64 = found.iter().map(|o| o.size).sum();
        let best = Shape::ALL.iter().copied().max_by(|a, b| weight(*a).total_cmp(&weight(*b)));
        let Some(shape) = best else { return observation };
        observation.shape = Some(shape);
        let track = Track::new(&found, shape);
        observation.travel = track.travel().0.hypot(track.travel().1);
        observation.growth = track.growth();
        observation.turn = track.turn;
        observation.motion = self.motion(&track);
        observation.is_steady = found.len() == frames.len()
            && weight(shape) >= 0.75 * total
            && flicker <= self.flicker
            && track.jerk() <= self.jerk;
        observation
    }

    /// Median colour of the pixels that differ most from the background.
    fn object_color(&self, frames: &[RgbImage], ground: Rgb) -> Option<Rgb> {
        let mut chosen = Vec::new();
        for frame in frames {
            let mut distances: Vec<f64> = pixels(frame).map(|p| distance(p, ground)).collect();
            let count = distances.len();
            if count == 0 {
                continue;
            }
            let (_, high, _) = distances.select_nth_unstable_by(count * 99 / 100, f64::total_cmp);
            let least = (0.85 * *high).max(self.contrast);
            chosen.extend(pixels(frame).filter(|p| distance(*p, ground) >= least));
        }
        (!chosen.is_empty()).then(|| median(chosen))
    }

    /// The object of a frame: its largest opaque region.
    fn object(&self, frame: &RgbImage, ground: Rgb, color: Rgb) -> Option<Object> {
        let (width, height) = (frame.width() as usize, frame.height() as usize);
        let way: Vec<f64> = (0..3).map(|i| color[i] - ground[i]).collect();
        let length = way.iter().map(|v| v * v).sum::<f64>().max(1e-9);
        let opacity = |p: Rgb| {
            let along: f64 = (0..3).map(|i| (p[i] - ground[i]) * way[i]).sum::<f64>() / length;
            ((along - 0.5) / 0.3).clamp(0.0, 1.0)
        };
        let mut solid: Vec<f64> = pixels(frame).map(opacity).collect();
        keep_largest(&mut solid, width, height);

        let mass: f64 = solid.iter().sum();
        if mass < self.area * (width * height) as f64 {
            return None;
        }
        let mut center = (0.0, 0.0);
        for (i, share) in solid.iter().enumerate() {
            center.0 += share * ((i % width) as f64 + 0.5);
            center.1 += share * ((i / width) as f64 + 0.5);
        }
        let center = (center.0 / mass, center.1 / mass);
        let size = (mass / PI).sqrt();
        let patch = Patch { solid: &solid, width, height };
        let radii = patch.radii(center, 3.0 * size);
        let mean = radii.iter().sum::<f64>() / radii.len() as f64;
        let components = [3, 4, 5].map(|k| component(&radii, k, mean));
        let shape = if patch.mean_within(center, 0.35 * size) < 0.5 {
            Shape::Ring
        } else {
            let amplitude = |i: usize| components[i].0.hypot(components[i].1);
            let best = (0..3).max_by(|a, b| amplitude(*a).total_cmp(&amplitude(*b))).unwrap_or(0);
            if amplitude(best) < self.corners {
                Shape::Circle
            } else {
                [Shape::Triangle, Shape::Square, Shape::Star][best]
            }
        };
        let side = width.max(height) as f64;
        let (x, y, size) = (center.0 / side, center.1 / side, size / side);
        Some(Object { x, y, size, shape, components })
    }

    /// Motion that matches a track.
    fn motion(&self, track: &Track) -> Option<Motion> {
        let (dx, dy) = track.travel();
        let (way_x, way_y) = (path(&track.x), path(&track.y));
        let travel = dx.hypot(dy);
        // Up and down again: a path much longer than its displacement.
        if way_y > 2.5 * self.travel && way_y > 2.0 * way_x && way_y > 2.0 * dy.abs() + self.travel
        {
            return Some(Motion::Bouncing);
        }
        if travel > self.travel {
            let is_straight = |way: f64, distance: f64| way < 1.5 * distance;
            return match () {
                () if dx.abs() > 2.0 * dy.abs() && is_straight(way_x, dx.abs()) => {
                    Some(if dx < 0.0 { Motion::Left } else { Motion::Right })
                }
                () if dy.abs() > 2.0 * dx.abs() && is_straight(way_y, dy.abs()) => {
                    Some(if dy < 0.0 { Motion::Up } else { Motion::Down })
                }
                () => None,
            };
        }
        let growth = track.growth();
        if growth > self.growth {
            return Some(Motion::Growing);
        }
        if growth < 1.0 / self.growth {
            return Some(Motion::Shrinking);
        }
        if track.turn.abs() > self.turn {
            return Some(Motion::Spinning);
        }
        let is_still = travel < self.rest
            && way_x.max(way_y) < 4.0 * self.rest
            && (0.8..1.25).contains(&growth)
            && track.turn.abs() < 0.5 * self.turn;
        is_still.then_some(Motion::Still)
    }
}

/// Track of an object over the frames in which it was found.
struct Track {
    x: Vec<f64>,
    y: Vec<f64>,
    size: Vec<f64>,
    turn: f64,
}

impl Track {
    fn new(found: &[Object], shape: Shape) -> Self {
        let of = |value: fn(&Object) -> f64| found.iter().map(value).collect::<Vec<_>>();
        let place = match shape {
            Shape::Triangle => Some(0),
            Shape::Square => Some(1),
            Shape::Star => Some(2),
            Shape::Circle | Shape::Ring => None,
        };
        let turn = place.map_or(0.0, |place| {
            let phases: Vec<f64> =
                found.iter().map(|o| o.components[place].1.atan2(o.components[place].0)).collect();
            // The phase of a shape with rotational symmetry runs faster than the rotation, by the order of the
            // symmetry.
            let wrapped = |step: f64| step - TAU * (step / TAU).round();
            let total: f64 = phases.windows(2).map(|pair| wrapped(pair[1] - pair[0])).sum();
            total / shape.meaning() as f64
        });
        Self { x: of(|o| o.x), y: of(|o| o.y), size: of(|o| o.size), turn }
    }

    /// Mean of the first frames and mean of the last frames.
    fn ends(values: &[f64]) -> (f64, f64) {
        let count = (values.len() / 5).max(1);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        (mean(&values[..count.min(values.len())]), mean(&values[values.len() - count..]))
    }

    fn travel(&self) -> (f64, f64) {
        let (x, y) = (Self::ends(&self.x), Self::ends(&self.y));
        (x.1 - x.0, y.1 - y.0)
    }

    fn growth(&self) -> f64 {
        let (from, to) = Self::ends(&self.size);
        to / from.max(1e-9)
    }

    /// Deviation of the object from smooth motion. The median is robust to a bounce.
    fn jerk(&self) -> f64 {
        [&self.x, &self.y, &self.size]
            .map(|values| third_difference(values))
            .into_iter()
            .fold(0.0, f64::max)
    }
}

fn path(values: &[f64]) -> f64 {
    values.windows(2).map(|pair| (pair[1] - pair[0]).abs()).sum()
}

fn third_difference(values: &[f64]) -> f64 {
    let mut jerks: Vec<f64> =
        values.windows(4).map(|v| (v[3] - 3.0 * v[2] + 3.0 * v[1] - v[0]).abs()).collect();
    jerks.sort_by(f64::total_cmp);
    jerks.get(jerks.len() / 2).copied().unwrap_or(0.0)
}

/// Opacities of the pixels of a frame.
struct Patch<'a> {
    solid: &'a [f64],
    width: usize,
    height: usize,
}

impl Patch<'_> {
    /// Bilinear interpolation between pixel centres; zero outside.
    fn at(&self, x: f64, y: f64) -> f64 {
        let (x, y) = (x - 0.5, y - 0.5);
        let value = |x: f64, y: f64| {
            let inside = x >= 0.0 && y >= 0.0 && x < self.width as f64 && y < self.height as f64;
            if inside { self.solid[y as usize * self.width + x as usize] } else { 0.0 }
        };
        let (left, top) = (x.floor(), y.floor());
        let (fx, fy) = (x - left, y - top);
        let row = |y: f64| value(left, y) * (1.0 - fx) + value(left + 1.0, y) * fx;
        row(top) * (1.0 - fy) + row(top + 1.0) * fy
    }

    /// Radius of the object in each of many directions: that of a sector with the same area.
    fn radii(&self, center: (f64, f64), reach: f64) -> Vec<f64> {
        const DIRECTIONS: usize = 90;
        const STEP: f64 = 0.25;
        let ray = |i: usize| {
            let (sin, cos) = (TAU * i as f64 / DIRECTIONS as f64).sin_cos();
            let count = (reach / STEP) as usize;
            let area: f64 = (0..count)
                .map(|j| {
                    let r = (j as f64 + 0.5) * STEP;
                    self.at(center.0 + r * cos, center.1 + r * sin) * r * STEP
                })
                .sum();
            (2.0 * area).sqrt()
        };
        (0..DIRECTIONS).map(ray).collect()
    }

    /// Mean opacity within a disc.
    fn mean_within(&self, center: (f64, f64), radius: f64) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for i in -4i32..=4 {
            for j in -4i32..=4 {
                let (x, y) = (f64::from(i) / 4.0, f64::from(j) / 4.0);
                if x.hypot(y) <= 1.0 {
                    sum += self.at(center.0 + radius * x, center.1 + radius * y);
                    count += 1.0;
                }
            }
        }
        sum / count
    }
}

/// Fourier component of `count` corners, as a fraction of the mean: cosine and sine amplitude.
fn component(radii: &[f64], count: usize, mean: f64) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for (i, radius) in radii.iter().enumerate() {
        let (sin, cos) = (TAU * (count * i) as f64 / radii.len() as f64).sin_cos();
        sum.0 += radius * cos;
        sum.1 += radius * sin;
    }
    let scale = 2.0 / (radii.len() as f64 * mean.max(1e-9));
    (sum.0 * scale, sum.1 * scale)
}

/// Clears all pixels except the largest region of more than half opaque pixels and the pixels that touch it.
fn keep_largest(solid: &mut [f64], width: usize, height: usize) {
    let mut labels = vec![0usize; solid.len()];
    let mut areas = vec![0usize];
    let mut open = Vec::new();
    for start in 0..solid.len() {
        if labels[start] != 0 || solid[start] <= 0.5 {
            continue;
        }
        let label = areas.len();
        areas.push(0);
        labels[start] = label;
        open.push(start);
        while let Some(i) = open.pop() {
            areas[label] += 1;
            for near in neighbours(i, width, height) {
                if labels[near] == 0 && solid[near] > 0.5 {
                    labels[near] = label;
                    open.push(near);
                }
            }
        }
    }
    let largest = (1..areas.len()).max_by_key(|label| areas[*label]).unwrap_or(0);
    for i in 0..solid.len() {
        let is_kept = labels[i] == largest && largest != 0;
        let touches = || neighbours(i, width, height).any(|near| labels[near] == largest);
        if !is_kept && (largest == 0 || labels[i] != 0 || !touches()) {
            solid[i] = 0.0;
        }
    }
}

/// Indices of the pixels above, below, left and right.
fn neighbours(i: usize, width: usize, height: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (i % width, i / width);
    [
        (x > 0).then(|| i - 1),
        (x + 1 < width).then(|| i + 1),
        (y > 0).then(|| i - width),
        (y + 1 < height).then(|| i + width),
    ]
    .into_iter()
    .flatten()
}

fn pixels(frame: &RgbImage) -> impl Iterator<Item = Rgb> {
    frame.pixels().map(|p| p.0.map(f64::from))
}

/// Border pixels: about three percent of the size on each side.
fn border(frame: &RgbImage) -> Vec<Rgb> {
    let (width, height) = frame.dimensions();
    let edge = (width.min(height) / 32).max(1);
    frame
        .enumerate_pixels()
        .filter(|(x, y, _)| (*x).min(width - 1 - x) < edge || (*y).min(height - 1 - y) < edge)
        .map(|(_, _, p)| p.0.map(f64::from))
        .collect()
}

/// Median of each channel.
fn median(colors: impl IntoIterator<Item = Rgb>) -> Rgb {
    let colors: Vec<Rgb> = colors.into_iter().collect();
    let channel = |i: usize| {
        let mut values: Vec<f64> = colors.iter().map(|c| c[i]).collect();
        let middle = values.len() / 2;
        if values.is_empty() {
            return 0.0;
        }
        *values.select_nth_unstable_by(middle, f64::total_cmp).1
    };
    [channel(0), channel(1), channel(2)]
}

fn distance(a: Rgb, b: Rgb) -> f64 {
    (0..3).map(|i| (a[i] - b[i]) * (a[i] - b[i])).sum::<f64>().sqrt()
}

/// The word with the nearest colour. `words` is never empty.
fn nearest<T: Copy>(words: &[T], color: Rgb, meaning: impl Fn(T) -> [u8; 3]) -> T {
    let far = |word: &T| distance(meaning(*word).map(f64::from), color);
    words.iter().copied().min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(words[0])
}
