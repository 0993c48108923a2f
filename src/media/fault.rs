//! Errors of input files, before the file and the option are added.

use std::path::Path;

use crate::Error;

/// Error of an input file, as a one-line reason.
#[derive(Debug)]
pub(super) enum Fault {
    /// The data is damaged or too large.
    Broken(String),
    /// The file has more frames than the limit.
    TooLong(String),
    /// The format or variant is not supported; the file can be converted.
    Foreign(String, Convert),
    /// The run was cancelled.
    Stopped,
}

/// Target format of an ffmpeg command that converts an unsupported file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Convert {
    /// H.264 in MP4.
    Video,
    /// H.264 in MP4, from interlaced video.
    Deinterlaced,
    /// PNG.
    Image,
    /// APNG with 8 bits per channel.
    Animation,
}

/// ffmpeg options for H.264 with subsampled chroma, which needs even sizes.
const H264: &str = "-c:v libx264 -pix_fmt yuv420p -an";

/// ffmpeg filter that pads odd widths and heights by one pixel.
const EVEN: &str = "pad=ceil(iw/2)*2:ceil(ih/2)*2";

impl Convert {
    /// The ffmpeg command that converts `path`.
    fn line(self, path: &Path) -> String {
        let (options, ending) = match self {
            Self::Video => (format!("-vf '{EVEN}' {H264}"), "-h264.mp4"),
            Self::Deinterlaced => (format!("-vf 'yadif,{EVEN}' {H264}"), "-h264.mp4"),
            Self::Image => ("-frames:v 1 -update 1".to_owned(), ".png"),
            Self::Animation => ("-pix_fmt rgb24 -f apng".to_owned(), "-8bit.png"),
        };
        let stem = path.with_extension("");
        let output = format!("{}{ending}", stem.display());
        format!("ffmpeg -i {} {options} {}", quoted(&path.display().to_string()), quoted(&output))
    }
}

/// The ffmpeg command that extracts the first frames of the animation or video at `path`.
fn first_frames(path: &Path) -> String {
    let frames = format!("{}-%02d.png", path.with_extension("").display());
    format!("ffmpeg -i {} -frames:v 16 {}", quoted(&path.display().to_string()), quoted(&frames))
}

/// Quotes `text` as one shell word.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        return text.to_owned();
    }
    // A leading dash would be parsed as an ffmpeg option.
    let dash = if text.starts_with('-') { "./" } else { "" };
    format!("'{dash}{}'", text.replace('\'', r"'\''"))
}

impl Fault {
    /// The error for the file at `path`, which the user passed as `field`.
    pub(super) fn error(self, field: &'static str, path: &Path) -> Error {
        let named = |reason: &str| {
            // Error messages of decoders may span several lines.
            let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
            Error::request(field, format!("{}: {reason}", path.display()))
        };
        match self {
            Self::Broken(reason) => named(&reason),
            Self::TooLong(reason) if field == "control" => {
                named(&reason).with_hint("take some of the frames: from=0,every=8")
            }
            Self::TooLong(reason) if field == "video" => {
                named(&reason).with_hint("take some of the frames: --video-every 8")
            }
            Self::TooLong(reason) => {
                named(&reason).with_hint(format!("take some of the frames: {}", first_frames(path)))
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
        let ends_early = |error: &std::io::Error| error.kind() == std::io::ErrorKind::UnexpectedEof;
        match error {
            image::ImageError::IoError(error) if ends_early(&error) => {
                Self::Broken("ends in the middle of an image".to_owned())
            }
            image::ImageError::IoError(error) => Self::Broken(error.to_string()),
            image::ImageError::Decoding(error) => Self::Broken(format!("is damaged: {error}")),
            error => Self::Broken(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_chosen_where_that_is_done() {
        let hint = |field| {
            let error = Fault::TooLong("has 9 frames".into()).error(field, Path::new("a b.mp4"));
            error.hint().map(std::borrow::Cow::into_owned).unwrap_or_default()
        };
        assert_eq!(hint("control"), "take some of the frames: from=0,every=8");
        let line = "ffmpeg -i 'a b.mp4' -frames:v 16 'a b-%02d.png'";
        assert_eq!(hint("ip-adapter"), format!("take some of the frames: {line}"));
    }

    #[test]
    fn the_line_that_converts_is_safe_to_paste() {
        let line = |path: &str| Convert::Image.line(Path::new(path));
        assert_eq!(line("a/b.avif"), "ffmpeg -i a/b.avif -frames:v 1 -update 1 a/b.png");
        let line_of = |convert: Convert| convert.line(Path::new("a.mov"));
        assert_eq!(
            line_of(Convert::Video),
            "ffmpeg -i a.mov -vf 'pad=ceil(iw/2)*2:ceil(ih/2)*2' \
             -c:v libx264 -pix_fmt yuv420p -an a-h264.mp4"
        );
        assert!(line_of(Convert::Deinterlaced).contains("-vf 'yadif,pad="));
        assert!(line("my cat.heic").contains("-i 'my cat.heic' "));
        assert!(line("it's.heic").contains(r"-i 'it'\''s.heic' "));
        assert!(line("-y.heic").contains("-i './-y.heic' "));
        assert!(line("$(x).heic").contains("-i '$(x).heic' "));
    }
}
