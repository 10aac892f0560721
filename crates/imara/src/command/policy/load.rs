//! `imara policy load`: puts a policy in force in the running guard, or says why not.

use crate::command::paths::printable;
use crate::command::{CommandResult, RuntimeDirectory};
use crate::guard::control::{Request, ask};
use crate::guard::live_policy::{Load as LoadRequest, Placement};
use crate::output::{Failure, Outcome, print, print_json};
use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Put a policy in force in the running guard, in one transaction.
///
/// It is read, checked, verified where it is signed, asked about as a policy (POLICY_CHECK), and tried on everything that is
/// running now from the watched file systems; whatever is wrong leaves the policy before in force. In enforce mode a policy
/// that would refuse what is running now is not loaded without --force. Ends with 1 when it was not loaded, or when a
/// --dry-run says that something would be refused.
#[derive(Args)]
pub struct Load {
    /// The policy; without one, the file of the policy in force is read again.
    file: Option<PathBuf>,
    /// Put its rules behind those in force instead of in their place.
    #[arg(long)]
    append: bool,
    /// As the kernel would: the first load since the guard's start replaces, every later one appends.
    #[arg(long, conflicts_with = "append")]
    as_kernel: bool,
    /// Only say what would come of it.
    #[arg(long)]
    dry_run: bool,
    /// Load it also if it refuses what is running now, or has no rules.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

impl Load {
    /// Runs it.
    ///
    /// # Errors
    /// There is no guard, or it did not load the policy.
    pub fn run(&self) -> CommandResult {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))
        };
        let placement = match (self.append, self.as_kernel) {
            (true, _) => Placement::Append,
            (false, true) => Placement::AsKernel,
            (false, false) => Placement::Replace,
        };
        let load = LoadRequest {
            path: self.file.as_ref().map(absolute).transpose()?,
            placement,
            dry_run: self.dry_run,
            force: self.force,
        };
        let document = ask(&self.runtime.runtime_dir, &Request::LoadPolicy(load))?;
        if self.json {
            print_json(&document);
        } else {
            print(for_people(&document));
        }
        let refused = document["running"]["refused"].as_array().is_some_and(|refused| !refused.is_empty());
        Ok(if self.dry_run && refused { Outcome::Failed } else { Outcome::Done })
    }
}

fn for_people(document: &Value) -> String {
    let text = |value: &Value| printable(Path::new(value.as_str().unwrap_or_default()));
    let mut out = String::new();
    let policy = &document["policy"];
    // Writing to a String cannot fail.
    let verb = if document["loaded"] == true { "loaded" } else { "not loaded (--dry-run)" };
    let _ = write!(out, "{verb}: {}, {} rules in force", text(&policy["path"]), document["rules"]);
    if document["placement"] == "append" {
        out.push_str(", appended");
    }
    if let Some(version) = policy["version"].as_u64() {
        let _ = write!(out, ", version {version}");
    }
    if !policy["signed_by"].is_null() {
        let _ = write!(out, ", signed by the key {}", text(&policy["signed_by"]));
    }
    let before = &document["before"];
    let _ = writeln!(out, "\nbefore: {}, {} rules", text(&before["policy"]["path"]), before["rules"]);
    let keys = &document["keys"];
    if keys["changed"] == true {
        let _ =
            writeln!(out, "keys: others than before: {}, {} entries on block lists", keys["count"], keys["blocked"]);
    }
    let running = &document["running"];
    let refused = running["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
    let _ = write!(out, "running now: {} files judged, {} would be refused", running["judged"], refused.len());
    if running["not_judged"].as_u64().is_some_and(|count| count > 0) {
        let _ = write!(out, ", {} could not be judged", running["not_judged"]);
    }
    out.push('\n');
    for file in refused {
        let _ = writeln!(
            out,
            "  {} {} (process {}, rule {})",
            text(&file["path"]),
            text(&file["cause"]),
            file["pid"],
            file["rule"]
        );
    }
    if document["asked_again"] == false {
        out.push_str("what the kernel was told not to ask about stays so: nothing watched is decided differently\n");
    }
    for note in document["notes"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "note: {}", text(note));
    }
    out
}
