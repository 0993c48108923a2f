//! Canny's edges, equal to OpenCV's `Canny` with its 3×3 Sobel filter and the L1 gradient.

use rayon::prelude::*;

use crate::media::RgbImage;
use crate::{Result, Stop};

/// tan(22.5°) with 15 fraction bits.
const TAN_22: i32 = 13573;

/// Fraction bits of [`TAN_22`].
const SHIFT: u32 = 15;

/// Rows between two checks of the stop flag.
const ROWS: usize = 64;

/// What a pixel is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    None,
    /// The middle of an edge if it touches one.
    Weak,
    Edge,
}

/// Gradient of one pixel, across and down: that of the channel in which their sum is largest, the first of equals.
type Slope = [i16; 2];

fn length(slope: Slope) -> i32 {
    i32::from(slope[0]).abs() + i32::from(slope[1]).abs()
}

/// The edges of a picture, white on black.
///
/// Of a picture in colour each pixel's strongest channel counts. Gradients at the border are those of a picture whose
/// outer pixels are repeated.
///
/// # Errors
///
/// [`crate::Error::Cancelled`] once `stop` is requested.
pub(super) fn edges(image: &RgbImage, low: f64, high: f64, stop: &Stop) -> Result<RgbImage> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (low, high) = (low.floor() as i32, high.floor() as i32);
    let mut slopes = vec![[0; 2]; width * height];
    slopes.par_chunks_mut(width).enumerate().for_each(|(y, row)| {
        if !stop.is_requested() {
            gradients(image, y, row);
        }
    });
    stop.check()?;
    let mut marks = vec![Mark::None; width * height];
    marks.par_chunks_mut(width).enumerate().for_each(|(y, row)| {
        if !stop.is_requested() {
            maxima(&slopes, y, row, (low, high));
        }
    });
    drop(slopes);
    stop.check()?;
    connect(&mut marks, width, stop)?;
    let mut edges = RgbImage::new(image.width(), image.height());
    for (pixel, mark) in edges.pixels_mut().zip(marks) {
        if mark == Mark::Edge {
            pixel.0 = [u8::MAX; 3];
        }
    }
    Ok(edges)
}

/// The gradients of row `y`.
fn gradients(image: &RgbImage, y: usize, out: &mut [Slope]) {
    let (width, height) = (out.len(), image.height() as usize);
    let row = |y: usize| &image.as_raw()[3 * width * y..3 * width * (y + 1)];
    let (above, here, below) = (row(y.saturating_sub(1)), row(y), row((y + 1).min(height - 1)));
    for (x, slope) in out.iter_mut().enumerate() {
        let (left, right) = (x.saturating_sub(1), (x + 1).min(width - 1));
        for channel in 0..3 {
            let at = |row: &[u8], x: usize| i16::from(row[3 * x + channel]);
            let column = |x: usize| at(above, x) + 2 * at(here, x) + at(below, x);
            let across = |row: &[u8]| at(row, left) + 2 * at(row, x) + at(row, right);
            let found = [column(right) - column(left), across(below) - across(above)];
            if channel == 0 || length(found) > length(*slope) {
                *slope = found;
            }
        }
    }
}

/// Marks pixels of row `y` that are longer than their neighbours along the gradient.
fn maxima(slopes: &[Slope], y: usize, out: &mut [Mark], (low, high): (i32, i32)) {
    let width = out.len();
    // Nothing is beyond the border.
    let at = |row: Option<usize>, x: Option<usize>| {
        let found = row.zip(x.filter(|x| *x < width)).and_then(|(y, x)| slopes.get(width * y + x));
        found.map_or(0, |slope| length(*slope))
    };
    let (above, here, below) = (y.checked_sub(1), Some(y), Some(y + 1));
    for (x, mark) in out.iter_mut().enumerate() {
        let slope = slopes[width * y + x];
        let own = length(slope);
        if own <= low {
            continue;
        }
        let (left, middle, right) = (x.checked_sub(1), Some(x), Some(x + 1));
        let across = i32::from(slope[0]).abs();
        let down = i32::from(slope[1]).abs() << SHIFT;
        // Angles below 22.5° and above 67.5°, whose tangents are 2 apart.
        let flat = across * TAN_22;
        let steep = flat + (across << (SHIFT + 1));
        let is_maximum = if down < flat {
            own > at(here, left) && own >= at(here, right)
        } else if down > steep {
            own > at(above, middle) && own >= at(below, middle)
        } else if (slope[0] < 0) == (slope[1] < 0) {
            own > at(above, left) && own > at(below, right)
        } else {
            own > at(above, right) && own > at(below, left)
        };
        if is_maximum {
            *mark = if own > high { Mark::Edge } else { Mark::Weak };
        }
    }
}

/// Makes edges of weak pixels that touch one, also at a corner, directly or by others.
fn connect(marks: &mut [Mark], width: usize, stop: &Stop) -> Result<()> {
    let height = marks.len() / width;
    let mut open = Vec::new();
    for start in 0..marks.len() {
        if start % (ROWS * width) == 0 {
            stop.check()?;
        }
        if marks[start] != Mark::Edge {
            continue;
        }
        open.push(start);
        while let Some(at) = open.pop() {
            let (x, y) = (at % width, at / width);
            for y in y.saturating_sub(1)..(y + 2).min(height) {
                for x in x.saturating_sub(1)..(x + 2).min(width) {
                    let near = width * y + x;
                    if marks[near] == Mark::Weak {
                        marks[near] = Mark::Edge;
                        open.push(near);
                    }
                }
            }
        }
    }
    Ok(())
}
