//! Colours of frames moved to the mean of an image's, bit-exact with OpenCV's 8-bit HSV.
//!
//! `adjust_colors` of G-U-N/AnimateLCM@f873122358c101cd191533adb9cd517899fbfb01, `animatelcm/utils/util.py`: the
//! difference of the mean hue, saturation and value is added to every pixel, of the hue 3 % of it.

use image::RgbImage;

/// Share of the difference of the means that is added to hue, saturation and value.
const SHARES: [f64; 3] = [0.03, 1.0, 1.0];

/// The largest hue, saturation and value.
const MOST: [f64; 3] = [180.0, 255.0, 255.0];

/// Mean hue (of 180), saturation and value (of 255) of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HsvMean([f64; 3]);

impl HsvMean {
    /// The mean of all pixels.
    pub fn of(image: &RgbImage) -> Self {
        Self::of_pixels(image.pixels().map(|pixel| to_hsv(pixel.0)))
    }

    fn of_pixels(pixels: impl Iterator<Item = [u8; 3]>) -> Self {
        let (mut sums, mut count) = ([0u64; 3], 0u64);
        for pixel in pixels {
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += u64::from(value);
            }
            count += 1;
        }
        Self(sums.map(|sum| sum as f64 / count.max(1) as f64))
    }

    /// Moves the colours of a frame to this mean.
    pub fn apply(&self, frame: &mut RgbImage) {
        let mut pixels: Vec<[u8; 3]> = frame.pixels().map(|pixel| to_hsv(pixel.0)).collect();
        let Self(means) = Self::of_pixels(pixels.iter().copied());
        let moves: [f64; 3] = std::array::from_fn(|i| SHARES[i] * (self.0[i] - means[i]));
        for (pixel, hsv) in frame.pixels_mut().zip(&mut pixels) {
            for (i, value) in hsv.iter_mut().enumerate() {
                *value = (f64::from(*value) + moves[i]).clamp(0.0, MOST[i]) as u8;
            }
            pixel.0 = to_rgb(*hsv);
        }
    }
}

/// Fraction bits of OpenCV's division tables.
const SHIFT: i32 = 12;

/// `numerator / denominator` in fixed point; 0 for a denominator of 0.
fn ratio(numerator: i32, denominator: i32) -> i32 {
    if denominator == 0 {
        return 0;
    }
    (f64::from(numerator << SHIFT) / f64::from(denominator)).round_ties_even() as i32
}

fn shift(product: i32) -> i32 {
    (product + (1 << (SHIFT - 1))) >> SHIFT
}

/// OpenCV's `COLOR_RGB2HSV` of bytes.
fn to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let [red, green, blue] = [red, green, blue].map(i32::from);
    let value = red.max(green).max(blue);
    let range = value - red.min(green).min(blue);
    let hue = if value == red {
        green - blue
    } else if value == green {
        blue - red + 2 * range
    } else {
        red - green + 4 * range
    };
    let hue = shift(hue * ratio(180, 6 * range));
    let hue = if hue < 0 { hue + 180 } else { hue };
    [hue as u8, shift(range * ratio(255, value)) as u8, value as u8]
}

/// OpenCV's `COLOR_HSV2RGB` of bytes, as its vector instructions compute it: the result is cut, not rounded, and
/// `1 - s·h` is rounded once. (The pixels at the end of rows that are no multiple of 32 wide OpenCV rounds.)
fn to_rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    let hue = f32::from(hue) * (6.0 / 180.0);
    let (saturation, value) =
        (f32::from(saturation) * (1.0 / 255.0), f32::from(value) * (1.0 / 255.0));
    let sector = hue as u32;
    let part = hue - sector as f32;
    // The product of two f32 is exact in f64.
    let without = |share: f32| (1.0 - f64::from(saturation) * f64::from(share)) as f32;
    let low = value * (1.0 - saturation);
    let falling = value * without(part);
    let rising = value * without(1.0 - part);
    let rgb = match sector % 6 {
        0 => [value, rising, low],
        1 => [falling, value, low],
        2 => [low, value, rising],
        3 => [low, falling, value],
        4 => [rising, low, value],
        _ => [value, low, falling],
    };
    rgb.map(|channel| (channel * 255.0) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn colours_are_opencvs() {
        for (rgb, hsv) in [
            ([0, 0, 0], [0, 0, 0]),
            ([255, 0, 0], [0, 255, 255]),
            ([0, 255, 0], [60, 255, 255]),
            ([0, 0, 255], [120, 255, 255]),
            ([10, 200, 30], [63, 242, 200]),
            ([200, 10, 30], [177, 242, 200]),
        ] {
            assert_eq!(to_hsv(rgb), hsv, "{rgb:?}");
        }
        // The largest hue is the smallest again.
        assert_eq!(to_rgb([180, 255, 255]), to_rgb([0, 255, 255]));
    }

    #[test]
    fn a_frame_of_that_mean_keeps_it_and_another_comes_near() {
        let shades = |value: u8| {
            RgbImage::from_fn(32, 8, |x, y| {
                Rgb([value, value / 2 + x as u8, value / 4 + (y * 4) as u8])
            })
        };
        let (bright, mut dark) = (shades(200), shades(90));
        let before = HsvMean::of(&dark).0;
        let wanted = HsvMean::of(&bright);
        wanted.apply(&mut dark);
        let after = HsvMean::of(&dark).0;
        for i in 1..3 {
            assert!((after[i] - wanted.0[i]).abs() < 2.0, "{after:?} {wanted:?}");
        }
        assert!((after[0] - before[0]).abs() < 0.1 * (wanted.0[0] - before[0]).abs() + 2.0);
        let mut none = RgbImage::new(0, 0);
        wanted.apply(&mut none);
    }
}
