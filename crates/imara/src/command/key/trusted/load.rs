//! `imara key trusted load`.

use super::blob::BlobFile;
use super::how::{self, Auths};
use super::kernel::Place;
use super::new;
use super::show::{blob_words, document};
use super::{custody, kernel, not_done, wrong_words};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::key::kept::{Into, command_text};
use crate::command::paths::printable_bytes;
use crate::output::{Failure, Outcome};
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::trusted::{self, PolicyKnowledge, TrustedKey};
use imara_format::key::KeySerial;
use imara_format::key_blob::trusted::{Command, Options};
use imara_format::tpm::PcrSelection;
use imara_linux::key_service::KeyType;
use imara_linux::tpm_address::TpmAddress;
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Unseal a trusted key from its blob.
///
/// Where it cannot be unsealed, the reason is told: the PCR that has another value, a wrong authorisation value, a TPM that was
/// cleared, another TPM, a damaged blob. Exit status 1 then, 3 where there is no TPM.
#[derive(clap::Args)]
pub struct Load {
    /// The key's name, its description in the kernel
    #[arg(value_name = "NAME")]
    name: OsString,
    /// The file with the blob, hexadecimal, PEM or DER; `-` is standard input
    #[arg(value_name = "BLOB")]
    blob: PathBuf,
    /// [keyhandle=H] [keyauth=…] [blobauth=…] [pcrlock=N] [policyhandle=H]
    #[arg(value_name = "WORD")]
    words: Vec<OsString>,
    #[command(flatten)]
    into: Into,
    /// The PCRs that its policy is over, where that is noted nowhere
    #[arg(long, value_name = "SELECTION", value_parser = PcrSelection::parse)]
    pcrs: Option<PcrSelection>,
    #[command(flatten)]
    auths: Auths,
    /// Ask this TPM from here, and not through the kernel's keys: a device, or a software TPM's socket
    #[arg(long, value_name = "TPM")]
    tpm: Option<TpmAddress>,
    #[command(flatten)]
    change: Change,
}

impl Load {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let loaded = self.load()?;
        Ok(self.tell(&loaded))
    }

    /// Unseals the key.
    fn load(&self) -> Result<Loaded, Failure> {
        let name = self.name.as_bytes();
        let shown = printable_bytes(name);
        let file = BlobFile::read(&self.blob)?;
        let command = KeyMaterial::new([&command_text("update", &self.words), self.auths.words()?.as_bytes()].concat());
        let parsed = Command::parse(command.as_bytes()).map_err(|error| wrong_words(&shown, &error))?;
        let Command::Update { options } = parsed else {
            return Err(Failure::usage("these are not options: NAME BLOB [OPTION…]"));
        };
        let in_kernel = self.tpm.is_none() && custody::kernel_has_type()?;
        let kind = if in_kernel { KeyType::Trusted } else { KeyType::User };
        let keyring = self.into.find(kind, name)?;
        let place = Place { name, shown: &shown, keyring: &keyring };
        let serial = match (self.change.dry_run, in_kernel) {
            (false, true) => Some(kernel::load(place, &file, &options, self.pcrs.as_ref())?),
            (dry_run, _) => {
                trusted::lockable(options.pcr_lock).map_err(|error| not_done(&file.shown, error))?;
                let options = if dry_run { Options { pcr_lock: 0, ..options } } else { options };
                let known = PolicyKnowledge { record: file.record.as_ref(), pcrs: self.pcrs.as_ref() };
                let key = how::target(self.tpm.as_ref()).with(|tpm| {
                    TrustedKey::load(tpm, file.blob.clone(), &options, &known)
                        .map_err(|error| not_done(&file.shown, error))
                })?;
                match dry_run {
                    true => None,
                    false => Some(custody::keep(&shown, name, key.material(), &keyring)?),
                }
            }
        };
        Ok(Loaded { key: serial, kind, file })
    }

    fn tell(&self, loaded: &Loaded) -> Outcome {
        let Loaded { key: serial, kind, file } = loaded;
        let shown = printable_bytes(self.name.as_bytes());
        let told = json!({
            "name": shown,
            "loaded": serial.is_some(),
            "serial": serial.map(|serial| serial.0),
            "type": kind.name(),
        });
        let words = blob_words(&file.blob, file.record.as_ref());
        let text = match serial {
            Some(serial) => new::told(&shown, *serial, *kind, &self.into.keyring, &words),
            None => format!("would load {shown}: {words}\n"),
        };
        self.change.report(text, &document(told, &file.blob, file.record.as_ref()))
    }
}

/// What was loaded.
struct Loaded {
    /// The key, unless it was only tried.
    key: Option<KeySerial>,
    /// The type that this kernel has for it.
    kind: KeyType,
    file: BlobFile,
}
