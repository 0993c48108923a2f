//! Names of clips.

use crate::spelling::nearest;
use crate::{Error, Result};

/// Fields of a template.
const FIELDS: [&str; 4] = ["number", "seed", "slug", "name"];

/// The longest name, without key and ending: bytes.
const LONGEST: usize = 180;

/// Digits of the key in a name.
const DIGITS: usize = 12;

/// A name with fields in braces, to which the key is appended: `{number}` (six digits), `{seed}`, `{slug}` (the first
/// words of the prompt) and `{name}` (the item's own).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(&'static str),
}

impl Default for Template {
    /// The number.
    fn default() -> Self {
        Self(vec![Piece::Field("number")])
    }
}

impl std::str::FromStr for Template {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::request("name", format!("`{text}`: {reason}"));
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            let Some((field, after)) = after.split_once('}') else {
                return Err(wrong("a `{` without `}`".into()));
            };
            let Some(known) = FIELDS.into_iter().find(|known| *known == field) else {
                let error = wrong(format!("`{{{field}}}` is none of {}", in_braces(&FIELDS)));
                return Err(match nearest(field, FIELDS) {
                    Some(near) => error.with_hint(format!("did you mean `{{{near}}}`?")),
                    None => error.with_hint("the key is always appended"),
                });
            };
            pieces.extend([Piece::Text(before.to_owned()), Piece::Field(known)]);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        let all: String = pieces.iter().filter_map(Piece::text).collect();
        if all.contains('}') {
            return Err(wrong("a `}` without `{`".into()));
        }
        // Fields are checked with each item.
        check(&format!("x{all}")).map_err(wrong)?;
        Ok(Self(pieces))
    }
}

impl Piece {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Field(_) => None,
        }
    }
}

/// What the fields of a template stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    pub(super) number: usize,
    pub(super) seed: u64,
    pub(super) slug: &'a str,
    pub(super) name: Option<&'a str>,
}

impl Template {
    /// The name of an item, without its key.
    ///
    /// # Errors
    ///
    /// When the item has no name and the template wants it, or the result is no name of a file.
    pub(super) fn fill(&self, values: Values<'_>) -> Result<String> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Field("number") => filled.push_str(&format!("{:06}", values.number)),
                Piece::Field("seed") => filled.push_str(&values.seed.to_string()),
                Piece::Field("slug") => filled.push_str(values.slug),
                Piece::Field(_) => match values.name {
                    Some(name) => filled.push_str(name),
                    None => {
                        let reason = "is missing, and --name has `{name}`";
                        return Err(Error::request("name", reason));
                    }
                },
            }
        }
        check(&filled).map_err(|reason| Error::request("name", format!("`{filled}`: {reason}")))?;
        Ok(filled)
    }
}

/// The file of a clip.
pub(super) fn file_name(stem: &str, key: &str, ending: &str) -> String {
    format!("{stem}-{}.{ending}", key.get(..DIGITS).unwrap_or(key))
}

/// Checks that a text can begin the name of a file on every system, and is no pattern.
pub(super) fn check(text: &str) -> Result<(), String> {
    let bad = |c: char| c.is_control() || "/\\:*?\"<>|%".contains(c);
    if let Some(c) = text.chars().find(|c| bad(*c)) {
        return Err(format!("{c:?} cannot be in the name of a file"));
    }
    if text.is_empty() || text.starts_with(['.', ' ', '-']) {
        return Err("begins like no name of a file".into());
    }
    if text.len() > LONGEST {
        return Err(format!("is longer than {LONGEST} bytes"));
    }
    Ok(())
}

fn in_braces(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{{{name}}}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled() {
        let fill = |template: &str, name| {
            let template: Template = template.parse()?;
            template.fill(Values { number: 7, seed: 42, slug: "a-cat", name })
        };
        assert_eq!(fill("{number}-{seed}-{slug}", None).unwrap(), "000007-42-a-cat");
        assert_eq!(fill("x {name}", Some("é b")).unwrap(), "x é b");
        let values = Values { number: 1_234_567, seed: 0, slug: "", name: None };
        assert_eq!(Template::default().fill(values).unwrap(), "1234567");
        for (template, name, part) in [
            ("{nmber}", None, "`{nmber}` is none of `{number}`, `{seed}`"),
            ("{number", None, "without `}`"),
            ("number}", None, "without `{`"),
            ("a/{number}", None, "'/' cannot be"),
            ("{name}", None, "is missing"),
            ("{name}", Some("../x"), "`../x`"),
            ("{name}", Some("a\nb"), "'\\n'"),
            ("{name}", Some(""), "no name of a file"),
            ("%03d{number}", None, "'%'"),
        ] {
            let error = fill(template, name).unwrap_err();
            assert!(error.to_string().contains(part), "{template}: {error}");
        }
        assert!(fill(&"x".repeat(200), None).is_err());
        let key = "0123456789abcdef";
        assert_eq!(file_name("000007", key, "mp4"), "000007-0123456789ab.mp4");
    }
}
