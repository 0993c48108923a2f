//! What can be made but is probably not meant: settings that ruin a clip, or that do nothing.

use candle_core::{DType, Device};

use super::hints::Hint;
use crate::device::Precision;
use crate::library::Models;
use crate::media::RgbImage;
use crate::request::{Control, Key, Loop, Request, Sampling};
use crate::sampler::SamplerKind;

/// Fewest frames from one prompt to the next. Motion modules share what neighbouring frames show: in less they follow
/// only in part, and context windows of 16 frames overlap by as many.
const FEWEST_BETWEEN: usize = 4;

/// The largest guidance with which LCM's colours stay natural.
const MOST_GUIDANCE: f64 = 2.0;

/// How many times more pixels than in training still give one subject, and how many times fewer still a clear one.
const PIXELS: (f64, f64) = (0.4, 2.25);

/// How many times longer than in training a side may be.
const SIDE: usize = 2;

/// Words in the names of networks whose hints are lines, and the preprocessors that make these.
const LINES: [(&str, &str); 5] = [
    ("canny", "canny"),
    ("edge", "softedge"),
    ("lineart", "lineart"),
    ("scribble", "scribble"),
    ("sketch", "scribble"),
];

/// The least share of nearly black or white pixels in an image of lines.
const LEAST_LINES: f64 = 0.5;

/// Messages about a completed request, one line each.
pub(super) fn warnings(
    request: &Request,
    models: &Models,
    (precision, device): (Precision, &Device),
    hints: &[Hint],
) -> Vec<String> {
    let mut found = Vec::new();
    let scale = request.sampling.cfg_scale;
    if request.sampling.sampler == SamplerKind::Lcm && scale > MOST_GUIDANCE {
        found.push(format!(
            "cfg-scale: {scale} with the sampler lcm burns colours; 1 to {MOST_GUIDANCE} is usual"
        ));
    }
    let Sampling { sampler, tcd_gamma, .. } = &request.sampling;
    if tcd_gamma.is_some() && *sampler != SamplerKind::Tcd {
        found.push(format!("tcd-gamma: has no effect with the sampler {sampler}"));
    }
    if !request.prompt.negative.trim().is_empty() && !request.is_guided() {
        found.push(format!(
            "negative-prompt: has no effect with --cfg-scale {scale}; it takes more than 1"
        ));
    }
    if request.quality.guidance_rescale > 0.0 && !request.is_guided() {
        found.push(format!(
            "guidance-rescale: has no effect with --cfg-scale {scale}; it takes more than 1"
        ));
    }
    if request.quality.dynamic_thresholding.is_some() && !request.is_guided() {
        found.push(format!(
            "dynamic-thresholding: is for much guidance, there is none with --cfg-scale {scale}"
        ));
    }
    found.extend(size(request, models.native_size()));
    found.extend(unused(request, models));
    found.extend(whole(request));
    found.extend(hurried(request));
    if precision.unet == DType::F16 && device.is_cpu() {
        found.push("dtype: f16 is slower than f32 on a CPU".to_owned());
    }
    let controls = request.controls.iter().zip(hints);
    found.extend(controls.filter_map(|(control, hint)| no_lines(control, hint)));
    found
}

/// A message about a size far from that of the clips in training.
fn size(request: &Request, native: (usize, usize)) -> Option<String> {
    let (width, height) = (request.size.width?, request.size.height?);
    let pixels = |(width, height): (usize, usize)| width as f64 * height as f64;
    let ratio = pixels((width, height)) / pixels(native).max(1.0);
    let is_long = width > SIDE * native.0 || height > SIDE * native.1;
    let is_far = is_long || !(PIXELS.0..=PIXELS.1).contains(&ratio);
    is_far.then(|| {
        format!("size: {width}x{height} is far from the {}x{} of the model", native.0, native.1)
    })
}

/// A message about context windows of which one holds the whole clip.
fn whole(request: &Request) -> Option<String> {
    let (frames, length) = (request.frames(), request.windows.length?);
    (frames <= length && request.output.looping != Loop::Closed)
        .then(|| format!("context-length: all {frames} frames are in one window of {length}"))
}

/// A message about keys that are closer than a clip can follow.
fn hurried(request: &Request) -> Option<String> {
    let keys = request.prompt.keys().ok()?;
    let mut pairs: Vec<(&Key, &Key, usize)> = keys
        .iter()
        .zip(keys.iter().skip(1))
        .map(|(before, after)| (before, after, after.frame - before.frame))
        .collect();
    if request.output.looping == Loop::Closed
        && let (Some(last), Some(first)) = (keys.last(), keys.first())
    {
        pairs.push((last, first, (request.frames() + first.frame).saturating_sub(last.frame)));
    }
    let pairs = pairs.into_iter().filter(|(before, after, _)| before.text != after.text);
    let (before, after, frames) = pairs.min_by_key(|(_, _, frames)| *frames)?;
    (frames < FEWEST_BETWEEN).then(|| {
        format!(
            "travel: frames {} and {} are closer than motion modules can follow; at least {FEWEST_BETWEEN} apart is \
             usual",
            before.frame, after.frame
        )
    })
}

/// Messages about textual inversions that neither prompt names.
fn unused(request: &Request, models: &Models) -> Vec<String> {
    let prompts: Vec<String> = request.prompt.texts().map(str::to_lowercase).collect();
    let is_used = |name: &String| prompts.iter().any(|prompt| holds(prompt, &name.to_lowercase()));
    let mut found = Vec::new();
    for inversion in models.own_embeddings() {
        let names: Vec<&String> = inversion.words().iter().flat_map(|word| &word.names).collect();
        if names.iter().any(|name| is_used(name)) {
            continue;
        }
        let words: Vec<String> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
        let (file, words) = (inversion.source().path().display(), words.join(" or "));
        found.push(format!("embedding: {file} has no effect: no prompt has the word {words}"));
    }
    found
}

/// Returns whether a text holds a word, or one of its vectors as `word_1`. Both are in lower case.
fn holds(text: &str, word: &str) -> bool {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    // As the tokenizer finds added tokens.
    let is_single = word.starts_with(is_letter) || word.ends_with(is_letter);
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text.get(..at), text.get(at + word.len()..));
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        let number = after.strip_prefix('_').unwrap_or(after);
        let after =
            number.trim_start_matches(|c: char| c.is_ascii_digit() && after.starts_with('_'));
        !is_single || !(before.ends_with(is_letter) || after.starts_with(is_letter))
    })
}

/// A message about a hint without lines for a network that wants them.
fn no_lines(control: &Control, hint: &Hint) -> Option<String> {
    if control.preprocess.is_some_and(|made| made.makes_lines()) {
        return None;
    }
    let file = std::path::Path::new(&control.model).file_name().unwrap_or_default();
    let names = [control.name.to_lowercase(), file.to_string_lossy().to_lowercase()];
    let has = |word: &str| names.iter().any(|name| name.contains(word));
    let (wanted, preprocessor) = LINES.iter().find(|(word, _)| has(word))?;
    let share = hint.images.first().map(extremes)?;
    (share < LEAST_LINES).then(|| {
        let Control { name, hint, .. } = control;
        format!(
            "control: `{name}`: {hint} looks like a photo, but {wanted} networks take lines; \
             preprocess={preprocessor} makes them"
        )
    })
}

/// The share of pixels that are nearly black or nearly white.
fn extremes(image: &RgbImage) -> f64 {
    /// 8-bit levels.
    const NEAR: u8 = 32;
    let is_extreme = |pixel: &[u8; 3]| {
        pixel.iter().all(|v| *v < NEAR) || pixel.iter().all(|v| *v > u8::MAX - NEAR)
    };
    let count = image.pixels().filter(|pixel| is_extreme(&pixel.0)).count();
    count as f64 / (image.pixels().len().max(1)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn sizes_far_from_the_models_are_named() {
        let is_far = |width, height, native| {
            let mut request = Request::new("x");
            (request.size.width, request.size.height) = (Some(width), Some(height));
            size(&request, (native, native)).is_some()
        };
        for (width, height) in [(512, 512), (768, 512), (768, 768), (384, 384), (512, 256)] {
            assert!(!is_far(width, height, 512), "{width}x{height}");
        }
        for (width, height) in [(256, 256), (1024, 1024), (1088, 256), (64, 64)] {
            assert!(is_far(width, height, 512), "{width}x{height}");
        }
        assert!(is_far(512, 512, 64) && !is_far(64, 64, 64));
    }

    #[test]
    fn keys_that_are_too_close_are_named() {
        let said = |keys: &str, looping: Loop| {
            let mut request = Request::new("");
            request.prompt.travel = keys.parse().unwrap();
            request.output.looping = looping;
            hurried(&request)
        };
        assert_eq!(said("0: a; 4: b; 14: c", Loop::None), None);
        assert_eq!(said("0: a; 1: a", Loop::None), None);
        let close = said("0: a; 4: b; 7: c", Loop::None).unwrap();
        assert!(close.starts_with("travel: frames 4 and 7 are closer"), "{close}");
        let closed = said("0: a; 14: c", Loop::Closed).unwrap();
        assert!(closed.starts_with("travel: frames 14 and 0 are closer"), "{closed}");
    }

    #[test]
    fn words_are_found_as_the_tokenizer_finds_them() {
        assert!(holds("a (style:1.2), dog", "style") && holds("a style_2 dog", "style"));
        assert!(holds("a <style>dog", "<style>") && holds("style", "style"));
        assert!(!holds("a styled dog", "style") && !holds("restyle", "style"));
        assert!(!holds("a style_x dog", "style") && !holds("", "style"));
    }

    #[test]
    fn photos_are_no_lines() {
        let drawn = |hint: RgbImage, name: &str, model: &str| {
            let control: Control = format!("{name}=h.png,model={model}").parse().unwrap();
            no_lines(&control, &Hint { images: vec![hint], frames: vec![], depth: None })
        };
        let shade = |x: u32, y: u32| Rgb([(x * 8) as u8, (y * 8) as u8, 120]);
        let photo = RgbImage::from_fn(32, 32, shade);
        let lines = RgbImage::from_fn(32, 32, |x, _| Rgb([if x % 9 == 0 { 255 } else { 0 }; 3]));
        let paper = RgbImage::from_pixel(32, 32, Rgb([250; 3]));
        let said = drawn(photo.clone(), "canny", "net.safetensors").unwrap();
        assert!(
            said.starts_with("control: `canny`: h.png looks like a photo, but canny"),
            "{said}"
        );
        assert!(said.ends_with("take lines; preprocess=canny makes them"), "{said}");
        let made = |text: &str| {
            let hint = Hint { images: vec![photo.clone()], frames: vec![], depth: None };
            no_lines(&text.parse().unwrap(), &hint).is_some()
        };
        // Soft edges are lines, too, however few of their pixels are black.
        assert!(!made("canny=h.png,model=a,preprocess=softedge"));
        assert!(made("canny=h.png,model=a,preprocess=gray"));
        assert!(drawn(photo.clone(), "mine", "d/control_v11p_sd15_scribble.pth").is_some());
        assert!(drawn(photo.clone(), "depth", "canny/depth.safetensors").is_none());
        assert!(drawn(lines, "canny", "net.safetensors").is_none());
        assert!(drawn(paper, "scribble", "net.safetensors").is_none());
    }
}
