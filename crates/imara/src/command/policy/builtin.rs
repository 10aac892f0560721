//! `imara policy builtin`: the policies that a kernel carries within it.

use super::SCHEMA;
use crate::command::CommandResult;
use crate::output::{Failure, Outcome, print, print_json};
use clap::Args;
use imara_format::policy::{BUILTIN_NAMES, builtin};
use serde_json::json;

/// Print a policy that the kernel carries within it.
#[derive(Args)]
pub struct Builtin {
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Its name, as `ima_policy=` takes it; `ima_tcb` and `ima_appraise_tcb` are the old parameters.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(BUILTIN_NAMES))]
    name: String,
}

impl Builtin {
    /// Runs it.
    ///
    /// # Errors
    /// There is no such policy.
    pub fn run(&self) -> CommandResult {
        let policy =
            builtin(&self.name).ok_or_else(|| Failure::usage(format!("no built-in policy `{}`", self.name)))?;
        if self.json {
            let rules: Vec<_> = policy.rules.iter().map(ToString::to_string).collect();
            print_json(&json!({ "schema": SCHEMA, "name": self.name, "rules": rules }));
        } else {
            print(&policy);
            if policy.rules.is_empty() {
                print("# no rules: it makes signatures fail on filesystems that cannot be trusted\n");
            }
        }
        Ok(Outcome::Done)
    }
}
