//! The HMAC key, as what it does: it makes HMACs, and shows itself to nobody.
//!
//! The kernel keeps the key in a buffer of 128 bytes, filled up with zeros, and uses all of it. That is more than a block of
//! SHA-1, so HMAC first replaces it by its SHA-1: those 20 bytes, the *condensed* key, make the same HMACs.

use crate::crypto;
use imara_format::evm::{HMAC_SIZE, KEY_SIZE};
use std::fmt;
use zeroize::Zeroizing;

/// Makes EVM's HMACs. Where the key itself is, is the implementation's affair; its `Debug` must not show it.
pub trait HmacKey: Send + Sync + fmt::Debug {
    /// The HMAC-SHA-1 over `parts`, one after the other.
    ///
    /// # Errors
    /// [`HmacError`].
    fn hmac(&self, parts: &[&[u8]]) -> Result<[u8; HMAC_SIZE], HmacError>;

    /// Where the key is.
    fn custody(&self) -> Custody;
}

/// An HMAC that could not be made: the kernel's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the HMAC cannot be made: {0}")]
pub struct HmacError(pub String);

/// Where an HMAC key is, the safest place first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Custody {
    /// The kernel makes the HMACs (AF_ALG) with the payload of a key of its own, by its serial number: it never is in a process.
    KernelKey {
        /// The serial number.
        serial: i32,
    },
    /// The kernel makes the HMACs (AF_ALG) with a copy of the key, which was in a process only while it was loaded.
    KernelCopy,
    /// memfd_secret(2) memory: unmapped from the kernel's own, never swapped, not to be read through ptrace or a core dump.
    SecretMemory,
    /// Locked memory: never swapped, left out of core dumps.
    LockedMemory,
    /// Ordinary memory.
    Memory,
}

impl Custody {
    /// A word for programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::KernelKey { .. } => "kernel-key",
            Self::KernelCopy => "kernel-copy",
            Self::SecretMemory => "secret-memory",
            Self::LockedMemory => "locked-memory",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Custody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KernelKey { serial } => write!(f, "in the kernel alone: key {serial} makes the HMACs there (AF_ALG)"),
            Self::KernelCopy => {
                f.write_str("in the kernel, which makes the HMACs (AF_ALG); it was read once, to load it")
            }
            Self::SecretMemory => {
                f.write_str("in secret memory (memfd_secret): never swapped, dumped or readable by another process")
            }
            Self::LockedMemory => f.write_str("in locked memory: never swapped or dumped"),
            Self::Memory => f.write_str("in ordinary memory"),
        }
    }
}

/// A key that the kernel would not take (`EINVAL`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an EVM key of {0} bytes, where 1 to {KEY_SIZE} are taken")]
pub struct KeyLengthError(pub usize);

/// A condensed key.
pub type CondensedKey = Zeroizing<[u8; HMAC_SIZE]>;

/// Condenses a key of 1 to 128 bytes.
///
/// # Errors
/// [`KeyLengthError`].
pub fn condense(key: &[u8]) -> Result<CondensedKey, KeyLengthError> {
    let mut padded = Zeroizing::new([0; KEY_SIZE]);
    match padded.get_mut(..key.len()) {
        Some(room) if !key.is_empty() => room.copy_from_slice(key),
        _ => return Err(KeyLengthError(key.len())),
    }
    Ok(crypto::sha1_secret(&padded[..]))
}

/// A key in ordinary memory, wiped when dropped: for what a command is given on its own command line or in a file.
pub struct PlainKey(CondensedKey);

impl PlainKey {
    /// A key of 1 to 128 bytes.
    ///
    /// # Errors
    /// [`KeyLengthError`].
    pub fn new(key: &[u8]) -> Result<Self, KeyLengthError> {
        condense(key).map(Self)
    }
}

impl fmt::Debug for PlainKey {
    /// Never the key itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EVM key")
    }
}

impl HmacKey for PlainKey {
    fn hmac(&self, parts: &[&[u8]]) -> Result<[u8; HMAC_SIZE], HmacError> {
        Ok(crypto::hmac_sha1(&self.0[..], parts))
    }

    fn custody(&self) -> Custody {
        Custody::Memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::hash::to_hex;

    #[test]
    fn only_what_fits_the_kernels_buffer_is_a_key() {
        assert_eq!(PlainKey::new(&[]).unwrap_err(), KeyLengthError(0));
        assert_eq!(PlainKey::new(&[1; 129]).unwrap_err(), KeyLengthError(129));
        let padded = [&[7; 20][..], &[0; 108]].concat();
        assert_eq!(condense(&[7; 20]).unwrap(), condense(&padded).unwrap());
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = PlainKey::new(b"secret and nothing else").unwrap();
        let shown = format!("{key:?} {key:#?} {:?} {}", key.custody(), key.custody());
        for spelt in [to_hex(b"secret"), "secret".to_owned(), "115, 101".to_owned(), to_hex(&key.0[..])] {
            assert!(!shown.contains(&spelt), "{shown}");
        }
    }
}
