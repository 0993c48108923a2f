//! Training plan: models, data, and the settings of each stage, as a TOML file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use super::settings::{
    AdaptStage, BaseStage, Consistency, Course, I2vStage, LcmStage, LoraStage, MotionStage,
    VaeStage,
};
use super::{Stage, bounds, files};
use crate::procedural::Score;
use crate::{Error, Result};

/// A training plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Seed of all random numbers.
    #[serde(default)]
    pub seed: u64,
    /// Width and height of the clips, in pixels.
    pub side: usize,
    /// Frames per clip.
    #[serde(default = "sixteen")]
    pub frames: usize,
    /// Training data.
    pub data: Data,
    /// Settings of the `vae` stage.
    #[serde(default)]
    pub vae: VaeStage,
    /// Settings of the `base` stage.
    #[serde(default)]
    pub base: BaseStage,
    /// Settings of the `lora` stage.
    #[serde(default)]
    pub lora: LoraStage,
    /// Settings of the `motion` stage.
    #[serde(default)]
    pub motion: MotionStage,
    /// Settings of the `lcm` stage.
    #[serde(default)]
    pub lcm: LcmStage,
    /// Settings of the `adapt` stage; without them there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapt: Option<AdaptStage>,
    /// Settings of the `i2v` stage; without them there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub i2v: Option<I2vStage>,
    /// Score that a stage must reach before the next begins, by stage name.
    #[serde(default)]
    pub goals: BTreeMap<String, Goal>,
}

fn sixteen() -> usize {
    16
}

/// Source of the training data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Data {
    /// Given number of clips of the procedural grammar.
    Procedural(usize),
    /// Images, animations and folders of images.
    Folder(FolderData),
}

/// Training clips in files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderData {
    /// A folder of clips, each with a `.txt` of the same name; or a list of files and captions: `.jsonl` with the
    /// fields `file` and `text`, or `.csv` with these two columns.
    pub path: PathBuf,
    /// Frame stride: every `stride`-th frame is used.
    #[serde(default = "one")]
    pub stride: usize,
}

fn one() -> usize {
    1
}

/// Minimum scores of a stage's result, as shares of correct clips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Goal {
    /// Share of correct backgrounds.
    pub background: f64,
    /// Share of correct colours.
    pub color: f64,
    /// Share of correct shapes.
    pub shape: f64,
    /// Share of correct motions.
    pub motion: f64,
    /// Share of clips correct in all four.
    pub all: f64,
}

impl Goal {
    /// The goals that a score misses, as messages; empty if all are reached.
    pub fn lacks(&self, score: &Score) -> Vec<String> {
        [
            ("background", score.background, self.background),
            ("colour", score.color, self.color),
            ("shape", score.shape, self.shape),
            ("motion", score.motion, self.motion),
            ("all four", score.all, self.all),
        ]
        .into_iter()
        .filter(|(_, count, goal)| count.share() < *goal)
        .map(|(name, count, goal)| {
            format!("{name} {:.0} % instead of {:.0} %", 100.0 * count.share(), 100.0 * goal)
        })
        .collect()
    }
}

/// Built-in plans: name and TOML text.
pub const PRESETS: &[(&str, &str)] = &[("pocket", include_str!("pocket.toml"))];

impl Plan {
    /// Parses a plan; `name` is used in errors.
    ///
    /// # Errors
    ///
    /// When it is not valid TOML, has unknown fields, or has invalid values.
    pub fn from_toml(name: &str, text: &str) -> Result<Self> {
        let plan: Self = toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(String::new(), |span| {
                let line = text[..span.start.min(text.len())].lines().count().max(1);
                format!(" in line {line}")
            });
            Error::request("config", format!("{name}{at}: {}", e.message().replace('\n', " ")))
        })?;
        // Model sizes have the fields of published files, which may contain others; a plan may not.
        let encode = |e: toml::ser::Error| Error::Encode { format: "toml", reason: e.to_string() };
        let known = toml::Value::try_from(&plan).map_err(encode)?;
        if let Ok(given) = text.parse::<toml::Table>()
            && let Some(field) = unknown(&toml::Value::Table(given), &known, "")
        {
            return Err(Error::request("config", format!("{name}: `{field}` is not known")));
        }
        bounds::check(&known, "")?;
        plan.validate()?;
        Ok(plan)
    }

    /// Scales the number of steps of all stages by `factor`.
    ///
    /// # Errors
    ///
    /// When `factor` is not a positive number, or gives too many steps.
    pub fn scaled(mut self, factor: f64) -> Result<Self> {
        if !(factor > 0.0 && factor.is_finite()) {
            return Err(Error::request("scale", format!("must be above 0, got {factor}")));
        }
        let adapt = self.adapt.as_mut().map(|adapt| &mut adapt.course);
        let all = [
            &mut self.vae.course,
            &mut self.base.course,
            &mut self.lora.course,
            &mut self.motion.course,
            &mut self.lcm.course,
        ];
        let i2v = self.i2v.as_mut().map(|i2v| &mut i2v.course);
        for course in all.into_iter().chain(adapt).chain(i2v) {
            for steps in [&mut course.steps, &mut course.warmup] {
                let scaled = (*steps as f64 * factor).round().max(1.0);
                if scaled > bounds::MOST_STEPS as f64 {
                    let reason = format!("{scaled:e} steps are more than {}", bounds::MOST_STEPS);
                    return Err(Error::request("scale", reason));
                }
                *steps = scaled as usize;
            }
        }
        Ok(self)
    }

    /// The preset named `name`.
    ///
    /// # Errors
    ///
    /// When there is no such preset.
    pub fn preset(name: &str) -> Result<Self> {
        match PRESETS.iter().find(|(known, _)| *known == name) {
            Some((name, text)) => Self::from_toml(name, text),
            None => {
                let known: Vec<String> =
                    PRESETS.iter().map(|(name, _)| format!("`{name}`")).collect();
                let reason = format!("`{name}` is not {}", known.join(" or "));
                Err(Error::request("preset", reason))
            }
        }
    }

    /// The plan as TOML.
    ///
    /// # Errors
    ///
    /// Never, unless the serializer has a defect.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Encode { format: "toml", reason: e.to_string() })
    }

    /// The stages that the plan has, in their order.
    pub fn stages(&self) -> Vec<Stage> {
        let has = |stage: &Stage| match stage {
            Stage::Adapt => self.adapt.is_some(),
            Stage::I2v => self.i2v.is_some(),
            _ => true,
        };
        Stage::ALL.into_iter().filter(has).collect()
    }

    fn validate(&self) -> Result<()> {
        if self.frames == 0 || self.side == 0 {
            let reason = format!("{} frames of side {} are empty", self.frames, self.side);
            return Err(Error::request("frames", reason));
        }
        match &self.data {
            Data::Procedural(0) => {
                return Err(Error::request("data", "there are no clips to learn from"));
            }
            Data::Folder(folder) if folder.stride == 0 => {
                return Err(Error::request("data", "`stride` must be at least 1"));
            }
            _ => {}
        }
        let factor = self.vae.config.factor();
        if !self.side.is_multiple_of(factor) {
            let reason = format!("must be a multiple of {factor}, got {}", self.side);
            return Err(Error::request("side", reason));
        }
        self.vae.course.validate("vae")?;
        for (stage, field, value) in
            [("vae", "deviation", self.vae.deviation), ("motion", "power", self.motion.power)]
        {
            if !(value > 0.0 && value.is_finite()) {
                let reason = format!("`{field}` must be above 0, got {value}");
                return Err(Error::request(stage, reason));
            }
        }
        if let Some(adapt) = &self.adapt {
            adapt.validate(self.frames)?;
        }
        if let Some(i2v) = &self.i2v {
            i2v.validate()?;
        }
        for (name, goal) in &self.goals {
            if name.parse::<Stage>()? > Stage::Lcm {
                let reason = format!("`{name}` makes no clips that are measured");
                return Err(Error::request("goals", reason));
            }
            let Goal { background, color, shape, motion, all } = *goal;
            if [background, color, shape, motion, all].iter().any(|v| !(0.0..=1.0).contains(v)) {
                let reason = format!("`{name}`: a share lies between 0 and 1");
                return Err(Error::request("goals", reason));
            }
        }
        self.base.course.validate("base")?;
        self.lora.course.validate("lora")?;
        self.lora.consistency.validate("lora")?;
        self.motion.course.validate("motion")?;
        self.lcm.course.validate("lcm")?;
        self.lcm.consistency.validate("lcm")?;
        if !(0.0..=2.0).contains(&self.motion.balance) {
            let reason = format!("`balance` lies between 0 and 2, got {}", self.motion.balance);
            return Err(Error::request("motion", reason));
        }
        for (stage, value) in [
            ("base", self.base.no_caption),
            ("base", self.base.no_part),
            ("motion", self.motion.no_caption),
            ("motion", self.motion.no_part),
        ] {
            if !(0.0..=1.0).contains(&value) {
                let reason = format!("a share lies between 0 and 1, got {value}");
                return Err(Error::request(stage, reason));
            }
        }
        if self.motion.config.motion_num_attention_heads != 8 {
            let heads = self.motion.config.motion_num_attention_heads;
            let reason =
                format!("AnimateDiff's layout, which is written, has 8 heads, not {heads}");
            return Err(Error::request("motion", reason));
        }
        self.vae.config.validate()?;
        self.base.unet.validate()?;
        self.base.text.validate()?;
        self.validate_sizes()
    }

    /// Checks sizes that must match each other or the built-in tokenizer and image format.
    fn validate_sizes(&self) -> Result<()> {
        let (vae, unet, text) = (&self.vae.config, &self.base.unet, &self.base.text);
        for (field, size, other, wanted) in [
            ("vae.config.in_channels", vae.in_channels, "of an image", 3),
            ("vae.config.out_channels", vae.out_channels, "of an image", 3),
            (
                "base.unet.in_channels",
                unet.in_channels,
                "`vae.config.latent_channels`",
                vae.latent_channels,
            ),
            (
                "base.unet.out_channels",
                unet.out_channels,
                "`vae.config.latent_channels`",
                vae.latent_channels,
            ),
            (
                "base.unet.cross_attention_dim",
                unet.cross_attention_dim,
                "`base.text.hidden_size`",
                text.hidden_size,
            ),
        ] {
            if size != wanted {
                let reason = format!("`{field}` is {size}, but {other} is {wanted}");
                return Err(Error::request("config", reason));
            }
        }
        let mut divisible =
            vec![("base.text.hidden_size", text.hidden_size, "heads", text.num_attention_heads)];
        for width in &vae.block_out_channels {
            divisible.push((
                "vae.config.block_out_channels",
                *width,
                "groups",
                vae.norm_num_groups,
            ));
        }
        for width in &unet.block_out_channels {
            divisible.push((
                "base.unet.block_out_channels",
                *width,
                "groups",
                unet.norm_num_groups,
            ));
            divisible.push(("base.unet.block_out_channels", *width, "heads of motion modules", 8));
        }
        for place in unet.cross_attentions()? {
            divisible.push(("base.unet.block_out_channels", place.width, "heads", unet.heads()));
        }
        for (field, width, parts, count) in divisible {
            if !width.is_multiple_of(count) {
                let reason =
                    format!("`{field}`: {width} channels do not divide into {count} {parts}");
                return Err(Error::request("config", reason));
            }
        }
        if text.vocab_size < files::VOCABULARY {
            let (size, least) = (text.vocab_size, files::VOCABULARY);
            let reason =
                format!("`base.text.vocab_size` is {size}, but the tokenizer has {least} tokens");
            return Err(Error::request("config", reason));
        }
        let longest = self.motion.config.motion_max_seq_length;
        if self.frames > longest {
            let reason = format!(
                "{} frames, but `motion.config.motion_max_seq_length` is {longest}",
                self.frames
            );
            return Err(Error::request("frames", reason));
        }
        Ok(())
    }
}

/// The first field of `given` that is missing in `known`.
fn unknown(given: &toml::Value, known: &toml::Value, path: &str) -> Option<String> {
    let (toml::Value::Table(given), toml::Value::Table(known)) = (given, known) else {
        return None;
    };
    given.iter().find_map(|(field, value)| {
        let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        match known.get(field) {
            Some(known) => unknown(value, known, &path),
            None => Some(path),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_sound_and_read_back_as_written() {
        for (name, _) in PRESETS {
            let plan = Plan::preset(name).unwrap();
            assert_eq!(Plan::from_toml(name, &plan.to_toml().unwrap()).unwrap(), plan);
        }
        assert!(Plan::preset("sd15").is_err());
    }

    #[test]
    fn what_a_plan_cannot_mean_is_refused_by_name() {
        let fails = |change: &str, words: &str| {
            let text = format!("side = 64\ndata = {{ procedural = 4 }}\n{change}");
            let error = Plan::from_toml("x.toml", &text).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2, "{error}");
            assert!(error.to_string().contains(words), "{change}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        };
        assert!(Plan::from_toml("x.toml", "side = 64\ndata = { procedural = 4 }").is_ok());
        fails("sied = 3", "sied");
        fails("[vae]\ncourse = { step = 3 }", "step");
        fails("[base.unet]\nblock_out_chanels = [3]", "base.unet.block_out_chanels");
        fails("[lora]\ncourse = { rate = 0.0 }", "rate");
        fails("[lora]\ncourse = { loss = { huber = 0.0 } }", "limit");
        fails("[lcm]\nconsistency = { guidance = [0.5, 2.0] }", "guidance");
        fails("[lcm]\ninsertion = \"slow\"", "slow");
        fails("[motion]\npower = 0.0", "power");
        fails("[vae]\ndeviation = 0.0", "deviation");
        fails("[motion]\nbalance = -1.0", "balance");
        fails("[goals.base]\nshape = 90", "share");
        fails("[goals.image]\nshape = 0.9", "image");
        fails("[motion]\nconfig = { motion_num_attention_heads = 4 }", "8 heads");
        fails("[base]\nno_caption = 1.5", "share");
        fails("[lora]\nrank = 2147483648", "`lora.rank`");
        fails("[lora]\nrank = 0", "`lora.rank`");
        fails("[lora]\nalpha = nan", "`lora.alpha`");
        fails("[vae]\nemphasis = inf", "`vae.emphasis`");
        fails("[lora]\ncourse = { accumulate = 2147483648 }", "`lora.course.accumulate`");
        fails("[base.text]\nvocab_size = 9223372036854775807", "`base.text.vocab_size`");
        fails("[base.text]\nvocab_size = 600", "614 tokens");
        fails("[base.text]\nhidden_size = 2147483648", "`base.text.hidden_size`");
        fails("[base.text]\nhidden_size = 64", "`base.text.hidden_size` is 64");
        fails("[base.text]\nnum_hidden_layers = 1048576", "`base.text.num_hidden_layers`");
        fails("[base.unet]\nlayers_per_block = 1048576", "`base.unet.layers_per_block`");
        fails("[base.unet]\nnorm_num_groups = 0", "`base.unet.norm_num_groups`");
        fails("[base.unet]\nnorm_num_groups = 7", "do not divide into 7 groups");
        fails("[base.unet]\nattention_head_dim = 7", "do not divide into 7 heads");
        fails("[base.text]\nnum_attention_heads = 7", "do not divide into 7 heads");
        fails("[vae]\nconfig = { norm_num_groups = 7 }", "do not divide into 7 groups");
        fails("[base.unet]\nin_channels = 9", "`base.unet.in_channels` is 9");
        fails("[vae]\nconfig = { block_out_channels = [4, 4294967296] }", "block_out_channels");
        fails("[vae]\nconfig = { block_out_channels = [4,4,4,4,4,4,4,4,4] }", "8 elements");
        fails("[motion]\nconfig = { motion_max_seq_length = 8 }", "16 frames");
        let text = "side = 63\ndata = { procedural = 4 }";
        assert!(Plan::from_toml("x", text).unwrap_err().to_string().contains("multiple of 8"));
        assert!(Plan::from_toml("x", "side = 64\ndata = { procedural = 0 }").is_err());
    }
}
