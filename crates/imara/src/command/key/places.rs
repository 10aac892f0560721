//! Where keys are kept, under the names that others look for.
//!
//! | file in /etc/keys | what | who looks for it |
//! |---|---|---|
//! | `kmk-user.blob`, `kmk-trusted.blob` | the master key: text that is the key, or a TPM's blob (and `kmk-trusted.blob.sealed`) | dracut's `masterkey` |
//! | `evm-user.blob`, `evm-trusted.blob` | the blob of `evm-key` under that master key | dracut's `integrity` |
//! | `privkey_ima.pem`, `privkey_evm.pem` | private keys | evmctl, Imara |
//! | `x509_ima.der`, `x509_evm.der` | their certificates | evmctl, Imara, kernels with CONFIG_IMA_LOAD_X509, CONFIG_EVM_LOAD_X509 |
//! | `ima/*`, `evm/*` | more certificates | dracut's `integrity` (`ima/*`), Imara |
//!
//! dracut reads the blobs with the shell's `$(cat …)`, so a master key of type `user` has neither zero bytes nor a newline at its end.
//!
//! Source: dracut, modules.d/97masterkey/masterkey.sh, modules.d/98integrity/evm-enable.sh and ima-keys-load.sh; security/integrity/Kconfig.

use crate::command::keyring::certificates::{ENDINGS, FOLDER};
use imara_format::key_blob::encrypted::MasterType;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a signing key is for: the names of the files.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Purpose {
    /// Files: security.ima
    Ima,
    /// Metadata: security.evm
    Evm,
}

impl Purpose {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ima, Self::Evm];

    /// What the names of its files end in.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Ima => "ima",
            Self::Evm => "evm",
        }
    }

    /// The common name of its certificate, where no other is given.
    pub const fn common_name(self) -> &'static str {
        match self {
            Self::Ima => "IMA signing key",
            Self::Evm => "EVM signing key",
        }
    }

    /// The keyring that the kernel makes for it, and the one that is made where it does not.
    pub const fn keyrings(self) -> [&'static str; 2] {
        match self {
            Self::Ima => [".ima", "_ima"],
            Self::Evm => [".evm", "_evm"],
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ima => "IMA",
            Self::Evm => "EVM",
        })
    }
}

/// The name of the master key of each type.
pub const fn key_name(kind: MasterType) -> &'static str {
    match kind {
        MasterType::User => "kmk-user",
        MasterType::Trusted => "kmk-trusted",
    }
}

/// A folder of keys.
pub struct Places {
    folder: PathBuf,
}

impl Places {
    /// /etc/keys below `root`.
    pub fn below(root: Option<&Path>) -> Self {
        Self { folder: root.map_or_else(|| FOLDER.into(), |root| root.join(FOLDER.trim_start_matches('/'))) }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The master key.
    pub fn master(&self, kind: MasterType) -> PathBuf {
        self.folder.join(format!("kmk-{}.blob", kind.name()))
    }

    /// The blob of `evm-key` under it.
    pub fn evm_key(&self, kind: MasterType) -> PathBuf {
        self.folder.join(format!("evm-{}.blob", kind.name()))
    }

    /// A private key, its public key, and its certificate.
    pub fn signing(&self, purpose: Purpose) -> [PathBuf; 3] {
        let suffix = purpose.suffix();
        let names = [format!("privkey_{suffix}.pem"), format!("pubkey_{suffix}.pem"), format!("x509_{suffix}.der")];
        names.map(|name| self.folder.join(name))
    }

    /// Where dracut looks for certificates.
    pub fn certificates(&self, purpose: Purpose) -> PathBuf {
        self.folder.join(purpose.suffix())
    }

    /// The files of certificates that are there for a purpose.
    pub fn certificates_there(&self, purpose: Purpose) -> Vec<PathBuf> {
        let [_, _, first] = self.signing(purpose);
        let is_certificate = |path: &PathBuf| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| ENDINGS.contains(&ending)) && path.is_file()
        };
        let folder = std::fs::read_dir(self.certificates(purpose)).ok();
        let entries = folder.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let mut more: Vec<PathBuf> = entries.filter(is_certificate).collect();
        more.sort();
        Some(first).filter(|first| first.exists()).into_iter().chain(more).collect()
    }
}
