//! Words of captions and their numerical meanings.
//!
//! The form is `a COLOR SHAPE MOTION on a BACKGROUND background`, always with `a`. Two kinds of captions are excluded
//! because they would not be visible: white on white, and circles or rings that spin.

use std::fmt;
use std::str::FromStr;

use crate::rng::Uniform;
use crate::{Error, Result};

/// Defines a closed set of words, each with a meaning.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $meaning:ty { $($(#[$item_doc:meta])* $item:ident $word:literal $value:expr,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$item_doc])* $item,)+
        }

        impl $name {
            /// All words, in declaration order.
            pub const ALL: &[Self] = &[$(Self::$item,)+];

            /// The word in captions.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$item => $word,)+
                }
            }

            /// Meaning of the word.
            pub fn meaning(self) -> $meaning {
                match self {
                    $(Self::$item => $value,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// Colour of the object; its meaning is an 8-bit sRGB colour.
    Color: [u8; 3] {
        /// Red.
        Red "red" [230, 40, 40],
        /// Green.
        Green "green" [40, 190, 70],
        /// Blue.
        Blue "blue" [50, 90, 250],
        /// Yellow.
        Yellow "yellow" [245, 225, 50],
        /// White.
        White "white" [250, 250, 250],
        /// Purple.
        Purple "purple" [160, 60, 220],
        /// Orange.
        Orange "orange" [250, 140, 30],
        /// Cyan.
        Cyan "cyan" [60, 220, 230],
    }
}

words! {
    /// Colour of the background; its meaning is an 8-bit sRGB colour.
    Background: [u8; 3] {
        /// Black.
        Black "black" [8, 8, 8],
        /// White.
        White "white" [245, 245, 245],
        /// Grey.
        Grey "grey" [120, 120, 120],
        /// Navy.
        Navy "navy" [15, 20, 80],
        /// Brown.
        Brown "brown" [95, 55, 25],
    }
}

words! {
    /// Outline of the object; its meaning is the order of its rotational symmetry, 0 for any angle.
    Shape: usize {
        /// A disc.
        Circle "circle" 0,
        /// A square.
        Square "square" 4,
        /// An equilateral triangle.
        Triangle "triangle" 3,
        /// A star with five points.
        Star "star" 5,
        /// A disc with a hole.
        Ring "ring" 0,
    }
}

words! {
    /// Motion of the object; its meaning is the cue that shows it in a single frame.
    ///
    /// Motion modules receive the text only through the features of single frames, so the motion must be visible in
    /// each of them, as in photographs.
    Motion: &'static str {
        /// Motion from right to left.
        Left "moving left" "a tapering trail to its right",
        /// Motion from left to right.
        Right "moving right" "a tapering trail to its left",
        /// Motion from bottom to top.
        Up "moving up" "a tapering trail below it",
        /// Motion from top to bottom.
        Down "moving down" "a tapering trail above it",
        /// Growth to about two and a half times the size.
        Growing "growing" "a thin line around it, at some distance",
        /// The reverse of growth.
        Shrinking "shrinking" "a fading halo of its former size",
        /// Clockwise rotation by about 150 degrees.
        Spinning "spinning" "fading copies at its former angles",
        /// Two bounces on a floor.
        Bouncing "bouncing" "the floor",
        /// No motion.
        Still "standing still" "none of these",
    }
}

/// Parsed caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caption {
    /// Colour of the object.
    pub color: Color,
    /// Outline of the object.
    pub shape: Shape,
    /// Motion of the object.
    pub motion: Motion,
    /// Background colour.
    pub background: Background,
}

/// Part of a caption that can be dropped, to train on incomplete captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The colour.
    Color,
    /// The motion.
    Motion,
    /// `on a ... background`.
    Background,
}

impl Part {
    /// All parts.
    pub const ALL: [Self; 3] = [Self::Color, Self::Motion, Self::Background];
}

impl Caption {
    /// Returns whether the caption would be visible in a clip.
    pub fn is_visible(&self) -> bool {
        let Self { color, shape, motion, background } = *self;
        let is_white_on_white = color == Color::White && background == Background::White;
        let spins_unseen = motion == Motion::Spinning && shape.meaning() == 0;
        !is_white_on_white && !spins_unseen
    }

    /// All captions, in the order of their words.
    pub fn all() -> impl Iterator<Item = Self> {
        Color::ALL
            .iter()
            .flat_map(|color| Shape::ALL.iter().map(move |shape| (*color, *shape)))
            .flat_map(|(color, shape)| Motion::ALL.iter().map(move |m| (color, shape, *m)))
            .flat_map(|(color, shape, motion)| {
                let with = move |background: &Background| Self {
                    color,
                    shape,
                    motion,
                    background: *background,
                };
                Background::ALL.iter().map(with)
            })
            .filter(Self::is_visible)
    }

    /// Draws a random visible caption, with all words of a kind equally likely.
    pub fn draw(random: &mut Uniform) -> Self {
        loop {
            let caption = Self {
                color: Color::ALL[random.below(Color::ALL.len())],
                shape: Shape::ALL[random.below(Shape::ALL.len())],
                motion: Motion::ALL[random.below(Motion::ALL.len())],
                background: Background::ALL[random.below(Background::ALL.len())],
            };
            if caption.is_visible() {
                return caption;
            }
        }
    }

    /// Text of the caption, optionally without one of its parts.
    pub fn without(&self, part: Option<Part>) -> String {
        let mut text = String::from("a ");
        if part != Some(Part::Color) {
            text.push_str(self.color.word());
            text.push(' ');
        }
        text.push_str(self.shape.word());
        if part != Some(Part::Motion) {
            text.push(' ');
            text.push_str(self.motion.word());
        }
        if part != Some(Part::Background) {
            text.push_str(&format!(" on a {} background", self.background));
        }
        text
    }
}

impl fmt::Display for Caption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.without(None))
    }
}

impl FromStr for Caption {
    type Err = Error;

    /// Parses a complete caption, ignoring case.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: String| {
            Error::request("caption", reason)
                .with_hint("a COLOR SHAPE MOTION on a BACKGROUND background")
        };
        let lower = text.trim().to_lowercase();
        Self::all()
            .find(|caption| caption.to_string() == lower)
            .ok_or_else(|| wrong(format!("`{}` is unknown", short(text))))
    }
}

/// A text shortened for an error message.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_read_back_as_written() {
        let mut count = 0;
        for caption in Caption::all().step_by(7) {
            assert_eq!(caption.to_string().parse::<Caption>().unwrap(), caption);
            count += 1;
        }
        assert!(count > 200);
        let all = Caption::all().count();
        // 8 colours, 5 shapes, 9 motions, 5 backgrounds; less white on white, less two shapes that spin.
        assert_eq!(all, (8 * 5 - 1) * (5 * 9 - 2));
    }

    #[test]
    fn what_is_no_caption_is_told_so() {
        for text in
            ["", "a red circle", "a red circle spinning on a black background", "x\u{1b}[1m"]
        {
            let error = text.parse::<Caption>().unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            assert!(!error.to_string().contains('\u{1b}'));
        }
    }

    #[test]
    fn parts_can_be_left_out() {
        let caption: Caption = "a red star moving up on a navy background".parse().unwrap();
        assert_eq!(caption.without(Some(Part::Color)), "a star moving up on a navy background");
        assert_eq!(caption.without(Some(Part::Motion)), "a red star on a navy background");
        assert_eq!(caption.without(Some(Part::Background)), "a red star moving up");
    }

    #[test]
    fn every_word_is_drawn() {
        let mut random = Uniform::new(5);
        let drawn: std::collections::BTreeSet<Caption> =
            (0..20_000).map(|_| Caption::draw(&mut random)).collect();
        assert!(drawn.iter().all(Caption::is_visible));
        assert_eq!(drawn.len(), Caption::all().count());
    }
}
