//! Hints of controls: decoded, brought to the clip's size, and made conditioners.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::inputs::{Inputs, selection};
use super::source::SourceFrames;
use crate::adapters::control_net::Control as ControlNetControl;
use crate::adapters::sparse_ctrl::{SparseControl, SparseHint};
use crate::adapters::t2i_adapter::T2iControl;
use crate::adapters::{Conditioner, ControlSettings};
use crate::library::{Models, SideConfig, SideNetwork};
use crate::media::RgbImage;
use crate::media::read::{OnBackground, Selection};
use crate::media::resize::{Fit, resize_then};
use crate::media::tensor::{from_rgb, to_grey};
use crate::preprocess::Preprocessor;
use crate::request::{Control, Request};
use crate::{Error, Result, Stop};

/// The name of the option, for errors.
const FIELD: &str = "control";

/// The `images` of a hint in the clip's size, and the frames that they are for if its network wants to know; `at_once` is
/// the number of frames that the networks are given at a time.
fn hint(
    control: &Control,
    images: &[RgbImage],
    config: &SideConfig,
    (clip, at_once): (usize, usize),
    (width, height): (usize, usize),
    stop: &Stop,
) -> Result<Hint> {
    let wrong = |reason: String| Error::request(FIELD, format!("`{}`: {reason}", control.name));
    let found = images.len();
    let size = (width as u32, height as u32);
    let made = |resized: RgbImage| match &control.preprocess {
        Some(preprocessor) => preprocessor.apply(&resized, stop),
        None => Ok(resized),
    };
    let fit = |image| resize_then(image, size, control.fit, &made, stop);
    let frames = match config {
        SideConfig::SparseCtrl(config) => {
            let longest = config.motion_max_seq_length;
            if at_once > longest {
                let reason = format!("{at_once} frames at once, the network knows {longest}");
                let hint = format!("--context-length {longest}, or --frames {longest} or fewer");
                return Err(wrong(reason).with_hint(hint));
            }
            sparse_frames(control, found, clip)?
        }
        other if !control.frames.is_empty() => {
            let reason =
                format!("`frames` is for SparseCtrl, {} is {}", control.model, other.kind());
            return Err(wrong(reason).with_hint("a curve does that: scale=0:1,1:0"));
        }
        _ if found == 1 || found == clip => vec![],
        _ => {
            let reason = format!("{} has {found} frames, the clip {clip}", control.hint);
            let some = "one image for all frames";
            let hint = if found > clip {
                format!("{}, or --frames {found}", some_of(found, clip))
            } else {
                format!("--frames {found}, or {some}")
            };
            return Err(wrong(reason).with_hint(hint));
        }
    };
    if control.guess && matches!(config, SideConfig::T2iAdapter(_)) {
        return Err(wrong(format!("{} has no guess mode", config.kind())));
    }
    if let Some(Preprocessor::Depth { per_picture }) = control.preprocess {
        // By a network, when the run begins; a control that never counts is not even shown to it.
        let depth = (!is_idle(control, clip)).then_some((control.fit, per_picture));
        return Ok(Hint { images: images.to_vec(), frames, depth });
    }
    Ok(Hint { images: images.iter().map(fit).collect::<Result<_>>()?, frames, depth: None })
}

/// The images of a hint that are taken, in their own size.
fn taken(
    control: &Control,
    media: OnBackground<'_>,
    clip: usize,
    stop: &Stop,
) -> Result<Vec<RgbImage>> {
    let selection = selection(control, clip);
    let found = media.frames(FIELD, selection, stop)?;
    let taken = found.images.len();
    // A still image is for all frames, whatever is taken of it.
    let is_still = found.seen == 1 && taken == 1;
    if let Selection { from, every, count: Some(count) } = selection
        && taken < count
        && !is_still
    {
        let (name, hint, seen) = (&control.name, &control.hint, found.seen);
        let reason = format!(
            "`{name}`: {hint} has {seen} frames, from={from},every={every} takes {taken} of {count}"
        );
        let error = Error::request(FIELD, reason);
        return Err(if seen >= count { error.with_hint(some_of(seen, count)) } else { error });
    }
    Ok(found.images)
}

/// The frame of each of so many images.
fn sparse_frames(control: &Control, found: usize, clip: usize) -> Result<Vec<usize>> {
    let wrong = |reason: String| Error::request(FIELD, format!("`{}`: {reason}", control.name));
    if control.frames.is_empty() && (found == 1 || found == clip) {
        return Ok((0..found).collect());
    }
    let images = if found == 1 { "image" } else { "images" };
    if control.frames.is_empty() {
        let reason = format!("{} has {found} {images}, but for which frames", control.hint);
        let hint = "say so: frames=0,8,15";
        return Err(wrong(reason).with_hint(if found > clip {
            format!("{hint}; or {}", some_of(found, clip))
        } else {
            hint.to_owned()
        }));
    }
    if control.frames.len() != found {
        let (hint, wanted) = (&control.hint, control.frames.len());
        return Err(wrong(format!("{hint} has {found} {images}, for {wanted} frames")));
    }
    Ok(control.frames.clone())
}

/// Whether a control never adds anything.
fn is_idle(control: &Control, clip: usize) -> bool {
    (0..clip).all(|frame| control.scale.at(frame) == 0.0)
}

/// How so many frames of a longer hint are taken, spread over it.
fn some_of(found: usize, count: usize) -> String {
    format!("from=0,every={} takes {count} of them", found / count.max(1))
}

/// The images of a control.
#[derive(Clone, Debug)]
pub struct Hint {
    /// In the clip's size, unless `depth` says how they get it: one for all frames, or one for each; of SparseCtrl one for
    /// each of `frames`.
    pub images: Vec<RgbImage>,
    /// The frames of SparseCtrl's images; of others empty.
    pub frames: Vec<usize>,
    /// For pictures in their own size whose depths are the hint: how they are resized, and whether each has its own
    /// range.
    pub depth: Option<(Fit, bool)>,
}

/// The hint of every control of a request, for a clip of that size (width, height), so many frames of which are
/// denoised at once.
pub(super) fn hints(
    request: &Request,
    (inputs, source): (&Inputs, Option<&SourceFrames>),
    models: &Models,
    (size, at_once): ((usize, usize), usize),
    stop: &Stop,
) -> Result<Vec<Hint>> {
    let read = |control: &Control| {
        let Some(config) = models.side_config(&control.model) else {
            return Err(unopened(control));
        };
        if config.sees_latents() {
            models.check_encoder()?;
        }
        let frames = (request.frames(), at_once);
        let images = match source.filter(|_| request.shared_video(control).is_some()) {
            Some(source) if control.frames.is_empty() => source.images.to_vec(),
            Some(source) => {
                control.frames.iter().filter_map(|at| source.images.get(*at).cloned()).collect()
            }
            None => {
                let media = inputs.get(FIELD, &control.hint)?.on(request.background_color);
                taken(control, media, request.frames(), stop)?
            }
        };
        hint(control, &images, config, frames, size, stop)
    };
    request.controls.iter().map(read).collect()
}

/// The controls whose hints are latents, with their places in the request. What never counts needs none.
pub(super) fn of_latents<'a>(request: &'a Request, models: &Models) -> Vec<(usize, &'a Control)> {
    let sees_latents = |control: &Control| {
        !is_idle(control, request.frames())
            && models.side_config(&control.model).is_some_and(SideConfig::sees_latents)
    };
    request.controls.iter().enumerate().filter(|(_, control)| sees_latents(control)).collect()
}

/// What conditioners are made of.
pub(super) struct Parts<'a, 'b> {
    pub(super) networks: &'a BTreeMap<String, Arc<SideNetwork>>,
    pub(super) hints: &'b [Hint],
    /// Latents of hints, by the control's place in the request.
    pub(super) latents: &'b BTreeMap<usize, Tensor>,
    pub(super) dtype: DType,
    pub(super) device: &'b Device,
    pub(super) stop: &'b Stop,
}

/// The networks with their hints.
pub(super) fn conditioners<'a>(
    request: &Request,
    parts: &Parts<'a, '_>,
) -> Result<Vec<Box<dyn Conditioner + 'a>>> {
    let controls = request.controls.iter().zip(parts.hints).enumerate();
    // What never counts is not even computed.
    let working = controls.filter(|(_, (control, _))| !is_idle(control, request.frames()));
    working
        .map(|(i, (control, hint))| {
            let Some(network) = parts.networks.get(&control.model) else {
                return Err(unopened(control));
            };
            let settings = ControlSettings {
                label: control.name.clone(),
                strength: control.scale.clone(),
                range: control.range()?,
                guess: control.guess,
            };
            let pixels = || -> Result<Tensor> {
                Ok(from_rgb(&hint.images, parts.device)?.to_dtype(parts.dtype)?)
            };
            Ok(match &**network {
                SideNetwork::ControlNet(net) => {
                    Box::new(ControlNetControl::new(net, &pixels()?, settings, parts.stop)?)
                        as Box<dyn Conditioner + 'a>
                }
                SideNetwork::SparseCtrl(net) => {
                    let hints = match parts.latents.get(&i) {
                        Some(latents) => latents.to_dtype(parts.dtype)?,
                        None => pixels()?,
                    };
                    let (frames, clip) = (&hint.frames, request.frames());
                    let hint = SparseHint { hints: &hints, frames, clip };
                    Box::new(SparseControl::new(net, hint, settings, parts.stop)?)
                }
                SideNetwork::T2iAdapter(net) => {
                    let hint = if net.config().in_channels == 1 {
                        to_grey(&hint.images, parts.device)?.to_dtype(parts.dtype)?
                    } else {
                        pixels()?
                    };
                    Box::new(T2iControl::new(net, &hint, settings, parts.stop)?)
                }
            })
        })
        .collect()
}

/// A request may only use networks that the pipeline was given.
fn unopened(control: &Control) -> Error {
    let reason = format!("`{}`: the network `{}` was not opened", control.name, control.model);
    Error::request(FIELD, reason)
}
