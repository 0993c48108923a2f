//! Flags, in groups that commands share. No meaning yet: that is in each command's own file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use super::preview::PreviewTo;
use crate::Quantize;
use crate::device::{DeviceChoice, DtypeChoice, KernelChoice};
use crate::media::Background;
use crate::media::resize::Fit;
use crate::models::motion::MotionNorm;
use crate::models::unet::FreeU;
use crate::request::{
    Control, DynamicThresholding, Embedding, FreeInit, Hires, Interpolation, IpAdapter, Loop,
    VaeTiling, WeightedFile,
};
use crate::rng::{NoiseKind, RngKind};
use crate::sampler::{Fuse, WindowSchedule};
use crate::schedule::{BetaSchedule, Prediction, Spacing};
use crate::text::prompt::PromptMode;

/// Display of progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressMode {
    /// A bar on a terminal, lines elsewhere.
    #[default]
    Auto,
    /// A bar.
    Bar,
    /// JSON on stderr, one object per line.
    Json,
    /// Nothing.
    None,
}

/// Flags for the output of the program itself.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reporting")]
pub(super) struct Reporting {
    /// Display of progress on stderr.
    #[arg(long, value_enum, ignore_case = true, default_value = "auto", hide_short_help = true)]
    pub(super) progress: ProgressMode,
    /// Print the result as JSON instead of the path.
    #[arg(long, hide_short_help = true)]
    pub(super) json: bool,
    /// Hide everything but errors.
    #[arg(short, long, hide_short_help = true)]
    pub(super) quiet: bool,
    /// List the weights that were used and those that were not.
    #[arg(short, long, hide_short_help = true)]
    pub(super) verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// The prompt; - reads it from standard input.
    #[arg(value_name = "PROMPT")]
    pub(super) prompt: Option<String>,
    /// The prompt, the same as PROMPT.
    #[arg(short = 'p', long = "prompt", value_name = "TEXT", conflicts_with = "prompt")]
    #[arg(hide_short_help = true)]
    pub(super) prompt_flag: Option<String>,
    /// A prompt made of the --image, by BLIP, in place of one that is given.
    #[arg(long, hide_short_help = true)]
    pub(super) caption: bool,
    /// The network for --caption, a published one, a folder of transformers or its file [default:
    /// blip-image-captioning-base].
    #[arg(long, value_name = "NAME|DIR|FILE", requires = "caption", hide_short_help = true)]
    pub(super) caption_model: Option<String>,
    /// What to avoid; needs --cfg-scale above 1.
    #[arg(short, long, value_name = "TEXT", alias = "negative")]
    pub(super) negative_prompt: Option<String>,
    /// Syntax of prompts: a1111 knows `(word:1.2)`, `[word]`, `[from:to:when]`, `[a|b]`, `BREAK` and prompts of any
    /// length, plain takes every character as it is and truncates what is too long [default: a1111].
    #[arg(long, value_name = "a1111|plain", hide_short_help = true)]
    pub(super) prompt_mode: Option<PromptMode>,
    /// Prompts for single frames, between which the clip goes from one to the next: `0: a bud; 16: a blossom`, a JSON
    /// map `{"0": "a bud", "16": "a blossom"}`, or a file with either. PROMPT is the beginning of all of them.
    #[arg(long, value_name = "KEYS|FILE", aliases = ["prompt-travel", "prompt-map"])]
    #[arg(hide_short_help = true)]
    pub(super) travel: Option<String>,
    /// Interpolation of text states between keys: linear or spherical [default: linear].
    #[arg(long, value_name = "linear|spherical", hide_short_help = true)]
    pub(super) travel_interpolation: Option<Interpolation>,
    /// Folder searched for `<lora:name:0.8>` in prompts.
    #[arg(long, value_name = "DIR", alias = "lora-model-dir", hide_short_help = true)]
    pub(super) lora_dir: Option<PathBuf>,
    /// Folder searched for the textual inversions that a prompt or negative prompt names by their files' names.
    #[arg(long, value_name = "DIR", aliases = ["embd-dir", "embeddings-dir"], hide_short_help = true)]
    pub(super) embedding_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(super) models: ModelFlags,
    #[command(flatten)]
    pub(super) clip: ClipFlags,
    #[command(flatten)]
    pub(super) source: SourceFlags,
    #[command(flatten)]
    pub(super) long: LongFlags,
    #[command(flatten)]
    pub(super) control: ControlFlags,
    #[command(flatten)]
    pub(super) sampling: SamplingFlags,
    #[command(flatten)]
    pub(super) quality: QualityFlags,
    #[command(flatten)]
    pub(super) output: OutputFlags,
    #[command(flatten)]
    pub(super) reporting: Reporting,

    /// Take everything from a JSON file (see --dump-request), from a clip of this program, or from an image or text of
    /// A1111 or ComfyUI; flags override it.
    ///
    /// With `-` it is read from standard input. JSON lines are requests of their own, made one after the other with the weights kept
    /// loaded; each is answered by a line of JSON.
    #[arg(long, value_name = "FILE", help_heading = "Request files", hide_short_help = true)]
    pub(super) request: Option<PathBuf>,
    /// Open files that a clip given as --request names even where it has no SHA-256 of them.
    #[arg(long, help_heading = "Request files", hide_short_help = true)]
    pub(super) trust_paths: bool,
    /// Print the request as JSON and stop.
    #[arg(long, help_heading = "Request files", hide_short_help = true)]
    pub(super) dump_request: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Models")]
pub(super) struct ModelFlags {
    /// Base model [default: the small one inside].
    ///
    /// A name from `models list`, a diffusers folder or a single-file checkpoint.
    #[arg(short, long, value_name = "NAME|DIR|FILE")]
    #[arg(aliases = ["ckpt", "ckpt-name", "pretrained-model-name-or-path"])]
    pub(super) model: Option<String>,
    /// A folder with `unet/config.json` and so on, for a single file of unusual sizes.
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(super) model_config: Option<String>,
    /// Personalised single-file weights laid over --model.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(super) checkpoint: Option<String>,
    /// Another autoencoder.
    #[arg(long, value_name = "NAME|DIR|FILE", aliases = ["vae-path", "vae-name", "taesd"])]
    #[arg(hide_short_help = true)]
    pub(super) vae: Option<String>,
    /// Motion modules.
    ///
    /// `none` for images without motion [default: the model's own, else animatelcm-t2v].
    #[arg(long, value_name = "NAME|DIR|FILE", aliases = ["motion-module", "motion-adapter"])]
    pub(super) motion: Option<String>,
    /// The consistency LoRA; `none` for none [default: the one made for the motion modules].
    #[arg(long, value_name = "NAME|FILE[:SCALE]", value_parser = weighted_file, hide_short_help = true)]
    pub(super) lcm_lora: Option<WeightedFile>,
    /// LoRA and its strength; repeatable.
    ///
    /// A file, or PEFT's folder; also `FILE:unet=SCALE,text=SCALE`. `FILE:0.8,lbw=MIDD` has factors for blocks: 17 or 26 numbers, or a preset of LoRA Block Weight. A
    /// path with colons goes into double quotes: `"a:b.safetensors":0.8`.
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = weighted_file)]
    pub(super) lora: Vec<WeightedFile>,
    /// A textual inversion and the word for it in prompts; repeatable [default: the word that the file names].
    #[arg(long, value_name = "FILE[:WORD]", value_parser = embedding, hide_short_help = true)]
    pub(super) embedding: Vec<Embedding>,
    /// Ignore the alpha of LoRAs, as AnimateLCM's own code does.
    #[arg(long, hide_short_help = true)]
    pub(super) lora_legacy_scale: bool,
    /// Accept LoRAs that fit only in part.
    #[arg(long, hide_short_help = true)]
    pub(super) allow_partial: bool,
    /// Device: auto, cpu, cuda, cuda:N or metal [default: auto].
    #[arg(long, value_name = "DEVICE", hide_short_help = true)]
    pub(super) device: Option<DeviceChoice>,
    /// dtype of the UNet: auto, f32, f16 or bf16 [default: auto].
    #[arg(long, value_name = "DTYPE", aliases = ["torch-dtype", "type"], hide_short_help = true)]
    pub(super) dtype: Option<DtypeChoice>,
    /// Round the UNet and the networks beside it, on the CPU: none, int8 (weights, a quarter of f32's memory) or w8a8
    /// (what linear layers are given, too, which is faster and a little less exact) [default: none].
    #[arg(long, value_name = "BITS", hide_short_help = true)]
    pub(super) quantize: Option<Quantize>,
    /// Kernels on a GPU: default, or experimental, which no GPU has tested yet (own ones for NVIDIA, Metal's attention)
    /// [default: default].
    #[arg(long, value_name = "SET", hide_short_help = true)]
    pub(super) kernels: Option<KernelChoice>,
    /// Folder of models that are found by name, arranged as in ComfyUI or A1111; repeatable. Also
    /// `ANIMATELCM_MODELS`.
    #[arg(long, value_name = "DIR", aliases = ["ckpt-dir", "models-path"], hide_short_help = true)]
    pub(super) models_dir: Vec<PathBuf>,
    /// Never use the network.
    #[arg(long, hide_short_help = true)]
    pub(super) offline: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Clip")]
pub(super) struct ClipFlags {
    /// Width in pixels [default: the model's own].
    #[arg(short = 'W', long, value_name = "PIXELS", value_parser = at_least::<LEAST_PIXELS>)]
    pub(super) width: Option<usize>,
    /// Height in pixels [default: the model's own].
    #[arg(short = 'H', long, value_name = "PIXELS", value_parser = at_least::<LEAST_PIXELS>)]
    pub(super) height: Option<usize>,
    /// Number of frames [default: 16].
    ///
    /// With --video by default those of the video, at most as many as the model knows.
    #[arg(short, long, value_name = "N", value_parser = at_least::<1>)]
    #[arg(aliases = ["num-frames", "video-frames", "video-length"])]
    pub(super) frames: Option<usize>,
    /// Frames a second of the file, also as a fraction such as 30000/1001 [default: 8; with --video-fps that].
    #[arg(long, value_name = "FPS", value_parser = rate, alias = "frame-rate", hide_short_help = true)]
    pub(super) fps: Option<f64>,
}

/// The shortest side of a frame that a request may have.
const LEAST_PIXELS: usize = crate::request::LEAST_PIXELS;

/// A whole number from `LEAST` on; a negative one is no mistyped flag.
pub(super) fn at_least<const LEAST: usize>(text: &str) -> Result<usize, String> {
    let too_small = || Err(format!("must be at least {LEAST}"));
    match text.trim().parse::<i128>() {
        Ok(number) if number < LEAST as i128 => too_small(),
        Ok(number) => usize::try_from(number).map_err(|_| "too large a number".to_owned()),
        Err(_) => Err("not a whole number".to_owned()),
    }
}

pub(super) fn on_or_off(text: &str) -> Result<bool, String> {
    let known = [("on", true), ("true", true), ("off", false), ("false", false)];
    crate::spelling::find(text, &known).ok_or_else(|| "neither `on` nor `off`".to_owned())
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Source")]
pub(super) struct SourceFlags {
    /// An image that every frame starts from, noised to --strength.
    #[arg(long, value_name = "FILE", alias = "init-img", conflicts_with = "video")]
    #[arg(hide_short_help = true)]
    pub(super) image: Option<String>,
    /// A video whose frames the clip's start from: GIF, WebP, APNG, MP4 (H.264), Y4M or a folder of images. A --control
    /// takes the same frames as its hint by the word video: canny=video,model=FILE.
    #[arg(long, value_name = "FILE|DIR", hide_short_help = true)]
    pub(super) video: Option<String>,
    /// Share of the steps that are made, above 0 and at most 1: with less the frames stay closer to the image or video.
    /// At least one step must be left [default: 0.8; with AnimateLCM-I2V noise alone].
    #[arg(long, value_name = "SHARE", hide_short_help = true)]
    pub(super) strength: Option<f64>,
    /// Sample the video at so many frames a second, taking the nearest frame [default: every frame once].
    #[arg(long, value_name = "FPS", value_parser = rate, hide_short_help = true)]
    pub(super) video_fps: Option<f64>,
    /// First frame of the video that is taken, from 0 [default: 0].
    #[arg(long, value_name = "N", value_parser = at_least::<0>, hide_short_help = true)]
    pub(super) video_from: Option<usize>,
    /// Take one of so many frames, after --video-fps [default: 1].
    #[arg(long, value_name = "N", value_parser = at_least::<1>, hide_short_help = true)]
    pub(super) video_every: Option<usize>,
    /// Resizing of frames of another size: stretch, crop (the centre), cover (the centre, cropped after resizing) or
    /// pad (with black) [default: stretch; with AnimateLCM-I2V cover].
    #[arg(long, value_name = "stretch|crop|cover|pad", hide_short_help = true)]
    pub(super) fit: Option<Fit>,
    /// Motion scale of AnimateLCM-I2V: a factor of the frames' positions in its image encoder.
    /// At 0 all frames have the same features [default: 0.8].
    #[arg(long, value_name = "X", alias = "ref-drift", hide_short_help = true)]
    pub(super) motion_scale: Option<f64>,
    /// Factors of what AnimateLCM-I2V's encoder adds to each down block of the UNet, from full resolution
    /// [default: 1,1,1,1].
    #[arg(long, value_name = "X,X,X,X", value_delimiter = ',', hide_short_help = true)]
    #[arg(allow_hyphen_values = true)]
    pub(super) insertion_weights: Vec<f64>,
    /// Match of every frame's mean hue, saturation and value to the image's [default: on with AnimateLCM-I2V, else
    /// off].
    #[arg(long, value_name = "on|off", value_parser = on_or_off, hide_short_help = true)]
    pub(super) color_match: Option<bool>,
    /// Frames of the clip, from 0, that stay those of the image or video, such as 0,15; the others are made so that
    /// they fit. With --strength 1 they begin with noise alone.
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = at_least::<0>)]
    #[arg(hide_short_help = true)]
    pub(super) keep: Vec<usize>,
    /// An image, or a video with a frame for each of the source's, of the size of the source or of the clip: white
    /// parts are made, black ones stay as they are.
    #[arg(long, value_name = "FILE|DIR", alias = "mask-image", hide_short_help = true)]
    pub(super) mask: Option<String>,
    /// The source's own pixels where it is kept, blended by the grey levels of --mask; off leaves what the autoencoder
    /// makes of them [default: on].
    #[arg(long, value_name = "on|off", value_parser = on_or_off, alias = "overlay-inpaint")]
    #[arg(hide_short_help = true)]
    pub(super) overlay: Option<bool>,
    /// Colour behind transparent images, videos, hints and images of IP-Adapters, not masks: a name such as white, or
    /// #rrggbb [default: their alpha is dropped].
    #[arg(long, value_name = "COLOR", alias = "background", hide_short_help = true)]
    pub(super) background_color: Option<Background>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Long clips and loops")]
pub(super) struct LongFlags {
    /// none, closed (the first frame follows the last) or pingpong (the file goes back again) [default: none].
    #[arg(long = "loop", value_name = "HOW", hide_short_help = true)]
    pub(super) looping: Option<Loop>,
    /// Frames of a context window. Clips that are longer than the motion modules know are denoised in such windows,
    /// shorter ones if any of these flags is given [default: 16].
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(super) context_length: Option<usize>,
    /// Frames that a window shares with the next [default: 4, at most half of the length].
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(super) context_overlap: Option<usize>,
    /// Number of distances between the frames of a window, 1, 2, 4 and so on, as far as the clip is long enough
    /// [default: 1].
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(super) context_stride: Option<usize>,
    /// uniform (windows move from step to step), uniform-looped (also over the end) or static [default: uniform; with
    /// --loop closed uniform-looped].
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(super) context_schedule: Option<WindowSchedule>,
    /// How windows are blended: flat, pyramid, overlap-linear or relative [default: pyramid].
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(super) context_fuse: Option<Fuse>,
    /// First noise of a clip in windows: independent, free-noise (the first window's, shuffled) or repeat (the first
    /// window's again and again) [default: independent].
    #[arg(long, value_name = "KIND", hide_short_help = true)]
    pub(super) noise: Option<NoiseKind>,
}

/// Returns whether something is at a path.
pub(super) fn is_there(path: &str) -> bool {
    /// No path is longer: bytes.
    const LONGEST: usize = 4096;
    !path.is_empty() && path.len() <= LONGEST && Path::new(path).exists()
}

fn weighted_file(text: &str) -> crate::Result<WeightedFile> {
    WeightedFile::parse(text, &is_there)
}

fn embedding(text: &str) -> crate::Result<Embedding> {
    Embedding::parse(text, &is_there)
}

/// A control; a path that is there may have commas without quotes.
pub(super) fn control(text: &str) -> crate::Result<Control> {
    Control::parse(text, &is_there)
}

fn ip_adapter(text: &str) -> crate::Result<IpAdapter> {
    IpAdapter::parse(text, &is_there)
}

/// A number, or a fraction of two, which becomes the number nearest to it: no other fraction as simple is as near.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().map_err(|e| e.to_string());
    match text.split_once('/') {
        Some((over, under)) => Ok(number(over)? / number(under)?),
        None => number(text),
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Control")]
pub(super) struct ControlFlags {
    /// A ControlNet, SparseCtrl network or T2I-Adapter and the image, animation, video or folder of images that
    /// the frames follow; repeatable. After NAME=HINT,model=FILE may follow scale=0.8 or a curve over the frames
    /// (scale=0:1.0,8:0.2), start=0 and end=0.6 (parts of the run), fit=stretch|crop|pad (hints of another size),
    /// frames=0,8,15 (SparseCtrl: which frames the images are for; one image is for frame 0), from=0 and every=2
    /// (which frames of a video are taken, as many as the clip has), guess (guess mode) and preprocess, which makes the
    /// hint of ordinary pictures as `animatelcm preprocess` does: what NAME says, or preprocess=canny with low=100,
    /// high=200. A path with commas goes into double quotes, a double quote inside is written twice:
    /// 'canny="a, b.png",model=FILE'.
    #[arg(long, value_name = "NAME=HINT,model=FILE,...", value_parser = control, hide_short_help = true)]
    pub(super) control: Vec<Control>,
    /// An IP-Adapter and the image that the frames are to resemble; repeatable. After IMAGE,model=FILE may follow
    /// scale=0.6 or a curve over the frames (scale=0:1.0,8:0.2), start=0 and end=1 (parts of the run), image=MORE
    /// (another image, a folder or an animation), mask=IMAGE (white where an image counts, one for each), per-frame
    /// (each image is for a frame) and name=NAME. Paths with commas go into double quotes, as in --control.
    #[arg(long, value_name = "IMAGE,model=FILE,...", value_parser = ip_adapter, hide_short_help = true)]
    pub(super) ip_adapter: Vec<IpAdapter>,
    /// The image encoder of the IP-Adapters [default: the folder `image_encoder` beside or above the adapter, or in
    /// the model].
    #[arg(long, value_name = "NAME|DIR|FILE", hide_short_help = true)]
    pub(super) image_encoder: Option<String>,
    /// The network that makes hints of depth for depth=PICTURE,preprocess [default: depth-anything-v2-small].
    #[arg(long, value_name = "NAME|DIR|FILE", hide_short_help = true)]
    pub(super) depth_model: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingFlags {
    /// Denoising steps [default: 4].
    #[arg(long, value_name = "N", value_parser = at_least::<1>)]
    #[arg(aliases = ["num-inference-steps", "sampling-steps"])]
    pub(super) steps: Option<usize>,
    /// Guidance; none at 1 or below [default: 1].
    #[arg(long, value_name = "SCALE", aliases = ["guidance-scale", "cfg"])]
    pub(super) cfg_scale: Option<f64>,
    /// lcm, euler-a, dpmpp-2m ... [default: lcm].
    ///
    /// lcm, tcd, ddim, ddpm, euler, euler-a, heun, lms, pndm, deis, unipc, dpmpp-2m, dpmpp-2m-sde, dpmpp-3m-sde or
    /// dpmpp-sde, perhaps with a spacing as in dpmpp-2m-karras; also by the names of A1111, ComfyUI,
    /// stable-diffusion.cpp and diffusers.
    #[arg(long, value_name = "NAME", aliases = ["sampling-method", "sampler-name"])]
    pub(super) sampler: Option<String>,
    /// Spacing of the timesteps: leading, trailing, linspace, karras, exponential, sgm-uniform or ays; lcm and tcd take
    /// the teacher's timesteps and none of these, ddim and ddpm the first three, pndm the first [default: leading].
    #[arg(long, value_name = "NAME", aliases = ["scheduler", "schedule", "schedule-type"])]
    #[arg(alias = "timestep-spacing", hide_short_help = true)]
    pub(super) spacing: Option<Spacing>,
    /// Steps of the teacher whose timesteps LCM and TCD use: 100 for AnimateLCM, 50 in diffusers [default: what the
    /// model says, else 100].
    #[arg(long, value_name = "K", hide_short_help = true)]
    pub(super) original_inference_steps: Option<usize>,
    /// TCD's gamma: how random the steps are, from 0 (not) to 1 (as LCM's) [default: 0.3].
    #[arg(long, value_name = "G", hide_short_help = true)]
    pub(super) tcd_gamma: Option<f64>,
    /// linear or scaled-linear [default: what the model says; linear with motion modules of another].
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(super) beta_schedule: Option<BetaSchedule>,
    /// The first beta [default: what the model says, else 0.00085].
    #[arg(long, value_name = "BETA", hide_short_help = true)]
    pub(super) beta_start: Option<f64>,
    /// The last beta [default: what the model says, else 0.012].
    #[arg(long, value_name = "BETA", hide_short_help = true)]
    pub(super) beta_end: Option<f64>,
    /// Meaning of the network's output: epsilon (the noise), v or sample [default: what the model says].
    #[arg(
        long,
        value_name = "epsilon|v|sample",
        alias = "prediction-type",
        hide_short_help = true
    )]
    pub(super) prediction: Option<Prediction>,
    /// Whether the noise schedule is rescaled to end in pure noise [default: what the model says].
    #[arg(long, value_name = "true|false", hide_short_help = true)]
    pub(super) zero_snr: Option<bool>,
    /// Whether DDIM's last step ends without noise [default: what the model says].
    #[arg(long, value_name = "true|false", hide_short_help = true)]
    pub(super) set_alpha_to_one: Option<bool>,
    /// Offset that leading spacing adds to each timestep [default: what the model says].
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(super) steps_offset: Option<usize>,
    /// Group-norm statistics in motion modules: per-frame as trained, pooled as in diffusers [default: per-frame].
    #[arg(long, value_name = "per-frame|pooled", hide_short_help = true)]
    pub(super) motion_norm: Option<MotionNorm>,
    /// Layers to leave out at the text encoder's end; A1111's, ComfyUI's and stable-diffusion.cpp's 2 is 1 here, as in
    /// diffusers [default: 0].
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(super) clip_skip: Option<usize>,
    /// Seed; -1 for a random one [default].
    #[arg(short, long, value_name = "N", alias = "noise-seed")]
    pub(super) seed: Option<Seed>,
    /// Which torch generator the seed reproduces: cpu or cuda [default: cpu].
    #[arg(long, value_name = "cpu|cuda", hide_short_help = true)]
    pub(super) rng: Option<RngKind>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Quality")]
pub(super) struct QualityFlags {
    /// Share in which guidance is rescaled to the deviation of the prompt's prediction, 0 to 1, against pale or burnt
    /// colours; needs --cfg-scale above 1. 0.7 is usual [default: 0].
    #[arg(long, value_name = "SHARE", hide_short_help = true)]
    pub(super) guidance_rescale: Option<f64>,
    /// Cut the predicted clean latents off at a quantile of their absolute values and divide by it, as diffusers'
    /// schedulers do: RATIO, or ratio=0.995,max=1 (the largest threshold), or none [default: none].
    #[arg(
        long,
        value_name = "RATIO|KEY=VALUE,...",
        alias = "thresholding",
        hide_short_help = true
    )]
    pub(super) dynamic_thresholding: Option<Switch<DynamicThresholding>>,
    /// FreeU: factors on the backbone (b1, b2) and on the lowest frequencies of the skip connections (s1, s2) of the
    /// first two up blocks; what is left out is b1=1.5,b2=1.6,s1=0.9,s2=0.2; or none [default: none].
    #[arg(long = "freeu", value_name = "KEY=VALUE,...", alias = "free-u", hide_short_help = true)]
    pub(super) free_u: Option<Switch<FreeU>>,
    /// FreeInit: sample the clip so often, each time from noise with the low frequencies of the clip before: N, or
    /// iterations=3,filter=butterworth|gaussian|ideal|box,order=4,spatial=0.25,temporal=0.25 (stop frequencies) and
    /// fast (fewer steps at first); or none [default: none].
    #[arg(long, value_name = "N|KEY=VALUE,...", alias = "freeinit", hide_short_help = true)]
    pub(super) free_init: Option<Switch<FreeInit>>,
    /// Scale of perturbed-attention guidance, with or without --cfg-scale; 3 is usual [default: 0].
    #[arg(long, value_name = "SCALE", hide_short_help = true)]
    pub(super) pag_scale: Option<f64>,
    /// Decrease of --pag-scale for every timestep below 1000 [default: 0].
    #[arg(long, value_name = "SCALE", hide_short_help = true)]
    pub(super) pag_adaptive_scale: Option<f64>,
    /// Regular expression for names of self-attentions that are perturbed, as in diffusers; repeatable
    /// [default: mid_block.*attn1].
    #[arg(long, value_name = "PATTERN", alias = "pag-applied-layers", hide_short_help = true)]
    pub(super) pag_layers: Vec<String>,
    /// Encode and decode frames in tiles that overlap, in the memory of a tile; with a value size=512 (pixels, what the
    /// autoencoder was trained on if left out) and overlap=0.25 (a share); or none [default: none].
    #[arg(
        long,
        value_name = "KEY=VALUE,...",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        hide_short_help = true
    )]
    pub(super) vae_tiling: Option<Switch<VaeTiling>>,
    /// Sample again at a larger size, from the clip enlarged SCALE times and noised; after SCALE may follow strength=0.5
    /// (share of the steps that are made), steps=N (in all) and upscale=bicubic|nearest|pixels (latents, or decoded
    /// frames, which are encoded again); or none [default: none].
    #[arg(long, value_name = "SCALE,...", aliases = ["hires-fix", "hr-scale"], hide_short_help = true)]
    pub(super) hires: Option<Switch<Hires>>,
}

/// The value of an option that `none` turns off, over a request that has it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switch<T> {
    Off,
    On(T),
}

impl<T> Switch<T> {
    /// The value, if it is on.
    pub(super) fn value(&self) -> Option<&T> {
        match self {
            Self::Off => None,
            Self::On(value) => Some(value),
        }
    }
}

impl<T: FromStr> FromStr for Switch<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text {
            "none" => Ok(Self::Off),
            text => text.parse().map(Self::On),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputFlags {
    /// clip.gif, .webp, .png, .mp4 ...
    ///
    /// .gif, .webp, .png or .apng (animated), .mp4, .y4m, name_%03d.png, or - for Y4M on stdout [default: a GIF named
    /// after prompt and seed].
    #[arg(short, long, value_name = "PATH", alias = "output-path")]
    pub(super) output: Option<PathBuf>,
    /// Enlarge the frames so many times, each pixel to a square [default: 1].
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(super) zoom: Option<usize>,
    /// Number of clips, with consecutive seeds and numbers in their names; --json prints a line for each [default: 1].
    #[arg(long, short_alias = 'b', value_name = "N", hide_short_help = true)]
    #[arg(aliases = ["batch-count", "batch-size", "batch", "n-iter", "num-videos-per-prompt"])]
    pub(super) count: Option<u64>,
    /// Overwrite an existing file.
    #[arg(short = 'y', long, alias = "force", hide_short_help = true)]
    pub(super) overwrite: bool,
    /// Show the clip while it is made: in FILE (.gif, .webp or .png), an animation that is written again after every
    /// step, or in the terminal.
    ///
    /// - or nothing is the terminal, as well as it can: kitty, iterm2, sixel or blocks. It shows the finished clip, too.
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "auto",
        hide_short_help = true
    )]
    pub(super) preview: Option<PreviewTo>,
    /// Open the finished clip in the system's viewer.
    #[arg(long, hide_short_help = true)]
    pub(super) open: bool,
    /// Leave request and weights' hashes out of the file.
    #[arg(long, alias = "disable-image-metadata", hide_short_help = true)]
    pub(super) no_metadata: bool,
    /// Take `latents` and `noise.0`, `noise.1`, … (1,4,F,h,w) from a safetensors file; and for the control NAME that
    /// follows latents `noise.control.NAME` (hints,4,h,w), for --image and --video `noise.source` (F,4,h,w; with
    /// AnimateLCM-I2V 1,4,h,w).
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(super) tensors_in: Option<PathBuf>,
    /// Write `context`, `latents.0` …, `latents` and `frames` to a safetensors file.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(super) tensors_out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A checkpoint, adapter, clip, image, request or folder.
    pub(super) file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// A clip that this program made.
    pub(super) clip: PathBuf,
    /// Output file [default: beside the clip].
    ///
    /// Without it `-replay` is added to the clip's name.
    #[arg(short, long, value_name = "PATH")]
    pub(super) output: Option<PathBuf>,
    /// Overwrite an existing file.
    #[arg(short = 'y', long)]
    pub(super) overwrite: bool,
    /// Compare and keep nothing; exit code 5 if it differs.
    #[arg(long, conflicts_with_all = ["output", "overwrite"])]
    pub(super) check: bool,
    /// Open files that the clip names even where it has no SHA-256 of them.
    #[arg(long, hide_short_help = true)]
    pub(super) trust_paths: bool,
    /// Folder of models that are found by name, as in `generate`; repeatable.
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(super) models_dir: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) reporting: Reporting,
}

/// The arguments of `animatelcm config`.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    pub(super) command: ConfigCommand,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the defaults in the configuration file.
    Show,
    /// Print where the configuration file is, or would be.
    Path,
}

/// The arguments of `animatelcm completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum, ignore_case = true)]
    pub(super) shell: clap_complete::Shell,
}

/// The arguments of `animatelcm man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The command [default: the program].
    pub(super) command: Option<String>,
}

/// The value of `--seed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seed {
    /// `-1`, as in A1111, ComfyUI and stable-diffusion.cpp.
    Random,
    /// A number.
    Of(u64),
}

impl Seed {
    /// The number, if there is one.
    pub(super) fn number(self) -> Option<u64> {
        match self {
            Self::Random => None,
            Self::Of(seed) => Some(seed),
        }
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "-1" | "random" => Ok(Self::Random),
            number => number
                .parse()
                .map(Self::Of)
                .map_err(|_| format!("must be from 0 to {}, or -1 for a random one", u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_have_a_least_value() {
        assert_eq!(at_least::<8>("8"), Ok(8));
        for (wrong, reason) in [("-64", "at least 8"), ("7", "at least 8"), ("x", "whole number")] {
            assert!(at_least::<8>(wrong).unwrap_err().contains(reason), "{wrong}");
        }
        assert!(at_least::<1>("170141183460469231731687303715884105727").is_err());
    }

    #[test]
    fn rates_are_numbers_or_fractions() {
        assert_eq!(rate("12.5"), Ok(12.5));
        assert_eq!(rate("30000/1001"), Ok(30_000.0 / 1001.0));
        assert_eq!(rate("24000 / 1001"), Ok(24_000.0 / 1001.0));
        for wrong in ["", "/", "30/", "/1", "a/b", "1/2/3", "30:1"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
