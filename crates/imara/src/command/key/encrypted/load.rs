//! `imara key encrypted load`.

use super::{MasterFile, Unsealing, blob_words, document, not_made, parse_blob, refused_by_kernel};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::key::kept::{Into, read_blob};
use crate::command::paths::{printable, printable_bytes};
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::encrypted::EncryptedKey;
use imara_format::key::KeySerial;
use imara_format::key_blob::encrypted::{Blob, Command, MasterType};
use imara_linux::key_service::{self as keys, KeyType, PROCESS_KEYRING};
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Load an encrypted key from its blob into the kernel. Its master key must be there, or be given with --master.
///
/// With --master the master key is in the kernel for this moment alone, in a keyring of this process: also a trusted one, whose
/// blob the TPM unseals, where the kernel has no trusted keys. To be exported, the key needs its master there again.
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
    /// The master key's bytes are those of F, or sealed in it
    #[arg(long, value_name = "F")]
    master: Option<PathBuf>,
    #[command(flatten)]
    unsealing: Unsealing,
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
        let master = match &self.master {
            None => None,
            Some(path) => Some(Master::open(path, &self.unsealing, &blob, &shown)?),
        };
        let command = match &master {
            None => [b"load ", text.as_slice()].concat(),
            Some(master) => Command::Load(master.blob.clone()).to_text(),
        };
        let _there = match (&master, self.change.dry_run) {
            (Some(master), false) => Some(master.lend()?),
            (Some(_) | None, _) => None,
        };
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

/// A master key of this command's own.
struct Master {
    bytes: KeyMaterial,
    /// The blob, sealed with it as a key of type `user`, whatever it was before.
    blob: Blob,
}

impl Master {
    /// Opens the blob with it.
    fn open(path: &Path, unsealing: &Unsealing, blob: &Blob, shown: &str) -> Result<Self, Failure> {
        let failure = |error| not_made(shown, &error);
        let bytes = MasterFile::read_or_unseal(path, unsealing)?.bytes;
        let key = EncryptedKey::open(blob, &bytes).map_err(failure)?;
        let blob = key.named(blob.master.with_kind(MasterType::User)).seal(&bytes).map_err(failure)?;
        Ok(Self { bytes, blob })
    }

    /// Has it in this process' keyring until what is returned is dropped: the kernel looks there first.
    fn lend(&self) -> Result<Lent, Failure> {
        let name = self.blob.master.description();
        let key = keys::add(KeyType::User, Some(name), self.bytes.as_bytes(), PROCESS_KEYRING);
        key.map(Lent).map_err(|error| Failure::failed(format!("the master key cannot be given to the kernel: {error}")))
    }
}

struct Lent(KeySerial);

impl Drop for Lent {
    fn drop(&mut self) {
        // It would go with the process in any case.
        let _ = keys::unlink(self.0, PROCESS_KEYRING);
    }
}
