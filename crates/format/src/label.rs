//! The values of `security.ima` and `security.evm`.
//!
//! | byte 0 | what | layout | in |
//! |---|---|---|---|
//! | 1 | digest, legacy | `01` digest; MD5 (16) or SHA-1 (20), the length tells | `security.ima` |
//! | 2 | EVM HMAC | `02` HMAC-SHA-1 (20) | `security.evm` |
//! | 3 | signature | see [`crate::signature`] | both |
//! | 4 | digest | `04` algorithm (1) digest (its size); what follows is ignored | `security.ima` |
//! | 5 | portable EVM signature | see [`crate::signature`] | `security.evm` |
//! | 6 | fs-verity signature | see [`crate::signature`] | `security.ima` |
//!
//! Source: `enum evm_ima_xattr_type` and `struct evm_ima_xattr_data`, security/integrity/integrity.h;
//! `ima_get_hash_algo` and `xattr_verify`, security/integrity/ima/ima_appraise.c; `evm_verify_hmac`,
//! security/integrity/evm/evm_main.c.

use crate::hash::{Digest, HashAlgorithm};
use crate::signature::{Signature, SignatureFormatError};

/// A label that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label<'a> {
    /// A digest, without a signature: type 1 or 4.
    Digest {
        /// The digest.
        digest: Digest,
        /// Whether it is of type 1, whose length tells the algorithm.
        legacy: bool,
        /// Bytes after the digest, which nobody looks at.
        padding: usize,
    },
    /// A signature: type 3.
    Signature(Signature<'a>),
    /// An EVM HMAC: type 2.
    EvmHmac(&'a [u8]),
    /// A portable EVM signature: type 5.
    EvmPortable(Signature<'a>),
    /// A signature over an fs-verity digest: type 6.
    VeritySignature(Signature<'a>),
}

/// The two attributes that hold labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// `security.ima`.
    Ima,
    /// `security.evm`.
    Evm,
}

impl std::fmt::Display for Attribute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ima => "security.ima",
            Self::Evm => "security.evm",
        })
    }
}

/// Bytes that are no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// No byte at all.
    #[error("{0} is empty")]
    Empty(Attribute),
    /// A first byte that does not belong into this attribute.
    #[error("{attribute} has type {found} at offset 0, which does not belong there")]
    UnknownType {
        /// The attribute read.
        attribute: Attribute,
        /// The byte found.
        found: u8,
    },
    /// A legacy digest with a length that names no algorithm.
    #[error("legacy digest label has {found} bytes, 17 (md5) or 21 (sha1) needed")]
    LegacyLength {
        /// Bytes found, with the type byte.
        found: usize,
    },
    /// A digest label that names an unknown algorithm.
    #[error("hash algorithm {0} at offset 1 of the digest label is unknown")]
    UnknownAlgorithm(u8),
    /// A digest that stops short.
    #[error("{algorithm} digest label has {found} bytes, {needed} needed")]
    DigestTruncated {
        /// The algorithm named.
        algorithm: HashAlgorithm,
        /// Bytes found, with the bytes before the digest.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A digest label without its algorithm byte.
    #[error("digest label ends at offset 1, before its algorithm")]
    NoAlgorithm,
    /// An EVM HMAC of another length than SHA-1's.
    #[error("EVM HMAC label has {found} bytes, exactly 21 needed")]
    HmacLength {
        /// Bytes found, with the type byte.
        found: usize,
    },
    /// A signature that cannot be read.
    #[error(transparent)]
    Signature(#[from] SignatureFormatError),
}

const LEGACY: u8 = 1;
const HMAC: u8 = 2;
const SIGNATURE: u8 = 3;
const DIGEST: u8 = 4;
const PORTABLE: u8 = 5;
const VERITY: u8 = 6;

impl<'a> Label<'a> {
    /// Reads `security.ima`.
    ///
    /// The kernel compares a digest label whose algorithm cannot be told against its default hash: see
    /// [`digest_part`], which is what an appraisal goes by.
    ///
    /// # Errors
    /// [`LabelError`], with the offset.
    pub fn parse_ima(value: &'a [u8]) -> Result<Self, LabelError> {
        let attribute = Attribute::Ima;
        match *value.first().ok_or(LabelError::Empty(attribute))? {
            LEGACY => legacy_digest(value),
            DIGEST => digest(value),
            SIGNATURE => Ok(Self::Signature(Signature::parse(value)?)),
            VERITY => Ok(Self::VeritySignature(Signature::parse(value)?)),
            found => Err(LabelError::UnknownType { attribute, found }),
        }
    }

    /// Reads `security.evm`.
    ///
    /// # Errors
    /// [`LabelError`], with the offset.
    pub fn parse_evm(value: &'a [u8]) -> Result<Self, LabelError> {
        let attribute = Attribute::Evm;
        let (kind, rest) = value.split_first().ok_or(LabelError::Empty(attribute))?;
        match *kind {
            HMAC if rest.len() == 20 => Ok(Self::EvmHmac(rest)),
            HMAC => Err(LabelError::HmacLength { found: value.len() }),
            SIGNATURE => Ok(Self::Signature(Signature::parse(value)?)),
            PORTABLE => Ok(Self::EvmPortable(Signature::parse(value)?)),
            found => Err(LabelError::UnknownType { attribute, found }),
        }
    }
}

fn legacy_digest(value: &[u8]) -> Result<Label<'_>, LabelError> {
    let wrong = LabelError::LegacyLength { found: value.len() };
    let algorithm = algorithm_of(value).ok_or(wrong)?;
    let digest = value.get(1..).and_then(|rest| rest.get(..algorithm.digest_size())).ok_or(wrong)?;
    let padding = value.len().saturating_sub(1).saturating_sub(digest.len());
    let digest = Digest::new(algorithm, digest).map_err(|_| wrong)?;
    Ok(Label::Digest { digest, legacy: true, padding })
}

fn digest(value: &[u8]) -> Result<Label<'_>, LabelError> {
    let id = *value.get(1).ok_or(LabelError::NoAlgorithm)?;
    let algorithm = HashAlgorithm::from_id(id).ok_or(LabelError::UnknownAlgorithm(id))?;
    let needed = algorithm.digest_size().saturating_add(2);
    let truncated = LabelError::DigestTruncated { algorithm, found: value.len(), needed };
    let digest = value.get(2..needed).ok_or(truncated)?;
    let digest = Digest::new(algorithm, digest).map_err(|_| truncated)?;
    Ok(Label::Digest { digest, legacy: false, padding: value.len().saturating_sub(needed) })
}

/// The algorithm that a file with this `security.ima` must be collected with; `None` is the default hash.
///
/// It looks at the first bytes alone, as the kernel does: a label that will be refused still chooses an algorithm.
pub fn algorithm_of(value: &[u8]) -> Option<HashAlgorithm> {
    match *value {
        [SIGNATURE, 2, id, ..] | [VERITY, 3, id, ..] if value.len() > 9 => HashAlgorithm::from_id(id),
        [DIGEST, id, ..] => HashAlgorithm::from_id(id),
        // Old kernels stored MD5 in 20 bytes, the last four zero.
        [LEGACY, .., 0, 0, 0, 0] if value.len() == 21 => Some(HashAlgorithm::Md5),
        [LEGACY, ..] if value.len() == 21 => Some(HashAlgorithm::Sha1),
        [LEGACY, ..] if value.len() == 17 => Some(HashAlgorithm::Md5),
        _ => None,
    }
}

/// What the kernel compares a collected digest with: all that follows the type byte (type 1), or the algorithm byte
/// (type 4), of a digest label. The file is as labelled when this starts with the collected digest.
///
/// `None` for a label that is no digest label.
pub fn digest_part(value: &[u8]) -> Option<&[u8]> {
    match value {
        [LEGACY, digest @ ..] | [DIGEST, _, digest @ ..] => Some(digest),
        [DIGEST] => Some(&[]),
        _ => None,
    }
}

/// The digest label that the kernel and evmctl write: type 1 for MD4, MD5 and SHA-1, else type 4.
pub fn encode_digest(digest: &Digest) -> Vec<u8> {
    let mut label = match digest.algorithm() {
        HashAlgorithm::Md4 | HashAlgorithm::Md5 | HashAlgorithm::Sha1 => vec![LEGACY],
        algorithm => vec![DIGEST, algorithm.id()],
    };
    label.extend_from_slice(digest.as_bytes());
    label
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::from_hex;
    use crate::signature::SignatureV2;
    use HashAlgorithm as H;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        from_hex(&hex.replace(' ', "")).unwrap()
    }

    #[test]
    fn digest_labels_are_read_as_the_kernel_reads_them() {
        let legacy = |algorithm, digest: &[u8], padding| {
            Ok(Label::Digest { digest: Digest::new(algorithm, digest).unwrap(), legacy: true, padding })
        };
        let modern = |algorithm, digest: &[u8], padding| {
            Ok(Label::Digest { digest: Digest::new(algorithm, digest).unwrap(), legacy: false, padding })
        };
        let with = |start: &[u8], byte: u8, count: usize, end: &[u8]| [start, &vec![byte; count], end].concat();
        for (name, label, expected) in [
            ("md5", with(&[1], 7, 16, &[]), legacy(H::Md5, &[7; 16], 0)),
            ("md5, padded by old kernels", with(&[1], 7, 16, &[0; 4]), legacy(H::Md5, &[7; 16], 4)),
            ("sha1", with(&[1], 7, 20, &[]), legacy(H::Sha1, &[7; 20], 0)),
            ("legacy, no algorithm's length", with(&[1], 7, 21, &[]), Err(LabelError::LegacyLength { found: 22 })),
            ("legacy, nothing", vec![1], Err(LabelError::LegacyLength { found: 1 })),
            ("sha256", with(&[4, 4], 7, 32, &[]), modern(H::Sha256, &[7; 32], 0)),
            ("sha256, over-long", with(&[4, 4], 7, 32, &[1; 5]), modern(H::Sha256, &[7; 32], 5)),
            ("sha1 with its number", with(&[4, 2], 7, 20, &[]), modern(H::Sha1, &[7; 20], 0)),
            (
                "sha256, short",
                with(&[4, 4], 7, 31, &[]),
                Err(LabelError::DigestTruncated { algorithm: H::Sha256, found: 33, needed: 34 }),
            ),
            ("unknown algorithm", with(&[4, 23], 7, 32, &[]), Err(LabelError::UnknownAlgorithm(23))),
            ("no algorithm", vec![4], Err(LabelError::NoAlgorithm)),
            ("empty", vec![], Err(LabelError::Empty(Attribute::Ima))),
        ] {
            assert_eq!(Label::parse_ima(&label), expected, "{name}");
        }
    }

    #[test]
    fn each_attribute_takes_its_own_types_only() {
        let unknown = |attribute, found| Err(LabelError::UnknownType { attribute, found });
        for kind in [0, 2, 5, 7, 255] {
            assert_eq!(Label::parse_ima(&[kind; 30]), unknown(Attribute::Ima, kind));
        }
        for kind in [0, 1, 4, 6, 7, 255] {
            assert_eq!(Label::parse_evm(&[kind; 30]), unknown(Attribute::Evm, kind));
        }
        let hmac = [&[2][..], &[9; 20]].concat();
        assert_eq!(Label::parse_evm(&hmac), Ok(Label::EvmHmac(&[9; 20])));
        assert_eq!(Label::parse_evm(&hmac[..20]), Err(LabelError::HmacLength { found: 20 }));
        assert_eq!(Label::parse_evm(&[2; 22]), Err(LabelError::HmacLength { found: 22 }));
        let expected = SignatureV2 { algorithm: H::Sha256, key_id: [0x11, 0x22, 0x33, 0x44], signature: &[0xaa] };
        for (label, read) in [
            ("03 02 04 11223344 0001 aa", Label::Signature(Signature::V2(expected))),
            ("06 03 04 11223344 0001 aa", Label::VeritySignature(Signature::V3(expected))),
        ] {
            assert_eq!(Label::parse_ima(&bytes(label)), Ok(read));
        }
        assert_eq!(
            Label::parse_evm(&bytes("05 02 04 11223344 0001 aa")),
            Ok(Label::EvmPortable(Signature::V2(expected)))
        );
    }

    #[test]
    fn the_algorithm_to_collect_with_is_the_kernels_choice() {
        let with = |start: &[u8], length: usize| [start, &vec![7; length.saturating_sub(start.len())]].concat();
        let padded_md5 = [&[1][..], &[7; 16], &[0; 4]].concat();
        for (name, label, expected) in [
            ("empty", vec![], None),
            ("one byte", vec![4], None),
            ("v2 signature", with(&[3, 2, 6], 10), Some(H::Sha512)),
            ("v2 signature, too short", with(&[3, 2, 6], 9), None),
            ("v2 signature, unknown algorithm", with(&[3, 2, 23], 300), None),
            ("v1 signature", with(&[3, 1, 4], 300), None),
            ("v3 signature of type 3", with(&[3, 3, 4], 300), None),
            ("verity signature", with(&[6, 3, 6], 300), Some(H::Sha512)),
            ("verity signature, version 2", with(&[6, 2, 6], 300), None),
            ("digest", with(&[4, 5], 50), Some(H::Sha384)),
            ("digest, cut to its algorithm", vec![4, 5], Some(H::Sha384)),
            ("digest, unknown algorithm", with(&[4, 99], 50), None),
            ("legacy sha1", with(&[1], 21), Some(H::Sha1)),
            ("legacy md5", with(&[1], 17), Some(H::Md5)),
            ("legacy md5, padded", padded_md5, Some(H::Md5)),
            ("legacy, other length", with(&[1], 33), None),
            ("EVM HMAC", with(&[2], 21), None),
        ] {
            assert_eq!(algorithm_of(&label), expected, "{name}");
        }
    }

    #[test]
    fn digests_are_written_as_the_kernel_writes_them() {
        for (algorithm, start) in [
            (H::Md4, "01"),
            (H::Md5, "01"),
            (H::Sha1, "01"),
            (H::Rmd160, "0403"),
            (H::Sha256, "0404"),
            (H::Sm3, "0411"),
        ] {
            let digest = Digest::ones(algorithm);
            assert_eq!(encode_digest(&digest), [bytes(start), digest.as_bytes().to_vec()].concat());
        }
    }

    #[test]
    fn what_is_compared_starts_after_the_labels_head() {
        assert_eq!(digest_part(&[1, 2, 3]), Some(&[2, 3][..]));
        assert_eq!(digest_part(&[4, 2, 3]), Some(&[3][..]));
        assert_eq!(digest_part(&[4]), Some(&[][..]));
        assert_eq!(digest_part(&[3, 2, 3]), None);
        assert_eq!(digest_part(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(kind in 0u8..9, rest in proptest::collection::vec(any::<u8>(), 0..600)) {
            let label = [vec![kind], rest].concat();
            let _ = (Label::parse_ima(&label), Label::parse_evm(&label), algorithm_of(&label), digest_part(&label));
        }

        #[test]
        fn a_written_digest_is_read_back(id in 0u8..23, fill in 1u8..) {
            let algorithm = HashAlgorithm::from_id(id).unwrap();
            let written = Digest::new(algorithm, &vec![fill; algorithm.digest_size()]).unwrap();
            let label = encode_digest(&written);
            let Ok(Label::Digest { digest, legacy, padding: 0 }) = Label::parse_ima(&label) else { panic!() };
            // MD4 has MD5's length: the kernel, too, reads it as MD5.
            let read = if algorithm == HashAlgorithm::Md4 { HashAlgorithm::Md5 } else { algorithm };
            prop_assert_eq!(digest.algorithm(), read);
            prop_assert_eq!(digest.as_bytes(), written.as_bytes());
            prop_assert_eq!(legacy, id <= 2);
        }
    }
}
