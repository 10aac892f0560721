//! `imara evm hmac`.

use super::metadata::{Looker, Overrides};
use super::rules::{RulesOptions, protected_text};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::hmac_key::HmacKeyOptions;
use crate::command::paths::{Paths, printable};
use crate::command::told::Told;
use crate::output::{Failure, Outcome, print, print_json, warn};
use imara_engine::evm::{HmacKey, Snapshot};
use imara_format::evm::{Form, SECURITY_EVM};
use imara_format::hash::to_hex;
use imara_linux::files;
use imara_linux::tree::TreeFile;
use serde_json::{Map, json};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;

/// Print the HMACs that EVM makes over files' metadata, or write them.
///
/// Without a file it is over what --ino, --generation, --uid, --gid, --mode, --fsuuid and --xattr say, and needs no privilege; with
/// files these replace what a file has, as for the image of another machine. A good HMAC lets the file pass on this machine under
/// every EVM with that key: be sure that the file is what you mean before --write.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    key: HmacKeyOptions,
    /// Write the label to each file's security.evm
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    rules: RulesOptions,
    #[command(flatten)]
    change: Change,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let mut rules = arguments.rules.find()?;
    if arguments.paths.some().is_err() {
        if arguments.write {
            return Err(Failure::usage("--write takes files").next("imara evm hmac --write FILE…"));
        }
        // Said in full: what is not said does not count.
        rules.fs_uuid = arguments.rules.fsuuid.is_some();
        let snapshot = arguments.overrides.describe(&rules, &arguments.rules)?;
        let left_out = arguments.overrides.left_out(&rules);
        if !left_out.is_empty() {
            warn(format_args!(
                "left out, as an HMAC does not cover them here: {}; covered are {} (--protect NAME adds one)",
                left_out.join(", "),
                protected_text(&rules)
            ));
        }
        let key = arguments.key.find()?;
        let hmac = snapshot.hmac(&rules, &*key).map_err(Failure::failed)?;
        if arguments.change.json {
            print_json(&json!({
                "schema": 1,
                "hmac": to_hex(&hmac),
                "label": to_hex(&[&[imara_engine::evm::HMAC_TYPE], &hmac[..]].concat()),
                "input": to_hex(&snapshot.stream(Form::Hmac, &rules)),
            }));
        } else {
            print(format_args!("{}\n", to_hex(&hmac)));
        }
        return Ok(Outcome::Done);
    }
    let key = arguments.key.find()?;
    let looker = Looker::new(rules);
    let Change { json, quiet, .. } = arguments.change;
    let done = if arguments.write { "labelled" } else { "computed" };
    Told { done, json, quiet }.each(&arguments.paths, |file| arguments.of_file(file, &looker, &*key))
}

impl Arguments {
    fn of_file(
        &self,
        file: &TreeFile<'_>,
        looker: &Looker,
        key: &dyn HmacKey,
    ) -> Result<(String, Map<String, serde_json::Value>), Failure> {
        let shown = printable(file.path);
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {what}"));
        let snapshot = looker.look_and_override(file, file.path, &self.rules, &self.overrides)?;
        let label = hmac_label(&snapshot, looker, key).map_err(|error| failure(&error))?;
        let written = self.write && !self.change.dry_run;
        if written {
            files::set_xattr(file, SECURITY_EVM, &label).map_err(|error| cannot_write(&shown, &error, true))?;
        }
        let hmac = to_hex(label.get(1..).unwrap_or_default());
        let line = match (self.write, written) {
            (true, true) => format!("{shown}: labelled, HMAC {hmac}, in {SECURITY_EVM}\n"),
            (true, false) => format!("{shown}: would be labelled, HMAC {hmac}, in {SECURITY_EVM}\n"),
            (false, _) => format!("{hmac}  {shown}\n"),
        };
        let document = Map::from_iter([
            ("hmac".to_owned(), json!(hmac)),
            ("label".to_owned(), json!(to_hex(&label))),
            ("written".to_owned(), json!(written)),
        ]);
        Ok((line, document))
    }
}

/// The label with the HMAC, of a file that has something to protect.
fn hmac_label(snapshot: &Snapshot, looker: &Looker, key: &dyn HmacKey) -> Result<Vec<u8>, String> {
    if !snapshot.is_covered(Form::Hmac, &looker.rules) {
        return Err(format!(
            "it has none of the attributes that an HMAC covers ({}), so a label would protect nothing and never verify",
            protected_text(&looker.rules)
        ));
    }
    if let Some(why) = &snapshot.unbound {
        return Err(format!("{why}; --generation and --fsuuid can say it"));
    }
    snapshot.hmac_label(&looker.rules, key).map_err(|error| error.to_string())
}

/// Why `security.evm` cannot be written, with what to do.
pub fn cannot_write(shown: &str, error: &Error, hmac: bool) -> Failure {
    let failure = Failure::failed(format!("{shown}: {SECURITY_EVM} cannot be set: {error}"));
    match error.kind() {
        ErrorKind::PermissionDenied if !is_root() => failure.next("run as root (CAP_SYS_ADMIN)"),
        ErrorKind::PermissionDenied if hmac => failure.next(
            "where the kernel's EVM is on it takes no HMAC by hand and makes its own: start it with evm=fix, or sign the file: imara \
             evm sign",
        ),
        ErrorKind::PermissionDenied => {
            failure.next("the kernel's EVM keeps a file whose label is missing or wrong as it is: start it with evm=fix once")
        }
        ErrorKind::Unsupported => failure.next("the filesystem keeps no such attributes"),
        _ => failure,
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}
