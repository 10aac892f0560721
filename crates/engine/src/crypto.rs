//! The only place that names the cryptographic libraries: digests by RustCrypto, public keys by OpenSSL.

mod certificate;
mod der;
mod digest;
mod key;
mod message_key;
mod public_key;
mod scheme;
mod secret;
mod signing_key;
mod tpm;

pub use certificate::Certificate;
pub use digest::{Hasher, UnsupportedHash, hash};
pub use key::{KeyError, KeyKind, KeyType};
pub use message_key::MessageKey;
pub use public_key::{KeptKey, PublicKey};
pub use scheme::SignatureError;
pub use secret::{
    aes256_cbc_decrypt, aes256_cbc_encrypt, equal, hmac_sha1, hmac_sha256, random, sha1_secret, sha256_secret,
};
pub use signing_key::{SigningKey, TokenKey, TokenPublicKey};
pub use tpm::{SharedPoint, aes128_cfb_decrypt, aes128_cfb_encrypt, ecdh_with, kdfa, kdfe, rsa_oaep_encrypt};

use imara_format::hash::HashAlgorithm;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;

/// Makes OpenSSL read its configuration and load all that verifying uses, so that no file is opened for it later.
///
/// A process that answers for the opening of files must call this before it starts to.
///
/// # Errors
/// [`KeyError::Library`] when the library cannot do what labels need.
pub fn warm_up() -> Result<(), KeyError> {
    openssl::init();
    let digest = hash(HashAlgorithm::Sha256, &[]).map_err(|error| KeyError::Library(error.to_string()))?;
    let modulus = BigNum::from_slice(&[0xc1; 256])?;
    let rsa = PKey::from_rsa(Rsa::from_public_components(modulus, BigNum::from_u32(65537)?)?)?;
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let generator = group.generator_opt().ok_or_else(|| KeyError::Library("P-256 has no generator".into()))?;
    let ec = PKey::from_ec_key(EcKey::from_public_key(&group, generator)?)?;
    for (key, signature) in [(rsa, vec![1; 256]), (ec, vec![0x30, 6, 2, 1, 1, 2, 1, 1])] {
        // Through the same decoding as a key from a file, and a verification that runs to its end.
        let key = PublicKey::from_bytes(&key.public_key_to_pem()?)?;
        match key.verify(&digest, &signature) {
            Err(SignatureError::Wrong) => {}
            other => return Err(KeyError::Library(format!("an invented signature gave {other:?}"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
