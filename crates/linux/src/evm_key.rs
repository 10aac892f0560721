//! EVM's HMAC key, as far away as this machine can keep it.
//!
//! | custody | where | needs |
//! |---|---|---|
//! | a key of the kernel's, by serial number | AF_ALG takes the payload of an `encrypted` key | Linux 6.2, algif_hash; a key of exactly 128 bytes, or the kernel's padding would be missing |
//! | a copy in the kernel | AF_ALG keeps the condensed key | algif_hash |
//! | secret memory | memfd_secret(2) | Linux 5.14; `secretmem.enable=1` before 6.5 |
//! | locked memory | mlock(2) | |
//!
//! What a key passes through on its way is wiped.

use crate::sys::alg::{Key, KeyedHash};
use crate::sys::secret_memory::{Kind, SecretMemory};
use imara_engine::crypto::hmac_sha1;
use imara_engine::evm::key::{CondensedKey, Custody, HmacError, HmacKey, KeyLengthError, condense};
use imara_format::evm::{HMAC_SIZE, KEY_SIZE};
use imara_format::key::KeySerial;
use std::fmt;
use std::io;

/// Why a key cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum EvmKeyError {
    /// Its length.
    #[error(transparent)]
    Length(#[from] KeyLengthError),
    /// Nowhere, not even in locked memory.
    #[error("the EVM key cannot be kept in memory that is never swapped: {0}")]
    Memory(#[source] io::Error),
    /// EVM's key is filled up with zeros to 128 bytes; AF_ALG would take a shorter one as it is, and make other HMACs.
    #[error(
        "the kernel's key {serial} has {length} bytes; with {KEY_SIZE} the kernel could make HMACs with it by itself"
    )]
    NotPadded {
        /// The key.
        serial: i32,
        /// Its length.
        length: usize,
    },
    /// The kernel does not make HMACs with its own key.
    #[error("the kernel does not make HMACs with its key {serial}: {error}")]
    Kernel {
        /// The key.
        serial: i32,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

/// Where a key may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Keeping {
    /// Wherever is best.
    #[default]
    Best,
    /// In memory of this process: for a key that lives as long as a command.
    InProcess,
}

/// The kernel makes the HMACs.
struct KernelHmac {
    hash: KeyedHash,
    custody: Custody,
}

/// This process makes them.
struct ProcessHmac(SecretMemory);

impl fmt::Debug for KernelHmac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EVM key {}", self.custody)
    }
}

impl fmt::Debug for ProcessHmac {
    /// Never the key itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EVM key {}", self.custody())
    }
}

impl HmacKey for KernelHmac {
    fn hmac(&self, parts: &[&[u8]]) -> Result<[u8; HMAC_SIZE], HmacError> {
        let hash = self.hash.hash(parts).map_err(|error| HmacError(format!("AF_ALG: {error}")))?;
        hash.try_into().map_err(|_| HmacError("AF_ALG gave a hash of another size".into()))
    }

    fn custody(&self) -> Custody {
        self.custody
    }
}

impl HmacKey for ProcessHmac {
    fn hmac(&self, parts: &[&[u8]]) -> Result<[u8; HMAC_SIZE], HmacError> {
        Ok(hmac_sha1(self.0.as_bytes(), parts))
    }

    fn custody(&self) -> Custody {
        match self.0.kind() {
            Kind::Secret => Custody::SecretMemory,
            Kind::Locked => Custody::LockedMemory,
        }
    }
}

/// Keeps a key of 1 to 128 bytes. What it was read into is the caller's to wipe.
///
/// # Errors
/// [`EvmKeyError`].
pub fn keep(key: &[u8], keeping: Keeping) -> Result<Box<dyn HmacKey>, EvmKeyError> {
    let condensed = condense(key)?;
    if keeping == Keeping::Best
        && let Some(kernel) = in_kernel(&condensed)
    {
        return Ok(kernel);
    }
    Ok(Box::new(ProcessHmac(SecretMemory::new(&condensed[..]).map_err(EvmKeyError::Memory)?)))
}

/// The kernel's AF_ALG with a copy of the key, where it has that and makes what it should.
fn in_kernel(condensed: &CondensedKey) -> Option<Box<dyn HmacKey>> {
    let hash = KeyedHash::new("hmac(sha1)", HMAC_SIZE, Key::Bytes(&condensed[..])).ok()?;
    let kernel = KernelHmac { hash, custody: Custody::KernelCopy };
    let sample: [&[u8]; 2] = [b"what both", b"make the same of"];
    (kernel.hmac(&sample).ok()? == hmac_sha1(&condensed[..], &sample)).then(|| Box::new(kernel) as Box<dyn HmacKey>)
}

/// Why a key is not kept further away, the best place first.
pub fn why_not_better(custody: Custody) -> Vec<String> {
    let mut why = Vec::new();
    if matches!(custody, Custody::KernelKey { .. }) {
        return why;
    }
    let sample: CondensedKey = Default::default();
    let hash = KeyedHash::new("hmac(sha1)", HMAC_SIZE, Key::Bytes(&sample[..]));
    match hash {
        Err(error) => why.push(format!("the kernel makes no HMACs for processes (AF_ALG, algif_hash): {error}")),
        Ok(_) => why.push(format!(
            "the kernel makes HMACs with a key of its own from Linux 6.2 on, with a key of exactly {KEY_SIZE} bytes in its key \
             service (imara key encrypted new … {KEY_SIZE})"
        )),
    }
    if matches!(custody, Custody::LockedMemory | Custody::Memory)
        && let Err(error) = SecretMemory::of_kind(&sample[..], Kind::Secret)
    {
        why.push(format!("there is no secret memory (memfd_secret; secretmem.enable=1 before Linux 6.5): {error}"));
    }
    why
}

/// Has the kernel make HMACs with its own key, whose payload must have 128 bytes.
///
/// # Errors
/// [`EvmKeyError`].
pub fn by_serial(key: KeySerial, length: usize) -> Result<Box<dyn HmacKey>, EvmKeyError> {
    if length != KEY_SIZE {
        return Err(EvmKeyError::NotPadded { serial: key.0, length });
    }
    let hash = KeyedHash::new("hmac(sha1)", HMAC_SIZE, Key::Serial(key.0));
    let hash = hash.map_err(|error| EvmKeyError::Kernel { serial: key.0, error })?;
    Ok(Box::new(KernelHmac { hash, custody: Custody::KernelKey { serial: key.0 } }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_engine::evm::key::PlainKey;

    #[test]
    fn a_kept_key_makes_evms_hmacs_wherever_it_is() {
        let parts: [&[u8]; 3] = [b"one", b"", b"two"];
        for length in [1, 20, 32, 64, 65, 128] {
            let key: Vec<u8> = (0..length).collect();
            let expected = PlainKey::new(&key).unwrap().hmac(&parts).unwrap();
            for keeping in [Keeping::Best, Keeping::InProcess] {
                let kept = keep(&key, keeping).unwrap();
                assert_eq!(kept.hmac(&parts).unwrap(), expected, "{length} bytes, {kept:?}");
            }
        }
        assert!(keep(&[], Keeping::Best).is_err());
        assert!(keep(&[1; 129], Keeping::InProcess).is_err());
    }

    #[test]
    fn a_key_in_this_process_is_out_of_reach_of_debuggers_and_not_shown() {
        let kept = keep(b"not to be seen", Keeping::InProcess).unwrap();
        if kept.custody() != Custody::SecretMemory {
            let name = "a_key_in_this_process_is_out_of_reach_of_debuggers_and_not_shown";
            println!("skipped: {name}: no secret memory here");
            return;
        }
        let shown = format!("{kept:?} {kept:#?}");
        assert_eq!(shown.matches("secret memory").count(), 2);
        assert!(!shown.contains("not to be seen"));
    }

    #[test]
    fn a_key_that_the_kernel_would_not_fill_up_is_not_used_by_its_number() {
        assert!(matches!(by_serial(KeySerial(1), 32), Err(EvmKeyError::NotPadded { serial: 1, length: 32 })));
        // No such key, or no AF_ALG.
        assert!(by_serial(KeySerial(1), 128).is_err());
    }
}
