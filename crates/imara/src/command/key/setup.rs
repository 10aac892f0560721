//! `imara key setup`.

use super::generate::{NewKey, Type};
use super::master::{Bytes, Master};
use super::passphrase::Passphrase;
use super::places::{Places, Purpose};
use super::steps::{State, Steps};
use super::trusted::how;
use super::{evm_key, load};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::hmac_key::EVM_KEY_NAME;
use crate::command::keyring::named::KeyringName;
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::new_files::write_together;
use crate::command::paths::{printable, printable_bytes};
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::encrypted::EncryptedKey;
use imara_format::key_blob::encrypted::{KeyLength, MasterType, PayloadFormat};
use imara_linux::key_service::{self as keys, KeyType};
use imara_linux::tpm_address::TpmAddress;
use serde_json::json;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Make all keys that a machine needs and load them: the master key, evm-key, signing keys and certificates.
///
/// The files go to /etc/keys under the names that dracut, evmctl and the kernel look for. What is there is never replaced:
/// run it again, and it makes what is missing. `imara key load` loads the keys again at each boot.
#[derive(clap::Args)]
pub struct Setup {
    /// What seals evm-key: a key of the TPM's (trusted), or one in a file (user); auto takes what is there already, else the TPM
    /// where the machine has one
    #[arg(long, value_enum, default_value_t = Wanted::Auto)]
    master: Wanted,
    /// Ask this TPM from here, and not through the kernel's keys: a device, or a software TPM's socket
    #[arg(long, value_name = "TPM")]
    tpm: Option<TpmAddress>,
    /// The length of evm-key in bytes: with 128 the kernel can make HMACs for the guard by itself (Linux 6.2)
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u16).range(20..=128))]
    evm_bytes: u16,
    /// Make no evm-key and no master key
    #[arg(long)]
    no_evm_key: bool,
    /// Make no signing keys: for a machine that verifies what another one signs
    #[arg(long)]
    no_signing_keys: bool,
    /// The type of the signing keys
    #[arg(long = "type", value_enum, default_value_t = Type::Rsa2048)]
    kind: Type,
    #[command(flatten)]
    passphrase: Passphrase,
    /// The keyring that the keys are loaded into
    #[arg(long, value_name = "KEYRING", default_value = "@u")]
    keyring: KeyringName,
    /// Write to etc/keys in this folder, as for the image of another machine, and load nothing
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Load nothing into the kernel
    #[arg(long)]
    no_load: bool,
    #[command(flatten)]
    change: Change,
}

/// Which master key.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wanted {
    Auto,
    User,
    Trusted,
}

impl Setup {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        if let Some(root) = self.root.as_deref().filter(|root| !root.is_dir()) {
            return Err(Failure::failed(format!("{} is no folder", printable(root))));
        }
        let places = Places::below(self.root.as_deref());
        let passphrase = if self.no_signing_keys { None } else { self.passphrase.find(true)? };
        let mut steps = Steps::new(&self.change);
        if !self.change.dry_run {
            let failure = |error| Failure::failed(format!("{}: {error}", printable(places.folder())));
            DirBuilder::new().recursive(true).mode(0o755).create(places.folder()).map_err(failure)?;
        }
        if !self.no_evm_key {
            self.evm_key(&places, &mut steps)?;
        }
        if !self.no_signing_keys {
            for purpose in Purpose::ALL {
                self.signing_key(&places, purpose, passphrase.as_deref().map(Vec::as_slice), &mut steps);
            }
        }
        if self.root.is_none() && !self.no_load {
            // A dry run has made no files, so what would be made is told here.
            let made = if steps.dry_run() { steps.told() } else { Vec::new() };
            load::load(&places, &self.keyring, self.tpm.as_ref(), &mut steps)?;
            for what in made {
                match Purpose::ALL.into_iter().find(|purpose| what == signing_key(*purpose)) {
                    Some(purpose) => {
                        let [kernels, own] = purpose.keyrings();
                        let place = format!("into {kernels}, or {own} where the kernel has not that");
                        steps.tell(&format!("certificate of the {what}"), State::Done, "loaded", &place);
                    }
                    None => steps.tell(&what, State::Done, "loaded", &format!("into {}", self.keyring)),
                }
            }
        }
        Ok(steps.finish(json!({ "schema": 1, "folder": places.folder().to_string_lossy() })))
    }

    /// The type of the master key.
    fn kind(&self, places: &Places) -> Result<MasterType, Failure> {
        let there = |path: PathBuf| path.symlink_metadata().is_ok();
        let has_evm_key = |kind: MasterType| there(places.evm_key(kind));
        let has_tpm = || self.tpm.is_some() || (self.root.is_none() && Path::new(how::MANAGED).exists());
        match self.master {
            Wanted::User => Ok(MasterType::User),
            Wanted::Trusted if self.root.is_some() && self.tpm.is_none() => {
                Err(Failure::usage("--master trusted with --root: this machine's TPM seals for this machine alone")
                    .next("name the TPM of the machine that will start from there with --tpm, or --master user"))
            }
            Wanted::Trusted => Ok(MasterType::Trusted),
            // The key that has labelled files goes before a master key alone: a second evm-key would be another.
            Wanted::Auto if has_evm_key(MasterType::Trusted) => Ok(MasterType::Trusted),
            Wanted::Auto if has_evm_key(MasterType::User) => Ok(MasterType::User),
            Wanted::Auto if there(places.master(MasterType::Trusted)) => Ok(MasterType::Trusted),
            Wanted::Auto if there(places.master(MasterType::User)) => Ok(MasterType::User),
            Wanted::Auto => Ok(if has_tpm() { MasterType::Trusted } else { MasterType::User }),
        }
    }

    /// The master key, and `evm-key` under it.
    fn evm_key(&self, places: &Places, steps: &mut Steps<'_>) -> Result<(), Failure> {
        let kind = self.kind(places)?;
        let (master_file, blob_file) = (places.master(kind), places.evm_key(kind));
        let [master_there, blob_there] = [&master_file, &blob_file].map(|path| path.symlink_metadata().is_ok());
        let key = format!("key {EVM_KEY_NAME}");
        if blob_there && !master_there {
            return Err(Failure::failed(format!(
                "{} is there, and not the master key that it is sealed with: {}",
                printable(&blob_file),
                printable(&master_file)
            ))
            .next("put the master key back; or take the blob away, and label the files anew that it has labelled"));
        }
        let other = places.evm_key(match kind {
            MasterType::User => MasterType::Trusted,
            MasterType::Trusted => MasterType::User,
        });
        if !blob_there && other.symlink_metadata().is_ok() {
            return Err(Failure::failed(format!(
                "{} is there: evm-key under another master key would be another key, and what this one has labelled would not verify",
                printable(&other)
            ))
            .next("leave --master out to keep it; or take the blob away, and label the files anew that it has labelled"));
        }
        let state = |there| if there { State::There } else { State::Done };
        // Nothing is asked of a TPM where nothing has to be.
        if steps.dry_run() || (master_there && blob_there && kind == MasterType::Trusted) {
            steps.tell(
                "master key",
                state(master_there),
                "made",
                &with_path(&master_file, what_is(kind, master_there)),
            );
            steps.tell(&key, state(blob_there), "made", &printable(&blob_file));
            return Ok(());
        }
        let master = match master_there {
            true => Master::kept(places, kind, self.tpm.as_ref())?,
            false => Master::new(places, kind, self.tpm.as_ref())?,
        };
        let new = match (blob_there, &master.bytes) {
            (true, Bytes::Here(bytes)) => {
                evm_key::check(&blob_file, bytes, &master_file)?;
                None
            }
            (true, Bytes::InKernel) => None,
            (false, _) => Some(self.new_evm_key(&master)?),
        };
        let mut files: Vec<(&Path, &[u8], u32)> = Vec::new();
        files.extend(master.files.iter().map(|(path, bytes)| (path.as_path(), bytes.as_bytes(), 0o600)));
        files.extend(new.as_ref().map(|blob| (blob_file.as_path(), blob.as_slice(), 0o600)));
        write_together(&files, false)?;
        steps.tell("master key", state(master_there), "made", &with_path(&master_file, what_is(kind, master_there)));
        let detail = match blob_there {
            true => String::new(),
            false => format!("{} random bytes under {}", self.evm_bytes, printable_bytes(&master.name.to_text())),
        };
        steps.tell(&key, state(blob_there), "made", &with_path(&blob_file, &detail));
        Ok(())
    }

    fn new_evm_key(&self, master: &Master) -> Result<Vec<u8>, Failure> {
        let length = usize::from(self.evm_bytes);
        match &master.bytes {
            Bytes::Here(bytes) => {
                let material = KeyMaterial::random(length).map_err(Failure::failed)?;
                let key_length = KeyLength::new(length).map_err(Failure::usage)?;
                let name = master.name.clone();
                let key =
                    EncryptedKey::new(PayloadFormat::Default, name, key_length, material).map_err(Failure::failed)?;
                Ok(key.seal(bytes).map_err(Failure::failed)?.to_text())
            }
            Bytes::InKernel => {
                let command = [b"new ", master.name.to_text().as_slice(), format!(" {length}").as_bytes()].concat();
                let made =
                    keys::add(KeyType::Encrypted, Some(EVM_KEY_NAME.as_bytes()), &command, keys::PROCESS_KEYRING);
                let shown = format!("key {EVM_KEY_NAME}");
                let blob = made.and_then(keys::read);
                let blob = blob.map_err(|error| refused(Attempt::Read { key: &shown }, &error))?;
                Ok(blob.as_bytes().to_vec())
            }
        }
    }

    /// A signing key with its certificate, and the certificate where dracut looks for it.
    fn signing_key(&self, places: &Places, purpose: Purpose, passphrase: Option<&[u8]>, steps: &mut Steps<'_>) {
        let [private, public, certificate] = places.signing(purpose);
        let what = signing_key(purpose);
        let there: Vec<String> = [&private, &public, &certificate]
            .into_iter()
            .filter(|path| path.symlink_metadata().is_ok())
            .map(|path| printable(path))
            .collect();
        if !there.is_empty() {
            return steps.tell(&what, State::There, "made", &there.join(", "));
        }
        let made = NewKey::make(self.kind, purpose.common_name(), 3650, passphrase).and_then(|made| {
            let copy = places.certificates(purpose).join(certificate.file_name().unwrap_or_default());
            let how = if passphrase.is_some() { "encrypted with the passphrase" } else { "not encrypted" };
            let detail = format!("{}, {how}: {}, {}", made.key.kind(), printable(&private), printable(&certificate));
            if !steps.dry_run() {
                write_together(&made.files(&[&private, &public, &certificate]), false)?;
                if copy.symlink_metadata().is_err() {
                    let failure = |error| Failure::failed(format!("{}: {error}", printable(&copy)));
                    let folder = places.certificates(purpose);
                    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failure)?;
                    write_together(&[(&copy, &made.certificate, 0o644)], false)?;
                }
            }
            Ok((State::Done, detail))
        });
        steps.take(&what, "made", made);
    }
}

fn signing_key(purpose: Purpose) -> String {
    format!("{purpose} signing key")
}

/// How a new master key is kept.
const fn what_is(kind: MasterType, there: bool) -> &'static str {
    match (kind, there) {
        (_, true) => "",
        (MasterType::User, false) => "32 random bytes, in hexadecimal: whoever reads the file has the key",
        (MasterType::Trusted, false) => "32 random bytes, sealed by the TPM",
    }
}

fn with_path(path: &Path, detail: &str) -> String {
    if detail.is_empty() { printable(path) } else { format!("{}, {detail}", printable(path)) }
}
