//! What a request needs beside weights: images and videos as bytes, and tensors in place of drawn ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Tensor};

use crate::media::read::{Media, Selection};
use crate::request::{Control, Request};
use crate::{Error, Result, Stop};

/// What a request needs beside weights. The pipeline opens no files: images and videos come as bytes, by the names that
/// the request has for them.
///
/// Tensors are in the layout of files, `(1, channels, frames, height, width)`.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    media: BTreeMap<String, Media>,
    /// First latents in place of drawn ones, as unit noise; with a source the noise that is added to it.
    pub latents: Option<Tensor>,
    /// Noise of the steps, taken in place of the generator's while it lasts.
    pub noise: Vec<Tensor>,
    /// Noise of hints that become latents, by the control's name: `(hints, channels, height, width)`.
    pub hint_noise: BTreeMap<String, Tensor>,
    /// Noise with which the source's latents are sampled: `(frames, channels, height, width)`, for AnimateLCM-I2V of one
    /// frame.
    pub source_noise: Option<Tensor>,
}

/// The path of an image or video that a field of a request names.
type Place<'a> = dyn Fn(&'static str, &str) -> Result<PathBuf> + 'a;

impl Inputs {
    /// Reads every file and folder that a request names, each once.
    ///
    /// # Errors
    ///
    /// Those of [`Media::read`].
    pub fn read(request: &Request, stop: &Stop) -> Result<Self> {
        Self::read_by(request, &|_, name| Ok(PathBuf::from(name)), stop)
    }

    /// Reads every file and folder that a request names, each once; `place` knows the paths of names.
    ///
    /// # Errors
    ///
    /// Those of `place` and of [`Media::read`].
    pub fn read_by(request: &Request, place: &Place<'_>, stop: &Stop) -> Result<Self> {
        let mut inputs = Self::default();
        // How many frames a video gives is not known yet.
        let is_open = request.is_open();
        let clip = if is_open { usize::MAX } else { request.frames() };
        let source = request.source.iter().map(|source| {
            let count = Some(request.frames()).filter(|_| !is_open);
            // A second frame tells a video from an image.
            let count = count.map(|count| count.max(2));
            let selection = Selection { from: source.from, every: source.every, count };
            (source.field(), source.file(), selection)
        });
        let own = |control: &&Control| request.shared_video(control).is_none();
        let hints = request.controls.iter().filter(own);
        let hints = hints.map(|c| ("control", c.hint.as_str(), selection(c, clip)));
        let all: Vec<_> = source.chain(hints).collect();
        for (field, name, _) in &all {
            let same = || all.iter().filter(|(_, other, _)| other == name);
            let wanted = |number| same().any(|(_, _, selection)| selection.takes(number));
            inputs.read_one((field, name), wanted, place, stop)?;
        }
        if let Some(mask) = request.source.as_ref().and_then(|source| source.mask.as_ref()) {
            inputs.read_one(("mask", &mask.file), |_| true, place, stop)?;
        }
        for adapter in &request.ip_adapters {
            for image in adapter.images.iter().chain(&adapter.masks) {
                inputs.read_one(("ip-adapter", &image.file), |_| true, place, stop)?;
            }
        }
        Ok(inputs)
    }

    fn read_one(
        &mut self,
        (field, name): (&'static str, &str),
        wanted: impl Fn(usize) -> bool,
        place: &Place<'_>,
        stop: &Stop,
    ) -> Result<()> {
        if !self.media.contains_key(name) {
            let media = Media::read(field, &place(field, name)?, wanted, stop)?;
            self.media.insert(name.to_owned(), media);
        }
        Ok(())
    }

    /// Gives an image or video by the name that a request has for it.
    pub fn insert(&mut self, name: impl Into<String>, media: Media) {
        self.media.insert(name.into(), media);
    }

    /// Writes into a request which images and videos it has.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when one was not given, [`Error::Refused`] when it is not the one that the request has the
    /// hash of.
    pub fn identify(&self, request: &mut Request) -> Result<()> {
        let video = request.source_video().map(str::to_owned);
        let shared: Vec<bool> =
            request.controls.iter().map(|c| request.shared_video(c).is_some()).collect();
        if let Some(source) = &mut request.source {
            let (field, file) = (source.field(), source.file().to_owned());
            self.identify_one(field, &file, &mut source.sha256)?;
            if let Some(mask) = &mut source.mask {
                self.identify_one("mask", &mask.file, &mut mask.sha256)?;
            }
        }
        for (control, is_shared) in request.controls.iter_mut().zip(shared) {
            let file = video.as_ref().filter(|_| is_shared).unwrap_or(&control.hint);
            self.identify_one("control", file, &mut control.sha256)?;
        }
        for adapter in &mut request.ip_adapters {
            for image in adapter.images.iter_mut().chain(&mut adapter.masks) {
                self.identify_one("ip-adapter", &image.file, &mut image.sha256)?;
            }
        }
        Ok(())
    }

    fn identify_one(
        &self,
        field: &'static str,
        name: &str,
        sha256: &mut Option<String>,
    ) -> Result<()> {
        let found = self.get(field, name)?.sha256().to_owned();
        match sha256.replace(found.clone()) {
            Some(wanted) if wanted != found => {
                let reason = format!("sha256 is {found}, the clip was made with {wanted}");
                Err(Error::Refused { name: name.to_owned(), reason })
            }
            _ => Ok(()),
        }
    }

    /// The image or video of that name.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] for `field` when it was not given.
    pub(super) fn get(&self, field: &'static str, name: &str) -> Result<&Media> {
        self.media.get(name).ok_or_else(|| Error::request(field, format!("{name} was not given")))
    }

    /// Fails unless the tensors are finite and of the shape of the run's latents,
    /// `(1, channels, frames, height, width)`, of whose frames so many are sampled from a source.
    pub(super) fn check(&self, wanted: [usize; 5], sampled: usize) -> Result<()> {
        let noise = self.noise.iter().enumerate().map(|(i, noise)| (format!("noise.{i}"), noise));
        let latents = self.latents.iter().map(|latents| ("latents".to_owned(), latents));
        let wrong =
            |name: &str, reason| Err(Error::request("tensors-in", format!("`{name}` {reason}")));
        for (name, tensor) in latents.chain(noise) {
            if tensor.dims() != wanted {
                let reason = format!("is {:?}, the run needs {wanted:?}", tensor.dims());
                return wrong(&name, reason);
            }
            if let Some(value) = not_finite(tensor)? {
                return wrong(&name, format!("holds the value {value}"));
            }
        }
        if let Some(tensor) = &self.source_noise {
            let [_, channels, _, height, width] = wanted;
            let wanted = [sampled, channels, height, width];
            if tensor.dims() != wanted {
                let reason = format!("is {:?}, the run needs {wanted:?}", tensor.dims());
                return wrong("noise.source", reason);
            }
            if let Some(value) = not_finite(tensor)? {
                return wrong("noise.source", format!("holds the value {value}"));
            }
        }
        // How many hints there are is known where they are encoded.
        for (name, tensor) in &self.hint_noise {
            if let Some(value) = not_finite(tensor)? {
                return wrong(&format!("noise.control.{name}"), format!("holds the value {value}"));
            }
        }
        Ok(())
    }
}

/// A value that is NaN or infinite.
fn not_finite(tensor: &Tensor) -> Result<Option<f32>> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().find(|value| !value.is_finite()))
}

/// Which frames of its hint a control takes, for a clip of so many.
pub(super) fn selection(control: &Control, clip: usize) -> Selection {
    if control.from.is_none() && control.every.is_none() {
        return Selection::default();
    }
    let count = if control.frames.is_empty() { clip } else { control.frames.len() };
    let (from, every) = (control.from.unwrap_or(0), control.every.unwrap_or(1));
    Selection { from, every, count: Some(count) }
}
