//! What passes between us and a TPM: secrets agreed on with one of its keys, keys derived from them, its public keys and
//! its signatures.
//!
//! | function | result |
//! |---|---|
//! | KDFa(key, label, U, V, bits) | blocks of HMAC-SHA-256(key, i ‖ label ‖ 00 ‖ U ‖ V ‖ bits) |
//! | KDFe(Z, label, U, V) | H(00000001 ‖ Z ‖ label ‖ 00 ‖ U ‖ V), where one block is enough |
//!
//! Source: TCG TPM 2.0 Library, part 1, 11.4.10 and annexes B.10.3, C.6.1.

use super::digest::hash;
use super::key::KeyError;
use super::public_key::PublicKey;
use super::scheme::SignatureError;
use super::secret::hmac_sha256;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::tpm::{Curve, PublicArea, PublicKind, TpmSignature};
use openssl::bn::{BigNum, BigNumContext};
use openssl::derive::Deriver;
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::md::{Md, MdRef};
use openssl::nid::Nid;
use openssl::pkey::{PKey, Public};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::{Padding, Rsa};
use openssl::sign::RsaPssSaltlen;
use openssl::symm::{Cipher, Crypter, Mode};
use zeroize::Zeroizing;

/// KDFa with SHA-256. `bits` is a multiple of 8.
pub fn kdfa(key: &[u8], label: &str, u: &[u8], v: &[u8], bits: u32) -> Zeroizing<Vec<u8>> {
    let length = bits as usize / 8;
    let mut derived = Zeroizing::new(Vec::with_capacity(length.next_multiple_of(32)));
    let mut block = 1_u32;
    while derived.len() < length {
        let message = [&block.to_be_bytes(), label.as_bytes(), &[0], u, v, &bits.to_be_bytes()].concat();
        derived.extend_from_slice(&*Zeroizing::new(hmac_sha256(key, &message)));
        block += 1;
    }
    derived.truncate(length);
    derived
}

/// KDFe, as long as the hash's digest.
///
/// # Errors
/// [`KeyError::Library`] where the hash cannot be computed.
pub fn kdfe(
    algorithm: HashAlgorithm,
    z: &[u8],
    label: &str,
    u: &[u8],
    v: &[u8],
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let digest = hash(algorithm, &[&1_u32.to_be_bytes(), z, label.as_bytes(), &[0], u, v])
        .map_err(|error| KeyError::Library(error.to_string()))?;
    Ok(Zeroizing::new(digest.as_bytes().to_vec()))
}

/// Encrypts a secret to an RSA key by OAEP. The label's final NUL is added.
///
/// # Errors
/// [`KeyError::Library`].
pub fn rsa_oaep_encrypt(
    modulus: &[u8],
    exponent: u32,
    algorithm: HashAlgorithm,
    label: &str,
    secret: &[u8],
) -> Result<Vec<u8>, KeyError> {
    let key = rsa(modulus, exponent)?;
    let mut context = PkeyCtx::new(&key)?;
    context.encrypt_init()?;
    context.set_rsa_padding(Padding::PKCS1_OAEP)?;
    let digest = message_digest(algorithm)?;
    context.set_rsa_oaep_md(digest)?;
    context.set_rsa_mgf1_md(digest)?;
    context.set_rsa_oaep_label(&[label.as_bytes(), &[0]].concat())?;
    let mut encrypted = Vec::new();
    context.encrypt_to_vec(secret, &mut encrypted)?;
    Ok(encrypted)
}

/// A secret shared with a key on a curve, and the ephemeral point that the other side needs to find it.
pub struct SharedPoint {
    /// The ephemeral key's x, as long as the curve's numbers.
    pub x: Vec<u8>,
    /// Its y.
    pub y: Vec<u8>,
    /// The other key's x, as long.
    pub peer_x: Vec<u8>,
    /// The shared point's x, which is the secret.
    pub shared_x: Zeroizing<Vec<u8>>,
}

/// Agrees on a secret with a key on a curve; none for a curve that is not known.
///
/// # Errors
/// [`KeyError::Library`], also where the point is not on the curve.
pub fn ecdh_with(curve: Curve, x: &[u8], y: &[u8]) -> Result<Option<SharedPoint>, KeyError> {
    let Some((group, size)) = group(curve)? else { return Ok(None) };
    let peer = EcKey::from_public_key_affine_coordinates(&group, &*BigNum::from_slice(x)?, &*BigNum::from_slice(y)?)?;
    let ephemeral = EcKey::generate(&group)?;
    let (mut own_x, mut own_y) = (BigNum::new()?, BigNum::new()?);
    let mut context = BigNumContext::new()?;
    ephemeral.public_key().affine_coordinates(&group, &mut own_x, &mut own_y, &mut context)?;
    let (private, public) = (PKey::from_ec_key(ephemeral)?, PKey::from_ec_key(peer)?);
    let mut deriver = Deriver::new(&private)?;
    deriver.set_peer(&public)?;
    let shared_x = Zeroizing::new(deriver.derive_to_vec()?);
    let filled = |number: &BigNum| number.to_vec_padded(size);
    Ok(Some(SharedPoint { x: filled(&own_x)?, y: filled(&own_y)?, peer_x: filled(&BigNum::from_slice(x)?)?, shared_x }))
}

/// Encrypts where it stands, with AES-128-CFB.
///
/// # Errors
/// [`KeyError::Library`].
pub fn aes128_cfb_encrypt(key: &[u8; 16], iv: &[u8; 16], bytes: &mut [u8]) -> Result<(), KeyError> {
    aes128_cfb(Mode::Encrypt, key, iv, bytes)
}

/// The inverse of [`aes128_cfb_encrypt`].
///
/// # Errors
/// [`KeyError::Library`].
pub fn aes128_cfb_decrypt(key: &[u8; 16], iv: &[u8; 16], bytes: &mut [u8]) -> Result<(), KeyError> {
    aes128_cfb(Mode::Decrypt, key, iv, bytes)
}

fn aes128_cfb(mode: Mode, key: &[u8; 16], iv: &[u8; 16], bytes: &mut [u8]) -> Result<(), KeyError> {
    let mut crypter = Crypter::new(Cipher::aes_128_cfb128(), mode, key, Some(iv))?;
    // The library asks for room for a block more than it writes.
    let mut output = Zeroizing::new(vec![0; bytes.len() + 16]);
    let written = crypter.update(bytes, &mut output)?;
    bytes.copy_from_slice(output.get(..written).unwrap_or_default());
    Ok(())
}

impl PublicKey {
    /// The key of a public area; none of an object that is no key pair, or on a curve that is not known.
    ///
    /// # Errors
    /// [`KeyError`], also where the point is not on the curve.
    pub fn from_public_area(area: &PublicArea) -> Result<Option<Self>, KeyError> {
        key_of(area)?.map(|key| Self::from_bytes(&key.public_key_to_der()?)).transpose()
    }

    /// A public area's key in PEM, as [`from_public_area`](Self::from_public_area).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn public_area_to_pem(area: &PublicArea) -> Result<Option<String>, KeyError> {
        let pem = key_of(area)?.map(|key| key.public_key_to_pem()).transpose()?;
        Ok(pem.map(|pem| String::from_utf8_lossy(&pem).into_owned()))
    }

    /// A signature as other programs keep it (RSA: as it is; ECDSA: in DER), as a TPM would give it; `None` where it is not
    /// one of this key's kind.
    pub fn plain_tpm_signature(&self, hash: HashAlgorithm, signature: &[u8]) -> Option<TpmSignature> {
        match self.rsa_key() {
            Some(key) => (signature.len() == key.size() as usize)
                .then(|| TpmSignature::RsaSsa { hash, signature: signature.to_vec() }),
            None => {
                let numbers = EcdsaSig::from_der(signature).ok()?;
                Some(TpmSignature::Ecdsa { hash, r: numbers.r().to_vec(), s: numbers.s().to_vec() })
            }
        }
    }

    /// Verifies a signature of a TPM over a message.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify_tpm(&self, message: &[u8], signature: &TpmSignature) -> Result<(), SignatureError> {
        let unsupported = |_| SignatureError::UnsupportedHash { kind: self.kind(), algorithm: signature.hash() };
        let digest = hash(signature.hash(), &[message]).map_err(unsupported)?;
        match signature {
            TpmSignature::RsaSsa { signature, .. } => self.verify(&digest, signature),
            TpmSignature::Ecdsa { r, s, .. } => {
                let der =
                    || EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?.to_der();
                self.verify(&digest, &der().map_err(|_| SignatureError::NotDer)?)
            }
            TpmSignature::RsaPss { signature, .. } => match self.rsa_key() {
                Some(key) => verify_pss(key, &digest, signature),
                None => Err(SignatureError::NotRsa(self.kind())),
            },
        }
    }
}

/// Whether an RSA-PSS signature is right: the salt may have any length, as TPMs differ in it.
fn verify_pss(key: &Rsa<Public>, digest: &Digest, signature: &[u8]) -> Result<(), SignatureError> {
    let verify = || -> Result<bool, KeyError> {
        let key = PKey::from_rsa(key.clone())?;
        let mut context = PkeyCtx::new(&key)?;
        context.verify_init()?;
        context.set_rsa_padding(Padding::PKCS1_PSS)?;
        context.set_signature_md(message_digest(digest.algorithm())?)?;
        // -2 finds the length in the signature.
        context.set_rsa_pss_saltlen(RsaPssSaltlen::custom(-2))?;
        Ok(context.verify(digest.as_bytes(), signature)?)
    };
    match verify() {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(SignatureError::Wrong),
    }
}

fn message_digest(algorithm: HashAlgorithm) -> Result<&'static MdRef, KeyError> {
    match algorithm {
        HashAlgorithm::Sha1 => Ok(Md::sha1()),
        HashAlgorithm::Sha256 => Ok(Md::sha256()),
        HashAlgorithm::Sha384 => Ok(Md::sha384()),
        HashAlgorithm::Sha512 => Ok(Md::sha512()),
        other => Err(KeyError::Library(format!("no RSA padding with {other}"))),
    }
}

fn rsa(modulus: &[u8], exponent: u32) -> Result<PKey<Public>, KeyError> {
    let key = Rsa::from_public_components(BigNum::from_slice(modulus)?, BigNum::from_u32(exponent)?)?;
    Ok(PKey::from_rsa(key)?)
}

/// The group, and how many bytes its numbers have.
fn group(curve: Curve) -> Result<Option<(EcGroup, i32)>, KeyError> {
    let (nid, size) = match curve {
        Curve::P256 => (Nid::X9_62_PRIME256V1, 32),
        Curve::P384 => (Nid::SECP384R1, 48),
        Curve::P521 => (Nid::SECP521R1, 66),
        Curve::Other(_) => return Ok(None),
    };
    Ok(Some((EcGroup::from_curve_name(nid)?, size)))
}

fn key_of(area: &PublicArea) -> Result<Option<PKey<Public>>, KeyError> {
    match &area.kind {
        PublicKind::Rsa { exponent, modulus, .. } => Ok(Some(rsa(modulus, *exponent)?)),
        PublicKind::Ecc { curve, x, y, .. } => {
            let Some((group, _)) = group(*curve)? else { return Ok(None) };
            let (x, y) = (BigNum::from_slice(x)?, BigNum::from_slice(y)?);
            Ok(Some(PKey::from_ec_key(EcKey::from_public_key_affine_coordinates(&group, &x, &y)?)?))
        }
        PublicKind::KeyedHash { .. } | PublicKind::Symmetric => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::hash::{from_hex, to_hex};

    #[test]
    fn keys_derived_from_a_seed_are_those_that_opened_a_credential_in_a_tpm() {
        let summary: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/tpm/summary.json")).unwrap();
        let credential = &summary["credential"];
        let bytes = |key: &str| from_hex(credential[key].as_str().unwrap()).unwrap();
        let storage = kdfa(&bytes("seed"), "STORAGE", &bytes("ak_name"), &[], 128);
        assert_eq!(*storage, bytes("storage_key"));
        assert_eq!(*kdfa(&bytes("seed"), "INTEGRITY", &[], &[], 256), bytes("hmac_key"));
        // The blob: size, size of the HMAC, HMAC, then the secret behind its size.
        let blob = bytes("credential_blob");
        let mut secret = blob[36..].to_vec();
        aes128_cfb_decrypt((*storage).as_slice().try_into().unwrap(), &[0; 16], &mut secret).unwrap();
        assert_eq!(to_hex(&secret[2..]), credential["credential"].as_str().unwrap());
    }

    #[test]
    fn quotes_of_a_tpm_verify_under_its_keys_and_changed_ones_do_not() {
        macro_rules! vector {
            ($name:literal) => {
                include_bytes!(concat!("../../../../tests/vectors/tpm/quote/", $name)).as_slice()
            };
        }
        for (key, message, signature, pem) in [
            (
                vector!("ak_rsa.tpmt_public"),
                vector!("rsa_sha256.attest"),
                vector!("rsa_sha256.tpmt_signature"),
                vector!("ak_rsa.pem"),
            ),
            (
                vector!("ak_rsa.tpmt_public"),
                vector!("rsa_sha1_sha256.attest"),
                vector!("rsa_sha1_sha256.tpmt_signature"),
                vector!("ak_rsa.pem"),
            ),
            (
                vector!("ak_ecc.tpmt_public"),
                vector!("ecc_sha256.attest"),
                vector!("ecc_sha256.tpmt_signature"),
                vector!("ak_ecc.pem"),
            ),
            (
                vector!("ak_ecc.tpmt_public"),
                vector!("ecc_sha1_sha256.attest"),
                vector!("ecc_sha1_sha256.tpmt_signature"),
                vector!("ak_ecc.pem"),
            ),
        ] {
            let area = PublicArea::parse(key).unwrap();
            assert_eq!(PublicKey::public_area_to_pem(&area).unwrap().unwrap().as_bytes(), pem);
            let key = PublicKey::from_public_area(&area).unwrap().unwrap();
            let signature = TpmSignature::parse(signature).unwrap();
            key.verify_tpm(message, &signature).unwrap();
            let mut changed = message.to_vec();
            changed[60] ^= 1;
            assert_eq!(key.verify_tpm(&changed, &signature), Err(SignatureError::Wrong));
        }
    }

    #[test]
    fn a_point_off_the_curve_is_no_key() {
        assert!(ecdh_with(Curve::P256, &[1; 32], &[1; 32]).is_err());
        assert!(ecdh_with(Curve::Other(0x20), &[1; 32], &[1; 32]).unwrap().is_none());
    }
}
