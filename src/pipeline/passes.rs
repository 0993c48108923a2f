//! The passes of a run: how often a clip is sampled, and what each pass starts from.

use candle_core::Tensor;

use super::event::{Pace, record};
use super::inpaint::{Inpainted, Known};
use super::{Event, Observer, Pipeline, Prepared, channels_first, free_init};
use crate::Result;
use crate::request::Request;
use crate::rng::Noise;
use crate::sampler::{Denoiser, Plan, PlanSettings, Progress, Run};
use crate::schedule::NoiseSchedule;

/// What a run starts from, `(1, frames, channels, height, width)` in f32.
#[derive(Debug)]
pub(super) enum Start {
    /// Unit noise.
    Noise(Tensor),
    /// Latents at the plan's first noise level, and what is kept of them.
    Noised(Tensor, Option<Known>),
}

/// The plan of each of FreeInit's iterations; none without it.
pub(super) fn iterations(
    request: &Request,
    schedule: &NoiseSchedule,
    settings: &PlanSettings,
) -> Result<Vec<Plan>> {
    let Some(free_init) = &request.quality.free_init else { return Ok(vec![]) };
    let plan = |iteration| {
        let steps = free_init.steps(iteration, settings.steps);
        request.sampling.sampler.plan(schedule, &PlanSettings { steps, ..settings.clone() })
    };
    (0..free_init.iterations).map(plan).collect()
}

impl Prepared {
    /// The plan of each pass of this size.
    fn passes(&self) -> &[Plan] {
        if self.iterations.is_empty() { std::slice::from_ref(&self.plan) } else { &self.iterations }
    }

    /// The number of steps of all passes, those of a smaller clip before it included.
    pub fn steps(&self) -> usize {
        let before = self.first.as_ref().map_or(0, |first| first.steps());
        before + self.passes().iter().map(|plan| plan.steps.len()).sum::<usize>()
    }
}

impl Pipeline {
    /// The clean latents that the passes of one size come to.
    pub(super) fn sample(
        &self,
        prepared: &Prepared,
        (denoiser, noise): (&mut dyn Denoiser, &mut Noise),
        start: &Start,
        tally: &mut Tally,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let (first, mut x, known) = match start {
            Start::Noise(unit) => (Some(unit), unit.clone(), None),
            Start::Noised(x, known) => (None, x.clone(), known.as_ref()),
        };
        let mut denoiser = Inpainted { inner: denoiser, known };
        for (i, plan) in prepared.passes().iter().enumerate() {
            if let Some(pass) = tally.next_pass() {
                observer.event(pass)?;
            }
            if let (Some(first), Some(free_init)) = (first, &prepared.request.quality.free_init)
                && i > 0
            {
                let schedule = &prepared.schedule;
                let noised = schedule.level(schedule.train_steps() - 1)?.add_noise(&x, first)?;
                x = free_init::mixed(&noised, &noise.like(first)?, free_init)?;
            }
            if first.is_some() {
                x = (x * plan.initial_scale)?;
            }
            let previewed = (self, prepared);
            let mut told = Told { known, previewed, tally: &mut *tally, observer: &mut *observer };
            let mut watch = |progress: Progress<'_>| told.step(progress);
            let mut run =
                Run::new(&mut denoiser, &plan.steps, &mut *noise).with_observer(&mut watch);
            x = match &self.own_sampler {
                Some(sampler) => sampler.sample(&mut run, x)?,
                None => prepared.request.sampling.sampler.build().sample(&mut run, x)?,
            };
            if let Some(known) = known {
                x = known.finished(&x)?;
            }
            tally.done += plan.steps.len();
            record(observer, &format!("latents.{}", tally.done - 1), || channels_first(&x))?;
        }
        Ok(x)
    }
}

/// How far the passes of a run are. Their steps are counted as one sequence.
#[derive(Debug)]
pub(super) struct Tally {
    /// Passes that began, and all.
    passes: (usize, usize),
    /// Steps of the passes before.
    done: usize,
    steps: usize,
    pace: Pace,
}

impl Tally {
    /// Nothing is done yet of runs that follow each other.
    pub(super) fn of(runs: &[&Prepared]) -> Self {
        let plans = || runs.iter().flat_map(|run| run.passes());
        let steps = plans().map(|plan| plan.steps.len()).sum();
        Self { passes: (0, plans().count()), done: 0, steps, pace: Pace::start() }
    }

    /// The event of the pass that begins, where there are several.
    fn next_pass(&mut self) -> Option<Event> {
        self.passes.0 += 1;
        let (pass, passes) = self.passes;
        (passes > 1).then_some(Event::Pass { pass, passes })
    }
}

/// The steps of a pass on their way to an observer.
struct Told<'a> {
    known: Option<&'a Known>,
    /// What makes previews.
    previewed: (&'a Pipeline, &'a Prepared),
    tally: &'a mut Tally,
    observer: &'a mut dyn Observer,
}

impl Told<'_> {
    fn step(&mut self, progress: Progress<'_>) -> Result<()> {
        let Tally { done, steps, pace, .. } = &mut *self.tally;
        let (step, steps) = (*done + progress.step, *steps);
        let kept = self.known.map(|known| known.noised(progress.x, progress.at)).transpose()?;
        let progress = Progress { x: kept.as_ref().unwrap_or(progress.x), ..progress };
        // A step begins with the latents that the step before it made.
        if progress.step > 0 {
            let name = format!("latents.{}", step - 1);
            record(self.observer, &name, || channels_first(progress.x))?;
        }
        self.observer.step(&Progress { step, steps, ..progress })?;
        if self.observer.wants_previews() {
            let (pipeline, prepared) = self.previewed;
            let preview = pipeline.preview(prepared, progress.denoised, (step + 1, steps))?;
            self.observer.event(preview)?;
        }
        let (seconds, eta_seconds) = pace.lap(step + 1, steps);
        let timestep = progress.at.timestep;
        self.observer.event(Event::Step { step: step + 1, steps, timestep, seconds, eta_seconds })
    }
}
