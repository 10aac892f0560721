//! The kernel's key service, by serial number: keys of every type, keyrings, what the kernel tells of them.
//!
//! The `keyutils` crate has most of this, and is not used: it panics on a description that is not UTF-8, which anybody may
//! choose; it reads secrets into memory that it does not wipe; and every serial number needs `unsafe` there.
//!
//! Errors are the kernel's own (`io::Error` with its number): which of them means what depends on what was asked, so it
//! is told where that is known.

use crate::sys::key as sys;
use imara_engine::keys::{KeyMaterial, MasterKeyError, MasterKeys};
use imara_format::key::{Errno, KeyDescription, KeyLine, KeyPermissions, KeySerial};
use imara_format::key_blob::encrypted::{MasterName, MasterType};
use std::ffi::{CStr, CString};
use std::io;

pub use sys::PublicKeyQuery;

/// The keyring of the calling thread (`@t`).
pub const THREAD_KEYRING: KeySerial = KeySerial(-1);
/// The keyring of the calling process (`@p`).
pub const PROCESS_KEYRING: KeySerial = KeySerial(-2);
/// The keyring of the session (`@s`).
pub const SESSION_KEYRING: KeySerial = KeySerial(-3);
/// The keyring of the user, shared by all their processes (`@u`).
pub const USER_KEYRING: KeySerial = KeySerial(-4);
/// The session keyring that the user's processes have where they were given none (`@us`).
pub const USER_SESSION_KEYRING: KeySerial = KeySerial(-5);

/// Where the kernel lists the keys that its reader may see.
pub const PROC_KEYS: &str = "/proc/keys";

/// The types of key that are made or searched for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// Holds links to keys.
    Keyring,
    /// Bytes that user space gives and reads back.
    User,
    /// A key that is sealed with another, and never leaves the kernel in clear.
    Encrypted,
    /// A key that a TPM or another source of trust seals.
    Trusted,
    /// A public key, from an X.509 certificate.
    Asymmetric,
    /// A digest that is not to be trusted; the kernel alone makes these.
    Blacklist,
}

impl KeyType {
    /// The kernel's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keyring => "keyring",
            Self::User => "user",
            Self::Encrypted => "encrypted",
            Self::Trusted => "trusted",
            Self::Asymmetric => "asymmetric",
            Self::Blacklist => "blacklist",
        }
    }

    const fn c_name(self) -> &'static CStr {
        match self {
            Self::Keyring => c"keyring",
            Self::User => c"user",
            Self::Encrypted => c"encrypted",
            Self::Trusted => c"trusted",
            Self::Asymmetric => c"asymmetric",
            Self::Blacklist => c"blacklist",
        }
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Makes a key in `keyring`. One of the same type and description there is updated, where its type can be. An asymmetric
/// key describes itself where no description is given.
///
/// # Errors
/// What add_key(2) and the type say.
pub fn add(kind: KeyType, description: Option<&[u8]>, payload: &[u8], keyring: KeySerial) -> io::Result<KeySerial> {
    let description = description.map(c_string).transpose()?;
    sys::add_key(kind.c_name(), description.as_deref(), payload, keyring.0).map(KeySerial)
}

/// Whether a keyring may have this name: only the kernel itself makes those that begin with a dot.
///
/// # Errors
/// EPERM, as add_key(2) says it.
pub fn may_name_keyring(name: &[u8]) -> io::Result<()> {
    if name.starts_with(b".") { Err(io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
}

/// Makes a keyring in `keyring`; an existing one of that name is not replaced there.
///
/// # Errors
/// EEXIST where there is one already, and what add_key(2) says: EPERM for a name that begins with a dot.
pub fn new_keyring(name: &[u8], keyring: KeySerial) -> io::Result<KeySerial> {
    // add_key(2) would put the new, empty one into the old one's place.
    let mut held = keys_of(keyring)?.into_iter().filter_map(|key| describe(key).ok());
    if held.any(|held| held.kind == KeyType::Keyring.name() && held.description == name) {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    add(KeyType::Keyring, Some(name), &[], keyring)
}

/// Searches the calling thread's keyrings, as the kernel does for a master key, for `evm-key` or for `_ima`. Nobody is
/// asked to make one.
///
/// # Errors
/// ENOKEY where there is none, EKEYREVOKED, EKEYEXPIRED, EACCES.
pub fn request(kind: KeyType, description: &[u8]) -> io::Result<KeySerial> {
    sys::request_key(kind.c_name(), &c_string(description)?).map(KeySerial)
}

/// Searches a keyring, and those that it links. For an asymmetric key, `description` may be `id:` or `ex:` with the end or
/// the whole of its id in hexadecimal.
///
/// # Errors
/// ENOKEY where there is none, and what keyctl_search(3) says.
pub fn search(keyring: KeySerial, kind: KeyType, description: &[u8]) -> io::Result<KeySerial> {
    sys::search(keyring.0, kind.c_name(), &c_string(description)?).map(KeySerial)
}

/// Gives a key another payload, or hands its type a command: a page at most. [`add`] updates with more.
///
/// # Errors
/// What keyctl_update(3) and the type say; EINVAL, too, for more than a page.
pub fn update(key: KeySerial, payload: &[u8]) -> io::Result<()> {
    sys::update(key.0, payload)
}

/// What the kernel tells of a key.
///
/// # Errors
/// What keyctl_describe(3) says; `InvalidData` for text that cannot be read.
pub fn describe(key: KeySerial) -> io::Result<KeyDescription> {
    let mut text = vec![0; 256];
    loop {
        let length = sys::describe(key.0, &mut text)?;
        if length <= text.len() {
            text.truncate(length);
            return KeyDescription::parse(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        }
        text.resize(length, 0);
    }
}

/// A key's payload: its secret for a `user` key, the sealed blob for others.
///
/// # Errors
/// What keyctl_read(3) and the type say: ENOKEY, too, where the master key of an encrypted key is not there.
pub fn read(key: KeySerial) -> io::Result<KeyMaterial> {
    let mut length = sys::read(key.0, &mut [])?;
    loop {
        let mut payload = vec![0; length];
        let whole = sys::read(key.0, &mut payload);
        payload.truncate(*whole.as_ref().unwrap_or(&0));
        // Whatever became of it, what was written there is wiped.
        let payload = KeyMaterial::new(payload);
        match whole? {
            whole if whole <= length => return Ok(payload),
            whole => length = whole,
        }
    }
}

/// The keys that a keyring links.
///
/// # Errors
/// What keyctl_read(3) says; ENOTDIR where it is no keyring.
pub fn keys_of(keyring: KeySerial) -> io::Result<Vec<KeySerial>> {
    if describe(keyring)?.kind != KeyType::Keyring.name() {
        return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
    }
    let serials = read(keyring)?;
    let serials = serials.as_bytes().chunks_exact(4).filter_map(|serial| serial.try_into().ok());
    Ok(serials.map(i32::from_ne_bytes).map(KeySerial).collect())
}

/// Links a key into a keyring; one of the same type and description is replaced there.
///
/// # Errors
/// What keyctl_link(3) says.
pub fn link(key: KeySerial, keyring: KeySerial) -> io::Result<()> {
    sys::link(key.0, keyring.0)
}

/// Takes a key's link out of a keyring. A key that nothing links any more is gone.
///
/// # Errors
/// What keyctl_unlink(3) says.
pub fn unlink(key: KeySerial, keyring: KeySerial) -> io::Result<()> {
    sys::unlink(key.0, keyring.0)
}

/// Takes every link out of a keyring.
///
/// # Errors
/// What keyctl_clear(3) says.
pub fn clear(keyring: KeySerial) -> io::Result<()> {
    sys::clear(keyring.0)
}

/// Makes a key useless to everybody; it stays where it is linked.
///
/// # Errors
/// What keyctl_revoke(3) says.
pub fn revoke(key: KeySerial) -> io::Result<()> {
    sys::revoke(key.0)
}

/// Makes a key useless and takes it out of every keyring.
///
/// # Errors
/// What keyctl_invalidate(3) says.
pub fn invalidate(key: KeySerial) -> io::Result<()> {
    sys::invalidate(key.0)
}

/// Sets who may do what with a key.
///
/// # Errors
/// What keyctl_setperm(3) says.
pub fn set_permissions(key: KeySerial, permissions: KeyPermissions) -> io::Result<()> {
    sys::set_permissions(key.0, permissions.0)
}

/// Restricts for good what may be linked into a keyring: asymmetric keys that `rule` allows
/// (`builtin_trusted`, `builtin_and_secondary_trusted`, `key_or_keyring:SERIAL`, with `:chain`), or, without a rule, nothing.
///
/// # Errors
/// What keyctl_restrict_keyring(3) says: EEXIST where it is restricted already.
pub fn restrict(keyring: KeySerial, rule: Option<&[u8]>) -> io::Result<()> {
    let rule = rule.map(c_string).transpose()?;
    sys::restrict_keyring(keyring.0, rule.as_deref().map(|rule| (KeyType::Asymmetric.c_name(), rule)))
}

/// The keyring behind a special number, such as [`USER_KEYRING`].
///
/// # Errors
/// ENOKEY where it is not there and `create` does not ask for it.
pub fn special_keyring(special: KeySerial, create: bool) -> io::Result<KeySerial> {
    sys::keyring_id(special.0, create).map(KeySerial)
}

/// Gives the calling thread, and those it starts later, a new session keyring of its own.
///
/// # Errors
/// What keyctl_join_session_keyring(3) says.
pub fn join_new_session() -> io::Result<KeySerial> {
    sys::join_session_keyring(None).map(KeySerial)
}

/// Lets searches of this process find what is in the user's keyring, also where its session does not lead there. Nothing
/// outside the process changes.
///
/// # Errors
/// What keyctl_link(3) says.
pub fn reach_user_keyring() -> io::Result<()> {
    link(USER_KEYRING, PROCESS_KEYRING)
}

/// The error's number, if it is one that the key service gives a meaning of its own.
pub fn errno_of(error: &io::Error) -> Option<Errno> {
    Some(match error.raw_os_error()? {
        libc::E2BIG => Errno::E2big,
        libc::EPERM => Errno::Eperm,
        libc::ENOENT => Errno::Enoent,
        libc::EACCES => Errno::Eacces,
        libc::EEXIST => Errno::Eexist,
        libc::ENODEV => Errno::Enodev,
        libc::ENOTDIR => Errno::Enotdir,
        libc::EINVAL => Errno::Einval,
        libc::ENFILE => Errno::Enfile,
        libc::EDEADLK => Errno::Edeadlk,
        libc::ENOSYS => Errno::Enosys,
        libc::ENOPKG => Errno::Enopkg,
        libc::EBADMSG => Errno::Ebadmsg,
        libc::EOPNOTSUPP => Errno::Eopnotsupp,
        libc::EDQUOT => Errno::Edquot,
        libc::ENOKEY => Errno::Enokey,
        libc::EKEYEXPIRED => Errno::Ekeyexpired,
        libc::EKEYREVOKED => Errno::Ekeyrevoked,
        libc::EKEYREJECTED => Errno::Ekeyrejected,
        _ => return None,
    })
}

/// What an asymmetric key can do, for signatures in an encoding (`pkcs1`, `x962`, `raw`) over a hash.
///
/// # Errors
/// What keyctl_pkey_query(3) says.
pub fn public_key_query(key: KeySerial, encoding: &str, hash: &str) -> io::Result<PublicKeyQuery> {
    sys::public_key_query(key.0, &how(encoding, hash)?)
}

/// Verifies a signature over a digest with an asymmetric key.
///
/// # Errors
/// What keyctl_pkey_verify(3) says.
pub fn public_key_verify(
    key: KeySerial,
    encoding: &str,
    hash: &str,
    digest: &[u8],
    signature: &[u8],
) -> io::Result<()> {
    sys::public_key_verify(key.0, &how(encoding, hash)?, digest, signature)
}

fn how(encoding: &str, hash: &str) -> io::Result<CString> {
    c_string(format!("enc={encoding} hash={hash}").as_bytes())
}

/// Every key that this process may see. Lines may be forged by other users' descriptions: see [`imara_format::key`].
///
/// # Errors
/// What reading `/proc/keys` says; `NotFound` where the kernel has no key service.
pub fn visible_keys() -> io::Result<Vec<KeyLine>> {
    let text = std::fs::read(PROC_KEYS)?;
    // A description with a newline leaves a piece that is no line.
    Ok(text.split(|byte| *byte == b'\n').filter_map(|line| KeyLine::parse(line).ok()).collect())
}

/// The keyring of this name: one that this thread's keyrings lead to, else one that it may see and that is the kernel's or its user's.
///
/// # Errors
/// ENOKEY where there is none, and what the search says.
pub fn keyring_named(name: &[u8]) -> io::Result<KeySerial> {
    match request(KeyType::Keyring, name) {
        Ok(keyring) => return Ok(keyring),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Err(error),
        Err(_) => {}
    }
    let us = rustix::process::geteuid().as_raw();
    let is_it = |key: &KeySerial| {
        describe(*key).is_ok_and(|key| {
            key.kind == KeyType::Keyring.name() && key.description == name && may_be_meant(name, key.uid, us)
        })
    };
    let mut usable = visible_keys()?.into_iter().filter(KeyLine::is_usable).map(|line| line.serial);
    usable.find(is_it).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOKEY))
}

/// Whether a keyring that is only seen may be taken by its name: any user can make an `_ima` that others see, and it must not become
/// what they trust. The kernel alone makes keyrings whose names begin with a dot.
fn may_be_meant(name: &[u8], owner: u32, us: u32) -> bool {
    name.starts_with(b".") || owner == us
}

/// Master keys of type `user`, found as the kernel finds them. Those of type `trusted` never leave the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelMasterKeys;

impl MasterKeys for KernelMasterKeys {
    fn master_key(&self, name: &MasterName) -> Result<KeyMaterial, MasterKeyError> {
        let error = |errno, what: String| MasterKeyError { master: name.clone(), errno, what };
        match name.kind() {
            MasterType::User => request(KeyType::User, name.description()).and_then(read).map_err(|cause| {
                let errno = match errno_of(&cause) {
                    Some(Errno::Enosys) => Errno::Eopnotsupp,
                    Some(number @ (Errno::Ekeyexpired | Errno::Ekeyrevoked | Errno::Eacces)) => number,
                    Some(_) | None => Errno::Enokey,
                };
                let what = match errno {
                    Errno::Enokey => "it is not in any keyring that this session leads to".into(),
                    _ => cause.to_string(),
                };
                error(errno, what)
            }),
            MasterType::Trusted => Err(error(
                Errno::Eopnotsupp,
                "a trusted key is unsealed by the kernel, which keeps it to itself".into(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::may_be_meant;

    #[test]
    fn another_users_keyring_is_not_taken_for_the_one_that_is_meant() {
        assert!(may_be_meant(b"_ima", 1000, 1000) && may_be_meant(b".ima", 0, 1000));
        assert!(!may_be_meant(b"_ima", 1001, 1000) && !may_be_meant(b"_ima", 1001, 0) && !may_be_meant(b"", 1001, 0));
    }
}
