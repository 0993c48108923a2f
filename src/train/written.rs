//! Record of the step that a stage's result files belong to.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files;
use super::places::Places;
use super::stages::Stage;
use crate::{Error, Result};

/// The step of a stage's result: `state/STAGE.json`, which exists only while all files of that step are complete.
///
/// A checkpoint is saved before the result is written, so after an interruption in between the checkpoint is newer
/// than the result.
pub(super) struct Written {
    path: PathBuf,
    /// Identity of the plan's parts that the stage depends on.
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

    /// Returns whether the result is of step `step`.
    pub(super) fn is_of(&self, step: usize) -> bool {
        let mark = files::read_json::<Mark>(&self.path);
        mark.is_ok_and(|mark| mark.step == step && mark.plan == self.plan)
    }

    /// Removes the record; called before the result changes.
    pub(super) fn clear(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file(&self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes the record; called when all files of step `step` are complete.
    pub(super) fn set(&self, step: usize) -> Result<()> {
        let mark = Mark { plan: self.plan.clone(), step };
        let text = serde_json::to_string(&mark)
            .map_err(|e| Error::Encode { format: "json", reason: e.to_string() })?;
        files::write_bytes(&self.path, (text + "\n").as_bytes())
    }
}
