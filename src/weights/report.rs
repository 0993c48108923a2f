//! Report of a load: tensors used, ignored, replaced and patched.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::Component;
use super::format::quoted;
use crate::spelling::distance;

/// Report of a successful load of one component.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadReport {
    /// The component.
    pub component: Component,
    /// Number of tensors the model requested and received.
    pub used: usize,
    /// Number of those tensors that were already in memory.
    pub reused: usize,
    /// Total size in the model, in bytes.
    pub bytes: u64,
    /// Number of tensors from each file.
    pub files: BTreeMap<PathBuf, usize>,
    /// Tensors that were deliberately not used.
    pub ignored: Vec<Ignored>,
    /// Counts of tensors replaced by those of a later file.
    pub replaced: Vec<Replaced>,
    /// Label of each patch and the number of weights it changed, in the order of the patches.
    pub patched: Vec<(String, usize)>,
}

/// A tensor that is recognized and deliberately unused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The tensor's name in its file.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The reason it is not used.
    pub why: String,
}

/// A number of tensors of one file that were replaced by those of a later file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The component the tensors belong to.
    pub component: Component,
    /// Number of tensors.
    pub count: usize,
    /// The file whose tensors are not used.
    pub before: PathBuf,
    /// The file whose tensors are used instead.
    pub after: PathBuf,
}

impl LoadReport {
    /// Number of ignored tensors by reason.
    pub fn ignored_by_reason(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for ignored in &self.ignored {
            *counts.entry(ignored.why.as_str()).or_default() += 1;
        }
        counts
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} tensors", self.component, self.used)?;
        if self.reused > 0 {
            write!(f, ", {} of them in memory already", self.reused)?;
        }
        for (label, count) in &self.patched {
            write!(f, ", {count} changed by {}", quoted(label))?;
        }
        for (why, count) in self.ignored_by_reason() {
            write!(f, ", {count} ignored ({why})")?;
        }
        for replaced in &self.replaced {
            write!(
                f,
                ", {} of {} replaced by {}",
                replaced.count,
                replaced.before.display(),
                replaced.after.display()
            )?;
        }
        Ok(())
    }
}

/// Formats the first few names of a list for a message.
pub(crate) fn some<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| quoted(name.as_ref())).collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", shown.join(", "))
}

/// The candidate nearest to `name`, if any is similar.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a String>,
) -> Option<&'a str> {
    // More than 20 percent of differing bytes means an unrelated name.
    let most = (name.len() / 5).max(2);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= most)
        .map(|candidate| (distance(name, candidate), candidate.as_str()))
        .min()
        .filter(|(distance, _)| *distance <= most)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_similar_names_are_suggested() {
        let names = ["mid_block.resnets.0.norm1.weight".to_owned(), "conv_in.weight".to_owned()];
        assert_eq!(nearest("mid_block.resnets.1.norm1.weight", &names), Some(names[0].as_str()));
        assert_eq!(nearest("time_embedding.linear_1.weight", &names), None);
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(some(&["a", "b"]), "`a`, `b`");
        assert_eq!(some(&["a", "b", "c", "d", "e"]), "`a`, `b`, `c` and 2 more");
    }
}
