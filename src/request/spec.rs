//! Weights by name or path, and the device they run on.

use serde::{Deserialize, Serialize};

use super::grammar::{self, First, Key, Kind, items};
use super::{is_default, one};
use crate::Quantize;
use crate::adapters::lora::BlockFactors;
use crate::device::{DeviceChoice, DtypeChoice, KernelChoice};
use crate::{Error, Result};

/// Names or paths of weights, and the device they run on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// The base model; none is the embedded one.
    pub model: Option<String>,
    /// Folder with the configuration of a single-file model, if its sizes are not those of Stable Diffusion 1.5.
    pub model_config: Option<String>,
    /// Personalised weights laid over the base model.
    pub checkpoint: Option<String>,
    /// Another autoencoder.
    pub vae: Option<String>,
    /// The motion modules; `none` for images without motion.
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
    /// The network that makes hints of depth; `depth-anything-v2-small` if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth_model: Option<String>,
    /// Ignores a LoRA's alpha, as AnimateLCM's own code does.
    pub lora_legacy_scale: bool,
    /// Accepts LoRAs that fit in part.
    pub allow_partial: bool,
    /// The device.
    pub device: DeviceChoice,
    /// The dtype.
    pub dtype: DtypeChoice,
    /// Quantization of the UNet and of the networks next to it.
    #[serde(skip_serializing_if = "is_default")]
    pub quantize: Quantize,
    /// Kernels on a GPU.
    #[serde(skip_serializing_if = "is_default")]
    pub kernels: KernelChoice,
}

/// A textual inversion: `FILE` or `FILE:WORD`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// A path.
    pub file: String,
    /// Its word in prompts, if not the one in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<String>,
}

/// Hint for paths that the grammar would split.
const QUOTES: &str =
    "a path with colons or commas goes into double quotes: \"a:b.safetensors\":0.8";

impl Embedding {
    /// Reads `FILE` or `FILE:WORD`; what is `there` is not cut.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] with the grammar.
    pub fn parse(s: &str, there: &dyn Fn(&str) -> bool) -> Result<Self> {
        // Text after a colon is part of a path if it has a separator: `C:\x.pt`.
        let word = |text: &str| {
            let is_word = text.starts_with('"') || !text.contains(['/', '\\']);
            is_word.then(|| grammar::word(text).ok_or_else(|| format!("`{text}` is not a word")))
        };
        let wrong = |reason| Error::request("embedding", reason).with_hint(QUOTES);
        let (file, word) = grammar::with_tail(s, there, word).map_err(wrong)?;
        if file.is_empty() || word.as_ref().is_some_and(|word| word.trim().is_empty()) {
            return Err(wrong(format!("`{s}` is not FILE or FILE:WORD")));
        }
        Ok(Self { file, word })
    }
}

/// Keys that may follow a LoRA's colon. Factors of blocks contain commas.
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

impl WeightedFile {
    /// Reads `FILE` and what may follow its last colon; what is `there` is not cut.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] with the grammar.
    pub fn parse(s: &str, there: &dyn Fn(&str) -> bool) -> Result<Self> {
        let wrong = |reason: String| {
            let form = format!("`{s}` is not FILE, FILE:SCALE or FILE:unet=SCALE,text=SCALE");
            let reason = if reason.is_empty() { form } else { format!("{form}: {reason}") };
            Error::request("lora", reason).with_hint(QUOTES)
        };
        // A colon may also belong to a Windows path, so only scales after the last one count.
        let (file, scales) = grammar::with_tail(s, there, Self::scales).map_err(wrong)?;
        if file.is_empty() {
            return Err(wrong(String::new()));
        }
        let (scale, text_scale, blocks) = scales.unwrap_or((1.0, None, None));
        Ok(Self { file, scale, text_scale, blocks })
    }
}

grammar::from_text!(Embedding, WeightedFile);

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
