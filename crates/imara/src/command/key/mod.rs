//! `imara key`: key material, one subcommand a file.

mod generate;
mod passphrase;

use super::CommandResult;

pub use passphrase::Passphrase;

/// Key material: generate.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Generate(generate::Generate),
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Command::Generate(generate) => generate.run(),
    }
}
