//! `imara policy`: the IMA policy language, one subcommand a file.

mod builtin;
mod check;
mod load;
mod show;
mod test;

use super::CommandResult;
use crate::output::Failure;
use clap::{Args, Subcommand};
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// IMA policies: check, compare, simulate, show and replace.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Check),
    Test(test::Test),
    Builtin(builtin::Builtin),
    Show(show::Show),
    Load(load::Load),
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
        Command::Test(test) => test.run(),
        Command::Builtin(builtin) => builtin.run(),
        Command::Show(show) => show.run(),
        Command::Load(load) => load.run(),
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
