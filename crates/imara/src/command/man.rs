//! `imara man`: the man pages, made from the commands themselves.

use super::{CommandResult, Imara, Imarad};
use crate::output::{Failure, Outcome, print};
use clap::CommandFactory;
use std::path::PathBuf;

/// Write the man pages of all commands into a directory.
#[derive(clap::Args)]
pub struct Arguments {
    /// The directory.
    directory: PathBuf,
}

/// Runs it.
///
/// # Errors
/// The directory cannot be written to.
pub fn run(arguments: &Arguments) -> CommandResult {
    let failed = |error| Failure::failed(format_args!("{}: {error}", arguments.directory.display()));
    std::fs::create_dir_all(&arguments.directory).map_err(failed)?;
    for command in [Imara::command(), Imarad::command()] {
        clap_mangen::generate_to(command, &arguments.directory).map_err(failed)?;
    }
    print(format_args!("{}: the man pages of imara and imarad\n", arguments.directory.display()));
    Ok(Outcome::Done)
}
