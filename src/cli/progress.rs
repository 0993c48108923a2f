//! Shows how far a run is: a bar, lines, or JSON events.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::args::{ProgressMode, Reporting};
use super::terminal::{escaped, line};
use super::tune;
use crate::error::Bytes;
use crate::pipeline::{Event, Listener};
use crate::{Result, Stop};

/// How progress is shown.
#[derive(Debug)]
enum View {
    Bar(ProgressBar),
    Lines,
    Json,
    Silent,
}

/// Listens to a run, shows it, takes times, and stops it on Ctrl-C.
#[derive(Debug)]
pub(super) struct Progress {
    view: View,
    verbose: bool,
    stop: Stop,
    started: Instant,
    step_started: Instant,
    pub(super) steps: Vec<Duration>,
}

impl Progress {
    pub(super) fn new(reporting: &Reporting, stop: &Stop) -> Self {
        let bar = || {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            View::Bar(bar)
        };
        let view = match reporting.progress {
            ProgressMode::Json => View::Json,
            _ if reporting.quiet => View::Silent,
            ProgressMode::None => View::Silent,
            ProgressMode::Bar => bar(),
            ProgressMode::Auto if std::io::stderr().is_terminal() => bar(),
            ProgressMode::Auto => View::Lines,
        };
        let now = Instant::now();
        Self {
            view,
            verbose: reporting.verbose,
            stop: stop.clone(),
            started: now,
            step_started: now,
            steps: vec![],
        }
    }

    /// Seconds since the run began.
    pub(super) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Something to know that is not an event of the pipeline.
    pub(super) fn note(&self, text: &str) {
        match &self.view {
            View::Bar(bar) => bar.suspend(|| line(text)),
            View::Lines => line(text),
            View::Json | View::Silent => {}
        }
    }

    /// Something that only `--verbose` shows.
    pub(super) fn detail(&self, report: &impl std::fmt::Display) {
        if self.verbose {
            self.note(&report.to_string());
        }
    }

    /// An event that only programs want.
    pub(super) fn emit(&self, event: &serde_json::Value) {
        if matches!(self.view, View::Json) {
            line(&event.to_string());
        }
    }

    /// The encoder is writing what is left.
    pub(super) fn encoding(&self, format: &str) {
        self.emit(&json!({"event": "encode", "format": format}));
        if let View::Bar(bar) = &self.view {
            bar.set_message(format!("encoding {format}"));
        }
    }

    /// The run is over, well or not.
    pub(super) fn finish(&self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }

    fn show_bar(bar: &ProgressBar, what: &str, at: usize, of: usize) {
        if bar.length() != Some(of as u64) || bar.message() != what {
            // `with_template` fails only on a template that is wrong, and then the default will do.
            let style = ProgressStyle::with_template("{msg:>8} {wide_bar} {pos}/{len} eta {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.reset();
            bar.set_length(of as u64);
            bar.set_message(what.to_owned());
        }
        bar.set_position(at as u64);
    }

    fn step(&mut self, step: usize, steps: usize, timestep: f64) {
        let took = self.step_started.elapsed();
        self.step_started = Instant::now();
        self.steps.push(took);
        let mean = self.steps.iter().sum::<Duration>().as_secs_f64() / self.steps.len() as f64;
        let eta = mean * (steps - step) as f64;
        match &self.view {
            View::Bar(bar) => Self::show_bar(bar, "step", step, steps),
            View::Lines => {
                let seconds = took.as_secs_f64();
                line(&format!("step {step}/{steps}, {seconds:.2} s, {eta:.1} s to go"));
            }
            View::Json => line(
                &json!({
                    "event": "step", "step": step, "steps": steps, "timestep": timestep,
                    "seconds": took.as_secs_f64(), "eta_seconds": eta,
                })
                .to_string(),
            ),
            View::Silent => {}
        }
    }
}

impl Listener for Progress {
    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Load { part, bytes } => match &self.view {
                View::Bar(bar) => bar.set_message(escaped(&format!("loading {part}")).into_owned()),
                View::Lines => line(&format!("loading {part}, {}", Bytes(bytes))),
                View::Json => {
                    line(&json!({"event": "load", "part": part, "bytes": bytes}).to_string());
                }
                View::Silent => {}
            },
            Event::Report { report } => self.detail(&report),
            Event::Loaded => {
                tune::keep_freed_memory();
                self.step_started = Instant::now();
            }
            Event::Warning { message } => {
                self.emit(&json!({"event": "warning", "message": message}));
                self.note(&format!("warning: {message}"));
            }
            Event::Step { step, steps, timestep } => self.step(step, steps, timestep),
            Event::Decode { frame, frames } => match &self.view {
                View::Bar(bar) => Self::show_bar(bar, "decode", frame, frames),
                View::Lines if frame == frames => line(&format!("decoded {frames} frames")),
                View::Json => {
                    let event = json!({"event": "decode", "frame": frame, "frames": frames});
                    line(&event.to_string());
                }
                View::Lines | View::Silent => {}
            },
        }
        self.stop.check()
    }
}
