//! `animatelcm inspect`: what a file or folder is.
//!
//! The contents decide, not the name. A clip shows the request that it was made by, weights show what they are, as
//! far as the loaders can tell; what no loader accepts is still named, with the reason why it cannot be used.

mod clip;
mod header;
mod weights;

use std::path::Path;

use super::flags::InspectArgs;
use super::print;
use crate::output::{Format, metadata};
use crate::weights::{Archive, Source};
use crate::{Result, Stop};

pub(super) fn run(args: &InspectArgs, stop: &Stop) -> Result<()> {
    let path = args.file.as_path();
    if path.is_dir() {
        return print(&weights::folder(path, args.json, stop)?);
    }
    let source = Source::from(path.to_path_buf());
    let archive = match Archive::open(&source) {
        Ok(archive) => archive,
        Err(no_weights) if path.is_file() => match metadata::read(path) {
            Ok(found) => return print(&clip::show(path, found.unwrap_or_default(), args.json)?),
            Err(no_clip) if claims_to_be_a_clip(path) => return Err(no_clip),
            Err(_) if no_weights.hint().is_some() => return Err(no_weights),
            Err(_) => {
                return Err(no_weights.with_hint("a clip is a gif, webp, png, mp4 or y4m file"));
            }
        },
        Err(error) => return Err(error),
    };
    print(&weights::file(&archive, args.json, stop)?)
}

/// Returns whether a file's name is that of an output of this program.
fn claims_to_be_a_clip(path: &Path) -> bool {
    path != Path::new("-") && Format::from_path(path).is_ok()
}

/// Lines of a label and its value, the values under each other; further lines of a value are indented.
#[derive(Debug, Default)]
struct Table(String);

impl Table {
    fn row(&mut self, label: &str, value: impl std::fmt::Display) {
        let value = value.to_string();
        let mut lines = value.lines();
        let first = lines.next().unwrap_or_default();
        self.0.push_str(format!("  {label:<11} {first}").trim_end());
        for line in lines {
            self.0.push_str(format!("\n  {:<11} {line}", "").trim_end());
        }
        self.0.push('\n');
    }

    /// A row that is left out when there is nothing to say.
    fn row_if(&mut self, label: &str, value: &str) {
        if !value.is_empty() {
            self.row(label, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_lines_stand_under_the_first() {
        let mut table = Table::default();
        table.row("a", "one\ntwo");
        table.row_if("b", "");
        assert_eq!(table.0, "  a           one\n              two\n");
    }
}
