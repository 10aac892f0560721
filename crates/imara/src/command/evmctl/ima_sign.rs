//! `evmctl ima_sign`, and signing as the other commands do it.

use super::hash_name::Named;
use super::{Ending, Evmctl, Failed, tell, tell_out};
use crate::command::paths::signature_file;
use imara_engine::label::{SignError, sign_as, sign_v1};
use imara_format::hash::{Digest, to_hex};
use imara_format::signature::SignatureType;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let path = evmctl.path(words, "ima_sign")?;
    if evmctl.options.recursive {
        // Without it no file could be signed.
        evmctl.private_key()?;
    }
    evmctl.for_files(path, &mut |path, name| evmctl.sign_file(path, name))
}

impl Evmctl {
    /// Signs a file's content.
    pub fn sign_file(&self, path: &Path, name: &Path) -> Ending {
        let file = self.open(path, name)?;
        let hash_name = self.options.hash_name();
        let algorithm = match self.options.hash() {
            Named::Hash(algorithm) => algorithm,
            Named::Unlabelled => {
                tell(format_args!("sign_hash_v2: hash algo is unknown: {hash_name}\n"));
                return Err(Failed::Negative);
            }
            Named::Unknown => {
                tell(format_args!("EVP_get_digestbyname({hash_name}) failed\n"));
                return Err(Failed::Positive);
            }
        };
        let digest = self.digest(&file, name, algorithm)?;
        tell(format_args!("hash({hash_name}): {}\n", digest.to_hex()));
        let label = self.sign_digest(&digest, SignatureType::Signature)?;
        let sigfile = if self.options.sigfile { self.write_sigfile(path, name, &label) } else { Ok(()) };
        let set = self.set_label(&file, name, self.options.ima_attribute(), &label, "IMA sig");
        tell_out(format_args!("{}\n", to_hex(&label)));
        set.and(sigfile)
    }

    /// A label that signs a digest.
    pub fn sign_digest(&self, digest: &Digest, kind: SignatureType) -> Result<Vec<u8>, Failed> {
        if self.options.version_1 {
            return self.sign_digest_v1(digest, kind);
        }
        let key = self.private_key()?;
        let label = sign_as(kind, digest, &key.key, Some(key.key_id)).map_err(|error| could_not_sign(&error))?;
        tell_size("signature", &label);
        Ok(label)
    }

    fn sign_digest_v1(&self, digest: &Digest, kind: SignatureType) -> Result<Vec<u8>, Failed> {
        if !super::version_1_is_allowed() {
            tell("Signature version 1 deprecated.");
            return Err(Failed::Negative);
        }
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        // The field has 32 bits, and nobody reads it as a time.
        let label = sign_v1(digest, &self.private_key()?.key, seconds as u32);
        let mut label = label.map_err(|error| could_not_sign(&error))?;
        // As the original: whatever the type, though nothing verifies a portable one of this version.
        if let Some(first) = label.first_mut() {
            *first = kind.id();
        }
        tell_size("signature-v1", &label);
        Ok(label)
    }

    /// Writes `FILE.sig`.
    fn write_sigfile(&self, path: &Path, name: &Path, label: &[u8]) -> Ending {
        tell(format_args!("Writing to {}\n", signature_file(name).display()));
        std::fs::write(signature_file(path), label).map_err(|error| {
            tell(format_args!("Failed to open: {}\n", signature_file(name).display()));
            self.note(&error);
            Failed::Negative
        })
    }
}

/// Tells how long the signature in a label is, with its header and without its type.
pub fn tell_size(what: &str, label: &[u8]) {
    tell(format_args!("evm/ima {what}: {} bytes\n", label.len().saturating_sub(1)));
}

/// Tells why nothing was signed.
pub fn could_not_sign(error: &SignError) -> Failed {
    tell(format_args!("sign_hash_v2: signing failed: ({error})\n"));
    Failed::Negative
}
