//! Files that prompts name: LoRAs by tags, textual inversions by their words.

use std::path::{Path, PathBuf};

use super::resolve::Names;
use super::{embeddings, lora_tags};
use crate::Result;
use crate::request::Job;

/// Folders in which the files that prompts name are searched, before those of [`Names`].
#[derive(Clone, Copy, Debug)]
pub struct Folders<'a> {
    /// LoRAs.
    pub lora: Option<&'a Path>,
    /// Textual inversions.
    pub embedding: Option<&'a Path>,
    /// Whether textual inversions are also searched in the folders of [`Names`].
    pub has_embeddings: bool,
}

/// Adds the LoRAs and textual inversions that a job's prompts name to its models.
///
/// # Errors
///
/// When a name leads nowhere, or to several files.
pub fn resolve(job: &mut Job, names: &Names, folders: Folders<'_>) -> Result<()> {
    let mut loras: Vec<PathBuf> = folders.lora.iter().map(|path| path.to_path_buf()).collect();
    loras.extend(names.lora_folders()?);
    if !loras.is_empty() {
        lora_tags::resolve(job, &loras)?;
    }
    let mut words: Vec<PathBuf> = folders.embedding.iter().map(|path| path.to_path_buf()).collect();
    if folders.has_embeddings {
        words.extend(names.embedding_folders()?);
    }
    if !words.is_empty() {
        embeddings::resolve(job, &words)?;
    }
    Ok(())
}
