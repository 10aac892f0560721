//! Private keys, which labels are signed with, and certificates for them.

use super::key::{KeyError, KeyKind, KeyType, key_hash, kind_of, last_4, reason};
use super::public_key::PublicKey;
use super::scheme::{SignatureError, digest_info, signed_with_ecdsa};
use imara_format::hash::{Digest, to_hex};
use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::{Padding, Rsa};
use openssl::symm::Cipher;
use openssl::x509::extension::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Builder, X509NameBuilder};
use std::fmt;
use zeroize::Zeroizing;

/// A private key that labels are signed with. OpenSSL wipes it when it is dropped.
pub struct SigningKey {
    key: PKey<Private>,
    operation: SigningOperation,
    kind: KeyKind,
    key_id: [u8; 4],
}

enum SigningOperation {
    Rsa(Rsa<Private>),
    Ec(EcKey<Private>),
}

impl SigningKey {
    /// Reads a private key in PEM (PKCS#1, PKCS#8, SEC1; encrypted or not). Its certificate in the same bytes tells the
    /// key id, as evmctl has it. Never asks anybody for a passphrase.
    ///
    /// # Errors
    /// [`KeyError`]: no key, the passphrase is missing or wrong, or a type that labels do not use.
    pub fn from_pem(pem: &[u8], passphrase: Option<&[u8]>) -> Result<Self, KeyError> {
        let mut asked = false;
        let read = PKey::private_key_from_pem_callback(pem, |buffer| {
            asked = true;
            let passphrase = passphrase.unwrap_or_default();
            match buffer.get_mut(..passphrase.len()) {
                Some(room) => room.copy_from_slice(passphrase),
                None => return Ok(0),
            }
            Ok(passphrase.len())
        });
        let key = read.map_err(|errors| match (asked, passphrase) {
            (true, None) => KeyError::PassphraseNeeded,
            (true, Some(_)) => KeyError::WrongPassphrase,
            (false, _) => KeyError::NotAPrivateKey(reason(&errors)),
        })?;
        let mut signing_key = Self::new(key)?;
        let public = signing_key.public_key()?;
        let certificates = X509::stack_from_pem(pem).unwrap_or_default();
        let certificates = certificates.iter().filter_map(|certificate| PublicKey::from_certificate(certificate).ok());
        // Another key's certificate beside this one, e.g. its issuer's, tells nothing about it.
        if let Some(certificate) = certificates.into_iter().find(|certificate| certificate.is_same_key(&public)) {
            signing_key.key_id = certificate.key_id();
        }
        Ok(signing_key)
    }

    /// Makes a new key.
    ///
    /// # Errors
    /// [`KeyError::Library`] when the library fails, e.g. for want of randomness.
    pub fn generate(kind: KeyType) -> Result<Self, KeyError> {
        let rsa = |bits| PKey::from_rsa(Rsa::generate(bits)?);
        let ec = |curve| PKey::from_ec_key(EcKey::generate(&*EcGroup::from_curve_name(curve)?)?);
        Self::new(match kind {
            KeyType::Rsa1024 => rsa(1024)?,
            KeyType::Rsa2048 => rsa(2048)?,
            KeyType::Rsa3072 => rsa(3072)?,
            KeyType::Rsa4096 => rsa(4096)?,
            KeyType::P256 => ec(Nid::X9_62_PRIME256V1)?,
            KeyType::P384 => ec(Nid::SECP384R1)?,
        })
    }

    fn new(key: PKey<Private>) -> Result<Self, KeyError> {
        let kind = kind_of(&key)?;
        let operation = match kind {
            KeyKind::Rsa(_) => SigningOperation::Rsa(key.rsa()?),
            KeyKind::P192 | KeyKind::P256 | KeyKind::P384 | KeyKind::P521 => SigningOperation::Ec(key.ec_key()?),
        };
        let key_id = last_4(&key_hash(&key)?);
        Ok(Self { key, operation, kind, key_id })
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The key id that its signatures carry: from the certificate beside the key, else the end of the SHA-1 of the public
    /// key.
    pub fn key_id(&self) -> [u8; 4] {
        self.key_id
    }

    /// Signs a digest; the result is the signature proper, without a label's header.
    ///
    /// # Errors
    /// [`SignatureError::UnsupportedHash`], or [`SignatureError::CannotSign`], e.g. for an RSA key too short.
    pub fn sign(&self, digest: &Digest) -> Result<Vec<u8>, SignatureError> {
        let algorithm = digest.algorithm();
        let unsupported = SignatureError::UnsupportedHash { kind: self.kind, algorithm };
        match &self.operation {
            SigningOperation::Rsa(key) => {
                let message = digest_info(digest).ok_or(unsupported)?;
                let mut signature = vec![0; key.size() as usize];
                let length = key
                    .private_encrypt(&message, &mut signature, Padding::PKCS1)
                    .map_err(|_| SignatureError::CannotSign)?;
                signature.truncate(length);
                Ok(signature)
            }
            SigningOperation::Ec(key) => {
                if !signed_with_ecdsa(algorithm) {
                    return Err(unsupported);
                }
                EcdsaSig::sign(digest.as_bytes(), key)
                    .and_then(|signature| signature.to_der())
                    .map_err(|_| SignatureError::CannotSign)
            }
        }
    }

    /// The public half.
    ///
    /// # Errors
    /// [`KeyError::Library`].
    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        PublicKey::new(&self.key, None)
    }

    /// The private key as PEM (PKCS#8), encrypted with AES-256 when a passphrase is given.
    ///
    /// # Errors
    /// [`KeyError::Library`].
    pub fn to_pem(&self, passphrase: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let pem = match passphrase {
            Some(passphrase) => self.key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), passphrase)?,
            None => self.key.private_key_to_pem_pkcs8()?,
        };
        Ok(Zeroizing::new(pem))
    }

    /// The public key as PEM (SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// [`KeyError::Library`].
    pub fn public_pem(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.key.public_key_to_pem()?)
    }

    /// A certificate for the key, signed by itself, in DER: the extensions that `.ima` and `.evm` ask for (digital
    /// signature, no CA) and the identifiers that the kernel finds it by.
    ///
    /// # Errors
    /// [`KeyError::Library`], e.g. for a common name beyond 64 characters.
    pub fn self_signed_certificate(&self, common_name: &str, days: u32) -> Result<Vec<u8>, KeyError> {
        let mut name = X509NameBuilder::new()?;
        name.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
        let name = name.build();
        let mut serial = BigNum::new()?;
        serial.rand(159, MsbOption::MAYBE_ZERO, false)?;
        let mut builder = X509Builder::new()?;
        // Version 3 is number 2.
        builder.set_version(2)?;
        builder.set_serial_number(&*Asn1Integer::from_bn(&serial)?)?;
        builder.set_subject_name(&name)?;
        builder.set_issuer_name(&name)?;
        builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
        builder.set_not_after(&*Asn1Time::days_from_now(days)?)?;
        builder.set_pubkey(&self.key)?;
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
        let subject = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
        builder.append_extension(subject)?;
        let authority = AuthorityKeyIdentifier::new().keyid(true).build(&builder.x509v3_context(None, None))?;
        builder.append_extension(authority)?;
        let digest = match self.kind {
            KeyKind::P384 => MessageDigest::sha384(),
            KeyKind::P521 => MessageDigest::sha512(),
            KeyKind::Rsa(_) | KeyKind::P192 | KeyKind::P256 => MessageDigest::sha256(),
        };
        builder.sign(&self.key, digest)?;
        Ok(builder.build().to_der()?)
    }
}

impl fmt::Debug for SigningKey {
    /// Never the key itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "private {} {}", self.kind, to_hex(&self.key_id))
    }
}
