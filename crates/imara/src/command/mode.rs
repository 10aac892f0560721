//! `imara mode`.

use super::{CommandResult, RuntimeDirectory};
use crate::guard::control::{Request, ask};
use crate::output::{Outcome, print, print_json};

/// Switch what the running guard does with a file that does not pass.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to switch to.
    #[arg(value_parser = ["enforce", "log", "fix", "off"])]
    mode: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// Runs it.
///
/// # Errors
/// There is no guard, or it cannot.
pub fn run(arguments: Arguments) -> CommandResult {
    let answer = ask(&arguments.runtime.runtime_dir, &Request::Mode { mode: arguments.mode })?;
    if arguments.json {
        print_json(&answer);
    } else {
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        print(format_args!("mode: {} (was {})\n", text("mode"), text("from")));
    }
    Ok(Outcome::Done)
}
