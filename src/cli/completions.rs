//! `animatelcm completions` and `animatelcm man`: what shells and manuals know of the command line.

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::args::Cli;
use super::flags::{CompletionsArgs, ManArgs};
use super::print;
use crate::{Error, Result};

pub(super) fn run(args: &CompletionsArgs) -> Result<()> {
    let mut bytes = Vec::new();
    clap_complete::generate(args.shell, &mut with_models(), "animatelcm", &mut bytes);
    print(&String::from_utf8_lossy(&bytes))
}

/// All commands, with the names that `models` takes.
fn with_models() -> Command {
    let command = Cli::command();
    #[cfg(feature = "hub")]
    let command = {
        let names =
            clap::builder::PossibleValuesParser::new(crate::hub::manifest::embedded_names());
        let take = |command: Command| {
            command.mut_args(|arg| {
                if arg.is_positional() { arg.value_parser(names.clone()) } else { arg }
            })
        };
        command.mut_subcommand("models", |models| models.mut_subcommands(take))
    };
    command
}

pub(super) fn man(args: &ManArgs) -> Result<()> {
    print(&page(args.command.as_deref())?)
}

/// The manual page of the program or of a command.
fn page(name: Option<&str>) -> Result<String> {
    let mut program = Cli::command();
    program.build();
    let command = match name {
        None => program,
        Some(name) => {
            let Some(found) = program.find_subcommand(name) else {
                let names: Vec<&str> =
                    program.get_subcommands().map(clap::Command::get_name).collect();
                return Err(Error::request("man", format!("`{name}` is not a command"))
                    .with_hint(format!("there are {}", names.join(", "))));
            };
            // After `build` it is called `animatelcm-generate`, as `man` looks for it.
            found.clone()
        }
    };
    let mut bytes = Vec::new();
    let source = concat!("animatelcm ", env!("CARGO_PKG_VERSION"));
    Man::new(command).source(source).render(&mut bytes).map_err(Error::file("stdout"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let text = page(Some(name)).unwrap();
            assert!(text.contains(&format!(".TH animatelcm-{name}")), "{text}");
        }
        assert!(page(None).unwrap().contains(".TH animatelcm"));
        let error = page(Some("generat")).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.hint().unwrap().contains("generate"), "{error:?}");
    }
}
