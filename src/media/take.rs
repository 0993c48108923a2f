//! The frames that are taken of one input, within a budget of memory.

use std::collections::BTreeMap;

use image::RgbImage;

use super::fault::Fault;
use super::read::Selection;
use crate::Stop;
use crate::error::Bytes;

/// The most frames that are kept of one input; a clip never has as many.
pub(super) const MOST_FRAMES: usize = 4096;

/// The most bytes that one input may have decoded: a gigabyte.
const MOST_DECODED: u64 = 1 << 30;

/// What an input of a few bytes may have decoded.
const LEAST_DECODED: u64 = 448 << 20;

/// How many times its own size a larger input may have decoded beyond that.
const RATIO: u64 = 16;

/// Memory that reading one input may still take.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
    all: u64,
    /// What a decoder has until its end.
    canvas: u64,
}

impl Budget {
    /// That of an input of so many bytes.
    pub(super) fn new(input: u64) -> Self {
        let all = LEAST_DECODED.saturating_add(input.saturating_mul(RATIO)).min(MOST_DECODED);
        Self { left: all, all, canvas: 0 }
    }

    /// What is left of it.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Whether so many bytes may be allocated for a while to decode pixels of this size.
    pub(super) fn fits(&self, (width, height): (u32, u32), needed: u64) -> Result<(), Fault> {
        if needed <= self.left {
            return Ok(());
        }
        let (needed, all) = (Bytes(needed), Bytes(self.all));
        Err(format!("{width}x{height} pixels need {needed} of memory, {all} are allowed").into())
    }

    /// Takes what the decoder keeps until the end: so many bytes for every pixel of a canvas.
    pub(super) fn canvas(&mut self, size: (u32, u32), each: u64) -> Result<(), Fault> {
        let needed = pixels(size).saturating_mul(each);
        self.fits(size, needed)?;
        self.left -= needed;
        self.canvas += needed;
        Ok(())
    }

    /// Takes what an RGB frame needs.
    fn frame(&mut self, size: (u32, u32)) -> Result<(), Fault> {
        let left = self.left.checked_sub(pixels(size).saturating_mul(3));
        self.left = left.ok_or_else(|| {
            let (width, height) = size;
            let all = Bytes(self.all);
            Fault::TooLong(format!("its frames of {width}x{height} need more than {all} of memory"))
        })?;
        Ok(())
    }
}

/// The pixels of an area.
pub(super) fn pixels((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height)
}

/// Takes the frames of one input as they come.
#[derive(Debug)]
pub(super) struct Take<'a> {
    pub(super) budget: Budget,
    selection: Selection,
    stop: &'a Stop,
    seen: usize,
    frames: Vec<RgbImage>,
}

impl<'a> Take<'a> {
    pub(super) fn new(selection: Selection, budget: Budget, stop: &'a Stop) -> Self {
        Self { budget, selection, stop, seen: 0, frames: vec![] }
    }

    /// Returns [`Fault::Stopped`] once a stop was requested.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.stop.is_requested() { Err(Fault::Stopped) } else { Ok(()) }
    }

    /// Whether no later frame is wanted.
    pub(super) fn is_full(&self) -> bool {
        self.selection.count.is_some_and(|count| self.frames.len() >= count)
    }

    /// Makes room for the next frame if it is wanted, before it is decoded.
    pub(super) fn wants(&mut self, size: (u32, u32)) -> Result<bool, Fault> {
        self.check()?;
        let is_wanted = self.selection.has(self.seen) && !self.is_full();
        self.seen += 1;
        if is_wanted {
            if self.frames.len() == MOST_FRAMES {
                return Err(Fault::TooLong(format!("has more than {MOST_FRAMES} frames")));
            }
            self.budget.frame(size)?;
        }
        Ok(is_wanted)
    }

    /// Keeps the frame that was wanted.
    pub(super) fn keep(&mut self, frame: RgbImage) {
        self.frames.push(frame);
    }

    /// Takes the frames of an input that knows them beforehand: `numbers` are those that it shows, in order. `decode`
    /// hands each decoded frame and its number to its argument, which says whether it wants more.
    #[allow(dead_code, reason = "some builds read no MP4")]
    pub(super) fn listed(
        &mut self,
        numbers: &[usize],
        decode: impl FnOnce(
            &mut dyn FnMut(usize, Decoded<'_>) -> Result<bool, Fault>,
        ) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let chosen = (0..numbers.len()).filter(|at| self.selection.has(*at));
        let chosen: Vec<usize> = chosen.take(self.selection.count.unwrap_or(usize::MAX)).collect();
        self.seen += numbers.len();
        if chosen.len() > MOST_FRAMES {
            return Err(Fault::TooLong(format!(
                "has {} frames, at most {MOST_FRAMES} are read",
                chosen.len()
            )));
        }
        // An edit list may show a frame twice, or late ones first.
        let mut places = BTreeMap::<usize, Vec<usize>>::new();
        for (place, at) in chosen.iter().enumerate() {
            places.entry(numbers[*at]).or_default().push(place);
        }
        let mut taken: Vec<Option<RgbImage>> = vec![None; chosen.len()];
        let (stop, budget) = (self.stop, &mut self.budget);
        decode(&mut |number, decoded| {
            if stop.is_requested() {
                return Err(Fault::Stopped);
            }
            if let Some(places) = places.remove(&number) {
                for _ in &places {
                    budget.frame(decoded.size)?;
                }
                let frame = (decoded.make)()?;
                for place in places {
                    taken[place] = Some(frame.clone());
                }
            }
            Ok(!places.is_empty())
        })?;
        self.frames.extend(taken.into_iter().flatten());
        Ok(())
    }

    /// The end of the input.
    pub(super) fn finish(self) -> Taken {
        let Self { mut budget, seen, frames, .. } = self;
        budget.left += std::mem::take(&mut budget.canvas);
        Taken { frames, seen, budget }
    }
}

/// What was taken of an input.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) frames: Vec<RgbImage>,
    /// How many frames the input has, as far as it was read.
    pub(super) seen: usize,
    pub(super) budget: Budget,
}

/// A decoded frame that nobody may want.
#[allow(dead_code, reason = "some builds read no MP4")]
pub(super) struct Decoded<'a> {
    /// Width and height.
    pub(super) size: (u32, u32),
    /// Its pixels.
    pub(super) make: &'a dyn Fn() -> Result<RgbImage, Fault>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: u8) -> RgbImage {
        RgbImage::from_pixel(1, 1, image::Rgb([value; 3]))
    }

    fn listed(selection: Selection, numbers: &[usize]) -> (Vec<u8>, usize) {
        let stop = Stop::default();
        let mut take = Take::new(selection, Budget::new(0), &stop);
        let mut decoded = 0;
        take.listed(numbers, |each| {
            for number in 0..10 {
                decoded += 1;
                let make = || Ok(one(number as u8));
                if !each(number, Decoded { size: (1, 1), make: &make })? {
                    break;
                }
            }
            Ok(())
        })
        .unwrap();
        (take.finish().frames.iter().map(|frame| frame.get_pixel(0, 0)[0]).collect(), decoded)
    }

    #[test]
    fn listed_frames_come_in_the_order_of_the_list_and_no_later_one_is_decoded() {
        let all = Selection::default();
        assert_eq!(listed(all, &[2, 3, 4]), (vec![2, 3, 4], 5));
        assert_eq!(listed(all, &[5, 1, 5]), (vec![5, 1, 5], 6));
        let some = Selection { from: 1, every: 2, count: Some(2) };
        assert_eq!(listed(some, &[0, 1, 2, 3, 4, 5, 6, 7]), (vec![1, 3], 4));
    }

    #[test]
    fn a_budget_grows_with_the_input_up_to_a_gigabyte() {
        assert!(Budget::new(0).fits((10_000, 10_000), 400 << 20).is_ok());
        assert!(Budget::new(0).fits((1, 1), 449 << 20).is_err());
        assert!(Budget::new(10 << 20).fits((1, 1), 600 << 20).is_ok());
        assert!(Budget::new(u64::MAX).fits((1, 1), (1 << 30) + 1).is_err());
        let mut budget = Budget::new(0);
        assert!(budget.canvas((u32::MAX, u32::MAX), u64::MAX).is_err());
        assert!(budget.canvas((1 << 14, 1 << 14), 1).is_ok());
        assert!(matches!(budget.frame((1 << 13, 1 << 14)), Err(Fault::TooLong(_))));
    }

    #[test]
    fn a_stop_ends_the_taking() {
        let stop = Stop::default();
        let mut take = Take::new(Selection::default(), Budget::new(0), &stop);
        assert!(take.wants((1, 1)).unwrap());
        stop.request();
        assert!(matches!(take.wants((1, 1)), Err(Fault::Stopped)));
    }
}
