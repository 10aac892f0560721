//! What keys are made, sealed and compared with. What comes out secret is wiped when it is dropped.

use super::KeyError;
use hmac::{Hmac, KeyInit, Mac};
use openssl::symm::{Cipher, Crypter, Mode};
use sha2::Digest as _;
use zeroize::Zeroizing;

/// HMAC-SHA-256.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// HMAC-SHA-1 over `parts`, one after the other.
pub fn hmac_sha1(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(key).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// SHA-1 of secret bytes, itself secret.
pub fn sha1_secret(bytes: &[u8]) -> Zeroizing<[u8; 20]> {
    let mut digest = Zeroizing::new([0; 20]);
    let mut state = sha1::Sha1::new();
    state.update(bytes);
    state.finalize_into((&mut *digest).into());
    digest
}

/// SHA-256 of secret bytes, itself secret.
pub fn sha256_secret(bytes: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut digest = Zeroizing::new([0; 32]);
    let mut state = sha2::Sha256::new();
    state.update(bytes);
    state.finalize_into((&mut *digest).into());
    digest
}

/// Whether two secrets are equal, in a time that tells nothing but whether their lengths are.
pub fn equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && openssl::memcmp::eq(left, right)
}

/// Fills a buffer with random bytes that are good for keys.
///
/// # Errors
/// [`KeyError::Library`] for want of randomness.
pub fn random(bytes: &mut [u8]) -> Result<(), KeyError> {
    Ok(openssl::rand::rand_priv_bytes(bytes)?)
}

/// AES-256-CBC of whole blocks, without padding.
///
/// # Errors
/// [`KeyError::Library`], also where the bytes are not whole blocks.
pub fn aes256_cbc_encrypt(key: &[u8; 32], iv: &[u8; 16], blocks: &[u8]) -> Result<Vec<u8>, KeyError> {
    Ok(std::mem::take(&mut *aes256_cbc(Mode::Encrypt, key, iv, blocks)?))
}

/// The inverse of [`aes256_cbc_encrypt`]; the result is secret.
///
/// # Errors
/// [`KeyError::Library`], also where the bytes are not whole blocks.
pub fn aes256_cbc_decrypt(key: &[u8; 32], iv: &[u8; 16], blocks: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    aes256_cbc(Mode::Decrypt, key, iv, blocks)
}

fn aes256_cbc(mode: Mode, key: &[u8; 32], iv: &[u8; 16], blocks: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut crypter = Crypter::new(Cipher::aes_256_cbc(), mode, key, Some(iv))?;
    crypter.pad(false);
    // The library asks for room for a block more than it writes.
    let mut output = Zeroizing::new(vec![0; blocks.len() + 16]);
    let written = crypter.update(blocks, &mut output)?;
    let written = written + crypter.finalize(output.get_mut(written..).unwrap_or_default())?;
    output.truncate(written);
    Ok(output)
}
