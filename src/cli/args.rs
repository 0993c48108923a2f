//! The commands.

use clap::{Parser, Subcommand};

use super::flags::{GenerateArgs, InspectArgs, ProgressMode, ReplayArgs};

/// Few-step video diffusion: a prompt becomes a short clip in about four denoising steps.
#[derive(Debug, Parser)]
#[command(name = "animatelcm", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 ok, 1 internal or I/O error, 2 usage or request, 3 weights missing or incompatible,
4 memory or device, 5 hash or licence refused, 6 part of a batch failed, 130 interrupted.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a clip from a prompt.
    Generate(Box<GenerateArgs>),
    /// Show what a checkpoint, an adapter or a clip is.
    Inspect(InspectArgs),
    /// Make a clip again from its own metadata.
    Replay(ReplayArgs),
    /// Measure how often clips show what their prompts say.
    Eval(Box<super::eval::EvalArgs>),
    /// Make a model.
    #[cfg(feature = "train")]
    Train(super::train::TrainArgs),
    /// Measure speed and memory.
    Bench(Box<super::bench::BenchArgs>),
    /// List, download, check and remove published models.
    #[cfg(feature = "hub")]
    Models(super::models::ModelsArgs),
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
            Command::Replay(args) => args.reporting.progress == ProgressMode::Json,
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
