//! Lookup of names in the spelling of other programs: case, spaces, hyphens and underscores are ignored.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_spaces_hyphens_and_underscores_do_not_count() {
        assert_eq!(bare("DPM++ 2M_Karras"), "dpm++2mkarras");
        assert_eq!(bare("cuda:"), "cuda:");
        assert_eq!(bare("scaled_linear"), bare("Scaled-Linear"));
        assert_eq!(find("SCALED linear", &[("linear", 1), ("scaledlinear", 2)]), Some(2));
        assert_eq!(find("", &[("linear", 1)]), None);
    }
}
