//! Masks: regions of the frames in which an adapter applies.

use crate::media::RgbImage;

/// A binary mask: white where an adapter applies, black elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    width: usize,
    height: usize,
    /// 0 or 1 in row-major order.
    values: Vec<f32>,
}

impl Mask {
    /// Binarizes an image at half brightness, as diffusers does.
    pub fn new(image: &RgbImage) -> Self {
        let value = |pixel: &image::Rgb<u8>| {
            // PIL's grayscale conversion: ITU-R 601 in 16-bit fixed point, rounded.
            let [red, green, blue] = pixel.0.map(u32::from);
            let grey = (19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16;
            f32::from(u8::from(grey >= 128))
        };
        let (width, height) = image.dimensions();
        Self {
            width: width as usize,
            height: height as usize,
            values: image.pixels().map(value).collect(),
        }
    }

    /// Height and width in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// The mask at another size in row-major order, resized like torch's bicubic `interpolate`: edges overshoot, and
    /// downsizing is not antialiased.
    pub fn at(&self, height: usize, width: usize) -> Vec<f32> {
        let rows = taps(self.height, height);
        let columns = taps(self.width, width);
        let pixel = |row: usize, column: usize| {
            self.values.get(row * self.width + column).copied().unwrap_or_default()
        };
        rows.iter()
            .flat_map(|row| {
                columns.iter().map(move |column| {
                    let across = |&(y, weight): &(usize, f32)| {
                        weight * column.iter().map(|&(x, w)| w * pixel(y, x)).sum::<f32>()
                    };
                    row.iter().map(across).sum()
                })
            })
            .collect()
    }
}

/// The four source pixels of every output pixel along one axis, and their weights.
fn taps(from: usize, to: usize) -> Vec<[(usize, f32); 4]> {
    /// The parameter `a` of the cubic convolution kernel: its slope at distance 1.
    const SLOPE: f32 = -0.75;
    let near = |x: f32| ((SLOPE + 2.0) * x - (SLOPE + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((SLOPE * x - 5.0 * SLOPE) * x + 8.0 * SLOPE) * x - 4.0 * SLOPE;
    let last = from.saturating_sub(1) as isize;
    let scale = from as f32 / to as f32;
    let tap = |i: usize| {
        let centre = (i as f32 + 0.5) * scale - 0.5;
        let first = centre.floor();
        let t = centre - first;
        let at = |offset: isize| (first as isize + offset).clamp(0, last) as usize;
        [(at(-1), far(t + 1.0)), (at(0), near(t)), (at(1), near(1.0 - t)), (at(2), far(2.0 - t))]
    };
    (0..to).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn the_lighter_half_is_white() {
        let greys = [0, 127, 128, 255];
        let image = RgbImage::from_fn(4, 1, |x, _| Rgb([greys[x as usize]; 3]));
        assert_eq!(Mask::new(&image).values, [0.0, 0.0, 1.0, 1.0]);
        // The luma of green is above one half, that of blue below.
        let pure = RgbImage::from_fn(2, 1, |x, _| Rgb([0, 255 * (1 - x as u8), 255 * x as u8]));
        assert_eq!(Mask::new(&pure).values, [1.0, 0.0]);
    }

    #[test]
    fn at_its_own_size_a_mask_is_itself() {
        let image = RgbImage::from_fn(3, 2, |x, y| Rgb([((x + y) % 2 * 255) as u8; 3]));
        let mask = Mask::new(&image);
        assert_eq!(mask.size(), (2, 3));
        assert_eq!(mask.at(2, 3), mask.values);
        let white = Mask::new(&RgbImage::from_pixel(5, 4, Rgb([255; 3]))).at(3, 7);
        assert!(white.iter().all(|value| (value - 1.0).abs() < 1e-6), "{white:?}");
    }
}
