//! The image or video that a clip starts from: its frames, and their noised latents.
//!
//! The way of diffusers' `AnimateDiffVideoToVideoPipeline` (0.42.1): latents are drawn from the encoder's posterior,
//! noise of the first step that is left is added to them, and the generator is used in that order.
//!
//! AnimateLCM-I2V takes one sample of its image's latents instead and gives it to its encoder; see
//! [`I2vControl`]. Its clip starts from noise, drawn next.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::event::record;
use super::inpaint::Known;
use super::inputs::Inputs;
use super::passes::Start;
use super::{Event, Observer, Pipeline, Prepared, channels_first};
use crate::adapters::i2v::{I2vControl, I2vSettings};
use crate::library::{Models, Part};
use crate::media::RgbImage;
use crate::media::hsv::HsvMean;
use crate::media::read::{Media, OnBackground, Selection};
use crate::media::resize::{Fit, resize};
use crate::media::tensor::from_rgb;
use crate::request::{Request, Source};
use crate::rng::{Noise, NoiseKind};
use crate::{Error, Result, Stop};

/// The name of the option, for errors about videos.
const VIDEO: &str = "video";

/// Frames that diffusers encodes, and draws noise for, at once.
const CHUNK: usize = 16;

/// How much longer a side may become than the other before it is told.
const UNNOTICED: f64 = 1.05;

/// Frames that a clip starts from.
#[derive(Clone, Debug)]
pub struct SourceFrames {
    /// In the clip's size: one for all frames, or one for each.
    pub images: Arc<[RgbImage]>,
    /// Width and height before they were resized.
    pub size: (u32, u32),
    /// Whether the video goes on after the longest clip.
    pub is_cut: bool,
    /// The mean colour to which the clip's frames are moved: that of the image before it was resized.
    pub colors: Option<HsvMean>,
    /// The numbers of the video's frames, from 0; of an image none.
    pub numbers: Vec<usize>,
}

/// Reads the frames of a request's source, for a clip of that size (width, height); a request that leaves the number
/// of frames to a video then has one.
pub(super) fn read(
    request: &mut Request,
    inputs: &Inputs,
    models: &Models,
    (width, height): (usize, usize),
    stop: &Stop,
) -> Result<Option<SourceFrames>> {
    let Some(source) = &request.source else { return Ok(None) };
    models.check_encoder()?;
    let (field, file) = (source.field(), source.file());
    let media = inputs.get(field, file)?;
    let pictures = media.on(request.background_color);
    let (images, numbers, is_cut) = if source.video.is_some() {
        let taken =
            video(source, (media, pictures), request.size.frames, models.longest_clip(), stop)?;
        request.size.frames = Some(taken.0.len());
        taken
    } else {
        (vec![image(file, pictures, stop)?], vec![], false)
    };
    let size = one_size(source, &images)?;
    let is_matched = source.color_match == Some(true);
    let colors = images.first().filter(|_| is_matched).map(HsvMean::of);
    let how = source.fit.unwrap_or_default();
    let fit = |image| resize(image, width as u32, height as u32, how, stop);
    let images = images.iter().map(fit).collect::<Result<_>>()?;
    Ok(Some(SourceFrames { images, size, is_cut, colors, numbers }))
}

/// The only frame of an image.
pub(crate) fn image(file: &str, media: OnBackground<'_>, stop: &Stop) -> Result<RgbImage> {
    let two = Selection { count: Some(2), ..Selection::default() };
    let found = media.frames("image", two, stop)?;
    if found.images.len() > 1 {
        let error = Error::request("image", format!("{file} has more than one frame"));
        return Err(error.with_hint("--video starts from all of them"));
    }
    let empty = || Error::request("image", format!("{file} has no frame"));
    found.images.into_iter().next().ok_or_else(empty)
}

/// The frames of a video that are taken, with their numbers: as many as are `wanted`, or all, at most the `longest`
/// clip's; and whether there would be more then.
fn video(
    source: &Source,
    (media, pictures): (&Media, OnBackground<'_>),
    wanted: Option<usize>,
    longest: Option<usize>,
    stop: &Stop,
) -> Result<(Vec<RgbImage>, Vec<usize>, bool)> {
    let &Source { from, every, .. } = source;
    let file = source.file();
    let most = wanted.or(longest);
    // One frame more tells whether the video goes on, a second one a video from an image.
    let read = wanted.or(longest.map(|longest| longest.saturating_add(1)));
    let selection = Selection { from, every, count: read.map(|read| read.max(2)) };
    let timed = source.fps.map(|fps| Ok::<_, Error>((fps, media.durations(VIDEO)?))).transpose()?;
    let (mut images, mut numbers, seen) = match timed {
        Some((fps, Some(durations))) if durations.len() > 1 => {
            let rate = fps / every as f64;
            let numbers = nearest(&durations, from, rate, read.unwrap_or(usize::MAX));
            (frames_at(pictures, &numbers, stop)?, numbers, durations.len())
        }
        timed => {
            let found = pictures.frames(VIDEO, selection, stop)?;
            if timed.is_some() && found.seen > 1 {
                let reason = format!("{file} has no frame rate");
                return Err(Error::request("video-fps", reason)
                    .with_hint("--video-every takes every so many frames"));
            }
            let numbers = (0..found.images.len()).map(|i| from + i * every).collect();
            (found.images, numbers, found.seen)
        }
    };
    if seen < 2 {
        let error = Error::request(VIDEO, format!("{file} has {seen} frame"));
        return Err(error.with_hint("--image starts from one image"));
    }
    let is_cut = wanted.is_none() && longest.is_some_and(|longest| images.len() > longest);
    images.truncate(most.unwrap_or(usize::MAX));
    numbers.truncate(images.len());
    let taken = images.len();
    if taken == 0 {
        let reason = format!("{from} asked for, {file} has the frames 0 to {}", seen - 1);
        return Err(Error::request("video-from", reason));
    }
    match wanted {
        Some(wanted) if taken < wanted => {
            let reason = format!("{wanted} asked for, {file} gives {taken} of its {seen}");
            Err(Error::request("frames", reason).with_hint(format!("--frames {taken}")))
        }
        _ => Ok((images, numbers, is_cut)),
    }
}

/// The frames of these numbers, which are in order; one may be wanted several times.
fn frames_at(media: OnBackground<'_>, numbers: &[usize], stop: &Stop) -> Result<Vec<RgbImage>> {
    let mut once = numbers.to_vec();
    once.dedup();
    if once.is_empty() {
        return Ok(vec![]);
    }
    let found = media.frames_at(VIDEO, &once, stop)?.images;
    let frame = |number| found.get(once.binary_search(number).ok()?).cloned();
    Ok(numbers.iter().filter_map(frame).collect())
}

/// The frames nearest to times at even distances, from the start of frame `from` to the end of the video: at most
/// `most`, in order, perhaps some of them several times.
fn nearest(durations: &[f64], from: usize, fps: f64, most: usize) -> Vec<usize> {
    let mut starts = Vec::with_capacity(durations.len());
    let mut end = 0.0;
    for seconds in durations {
        starts.push(end);
        end += seconds;
    }
    let Some(&first) = starts.get(from) else { return vec![] };
    // Sums of rounded numbers: a frame that would begin at the very end is none.
    let end = end - 1e-6;
    let mut found = Vec::new();
    let mut at = from;
    // No input has more frames than this, and no clip.
    while found.len() < most.min(1 << 16) {
        let time = first + found.len() as f64 / fps;
        if time >= end {
            break;
        }
        // The later of two that are equally near only if it is nearer.
        while let Some(next) = starts.get(at + 1)
            && (next - time).abs() + 1e-9 < (time - starts[at]).abs()
        {
            at += 1;
        }
        found.push(at);
    }
    found
}

/// The common width and height of frames.
fn one_size(source: &Source, images: &[RgbImage]) -> Result<(u32, u32)> {
    let size = images.first().map(RgbImage::dimensions).unwrap_or_default();
    let (width, height) = size;
    let wrong = |reason: String| Error::request(source.field(), reason);
    if width == 0 || height == 0 {
        return Err(wrong(format!("{} is {width}x{height} pixels", source.file())));
    }
    if let Some(at) = images.iter().position(|image| image.dimensions() != size) {
        let (other_width, other_height) =
            images.get(at).map(RgbImage::dimensions).unwrap_or_default();
        let (first, number) = (source.from, source.from + at * source.every);
        return Err(wrong(format!(
            "{}: frame {number} is {other_width}x{other_height}, frame {first} {width}x{height}",
            source.file()
        ))
        .with_hint("all frames need one size"));
    }
    Ok(size)
}

/// Messages about a source of which something is lost, one line each.
pub(super) fn warnings(request: &Request, frames: Option<&SourceFrames>) -> Vec<String> {
    let Some((source, frames)) = request.source.as_ref().zip(frames) else { return vec![] };
    let cut = frames.is_cut.then(|| {
        let (file, count) = (source.file(), frames.images.len());
        format!(
            "video: {file} goes on after the {count} frames that the model knows; --frames takes \
             more, --video-every or --video-fps further apart"
        )
    });
    cut.into_iter().chain(stretched(source, frames)).collect()
}

/// A message about frames whose proportions change.
fn stretched(source: &Source, frames: &SourceFrames) -> Option<String> {
    let (from, image) = (frames.size, frames.images.first()?);
    let proportions = |(width, height): (u32, u32)| f64::from(width) / f64::from(height.max(1));
    let change = proportions(image.dimensions()) / proportions(from);
    let is_told = source.fit == Some(Fit::Stretch) && change.max(1.0 / change) > UNNOTICED;
    is_told.then(|| {
        let (width, height) = image.dimensions();
        format!(
            "fit: {} is stretched from {}x{} to {width}x{height}; --fit crop or pad keeps its \
             proportions",
            source.file(),
            from.0,
            from.1
        )
    })
}

impl Pipeline {
    /// Clean latents at the plan's first noise level, `(1, frames, channels, height, width)` in f32; those of one frame
    /// are all frames'. What is kept of them is there too.
    ///
    /// Of a source that is kept in parts the others begin with noise alone at strength 1, as in diffusers' inpainting.
    pub(super) fn noised_source(
        &self,
        prepared: &Prepared,
        clean: &Tensor,
        noise: &mut Noise,
    ) -> Result<Start> {
        let request = &prepared.request;
        let (kind, frames) = (request.sampling.noise, prepared.frames);
        let clean = match clean.dim(1)? {
            1 => &clean.repeat((1, frames, 1, 1, 1))?,
            _ => clean,
        };
        let unit = match &prepared.latents {
            Some(latents) => latents.to_dtype(DType::F32)?.transpose(1, 2)?.contiguous()?,
            None if kind != NoiseKind::Independent => {
                let windows = prepared.windows.map_or((frames, frames), |w| (w.length(), w.hop()));
                noise.clip(kind, clean.dims5()?, windows, &Device::Cpu)?
            }
            // Frames come before channels here, and in no other noise.
            None => {
                Tensor::from_vec(noise.normal(clean.elem_count()), clean.shape(), &Device::Cpu)?
            }
        };
        let unit = unit.to_device(&self.device)?;
        let level = prepared.plan.start();
        let noised = level.add_noise(clean, &unit)?;
        let Some(mask) = &prepared.mask else { return Ok(Start::Noised(noised, None)) };
        let known = Known::new(mask, clean, &unit)?;
        let strength = request.source.as_ref().and_then(|source| source.strength);
        let is_whole = strength.is_some_and(|strength| strength >= 1.0);
        let first = if is_whole { (unit * prepared.plan.initial_scale)? } else { noised };
        Ok(Start::Noised(known.noised(&first, level)?, Some(known)))
    }

    /// The features of an image's latents, `(1, 1, channels, height, width)`, where the model is AnimateLCM-I2V.
    pub(super) fn i2v_control(
        &self,
        prepared: &Prepared,
        latents: Option<&Tensor>,
        observer: &mut dyn Observer,
    ) -> Result<Option<I2vControl>> {
        let Prepared { request, windows, .. } = prepared;
        let (Some(source), Some(latents)) = (&request.source, latents) else { return Ok(None) };
        let Some(motion_scale) = source.motion_scale else { return Ok(None) };
        let net = self.i2v_encoder(observer)?;
        let frames = windows.map_or(prepared.frames, |windows| windows.length());
        let insertion_weights = source.insertion_weights.clone().unwrap_or_default();
        let how = (&I2vSettings { motion_scale, insertion_weights }, self.precision.unet);
        let part = self.models.part_name(&Part::I2vEncoder);
        observer.event(Event::Source { part, frame: 0, frames })?;
        let control = I2vControl::new(&net, &latents.squeeze(0)?, frames, how, &self.stop)?;
        observer.event(Event::Source { part, frame: frames, frames })?;
        Ok(Some(control))
    }

    /// The latents of the source, sampled from the encoder's posterior, `(1, frames, channels, height, width)` in f32;
    /// for AnimateLCM-I2V of one frame.
    pub(super) fn encode_source(
        &self,
        prepared: &Prepared,
        frames: &SourceFrames,
        noise: &mut Noise,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let encoder = self.vae_encoder(observer)?;
        let factor = self.models.factor();
        let (height, width) = (prepared.height / factor, prepared.width / factor);
        let count = prepared.sampled.max(frames.images.len());
        let channels = self.models.latent_channels();
        let drawn = match &prepared.source_noise {
            Some(given) => given.to_dtype(DType::F32)?,
            None => {
                let mut values = Vec::new();
                // TAESD draws none.
                let chunks = if encoder.is_random() { count.div_ceil(CHUNK) } else { 0 };
                for chunk in 0..chunks {
                    let frames = CHUNK.min(count - chunk * CHUNK);
                    values.extend(noise.normal(frames * channels * height * width));
                }
                values.resize(count * channels * height * width, 0.0);
                Tensor::from_vec(values, (count, channels, height, width), &Device::Cpu)?
            }
        };
        let drawn = drawn.to_dtype(self.precision.vae)?.to_device(&self.device)?;
        let encode = |image: &RgbImage, drawn: &Tensor| {
            let image = from_rgb(std::slice::from_ref(image), &self.device)?.affine(2.0, -1.0)?;
            let image = image.to_dtype(self.precision.vae)?;
            encoder.sample_tiled(&image, drawn, prepared.tiling, &self.stop)
        };
        let mut tell = |frame| {
            let (part, frames) = (self.models.part_name(&Part::VaeEncoder), frames.images.len());
            observer.event(Event::Source { part, frame, frames })
        };
        tell(0)?;
        let latents = match &*frames.images {
            // Encoded once, sampled for every frame.
            [only] => {
                let latents = encode(only, &drawn)?;
                tell(1)?;
                latents
            }
            images => {
                // One at a time: the encoder works at full size.
                let mut each = Vec::with_capacity(images.len());
                for (i, image) in images.iter().enumerate() {
                    each.push(encode(image, &drawn.narrow(0, i, 1)?)?);
                    tell(i + 1)?;
                }
                Tensor::cat(&each, 0)?
            }
        };
        let latents = latents.to_dtype(DType::F32)?.unsqueeze(0)?;
        record(observer, "source", || channels_first(&latents))?;
        Ok(latents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_frame_is_taken_at_every_time() {
        let steady = [0.125; 8];
        assert_eq!(nearest(&steady, 0, 8.0, 99), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(nearest(&steady, 0, 4.0, 99), [0, 2, 4, 6]);
        assert_eq!(nearest(&steady, 3, 4.0, 99), [3, 5, 7]);
        assert_eq!(nearest(&steady, 0, 4.0, 2), [0, 2]);
        assert_eq!(nearest(&steady, 0, 6.0, 99), [0, 1, 3, 4, 5, 7]);
        assert_eq!(nearest(&steady, 6, 24.0, 99), [6, 6, 7, 7, 7, 7]);
        assert_eq!(nearest(&steady, 8, 8.0, 99), [0; 0]);
        assert_eq!(nearest(&[], 0, 8.0, 99), [0; 0]);
        // 29.97 frames a second, and one that stays long.
        let ntsc = [1001.0 / 30000.0; 30];
        assert_eq!(nearest(&ntsc, 0, 30000.0 / 1001.0, 99).len(), 30);
        assert_eq!(nearest(&[0.1, 1.0, 0.1], 0, 5.0, 99), [0, 1, 1, 1, 2, 2]);
    }
}
