//! `imara keyring new`.

use super::named::KeyringName;
use super::refusal::{Attempt, refused};
use super::{SCHEMA, key_json};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::paths::printable_bytes;
use crate::output::Failure;
use imara_format::key::KeySerial;
use imara_linux::key_service::{self as keys, KeyType};
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Make a keyring; one that is there already is left as it is.
///
/// _ima and _evm are the keyrings that kernels without CONFIG_INTEGRITY_TRUSTED_KEYRING verify with. The kernel looks for them in
/// the keyrings of the process that first needs one, and remembers what it found until the next boot: make and fill them early.
#[derive(clap::Args)]
pub struct New {
    /// Its name, such as _ima or _evm
    #[arg(value_name = "NAME")]
    name: OsString,
    /// The keyring that it is made in
    #[arg(long, value_name = "KEYRING", default_value = "@u")]
    keyring: KeyringName,
    #[command(flatten)]
    change: Change,
}

impl New {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let name = self.name.as_bytes();
        let shown = printable_bytes(name);
        if name.is_empty() {
            return Err(Failure::usage("the name of a keyring is empty"));
        }
        let keyring = self.keyring.find()?;
        let refusal = |error: &std::io::Error| refused(Attempt::New { name, keyring: &keyring }, error);
        // Also for --dry-run, which does not ask the kernel.
        keys::may_name_keyring(name).map_err(|error| refusal(&error))?;
        let held = keyring.keys().unwrap_or_default();
        let there = held.into_iter().find(|(_, told)| told.kind == KeyType::Keyring.name() && told.description == name);
        let made: Option<KeySerial> = match (&there, self.change.dry_run) {
            (Some(_), _) | (None, true) => None,
            (None, false) => match keys::new_keyring(name, keyring.serial) {
                Ok(serial) => Some(serial),
                Err(error) => return Err(refusal(&error)),
            },
        };
        let serial = made.or(there.as_ref().map(|(serial, _)| *serial));
        let mut document =
            serial.and_then(|serial| Some(key_json(serial, &keys::describe(serial).ok()?))).unwrap_or_default();
        document.insert("schema".into(), json!(SCHEMA));
        document.insert("name".into(), json!(shown));
        document.insert("made".into(), json!(made.is_some()));
        let text = match (serial, made) {
            (Some(serial), Some(_)) => format!("{shown}: keyring {serial} in {keyring}\n"),
            (Some(serial), None) => format!("{shown}: is in {keyring} already: keyring {serial}\n"),
            (None, _) => format!("would make the keyring {shown} in {keyring}\n"),
        };
        Ok(self.change.report(text, &document.into()))
    }
}
