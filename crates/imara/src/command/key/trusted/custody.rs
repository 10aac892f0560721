//! Where a trusted key is kept once it is unsealed.
//!
//! | kernel | the key | its bytes |
//! |---|---|---|
//! | has the type `trusted` | of that type | never leave the kernel but sealed |
//! | has not | of type `user` | nobody can change them, and only who can find the key can read them |
//!
//! Whoever can find a key of type `user` can read it, whatever its permissions say: that is the key service's rule, and finding it
//! is what an encrypted key needs of its master. It is needed only while encrypted keys are loaded, and can be removed then.

use crate::command::keyring::named::Keyring;
use crate::command::keyring::refusal::{Attempt, refused};
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use imara_format::key::{Errno, KeyPermissions, KeySerial};
use imara_linux::key_service::{self as keys, KeyType, PROCESS_KEYRING, errno_of};

/// Its possessor may see it, find it and link it; its user may see that it is there. Neither may change it, or this.
const UNCHANGEABLE: KeyPermissions = KeyPermissions(0x1901_0000);

/// Whether this kernel makes trusted keys.
///
/// # Errors
/// It has no key service.
pub fn kernel_has_type() -> Result<bool, Failure> {
    // The type itself says EINVAL to this; where there is none, the key service says ENODEV.
    match keys::add(KeyType::Trusted, Some(b"imara-probe"), b"nonsense", PROCESS_KEYRING) {
        Ok(_) => Ok(true),
        Err(error) => match errno_of(&error) {
            Some(Errno::Enodev) => Ok(false),
            Some(Errno::Enosys) => Err(refused(Attempt::Read { key: "a key" }, &error)),
            Some(_) | None => Ok(true),
        },
    }
}

/// Keeps an unsealed key as one of type `user`.
///
/// # Errors
/// What the key service says.
pub fn keep(shown: &str, name: &[u8], material: &KeyMaterial, keyring: &Keyring) -> Result<KeySerial, Failure> {
    let attempt = Attempt::User { key: shown, keyring };
    let key = keys::add(KeyType::User, Some(name), material.as_bytes(), keyring.serial)
        .map_err(|error| refused(attempt, &error))?;
    keys::set_permissions(key, UNCHANGEABLE).map_err(|error| {
        let _ = keys::unlink(key, keyring.serial);
        refused(Attempt::Permissions { key: shown }, &error)
    })?;
    Ok(key)
}
