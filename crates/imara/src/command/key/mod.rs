//! `imara key`: key material, one subcommand a file.

pub(crate) mod encrypted;
pub mod evm_key;
mod generate;
mod kept;
pub mod load;
pub mod master;
mod passphrase;
mod places;
pub(crate) mod secret;
mod setup;
mod steps;
mod trusted;

use super::CommandResult;

pub use passphrase::Passphrase;

/// Key material: signing keys, encrypted keys, trusted keys.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Setup(setup::Setup),
    Load(load::Load),
    Generate(generate::Generate),
    Encrypted(encrypted::Arguments),
    Trusted(trusted::Arguments),
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    // Secrets pass through this process: no core dump, no debugger of another.
    imara_linux::sys::process::forbid_dumps();
    match arguments.command {
        Command::Setup(setup) => setup.run(),
        Command::Load(load) => load.run(),
        Command::Generate(generate) => generate.run(),
        Command::Encrypted(encrypted) => encrypted::run(encrypted),
        Command::Trusted(trusted) => trusted::run(trusted),
    }
}
