//! The only file that names the cryptographic libraries: digests by RustCrypto, public keys by OpenSSL.

use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::signature::SignatureV1;
use md5::Digest as _;
use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::{BigNum, BigNumContext, MsbOption};
use openssl::ec::{EcGroup, EcKey, PointConversionForm};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{HasPublic, Id, PKey, PKeyRef, Private, Public};
use openssl::rsa::{Padding, Rsa};
use openssl::symm::Cipher;
use openssl::x509::extension::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Builder, X509NameBuilder, X509Ref};
use std::fmt;
use zeroize::Zeroizing;

/// A digest being made.
#[derive(Clone)]
pub struct Hasher {
    algorithm: HashAlgorithm,
    state: State,
}

/// A hash algorithm that the kernel names and this build cannot compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("hash algorithm {0} cannot be computed here")]
pub struct UnsupportedHash(pub HashAlgorithm);

#[derive(Clone)]
enum State {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Rmd160(ripemd::Ripemd160),
    Rmd128(ripemd::Ripemd128),
    Rmd256(ripemd::Ripemd256),
    Rmd320(ripemd::Ripemd320),
    Sha224(sha2::Sha224),
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    Sm3(sm3::Sm3),
    Streebog256(streebog::Streebog256),
    Streebog512(streebog::Streebog512),
    Sha3_256(sha3::Sha3_256),
    Sha3_384(sha3::Sha3_384),
    Sha3_512(sha3::Sha3_512),
}

macro_rules! each_state {
    ($state:expr, $inner:ident => $body:expr) => {
        match $state {
            State::Md5($inner) => $body,
            State::Sha1($inner) => $body,
            State::Rmd160($inner) => $body,
            State::Rmd128($inner) => $body,
            State::Rmd256($inner) => $body,
            State::Rmd320($inner) => $body,
            State::Sha224($inner) => $body,
            State::Sha256($inner) => $body,
            State::Sha384($inner) => $body,
            State::Sha512($inner) => $body,
            State::Sm3($inner) => $body,
            State::Streebog256($inner) => $body,
            State::Streebog512($inner) => $body,
            State::Sha3_256($inner) => $body,
            State::Sha3_384($inner) => $body,
            State::Sha3_512($inner) => $body,
        }
    };
}

impl Hasher {
    /// Starts a digest.
    ///
    /// # Errors
    /// [`UnsupportedHash`] for the algorithms that no maintained library offers (MD4, Whirlpool, Tiger).
    pub fn new(algorithm: HashAlgorithm) -> Result<Self, UnsupportedHash> {
        use HashAlgorithm as H;
        let state = match algorithm {
            H::Md5 => State::Md5(Default::default()),
            H::Sha1 => State::Sha1(Default::default()),
            H::Rmd160 => State::Rmd160(Default::default()),
            H::Rmd128 => State::Rmd128(Default::default()),
            H::Rmd256 => State::Rmd256(Default::default()),
            H::Rmd320 => State::Rmd320(Default::default()),
            H::Sha224 => State::Sha224(Default::default()),
            H::Sha256 => State::Sha256(Default::default()),
            H::Sha384 => State::Sha384(Default::default()),
            H::Sha512 => State::Sha512(Default::default()),
            H::Sm3 => State::Sm3(Default::default()),
            H::Streebog256 => State::Streebog256(Default::default()),
            H::Streebog512 => State::Streebog512(Default::default()),
            H::Sha3_256 => State::Sha3_256(Default::default()),
            H::Sha3_384 => State::Sha3_384(Default::default()),
            H::Sha3_512 => State::Sha3_512(Default::default()),
            H::Md4 | H::Wp256 | H::Wp384 | H::Wp512 | H::Tgr128 | H::Tgr160 | H::Tgr192 => {
                return Err(UnsupportedHash(algorithm));
            }
        };
        Ok(Self { algorithm, state })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        each_state!(&mut self.state, state => state.update(bytes));
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        let algorithm = self.algorithm;
        each_state!(self.state, state => Digest::new(algorithm, &state.finalize()))
            .expect("a library's digest has its algorithm's length")
    }
}

/// The digest by one of the algorithms of PCR banks, of which a replay makes millions: there, moving the large state of a
/// [`Hasher`] takes as long as the hash itself.
fn hash_for_bank(algorithm: HashAlgorithm, parts: &[&[u8]]) -> Option<Digest> {
    macro_rules! with {
        ($hash:ty) => {{
            let mut state = <$hash>::default();
            parts.iter().for_each(|part| state.update(part));
            Digest::new(algorithm, &state.finalize()).ok()
        }};
    }
    match algorithm {
        HashAlgorithm::Sha1 => with!(sha1::Sha1),
        HashAlgorithm::Sha256 => with!(sha2::Sha256),
        HashAlgorithm::Sha384 => with!(sha2::Sha384),
        HashAlgorithm::Sha512 => with!(sha2::Sha512),
        _ => None,
    }
}

/// The digest of `parts`, one after the other.
///
/// # Errors
/// As [`Hasher::new`].
pub fn hash(algorithm: HashAlgorithm, parts: &[&[u8]]) -> Result<Digest, UnsupportedHash> {
    if let Some(digest) = hash_for_bank(algorithm, parts) {
        return Ok(digest);
    }
    let mut hasher = Hasher::new(algorithm)?;
    parts.iter().for_each(|part| hasher.update(part));
    Ok(hasher.finish())
}

/// A public key that labels are verified with, decoded once and usable from many threads.
///
/// Verifying opens no file and takes no lock that a file operation holds.
pub struct PublicKey {
    key: VerifyingKey,
    kind: KeyKind,
    key_hash: [u8; 20],
    v1_id: Option<[u8; 8]>,
    certificate: Option<Certificate>,
}

enum VerifyingKey {
    Rsa(Rsa<Public>),
    Ec(EcKey<Public>),
}

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

/// What a certificate says beside the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject, `O=…, CN=…`.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// The end of its validity as OpenSSL prints it. Neither the kernel nor Imara refuses a signature for it.
    pub not_after: String,
    /// Whether that end has passed.
    pub expired: bool,
    /// Serial number, then the issuer's name without its SEQUENCE header: the kernel's first id of the key.
    pub serial_and_issuer: Vec<u8>,
    /// The subject key identifier, if it has one: the kernel's second id of the key.
    pub subject_key_id: Option<Vec<u8>>,
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
    /// An ECDSA signature that is not a DER sequence of two integers, and nothing else.
    #[error("wrong signature: not an ECDSA signature in DER")]
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
    /// The library failed.
    #[error("the key could not sign")]
    CannotSign,
}

impl PublicKey {
    /// Reads a certificate or a public key, in DER or PEM.
    ///
    /// # Errors
    /// [`KeyError`]: not a key, a private one, or of a type that labels do not use.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let contains = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        let none = |errors: ErrorStack| KeyError::NotAPublicKey(reason(&errors));
        if contains("-----BEGIN ") {
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
        match X509::from_der(bytes) {
            Ok(certificate) => Self::from_certificate(&certificate),
            Err(errors) => {
                let bare = || PKey::from_rsa(Rsa::public_key_from_der_pkcs1(bytes)?);
                let key = PKey::public_key_from_der(bytes).or_else(|_| bare()).map_err(|_| none(errors))?;
                Self::new(&key, None)
            }
        }
    }

    fn from_certificate(certificate: &X509Ref) -> Result<Self, KeyError> {
        let key = certificate.public_key().map_err(|errors| KeyError::UnsupportedType(reason(&errors)))?;
        Self::new(&key, Some(Certificate::new(certificate)?))
    }

    fn new<T: HasPublic>(key: &PKeyRef<T>, certificate: Option<Certificate>) -> Result<Self, KeyError> {
        let kind = kind_of(key)?;
        let (key_hash, v1_id) = (key_hash(key)?, v1_id(key)?);
        let key = if key.id() == Id::RSA {
            let rsa = key.rsa()?;
            VerifyingKey::Rsa(Rsa::from_public_components(rsa.n().to_owned()?, rsa.e().to_owned()?)?)
        } else {
            let ec = key.ec_key()?;
            VerifyingKey::Ec(EcKey::from_public_key(ec.group(), ec.public_key())?)
        };
        Ok(Self { key, kind, key_hash, v1_id, certificate })
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// What the certificate says, if the key came in one.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// Whether the key came in a certificate.
    pub fn is_certificate(&self) -> bool {
        self.certificate.is_some()
    }

    /// The key id that signatures carry: the last 4 bytes of the certificate's subject key identifier, else of the SHA-1
    /// of the public key.
    pub fn key_id(&self) -> [u8; 4] {
        let subject_key_id = self.certificate.as_ref().and_then(|certificate| certificate.subject_key_id.as_deref());
        subject_key_id.and_then(|id| id.last_chunk()).copied().unwrap_or_else(|| last_4(&self.key_hash))
    }

    /// Whether the kernel finds this key for a signature with `key_id`: as the end of the serial number and issuer, or of
    /// the subject key identifier. A certificate without that identifier is not found by the SHA-1 of its key.
    /// A bare public key, which the kernel does not have, goes by that SHA-1.
    pub fn answers_to(&self, key_id: &[u8; 4]) -> bool {
        match &self.certificate {
            Some(certificate) => {
                certificate.serial_and_issuer.ends_with(key_id)
                    || certificate.subject_key_id.as_deref().is_some_and(|id| id.ends_with(key_id))
            }
            None => self.key_hash.ends_with(key_id),
        }
    }

    /// Whether both are the same key, whatever certificates they come in.
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.key_hash == other.key_hash
    }

    /// The key id that version 1 signatures carry; RSA keys alone have one, and, as for the kernel, bare ones alone:
    /// no certificate verifies version 1.
    pub fn v1_id(&self) -> Option<[u8; 8]> {
        if self.is_certificate() { None } else { self.v1_id }
    }

    /// Verifies a signature over `digest`: RSA by PKCS#1 v1.5 with the digest's DigestInfo, ECDSA in DER.
    ///
    /// # Errors
    /// [`SignatureError`]: wrong, malformed, or over a hash without encoding.
    pub fn verify(&self, digest: &Digest, signature: &[u8]) -> Result<(), SignatureError> {
        let algorithm = digest.algorithm();
        let unsupported = SignatureError::UnsupportedHash { kind: self.kind, algorithm };
        match &self.key {
            VerifyingKey::Rsa(key) => {
                let needed = key.size() as usize;
                if signature.len() != needed {
                    return Err(SignatureError::RsaLength { found: signature.len(), needed });
                }
                let expected = digest_info(digest).ok_or(unsupported)?;
                rsa_opens_to(key, signature, &expected)
            }
            VerifyingKey::Ec(key) => {
                if !signed_with_ecdsa(algorithm) {
                    return Err(unsupported);
                }
                let parsed = EcdsaSig::from_der(signature).map_err(|_| SignatureError::NotDer)?;
                // OpenSSL reads past what DER allows and ignores what follows; nobody else has to.
                if parsed.to_der().map_err(|_| SignatureError::NotDer)? != signature {
                    return Err(SignatureError::NotDer);
                }
                match parsed.verify(digest.as_bytes(), key) {
                    Ok(true) => Ok(()),
                    Ok(false) | Err(_) => Err(SignatureError::Wrong),
                }
            }
        }
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

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, to_hex(&self.key_id()))
    }
}

impl Certificate {
    fn new(certificate: &X509Ref) -> Result<Self, KeyError> {
        let mut serial = certificate.serial_number().to_bn()?.to_vec();
        // An INTEGER has a sign: a leading zero keeps a high first bit positive, and zero has one byte.
        if serial.first().is_none_or(|byte| byte & 0x80 != 0) {
            serial.insert(0, 0);
        }
        let issuer = certificate.issuer_name().to_der()?;
        serial.extend_from_slice(der_contents(&issuer));
        let now = Asn1Time::days_from_now(0)?;
        Ok(Self {
            subject: name_text(certificate.subject_name()),
            issuer: name_text(certificate.issuer_name()),
            not_after: certificate.not_after().to_string(),
            expired: certificate.not_after().compare(&now)? == std::cmp::Ordering::Less,
            serial_and_issuer: serial,
            subject_key_id: certificate.subject_key_id().map(|id| id.as_slice().to_vec()),
        })
    }
}

/// The types of key that [`SigningKey::generate`] makes.
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

fn rsa_opens_to(key: &Rsa<Public>, signature: &[u8], expected: &[u8]) -> Result<(), SignatureError> {
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

/// Whether the kernel verifies ECDSA over this hash.
fn signed_with_ecdsa(algorithm: HashAlgorithm) -> bool {
    use HashAlgorithm as H;
    matches!(
        algorithm,
        H::Sha1 | H::Sha224 | H::Sha256 | H::Sha384 | H::Sha512 | H::Sha3_256 | H::Sha3_384 | H::Sha3_512
    )
}

fn kind_of<T: HasPublic>(key: &PKeyRef<T>) -> Result<KeyKind, KeyError> {
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
fn key_hash<T: HasPublic>(key: &PKeyRef<T>) -> Result<[u8; 20], KeyError> {
    let bits = if key.id() == Id::RSA {
        key.rsa()?.public_key_to_der_pkcs1()?
    } else {
        let ec = key.ec_key()?;
        ec.public_key().to_bytes(ec.group(), PointConversionForm::UNCOMPRESSED, &mut *BigNumContext::new()?)?
    };
    Ok(sha1::Sha1::digest(&bits).into())
}

/// The last 8 bytes of the SHA-1 over the key's version 1 form.
fn v1_id<T: HasPublic>(key: &PKeyRef<T>) -> Result<Option<[u8; 8]>, KeyError> {
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

fn last_4(hash: &[u8; 20]) -> [u8; 4] {
    let [.., a, b, c, d] = *hash;
    [a, b, c, d]
}

/// The contents of a DER element that OpenSSL has just written.
fn der_contents(element: &[u8]) -> &[u8] {
    let header = match element.get(1) {
        Some(length) if length & 0x80 != 0 => 2 + usize::from(length & 0x7f),
        _ => 2,
    };
    element.get(header..).unwrap_or_default()
}

fn name_text(name: &openssl::x509::X509NameRef) -> String {
    let entries = name.entries().map(|entry| {
        let value = entry.data().to_string().map_or_else(|_| to_hex(entry.data().as_slice()), |text| text.to_string());
        format!("{}={value}", entry.object().nid().short_name().unwrap_or("?"))
    });
    entries.collect::<Vec<_>>().join(", ")
}

/// The first error in a few words.
fn reason(errors: &ErrorStack) -> String {
    errors.errors().first().and_then(|error| error.reason()).unwrap_or("unreadable").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_nothing_are_the_published_ones() {
        for (algorithm, hex) in [
            (HashAlgorithm::Md5, "d41d8cd98f00b204e9800998ecf8427e"),
            (HashAlgorithm::Sha1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            (HashAlgorithm::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (HashAlgorithm::Rmd160, "9c1185a5c5e9fc54612808977ee8f548b2258d31"),
            (HashAlgorithm::Sm3, "1ab21d8355cfa17f8e61194831e81a8f22bec8c728fefb747ed035eb5082aa2b"),
        ] {
            assert_eq!(hash(algorithm, &[]).unwrap().to_hex(), hex, "{algorithm}");
        }
        assert_eq!(hash(HashAlgorithm::Md4, &[]), Err(UnsupportedHash(HashAlgorithm::Md4)));
    }

    #[test]
    fn every_supported_algorithm_makes_a_digest_of_its_size() {
        for algorithm in HashAlgorithm::ALL {
            if let Ok(digest) = hash(*algorithm, &[b"a", b"bc"]) {
                assert_eq!(digest, hash(*algorithm, &[b"abc"]).unwrap());
                assert_eq!(digest.as_bytes().len(), algorithm.digest_size());
            }
        }
    }
}
