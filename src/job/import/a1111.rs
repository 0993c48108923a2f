//! AUTOMATIC1111's parameters: prompt, negative prompt, and a line of fields.

use super::hires::second_pass;
use super::{Imported, Origin};
use crate::request::{Interpolation, Loop, Request, Upscale};
use crate::rng::RngKind;
use crate::sampler::SamplerKind;
use crate::schedule::Spacing;
use crate::spelling::bare;

/// Fewer fields do not make a line of fields.
const FEWEST: usize = 3;

/// Whether a text is what A1111 writes.
pub(super) fn is_parameters(text: &str) -> bool {
    text.trim().lines().last().is_some_and(|line| fields(line).len() >= FEWEST)
}

/// The request that a text describes.
pub(super) fn request(text: &str, has_sampler: bool) -> Result<Imported, String> {
    let mut lines: Vec<&str> = text.trim().lines().collect();
    let fields = lines.pop().map(fields).unwrap_or_default();
    let (mut prompt, mut negative) = (Vec::new(), None::<Vec<&str>>);
    for line in lines {
        match (line.trim().strip_prefix("Negative prompt:"), &mut negative) {
            (Some(rest), None) => negative = Some(vec![rest.trim()]),
            (_, Some(negative)) => negative.push(line.trim()),
            (None, None) => prompt.push(line.trim()),
        }
    }
    let mut request = Request::new(prompt.join("\n"));
    request.prompt.negative = negative.unwrap_or_default().join("\n");
    // What A1111 does not write is its default.
    request.sampling.rng = RngKind::Cuda;
    let field = |key: &str| fields.iter().find(|(found, _)| found == key).map(|(_, v)| v.as_str());
    if let Some(steps) = number(field("Steps"), "Steps")? {
        request.sampling.steps = steps;
    }
    if let Some(scale) = number(field("CFG scale"), "CFG scale")? {
        request.sampling.cfg_scale = scale;
    }
    request.sampling.seed = number(field("Seed"), "Seed")?;
    if let Some(size) = field("Size") {
        let sides =
            size.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        let (width, height) = sides.ok_or_else(|| format!("`Size: {size}` is no size"))?;
        (request.size.width, request.size.height) = (Some(width), Some(height));
    }
    // A1111 counts from the last layer, which is 1.
    let skip: Option<usize> = number(field("Clip skip"), "Clip skip")?;
    request.prompt.clip_skip = skip.unwrap_or(1).saturating_sub(1);
    if field("RNG") == Some("CPU") {
        request.sampling.rng = RngKind::Cpu;
    }
    if let Some(name) = field("Sampler").filter(|_| !has_sampler) {
        let (sampler, spacing) = SamplerKind::with_spacing(name)
            .map_err(|error| format!("{error}; --sampler chooses another"))?;
        request.sampling.sampler = sampler;
        // Versions before 1.9 have no schedule types: what is not in the sampler's name is uniform.
        request.sampling.spacing = spacing.or_else(|| uniform(sampler));
        if let Some(kind) = field("Schedule type") {
            request.sampling.spacing = match bare(kind).as_str() {
                "automatic" => automatic(sampler).or(spacing),
                "ddim" => spacing,
                _ => Some(kind.parse().map_err(|error| format!("Schedule type: {error}"))?),
            };
        }
    }
    // Its extension for AnimateDiff has fields of its own in one.
    let inner = |key: &str| {
        let prefix = format!("{key}: ");
        field("AnimateDiff")?.split(", ").find_map(|part| part.strip_prefix(prefix.as_str()))
    };
    if let Some(frames) = number(inner("video_length"), "video_length")?.filter(|n| *n > 0) {
        request.size.frames = Some(frames);
    }
    if let Some(fps) = number(inner("fps"), "fps")? {
        request.output.fps = fps;
    }
    let mut notes = Vec::new();
    let length = number(inner("batch_size"), "batch_size")?.filter(|n| *n > 0);
    if let Some(length) = length.filter(|length| *length < request.frames()) {
        request.windows.length = Some(length);
        request.windows.stride = number(inner("stride"), "stride")?.filter(|n| *n > 0);
        // -1 stands for a quarter of the window.
        let overlap: Option<i64> = number(inner("overlap"), "overlap")?;
        let overlap = overlap.map(|n| usize::try_from(n).unwrap_or(length / 4));
        request.windows.overlap = overlap;
        notes.push("its windows lie elsewhere than those of the extension".into());
    }
    match inner("closed_loop") {
        Some("A") => request.output.looping = Loop::Closed,
        Some(kind) if kind.starts_with('R') => {
            notes.push(format!("`closed_loop: {kind}` is not taken over; --loop closed is near"));
        }
        _ => {}
    }
    let is_own = field("Version").is_some_and(|version| version.starts_with("animatelcm"));
    let travels = request.prompt.keys().is_ok_and(|keys| keys.len() > 1);
    if inner("enable") == Some("True") && travels && !is_own {
        request.prompt.interpolation = Interpolation::Spherical;
    }
    hires(&field, &mut request, &mut notes)?;
    if let Some(model) = field("Model").filter(|model| *model != "pocket") {
        notes.push(format!(
            "was made with the model `{model}`; --model and --checkpoint say what is used"
        ));
    }
    for key in
        ["Variation seed", "Refiner", "VAE", "ControlNet 0", "Eta", "Tiling", "Noise Schedule"]
            .iter()
            .chain(&OPTIONS)
    {
        if let Some(value) = field(key) {
            notes.push(format!("`{key}: {value}` is not taken over"));
        }
    }
    Ok(Imported::foreign(request, notes, Origin::A1111))
}

/// Options of the web UI's extensions that other formulas stand behind than those here.
const OPTIONS: [&str; 7] = [
    "CFG Rescale",
    "CFG Rescale φ",
    "Dynamic thresholding enabled",
    "FreeU Stages",
    "freeu_enabled",
    "PAG Active",
    "Tiled Diffusion",
];

/// The second pass.
fn hires<'a>(
    field: &dyn Fn(&str) -> Option<&'a str>,
    request: &mut Request,
    notes: &mut Vec<String>,
) -> Result<(), String> {
    let strength: Option<f64> = number(field("Denoising strength"), "Denoising strength")?;
    let scale: Option<f64> = number(field("Hires upscale"), "Hires upscale")?;
    let Some((scale, strength)) = scale.zip(strength.filter(|s| *s > 0.0 && *s <= 1.0)) else {
        for key in ["Denoising strength", "Hires upscale", "Hires resize"] {
            if let Some(value) = field(key) {
                notes.push(format!("`{key}: {value}` is not taken over"));
            }
        }
        return Ok(());
    };
    let steps = number(field("Hires steps"), "Hires steps")?.filter(|steps| *steps > 0);
    let upscaler = field("Hires upscaler").unwrap_or("Latent");
    let upscale = match upscaler {
        "Latent (bicubic)" => Upscale::Bicubic,
        "Latent (nearest)" => Upscale::Nearest,
        "Lanczos" => Upscale::Pixels,
        _ => {
            let is_latent = upscaler.starts_with("Latent");
            let instead = if is_latent { Upscale::Bicubic } else { Upscale::Pixels };
            notes.push(format!("`Hires upscaler: {upscaler}` is not known; {instead} is used"));
            instead
        }
    };
    let others = ["Hires CFG Scale", "Hires sampler", "Hires schedule type", "Hires checkpoint"];
    for key in others.iter().chain(&["Hires prompt", "Hires negative prompt"]) {
        if let Some(value) = field(key) {
            notes.push(format!("`{key}: {value}` is not taken over"));
        }
    }
    let steps = steps.unwrap_or(request.sampling.steps);
    request.quality.hires = Some(second_pass(scale, steps, strength, upscale));
    Ok(())
}

fn number<T: std::str::FromStr>(value: Option<&str>, key: &str) -> Result<Option<T>, String> {
    value
        .map(|value| value.parse().map_err(|_| format!("`{key}: {value}` is no number")))
        .transpose()
}

/// The fields of a line, as A1111's regular expression `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)` finds them;
/// none where something is no field.
fn fields(line: &str) -> Vec<(String, String)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut fields = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let Some((key, after)) = rest.split_once(':') else { return vec![] };
        let is_key = key.starts_with(is_word)
            && key.chars().nth(1).is_some()
            && key.chars().all(|c| is_word(c) || matches!(c, ' ' | '-' | '/'));
        if !is_key {
            return vec![];
        }
        let value = after.trim_start();
        let quoted = closing(value).filter(|end| {
            value.get(*end..).is_some_and(|after| after.is_empty() || after.starts_with(','))
        });
        let end = quoted.or_else(|| value.find(',')).unwrap_or(value.len());
        let (value, after) = value.split_at(end);
        let value = match quoted {
            Some(_) => serde_json::from_str(value).unwrap_or_else(|_| value.to_owned()),
            None => value.trim_end().to_owned(),
        };
        fields.push((key.to_owned(), value));
        rest = after.strip_prefix(',').unwrap_or(after).trim_start();
    }
    fields
}

/// Where a text in double quotes ends that a text begins with.
fn closing(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.strip_prefix('"')?.char_indices().find_map(|(at, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at + 2)
    })
}

/// What A1111 1.10 means by the schedule type `Automatic`, where it is not the sampler's own here.
fn automatic(sampler: SamplerKind) -> Option<Spacing> {
    match sampler {
        SamplerKind::Dpmpp2m | SamplerKind::DpmppSde => Some(Spacing::Karras),
        SamplerKind::Dpmpp2mSde | SamplerKind::Dpmpp3mSde => Some(Spacing::Exponential),
        _ => uniform(sampler),
    }
}

/// The spacing of k-diffusion's samplers where none is named: `DiscreteSchedule.get_sigmas`, even timesteps from the
/// noisiest to 0. A1111's DDIM, PLMS and UniPC have their own.
fn uniform(sampler: SamplerKind) -> Option<Spacing> {
    let has_own = matches!(
        sampler,
        SamplerKind::Lcm
            | SamplerKind::Tcd
            | SamplerKind::Ddim
            | SamplerKind::Ddpm
            | SamplerKind::Pndm
            | SamplerKind::Deis
            | SamplerKind::UniPc
    );
    (!has_own).then_some(Spacing::Linspace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a cat, (big:1.2) <lora:x:0.8>,\nmore: words\nNegative prompt: blurry,\nbad\nSteps: 20, Sampler: \
                        DPM++ 2M Karras, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model hash: 0123456789, \
                        Model: \"a, b: c\", Clip skip: 2, Lora hashes: \"x: abc, y: def\", Version: v1.6.0";

    #[test]
    fn an_infotext_becomes_a_request() {
        assert!(is_parameters(TEXT));
        let Imported { job, notes, .. } = request(TEXT, false).unwrap();
        let request = job.request;
        assert_eq!(request.prompt.text, "a cat, (big:1.2) <lora:x:0.8>,\nmore: words");
        assert_eq!(request.prompt.negative, "blurry,\nbad");
        assert_eq!(
            (request.sampling.steps, request.sampling.cfg_scale, request.sampling.seed),
            (20, 7.5, Some(1_234_567_890))
        );
        assert_eq!(
            (request.size.width, request.size.height, request.prompt.clip_skip),
            (Some(512), Some(768), 1)
        );
        assert_eq!(
            (request.sampling.sampler, request.sampling.spacing),
            (SamplerKind::Dpmpp2m, Some(Spacing::Karras))
        );
        assert_eq!(request.sampling.rng, RngKind::Cuda);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("`a, b: c`"), "{notes:?}");
    }

    #[test]
    fn newer_fields_and_those_of_animate_diff_are_known() {
        let text = "x\nSteps: 4, Sampler: Euler, Schedule type: SGM Uniform, CFG scale: 1, Seed: 7, Size: 64x64, RNG: CPU, \
                    AnimateDiff: \"enable: True, model: mm.ckpt, video_length: 24, fps: 12, stride: 1\"";
        let request = request(text, false).unwrap().job.request;
        assert_eq!(
            (request.frames(), request.output.fps, request.sampling.rng),
            (24, 12.0, RngKind::Cpu)
        );
        assert_eq!(request.sampling.spacing, Some(Spacing::SgmUniform));
        assert_eq!((request.prompt.clip_skip, request.prompt.negative.as_str()), (0, ""));
    }

    #[test]
    fn every_sampler_and_schedule_type_has_its_meaning() {
        use SamplerKind::{Dpmpp2m, Dpmpp2mSde, Dpmpp3mSde, DpmppSde, Euler, Lms, Pndm, UniPc};
        for (name, kind, sampler, spacing) in [
            ("DPM++ 2M", "Automatic", Dpmpp2m, Some(Spacing::Karras)),
            ("DPM++ SDE", "Automatic", DpmppSde, Some(Spacing::Karras)),
            ("DPM++ 2M SDE", "Automatic", Dpmpp2mSde, Some(Spacing::Exponential)),
            ("DPM++ 3M SDE", "Automatic", Dpmpp3mSde, Some(Spacing::Exponential)),
            ("DPM++ 3M SDE", "Karras", Dpmpp3mSde, Some(Spacing::Karras)),
            ("Euler", "Automatic", Euler, Some(Spacing::Linspace)),
            ("LMS", "Exponential", Lms, Some(Spacing::Exponential)),
            ("PLMS", "Automatic", Pndm, None),
            ("UniPC", "SGM Uniform", UniPc, Some(Spacing::SgmUniform)),
            ("Euler", "Align Your Steps", Euler, Some(Spacing::Ays)),
            ("Euler", "Simple", Euler, Some(Spacing::Trailing)),
        ] {
            let text = format!("x\nSteps: 4, Sampler: {name}, Schedule type: {kind}, CFG scale: 1");
            let sampling = request(&text, false).unwrap().job.request.sampling;
            assert_eq!((sampling.sampler, sampling.spacing), (sampler, spacing), "{name}, {kind}");
        }
    }

    #[test]
    fn without_a_schedule_type_timesteps_are_even() {
        for (name, spacing) in [
            ("Euler a", Some(Spacing::Linspace)),
            ("DPM++ 2M", Some(Spacing::Linspace)),
            ("DPM++ 2M Karras", Some(Spacing::Karras)),
            ("DDIM", None),
            ("LCM", None),
        ] {
            let text = format!("x\nSteps: 4, Sampler: {name}, CFG scale: 1");
            let sampling = request(&text, false).unwrap().job.request.sampling;
            assert_eq!(sampling.spacing, spacing, "{name}");
        }
    }

    #[test]
    fn a_second_pass_and_windows_are_taken_over() {
        let text = "0: a bud\n20: a rose\nSteps: 8, Sampler: Euler, CFG scale: 1, Size: 64x64, Denoising strength: 0.4, \
                    Hires upscale: 1.5, Hires steps: 3, Hires upscaler: Latent (nearest), Hires prompt: \"big, red\", \
                    AnimateDiff: \"enable: True, model: mm.ckpt, video_length: 24, fps: 8, loop_number: 0, \
                    closed_loop: A, batch_size: 16, stride: 2, overlap: -1\"";
        let Imported { job, notes, .. } = request(text, false).unwrap();
        let request = job.request;
        let hires = request.quality.hires.unwrap();
        assert_eq!((hires.scale, hires.upscale, hires.steps), (1.5, Upscale::Nearest, Some(7)));
        assert_eq!(crate::sampler::kept_steps(7, hires.strength).unwrap(), 3);
        let windows = &request.windows;
        assert_eq!((windows.length, windows.stride, windows.overlap), (Some(16), Some(2), Some(4)));
        assert_eq!(request.output.looping, Loop::Closed);
        assert_eq!(request.prompt.interpolation, Interpolation::Spherical);
        let notes = notes.join("; ");
        assert!(notes.contains("`Hires prompt: big, red`") && notes.contains("windows"), "{notes}");

        let notes = |text: &str| self::request(text, false).unwrap().notes.join("; ");
        let head = "x\nSteps: 8, Sampler: Euler, CFG scale: 7, Denoising strength: 0.5";
        assert!(notes(head).contains("`Denoising strength: 0.5` is not taken over"));
        let text = format!("{head}, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+");
        assert!(notes(&text).contains("`Hires upscaler: R-ESRGAN 4x+` is not known; pixels is"));
        let text = format!("{head}, freeu_enabled: True, Dynamic thresholding enabled: True");
        let noted = notes(&text);
        assert!(
            noted.contains("`freeu_enabled: True`") && noted.contains("thresholding"),
            "{noted}"
        );
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let text = "x\nSteps: 4, Sampler: DPM2, CFG scale: 1";
        let error = |text: &str| request(text, false).err().unwrap();
        assert!(error(text).contains("`DPM2`"));
        assert!(request(text, true).is_ok(), "another sampler was chosen");
        assert!(error("x\nSteps: many, Sampler: LCM, CFG scale: 1").contains("Steps: many"));
        assert!(error("x\nSteps: 4, Sampler: LCM, Size: big").contains("Size: big"));
        assert!(
            !is_parameters("a cat: big, a dog") && !is_parameters("") && !is_parameters("Steps: 4")
        );
    }
}
