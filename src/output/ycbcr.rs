//! RGB to the 8-bit, limited-range YCbCr of video.

use crate::media::RgbImage;

/// Matrix coefficients of the conversion from RGB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matrix {
    /// ITU-R BT.601: what readers assume of streams that do not say.
    Bt601,
    /// ITU-R BT.709.
    Bt709,
}

impl Matrix {
    /// The weights of red and blue in luma.
    fn weights(self) -> (f32, f32) {
        match self {
            Self::Bt601 => (0.299, 0.114),
            Self::Bt709 => (0.2126, 0.0722),
        }
    }
}

/// The three planes of an image, luma first.
#[derive(Clone, Debug, Default)]
pub(super) struct Planes {
    /// Width and height of the luma plane.
    pub(super) size: (usize, usize),
    /// Luma, 16 to 235.
    pub(super) y: Vec<u8>,
    /// Blue difference, 16 to 240.
    pub(super) cb: Vec<u8>,
    /// Red difference, 16 to 240.
    pub(super) cr: Vec<u8>,
}

/// Luma in `[0, 1]` and both differences in `[-0.5, 0.5]`.
fn transform(rgb: &[u8], (kr, kb): (f32, f32)) -> [f32; 3] {
    let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(|v| f32::from(v) / 255.0);
    let y = kr * r + (1.0 - kr - kb) * g + kb * b;
    [y, (b - y) / (2.0 * (1.0 - kb)), (r - y) / (2.0 * (1.0 - kr))]
}

fn luma(y: f32) -> u8 {
    (16.0 + 219.0 * y).round() as u8
}

fn chroma(c: f32) -> u8 {
    (128.0 + 224.0 * c).round() as u8
}

/// Converts to 4:4:4, with one chroma sample per pixel.
pub(super) fn full(frame: &RgbImage, matrix: Matrix) -> Planes {
    let weights = matrix.weights();
    let mut planes =
        Planes { size: (frame.width() as usize, frame.height() as usize), ..Planes::default() };
    for rgb in frame.as_raw().chunks_exact(3) {
        let [y, cb, cr] = transform(rgb, weights);
        planes.y.push(luma(y));
        planes.cb.push(chroma(cb));
        planes.cr.push(chroma(cr));
    }
    planes
}

/// Converts to 4:2:0, with one chroma sample for two by two pixels; odd sizes grow by repeating the last column or row.
///
/// Chroma sits where H.264 puts it unless told otherwise (ITU-T H.264, figure E-1, type 0): in the columns
/// of the even luma samples, so it is filtered with 1-2-1 across, and between two rows.
pub(super) fn halved(frame: &RgbImage, matrix: Matrix) -> Planes {
    let weights = matrix.weights();
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let (even_width, even_height) = (width.next_multiple_of(2), height.next_multiple_of(2));
    let mut planes = Planes { size: (even_width, even_height), ..Planes::default() };
    let mut rows = [vec![[0.0; 3]; even_width], vec![[0.0; 3]; even_width]];
    for pair in 0..even_height / 2 {
        for (offset, row) in rows.iter_mut().enumerate() {
            let source = (2 * pair + offset).min(height - 1);
            let pixels = &frame.as_raw()[source * 3 * width..(source + 1) * 3 * width];
            for (at, value) in row.iter_mut().enumerate() {
                let x = at.min(width - 1);
                *value = transform(&pixels[3 * x..3 * x + 3], weights);
            }
            planes.y.extend(row.iter().map(|[y, ..]| luma(*y)));
        }
        for x in (0..even_width).step_by(2) {
            let sum = |channel: usize| {
                rows.iter()
                    .map(|row| {
                        let left = row[x.saturating_sub(1)][channel];
                        left + 2.0 * row[x][channel] + row[x + 1][channel]
                    })
                    .sum::<f32>()
            };
            planes.cb.push(chroma(sum(1) / 8.0));
            planes.cr.push(chroma(sum(2) / 8.0));
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn flat(rgb: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(3, 3, Rgb(rgb))
    }

    #[test]
    fn known_colours_have_their_published_codes() {
        // 8-bit colour bars at 100 %: ITU-R BT.709 and BT.601.
        for (rgb, bt709, bt601) in [
            ([0, 0, 0], [16, 128, 128], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128], [235, 128, 128]),
            ([255, 0, 0], [63, 102, 240], [81, 90, 240]),
            ([0, 255, 0], [173, 42, 26], [145, 54, 34]),
            ([0, 0, 255], [32, 240, 118], [41, 240, 110]),
        ] {
            for (matrix, expected) in [(Matrix::Bt709, bt709), (Matrix::Bt601, bt601)] {
                let full = full(&flat(rgb), matrix);
                assert_eq!([full.y[4], full.cb[4], full.cr[4]], expected, "{rgb:?} {matrix:?}");
                let halved = halved(&flat(rgb), matrix);
                assert_eq!([halved.y[4], halved.cb[3], halved.cr[3]], expected);
            }
        }
    }

    #[test]
    fn odd_sizes_grow_by_their_edge() {
        let frame = RgbImage::from_fn(3, 1, |x, _| Rgb([(x * 100) as u8; 3]));
        let planes = halved(&frame, Matrix::Bt709);
        assert_eq!(planes.size, (4, 2));
        assert_eq!(planes.y[2], planes.y[3]);
        assert_eq!(planes.y[..4], planes.y[4..]);
        assert_eq!(planes.cb.len(), 2);
    }

    #[test]
    fn chroma_sits_on_even_columns() {
        // A red line on column 2 belongs to the second sample, and a quarter of column 3's to both sides.
        let line = |at: u32| {
            RgbImage::from_fn(6, 2, |x, _| Rgb(if x == at { [255, 0, 0] } else { [0, 0, 0] }))
        };
        let excess = |at| halved(&line(at), Matrix::Bt709).cr.map_excess();
        assert_eq!(excess(2), [0, 56, 0]);
        assert_eq!(excess(3), [0, 28, 28]);
    }

    trait Excess {
        fn map_excess(&self) -> [i32; 3];
    }

    impl Excess for Vec<u8> {
        fn map_excess(&self) -> [i32; 3] {
            [0, 1, 2].map(|i| i32::from(self[i]) - 128)
        }
    }
}
