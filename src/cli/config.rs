//! `config.toml`: defaults for the flags of `generate`, by the flags' names.
//!
//! Flags that are typed override it; with `--request`, so does the request.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command as Definition};
use toml::{Table, Value};

use super::args::{Cli, Command};
use super::flags::{ConfigArgs, ConfigCommand};
use super::{print, typed};
use crate::{Error, Result, files, spelling};

/// The variable that names another file; empty, it means none.
const VARIABLE: &str = "ANIMATELCM_CONFIG";

/// Flags that belong to one command line.
const TYPED_ONLY: [&str; 5] = ["help", "request", "dump-request", "trust-paths", "caption"];

/// Flags that a request has no field for, which is why they count beside one.
const BESIDE_REQUESTS: [&str; 13] = [
    "caption-model",
    "lora-dir",
    "embedding-dir",
    "models-dir",
    "offline",
    "progress",
    "json",
    "quiet",
    "verbose",
    "overwrite",
    "preview",
    "open",
    "no-metadata",
];

/// Flags that choose among the frames of a video to start from.
const OF_VIDEOS: [&str; 3] = ["video-fps", "video-from", "video-every"];

/// Flags for clips that start from an image.
const OF_IMAGES: [&str; 3] = ["motion-scale", "insertion-weights", "color-match"];

/// Flags that count for every command that has them.
const EVERYWHERE: [&str; 2] = ["models-dir", "offline"];

pub(super) fn run(args: &ConfigArgs) -> Result<()> {
    let path = place(&|name| std::env::var_os(name), std::env::home_dir().as_deref());
    let Some(path) = path else {
        return Err(Error::request("config", format!("{VARIABLE} is empty: there is no file")));
    };
    match args.command {
        ConfigCommand::Path => print(&format!("{}\n", path.display())),
        ConfigCommand::Show => match Config::at(&path)? {
            Some(config) => print(&config.to_text()?),
            None => print(&format!("# {}: not there\n", path.display())),
        },
    }
}

/// A command line over the configuration.
///
/// # Errors
///
/// When the file cannot be read, a key is no flag, or a value is none of the flag's.
pub(super) fn over(cli: Cli, words: &[OsString]) -> Result<Cli> {
    if matches!(cli.command, Command::Config(_) | Command::Completions(_) | Command::Man(_)) {
        return Ok(cli);
    }
    let path = place(&|name| std::env::var_os(name), std::env::home_dir().as_deref());
    match path.map(|path| Config::at(&path)).transpose()?.flatten() {
        Some(config) => config.under(words),
        None => Ok(cli),
    }
}

/// Path of the configuration file; `None` if the variable is empty.
fn place(variable: &dyn Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = variable(VARIABLE) {
        return Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty());
    }
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let roaming = if cfg!(windows) { folder("APPDATA") } else { None };
    let folder = folder("XDG_CONFIG_HOME").or(roaming).or_else(|| Some(home?.join(".config")))?;
    Some(folder.join("animatelcm").join("config.toml"))
}

/// The contents of a configuration file.
#[derive(Debug)]
struct Config {
    path: PathBuf,
    /// Values by the flags' names.
    values: Table,
}

impl Config {
    /// The file at a path; none if there is none and nobody named it.
    fn at(path: &Path) -> Result<Option<Self>> {
        let is_named = std::env::var_os(VARIABLE).is_some();
        if !is_named && !path.exists() {
            return Ok(None);
        }
        let text = files::read_text(path).map_err(|e| Error::unreadable("config", path, &e))?;
        Self::parse(path, &text).map(Some)
    }

    /// Reads a configuration, whose keys must be flags of `generate`.
    fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong =
            |reason: &str| Error::request("config", format!("{}: {reason}", path.display()));
        let table: Table = toml::from_str(text).map_err(|error| {
            let message = error.message().replace('\n', " ");
            let line =
                error.span().map(|span| text.get(..span.start).unwrap_or_default().lines().count());
            wrong(&format!("line {}: {message}", line.unwrap_or(1).max(1)))
        })?;
        let definition = typed::definition();
        let known: Vec<&Arg> = definition
            .find_subcommand("generate")
            .into_iter()
            .flat_map(Definition::get_arguments)
            .collect();
        let mut values = Table::new();
        for (key, value) in table {
            let name = typed::spelled(&key);
            let is_named = |arg: &&&Arg| {
                let aliases = arg.get_all_aliases().unwrap_or_default();
                arg.get_long().into_iter().chain(aliases).any(|known| known == name)
            };
            let Some(name) = known.iter().find(is_named).and_then(|arg| arg.get_long()) else {
                let longs = known.iter().filter_map(|arg| arg.get_long());
                let near = spelling::nearest(&name, longs);
                let error = wrong(&format!("`{key}` is no flag of `generate`"));
                return Err(match near {
                    Some(near) => error.with_hint(format!("did you mean `{near}`?")),
                    None => error.with_hint("see `animatelcm generate --help`"),
                });
            };
            if TYPED_ONLY.contains(&name) {
                return Err(wrong(&format!("`{key}` can only be typed")));
            }
            if values.insert(name.to_owned(), value).is_some() {
                return Err(wrong(&format!("`{name}` is there twice, once by another name")));
            }
        }
        Ok(Self { path: path.to_path_buf(), values })
    }

    /// The file's path and its values.
    fn to_text(&self) -> Result<String> {
        let values = toml::to_string(&self.values)
            .map_err(|e| Error::Encode { format: "toml", reason: e.to_string() })?;
        Ok(format!("# {}\n{values}", self.path.display()))
    }

    /// The command line with the defaults that it leaves to the file.
    fn under(&self, words: &[OsString]) -> Result<Cli> {
        let wrong =
            |reason: String| Error::request("config", format!("{}: {reason}", self.path.display()));
        let matches = typed::matches(words).map_err(|error| wrong(typed::reason(&error)))?;
        let definition = typed::definition();
        let Some((name, matches)) = matches.subcommand() else { return self.parsed(words) };
        let Some(command) = definition.find_subcommand(name) else { return self.parsed(words) };
        let mut all = words.to_vec();
        let defaults = self.words(command, matches).map_err(wrong)?;
        // Behind the command's name.
        let at = all.len().min(2);
        all.splice(at..at, defaults);
        self.parsed(&all)
    }

    fn parsed(&self, words: &[OsString]) -> Result<Cli> {
        typed::parse(words).map_err(|error| {
            let reason = format!("{}: {}", self.path.display(), typed::reason(&error));
            Error::request("config", reason)
        })
    }

    /// The words for the flags that were not typed.
    fn words(&self, command: &Definition, typed: &ArgMatches) -> Result<Vec<OsString>, String> {
        let is_generate = command.get_name() == "generate";
        let is_typed = |id: &str| {
            typed.try_contains_id(id).is_ok()
                && typed.value_source(id) == Some(ValueSource::CommandLine)
        };
        let has_request = is_generate && is_typed("request");
        // An image or video that is typed replaces one of the file, whichever it is.
        let is_source_typed = is_typed("image") || is_typed("video");
        let has =
            |name: &str| is_typed(name) || (!is_source_typed && self.values.contains_key(name));
        let (has_image, has_video) = (has("image"), has("video"));
        let has_pictures = has_image
            || has_video
            || [("control", "control"), ("ip-adapter", "ip_adapter")]
                .iter()
                .any(|(name, id)| is_typed(id) || self.values.contains_key(*name));
        let is_anything_kept =
            ["keep", "mask"].iter().any(|name| is_typed(name) || self.values.contains_key(*name));
        let mut words = Vec::new();
        for (name, value) in &self.values {
            let is_for_nothing = match name.as_str() {
                "image" | "video" => is_source_typed,
                "strength" | "fit" | "keep" | "mask" => !has_image && !has_video,
                "caption-model" => is_generate && !is_typed("caption"),
                "overlay" => !(has_image || has_video) || !is_anything_kept,
                "background-color" => is_generate && !has_pictures,
                name if OF_IMAGES.contains(&name) => !has_image,
                name => OF_VIDEOS.contains(&name) && !has_video,
            };
            if is_for_nothing {
                continue;
            }
            let counts = EVERYWHERE.contains(&name.as_str())
                || (is_generate && (!has_request || BESIDE_REQUESTS.contains(&name.as_str())));
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name));
            let Some(arg) = arg.filter(|_| counts) else { continue };
            let is_prompt = name == "prompt" && is_typed("prompt");
            if !is_prompt && !is_typed(arg.get_id().as_str()) {
                flag(arg, name, value, &mut words)?;
            }
        }
        Ok(words)
    }
}

/// The words of a flag with a value.
fn flag(arg: &Arg, name: &str, value: &Value, words: &mut Vec<OsString>) -> Result<(), String> {
    let with = |value: &str| OsString::from(format!("--{name}={value}"));
    let takes_value = arg.get_action().takes_values();
    match value {
        // Of a flag whose value may be left out, too.
        Value::Boolean(is_on) if !takes_value || arg.is_require_equals_set() => {
            words.extend(is_on.then(|| OsString::from(format!("--{name}"))));
            return Ok(());
        }
        _ if !takes_value => return Err(format!("`{name}` must be true or false")),
        _ => {}
    }
    match value {
        Value::String(text) => words.push(with(&at_home(text))),
        Value::Integer(number) => words.push(with(&number.to_string())),
        Value::Float(number) => words.push(with(&number.to_string())),
        Value::Boolean(is_on) => words.push(with(&is_on.to_string())),
        Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
            for value in values.iter().filter(|value| !value.is_array()) {
                flag(arg, name, value, words)?;
            }
            if values.iter().any(Value::is_array) {
                return Err(format!("`{name}` must be a list of texts"));
            }
        }
        Value::Array(_) => return Err(format!("`{name}` takes one value")),
        Value::Datetime(_) | Value::Table(_) => {
            return Err(format!("`{name}` must be a text or a number"));
        }
    }
    Ok(())
}

/// A text whose leading `~/` is the home folder, as in a shell.
fn at_home(text: &str) -> String {
    match (text.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest).to_string_lossy().into_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{GenerateArgs, Seed};
    use crate::cli::preview::{PreviewTo, Protocol};

    fn config(text: &str) -> Result<Config> {
        Config::parse(Path::new("c.toml"), text)
    }

    fn generate(text: &str, words: &[&str]) -> Result<Box<GenerateArgs>> {
        let words = ["animatelcm", "generate"].iter().chain(words).map(OsString::from);
        let words: Vec<OsString> = words.collect();
        match config(text)?.under(&words)?.command {
            Command::Generate(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let text = "steps = 6\nseed = -1\nquiet = true\nlora = [\"a.pt:0.5\", \"b.pt\"]\nzero-snr = false\n\
                    prompt = \"a star\"\nguidance_scale = 2.5\n";
        let args = generate(text, &[]).unwrap();
        assert_eq!((args.sampling.steps, args.sampling.seed), (Some(6), Some(Seed::Random)));
        assert_eq!(args.sampling.cfg_scale, Some(2.5));
        assert_eq!((args.reporting.quiet, args.sampling.zero_snr), (true, Some(false)));
        assert_eq!(args.models.lora.len(), 2);
        assert_eq!(args.prompt_flag.as_deref(), Some("a star"));
        let args = generate(text, &["x", "--steps", "3", "--lora", "c.pt"]).unwrap();
        assert_eq!((args.sampling.steps, args.sampling.cfg_scale), (Some(3), Some(2.5)));
        assert_eq!(args.models.lora[0].file, "c.pt");
        assert_eq!((args.models.lora.len(), args.prompt_flag), (1, None));
    }

    #[test]
    fn a_request_goes_before_the_file_too() {
        let text = "steps = 6\nquiet = true\nzoom = 2\nopen = true\npreview = \"sixel\"";
        let args = generate(text, &["--request", "r.json"]).unwrap();
        assert_eq!((args.sampling.steps, args.reporting.quiet), (None, true));
        assert_eq!((args.output.zoom, args.output.open), (None, true));
        assert_eq!(args.output.preview, Some(PreviewTo::Terminal(Protocol::Sixel)));
    }

    #[test]
    fn what_is_of_a_source_counts_where_there_is_one() {
        let text = "strength = 0.6\nfit = \"crop\"\nvideo-fps = 8\n";
        let source = |text: &str, words: &[&str]| generate(text, words).unwrap().source;
        let none = source(text, &["x"]);
        assert!(none.strength.is_none() && none.fit.is_none() && none.video_fps.is_none());
        let video = source(text, &["x", "--video", "a.gif", "--fit", "pad"]);
        assert_eq!((video.strength, video.video_fps), (Some(0.6), Some(8.0)));
        assert_eq!(video.fit, Some(crate::media::resize::Fit::Pad));
        let image = source(text, &["x", "--init-img", "a.png"]);
        assert_eq!((image.strength, image.video_fps), (Some(0.6), None));
        let i2v = "motion-scale = 0.5\ninsertion-weights = [1, -0.5]\ncolor-match = false\n";
        let image = source(i2v, &["x", "--image", "a.png"]);
        assert_eq!((image.motion_scale, image.color_match), (Some(0.5), Some(false)));
        assert_eq!(image.insertion_weights, [1.0, -0.5]);
        let other = source(i2v, &["x", "--video", "a.gif"]);
        assert!(other.motion_scale.is_none() && other.insertion_weights.is_empty());
        let overlay = |words: &[&str]| source("overlay = false", words).overlay;
        assert_eq!(overlay(&["x"]), None);
        assert_eq!(overlay(&["x", "--image", "a.png"]), None);
        assert_eq!(overlay(&["x", "--image", "a.png", "--keep=0"]), Some(false));
        let color = "background-color = \"navy\"";
        let on = |words: &[&str]| source(color, words).background_color.map(|color| color.0);
        assert_eq!(on(&["x"]), None);
        assert_eq!(on(&["x", "--image", "a.png"]), Some([0, 0, 128]));
        assert_eq!(on(&["x", "--control", "a=b.png,model=c"]), Some([0, 0, 128]));
        let text = format!("{text}video = \"v.mp4\"\n");
        let image = source(&text, &["x", "--image", "a.png"]);
        assert_eq!((image.video, image.video_fps, image.strength), (None, None, Some(0.6)));
        let video = source(&text, &["x"]);
        assert_eq!((video.video.as_deref(), video.video_fps), (Some("v.mp4"), Some(8.0)));
        let other = source(&text, &["--request", "r.json"]);
        assert!(other.video.is_none() && other.strength.is_none());
    }

    #[test]
    fn the_network_for_captions_counts_where_one_is_asked_for() {
        let text = "caption-model = \"blip\"";
        assert_eq!(generate(text, &["x"]).unwrap().caption_model, None);
        let asked = ["--caption", "--image", "a.png", "--request", "r.json"];
        assert_eq!(generate(text, &asked).unwrap().caption_model.as_deref(), Some("blip"));
    }

    #[test]
    fn a_flag_whose_value_may_be_left_out_is_turned_on_or_off() {
        let preview = |text: &str| generate(text, &["x"]).unwrap().output.preview;
        assert_eq!(preview("preview = true"), Some(PreviewTo::Terminal(Protocol::Auto)));
        assert_eq!(preview("preview = false"), None);
    }

    #[test]
    fn other_commands_take_the_folders_of_models_only() {
        let config = config("steps = 6\nmodels-dir = \"m\"").unwrap();
        let words = ["animatelcm", "replay", "a.gif"].map(OsString::from);
        let Command::Replay(args) = config.under(&words).unwrap().command else { panic!() };
        assert_eq!(args.models_dir, [PathBuf::from("m")]);
        let words = ["animatelcm", "inspect", "a.gif"].map(OsString::from);
        assert!(config.under(&words).is_ok());
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named() {
        for (text, part, hint) in [
            ("stpes = 6", "`stpes` is no flag", "did you mean `steps`?"),
            ("colour = 6", "`colour` is no flag", "see `animatelcm generate --help`"),
            ("steps = many", "line 1", ""),
            ("trust-paths = true", "can only be typed", ""),
            ("caption = true", "can only be typed", ""),
            ("steps = 0", "must be at least 1", ""),
            ("quiet = 1", "`quiet` must be true or false", ""),
            ("steps = [1, 2]", "`steps` takes one value", ""),
            ("cfg-scale = 1\nguidance-scale = 2", "there twice", ""),
        ] {
            let error = generate(text, &["x"]).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2, "{text}");
            let message = error.to_string();
            assert!(message.starts_with("config: c.toml: ") && message.contains(part), "{message}");
            assert_eq!(error.hint().as_deref().unwrap_or_default(), hint, "{text}");
        }
    }

    #[test]
    fn the_file_is_where_the_variable_or_xdg_says() {
        let at = |variables: &[(&str, &str)]| {
            let lookup = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            };
            place(&lookup, Some(Path::new("/nobody")))
        };
        assert_eq!(at(&[("ANIMATELCM_CONFIG", "x.toml")]), Some("x.toml".into()));
        assert_eq!(at(&[("ANIMATELCM_CONFIG", "")]), None);
        #[cfg(unix)]
        {
            let file = "animatelcm/config.toml";
            assert_eq!(at(&[]), Some(Path::new("/nobody/.config").join(file)));
            assert_eq!(at(&[("XDG_CONFIG_HOME", "/x")]), Some(Path::new("/x").join(file)));
        }
    }
}
