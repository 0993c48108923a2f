//! Shows how far a run is: a bar, lines, or JSON events.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

use super::flags::{ProgressMode, Reporting};
use super::preview::Preview;
use super::terminal::{escaped, line};
use super::tune;
use crate::error::Bytes;
use crate::pipeline::{self, Event, Observer};
use crate::{Result, Stop};

/// What the bar says while steps are made.
const DENOISING: &str = "denoising";

/// The network for hints of depth, in events.
const DEPTH: &str = "depth-anything";

/// The display of progress.
#[derive(Debug)]
enum View {
    Bar(Bar),
    Lines,
    Json,
    Silent,
}

/// A line on a terminal that says what is done right now, and moves while it is done.
#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    clock: Arc<Mutex<Clock>>,
    /// What stands before all that is said.
    before: String,
}

/// The times of the current phase.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// When it began.
    since: Instant,
    /// Seconds that it takes from a moment on.
    left: Option<(Instant, f64)>,
}

impl Clock {
    /// Seconds since the phase began, and those to go.
    fn text(&self, now: Instant) -> String {
        let since = now.saturating_duration_since(self.since).as_secs();
        let left = self.left.map(|(at, seconds)| {
            let passed = now.saturating_duration_since(at).as_secs_f64();
            format!(", {:.0} s to go", (seconds - passed).max(0.0))
        });
        format!("{since} s{}", left.unwrap_or_default())
    }
}

impl Bar {
    /// How often it is drawn, at least.
    const TICK: Duration = Duration::from_millis(200);

    fn new(target: ProgressDrawTarget) -> Self {
        let clock = Clock { since: Instant::now(), left: None };
        let bar = ProgressBar::with_draw_target(None, target);
        Self { bar, clock: Arc::new(Mutex::new(clock)), before: String::new() }
    }

    fn clock(&self, change: impl FnOnce(&mut Clock)) {
        change(&mut self.clock.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Something begins, of so many parts if it has any.
    fn begin(&self, what: &str, parts: Option<usize>) {
        let template = match parts {
            Some(_) => "{spinner} {msg} {wide_bar} {pos}/{len}  {time}",
            None => "{spinner} {msg}  {time}",
        };
        let clock = Arc::clone(&self.clock);
        let time = move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
            let clock = *clock.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody can be told.
            let _ = out.write_str(&clock.text(Instant::now()));
        };
        self.clock(|clock| *clock = Clock { since: Instant::now(), left: None });
        // `with_template` fails only on a template that is wrong, and then the default will do.
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar.set_style(style.with_key("time", time));
        match parts {
            Some(parts) => self.bar.set_length(parts as u64),
            None => self.bar.unset_length(),
        }
        self.bar.set_position(0);
        self.bar.set_message(format!("{}{what}", self.before));
    }

    /// So many parts are done, and the rest takes so many seconds.
    fn reach(&self, done: usize, seconds: f64) {
        self.clock(|clock| clock.left = Some((Instant::now(), seconds)));
        self.bar.set_position(done as u64);
    }

    /// Seconds that the rest takes at the mean pace of the phase.
    fn rest(&self, done: usize, parts: usize) -> f64 {
        let mut since = Instant::now();
        self.clock(|clock| since = clock.since);
        let mean = since.elapsed().as_secs_f64() / done.max(1) as f64;
        mean * parts.saturating_sub(done) as f64
    }
}

/// Shows a run, and stops it on Ctrl-C.
#[derive(Debug)]
pub(super) struct Progress {
    view: View,
    verbose: bool,
    stop: Stop,
    /// Steps and frames of the clip.
    counts: (usize, usize),
    /// Which of many clips it is, and their number.
    item: Option<(usize, usize)>,
    /// The part that was loaded last.
    part: &'static str,
    /// Warnings that were shown: those of one clip are often those of the next.
    warned: BTreeSet<String>,
    /// The terminal's previews, if they are wanted.
    screen: Option<Preview>,
    /// Whether a preview is the last thing above the cursor, to be drawn over.
    is_drawn: bool,
}

impl Progress {
    pub(super) fn new(reporting: &Reporting, stop: &Stop) -> Self {
        let bar = || View::Bar(Bar::new(ProgressDrawTarget::stderr()));
        let view = match reporting.progress {
            ProgressMode::Json => View::Json,
            _ if reporting.quiet => View::Silent,
            ProgressMode::None => View::Silent,
            ProgressMode::Bar => bar(),
            ProgressMode::Auto if std::io::stderr().is_terminal() => bar(),
            ProgressMode::Auto => View::Lines,
        };
        let (verbose, stop) = (reporting.verbose, stop.clone());
        let (counts, warned) = ((0, 0), BTreeSet::new());
        Self {
            view,
            verbose,
            stop,
            counts,
            item: None,
            part: "",
            warned,
            screen: None,
            is_drawn: false,
        }
    }

    /// What follows is of one of many clips, counted from 1.
    pub(super) fn item(&mut self, item: usize, items: usize) {
        self.item = Some((item, items));
        if let View::Bar(bar) = &mut self.view {
            bar.before = format!("{item}/{items} ");
        }
    }

    /// Draws the clip after every step, unless lines or JSON go to the same place.
    #[must_use]
    pub(super) fn on(self, screen: Option<Preview>) -> Self {
        let is_free = matches!(self.view, View::Bar(_) | View::Silent);
        Self { screen: screen.filter(|_| is_free), ..self }
    }

    /// The flag that stops the runs that are shown.
    pub(super) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// A job begins; its first event comes when its files are open.
    pub(super) fn start(&self) {
        if let View::Bar(bar) = &self.view {
            bar.bar.reset();
            bar.begin("opening files", None);
            bar.bar.enable_steady_tick(Bar::TICK);
        }
    }

    /// A line for people.
    fn note(&mut self, text: &str) {
        // Lines stand below what was drawn, and the next preview below them.
        self.is_drawn = false;
        match &self.view {
            View::Bar(bar) => bar.bar.suspend(|| line(text)),
            View::Lines => line(text),
            View::Json | View::Silent => {}
        }
    }

    /// The run is over, well or not.
    pub(super) fn finish(&mut self) {
        self.erase();
        if let View::Bar(bar) = &self.view {
            bar.bar.finish_and_clear();
        }
    }

    /// Draws a preview; the last one is left out, because the clip follows.
    fn draw(&mut self, preview: &pipeline::Preview) -> Result<()> {
        let Some(screen) = self.screen.filter(|_| preview.step < preview.steps) else {
            return Ok(());
        };
        let is_first = !std::mem::replace(&mut self.is_drawn, true);
        let stop = self.stop.clone();
        self.above(|| screen.step(preview, is_first, &stop))
    }

    /// Removes the preview that was drawn last.
    fn erase(&mut self) {
        let is_drawn = std::mem::take(&mut self.is_drawn);
        if let Some(screen) = self.screen.filter(|_| is_drawn) {
            self.above(|| screen.erase());
        }
    }

    /// Draws while the bar is away.
    fn above<T>(&self, draw: impl FnOnce() -> T) -> T {
        match &self.view {
            View::Bar(bar) => bar.bar.suspend(draw),
            _ => draw(),
        }
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Start { steps, frames, .. } => {
                self.counts = (*steps, *frames);
                self.note(&describe(event));
            }
            Event::Adapter { report } if self.verbose => self.note(&report.to_string()),
            Event::Load { part, bytes } if matches!(self.view, View::Lines) => {
                self.note(&format!("loading {part}, {}", Bytes(*bytes)));
            }
            Event::Load { part, .. } => self.part = part,
            Event::Source { part, frame, frames }
                if *frame > 0 && matches!(self.view, View::Lines) && is_told(*frame, *frames) =>
            {
                self.note(&match *part {
                    DEPTH => format!("estimated the depth of {frame}/{frames}"),
                    part => format!("encoded {frame}/{frames} of the source by {part}"),
                });
            }
            Event::Pass { pass, passes } if matches!(self.view, View::Lines) => {
                self.note(&format!("pass {pass}/{passes}"));
            }
            Event::Report { report } if self.verbose => self.note(&report.to_string()),
            Event::Warning { message } if self.warned.insert(message.clone()) => {
                self.note(&format!("warning: {message}"));
            }
            Event::Caption { prompt } => self.note(&format!("caption: {prompt}")),
            Event::Step { step, steps, seconds, eta_seconds, .. }
                if matches!(self.view, View::Lines) =>
            {
                self.note(&format!(
                    "step {step}/{steps}, {seconds:.2} s, {eta_seconds:.1} s to go"
                ));
            }
            Event::Decode { frame, frames }
                if frame == frames && matches!(self.view, View::Lines) =>
            {
                self.note(&format!("decoded {frames} frames"));
            }
            Event::Done(done) => {
                let sampling: f64 = done.step_seconds.iter().sum();
                let rate = done.step_seconds.len() as f64 / sampling.max(1e-9);
                self.note(&format!("done in {:.1} s, {rate:.2} steps/s", done.seconds));
            }
            _ => {}
        }
        if let View::Bar(bar) = &self.view {
            draw(bar, event, self.counts, self.part);
        }
    }
}

/// An event as JSON, with the item that it is of.
fn json(event: &Event, item: Option<(usize, usize)>) -> String {
    #[derive(Serialize)]
    struct OfItem<'a> {
        #[serde(flatten)]
        event: &'a Event,
        item: usize,
        items: usize,
    }
    let Some((item, items)) = item else { return event.to_json() };
    // Texts and finite numbers: nothing that JSON lacks.
    serde_json::to_string(&OfItem { event, item, items }).unwrap_or_default()
}

/// Whether a frame of a source is told in lines: every 16th, and the last.
fn is_told(frame: usize, frames: usize) -> bool {
    frame == frames || frame.is_multiple_of(16)
}

/// Shows what happens from an event on.
fn draw(bar: &Bar, event: &Event, (steps, frames): (usize, usize), part: &str) {
    match event {
        Event::Start { .. } => bar.begin("preparing", None),
        Event::Load { part, bytes } => {
            let text = format!("loading {part}, {}", Bytes(*bytes));
            bar.begin(&escaped(&text), None);
        }
        // What comes between two parts is what the first of them was loaded for.
        Event::Report { .. } => {
            let what = match part {
                "text" => "encoding the prompts",
                "vae-encoder" => "encoding the hints",
                "image-encoder" | "ip-adapter" | "i2v-encoder" => "encoding the images",
                _ => "preparing",
            };
            bar.begin(what, None);
        }
        Event::Source { part, frame: 0, frames } => {
            let what = if *part == DEPTH { "estimating the depth" } else { "encoding the source" };
            bar.begin(what, Some(*frames));
        }
        Event::Source { frame, frames, .. } => bar.reach(*frame, bar.rest(*frame, *frames)),
        Event::Ready => bar.begin(DENOISING, Some(steps)),
        Event::Step { step, steps, .. } if step == steps => {
            bar.begin("decoding", Some(frames));
        }
        Event::Step { step, steps, eta_seconds, .. } => {
            // A second pass from pixels loads and encodes between two steps.
            if bar.bar.message() != DENOISING {
                bar.begin(DENOISING, Some(*steps));
            }
            bar.reach(*step, *eta_seconds);
        }
        Event::Decode { frame, frames } => bar.reach(*frame, bar.rest(*frame, *frames)),
        Event::Encode { format } => bar.begin(&format!("writing the {format}"), None),
        _ => {}
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
        match &event {
            Event::Preview(preview) => self.draw(preview)?,
            Event::Encode { .. } => self.erase(),
            _ => {}
        }
        match self.view {
            View::Json => line(&json(&event, self.item)),
            View::Silent => {}
            View::Bar(_) | View::Lines => self.show(&event),
        }
        Ok(self.stop.check()?)
    }

    fn wants_previews(&self) -> bool {
        self.screen.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_counts_down_to_the_end_of_the_phase() {
        let since = Instant::now();
        let after = |seconds: f64| since + Duration::from_secs_f64(seconds);
        let mut clock = Clock { since, left: None };
        assert_eq!(clock.text(after(3.9)), "3 s");
        clock.left = Some((after(4.0), 12.0));
        assert_eq!(clock.text(after(4.0)), "4 s, 12 s to go");
        assert_eq!(clock.text(after(9.0)), "9 s, 7 s to go");
        assert_eq!(clock.text(after(90.0)), "90 s, 0 s to go");
    }

    #[test]
    fn the_bar_says_what_is_done_and_when_it_ends() {
        let bar = Bar::new(ProgressDrawTarget::hidden());
        let (ticking, shown) = (
            Bar { bar: bar.bar.clone(), clock: Arc::clone(&bar.clock), before: "2/3 ".into() },
            bar,
        );
        let mut progress = Progress {
            view: View::Bar(ticking),
            verbose: false,
            stop: Stop::default(),
            counts: (4, 2),
            item: None,
            part: "",
            warned: BTreeSet::new(),
            screen: None,
            is_drawn: false,
        };
        let mut after = |event: Option<Event>| {
            match event {
                Some(event) => progress.event(event).unwrap(),
                None => progress.start(),
            }
            let bar = &shown.bar;
            (bar.message(), bar.position(), bar.length())
        };
        let load = |part, bytes| Some(Event::Load { part, bytes });
        let step = |step, eta_seconds| {
            Some(Event::Step { step, steps: 4, timestep: 1.0, seconds: 5.0, eta_seconds })
        };
        assert_eq!(after(None), ("2/3 opening files".into(), 0, None));
        assert_eq!(after(load("unet", 3 << 30)), ("2/3 loading unet, 3.0 GiB".into(), 0, None));
        let source = |frame| Some(Event::Source { part: "vae-encoder", frame, frames: 9 });
        assert_eq!(after(source(0)), ("2/3 encoding the source".into(), 0, Some(9)));
        assert_eq!(after(source(5)), ("2/3 encoding the source".into(), 5, Some(9)));
        assert_eq!(after(Some(Event::Ready)), ("2/3 denoising".into(), 0, Some(4)));
        assert_eq!(after(source(0)), ("2/3 encoding the source".into(), 0, Some(9)));
        assert_eq!(after(step(1, 15.0)), ("2/3 denoising".into(), 1, Some(4)));
        // The same number as in the lines.
        let clock = *shown.clock.lock().unwrap();
        assert_eq!(clock.left.unwrap().1, 15.0);
        assert!(shown.bar.elapsed() < Duration::from_secs(60));
        assert_eq!(after(step(4, 0.0)), ("2/3 decoding".into(), 0, Some(2)));
        let decode = Some(Event::Decode { frame: 1, frames: 2 });
        assert_eq!(after(decode), ("2/3 decoding".into(), 1, Some(2)));
        let encode = Some(Event::Encode { format: "gif" });
        assert_eq!(after(encode), ("2/3 writing the gif".into(), 0, None));
    }
}
