//! `<lora:name:0.8>` in a prompt: the tag goes, the file that it names joins the LoRAs.

use std::path::PathBuf;

use super::folders::{find, weight_files};
use crate::request::{Job, WeightedFile};
use crate::text::prompt::{LoraTag, PromptMode, take_loras};
use crate::{Error, Result};

/// Turns the tags of a job's prompts into LoRAs of the job, found in the first of `folders` that has one of the name.
///
/// # Errors
///
/// When there is no such file, or there are several.
pub(super) fn resolve(job: &mut Job, folders: &[PathBuf]) -> Result<()> {
    if let Some(folder) = folders.iter().find(|folder| !folder.is_dir()) {
        let reason = format!("{} is not a folder", folder.display());
        return Err(Error::request("lora-dir", reason));
    }
    resolve_by(job, &|name| Ok(lora(name, folders)?.to_string_lossy().into_owned()))
}

/// Turns the tags of a job's prompts into LoRAs of the job, whose files `find` knows.
///
/// # Errors
///
/// Those of `find`, and when prompts of one clip have different strengths.
pub fn resolve_by(job: &mut Job, find: &dyn Fn(&str) -> Result<String>) -> Result<()> {
    if job.request.prompt.mode == PromptMode::Plain {
        return Ok(());
    }
    let mut tags: Vec<LoraTag> = Vec::new();
    let travels = job.request.prompt.keys()?.len() > 1;
    for text in job.request.prompt.positive_mut() {
        let taken = take_loras(text);
        let (prompt, found) = taken.map_err(|reason| Error::request("prompt", reason))?;
        if found.is_empty() {
            continue;
        }
        *text = prompt;
        for tag in found {
            if !travels || is_new(&tag, &tags)? {
                tags.push(tag);
            }
        }
    }
    for tag in tags {
        let file = find(&tag.name)?;
        job.models.loras.push(weighted(&tag, file)?);
    }
    Ok(())
}

/// Returns whether no other prompt of a clip has the tag. Weights are those of the whole clip, so that a tag in every
/// prompt counts once.
fn is_new(tag: &LoraTag, tags: &[LoraTag]) -> Result<bool> {
    match tags.iter().find(|other| other.name == tag.name) {
        Some(other) if other == tag => Ok(false),
        Some(other) => {
            let (name, one, two) = (&tag.name, other.unet_strength, tag.unet_strength);
            let reason = if one == two {
                format!("the LoRA `{name}` is set in two ways")
            } else {
                format!("the LoRA `{name}` has the strengths {one} and {two}")
            };
            Err(Error::request("travel", reason)
                .with_hint("a LoRA has one strength in all frames of a clip"))
        }
        None => Ok(true),
    }
}

fn weighted(tag: &LoraTag, file: String) -> Result<WeightedFile> {
    let differs = tag.unet_strength != tag.text_strength;
    Ok(WeightedFile {
        text_scale: differs.then_some(tag.text_strength),
        blocks: tag.blocks.as_deref().map(str::parse).transpose()?,
        ..WeightedFile::new(file, tag.unet_strength)
    })
}

/// The file of that name in the first folder that has one.
fn lora(name: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    for folder in folders {
        if let Some(path) = find("prompt", name, folder)? {
            return Ok(path);
        }
    }
    let all: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let reason = format!("{} has no LoRA of that name", all.join(", "));
    let error = Error::Missing { name: format!("<lora:{name}>"), reason };
    let mut files = Vec::new();
    for folder in folders {
        files.extend(weight_files(folder)?);
    }
    let known: Vec<_> = files.iter().filter_map(|path| path.file_stem()).take(5).collect();
    if known.is_empty() {
        return Err(error.with_hint("no weight file is there at all"));
    }
    let known: Vec<_> = known.iter().map(|stem| stem.to_string_lossy()).collect();
    let more = if files.len() > known.len() { ", ..." } else { "" };
    Err(error.with_hint(format!("there are {}{more}", known.join(", "))))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
        resolve(&mut job, &[folder.path().to_path_buf()])?;
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
    fn a_tag_in_every_prompt_of_a_travel_counts_once_and_has_one_strength() {
        let files = ["a.pt", "b.pt"];
        let lines = "<lora:b>x\n0: y <lora:a:0.5>\n8: z <lora:a:0.5>";
        let (prompt, loras) = resolved(lines, &files).unwrap();
        assert_eq!(prompt, "x\n0: y \n8: z ");
        assert_eq!(loras, [("b.pt".into(), 1.0), ("a.pt".into(), 0.5)]);
        let error = resolved("0: y <lora:a:0.5>\n8: z <lora:a:0.8>", &files).unwrap_err();
        assert_eq!(error.to_string(), "travel: the LoRA `a` has the strengths 0.5 and 0.8");
        // Two tags of one prompt are two LoRAs, as ever.
        assert_eq!(resolved("<lora:a:0.5><lora:a:0.5>", &files).unwrap().1.len(), 2);
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
