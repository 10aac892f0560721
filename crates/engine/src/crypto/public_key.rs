//! Public keys, which labels are verified with.

use super::certificate::{self, Certificate};
use super::der;
use super::digest::hash;
use super::key::{KeyError, KeyKind, key_hash, kind_of, last_4, reason, v1_id, v1_payload};
use super::scheme::{SignatureError, message, rsa_opens_to};
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::signature::SignatureV1;
use openssl::bn::BigNum;
use openssl::ec::EcKey;
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::pkey::{HasPublic, Id, PKey, PKeyRef, Public};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::{Padding, Rsa};
use openssl::x509::{X509, X509Ref};
use std::fmt;

/// A public key that labels are verified with, decoded once and usable from many threads.
///
/// Verifying opens no file and takes no lock that a file operation holds.
pub struct PublicKey {
    key: VerifyingKey,
    kind: KeyKind,
    /// SHA-1 of the key; none of one that is kept elsewhere.
    key_hash: Option<[u8; 20]>,
    v1_payload: Option<Vec<u8>>,
    certificate: Option<Certificate>,
}

enum VerifyingKey {
    Rsa(Rsa<Public>),
    Ec(EcKey<Public>),
    Sm2(PKey<Public>),
    Kept { key: Box<dyn KeptKey>, id: [u8; 4] },
}

/// A public key that somebody else keeps and verifies with, and does not give out: the kernel.
pub trait KeptKey: Send + Sync {
    /// What people know it by.
    fn name(&self) -> &str;

    /// Verifies a signature over `digest`, as [`PublicKey::verify`] does.
    ///
    /// # Errors
    /// [`SignatureError`].
    fn verify(&self, digest: &Digest, signature: &[u8]) -> Result<(), SignatureError>;
}

impl PublicKey {
    /// Whether another is the same key with the same certificate; of one that is kept elsewhere that is not known.
    pub fn is_the_same(&self, other: &Self) -> bool {
        self.key_hash.is_some() && self.key_hash == other.key_hash && self.certificate == other.certificate
    }

    /// Reads a certificate or a public key, in DER or PEM.
    ///
    /// # Errors
    /// [`KeyError`]: not a key, a private one, or of a type that labels do not use.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let contains = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        let none = |errors: ErrorStack| KeyError::NotAPublicKey(reason(&errors));
        if contains("-----BEGIN ") {
            if !contains("-----END ") {
                return Err(KeyError::TruncatedPem);
            }
            if contains("CERTIFICATE-----") {
                let certificate = X509::from_pem(bytes).map_err(none)?;
                return Self::from_certificate(&certificate);
            }
            if contains("PRIVATE KEY-----") {
                return Err(KeyError::PrivateKeyGiven);
            }
            if contains("-----BEGIN RSA PUBLIC KEY-----") {
                let key = PKey::from_rsa(Rsa::public_key_from_pem_pkcs1(bytes).map_err(none)?)?;
                return Self::new(&key, None);
            }
            let key = PKey::public_key_from_pem(bytes).map_err(none)?;
            return Self::new(&key, None);
        }
        if let Some(stated) = der::missing(bytes) {
            return Err(KeyError::Truncated { found: bytes.len(), stated });
        }
        if let Some(instead) = der::instead(bytes) {
            return Err(KeyError::NotAPublicKey(instead.into()));
        }
        let bare = || PKey::from_rsa(Rsa::public_key_from_der_pkcs1(bytes)?);
        match X509::from_der(bytes) {
            Ok(certificate) => Self::from_certificate(&certificate),
            Err(errors) => match PKey::public_key_from_der(bytes).or_else(|_| bare()) {
                Ok(key) => Self::new(&key, None),
                Err(_) if PKey::private_key_from_der(bytes).is_ok() => Err(KeyError::PrivateKeyGiven),
                Err(_) => Err(none(errors)),
            },
        }
    }

    /// Reads a certificate in DER, and nothing else: what evmctl and the kernel take.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_certificate_der(der: &[u8]) -> Result<Self, KeyError> {
        match X509::from_der(der) {
            Ok(certificate) => Self::from_certificate(&certificate),
            Err(errors) => Err(match der::missing(der) {
                Some(stated) => KeyError::Truncated { found: der.len(), stated },
                None => KeyError::NotAPublicKey(reason(&errors)),
            }),
        }
    }

    /// Reads certificates: one in DER, or as many as a file in PEM holds, in their order. Each comes with its DER.
    ///
    /// # Errors
    /// [`KeyError`]: one of them cannot be read, or there is none.
    pub fn certificates(bytes: &[u8]) -> Result<Vec<(Vec<u8>, Self)>, KeyError> {
        let first = Self::from_bytes(bytes)?;
        if !first.is_certificate() {
            return Err(KeyError::NotAPublicKey("a public key without a certificate".into()));
        }
        if !bytes.windows(PEM_CERTIFICATE.len()).any(|window| window == PEM_CERTIFICATE) {
            return Ok(vec![(bytes.to_vec(), first)]);
        }
        let all = X509::stack_from_pem(bytes).map_err(|errors| KeyError::NotAPublicKey(reason(&errors)))?;
        // OpenSSL takes a certificate that is cut off for the end of the file.
        let begun = bytes.windows(PEM_CERTIFICATE.len()).filter(|window| *window == PEM_CERTIFICATE).count();
        if all.len() < begun {
            return Err(KeyError::TruncatedPem);
        }
        all.iter().map(|certificate| Ok((certificate.to_der()?, Self::from_certificate(certificate)?))).collect()
    }

    /// The key out of a SubjectPublicKeyInfo in DER.
    pub(super) fn from_info(der: &[u8]) -> Result<Self, KeyError> {
        let key = PKey::public_key_from_der(der).map_err(|errors| KeyError::NotAPublicKey(reason(&errors)))?;
        Self::new(&key, None)
    }

    pub(super) fn from_certificate(certificate: &X509Ref) -> Result<Self, KeyError> {
        let key = certificate.public_key().map_err(|errors| KeyError::UnsupportedType(reason(&errors)))?;
        let said = Some(Certificate::new(certificate)?);
        match certificate::key_hash(certificate) {
            Some(hash) => Self::with_hash(&key, said, hash),
            None => Self::new(&key, said),
        }
    }

    pub(super) fn new<T: HasPublic>(key: &PKeyRef<T>, certificate: Option<Certificate>) -> Result<Self, KeyError> {
        kind_of(key)?;
        Self::with_hash(key, certificate, key_hash(key)?)
    }

    fn with_hash<T: HasPublic>(
        key: &PKeyRef<T>,
        certificate: Option<Certificate>,
        key_hash: [u8; 20],
    ) -> Result<Self, KeyError> {
        let kind = kind_of(key)?;
        let v1_payload = v1_payload(key)?;
        let key = if kind == KeyKind::Sm2 {
            VerifyingKey::Sm2(PKey::public_key_from_der(&key.public_key_to_der()?)?)
        } else if key.id() == Id::RSA {
            let rsa = key.rsa()?;
            VerifyingKey::Rsa(Rsa::from_public_components(rsa.n().to_owned()?, rsa.e().to_owned()?)?)
        } else {
            let ec = key.ec_key()?;
            VerifyingKey::Ec(EcKey::from_public_key(ec.group(), ec.public_key())?)
        };
        Ok(Self { key, kind, key_hash: Some(key_hash), v1_payload, certificate })
    }

    /// A key that is kept elsewhere; signatures name it by `id`.
    pub fn kept(kind: KeyKind, id: [u8; 4], key: Box<dyn KeptKey>) -> Self {
        Self { key: VerifyingKey::Kept { key, id }, kind, key_hash: None, v1_payload: None, certificate: None }
    }

    /// Reads what [`Self::v1_payload`] gives, as `evmctl import --rsa` makes it: version 1, 4 bytes of time, algorithm 0
    /// (RSA), two integers, each its length in bits (2 bytes, big-endian) and its bytes.
    pub fn from_v1_payload(payload: &[u8]) -> Option<Self> {
        let ([1, _, _, _, _, 0, 2], integers) = payload.split_first_chunk::<7>()? else { return None };
        let integer = |bytes: &[u8]| -> Option<(BigNum, usize)> {
            let (bits, rest) = bytes.split_first_chunk::<2>()?;
            let length = usize::from(u16::from_be_bytes(*bits)).div_ceil(8);
            Some((BigNum::from_slice(rest.get(..length)?).ok()?, length + 2))
        };
        let (modulus, length) = integer(integers)?;
        let (exponent, _) = integer(&integers[length..])?;
        let key = PKey::from_rsa(Rsa::from_public_components(modulus, exponent).ok()?).ok()?;
        Self::new(&key, None).ok()
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// What the certificate says, if the key came in one.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// What people know the key by: the certificate's subject, or what its keeper calls it.
    pub fn subject(&self) -> Option<&str> {
        match &self.key {
            VerifyingKey::Kept { key, .. } => Some(key.name()),
            VerifyingKey::Rsa(_) | VerifyingKey::Ec(_) | VerifyingKey::Sm2(_) => {
                self.certificate.as_ref().map(|certificate| certificate.subject.as_str())
            }
        }
    }

    /// Whether the key came in a certificate.
    pub fn is_certificate(&self) -> bool {
        self.certificate.is_some()
    }

    /// The key id that signatures carry: the last 4 bytes of the certificate's subject key identifier, else of the SHA-1
    /// of the public key.
    pub fn key_id(&self) -> [u8; 4] {
        if let VerifyingKey::Kept { id, .. } = &self.key {
            return *id;
        }
        let subject_key_id = self.certificate.as_ref().and_then(|certificate| certificate.subject_key_id.as_deref());
        let named = subject_key_id.and_then(|id| id.last_chunk()).copied();
        named.or_else(|| self.key_hash.as_ref().map(last_4)).unwrap_or_default()
    }

    /// Whether the kernel finds this key for a signature with `key_id`: as the end of the serial number and issuer, or of
    /// the subject key identifier. A certificate without that identifier is not found by the SHA-1 of its key.
    /// A bare public key, which the kernel does not have, goes by that SHA-1.
    pub fn answers_to(&self, key_id: &[u8; 4]) -> bool {
        match &self.certificate {
            _ if matches!(self.key, VerifyingKey::Kept { .. }) => self.key_id() == *key_id,
            Some(certificate) => {
                certificate.serial_and_issuer.ends_with(key_id)
                    || certificate.subject_key_id.as_deref().is_some_and(|id| id.ends_with(key_id))
            }
            None => self.key_hash.is_some_and(|hash| hash.ends_with(key_id)),
        }
    }

    /// Whether both are the same key, whatever certificates they come in.
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.key_hash.is_some() && self.key_hash == other.key_hash
    }

    /// The key id that version 1 signatures carry; RSA keys alone have one, and, as for the kernel, bare ones alone:
    /// no certificate verifies version 1.
    pub fn v1_id(&self) -> Option<[u8; 8]> {
        if self.is_certificate() { None } else { self.v1_payload.as_deref().map(v1_id) }
    }

    /// What `evmctl import --rsa` gives the kernel as a key that verifies version 1 signatures; RSA keys alone have one.
    pub fn v1_payload(&self) -> Option<&[u8]> {
        self.v1_payload.as_deref()
    }

    pub(super) fn rsa_key(&self) -> Option<&Rsa<Public>> {
        match &self.key {
            VerifyingKey::Rsa(key) => Some(key),
            VerifyingKey::Ec(_) | VerifyingKey::Sm2(_) | VerifyingKey::Kept { .. } => None,
        }
    }

    /// Verifies a signature over `digest`: RSA by PKCS#1 v1.5 with the digest's DigestInfo, ECDSA in DER.
    ///
    /// # Errors
    /// [`SignatureError`]: wrong, malformed, or over a hash without encoding.
    pub fn verify(&self, digest: &Digest, signature: &[u8]) -> Result<(), SignatureError> {
        let expected = message(self.kind, digest)?;
        match &self.key {
            VerifyingKey::Kept { key, .. } => key.verify(digest, signature),
            VerifyingKey::Rsa(key) => {
                let needed = key.size() as usize;
                if signature.len() != needed {
                    return Err(SignatureError::RsaLength { found: signature.len(), needed });
                }
                rsa_opens_to(key, signature, &expected)
            }
            VerifyingKey::Ec(key) => match two_integers(signature)?.verify(&expected, key) {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(SignatureError::Wrong),
            },
            VerifyingKey::Sm2(key) => {
                two_integers(signature)?;
                let verify = || {
                    let mut context = PkeyCtx::new(key)?;
                    context.verify_init()?;
                    context.verify(&expected, signature)
                };
                match verify() {
                    Ok(true) => Ok(()),
                    Ok(false) | Err(_) => Err(SignatureError::Wrong),
                }
            }
        }
    }

    /// The digest that a signature was made over, as far as that can be told: RSA signatures hold it.
    pub fn signed_digest(&self, algorithm: HashAlgorithm, signature: &[u8]) -> Option<Digest> {
        let VerifyingKey::Rsa(key) = &self.key else { return None };
        let mut opened = vec![0; key.size() as usize];
        if signature.len() != opened.len() {
            return None;
        }
        let length = key.public_decrypt(signature, &mut opened, Padding::PKCS1).ok()?;
        let info = opened.get(..length)?;
        let digest = Digest::new(algorithm, info.get(info.len().checked_sub(algorithm.digest_size())?..)?).ok()?;
        // What is not put together like this is no signature of ours to judge.
        (message(self.kind, &digest).ok()? == info).then_some(digest)
    }

    /// Verifies a version 1 signature: RSA with bare PKCS#1 type 1 padding around SHA-1 of `digest` and the header.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify_v1(&self, digest: &Digest, signature: &SignatureV1<'_>) -> Result<(), SignatureError> {
        let VerifyingKey::Rsa(key) = &self.key else { return Err(SignatureError::NotRsa(self.kind)) };
        let needed = key.size() as usize;
        if signature.signature.len() > needed {
            return Err(SignatureError::RsaLength { found: signature.signature.len(), needed });
        }
        let message =
            hash(HashAlgorithm::Sha1, &[digest.as_bytes(), &signature.header]).map_err(|_| SignatureError::Wrong)?;
        rsa_opens_to(key, signature.signature, message.as_bytes())
    }
}

const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

fn two_integers(signature: &[u8]) -> Result<EcdsaSig, SignatureError> {
    let parsed = EcdsaSig::from_der(signature).map_err(|_| SignatureError::NotDer)?;
    // OpenSSL reads past what DER allows and ignores what follows; nobody else has to.
    match parsed.to_der() {
        Ok(again) if again == signature => Ok(parsed),
        Ok(_) | Err(_) => Err(SignatureError::NotDer),
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, to_hex(&self.key_id()))
    }
}
