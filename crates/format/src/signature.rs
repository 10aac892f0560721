//! Signature headers, versions 1 to 3, as they stand in `security.ima` and `security.evm`.
//!
//! Versions 2 and 3 (integers big-endian, offsets in the whole label):
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 1 | label type: 3 signature, 5 portable EVM signature, 6 fs-verity signature |
//! | 1 | 1 | version, 2 or 3 |
//! | 2 | 1 | hash algorithm |
//! | 3 | 4 | key id, the end of the certificate's subject key identifier |
//! | 7 | 2 | signature size in bytes; exactly what follows |
//! | 9 | n | signature |
//!
//! Version 1 (deprecated):
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 1 | label type 3 |
//! | 1 | 1 | version, 1 |
//! | 2 | 4 | timestamp, in the signer's byte order |
//! | 6 | 1 | public key algorithm, 0 RSA |
//! | 7 | 1 | hash, 0 SHA-1, 1 SHA-256; the kernel does not look at it |
//! | 8 | 8 | key id |
//! | 16 | 1 | number of integers, 1 |
//! | 17 | 2 | the integer's size in bits, big-endian |
//! | 19 | n | the RSA value; bytes after it are ignored |
//!
//! Source: `struct signature_v2_hdr`, security/integrity/integrity.h; `struct signature_hdr`, include/linux/digsig.h;
//! the checks and their order: security/integrity/digsig.c, digsig_asymmetric.c, lib/digsig.c.

use crate::hash::{Digest, HashAlgorithm};

/// A signature, by the version of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature<'a> {
    /// Version 1: RSA over SHA-1 of the file digest and the header.
    V1(SignatureV1<'a>),
    /// Version 2: over the file digest itself.
    V2(SignatureV2<'a>),
    /// Version 3: the same header, over the digest of [`v3_message`].
    V3(SignatureV2<'a>),
}

/// A signature whose header has version 2 or 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignatureV2<'a> {
    /// The algorithm of the digest that is signed.
    pub algorithm: HashAlgorithm,
    /// The end of the signing key's identifier.
    pub key_id: [u8; 4],
    /// RSA: PKCS#1 v1.5; ECDSA: DER.
    pub signature: &'a [u8],
}

/// A signature whose header has version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignatureV1<'a> {
    /// The 16 bytes from the version to the number of integers: part of what is signed.
    pub header: [u8; 16],
    /// The signing key's identifier.
    pub key_id: [u8; 8],
    /// The RSA value, without the leading zero bytes that its bit count leaves out.
    pub signature: &'a [u8],
}

/// The types of label that carry a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureType {
    /// Type 3, in `security.ima` and `security.evm`.
    Signature,
    /// Type 5, in `security.evm`: does not depend on the filesystem.
    Portable,
    /// Type 6, in `security.ima`: over an fs-verity digest.
    Verity,
}

impl SignatureType {
    /// The label's first byte.
    pub const fn id(self) -> u8 {
        match self {
            Self::Signature => 3,
            Self::Portable => 5,
            Self::Verity => 6,
        }
    }
}

/// Bytes that are no signature. Offsets count from the label's type byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFormatError {
    /// The label ends inside the header.
    #[error("signature ends at offset {found}, its header needs {needed} bytes")]
    Truncated {
        /// Bytes found, with the type byte.
        found: usize,
        /// Bytes that the header needs.
        needed: usize,
    },
    /// A version that neither the kernel nor Imara knows.
    #[error("signature version {0} at offset 1 is not 1, 2 or 3")]
    UnknownVersion(u8),
    /// The header's size is not the number of bytes that follow it.
    #[error("signature size at offset 7 is {stated} bytes, but {found} bytes follow the header")]
    Size {
        /// Bytes that the header states.
        stated: usize,
        /// Bytes that follow.
        found: usize,
    },
    /// A hash algorithm that the kernel does not name.
    #[error("hash algorithm {0} at offset 2 is unknown")]
    UnknownAlgorithm(u8),
    /// Version 1 with a public key algorithm other than RSA.
    #[error("public key algorithm {0} at offset 6 of a version 1 signature is not 0 (RSA)")]
    UnknownPublicKeyAlgorithm(u8),
    /// Version 1 whose integer is longer than what follows.
    #[error("the integer at offset 17 has {stated} bytes, but {found} bytes follow")]
    Integer {
        /// Bytes that the bit count asks for.
        stated: usize,
        /// Bytes that follow.
        found: usize,
    },
}

const HEADER_V1: usize = 19;
const HEADER_V2: usize = 9;

impl<'a> Signature<'a> {
    /// Reads a signature from a whole label. The type byte may be anything.
    ///
    /// # Errors
    /// [`SignatureFormatError`], checked in the kernel's order: length, version, header length, size, algorithm.
    pub fn parse(label: &'a [u8]) -> Result<Self, SignatureFormatError> {
        match label.get(1) {
            None => Err(SignatureFormatError::Truncated { found: label.len(), needed: 2 }),
            Some(1) => SignatureV1::parse(label).map(Self::V1),
            Some(2) => SignatureV2::parse(label).map(Self::V2),
            Some(3) => SignatureV2::parse(label).map(Self::V3),
            Some(version) => Err(SignatureFormatError::UnknownVersion(*version)),
        }
    }

    /// The header's version.
    pub const fn version(&self) -> u8 {
        match self {
            Self::V1(_) => 1,
            Self::V2(_) => 2,
            Self::V3(_) => 3,
        }
    }

    /// The key id's bytes: 8 in version 1, else 4.
    pub fn key_id(&self) -> &[u8] {
        match self {
            Self::V1(signature) => &signature.key_id,
            Self::V2(signature) | Self::V3(signature) => &signature.key_id,
        }
    }

    /// The signature proper, after the header.
    pub const fn bytes(&self) -> &'a [u8] {
        match self {
            Self::V1(signature) => signature.signature,
            Self::V2(signature) | Self::V3(signature) => signature.signature,
        }
    }
}

impl<'a> SignatureV1<'a> {
    fn parse(label: &'a [u8]) -> Result<Self, SignatureFormatError> {
        let truncated = SignatureFormatError::Truncated { found: label.len(), needed: HEADER_V1 };
        let (_, rest) = label.split_first().ok_or(truncated)?;
        let (header, rest) = rest.split_first_chunk::<16>().ok_or(truncated)?;
        let (bits, rest) = rest.split_first_chunk::<2>().ok_or(truncated)?;
        let &[_, _, _, _, _, public_key_algorithm, _, key_id @ .., _integers] = header;
        if public_key_algorithm != 0 {
            return Err(SignatureFormatError::UnknownPublicKeyAlgorithm(public_key_algorithm));
        }
        let stated = usize::from(u16::from_be_bytes(*bits)).div_ceil(8);
        let signature = rest.get(..stated).ok_or(SignatureFormatError::Integer { stated, found: rest.len() })?;
        Ok(Self { header: *header, key_id, signature })
    }

    /// The 16 bytes of a header: its hash is SHA-1 or SHA-256, and no other has a number there.
    pub fn header_of(algorithm: HashAlgorithm, key_id: [u8; 8], timestamp: u32) -> Option<[u8; 16]> {
        let hash = match algorithm {
            HashAlgorithm::Sha1 => 0,
            HashAlgorithm::Sha256 => 1,
            _ => return None,
        };
        let ([t0, t1, t2, t3], [a, b, c, d, e, f, g, h]) = (timestamp.to_ne_bytes(), key_id);
        Some([1, t0, t1, t2, t3, 0, hash, a, b, c, d, e, f, g, h, 1])
    }

    /// A whole label of type 3. As evmctl has it, all bits of the integer's bytes count.
    ///
    /// # Errors
    /// [`SignatureTooLong`] beyond 65535 bits.
    pub fn encode(header: &[u8; 16], signature: &[u8]) -> Result<Vec<u8>, SignatureTooLong> {
        let too_long = SignatureTooLong(signature.len());
        let bits = signature.len().checked_mul(8).and_then(|bits| u16::try_from(bits).ok()).ok_or(too_long)?;
        let mut label = vec![SignatureType::Signature.id()];
        label.extend_from_slice(header);
        label.extend_from_slice(&bits.to_be_bytes());
        label.extend_from_slice(signature);
        Ok(label)
    }

    /// The timestamp as a little-endian machine wrote it, in seconds since 1970.
    pub fn timestamp(&self) -> u32 {
        let [_, a, b, c, d, ..] = self.header;
        u32::from_le_bytes([a, b, c, d])
    }

    /// The hash that the header names: the kernel goes by its default hash whatever this says.
    pub fn algorithm(&self) -> Option<HashAlgorithm> {
        let [_, _, _, _, _, _, hash, ..] = self.header;
        match hash {
            0 => Some(HashAlgorithm::Sha1),
            1 => Some(HashAlgorithm::Sha256),
            _ => None,
        }
    }
}

impl<'a> SignatureV2<'a> {
    fn parse(label: &'a [u8]) -> Result<Self, SignatureFormatError> {
        let found = label.len();
        // The kernel refuses a bare header too, so the smallest signature has a byte.
        let truncated = SignatureFormatError::Truncated { found, needed: HEADER_V2.saturating_add(1) };
        let (header, signature) = label.split_first_chunk::<HEADER_V2>().ok_or(truncated)?;
        if signature.is_empty() {
            return Err(truncated);
        }
        let [_, _, algorithm, key_id @ .., size_high, size_low] = *header;
        let stated = usize::from(u16::from_be_bytes([size_high, size_low]));
        if stated != signature.len() {
            return Err(SignatureFormatError::Size { stated, found: signature.len() });
        }
        let algorithm = HashAlgorithm::from_id(algorithm).ok_or(SignatureFormatError::UnknownAlgorithm(algorithm))?;
        Ok(Self { algorithm, key_id, signature })
    }

    /// A whole label with a version 2 header: type `kind`.
    ///
    /// # Errors
    /// [`SignatureTooLong`] beyond 65535 bytes.
    pub fn encode(&self, kind: SignatureType) -> Result<Vec<u8>, SignatureTooLong> {
        self.encode_version(kind, 2)
    }

    /// A whole label with a version 3 header: type `kind`.
    ///
    /// # Errors
    /// [`SignatureTooLong`] beyond 65535 bytes.
    pub fn encode_v3(&self, kind: SignatureType) -> Result<Vec<u8>, SignatureTooLong> {
        self.encode_version(kind, 3)
    }

    fn encode_version(&self, kind: SignatureType, version: u8) -> Result<Vec<u8>, SignatureTooLong> {
        let size = u16::try_from(self.signature.len()).map_err(|_| SignatureTooLong(self.signature.len()))?;
        let mut label = Vec::with_capacity(HEADER_V2.saturating_add(self.signature.len()));
        label.extend_from_slice(&[kind.id(), version, self.algorithm.id()]);
        label.extend_from_slice(&self.key_id);
        label.extend_from_slice(&size.to_be_bytes());
        label.extend_from_slice(self.signature);
        Ok(label)
    }
}

/// A signature that the header's 16-bit size cannot state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signature of {0} bytes does not fit a label")]
pub struct SignatureTooLong(pub usize);

/// What a version 3 signature signs the digest of: label type, algorithm, digest.
///
/// Only the used part of the kernel's `struct ima_file_id` counts, not its full 66 bytes.
pub fn v3_message(kind: SignatureType, digest: &Digest) -> Vec<u8> {
    let mut message = vec![kind.id(), digest.algorithm().id()];
    message.extend_from_slice(digest.as_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::from_hex;
    use proptest::prelude::*;

    fn v2(hex: &str) -> Vec<u8> {
        from_hex(&hex.replace(' ', "")).unwrap()
    }

    #[test]
    fn version_2_and_3_headers_are_read_to_the_byte() {
        let label = v2("03 02 04 11223344 0003 aabbcc");
        let expected = SignatureV2 {
            algorithm: HashAlgorithm::Sha256,
            key_id: [0x11, 0x22, 0x33, 0x44],
            signature: &[0xaa, 0xbb, 0xcc],
        };
        assert_eq!(Signature::parse(&label), Ok(Signature::V2(expected)));
        assert_eq!(expected.encode(SignatureType::Signature), Ok(label));
        let label = v2("06 03 04 11223344 0003 aabbcc");
        assert_eq!(Signature::parse(&label), Ok(Signature::V3(expected)));
        assert_eq!(expected.encode_v3(SignatureType::Verity), Ok(label));
    }

    #[test]
    fn version_1_header_is_read_to_the_byte_and_what_follows_its_integer_is_ignored() {
        let label = v2("03 01 6ba8046b 00 01 5185d8f2553eb1ca 01 0011 010203 ff");
        let Ok(Signature::V1(signature)) = Signature::parse(&label) else { panic!() };
        assert_eq!(signature.timestamp(), 0x6b04_a86b);
        assert_eq!(signature.algorithm(), Some(HashAlgorithm::Sha256));
        assert_eq!(signature.key_id, [0x51, 0x85, 0xd8, 0xf2, 0x55, 0x3e, 0xb1, 0xca]);
        assert_eq!(signature.header, label[1..17]);
        assert_eq!(signature.signature, [1, 2, 3]);
    }

    #[test]
    fn a_header_that_lies_is_refused_with_what_was_found() {
        use SignatureFormatError as E;
        for (label, error) in [
            ("", E::Truncated { found: 0, needed: 2 }),
            ("03", E::Truncated { found: 1, needed: 2 }),
            ("0300", E::UnknownVersion(0)),
            ("0304 04 11223344 0001 aa", E::UnknownVersion(4)),
            ("0302", E::Truncated { found: 2, needed: 10 }),
            ("0302 04 11223344 0000", E::Truncated { found: 9, needed: 10 }),
            ("0302 04 11223344 0002 aa", E::Size { stated: 2, found: 1 }),
            ("0302 04 11223344 0001 aabb", E::Size { stated: 1, found: 2 }),
            ("0302 ff 11223344 0001 aa", E::UnknownAlgorithm(255)),
            // The size is looked at before the algorithm, as in the kernel.
            ("0302 ff 11223344 0002 aa", E::Size { stated: 2, found: 1 }),
            ("0301 00000000 00 00 0000000000000000 01 00", E::Truncated { found: 18, needed: 19 }),
            ("0301 00000000 01 00 0000000000000000 01 0008 aa", E::UnknownPublicKeyAlgorithm(1)),
            ("0301 00000000 00 00 0000000000000000 01 0009 aa", E::Integer { stated: 2, found: 1 }),
        ] {
            assert_eq!(Signature::parse(&v2(label)), Err(error), "{label}");
        }
        let long = vec![0; 65536];
        let signature = SignatureV2 { algorithm: HashAlgorithm::Sha1, key_id: [0; 4], signature: &long };
        assert_eq!(signature.encode(SignatureType::Signature), Err(SignatureTooLong(65536)));
    }

    #[test]
    fn the_message_of_version_3_is_type_algorithm_digest() {
        let digest = Digest::ones(HashAlgorithm::Sha1);
        let mut expected = vec![6, 2];
        expected.extend([0xff; 20]);
        assert_eq!(v3_message(SignatureType::Verity, &digest), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(label in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Signature::parse(&label);
        }

        #[test]
        fn what_is_written_is_read_back(
            algorithm in 0u8..23,
            key_id in any::<[u8; 4]>(),
            signature in proptest::collection::vec(any::<u8>(), 1..600),
            verity in any::<bool>(),
        ) {
            let algorithm = HashAlgorithm::from_id(algorithm).unwrap();
            let written = SignatureV2 { algorithm, key_id, signature: &signature };
            let (label, expected) = if verity {
                (written.encode_v3(SignatureType::Verity).unwrap(), Signature::V3(written))
            } else {
                (written.encode(SignatureType::Signature).unwrap(), Signature::V2(written))
            };
            prop_assert_eq!(Signature::parse(&label), Ok(expected));
            for end in 0..label.len() {
                prop_assert!(Signature::parse(&label[..end]).is_err());
            }
        }
    }
}
