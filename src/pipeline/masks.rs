//! Which parts of a source stay in the clip: whole frames, and what is black in a mask.

use candle_core::{Device, Tensor};

use super::inputs::Inputs;
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

/// 1 where a request has latents made and 0 where it keeps the source's, `(1, frames, 1, height, width)` in bytes on the
/// CPU; nothing if it keeps none. The clip has so many pixels (width, height), `factor` times those of the latents.
pub(super) fn mask(
    request: &Request,
    (inputs, source): (&Inputs, Option<&SourceFrames>),
    ((width, height), factor): ((usize, usize), usize),
    stop: &Stop,
) -> Result<Option<Tensor>> {
    let Some((asked, source)) = request.source.as_ref().zip(source) else { return Ok(None) };
    if asked.keeping().is_none() {
        return Ok(None);
    }
    let (frames, fit) = (request.frames(), asked.fit.unwrap_or_default());
    let (rows, columns) = (height / factor, width / factor);
    let area = rows * columns;
    let mut made =
        match &asked.mask {
            None => vec![1; frames * area],
            Some(record) => {
                let media = inputs.get(FIELD, &record.file)?;
                let masks = masks(asked, media, source, frames, stop)?;
                let mut made = Vec::with_capacity(frames * area);
                for image in &masks {
                    check_size(asked, image, source, (width, height))?;
                    let image = resize(image, width as u32, height as u32, fit, stop)?;
                    // The pixel that torch's `interpolate` takes by nearest.
                    let at = |i: usize| (factor * (i % columns), factor * (i / columns));
                    made.extend((0..area).map(at).map(|(x, y)| {
                        u8::from(luma(*image.get_pixel(x as u32, y as u32)) >= WHITE)
                    }));
                }
                if masks.len() == 1 { made.repeat(frames) } else { made }
            }
        };
    for frame in &asked.keep {
        if let Some(frame) = made.chunks_mut(area).nth(*frame) {
            frame.fill(0);
        }
    }
    if !made.contains(&1) {
        let reason = "nothing is white, so that nothing would be made";
        return Err(Error::request(FIELD, reason).with_hint("white is made, black is kept"));
    }
    Ok(Some(Tensor::from_vec(made, (1, frames, 1, rows, columns), &Device::Cpu)?))
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
