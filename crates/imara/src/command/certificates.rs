//! The certificates and public keys that labels are verified with.

use super::paths::{printable, read};
use super::signing::warn_if_expired;
use crate::output::{Failure, tell, warn};
use imara_engine::crypto::PublicKey;
use imara_engine::keyring::Keyring;
use imara_format::hash::to_hex;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// Reads them, of folders those in them; where none is named, the one at `default`, if it is there.
///
/// # Errors
/// What cannot be read, or is no key.
pub fn read_keyring(named: &[PathBuf], default: &str) -> Result<Keyring, Failure> {
    let default = [PathBuf::from(default)];
    let keys = match named.is_empty() {
        true if default[0].exists() => &default[..],
        true => &[],
        false => named,
    };
    let mut keyring = Keyring::new();
    for path in keys {
        if path.is_dir() { add_folder(&mut keyring, path)? } else { keyring.add(read_public_key(path)?) }
    }
    Ok(keyring)
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
            .next("-k takes a certificate or a public key, as x509_ima.der or pubkey_ima.pem, or a folder of them")
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
            .next("-k takes a certificate or a public key, or a folder of them"));
    }
    Ok(())
}
