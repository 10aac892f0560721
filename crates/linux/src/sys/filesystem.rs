//! The UUID of a mounted file system.
//!
//! Source: `FS_IOC_GETFSUUID`, include/uapi/linux/fs.h (Linux 6.9).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct fsuuid2`: the length, then up to 16 bytes.
#[repr(C)]
struct FsUuid {
    length: u8,
    uuid: [u8; 16],
}

/// `_IOR(0x15, 0, struct fsuuid2)`.
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;

/// The UUID that the kernel keeps for the file system that holds `file`.
///
/// # Errors
/// ENOTTY on Linux before 6.9 or where the file system has none.
pub fn uuid(file: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut answer = FsUuid { length: 0, uuid: [0; 16] };
    // SAFETY: the kernel writes at most one `struct fsuuid2`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut answer) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if answer.length != 16 {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    Ok(answer.uuid)
}
