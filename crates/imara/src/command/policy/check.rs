//! `imara policy check`: would a kernel, or the guard, take this policy, and what is likely wrong with it?

use super::target::Taker;
use super::{SCHEMA, read_source, shown};
use crate::command::CommandResult;
use crate::guard::policy_source::cannot_be_done;
use crate::guard::run::read_keys;
use crate::output::{Outcome, print, print_json};
use clap::Args;
use imara_engine::policy_analysis::{
    Context, MAX_WRITE, Support, Warning, WarningKind, text_warnings, warnings as policy_warnings,
};
use imara_format::policy::{Func, Policy, PolicyError, Rule, Target, lines, parse_line};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// Check a policy as a kernel would take it, and warn of what is likely wrong with it.
///
/// Exit status: 0 it is taken, 1 it is refused (each refused line is shown) or, with --deny-warnings, warned of, 2 wrong
/// command line, 3 --here, and the machine does not tell.
#[derive(Args)]
pub struct Check {
    #[command(flatten)]
    taker: Taker,
    /// The certificates or public keys that signatures are to be verified with; none at all is warned of where a rule
    /// requires a signature. Name them after the policy.
    #[arg(long, value_name = "CERT", num_args = 0..)]
    key: Option<Vec<PathBuf>>,
    /// End with 1 where there is a warning.
    #[arg(long, conflicts_with = "each_line")]
    deny_warnings: bool,
    /// Judge each line alone, as if it were written to the kernel by itself.
    #[arg(long)]
    each_line: bool,
    /// Print JSON: one document, or with --each-line one object a line.
    #[arg(long)]
    json: bool,
    /// The policy: a file, `-` for standard input, or `builtin:NAME` for one that the kernel carries within it.
    #[arg(value_name = "POLICY")]
    file: PathBuf,
}

impl Check {
    /// Runs it.
    ///
    /// # Errors
    /// The policy or a key cannot be read, or this machine does not tell what it supports.
    pub fn run(&self) -> CommandResult {
        let text = read_source(&self.file)?;
        let (target, support) = self.taker.target()?;
        if self.each_line {
            return Ok(self.each_line(&text, &target));
        }
        let keys = self.key.as_deref().map(read_keys).transpose()?.map(|keys| keys.keys().len());
        Ok(self.whole(&text, &target, support, keys))
    }

    /// What is likely wrong with the text and, if it was taken, with its rules.
    fn warnings(
        &self,
        text: &[u8],
        policy: Option<&Policy>,
        target: &Target,
        support: Option<Support>,
        keys: Option<usize>,
    ) -> Vec<Warning> {
        let guard = self.taker.guard;
        let mut warnings = if guard { Vec::new() } else { text_warnings(text) };
        let Some(policy) = policy else { return warnings };
        let context = Context { lsm: target.lsm, keys, support, pseudo_file_systems: !guard };
        warnings.extend(policy_warnings(policy, &context));
        if guard {
            let rules = policy.rules.iter().enumerate();
            warnings.extend(rules.filter_map(|(at, rule)| Some(unguarded(at, rule, beyond_guard(rule)?))));
        }
        warnings
    }

    fn each_line(&self, text: &[u8], target: &Target) -> Outcome {
        let mut outcome = Outcome::Done;
        for (number, line) in lines(text) {
            let written = if self.taker.guard { line } else { line.get(..MAX_WRITE).unwrap_or(line) };
            let error = parse_line(written, number, target).err();
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

    fn whole(&self, text: &[u8], target: &Target, support: Option<Support>, keys: Option<usize>) -> Outcome {
        let parsed = Policy::parse(text, target);
        let taker = self.taker.name(target);
        let (rules, errors) = match &parsed {
            Ok(policy) => (policy.rules.len(), [].as_slice()),
            Err(errors) => (0, errors.as_slice()),
        };
        let empty = parsed.is_ok() && rules == 0;
        let warnings = self.warnings(text, parsed.as_ref().ok(), target, support, keys);
        let accepted = parsed.is_ok() && (self.taker.guard || !empty);
        if self.json {
            print_json(&json!({
                "schema": SCHEMA,
                "file": self.file.display().to_string(),
                "for": taker,
                "verdict": if accepted { "accept" } else { "reject" },
                "rules": parsed.as_ref().ok().map(|_| rules),
                "errors": errors.iter().map(error_json).collect::<Vec<_>>(),
                "warnings": warnings.iter().map(warning_json).collect::<Vec<_>>(),
            }));
        } else {
            let name = self.file.display().to_string();
            let lines: Vec<_> = lines(text).map(|(_, line)| line).collect();
            let mut said: String = errors.iter().map(|error| diagnostic(&name, &lines, error)).collect();
            said.extend(warnings.iter().map(|warning| caution(&name, &lines, warning)));
            if empty && !accepted {
                said.push_str(&format!("{name}: no rule: the kernel would put nothing in force\n"));
            } else if !accepted {
                let noun = if errors.len() == 1 { "line" } else { "lines" };
                said.push_str(&format!("{name}: {} {noun} refused by {taker}\n", errors.len()));
            }
            // Nothing is left to tell anybody when standard error is gone.
            let _ = io::stderr().lock().write_all(said.as_bytes());
            if accepted {
                let noun = if rules == 1 { "rule" } else { "rules" };
                print(format_args!(
                    "{name}: {rules} {noun}, taken by {taker}{}\n",
                    match warnings.len() {
                        0 => String::new(),
                        1 => ", with a warning".to_owned(),
                        count => format!(", with {count} warnings"),
                    }
                ));
            }
        }
        let denied = self.deny_warnings && !warnings.is_empty();
        if accepted && !denied { Outcome::Done } else { Outcome::Failed }
    }
}

/// Why the guard cannot follow a rule.
fn beyond_guard(rule: &Rule) -> Option<String> {
    if let Some(why) = cannot_be_done(rule) {
        return Some(format!("{why}: it does not start with this policy"));
    }
    match rule.func? {
        // At level 1 a label is seen just after it was written, and refused when the file is used.
        Func::SetxattrCheck
        | Func::FileCheck
        | Func::MmapCheck
        | Func::MmapCheckReqprot
        | Func::BprmCheck
        | Func::CredsCheck => None,
        func @ (Func::PostSetattr
        | Func::ModuleCheck
        | Func::FirmwareCheck
        | Func::KexecKernelCheck
        | Func::KexecInitramfsCheck
        | Func::PolicyCheck
        | Func::KexecCmdline
        | Func::KeyCheck
        | Func::CriticalData) => Some(format!("the guard is not told of {func}: the rule has no effect")),
    }
}

fn unguarded(at: usize, rule: &Rule, message: String) -> Warning {
    let hint = "leave it to the kernel's own IMA".into();
    Warning { kind: WarningKind::Unsupported, rule: Some(at), line: rule.line, message, hint }
}

fn warning_json(warning: &Warning) -> Value {
    json!({
        "line": (warning.line != 0).then_some(warning.line),
        "kind": warning.kind.name(),
        "message": warning.message,
        "hint": warning.hint,
    })
}

/// A warning with its line.
fn caution(name: &str, lines: &[&[u8]], warning: &Warning) -> String {
    const SHOWN: usize = 120;
    let message = shown(&warning.message);
    let (mut out, indent) = match warning.line.checked_sub(1).and_then(|index| lines.get(index)) {
        Some(line) => {
            let text: String = shown(&String::from_utf8_lossy(&line[..line.len().min(4 * SHOWN)]));
            let text: String = text.chars().take(SHOWN).collect();
            let number = warning.line.to_string();
            (format!("{name}:{number}: warning: {message}\n  {number} | {text}\n"), number.len())
        }
        None => (format!("{name}: warning: {message}\n"), 0),
    };
    for (at, hint) in warning.hint.lines().enumerate() {
        let sign = if at == 0 { "=" } else { " " };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {:indent$} {sign} {}", "", shown(hint));
    }
    out
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
}
