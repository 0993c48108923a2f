//! The words of captions, and what they mean in numbers.
//!
//! `a COLOR SHAPE MOTION on a BACKGROUND background`, always with `a`. Two kinds of captions are left out because
//! nobody could see them: white on white, and circles or rings that spin.

use std::fmt;
use std::str::FromStr;

use crate::rng::Uniform;
use crate::{Error, Result};

/// A closed set of words, each with a meaning.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $meaning:ty { $($(#[$item_doc:meta])* $item:ident $word:literal $value:expr,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$item_doc])* $item,)+
        }

        impl $name {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$item,)+];

            /// The word in captions.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$item => $word,)+
                }
            }

            /// What the word means.
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
    /// The object's colour; it means 8-bit sRGB.
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
    /// The background's colour; it means 8-bit sRGB.
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
    /// The object's outline; it means in how many ways the outline can be turned onto itself, 0 for all.
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
    /// What happens to the object; it means the cue by which a single frame shows it.
    ///
    /// Motion modules see the text only through the features of single frames, so a word about motion must be
    /// visible in each of them, as it is in photographs.
    Motion: &'static str {
        /// From right to left.
        Left "moving left" "a tapering trail to its right",
        /// From left to right.
        Right "moving right" "a tapering trail to its left",
        /// From bottom to top.
        Up "moving up" "a tapering trail below it",
        /// From top to bottom.
        Down "moving down" "a tapering trail above it",
        /// To about two and a half times its size.
        Growing "growing" "a thin line around it, at some distance",
        /// The reverse.
        Shrinking "shrinking" "a fading halo of its former size",
        /// Clockwise, by about 150 degrees.
        Spinning "spinning" "fading copies at its former angles",
        /// Up and down on a floor, twice.
        Bouncing "bouncing" "the floor",
        /// Nothing.
        Still "standing still" "none of these",
    }
}

/// A caption taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caption {
    /// The object's colour.
    pub color: Color,
    /// The object's outline.
    pub shape: Shape,
    /// What happens to it.
    pub motion: Motion,
    /// What it is in front of.
    pub background: Background,
}

/// A part of a caption that can be left out, to train on captions that do not tell everything.
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Color, Self::Motion, Self::Background];
}

impl Caption {
    /// Whether somebody could see that it is true.
    pub fn is_visible(&self) -> bool {
        let Self { color, shape, motion, background } = *self;
        let is_white_on_white = color == Color::White && background == Background::White;
        let spins_unseen = motion == Motion::Spinning && shape.meaning() == 0;
        !is_white_on_white && !spins_unseen
    }

    /// Every caption, in the order of their words.
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

    /// Draws one: every word of every kind is equally likely, until the caption is visible.
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

    /// The caption in words, without one of its parts.
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

    /// Reads a whole caption, in words of any case.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: String| {
            Error::request("caption", reason)
                .with_hint("a COLOR SHAPE MOTION on a BACKGROUND background")
        };
        let lower = text.trim().to_lowercase();
        Self::all()
            .find(|caption| caption.to_string() == lower)
            .ok_or_else(|| wrong(format!("`{}` is none that is known", short(text))))
    }
}

/// What of a text fits into an error.
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
