//! Properties of a clip that are known before its first frame, and the times of its frames.

use crate::media::RgbImage;
use crate::{Error, Result};

/// The size, length and rate of a clip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipInfo {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Number of frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
}

impl ClipInfo {
    /// Checks what no format could hold.
    pub(super) fn check(&self) -> Result<()> {
        if self.width == 0 || self.height == 0 {
            return Err(Error::request(
                "size",
                format!("an image needs pixels, got {} by {}", self.width, self.height),
            ));
        }
        if self.frames == 0 || self.frames > 1 << 24 {
            return Err(Error::request(
                "frames",
                format!("a clip has 1 to {} frames, got {}", 1 << 24, self.frames),
            ));
        }
        if !(0.01..=1000.0).contains(&self.fps) {
            return Err(Error::request(
                "fps",
                format!("must be between 0.01 and 1000, got {}", self.fps),
            ));
        }
        Ok(())
    }

    /// Checks that the next frame is one of this clip.
    pub(super) fn check_frame(
        &self,
        frame: &RgbImage,
        seen: usize,
        format: &'static str,
    ) -> Result<()> {
        if frame.dimensions() != (self.width, self.height) {
            let (width, height) = frame.dimensions();
            let reason = format!(
                "frame {seen} is {width} by {height}, the clip is {} by {}",
                self.width, self.height
            );
            return Err(Error::Encode { format, reason });
        }
        if seen >= self.frames {
            let reason = format!("more than the {} frames that were announced", self.frames);
            return Err(Error::Encode { format, reason });
        }
        Ok(())
    }

    /// Checks that the clip is complete.
    pub(super) fn check_end(&self, seen: usize, format: &'static str) -> Result<()> {
        if seen == self.frames {
            return Ok(());
        }
        let reason = format!("{} frames were announced, {seen} came", self.frames);
        Err(Error::Encode { format, reason })
    }

    /// The rate as a fraction of two numbers of at most 16 bits, exact where it was meant to be.
    pub(super) fn rate(&self) -> (u32, u32) {
        self.rate_within(u32::from(u16::MAX))
    }

    /// The rate as a fraction of two numbers of at most 20 bits, for formats that can hold them: 120000/1001.
    pub(super) fn fine_rate(&self) -> (u32, u32) {
        self.rate_within(1 << 20)
    }

    /// The first continued fraction that agrees to nine digits, so 23.976 is 2997/125 and 29.97002997 is 30000/1001;
    /// without one, the last that fits.
    fn rate_within(&self, limit: u32) -> (u32, u32) {
        let limit = f64::from(limit);
        let (mut before, mut last) = ((0.0, 1.0), (1.0, 0.0));
        let mut rest = self.fps;
        for _ in 0..32 {
            let whole = rest.floor();
            let next = (whole * last.0 + before.0, whole * last.1 + before.1);
            if next.0 > limit || next.1 > limit {
                break;
            }
            (before, last) = (last, next);
            if (last.0 / last.1 - self.fps).abs() <= self.fps * 1e-9 || rest == whole {
                break;
            }
            rest = 1.0 / (rest - whole);
        }
        (last.0 as u32, last.1 as u32)
    }

    /// Duration of frame `index`, in units of 1/`per_second` seconds.
    ///
    /// Rounding is carried on, so the clip's length is right to half a unit however long it is.
    pub(super) fn duration(&self, index: usize, per_second: u32) -> u32 {
        let (num, den) = self.rate();
        let (num, unit) = (u64::from(num), u64::from(den) * u64::from(per_second));
        let start_of = |index: u64| (2 * index * unit + num) / (2 * num);
        (start_of(index as u64 + 1) - start_of(index as u64)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(fps: f64) -> ClipInfo {
        ClipInfo { width: 8, height: 8, frames: 16, fps }
    }

    #[test]
    fn rates_become_the_fractions_they_stand_for() {
        for (fps, expected) in [
            (8.0, (8, 1)),
            (12.5, (25, 2)),
            (23.976, (2997, 125)),
            (24_000.0 / 1001.0, (24_000, 1001)),
            (60_000.0 / 1001.0, (60_000, 1001)),
            (0.01, (1, 100)),
            (1000.0, (1000, 1)),
        ] {
            assert_eq!(clip(fps).rate(), expected, "{fps}");
        }
    }

    #[test]
    fn formats_that_can_hold_larger_numbers_keep_faster_rates_exact() {
        for (num, den) in [(120_000, 1001), (240_000, 1001), (30_000, 1001), (24_000, 1001), (8, 1)]
        {
            let clip = clip(f64::from(num) / f64::from(den));
            assert_eq!(clip.fine_rate(), (num, den));
            let (short, long) = clip.rate();
            assert!(
                short < 65_536
                    && (f64::from(short) / f64::from(long) / clip.fps - 1.0).abs() < 1e-4
            );
        }
    }

    #[test]
    fn odd_rates_become_the_nearest_small_fraction() {
        for fps in [std::f64::consts::PI, 7.123_456_789, 999.001_3, 0.010_007] {
            let (num, den) = clip(fps).rate();
            assert!(num < 65_536 && den < 65_536);
            assert!(
                (f64::from(num) / f64::from(den) / fps - 1.0).abs() < 1e-4,
                "{fps}: {num}/{den}"
            );
        }
    }

    #[test]
    fn rounding_does_not_add_up() {
        let clip = clip(12.0);
        let delays: Vec<u32> = (0..16).map(|i| clip.duration(i, 100)).collect();
        assert_eq!(delays.iter().sum::<u32>(), 133); // 16 / 12 s
        assert!(delays.iter().all(|d| (8..=9).contains(d)), "{delays:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        for fps in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(clip(fps).check().is_err(), "{fps}");
        }
        assert!(ClipInfo { frames: 0, ..clip(8.0) }.check().is_err());
        assert!(ClipInfo { width: 0, ..clip(8.0) }.check().is_err());
    }
}
