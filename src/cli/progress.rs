//! Shows how far a run is: a bar, lines, or JSON events.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::flags::{ProgressMode, Reporting};
use super::terminal::{escaped, line};
use super::tune;
use crate::error::Bytes;
use crate::pipeline::{Event, Observer};
use crate::{Result, Stop};

/// The display of progress.
#[derive(Debug)]
enum View {
    Bar(ProgressBar),
    Lines,
    Json,
    Silent,
}

/// Shows a run, and stops it on Ctrl-C.
#[derive(Debug)]
pub(super) struct Progress {
    view: View,
    verbose: bool,
    stop: Stop,
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
        Self { view, verbose: reporting.verbose, stop: stop.clone() }
    }

    /// A line for people.
    fn note(&self, text: &str) {
        match &self.view {
            View::Bar(bar) => bar.suspend(|| line(text)),
            View::Lines => line(text),
            View::Json | View::Silent => {}
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

    fn show(&self, event: &Event) {
        match event {
            Event::Start { .. } => self.note(&describe(event)),
            Event::Adapter { report } if self.verbose => self.note(&report.to_string()),
            Event::Load { part, bytes } => match &self.view {
                View::Bar(bar) => bar.set_message(escaped(&format!("loading {part}")).into_owned()),
                _ => self.note(&format!("loading {part}, {}", Bytes(*bytes))),
            },
            Event::Report { report } if self.verbose => self.note(&report.to_string()),
            Event::Warning { message } => self.note(&format!("warning: {message}")),
            Event::Step { step, steps, seconds, eta_seconds, .. } => match &self.view {
                View::Bar(bar) => Self::show_bar(bar, "step", *step, *steps),
                _ => self.note(&format!(
                    "step {step}/{steps}, {seconds:.2} s, {eta_seconds:.1} s to go"
                )),
            },
            Event::Decode { frame, frames } => match &self.view {
                View::Bar(bar) => Self::show_bar(bar, "decode", *frame, *frames),
                _ if frame == frames => self.note(&format!("decoded {frames} frames")),
                _ => {}
            },
            Event::Encode { format } => {
                if let View::Bar(bar) = &self.view {
                    bar.set_message(format!("encoding {format}"));
                }
            }
            Event::Done(done) => {
                let sampling: f64 = done.step_seconds.iter().sum();
                let rate = done.step_seconds.len() as f64 / sampling.max(1e-9);
                self.note(&format!("done in {:.1} s, {rate:.2} steps/s", done.seconds));
            }
            _ => {}
        }
    }
}

/// The line printed before the work: what will happen, and the seed.
fn describe(start: &Event) -> String {
    let Event::Start { model, width, height, frames, steps, sampler, seed, device, dtype } = start
    else {
        return String::new();
    };
    let model = match model {
        Some(model) => model,
        None => "the small model inside the program, which knows coloured shapes; see --model",
    };
    format!(
        "{frames} frames of {width}x{height}, {steps} steps of {sampler}, seed {seed}, {device} {dtype}, {model}"
    )
}

impl Observer for Progress {
    fn event(&mut self, event: Event) -> Result<()> {
        if matches!(event, Event::Ready) {
            tune::keep_freed_memory();
        }
        match self.view {
            View::Json => line(&event.to_json()),
            View::Silent => {}
            View::Bar(_) | View::Lines => self.show(&event),
        }
        self.stop.check()
    }
}
