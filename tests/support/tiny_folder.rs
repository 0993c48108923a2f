//! The tiny model as a folder that a test may change.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::golden;
use crate::support::program::Folder;

/// Copies a folder of goldens.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

pub(crate) fn tiny(folder: &Folder) -> PathBuf {
    let model = folder.path("model");
    copy(&golden::path("tiny/model"), &model);
    model
}

pub(crate) fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub(crate) fn write(path: &Path, json: &Value) {
    fs::write(path, json.to_string()).unwrap();
}

/// Changes fields of a configuration of `model`.
pub(crate) fn change(folder: &Folder, config: &str, changes: &Value) {
    let path = folder.path("model").join(config);
    let mut json = read(&path);
    for (field, value) in changes.as_object().unwrap() {
        json[field] = value.clone();
    }
    write(&path, &json);
}
