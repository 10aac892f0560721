//! `evmctl ima_hash`.

use super::hash_name::Named;
use super::{Ending, Evmctl, Failed, system_text, tell, tell_out};
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::label::encode_digest;
use imara_linux::files;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let path = evmctl.path(words, "ima_hash")?;
    evmctl.for_files(path, &mut |path, name| evmctl.hash_file(path, name))
}

impl Evmctl {
    /// Labels a file with its digest.
    pub fn hash_file(&self, path: &Path, name: &Path) -> Ending {
        let file = self.open(path, name)?;
        let hash_name = self.options.hash_name();
        let algorithm = match self.options.hash() {
            Named::Hash(algorithm) => algorithm,
            Named::Unlabelled | Named::Unknown => {
                tell(format_args!("Unknown hash algo: {hash_name}\n"));
                return Err(Failed::Negative);
            }
        };
        let digest = self.digest(&file, name, algorithm)?;
        tell(format_args!("hash({hash_name}): "));
        let label = encode_digest(&digest);
        let set = self.set_label(&file, name, self.options.ima_attribute(), &label, "IMA hash");
        tell_out(format_args!("{}\n", to_hex(&label)));
        set
    }

    /// Opens a regular file. What it is else has been told.
    pub fn open(&self, path: &Path, name: &Path) -> Result<OwnedFd, Failed> {
        match path.symlink_metadata() {
            Err(error) => {
                tell(format_args!("Failed to stat: {}\n", name.display()));
                self.note(&error);
                return Err(Failed::Negative);
            }
            Ok(metadata) if !metadata.is_file() => {
                tell(format_args!("Unsupported file type (0x{:x})", metadata.mode() & 0o170_000));
                return Err(Failed::Negative);
            }
            Ok(_) => {}
        }
        files::open_regular(path).map_err(|error| {
            tell(format_args!("Failed to open: {}\n", name.display()));
            if let files::OpenError::System { error, .. } = &error {
                self.note(error);
            }
            Failed::Negative
        })
    }

    /// A file's digest.
    pub fn digest(&self, file: &OwnedFd, name: &Path, algorithm: HashAlgorithm) -> Result<Digest, Failed> {
        files::digest(file, algorithm).map_err(|error| {
            if error.kind() == io::ErrorKind::Unsupported {
                tell(format_args!("{error}\n"));
                return Failed::Positive;
            }
            tell(format_args!("Failed reading: {}: {}\n", name.display(), system_text(&error)));
            self.note(&error);
            Failed::Negative
        })
    }

    /// Sets an attribute, unless `-n` forbids it.
    pub fn set_label(&self, file: &OwnedFd, name: &Path, attribute: &str, label: &[u8], what: &str) -> Ending {
        if self.options.no_xattr {
            return Ok(());
        }
        files::set_xattr(file, attribute, label).map_err(|error| {
            let (name, error) = (name.display(), system_text(&error));
            tell(format_args!("Setting {what} xattr failed: {name} (errno: {error})\n"));
            Failed::Negative
        })
    }
}
