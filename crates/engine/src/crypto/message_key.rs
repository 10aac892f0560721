//! Keys as OpenPGP has them: numbers without a frame.

use super::public_key::PublicKey;
use super::scheme::SignatureError;
use imara_format::hash::Digest;
use imara_format::openpgp::{Curve, Material, Value};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::ecdsa::EcdsaSig;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::rsa::Rsa;
use openssl::sign::Verifier;

/// A key that OpenPGP's signatures are verified with.
pub struct MessageKey(Form);

enum Form {
    /// RSA, ECDSA: the size of a signature in bytes, for RSA.
    Plain(Box<PublicKey>, usize),
    /// The digest is what is signed, as if it were the content.
    Ed25519(PKey<Public>),
}

impl MessageKey {
    /// A key of these numbers; none for what is no key, or of an algorithm that is not known here.
    pub fn new(material: &Material) -> Option<Self> {
        let form = match material {
            Material::Rsa(modulus, exponent) => {
                let modulus = BigNum::from_slice(modulus).ok()?;
                let size = usize::try_from(modulus.num_bytes()).ok()?;
                let key = Rsa::from_public_components(modulus, BigNum::from_slice(exponent).ok()?).ok()?;
                Form::Plain(Box::new(PublicKey::new(&*PKey::from_rsa(key).ok()?, None).ok()?), size)
            }
            Material::Ecdsa(curve, point) => {
                let group = EcGroup::from_curve_name(match curve {
                    Curve::P256 => Nid::X9_62_PRIME256V1,
                    Curve::P384 => Nid::SECP384R1,
                    Curve::P521 => Nid::SECP521R1,
                });
                let (group, mut context) = (group.ok()?, BigNumContext::new().ok()?);
                let point = EcPoint::from_bytes(&group, point, &mut context).ok()?;
                let key = EcKey::from_public_key(&group, &point).ok()?;
                key.check_key().ok()?;
                Form::Plain(Box::new(PublicKey::new(&*PKey::from_ec_key(key).ok()?, None).ok()?), 0)
            }
            Material::Ed25519(point) => Form::Ed25519(PKey::public_key_from_raw_bytes(point, Id::ED25519).ok()?),
            Material::Other(_) => return None,
        };
        Some(Self(form))
    }

    /// Verifies a signature over `digest`.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(&self, digest: &Digest, signature: &Value) -> Result<(), SignatureError> {
        match (&self.0, signature) {
            (Form::Plain(key, size), Value::Rsa(number)) if number.len() <= *size => {
                // Numbers are written without the zeros before them.
                let padded = [vec![0; size.saturating_sub(number.len())], number.clone()].concat();
                key.verify(digest, &padded)
            }
            (Form::Plain(key, 0), Value::Ecdsa(r, s)) => {
                let number = |bytes: &[u8]| BigNum::from_slice(bytes);
                let der = number(r).and_then(|r| EcdsaSig::from_private_components(r, number(s)?)?.to_der());
                key.verify(digest, &der.map_err(|_| SignatureError::Wrong)?)
            }
            (Form::Ed25519(key), Value::Ed25519(signature)) => {
                let verify = || Verifier::new_without_digest(key)?.verify_oneshot(signature, digest.as_bytes());
                match verify() {
                    Ok(true) => Ok(()),
                    Ok(false) | Err(_) => Err(SignatureError::Wrong),
                }
            }
            _ => Err(SignatureError::Wrong),
        }
    }
}
