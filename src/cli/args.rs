//! The commands.

use clap::{Parser, Subcommand};

use super::flags::{
    CompletionsArgs, ConfigArgs, GenerateArgs, InspectArgs, ManArgs, ProgressMode, ReplayArgs,
};
use super::{about, examples};

/// Few-step video diffusion: a prompt becomes a clip in about four steps.
#[derive(Debug, Parser)]
#[command(name = "animatelcm", version, long_version = about::VERSION.as_str())]
#[command(max_term_width = 100, after_long_help = examples::PROGRAM)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a clip from a prompt.
    #[command(after_help = examples::MORE, after_long_help = examples::GENERATE)]
    Generate(Box<GenerateArgs>),
    /// Make the clips of a list, each once.
    #[command(after_help = examples::MORE, after_long_help = examples::BATCH)]
    Batch(Box<super::batch::BatchArgs>),
    /// Show what a file or folder is.
    #[command(after_help = examples::MORE, after_long_help = examples::INSPECT)]
    Inspect(InspectArgs),
    /// Make a clip again from its own metadata.
    #[command(after_help = examples::MORE, after_long_help = examples::REPLAY)]
    Replay(ReplayArgs),
    /// Make hints for controls of pictures and videos.
    #[command(after_help = examples::MORE, after_long_help = examples::PREPROCESS)]
    Preprocess(Box<super::preprocess::PreprocessArgs>),
    /// Measure how often clips show what their prompts say.
    #[command(after_help = examples::MORE, after_long_help = examples::EVAL)]
    Eval(Box<super::eval::EvalArgs>),
    /// Make a model.
    #[cfg(feature = "train")]
    #[command(after_help = examples::MORE, after_long_help = examples::TRAIN)]
    Train(super::train::TrainArgs),
    /// Measure speed and memory.
    #[command(after_help = examples::MORE, after_long_help = examples::BENCH)]
    Bench(Box<super::bench::BenchArgs>),
    /// Make clips for other programs and a page, by HTTP.
    #[cfg(feature = "server")]
    #[command(after_help = examples::MORE, after_long_help = examples::SERVE)]
    Serve(Box<super::serve::ServeArgs>),
    /// Make clips for `serve` on another machine.
    #[cfg(feature = "nats")]
    #[command(hide = true, after_help = examples::MORE, after_long_help = examples::WORKER)]
    Worker(Box<super::worker::WorkerArgs>),
    /// Make keys for clients of `serve`.
    #[cfg(feature = "server")]
    #[command(hide = true, after_long_help = examples::KEYS)]
    Keys(super::serve::KeysArgs),
    /// List, download, check and remove published models.
    #[cfg(feature = "hub")]
    #[command(after_help = examples::MORE, after_long_help = examples::MODELS)]
    Models(super::models::ModelsArgs),
    /// Show the configuration file.
    #[command(after_long_help = examples::CONFIG)]
    Config(ConfigArgs),
    /// Print completions for a shell.
    #[command(after_long_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
    /// Print the manual page of the program or of a command.
    #[command(hide = true, after_long_help = examples::MAN)]
    Man(ManArgs),
    /// Print the licences of the program and of all that it contains.
    Licenses,
}

impl Cli {
    /// The number of threads that was asked for.
    pub(super) fn threads(&self) -> Option<usize> {
        match &self.command {
            Command::Bench(args) => args.threads(),
            _ => None,
        }
    }

    /// Returns whether errors, too, are written as JSON events.
    pub(super) fn wants_json_events(&self) -> bool {
        match &self.command {
            Command::Generate(args) => args.reporting.progress == ProgressMode::Json,
            Command::Batch(args) => args.reporting.progress == ProgressMode::Json,
            Command::Replay(args) => args.reporting.progress == ProgressMode::Json,
            #[cfg(feature = "hub")]
            Command::Models(args) => args.progress == ProgressMode::Json,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
