//! `imara key encrypted update`.

use super::{MasterFile, Unsealing, blob_of, blob_words, document, find_key, not_made, parse_blob};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::key::kept::{Out, command_text, read_blob};
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::paths::{printable, printable_bytes};
use crate::output::{Failure, warn};
use imara_engine::keys::encrypted::EncryptedKey;
use imara_engine::keys::{MasterKeyError, MasterKeys};
use imara_format::key::Errno;
use imara_format::key_blob::encrypted::{Blob, Command, MasterType};
use imara_linux::key_service::{self as keys, KernelMasterKeys, KeyType, errno_of};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Give an encrypted key another master key of the same type; its bytes stay.
///
/// The kernel does not look for the new master key before the key is read. A blob that was exported before stays sealed with the
/// old one: write the new one with --out.
#[derive(clap::Args)]
pub struct Update {
    /// The key in the kernel, by name or number; with --master the file with its blob
    #[arg(value_name = "KEY")]
    key: OsString,
    /// [default|ecryptfs|enc32] user:NAME|trusted:NAME of the new master key
    #[arg(value_name = "WORD", required = true)]
    words: Vec<OsString>,
    /// Use the bytes of F as the master key in force, and no kernel
    #[arg(long, value_name = "F", requires_all = ["new_master", "out"])]
    master: Option<PathBuf>,
    /// Use the bytes of F as the new master key, and no kernel
    #[arg(long, value_name = "F", requires = "master")]
    new_master: Option<PathBuf>,
    #[command(flatten)]
    unsealing: Unsealing,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    change: Change,
}

impl Update {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let command = command_text("update", &self.words);
        let shown = printable_bytes(self.key.as_bytes());
        self.out.check()?;
        let blob = match (&self.master, &self.new_master) {
            (Some(master), Some(new_master)) => {
                let blob = self.sealed_anew(&command, &shown, master, new_master)?;
                if !self.change.dry_run {
                    self.out.write(&blob.to_text())?;
                }
                blob
            }
            _ => self.in_the_kernel(&command, &shown)?,
        };
        let told = json!({ "key": shown, "updated": !self.change.dry_run, "blob_file": self.out.place() });
        let place = self.out.place().map(|place| format!("; blob in {place}")).unwrap_or_default();
        let would = if self.change.dry_run { "would become " } else { "" };
        let text = format!("{shown}: {would}{}{place}\n", blob_words(&blob));
        Ok(self.out.report(&self.change, text, &document(told, &blob)))
    }

    /// Without a kernel: the blob opened with one master key and sealed with the other.
    fn sealed_anew(&self, command: &[u8], shown: &str, master: &Path, new_master: &Path) -> Result<Blob, Failure> {
        let failure = |error| not_made(shown, &error);
        let path = Path::new(OsStr::new(&self.key));
        let blob = parse_blob(&read_blob(path)?, &printable(path))?;
        let master = MasterFile::read_or_unseal(master, &self.unsealing)?;
        let mut key = EncryptedKey::open(&blob, &master.bytes).map_err(failure)?;
        key.update(command).map_err(failure)?;
        let new_master = MasterFile::read_or_unseal(new_master, &self.unsealing)?;
        key.seal(&new_master.bytes).map_err(failure)
    }

    fn in_the_kernel(&self, command: &[u8], shown: &str) -> Result<Blob, Failure> {
        let (serial, description) = find_key(&self.key)?;
        let blob = blob_of(serial, shown)?;
        let Command::Update { master } =
            Command::parse(command, &description).map_err(|error| not_made(shown, &error.into()))?
        else {
            return Err(Failure::usage("these are not the words of an update"));
        };
        if master.kind() != blob.master.kind() {
            let error = imara_engine::keys::encrypted::EncryptedKeyError::MasterType {
                found: master,
                needed: blob.master.kind().name(),
            };
            return Err(not_made(shown, &error));
        }
        // The kernel would update, and the key could then not be read: no blob, and nothing to keep.
        match master.kind() {
            MasterType::User => KernelMasterKeys.master_key(&master).map(|_| ()),
            MasterType::Trusted => keys::request(KeyType::Trusted, master.description()).map(|_| ()).map_err(|error| {
                let errno = errno_of(&error).unwrap_or(Errno::Enokey);
                MasterKeyError { master: master.clone(), errno, what: error.to_string() }
            }),
        }
        .map_err(|error| not_made(shown, &error.into()))?;
        if self.change.dry_run {
            return Ok(Blob { master, ..blob });
        }
        keys::update(serial, command).map_err(|error| match errno_of(&error) {
            Some(Errno::Eacces) => Failure::failed(format!("{shown}: this user may not change it (EACCES)"))
                .next("imara keyring show prints who may"),
            _ => refused(Attempt::Read { key: shown }, &error),
        })?;
        let kept = blob_of(serial, shown).and_then(|updated| self.out.write(&updated.to_text()).map(|()| updated));
        kept.inspect_err(|_| {
            // Blobs that are kept elsewhere are under the old name: the key in the kernel goes back to it.
            let back = [b"update ".as_slice(), &blob.master.to_text()].concat();
            if let Err(error) = keys::update(serial, &back) {
                warn(format_args!(
                    "{shown}: its old master key {} could not be put back: {error}; do so with imara key encrypted update",
                    printable_bytes(&blob.master.to_text())
                ));
            }
        })
    }
}
