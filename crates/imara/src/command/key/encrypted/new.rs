//! `imara key encrypted new`.

use super::{MasterFile, Unsealing, blob_under, blob_words, document, not_made, refused_by_kernel};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::key::kept::{Into, Out, command_text};
use crate::command::key::secret::read_secret;
use crate::command::paths::printable_bytes;
use crate::output::Failure;
use imara_engine::keys::MasterKeys;
use imara_engine::keys::encrypted::EncryptedKey;
use imara_format::key_blob::encrypted::{Blob, Command, PayloadFormat};
use imara_linux::key_service::{self as keys, KernelMasterKeys, KeyType};
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Make an encrypted key.
///
/// Its bytes are random unless --payload gives them. The words are the kernel's: `imara key encrypted new evm-key user:kmk 32`.
/// Keep the blob (--out, or `imara key encrypted export`): without it the key is gone at the next boot.
#[derive(clap::Args)]
pub struct New {
    /// The key's name, its description in the kernel; 16 hexadecimal digits for an ecryptfs key
    #[arg(value_name = "NAME")]
    name: OsString,
    /// [default|ecryptfs|enc32] user:NAME|trusted:NAME KEYLEN
    #[arg(value_name = "WORD", required = true)]
    words: Vec<OsString>,
    #[command(flatten)]
    into: Into,
    /// The key's own bytes are those of F; `-` is standard input. Needs a master key of type user
    #[arg(long, value_name = "F")]
    payload: Option<PathBuf>,
    /// Use the bytes of F as master key, or those sealed in it, and no kernel: the key is made for --out alone
    #[arg(long, value_name = "F", requires = "out", conflicts_with = "keyring")]
    master: Option<PathBuf>,
    #[command(flatten)]
    unsealing: Unsealing,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    change: Change,
}

impl New {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let description = self.name.as_bytes();
        let shown = printable_bytes(description);
        let command = command_text("new", &self.words);
        self.out.check()?;
        if let Some(path) = &self.master {
            let master = MasterFile::read_or_unseal(path, &self.unsealing)?;
            let blob = self.sealed(&command, &shown, &master)?;
            if !self.change.dry_run {
                self.out.write(&blob.to_text())?;
            }
            return Ok(self.tell(None, &blob, &shown));
        }
        let keyring = self.into.find(KeyType::Encrypted, description)?;
        if self.change.dry_run {
            let blob = self.sealed(&command, &shown, &AnyMaster)?;
            return Ok(self.tell(None, &blob, &shown));
        }
        let master = match Command::parse(&command, description) {
            Ok(Command::New { master, .. }) => Some(master),
            Ok(Command::Load(_) | Command::Update { .. }) | Err(_) => None,
        };
        let command = match &self.payload {
            None => command,
            // Sealed here and loaded there, which every kernel takes.
            Some(_) => Command::Load(self.sealed(&command, &shown, &KernelMasterKeys)?).to_text(),
        };
        let key = keys::add(KeyType::Encrypted, Some(description), &command, keyring.serial)
            .map_err(|error| refused_by_kernel(&shown, &command, description, &keyring, &error))?;
        let blob = match blob_under(key, &shown, master.as_ref()) {
            Ok(blob) => blob,
            Err(failure) => {
                // A key that cannot be sealed is of no use to anybody who wanted to keep it.
                let _ = keys::unlink(key, keyring.serial);
                return Err(Failure { what: format!("{}; the new key was not kept", failure.what), ..failure });
            }
        };
        self.out.write(&blob.to_text()).inspect_err(|_| {
            let _ = keys::unlink(key, keyring.serial);
        })?;
        Ok(self.tell(Some(key.0), &blob, &shown))
    }

    /// The key made here, and sealed.
    fn sealed(&self, command: &[u8], shown: &str, masters: &dyn MasterKeys) -> Result<Blob, Failure> {
        let failure = |error| not_made(shown, &error);
        let key = EncryptedKey::instantiate(command, self.name.as_bytes(), masters).map_err(failure)?;
        let master = masters.master_key(key.master()).map_err(|error| failure(error.into()))?;
        let key = match &self.payload {
            None => key,
            Some(path) => {
                let Ok(Command::New { format, master, length, .. }) = Command::parse(command, self.name.as_bytes())
                else {
                    return Err(Failure::usage("--payload needs the words of a new key"));
                };
                let payload = read_secret(path)?;
                if payload.len() != length.bytes() {
                    let (found, needed) = (payload.len(), length.bytes());
                    return Err(Failure::failed(format!(
                        "{}: {found} bytes, where the words say {needed}",
                        path.display()
                    ))
                    .next("say its length, or see whether the file ends in a newline that the key has not"));
                }
                EncryptedKey::new(format.unwrap_or(PayloadFormat::Default), master, length, payload).map_err(failure)?
            }
        };
        key.seal(&master).map_err(failure)
    }

    fn tell(&self, serial: Option<i32>, blob: &Blob, shown: &str) -> crate::output::Outcome {
        let made = !self.change.dry_run;
        let told = json!({ "name": shown, "made": made, "serial": serial, "blob_file": self.out.place() });
        let words = blob_words(blob);
        let place = self.out.place().map(|place| format!("; blob in {place}")).unwrap_or_default();
        let text = match (serial, self.change.dry_run) {
            (_, true) => format!("would make {shown}: {words}{place}\n"),
            (Some(serial), false) if place.is_empty() && !self.out.is_stdout() => format!(
                "{shown}: key {serial}, {words}\n\
                 keep its blob, or it is gone at the next boot: imara key encrypted export --out FILE {serial}\n"
            ),
            (Some(serial), false) => format!("{shown}: key {serial}, {words}{place}\n"),
            (None, false) => format!("{shown}: {words}{place}\n"),
        };
        self.out.report(&self.change, text, &document(told, blob))
    }
}

/// A master key for a dry run, whose key is thrown away.
struct AnyMaster;

impl MasterKeys for AnyMaster {
    fn master_key(
        &self,
        _: &imara_format::key_blob::encrypted::MasterName,
    ) -> Result<imara_engine::keys::KeyMaterial, imara_engine::keys::MasterKeyError> {
        Ok(imara_engine::keys::KeyMaterial::new(vec![0]))
    }
}
