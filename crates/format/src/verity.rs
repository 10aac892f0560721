//! What an fs-verity file digest is made over: the descriptor of a file's Merkle tree.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | hash, 1 SHA-256, 2 SHA-512 |
//! | 2 | 1 | binary logarithm of the block size |
//! | 3 | 1 | size of the salt, 0 to 32 |
//! | 4 | 4 | 0 |
//! | 8 | 8 | size of the file, little-endian |
//! | 16 | 64 | hash of the tree's root, zeros after it; zeros alone for an empty file |
//! | 80 | 32 | salt, zeros after it |
//! | 112 | 144 | 0 |
//!
//! Source: `struct fsverity_descriptor`, include/uapi/linux/fsverity.h; Documentation/filesystems/fsverity.rst.

use crate::hash::{Digest, HashAlgorithm};

/// The size of a descriptor, in bytes.
pub const DESCRIPTOR_SIZE: usize = 256;
/// The most bytes that a salt has.
pub const MAX_SALT: usize = 32;

/// The hashes that fs-verity knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum VerityHash {
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
}

impl VerityHash {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Its number in fs-verity, which is not IMA's.
    pub const fn id(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    /// The hash with that number.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            1 => Some(Self::Sha256),
            2 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// The hash by IMA's name for it.
    pub const fn of(algorithm: HashAlgorithm) -> Option<Self> {
        match algorithm {
            HashAlgorithm::Sha256 => Some(Self::Sha256),
            HashAlgorithm::Sha512 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// IMA's name for it.
    pub const fn algorithm(self) -> HashAlgorithm {
        match self {
            Self::Sha256 => HashAlgorithm::Sha256,
            Self::Sha512 => HashAlgorithm::Sha512,
        }
    }

    /// The size of the blocks that the hash itself works in: what a salt is filled up to.
    pub const fn input_block(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// How a file's tree is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VerityParameters {
    hash: VerityHash,
    log_block_size: u8,
    salt: Vec<u8>,
}

/// Parameters that fs-verity does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerityParameterError {
    /// A block size that is no power of two from 1024 on.
    #[error("a block size of {0} is no power of two from 1024 to 65536")]
    BlockSize(u32),
    /// A salt that is too long.
    #[error("a salt of {0} bytes, where {MAX_SALT} are the most")]
    Salt(usize),
}

impl VerityParameters {
    /// These.
    ///
    /// # Errors
    /// [`VerityParameterError`]. Which block sizes a kernel takes is another question: those from 1024 to its page size, and before
    /// Linux 6.3 the page size alone.
    pub fn new(hash: VerityHash, block_size: u32, salt: &[u8]) -> Result<Self, VerityParameterError> {
        if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
            return Err(VerityParameterError::BlockSize(block_size));
        }
        if salt.len() > MAX_SALT {
            return Err(VerityParameterError::Salt(salt.len()));
        }
        let log_block_size = u8::try_from(block_size.trailing_zeros()).unwrap_or(u8::MAX);
        Ok(Self { hash, log_block_size, salt: salt.to_vec() })
    }

    /// What `fsverity` does where nothing is said: SHA-256, blocks of 4096 bytes, no salt.
    pub fn plain(hash: VerityHash) -> Self {
        Self { hash, log_block_size: 12, salt: Vec::new() }
    }

    /// The hash.
    pub const fn hash(&self) -> VerityHash {
        self.hash
    }

    /// The size of a block, in bytes.
    pub const fn block_size(&self) -> usize {
        1 << self.log_block_size
    }

    /// The salt.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// The descriptor of a file of this size whose tree has this root; `None` is an empty file's.
    pub fn descriptor(&self, size: u64, root: Option<&Digest>) -> [u8; DESCRIPTOR_SIZE] {
        let mut descriptor = Vec::with_capacity(DESCRIPTOR_SIZE);
        let salt_size = u8::try_from(self.salt.len()).unwrap_or(u8::MAX);
        descriptor.extend_from_slice(&[1, self.hash.id(), self.log_block_size, salt_size, 0, 0, 0, 0]);
        descriptor.extend_from_slice(&size.to_le_bytes());
        descriptor.extend_from_slice(root.map(Digest::as_bytes).unwrap_or_default());
        descriptor.resize(80, 0);
        descriptor.extend_from_slice(&self.salt);
        descriptor.resize(DESCRIPTOR_SIZE, 0);
        descriptor.try_into().unwrap_or([0; DESCRIPTOR_SIZE])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::to_hex;

    #[test]
    fn a_descriptor_is_laid_out_to_the_byte() {
        let parameters = VerityParameters::new(VerityHash::Sha512, 1024, &[0xab, 0xcd]).unwrap();
        let root = Digest::ones(HashAlgorithm::Sha512);
        let descriptor = parameters.descriptor(0x0102_0304, Some(&root));
        let expected = ["01020a0200000000", "0403020100000000", &"ff".repeat(64), "abcd", &"00".repeat(174)].concat();
        assert_eq!(to_hex(&descriptor), expected);
        let empty = VerityParameters::plain(VerityHash::Sha256).descriptor(0, None);
        assert_eq!(to_hex(&empty), ["01010c00", &"00".repeat(252)].concat());
    }

    #[test]
    fn parameters_that_fs_verity_does_not_have_are_refused() {
        for (block_size, salt, error) in [
            (512, 0, VerityParameterError::BlockSize(512)),
            (4097, 0, VerityParameterError::BlockSize(4097)),
            (131_072, 0, VerityParameterError::BlockSize(131_072)),
            (0, 0, VerityParameterError::BlockSize(0)),
            (4096, 33, VerityParameterError::Salt(33)),
        ] {
            let parameters = VerityParameters::new(VerityHash::Sha256, block_size, &vec![0; salt]);
            assert_eq!(parameters, Err(error));
        }
        for hash in VerityHash::ALL {
            assert_eq!(VerityHash::from_id(hash.id().into()), Some(hash));
            assert_eq!(VerityHash::of(hash.algorithm()), Some(hash));
        }
    }
}
