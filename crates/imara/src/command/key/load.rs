//! `imara key load`.

use super::encrypted::{damage_next, parse_blob, refused_by_kernel};
use super::kept::read_blob;
use super::master::{self, held};
use super::places::{Places, Purpose};
use super::steps::{State, Steps};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::hmac_key::EVM_KEY_NAME;
use crate::command::keyring::certificates::Source;
use crate::command::keyring::named::{Keyring, KeyringName};
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::paths::printable;
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::encrypted::{Damage, EncryptedKey};
use imara_format::key::KeySerial;
use imara_format::key_blob::encrypted::{Blob, MasterType};
use imara_linux::key_service::{self as keys, KeyType};
use imara_linux::tpm_address::TpmAddress;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Load the keys of /etc/keys into the kernel: what is done at each boot.
///
/// The master key (kmk-trusted.blob, kmk-user.blob), the evm-key under it (evm-trusted.blob, evm-user.blob), and the certificates
/// (x509_ima.der, ima/*, x509_evm.der, evm/*) for .ima and .evm, or for _ima and _evm, which are made where the kernel has not the
/// others. What is there already is left as it is. dist/imara-keys.service does it early at boot.
#[derive(clap::Args)]
pub struct Load {
    /// The keyring for the keys, and for _ima and _evm
    #[arg(long, value_name = "KEYRING", default_value = "@u")]
    keyring: KeyringName,
    /// Ask this TPM from here, and not through the kernel's keys: a device, or a software TPM's socket
    #[arg(long, value_name = "TPM")]
    tpm: Option<TpmAddress>,
    /// The folder that holds etc/keys
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    change: Change,
}

impl Load {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let places = Places::below(Some(&self.root));
        if !places.folder().is_dir() {
            return Err(Failure::failed(format!("{} is not there", printable(places.folder())))
                .next("make keys: imara key setup"));
        }
        let mut steps = Steps::new(&self.change);
        load(&places, &self.keyring, self.tpm.as_ref(), &mut steps)?;
        if steps.is_empty() && !self.change.json && !self.change.quiet {
            crate::output::print(format_args!("{}: no keys to load\n", printable(places.folder())));
        }
        Ok(steps.finish(json!({ "schema": 1, "folder": places.folder().to_string_lossy() })))
    }
}

/// Loads everything that is in a folder of keys.
///
/// # Errors
/// There is no keyring to load into. Whatever else fails is told as a step.
pub fn load(
    places: &Places,
    keyring: &KeyringName,
    tpm: Option<&TpmAddress>,
    steps: &mut Steps<'_>,
) -> Result<(), Failure> {
    let keyring = keyring.find()?;
    let kinds = [MasterType::Trusted, MasterType::User];
    let mut loaded = Vec::new();
    for kind in kinds {
        if places.master(kind).exists() {
            let result = master::load(places, kind, tpm, &keyring, steps.dry_run());
            if steps.take("master key", "loaded", result) {
                loaded.push(kind);
            }
        }
    }
    // Under the master key that is there; the first of two.
    let mut kinds = kinds.into_iter().filter(|kind| places.evm_key(*kind).exists()).collect::<Vec<_>>();
    kinds.sort_by_key(|kind| !loaded.contains(kind));
    if let Some(kind) = kinds.first() {
        let result = evm_key(&places.evm_key(*kind), &keyring, steps.dry_run());
        steps.take(&format!("key {EVM_KEY_NAME}"), "loaded", result);
    }
    for purpose in Purpose::ALL {
        certificates(places, purpose, &keyring, steps);
    }
    Ok(())
}

fn evm_key(path: &Path, keyring: &Keyring, dry_run: bool) -> Result<(State, String), Failure> {
    let shown = printable(path);
    let blob = parse_blob(&read_blob(path)?, &shown)?;
    let name = EVM_KEY_NAME.as_bytes();
    if let Some(serial) = held(keyring, KeyType::Encrypted, name) {
        return Ok((State::There, same_key(serial, &blob, keyring, &shown)?));
    }
    if dry_run {
        return Ok((State::Done, format!("from {shown} into {keyring}")));
    }
    let command = [b"load ", blob.to_text().as_slice()].concat();
    let serial = keys::add(KeyType::Encrypted, Some(name), &command, keyring.serial)
        .map_err(|error| refused_by_kernel(&shown, &command, name, keyring, &error))?;
    Ok((State::Done, format!("key {serial} in {keyring}, from {shown}")))
}

/// Whether the key that is there is the file's: the kernel seals a key the same way each time.
///
/// # Errors
/// It is another one, or cannot be read.
pub fn same_key(serial: KeySerial, file: &Blob, keyring: &Keyring, shown: &str) -> Result<String, Failure> {
    let read = keys::read(serial).map_err(|error| refused(Attempt::Read { key: shown }, &error))?;
    let there = parse_blob(read.as_bytes(), &format!("key {serial}"))?;
    if there.iv == file.iv && there.ciphertext == file.ciphertext {
        return Ok(format!("key {serial} in {keyring}"));
    }
    // Both were made with that IV, and no two keys share one.
    if there.iv == file.iv {
        return Ok(format!("key {serial} in {keyring}, which the kernel's EVM has taken over and wiped"));
    }
    Err(Failure::failed(format!("{shown}: {keyring} holds another key {EVM_KEY_NAME}: {serial}"))
        .next(format!("if that one is not needed: imara keyring remove {keyring} {serial}")))
}

fn certificates(places: &Places, purpose: Purpose, keyring: &Keyring, steps: &mut Steps<'_>) {
    let files = places.certificates_there(purpose);
    if files.is_empty() {
        return;
    }
    let ring = match verification_keyring(purpose, keyring, steps) {
        Ok(ring) => ring,
        Err(failure) => return steps.fail(&format!("keyring for {purpose}"), &failure),
    };
    let mut put = Vec::new();
    for path in files {
        let sources = match Source::read(&path) {
            Ok(sources) => sources,
            Err(failure) => {
                steps.fail(&printable(&path), &failure);
                continue;
            }
        };
        for source in sources {
            // dracut's folder has a copy of the one that the kernel looks for.
            if put.contains(&source.der) {
                continue;
            }
            let what = format!("certificate {}", printable(&path));
            let result = match &ring {
                None => Ok((State::Done, format!("into {}, {}", purpose.keyrings()[1], source.words()))),
                Some(ring) => source.put_into(ring, steps.dry_run()).map(|(serial, there)| {
                    let number = serial.map(|serial| format!("key {serial} in ")).unwrap_or_default();
                    let state = if there { State::There } else { State::Done };
                    (state, format!("{number}{ring}, {}", source.words()))
                }),
            };
            steps.take(&what, "loaded", result);
            put.push(source.der);
        }
    }
}

/// The keyring that the kernel verifies with; one is made where there is none. None where it would be made.
fn verification_keyring(
    purpose: Purpose,
    keyring: &Keyring,
    steps: &mut Steps<'_>,
) -> Result<Option<Keyring>, Failure> {
    let [kernels, own] = purpose.keyrings();
    if let Ok(serial) = keys::keyring_named(kernels.as_bytes()) {
        return Ok(Some(Keyring { serial, name: kernels.into() }));
    }
    // Only where this keyring has it: another one of that name is somebody else's.
    if let Some(serial) = held(keyring, KeyType::Keyring, own.as_bytes()) {
        return Ok(Some(Keyring { serial, name: own.into() }));
    }
    let what = format!("keyring {own}");
    if steps.dry_run() {
        steps.tell(&what, State::Done, "made", &format!("in {keyring}"));
        return Ok(None);
    }
    let made = keys::new_keyring(own.as_bytes(), keyring.serial);
    let serial = made.map_err(|error| refused(Attempt::New { name: own.as_bytes(), keyring }, &error))?;
    steps.tell(&what, State::Done, "made", &format!("{serial} in {keyring}"));
    Ok(Some(Keyring { serial, name: own.into() }))
}

/// Checks that a blob is of the key's under a master key, which both are in files.
///
/// # Errors
/// It is not, or one of them cannot be read.
pub fn check(blob: &Path, master: &KeyMaterial, master_file: &Path) -> Result<(), Failure> {
    let shown = printable(blob);
    let parsed = parse_blob(&read_blob(blob)?, &shown)?;
    EncryptedKey::open(&parsed, master).map(|_| ()).map_err(|error| {
        Failure::failed(format!("{shown} does not open with {}: {error}", printable(master_file)))
            .next(damage_next(&Damage::Unknown))
    })
}
