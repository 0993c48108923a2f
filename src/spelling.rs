//! Lookup of names in the spelling of other programs: case, spaces, hyphens and underscores are ignored; and how far a
//! mistyped word is from a known one.

/// A name in lower case without spaces, hyphens and underscores.
pub(crate) fn bare(name: &str) -> String {
    let counts = |c: &char| !c.is_whitespace() && !matches!(c, '-' | '_');
    name.chars().filter(counts).flat_map(char::to_lowercase).collect()
}

/// The value named `name`, in any spelling; `table` contains bare names.
pub(crate) fn find<T: Copy>(name: &str, table: &[(&str, T)]) -> Option<T> {
    let name = bare(name);
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// Levenshtein distance in bytes.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.bytes().enumerate() {
            let up = row.get(j + 1).copied().unwrap_or_default();
            let left = row.get(j).copied().unwrap_or_default();
            let here = (diagonal + usize::from(x != y)).min(up + 1).min(left + 1);
            diagonal = up;
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = here;
            }
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
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
