//! `imara evm`: labels over files' metadata, one subcommand a file.

use super::CommandResult;

mod enable;
pub mod explain;
mod hmac;
pub mod metadata;
mod provider;
pub mod rules;
pub mod sign;
mod states;
pub mod status;
mod verify;
mod xattrs;

/// EVM: labels over files' metadata, so that owner, mode and security attributes cannot be changed unnoticed.
///
/// What each label covers, what breaks it and how to get out is in docs/evm.md.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Hmac(hmac::Arguments),
    Verify(verify::Arguments),
    Explain(explain::Arguments),
    Sign(sign::Arguments),
    Status(status::Arguments),
    Enable(enable::Arguments),
    Xattrs(xattrs::Arguments),
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Command::Hmac(arguments) => hmac::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Sign(arguments) => sign::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Enable(arguments) => enable::run(&arguments),
        Command::Xattrs(arguments) => xattrs::run(&arguments),
    }
}
