//! The conduct of a stage: steps, notes, checkpoints, and going on after an interruption.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::plan::{Course, Plan};
use super::stages::{Places, Stage, Task, prepare};
use super::written::Written;
use super::{AdamW, Compute, Vars, Weights, clip, files, gradients, move_towards, plot};
use crate::rng::Uniform;
use crate::weights::Archive;
use crate::{Error, Result};

/// How far a stage is.
#[derive(Clone, Copy, Debug)]
pub struct Tick {
    /// Which.
    pub stage: Stage,
    /// Steps that are done.
    pub step: usize,
    /// All of them.
    pub steps: usize,
    /// The loss of the last one.
    pub loss: f64,
    /// The norm of its gradient, before it was limited.
    pub norm: f64,
    /// Its learning rate.
    pub rate: f64,
    /// Seconds a step, lately.
    pub seconds: f64,
}

/// Hears of a training. An error stops it; what was learned by then is kept.
pub trait Listener {
    /// A step is done.
    fn tick(&mut self, tick: &Tick) -> Result<()>;

    /// Something else that takes time.
    fn say(&mut self, text: &str) -> Result<()>;

    /// What was learned so far is in its files. Called at the end, too.
    fn written(&mut self, stage: Stage, step: usize) -> Result<()>;
}

/// How a stage is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Steps between two checkpoints: a killed run loses at most that many.
    pub every: usize,
    /// Steps after which the result is written as it is then, to be looked at; 0 for the end only.
    pub write_every: usize,
    /// Whether what was learned before is thrown away.
    pub restart: bool,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The stage.
    pub stage: String,
    /// The step, from 1.
    pub step: usize,
    /// Its loss.
    pub loss: f64,
    /// The norm of its gradient.
    pub norm: f64,
    /// Its learning rate.
    pub rate: f64,
    /// How long it took.
    pub seconds: f64,
}

/// Runs a stage to its end, from where it was left.
///
/// On the CPU a run that was interrupted and went on is the same, bit for bit, as one that was not.
///
/// # Errors
///
/// When files of earlier stages are missing, the loss is no longer a number, or the listener says stop.
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
        // What was learned from this stage's results is stale as well.
        for later in Stage::ALL.into_iter().filter(|later| *later >= stage) {
            Written::new(later, places, "").clear()?;
            let path = state_path(places, later);
            if path.exists() {
                std::fs::remove_file(&path).map_err(Error::file(&path))?;
            }
        }
    }
    let path = state_path(places, stage);
    let found = found(&path, stage, &identity)?;
    // Something is written at this step, and it is in its files.
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
        // Interrupted after this state was kept and before its result was complete.
        write(&state, task.as_ref(), listener)?;
    }
    let mut pace = Pace::default();
    while state.step < course.steps {
        let started = Instant::now();
        let advanced = state.advance((stage, plan, compute), &course, task.as_mut());
        if matches!(advanced, Err(Error::Cancelled)) {
            // Nothing has changed since the last step.
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
            // In this order: lines beyond the state are dropped when it is taken up, others would be missing.
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

/// What a stage's part of the plan says about its course.
pub fn course(stage: Stage, plan: &Plan) -> Course {
    match stage {
        Stage::Vae => plan.vae.course,
        Stage::Base => plan.base.course,
        Stage::Lora => plan.lora.course,
        Stage::Motion => plan.motion.course,
        Stage::Lcm => plan.lcm.course,
    }
}

fn state_path(places: &Places, stage: Stage) -> PathBuf {
    places.out.join("state").join(format!("{}.safetensors", stage.name()))
}

/// The parts of the plan that a stage depends on.
fn identity(stage: Stage, plan: &Plan) -> Result<String> {
    let own = match stage {
        Stage::Vae => json!(plan.vae),
        Stage::Base => json!(plan.base),
        Stage::Lora => json!(plan.lora),
        Stage::Motion => json!(plan.motion),
        Stage::Lcm => json!([plan.lcm, plan.motion.config, plan.lora.rank, plan.lora.alpha]),
    };
    let all = json!([plan.seed, plan.side, plan.frames, plan.data, own]);
    serde_json::to_string(&all).map_err(|e| Error::Encode { format: "json", reason: e.to_string() })
}

/// The step of a kept state, if there is one.
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
    step.map(Some).ok_or_else(|| Error::format(path, "does not say how far it is"))
}

/// Everything that changes while a stage runs.
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

    /// One step of the optimizer; the loss and the norm of the gradient.
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
            // In order, however they ran: the sum is the same, bit for bit, on any machine.
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
        // The average forgets the beginning sooner than it would by itself.
        let kept = course.average.min((self.step + 1) as f64 / (self.step + 11) as f64);
        move_towards(&mut self.average, &now(task.vars()), 1.0 - kept)?;
        self.step += 1;
        Ok((loss, norm))
    }

    /// The losses and gradients of some passes, side by side where there are several.
    fn passes(
        &self,
        stage: Stage,
        plan: &Plan,
        course: &Course,
        task: &dyn Task,
        passes: &[usize],
    ) -> Result<Vec<Result<(f64, Weights)>>> {
        let run = |pass: &usize| {
            // Random numbers belong to the pass, so that a run can go on anywhere.
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
        let kept = task.kept();
        for (mark, list) in [
            ("weight", &vars),
            ("first", &self.optimizer.first),
            ("second", &self.optimizer.second),
            ("average", &self.average),
            ("kept", &kept),
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

/// How many passes of a step run side by side: on the CPU one for each thread, since what a pass does in one thread
/// none of the others has to wait for.
pub(super) fn at_once(course: &Course, device: &Device) -> usize {
    if device.is_cpu() { course.accumulate.min(rayon::current_num_threads()).max(1) } else { 1 }
}

/// Threads for passes. A network's graph is walked by recursion, deeper than the usual stack.
fn threads() -> Result<&'static rayon::ThreadPool> {
    static POOL: OnceLock<std::result::Result<rayon::ThreadPool, String>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads());
        builder.stack_size(64 << 20).build().map_err(|e| e.to_string())
    });
    pool.as_ref().map_err(|reason| Error::request("train", format!("no threads: {reason}")))
}

/// The variables' values. They share its memory: what must not change with it has to be copied.
fn now(vars: &Vars) -> Weights {
    vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
}

/// Seconds a step over the last steps.
#[derive(Default)]
struct Pace(Option<f64>);

impl Pace {
    fn add(&mut self, seconds: f64) -> f64 {
        let now = self.0.map_or(seconds, |before| 0.95 * before + 0.05 * seconds);
        self.0 = Some(now);
        now
    }
}

/// The most bytes of `metrics.jsonl`: lines of many millions of steps.
const MOST_METRICS: u64 = 4 << 30;

/// `metrics.jsonl` and the curves made of it.
struct Notes {
    path: PathBuf,
    curves: PathBuf,
    lines: Vec<Metric>,
}

impl Notes {
    /// Those of other stages, and of this one up to `step`.
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
