//! `animatelcm preprocess`: hints for controls, made of pictures and videos.

use std::path::{Path, PathBuf};

use candle_core::DType;
use clap::Args;
use serde_json::json;

use super::flags::{at_least, rate};
use super::terminal::line;
use super::{print, to_json};
use crate::device::DeviceChoice;
use crate::job::{self, Names};
use crate::library::depth_network;
use crate::media::read::{Media, Selection};
use crate::media::resize::{Fit, resize_then};
use crate::media::{Background, RgbImage};
use crate::output::{self, ClipInfo, Existing, Metadata};
use crate::preprocess::{Preprocessor, Settings, depth_hints};
use crate::request::MOST_PIXELS;
use crate::{Error, Result, Stop};

/// Frames a second of what has no rate of its own.
const USUAL_RATE: f64 = 8.0;

/// The arguments of `animatelcm preprocess`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags")]
pub(super) struct PreprocessArgs {
    /// canny, softedge, lineart, scribble, blur, tile, gray, invert or depth.
    ///
    /// canny: edges, as OpenCV's Canny; softedge: the length of Sobel's gradient; lineart: what is darker than its
    /// surroundings (lineart_standard); scribble: thick lines by a difference of Gaussians (scribble_xdog); blur: a
    /// Gaussian blur; tile: fewer pixels, enlarged again; gray; invert; depth: near is white, by a network that
    /// `animatelcm models pull depth-anything-v2-small` downloads.
    #[arg(value_name = "KIND")]
    kind: String,
    /// An image, an animation, a video (H.264 in MP4, Y4M) or a folder of images.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// hint.png, .gif, .webp, .mp4 ...
    ///
    /// .gif, .webp, .png or .apng (animated if there are more frames than one), .mp4, .y4m, name_%03d.png, or - for
    /// Y4M on stdout.
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,

    /// canny: gradient above which an edge goes on [default: 100].
    #[arg(long, value_name = "N", help_heading = "Parameters", hide_short_help = true)]
    low: Option<f64>,
    /// canny: gradient above which an edge begins [default: 200].
    #[arg(long, value_name = "N", help_heading = "Parameters", hide_short_help = true)]
    high: Option<f64>,
    /// scribble: the least difference that makes a line [default: 32].
    #[arg(long, value_name = "N", help_heading = "Parameters", hide_short_help = true)]
    threshold: Option<f64>,
    /// blur: standard deviation in pixels [default: 9].
    #[arg(long, value_name = "PIXELS", help_heading = "Parameters", hide_short_help = true)]
    sigma: Option<f64>,
    /// tile: how many times fewer pixels a side has [default: 8].
    #[arg(long, value_name = "N", help_heading = "Parameters", hide_short_help = true)]
    factor: Option<f64>,
    /// depth: a range of depths for each picture rather than one for all, which flickers less.
    #[arg(long, help_heading = "Parameters", hide_short_help = true)]
    per_picture: bool,
    /// depth: the network, a published one, a folder of transformers or its file [default: depth-anything-v2-small].
    #[arg(long, value_name = "NAME|DIR|FILE", help_heading = "Parameters", hide_short_help = true)]
    depth_model: Option<String>,
    /// depth: auto, cpu, cuda, cuda:N or metal [default: auto].
    #[arg(long, value_name = "DEVICE", help_heading = "Parameters", hide_short_help = true)]
    device: Option<DeviceChoice>,
    /// Folder of models that are found by name; repeatable.
    #[arg(long, value_name = "DIR", help_heading = "Parameters", hide_short_help = true)]
    models_dir: Vec<PathBuf>,
    /// Never use the network.
    #[arg(long, help_heading = "Parameters", hide_short_help = true)]
    offline: bool,

    /// Width in pixels, to which pictures are resized before [default: theirs].
    #[arg(short = 'W', long, value_name = "PIXELS", value_parser = at_least::<1>)]
    width: Option<usize>,
    /// Height in pixels, to which pictures are resized before [default: theirs].
    #[arg(short = 'H', long, value_name = "PIXELS", value_parser = at_least::<1>)]
    height: Option<usize>,
    /// Resizing: stretch, crop (the centre) or pad (with black) [default: stretch].
    #[arg(long, value_name = "stretch|crop|pad", hide_short_help = true)]
    fit: Option<Fit>,
    /// Colour behind transparent pictures: a name or #rrggbb [default: alpha is dropped].
    #[arg(long, value_name = "COLOR", alias = "background", hide_short_help = true)]
    background_color: Option<Background>,
    /// First frame that is taken, from 0 [default: 0].
    #[arg(long, value_name = "N", value_parser = at_least::<0>, hide_short_help = true)]
    from: Option<usize>,
    /// Take one of so many frames [default: 1].
    #[arg(long, value_name = "N", value_parser = at_least::<1>, hide_short_help = true)]
    every: Option<usize>,
    /// Take at most so many frames [default: all].
    #[arg(long, value_name = "N", value_parser = at_least::<1>, hide_short_help = true)]
    count: Option<usize>,
    /// Frames a second of the file [default: those of the input, else 8].
    #[arg(long, value_name = "FPS", value_parser = rate, hide_short_help = true)]
    fps: Option<f64>,

    /// Overwrite an existing file.
    #[arg(short = 'y', long, alias = "force", hide_short_help = true)]
    overwrite: bool,
    /// Print the result as JSON instead of the path.
    #[arg(long, hide_short_help = true)]
    json: bool,
    /// Hide everything but errors.
    #[arg(short, long, hide_short_help = true)]
    quiet: bool,
}

pub(super) fn run(args: &PreprocessArgs, stop: &Stop) -> Result<()> {
    let &PreprocessArgs { low, high, threshold, sigma, factor, per_picture, .. } = args;
    let settings = Settings { low, high, threshold, sigma, factor, per_picture };
    let preprocessor = Preprocessor::new(&args.kind, &settings)?;
    let depth = depth_path(args, &preprocessor)?;
    let existing = if args.overwrite { Existing::Replace } else { Existing::Refuse };
    let format = output::check(&args.output, existing)?;
    let is_stdout = args.output.as_os_str() == "-";
    if is_stdout && args.json {
        return Err(Error::request("json", "standard output is taken by the video"));
    }
    if args.input.as_os_str() == "-" {
        let reason = "pictures are not read from standard input";
        return Err(Error::request("input", reason).with_hint("name a file or a folder"));
    }
    let selection = Selection {
        from: args.from.unwrap_or(0),
        every: args.every.unwrap_or(1),
        count: args.count,
    };
    let media = Media::read("input", &args.input, |number| selection.takes(number), stop)?;
    let found = media.on(args.background_color).frames("input", selection, stop)?;
    if found.images.is_empty() {
        let reason = format!(
            "{} asked for, the input has the frames 0 to {}",
            selection.from,
            found.seen - 1
        );
        return Err(Error::request("from", reason));
    }
    let size = size(args, &found.images)?;
    let clip = ClipInfo {
        width: size.0,
        height: size.1,
        frames: found.images.len(),
        fps: rate_of(args, &media)?,
    };
    format.check_clip(&clip)?;
    if let Some(message) = output::surplus(&args.output, clip.frames, existing)?
        && !args.quiet
    {
        line(&format!("warning: {message}"));
    }
    let fit = args.fit.unwrap_or_default();
    // Before the output is begun: a clip has one range of depths.
    let depths = depth.map(|path| depths(args, &path, &found.images, (size, fit), stop));
    let depths = depths.transpose()?;
    let mut sink = output::open(&args.output, &clip, &Metadata::default(), existing, stop)?;
    let apply = |resized: RgbImage| preprocessor.apply(&resized, stop);
    match depths {
        Some(images) => images.iter().try_for_each(|image| sink.frame(image))?,
        None => {
            for image in found.images {
                sink.frame(&resize_then(&image, size, fit, &apply, stop)?)?;
            }
        }
    }
    sink.finish()?;
    if is_stdout {
        return Ok(());
    }
    if !args.json {
        return print(&format!("{}\n", args.output.display()));
    }
    print(&to_json(&json!({
        "path": args.output.to_string_lossy(),
        "input": args.input.to_string_lossy(),
        "sha256": media.sha256(),
        "preprocess": preprocessor,
        "width": clip.width,
        "height": clip.height,
        "frames": clip.frames,
        "fps": clip.fps,
    }))?)
}

/// The network that a kind needs; none for formulas, whose flags must not be its.
fn depth_path(args: &PreprocessArgs, preprocessor: &Preprocessor) -> Result<Option<PathBuf>> {
    if preprocessor.needs_network() {
        let names = Names::new(args.offline)?.with_folders(&args.models_dir)?;
        return job::depth_model(args.depth_model.as_deref(), &names).map(Some);
    }
    for (flag, is_given) in
        [("depth-model", args.depth_model.is_some()), ("device", args.device.is_some())]
    {
        if is_given {
            let reason = format!("`{}` needs no network", preprocessor.name());
            return Err(Error::request(flag, reason));
        }
    }
    Ok(None)
}

/// Depth hints of pictures, told on stderr where there are many.
fn depths(
    args: &PreprocessArgs,
    path: &Path,
    images: &[RgbImage],
    how: ((u32, u32), Fit),
    stop: &Stop,
) -> Result<Vec<RgbImage>> {
    let device = args.device.unwrap_or_default().open()?;
    let network = depth_network(path, DType::F32, &device, stop)?;
    let mut tell = |done: usize| {
        if !args.quiet && (done.is_multiple_of(16) || done == images.len()) {
            line(&format!("estimated the depth of {done}/{}", images.len()));
        }
        Ok(())
    };
    depth_hints(images, how, (&network, args.per_picture), &mut tell, stop)
}

/// Width and height of the result: as asked for, or those of the pictures, which then must be of one size.
fn size(args: &PreprocessArgs, images: &[RgbImage]) -> Result<(u32, u32)> {
    let own = images.first().map(RgbImage::dimensions).unwrap_or_default();
    let asked = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let (width, height) = match (args.width.map(asked), args.height.map(asked)) {
        (Some(width), Some(height)) => (width, height),
        (None, None) => own,
        // The other side follows the proportions.
        (Some(width), None) => (width, scaled(own.1, width, own.0)),
        (None, Some(height)) => (scaled(own.0, height, own.1), height),
    };
    let is_asked = args.width.is_some() && args.height.is_some();
    if let Some(at) = images.iter().position(|image| image.dimensions() != own)
        && !is_asked
    {
        let (other_width, other_height) = images[at].dimensions();
        let reason = format!(
            "its pictures have different sizes: {}x{} and {other_width}x{other_height}",
            own.0, own.1
        );
        return Err(
            Error::request("input", reason).with_hint("-W 512 -H 512 makes them of one size")
        );
    }
    if own.0 == 0 || own.1 == 0 {
        return Err(Error::request("input", "a picture without pixels"));
    }
    if width.max(height) as usize > MOST_PIXELS {
        let reason = format!("{width}x{height} pixels, at most {MOST_PIXELS} a side are made");
        return Err(Error::request("size", reason).with_hint("-W 2048 makes it smaller"));
    }
    Ok((width, height))
}

/// `side * to / from`, rounded.
fn scaled(side: u32, to: u32, from: u32) -> u32 {
    let exact = f64::from(side) * f64::from(to) / f64::from(from.max(1));
    exact.round().clamp(1.0, f64::from(u32::MAX)) as u32
}

/// Frames a second of the result.
fn rate_of(args: &PreprocessArgs, media: &Media) -> Result<f64> {
    if let Some(fps) = args.fps {
        return Ok(fps);
    }
    let durations = media.durations("input")?.filter(|all| all.len() > 1);
    let rate = durations.map_or(USUAL_RATE, |all| {
        all.len() as f64 / all.iter().sum::<f64>() / args.every.unwrap_or(1) as f64
    });
    Ok(if rate.is_finite() { rate.clamp(0.1, 240.0) } else { USUAL_RATE })
}
