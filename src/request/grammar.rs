//! The one grammar of options that hold several values: `VALUE,key=value,key=value,word`.
//!
//! A value in double quotes is taken as it is, commas, colons and equals signs included; a double quote inside is
//! written twice. A path without quotes may have commas, too, where it exists: before a comma ends a path that is not
//! there, or begins something that is no item, the longest path that is there is taken.

/// No path is longer: bytes.
const LONGEST_PATH: usize = 4096;

/// A key that may follow the first item.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Whether it may occur more than once.
    pub(super) repeats: bool,
}

/// The kind of a key's value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A name or path.
    Path,
    /// Anything without commas.
    Text,
    /// There is none.
    Word,
    /// There may be one.
    Either,
    /// A list whose later elements look like this.
    List(fn(&str) -> bool),
}

impl Key {
    /// A key that occurs once.
    pub(super) const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, repeats: false }
    }

    /// A key that may occur again.
    pub(super) const fn repeated(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, repeats: true }
    }
}

/// An item that was read. A word has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: String,
    pub(super) value: String,
}

/// The syntax of the first item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// `NAME=PATH`; its key is the name.
    Named,
    /// `PATH` or `key=PATH`, under this key.
    Path(&'static str),
    /// Like all others.
    Key,
}

/// Implements [`FromStr`](std::str::FromStr) by `parse`, for texts whose paths need not be there.
macro_rules! from_text {
    ($($kind:ty),*) => {
        $(impl std::str::FromStr for $kind {
            type Err = crate::Error;

            fn from_str(text: &str) -> crate::Result<Self> {
                Self::parse(text, &|_| false)
            }
        })*
    };
}
pub(super) use from_text;

/// The items of `text`, in order.
///
/// # Errors
///
/// What is wrong, in words.
pub(super) fn items(
    text: &str,
    first: First,
    keys: &[Key],
    exists: &dyn Fn(&str) -> bool,
) -> Result<Vec<Item>, String> {
    let segments = segments(text)?;
    let key_of = |segment: &Segment<'_>| {
        let (name, value) = segment.key.map_or((segment.value, false), |key| (key, true));
        let key = keys.iter().find(|key| key.name == name)?;
        let fits = match key.kind {
            Kind::Word => !value,
            Kind::Either => true,
            Kind::Path | Kind::Text | Kind::List(_) => value,
        };
        (fits && (value || segment.quoted.is_none())).then_some(*key)
    };
    let mut items: Vec<Item> = Vec::new();
    let mut at = 0;
    while let Some(segment) = segments.get(at) {
        let (key, value, kind) = match (first, at, segment.key) {
            (First::Named, 0, Some(name)) => (name, segment.value, Kind::Path),
            (First::Path(name), 0, Some(key)) if key == name => (name, segment.value, Kind::Path),
            (First::Path(name), 0, key) if key.is_none() || segment.quoted.is_none() => {
                (name, segment.all, Kind::Path)
            }
            (First::Named, 0, None) => {
                return Err(format!("`{}` in `{text}` is not KEY=VALUE", segment.all));
            }
            _ => match (key_of(segment), segment.key) {
                (Some(key), _) => {
                    if !key.repeats && items.iter().any(|item| item.key == key.name) {
                        return Err(format!("`{text}` has two values for `{}`", key.name));
                    }
                    (key.name, segment.value, key.kind)
                }
                (None, Some(key)) => return Err(format!("`{key}` in `{text}` is not known")),
                (None, None) => {
                    return Err(format!("`{}` in `{text}` is not KEY=VALUE", segment.all));
                }
            },
        };
        let start = segment.end - value.len();
        let mut last = at;
        if segment.quoted.is_none() {
            let follows = |last: usize| segments.get(last + 1);
            match kind {
                Kind::List(is_element) => {
                    while follows(last).is_some_and(|next| {
                        next.quoted.is_none() && key_of(next).is_none() && is_element(next.all)
                    }) {
                        last += 1;
                    }
                }
                Kind::Path => {
                    let ends = follows(last).is_none_or(|next| key_of(next).is_some());
                    if !(ends && exists(value)) {
                        let longer = segments.iter().enumerate().skip(at + 1);
                        let longer = longer
                            .take_while(|(_, segment)| segment.end - start <= LONGEST_PATH)
                            .filter(|(_, s)| text.get(start..s.end).is_some_and(exists));
                        last = longer.last().map_or(at, |(i, _)| i);
                    }
                }
                Kind::Text | Kind::Word | Kind::Either => {}
            }
        }
        let end = segments.get(last).map_or(segment.end, |segment| segment.end);
        let value = match (&segment.quoted, kind) {
            (Some(quoted), _) => quoted.as_str(),
            (None, Kind::Word) => "",
            (None, Kind::Either) if segment.key.is_none() => "",
            (None, _) => text.get(start..end).unwrap_or(value),
        };
        items.push(Item { key: key.to_owned(), value: value.to_owned() });
        at = last + 1;
    }
    Ok(items)
}

/// Text between two commas.
struct Segment<'a> {
    all: &'a str,
    /// Text before the first equals sign, if there is one.
    key: Option<&'a str>,
    /// Text after the equals sign, else all.
    value: &'a str,
    /// The value, where it was in quotes.
    quoted: Option<String>,
    /// Offset of its end in the whole text.
    end: usize,
}

fn segments(text: &str) -> Result<Vec<Segment<'_>>, String> {
    let mut segments = Vec::new();
    let mut rest = text;
    loop {
        // A key has neither commas nor quotes.
        let key = match rest.find(['=', ',', '"']) {
            Some(at) if rest[at..].starts_with('=') => Some(&rest[..at]),
            _ => None,
        };
        let value = key.map_or(rest, |key| &rest[key.len() + 1..]);
        let (quoted, after) = match value.strip_prefix('"') {
            Some(inside) => {
                let (quoted, after) = unquoted(inside)
                    .ok_or_else(|| format!("a double quote in `{text}` is not closed"))?;
                if !after.is_empty() && !after.starts_with(',') {
                    return Err(format!("`{after}` in `{text}` follows a closing double quote"));
                }
                (Some(quoted), after)
            }
            None => (None, &value[value.find(',').unwrap_or(value.len())..]),
        };
        segments.push(Segment {
            all: &rest[..rest.len() - after.len()],
            key,
            value: &value[..value.len() - after.len()],
            quoted,
            end: text.len() - after.len(),
        });
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None => return Ok(segments),
        }
    }
}

/// The text up to the closing double quote, and what follows that; two double quotes stand for one.
fn unquoted(inside: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut rest = inside;
    loop {
        let (before, after) = rest.split_once('"')?;
        text.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                text.push('"');
                rest = more;
            }
            None => return Some((text, after)),
        }
    }
}

/// A file and what stands behind its last colon, as `tail` understands it.
///
/// The file may be in quotes. Without them a tail that is none belongs to the path, and so does one where the whole
/// path exists and what is before the colon does not.
///
/// # Errors
///
/// What is wrong, in words; nothing where the whole is a path that exists.
pub(super) fn with_tail<T>(
    text: &str,
    exists: &dyn Fn(&str) -> bool,
    tail: impl Fn(&str) -> Option<Result<T, String>>,
) -> Result<(String, Option<T>), String> {
    if let Some(inside) = text.strip_prefix('"') {
        let (file, after) =
            unquoted(inside).ok_or_else(|| format!("a double quote in `{text}` is not closed"))?;
        let read = match after.strip_prefix(':') {
            Some(after) => tail(after).transpose()?,
            None if after.is_empty() => return Ok((file, None)),
            None => None,
        };
        let read = read.ok_or_else(|| format!("`{after}` follows a closing double quote"))?;
        return Ok((file, Some(read)));
    }
    // A colon may belong to the path, as in `C:\x`, and a quoted tail may have colons of its own.
    let colon = match text.find(":\"") {
        Some(at) if text.len() > at + 2 && text.ends_with('"') => Some(at),
        _ => text.rfind(':'),
    };
    let split = colon.and_then(|at| Some((text.get(..at)?, tail(text.get(at + 1..)?)?)));
    match split {
        Some((file, read)) if exists(file) || !exists(text) => Ok((file.to_owned(), Some(read?))),
        _ => Ok((text.to_owned(), None)),
    }
}

/// A text that may be in quotes; nothing if a quote is not closed, or something follows it.
pub(super) fn word(text: &str) -> Option<String> {
    match text.strip_prefix('"') {
        None => Some(text.to_owned()),
        Some(inside) => {
            unquoted(inside).filter(|(_, after)| after.is_empty()).map(|(word, _)| word)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [Key; 6] = [
        Key::new("model", Kind::Path),
        Key::repeated("image", Kind::Path),
        Key::new("scale", Kind::List(|text| text.contains(':'))),
        Key::new("end", Kind::Text),
        Key::new("guess", Kind::Word),
        Key::new("made", Kind::Either),
    ];

    fn read(text: &str, first: First, there: &[&str]) -> Result<Vec<(String, String)>, String> {
        let exists = |path: &str| there.contains(&path);
        let items = items(text, first, &KEYS, &exists)?;
        Ok(items.into_iter().map(|item| (item.key, item.value)).collect())
    }

    #[track_caller]
    fn reads(text: &str, there: &[&str], want: &[(&str, &str)]) {
        let want: Vec<_> = want.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(read(text, First::Named, there).unwrap(), want, "{text}");
    }

    #[test]
    fn a_quoted_value_is_taken_as_it_is() {
        reads(
            r#"a="x, y=1.png",model="say ""hi"", C:\m""#,
            &[],
            &[("a", "x, y=1.png"), ("model", "say \"hi\", C:\\m")],
        );
        reads(r#"a="",model=m"#, &[], &[("a", ""), ("model", "m")]);
        // Quotes count at the beginning of a value only.
        reads(r#"a=x"y,model=m"#, &[], &[("a", "x\"y"), ("model", "m")]);
        let images = read(r#""a, b.png",image="c=d",guess"#, First::Path("image"), &[]).unwrap();
        assert_eq!(images.len(), 3);
        assert_eq!((images[0].1.as_str(), images[1].1.as_str()), ("a, b.png", "c=d"));
        for (wrong, reason) in [
            (r#"a="x,model=m"#, "not closed"),
            (r#"a="x"y,model=m"#, "follows a closing"),
            (r#"a="x"",model=m"#, "not closed"),
            (r#"a=x,"guess""#, "not KEY=VALUE"),
        ] {
            let error = read(wrong, First::Named, &[]).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_word_may_have_a_value() {
        reads("n=a,made,guess", &[], &[("n", "a"), ("made", ""), ("guess", "")]);
        reads("n=a,made=x,end=1", &[], &[("n", "a"), ("made", "x"), ("end", "1")]);
        assert!(read("n=a,made,made=x", First::Named, &[]).unwrap_err().contains("two values"));
    }

    #[test]
    fn a_path_with_commas_is_taken_where_it_exists() {
        let path = "00012-1-a cat, masterpiece.png";
        let text = format!("canny={path},model=c.pt,end=0.5");
        reads(&text, &[path], &[("canny", path), ("model", "c.pt"), ("end", "0.5")]);
        assert!(read(&text, First::Named, &[]).unwrap_err().contains("` masterpiece.png`"));
        // A path may look like items, at its end too, and in its middle.
        for path in ["a,end=1.png", "a,b=1,guess", "a=1,model=2", "x,,"] {
            let text = format!("n={path},guess,model=m,scale=0:1,8:0");
            let want = [("n", path), ("guess", ""), ("model", "m"), ("scale", "0:1,8:0")];
            reads(&text, &[path], &want);
            reads(&format!("n=h,model={path}"), &[path], &[("n", "h"), ("model", path)]);
        }
        // An existing path is not extended further.
        reads("n=a,model=m", &["a", "a,model=m"], &[("n", "a"), ("model", "m")]);
        let found = read("a, b.png,model=m,image=c,d", First::Path("image"), &["a, b.png", "c,d"]);
        let values: Vec<_> = found.unwrap().into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, ["a, b.png", "m", "c,d"]);
    }

    #[test]
    fn what_follows_the_last_colon_is_a_tail_if_it_looks_like_one() {
        let number = |text: &str| text.parse::<f64>().ok().map(Ok::<_, String>);
        let read = |text: &str, there: &[&str]| {
            with_tail(text, &|path| there.contains(&path), number).map_err(|e| e.len())
        };
        let file = |file: &str, tail| Ok((file.to_owned(), tail));
        assert_eq!(read("x:0.5", &[]), file("x", Some(0.5)));
        assert_eq!(read("C:\\x", &[]), file("C:\\x", None));
        assert_eq!(read(r#""x:0.5""#, &[]), file("x:0.5", None));
        assert_eq!(read(r#""x:0.5":-1"#, &[]), file("x:0.5", Some(-1.0)));
        // A file that is there is not cut.
        assert_eq!(read("x:0.5", &["x:0.5"]), file("x:0.5", None));
        assert_eq!(read("x:0.5", &["x:0.5", "x"]), file("x", Some(0.5)));
        assert_eq!(read("x:0.5:2", &["x:0.5"]), file("x:0.5", Some(2.0)));
        assert!(read(r#""x"#, &[]).is_err());
        assert!(read(r#""x"y"#, &[]).is_err());
    }

    #[test]
    fn many_commas_take_no_time() {
        let text = format!("a={}", ",".repeat(1 << 20));
        assert!(items(&text, First::Named, &KEYS, &|_| false).is_err());
    }
}
