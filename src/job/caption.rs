//! A prompt that is made of the image that a clip starts from.

use candle_core::DType;

use super::resolve::{Names, caption_model};
use crate::library::Captioner;
use crate::media::read::Media;
use crate::pipeline::image_of;
use crate::request::Job;
use crate::{Error, Result, Stop};

/// A caption of the source image of a job without a prompt, by the BLIP network `model` or the published one.
///
/// # Errors
///
/// When the job has a prompt or no image, or the network cannot be opened.
pub fn caption(job: &Job, model: Option<&str>, names: &Names, stop: &Stop) -> Result<String> {
    let request = &job.request;
    let wrong = |reason: &str| Error::request("caption", reason);
    if !request.prompt.text.trim().is_empty() || !request.prompt.travel.is_empty() {
        return Err(wrong("takes the place of a prompt, and there is one"));
    }
    let Some(file) = request.source.as_ref().and_then(|source| source.image.as_deref()) else {
        return Err(wrong("there is no image to describe").with_hint("--image FILE"));
    };
    request.validate()?;
    let path = caption_model(model, names)?;
    let media = Media::read("image", &names.input("image", file)?, |_| true, stop)?;
    let image = image_of(file, media.on(request.background_color), stop)?;
    let device = job.models.device.open()?;
    let said = Captioner::open(&path, DType::F32, &device, stop)?.caption(&image, stop)?;
    if said.is_empty() {
        return Err(wrong(&format!("nothing was said of {file}")).with_hint("give a prompt"));
    }
    Ok(said)
}
