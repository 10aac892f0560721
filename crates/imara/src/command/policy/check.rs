//! `imara policy check`: would a kernel, or the guard, take this policy?

use super::{SCHEMA, read};
use crate::command::CommandResult;
use crate::output::{Outcome, print, print_json};
use clap::{Args, ValueEnum};
use imara_format::policy::{KernelVersion, Lsm, LsmLabels, Policy, PolicyError, Target, lines, parse_line};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// Check a policy as a kernel would take it.
///
/// Exit status: 0 it is taken, 1 it is refused (each refused line is shown), 2 wrong command line.
#[derive(Args)]
pub struct Check {
    /// The kernel that is to take it.
    #[arg(long, value_enum, default_value_t = Kernel::Latest)]
    kernel: Kernel,
    /// The kernel's security module, which label conditions ask.
    #[arg(long, value_enum, default_value_t = SecurityModule::None)]
    lsm: SecurityModule,
    /// Take the labels named as known to the security module; otherwise it knows none, and refuses them.
    #[arg(long)]
    known_labels: bool,
    /// The kernel is built with appended signatures (modsig).
    #[arg(long)]
    modsig: bool,
    /// Check as Imara's own guard takes it, not a kernel.
    #[arg(long, conflicts_with_all = ["kernel", "lsm", "known_labels", "modsig"])]
    guard: bool,
    /// Judge each line alone, as if it were written to the kernel by itself.
    #[arg(long)]
    each_line: bool,
    /// Print JSON: one document, or with --each-line one object a line.
    #[arg(long)]
    json: bool,
    /// The policy; `-` is standard input.
    file: PathBuf,
}

/// A kernel whose language and parameters are known.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Kernel {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    Latest,
}

impl Kernel {
    pub(super) const fn version(self) -> KernelVersion {
        match self {
            Self::V6_1 => KernelVersion::V6_1,
            Self::V6_12 => KernelVersion::V6_12,
            Self::Latest => KernelVersion::Latest,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum SecurityModule {
    #[value(name = "apparmor")]
    AppArmor,
    #[value(name = "selinux")]
    Selinux,
    Smack,
    None,
}

/// What a kernel takes of one write, in bytes: a page, less its end.
const MAX_WRITE: usize = 4095;

impl Check {
    /// Runs it.
    ///
    /// # Errors
    /// The policy cannot be read.
    pub fn run(&self) -> CommandResult {
        let text = read(&self.file)?;
        if self.each_line { Ok(self.each_line(&text)) } else { Ok(self.whole(&text)) }
    }

    fn target(&self) -> Target {
        if self.guard {
            return Target::guard();
        }
        let lsm = match self.lsm {
            SecurityModule::AppArmor => Lsm::AppArmor,
            SecurityModule::Selinux => Lsm::Selinux,
            SecurityModule::Smack => Lsm::Smack,
            SecurityModule::None => Lsm::None,
        };
        let lsm_labels = if self.known_labels { LsmLabels::Known } else { LsmLabels::Unknown };
        Target { lsm, lsm_labels, modsig: self.modsig, ..Target::kernel(self.kernel.version()) }
    }

    fn taker(&self) -> String {
        let target = self.target();
        match self.guard {
            true => "the guard".to_owned(),
            false if target.kernel == KernelVersion::Latest => "the latest Linux".to_owned(),
            false => format!("Linux {}", target.kernel),
        }
    }

    fn each_line(&self, text: &[u8]) -> Outcome {
        let target = self.target();
        let mut outcome = Outcome::Done;
        for (number, line) in lines(text) {
            let written = if self.guard { line } else { line.get(..MAX_WRITE).unwrap_or(line) };
            let error = parse_line(written, number, &target).err();
            let cut = (written.len() < line.len()).then_some("only the first 4095 bytes of a write are read");
            if error.is_some() {
                outcome = Outcome::Failed;
            }
            if self.json {
                let message = error.as_ref().map(|error| error.kind.to_string()).or(cut.map(str::to_owned));
                let verdict = json!({
                    "line": number,
                    "verdict": if error.is_some() { "reject" } else { "accept" },
                    "errno": error.as_ref().map(|error| error.errno.name()),
                    "message": message,
                });
                print(format_args!("{verdict}\n"));
            } else {
                match (&error, cut) {
                    (Some(error), _) => {
                        print(format_args!("{number}\treject\t{}\t{}\n", error.errno, shown(&error.kind.to_string())))
                    }
                    (None, Some(cut)) => print(format_args!("{number}\taccept\t\t{cut}\n")),
                    (None, None) => print(format_args!("{number}\taccept\n")),
                }
            }
        }
        outcome
    }

    fn whole(&self, text: &[u8]) -> Outcome {
        let parsed = Policy::parse(text, &self.target());
        let (rules, errors) = match &parsed {
            Ok(policy) => (policy.rules.len(), [].as_slice()),
            Err(errors) => (0, errors.as_slice()),
        };
        let empty = parsed.is_ok() && rules == 0;
        let warnings = if self.guard { Vec::new() } else { warnings(text) };
        let accepted = parsed.is_ok() && (self.guard || !empty);
        if self.json {
            print_json(&json!({
                "schema": SCHEMA,
                "file": self.file.display().to_string(),
                "for": self.taker(),
                "verdict": if accepted { "accept" } else { "reject" },
                "rules": parsed.as_ref().ok().map(|_| rules),
                "errors": errors.iter().map(error_json).collect::<Vec<_>>(),
                "warnings": warnings,
            }));
        } else {
            let name = self.file.display().to_string();
            let lines: Vec<_> = lines(text).map(|(_, line)| line).collect();
            let mut said: String = errors.iter().map(|error| diagnostic(&name, &lines, error)).collect();
            for warning in &warnings {
                said.push_str(&format!("{name}: warning: {warning}\n"));
            }
            if empty && !accepted {
                said.push_str(&format!("{name}: no rule: the kernel would put nothing in force\n"));
            } else if !accepted {
                let noun = if errors.len() == 1 { "line" } else { "lines" };
                said.push_str(&format!("{name}: {} {noun} refused by {}\n", errors.len(), self.taker()));
            }
            // Nothing is left to tell anybody when standard error is gone.
            let _ = io::stderr().lock().write_all(said.as_bytes());
            if accepted {
                let noun = if rules == 1 { "rule" } else { "rules" };
                print(format_args!("{name}: {rules} {noun}, taken by {}\n", self.taker()));
            }
        }
        if accepted { Outcome::Done } else { Outcome::Failed }
    }
}

/// What a kernel takes in one way and not in the other.
fn warnings(text: &[u8]) -> Vec<String> {
    let mut warnings = Vec::new();
    if !text.is_empty() && !text.ends_with(b"\n") {
        warnings.push(
            "the last line has no newline: the kernel refuses it (EINVAL) when it is given the file's path".to_owned(),
        );
    }
    for (number, line) in lines(text).filter(|(_, line)| line.len() > MAX_WRITE) {
        let length = line.len();
        warnings.push(format!(
            "line {number} has {length} bytes: of a rule that is written to it the kernel reads {MAX_WRITE}; give it the file's path"
        ));
    }
    warnings
}

fn error_json(error: &PolicyError) -> Value {
    json!({
        "line": error.line,
        "column": error.column,
        "token": error.token,
        "errno": error.errno.name(),
        "message": error.kind.to_string(),
        "hint": error.hint(),
    })
}

/// An error with its line, the token marked.
fn diagnostic(name: &str, lines: &[&[u8]], error: &PolicyError) -> String {
    let line = error.line.checked_sub(1).and_then(|index| lines.get(index)).copied().unwrap_or_default();
    let number = error.line.to_string();
    let mut out =
        format!("{name}:{}:{}: {} ({})\n", error.line, error.column, shown(&error.kind.to_string()), error.errno);
    out.push_str(&marked(&number, line, error.column.saturating_sub(1), error.length));
    if !error.hint().is_empty() {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {:width$} = {}", "", shown(&error.hint()), width = number.len());
    }
    out
}

/// A part of `line`, with the `length` bytes from `offset` on marked below; `label` stands before it.
pub(super) fn marked(label: &str, line: &[u8], offset: usize, length: usize) -> String {
    /// What is shown of a long line, in characters, before the token and from it on.
    const BEFORE: usize = 60;
    const AFTER: usize = 80;
    let (before, from) = line.split_at_checked(offset).unwrap_or((line, b""));
    let (token, after) = from.split_at_checked(length).unwrap_or((from, b""));
    // Bytes beyond what can be shown are not looked at, however many there are.
    let lossy = |bytes: &[u8]| shown(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * AFTER)]));
    let tail = |bytes: &[u8]| shown(&String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4 * BEFORE)..]));
    let before = tail(before);
    let skipped = before.chars().count().saturating_sub(BEFORE);
    let before: String = before.chars().skip(skipped).collect();
    let (token, after) = (lossy(token), lossy(after));
    let marks = "^".repeat(token.chars().count().clamp(1, AFTER));
    let rest: String = token.chars().chain(after.chars()).take(AFTER).collect();
    let (width, indent) = (label.len(), before.chars().count());
    format!("  {label} | {before}{rest}\n  {:width$} | {:indent$}{marks}\n", "", "")
}

/// Text as a terminal may show it: a control character becomes a single stand-in, so that columns stay.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '\t' => ' ',
            _ if letter.is_control() => '\u{fffd}',
            _ => letter,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostics(text: &[u8]) -> String {
        let errors = Policy::parse(text, &Target::guard()).unwrap_err();
        let lines: Vec<_> = lines(text).map(|(_, line)| line).collect();
        errors.iter().map(|error| diagnostic("p", &lines, error)).collect()
    }

    #[test]
    fn an_error_is_shown_with_its_token_marked() {
        assert_eq!(
            diagnostics(b"measure\nmeasure\tfnc=BPRM_CHECK uid=0\n"),
            "p:2:9: `fnc=BPRM_CHECK` is not a word of the policy language (EINVAL)\n  \
               2 | measure fnc=BPRM_CHECK uid=0\n    \
                 |         ^^^^^^^^^^^^^^\n    \
                 = did you mean `func=BPRM_CHECK`?\n"
        );
    }

    #[test]
    fn a_hostile_line_is_shown_short_and_plain() {
        let long = [b"measure uid=0 ".as_slice(), &b"x".repeat(1 << 20), b" \x1b[31m"].concat();
        for text in
            [long.as_slice(), b"measure \x1b[31m", b"\0", b"measure \xff\xfe\xfd", "\u{e4}".repeat(500).as_bytes()]
        {
            let shown = diagnostics(text);
            assert!(shown.len() < 2000 && !shown.contains('\x1b') && shown.contains('^'), "{shown}");
        }
    }

    #[test]
    fn what_only_one_way_of_loading_takes_is_warned_of() {
        assert_eq!(warnings(b"measure\n"), Vec::<String>::new());
        assert_eq!(warnings(b"measure").len(), 1);
        assert_eq!(warnings(&[b"measure".as_slice(), &b" ".repeat(4090), b"\n"].concat()).len(), 1);
    }
}
