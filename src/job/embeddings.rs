//! Names of textual inversions in a prompt: the file of that name joins the embeddings.

use std::path::{Path, PathBuf};

use super::folders::weight_files;
use crate::request::{Embedding, Job};
use crate::{Error, Result};

/// Adds the textual inversions in `folders` and their folders that a job's prompts name.
///
/// # Errors
///
/// When several files have a name that a prompt has.
pub(super) fn resolve(job: &mut Job, folders: &[PathBuf]) -> Result<()> {
    if let Some(folder) = folders.iter().find(|folder| !folder.is_dir()) {
        let reason = format!("{} is not a folder", folder.display());
        return Err(Error::request("embedding-dir", reason));
    }
    let prompts: Vec<String> = job.request.prompt.texts().map(str::to_lowercase).collect();
    let given: Vec<_> = job
        .models
        .embeddings
        .iter()
        .filter_map(|e| Path::new(&e.file).canonicalize().ok())
        .collect();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut files = Vec::new();
    for folder in folders {
        files.extend(weight_files(folder)?);
    }
    for path in files {
        let Some(name) = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()) else {
            continue;
        };
        let is_given = path.canonicalize().is_ok_and(|path| given.contains(&path));
        if is_given || !prompts.iter().any(|prompt| names(prompt, &name)) {
            continue;
        }
        let file = path.to_string_lossy().into_owned();
        if let Some((_, other)) = found.iter().find(|(other, _)| *other == name) {
            let reason = format!("`{name}` may be {other} or {file}");
            return Err(
                Error::request("prompt", reason).with_hint("name the file with --embedding")
            );
        }
        found.push((name, file));
    }
    let embeddings = found.into_iter().map(|(_, file)| Embedding { file, word: None });
    job.models.embeddings.extend(embeddings);
    Ok(())
}

/// Whether a name stands in a text, not in the middle of a longer word; both in lower case.
fn names(text: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let is_single = name.starts_with(is_word) || name.ends_with(is_word);
    !name.is_empty()
        && text.match_indices(name).any(|(at, _)| {
            let before = text.get(..at).is_some_and(|before| before.ends_with(is_word));
            let after = text.get(at + name.len()..).is_some_and(|after| after.starts_with(is_word));
            !is_single || !(before || after)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Request, Spec};

    fn resolved(prompt: &str, negative: &str, files: &[&str]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let mut job = Job::new(Spec::default(), Request::new(prompt));
        job.request.prompt.negative = negative.into();
        resolve(&mut job, &[folder.path().to_path_buf()])?;
        let inside = |embedding: &Embedding| {
            let path = Path::new(&embedding.file).strip_prefix(folder.path()).unwrap();
            path.to_string_lossy().replace('\\', "/")
        };
        Ok(job.models.embeddings.iter().map(inside).collect())
    }

    #[test]
    fn only_what_a_prompt_names_is_taken() {
        let files = ["EasyNegative.safetensors", "style/my-cat.pt", "cat.bin", "<toy>.pt", "a.txt"];
        let taken = |prompt: &str, negative: &str| resolved(prompt, negative, &files).unwrap();
        assert_eq!(taken("a dog", ""), [""; 0]);
        assert_eq!(taken("a dog", "(easynegative:1.2)"), ["EasyNegative.safetensors"]);
        assert_eq!(taken("a <toy>s, cats, concat", ""), ["<toy>.pt"]);
        assert_eq!(taken("a, My-Cat", ""), ["cat.bin", "style/my-cat.pt"]);
    }

    #[test]
    fn two_files_of_a_name_are_refused() {
        let error = resolved("a x", "", &["x.pt", "d/X.bin"]).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.to_string().contains("`x` may be"), "{error}");
    }
}
