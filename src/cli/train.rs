//! `animatelcm train`: a plan becomes a model, stage by stage.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use candle_core::{DType, Device};
use clap::Args;

use super::{duration, print, tune};
use crate::device::{self, DeviceChoice, DtypeChoice};
use crate::error::Bytes;
use crate::media;
use crate::procedural::Score;
use crate::train::{
    Compute, Listener, Options, Places, Plan, Quality, Stage, Tick, course, memory, quality,
    run as run_stage, write_bytes,
};
use crate::{Error, Result, Stop};

/// The arguments of `animatelcm train`.
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// Plan that comes with the program: pocket.
    ///
    /// It makes the small model inside the program.
    #[arg(long, value_name = "NAME", conflicts_with = "config", help_heading = "Plan")]
    preset: Option<String>,
    /// Plan of your own, TOML.
    ///
    /// --preset pocket --print-config shows one.
    #[arg(long, value_name = "FILE", help_heading = "Plan")]
    config: Option<PathBuf>,
    /// Print the whole plan and stop.
    ///
    /// With everything that the file leaves out.
    #[arg(long, help_heading = "Plan")]
    print_config: bool,
    /// Multiplies the steps of all stages.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    #[arg(help_heading = "Plan", hide_short_help = true)]
    scale: f64,
    /// Stage to run; repeatable [default: all].
    ///
    /// vae, base, lora, motion, lcm, and those of adapt and i2v that the plan has: they run in this order.
    #[arg(long, value_name = "NAME", help_heading = "Plan")]
    stage: Vec<Stage>,
    /// A diffusers folder to begin from, for stages after `base` [default: the one that `base` wrote].
    #[arg(long, value_name = "DIR", help_heading = "Plan", hide_short_help = true)]
    base: Option<PathBuf>,

    /// Folder for all results; a training in it is continued.
    #[arg(short, long, value_name = "DIR", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// Steps between two checkpoints.
    #[arg(long, value_name = "N", default_value_t = 200, hide_short_help = true)]
    checkpoint_every: usize,
    /// Clips that are made and measured after each stage, and on the way; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 32, hide_short_help = true)]
    samples: usize,
    /// Steps after which that happens; 0 for the end of each stage only.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    sample_every: usize,
    /// Throw away what the named stages, and those after them, have learned.
    #[arg(long, hide_short_help = true)]
    restart: bool,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// dtype of the networks, f32 or bf16; weights that learn are f32 always.
    #[arg(long, value_name = "DTYPE", default_value = "f32", hide_short_help = true)]
    dtype: Format,
    /// Hide progress.
    #[arg(short, long, hide_short_help = true)]
    quiet: bool,
}

/// The dtype in which networks compute during training.
#[derive(Clone, Copy, Debug)]
struct Format(DType);

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name.parse()? {
            DtypeChoice::Auto | DtypeChoice::F32 => Ok(Self(DType::F32)),
            DtypeChoice::Bf16 => Ok(Self(DType::BF16)),
            DtypeChoice::F16 => Err(Error::request("dtype", "f16 is too narrow for gradients")
                .with_hint("bf16 is as fast")),
        }
    }
}

impl Format {
    fn on(self, device: &Device) -> Result<DType> {
        if self.0 == DType::BF16 && device.is_cpu() {
            return Err(Error::request("dtype", "bf16 is for training on a GPU")
                .with_hint("on the CPU f32 is the faster"));
        }
        Ok(self.0)
    }
}

pub(super) fn run(args: &TrainArgs, stop: &Stop) -> Result<()> {
    let plan = plan(args)?;
    let Some(out) = args.out.as_ref().filter(|_| !args.print_config) else {
        return print(&plan.to_toml()?);
    };
    tune::keep_freed_memory();
    let device = args.device.open()?;
    let dtype = args.dtype.on(&device)?;
    let compute = Compute { device: device.clone(), dtype, stop: stop.clone() };
    let mut places = Places::new(out);
    if let Some(base) = &args.base {
        if !base.is_dir() {
            let reason = format!("{} is not a folder", base.display());
            return Err(Error::request("base", reason));
        }
        places.base.clone_from(base);
    }
    let stages = if args.stage.is_empty() { plan.stages() } else { args.stage.clone() };
    if let Some(stage) = stages.iter().find(|stage| !plan.stages().contains(stage)) {
        let reason = format!("the plan has no `{}`", stage.name());
        return Err(Error::request("stage", reason).with_hint("a section `[adapt]` or `[i2v]`"));
    }
    if args.base.is_some() && stages.iter().any(|stage| *stage < Stage::Lora) {
        let reason = "stages `vae` and `base` would overwrite it";
        return Err(Error::request("base", reason).with_hint("name the stages with --stage"));
    }
    let available = device::available_memory(&device);
    for stage in &stages {
        let needed = memory(*stage, &plan, &device)?;
        if let Some(available) = available.filter(|available| *available < needed) {
            let what = format!("stage {}", stage.name());
            return Err(Error::Memory { what, needed, available }
                .with_hint("a smaller `batch` with a larger `accumulate` learns the same"));
        }
    }
    let _lock = places.lock()?;
    write_bytes(&out.join("config.toml"), plan.to_toml()?.as_bytes())?;
    let mut notes = Notes {
        plan: &plan,
        places: &places,
        compute: &compute,
        samples: args.samples,
        quiet: args.quiet,
        last: None,
        mean: 0.0,
        score: None,
    };
    let last = stages.last().copied();
    for stage in stages {
        let steps = course(stage, &plan).steps;
        let needed = Bytes(memory(stage, &plan, &device)?);
        notes.line(&format!("{}: {steps} steps, about {needed} of memory", stage.name()));
        let options = Options {
            every: args.checkpoint_every,
            write_every: args.sample_every,
            restart: args.restart,
        };
        run_stage(stage, &plan, &places, &compute, options, &mut notes)?;
        let lacks = notes.lacks(stage)?;
        if lacks.is_empty() {
            continue;
        }
        let reason = format!("its goal is not reached: {}", lacks.join(", "));
        if Some(stage) != last {
            return Err(Error::request(stage.name(), reason).with_hint(
                "more steps, or other sizes; --stage names the next one to go on all the same",
            ));
        }
        notes.line(&format!("{}: {reason}", stage.name()));
    }
    print(&format!("{}\n", out.display()))
}

/// The plan that the flags mean.
fn plan(args: &TrainArgs) -> Result<Plan> {
    let plan = match (&args.preset, &args.config) {
        (_, Some(path)) => {
            let text = crate::files::read_text(path)
                .map_err(|e| Error::request("config", format!("{}: {e}", path.display())))?;
            Plan::from_toml(&path.display().to_string(), &text)?
        }
        (Some(name), None) => Plan::preset(name)?,
        (None, None) => {
            return Err(Error::request("config", "there is no plan")
                .with_hint("--preset pocket, or --config FILE"));
        }
    };
    plan.scaled(args.scale)
}

/// The measured quality, in one line.
fn said(stage: Stage, made: &Quality, sheet: &std::path::Path) -> String {
    let Some(score) = &made.score else { return format!("clips in {}", sheet.display()) };
    let has_motion = !matches!(stage, Stage::Base | Stage::Lora);
    let parts: Vec<String> = score
        .rows()
        .iter()
        .filter(|(name, ..)| has_motion || !["motion", "all four", "steady"].contains(name))
        .map(|(name, count, _)| format!("{name} {:.0}%", 100.0 * count.share()))
        .collect();
    format!("{} of {} clips, {}", parts.join(", "), made.clips.len(), sheet.display())
}

/// Lines on stderr, samples on disk, and the ear for Ctrl-C.
struct Notes<'a> {
    plan: &'a Plan,
    places: &'a Places,
    compute: &'a Compute,
    samples: usize,
    quiet: bool,
    last: Option<Instant>,
    mean: f64,
    /// The last measurement.
    score: Option<Score>,
}

impl Notes<'_> {
    /// The shortfalls of a finished stage from its goal; none where no samples are wanted.
    fn lacks(&mut self, stage: Stage) -> Result<Vec<String>> {
        let Some(goal) = self.plan.goals.get(stage.name()) else { return Ok(vec![]) };
        if self.score.is_none() && self.samples > 0 {
            // It was done before.
            self.written(stage, course(stage, self.plan).steps)?;
        }
        Ok(self.score.take().map_or(vec![], |score| goal.lacks(&score)))
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            super::terminal::line(text);
        }
    }

    fn go_on(&self) -> Result<()> {
        Ok(self.compute.stop.check()?)
    }
}

impl Listener for Notes<'_> {
    fn tick(&mut self, tick: &Tick) -> Result<()> {
        const SECONDS: f64 = 10.0;
        let weight = if tick.step == 1 || self.mean == 0.0 { 1.0 } else { 0.05 };
        self.mean += weight * (tick.loss - self.mean);
        let is_due = self.last.is_none_or(|last| last.elapsed().as_secs_f64() > SECONDS);
        if is_due || tick.step == tick.steps {
            self.last = Some(Instant::now());
            let left = tick.seconds * (tick.steps - tick.step) as f64;
            self.line(&format!(
                "{} {}/{}  loss {:.5}  norm {:.3}  rate {:.1e}  {:.2} steps/s  {} left",
                tick.stage.name(),
                tick.step,
                tick.steps,
                self.mean,
                tick.norm,
                tick.rate,
                1.0 / tick.seconds.max(1e-9),
                duration(left),
            ));
        }
        self.go_on()
    }

    fn say(&mut self, text: &str) -> Result<()> {
        self.line(text);
        self.go_on()
    }

    fn written(&mut self, stage: Stage, step: usize) -> Result<()> {
        // What they make needs hints, or an image.
        if self.samples == 0 || stage > Stage::Lcm {
            return Ok(());
        }
        let (plan, places) = (self.plan, self.places);
        let mut go_on = || self.go_on();
        let made = quality(stage, plan, places, self.compute, self.samples, &mut go_on)?;
        let path = places.out.join("samples").join(format!("{}-{step}.png", stage.name()));
        write_bytes(&path, &media::sheet(&made.clips)?)?;
        self.line(&format!("{} {step}: {}", stage.name(), said(stage, &made, &path)));
        let path = path.with_extension("json");
        write_bytes(&path, super::to_json(&made.score)?.as_bytes())?;
        self.score = made.score;
        Ok(())
    }
}
