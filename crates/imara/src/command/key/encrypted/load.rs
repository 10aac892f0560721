//! `imara key encrypted load`.

use super::{blob_words, document, parse_blob, refused_by_kernel};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::key::kept::{Into, read_blob};
use crate::command::paths::{printable, printable_bytes};
use imara_linux::key_service::{self as keys, KeyType};
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Load an encrypted key from its blob into the kernel. Its master key must be there.
#[derive(clap::Args)]
pub struct Load {
    /// The key's name, its description in the kernel: evm-key for EVM
    #[arg(value_name = "NAME")]
    name: OsString,
    /// The file with the blob; `-` is standard input
    #[arg(value_name = "BLOB")]
    blob: PathBuf,
    #[command(flatten)]
    into: Into,
    #[command(flatten)]
    change: Change,
}

impl Load {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let description = self.name.as_bytes();
        let shown = printable_bytes(description);
        let text = read_blob(&self.blob)?;
        let blob = parse_blob(&text, &printable(&self.blob))?;
        let keyring = self.into.find(KeyType::Encrypted, description)?;
        let command = [b"load ", text.as_slice()].concat();
        let serial = match self.change.dry_run {
            true => None,
            false => Some(
                keys::add(KeyType::Encrypted, Some(description), &command, keyring.serial)
                    .map_err(|error| refused_by_kernel(&shown, &command, description, &keyring, &error))?,
            ),
        };
        let told = json!({ "name": shown, "loaded": !self.change.dry_run, "serial": serial.map(|serial| serial.0) });
        let text = match serial {
            Some(serial) => format!("{shown}: key {serial}, {}\n", blob_words(&blob)),
            None => format!("would load {shown}: {}\n", blob_words(&blob)),
        };
        Ok(self.change.report(text, &document(told, &blob)))
    }
}
