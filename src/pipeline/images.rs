//! Images of IP-Adapters, decoded.

use super::inputs::Inputs;
use crate::adapters::Mask;
use crate::adapters::ip_adapter::{ImagePromptSettings, ImageScope};
use crate::media::read::Selection;
use crate::media::resize::{Fit, resize};
use crate::media::{Background, RgbImage};
use crate::request::{IpAdapter, Request};
use crate::{Error, Result, Stop};

/// The name of the option, for errors.
const FIELD: &str = "ip-adapter";

/// The images of an IP-Adapter, and how they are used.
#[derive(Clone, Debug)]
pub struct AdapterImages {
    /// As they were given.
    pub images: Vec<RgbImage>,
    /// How strongly, when and where they count.
    pub settings: ImagePromptSettings,
}

/// The images of an IP-Adapter and, at the clip's size, its masks.
fn read(
    adapter: &IpAdapter,
    (inputs, background): (&Inputs, Option<Background>),
    frames: usize,
    (width, height): (usize, usize),
    stop: &Stop,
) -> Result<AdapterImages> {
    let read = |file: &str, background| {
        let media = inputs.get(FIELD, file)?.on(background);
        Ok::<_, Error>(media.frames(FIELD, Selection::default(), stop)?.images)
    };
    let mut images = Vec::new();
    for image in &adapter.images {
        images.extend(read(&image.file, background)?);
    }
    let found = images.len();
    if let Some(empty) = images.iter().find(|image| image.width() == 0 || image.height() == 0) {
        let (width, height) = empty.dimensions();
        return Err(adapter.wrong(format!("an image of {width}x{height} pixels")));
    }
    if adapter.per_frame && found != frames {
        let reason = format!("{found} images for {frames} frames");
        let hint = format!("--frames {found}, or no `per-frame`");
        return Err(adapter.wrong(reason).with_hint(hint));
    }
    let mut masks = Vec::new();
    for mask in &adapter.masks {
        let found = read(&mask.file, None)?;
        let [image] = found.as_slice() else {
            let reason = format!("the mask {} has {} frames", mask.file, found.len());
            return Err(adapter.wrong(reason).with_hint("a mask is one image"));
        };
        let mask = resize(image, width as u32, height as u32, Fit::Stretch, stop)?;
        masks.push(Mask::new(&mask));
    }
    if !masks.is_empty() && masks.len() != found {
        let reason = format!("{found} images have {} masks", masks.len());
        return Err(adapter.wrong(reason).with_hint("each image has one mask, or none has"));
    }
    let scope = match (adapter.per_frame, masks.is_empty()) {
        (true, _) => ImageScope::PerFrame,
        (false, true) => ImageScope::All,
        (false, false) => ImageScope::Masks(masks),
    };
    let settings = ImagePromptSettings {
        label: adapter.label().to_owned(),
        strength: adapter.scale.clone(),
        range: adapter.range()?,
        scope,
    };
    Ok(AdapterImages { images, settings })
}

/// The images of every IP-Adapter of a request, for a clip of that size (width, height).
pub(super) fn adapter_images(
    request: &Request,
    inputs: &Inputs,
    size: (usize, usize),
    stop: &Stop,
) -> Result<Vec<AdapterImages>> {
    let frames = request.frames();
    let inputs = (inputs, request.background_color);
    let read = |adapter: &IpAdapter| read(adapter, inputs, frames, size, stop);
    request.ip_adapters.iter().map(read).collect()
}

/// A request may only use adapters that the pipeline was given.
pub(super) fn unopened(adapter: &IpAdapter) -> Error {
    adapter.wrong(format!("the IP-Adapter `{}` was not opened", adapter.model))
}
