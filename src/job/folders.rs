//! Folders of one's own models, arranged as ComfyUI and A1111 arrange them, and files in them by name.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Result};

/// Endings of weight files, the preferred ones first.
const EXTENSIONS: [&str; 5] = ["safetensors", "pt", "ckpt", "bin", "pth"];

/// Folders by the field whose files are in them; capitals do not matter. Each is looked for in a models folder and in
/// its `models`.
const ARRANGED: [(&[&str], &[&str]); 8] = [
    (&["model", "checkpoint"], &["checkpoints", "Stable-diffusion", "diffusers"]),
    (&["vae"], &["vae", "vae_approx", "VAE-approx"]),
    (&["lora", "lcm-lora"], &["loras", "Lora", "LyCORIS", "animatediff_motion_lora"]),
    (
        &["motion"],
        &[
            "animatediff_models",
            "custom_nodes/ComfyUI-AnimateDiff-Evolved/models",
            "extensions/sd-webui-animatediff/model",
        ],
    ),
    (&["control"], &["controlnet", "t2i_adapter", "extensions/sd-webui-controlnet/models"]),
    (&["embedding"], &["embeddings"]),
    (&["ip-adapter"], &["ipadapter", "ip_adapter", "controlnet"]),
    (&["image-encoder"], &["clip_vision"]),
];

/// Folders that are searched for models by name, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Folders(Vec<PathBuf>);

impl Folders {
    /// Folders that are all there.
    ///
    /// # Errors
    ///
    /// When one is no folder; `field` says who named them.
    pub(super) fn new(field: &'static str, folders: Vec<PathBuf>) -> Result<Self> {
        if let Some(wrong) = folders.iter().find(|folder| !folder.is_dir()) {
            return Err(Error::request(field, format!("{} is not a folder", wrong.display())));
        }
        Ok(Self(folders))
    }

    /// These folders and then others.
    pub(super) fn then(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The folders in which a field's files are; a models folder without any that is known is one by itself.
    pub(super) fn of(&self, field: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for root in &self.0 {
            found.extend(arranged(root, field)?);
            if !is_arranged(root)? {
                found.push(root.clone());
            }
        }
        Ok(found)
    }

    /// The folders that are made for a field's files.
    pub(super) fn arranged(&self, field: &str) -> Result<Vec<PathBuf>> {
        let found: Result<Vec<_>> = self.0.iter().map(|root| arranged(root, field)).collect();
        Ok(found?.concat())
    }

    /// The file or folder of a name, in the first folder that has one.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when a folder has several, and when one cannot be listed.
    pub(super) fn find(&self, field: &'static str, name: &str) -> Result<Option<PathBuf>> {
        for folder in self.of(field)? {
            if let Some(found) = find(field, name, &folder)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The files of every field that are in folders made for it, by name.
    pub(super) fn all(&self) -> Result<Vec<(&'static str, String, PathBuf)>> {
        let mut found = Vec::new();
        let fields = ARRANGED.iter().flat_map(|(fields, _)| fields.iter());
        for field in fields {
            for folder in self.arranged(field)? {
                for file in weight_files(&folder)? {
                    let inside = file.strip_prefix(&folder).unwrap_or(&file).with_extension("");
                    let name = inside.to_string_lossy().replace('\\', "/");
                    found.push((*field, name, file));
                }
            }
        }
        Ok(found)
    }

    /// The names that a field's files have.
    pub(super) fn names(&self, field: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in self.of(field)? {
            let files = weight_files(&folder)?;
            names.extend(files.iter().filter_map(|file| file.file_stem()).map(text));
        }
        Ok(names)
    }
}

/// The file or folder of a name in a folder and its folders; a name may have an ending, and begin with its folders.
///
/// # Errors
///
/// [`Error::Request`] when there are several.
pub(super) fn find(field: &'static str, name: &str, folder: &Path) -> Result<Option<PathBuf>> {
    let wanted = Path::new(name);
    // Nothing outside of the folder has a name.
    let is_inside = wanted.components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !is_inside {
        return Ok(None);
    }
    let files = weight_files(folder)?;
    let named = |same: &dyn Fn(&str, &str) -> bool| -> Vec<&PathBuf> {
        let is_named = |path: &&PathBuf| {
            let inside = path.strip_prefix(folder).unwrap_or(path);
            let slashed = |path: &Path| path.to_string_lossy().replace('\\', "/");
            let whole = [slashed(inside), slashed(&inside.with_extension(""))];
            let last =
                [path.file_name(), path.file_stem()].map(|n| n.map(text).unwrap_or_default());
            whole.iter().chain(&last).any(|found| same(found, &slashed(wanted)))
        };
        files.iter().filter(is_named).collect()
    };
    let mut found = named(&|a, b| a == b);
    if found.is_empty() {
        found = named(&|a, b| a.to_lowercase() == b.to_lowercase());
    }
    // The same file in several formats.
    if let [first, rest @ ..] = found.as_slice()
        && rest.iter().all(|path| path.with_extension("") == first.with_extension(""))
    {
        let rank = |path: &Path| EXTENSIONS.iter().position(|known| is_of(path, known));
        return Ok(found.into_iter().min_by_key(|path| rank(path)).cloned());
    }
    if let [one, other, ..] = found.as_slice() {
        let reason = format!("`{name}` may be {} or {}", one.display(), other.display());
        return Err(
            Error::request(field, reason).with_hint("write its folder too, or name the file")
        );
    }
    // A diffusers pipeline, or an adapter of PEFT.
    let inner = folder.join(wanted);
    Ok(inner.is_dir().then_some(inner))
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
            if path.is_dir() {
                folders.push(path);
            } else if EXTENSIONS.iter().any(|known| is_of(&path, known)) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn text(name: &std::ffi::OsStr) -> String {
    name.to_string_lossy().into_owned()
}

fn is_of(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The folders of a field in a models folder.
fn arranged(root: &Path, field: &str) -> Result<Vec<PathBuf>> {
    let known = ARRANGED.iter().filter(|(fields, _)| fields.contains(&field));
    let mut found = Vec::new();
    for name in known.flat_map(|(_, names)| *names) {
        for prefix in ["", "models/"] {
            found.extend(inner(root, &format!("{prefix}{name}"))?);
        }
    }
    // `loras` and `Lora` may be one folder, where capitals do not matter.
    let mut seen = BTreeSet::new();
    found.retain(|folder| folder.canonicalize().is_ok_and(|folder| seen.insert(folder)));
    Ok(found)
}

/// Whether a models folder has folders of the known names.
fn is_arranged(root: &Path) -> Result<bool> {
    for field in ARRANGED.iter().filter_map(|(fields, _)| fields.first()) {
        if !arranged(root, field)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The folders of a relative path, in any capitals.
fn inner(root: &Path, path: &str) -> Result<Vec<PathBuf>> {
    let mut found = vec![root.to_path_buf()];
    for name in path.split('/') {
        let mut next = Vec::new();
        for folder in &found {
            for entry in std::fs::read_dir(folder).map_err(Error::file(folder))? {
                let entry = entry.map_err(Error::file(folder))?;
                let is_named = entry.file_name().eq_ignore_ascii_case(name);
                next.extend(Some(entry.path()).filter(|path| is_named && path.is_dir()));
            }
        }
        next.sort();
        found = next;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A models folder with these files.
    fn folders(files: &[&str]) -> (tempfile::TempDir, Folders) {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let folders = Folders::new("models-dir", vec![root.path().to_path_buf()]).unwrap();
        (root, folders)
    }

    /// Where a name leads, below the models folder.
    fn found(files: &[&str], field: &'static str, name: &str) -> Result<Option<String>> {
        let (root, folders) = folders(files);
        let path = folders.find(field, name)?;
        let inside = |path: PathBuf| path.strip_prefix(root.path()).unwrap().to_path_buf();
        Ok(path.map(|path| inside(path).to_string_lossy().replace('\\', "/")))
    }

    #[test]
    fn names_lead_into_the_folders_of_comfyui_and_a1111() {
        let comfy = [
            "models/checkpoints/sd/dreamshaper.safetensors",
            "models/loras/style.safetensors",
            "models/controlnet/canny.pth",
            "models/vae/mse.pt",
            "models/animatediff_models/mm.ckpt",
            "models/clip_vision/h/model.safetensors",
        ];
        for (field, name, path) in [
            ("model", "dreamshaper", 0),
            ("model", "sd/dreamshaper", 0),
            ("checkpoint", "DreamShaper.safetensors", 0),
            ("lora", "style", 1),
            ("lcm-lora", "style.safetensors", 1),
            ("control", "canny", 2),
            ("vae", "mse", 3),
            ("motion", "mm.ckpt", 4),
            ("image-encoder", "h/model", 5),
        ] {
            let path = Some(comfy[path].to_owned());
            assert_eq!(found(&comfy, field, name).unwrap(), path, "{field} {name}");
        }
        // A LoRA is no checkpoint, and nothing outside of the folder has a name.
        assert_eq!(found(&comfy, "model", "style").unwrap(), None);
        assert_eq!(found(&comfy, "model", "../loras/style").unwrap(), None);
        let a1111 = [
            "models/Stable-diffusion/a.ckpt",
            "models/Lora/b.pt",
            "models/ControlNet/c.pth",
            "embeddings/d.pt",
            "extensions/sd-webui-animatediff/model/e.ckpt",
        ];
        for (i, (field, name)) in
            [("model", "a"), ("lora", "b"), ("control", "c"), ("embedding", "d"), ("motion", "e")]
                .into_iter()
                .enumerate()
        {
            assert_eq!(found(&a1111, field, name).unwrap(), Some(a1111[i].to_owned()), "{field}");
        }
    }

    #[test]
    fn a_plain_folder_is_for_every_field_but_embeddings() {
        let (_root, folders) = folders(&["a.safetensors", "b/c.pt"]);
        assert!(folders.find("model", "a").unwrap().is_some());
        assert!(folders.find("lora", "c").unwrap().is_some());
        assert!(folders.arranged("embedding").unwrap().is_empty());
    }

    #[test]
    fn the_same_name_twice_is_refused_unless_only_the_format_differs() {
        let files = ["loras/a.pt", "loras/a.safetensors", "loras/x/b.pt", "loras/y/b.pt"];
        let lora = |name| found(&files, "lora", name);
        assert_eq!(lora("a").unwrap().as_deref(), Some("loras/a.safetensors"));
        assert_eq!(lora("a.pt").unwrap().as_deref(), Some("loras/a.pt"));
        let error = lora("b").unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.to_string().contains("`b` may be"), "{error}");
        assert_eq!(lora("y/b").unwrap().as_deref(), Some("loras/y/b.pt"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = Folders::new("models-dir", vec!["/nowhere/at/all".into()]).unwrap_err();
        assert_eq!(error.to_string(), "models-dir: /nowhere/at/all is not a folder");
    }
}
