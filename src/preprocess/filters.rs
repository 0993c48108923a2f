//! Filters: Sobel's gradient, Gaussian blurs and their differences.
//!
//! Beyond its border a picture is mirrored at its outer pixels, OpenCV's `BORDER_REFLECT_101`.

use rayon::prelude::*;

use crate::media::RgbImage;
use crate::media::tensor::luma;
use crate::{Result, Stop};

/// Standard deviation of the surroundings that `lineart` compares with, in pixels.
const LINEART_SIGMA: f64 = 6.0;

/// Differences that count as lines where `lineart` measures how dark lines are.
const LINEART_LEAST: f32 = 8.0;

/// The least darkness that `lineart` brings to half of white.
const LINEART_SCALE: f32 = 16.0;

/// Standard deviations of the blurs whose difference is `scribble`, in pixels.
const SCRIBBLE_SIGMAS: (f64, f64) = (0.5, 5.0);

/// The length of Sobel's gradient of the grey, over 4.
pub(super) fn soft_edges(image: &RgbImage, stop: &Stop) -> RgbImage {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let grey: Vec<u8> = image.pixels().map(|pixel| luma(*pixel)).collect();
    rows(image, stop, |y, out| {
        let row = |y: isize| &grey[mirrored(y, height) * width..][..width];
        let y = y as isize;
        let (above, here, below) = (row(y - 1), row(y), row(y + 1));
        for (x, out) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (left, right) = (mirrored(x as isize - 1, width), mirrored(x as isize + 1, width));
            let at = |row: &[u8], x: usize| i32::from(row[x]);
            let column = |x: usize| at(above, x) + 2 * at(here, x) + at(below, x);
            let across = |row: &[u8]| at(row, left) + 2 * at(row, x) + at(row, right);
            let slope = [column(right) - column(left), across(below) - across(above)];
            let square = slope.iter().map(|v| v * v).sum::<i32>();
            *out = [byte((square as f32).sqrt() / 4.0); 3];
        }
    })
}

/// How much darker than its surroundings each pixel is in its least dark channel, so that the median line is half
/// white.
pub(super) fn lineart(image: &RgbImage, stop: &Stop) -> Result<RgbImage> {
    let width = image.width() as usize;
    let wide = Blurred::new(image, LINEART_SIGMA, stop);
    let mut darker = vec![0f32; width * image.height() as usize];
    darker.par_chunks_mut(width).enumerate().for_each(|(y, out)| {
        if stop.is_requested() {
            return;
        }
        let values = &image.as_raw()[3 * width * y..][..3 * width];
        let around = wide.row(y);
        for (x, out) in out.iter_mut().enumerate() {
            let difference = |i: usize| around[i] - f32::from(values[i]);
            let least = (3 * x..3 * x + 3).map(difference).fold(f32::INFINITY, f32::min);
            *out = least.clamp(0.0, 255.0);
        }
    });
    stop.check()?;
    let mut lines: Vec<f32> = darker.iter().copied().filter(|v| *v > LINEART_LEAST).collect();
    let scale = median(&mut lines).unwrap_or(0.0).max(LINEART_SCALE);
    Ok(rows(image, stop, |y, out| {
        let darker = &darker[width * y..][..width];
        for (out, value) in out.as_chunks_mut::<3>().0.iter_mut().zip(darker) {
            *out = [(value / scale * 127.0).clamp(0.0, 255.0) as u8; 3];
        }
    }))
}

/// White where a narrow blur is darker than a wide one in every channel, by at least half of `threshold`.
pub(super) fn scribble(image: &RgbImage, threshold: f64, stop: &Stop) -> RgbImage {
    let narrow = Blurred::new(image, SCRIBBLE_SIGMAS.0, stop);
    let wide = Blurred::new(image, SCRIBBLE_SIGMAS.1, stop);
    rows(image, stop, |y, out| {
        let (narrow, wide) = (narrow.row(y), wide.row(y));
        for (x, out) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let difference = |i: usize| wide[i] - narrow[i];
            let least = (3 * x..3 * x + 3).map(difference).fold(f32::INFINITY, f32::min);
            let paper = (255.0 - least).clamp(0.0, 255.0) as u8;
            let is_line = 2.0 * f64::from(u8::MAX - paper) > threshold;
            *out = [if is_line { u8::MAX } else { 0 }; 3];
        }
    })
}

/// A Gaussian blur.
pub(super) fn blur(image: &RgbImage, sigma: f64, stop: &Stop) -> RgbImage {
    let blurred = Blurred::new(image, sigma, stop);
    rows(image, stop, |y, out| {
        for (out, value) in out.iter_mut().zip(blurred.row(y)) {
            *out = byte(value);
        }
    })
}

/// A Gaussian blur of which each row is computed when it is asked for.
struct Blurred {
    /// The picture blurred along its rows, `(height, width, 3)`.
    across: Vec<f32>,
    width: usize,
    height: usize,
    kernel: Vec<f32>,
}

impl Blurred {
    /// Blurs along the rows; rows not computed when `stop` is requested are black.
    fn new(image: &RgbImage, sigma: f64, stop: &Stop) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let kernel = gaussian(sigma);
        let reach = kernel.len() / 2;
        let mut across = vec![0f32; 3 * width * height];
        across.par_chunks_mut(3 * width).enumerate().for_each(|(y, out)| {
            if stop.is_requested() {
                return;
            }
            let values = &image.as_raw()[3 * width * y..][..3 * width];
            // The row with as much beyond both ends as the kernel reaches.
            let end = (width + reach) as isize;
            let longer: Vec<f32> = (-(reach as isize)..end)
                .flat_map(|x| {
                    let x = mirrored(x, width);
                    values[3 * x..3 * x + 3].iter().map(|value| f32::from(*value))
                })
                .collect();
            for (at, weight) in kernel.iter().enumerate() {
                for (out, value) in out.iter_mut().zip(&longer[3 * at..]) {
                    *out += value * weight;
                }
            }
        });
        Self { across, width, height, kernel }
    }

    /// Row `y` of the blurred picture.
    fn row(&self, y: usize) -> Vec<f32> {
        let reach = self.kernel.len() / 2;
        let mut out = vec![0f32; 3 * self.width];
        let first = y as isize - reach as isize;
        for (y, weight) in (first..).zip(&self.kernel) {
            let row = &self.across[3 * self.width * mirrored(y, self.height)..];
            for (out, value) in out.iter_mut().zip(row) {
                *out += value * weight;
            }
        }
        out
    }
}

/// The weights of OpenCV's Gaussian kernel for f32, which reaches four standard deviations far.
fn gaussian(sigma: f64) -> Vec<f32> {
    let count = ((sigma * 8.0 + 1.0).round_ties_even() as usize) | 1;
    let middle = (count / 2) as f64;
    let weight = |i: usize| (-(i as f64 - middle).powi(2) / (2.0 * sigma * sigma)).exp();
    let weights: Vec<f64> = (0..count).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / sum) as f32).collect()
}

/// The place in `0..length` that a place beyond stands for, mirrored at the outer places.
fn mirrored(at: isize, length: usize) -> usize {
    let last = length as isize - 1;
    if last <= 0 {
        return 0;
    }
    let at = at.rem_euclid(2 * last);
    (if at > last { 2 * last - at } else { at }) as usize
}

/// The median; of an even number of values the mean of both in the middle, nothing of none.
fn median(values: &mut [f32]) -> Option<f32> {
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    let is_even = values.len().is_multiple_of(2);
    let (below, upper, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    let upper = *upper;
    let lower = below.iter().copied().max_by(f32::total_cmp);
    Some(if is_even { f32::midpoint(lower.unwrap_or(upper), upper) } else { upper })
}

/// The nearest byte; the even one of two.
fn byte(value: f32) -> u8 {
    value.round_ties_even().clamp(0.0, 255.0) as u8
}

/// A picture of the size of another whose rows are computed by `fill` in parallel; remaining rows are black once `stop`
/// is requested.
fn rows(like: &RgbImage, stop: &Stop, fill: impl Fn(usize, &mut [u8]) + Sync) -> RgbImage {
    let mut image = RgbImage::new(like.width(), like.height());
    image.par_chunks_exact_mut(3 * like.width() as usize).enumerate().for_each(|(y, row)| {
        if !stop.is_requested() {
            fill(y, row);
        }
    });
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_beyond_the_border_are_mirrored_at_the_outer_pixels() {
        let at = |at| mirrored(at, 4);
        assert_eq!([-4, -3, -1, 0, 3, 4, 6, 7].map(at), [2, 3, 1, 0, 3, 2, 0, 1]);
        assert_eq!([-9, 0, 9].map(|at| mirrored(at, 1)), [0; 3]);
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn a_step_keeps_its_height() {
        let step = RgbImage::from_fn(6, 3, |x, _| image::Rgb([if x < 3 { 40 } else { 140 }; 3]));
        let edges = soft_edges(&step, &Stop::default());
        let row: Vec<u8> = (0..6).map(|x| edges.get_pixel(x, 1)[0]).collect();
        assert_eq!(row, [0, 0, 100, 100, 0, 0]);
    }
}
