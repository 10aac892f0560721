//! The certificates that signatures are verified with, and what is told of a verification.

use super::{Evmctl, Failed, short_hex, tell};
use imara_engine::crypto::{PublicKey, SignatureError};
use imara_format::hash::Digest;
use imara_format::signature::SignatureV2;
use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where a certificate is where `--key` names none.
pub const CERTIFICATE: &str = "/etc/keys/x509_evm.der";

/// Certificates by the ids that signatures carry. The last one read is found first.
pub struct Certificates {
    keys: Vec<([u8; 4], PublicKey)>,
    /// Ids that no certificate has and that have been told.
    unknown: RefCell<Vec<[u8; 4]>>,
}

impl Certificates {
    /// None at all.
    pub fn none() -> Self {
        Self { keys: Vec::new(), unknown: RefCell::default() }
    }

    /// Verifies a signature, and tells only when it does not verify.
    pub fn verify_quietly(&self, name: &Path, signature: &SignatureV2<'_>, digest: &Digest) {
        let known = self.find(&signature.key_id);
        if known.is_none_or(|key| key.verify(digest, signature.signature).is_err()) {
            let _ = self.verify(name, signature, digest);
        }
    }

    fn find(&self, key_id: &[u8; 4]) -> Option<&PublicKey> {
        self.keys.iter().rev().find(|(known, _)| known == key_id).map(|(_, key)| key)
    }

    /// Verifies a signature over `digest`, and tells how that ended of `name`.
    pub fn verify(&self, name: &Path, signature: &SignatureV2<'_>, digest: &Digest) -> Result<(), Failed> {
        let key_id = signature.key_id;
        let Some(key) = self.find(&key_id) else {
            let mut unknown = self.unknown.borrow_mut();
            if !unknown.contains(&key_id) {
                unknown.push(key_id);
                let number = self.keys.len() + unknown.len();
                tell(format_args!("key {number}: {} (unknown keyid)\n", short_hex(&key_id)));
            }
            return Err(Failed::Negative);
        };
        let name = name.display();
        match key.verify(digest, signature.signature) {
            Ok(()) => {
                tell(format_args!("{name}: verification is OK\n"));
                Ok(())
            }
            Err(error) => {
                let reason = match error {
                    SignatureError::Wrong => "bad signature".to_owned(),
                    SignatureError::RsaLength { .. } => "wrong signature length".to_owned(),
                    SignatureError::NotDer
                    | SignatureError::UnsupportedHash { .. }
                    | SignatureError::NotRsa(_)
                    | SignatureError::Keeper(_)
                    | SignatureError::CannotSign => error.to_string(),
                };
                tell(format_args!("{name}: verification failed: 0 ({reason})\n"));
                Err(Failed::Positive)
            }
        }
    }
}

/// Reads a key's or certificate's file. A device has no end, and neither comes near this size.
pub fn read_at_most(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Evmctl {
    /// The certificates that `--key` names: a list by commas, blanks and tabs. What cannot be read is left out.
    pub fn certificates(&self) -> Certificates {
        let named = self.options.key.as_deref().map_or(CERTIFICATE.into(), |keys| keys.to_string_lossy());
        let mut keys = Vec::new();
        for path in named.split([',', ' ', '\t']).filter(|path| !path.is_empty()) {
            if let Some(key) = self.certificate(&PathBuf::from(path)) {
                tell(format_args!("keyid {} (from {path})\n", short_hex(&key.key_id())));
                tell(format_args!("key {}: {} {path}\n", keys.len() + 1, short_hex(&key.key_id())));
                if let Some(certificate) = key.certificate() {
                    super::key::tell_if_expired(&path, certificate);
                }
                keys.push((key.key_id(), key));
            }
        }
        Certificates { keys, unknown: RefCell::default() }
    }

    /// A certificate in DER. One that is not there, or empty, says nothing, as in the original.
    pub fn certificate(&self, path: &Path) -> Option<PublicKey> {
        let der = read_at_most(path).inspect_err(|error| self.note(error)).ok().filter(|der| !der.is_empty())?;
        match PublicKey::from_certificate_der(&der) {
            Ok(key) => Some(key),
            Err(error) => {
                tell(format_args!("Failed to d2i_X509_fp key file: {}\nreason: {error}\n", path.display()));
                None
            }
        }
    }
}
