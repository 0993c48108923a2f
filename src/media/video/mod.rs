//! Video decoders: Y4M, and H.264 in MP4.

#[cfg(feature = "mp4")]
mod boxes;
#[cfg(feature = "mp4")]
mod h264;
#[cfg(feature = "mp4")]
mod mp4;
#[cfg(feature = "mp4")]
mod samples;
mod y4m;

use image::RgbImage;

use super::fault::Fault;
use super::take::Take;

/// Container format of a video, detected from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// YUV4MPEG2: uncompressed planes.
    Y4m,
    /// ISO base media file format (MP4) and QuickTime.
    Mp4,
}

impl Kind {
    /// The container format of a file that begins with `bytes`, if it is a video.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(y4m::MAGIC) {
            return Some(Self::Y4m);
        }
        // The boxes with which such files may begin.
        let kind = bytes.get(4..8)?;
        let is_mp4 = matches!(
            kind,
            b"ftyp"
                | b"moov"
                | b"mdat"
                | b"moof"
                | b"styp"
                | b"sidx"
                | b"wide"
                | b"free"
                | b"skip"
                | b"pnot"
                | b"PICT"
                | b"junk"
                | b"uuid"
        );
        is_mp4.then_some(Self::Mp4)
    }
}

/// Reads the frames of a video.
pub(super) fn read(kind: Kind, bytes: &[u8], take: &mut Take<'_>) -> Result<(), Fault> {
    match kind {
        Kind::Y4m => y4m::read(bytes, take),
        #[cfg(feature = "mp4")]
        Kind::Mp4 => mp4::read(bytes, take),
        #[cfg(not(feature = "mp4"))]
        Kind::Mp4 => Err("is an MP4, and this build has no `mp4` support".into()),
    }
}

/// Seconds for which each frame of a video is shown, in order.
pub(super) fn durations(kind: Kind, bytes: &[u8]) -> Result<Vec<f64>, Fault> {
    match kind {
        Kind::Y4m => y4m::durations(bytes),
        #[cfg(feature = "mp4")]
        Kind::Mp4 => mp4::durations(bytes),
        #[cfg(not(feature = "mp4"))]
        Kind::Mp4 => Err("is an MP4, and this build has no `mp4` support".into()),
    }
}

/// YCbCr matrix: the luma weights of red and blue.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Matrix {
    red: f32,
    blue: f32,
}

impl Matrix {
    /// ITU-R BT.601.
    const BT601: Self = Self { red: 0.299, blue: 0.114 };
    /// ITU-R BT.709.
    #[cfg(feature = "mp4")]
    const BT709: Self = Self { red: 0.2126, blue: 0.0722 };
    /// ITU-R BT.2020, non-constant luminance.
    #[cfg(feature = "mp4")]
    const BT2020: Self = Self { red: 0.2627, blue: 0.0593 };
}

/// One image plane.
#[derive(Clone, Copy, Debug)]
struct Plane<'a> {
    values: &'a [u8],
    stride: usize,
    width: usize,
    height: usize,
}

impl<'a> Plane<'a> {
    /// `None` if there are too few `values`.
    fn new(values: &'a [u8], stride: usize, (width, height): (usize, usize)) -> Option<Self> {
        let last = height.checked_sub(1)?.checked_mul(stride)?.checked_add(width)?;
        (width > 0 && width <= stride && last <= values.len()).then_some(Self {
            values,
            stride,
            width,
            height,
        })
    }

    /// Bilinear interpolation, clamped at the edges.
    fn at(&self, x: f32, y: f32) -> f32 {
        let (left, across) = split(x, self.width);
        let (top, down) = split(y, self.height);
        let (right, bottom) = ((left + 1).min(self.width - 1), (top + 1).min(self.height - 1));
        let value = |x: usize, y: usize| f32::from(self.values[y * self.stride + x]);
        let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
        mix(
            mix(value(left, top), value(right, top), across),
            mix(value(left, bottom), value(right, bottom), across),
            down,
        )
    }
}

/// The sample before a position, and the fractional distance to the next.
fn split(at: f32, count: usize) -> (usize, f32) {
    let at = at.clamp(0.0, (count - 1) as f32);
    (at as usize, at.fract())
}

/// An 8-bit YCbCr image.
#[derive(Clone, Debug)]
struct YcbcrImage<'a> {
    luma: Plane<'a>,
    /// Cb and Cr planes; `None` for grayscale.
    chroma: Option<(Plane<'a>, Plane<'a>)>,
    /// Number of pixels per chroma sample, horizontally and vertically.
    shared: (usize, usize),
    /// Whether chroma samples are horizontally centred between their pixels, rather than co-sited with the first.
    is_centred: bool,
    /// Whether values have full range (0 to 255) rather than limited range (16 to 235, chroma 16 to 240).
    is_full: bool,
    matrix: Matrix,
}

impl YcbcrImage<'_> {
    fn to_rgb(&self) -> RgbImage {
        let Matrix { red, blue } = self.matrix;
        let green = 1.0 - red - blue;
        let (black, luma_range, chroma_range) =
            if self.is_full { (0.0, 255.0, 255.0) } else { (16.0, 219.0, 224.0) };
        // Chroma position of a pixel, which lies between samples if chroma is subsampled.
        let place = |pixel: u32, shared: usize, is_centred: bool| {
            let first = pixel as f32 / shared as f32;
            if is_centred { first + 0.5 / shared as f32 - 0.5 } else { first }
        };
        RgbImage::from_fn(self.luma.width as u32, self.luma.height as u32, |x, y| {
            let luma = f32::from(self.luma.values[y as usize * self.luma.stride + x as usize]);
            let luma = (luma - black) / luma_range;
            let [cb, cr] = match &self.chroma {
                None => [0.0; 2],
                Some((cb, cr)) => {
                    let x = place(x, self.shared.0, self.is_centred);
                    let y = place(y, self.shared.1, true);
                    [cb, cr].map(|plane| (plane.at(x, y) - 128.0) / chroma_range)
                }
            };
            let r = luma + 2.0 * (1.0 - red) * cr;
            let b = luma + 2.0 * (1.0 - blue) * cb;
            let g = (luma - red * r - blue * b) / green;
            image::Rgb([r, g, b].map(|v| (v * 255.0).round().clamp(0.0, 255.0) as u8))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chroma_stands_where_its_pixels_are() {
        let luma = [128; 4 * 2];
        let (cb, cr) = ([128; 2], [16, 240]);
        let image = |is_centred| YcbcrImage {
            luma: Plane::new(&luma, 4, (4, 2)).unwrap(),
            chroma: Some((
                Plane::new(&cb, 2, (2, 1)).unwrap(),
                Plane::new(&cr, 2, (2, 1)).unwrap(),
            )),
            shared: (2, 2),
            is_centred,
            is_full: false,
            matrix: Matrix::BT601,
        };
        let reds = |is_centred| {
            let rgb = image(is_centred).to_rgb();
            [0, 1, 2, 3].map(|x| rgb.get_pixel(x, 1).0[0])
        };
        // Luma 128 is 130.4 of 255; a full chroma difference is worth 178.8.
        assert_eq!(reds(false), [0, 130, 255, 255]);
        assert_eq!(reds(true), [0, 41, 220, 255]);
    }

    #[test]
    fn planes_that_are_too_short_are_none() {
        assert!(Plane::new(&[0; 7], 4, (4, 2)).is_none());
        assert!(Plane::new(&[0; 7], 4, (3, 2)).is_some());
        assert!(Plane::new(&[0; 8], 4, (5, 1)).is_none());
        assert!(Plane::new(&[], 0, (0, 0)).is_none());
        assert!(Plane::new(&[0; 8], usize::MAX, (4, 3)).is_none());
    }
}
