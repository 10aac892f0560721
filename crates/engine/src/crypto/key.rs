//! What is said of any key, public or private: its kind, its ids, and why bytes are none.

use super::der::{BIT_STRING, Element};
use md5::Digest as _;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{HasPublic, Id, PKeyRef};
use std::fmt;

/// What a key is, for people: `RSA-2048`, `ECDSA P-256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA, with the modulus' size in bits.
    Rsa(u32),
    /// ECDSA over NIST P-192.
    P192,
    /// ECDSA over NIST P-256.
    P256,
    /// ECDSA over NIST P-384.
    P384,
    /// ECDSA over NIST P-521.
    P521,
    /// SM2, GB/T 32918.2: over a digest as it is, without the signer's name. Linux 6.1 verifies it, 6.12 does not.
    Sm2,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
            Self::P192 => f.write_str("ECDSA P-192"),
            Self::P256 => f.write_str("ECDSA P-256"),
            Self::P384 => f.write_str("ECDSA P-384"),
            Self::P521 => f.write_str("ECDSA P-521"),
            Self::Sm2 => f.write_str("SM2"),
        }
    }
}

/// The types of key that [`super::SigningKey::generate`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// RSA-1024: broken by today's means; for tests alone.
    Rsa1024,
    /// RSA-2048.
    Rsa2048,
    /// RSA-3072.
    Rsa3072,
    /// RSA-4096.
    Rsa4096,
    /// ECDSA over NIST P-256.
    P256,
    /// ECDSA over NIST P-384.
    P384,
    /// ECDSA over NIST P-521.
    P521,
    /// SM2.
    Sm2,
}

/// Bytes that are no key, or none that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither a certificate nor a public key.
    #[error("neither a certificate nor a public key, in DER or PEM ({0})")]
    NotAPublicKey(String),
    /// A private key where a public one is needed.
    #[error("a private key, where a certificate or a public key is needed")]
    PrivateKeyGiven,
    /// Neither of the forms that a private key comes in.
    #[error("no private key in PEM or DER ({0})")]
    NotAPrivateKey(String),
    /// A certificate or a public key where a private one is needed.
    #[error("{0}, where a private key is needed")]
    PublicKeyGiven(&'static str),
    /// DER that ends early.
    #[error("cut off: {found} bytes of DER, whose header states {stated}")]
    Truncated {
        /// Bytes found.
        found: usize,
        /// Bytes that the header states.
        stated: usize,
    },
    /// PEM that ends early.
    #[error("cut off: PEM with a BEGIN line and without its END line")]
    TruncatedPem,
    /// An encrypted private key, and no passphrase.
    #[error("the private key is encrypted, and no passphrase was given")]
    PassphraseNeeded,
    /// An encrypted private key, and another passphrase.
    #[error("the private key cannot be decrypted with this passphrase")]
    WrongPassphrase,
    /// A key that labels are not signed with.
    #[error("a key of type {0}, where RSA, SM2, or ECDSA over P-192, P-256, P-384 or P-521 is needed")]
    UnsupportedType(String),
    /// A key in a token, of which more than signing was asked.
    #[error("the private key does not leave its token")]
    InToken,
    /// The library failed.
    #[error("OpenSSL: {0}")]
    Library(String),
}

impl From<ErrorStack> for KeyError {
    fn from(errors: ErrorStack) -> Self {
        Self::Library(errors.to_string())
    }
}

pub(super) fn kind_of<T: HasPublic>(key: &PKeyRef<T>) -> Result<KeyKind, KeyError> {
    match key.id() {
        Id::RSA => Ok(KeyKind::Rsa(key.bits())),
        Id::EC => match key.ec_key()?.group().curve_name() {
            Some(Nid::X9_62_PRIME192V1) => Ok(KeyKind::P192),
            Some(Nid::X9_62_PRIME256V1) => Ok(KeyKind::P256),
            Some(Nid::SECP384R1) => Ok(KeyKind::P384),
            Some(Nid::SECP521R1) => Ok(KeyKind::P521),
            Some(other) => Err(KeyError::UnsupportedType(format!("EC {}", other.short_name().unwrap_or("unnamed")))),
            None => Err(KeyError::UnsupportedType("EC without a named curve".into())),
        },
        // OpenSSL 3 has no number for the keys that it keeps in a provider alone, as SM2's.
        _ if is_sm2(key)? => Ok(KeyKind::Sm2),
        other => Err(KeyError::UnsupportedType(match Nid::from_raw(other.as_raw()).short_name() {
            Ok(name) => name.to_owned(),
            Err(_) => format!("number {}", other.as_raw()),
        })),
    }
}

/// Whether a key is over SM2's curve, by the parameters in its SubjectPublicKeyInfo: SEQUENCE { SEQUENCE { algorithm,
/// curve }, BIT STRING }.
fn is_sm2<T: HasPublic>(key: &PKeyRef<T>) -> Result<bool, KeyError> {
    const SM2: &[u8] = &[0x2a, 0x81, 0x1c, 0xcf, 0x55, 0x01, 0x82, 0x2d];
    let der = key.public_key_to_der()?;
    let curve = Element::parse(&der).and_then(|info| {
        let algorithm = Element::parse(Element::parse(info.contents)?.contents)?;
        Element::parse(algorithm.rest)
    });
    Ok(curve.is_some_and(|curve| curve.contents == SM2))
}

/// SHA-1 of the public key's bit string: the usual subject key identifier.
pub(super) fn key_hash<T: HasPublic>(key: &PKeyRef<T>) -> Result<[u8; 20], KeyError> {
    let der = key.public_key_to_der()?;
    let info = Element::parse(&der);
    let bits = info.as_ref().and_then(key_bits);
    let bits = bits.ok_or_else(|| KeyError::Library("wrote a public key that is no SubjectPublicKeyInfo".into()))?;
    Ok(sha1_of(bits))
}

/// The key in a SubjectPublicKeyInfo: SEQUENCE { SEQUENCE algorithm, BIT STRING key }; a bit string begins with the number of bits that do not count.
pub(super) fn key_bits<'a>(info: &Element<'a>) -> Option<&'a [u8]> {
    let algorithm = Element::parse(info.contents)?;
    let bits = Element::parse(algorithm.rest).filter(|element| element.tag == BIT_STRING)?;
    bits.contents.get(1..)
}

pub(super) fn sha1_of(bits: &[u8]) -> [u8; 20] {
    sha1::Sha1::digest(bits).into()
}

/// An RSA key as version 1 signatures know it, and `evmctl import --rsa` gives it to the kernel: version 1 (1 byte), a
/// timestamp of 0 (4), algorithm 0 (1), the number of integers, 2 (1); then modulus and exponent, each with its number of
/// bits (2, big-endian).
///
/// Source: `struct pubkey_hdr`, include/linux/digsig.h.
pub(super) fn v1_payload<T: HasPublic>(key: &PKeyRef<T>) -> Result<Option<Vec<u8>>, KeyError> {
    if key.id() != Id::RSA {
        return Ok(None);
    }
    let rsa = key.rsa()?;
    let mut payload = vec![1, 0, 0, 0, 0, 0, 2];
    for integer in [rsa.n(), rsa.e()] {
        let Ok(bits) = u16::try_from(integer.num_bits()) else { return Ok(None) };
        payload.extend_from_slice(&bits.to_be_bytes());
        payload.extend_from_slice(&integer.to_vec());
    }
    Ok(Some(payload))
}

/// The last 8 bytes of the SHA-1 over that.
pub(super) fn v1_id(payload: &[u8]) -> [u8; 8] {
    let [.., a, b, c, d, e, f, g, h] = <[u8; 20]>::from(sha1::Sha1::digest(payload));
    [a, b, c, d, e, f, g, h]
}

pub(super) fn last_4(hash: &[u8; 20]) -> [u8; 4] {
    let [.., a, b, c, d] = *hash;
    [a, b, c, d]
}

/// The first error in a few words.
pub(super) fn reason(errors: &ErrorStack) -> String {
    errors.errors().first().and_then(|error| error.reason()).unwrap_or("unreadable").to_owned()
}
