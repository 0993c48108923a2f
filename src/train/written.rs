//! How far the files of a stage's result are.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files;
use super::stages::{Places, Stage};
use crate::{Error, Result};

/// The step that a stage's result is of: `state/STAGE.json`, there only while everything of that step is in its files.
///
/// A state is kept before the result is written, so a stage that was interrupted in between has more learned than shown.
pub(super) struct Written {
    path: PathBuf,
    /// The part of the plan that the stage depends on.
    plan: String,
}

#[derive(Serialize, Deserialize)]
struct Mark {
    plan: String,
    step: usize,
}

impl Written {
    pub(super) fn new(stage: Stage, places: &Places, plan: &str) -> Self {
        let path = places.out.join("state").join(format!("{}.json", stage.name()));
        Self { path, plan: plan.to_owned() }
    }

    /// Whether the result is that of a step.
    pub(super) fn is_of(&self, step: usize) -> bool {
        let mark = files::read_json::<Mark>(&self.path);
        mark.is_ok_and(|mark| mark.step == step && mark.plan == self.plan)
    }

    /// To be called before the result changes.
    pub(super) fn clear(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file(&self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// To be called when everything of a step is in its files.
    pub(super) fn set(&self, step: usize) -> Result<()> {
        let mark = Mark { plan: self.plan.clone(), step };
        let text = serde_json::to_string(&mark)
            .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
        files::write_bytes(&self.path, (text + "\n").as_bytes())
    }
}
