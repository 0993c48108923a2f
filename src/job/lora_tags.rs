//! `<lora:name:0.8>` in a prompt: the tag goes, the file that it names joins the LoRAs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::request::{Job, WeightedFile};
use crate::text::prompt::{LoraTag, PromptMode, take_loras};
use crate::{Error, Result};

/// What weight files are called.
const EXTENSIONS: [&str; 4] = ["safetensors", "pt", "ckpt", "bin"];

/// Turns the tags of a job's prompt into LoRAs of the job, found in `folder` and its folders.
pub fn resolve(job: &mut Job, folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        let reason = format!("{} is not a folder", folder.display());
        return Err(Error::request("lora-dir", reason));
    }
    if job.request.prompt.mode == PromptMode::Plain {
        return Ok(());
    }
    let taken = take_loras(&job.request.prompt.text);
    let (prompt, tags) = taken.map_err(|reason| Error::request("prompt", reason))?;
    if tags.is_empty() {
        return Ok(());
    }
    let files = weight_files(folder)?;
    for tag in tags {
        let path = find(&tag.name, &files, folder)?;
        job.models.loras.push(weighted(&tag, path)?);
    }
    job.request.prompt.text = prompt;
    Ok(())
}

fn weighted(tag: &LoraTag, path: &Path) -> Result<WeightedFile> {
    let differs = tag.unet_strength != tag.text_strength;
    Ok(WeightedFile {
        text_scale: differs.then_some(tag.text_strength),
        blocks: tag.blocks.as_deref().map(str::parse).transpose()?,
        ..WeightedFile::new(path.to_string_lossy(), tag.unet_strength)
    })
}

/// The one file of that name; a name may begin with its folders.
fn find<'a>(name: &str, files: &'a [PathBuf], folder: &Path) -> Result<&'a Path> {
    let is_named = |path: &&PathBuf| {
        let inside = path.strip_prefix(folder).unwrap_or(path).with_extension("");
        path.file_stem().is_some_and(|stem| stem == name) || inside == Path::new(name)
    };
    let mut found = files.iter().filter(is_named);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (Some(one), Some(other)) => {
            let (one, other) = (one.display(), other.display());
            let reason = format!("`<lora:{name}>` may be {one} or {other}");
            Err(Error::request("prompt", reason)
                .with_hint("write the folder too, or name the file with --lora"))
        }
        (None, _) => {
            let reason = format!("{} has no LoRA of that name", folder.display());
            let error = Error::Missing { name: format!("<lora:{name}>"), reason };
            let known: Vec<_> = files.iter().filter_map(|path| path.file_stem()).take(5).collect();
            if known.is_empty() {
                return Err(error.with_hint("no weight file is there at all"));
            }
            let known: Vec<_> = known.iter().map(|stem| stem.to_string_lossy()).collect();
            let more = if files.len() > known.len() { ", ..." } else { "" };
            Err(error.with_hint(format!("there are {}{more}", known.join(", "))))
        }
    }
}

/// All weight files in a folder and its folders, sorted.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        // Links may lead back.
        if !seen.insert(folder.canonicalize().map_err(Error::file(&folder))?) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).map_err(Error::file(&folder))? {
            let path = entry.map_err(Error::file(&folder))?.path();
            let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            if path.is_dir() {
                folders.push(path);
            } else if extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Request, Spec};

    fn resolved(prompt: &str, files: &[&str]) -> Result<(String, Vec<(String, f64)>)> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let mut job = Job::new(Spec::default(), Request::new(prompt));
        resolve(&mut job, folder.path())?;
        let inside = |file: &str| {
            let path = Path::new(file).strip_prefix(folder.path()).unwrap();
            path.to_string_lossy().replace('\\', "/")
        };
        let loras = job.models.loras.iter().map(|lora| (inside(&lora.file), lora.scale)).collect();
        Ok((job.request.prompt.text, loras))
    }

    #[test]
    fn a_tag_becomes_a_lora_wherever_its_file_is() {
        let files = ["a.safetensors", "people/b.v2.pt", "a.txt", "c.ckpt"];
        let (prompt, loras) = resolved("x <lora:b.v2:0.5> y<lora:a>", &files).unwrap();
        assert_eq!(prompt, "x  y");
        assert_eq!(loras, [("people/b.v2.pt".into(), 0.5), ("a.safetensors".into(), 1.0)]);
    }

    #[test]
    fn missing_and_ambiguous_names_are_errors() {
        let error = resolved("<lora:z>", &["a.pt", "b.pt"]).unwrap_err();
        assert_eq!(error.kind().exit_code(), 3);
        assert_eq!(error.hint().unwrap(), "there are a, b");
        let files = ["one/a.pt", "two/a.pt"];
        let error = resolved("<lora:a>", &files).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.to_string().contains("may be"), "{error}");
        assert_eq!(resolved("<lora:two/a>", &files).unwrap().1, [("two/a.pt".into(), 1.0)]);
        let outside = resolved("<lora:../a>", &files).unwrap_err();
        assert_eq!(outside.kind().exit_code(), 3);
    }
}
