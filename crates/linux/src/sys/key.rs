//! The kernel's key service: add_key(2), request_key(2), keyctl(2).
//!
//! Serial numbers are plain integers here; a wrong one is an error of the kernel's and touches no memory.

use std::ffi::CStr;
use std::io;

// Linux's own numbers, which the libc crate does not all carry (include/uapi/linux/keyctl.h).
const GET_KEYRING_ID: libc::c_int = 0;
const JOIN_SESSION_KEYRING: libc::c_int = 1;
const UPDATE: libc::c_int = 2;
const REVOKE: libc::c_int = 3;
const SETPERM: libc::c_int = 5;
const DESCRIBE: libc::c_int = 6;
const CLEAR: libc::c_int = 7;
const LINK: libc::c_int = 8;
const UNLINK: libc::c_int = 9;
const SEARCH: libc::c_int = 10;
const READ: libc::c_int = 11;
const INVALIDATE: libc::c_int = 21;
const PKEY_QUERY: libc::c_int = 24;
const PKEY_VERIFY: libc::c_int = 28;
const RESTRICT_KEYRING: libc::c_int = 29;

/// An argument that the operation has no use for.
const NONE: usize = 0;

fn result(value: libc::c_long) -> io::Result<usize> {
    // Negative values alone are errors; libc has put their number into errno.
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}

fn serial(value: usize) -> io::Result<i32> {
    i32::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

/// A serial number as keyctl's argument: the kernel takes its low 32 bits.
fn argument(serial: i32) -> usize {
    serial.cast_unsigned() as usize
}

/// For the operations whose arguments are integers, or pointers that the caller keeps valid.
///
/// # Safety
/// Each argument that `operation` takes as a pointer points to memory that is valid for what it does with it.
unsafe fn keyctl(operation: libc::c_int, arguments: [usize; 4]) -> io::Result<usize> {
    let [a, b, c, d] = arguments;
    // SAFETY: the caller's duty.
    result(unsafe { libc::syscall(libc::SYS_keyctl, operation, a, b, c, d) })
}

/// Makes a key, or updates one of the same type and description in `keyring`.
///
/// # Errors
/// What add_key(2) and the key's type say.
pub fn add_key(kind: &CStr, description: Option<&CStr>, payload: &[u8], keyring: i32) -> io::Result<i32> {
    let description = description.map_or(std::ptr::null(), CStr::as_ptr);
    let data = if payload.is_empty() { std::ptr::null() } else { payload.as_ptr() };
    // SAFETY: two strings that end in a NUL, of which the second may be null, and `payload.len()` readable bytes.
    let key = unsafe { libc::syscall(libc::SYS_add_key, kind.as_ptr(), description, data, payload.len(), keyring) };
    serial(result(key)?)
}

/// Searches the calling thread's keyrings for a key, without asking user space to make one.
///
/// # Errors
/// What request_key(2) says: ENOKEY where there is none.
pub fn request_key(kind: &CStr, description: &CStr) -> io::Result<i32> {
    let callout = std::ptr::null::<libc::c_char>();
    // SAFETY: two strings that end in a NUL; no callout, no destination.
    let key = unsafe { libc::syscall(libc::SYS_request_key, kind.as_ptr(), description.as_ptr(), callout, 0) };
    serial(result(key)?)
}

/// The serial number behind a special keyring's.
///
/// # Errors
/// ENOKEY where it is not there and `create` does not ask for it.
pub fn keyring_id(special: i32, create: bool) -> io::Result<i32> {
    // SAFETY: integers only.
    serial(unsafe { keyctl(GET_KEYRING_ID, [argument(special), usize::from(create), NONE, NONE]) }?)
}

/// Gives the calling thread a session keyring: a new one without a name, else the one of that name.
///
/// # Errors
/// What keyctl_join_session_keyring(3) says.
pub fn join_session_keyring(name: Option<&CStr>) -> io::Result<i32> {
    let name = name.map_or(NONE, |name| name.as_ptr().addr());
    // SAFETY: a string that ends in a NUL, or null.
    serial(unsafe { keyctl(JOIN_SESSION_KEYRING, [name, NONE, NONE, NONE]) }?)
}

/// Gives a key another payload.
///
/// # Errors
/// What keyctl_update(3) and the key's type say.
pub fn update(key: i32, payload: &[u8]) -> io::Result<()> {
    // SAFETY: `payload.len()` readable bytes.
    unsafe { keyctl(UPDATE, [argument(key), payload.as_ptr().addr(), payload.len(), NONE]) }?;
    Ok(())
}

/// Makes a key useless to everybody.
///
/// # Errors
/// What keyctl_revoke(3) says.
pub fn revoke(key: i32) -> io::Result<()> {
    // SAFETY: integers only.
    unsafe { keyctl(REVOKE, [argument(key), NONE, NONE, NONE]) }?;
    Ok(())
}

/// Makes a key useless at once, and takes it out of every keyring.
///
/// # Errors
/// What keyctl_invalidate(3) says.
pub fn invalidate(key: i32) -> io::Result<()> {
    // SAFETY: integers only.
    unsafe { keyctl(INVALIDATE, [argument(key), NONE, NONE, NONE]) }?;
    Ok(())
}

/// Sets who may do what with a key.
///
/// # Errors
/// What keyctl_setperm(3) says.
pub fn set_permissions(key: i32, permissions: u32) -> io::Result<()> {
    // SAFETY: integers only.
    unsafe { keyctl(SETPERM, [argument(key), permissions as usize, NONE, NONE]) }?;
    Ok(())
}

/// Writes a key's description, as much of it as there is room for; the length that all of it has, with its NUL.
///
/// # Errors
/// What keyctl_describe(3) says.
pub fn describe(key: i32, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buffer.len()` writable bytes.
    unsafe { keyctl(DESCRIBE, [argument(key), buffer.as_mut_ptr().addr(), buffer.len(), NONE]) }
}

/// Takes every link out of a keyring.
///
/// # Errors
/// What keyctl_clear(3) says.
pub fn clear(keyring: i32) -> io::Result<()> {
    // SAFETY: integers only.
    unsafe { keyctl(CLEAR, [argument(keyring), NONE, NONE, NONE]) }?;
    Ok(())
}

/// Links a key into a keyring.
///
/// # Errors
/// What keyctl_link(3) says.
pub fn link(key: i32, keyring: i32) -> io::Result<()> {
    // SAFETY: integers only.
    unsafe { keyctl(LINK, [argument(key), argument(keyring), NONE, NONE]) }?;
    Ok(())
}

/// Takes a key's link out of a keyring.
///
/// # Errors
/// What keyctl_unlink(3) says.
pub fn unlink(key: i32, keyring: i32) -> io::Result<()> {
    // SAFETY: integers only.
    unsafe { keyctl(UNLINK, [argument(key), argument(keyring), NONE, NONE]) }?;
    Ok(())
}

/// Searches a keyring, and those that it links, for a key.
///
/// # Errors
/// What keyctl_search(3) says: ENOKEY where there is none.
pub fn search(keyring: i32, kind: &CStr, description: &CStr) -> io::Result<i32> {
    let strings = [kind.as_ptr().addr(), description.as_ptr().addr()];
    // SAFETY: two strings that end in a NUL; no destination.
    serial(unsafe { keyctl(SEARCH, [argument(keyring), strings[0], strings[1], NONE]) }?)
}

/// Reads a key's payload; the length that all of it has. With a buffer that is too short nothing can be relied on but that.
///
/// # Errors
/// What keyctl_read(3) and the key's type say.
pub fn read(key: i32, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buffer.len()` writable bytes.
    unsafe { keyctl(READ, [argument(key), buffer.as_mut_ptr().addr(), buffer.len(), NONE]) }
}

/// Restricts what may be linked into a keyring from now on: by a type's rule, or nothing at all.
///
/// # Errors
/// What keyctl_restrict_keyring(3) says.
pub fn restrict_keyring(keyring: i32, rule: Option<(&CStr, &CStr)>) -> io::Result<()> {
    let (kind, rule) = rule.map_or((NONE, NONE), |(kind, rule)| (kind.as_ptr().addr(), rule.as_ptr().addr()));
    // SAFETY: two strings that end in a NUL, or null.
    unsafe { keyctl(RESTRICT_KEYRING, [argument(keyring), kind, rule, NONE]) }?;
    Ok(())
}

/// What an asymmetric key can do (`struct keyctl_pkey_query`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PublicKeyQuery {
    /// Bits: 1 encrypt, 2 decrypt, 4 sign, 8 verify.
    pub supported: u32,
    /// The key's size in bits.
    pub key_bits: u32,
    /// The longest digest.
    pub longest_data: u16,
    /// The longest signature.
    pub longest_signature: u16,
    longest_encrypted: u16,
    longest_decrypted: u16,
    spare: [u32; 10],
}

/// Asks what an asymmetric key can do with an encoding and a hash: `enc=pkcs1 hash=sha256`.
///
/// # Errors
/// What keyctl_pkey_query(3) says; EOPNOTSUPP for keys of other types.
pub fn public_key_query(key: i32, how: &CStr) -> io::Result<PublicKeyQuery> {
    let mut query = PublicKeyQuery::default();
    let place = (&raw mut query).addr();
    // SAFETY: a string that ends in a NUL, and a struct of the layout that the kernel fills in.
    unsafe { keyctl(PKEY_QUERY, [argument(key), NONE, how.as_ptr().addr(), place]) }?;
    Ok(query)
}

/// `struct keyctl_pkey_params`, with the second input's length in place of an output's.
#[repr(C)]
struct PublicKeyParameters {
    key: i32,
    digest_length: u32,
    signature_length: u32,
    spare: [u32; 7],
}

/// Verifies a signature over a digest with an asymmetric key.
///
/// # Errors
/// What keyctl_pkey_verify(3) says: EKEYREJECTED or EBADMSG for a signature that does not verify.
pub fn public_key_verify(key: i32, how: &CStr, digest: &[u8], signature: &[u8]) -> io::Result<()> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE));
    let parameters = PublicKeyParameters {
        key,
        digest_length: length(digest)?,
        signature_length: length(signature)?,
        spare: [0; 7],
    };
    let parameters = (&raw const parameters).addr();
    let arguments = [parameters, how.as_ptr().addr(), digest.as_ptr().addr(), signature.as_ptr().addr()];
    // SAFETY: a struct of the layout that the kernel reads, a string that ends in a NUL, and as many readable bytes as it says.
    unsafe { keyctl(PKEY_VERIFY, arguments) }?;
    Ok(())
}
