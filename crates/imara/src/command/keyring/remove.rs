//! `imara keyring remove`.

use super::named::KeyringName;
use super::refusal::{Attempt, refused};
use super::{SCHEMA, key_json, key_words};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::paths::printable_bytes;
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_format::key::{KeyDescription, KeySerial};
use imara_linux::key_service as keys;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Take keys out of a keyring. A key that no keyring holds any more is gone.
///
/// Taking a certificate out of .ima or .evm means that nothing that its key has signed verifies any more, from the next
/// verification on.
#[derive(clap::Args)]
pub struct Remove {
    /// The keyring
    #[arg(value_name = "KEYRING")]
    keyring: KeyringName,
    /// Keys: by number, by description, or as id:HEX by the end of a certificate's id
    #[arg(value_name = "KEY", required_unless_present = "all")]
    keys: Vec<OsString>,
    /// All of its keys
    #[arg(long, conflicts_with = "keys")]
    all: bool,
    /// Also where the kernel then takes no certificate any more, until the next boot
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    change: Change,
}

impl Remove {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let keyring = self.keyring.find()?;
        let mut outcome = Outcome::Done;
        let mut found: Vec<(KeySerial, KeyDescription)> = Vec::new();
        let mut documents = Vec::new();
        let fail = |failure: Failure, name: String, documents: &mut Vec<Value>| {
            complain(&failure);
            documents.push(json!({ "name": name, "error": failure.what, "next": failure.next, "removed": false }));
            failure.outcome
        };
        if self.all {
            found = keyring.keys()?;
        }
        for name in &self.keys {
            match keyring.key(name) {
                Ok(key) => found.push(key),
                Err(failure) => outcome = outcome.max(fail(failure, printable_bytes(name.as_bytes()), &mut documents)),
            }
        }
        if keyring.is(".secondary_trusted_keys") && !self.force {
            // It is how the secondary keyring leads to the builtin one, and the kernel does not make it again.
            if let Some((serial, told)) = found.iter().find(|(_, told)| told.description.starts_with(b".")) {
                let link = key_words(told);
                return Err(Failure::failed(format!(
                    "{keyring}: taking out {link} ({serial}) would leave .ima and .evm without a key that they trust until the next boot"
                ))
                .next("name the certificates that are to go; or --force"));
            }
        }
        for (serial, told) in found {
            let words = key_words(&told);
            if !self.change.dry_run
                && let Err(error) = keys::unlink(serial, keyring.serial)
            {
                let failure =
                    refused(Attempt::Remove { key: &format!("key {serial}, {words}"), keyring: &keyring }, &error);
                outcome = outcome.max(fail(failure, words, &mut documents));
                continue;
            }
            let mut document = key_json(serial, &told);
            document.insert("removed".into(), json!(!self.change.dry_run));
            documents.push(document.into());
            if !self.change.json && !self.change.quiet {
                let done = if self.change.dry_run { "would be taken" } else { "taken" };
                print(format_args!("key {serial}, {words}: {done} out of {keyring}\n"));
            }
        }
        if self.change.json {
            print_json(&json!({ "schema": SCHEMA, "keyring": keyring.to_string(), "keys": documents }));
        }
        Ok(outcome)
    }
}
