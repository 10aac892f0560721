//! A mount namespace of a thread's own.
//!
//! Source: unshare(2), mount_namespaces(7).

use std::io;

/// Gives the calling thread a copy of its mount namespace, in which nothing that it does is seen by others. Only a thread that
/// is started for it and ends with it should: its working directory is its own from now on, too.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn leave_mounts() -> io::Result<()> {
    // SAFETY: an integer only; neither descriptors nor memory are touched.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
