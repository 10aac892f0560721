//! `imara policy diff`: which rules two policies differ in, and which events they decide differently.

use super::target::Taker;
use super::{SCHEMA, read_policy, shown_lines};
use crate::command::CommandResult;
use crate::output::{Failure, Outcome, print, print_json};
use clap::Args;
use imara_engine::policy_difference::{Case, Comparison, Difference, Edit, compare, edits};
use imara_format::policy::{AlgorithmSet, Policy, Rule};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Compare two policies: their rules, and what they mean.
///
/// Every event that their rules can tell apart is decided by both. Exit status: 0 they decide alike, 1 they do not, or
/// there were too many events to be sure (which is said), 2 wrong command line.
#[derive(Args)]
pub struct Diff {
    #[command(flatten)]
    taker: Taker,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The policy before: a file, `-` for standard input, or `builtin:NAME`.
    #[arg(value_name = "A")]
    before: PathBuf,
    /// The policy after.
    #[arg(value_name = "B")]
    after: PathBuf,
}

impl Diff {
    /// Runs it.
    ///
    /// # Errors
    /// A policy cannot be read, or is not valid.
    pub fn run(&self) -> CommandResult {
        if self.before == Path::new("-") && self.after == Path::new("-") {
            return Err(Failure::usage("standard input cannot be both policies"));
        }
        let (target, _) = self.taker.target()?;
        let (before, after) = (read_policy(&self.before, &target)?, read_policy(&self.after, &target)?);
        let edits = edits(&before, &after);
        let comparison = compare(&before, &after, target.lsm).merged();
        if self.json {
            print_json(&json!({
                "schema": SCHEMA,
                "a": self.before.display().to_string(),
                "b": self.after.display().to_string(),
                "verdict": if comparison.is_same() { "same" } else if is_unsure(&comparison) { "unsure" } else { "different" },
                "complete": comparison.complete,
                "rules": edits.iter().map(|edit| edit_json(*edit, &before, &after)).collect::<Vec<_>>(),
                "meaning": comparison.differences.iter().map(|found| found_json(found, &before, &after)).collect::<Vec<_>>(),
                "setxattr_algorithms": comparison.setxattr_algorithms.map(|[before, after]| json!({
                    "before": before.map(names),
                    "after": after.map(names),
                })),
            }));
        } else {
            let title = format!("A  {}\nB  {}\n", self.before.display(), self.after.display());
            let rules = rules_for_people(&edits, &before, &after);
            let meaning = meaning_for_people(&comparison, &before, &after);
            print(shown_lines(&(title + &rules + &meaning)));
        }
        Ok(if comparison.is_same() { Outcome::Done } else { Outcome::Failed })
    }
}

/// Whether no difference was found, and not everything was looked at.
fn is_unsure(comparison: &Comparison) -> bool {
    !comparison.complete && comparison.differences.is_empty() && comparison.setxattr_algorithms.is_none()
}

fn names(algorithms: AlgorithmSet) -> Vec<&'static str> {
    algorithms.iter().map(|algorithm| algorithm.name()).collect()
}

fn edit_json(edit: Edit, before: &Policy, after: &Policy) -> Value {
    let (change, a, b) = match edit {
        Edit::Removed(from) => ("removed", before.rules.get(from), None),
        Edit::Added(to) => ("added", None, after.rules.get(to)),
        Edit::Moved { from, to } => ("moved", before.rules.get(from), after.rules.get(to)),
    };
    json!({
        "change": change,
        "a_line": a.map(|rule| rule.line),
        "b_line": b.map(|rule| rule.line),
        "text": a.or(b).map(Rule::to_string),
    })
}

fn found_json(found: &Difference, before: &Policy, after: &Policy) -> Value {
    let side = |done: &str, by: Option<usize>, policy: &Policy| json!({ "done": done, "line": by.and_then(|by| policy.rules.get(by)).map(|rule| rule.line) });
    let [done_before, done_after] = found.words();
    json!({
        "class": found.class.name(),
        "when": found.cases.iter().map(Case::to_string).collect::<Vec<_>>(),
        "more": found.more,
        "before": side(&done_before, found.before_by, before),
        "after": side(&done_after, found.after_by, after),
        "example": found.example.to_string(),
    })
}

fn rules_for_people(edits: &[Edit], before: &Policy, after: &Policy) -> String {
    if edits.is_empty() {
        return "\nThe rules are the same.\n".into();
    }
    let mut out = "\nRules\n".to_owned();
    let line = |policy: &Policy, at: usize| policy.rules.get(at).map(|rule| (rule.line, rule.to_string()));
    for edit in edits {
        let (sign, place, text) = match *edit {
            Edit::Removed(from) => ("-", line(before, from).map(|(line, text)| (format!("A {line}"), text)), None),
            Edit::Added(to) => ("+", line(after, to).map(|(line, text)| (format!("B {line}"), text)), None),
            Edit::Moved { from, to } => {
                ("~", line(before, from).map(|(line, text)| (format!("A {line}"), text)), line(after, to))
            }
        };
        let Some((place, rule)) = place else { continue };
        let place = text.map_or(place.clone(), |(line, _)| format!("{place} to B {line}"));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {sign} {place:<12} {rule}");
    }
    out
}

fn meaning_for_people(comparison: &Comparison, before: &Policy, after: &Policy) -> String {
    /// How many differences are shown, and how many cases of each.
    const DIFFERENCES: usize = 40;
    const SHOWN: usize = 6;
    let mut out = String::new();
    let side = |done: &str, by: Option<usize>, policy: &Policy, name: &str| {
        let rule = by.and_then(|by| policy.rules.get(by));
        let by = rule.map_or_else(|| format!("no rule of {name}"), |rule| format!("{name} line {}: {rule}", rule.line));
        format!("{done} ({by})")
    };
    // Writing to a string cannot fail.
    for found in comparison.differences.iter().take(DIFFERENCES) {
        let _ = writeln!(out);
        for case in found.cases.iter().take(SHOWN) {
            let _ = writeln!(out, "  {case}");
        }
        if found.more || found.cases.len() > SHOWN {
            let _ = writeln!(out, "  and more cases, such as {}", found.example);
        }
        let [done_before, done_after] = found.words();
        let _ = writeln!(out, "      before  {}", side(&done_before, found.before_by, before, "A"));
        let _ = writeln!(out, "      now     {}", side(&done_after, found.after_by, after, "B"));
    }
    if comparison.differences.len() > DIFFERENCES {
        let _ = writeln!(out, "\n  and {} more, which --json shows", comparison.differences.len() - DIFFERENCES);
    }
    if let Some(algorithms) = comparison.setxattr_algorithms {
        let [before, after] =
            algorithms.map(|set| set.map_or_else(|| "any algorithm".to_owned(), |set| set.to_string()));
        let _ = writeln!(out, "\n  writing security.ima\n      before  {before}\n      now     {after}");
    }
    let count = comparison.differences.len() + usize::from(comparison.setxattr_algorithms.is_some());
    let summary = match (count, comparison.complete) {
        (0, true) => "They decide every event alike.".to_owned(),
        (0, false) => "No difference was found, but there are too many events to look at them all.".to_owned(),
        (count, complete) => {
            let noun = if count == 1 { "difference" } else { "differences" };
            let bound =
                if complete { "" } else { "; there may be more, for there are too many events to look at them all" };
            format!("{count} {noun} in meaning{bound}.")
        }
    };
    let heading = if count == 0 { "" } else { "\nMeaning\n" };
    format!("{heading}{}\n{summary}\n", out.strip_prefix('\n').unwrap_or(&out))
}
