//! `evmctl ima_verify`.

use super::certificates::{Certificates, read_at_most};
use super::{Ending, Evmctl, Failed, missing, tell};
use crate::command::paths::signature_file;
use imara_engine::crypto::PublicKey;
use imara_engine::keyring::Keyring;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label::{Label, LabelError};
use imara_format::signature::{Signature, SignatureFormatError, SignatureV1};
use imara_linux::files;
use std::io;
use std::path::{Path, PathBuf};

/// Where the public key of version 1 signatures is where `--key` names none.
const PUBLIC_KEY: &str = "/etc/keys/pubkey_evm.pem";

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    if words.is_empty() {
        return Err(missing("ima_verify"));
    }
    let certificates = if evmctl.options.version_1 { Certificates::none() } else { evmctl.certificates() };
    let mut ending = Ok(());
    for path in words {
        let verified = evmctl.for_files(path, &mut |path, name| evmctl.verify_file(path, name, &certificates));
        ending = ending.and(verified.map_err(|_| Failed::Positive));
    }
    ending
}

impl Evmctl {
    /// Verifies the signature of a file's content.
    fn verify_file(&self, path: &Path, name: &Path, certificates: &Certificates) -> Ending {
        let shown = name.display();
        let label = if self.options.sigfile {
            self.read_sigfile(&signature_file(path), &signature_file(name)).inspect_err(|_| {
                tell(format_args!("Failed reading: {shown}\n"));
            })?
        } else {
            self.label(path, name, self.options.ima_attribute())?
        };
        let signature = match Label::parse_ima(&label) {
            Ok(Label::Signature(Signature::V2(signature))) => signature,
            Ok(Label::Signature(Signature::V1(signature))) => {
                let algorithm = signature.algorithm().unwrap_or(HashAlgorithm::Sha256);
                let digest = self.digest(&self.open(path, name)?, name, algorithm)?;
                return self.verify_v1(name, &signature, &digest);
            }
            Ok(Label::Signature(Signature::V3(_))) => {
                tell("Only fsverity supports signature format v3 (sigv3)\n");
                return Err(Failed::Negative);
            }
            _ if label.first() == Some(&6) => {
                tell(format_args!("{shown}: calculating the fs-verity digest is not supported\n"));
                return Err(Failed::Negative);
            }
            Err(LabelError::Signature(SignatureFormatError::UnknownAlgorithm(_))) => {
                tell(format_args!("{shown}: Invalid signature\n"));
                return Err(Failed::Negative);
            }
            Err(LabelError::Signature(error)) => {
                tell(format_args!("{shown}: verification failed: 0 ({error})\n"));
                return Err(Failed::Positive);
            }
            Ok(Label::Digest { .. } | Label::EvmHmac(_) | Label::EvmPortable(_) | Label::VeritySignature(_))
            | Err(_) => {
                tell(format_args!("{shown}: xattr ima has no signature\n"));
                return Err(Failed::Negative);
            }
        };
        let file = self.open(path, name)?;
        let digest = self.digest(&file, name, signature.algorithm)?;
        if self.is_verbose() {
            tell(format_args!("hash({}): {}\n", digest.algorithm(), digest.to_hex()));
        }
        certificates.verify(name, &signature, &digest)
    }

    /// Version 1 has keys of its own: bare ones, in PEM.
    pub fn verify_v1(&self, name: &Path, signature: &SignatureV1<'_>, digest: &Digest) -> Ending {
        let named = self.options.key.as_deref().map_or(PUBLIC_KEY.into(), |keys| keys.to_string_lossy());
        let keys = named.split([',', ' ', '\t']).filter_map(|path| read_at_most(Path::new(path)).ok());
        let keyring = keys.filter_map(|key| PublicKey::from_bytes(&key).ok()).collect::<Keyring>();
        match keyring.verify_v1(signature, digest) {
            Ok(_) => {
                tell(format_args!("{}: verification is OK\n", name.display()));
                Ok(())
            }
            Err(error) => {
                tell(format_args!("{}: verification failed: 0 ({error})\n", name.display()));
                Err(Failed::Positive)
            }
        }
    }

    /// What a file of a detached signature holds.
    pub fn read_sigfile(&self, path: &Path, name: &Path) -> Result<Vec<u8>, Failed> {
        tell(format_args!("Reading to {}\n", name.display()));
        std::fs::read(path).map_err(|error| {
            tell(format_args!("Failed to open: {}\n", name.display()));
            self.note(&error);
            Failed::Negative
        })
    }

    /// An attribute of whatever the path leads to.
    pub fn label(&self, path: &Path, name: &Path, attribute: &str) -> Result<Vec<u8>, Failed> {
        let read = files::open_inode(path).and_then(|file| match files::read_xattr(&file, attribute)? {
            files::Xattr::Value(value) => Ok(value),
            files::Xattr::Absent => Err(io::Error::from_raw_os_error(NO_DATA)),
            files::Xattr::Unsupported => Err(io::Error::from_raw_os_error(NOT_SUPPORTED)),
        });
        read.map_err(|error| {
            tell(format_args!("getxattr failed: {}\n", name.display()));
            self.note(&error);
            Failed::Negative
        })
    }
}

pub const NO_DATA: i32 = 61;
const NOT_SUPPORTED: i32 = 95;
