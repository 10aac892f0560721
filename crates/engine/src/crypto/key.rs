//! What is said of any key, public or private: its kind, its ids, and why bytes are none.

use md5::Digest as _;
use openssl::bn::BigNumContext;
use openssl::ec::PointConversionForm;
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
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
            Self::P192 => f.write_str("ECDSA P-192"),
            Self::P256 => f.write_str("ECDSA P-256"),
            Self::P384 => f.write_str("ECDSA P-384"),
            Self::P521 => f.write_str("ECDSA P-521"),
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
    /// No private key.
    #[error("no private key in PEM ({0})")]
    NotAPrivateKey(String),
    /// An encrypted private key, and no passphrase.
    #[error("the private key is encrypted, and no passphrase was given")]
    PassphraseNeeded,
    /// An encrypted private key, and another passphrase.
    #[error("the private key cannot be decrypted with this passphrase")]
    WrongPassphrase,
    /// A key that is neither RSA nor ECDSA over a NIST curve.
    #[error("a key of type {0}, where RSA or ECDSA over P-192, P-256, P-384 or P-521 is needed")]
    UnsupportedType(String),
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
        other => Err(KeyError::UnsupportedType(match Nid::from_raw(other.as_raw()).short_name() {
            Ok(name) => name.to_owned(),
            Err(_) => format!("number {}", other.as_raw()),
        })),
    }
}

/// SHA-1 of the public key's bit string: the usual subject key identifier.
pub(super) fn key_hash<T: HasPublic>(key: &PKeyRef<T>) -> Result<[u8; 20], KeyError> {
    let bits = if key.id() == Id::RSA {
        key.rsa()?.public_key_to_der_pkcs1()?
    } else {
        let ec = key.ec_key()?;
        ec.public_key().to_bytes(ec.group(), PointConversionForm::UNCOMPRESSED, &mut *BigNumContext::new()?)?
    };
    Ok(sha1::Sha1::digest(&bits).into())
}

/// The last 8 bytes of the SHA-1 over the key's version 1 form.
pub(super) fn v1_id<T: HasPublic>(key: &PKeyRef<T>) -> Result<Option<[u8; 8]>, KeyError> {
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
    Ok(sha1::Sha1::digest(&payload).last_chunk().copied())
}

pub(super) fn last_4(hash: &[u8; 20]) -> [u8; 4] {
    let [.., a, b, c, d] = *hash;
    [a, b, c, d]
}

/// The first error in a few words.
pub(super) fn reason(errors: &ErrorStack) -> String {
    errors.errors().first().and_then(|error| error.reason()).unwrap_or("unreadable").to_owned()
}
