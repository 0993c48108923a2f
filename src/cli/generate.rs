//! `animatelcm generate`: what was typed becomes a job, the job a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::flags::{
    ClipFlags, GenerateArgs, LongFlags, ModelFlags, ProgressMode, QualityFlags, Reporting,
    SamplingFlags, SourceFlags, Switch, is_there,
};
use super::preview::{self, Preview, PreviewTo};
use super::progress::Progress;
#[cfg(feature = "hub")]
use super::{models, terminal};
use super::{print, report, to_json};
use crate::job::{self, Folders, Imported, Known, Names, Requests, Target};
use crate::library::Library;
use crate::output::{self, Existing};
use crate::pipeline::{Done, Event, Observer};
use crate::request::{FileRecord, Job, Prompt, Request, Source, Spec, Travel};
use crate::sampler::SamplerKind;
use crate::{Error, ErrorKind, Result, Stop, files};

pub(super) fn run(mut args: GenerateArgs, stop: &Stop) -> Result<()> {
    take_stdin(&mut args, stop)?;
    let names = Names::new(args.models.offline)?.with_folders(&args.models.models_dir)?;
    let read = match &args.request {
        None => None,
        Some(path) => match job::requests(path, args.sampling.sampler.is_some(), stop)? {
            Requests::One(read) => Some(*read),
            Requests::Many(batch) => return all(&args, &names, batch, stop),
        },
    };
    let mut asked = requested(&args, &names, read, stop)?;
    if args.dump_request {
        return print(&to_json(&asked.job)?);
    }
    asked.tell(&args, stop)?;
    let seed = seeded(&mut asked.job.request);
    let clips = clips(&args, &asked.job.request, seed)?;
    let (existing, is_many) = (existing(&args), clips.len() > 1);
    let preview = looks(&args, is_many)?;
    if let Some(PreviewTo::File(file)) = &args.output.preview {
        // It may be written again from now on, but a file that was there before is asked for.
        clips.iter().try_for_each(|(_, path)| job::check_preview(path, file, existing))?;
    }
    #[cfg(feature = "hub")]
    offer_pull(&args, &names, &asked.job, stop)?;
    if is_many {
        // A name that is taken is found before the first clip is made.
        asked.job.request.validate()?;
        for (_, path) in &clips {
            output::check(path, existing)?;
        }
    }
    let library = is_many.then(|| Arc::new(Library::new(u64::MAX)));
    let mut progress = Progress::new(&args.reporting, stop).on(preview);
    for (seed, path) in &clips {
        let mut asked = asked.clone();
        asked.job.request.sampling.seed = Some(*seed);
        let target = target(&args, path);
        let told = (&mut progress, Answer::of(&args.reporting, is_many));
        let done = make(asked, &names, library.as_ref(), &target, told)?;
        if let Some(preview) = &preview {
            preview.show(path, &done, stop)?;
        }
        if args.output.open
            && let Some(message) = preview::open(path)
        {
            warn(&args, message, stop)?;
        }
    }
    Ok(())
}

/// The terminal that the clips are shown in, if they are; checked before any work.
fn looks(args: &GenerateArgs, is_many: bool) -> Result<Option<Preview>> {
    let is_stdout = args.output.output.as_deref().is_some_and(|path| path.as_os_str() == "-");
    if args.output.open && (is_stdout || is_many) {
        let reason = if is_stdout { "standard output is no file" } else { "is for one clip" };
        return Err(Error::request("open", reason));
    }
    let Some(PreviewTo::Terminal(protocol)) = args.output.preview else { return Ok(None) };
    if is_stdout {
        return Err(Error::request("preview", "standard output is no file"));
    }
    Preview::new(protocol).map(Some)
}

/// Says what is probably not as it was meant.
fn warn(args: &GenerateArgs, message: String, stop: &Stop) -> Result<()> {
    Progress::new(&args.reporting, stop).event(Event::Warning { message })
}

/// Asks on a terminal whether published models that are not here shall be downloaded now. Elsewhere the run fails and
/// names the command that does.
#[cfg(feature = "hub")]
fn offer_pull(args: &GenerateArgs, names: &Names, job: &Job, stop: &Stop) -> Result<()> {
    let reporting = &args.reporting;
    let is_silent = reporting.quiet || reporting.progress == ProgressMode::Json;
    if is_silent || !names.is_online() || !terminal::is_interactive() {
        return Ok(());
    }
    let absent = names.absent(&job.models);
    if absent.is_empty() {
        return Ok(());
    }
    terminal::line(&format!(
        "not downloaded: {}; {}",
        absent.join(", "),
        models::announced(&absent)?
    ));
    if terminal::confirms("Download now?", true)? {
        let context = models::Context { offline: false, progress: ProgressMode::Auto, stop };
        models::pull_by_name(&absent, context)?;
    }
    Ok(())
}

/// Reads the prompt from standard input where it is `-`.
fn take_stdin(args: &mut GenerateArgs, stop: &Stop) -> Result<()> {
    let prompts = [&mut args.prompt, &mut args.prompt_flag].into_iter().flatten();
    for prompt in prompts.filter(|prompt| *prompt == "-") {
        if args.request.as_ref().is_some_and(|path| path.as_os_str() == "-") {
            let reason = "standard input is taken by the request";
            return Err(Error::request("prompt", reason));
        }
        *prompt = job::prompt(stop)?;
    }
    Ok(())
}

/// Makes the clips of many requests, networks kept loaded, and answers each with a line of JSON.
///
/// What is wrong with one request does not end the others.
fn all(args: &GenerateArgs, names: &Names, mut batch: job::Batch, stop: &Stop) -> Result<()> {
    let wrong = |field: &'static str, reason: &str| Err(Error::request(field, reason));
    if args.caption {
        return wrong("caption", "is for one request");
    }
    if args.output.count.is_some() {
        return wrong("count", "a list of requests makes one clip of each");
    }
    if args.output.tensors_out.is_some() {
        return wrong("tensors-out", "is for one clip");
    }
    if args.output.output.as_ref().is_some_and(|path| path.as_os_str() == "-") {
        return wrong("output", "standard output is taken by the answers");
    }
    let preview = if args.dump_request { None } else { looks(args, true)? };
    let library = Arc::new(Library::new(u64::MAX));
    let mut progress = Progress::new(&args.reporting, stop).on(preview);
    let (mut failed, mut total) = (0, 0);
    while let Some(read) = batch.next_request(stop)? {
        total += 1;
        let made = read.and_then(|read| {
            let mut asked = requested(args, names, Some(read), stop)?;
            if args.dump_request {
                print(&format!("{}\n", line(&asked.job)?))?;
                return Ok(None);
            }
            asked.tell(args, stop)?;
            let seed = seeded(&mut asked.job.request);
            let path = match &args.output.output {
                Some(path) => numbered(path, total, 1),
                None => default_name(&asked.job.request.prompt, seed),
            };
            let (target, told) = (target(args, &path), (&mut progress, Answer::Line));
            let done = make(asked, names, Some(&library), &target, told)?;
            Ok(Some((path, done)))
        });
        match (made, &preview) {
            (Ok(Some((path, done))), Some(preview)) => match preview.show(&path, &done, stop) {
                // The request is answered: that its clip cannot be shown is no second answer.
                Err(error) if error.kind() != ErrorKind::Cancelled => {
                    warn(args, error.to_string(), stop)?;
                }
                shown => shown?,
            },
            (Ok(_), _) => {}
            (Err(error), _) if error.kind() == ErrorKind::Cancelled => return Err(error),
            (Err(error), _) => {
                failed += 1;
                report(&error, args.reporting.progress == ProgressMode::Json);
                print(&format!("{}\n", Event::from(&error).to_json()))?;
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::Batch { failed, total: total as usize }),
    }
}

fn existing(args: &GenerateArgs) -> Existing {
    if args.output.overwrite { Existing::Replace } else { Existing::Refuse }
}

fn target<'a>(args: &'a GenerateArgs, path: &'a Path) -> Target<'a> {
    Target {
        path,
        existing: existing(args),
        has_metadata: !args.output.no_metadata,
        tensors: args.output.tensors_out.as_deref(),
        preview: match &args.output.preview {
            Some(PreviewTo::File(file)) => Some(file),
            _ => None,
        },
    }
}

/// The seed of a request, which gets one if it has none.
fn seeded(request: &mut Request) -> u64 {
    *request.sampling.seed.get_or_insert_with(random_seed)
}

/// JSON on one line.
fn line(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })
}

/// The seed and the file of every clip.
fn clips(args: &GenerateArgs, request: &Request, seed: u64) -> Result<Vec<(u64, PathBuf)>> {
    let count = args.output.count.unwrap_or(1);
    let wrong = |reason: &str| Err(Error::request("count", reason.to_owned()));
    if count == 0 || count > MOST_CLIPS {
        return wrong(&format!("must be from 1 to {MOST_CLIPS}, got {count}"));
    }
    let named = |seed: u64| default_name(&request.prompt, seed);
    let output = args.output.output.as_deref();
    if count == 1 {
        return Ok(vec![(seed, output.map_or_else(|| named(seed), Path::to_path_buf))]);
    }
    if output.is_some_and(|path| path.as_os_str() == "-") {
        return wrong("standard output takes one clip");
    }
    if args.output.tensors_out.is_some() {
        return wrong("--tensors-out is for one clip");
    }
    let clips = (0..count).map(|i| {
        let seed = seed.wrapping_add(i);
        let path = output.map_or_else(|| named(seed), |path| numbered(path, i + 1, count));
        (seed, path)
    });
    Ok(clips.collect())
}

/// The most clips of one run.
const MOST_CLIPS: u64 = 100_000;

/// `clip.gif` becomes `clip-01.gif`, `f_%03d.png` becomes `f_01-%03d.png`.
fn numbered(path: &Path, number: u64, count: u64) -> PathBuf {
    let digits = count.to_string().len();
    let name = path.file_name().unwrap_or_default();
    let bytes = name.as_encoded_bytes();
    let pattern = bytes.iter().position(|byte| *byte == b'%');
    let point = bytes.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0);
    // Both are ASCII, so the name may be cut there.
    let name = name.to_string_lossy();
    let (at, number) = match (pattern, point) {
        (Some(at), _) => (at, format!("{number:0digits$}-")),
        (None, at) => (at.unwrap_or(name.len()), format!("-{number:0digits$}")),
    };
    let (before, after) = name.split_at_checked(at).unwrap_or((&name, ""));
    path.with_file_name(format!("{before}{number}{after}"))
}

/// How a finished clip is told on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Its path.
    Path,
    /// A JSON object.
    Json,
    /// A JSON object on one line, among others.
    Line,
}

impl Answer {
    /// As the flags say, for a clip that is perhaps one of many.
    fn of(reporting: &Reporting, is_many: bool) -> Self {
        match (reporting.json, is_many) {
            (false, _) => Self::Path,
            (true, false) => Self::Json,
            (true, true) => Self::Line,
        }
    }
}

/// Makes the clip of a complete job and says where it is. Its notes were said before and belong to its JSON.
fn make(
    asked: Requested,
    names: &Names,
    library: Option<&Arc<Library>>,
    target: &Target<'_>,
    (progress, answer): (&mut Progress, Answer),
) -> Result<Done> {
    let is_stdout = target.path.as_os_str() == "-";
    if answer != Answer::Path && is_stdout {
        let reason = "standard output is taken by the video";
        return Err(Error::request("json", reason).with_hint("--progress json tells all on stderr"));
    }
    let job = (asked.job, asked.known);
    let mut done = watched(job, names, library, target, progress)?;
    done.warnings.splice(..0, asked.notes);
    let event = Event::Done(done.clone());
    match answer {
        Answer::Line => print(&format!("{}\n", event.to_json()))?,
        Answer::Json => print(&to_json(&event)?)?,
        Answer::Path if is_stdout => {}
        Answer::Path => print(&format!("{}\n", target.path.display()))?,
    }
    Ok(done)
}

/// Makes the clip of a complete job and shows how far it is.
pub(super) fn watched(
    (job, known): (Job, Known),
    names: &Names,
    library: Option<&Arc<Library>>,
    target: &Target<'_>,
    progress: &mut Progress,
) -> Result<Done> {
    progress.start();
    let stop = progress.stop().clone();
    let made = job::run(job, known, (names, library), target, progress, &stop);
    progress.finish();
    made
}

/// The job, and notes on what could not be imported.
#[derive(Clone, Debug)]
struct Requested {
    job: Job,
    /// Parts of a request file that could not be imported, a line each.
    notes: Vec<String>,
    known: Known,
}

impl Requested {
    /// Tells the notes.
    fn tell(&self, args: &GenerateArgs, stop: &Stop) -> Result<()> {
        self.notes.iter().try_for_each(|note| warn(args, note.clone(), stop))
    }
}

/// The job that the flags mean, over a request file if there is one, over a preset's defaults if not.
fn requested(
    args: &GenerateArgs,
    names: &Names,
    read: Option<Imported>,
    stop: &Stop,
) -> Result<Requested> {
    let (mut notes, mut known) = (Vec::new(), Known::default());
    let is_of_clip = read.as_ref().is_some_and(|read| read.is_of_clip);
    let mut job = match read {
        Some(read) => {
            let file = args.request.as_deref().unwrap_or(Path::new("-"));
            let named = |note: String| format!("{}: {note}", file.display());
            notes = read.notes.into_iter().map(named).collect();
            let mut job = read.job;
            if read.is_of_clip && !args.trust_paths && !args.dump_request {
                known = job::check_trust(&without_given(args, &job), names, stop)?;
            }
            // Hashes are a demand of clips, which a stranger may have made, on the hints and images that they name.
            job.weights.clear();
            if !read.is_of_clip || args.trust_paths {
                job.request.forget_hashes();
            }
            job
        }
        None => Job::default(),
    };
    spec(&args.models, &mut job.models);
    set_some(&mut job.models.image_encoder, args.control.image_encoder.as_ref());
    set_some(&mut job.models.depth_model, args.control.depth_model.as_ref());
    if args.request.is_none() {
        job::apply_defaults(names, &job.models, &mut job.request)?;
    }
    request(args, &mut job.request)?;
    if args.caption {
        job.request.prompt.text = caption(args, &job, names, stop)?;
    }
    let folders = Folders {
        lora: args.lora_dir.as_deref(),
        embedding: args.embedding_dir.as_deref(),
        // A clip names the embeddings that it was made with, and is made again without others.
        has_embeddings: !is_of_clip,
    };
    job::resolve_prompts(&mut job, names, folders)?;
    if let Some(path) = &args.output.tensors_in {
        let Some(file) = path.to_str().map(str::to_owned) else {
            let reason =
                format!("`{}` must be valid unicode, since the clip names it", path.display());
            return Err(Error::request("tensors-in", reason));
        };
        job.tensors_in = Some(FileRecord { file, sha256: None });
    }
    let has_prompt = args.prompt.is_some() || args.prompt_flag.is_some();
    let has_prompt = has_prompt || args.travel.is_some() || args.request.is_some() || args.caption;
    if !has_prompt && !args.dump_request {
        return Err(Error::request("prompt", "is missing")
            .with_hint("animatelcm generate \"a red circle moving down on a white background\""));
    }
    Ok(Requested { job, notes, known })
}

/// A prompt made of the job's image by BLIP; said on stderr or as an event.
fn caption(args: &GenerateArgs, job: &Job, names: &Names, stop: &Stop) -> Result<String> {
    if let Some(path) = args.output.output.as_deref().filter(|_| !args.dump_request)
        && args.output.count.is_none()
    {
        output::check(path, existing(args))?;
    }
    let prompt = job::caption(job, args.caption_model.as_deref(), names, stop)?;
    Progress::new(&args.reporting, stop).event(Event::Caption { prompt: prompt.clone() })?;
    Ok(prompt)
}

/// A job without what flags replace.
fn without_given(args: &GenerateArgs, job: &Job) -> Job {
    let mut job = job.clone();
    let (flags, models) = (&args.models, &mut job.models);
    for (named, is_given) in [
        (&mut models.model, flags.model.is_some()),
        (&mut models.model_config, flags.model_config.is_some()),
        (&mut models.checkpoint, flags.checkpoint.is_some()),
        (&mut models.vae, flags.vae.is_some()),
        (&mut models.motion, flags.motion.is_some()),
        (&mut models.image_encoder, args.control.image_encoder.is_some()),
        (&mut models.depth_model, args.control.depth_model.is_some()),
    ] {
        named.take_if(|_| is_given);
    }
    models.lcm_lora.take_if(|_| flags.lcm_lora.is_some());
    if !flags.lora.is_empty() {
        models.loras.clear();
    }
    if !flags.embedding.is_empty() {
        models.embeddings.clear();
    }
    if args.source.image.is_some() || args.source.video.is_some() {
        job.request.source = None;
    }
    if !args.control.control.is_empty() {
        job.request.controls.clear();
    }
    if !args.control.ip_adapter.is_empty() {
        job.request.ip_adapters.clear();
    }
    job.tensors_in.take_if(|_| args.output.tensors_in.is_some());
    job
}

fn set<T: Clone>(slot: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        *slot = value.clone();
    }
}

fn set_some<T: Clone>(slot: &mut Option<T>, value: Option<&T>) {
    if value.is_some() {
        *slot = value.cloned();
    }
}

fn switch<T: Clone>(slot: &mut Option<T>, value: Option<&Switch<T>>) {
    if let Some(value) = value {
        *slot = value.value().cloned();
    }
}

pub(super) fn spec(flags: &ModelFlags, spec: &mut Spec) {
    set_some(&mut spec.model, flags.model.as_ref());
    set_some(&mut spec.model_config, flags.model_config.as_ref());
    set_some(&mut spec.checkpoint, flags.checkpoint.as_ref());
    set_some(&mut spec.vae, flags.vae.as_ref());
    set_some(&mut spec.motion, flags.motion.as_ref());
    set_some(&mut spec.lcm_lora, flags.lcm_lora.as_ref());
    if !flags.lora.is_empty() {
        spec.loras.clone_from(&flags.lora);
    }
    if !flags.embedding.is_empty() {
        spec.embeddings.clone_from(&flags.embedding);
    }
    spec.lora_legacy_scale |= flags.lora_legacy_scale;
    spec.allow_partial |= flags.allow_partial;
    set(&mut spec.device, flags.device.as_ref());
    set(&mut spec.dtype, flags.dtype.as_ref());
    set(&mut spec.quantize, flags.quantize.as_ref());
    set(&mut spec.kernels, flags.kernels.as_ref());
}

fn request(args: &GenerateArgs, request: &mut Request) -> Result<()> {
    let prompt = args.prompt.as_ref().or(args.prompt_flag.as_ref());
    set(&mut request.prompt.text, prompt);
    match &args.travel {
        Some(keys) => request.prompt.travel = travel(keys)?,
        // A prompt that is typed takes the place of all that the request has.
        None if prompt.is_some() => request.prompt.travel = Travel::default(),
        None => {}
    }
    set(&mut request.prompt.interpolation, args.travel_interpolation.as_ref());
    set(&mut request.prompt.negative, args.negative_prompt.as_ref());
    set(&mut request.prompt.mode, args.prompt_mode.as_ref());
    if !args.control.control.is_empty() {
        request.controls.clone_from(&args.control.control);
    }
    if !args.control.ip_adapter.is_empty() {
        request.ip_adapters.clone_from(&args.control.ip_adapter);
    }
    set(&mut request.output.zoom, args.output.zoom.as_ref());
    set_some(&mut request.background_color, args.source.background_color.as_ref());
    source(&args.source, request)?;
    long(&args.long, request);
    quality(&args.quality, request)?;
    how(&args.clip, &args.sampling, request)
}

/// Keys as they are typed, or those of a file.
fn travel(keys: &str) -> Result<Travel> {
    /// The longest file that is read: bytes.
    const LONGEST: u64 = 4 << 20;
    if !is_there(keys) {
        return keys.parse();
    }
    let path = Path::new(keys);
    let unreadable = |error| Error::unreadable("travel", path, &error);
    let bytes = files::read(path, LONGEST).map_err(unreadable)?;
    let wrong = |reason: &str| Error::request("travel", format!("{}: {reason}", path.display()));
    let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text"))?;
    let read: Result<Travel> = match Travel::from_lines(&text) {
        Ok(Some(travel)) if !text.trim_start().starts_with('{') => Ok(travel),
        Err(error) if !text.trim_start().starts_with('{') => Err(error),
        _ => text.parse(),
    };
    read.map_err(|error| {
        let reason = error.to_string();
        wrong(reason.strip_prefix("travel: ").unwrap_or(&reason))
    })
}

/// What the clip starts from, and what follows for its length and rate unless other flags say those.
fn source(flags: &SourceFlags, request: &mut Request) -> Result<()> {
    let SourceFlags { image, video, strength, video_fps, video_from, video_every, fit, .. } = flags;
    let SourceFlags { motion_scale, insertion_weights, color_match, keep, mask, overlay, .. } =
        flags;
    let insertion_weights = Some(insertion_weights).filter(|weights| !weights.is_empty());
    if image.is_some() || video.is_some() {
        // Of another source's only what fits both.
        let before = request.source.take().unwrap_or_default();
        let (strength, fit) = (before.strength, before.fit);
        let of_images = if video.is_none() { before } else { Source::default() };
        let Source { motion_scale, insertion_weights, color_match, .. } = of_images;
        let (image, video) = (image.clone(), video.clone());
        if video.is_some() {
            request.size.frames = None;
        }
        let of_both = Source { image, video, strength, fit, ..Source::default() };
        request.source = Some(Source { motion_scale, insertion_weights, color_match, ..of_both });
    }
    let Some(source) = &mut request.source else {
        for (flag, is_given) in [
            ("strength", strength.is_some()),
            ("video-fps", video_fps.is_some()),
            ("video-from", video_from.is_some()),
            ("video-every", video_every.is_some()),
            ("fit", fit.is_some()),
            ("motion-scale", motion_scale.is_some()),
            ("insertion-weights", insertion_weights.is_some()),
            ("color-match", color_match.is_some()),
            ("keep", !keep.is_empty()),
            ("mask", mask.is_some()),
            ("overlay", overlay.is_some()),
        ] {
            if is_given {
                let reason = "there is no image or video to start from";
                return Err(Error::request(flag, reason).with_hint("--image FILE or --video FILE"));
            }
        }
        return Ok(());
    };
    set_some(&mut source.strength, strength.as_ref());
    set_some(&mut source.fps, video_fps.as_ref());
    set(&mut source.from, video_from.as_ref());
    set(&mut source.every, video_every.as_ref());
    set_some(&mut source.fit, fit.as_ref());
    set_some(&mut source.motion_scale, motion_scale.as_ref());
    set_some(&mut source.insertion_weights, insertion_weights);
    set_some(&mut source.color_match, color_match.as_ref());
    if !keep.is_empty() {
        source.keep.clone_from(keep);
    }
    if let Some(mask) = mask {
        source.mask = Some(FileRecord { file: mask.clone(), sha256: None });
    }
    set_some(&mut source.overlay, overlay.as_ref());
    if let Some(fps) = video_fps {
        request.output.fps = fps / source.every.max(1) as f64;
    }
    Ok(())
}

/// Context windows, their noise, and loops.
pub(super) fn long(flags: &LongFlags, request: &mut Request) {
    let windows = &mut request.windows;
    set_some(&mut windows.length, flags.context_length.as_ref());
    set_some(&mut windows.overlap, flags.context_overlap.as_ref());
    set_some(&mut windows.stride, flags.context_stride.as_ref());
    set_some(&mut windows.schedule, flags.context_schedule.as_ref());
    set_some(&mut windows.fuse, flags.context_fuse.as_ref());
    set(&mut request.sampling.noise, flags.noise.as_ref());
    set(&mut request.output.looping, flags.looping.as_ref());
}

/// Options for quality.
pub(super) fn quality(flags: &QualityFlags, request: &mut Request) -> Result<()> {
    let quality = &mut request.quality;
    set(&mut quality.guidance_rescale, flags.guidance_rescale.as_ref());
    switch(&mut quality.dynamic_thresholding, flags.dynamic_thresholding.as_ref());
    switch(&mut quality.free_u, flags.free_u.as_ref());
    switch(&mut quality.free_init, flags.free_init.as_ref());
    switch(&mut quality.vae_tiling, flags.vae_tiling.as_ref());
    switch(&mut quality.hires, flags.hires.as_ref());
    let QualityFlags { pag_scale, pag_adaptive_scale, pag_layers, .. } = flags;
    match pag_scale {
        Some(0.0) => quality.pag = None,
        Some(scale) => quality.pag.get_or_insert_default().scale = *scale,
        None => {}
    }
    let Some(pag) = &mut quality.pag else {
        let given = [
            ("pag-adaptive-scale", pag_adaptive_scale.is_some()),
            ("pag-layers", !pag_layers.is_empty()),
        ];
        return match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => {
                let reason = "there is no perturbed-attention guidance";
                Err(Error::request(flag, reason).with_hint("--pag-scale 3"))
            }
            None => Ok(()),
        };
    };
    set(&mut pag.adaptive_scale, pag_adaptive_scale.as_ref());
    if !pag_layers.is_empty() {
        pag.layers.clone_from(pag_layers);
    }
    Ok(())
}

/// Size, length and sampling.
pub(super) fn how(clip: &ClipFlags, flags: &SamplingFlags, request: &mut Request) -> Result<()> {
    set_some(&mut request.size.width, clip.width.as_ref());
    set_some(&mut request.size.height, clip.height.as_ref());
    set_some(&mut request.size.frames, clip.frames.as_ref());
    set(&mut request.output.fps, clip.fps.as_ref());
    set(&mut request.sampling.steps, flags.steps.as_ref());
    set(&mut request.sampling.cfg_scale, flags.cfg_scale.as_ref());
    if let Some(name) = &flags.sampler {
        sampler(name, request)?;
    }
    set_some(&mut request.sampling.spacing, flags.spacing.as_ref());
    set_some(
        &mut request.sampling.original_inference_steps,
        flags.original_inference_steps.as_ref(),
    );
    set_some(&mut request.sampling.tcd_gamma, flags.tcd_gamma.as_ref());
    set_some(&mut request.schedule.beta_schedule, flags.beta_schedule.as_ref());
    set_some(&mut request.schedule.beta_start, flags.beta_start.as_ref());
    set_some(&mut request.schedule.beta_end, flags.beta_end.as_ref());
    set_some(&mut request.schedule.prediction, flags.prediction.as_ref());
    set_some(&mut request.schedule.zero_snr, flags.zero_snr.as_ref());
    set_some(&mut request.schedule.set_alpha_to_one, flags.set_alpha_to_one.as_ref());
    set_some(&mut request.schedule.steps_offset, flags.steps_offset.as_ref());
    set(&mut request.sampling.motion_norm, flags.motion_norm.as_ref());
    set(&mut request.prompt.clip_skip, flags.clip_skip.as_ref());
    if let Some(seed) = flags.seed {
        request.sampling.seed = seed.number();
    }
    set(&mut request.sampling.rng, flags.rng.as_ref());
    Ok(())
}

/// Sets the sampler of a name, and the spacing that the name may end in; what another sampler had is left behind.
pub(super) fn sampler(name: &str, request: &mut Request) -> Result<()> {
    let (sampler, spacing) = SamplerKind::with_spacing(name)?;
    request.sampling.sampler = sampler;
    request.sampling.spacing = spacing;
    request.sampling.tcd_gamma.take_if(|_| sampler != SamplerKind::Tcd);
    Ok(())
}

/// Good enough to be different every time; small enough to be typed again.
pub(super) fn random_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mixed =
        (now.as_nanos() as u64 ^ u64::from(std::process::id())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 32
}

/// `a-red-circle-7.gif`.
fn default_name(prompt: &Prompt, seed: u64) -> PathBuf {
    PathBuf::from(format!("{}-{seed}.gif", prompt.slug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_of_one_run_are_numbered() {
        let name = |path: &str, number, count| numbered(Path::new(path), number, count);
        assert_eq!(name("a.gif", 1, 4), Path::new("a-1.gif"));
        assert_eq!(name("d.x/a.b.gif", 3, 12), Path::new("d.x/a.b-03.gif"));
        assert_eq!(name("d/f_%03d.png", 2, 3), Path::new("d/f_2-%03d.png"));
        assert_eq!(name("é%d.png", 2, 3), Path::new("é2-%d.png"));
    }
}
