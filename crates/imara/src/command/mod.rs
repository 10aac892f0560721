//! The command line: one subcommand a file.

use crate::output::{self, Failure, Outcome, Telling, complain};
use clap::{Parser, Subcommand};
use imara_linux::interruption;
use named::Named;
use std::process::ExitCode;

pub mod certificates;
pub mod change;
pub mod clear;
pub mod duration;
pub mod each_file;
pub mod events;
pub mod evm;
pub mod evmctl;
pub mod explain;
pub mod guard;
pub mod hash;
pub mod hmac_key;
pub mod key;
pub mod keyring;
pub mod labelling;
pub mod man;
pub mod measurement;
pub mod metrics;
pub mod mode;
pub mod named;
pub mod new_files;
pub mod paths;
pub mod pcr_files;
pub mod policy;
pub mod progress;
pub mod report;
pub mod selection;
pub mod show;
pub mod sign;
pub mod signing;
pub mod status;
pub mod telling;
pub mod token;
pub mod tpm;
pub mod trace;
pub mod undo;
pub mod verify;
pub mod verity;

/// An integrity subsystem for Linux: signs, guards, measures, appraises and proves files, in the kernel's own formats.
#[derive(Parser)]
#[command(name = "imara", version, propagate_version = true)]
pub struct Imara {
    #[command(flatten)]
    telling: Telling,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Key(Named<key::Arguments>),
    Keyring(Named<keyring::Arguments>),
    Sign(Named<sign::Arguments>),
    Hash(Named<hash::Arguments>),
    Verify(Named<verify::Arguments>),
    Show(Named<show::Arguments>),
    Clear(Named<clear::Arguments>),
    Undo(Named<undo::Arguments>),
    Verity(Named<verity::Arguments>),
    Evm(Named<evm::Arguments>),
    Guard(Named<guard::Arguments>),
    Status(Named<status::Arguments>),
    Events(Named<events::Arguments>),
    Report(Named<report::Arguments>),
    Explain(Named<explain::Arguments>),
    Mode(Named<mode::Arguments>),
    Measurement(Named<measurement::Arguments>),
    Policy(Named<policy::Arguments>),
    Tpm(Named<tpm::Arguments>),
    Trace(Named<trace::Arguments>),
    /// Waits to roll a switch of the mode back (`imara mode --for` starts it).
    #[command(hide = true)]
    RollBack(Named<crate::guard::rollback::Arguments>),
    /// Watches over the guard that started it.
    #[command(hide = true)]
    Sentinel(Named<crate::guard::sentinel::Arguments>),
    #[command(hide = true)]
    Man(Named<man::Arguments>),
}

/// Which running guard is meant.
#[derive(clap::Args)]
pub struct RuntimeDirectory {
    /// The running guard's runtime directory.
    #[arg(long, value_name = "DIR", default_value = crate::guard::config::DEFAULT_RUNTIME_DIRECTORY)]
    pub runtime_dir: std::path::PathBuf,
}

/// The daemon: `imara guard` as a service.
#[derive(Parser)]
#[command(name = "imarad", version, args_conflicts_with_subcommands = true)]
struct Imarad {
    #[command(flatten)]
    guard: guard::Arguments,
    #[command(subcommand)]
    beside: Option<Beside>,
}

/// What the daemon starts beside itself.
#[derive(Subcommand)]
enum Beside {
    /// Watches over the guard that started it.
    #[command(hide = true)]
    Sentinel(crate::guard::sentinel::Arguments),
}

/// Runs `imarad` with the process's arguments.
pub fn daemon() -> ExitCode {
    let imarad = Imarad::parse();
    finish(match imarad.beside {
        None => guard::run(imarad.guard),
        Some(Beside::Sentinel(arguments)) => crate::guard::sentinel::watch(&arguments).map(|()| Outcome::Done),
    })
}

/// What a subcommand returns: how it ended, or why it could not do what was asked.
pub type CommandResult = Result<Outcome, Failure>;

/// Runs `imara` with the process's arguments.
pub fn main() -> ExitCode {
    named::by_the_command_line();
    let imara = Imara::parse();
    output::set_telling(imara.telling);
    let status = finish(match imara.command {
        Command::Key(Named(arguments)) => key::run(arguments),
        Command::Keyring(Named(arguments)) => keyring::run(arguments),
        Command::Sign(Named(arguments)) => sign::run(&arguments),
        Command::Hash(Named(arguments)) => hash::run(&arguments),
        Command::Clear(Named(arguments)) => clear::run(&arguments),
        Command::Undo(Named(arguments)) => undo::run(&arguments),
        Command::Verify(Named(arguments)) => verify::run(&arguments),
        Command::Show(Named(arguments)) => show::run(&arguments),
        Command::Verity(Named(arguments)) => verity::run(arguments),
        Command::Evm(Named(arguments)) => evm::run(arguments),
        Command::Guard(Named(arguments)) => guard::run(arguments),
        Command::Events(Named(arguments)) => events::run(arguments),
        Command::Report(Named(arguments)) => report::run(arguments),
        Command::Status(Named(arguments)) => status::run(arguments),
        Command::Explain(Named(arguments)) => explain::run(arguments),
        Command::Mode(Named(arguments)) => mode::run(arguments),
        Command::Measurement(Named(arguments)) => measurement::run(arguments),
        Command::Policy(Named(arguments)) => policy::run(arguments),
        Command::Tpm(Named(arguments)) => tpm::run(arguments),
        Command::Trace(Named(arguments)) => trace::run(arguments),
        Command::RollBack(Named(arguments)) => crate::guard::rollback::wait(&arguments).map(|()| Outcome::Done),
        Command::Sentinel(Named(arguments)) => crate::guard::sentinel::watch(&arguments).map(|()| Outcome::Done),
        Command::Man(Named(arguments)) => man::run(&arguments),
    });
    // What was to be told has been told.
    if let Some(signal) = interruption::came() {
        interruption::end_by(signal);
    }
    status
}

fn finish(result: CommandResult) -> ExitCode {
    result
        .unwrap_or_else(|failure| {
            complain(&failure);
            failure.outcome
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Every visible command that has none below it, by its words, and which of `wanted` it lacks.
    fn lacking(command: &clap::Command, words: &str, wanted: &str, found: &mut Vec<String>) {
        let below: Vec<_> =
            command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help").collect();
        for below in &below {
            lacking(below, &format!("{words} {}", below.get_name()), wanted, found);
        }
        if below.is_empty() && !command.get_arguments().any(|argument| argument.get_long() == Some(wanted)) {
            found.push(words.trim_start().to_owned());
        }
    }

    #[test]
    fn every_command_takes_what_all_take() {
        let mut imara = Imara::command();
        imara.build();
        for (option, but) in [
            ("quiet", &[][..]),
            ("verbose", &[]),
            ("color", &[]),
            // These print a form of their own that is asked for, or nothing.
            ("json", &["guard", "measurement convert"]),
        ] {
            let mut found = Vec::new();
            lacking(&imara, "", option, &mut found);
            assert_eq!(found, but, "--{option}");
        }
    }
}
