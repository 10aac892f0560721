//! `evmctl verify`: verifies the signature of files' metadata. The original looks at the first file alone.

use super::certificates::Certificates;
use super::{Ending, Evmctl, Failed, missing, tell};
use imara_format::evm::Form;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label::{Label, LabelError};
use imara_format::signature::{Signature, SignatureFormatError};
use std::path::{Path, PathBuf};

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    if words.is_empty() {
        return Err(missing("verify"));
    }
    let certificates = if evmctl.options.version_1 { Certificates::none() } else { evmctl.certificates() };
    let mut ending = Ok(());
    for path in words {
        let verified = evmctl.for_files(path, &mut |path, name| evmctl.verify_metadata(path, name, &certificates));
        ending = ending.and(verified);
    }
    ending
}

impl Evmctl {
    fn verify_metadata(&self, path: &Path, name: &Path, certificates: &Certificates) -> Ending {
        let attribute = self.options.evm_attribute();
        let label = self.label(path, name, attribute)?;
        let (form, signature) = match Label::parse_evm(&label) {
            Ok(Label::EvmPortable(Signature::V2(signature))) => (Form::Portable, signature),
            Ok(Label::EvmPortable(Signature::V1(_) | Signature::V3(_))) => {
                tell("Portable sig: invalid type\n");
                return Err(Failed::Negative);
            }
            Ok(Label::Signature(Signature::V2(signature))) => (Form::Signature, signature),
            Ok(Label::Signature(Signature::V3(signature))) if self.options.immutable => {
                (Form::EvmctlImmutable, signature)
            }
            Ok(Label::Signature(Signature::V1(signature))) => {
                let algorithm = signature.algorithm().unwrap_or(HashAlgorithm::Sha256);
                let digest = self.metadata_digest(path, name, Form::Signature, algorithm)?;
                return self.verify_v1(name, &signature, &digest);
            }
            Ok(Label::Signature(Signature::V3(_))) => {
                tell(format_args!("{}: signatures of version 3 are verified with -i alone\n", name.display()));
                return Err(Failed::Negative);
            }
            Err(LabelError::Signature(SignatureFormatError::UnknownAlgorithm(_))) => {
                tell(format_args!("{}: Invalid signature\n", name.display()));
                return Err(Failed::Negative);
            }
            Err(LabelError::Signature(error)) => {
                tell(format_args!("{}: verification failed: 0 ({error})\n", name.display()));
                return Err(Failed::Positive);
            }
            Ok(Label::Digest { .. } | Label::EvmHmac(_) | Label::VeritySignature(_)) | Err(_) => {
                tell(format_args!("{attribute} has no signature\n"));
                return Err(Failed::Negative);
            }
        };
        let digest = self.metadata_digest(path, name, form, signature.algorithm)?;
        if self.is_verbose() {
            tell(format_args!("hash({}): {}\n", digest.algorithm(), digest.to_hex()));
        }
        certificates.verify(name, &signature, &digest)
    }
    fn metadata_digest(
        &self,
        path: &Path,
        name: &Path,
        form: Form,
        algorithm: HashAlgorithm,
    ) -> Result<Digest, Failed> {
        let (_, snapshot, rules) = self.metadata(path, name, form)?;
        snapshot.digest(form, &rules, algorithm).map_err(|error| {
            tell(format_args!("{error}\n"));
            Failed::Negative
        })
    }
}
