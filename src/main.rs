//! The command line program.

fn main() -> std::process::ExitCode {
    animatelcm::cli::main()
}
