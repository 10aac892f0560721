//! `imara policy`: the IMA policy language, one subcommand a file.

mod boot;
mod builtin;
mod check;

use super::CommandResult;
use crate::output::Failure;
use clap::{Args, Subcommand};
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// IMA policies: check, built-in ones, what a kernel has from boot.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Check),
    Builtin(builtin::Builtin),
    Boot(boot::Boot),
}

/// The number of the JSON documents' form.
const SCHEMA: u32 = 1;

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Command::Check(check) => check.run(),
        Command::Builtin(builtin) => builtin.run(),
        Command::Boot(boot) => boot.run(),
    }
}

/// A file's content; `-` is standard input.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = if path == Path::new("-") {
        let mut text = Vec::new();
        io::stdin().lock().read_to_end(&mut text).map(|_| text)
    } else {
        fs::read(path)
    };
    read.map_err(|error| Failure::failed(format!("{}: cannot be read: {error}", path.display())))
}
