//! `evm-key` in the kernel, loaded from its blob: where it is there already, whether it is the blob's.

use super::encrypted::{damage_next, not_made, parse_blob, refused_by_kernel};
use super::kept::read_blob;
use super::master::held;
use super::steps::State;
use crate::command::hmac_key::EVM_KEY_NAME;
use crate::command::keyring::named::Keyring;
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::paths::printable;
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::encrypted::{Damage, EncryptedKey, EncryptedKeyError};
use imara_format::key::KeySerial;
use imara_format::key_blob::encrypted::{Blob, Command, MasterName, MasterType};
use imara_linux::key_service::{self as keys, KernelMasterKeys, KeyType, PROCESS_KEYRING};
use std::path::Path;

const NAME: &[u8] = EVM_KEY_NAME.as_bytes();

/// The name that the blob in a file has for its master key, which has to have it in the kernel; none where there is no blob.
pub fn master_of(path: &Path) -> Option<MasterName> {
    // What is wrong with it is told when it is loaded.
    let blob = path.is_file().then(|| read_blob(path).ok()).flatten()?;
    Some(Blob::parse(&blob).ok()?.master)
}

/// Loads it from a file into a keyring, unless it is there.
///
/// # Errors
/// The file holds no blob, or not this key's; the kernel does not take it.
pub fn load(path: &Path, keyring: &Keyring, dry_run: bool) -> Result<(State, String), Failure> {
    let shown = printable(path);
    let blob = parse_blob(&read_blob(path)?, &shown)?;
    if let Some(serial) = held(keyring, KeyType::Encrypted, NAME) {
        return Ok((State::There, same_key(serial, &blob, keyring, &shown)?));
    }
    if dry_run {
        return Ok((State::Done, format!("from {shown} into {keyring}")));
    }
    let command = command(&blob, keyring, &shown)?;
    let serial = keys::add(KeyType::Encrypted, Some(NAME), &command, keyring.serial)
        .map_err(|error| refused_by_kernel(&shown, &command, NAME, keyring, &error))?;
    Ok((State::Done, format!("key {serial} in {keyring}, from {shown}")))
}

/// The kernel's command. A blob under a trusted key, which was unsealed into one of type `user`, is sealed for that name.
fn command(blob: &Blob, keyring: &Keyring, shown: &str) -> Result<Vec<u8>, Failure> {
    let name = blob.master.description();
    let kept = match blob.master.kind() {
        MasterType::Trusted if keys::request(KeyType::Trusted, name).is_err() => held(keyring, KeyType::User, name),
        MasterType::Trusted | MasterType::User => None,
    };
    let Some(kept) = kept else { return Ok(Command::Load(blob.clone()).to_text()) };
    let failure = |error| not_made(shown, &error);
    let master: KeyMaterial = keys::read(kept).map_err(|error| refused(Attempt::Read { key: shown }, &error))?;
    let key = EncryptedKey::open(blob, &master).map_err(failure)?.named(blob.master.with_kind(MasterType::User));
    Ok(Command::Load(key.seal(&master).map_err(failure)?).to_text())
}

/// Whether the key that is there is the file's: the kernel seals a key the same way each time.
///
/// # Errors
/// It is another one, or cannot be read; the file is damaged.
fn same_key(serial: KeySerial, file: &Blob, keyring: &Keyring, shown: &str) -> Result<String, Failure> {
    let name = format!("{EVM_KEY_NAME} (key {serial} in {keyring})");
    let read = keys::read(serial).map_err(|error| refused(Attempt::Read { key: &name }, &error))?;
    let there = parse_blob(read.as_bytes(), &name)?;
    let same_iv = there.iv == file.iv;
    let same = same_iv && there.ciphertext == file.ciphertext;
    // Whatever differs may be damage of the file.
    let doubt = match same && there.mac == file.mac {
        true => None,
        false => doubt_of(file, keyring, shown)?,
    };
    match doubt {
        None if same => Ok(format!("key {serial} in {keyring}")),
        // Both were made with that IV, and no two keys share one.
        None if same_iv => Ok(format!("key {serial} in {keyring}, which the kernel's EVM has taken over and wiped")),
        Some(Doubt { failure, .. }) if same => Err(failure.next(format!(
            "the key itself is in {keyring}: imara key encrypted export {serial} --out FILE writes its blob anew"
        ))),
        Some(Doubt { failure, is_damaged }) if is_damaged || same_iv => Err(failure),
        other => {
            let or = if other.is_some() { format!(", or {shown} is damaged") } else { String::new() };
            Err(Failure::failed(format!("{shown}: {keyring} holds another key {EVM_KEY_NAME}: {serial}{or}"))
                .next(format!("if that one is not needed: imara keyring remove {keyring} {serial}")))
        }
    }
}

/// Why a blob is not taken for authentic.
struct Doubt {
    failure: Failure,
    /// It is the blob that is wrong, and not its master key that is another one.
    is_damaged: bool,
}

/// Has the kernel try the blob, as a key of this process that is gone at once.
fn doubt_of(file: &Blob, keyring: &Keyring, shown: &str) -> Result<Option<Doubt>, Failure> {
    let command = command(file, keyring, shown)?;
    let error = match keys::add(KeyType::Encrypted, Some(b"imara-same"), &command, PROCESS_KEYRING) {
        Ok(tried) => {
            let _ = keys::unlink(tried, PROCESS_KEYRING);
            return Ok(None);
        }
        Err(error) => error,
    };
    let looked = EncryptedKey::instantiate(&command, NAME, &KernelMasterKeys);
    let is_damaged =
        matches!(looked, Err(EncryptedKeyError::NotAuthentic { damage, .. }) if !matches!(damage, Damage::Unknown));
    Ok(Some(Doubt { failure: refused_by_kernel(shown, &command, NAME, keyring, &error), is_damaged }))
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
