//! The command line program.

#[global_allocator]
static ALLOCATOR: animatelcm::cli::Allocator = animatelcm::cli::Allocator;

fn main() -> std::process::ExitCode {
    animatelcm::cli::main()
}
