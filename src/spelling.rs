//! Lookup of names in the spelling of other programs: case, spaces, hyphens and underscores are ignored; and how far a
//! mistyped word is from a known one.

/// A name in lower case without spaces, hyphens and underscores.
pub(crate) fn bare(name: &str) -> String {
    let counts = |c: &char| !c.is_whitespace() && !matches!(c, '-' | '_');
    name.chars().filter(counts).flat_map(char::to_lowercase).collect()
}

/// The value named `name`, in any spelling.
pub(crate) fn find<T: Copy>(name: &str, table: &[(&str, T)]) -> Option<T> {
    let name = bare(name);
    table.iter().find(|(known, _)| bare(known) == name).map(|(_, value)| *value)
}

/// Gives an enum that is the value of a flag or field `ALL`, `name`, `Display` and `FromStr`. Each variant has a name
/// and, behind bars, those that other programs have for it; all are read in any spelling.
macro_rules! named {
    ($kind:ty, $field:literal, { $($variant:ident = $name:literal $(| $other:literal)*,)+ }) => {
        impl $kind {
            /// All values.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in flags and requests.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $kind {
            type Err = $crate::Error;

            fn from_str(name: &str) -> $crate::Result<Self> {
                let known = [$(($name, Self::$variant), $(($other, Self::$variant),)*)+];
                $crate::spelling::find(name, &known).ok_or_else(|| {
                    let names = [$(concat!("`", $name, "`")),+].join(", ");
                    $crate::Error::request($field, format!("`{name}` is none of {names}"))
                })
            }
        }
    };
}
pub(crate) use named;

/// The name among `known` that was probably meant: one that begins with `name`, or the one that the fewest letters
/// differ from, up to a third of them.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = name.chars().count();
    let rank = |known: &str| match distance(name, known) {
        0 | 1 => 0,
        _ if letters >= 3 && known.starts_with(name) => 1,
        distance => distance,
    };
    let ranked = known.into_iter().map(|known| (rank(known), known));
    ranked
        .filter(|(rank, _)| *rank <= (letters / 3).max(1))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, n)| n)
}

/// Letters that must be put in, left out, replaced or swapped with the next one to make one text of another.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let kept = row[j] + usize::from(from != to);
            let mut least = kept.min(row[j + 1] + 1).min(next[j] + 1);
            let is_swap = i > 0 && j > 0 && a[i - 1] == *to && b[j - 1] == *from;
            if is_swap && let Some(swapped) = before.get(j - 1) {
                least = least.min(swapped + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let known = ["frames", "fps", "lora", "lora-dir", "device", "sampler"];
        for (typed, meant) in [
            ("fram", Some("frames")),
            ("fraems", Some("frames")),
            ("lra", Some("lora")),
            ("smapler", Some("sampler")),
            ("preview", None),
            ("format", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
        assert_eq!(
            (distance("ab", "ba"), distance("", "abc"), distance("kitten", "sitting")),
            (1, 3, 3)
        );
    }

    #[test]
    fn case_spaces_hyphens_and_underscores_do_not_count() {
        assert_eq!(bare("DPM++ 2M_Karras"), "dpm++2mkarras");
        assert_eq!(bare("cuda:"), "cuda:");
        assert_eq!(bare("scaled_linear"), bare("Scaled-Linear"));
        assert_eq!(find("SCALED linear", &[("linear", 1), ("scaledlinear", 2)]), Some(2));
        assert_eq!(find("", &[("linear", 1)]), None);
    }
}
