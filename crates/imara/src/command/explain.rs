//! `imara explain`.

use super::{CommandResult, RuntimeDirectory};
use crate::guard::control::{Request, ask};
use crate::guard::explanation::{self, By};
use crate::guard::run;
use crate::output::{Failure, Outcome, print, print_json};
use imara_engine::check::Mode;
use imara_format::hash::HashAlgorithm;
use std::path::PathBuf;

/// Explain why a file is let through or refused: which rule, digest, label and key, and what would make it pass.
///
/// Asks the running guard; with --policy (and --key) judges by these instead, without one. Ends with 0 when the file is let
/// through and 1 when it is refused.
#[derive(clap::Args)]
pub struct Arguments {
    /// The file.
    path: PathBuf,
    /// The user who would use it.
    #[arg(long, default_value_t = 0)]
    uid: u32,
    /// Judge by this policy instead of the running guard's.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// With --policy: a certificate or public key (may be repeated).
    #[arg(long, value_name = "CERT", num_args = 1.., requires = "policy")]
    key: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// Runs it.
///
/// # Errors
/// The file cannot be read, or there is no guard.
pub fn run(arguments: Arguments) -> CommandResult {
    // What a link leads to is what is used.
    let path = std::fs::canonicalize(&arguments.path)
        .map_err(|error| Failure::failed(format_args!("{}: {error}", arguments.path.display())))?;
    let document = match &arguments.policy {
        Some(policy) => {
            let policy = run::read_policy(policy)?;
            let keys = run::read_keys(&arguments.key)?;
            let hash = HashAlgorithm::Sha256;
            let by = By { policy: &policy, keys: &keys, evm: None, hash, mode: Mode::Enforce, checker: None };
            explanation::explain_file(by, &path, arguments.uid).map_err(Failure::failed)?
        }
        None => ask(&arguments.runtime.runtime_dir, &Request::Explain { path, uid: arguments.uid })?,
    };
    if arguments.json {
        print_json(&document);
    } else {
        print(explanation::for_people(&document));
    }
    Ok(if document["verdict"] == "deny" { Outcome::Failed } else { Outcome::Done })
}
