//! Why an input cannot be read, before the file and the option are named.

use std::path::Path;

use crate::Error;

/// What is wrong with an input, in a line.
#[derive(Debug)]
pub(super) enum Fault {
    /// The bytes are broken, or too many.
    Broken(String),
    /// More frames than are kept.
    TooLong(String),
    /// A format or a variant that is not read; another program converts it.
    Foreign(String, Convert),
    /// The work was asked to stop.
    Stopped,
}

/// What ffmpeg makes of a foreign file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Convert {
    /// H.264 in MP4.
    Video,
    /// The same from interlaced video.
    Deinterlaced,
    /// PNG.
    Image,
    /// APNG with 8 bits.
    Animation,
}

impl Convert {
    /// The command line that converts `path`.
    fn line(self, path: &Path) -> String {
        let (options, ending) = match self {
            Self::Video => ("-c:v libx264 -pix_fmt yuv420p -an", "-h264.mp4"),
            Self::Deinterlaced => ("-vf yadif -c:v libx264 -pix_fmt yuv420p -an", "-h264.mp4"),
            Self::Image => ("-frames:v 1 -update 1", ".png"),
            Self::Animation => ("-pix_fmt rgb24 -f apng", "-8bit.png"),
        };
        let stem = path.with_extension("");
        let output = format!("{}{ending}", stem.display());
        format!("ffmpeg -i {} {options} {}", quoted(&path.display().to_string()), quoted(&output))
    }
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        return text.to_owned();
    }
    // A leading dash would be an option of ffmpeg.
    let dash = if text.starts_with('-') { "./" } else { "" };
    format!("'{dash}{}'", text.replace('\'', r"'\''"))
}

impl Fault {
    /// The error about the file at `path`, which the user gave as `field`.
    pub(super) fn error(self, field: &'static str, path: &Path) -> Error {
        let named = |reason: &str| {
            // Decoders may say more than a line.
            let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
            Error::request(field, format!("{}: {reason}", path.display()))
        };
        match self {
            Self::Broken(reason) => named(&reason),
            Self::TooLong(reason) => {
                named(&reason).with_hint("a control takes some frames of a video: from=0,every=8")
            }
            Self::Foreign(reason, convert) => {
                named(&reason).with_hint(format!("convert it: {}", convert.line(path)))
            }
            Self::Stopped => Error::Cancelled,
        }
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Broken(reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Self::Broken(reason.to_owned())
    }
}

impl From<image::ImageError> for Fault {
    fn from(error: image::ImageError) -> Self {
        match error {
            image::ImageError::IoError(error) => Self::Broken(error.to_string()),
            error => Self::Broken(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_converts_is_safe_to_paste() {
        let line = |path: &str| Convert::Image.line(Path::new(path));
        assert_eq!(line("a/b.avif"), "ffmpeg -i a/b.avif -frames:v 1 -update 1 a/b.png");
        assert!(line("my cat.heic").contains("-i 'my cat.heic' "));
        assert!(line("it's.heic").contains(r"-i 'it'\''s.heic' "));
        assert!(line("-y.heic").contains("-i './-y.heic' "));
        assert!(line("$(x).heic").contains("-i '$(x).heic' "));
    }
}
