//! Settings from environment variables, as in huggingface_hub.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{ENDPOINT, Settings};
use crate::{Error, Result, files};

impl Settings {
    /// Settings from `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    ///
    /// When there is no home folder, or the endpoint is not an http or https URL.
    pub fn from_environment() -> Result<Self> {
        settings_from(&|name| std::env::var_os(name), std::env::home_dir().as_deref())
    }
}

/// See <https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>.
fn settings_from(
    variable: &dyn Fn(&str) -> Option<OsString>,
    user_home: Option<&Path>,
) -> Result<Settings> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let folder = |name: &str| set(name).map(|value| expand(PathBuf::from(value), user_home));
    let home = folder("HF_HOME")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| user_home.map(|home| home.join(".cache").join("huggingface")));
    let Some(cache) = folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| home.as_ref().map(|home| home.join("hub")))
    else {
        return Err(Error::request("HF_HOME", "must be set, because there is no home folder"));
    };

    let mut settings = Settings::new(std::path::absolute(&cache).map_err(Error::file(&cache))?);
    if let Some(endpoint) = set("HF_ENDPOINT") {
        let endpoint = endpoint.to_string_lossy().trim_end_matches('/').to_owned();
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let reason = format!("`{endpoint}` is not an address like {ENDPOINT}");
            return Err(Error::request("HF_ENDPOINT", reason));
        }
        settings.endpoint = endpoint;
    }
    let token_file = folder("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
    settings.token = set("HF_TOKEN")
        .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
        .map(|token| token.to_string_lossy().into_owned())
        .or_else(|| files::read_text(&token_file?).ok())
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty());
    settings.offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
        let value = value.to_string_lossy().to_uppercase();
        matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
    });
    Ok(settings)
}

/// Expands a leading `~`, which the shell leaves in some values.
fn expand(path: PathBuf, user_home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), user_home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Settings> {
        let lookup = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        settings_from(&lookup, Some(Path::new("/nobody")))
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        for (variables, cache) in [
            (&[][..], "/nobody/.cache/huggingface/hub"),
            (&[("HF_HOME", "")], "/nobody/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/h/hub"),
            (&[("HF_HOME", "~/h")], "/nobody/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        ] {
            assert_eq!(from(variables).unwrap().cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn offline_is_any_of_four_words() {
        for (value, offline) in
            [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("", false)]
        {
            assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).unwrap().offline, offline, "{value}");
        }
    }

    #[test]
    fn the_token_comes_from_the_variable_before_the_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home = home.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).unwrap().token.as_deref(), Some("hf_file"));
        let both = from(&[("HF_HOME", home), ("HF_TOKEN", "hf_variable")]).unwrap();
        assert_eq!(both.token.as_deref(), Some("hf_variable"));
        assert_eq!(from(&[("HF_HOME", "/nowhere")]).unwrap().token, None);
    }

    #[test]
    fn the_endpoint_loses_its_slash_and_must_be_an_address() {
        let mirror = from(&[("HF_ENDPOINT", "https://mirror.example/")]).unwrap();
        assert_eq!(mirror.endpoint, "https://mirror.example");
        assert_eq!(from(&[]).unwrap().endpoint, ENDPOINT);
        let error = from(&[("HF_ENDPOINT", "mirror.example")]).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Request);
    }

    #[test]
    fn the_token_is_not_in_the_debug_output() {
        let settings = from(&[("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{settings:?}").contains("hf_secret"));
    }
}
