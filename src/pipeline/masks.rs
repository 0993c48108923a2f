//! Which parts of a source stay in the clip: whole frames, and what is black in a mask.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::{GrayImage, Luma};

use super::inputs::Inputs;
use super::overlay::Overlay;
use super::source::SourceFrames;
use crate::media::RgbImage;
use crate::media::read::{Media, Selection};
use crate::media::resize::resize;
use crate::media::tensor::luma;
use crate::request::{Request, Source};
use crate::{Error, Result, Stop};

/// The name of the option, for errors.
const FIELD: &str = "mask";

/// The grey from which on a mask is white: half, as in diffusers' mask processor.
const WHITE: u8 = 128;

/// What of a source stays in a clip.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// 1 where latents are made and 0 where they are the source's, `(1, frames, 1, height, width)` in bytes on the CPU.
    pub(super) made: Tensor,
    /// What is put over decoded frames; nothing if the latents are all that is kept.
    pub(super) overlay: Option<Arc<Overlay>>,
}

/// What a request keeps of its source, should it keep anything. The clip has so many pixels (width, height), `factor`
/// times those of the latents.
pub(super) fn kept(
    request: &Request,
    (inputs, source): (&Inputs, Option<&SourceFrames>),
    ((width, height), factor): ((usize, usize), usize),
    stop: &Stop,
) -> Result<Option<Kept>> {
    let Some((asked, source)) = request.source.as_ref().zip(source) else { return Ok(None) };
    if asked.keeping().is_none() {
        return Ok(None);
    }
    let (frames, fit) = (request.frames(), asked.fit.unwrap_or_default());
    let (rows, columns) = (height / factor, width / factor);
    let area = rows * columns;
    let masks = match &asked.mask {
        Some(record) => {
            let found = masks(asked, inputs.get(FIELD, &record.file)?, source, frames, stop)?;
            let fitted = |image| {
                check_size(asked, image, source, (width, height))?;
                Ok(grey(&resize(image, width as u32, height as u32, fit, stop)?))
            };
            found.iter().map(fitted).collect::<Result<Vec<_>>>()?
        }
        None => vec![],
    };
    // The pixel that torch's `interpolate` takes by nearest.
    let at = |i: usize| ((factor * (i % columns)) as u32, (factor * (i / columns)) as u32);
    let latents = |mask| (0..area).map(at).map(move |(x, y)| is_white(mask, x, y));
    let mut made: Vec<u8> = masks.iter().flat_map(latents).collect();
    if masks.len() < 2 {
        made = if masks.is_empty() { vec![1; frames * area] } else { made.repeat(frames) };
    }
    for frame in &asked.keep {
        if let Some(frame) = made.chunks_mut(area).nth(*frame) {
            frame.fill(0);
        }
    }
    if !made.contains(&1) {
        let reason = "nothing is white, so that nothing would be made";
        return Err(Error::request(FIELD, reason).with_hint("white is made, black is kept"));
    }
    let made = Tensor::from_vec(made, (1, frames, 1, rows, columns), &Device::Cpu)?;
    let overlay = Overlay {
        images: Arc::clone(&source.images),
        masks: masks.into(),
        keep: asked.keep.clone(),
    };
    let overlay = (asked.overlay == Some(true)).then(|| Arc::new(overlay));
    Ok(Some(Kept { made, overlay }))
}

/// The grey levels of an image.
fn grey(image: &RgbImage) -> GrayImage {
    GrayImage::from_fn(image.width(), image.height(), |x, y| Luma([luma(*image.get_pixel(x, y))]))
}

/// 1 where a mask is white, 0 where it is black.
fn is_white(mask: &GrayImage, x: u32, y: u32) -> u8 {
    u8::from(mask.get_pixel(x, y).0[0] >= WHITE)
}

/// The mask of all frames, or those of each.
fn masks(
    asked: &Source,
    media: &Media,
    source: &SourceFrames,
    frames: usize,
    stop: &Stop,
) -> Result<Vec<RgbImage>> {
    let file = asked.mask.as_ref().map_or("", |record| record.file.as_str());
    let two = Selection { count: Some(2), ..Selection::default() };
    let first = media.frames(FIELD, two, stop)?;
    if first.seen == 1 {
        return Ok(first.images);
    }
    let mut numbers = source.numbers.clone();
    if numbers.is_empty() {
        let all = media.frames(FIELD, Selection::default(), stop)?;
        if all.images.len() != frames {
            let reason = format!("{file} has {} frames, the clip {frames}", all.images.len());
            return Err(Error::request(FIELD, reason).with_hint("one image is for all frames"));
        }
        return Ok(all.images);
    }
    // Those that belong to the frames of the video that were taken, which may repeat.
    let last = numbers.last().copied().unwrap_or_default();
    let taken = numbers.clone();
    numbers.dedup();
    let found = media.frames_at(FIELD, &numbers, stop)?;
    if found.images.len() != numbers.len() {
        let (seen, video) = (found.seen, asked.file());
        let reason = format!("{file} has {seen} frames, but frame {last} of {video} is taken");
        return Err(Error::request(FIELD, reason)
            .with_hint("a mask has a frame for each of the video's, or one for all"));
    }
    let place = |number| found.images.get(numbers.binary_search(number).ok()?).cloned();
    Ok(taken.iter().filter_map(place).collect())
}

/// Fails unless a mask has the size of the source or of the clip.
fn check_size(
    asked: &Source,
    mask: &RgbImage,
    source: &SourceFrames,
    (width, height): (usize, usize),
) -> Result<()> {
    let own = mask.dimensions();
    if own == source.size || own == (width as u32, height as u32) {
        return Ok(());
    }
    let file = asked.mask.as_ref().map_or("", |record| record.file.as_str());
    let reason = format!(
        "{file} is {}x{}, {} is {}x{} and the clip {width}x{height}",
        own.0,
        own.1,
        asked.file(),
        source.size.0,
        source.size.1
    );
    Err(Error::request(FIELD, reason).with_hint("a mask has the size of one of them"))
}
