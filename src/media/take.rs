//! Selection of an input's frames, within a memory budget.

use std::collections::BTreeMap;

use image::RgbImage;

use super::background::Background;
use super::fault::Fault;
use crate::Stop;
use crate::error::Bytes;

/// Maximum number of frames kept of one input; clips are always shorter.
pub(super) const MOST_FRAMES: usize = 4096;

/// Maximum number of frames whose times are read: nine hours.
pub(super) const MOST_TIMES: usize = 1 << 20;

/// Maximum decoded size of one input in bytes: 1 GiB.
const MOST_DECODED: u64 = 1 << 30;

/// Decoded size in bytes that is allowed for any input.
const LEAST_DECODED: u64 = 448 << 20;

/// Decoded bytes allowed in addition per byte of the input.
const RATIO: u64 = 16;

/// Selection of frames of an animation, a video or a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Index of the first frame, from 0.
    pub from: usize,
    /// Frame step; at least 1.
    pub every: usize,
    /// Maximum number of frames; unlimited if `None`. Frames after the last selected one are not decoded.
    pub count: Option<usize>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { from: 0, every: 1, count: None }
    }
}

impl Selection {
    /// Returns whether frame `number` is selected, ignoring `count`.
    pub(super) fn has(&self, number: usize) -> bool {
        number.checked_sub(self.from).is_some_and(|after| after.is_multiple_of(self.every.max(1)))
    }

    /// Returns whether frame `number` is selected.
    pub(crate) fn takes(&self, number: usize) -> bool {
        let within = |count| number.saturating_sub(self.from) / self.every.max(1) < count;
        self.has(number) && self.count.is_none_or(within)
    }
}

/// Frames to collect from one input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chosen<'a> {
    /// At even intervals.
    Selection(Selection),
    /// These, in ascending order without repetition.
    Numbers(&'a [usize]),
}

impl Chosen<'_> {
    /// Returns whether frame `number` is chosen, ignoring [`count`](Self::count).
    fn has(&self, number: usize) -> bool {
        match self {
            Self::Selection(selection) => selection.has(number),
            Self::Numbers(numbers) => numbers.binary_search(&number).is_ok(),
        }
    }

    /// Maximum number of frames.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Selection(selection) => selection.count.unwrap_or(usize::MAX),
            Self::Numbers(numbers) => numbers.len(),
        }
    }

    /// The places in a list of so many frames that are chosen.
    pub(super) fn places(&self, all: usize) -> Vec<usize> {
        (0..all).filter(|at| self.has(*at)).take(self.count()).collect()
    }
}

impl From<Selection> for Chosen<'_> {
    fn from(selection: Selection) -> Self {
        Self::Selection(selection)
    }
}

/// Memory budget for reading one input.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
    all: u64,
    /// Memory in bytes that a decoder holds until its end.
    canvas: u64,
}

impl Budget {
    /// The budget of an input of `input` bytes.
    pub(super) fn new(input: u64) -> Self {
        let all = LEAST_DECODED.saturating_add(input.saturating_mul(RATIO)).min(MOST_DECODED);
        Self { left: all, all, canvas: 0 }
    }

    /// The remaining budget in bytes.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Checks that `needed` bytes may be allocated temporarily to decode pixels of this size.
    pub(super) fn fits(&self, (width, height): (u32, u32), needed: u64) -> Result<(), Fault> {
        if needed <= self.left {
            return Ok(());
        }
        let (needed, all) = (Bytes(needed), Bytes(self.all));
        Err(format!("{width}x{height} pixels need {needed} of memory, {all} are allowed").into())
    }

    /// Reserves what the decoder holds until its end: `each` bytes per pixel of a canvas.
    pub(super) fn canvas(&mut self, size: (u32, u32), each: u64) -> Result<(), Fault> {
        let needed = pixels(size).saturating_mul(each);
        self.fits(size, needed)?;
        self.left -= needed;
        self.canvas += needed;
        Ok(())
    }

    /// Reserves the memory of an RGB frame.
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

/// Number of pixels of an area.
pub(super) fn pixels((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height)
}

/// Collects the selected frames of one input as they are decoded.
#[derive(Debug)]
pub(super) struct Take<'a> {
    pub(super) budget: Budget,
    chosen: Chosen<'a>,
    stop: &'a Stop,
    /// The colour behind transparent pixels; their alpha is dropped if `None`.
    pub(super) background: Option<Background>,
    seen: usize,
    frames: Vec<RgbImage>,
}

impl<'a> Take<'a> {
    pub(super) fn new(chosen: impl Into<Chosen<'a>>, budget: Budget, stop: &'a Stop) -> Self {
        Self { budget, chosen: chosen.into(), stop, background: None, seen: 0, frames: vec![] }
    }

    /// Puts transparent pixels on a colour.
    pub(super) fn on(self, background: Option<Background>) -> Self {
        Self { background, ..self }
    }

    /// Returns [`Fault::Stopped`] once a stop was requested.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.stop.is_requested() { Err(Fault::Stopped) } else { Ok(()) }
    }

    /// Returns whether all selected frames have been collected.
    pub(super) fn is_full(&self) -> bool {
        self.frames.len() >= self.chosen.count()
    }

    /// Reserves memory for the next frame before it is decoded; returns whether the frame is selected.
    pub(super) fn wants(&mut self, size: (u32, u32)) -> Result<bool, Fault> {
        self.check()?;
        let is_wanted = self.chosen.has(self.seen) && !self.is_full();
        self.seen += 1;
        if is_wanted {
            if self.frames.len() == MOST_FRAMES {
                return Err(Fault::TooLong(format!("has more than {MOST_FRAMES} frames")));
            }
            self.budget.frame(size)?;
        }
        Ok(is_wanted)
    }

    /// Adds a selected frame.
    pub(super) fn keep(&mut self, frame: RgbImage) {
        self.frames.push(frame);
    }

    /// Collects the frames of an input with a known frame list: `numbers` are the decoded frames it shows, in order.
    /// `decode` passes each decoded frame and its number to its argument, which returns whether further frames are
    /// needed.
    #[allow(dead_code, reason = "some builds read no MP4")]
    pub(super) fn listed(
        &mut self,
        numbers: &[usize],
        decode: impl FnOnce(
            &mut dyn FnMut(usize, Decoded<'_>) -> Result<bool, Fault>,
        ) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let chosen = self.chosen.places(numbers.len());
        self.seen += numbers.len();
        if chosen.len() > MOST_FRAMES {
            return Err(Fault::TooLong(format!(
                "has {} frames, at most {MOST_FRAMES} are read",
                chosen.len()
            )));
        }
        // An edit list may show a frame twice, or frames out of order.
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

    /// Ends the input, which frees the memory of its decoder.
    pub(super) fn finish(self) -> Taken {
        let Self { mut budget, seen, frames, .. } = self;
        budget.left += std::mem::take(&mut budget.canvas);
        Taken { frames, seen, budget }
    }
}

/// Frames collected from an input.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) frames: Vec<RgbImage>,
    /// Number of frames encountered in the input.
    pub(super) seen: usize,
    pub(super) budget: Budget,
}

/// A decoded frame whose pixels are converted on demand.
#[allow(dead_code, reason = "some builds read no MP4")]
pub(super) struct Decoded<'a> {
    /// Width and height.
    pub(super) size: (u32, u32),
    /// Converts the frame to RGB.
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
