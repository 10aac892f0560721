//! Who signs: options shared by the commands that sign.

use super::evmctl::hash_name::{Named, look_up};
use super::key::Passphrase;
use super::paths::read;
use super::token;
use crate::output::{Failure, tell, warn};
use imara_engine::crypto::{Certificate, KeyError, PublicKey, SigningKey};
use imara_format::hash::{HashAlgorithm, from_hex, to_hex};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Who signs, and what.
#[derive(clap::Args)]
pub struct Signer {
    #[command(flatten)]
    key: Key,
    /// The hash to sign: sha256, sha1, sha384, sha512, …
    #[arg(short = 'a', long = "hash", value_name = "HASH", default_value = "sha256", value_parser = algorithm)]
    pub algorithm: HashAlgorithm,
}

/// Who signs.
#[derive(clap::Args)]
pub struct Key {
    /// The private key, in PEM or DER, or in a token: `pkcs11:token=T;object=O` [default: /etc/keys/privkey_ima.pem; of metadata
    /// alone, privkey_evm.pem there]
    #[arg(short, long, value_name = "PRIVKEY")]
    key: Option<PathBuf>,
    #[command(flatten)]
    passphrase: Passphrase,
    /// The key id to write into the signature, up to 8 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = key_id, conflicts_with = "keyid_from_cert")]
    keyid: Option<KeyId>,
    /// Take the key id from this certificate of the key
    #[arg(long, value_name = "F")]
    keyid_from_cert: Option<PathBuf>,
}

/// Where `imara key generate` and evmctl put the key that signs contents.
pub const IMA_KEY: &str = "/etc/keys/privkey_ima.pem";
/// The key that signs metadata.
pub const EVM_KEY: &str = "/etc/keys/privkey_evm.pem";

#[derive(Clone, Copy)]
struct KeyId([u8; 4]);

impl Signer {
    /// As [`Key::find`].
    ///
    /// # Errors
    /// As there.
    pub fn find(&self, default: &str) -> Result<(SigningKey, [u8; 4]), Failure> {
        self.key.find(default)
    }
}

impl Key {
    /// The key, or the one at `default` where none is named, and the id that its signatures carry.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn find(&self, default: &str) -> Result<(SigningKey, [u8; 4]), Failure> {
        let key = self.key.as_deref().unwrap_or(Path::new(default));
        let signing_key = read_key(key, self.key.is_none(), &self.passphrase)?;
        let key_id = self.key_id(key, &signing_key)?;
        // A token's URI may hold its PIN.
        let name = if key.as_os_str().as_bytes().starts_with(b"pkcs11:") {
            "a token".into()
        } else {
            key.display().to_string()
        };
        tell(format_args!("signing with the key in {name}, id {}", to_hex(&key_id)));
        Ok((signing_key, key_id))
    }

    fn key_id(&self, path: &Path, key: &SigningKey) -> Result<[u8; 4], Failure> {
        if let Some(KeyId(key_id)) = self.keyid {
            return Ok(key_id);
        }
        let Some(certificate) = &self.keyid_from_cert else { return Ok(key.key_id()) };
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{}: {what}", certificate.display()));
        let bytes = read(certificate).map_err(|error| failure(&error))?;
        let public = PublicKey::from_bytes(&bytes).map_err(|error| failure(&error))?;
        let subject_key_id = public.certificate().and_then(|certificate| certificate.subject_key_id.as_deref());
        match subject_key_id {
            Some(id) if id.len() >= 4 => {}
            _ => {
                return Err(failure(&"no certificate with a subject key identifier, so it has no key id")
                    .next("give the key id with --keyid HEX"));
            }
        }
        if !public.is_same_key(key.public()) {
            return Err(failure(&format_args!("the certificate is of another key than {}", path.display()))
                .next("what is signed would verify nowhere; name the certificate of this key"));
        }
        Ok(public.key_id())
    }
}

/// Reads a private key.
///
/// # Errors
/// What is wrong with it; where `default` says that nobody has named it, that there is none.
pub fn read_key(path: &Path, default: bool, passphrase: &Passphrase) -> Result<SigningKey, Failure> {
    let shown = path.display();
    if path.as_os_str().as_bytes().starts_with(b"pkcs11:") {
        return token::signing_key(path.as_os_str(), passphrase.find(false)?.as_deref().map(Vec::as_slice));
    }
    let bytes = match read(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound && default => {
            return Err(Failure::lacking(format!("there is no private key: {shown} is missing"))
                .next("name one with -k PRIVKEY, or make one with `imara key generate`"));
        }
        Err(error) => return Err(Failure::failed(format!("{shown}: {error}"))),
    };
    let passphrase = passphrase.find(false)?;
    let read = SigningKey::from_bytes(&bytes, passphrase.as_deref().map(Vec::as_slice));
    read.inspect(|key| warn_of_certificates(&shown, key)).map_err(|error| {
        let failure = Failure::failed(format!("{shown}: {error}"));
        match error {
            KeyError::PassphraseNeeded | KeyError::WrongPassphrase => {
                failure.next("give it with --passphrase-file F or in IMARA_KEY_PASSPHRASE; --passphrase asks for it")
            }
            KeyError::NotAPrivateKey(_) | KeyError::PublicKeyGiven(_) => {
                failure.next("a private key in PEM or DER is needed, as privkey_ima.pem")
            }
            KeyError::NotAPublicKey(_)
            | KeyError::PrivateKeyGiven
            | KeyError::Truncated { .. }
            | KeyError::TruncatedPem
            | KeyError::UnsupportedType(_)
            | KeyError::InToken
            | KeyError::Library(_) => failure,
        }
    })
}

/// What a certificate beside the key makes doubtful; nothing of it keeps the key from signing.
fn warn_of_certificates(path: &dyn std::fmt::Display, key: &SigningKey) {
    warn_if_expired(path, key.certificate());
    if let (None, Some(certificate)) = (key.certificate(), key.strange_certificate()) {
        let subject = &certificate.subject;
        warn(format_args!("{path}: the certificate beside the key ({subject}) is of another key, and is left alone"));
    }
}

/// Warns of a certificate whose time is over; nothing is refused for it.
pub fn warn_if_expired(path: &dyn std::fmt::Display, certificate: Option<&Certificate>) {
    if let Some(certificate) = certificate.filter(|certificate| certificate.expired) {
        let (subject, end) = (&certificate.subject, &certificate.not_after);
        warn(format_args!(
            "{path}: the key's certificate ({subject}) expired on {end}; no kernel refuses its signatures for that, others may"
        ));
    }
}

/// A hash by its name.
///
/// # Errors
/// The names that are known.
pub fn algorithm(name: &str) -> Result<HashAlgorithm, String> {
    // OpenSSL's names, too: ripemd160.
    if let Named::Hash(algorithm) = look_up(name) {
        return Ok(algorithm);
    }
    Err({
        let names = HashAlgorithm::ALL.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>();
        format!("no such hash; known: {}", names.join(" "))
    })
}

fn key_id(text: &str) -> Result<KeyId, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.is_empty() || digits.len() > 8 {
        return Err("1 to 8 hexadecimal digits are needed".to_owned());
    }
    let bytes = from_hex(&format!("{digits:0>8}")).map_err(|error| error.to_string())?;
    bytes.first_chunk().copied().map(KeyId).ok_or_else(|| "1 to 8 hexadecimal digits are needed".to_owned())
}
