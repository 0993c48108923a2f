//! A clip in the terminal, while it is made and finished, or in the viewer of the system.

use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::{inline, terminal};
use crate::media::read::{self, Selection};
use crate::media::resize::{Fit, resize};
use crate::media::{RgbImage, row};
use crate::output::{self, ClipInfo, Format, Metadata};
use crate::pipeline::{self, Done};
use crate::{Error, Result, Stop};

/// The place of a clip's previews: the terminal or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PreviewTo {
    /// In the terminal, where the finished clip is shown, too.
    Terminal(Protocol),
    /// In an animation.
    File(PathBuf),
}

impl FromStr for PreviewTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Terminal(Protocol::Auto));
        }
        if let Ok(protocol) = Protocol::from_str(text, true) {
            return Ok(Self::Terminal(protocol));
        }
        match Path::new(text).extension() {
            Some(_) => Ok(Self::File(text.into())),
            None => {
                Err("neither a file (.gif, .webp, .png) nor -, kitty, iterm2, sixel or blocks"
                    .into())
            }
        }
    }
}

/// How a terminal shows images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    /// By what the terminal says it is.
    #[default]
    Auto,
    /// kitty's graphics protocol, animated.
    Kitty,
    /// iTerm2's inline images, animated.
    Iterm2,
    /// Sixels, the first frame.
    Sixel,
    /// Half blocks in 24-bit colours; the clip is played once.
    Blocks,
}

/// The longest side of a frame that is sent to a terminal, in pixels.
const SIDE: u32 = 256;

/// The most frames that are sent to a terminal.
const FRAMES: usize = 32;

/// Text lines of an image, if the terminal has as many.
const ROWS: usize = 16;

/// The most frames that are shown side by side.
const COLUMNS: usize = 4;

/// A terminal that a clip can be shown in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preview {
    protocol: Protocol,
    columns: usize,
    rows: usize,
}

impl Preview {
    /// Finds out how the terminal on stderr shows images. stdout is for the result.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when it is no terminal, or shows none.
    pub(super) fn new(protocol: Protocol) -> Result<Self> {
        let none = |reason: &str| {
            Err(Error::request("preview", reason.to_owned())
                .with_hint("--open shows the clip in another program"))
        };
        if !std::io::stderr().is_terminal() {
            return none("needs a terminal, standard error is none");
        }
        let variable = |name: &str| std::env::var(name).ok();
        let Some(protocol) = choose(protocol, &variable) else {
            return none("the terminal (TERM=dumb) shows no colours");
        };
        let size = terminal_size::terminal_size_of(std::io::stderr());
        let (columns, rows) = size.map_or((80, 24), |(w, h)| (w.0.into(), h.0.into()));
        Ok(Self { protocol, columns, rows })
    }

    /// Shows a finished clip.
    ///
    /// # Errors
    ///
    /// When its file cannot be read, or on a stop.
    pub(super) fn show(&self, path: &Path, done: &Done, stop: &Stop) -> Result<()> {
        let every = match self.protocol {
            // Frames are played, not sent at once.
            Protocol::Blocks => 1,
            _ => done.frames.div_ceil(FRAMES).max(1),
        };
        let frames = self.frames(path, done.frames, every, stop)?;
        let rate = done.fps / every as f64;
        let gap = (1000.0 / rate).round() as u32;
        let rows = self.lines();
        match self.protocol {
            Protocol::Kitty => {
                let text = inline::kitty(&frames, gap, rows, kitty_id());
                terminal::draw(&text);
            }
            Protocol::Iterm2 => terminal::draw(&inline::iterm2(&gif(&frames, rate, stop)?, rows)),
            Protocol::Sixel => {
                if let Some(frame) = frames.first() {
                    terminal::draw(&inline::sixel(frame));
                }
            }
            Protocol::Auto | Protocol::Blocks => play(&frames, rate, stop)?,
        }
        Ok(())
    }

    /// Text lines of an image.
    fn lines(&self) -> usize {
        ROWS.min(self.rows.saturating_sub(2)).max(1)
    }

    /// Draws what a clip looks like after a step, over what was drawn before. What cannot be animated is a row of frames.
    ///
    /// # Errors
    ///
    /// When an encoder fails, or on a stop.
    pub(super) fn step(
        &self,
        preview: &pipeline::Preview,
        is_first: bool,
        stop: &Stop,
    ) -> Result<()> {
        let lines = self.lines();
        let frames = &preview.images;
        let image = match self.protocol {
            Protocol::Kitty => {
                let gap = (1000.0 / preview.fps).round() as u32;
                inline::kitty(frames, gap, lines, kitty_id())
            }
            Protocol::Iterm2 => inline::iterm2(&gif(frames, preview.fps, stop)?, lines),
            Protocol::Sixel => inline::sixel(&self.strip(frames, SIXEL_CELL, stop)?),
            Protocol::Auto | Protocol::Blocks => {
                inline::half_blocks(&self.strip(frames, (1, 2), stop)?)
            }
        };
        // Room below, so that nothing scrolls when the cursor is put back.
        let room = if is_first { "\n".repeat(lines) } else { String::new() };
        terminal::draw(&format!("{room}\x1b[{lines}A\r\x1b7\x1b[J{image}\x1b8\x1b[{lines}B"));
        Ok(())
    }

    /// Removes what was drawn last.
    pub(super) fn erase(&self) {
        let image = match self.protocol {
            Protocol::Kitty => format!("\x1b_Ga=d,d=I,i={},q=2\x1b\\", kitty_id()),
            _ => String::new(),
        };
        terminal::draw(&format!("{image}\x1b[{}A\r\x1b[J", self.lines()));
    }

    /// Some of the frames side by side, as large as the lines and columns of an image, whose characters have so many
    /// pixels.
    fn strip(&self, frames: &[RgbImage], cell: (u32, u32), stop: &Stop) -> Result<RgbImage> {
        let strip = row(frames, COLUMNS);
        let (width, height) = strip.dimensions();
        let ratio = |most: usize, cell: u32, side: u32| {
            (most as u32 * cell) as f64 / f64::from(side.max(1))
        };
        let scale = ratio(self.columns, cell.0, width).min(ratio(self.lines(), cell.1, height));
        let side = |side: u32| ((f64::from(side) * scale).floor() as u32).max(1);
        resize(&strip, side(width), side(height), Fit::Stretch, stop)
    }

    /// Frames of a clip in the size that the terminal shows.
    fn frames(
        &self,
        path: &Path,
        count: usize,
        every: usize,
        stop: &Stop,
    ) -> Result<Vec<RgbImage>> {
        let selection = Selection { every, ..Selection::default() };
        let mut frames = Vec::new();
        for (i, file) in output::files(path, count)?.iter().enumerate() {
            let is_series = i > 0 || file != path;
            if is_series && i % every != 0 {
                continue;
            }
            let selection = if is_series { Selection::default() } else { selection };
            let read = read::frames("preview", file, selection, stop)?.images;
            for frame in &read {
                let (width, height) = self.size(frame.dimensions());
                frames.push(resize(frame, width, height, Fit::Stretch, stop)?);
            }
        }
        Ok(frames)
    }

    /// The size that a frame is shown in: small ones in sixels are enlarged, what does not fit is shrunk.
    fn size(&self, (width, height): (u32, u32)) -> (u32, u32) {
        let (most_width, most_height) = match self.protocol {
            Protocol::Auto | Protocol::Blocks => {
                (self.columns as u32, self.rows.saturating_sub(2).max(1) as u32 * 2)
            }
            _ => (SIDE, SIDE),
        };
        let ratio = |most: u32, side: u32| f64::from(most.max(1)) / f64::from(side.max(1));
        let mut scale = ratio(most_width, width).min(ratio(most_height, height));
        scale = match self.protocol {
            Protocol::Sixel if scale >= 1.0 => scale.floor(),
            _ => scale.min(1.0),
        };
        let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        (side(width), side(height))
    }
}

/// Pixels of a character, at least: terminals do not say how many.
const SIXEL_CELL: (u32, u32) = (5, 10);

/// The number of this process's image in kitty's protocol.
fn kitty_id() -> u32 {
    std::process::id().max(1)
}

/// The protocol of a terminal that describes itself by these variables; `None` if it has no colours.
fn choose(asked: Protocol, variable: &dyn Fn(&str) -> Option<String>) -> Option<Protocol> {
    let value = |name: &str| variable(name).unwrap_or_default().to_lowercase();
    if asked != Protocol::Auto {
        return Some(asked);
    }
    let (term, program) = (value("TERM"), value("TERM_PROGRAM"));
    let is = |name: &str| !value(name).is_empty();
    if term == "dumb" {
        return None;
    }
    // Multiplexers keep what they do not know from the terminal, but hand its variables on.
    let is_inside =
        is("TMUX") || is("STY") || term.starts_with("screen") || term.starts_with("tmux");
    let is_iterm2 = ["iterm.app", "wezterm", "mintty"].contains(&program.as_str())
        || value("LC_TERMINAL") == "iterm2";
    Some(if is_inside {
        Protocol::Blocks
    } else if is("KITTY_WINDOW_ID") || term.contains("kitty") || program == "ghostty" {
        Protocol::Kitty
    } else if is_iterm2 && Format::Gif.is_available() {
        Protocol::Iterm2
    } else if is("KONSOLE_VERSION") {
        Protocol::Kitty
    } else if term.contains("sixel") || term.starts_with("foot") || term.starts_with("mlterm") {
        Protocol::Sixel
    } else {
        Protocol::Blocks
    })
}

/// Plays frames once, over each other.
fn play(frames: &[RgbImage], rate: f64, stop: &Stop) -> Result<()> {
    let started = Instant::now();
    for (i, frame) in frames.iter().enumerate() {
        let due = Duration::from_secs_f64(i as f64 / rate.max(0.1));
        while let Some(left) = due.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
            stop.check()?;
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        stop.check()?;
        let back = match i {
            0 => String::new(),
            _ => format!("\x1b[{}A\r", frame.height().div_ceil(2)),
        };
        terminal::draw(&(back + &inline::half_blocks(frame)));
    }
    Ok(())
}

/// Frames as a GIF, in memory.
fn gif(frames: &[RgbImage], rate: f64, stop: &Stop) -> Result<Vec<u8>> {
    let (width, height) = frames.first().map_or((1, 1), RgbImage::dimensions);
    let clip = ClipInfo { width, height, frames: frames.len(), fps: rate.clamp(0.1, 50.0) };
    let unusable = |error| Error::file("preview.gif")(error);
    let file = tempfile::tempfile().map_err(unusable)?;
    let mut copy = file.try_clone().map_err(unusable)?;
    let mut sink = output::to_writer(Format::Gif, file, &clip, &Metadata::default(), stop)?;
    for frame in frames {
        sink.frame(frame)?;
    }
    sink.finish()?;
    let mut bytes = Vec::new();
    copy.seek(SeekFrom::Start(0)).map_err(unusable)?;
    copy.read_to_end(&mut bytes).map_err(unusable)?;
    Ok(bytes)
}

/// Opens a finished clip in the system's viewer, and returns why it could not.
pub(super) fn open(path: &Path) -> Option<String> {
    let first = output::files(path, 1).ok()?.into_iter().next()?;
    // A viewer would take a name that begins with a dash for an option.
    let file: PathBuf = first.canonicalize().unwrap_or(first);
    let viewer = if cfg!(target_os = "macos") {
        "open"
    } else if cfg!(windows) {
        "explorer"
    } else {
        "xdg-open"
    };
    let mut command = Command::new(viewer);
    command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let failed = |reason: String| Some(format!("open: {viewer}: {reason}"));
    match command.status() {
        Err(error) => failed(error.to_string()),
        // Explorer never says that all is well.
        Ok(status) if !status.success() && !cfg!(windows) => failed(status.to_string()),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_known_by_their_variables() {
        let chosen = |set: &[(&str, &str)]| {
            let find = |name: &str| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            choose(Protocol::Auto, &find)
        };
        let xterm = ("TERM", "xterm-256color");
        for (set, protocol) in [
            (&[xterm][..], Protocol::Blocks),
            (&[("TERM", "xterm-kitty")], Protocol::Kitty),
            (&[xterm, ("TERM_PROGRAM", "ghostty")], Protocol::Kitty),
            (&[xterm, ("KONSOLE_VERSION", "230800")], Protocol::Kitty),
            (&[("TERM", "foot-extra")], Protocol::Sixel),
            (&[("TERM", "tmux-256color"), ("KITTY_WINDOW_ID", "1")], Protocol::Blocks),
            (&[xterm, ("STY", "1.pts"), ("TERM_PROGRAM", "iTerm.app")], Protocol::Blocks),
            (&[], Protocol::Blocks),
        ] {
            assert_eq!(chosen(set), Some(protocol), "{set:?}");
        }
        #[cfg(feature = "gif")]
        assert_eq!(chosen(&[xterm, ("TERM_PROGRAM", "WezTerm")]), Some(Protocol::Iterm2));
        assert_eq!(chosen(&[("TERM", "dumb")]), None);
        assert_eq!(choose(Protocol::Sixel, &|_| None), Some(Protocol::Sixel));
    }

    #[test]
    fn previews_go_to_terminals_and_animations() {
        let to = |text: &str| text.parse::<PreviewTo>();
        assert_eq!(to("-"), Ok(PreviewTo::Terminal(Protocol::Auto)));
        assert_eq!(to("Kitty"), Ok(PreviewTo::Terminal(Protocol::Kitty)));
        assert_eq!(to("kitty.gif"), Ok(PreviewTo::File("kitty.gif".into())));
        assert!(to("kity").unwrap_err().contains("sixel"));
    }

    #[test]
    fn a_row_of_frames_fits_lines_and_columns() {
        let strip = |(columns, rows), cell, frames: usize| {
            let preview = Preview { protocol: Protocol::Blocks, columns, rows };
            let frames = vec![RgbImage::new(16, 12); frames];
            preview.strip(&frames, cell, &Stop::default()).unwrap().dimensions()
        };
        assert_eq!(strip((200, 50), (1, 2), 16), (170, 32));
        assert_eq!(strip((80, 50), (1, 2), 16), (80, 15));
        assert_eq!(strip((80, 8), (1, 2), 1), (16, 12));
        assert_eq!(strip((80, 50), SIXEL_CELL, 2), (400, 150));
    }

    #[test]
    fn frames_fit_the_terminal() {
        let size = |protocol, frame| Preview { protocol, columns: 80, rows: 24 }.size(frame);
        assert_eq!(size(Protocol::Blocks, (64, 64)), (44, 44));
        assert_eq!(size(Protocol::Blocks, (512, 128)), (80, 20));
        assert_eq!(size(Protocol::Blocks, (16, 16)), (16, 16));
        assert_eq!(size(Protocol::Kitty, (64, 64)), (64, 64));
        assert_eq!(size(Protocol::Kitty, (1024, 512)), (256, 128));
        assert_eq!(size(Protocol::Sixel, (64, 48)), (256, 192));
        assert_eq!(size(Protocol::Sixel, (100, 100)), (200, 200));
    }

    #[cfg(feature = "gif")]
    #[test]
    fn a_gif_is_made_in_memory() {
        let frames = vec![RgbImage::new(8, 8); 3];
        assert!(gif(&frames, 8.0, &Stop::default()).unwrap().starts_with(b"GIF89a"));
    }
}
