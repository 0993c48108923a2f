//! What is asked: the vocabulary of the command line, of request files and of the metadata in clips.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::control::{self, Control};
use super::grammar::{self, First, Key, Kind, items};
use super::ip_adapter::{self, IpAdapter};
use crate::adapters::lora::BlockFactors;
use crate::device::{DeviceChoice, DtypeChoice, KernelChoice, Precision, Quantize};
use crate::kernels;
use crate::models::motion::MotionNorm;
use crate::rng::RngKind;
use crate::sampler::SamplerKind;
use crate::schedule::{BetaSchedule, Prediction, Spacing};
use crate::text::prompt::{self, PromptMode};
use crate::{Error, Result};

/// The name of this vocabulary.
pub const SCHEMA: &str = "animatelcm/v1";

/// Everything that is needed to make a clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// [`SCHEMA`].
    pub schema: String,
    /// What runs.
    #[serde(default)]
    pub models: Spec,
    /// What is asked of it.
    #[serde(default)]
    pub request: Request,
    /// Tensors in place of drawn ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors_in: Option<FileRecord>,
    /// In a finished clip: every weight file that it was made with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<FileRecord>,
    /// In a finished clip: the program that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
}

/// A file that a clip depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its name or path.
    pub file: String,
    /// Its SHA-256; in a clip always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What made a clip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// `animatelcm`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The device: bytes may differ between kinds of devices.
    pub device: String,
}

impl Job {
    /// A job in this version's vocabulary.
    pub fn new(models: Spec, request: Request) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            models,
            request,
            tensors_in: None,
            weights: vec![],
            program: None,
        }
    }

    /// Reads a job.
    ///
    /// # Errors
    ///
    /// On another schema, an unknown field or a value of the wrong kind.
    pub fn from_json(json: &str) -> Result<Self> {
        let job: Self = serde_json::from_str(json)
            .map_err(|e| Error::request("request", format!("not a request: {e}")))?;
        if job.schema != SCHEMA {
            let reason = format!("schema `{}` is not `{SCHEMA}`", job.schema);
            return Err(Error::request("request", reason));
        }
        Ok(job)
    }
}

/// What runs: names or paths of weights, and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// The base model; none is the embedded one.
    pub model: Option<String>,
    /// Where the sizes of a single-file model are, if they are not those of Stable Diffusion 1.5.
    pub model_config: Option<String>,
    /// Personalised weights laid over the base model.
    pub checkpoint: Option<String>,
    /// Another autoencoder.
    pub vae: Option<String>,
    /// The motion modules; `none` for pictures without motion.
    pub motion: Option<String>,
    /// The consistency LoRA; `none` for none.
    pub lcm_lora: Option<WeightedFile>,
    /// More LoRAs, in order.
    pub loras: Vec<WeightedFile>,
    /// Textual inversions, in order.
    pub embeddings: Vec<Embedding>,
    /// The image encoder of the IP-Adapters, if it is not near them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_encoder: Option<String>,
    /// Ignores a LoRA's alpha, as AnimateLCM's own code does.
    pub lora_legacy_scale: bool,
    /// Accepts LoRAs that fit in part.
    pub allow_partial: bool,
    /// The device.
    pub device: DeviceChoice,
    /// The number format.
    pub dtype: DtypeChoice,
    /// To how many bits the weights of the UNet and of the networks beside it are rounded.
    #[serde(skip_serializing_if = "is_default")]
    pub quantize: Quantize,
    /// Which kernels run on a GPU.
    #[serde(skip_serializing_if = "is_default")]
    pub kernels: KernelChoice,
}

impl Spec {
    /// Opens the device; kernels on this thread are from now on the chosen ones.
    ///
    /// # Errors
    ///
    /// Those of [`DeviceChoice::open`] and [`kernels::choose`].
    pub fn open(&self) -> Result<Device> {
        let device = self.device.open()?;
        kernels::choose(self.kernels, &device)?;
        Ok(device)
    }

    /// The number formats that it means on `device`.
    ///
    /// # Errors
    ///
    /// Those of [`Precision::quantized`].
    pub fn precision(&self, device: &Device) -> Result<Precision> {
        Precision::new(self.dtype, device).quantized(self.quantize, device)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A textual inversion: `FILE` or `FILE:WORD`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// A path.
    pub file: String,
    /// What it is called in prompts, if not as the file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<String>,
}

/// How to write a path that the grammar would cut.
const QUOTES: &str =
    "a path with colons or commas goes into double quotes: \"a:b.safetensors\":0.8";

impl std::str::FromStr for Embedding {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        // What follows a colon is part of a path if it has a separator: `C:\x.pt`.
        let word = |text: &str| {
            let is_word = text.starts_with('"') || !text.contains(['/', '\\']);
            is_word.then(|| grammar::word(text).ok_or_else(|| format!("`{text}` is not a word")))
        };
        let wrong = |reason| Error::request("embedding", reason).with_hint(QUOTES);
        let (file, word) = grammar::with_tail(s, &grammar::exists, word).map_err(wrong)?;
        if file.is_empty() || word.as_ref().is_some_and(|word| word.trim().is_empty()) {
            return Err(wrong(format!("`{s}` is not FILE or FILE:WORD")));
        }
        Ok(Self { file, word })
    }
}

/// What may follow a LoRA's colon. Factors of blocks have commas of their own.
const SCALES: [Key; 3] = [
    Key::new("unet", Kind::Text),
    Key::new("text", Kind::Text),
    Key::new("lbw", Kind::List(|part| part.trim().parse::<f64>().is_ok())),
];

/// Scale, scale in the text encoder, factors of blocks.
type Scales = (f64, Option<f64>, Option<BlockFactors>);

/// A file and how strongly it counts: `FILE`, `FILE:SCALE` or `FILE:unet=SCALE,text=SCALE`, either with `,lbw=FACTORS`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedFile {
    /// A name or path.
    pub file: String,
    /// 1 by default.
    #[serde(default = "one")]
    pub scale: f64,
    /// The scale in the text encoder, where it is not that of the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_scale: Option<f64>,
    /// Factors of the scales, block by block: `lbw=` with 17 or 26 numbers or the name of a preset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlockFactors>,
}

fn one() -> f64 {
    1.0
}

impl WeightedFile {
    /// A file with one scale for everything.
    pub fn new(file: impl Into<String>, scale: f64) -> Self {
        Self { file: file.into(), scale, text_scale: None, blocks: None }
    }

    /// The scales that stand behind a file's colon; nothing if that is no such thing.
    fn scales(text: &str) -> Option<Result<Scales, String>> {
        let number = |text: &str| {
            let scale: Option<f64> = text.parse().ok();
            scale.filter(|s| s.is_finite()).ok_or_else(|| format!("`{text}` is not a scale"))
        };
        // A scale for both may stand first without a key.
        let (first, rest) = text.split_once(',').unwrap_or((text, ""));
        let both = first.parse::<f64>().is_ok().then_some(first);
        let keys = match both {
            Some(_) if rest.is_empty() && !text.ends_with(',') => {
                return Some(number(text).map(|scale| (scale, None, None)));
            }
            Some(_) if rest.starts_with("lbw=") => rest,
            _ if !text.contains('=') || text.contains(['/', '\\']) => return None,
            _ => text,
        };
        let read = || {
            let items = items(keys, First::Key, &SCALES, &|_| false)?;
            let find = |key: &str| items.iter().find(|item| item.key == key);
            let scale = |key: &str| find(key).map(|item| number(&item.value)).transpose();
            let blocks = find("lbw").map(|item| item.value.parse::<BlockFactors>());
            let blocks = blocks.transpose().map_err(|error| error.to_string())?;
            let (unet, text) = (scale("unet")?, scale("text")?);
            let both = both.map(number).transpose()?;
            if both.is_some() && unet.or(text).is_some() {
                return Err("one scale or two".to_owned());
            }
            let is_split = unet.or(text).is_some();
            let text = is_split.then(|| text.unwrap_or(1.0));
            Ok((both.or(unet).unwrap_or(1.0), text, blocks))
        };
        Some(read())
    }
}

impl std::str::FromStr for WeightedFile {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let wrong = |reason: String| {
            let form = format!("`{s}` is not FILE, FILE:SCALE or FILE:unet=SCALE,text=SCALE");
            let reason = if reason.is_empty() { form } else { format!("{form}: {reason}") };
            Error::request("lora", reason).with_hint(QUOTES)
        };
        // A colon may also belong to a Windows path, so only scales after the last one count.
        let (file, scales) =
            grammar::with_tail(s, &grammar::exists, Self::scales).map_err(wrong)?;
        if file.is_empty() {
            return Err(wrong(String::new()));
        }
        let (scale, text_scale, blocks) = scales.unwrap_or((1.0, None, None));
        Ok(Self { file, scale, text_scale, blocks })
    }
}

impl std::fmt::Display for WeightedFile {
    /// The file and its scales in words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, scale, text_scale, blocks } = self;
        match text_scale {
            None => write!(f, "{file} at {scale}")?,
            Some(text) => write!(f, "{file} at {scale} in the unet, {text} in the text encoder")?,
        }
        match blocks {
            None => Ok(()),
            Some(blocks) => write!(f, ", blocks at {blocks}"),
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// What to show.
    pub prompt: String,
    /// What to avoid; counts only with guidance.
    pub negative_prompt: String,
    /// How both are read.
    pub prompt_mode: PromptMode,
    /// Pixels; the model's own size if left out.
    pub width: Option<usize>,
    /// Pixels; the model's own size if left out.
    pub height: Option<usize>,
    /// Frames.
    pub frames: usize,
    /// Frames a second of the file.
    pub fps: f64,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; none at 1 or below.
    pub cfg_scale: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// How timesteps are spread; the sampler's own way if left out.
    pub spacing: Option<Spacing>,
    /// Steps of the teacher whose timesteps LCM uses.
    pub lcm_original_steps: usize,
    /// The noise schedule; see [`Request::betas`] for what is used if left out.
    pub beta_schedule: Option<BetaSchedule>,
    /// The first beta.
    pub beta_start: f64,
    /// The last beta.
    pub beta_end: f64,
    /// What the network's output means; what the model says if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// Whether the noise schedule is rescaled to end in pure noise; what the model says if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_snr: Option<bool>,
    /// Over what motion modules normalize.
    pub motion_norm: MotionNorm,
    /// Layers of the text encoder that are left out at its end.
    pub clip_skip: usize,
    /// The seed; random if left out or, in JSON, -1.
    #[serde(deserialize_with = "seed")]
    pub seed: Option<u64>,
    /// Whose generator the seed belongs to.
    pub rng: RngKind,
    /// What the frames are to follow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Control>,
    /// Which pictures the frames are to resemble.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_adapters: Vec<IpAdapter>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            prompt_mode: PromptMode::A1111,
            width: None,
            height: None,
            frames: 16,
            fps: 8.0,
            steps: 4,
            cfg_scale: 1.0,
            sampler: SamplerKind::Lcm,
            spacing: None,
            lcm_original_steps: 100,
            beta_schedule: None,
            beta_start: 0.00085,
            beta_end: 0.012,
            prediction: None,
            zero_snr: None,
            motion_norm: MotionNorm::PerFrame,
            clip_skip: 0,
            seed: None,
            rng: RngKind::Cpu,
            controls: vec![],
            ip_adapters: vec![],
        }
    }
}

/// Reads a seed; -1 stands for a random one.
fn seed<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    use serde::de::Error as _;
    let Some(number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(None) };
    match (number.as_u64(), number.as_i64()) {
        (Some(seed), _) => Ok(Some(seed)),
        (None, Some(-1)) => Ok(None),
        _ => Err(D::Error::custom(format!(
            "`seed` must be from 0 to {}, or -1 for a random one, got {number}",
            u64::MAX
        ))),
    }
}

/// Checks a prompt's grammar; LoRA tags must have been taken out.
fn check_words(field: &'static str, text: &str) -> Result<()> {
    const PLAIN: &str = "--prompt-mode plain takes every character as it is";
    if let Some(tag) = prompt::first_tag(text) {
        let tag: String = tag.chars().take(80).collect();
        return Err(if field == "prompt" {
            Error::request(field, format!("`{tag}` asks for a LoRA"))
                .with_hint(format!("--lora-dir DIR says where such LoRAs are; {PLAIN}"))
        } else {
            Error::request(field, format!("`{tag}` is not for negative prompts"))
                .with_hint(format!("put it into the prompt; {PLAIN}"))
        });
    }
    prompt::parse(text).map(|_| ()).map_err(|reason| {
        Error::request(field, reason)
            .with_hint(format!("brackets that are meant are written \\( and \\); {PLAIN}"))
    })
}

/// The shortest side of a frame.
pub(super) const LEAST_PIXELS: usize = 8;
/// The longest side of a frame.
pub(super) const MOST_PIXELS: usize = 8192;

/// The longest prompt that is looked at.
const MAX_PROMPT_BYTES: usize = 1 << 20;

/// The longest clip that any output holds.
const MOST_FRAMES: usize = 1 << 24;

impl Request {
    /// Checks everything that can be checked without a model.
    pub fn validate(&self) -> Result<()> {
        let at_least = |field: &'static str, value: usize, least: usize| {
            if value < least {
                return Err(Error::request(
                    field,
                    format!("must be at least {least}, got {value}"),
                ));
            }
            Ok(())
        };
        at_least("frames", self.frames, 1)?;
        if self.frames > MOST_FRAMES {
            let reason = format!("must be at most {MOST_FRAMES}, got {}", self.frames);
            return Err(Error::request("frames", reason));
        }
        at_least("steps", self.steps, 1)?;
        let finite = |field: &'static str, value: f64, least: f64, most: f64| {
            if value.is_finite() && value >= least && value <= most {
                return Ok(());
            }
            let reason = format!("must be between {least} and {most}, got {value}");
            Err(Error::request(field, reason))
        };
        finite("fps", self.fps, 0.1, 240.0)?;
        finite("cfg-scale", self.cfg_scale, 0.0, 1000.0)?;
        finite("beta-start", self.beta_start, 1e-9, 0.999)?;
        finite("beta-end", self.beta_end, self.beta_start, 0.999)?;
        for (field, text) in [("prompt", &self.prompt), ("negative-prompt", &self.negative_prompt)]
        {
            if text.len() > MAX_PROMPT_BYTES {
                let reason = format!("{} bytes, at most {MAX_PROMPT_BYTES} are read", text.len());
                return Err(Error::request(field, reason));
            }
            if self.prompt_mode == PromptMode::A1111 {
                check_words(field, text)?;
            }
        }
        control::validate(&self.controls, self.frames)?;
        ip_adapter::validate(&self.ip_adapters)?;
        for (field, value) in [("width", self.width), ("height", self.height)] {
            if let Some(value) = value {
                at_least(field, value, LEAST_PIXELS)?;
                if value > MOST_PIXELS {
                    return Err(Error::request(
                        field,
                        format!("must be at most {MOST_PIXELS}, got {value}"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The noise schedule that this request means.
    ///
    /// Truly linear betas, as AnimateDiff and AnimateLCM were trained with, whenever there is motion; Stable
    /// Diffusion's scaled ones otherwise.
    pub fn betas(&self, has_motion: bool) -> BetaSchedule {
        self.beta_schedule.unwrap_or(if has_motion {
            BetaSchedule::Linear
        } else {
            BetaSchedule::ScaledLinear
        })
    }

    /// Whether the negative prompt and guidance count.
    pub fn is_guided(&self) -> bool {
        self.cfg_scale > 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_back_as_written() {
        let request = Request { prompt: "a cat".into(), seed: Some(7), ..Request::default() };
        let lcm_lora = Some("a:b.safetensors:0.8".parse().unwrap());
        let job = Job::new(Spec { lcm_lora, ..Spec::default() }, request);
        let json = serde_json::to_string(&job).unwrap();
        assert_eq!(Job::from_json(&json).unwrap(), job);
    }

    #[test]
    fn numbers_are_read_back_to_the_last_bit() {
        for cfg_scale in [446_744_073.709_551_63, 23.976_023_976_023_978, 1.0 / 3.0] {
            let job = Job::new(Spec::default(), Request { cfg_scale, ..Request::default() });
            let json = serde_json::to_string(&job).unwrap();
            assert_eq!(Job::from_json(&json).unwrap().request.cfg_scale, cfg_scale);
        }
    }

    #[test]
    fn unknown_fields_and_other_schemas_are_refused() {
        for json in [
            r#"{"schema":"animatelcm/v1","request":{"promt":"a"}}"#,
            r#"{"schema":"animatelcm/v9"}"#,
            r#"{"request":{}}"#,
            "[]",
            "",
        ] {
            assert_eq!(Job::from_json(json).unwrap_err().kind().exit_code(), 2, "{json}");
        }
        assert!(Job::from_json(r#"{"schema":"animatelcm/v1"}"#).is_ok());
    }

    #[test]
    fn samplers_have_the_names_of_other_programs() {
        let sampler = |name: &str| {
            let json = format!(r#"{{"schema":"animatelcm/v1","request":{{"sampler":"{name}"}}}}"#);
            Job::from_json(&json).map(|job| job.request.sampler)
        };
        assert_eq!(sampler("euler_ancestral").unwrap(), SamplerKind::EulerAncestral);
        assert_eq!(sampler("DPM++ 2M").unwrap(), SamplerKind::Dpmpp2m);
        // A request has a field for the spacing.
        let error = sampler("dpmpp-2m-karras").unwrap_err().to_string();
        assert!(error.contains("`dpmpp-2m` with the spacing `karras`"), "{error}");
        assert!(sampler("unipc").unwrap_err().to_string().contains("is none of `lcm`"));
    }

    #[test]
    fn a_seed_of_minus_one_is_random() {
        let seed = |seed: &str| {
            let json = format!(r#"{{"schema":"animatelcm/v1","request":{{"seed":{seed}}}}}"#);
            Job::from_json(&json).map(|job| job.request.seed)
        };
        assert_eq!(seed("-1").unwrap(), None);
        assert_eq!(seed("null").unwrap(), None);
        assert_eq!(seed("18446744073709551615").unwrap(), Some(u64::MAX));
        for wrong in ["-2", "1.5", "18446744073709551616", "\"7\""] {
            assert_eq!(seed(wrong).unwrap_err().kind().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_scale_follows_the_last_colon() {
        let parse = |s: &str| s.parse::<WeightedFile>().map(|w| (w.file, w.scale)).ok();
        assert_eq!(parse("x.safetensors"), Some(("x.safetensors".into(), 1.0)));
        assert_eq!(parse("x.safetensors:0.8"), Some(("x.safetensors".into(), 0.8)));
        assert_eq!(parse("C:\\x.safetensors"), Some(("C:\\x.safetensors".into(), 1.0)));
        assert_eq!(parse("C:\\x:-0.5"), Some(("C:\\x".into(), -0.5)));
        assert_eq!(parse(":1"), None);
        assert_eq!(parse("x:inf"), None);
    }

    #[test]
    fn scales_of_unet_and_text_encoder_can_differ() {
        let parse = |s: &str| {
            let file = s.parse::<WeightedFile>().ok()?;
            Some((file.file, file.scale, file.text_scale))
        };
        let both = Some(("a:b".to_owned(), 0.8, Some(0.5)));
        assert_eq!(parse("a:b:unet=0.8,text=0.5"), both);
        assert_eq!(parse("a:b:text=0.5,unet=0.8"), both);
        assert_eq!(parse("x:unet=0.8"), Some(("x".into(), 0.8, Some(1.0))));
        assert_eq!(parse("x:text=0"), Some(("x".into(), 1.0, Some(0.0))));
        assert_eq!(parse("C:\\a=b"), Some(("C:\\a=b".into(), 1.0, None)));
        assert_eq!(parse("C:/text=1"), Some(("C:/text=1".into(), 1.0, None)));
        for wrong in
            ["x:unet=a", "x:unet=NaN", "x:clip=1", "x:unet=1,unet=1", "x:unet=1,", ":text=1"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        let error = "x:clip=1".parse::<WeightedFile>().unwrap_err();
        assert!(error.to_string().contains("FILE:unet=SCALE,text=SCALE"), "{error}");
    }

    #[test]
    fn blocks_have_factors_of_their_own() {
        let parse = |s: &str| s.parse::<WeightedFile>();
        let ins = "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0";
        let factors: BlockFactors = ins.parse().unwrap();
        for (text, scale, text_scale) in [
            (format!("a:b:0.5,lbw={ins}"), 0.5, None),
            ("a:b:0.5,lbw=INS".to_owned(), 0.5, None),
            (format!("a:b:lbw={ins},text=0.5"), 1.0, Some(0.5)),
            ("a:b:unet=0.2,lbw=ins".to_owned(), 0.2, Some(1.0)),
            ("a:b:lbw=INS".to_owned(), 1.0, None),
        ] {
            let read = parse(&text).unwrap();
            assert_eq!(
                (read.file.as_str(), read.scale, read.text_scale),
                ("a:b", scale, text_scale),
                "{text}"
            );
            assert_eq!(read.blocks, Some(factors), "{text}");
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<WeightedFile>(&json).unwrap(), read);
        }
        for wrong in ["x:lbw=1,0", "x:lbw=NO", "x:0.5,lbw=ALL,unet=1", "x:0.5,lbw="] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_scale_is_written_as_before() {
        let json = |s: &str| serde_json::to_string(&s.parse::<WeightedFile>().unwrap()).unwrap();
        assert_eq!(json("x:0.5"), r#"{"file":"x","scale":0.5}"#);
        assert_eq!(json("x:text=0.5"), r#"{"file":"x","scale":1.0,"text_scale":0.5}"#);
        let read: WeightedFile = serde_json::from_str(r#"{"file":"x"}"#).unwrap();
        assert_eq!(read, WeightedFile::new("x", 1.0));
    }

    #[test]
    fn a_word_follows_the_last_colon_of_an_embedding() {
        let parse = |s: &str| s.parse::<Embedding>().map(|e| (e.file, e.word)).ok();
        assert_eq!(parse("a.pt"), Some(("a.pt".into(), None)));
        assert_eq!(parse("d/a.pt:<cat toy>"), Some(("d/a.pt".into(), Some("<cat toy>".into()))));
        assert_eq!(parse("C:\\a.pt"), Some(("C:\\a.pt".into(), None)));
        assert_eq!(parse("C:\\a.pt:x"), Some(("C:\\a.pt".into(), Some("x".into()))));
        assert_eq!(parse("a.pt:"), None);
        assert_eq!(parse(":x"), None);
    }

    #[test]
    fn prompts_that_break_the_rules_are_told_so_unless_they_are_plain() {
        let prompt = |prompt: &str| Request { prompt: prompt.into(), ..Request::default() };
        let error = prompt("a <lora:x:0.5>").validate().unwrap_err();
        assert_eq!(error.to_string(), "prompt: `<lora:x:0.5>` asks for a LoRA");
        assert!(error.hint().unwrap().contains("--lora-dir"));
        let error = prompt("(a:1.2.3)").validate().unwrap_err();
        assert_eq!(error.to_string(), "prompt: `1.2.3` is not a weight");
        let negative = Request { negative_prompt: "<lora:x>".into(), ..Request::default() };
        assert!(negative.validate().unwrap_err().to_string().starts_with("negative-prompt: "));
        for text in ["a <lora:x:0.5>", "(a:1.2.3)"] {
            let plain = Request { prompt_mode: PromptMode::Plain, ..prompt(text) };
            assert!(plain.validate().is_ok());
        }
    }

    #[test]
    fn impossible_requests_name_their_field() {
        let bad = |change: fn(&mut Request), field: &str| {
            let mut request = Request::default();
            change(&mut request);
            let error = request.validate().unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            assert!(error.to_string().starts_with(field), "{error}");
        };
        assert!(Request::default().validate().is_ok());
        bad(|r| r.frames = 0, "frames");
        bad(|r| r.steps = 0, "steps");
        bad(|r| r.fps = f64::NAN, "fps");
        bad(|r| r.fps = 0.0, "fps");
        bad(|r| r.cfg_scale = -1.0, "cfg-scale");
        bad(|r| r.beta_end = 0.0, "beta-end");
        bad(|r| r.width = Some(0), "width");
        bad(|r| r.height = Some(1 << 20), "height");
        bad(|r| r.prompt = "x".repeat(2 << 20), "prompt");
    }
}
