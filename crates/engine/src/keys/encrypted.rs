//! Encrypted keys, as the kernel's `encrypted` key type has them.
//!
//! With M for the master key's bytes, a key is sealed with two keys derived from it:
//!
//! | key | SHA-256 of |
//! |---|---|
//! | encryption | `ENC_KEY` 0 M 0 |
//! | authentication | `AUTH_KEY` 0 M |
//!
//! Both texts are filled up with zeros to 32 bytes. (The buffer is as long as the longer of the two, which is where the
//! first one's last zero comes from.) The initialisation vector is drawn once, when a key is made, and kept: the same key
//! under the same master always gives the same blob.
//!
//! Source: `get_derived_key`, `datablob_hmac_verify`, `derived_key_decrypt`, security/keys/encrypted-keys/encrypted.c.

use super::{KeyMaterial, MasterKeyError, MasterKeys};
use crate::crypto::{self, KeyError};
use imara_format::key_blob::Errno;
use imara_format::key_blob::encrypted::{Blob, Command, CommandError, KeyLength, MasterName, PayloadFormat};
use zeroize::Zeroizing;

mod diagnosis;

pub use diagnosis::{Damage, diagnose};

/// A key in clear, with what its blob says of it.
pub struct EncryptedKey {
    format: PayloadFormat,
    master: MasterName,
    length: KeyLength,
    iv: [u8; 16],
    material: KeyMaterial,
}

/// Why a command makes no key. The kernel's error number goes with each.
#[derive(Debug, thiserror::Error)]
pub enum EncryptedKeyError {
    /// The text is wrong.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The command does not belong here: `update` makes no key, `new` and `load` update none.
    #[error("the command {command} {place}")]
    Misplaced {
        /// The command.
        command: &'static str,
        /// Where it was given.
        place: &'static str,
    },
    /// There is no master key.
    #[error(transparent)]
    Master(#[from] MasterKeyError),
    /// An update would seal the key with a master of another type.
    #[error("an update may change the master key's name, not its type: {found} where {needed}:NAME is needed")]
    MasterType {
        /// The master key asked for.
        found: MasterName,
        /// The type that the key has now.
        needed: &'static str,
    },
    /// The blob does not authenticate.
    #[error("the blob does not authenticate under the master key {master}: {damage}")]
    NotAuthentic {
        /// The master key.
        master: MasterName,
        /// What can be told of the reason.
        damage: Damage,
    },
    /// The library failed.
    #[error(transparent)]
    Library(#[from] KeyError),
}

impl EncryptedKeyError {
    /// The error number that the kernel's key type gives; none where nothing in the kernel corresponds.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Command(error) => Some(error.errno()),
            Self::Misplaced { .. } | Self::MasterType { .. } | Self::NotAuthentic { .. } => Some(Errno::Einval),
            Self::Master(error) => Some(error.errno),
            Self::Library(_) => None,
        }
    }
}

impl EncryptedKey {
    /// Makes or loads a key by a command, as add_key(2) does. `description` is the key's.
    ///
    /// # Errors
    /// [`EncryptedKeyError`].
    pub fn instantiate(
        command: &[u8],
        description: &[u8],
        masters: &dyn MasterKeys,
    ) -> Result<Self, EncryptedKeyError> {
        match Command::parse(command, description)? {
            Command::New { format, master, length, decrypted_data } => {
                let material = match decrypted_data {
                    Some(data) => {
                        let mut bytes = Zeroizing::new(Vec::with_capacity(length.bytes()));
                        bytes.extend(data.bytes());
                        KeyMaterial::from(bytes)
                    }
                    None => KeyMaterial::random(length.bytes())?,
                };
                Self::new(format.unwrap_or(PayloadFormat::Default), master, length, material)
            }
            Command::Load(blob) => Self::open(&blob, &masters.master_key(&blob.master)?),
            Command::Update { .. } => {
                Err(EncryptedKeyError::Misplaced { command: "update", place: "needs a key that is there already" })
            }
        }
    }

    /// A key of these bytes, with a new initialisation vector.
    ///
    /// # Errors
    /// [`EncryptedKeyError::Command`] where the material has not the length that was said.
    pub fn new(
        format: PayloadFormat,
        master: MasterName,
        length: KeyLength,
        material: KeyMaterial,
    ) -> Result<Self, EncryptedKeyError> {
        let needed = format.fixed_length().unwrap_or(length.bytes());
        if [length.bytes(), material.len()] != [needed; 2] {
            return Err(CommandError::LengthForFormat { format, found: material.len(), needed }.into());
        }
        let mut iv = [0; 16];
        crypto::random(&mut iv)?;
        Ok(Self { format, master, length, iv, material })
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// [`EncryptedKeyError::NotAuthentic`] with what can be told of the reason.
    pub fn open(blob: &Blob, master: &KeyMaterial) -> Result<Self, EncryptedKeyError> {
        let keys = DerivedKeys::new(master)?;
        if !keys.authenticates(blob) {
            let damage = diagnosis::of(blob, &keys);
            return Err(EncryptedKeyError::NotAuthentic { master: blob.master.clone(), damage });
        }
        let material = keys.decrypt(blob)?;
        Ok(Self {
            format: blob.format.unwrap_or(PayloadFormat::Default),
            master: blob.master.clone(),
            length: blob.length.clone(),
            iv: blob.iv,
            material,
        })
    }

    /// Seals the key, as reading it from the kernel does.
    ///
    /// # Errors
    /// [`EncryptedKeyError::Library`].
    pub fn seal(&self, master: &KeyMaterial) -> Result<Blob, EncryptedKeyError> {
        let keys = DerivedKeys::new(master)?;
        let mut padded = Zeroizing::new(Vec::with_capacity(self.length.sealed_bytes()));
        padded.extend_from_slice(self.material.as_bytes());
        padded.resize(self.length.sealed_bytes(), 0);
        let ciphertext = crypto::aes256_cbc_encrypt(&keys.encryption, &self.iv, &padded)?;
        let mut blob = Blob {
            format: Some(self.format),
            master: self.master.clone(),
            length: self.length.clone(),
            iv: self.iv,
            ciphertext,
            mac: [0; 32],
        };
        blob.mac = keys.mac(&blob);
        Ok(blob)
    }

    /// Gives the key another master by the command `update`. As in the kernel the new master is not looked for before the key
    /// is sealed.
    ///
    /// # Errors
    /// [`EncryptedKeyError`].
    pub fn update(&mut self, command: &[u8]) -> Result<(), EncryptedKeyError> {
        let misplaced = |command| EncryptedKeyError::Misplaced { command, place: "cannot update a key" };
        match Command::parse(command, b"")? {
            Command::Update { master } if master.kind() == self.master.kind() => {
                self.master = master;
                Ok(())
            }
            Command::Update { master } => {
                Err(EncryptedKeyError::MasterType { found: master, needed: self.master.kind().name() })
            }
            Command::New { .. } => Err(misplaced("new")),
            Command::Load(_) => Err(misplaced("load")),
        }
    }

    /// The same key under another name of its master key, as where a trusted key was unsealed into one of type `user`: the
    /// blob differs in the name and the MAC alone.
    #[must_use]
    pub fn named(self, master: MasterName) -> Self {
        Self { master, ..self }
    }

    /// What the key is for.
    pub fn format(&self) -> PayloadFormat {
        self.format
    }

    /// The name of the master key that it is sealed with.
    pub fn master(&self) -> &MasterName {
        &self.master
    }

    /// The key's bytes.
    pub fn material(&self) -> &KeyMaterial {
        &self.material
    }

    /// Gives the key's bytes away.
    pub fn into_material(self) -> KeyMaterial {
        self.material
    }
}

/// The two keys derived from a master key.
struct DerivedKeys {
    encryption: Zeroizing<[u8; 32]>,
    authentication: Zeroizing<[u8; 32]>,
}

impl DerivedKeys {
    fn new(master: &KeyMaterial) -> Result<Self, KeyError> {
        Ok(Self { encryption: derive(b"ENC_KEY", master)?, authentication: derive(b"AUTH_KEY", master)? })
    }

    fn mac(&self, blob: &Blob) -> [u8; 32] {
        crypto::hmac_sha256(&*self.authentication, &blob.authenticated())
    }

    fn authenticates(&self, blob: &Blob) -> bool {
        crypto::equal(&self.mac(blob), &blob.mac)
    }

    fn decrypt(&self, blob: &Blob) -> Result<KeyMaterial, KeyError> {
        let mut padded = crypto::aes256_cbc_decrypt(&self.encryption, &blob.iv, &blob.ciphertext)?;
        padded.truncate(blob.length.bytes());
        Ok(KeyMaterial::from(padded))
    }
}

fn derive(label: &[u8], master: &KeyMaterial) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let length = (b"AUTH_KEY".len() + 1 + master.len()).max(32);
    let mut text = Zeroizing::new(Vec::with_capacity(length));
    text.extend_from_slice(label);
    text.push(0);
    text.extend_from_slice(master.as_bytes());
    text.resize(length, 0);
    Ok(crypto::sha256_secret(&text))
}

#[cfg(test)]
mod tests;
