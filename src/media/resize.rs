//! Image resizing, bit-exact with PIL 13.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::RgbImage;
use crate::spelling::named;
use crate::{Result, Stop};

/// Resize mode. Images are resampled with a three-lobed Lanczos filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Stretches the whole image to the target size, without keeping the aspect ratio, as in diffusers.
    #[default]
    Stretch,
    /// Crops the centre to the target's aspect ratio.
    Crop,
    /// Covers the target and crops the centre afterwards, as in AnimateLCM's own code: the same part as of `Crop`, but
    /// pixels at its edges are also made of those beyond.
    Cover,
    /// Fits the whole image into the target and fills the rest with black.
    Pad,
}

named!(Fit, "fit", {
    Stretch = "stretch" | "just-resize",
    Crop = "crop" | "crop-and-resize",
    Cover = "cover",
    Pad = "pad" | "letterbox",
});

/// Resizes an image.
///
/// # Errors
///
/// [`Error::Cancelled`](crate::Error::Cancelled) once `stop` is requested.
pub fn resize(
    image: &RgbImage,
    width: u32,
    height: u32,
    fit: Fit,
    stop: &Stop,
) -> Result<RgbImage> {
    resize_then(image, (width, height), fit, &|resized| Ok(resized), stop)
}

/// Resizes an image and changes the resized one by `change`, which keeps its size; what [`Fit::Pad`] adds stays black.
///
/// # Errors
///
/// Those of `change`; [`Error::Cancelled`](crate::Error::Cancelled) once `stop` is requested.
pub fn resize_then(
    image: &RgbImage,
    (width, height): (u32, u32),
    fit: Fit,
    change: &dyn Fn(RgbImage) -> Result<RgbImage>,
    stop: &Stop,
) -> Result<RgbImage> {
    let from = image.dimensions();
    if from == (width, height) || [from.0, from.1, width, height].contains(&0) {
        return change(image.clone());
    }
    if fit == Fit::Pad {
        return pad(image, (width, height), change, stop);
    }
    if fit == Fit::Cover {
        let (width, height) = cover(from, (width, height));
        let resized = resample(image, &width, &height, Filter::Lanczos, stop);
        stop.check()?;
        return change(resized);
    }
    let (width, height) = (Axis::whole(width), Axis::whole(height));
    let image = match fit {
        Fit::Pad | Fit::Stretch | Fit::Cover => Cow::Borrowed(image),
        Fit::Crop => {
            // The largest centred part with the target's aspect ratio.
            let scale = (f64::from(from.0) / f64::from(width.length))
                .min(f64::from(from.1) / f64::from(height.length));
            let part =
                |side: u32, most: u32| ((f64::from(side) * scale).round() as u32).clamp(1, most);
            let (width, height) = (part(width.length, from.0), part(height.length, from.1));
            let (x, y) = ((from.0 - width) / 2, (from.1 - height) / 2);
            Cow::Owned(image::imageops::crop_imm(image, x, y, width, height).to_image())
        }
    };
    let resized = resample(&image, &width, &height, Filter::Lanczos, stop);
    stop.check()?;
    change(resized)
}

/// The axes of an image that covers the target and of which the centre is kept, rounded as in `resize_and_crop` of
/// G-U-N/AnimateLCM@f873122358c101cd191533adb9cd517899fbfb01, `animatelcm/utils/util.py`.
fn cover(from: (u32, u32), to: (u32, u32)) -> (Axis, Axis) {
    let (from_width, from_height) = (f64::from(from.0), f64::from(from.1));
    let (width, height) = (f64::from(to.0), f64::from(to.1));
    let is_wider = width / height > from_width / from_height;
    let (across, down) = if is_wider {
        (width, width / from_width * from_height)
    } else {
        (height / from_height * from_width, height)
    };
    let axis = |side: f64, wanted: u32| {
        let length = (side.round_ties_even() as u32).max(wanted);
        let start = (f64::from(length - wanted) / 2.0).round_ties_even() as usize;
        Axis { length, part: start..start + wanted as usize }
    };
    (axis(across, to.0), axis(down, to.1))
}

/// The whole image, changed, in the middle of a black one of the target's size.
fn pad(
    image: &RgbImage,
    (width, height): (u32, u32),
    change: &dyn Fn(RgbImage) -> Result<RgbImage>,
    stop: &Stop,
) -> Result<RgbImage> {
    let from = image.dimensions();
    let scale = (f64::from(width) / f64::from(from.0)).min(f64::from(height) / f64::from(from.1));
    let side = |side: u32, most: u32| ((f64::from(side) * scale).round() as u32).clamp(1, most);
    let inner = (side(from.0, width), side(from.1, height));
    let resized = resize_then(image, inner, Fit::Stretch, change, stop)?;
    let mut padded = RgbImage::new(width, height);
    let (x, y) = ((width - inner.0) / 2, (height - inner.1) / 2);
    image::imageops::replace(&mut padded, &resized, i64::from(x), i64::from(y));
    Ok(padded)
}

/// An image of the same size with the details of one whose sides are shorter by `factor`: averaged, then enlarged with
/// a bicubic filter.
///
/// # Errors
///
/// [`Error::Cancelled`](crate::Error::Cancelled) once `stop` is requested.
pub fn coarse(image: &RgbImage, factor: f64, stop: &Stop) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let side = |side: u32| (f64::from(side) / factor).round_ties_even().max(1.0) as u32;
    let small = (Axis::whole(side(width)), Axis::whole(side(height)));
    let small = resample(image, &small.0, &small.1, Filter::Box, stop);
    stop.check()?;
    bicubic_to(&small, (width, height), stop)
}

/// The whole image at another size, by a bicubic filter.
///
/// # Errors
///
/// [`Error::Cancelled`](crate::Error::Cancelled) once `stop` is requested.
pub fn bicubic_to(image: &RgbImage, size: (u32, u32), stop: &Stop) -> Result<RgbImage> {
    let (width, height) = (Axis::whole(size.0), Axis::whole(size.1));
    let resized = resample(image, &width, &height, Filter::Bicubic, stop);
    stop.check()?;
    Ok(resized)
}

/// An image whose pixels are squares of `factor` by `factor` equal ones.
pub fn enlarge(image: &RgbImage, factor: u32) -> RgbImage {
    let factor = factor.max(1);
    let (width, height) = (image.width() * factor, image.height() * factor);
    RgbImage::from_fn(width, height, |x, y| *image.get_pixel(x / factor, y / factor))
}

/// The centre of an image, `side` pixels wide and high: the shorter side is resized to that length with a bicubic
/// filter and the longer one is cropped, as in transformers' `CLIPImageProcessor`.
pub fn square(image: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let shorter = width.min(height);
    if shorter == 0 || side == 0 {
        return RgbImage::new(side, side);
    }
    let axis = |from: u32| {
        let length = (u64::from(side) * u64::from(from) / u64::from(shorter)) as u32;
        let start = (length - side) / 2;
        Axis { length, part: start as usize..(start + side) as usize }
    };
    resample(image, &axis(width), &axis(height), Filter::Bicubic, &Stop::default())
}

/// An axis of a resized image, and the range of pixels to compute.
struct Axis {
    length: u32,
    part: Range<usize>,
}

impl Axis {
    fn whole(length: u32) -> Self {
        Self { length, part: 0..length as usize }
    }

    fn is(&self, length: u32) -> bool {
        self.length == length && self.part == (0..length as usize)
    }
}

/// Resampling filter.
#[derive(Clone, Copy)]
enum Filter {
    Box,
    Bicubic,
    Lanczos,
}

impl Filter {
    /// The filter's radius in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bicubic => bicubic(x),
            Self::Lanczos => lanczos(x, 3.0),
        }
    }
}

/// Resizes along both axes; rows not computed when `stop` is requested are black.
fn resample(
    image: &RgbImage,
    width: &Axis,
    height: &Axis,
    filter: Filter,
    stop: &Stop,
) -> RgbImage {
    // Pixels are rounded to bytes between the two passes, so their order matters.
    let is_down_first = image.height() > height.length && image.width() < width.length;
    let mut image = Cow::Borrowed(image);
    for is_down in [is_down_first, !is_down_first] {
        let (axis, length) =
            if is_down { (height, image.height()) } else { (width, image.width()) };
        if axis.is(length) {
            continue;
        }
        let windows = windows(length as usize, axis, filter);
        image = Cow::Owned(if is_down {
            down(&image, &windows, stop)
        } else {
            across(&image, &windows, stop)
        });
    }
    image.into_owned()
}

/// Number of fraction bits of the fixed-point weights.
const PRECISION: u32 = 22;

/// The source pixels of one output pixel, and their weights.
struct Window {
    /// Index of the first source pixel.
    start: usize,
    /// Fixed-point weights, which add up to one.
    weights: Vec<i32>,
}

/// One half in fixed point, for rounding to nearest.
const HALF: i32 = 1 << (PRECISION - 1);

/// Converts a fixed-point sum to a byte.
fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Resizes vertically.
fn down(image: &RgbImage, windows: &[Window], stop: &Stop) -> RgbImage {
    let row = 3 * image.width() as usize;
    rows(image.width(), windows.len() as u32, stop, |y, out| {
        let window = &windows[y];
        let mut sums = vec![HALF; row];
        let rows = image.as_raw().chunks_exact(row).skip(window.start);
        for (values, weight) in rows.zip(&window.weights) {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = byte(sum);
        }
    })
}

/// Resizes horizontally.
fn across(image: &RgbImage, windows: &[Window], stop: &Stop) -> RgbImage {
    let row = 3 * image.width() as usize;
    rows(windows.len() as u32, image.height(), stop, |y, out| {
        let values = &image.as_raw()[y * row..(y + 1) * row];
        for (out, window) in out.chunks_exact_mut(3).zip(windows) {
            let seen = &values[3 * window.start..3 * (window.start + window.weights.len())];
            let mut sums = [HALF; 3];
            for (pixel, weight) in seen.as_chunks::<3>().0.iter().zip(&window.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.copy_from_slice(&sums.map(byte));
        }
    })
}

/// An image whose rows are computed by `fill` in parallel; remaining rows are black once `stop` is requested.
fn rows(width: u32, height: u32, stop: &Stop, fill: impl Fn(usize, &mut [u8]) + Sync) -> RgbImage {
    let mut image = RgbImage::new(width, height);
    image.par_chunks_exact_mut(3 * width as usize).enumerate().for_each(|(y, row)| {
        if !stop.is_requested() {
            fill(y, row);
        }
    });
    image
}

/// The windows of the output pixels of an axis.
fn windows(from: usize, to: &Axis, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / f64::from(to.length);
    // Downscaling widens the filter.
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let window = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |j: usize| filter.weight((j as f64 - centre + 0.5) / stretch);
        let weights: Vec<f64> = (start..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let whole = |weight: &f64| (weight / sum * f64::from(1u32 << PRECISION)).round() as i32;
        Window { start, weights: weights.iter().map(whole).collect() }
    };
    to.part.clone().map(window).collect()
}

fn lanczos(x: f64, lobes: f64) -> f64 {
    let sinc = |x: f64| {
        if x == 0.0 {
            return 1.0;
        }
        let x = x * std::f64::consts::PI;
        x.sin() / x
    };
    if x.abs() < lobes { sinc(x) * sinc(x / lobes) } else { 0.0 }
}

/// Keys' cubic convolution with `a = -0.5`.
fn bicubic(x: f64) -> f64 {
    const SLOPE: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((SLOPE + 2.0) * x - (SLOPE + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * SLOPE
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn cropping_keeps_proportions_and_stretching_does_not() {
        // A white square in the middle of a wide black image.
        let image =
            RgbImage::from_fn(32, 16, |x, _| Rgb([if (8..24).contains(&x) { 255 } else { 0 }; 3]));
        let resize =
            |width, height, fit| resize(&image, width, height, fit, &Stop::default()).unwrap();
        let cropped = resize(8, 8, Fit::Crop);
        assert!(cropped.pixels().all(|pixel| pixel[0] > 250), "{cropped:?}");
        let stretched = resize(8, 8, Fit::Stretch);
        assert!(stretched.get_pixel(0, 4)[0] < 5 && stretched.get_pixel(4, 4)[0] > 250);
        let covered = resize(8, 8, Fit::Cover);
        assert!(covered.pixels().all(|pixel| pixel[0] > 200), "{covered:?}");
        assert_ne!(covered, cropped);
        assert_eq!(resize(32, 16, Fit::Crop), image);
        assert_eq!(resize(1, 1, Fit::Crop).dimensions(), (1, 1));
    }

    #[test]
    fn padding_keeps_all_of_the_image_and_adds_black() {
        let image = RgbImage::from_pixel(32, 16, Rgb([200; 3]));
        let padded = resize(&image, 16, 16, Fit::Pad, &Stop::default()).unwrap();
        for (x, y, pixel) in padded.enumerate_pixels() {
            let want = if (4..12).contains(&y) { 200 } else { 0 };
            assert_eq!(pixel[0], want, "{x},{y}");
        }
        // A side never vanishes.
        let line = RgbImage::from_pixel(1000, 1, Rgb([9; 3]));
        let padded = resize(&line, 8, 8, Fit::Pad, &Stop::default()).unwrap();
        assert_eq!(padded.pixels().filter(|pixel| pixel[0] == 9).count(), 8);
    }

    #[test]
    fn a_square_is_the_middle_however_long_the_image() {
        let wide = RgbImage::from_fn(100_000, 2, |x, _| {
            Rgb([if x.abs_diff(50_000) < 9 { 200 } else { 7 }; 3])
        });
        let middle = square(&wide, 8);
        assert_eq!(middle.dimensions(), (8, 8));
        assert!(middle.pixels().all(|pixel| pixel[0] == 200), "{middle:?}");
        assert_eq!(square(&RgbImage::new(0, 3), 4).dimensions(), (4, 4));
    }
}
