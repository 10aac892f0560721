//! The master key that `evm-key` is sealed with, by type: text in a file, or a TPM's blob.
//!
//! | in /etc/keys | in the kernel | the name in blobs under it |
//! |---|---|---|
//! | `kmk-user.blob` | a key of type `user` | `user:kmk-user` |
//! | `kmk-trusted.blob` | of type `trusted`, where the kernel has that | `trusted:kmk-trusted` |
//! | | of type `user`, where it has not: unsealed here | `user:kmk-trusted` |
//!
//! Where the blob of `evm-key` has another name for it, that one is its name, and its type is the blob's.

use super::places::{Places, key_name};
use super::secret::read_secret;
use super::steps::State;
use super::trusted::blob::{BlobFile, Form, record_path, text};
use super::trusted::kernel::Place;
use super::trusted::{custody, how, kernel, not_done};
use crate::command::keyring::named::Keyring;
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::paths::{printable, printable_bytes};
use crate::output::{Failure, warn};
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::trusted::{OWNER, PolicyKnowledge, TrustedKey};
use imara_format::hash::HashAlgorithm;
use imara_format::key::KeySerial;
use imara_format::key_blob::encrypted::{MasterName, MasterType};
use imara_format::key_blob::trusted::Options;
use imara_linux::key_service::{self as keys, KeyType};
use imara_linux::tpm_address::TpmAddress;
use std::path::{Path, PathBuf};

/// How many bytes a master key has.
const BYTES: usize = 32;

/// A master key that can be sealed with.
pub struct Master {
    /// The name that blobs under it carry.
    pub name: MasterName,
    /// Where its bytes are.
    pub bytes: Bytes,
    /// The files that it is yet to be kept in; none of one that is there.
    pub files: Vec<(PathBuf, KeyMaterial)>,
}

/// Where a master key's bytes are.
pub enum Bytes {
    /// Here.
    Here(KeyMaterial),
    /// In the kernel alone, in the process's own keyring: for as long as this command runs.
    InKernel,
}

/// The keyring that a key of the kernel's is in while files are made.
fn scratch() -> Keyring {
    Keyring { serial: keys::PROCESS_KEYRING, name: b"@p".to_vec() }
}

/// What a trusted key is sealed with, where nothing is asked for.
fn plain() -> Options<'static> {
    Options {
        parent: None,
        parent_auth: None,
        blob_auth: None,
        migratable: true,
        pcr_lock: 0,
        hash: HashAlgorithm::Sha256,
        policy_digest: Vec::new(),
        policy_session: 0,
    }
}

/// The key in the kernel that a master key becomes: its type, and its name in blobs. `wanted` is the name that a blob under it
/// has: the kernel that the blob was made on may have had trusted keys where this one has not, or the other way round.
///
/// # Errors
/// The kernel has no key service.
fn in_kernel(
    kind: MasterType,
    wanted: Option<&MasterName>,
    tpm: Option<&TpmAddress>,
) -> Result<(KeyType, MasterName), Failure> {
    let usual = || {
        let name = format!("{}:{}", kind.name(), key_name(kind));
        MasterName::parse(name.as_bytes()).expect("it is a type, a colon and a name")
    };
    let name = wanted.cloned().unwrap_or_else(usual);
    let sealed = kind == MasterType::Trusted && name.kind() == MasterType::Trusted;
    Ok(match sealed && tpm.is_none() && custody::kernel_has_type()? {
        true => (KeyType::Trusted, name),
        false => (KeyType::User, name.with_kind(MasterType::User)),
    })
}

/// The bytes of a master key of type `user`: what the shell's `$(cat FILE)` would give, as dracut loads it.
fn user_bytes(path: &Path) -> Result<KeyMaterial, Failure> {
    let secret = read_secret(path)?;
    let bytes = secret.as_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
    let shown = printable(path);
    if end == 0 {
        return Err(Failure::failed(format!("{shown} has nothing but newlines, where a master key is needed")));
    }
    if bytes[..end].contains(&0) {
        return Err(Failure::failed(format!(
            "{shown} has zero bytes: dracut, which loads it with a shell, would load another key"
        ))
        .next("a master key of type user is text there; imara key setup makes one of 64 hexadecimal digits"));
    }
    Ok(KeyMaterial::new(bytes[..end].to_vec()))
}

/// Unseals a trusted key here.
fn unsealed(file: &BlobFile, tpm: Option<&TpmAddress>) -> Result<TrustedKey, Failure> {
    let known = PolicyKnowledge { record: file.record.as_ref(), pcrs: None };
    how::target(tpm).with(|tpm| {
        TrustedKey::load(tpm, file.blob.clone(), &plain(), &known).map_err(|error| not_done(&file.shown, error))
    })
}

impl Master {
    /// The one that is kept in a folder.
    ///
    /// # Errors
    /// It cannot be read, or not be unsealed.
    pub fn kept(places: &Places, kind: MasterType, tpm: Option<&TpmAddress>) -> Result<Self, Failure> {
        let path = places.master(kind);
        let (key, name) = in_kernel(kind, None, tpm)?;
        let bytes = match (kind, key) {
            (MasterType::User, _) => Bytes::Here(user_bytes(&path)?),
            (MasterType::Trusted, KeyType::Trusted) => {
                let file = BlobFile::read(&path)?;
                let scratch = scratch();
                let place = Place { name: name.description(), shown: &file.shown, keyring: &scratch };
                kernel::load(place, &file, &plain(), None)?;
                Bytes::InKernel
            }
            (MasterType::Trusted, _) => Bytes::Here(unsealed(&BlobFile::read(&path)?, tpm)?.into_material()),
        };
        Ok(Self { name, bytes, files: Vec::new() })
    }

    /// A new one.
    ///
    /// # Errors
    /// The TPM cannot seal it.
    pub fn new(places: &Places, kind: MasterType, tpm: Option<&TpmAddress>) -> Result<Self, Failure> {
        let path = places.master(kind);
        let (key, name) = in_kernel(kind, None, tpm)?;
        if kind == MasterType::User {
            let text = random_text()?;
            let copy = KeyMaterial::new(text.as_bytes().to_vec());
            return Ok(Self { name, bytes: Bytes::Here(text), files: vec![(path, copy)] });
        }
        let shown = printable_bytes(name.description());
        let failure = |error| not_done(&shown, error);
        let sealed_in_kernel = key == KeyType::Trusted;
        let target = how::sealing_target(sealed_in_kernel, tpm, None, &plain())?;
        let (blob, record, bytes) = target.with(|tpm| {
            let parent = how::parent(tpm, None, &plain()).map_err(failure)?;
            if sealed_in_kernel && parent.handle() == OWNER {
                warn(format_args!(
                    "no storage root key is kept in this TPM: imara key load makes it each time, dracut cannot. To have one that both find, \
                     take {} away again, and keep one first: imara tpm srk create",
                    printable(&path)
                ));
            }
            match sealed_in_kernel {
                true => {
                    let scratch = scratch();
                    let place = Place { name: name.description(), shown: &shown, keyring: &scratch };
                    let (_, blob, record) = kernel::make(tpm, place, BYTES, parent, &plain())?;
                    Ok((blob, record, Bytes::InKernel))
                }
                false => {
                    let (key, record) = TrustedKey::new(tpm, BYTES, parent, &plain()).map_err(failure)?;
                    Ok((key.blob().clone(), record, Bytes::Here(key.into_material())))
                }
            }
        })?;
        let beside = (record_path(&path), KeyMaterial::new(record.to_text().into_bytes()));
        let files = vec![(path, KeyMaterial::new(text(&blob, Form::Hex))), beside];
        Ok(Self { name, bytes, files })
    }
}

/// Text that is a key: dracut loads it with a shell.
fn random_text() -> Result<KeyMaterial, Failure> {
    let random = KeyMaterial::random(BYTES).map_err(Failure::failed)?;
    // All the room that is needed: a buffer that grows leaves copies behind.
    let mut text = Vec::with_capacity(2 * BYTES);
    for byte in random.as_bytes() {
        text.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    Ok(KeyMaterial::new(text))
}

/// A key that a keyring holds itself.
pub fn held(keyring: &Keyring, kind: KeyType, name: &[u8]) -> Option<KeySerial> {
    let mut keys = keyring.keys().ok()?.into_iter();
    keys.find(|(_, told)| told.kind == kind.name() && told.description == name).map(|(serial, _)| serial)
}

/// Loads the master key that is kept in a folder into a keyring, under the name that a blob under it has, where there is one: what
/// it is called there, and what became of it.
///
/// # Errors
/// It cannot be read, unsealed or added; another key of that name is there.
pub fn load(
    places: &Places,
    (kind, wanted): (MasterType, Option<&MasterName>),
    tpm: Option<&TpmAddress>,
    keyring: &Keyring,
    dry_run: bool,
) -> Result<(State, String), Failure> {
    let path = places.master(kind);
    let shown = printable(&path);
    let (key, name) = in_kernel(kind, wanted, tpm)?;
    let (words, description) = (printable_bytes(&name.to_text()), name.description());
    let done = |serial: KeySerial| (State::Done, format!("{words}, key {serial} in {keyring}, from {shown}"));
    if let Some(serial) = held(keyring, key, description) {
        // What a TPM would have to unseal for that is believed.
        if kind == MasterType::User {
            let there = keys::read(serial).map_err(|error| refused(Attempt::Read { key: &shown }, &error))?;
            if there != user_bytes(&path)? {
                return Err(Failure::failed(format!(
                    "{shown}: {keyring} holds another master key under that name: {serial}"
                ))
                .next(format!("if that one is not needed: imara keyring remove {keyring} {serial}")));
            }
        }
        return Ok((State::There, format!("{words}, key {serial} in {keyring}")));
    }
    let would = (State::Done, format!("{words}, from {shown} into {keyring}"));
    match (kind, key) {
        (MasterType::User, _) => {
            let bytes = user_bytes(&path)?;
            if dry_run {
                return Ok(would);
            }
            keys::add(KeyType::User, Some(description), bytes.as_bytes(), keyring.serial)
                .map(done)
                .map_err(|error| refused(Attempt::User { key: &shown, keyring }, &error))
        }
        (MasterType::Trusted, _) => {
            let file = BlobFile::read(&path)?;
            if dry_run {
                return Ok(would);
            }
            match key {
                KeyType::Trusted => {
                    kernel::load(Place { name: description, shown: &shown, keyring }, &file, &plain(), None).map(done)
                }
                _ => custody::keep(&shown, description, unsealed(&file, tpm)?.material(), keyring).map(done),
            }
        }
    }
}
