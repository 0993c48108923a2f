//! The metadata that trainers write into a file's header, in the order in which people ask for it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Table;

/// Labels and the keys of their values; of several keys the first that a header has is shown.
///
/// `modelspec.` is Stability AI's standard, `ss_` is what Kohya's tools write.
const KNOWN: &[(&str, &[&str])] = &[
    ("title", &["modelspec.title", "ss_output_name", "name"]),
    ("author", &["modelspec.author", "author"]),
    ("licence", &["modelspec.license", "license"]),
    ("description", &["modelspec.description", "description", "ss_training_comment"]),
    ("words", &["modelspec.trigger_phrase", "trigger_phrase", "trigger_words"]),
    ("usage", &["modelspec.usage_hint"]),
    ("base", &["modelspec.architecture", "ss_base_model_version"]),
    ("trained on", &["ss_sd_model_name"]),
    ("network", &["ss_network_module"]),
    ("date", &["modelspec.date", "ss_training_started_at"]),
    ("resolution", &["modelspec.resolution", "ss_resolution"]),
    ("images", &["ss_num_train_images"]),
    ("epochs", &["ss_epoch", "ss_num_epochs"]),
    ("steps", &["ss_steps", "ss_max_train_steps"]),
];

/// Pairs of an unknown meaning that people are shown; JSON has them all.
const SHOWN_PAIRS: usize = 8;
/// Characters of a value that people are shown.
const SHOWN_CHARS: usize = 80;
/// Tags that people are shown.
const SHOWN_TAGS: usize = 10;

/// Adds the rows of a header.
pub(super) fn rows(metadata: &BTreeMap<String, String>, table: &mut Table) {
    let mut shown = vec!["format", "ss_tag_frequency"];
    for (label, keys) in KNOWN {
        let found = keys.iter().find_map(|key| Some((key, metadata.get(*key)?)));
        if let Some((key, value)) = found.filter(|(_, value)| !is_empty(value)) {
            let value = if *key == "ss_training_started_at" { day(value) } else { short(value) };
            table.row(label, value);
        }
        shown.extend(*keys);
    }
    if let Some(tags) = metadata.get("ss_tag_frequency").and_then(|json| tags(json)) {
        table.row("tags", tags);
    }
    let others: Vec<_> = metadata
        .iter()
        .filter(|(key, value)| !shown.contains(&key.as_str()) && !is_empty(value))
        // Only the settings above, among Kohya's many, are for people.
        .filter(|(key, _)| !key.starts_with("ss_") && !key.starts_with("sshash_"))
        .collect();
    for (key, value) in others.iter().take(SHOWN_PAIRS) {
        table.row("metadata", format!("{key}: {}", short(value)));
    }
    let hidden = others.len().saturating_sub(SHOWN_PAIRS)
        + metadata
            .keys()
            .filter(|key| key.starts_with("ss") && !shown.contains(&key.as_str()))
            .count();
    if hidden > 0 {
        table.row("metadata", format!("{hidden} more, see --json"));
    }
}

/// Returns whether a value stands for none.
fn is_empty(value: &str) -> bool {
    matches!(value.trim(), "" | "None" | "null" | "{}" | "[]")
}

/// The beginning of a value, on one line.
fn short(value: &str) -> String {
    let mut shown: String = value.chars().take(SHOWN_CHARS).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    shown.replace('\n', " ")
}

/// The day of a number of seconds since 1970; anything else as it is.
fn day(seconds: &str) -> String {
    let Some(days) = seconds.trim().parse::<f64>().ok().filter(|s| (0.0..1e11).contains(s)) else {
        return short(seconds);
    };
    // Years from March on end with their leap day; eras of 400 years are all alike.
    let days = (days / 86_400.0) as u64 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (date, month) = (of_year - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{date:02}")
}

/// The most frequent tags of the images, from Kohya's counts per folder.
fn tags(json: &str) -> Option<String> {
    let folders: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(json).ok()?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (tag, count) in folders.into_values().flatten() {
        let slot = counts.entry(tag.trim().to_owned()).or_default();
        *slot = slot.saturating_add(count.as_u64().unwrap_or(0));
    }
    let mut counts: Vec<(String, u64)> = counts.into_iter().filter(|(_, n)| *n > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let shown: Vec<String> =
        counts.iter().take(SHOWN_TAGS).map(|(tag, n)| format!("{} {n}", short(tag))).collect();
    let more = match counts.len().saturating_sub(SHOWN_TAGS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!shown.is_empty()).then(|| shown.join(", ") + &more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pairs: &[(&str, &str)]) -> String {
        let metadata = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut table = Table::default();
        rows(&metadata.collect(), &mut table);
        table.0
    }

    #[test]
    fn what_people_ask_for_comes_first_and_settings_are_counted() {
        let text = shown(&[
            ("format", "pt"),
            ("modelspec.author", "somebody"),
            ("modelspec.license", "CC0"),
            ("modelspec.title", "Brush"),
            ("ss_output_name", "brush-v1"),
            ("ss_network_dropout", "None"),
            ("ss_lr_scheduler", "cosine"),
            ("ss_training_started_at", "1709164800.5"),
            ("ss_tag_frequency", r#"{"a": {"cat": 3, "dog ": 1}, "b": {"dog": 7}}"#),
            ("zoo", "bear"),
        ]);
        let want = "  title       Brush\n  author      somebody\n  licence     CC0\n  date        2024-02-29\n  \
                    tags        dog 8, cat 3\n  metadata    zoo: bear\n  metadata    2 more, see --json\n";
        assert_eq!(text, want);
    }

    #[test]
    fn headers_that_are_odd_do_no_harm() {
        assert_eq!(shown(&[("ss_tag_frequency", "[1"), ("format", "pt")]), "");
        assert_eq!(shown(&[("ss_tag_frequency", r#"{"a": {"x": -1}}"#)]), "");
        assert_eq!(shown(&[("ss_training_started_at", "soon")]), "  date        soon\n");
        assert_eq!(day("0"), "1970-01-01");
        assert_eq!(day("951782400"), "2000-02-29");
        let long = "x".repeat(200);
        assert!(shown(&[("author", &long)]).ends_with("x…\n"));
    }
}
