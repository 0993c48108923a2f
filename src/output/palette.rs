//! One palette for all frames of a clip, and frames drawn with it.
//!
//! Colours are counted while the frames pass. Boxes of them are cut where that lowers the squared error most
//! (Wu 1991, "Efficient statistical computations for optimal color quantization", on points instead of a
//! grid), then k-means settles the centres. Drawing diffuses the error (Floyd and Steinberg 1976) in alternating
//! directions. Distances are taken in sRGB with the channels weighted: errors are diffused channel by channel,
//! and a space that mixes them (Oklab) was measured to leave more of them behind at equal perceived error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::{Result, Stop};

/// Bits of each channel that tell bins of the histogram apart.
const COUNTED: u32 = 6;
/// Bits of each channel that tell colours apart when drawing.
const DRAWN: u32 = 7;
/// Rounds of k-means; later ones move no centre by a visible amount.
const ROUNDS: usize = 8;
/// Visibility of errors in red, green and blue.
const WEIGHTS: [f32; 3] = [0.85, 1.2, 0.7];

/// The bin of a colour, when this many bits of each channel count.
fn bin(color: [u8; 3], bits: u32) -> usize {
    color.iter().fold(0, |bin, value| (bin << bits) | usize::from(value >> (8 - bits)))
}

/// Number of occurrences of each colour.
pub(super) struct Histogram {
    bins: Vec<Bin>,
    /// The colours themselves while there are few.
    few: Option<BTreeSet<[u8; 3]>>,
    limit: usize,
}

#[derive(Clone, Copy, Default)]
struct Bin {
    count: u64,
    sum: [u64; 3],
}

impl Histogram {
    /// A histogram for a palette of at most `limit` colours.
    pub(super) fn new(limit: usize) -> Self {
        Self { bins: vec![Bin::default(); 1 << (3 * COUNTED)], few: Some(BTreeSet::new()), limit }
    }

    /// Counts the pixels of a frame, three bytes each.
    pub(super) fn add(&mut self, pixels: &[u8]) {
        for pixel in pixels.chunks_exact(3) {
            let color = [pixel[0], pixel[1], pixel[2]];
            let bin = &mut self.bins[bin(color, COUNTED)];
            bin.count += 1;
            for (sum, value) in bin.sum.iter_mut().zip(color) {
                *sum += u64::from(value);
            }
            if let Some(few) = &mut self.few
                && few.insert(color)
                && few.len() > self.limit
            {
                self.few = None;
            }
        }
    }

    /// The palette that suits the colours counted.
    pub(super) fn palette(self, stop: &Stop) -> Result<Palette> {
        if let Some(few) = self.few {
            let exact = few.iter().zip(0..).map(|(&color, index)| (color, index)).collect();
            return Ok(Palette { colors: few.into_iter().collect(), lookup: Lookup::Exact(exact) });
        }
        let points: Vec<Point> = self
            .bins
            .iter()
            .filter(|bin| bin.count > 0)
            .map(|bin| {
                let mean = bin.sum.map(|sum| sum as f32 / bin.count as f32);
                Point { place: weighted(mean), weight: bin.count as f64 }
            })
            .collect();
        let mut centers = cut(points.clone(), self.limit, stop)?;
        for _ in 0..ROUNDS {
            stop.check()?;
            if !settle(&points, &mut centers) {
                break;
            }
        }
        let mut colors: Vec<[u8; 3]> = centers.into_iter().map(plain).collect();
        colors.sort_unstable();
        colors.dedup();
        let places = colors.iter().map(|color| weighted(color.map(f32::from))).collect();
        let lookup = Lookup::Nearest { places, known: vec![u16::MAX; 1 << (3 * DRAWN)] };
        Ok(Palette { colors, lookup })
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// A colour and how often it occurs.
#[derive(Clone, Copy)]
struct Point {
    place: [f32; 3],
    weight: f64,
}

/// Sums over points, from which their squared error follows.
#[derive(Clone, Copy, Default)]
struct Sums {
    weight: f64,
    sum: [f64; 3],
    square: [f64; 3],
}

impl Sums {
    fn add(&mut self, point: &Point) {
        self.weight += point.weight;
        for channel in 0..3 {
            let value = f64::from(point.place[channel]);
            self.sum[channel] += point.weight * value;
            self.square[channel] += point.weight * value * value;
        }
    }

    fn minus(&self, other: &Self) -> Self {
        let difference = |a: [f64; 3], b: [f64; 3]| [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
        Self {
            weight: self.weight - other.weight,
            sum: difference(self.sum, other.sum),
            square: difference(self.square, other.square),
        }
    }

    /// The squared error of drawing all with their mean, channel by channel.
    fn errors(&self) -> [f64; 3] {
        if self.weight <= 0.0 {
            return [0.0; 3];
        }
        [0, 1, 2].map(|c| (self.square[c] - self.sum[c] * self.sum[c] / self.weight).max(0.0))
    }

    fn error(&self) -> f64 {
        self.errors().iter().sum()
    }

    fn mean(&self) -> [f32; 3] {
        self.sum.map(|sum| (sum / self.weight.max(f64::MIN_POSITIVE)) as f32)
    }
}

/// A part of the points.
struct Box3 {
    start: usize,
    end: usize,
    sums: Sums,
}

/// Cuts the points into at most `limit` boxes and returns their means.
fn cut(mut points: Vec<Point>, limit: usize, stop: &Stop) -> Result<Vec<[f32; 3]>> {
    let total = |points: &[Point]| {
        let mut sums = Sums::default();
        for point in points {
            sums.add(point);
        }
        sums
    };
    let mut boxes = vec![Box3 { start: 0, end: points.len(), sums: total(&points) }];
    while boxes.len() < limit {
        stop.check()?;
        let worst = (0..boxes.len())
            .filter(|&i| boxes[i].end - boxes[i].start > 1)
            .max_by(|&a, &b| boxes[a].sums.error().total_cmp(&boxes[b].sums.error()));
        let Some(worst) = worst else { break };
        let Box3 { start, end, sums } = boxes[worst];
        let errors = sums.errors();
        let widest = (0..3).max_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap_or(0);
        let part = &mut points[start..end];
        part.sort_by(|a, b| a.place[widest].total_cmp(&b.place[widest]));
        let (mut left, mut best) = (Sums::default(), (f64::INFINITY, 1, Sums::default()));
        for (index, point) in part.iter().enumerate().take(part.len() - 1) {
            left.add(point);
            let error = left.error() + sums.minus(&left).error();
            if error < best.0 {
                best = (error, index + 1, left);
            }
        }
        let middle = start + best.1;
        // Summed anew, so that differences of large sums do not pile up rounding errors.
        boxes[worst] = Box3 { start, end: middle, sums: best.2 };
        boxes.push(Box3 { start: middle, end, sums: total(&points[middle..end]) });
    }
    Ok(boxes.iter().map(|part| part.sums.mean()).collect())
}

/// One iteration of k-means; returns whether a centre moved.
fn settle(points: &[Point], centers: &mut [[f32; 3]]) -> bool {
    let mut sums = vec![Sums::default(); centers.len()];
    for point in points {
        sums[nearest(centers, point.place)].add(point);
    }
    let mut has_moved = false;
    for (center, sums) in centers.iter_mut().zip(&sums) {
        if sums.weight > 0.0 {
            let mean = sums.mean();
            has_moved |= *center != mean;
            *center = mean;
        }
    }
    has_moved
}

/// The index of the nearest colour; the first of equals.
fn nearest(colors: &[[f32; 3]], [r, g, b]: [f32; 3]) -> usize {
    let mut best = (f32::INFINITY, 0);
    for (index, color) in colors.iter().enumerate() {
        let (dr, dg, db) = (color[0] - r, color[1] - g, color[2] - b);
        let distance = dr * dr + dg * dg + db * db;
        if distance < best.0 {
            best = (distance, index);
        }
    }
    best.1
}

/// The colours of a GIF.
pub(super) struct Palette {
    colors: Vec<[u8; 3]>,
    lookup: Lookup,
}

enum Lookup {
    /// Every colour of the clip is in the palette.
    Exact(BTreeMap<[u8; 3], u8>),
    /// The nearest colour; found once for each bin.
    Nearest { places: Vec<[f32; 3]>, known: Vec<u16> },
}

impl fmt::Debug for Palette {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Palette").field("colors", &self.colors.len()).finish_non_exhaustive()
    }
}

impl Palette {
    /// The colours, in the order of their indices.
    pub(super) fn colors(&self) -> &[[u8; 3]] {
        &self.colors
    }

    fn index(&mut self, color: [u8; 3]) -> u8 {
        match &mut self.lookup {
            Lookup::Exact(known) => known.get(&color).copied().unwrap_or(0),
            Lookup::Nearest { places, known } => {
                let slot = &mut known[bin(color, DRAWN)];
                if *slot == u16::MAX {
                    let middle = 1 << (7 - DRAWN);
                    let center = color.map(|v| f32::from((v & (0xff << (8 - DRAWN))) | middle));
                    *slot = nearest(places, weighted(center)) as u16;
                }
                *slot as u8
            }
        }
    }

    /// Draws a frame with the palette: one index a pixel.
    ///
    /// Where the frame equals the one before it, the index of then stays, so still parts stand still.
    pub(super) fn draw(
        &mut self,
        frame: &[u8],
        width: usize,
        before: Option<Drawn<'_>>,
    ) -> Vec<u8> {
        let mut indices = vec![0; frame.len() / 3];
        // The error that reaches each pixel of this row and of the next, with a margin on both sides.
        let mut errors = [vec![[0.0_f32; 3]; width + 2], vec![[0.0_f32; 3]; width + 2]];
        for (y, row) in frame.chunks_exact(3 * width).enumerate() {
            let [here, below] = &mut errors;
            below.fill([0.0; 3]);
            let is_leftward = y % 2 == 1;
            for step in 0..width {
                let x = if is_leftward { width - 1 - step } else { step };
                let at = y * width + x;
                let pixel = &row[3 * x..3 * x + 3];
                let wanted = [0, 1, 2].map(|c| {
                    // Clipped, or an error that no colour can make up for would smear on and on.
                    (f32::from(pixel[c]) + here[x + 1][c]).clamp(0.0, 255.0)
                });
                let kept = before
                    .as_ref()
                    .filter(|before| &before.frame[3 * at..3 * at + 3] == pixel)
                    .map(|before| before.indices[at]);
                let index = match (kept, &self.lookup) {
                    (Some(index), _) => index,
                    (None, Lookup::Exact(_)) => self.index([pixel[0], pixel[1], pixel[2]]),
                    (None, Lookup::Nearest { .. }) => self.index(wanted.map(|v| v.round() as u8)),
                };
                indices[at] = index;
                let drawn = self.colors.get(usize::from(index)).copied().unwrap_or_default();
                let (ahead, behind) = if is_leftward { (x, x + 2) } else { (x + 2, x) };
                for c in 0..3 {
                    let error = wanted[c] - f32::from(drawn[c]);
                    here[ahead][c] += error * (7.0 / 16.0);
                    below[behind][c] += error * (3.0 / 16.0);
                    below[x + 1][c] += error * (5.0 / 16.0);
                    below[ahead][c] += error * (1.0 / 16.0);
                }
            }
            errors.swap(0, 1);
        }
        indices
    }
}

/// A frame and what was drawn for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn<'a> {
    /// The frame, three bytes a pixel.
    pub(super) frame: &'a [u8],
    /// Palette index of each pixel.
    pub(super) indices: &'a [u8],
}

/// A colour where distances are how different it looks.
fn weighted(rgb: [f32; 3]) -> [f32; 3] {
    [rgb[0] * WEIGHTS[0], rgb[1] * WEIGHTS[1], rgb[2] * WEIGHTS[2]]
}

/// The nearest colour that a palette can hold.
fn plain([r, g, b]: [f32; 3]) -> [u8; 3] {
    [r / WEIGHTS[0], g / WEIGHTS[1], b / WEIGHTS[2]].map(|v| v.round().clamp(0.0, 255.0) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize) -> Vec<u8> {
        (0..width * height)
            .flat_map(|i| {
                let (x, y) = (i % width, i / width);
                [(x * 255 / width) as u8, (y * 255 / height) as u8, ((x + y) * 3 % 256) as u8]
            })
            .collect()
    }

    #[test]
    fn few_colours_are_kept_exactly() {
        let mut histogram = Histogram::new(255);
        let frame: Vec<u8> = (0..255_u8).flat_map(|i| [i, i ^ 0x55, 3]).collect();
        histogram.add(&frame);
        let mut palette = histogram.palette(&Stop::default()).unwrap();
        assert_eq!(palette.colors().len(), 255);
        let indices = palette.draw(&frame, 255, None);
        let drawn: Vec<u8> =
            indices.iter().flat_map(|&i| palette.colors()[usize::from(i)]).collect();
        assert_eq!(drawn, frame);
    }

    #[test]
    fn many_colours_are_met_on_average() {
        let (width, height) = (64, 64);
        let frame = gradient(width, height);
        let mut histogram = Histogram::new(255);
        histogram.add(&frame);
        let mut palette = histogram.palette(&Stop::default()).unwrap();
        assert!(palette.colors().len() <= 255);
        let indices = palette.draw(&frame, width, None);
        let mut worst = 0.0_f64;
        for block in 0..64 {
            let (left, top) = (block % 8 * 8, block / 8 * 8);
            for channel in 0..3 {
                let mut sum = 0.0;
                for at in (0..64).map(|i| (top + i / 8) * width + left + i % 8) {
                    let drawn = palette.colors()[usize::from(indices[at])][channel];
                    sum += f64::from(drawn) - f64::from(frame[3 * at + channel]);
                }
                worst = worst.max((sum / 64.0).abs());
            }
        }
        assert!(worst < 4.0, "{worst}");
    }

    #[test]
    fn a_palette_that_nobody_wants_is_not_made() {
        let mut histogram = Histogram::new(255);
        histogram.add(&gradient(64, 64));
        let stop = Stop::default();
        stop.request();
        assert!(matches!(histogram.palette(&stop), Err(crate::Error::Cancelled)));
    }

    #[test]
    fn settling_never_makes_it_worse() {
        let mut histogram = Histogram::new(16);
        histogram.add(&gradient(64, 64));
        let points: Vec<Point> = histogram
            .bins
            .iter()
            .filter(|bin| bin.count > 0)
            .map(|bin| Point {
                place: weighted(bin.sum.map(|s| s as f32 / bin.count as f32)),
                weight: bin.count as f64,
            })
            .collect();
        let cost = |centers: &[[f32; 3]]| -> f64 {
            points
                .iter()
                .map(|p| {
                    let center = centers[nearest(centers, p.place)];
                    let d: f32 = center.iter().zip(p.place).map(|(a, b)| (a - b) * (a - b)).sum();
                    p.weight * f64::from(d)
                })
                .sum()
        };
        let mut centers = cut(points.clone(), 16, &Stop::default()).unwrap();
        let mut before = cost(&centers);
        for _ in 0..ROUNDS {
            settle(&points, &mut centers);
            let after = cost(&centers);
            assert!(after <= before * (1.0 + 1e-5), "{before} {after}");
            before = after;
        }
    }

    #[test]
    fn still_pixels_stand_still() {
        let width = 32;
        let first = gradient(width, 32);
        let mut second = first.clone();
        second[..300].fill(0); // the top changes, the rest does not
        let mut histogram = Histogram::new(16);
        histogram.add(&first);
        histogram.add(&second);
        let mut palette = histogram.palette(&Stop::default()).unwrap();
        let indices = palette.draw(&first, width, None);
        let next = palette.draw(&second, width, Some(Drawn { frame: &first, indices: &indices }));
        assert_eq!(indices[100..], next[100..]);
        assert_ne!(indices[..100], next[..100]);
    }
}
