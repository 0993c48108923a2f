//! Training loop of a stage: steps, metrics, checkpoints, and resuming.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde_json::json;

use super::metric::Metric;
use super::places::Places;
use super::plan::{Course, Plan};
use super::stages::{Stage, Task, prepare};
use super::written::Written;
use super::{AdamW, Compute, Vars, Weights, clip, files, gradients, move_towards, plot};
use crate::rng::Uniform;
use crate::weights::Archive;
use crate::{Error, Result};

/// Progress of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Tick {
    /// The stage.
    pub stage: Stage,
    /// Number of completed steps.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// Loss of the last step.
    pub loss: f64,
    /// Gradient norm of the last step, before clipping.
    pub norm: f64,
    /// Learning rate of the last step.
    pub rate: f64,
    /// Seconds per step, averaged over recent steps.
    pub seconds: f64,
}

/// Callback for the progress of a training run. An error stops the run; completed steps are kept.
pub trait Listener {
    /// Called after each step.
    fn tick(&mut self, tick: &Tick) -> Result<()>;

    /// Called with a message when something else takes time.
    fn say(&mut self, text: &str) -> Result<()>;

    /// Called when the current result has been written to its files, also at the end.
    fn written(&mut self, stage: Stage, step: usize) -> Result<()>;
}

/// Options of a training run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Steps between checkpoints: a killed run loses at most that many.
    pub every: usize,
    /// Steps between intermediate results; 0 writes only the final one.
    pub write_every: usize,
    /// Whether to discard existing checkpoints.
    pub restart: bool,
}

/// Runs a stage to its end, resuming from its last checkpoint.
///
/// On the CPU a resumed run gives the same result, bit for bit, as an uninterrupted one.
///
/// # Errors
///
/// When files of earlier stages are missing, the loss is not finite, or the listener returns an error.
pub fn run(
    stage: Stage,
    plan: &Plan,
    places: &Places,
    compute: &Compute,
    options: Options,
    listener: &mut dyn Listener,
) -> Result<()> {
    let course = course(stage, plan);
    let identity = identity(stage, plan)?;
    let written = Written::new(stage, places, &identity);
    if options.restart {
        // The checkpoints of later stages depend on this stage's result and are stale too; nothing builds on an adapted
        // network.
        let is_stale = |later: &Stage| *later == stage || *later > stage && stage != Stage::Adapt;
        for later in Stage::ALL.into_iter().filter(is_stale) {
            Written::new(later, places, "").clear()?;
            let path = state_path(places, later);
            if path.exists() {
                std::fs::remove_file(&path).map_err(Error::file(&path))?;
            }
        }
    }
    let path = state_path(places, stage);
    let found = found(&path, stage, &identity)?;
    // Returns whether the result of a step is complete in its files.
    let has_written =
        |step| written.is_of(step) && stage.results(plan, places).iter().all(|path| path.is_file());
    if found.is_some_and(|step| step >= course.steps && has_written(step)) {
        return listener.say(&format!("{} is done already", stage.name()));
    }
    let mut task = prepare(stage, plan, places, compute, &mut |text| listener.say(text))?;
    let mut state = State::new(task.vars(), &course)?;
    if found.is_some() {
        state.load(&path, task.as_mut(), &compute.device)?;
    } else {
        written.clear()?;
    }
    let writes_at = |step: usize| {
        step >= course.steps || options.write_every > 0 && step.is_multiple_of(options.write_every)
    };
    let write = |state: &State, task: &dyn Task, listener: &mut dyn Listener| -> Result<()> {
        written.clear()?;
        task.write(&state.average, places)?;
        listener.written(stage, state.step)?;
        written.set(state.step)
    };
    let mut notes = Notes::open(places, stage, state.step)?;
    if found.is_some() && writes_at(state.step) && !has_written(state.step) {
        // The run was interrupted after this checkpoint and before its result was complete.
        write(&state, task.as_ref(), listener)?;
    }
    let mut pace = Pace::default();
    while state.step < course.steps {
        let started = Instant::now();
        let advanced = state.advance((stage, plan, compute), &course, task.as_mut());
        if matches!(advanced, Err(Error::Cancelled)) {
            // The state is still that of the last completed step.
            state.save(&path, &identity, task.as_ref())?;
            notes.write()?;
        }
        let (loss, norm) = advanced?;
        let seconds = started.elapsed().as_secs_f64();
        let rate = course.pace().at(state.step - 1);
        notes.add(stage, &state, (loss, norm, rate, seconds));
        let tick = Tick {
            stage,
            step: state.step,
            steps: course.steps,
            loss,
            norm,
            rate,
            seconds: pace.add(seconds),
        };
        let heard = listener.tick(&tick);
        let is_due = state.step.is_multiple_of(options.every.max(1));
        if heard.is_err() || is_due || state.step == course.steps {
            // In this order: on resuming, lines beyond the checkpoint are dropped, but missing lines would be lost.
            notes.write()?;
            state.save(&path, &identity, task.as_ref())?;
        }
        heard?;
        if writes_at(state.step) {
            write(&state, task.as_ref(), listener)?;
        }
    }
    Ok(())
}

/// Training settings of a stage in the plan.
pub fn course(stage: Stage, plan: &Plan) -> Course {
    match stage {
        Stage::Vae => plan.vae.course,
        Stage::Base => plan.base.course,
        Stage::Lora => plan.lora.course,
        Stage::Motion => plan.motion.course,
        Stage::Lcm => plan.lcm.course,
        Stage::I2v => plan.i2v.map(|i2v| i2v.course).unwrap_or_default(),
        Stage::Adapt => plan.adapt.as_ref().map(|adapt| adapt.course).unwrap_or_default(),
    }
}

fn state_path(places: &Places, stage: Stage) -> PathBuf {
    places.out.join("state").join(format!("{}.safetensors", stage.name()))
}

/// The parts of the plan that a stage depends on, as JSON.
fn identity(stage: Stage, plan: &Plan) -> Result<String> {
    let own = match stage {
        Stage::Vae => json!(plan.vae),
        Stage::Base => json!(plan.base),
        Stage::Lora => json!(plan.lora),
        Stage::Motion => json!(plan.motion),
        Stage::I2v => json!([plan.i2v, plan.motion.config, plan.lcm.joint]),
        Stage::Adapt => json!([plan.adapt, plan.motion.config, plan.lcm.joint]),
        Stage::Lcm => json!([plan.lcm, plan.motion.config, plan.lora.rank, plan.lora.alpha]),
    };
    let all = json!([plan.seed, plan.side, plan.frames, plan.data, own]);
    serde_json::to_string(&all).map_err(|e| Error::Encode { format: "json", reason: e.to_string() })
}

/// Step of a checkpoint, if it exists.
fn found(path: &Path, stage: Stage, identity: &str) -> Result<Option<usize>> {
    if !path.is_file() {
        return Ok(None);
    }
    let archive = Archive::open(&path.to_path_buf().into())?;
    let metadata = archive.metadata();
    if metadata.get("plan").map(String::as_str) != Some(identity) {
        let name = stage.name();
        let reason = format!("{} was begun with another configuration", path.display());
        return Err(Error::request("config", reason)
            .with_hint(format!("--restart begins `{name}` and what follows it again")));
    }
    let step = metadata.get("step").and_then(|step| step.parse().ok());
    step.map(Some).ok_or_else(|| Error::format(path, "has no valid `step` in its header"))
}

/// Mutable state of a stage's run.
struct State {
    step: usize,
    optimizer: AdamW,
    average: Weights,
}

impl State {
    fn new(vars: &Vars, course: &Course) -> Result<Self> {
        let copy = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?));
        let average = now(vars).into_iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { step: 0, optimizer: AdamW::new(course.decay), average })
    }

    /// Takes an optimizer step; returns the loss and the gradient norm.
    fn advance(
        &mut self,
        (stage, plan, compute): (Stage, &Plan, &Compute),
        course: &Course,
        task: &mut dyn Task,
    ) -> Result<(f64, f64)> {
        let mut sum: Option<Weights> = None;
        let mut loss_sum = 0.0;
        let passes: Vec<usize> = (0..course.accumulate).collect();
        for passes in passes.chunks(at_once(course, &compute.device)) {
            // In order, so that the sum is the same, bit for bit, on any machine.
            for pass in self.passes(stage, plan, course, task, passes)? {
                let (loss, found) = pass?;
                loss_sum += loss;
                sum = Some(match sum {
                    None => found,
                    Some(mut sum) => {
                        for (name, gradient) in &mut sum {
                            *gradient = (&*gradient + &found[name])?;
                        }
                        sum
                    }
                });
            }
        }
        let mut found = sum.unwrap_or_default();
        let count = course.accumulate as f64;
        if course.accumulate > 1 {
            for gradient in found.values_mut() {
                *gradient = (&*gradient / count)?;
            }
        }
        let loss = loss_sum / count;
        let norm = clip(&mut found, course.clip)?;
        if !loss.is_finite() || !norm.is_finite() {
            let reason = format!("the loss is {loss} at step {}", self.step + 1);
            return Err(Error::request(stage.name(), reason)
                .with_hint("a lower `rate` or a longer `warmup` may help"));
        }
        self.optimizer.step(task.vars(), &found, course.pace().at(self.step))?;
        task.follow()?;
        // Decay warmup, so that the EMA forgets the initial weights sooner.
        let kept = course.average.min((self.step + 1) as f64 / (self.step + 11) as f64);
        move_towards(&mut self.average, &now(task.vars()), 1.0 - kept)?;
        self.step += 1;
        Ok((loss, norm))
    }

    /// Losses and gradients of several passes, run in parallel if there is more than one.
    fn passes(
        &self,
        stage: Stage,
        plan: &Plan,
        course: &Course,
        task: &dyn Task,
        passes: &[usize],
    ) -> Result<Vec<Result<(f64, Weights)>>> {
        let run = |pass: &usize| {
            // Random numbers are seeded per pass, so that a run can resume anywhere.
            let number = (self.step * course.accumulate + pass) as u64;
            let mut random = Uniform::part(plan.seed ^ ((1 + stage as u64) << 32), number);
            let loss = task.loss(&mut random)?;
            let value = f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
            Ok((value, gradients(&mut loss.backward()?, task.vars())?))
        };
        if let [pass] = passes {
            return Ok(vec![run(pass)]);
        }
        Ok(threads()?.install(|| passes.par_iter().map(run).collect()))
    }

    fn save(&self, path: &Path, identity: &str, task: &dyn Task) -> Result<()> {
        let mut all = Weights::new();
        let vars = now(task.vars());
        let state = task.state();
        for (mark, list) in [
            ("weight", &vars),
            ("first", &self.optimizer.first),
            ("second", &self.optimizer.second),
            ("average", &self.average),
            ("kept", &state),
        ] {
            all.extend(list.iter().map(|(name, t)| (format!("{mark}:{name}"), t.detach())));
        }
        let metadata = BTreeMap::from([
            ("step".to_owned(), self.step.to_string()),
            ("plan".to_owned(), identity.to_owned()),
        ]);
        files::write_tensors(path, &all, &metadata)
    }

    fn load(&mut self, path: &Path, task: &mut dyn Task, device: &Device) -> Result<()> {
        let archive = Archive::open(&path.to_path_buf().into())?;
        let step = archive.metadata().get("step").and_then(|step| step.parse().ok());
        let names: Vec<String> = archive.names().map(str::to_owned).collect();
        let mut lists: HashMap<String, Weights> = HashMap::new();
        for name in names {
            let tensor = archive.tensor(&name, DType::F32, device)?;
            if let Some((mark, name)) = name.split_once(':') {
                lists.entry(mark.to_owned()).or_default().insert(name.to_owned(), tensor);
            }
        }
        let mut take = |mark: &str| lists.remove(mark).unwrap_or_default();
        let weights = take("weight");
        if !weights.keys().eq(task.vars().keys()) {
            return Err(Error::format(path, "has weights of another network"));
        }
        for (name, var) in task.vars() {
            var.set(&weights[name])?;
        }
        self.optimizer.first = take("first");
        self.optimizer.second = take("second");
        self.average = take("average");
        task.resume(take("kept"))?;
        self.step = step.unwrap_or(0);
        self.optimizer.steps = self.step;
        Ok(())
    }
}

/// Number of passes of a step that run in parallel: on the CPU one per thread, since passes in different threads do
/// not wait for each other.
pub(super) fn at_once(course: &Course, device: &Device) -> usize {
    if device.is_cpu() { course.accumulate.min(rayon::current_num_threads()).max(1) } else { 1 }
}

/// Thread pool for passes. A network's graph is walked recursively, which needs more than the default stack.
fn threads() -> Result<&'static rayon::ThreadPool> {
    static POOL: OnceLock<std::result::Result<rayon::ThreadPool, String>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads());
        builder.stack_size(64 << 20).build().map_err(|e| e.to_string())
    });
    pool.as_ref().map_err(|reason| Error::request("train", format!("no threads: {reason}")))
}

/// Current values of the variables. They share storage with the variables and must be copied to be kept.
fn now(vars: &Vars) -> Weights {
    vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
}

/// Seconds per step, averaged over recent steps.
#[derive(Default)]
struct Pace(Option<f64>);

impl Pace {
    fn add(&mut self, seconds: f64) -> f64 {
        let now = self.0.map_or(seconds, |before| 0.95 * before + 0.05 * seconds);
        self.0 = Some(now);
        now
    }
}

/// Maximum size of `metrics.jsonl` in bytes; enough for many millions of steps.
const MOST_METRICS: u64 = 4 << 30;

/// `metrics.jsonl` and the loss curves plotted from it.
struct Notes {
    path: PathBuf,
    curves: PathBuf,
    lines: Vec<Metric>,
}

impl Notes {
    /// Opens the metrics, keeping those of other stages and of this one up to `step`.
    fn open(places: &Places, stage: Stage, step: usize) -> Result<Self> {
        let path = places.out.join("metrics.jsonl");
        let bytes = match crate::files::read(&path, MOST_METRICS) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(error) => return Err(Error::file(&path)(error)),
        };
        let lines = String::from_utf8_lossy(&bytes)
            .lines()
            .filter_map(|line| serde_json::from_str::<Metric>(line).ok())
            .filter(|metric| metric.stage != stage.name() || metric.step <= step)
            .collect();
        Ok(Self { path, curves: places.out.join("curves.svg"), lines })
    }

    fn add(&mut self, stage: Stage, state: &State, numbers: (f64, f64, f64, f64)) {
        let (loss, norm, rate, seconds) = numbers;
        let (stage, step) = (stage.name().to_owned(), state.step);
        self.lines.push(Metric { stage, step, loss, norm, rate, seconds });
    }

    fn write(&self) -> Result<()> {
        let mut text = String::new();
        for line in &self.lines {
            let line = serde_json::to_string(line)
                .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
            text.push_str(&line);
            text.push('\n');
        }
        files::write_bytes(&self.path, text.as_bytes())?;
        files::write_bytes(&self.curves, plot::curves(&self.lines).as_bytes())
    }
}
