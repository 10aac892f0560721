//! What a command tells: exit statuses, errors for people, `--json`.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// How a command ended. The number is the exit status, and scripts rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As asked, and all of it verified.
    Done = 0,
    /// Done, but something did not verify, was refused or failed; each has been named.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The machine lacks what is needed; it has been named, with the next step.
    Lacking = 3,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome as u8)
    }
}

/// Why a command could not do what was asked: what happened, and what to do next.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub outcome: Outcome,
    /// What happened and why, a line.
    pub what: String,
    /// What to do next, a line; empty where nothing can be said.
    pub next: String,
}

impl Failure {
    /// Something failed or did not verify (exit status 1).
    pub fn failed(what: impl Display) -> Self {
        Self { outcome: Outcome::Failed, what: what.to_string(), next: String::new() }
    }

    /// The command line is wrong (exit status 2).
    pub fn usage(what: impl Display) -> Self {
        Self { outcome: Outcome::Usage, what: what.to_string(), next: String::new() }
    }

    /// The machine lacks what is needed (exit status 3).
    pub fn lacking(what: impl Display) -> Self {
        Self { outcome: Outcome::Lacking, what: what.to_string(), next: String::new() }
    }

    /// The same, with the next step.
    #[must_use]
    pub fn next(mut self, next: impl Display) -> Self {
        self.next = next.to_string();
        self
    }
}

/// Prints an error for people on standard error.
pub fn complain(failure: &Failure) {
    let mut stderr = std::io::stderr().lock();
    // Nothing is left to tell anybody when standard error is gone.
    let _ = writeln!(stderr, "imara: {}", failure.what);
    if !failure.next.is_empty() {
        let _ = writeln!(stderr, "       next: {}", failure.next);
    }
}

/// Writes to standard output; a reader that went away (`| head`) ends the program quietly, as tools do.
pub fn print(text: impl Display) {
    let mut stdout = std::io::stdout().lock();
    if write!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
        std::process::exit(Outcome::Failed as i32);
    }
}

/// Prints a JSON document on standard output, two-space indented.
pub fn print_json(value: &serde_json::Value) {
    print(format_args!("{value:#}\n"));
}
