//! The keys that packages are signed with, in files and folders.

use crate::command::paths::{printable, read};
use crate::output::Failure;
use imara_engine::package_keys::PackageKeys;
use imara_format::openpgp::{self, OpenPgpError};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Reads them; none where none are named.
///
/// # Errors
/// What cannot be read, or is no key.
pub fn read_keys(named: &[PathBuf]) -> Result<Option<PackageKeys>, Failure> {
    let mut keys = PackageKeys::default();
    for path in named {
        if !path.is_dir() {
            add(&mut keys, path, false)?;
            continue;
        }
        let failure = |error: &dyn Display| Failure::failed(format!("{}: {error}", printable(path)));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|error| failure(&error))? {
            let entry = entry.map_err(|error| failure(&error))?.path();
            files.extend(Some(entry).filter(|entry| entry.is_file()));
        }
        files.sort();
        // As everywhere, what is no key in a folder is passed over.
        let mut none = true;
        for file in files {
            none &= !add(&mut keys, &file, true)?;
        }
        if none {
            return Err(failure(&"there is no OpenPGP public key in this folder"));
        }
    }
    Ok((!named.is_empty()).then_some(keys))
}

/// Adds the keys of a file; whether there was any, where that need not be.
fn add(keys: &mut PackageKeys, path: &Path, may_hold_none: bool) -> Result<bool, Failure> {
    let failure = |error: &dyn Display| Failure::failed(format!("{}: {error}", printable(path)));
    let bytes = read(path).map_err(|error| failure(&error))?;
    match openpgp::certificates(&bytes) {
        Ok(certificates) => {
            certificates.iter().for_each(|certificate| keys.add(certificate));
            Ok(true)
        }
        Err(OpenPgpError::NoKey) if may_hold_none => Ok(false),
        Err(error) => Err(failure(&error)),
    }
}
