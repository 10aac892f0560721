//! What a command tells: exit statuses, errors for people, `--json`.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// How much is told, and in which colours; every command takes it.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Telling {
    /// Print nothing but errors
    #[arg(short, long, global = true, display_order = 900)]
    pub quiet: bool,
    /// Tell on standard error what is read and asked on the way
    #[arg(short, long, global = true, display_order = 901)]
    pub verbose: bool,
    /// Colour errors and warnings; NO_COLOR in the environment turns `auto` off
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t, display_order = 902)]
    pub color: Color,
}

/// When errors and warnings have colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal
    #[default]
    Auto,
    /// Everywhere
    Always,
    /// Nowhere
    Never,
}

static TELLING: OnceLock<Telling> = OnceLock::new();

/// Sets how much is told; the first call counts.
pub fn set_telling(telling: Telling) {
    let _ = TELLING.set(telling);
}

fn telling() -> Telling {
    TELLING.get().copied().unwrap_or_default()
}

fn is_coloured() -> bool {
    match telling().color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            !unwanted && std::io::stderr().is_terminal()
        }
    }
}

/// A word in a colour of the terminal's, where that is wanted: 31 is red, 33 yellow.
fn coloured(code: u8, word: &str) -> String {
    if is_coloured() { format!("\x1b[1;{code}m{word}\x1b[0m") } else { word.to_owned() }
}

/// Tells on standard error, where `--verbose` asks for it, what is done on the way.
pub fn tell(what: impl Display) {
    if telling().verbose {
        // As for errors.
        let _ = writeln!(std::io::stderr().lock(), "imara: {}", shown(&what.to_string()));
    }
}

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
    /// Of all files of trees or lists nothing was done: there were none, or each failed.
    Nothing = 4,
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
    let _ = writeln!(stderr, "{} {}", coloured(31, "imara:"), shown(&failure.what));
    if !failure.next.is_empty() {
        let _ = writeln!(stderr, "       next: {}", shown(&failure.next));
    }
}

/// Prints a warning for people on standard error.
pub fn warn(what: impl Display) {
    // As above.
    let _ = writeln!(std::io::stderr().lock(), "imara: {} {}", coloured(33, "warning:"), shown(&what.to_string()));
}

/// Without the control characters that a name may hold which somebody else has chosen.
fn shown(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter }).collect()
}

/// Writes to standard output; a reader that went away (`| head`) ends the program quietly, as tools do.
pub fn print(text: impl Display) {
    if telling().quiet {
        return;
    }
    let mut stdout = std::io::stdout().lock();
    if write!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
        std::process::exit(Outcome::Failed as i32);
    }
}

/// Prints a JSON document on standard output, two-space indented.
pub fn print_json(value: &serde_json::Value) {
    print(format_args!("{value:#}\n"));
}

/// A time for people, from seconds since 1970: `2026-11-24 03:32:26 UTC`.
pub fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that the leap day is the last one; 719 468 days before 1970 is the first of March of year 0,
    // and 146 097 days make the 400 years after which the calendar repeats.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + next_year;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_in_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_795_491_146, "2026-11-24 03:32:26 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
        // No number from outside makes it panic.
        assert!(utc(u64::MAX).ends_with("UTC"));
    }
}
