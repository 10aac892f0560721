//! `imara key encrypted export`.

use super::{blob_of, blob_words, document, find_key};
use crate::command::CommandResult;
use crate::command::key::kept::Out;
use crate::command::paths::printable_bytes;
use crate::output::{Failure, Outcome, print, print_json};
use imara_engine::keys::MasterKeys;
use imara_engine::keys::encrypted::EncryptedKey;
use imara_linux::key_service::KernelMasterKeys;
use serde_json::json;
use std::ffi::OsString;

/// Write out an encrypted key's blob, as `keyctl pipe` does: sealed with its master key, to be loaded again.
///
/// A key that EVM took has no bytes any more: its blob is well-formed, and that of zeros. It is not written out without --force.
#[derive(clap::Args)]
pub struct Export {
    /// The key in the kernel, by name or number
    #[arg(value_name = "KEY")]
    key: OsString,
    #[command(flatten)]
    out: Out,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors and the blob
    #[arg(short, long)]
    quiet: bool,
}

impl Export {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        self.out.check()?;
        let (serial, description) = find_key(&self.key)?;
        let shown = printable_bytes(&description);
        let blob = blob_of(serial, &shown)?;
        // Only under a master key that can be read can this be known.
        let spent = KernelMasterKeys
            .master_key(&blob.master)
            .is_ok_and(|master| EncryptedKey::open(&blob, &master).is_ok_and(|key| key.material().is_zero()));
        if spent && !self.out.force {
            return Err(Failure::failed(format!(
                "{shown}: all its bytes are zero: EVM took the key over and wiped it, and what would be written is no key"
            ))
            .next("the blob from before EVM was enabled is the key; --force writes this one out"));
        }
        let text = blob.to_text();
        if self.out.out.is_none() && !self.json {
            print(format_args!("{}\n", String::from_utf8_lossy(&text)));
        }
        self.out.write(&text)?;
        if self.json {
            let blob_text = String::from_utf8_lossy(&text);
            let told = json!({ "name": shown, "serial": serial.0, "blob_file": self.out.place(), "blob": blob_text });
            print_json(&document(told, &blob));
        } else if let (Some(place), false) = (self.out.place(), self.quiet) {
            print(format_args!("{shown}: {}; blob in {place}\n", blob_words(&blob)));
        }
        Ok(Outcome::Done)
    }
}
