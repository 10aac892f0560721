//! How each kind of key signs a digest, and why a signature does not verify.

use super::key::KeyKind;
use imara_format::hash::{Digest, HashAlgorithm};
use openssl::pkey::Public;
use openssl::rsa::{Padding, Rsa};

/// A signature that does not verify under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The signature is of another digest, or by another key.
    #[error("wrong signature: of another content, or made by another key")]
    Wrong,
    /// An RSA signature that is shorter or longer than the modulus.
    #[error("wrong signature: {found} bytes, where the RSA key makes {needed}")]
    RsaLength {
        /// Bytes found.
        found: usize,
        /// The modulus' size in bytes.
        needed: usize,
    },
    /// An ECDSA or SM2 signature that is not a DER sequence of two integers, and nothing else.
    #[error("wrong signature: not a sequence of two integers in DER")]
    NotDer,
    /// A hash that this type of key has no encoding for.
    #[error("the kernel knows no {kind} signatures over {algorithm}")]
    UnsupportedHash {
        /// The key's kind.
        kind: KeyKind,
        /// The digest's algorithm.
        algorithm: HashAlgorithm,
    },
    /// A version 1 signature with a key that is not RSA.
    #[error("version 1 signatures need an RSA key, this one is {0}")]
    NotRsa(KeyKind),
    /// The keeper of a key that is kept elsewhere gave this error number.
    #[error("the kernel, which has the key, could not verify it: {}", std::io::Error::from_raw_os_error(*.0))]
    Keeper(i32),
    /// The library or the token failed.
    #[error("the key could not sign")]
    CannotSign,
}

pub(super) fn rsa_opens_to(key: &Rsa<Public>, signature: &[u8], expected: &[u8]) -> Result<(), SignatureError> {
    let mut opened = [0; 2048];
    let opened = opened.get_mut(..key.size() as usize).ok_or(SignatureError::Wrong)?;
    match key.public_decrypt(signature, opened, Padding::PKCS1) {
        Ok(length) if opened.get(..length) == Some(expected) => Ok(()),
        Ok(_) | Err(_) => Err(SignatureError::Wrong),
    }
}

/// The DigestInfo of PKCS#1 v1.5, for the hashes that the kernel's RSA knows.
///
/// Made here, and opened by comparing: a system-wide setting that forbids SHA-1 to OpenSSL does not touch it.
///
/// Source: RFC 8017, 9.2; `rsa_lookup_asn1`, crypto/rsa-pkcs1pad.c.
fn digest_info(digest: &Digest) -> Option<Vec<u8>> {
    use HashAlgorithm as H;
    let oid: &[u8] = match digest.algorithm() {
        H::Md5 => &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05],
        H::Sha1 => &[0x2b, 0x0e, 0x03, 0x02, 0x1a],
        H::Rmd160 => &[0x2b, 0x24, 0x03, 0x02, 0x01],
        H::Sha256 => &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01],
        H::Sha384 => &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02],
        H::Sha512 => &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03],
        H::Sha224 => &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x04],
        H::Sha3_256 => &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x08],
        H::Sha3_384 => &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x09],
        H::Sha3_512 => &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x0a],
        H::Md4
        | H::Rmd128
        | H::Rmd256
        | H::Rmd320
        | H::Wp256
        | H::Wp384
        | H::Wp512
        | H::Tgr128
        | H::Tgr160
        | H::Tgr192
        | H::Sm3
        | H::Streebog256
        | H::Streebog512 => return None,
    };
    // No length reaches 128, so each takes one byte.
    let (oid_size, digest_size) = (u8::try_from(oid.len()).ok()?, u8::try_from(digest.as_bytes().len()).ok()?);
    let mut info = vec![0x30, oid_size + digest_size + 8, 0x30, oid_size + 4, 0x06, oid_size];
    info.extend_from_slice(oid);
    info.extend_from_slice(&[0x05, 0x00, 0x04, digest_size]);
    info.extend_from_slice(digest.as_bytes());
    Some(info)
}

/// What of a digest an RSA, ECDSA or SM2 key signs, as far as the kernel knows such signatures: PKCS#1's DigestInfo, else
/// the digest itself.
pub(super) fn message(kind: KeyKind, digest: &Digest) -> Result<Vec<u8>, SignatureError> {
    let algorithm = digest.algorithm();
    let message = match kind {
        KeyKind::Rsa(_) => digest_info(digest),
        KeyKind::P192 | KeyKind::P256 | KeyKind::P384 | KeyKind::P521 => {
            signed_with_ecdsa(algorithm).then(|| digest.as_bytes().to_vec())
        }
        KeyKind::Sm2 => (algorithm == HashAlgorithm::Sm3).then(|| digest.as_bytes().to_vec()),
    };
    message.ok_or(SignatureError::UnsupportedHash { kind, algorithm })
}

/// Whether the kernel verifies ECDSA over this hash.
fn signed_with_ecdsa(algorithm: HashAlgorithm) -> bool {
    use HashAlgorithm as H;
    matches!(
        algorithm,
        H::Sha1 | H::Sha224 | H::Sha256 | H::Sha384 | H::Sha512 | H::Sha3_256 | H::Sha3_384 | H::Sha3_512
    )
}
