//! The kernel's own EVM, as securityfs shows and takes it.
//!
//! Source: security/integrity/evm/evm_secfs.c.

use imara_format::evm::{EvmMode, MODE_FILE, XATTRS_FILE, XattrList};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;

/// The mode; `None` on a kernel without EVM, or where securityfs is not mounted. Whether it is locked the kernel does not show.
///
/// # Errors
/// EACCES, as for everybody but root.
pub fn mode() -> io::Result<Option<EvmMode>> {
    match read(MODE_FILE) {
        Ok(text) => EvmMode::parse(text.trim_end().as_bytes()).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes to the mode.
///
/// # Errors
/// EPERM where it is locked, ENOENT where the HMAC key cannot be had, EINVAL for bits that the kernel does not know.
pub fn write_mode(mode: EvmMode) -> io::Result<()> {
    write(MODE_FILE, mode.0.to_string().as_bytes())
}

/// The protected attributes, and whether the list is locked; `None` on a kernel without EVM_ADD_XATTRS.
///
/// # Errors
/// What reading says.
pub fn xattrs() -> io::Result<Option<(XattrList, bool)>> {
    match read(XATTRS_FILE) {
        Ok(text) => {
            // Locking takes the permission to write away.
            let locked = std::fs::metadata(XATTRS_FILE)?.permissions().mode() & 0o222 == 0;
            Ok(Some((XattrList::from_text(&text), locked)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes to the list of protected attributes: a name, or `.` to lock it.
///
/// # Errors
/// EEXIST, EPERM where it is locked, EINVAL, E2BIG.
pub fn write_xattrs(text: &str) -> io::Result<()> {
    write(XATTRS_FILE, text.as_bytes())
}

/// In one read: a second one finds the end, however little the first one took.
fn read(path: &str) -> io::Result<String> {
    let mut bytes = vec![0; 1 << 16];
    let length = File::open(path)?.read(&mut bytes)?;
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// In one write: each is a request.
fn write(path: &str, bytes: &[u8]) -> io::Result<()> {
    let written = OpenOptions::new().write(true).open(path)?.write(bytes)?;
    if written == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}
