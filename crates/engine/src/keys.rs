//! Keys whose bytes must not be seen: encrypted keys, and the master keys that seal them.
//!
//! [`KeyMaterial`] is the one type that holds such bytes. Nothing here prints them, and what they pass through is wiped.

use crate::crypto::{self, KeyError};
use imara_format::key_blob::Errno;
use imara_format::key_blob::encrypted::MasterName;
use zeroize::Zeroizing;

pub mod encrypted;
pub mod trusted;

/// The bytes of a secret key: wiped when dropped, compared in constant time, and without `Debug`, so that no error, log or
/// test can print them.
///
/// ```compile_fail
/// let key = imara_engine::keys::KeyMaterial::new(vec![1]);
/// println!("{key:?}");
/// ```
pub struct KeyMaterial(Zeroizing<Vec<u8>>);

impl KeyMaterial {
    /// Takes bytes over. They are not copied, so that no copy is left behind.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// New random bytes.
    ///
    /// # Errors
    /// [`KeyError::Library`] for want of randomness.
    pub fn random(length: usize) -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new(vec![0; length]);
        crypto::random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, for an operation that needs them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all its bytes are zero, as of a key that was wiped.
    pub fn is_zero(&self) -> bool {
        self.0.iter().fold(0, |all, byte| all | byte) == 0
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Zeroizing<Vec<u8>>> for KeyMaterial {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl PartialEq for KeyMaterial {
    fn eq(&self, other: &Self) -> bool {
        crypto::equal(&self.0, &other.0)
    }
}

impl Eq for KeyMaterial {}

/// Where master keys come from: the kernel's key service, files, a TPM.
pub trait MasterKeys {
    /// The master key's bytes.
    ///
    /// # Errors
    /// [`MasterKeyError`].
    fn master_key(&self, name: &MasterName) -> Result<KeyMaterial, MasterKeyError>;
}

/// Why there is no master key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("master key {master}: {what}")]
pub struct MasterKeyError {
    /// The name that was asked for.
    pub master: MasterName,
    /// What the kernel's key type would answer.
    pub errno: Errno,
    /// What happened.
    pub what: String,
}
