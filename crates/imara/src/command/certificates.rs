//! What labels are verified with: certificates and public keys in files, keyrings of the kernel's, and what is never taken.

use super::keyring::named::KeyringName;
use super::paths::{printable, printable_bytes, read, read_text};
use super::signing::warn_if_expired;
use crate::output::{Failure, tell, warn};
use imara_engine::block_list::BlockList;
use imara_engine::crypto::PublicKey;
use imara_engine::keyring::Keyring;
use imara_format::block_list::{self, Blocked};
use imara_format::hash::to_hex;
use imara_format::key::Errno;
use imara_linux::kernel_keyring::KernelKeyring;
use imara_linux::key_service::{self as keys, KeyType, errno_of};
use std::ffi::OsStr;
use std::fmt::Display;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Beside keys in files: keyrings of the kernel's, and what is never taken.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Trust {
    /// Verify with the keys of this keyring of the kernel's: .ima, _ima, a number; may be given several times
    #[arg(long = "keyring", value_name = "KEYRING")]
    pub keyrings: Vec<KeyringName>,
    /// Take no file and no key that F lists (bin:HEX, tbs:HEX, id:HEX, sha256:HEX, a line each); `%:.blacklist` is the kernel's
    /// list. May be given several times
    #[arg(long = "block-list", value_name = "F")]
    pub block_lists: Vec<PathBuf>,
}

impl Trust {
    /// Everything that labels are verified with: the keys in `files`, of folders those in them, or, where nothing is named at all, the one at `default`, if
    /// it is there.
    ///
    /// # Errors
    /// What cannot be read, is no key, or may not be searched.
    pub fn keyring(&self, files: &[PathBuf], default: Option<&str>) -> Result<Keyring, Failure> {
        let default = default.map(PathBuf::from).filter(|path| path.exists());
        let files = match (files.is_empty() && self.keyrings.is_empty(), &default) {
            (true, Some(default)) => std::slice::from_ref(default),
            (true, None) | (false, _) => files,
        };
        let mut keyring = Keyring::new().with_block_list(self.block_list()?);
        for path in files {
            if path.is_dir() { add_folder(&mut keyring, path)? } else { keyring.add(read_public_key(path)?) }
        }
        for name in &self.keyrings {
            let source = kernel_keyring(name)?;
            // Before there is anything to answer for: it can make the kernel run modprobe.
            source.warm_up();
            keyring.add_source(Box::new(source));
        }
        Ok(keyring)
    }

    fn block_list(&self) -> Result<BlockList, Failure> {
        let mut entries = Vec::new();
        for path in &self.block_lists {
            match path.as_os_str().as_bytes().starts_with(b"%") {
                true => entries.extend(kernel_block_list(path.as_os_str())?),
                false => entries.extend(block_list_of(path)?),
            }
        }
        Ok(entries.into_iter().collect())
    }
}

/// Reads keys; where none is named, the one at `default`, if it is there.
///
/// # Errors
/// What cannot be read, or is no key.
pub fn read_keyring(named: &[PathBuf], default: &str) -> Result<Keyring, Failure> {
    Trust::default().keyring(named, Some(default))
}

fn read_public_key(path: &Path) -> Result<PublicKey, Failure> {
    let failure = |error: &dyn Display| Failure::failed(format!("{}: {error}", printable(path)));
    let bytes = read(path).map_err(|error| failure(&error))?;
    let key = PublicKey::from_bytes(&bytes).inspect(|key| {
        warn_if_expired(&printable(path), key.certificate());
        tell(format_args!("{}: the key with id {}, {}", printable(path), to_hex(&key.key_id()), key.kind()));
    });
    key.map_err(|error| {
        failure(&error)
            .next("a certificate or a public key is needed, as x509_ima.der or pubkey_ima.pem, or a folder of them")
    })
}

/// The keys of a folder, in the order of their names. What is no key there is passed over.
fn add_folder(keyring: &mut Keyring, folder: &Path) -> Result<(), Failure> {
    let failure = |error: &dyn Display| Failure::failed(format!("{}: {error}", printable(folder)));
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut paths = entries.map_err(|error| failure(&error))?.iter().map(std::fs::DirEntry::path).collect::<Vec<_>>();
    paths.sort();
    let before = keyring.keys().len();
    for path in paths.iter().filter(|path| path.is_file()) {
        match read(path) {
            Ok(bytes) => {
                if let Ok(key) = PublicKey::from_bytes(&bytes) {
                    warn_if_expired(&printable(path), key.certificate());
                    keyring.add(key);
                }
            }
            Err(error) => warn(format_args!("{}: {error}; what key it may hold is not used", printable(path))),
        }
    }
    if keyring.keys().len() == before {
        return Err(failure(&"no file in it is a certificate or a public key")
            .next("a certificate or a public key is needed, or a folder of them"));
    }
    Ok(())
}

/// A keyring, which this process must be allowed to search.
fn kernel_keyring(name: &KeyringName) -> Result<KernelKeyring, Failure> {
    let found = name.find()?;
    // No key has this id; what counts is whether the question is answered.
    let tried = keys::search(found.serial, KeyType::Asymmetric, b"id:00000000");
    if let Err(error) = tried
        && errno_of(&error) == Some(Errno::Eacces)
    {
        return Err(Failure::failed(format!("{found} ({}): it may not be searched (EACCES)", found.serial))
            .next(format!(
                "its user may let others search it: imara keyring permissions {} alswrv--s-rv------------; or run where the \
                 session's keyring leads to it",
                found.serial
            )));
    }
    let hidden = found.keys().unwrap_or_default().into_iter().filter(|(serial, told)| {
        told.kind == KeyType::Asymmetric.name()
            && keys::public_key_query(*serial, "pkcs1", "sha256")
                .is_err_and(|error| errno_of(&error) == Some(Errno::Eacces))
    });
    for (serial, told) in hidden {
        warn(format_args!(
            "{found}: key {serial}, {}, may be used by the kernel alone, so nothing that it signed verifies here; import its \
             certificate anew, and its user may use it: imara keyring import {found} CERT",
            printable_bytes(&told.description)
        ));
    }
    let revoked = keys::keyring_named(b".ima_blacklist").ok();
    Ok(KernelKeyring::new(found.serial, found.to_string(), revoked))
}

fn block_list_of(path: &Path) -> Result<Vec<Blocked>, Failure> {
    let shown = printable(path);
    let text = read_text(path).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
    block_list::parse(&text).map_err(|error| {
        Failure::failed(format!("{shown}: {error}"))
            .next("a line is bin:HEX, tbs:HEX, id:HEX or ALGORITHM:HEX; what follows a # is left out")
    })
}

/// What the kernel's own list has: keys of a type of its own, by their descriptions.
fn kernel_block_list(name: &OsStr) -> Result<Vec<Blocked>, Failure> {
    let keyring = KeyringName::from(name.to_owned()).find()?;
    let mut entries = Vec::new();
    for (_, told) in keyring.keys()? {
        if told.kind != KeyType::Blacklist.name() {
            continue;
        }
        let text = String::from_utf8_lossy(&told.description);
        entries.push(block_list::parse_entry(&text).map_err(|error| {
            Failure::failed(format!("{keyring}: {}: {error}", printable_bytes(&told.description)))
                .next("use the list without it, as a file: imara keyring show prints it")
        })?);
    }
    Ok(entries)
}
