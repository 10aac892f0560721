//! The UUID of a mounted file system, from the file system itself: no device is opened, no privilege needed.
//!
//! Source: `FS_IOC_GETFSUUID`, include/uapi/linux/fs.h (Linux 6.9); `EXT4_IOC_GETFSUUID`, fs/ext4/ext4.h (6.0);
//! `BTRFS_IOC_FS_INFO`, include/uapi/linux/btrfs.h; `XFS_IOC_FSGEOMETRY_V1`, fs/xfs/libxfs/xfs_fs.h.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct fsuuid2`: the length, then up to 16 bytes.
#[repr(C)]
struct FsUuid {
    length: u8,
    uuid: [u8; 16],
}

/// `struct fsuuid` of ext4: length, flags, then as many bytes.
#[repr(C)]
struct Ext4Uuid {
    length: u32,
    flags: u32,
    uuid: [u8; 16],
}

/// `struct btrfs_ioctl_fs_info_args`, 1024 bytes.
#[repr(C)]
struct BtrfsInfo {
    most_id: u64,
    devices: u64,
    fsid: [u8; 16],
    rest: [u64; 124],
}

/// `struct xfs_fsop_geom_v1`, 112 bytes.
#[repr(C)]
struct XfsGeometry {
    before: [u64; 8],
    uuid: [u8; 16],
    after: [u64; 4],
}

/// `_IOR(0x15, 0, struct fsuuid2)`.
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
/// `_IOR('f', 44, struct fsuuid)`, whose size leaves the UUID out.
const EXT4_IOC_GETFSUUID: libc::c_ulong = 0x8008_662c;
/// `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`.
const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941f;
/// `_IOR('X', 100, struct xfs_fsop_geom_v1)`.
const XFS_IOC_FSGEOMETRY_V1: libc::c_ulong = 0x8070_5864;

/// The UUID that the kernel keeps for the file system that holds `file`; `None` where it keeps none.
///
/// # Errors
/// ENOTTY on Linux before 6.9, and where the file system has none.
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

/// What ext4 says of its UUID.
///
/// # Errors
/// ENOTTY on Linux before 6.0, or on another file system.
pub fn ext4_uuid(file: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut answer = Ext4Uuid { length: 16, flags: 0, uuid: [0; 16] };
    // SAFETY: the kernel writes as many bytes of UUID as the length says, and there are so many.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_GETFSUUID, &raw mut answer) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(answer.uuid) }
}

/// What btrfs says of its UUID.
///
/// # Errors
/// ENOTTY on another file system.
pub fn btrfs_uuid(file: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut answer = BtrfsInfo { most_id: 0, devices: 0, fsid: [0; 16], rest: [0; 124] };
    // SAFETY: the kernel writes exactly one `struct btrfs_ioctl_fs_info_args`, which is as large.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BTRFS_IOC_FS_INFO, &raw mut answer) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(answer.fsid) }
}

/// What XFS says of its UUID.
///
/// # Errors
/// ENOTTY on another file system.
pub fn xfs_uuid(file: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut answer = XfsGeometry { before: [0; 8], uuid: [0; 16], after: [0; 4] };
    // SAFETY: the kernel writes exactly one `struct xfs_fsop_geom_v1`, which is as large.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), XFS_IOC_FSGEOMETRY_V1, &raw mut answer) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(answer.uuid) }
}

const _: () = assert!(size_of::<BtrfsInfo>() == 1024 && size_of::<XfsGeometry>() == 112);
