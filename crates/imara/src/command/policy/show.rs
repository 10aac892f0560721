//! `imara policy show`: the policy in force now.

use super::{SCHEMA, shown};
use crate::command::{CommandResult, RuntimeDirectory};
use crate::guard::control::{AskError, Request, ask};
use crate::output::{Failure, Outcome, print, print_json};
use clap::Args;
use imara_linux::kernel_ima;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Show the policy in force now: the running guard's, with how often each rule decided; else the kernel's own.
///
/// Accesses that the kernel does not ask about any more, because nothing is left to do for their file, are not counted.
#[derive(Args)]
pub struct Show {
    /// Only the rules, as a policy that can be loaded again.
    #[arg(long)]
    text: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "text")]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

impl Show {
    /// Runs it.
    ///
    /// # Errors
    /// No policy is in force that could be read.
    pub fn run(&self) -> CommandResult {
        let document = match ask(&self.runtime.runtime_dir, &Request::Policy) {
            Ok(document) => document,
            Err(AskError::NoGuard(failure)) => kernels(failure)?,
            Err(error) => return Err(error.into()),
        };
        if self.json {
            print_json(&document);
        } else {
            print(if self.text { rules(&document) } else { for_people(&document) });
        }
        Ok(Outcome::Done)
    }
}

/// The kernel's own policy, where there is no guard.
fn kernels(no_guard: Failure) -> Result<Value, Failure> {
    match kernel_ima::policy() {
        Ok(Some(text)) => {
            let rules: Vec<Value> = text
                .lines()
                .zip(1..)
                .map(|(rule, number)| json!({ "rule": number, "line": number, "text": rule.trim_end() }))
                .collect();
            Ok(json!({
                "schema": SCHEMA,
                "provider": "kernel",
                "policy": { "path": kernel_ima::POLICY },
                "rules": rules,
            }))
        }
        Ok(None) => Err(no_guard),
        Err(error) => Err(Failure::lacking(format_args!(
            "{}; and the kernel does not show its own policy: {}: {error}",
            no_guard.what,
            kernel_ima::POLICY
        ))
        .next("it needs root, and a kernel with CONFIG_IMA_READ_POLICY")),
    }
}

fn rules(document: &Value) -> String {
    let rules = document["rules"].as_array().into_iter().flatten();
    rules.map(|rule| format!("{}\n", rule["text"].as_str().unwrap_or_default())).collect()
}

fn for_people(document: &Value) -> String {
    let mut out = String::new();
    let policy = &document["policy"];
    let word = |name: &str| shown(policy[name].as_str().unwrap_or_default());
    // Writing to a String cannot fail.
    let _ = write!(out, "# {}", word("path"));
    if let Some(version) = policy["version"].as_u64() {
        let _ = write!(out, ", version {version}");
    }
    if !policy["signed_by"].is_null() {
        let _ = write!(out, ", signed by the key {}", word("signed_by"));
    }
    out.push('\n');
    let rules = document["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    let number = |rule: &Value, name: &str| rule[name].as_u64().unwrap_or_default().to_string();
    let widest = |name: &str| rules.iter().map(|rule| number(rule, name).len()).max().unwrap_or(1).max(name.len());
    let (rule_width, hits_width) = (widest("rule"), widest("hits"));
    let counted = document["provider"] == "guard";
    if rules.is_empty() {
        out.push_str("# no rules: nothing is measured or appraised\n");
    } else if counted {
        let _ = writeln!(out, "# {:>rule_width$}  {:>hits_width$}", "rule", "hits");
    }
    for rule in rules {
        let text = shown(rule["text"].as_str().unwrap_or_default());
        let _ = match counted {
            true => {
                writeln!(out, "  {:>rule_width$}  {:>hits_width$}  {text}", number(rule, "rule"), number(rule, "hits"))
            }
            false => writeln!(out, "  {:>rule_width$}  {text}", number(rule, "rule")),
        };
    }
    out
}
