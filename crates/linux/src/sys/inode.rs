//! An inode's generation, which tells it from earlier inodes of the same number.
//!
//! Source: `FS_IOC_GETVERSION`, ioctl_iflags(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOR('v', 1, long)`.
const FS_IOC_GETVERSION: libc::c_ulong = 0x8000_7601 | ((size_of::<libc::c_long>() as libc::c_ulong) << 16);

/// The generation of the inode behind a descriptor.
///
/// # Errors
/// ENOTTY where the file system does not tell (tmpfs, overlayfs).
pub fn generation(file: BorrowedFd<'_>) -> io::Result<u32> {
    // The request's size is that of a long; what is written is an int.
    let mut answer: [libc::c_int; 2] = [0; 2];
    // SAFETY: the kernel writes an int, and there is room for a long.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETVERSION, answer.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(answer[0].cast_unsigned()) }
}
