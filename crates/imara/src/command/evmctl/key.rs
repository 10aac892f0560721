//! The private key that signs.

use super::{Evmctl, Failed, short_hex, tell};
use imara_engine::crypto::{Certificate, KeyError, PublicKey, SigningKey};
use imara_format::hash::to_hex;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use zeroize::Zeroizing;

/// Where signing keys are where `--key` names none.
const PRIVATE_KEY: &str = "/etc/keys/privkey_evm.pem";

/// A key, with the id that its signatures carry.
pub struct PrivateKey {
    pub key: SigningKey,
    pub key_id: [u8; 4],
}

impl Evmctl {
    /// The key, read when it is first needed, and once.
    pub fn private_key(&self) -> Result<&PrivateKey, Failed> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let key = self.read_private_key()?;
        Ok(self.key.get_or_init(|| key))
    }

    fn read_private_key(&self) -> Result<PrivateKey, Failed> {
        let path = self.options.key.as_deref().unwrap_or(OsStr::new(PRIVATE_KEY));
        let passphrase = self.options.passphrase.as_deref().map(Vec::as_slice);
        if path.as_bytes().starts_with(b"pkcs11:") {
            let Some(key_id) = self.options.key_id else {
                tell("When using a pkcs11 URI you must provide the keyid with an option\n");
                return Err(Failed::Negative);
            };
            let key = crate::command::token::signing_key(path, passphrase).map_err(|failure| {
                tell(format_args!("Failed to load private key {}: {}\n", path.display(), failure.what));
                Failed::Negative
            })?;
            return Ok(PrivateKey { key, key_id });
        }
        let path = Path::new(path);
        let shown = path.display();
        let pem = Zeroizing::new(std::fs::read(path).map_err(|error| {
            tell(format_args!("Failed to open keyfile: {shown}\n"));
            self.note(&error);
            Failed::Negative
        })?);
        let key = match SigningKey::from_bytes(&pem, passphrase) {
            Err(KeyError::PassphraseNeeded) => {
                let asked = imara_linux::terminal::ask_secret("Enter PEM pass phrase:").map(Zeroizing::new);
                let asked = asked.map_err(|error| {
                    tell(format_args!("Failed to PEM_read_PrivateKey key file: {shown}\n"));
                    tell(format_args!("reason: {} ({error}); use --pass=WORD\n", KeyError::PassphraseNeeded));
                    Failed::Negative
                })?;
                SigningKey::from_bytes(&pem, Some(&asked))
            }
            read => read,
        };
        let key = key.map_err(|error| {
            tell(format_args!("Failed to PEM_read_PrivateKey key file: {shown}\nreason: {error}\n"));
            Failed::Negative
        })?;
        tell_of_certificates(&shown, &key);
        let key_id = match self.options.key_id {
            Some(key_id) => key_id,
            None => {
                if key.certificate().is_some() {
                    tell(format_args!("keyid {} (from {shown})\n", short_hex(&key.key_id())));
                } else if self.is_verbose() {
                    tell(format_args!("keyid: {}\n", short_hex(&key.key_id())));
                }
                key.key_id()
            }
        };
        Ok(PrivateKey { key, key_id })
    }
}

/// Tells what the original does not: a certificate beside the key that is of no use, or no longer.
fn tell_of_certificates(path: &dyn std::fmt::Display, key: &SigningKey) {
    if let Some(certificate) = key.certificate() {
        tell_if_expired(path, certificate);
    }
    if let (None, Some(certificate)) = (key.certificate(), key.strange_certificate()) {
        let subject = &certificate.subject;
        tell(format_args!("{path}: the certificate ({subject}) is of another key, its key id is not taken\n"));
    }
}

/// Tells of a certificate whose time is over. Nothing is refused for it, by the kernel neither.
pub fn tell_if_expired(path: &dyn std::fmt::Display, certificate: &Certificate) {
    if certificate.expired {
        let (subject, end) = (&certificate.subject, &certificate.not_after);
        tell(format_args!("{path}: the certificate ({subject}) expired on {end}\n"));
    }
}

/// The key id out of a certificate in PEM or DER; what is wrong has been told.
pub fn key_id_of_certificate(path: &Path) -> Option<[u8; 4]> {
    let shown = path.display();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            tell(format_args!("Cannot open {shown}: {}\n", super::system_text(&error)));
            return None;
        }
    };
    let key = match PublicKey::from_bytes(&bytes) {
        Ok(key) => key,
        Err(error) => {
            tell(format_args!("{shown}: {error}\n"));
            return None;
        }
    };
    let subject_key_id = key.certificate().and_then(|certificate| certificate.subject_key_id.as_deref());
    match subject_key_id.and_then(|id| id.last_chunk::<4>()) {
        Some(key_id) => {
            tell(format_args!("keyid {} (from {shown})\n", short_hex(key_id)));
            Some(*key_id)
        }
        None => {
            let found = subject_key_id.map_or("none".to_owned(), to_hex);
            tell(format_args!(
                "{shown}: a certificate with a subject key identifier of 4 bytes is needed, it has {found}\n"
            ));
            None
        }
    }
}
