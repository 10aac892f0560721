//! `imara policy`: the IMA policy language, one subcommand a file.

mod boot;
mod builtin;
mod check;
mod diff;
mod explain;
mod load;
mod show;
pub(crate) mod target;
mod test;
pub(crate) mod this_machine;

use super::CommandResult;
use crate::output::Failure;
use clap::{Args, Subcommand};
use imara_format::policy::{BUILTIN_NAMES, Policy, Target, builtin as builtin_policy};
use std::path::Path;

/// IMA policies: check, compare, explain, simulate, show and replace.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Check),
    Test(test::Test),
    Diff(diff::Diff),
    Explain(explain::Explain),
    Builtin(builtin::Builtin),
    Show(show::Show),
    Load(load::Load),
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
        Command::Test(test) => test.run(),
        Command::Diff(diff) => diff.run(),
        Command::Explain(explain) => explain.run(),
        Command::Builtin(builtin) => builtin.run(),
        Command::Show(show) => show.run(),
        Command::Load(load) => load.run(),
        Command::Boot(boot) => boot.run(),
    }
}

/// A file's content; `-` is standard input.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    super::paths::read(path).map_err(|error| Failure::failed(format!("{}: cannot be read: {error}", path.display())))
}

/// A policy's text: a file's, standard input for `-`, or the kernel's own for `builtin:NAME`.
fn read_source(path: &Path) -> Result<Vec<u8>, Failure> {
    let Some(name) = path.to_str().and_then(|path| path.strip_prefix("builtin:")) else {
        return read(path);
    };
    let policy = builtin_policy(name).ok_or_else(|| {
        Failure::usage(format_args!("no built-in policy `{name}`"))
            .next(format_args!("one of {}; or ./builtin:{name} for a file", BUILTIN_NAMES.join(", ")))
    })?;
    Ok(policy.to_string().into_bytes())
}

/// A policy as `target` takes it.
fn read_policy(path: &Path, target: &Target) -> Result<Policy, Failure> {
    Policy::parse(&read_source(path)?, target).map_err(|errors| {
        let lines: Vec<String> = errors.iter().take(3).map(ToString::to_string).collect();
        let more = if errors.len() > lines.len() { "; …" } else { "" };
        Failure::failed(format_args!("{}: {}{more}", path.display(), shown(&lines.join("; "))))
            .next(format_args!("imara policy check {}", path.display()))
    })
}

/// Text as a terminal may show it: a control character becomes a single stand-in, so that columns stay.
fn shown(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '\t' => ' ',
            _ if letter.is_control() => '\u{fffd}',
            _ => letter,
        })
        .collect()
}

/// The same of several lines.
fn shown_lines(text: &str) -> String {
    text.split('\n').map(shown).collect::<Vec<_>>().join("\n")
}
