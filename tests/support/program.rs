//! The real program, run in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A temporary folder that the program runs in; names of files are relative to it.
#[derive(Debug)]
pub(crate) struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    /// An empty folder.
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Reads a file.
    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The names of everything in it, hidden things included, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        names(self.folder.path())
    }

    /// The program with arguments, ready to run here; it knows no downloaded model and no network.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_animatelcm"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("HF_HOME", self.path("no-models"))
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("HF_TOKEN")
            .env_remove("ANIMATELCM_MODELS")
            .env("ANIMATELCM_CONFIG", "")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        let output = self.command(args).output().unwrap();
        Outcome::new(args, output)
    }

    /// Starts the program with pipes for what it says.
    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// The names of everything in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    line: String,
    pub(crate) code: Option<i32>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    /// What the program left when it ran with these arguments.
    pub(crate) fn new(args: &[&str], output: Output) -> Self {
        let mut line = args.join(" ");
        // A prompt may have a hundred thousand letters.
        line = line.chars().take(400).collect();
        Self {
            line,
            code: output.status.code(),
            bytes: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What it wrote to stdout, as text.
    #[track_caller]
    pub(crate) fn stdout(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap()
    }

    /// It must have worked.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "`{}` failed: {}", self.line, self.stderr);
        assert!(!self.stderr.contains("error:"), "`{}`: {}", self.line, self.stderr);
        self
    }

    /// It must have ended with `code` and exactly one `error:` line, perhaps with a hint, and no result.
    ///
    /// Returns the line.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32) -> &str {
        let Self { line, stderr, .. } = self;
        assert_eq!(self.code, Some(code), "`{line}`: {stderr}");
        assert!(self.bytes.is_empty(), "`{line}` printed a result: {:?}", self.stdout());
        assert!(!stderr.contains("panicked"), "`{line}`: {stderr}");
        let found: Vec<&str> = stderr.lines().skip_while(|l| !l.starts_with("error: ")).collect();
        let is_clear = match found.as_slice() {
            [_] => true,
            [_, hint] => hint.starts_with("hint: ") && hint.len() > 8,
            _ => false,
        };
        assert!(is_clear, "`{line}` is not one error and perhaps a hint: {stderr}");
        let is_plain = !found[0].contains(char::is_control);
        assert!(is_plain, "`{line}` sends control characters to the terminal: {stderr:?}");
        assert!(found[0].chars().count() < 700, "`{line}` says too much: {stderr}");
        found[0]
    }

    /// The advice after the error.
    pub(crate) fn hint(&self) -> &str {
        self.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).unwrap_or_default()
    }

    /// The result as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", self.stdout()))
    }

    /// The events on stderr, one a line.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        self.stderr.lines().map(parse).collect()
    }
}
