//! Private keys, which labels are signed with, and certificates for them.

use super::certificate::Certificate;
use super::der;
use super::digest::hash;
use super::key::{KeyError, KeyKind, KeyType, kind_of, reason, v1_id};
use super::public_key::PublicKey;
use super::scheme::{SignatureError, message};
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::{Padding, Rsa};
use openssl::symm::Cipher;
use openssl::x509::extension::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Builder, X509NameBuilder};
use std::fmt;
use zeroize::Zeroizing;

/// A private key that labels are signed with. OpenSSL wipes it when it is dropped.
pub struct SigningKey {
    custody: Custody,
    public: PublicKey,
    certificate: Option<Certificate>,
    strange_certificate: Option<Certificate>,
    key_id: [u8; 4],
}

/// Where the private key is.
enum Custody {
    /// In this process; the second is what signs, decoded once.
    Here(PKey<Private>, Operation),
    Token(Box<dyn TokenKey>),
}

enum Operation {
    Rsa(Rsa<Private>),
    Ec(EcKey<Private>),
    Sm2,
}

/// A private key that does not leave its token.
pub trait TokenKey: Send + Sync {
    /// The public half.
    fn public(&self) -> &TokenPublicKey;

    /// RSA: PKCS#1 v1.5 type 1 padding around `message`, and the private operation. ECDSA: the two integers of a signature
    /// over `message`, each filled up to the same size, one after the other.
    ///
    /// # Errors
    /// Why it did not sign.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String>;
}

/// The public half of a key in a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPublicKey {
    /// RSA.
    Rsa {
        /// The modulus, big-endian.
        modulus: Vec<u8>,
        /// The public exponent, big-endian.
        exponent: Vec<u8>,
    },
    /// ECDSA.
    Ec {
        /// The curve, in DER: CKA_EC_PARAMS.
        parameters: Vec<u8>,
        /// The point: CKA_EC_POINT without the OCTET STRING around it.
        point: Vec<u8>,
    },
}

impl TokenPublicKey {
    fn read(&self) -> Result<PublicKey, KeyError> {
        let info = match self {
            Self::Rsa { modulus, exponent } => {
                let key = Rsa::from_public_components(BigNum::from_slice(modulus)?, BigNum::from_slice(exponent)?)?;
                key.public_key_to_der()?
            }
            // SubjectPublicKeyInfo of RFC 5480, with id-ecPublicKey.
            Self::Ec { parameters, point } => {
                let kind = der::element(der::OBJECT_IDENTIFIER, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01]]);
                let algorithm = der::element(der::SEQUENCE, &[&kind, parameters]);
                der::element(der::SEQUENCE, &[&algorithm, &der::element(der::BIT_STRING, &[&[0], point])])
            }
        };
        PublicKey::from_info(&info)
    }
}

impl SigningKey {
    /// Reads a private key in PEM or DER (PKCS#1, PKCS#8, SEC1; encrypted or not). Its certificate in the same PEM tells
    /// the key id, as evmctl has it. Never asks anybody for a passphrase.
    ///
    /// # Errors
    /// [`KeyError`]: no key, the passphrase is missing or wrong, or a type that labels do not use.
    pub fn from_bytes(bytes: &[u8], passphrase: Option<&[u8]>) -> Result<Self, KeyError> {
        if bytes.windows(PEM_BEGIN.len()).any(|window| window == PEM_BEGIN) {
            return Self::from_pem(bytes, passphrase);
        }
        if let Some(stated) = der::missing(bytes) {
            return Err(KeyError::Truncated { found: bytes.len(), stated });
        }
        if let Some(instead) = der::instead(bytes) {
            return Err(KeyError::NotAPrivateKey(instead.into()));
        }
        if let Ok(key) = PKey::private_key_from_der(bytes) {
            return Self::new(key);
        }
        match PublicKey::from_bytes(bytes) {
            Ok(key) if key.is_certificate() => return Err(KeyError::PublicKeyGiven("a certificate")),
            Ok(_) => return Err(KeyError::PublicKeyGiven("a public key")),
            Err(KeyError::UnsupportedType(kind)) => return Err(KeyError::UnsupportedType(kind)),
            Err(_) => {}
        }
        Self::new(with_passphrase(passphrase, |answer| PKey::private_key_from_pkcs8_callback(bytes, answer))?)
    }

    /// Reads a private key in PEM, as [`Self::from_bytes`] does.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(pem: &[u8], passphrase: Option<&[u8]>) -> Result<Self, KeyError> {
        let contains = |text: &str| pem.windows(text.len()).any(|window| window == text.as_bytes());
        if !contains("PRIVATE KEY-----") {
            if contains("-----BEGIN CERTIFICATE-----") {
                return Err(KeyError::PublicKeyGiven("a certificate"));
            }
            if contains("PUBLIC KEY-----") {
                return Err(KeyError::PublicKeyGiven("a public key"));
            }
        } else if !contains("-----END ") {
            return Err(KeyError::TruncatedPem);
        }
        let mut key =
            Self::new(with_passphrase(passphrase, |answer| PKey::private_key_from_pem_callback(pem, answer))?)?;
        let certificates = X509::stack_from_pem(pem).unwrap_or_default();
        let certificates = certificates.iter().filter_map(|certificate| PublicKey::from_certificate(certificate).ok());
        // Another key's certificate beside this one, e.g. its issuer's, tells nothing about it.
        for certificate in certificates {
            if !certificate.is_same_key(&key.public) {
                key.strange_certificate = key.strange_certificate.or_else(|| certificate.certificate().cloned());
            } else if key.certificate.is_none() {
                key.key_id = certificate.key_id();
                key.certificate = certificate.certificate().cloned();
            }
        }
        Ok(key)
    }

    /// A key in a token.
    ///
    /// # Errors
    /// [`KeyError`], for a public half that cannot be read or is of a type that labels do not use.
    pub fn in_token(token: Box<dyn TokenKey>) -> Result<Self, KeyError> {
        let public = token.public().read()?;
        Ok(Self::with(Custody::Token(token), public))
    }

    /// The same key, decoded anew: threads that share one wait for each other now and then.
    ///
    /// # Errors
    /// [`KeyError::Library`]; [`KeyError::InToken`], of which there is one alone.
    pub fn duplicate(&self) -> Result<Self, KeyError> {
        let der = Zeroizing::new(self.private()?.private_key_to_pkcs8()?);
        let Self { certificate, strange_certificate, key_id, .. } = self;
        let (certificate, strange_certificate) = (certificate.clone(), strange_certificate.clone());
        Ok(Self { certificate, strange_certificate, key_id: *key_id, ..Self::new(PKey::private_key_from_der(&der)?)? })
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
            KeyType::P521 => ec(Nid::SECP521R1)?,
            // Only what is read from its encoding becomes an SM2 key, rather than an EC key over SM2's curve.
            KeyType::Sm2 => PKey::private_key_from_der(&ec(Nid::SM2)?.private_key_to_pkcs8()?)?,
        })
    }

    fn new(key: PKey<Private>) -> Result<Self, KeyError> {
        let operation = match kind_of(&key)? {
            KeyKind::Rsa(_) => Operation::Rsa(key.rsa()?),
            KeyKind::P192 | KeyKind::P256 | KeyKind::P384 | KeyKind::P521 => Operation::Ec(key.ec_key()?),
            KeyKind::Sm2 => Operation::Sm2,
        };
        let public = PublicKey::new(&key, None)?;
        Ok(Self::with(Custody::Here(key, operation), public))
    }

    fn with(custody: Custody, public: PublicKey) -> Self {
        let key_id = public.key_id();
        Self { custody, public, certificate: None, strange_certificate: None, key_id }
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.public.kind()
    }

    /// The key id that its signatures carry: from the certificate beside the key, else the end of the SHA-1 of the public
    /// key.
    pub fn key_id(&self) -> [u8; 4] {
        self.key_id
    }

    /// The certificate that came beside it.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// A certificate of another key that came beside it.
    pub fn strange_certificate(&self) -> Option<&Certificate> {
        self.strange_certificate.as_ref()
    }

    /// Signs a digest; the result is the signature proper, without a label's header.
    ///
    /// # Errors
    /// [`SignatureError::UnsupportedHash`], or [`SignatureError::CannotSign`], e.g. for an RSA key too short.
    pub fn sign(&self, digest: &Digest) -> Result<Vec<u8>, SignatureError> {
        let message = message(self.kind(), digest)?;
        match &self.custody {
            Custody::Here(_, Operation::Rsa(key)) => rsa_sign(key, &message),
            Custody::Here(_, Operation::Ec(key)) => {
                let signature = EcdsaSig::sign(&message, key).and_then(|signature| signature.to_der());
                signature.map_err(|_| SignatureError::CannotSign)
            }
            Custody::Here(key, Operation::Sm2) => {
                let sign = || {
                    let mut context = PkeyCtx::new(key)?;
                    context.sign_init()?;
                    let mut signature = Vec::new();
                    context.sign_to_vec(&message, &mut signature)?;
                    Ok::<_, ErrorStack>(signature)
                };
                sign().map_err(|_| SignatureError::CannotSign)
            }
            Custody::Token(token) => {
                let signature = token.sign(&message).map_err(|_| SignatureError::CannotSign)?;
                match self.kind() {
                    KeyKind::Rsa(_) => Ok(signature),
                    _ => join_integers(&signature).map_err(|_| SignatureError::CannotSign),
                }
            }
        }
    }

    /// Signs a digest as version 1 does; `header` is the 16 bytes from its version to its number of integers.
    ///
    /// # Errors
    /// [`SignatureError::NotRsa`], [`SignatureError::CannotSign`].
    pub fn sign_v1(&self, digest: &Digest, header: &[u8; 16]) -> Result<Vec<u8>, SignatureError> {
        let message =
            hash(HashAlgorithm::Sha1, &[digest.as_bytes(), header]).map_err(|_| SignatureError::CannotSign)?;
        match (&self.custody, self.kind()) {
            (Custody::Here(_, Operation::Rsa(key)), _) => rsa_sign(key, message.as_bytes()),
            (Custody::Token(token), KeyKind::Rsa(_)) => {
                token.sign(message.as_bytes()).map_err(|_| SignatureError::CannotSign)
            }
            (Custody::Here(..) | Custody::Token(_), kind) => Err(SignatureError::NotRsa(kind)),
        }
    }

    /// The key id of its version 1 signatures; RSA keys alone make them.
    pub fn v1_id(&self) -> Option<[u8; 8]> {
        self.public.v1_payload().map(v1_id)
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The public half, for somebody to keep.
    ///
    /// # Errors
    /// [`KeyError::Library`].
    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        match &self.custody {
            Custody::Here(key, _) => PublicKey::new(key, None),
            Custody::Token(token) => token.public().read(),
        }
    }

    fn private(&self) -> Result<&PKey<Private>, KeyError> {
        match &self.custody {
            Custody::Here(key, _) => Ok(key),
            Custody::Token(_) => Err(KeyError::InToken),
        }
    }

    /// The private key as PEM (PKCS#8), encrypted with AES-256 when a passphrase is given.
    ///
    /// # Errors
    /// [`KeyError::Library`].
    pub fn to_pem(&self, passphrase: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let pem = match passphrase {
            Some(passphrase) => {
                self.private()?.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), passphrase)?
            }
            None => self.private()?.private_key_to_pem_pkcs8()?,
        };
        Ok(Zeroizing::new(pem))
    }

    /// The public key as PEM (SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// [`KeyError::Library`].
    pub fn public_pem(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.private()?.public_key_to_pem()?)
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
        builder.set_pubkey(self.private()?)?;
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
        let subject = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
        builder.append_extension(subject)?;
        let authority = AuthorityKeyIdentifier::new().keyid(true).build(&builder.x509v3_context(None, None))?;
        builder.append_extension(authority)?;
        let digest = match self.kind() {
            KeyKind::P384 => MessageDigest::sha384(),
            KeyKind::P521 => MessageDigest::sha512(),
            KeyKind::Rsa(_) | KeyKind::P192 | KeyKind::P256 => MessageDigest::sha256(),
            KeyKind::Sm2 => MessageDigest::from_nid(Nid::SM3).ok_or_else(|| KeyError::Library("has no SM3".into()))?,
        };
        builder.sign(self.private()?, digest)?;
        Ok(builder.build().to_der()?)
    }
}

const PEM_BEGIN: &[u8] = b"-----BEGIN ";

/// Reads a private key that may ask for its passphrase.
fn with_passphrase(
    passphrase: Option<&[u8]>,
    read: impl FnOnce(&mut dyn FnMut(&mut [u8]) -> Result<usize, ErrorStack>) -> Result<PKey<Private>, ErrorStack>,
) -> Result<PKey<Private>, KeyError> {
    let mut asked = false;
    let read = read(&mut |buffer| {
        asked = true;
        let passphrase = passphrase.unwrap_or_default();
        match buffer.get_mut(..passphrase.len()) {
            Some(room) => room.copy_from_slice(passphrase),
            None => return Ok(0),
        }
        Ok(passphrase.len())
    });
    read.map_err(|errors| match (asked, passphrase) {
        (true, None) => KeyError::PassphraseNeeded,
        (true, Some(_)) => KeyError::WrongPassphrase,
        (false, _) => KeyError::NotAPrivateKey(reason(&errors)),
    })
}

fn rsa_sign(key: &Rsa<Private>, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
    let mut signature = vec![0; key.size() as usize];
    let length =
        key.private_encrypt(message, &mut signature, Padding::PKCS1).map_err(|_| SignatureError::CannotSign)?;
    signature.truncate(length);
    Ok(signature)
}

/// A signature in DER from its two integers.
fn join_integers(integers: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let (r, s) = integers.split_at(integers.len() / 2);
    EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?.to_der()
}

impl fmt::Debug for SigningKey {
    /// Never the key itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "private {} {}", self.kind(), to_hex(&self.key_id))
    }
}
