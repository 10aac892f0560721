//! `evmctl sign`: signs a file's metadata.

use super::hash_name::Named;
use super::ima_sign::{could_not_sign, tell_size};
use super::{Ending, Evmctl, Failed, tell, tell_out};
use imara_format::evm::Form;
use imara_format::hash::to_hex;
use imara_format::signature::{SignatureType, SignatureV2};
use std::path::{Path, PathBuf};

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let path = evmctl.path(words, "sign")?;
    if evmctl.options.recursive {
        // Without it no file could be signed.
        evmctl.private_key()?;
    }
    evmctl.for_files(path, &mut |path, name| {
        evmctl.label_content_first(path, name)?;
        evmctl.sign_metadata(path, name)
    })
}

impl Evmctl {
    /// What `--imasig` and `--imahash` ask for.
    pub fn label_content_first(&self, path: &Path, name: &Path) -> Ending {
        if self.options.ima_signature {
            self.sign_file(path, name)?;
        }
        if self.options.ima_hash {
            self.hash_file(path, name)?;
        }
        Ok(())
    }

    fn form(&self) -> Form {
        match (self.options.portable, self.options.immutable) {
            (true, _) => Form::Portable,
            (false, true) => Form::EvmctlImmutable,
            (false, false) => Form::Signature,
        }
    }

    fn sign_metadata(&self, path: &Path, name: &Path) -> Ending {
        let form = self.form();
        let (file, snapshot, rules) = self.metadata(path, name, form)?;
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
        let digest = snapshot.digest(form, &rules, algorithm).map_err(|error| {
            tell(format_args!("{error}\n"));
            Failed::Positive
        })?;
        tell(format_args!("hash({hash_name}): {}\n", digest.to_hex()));
        let label = match form {
            // A type of its own, which no kernel verifies: version 3 in the header, and the signature of version 2.
            Form::EvmctlImmutable => {
                let key = self.private_key()?;
                let signature = key.key.sign(&digest).map_err(|error| could_not_sign(&error.into()))?;
                let header = SignatureV2 { algorithm, key_id: key.key_id, signature: &signature };
                let label =
                    header.encode_v3(SignatureType::Signature).map_err(|error| could_not_sign(&error.into()))?;
                tell_size("signature", &label);
                label
            }
            Form::Portable => self.sign_digest(&digest, SignatureType::Portable)?,
            Form::Signature | Form::Hmac => self.sign_digest(&digest, SignatureType::Signature)?,
        };
        let set = self.set_label(&file, name, self.options.evm_attribute(), &label, "EVM");
        tell_out(format_args!("{}\n", to_hex(&label)));
        set
    }
}
