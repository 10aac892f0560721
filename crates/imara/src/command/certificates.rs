//! The certificates and public keys that labels are verified with.

use super::paths::read;
use super::signing::warn_if_expired;
use crate::output::Failure;
use imara_engine::crypto::PublicKey;
use imara_engine::keyring::Keyring;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Reads them; where none is named, the one at `default`, if it is there.
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
    keys.iter().map(|path| read_public_key(path)).collect()
}

fn read_public_key(path: &Path) -> Result<PublicKey, Failure> {
    let failure = |error: &dyn Display| Failure::failed(format!("{}: {error}", path.display()));
    let bytes = read(path).map_err(|error| failure(&error))?;
    let key = PublicKey::from_bytes(&bytes).inspect(|key| warn_if_expired(&path.display(), key.certificate()));
    key.map_err(|error| {
        failure(&error).next("-k takes a certificate or a public key, as x509_ima.der or pubkey_ima.pem")
    })
}
