//! File handles: a name for an inode that needs no path.
//!
//! Source: name_to_handle_at(2), open_by_handle_at(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The largest handle (`MAX_HANDLE_SZ`), in bytes.
const MAX_HANDLE: usize = 128;

#[repr(C)]
struct RawHandle {
    length: u32,
    kind: i32,
    bytes: [u8; MAX_HANDLE],
}

/// An inode's handle: its kind and the file system's bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Handle {
    /// The kind of handle; the file system's own affair.
    pub kind: i32,
    /// The file system's bytes.
    pub bytes: Vec<u8>,
}

/// The handle of the inode behind a descriptor.
///
/// # Errors
/// EOPNOTSUPP where the file system has none.
pub fn handle(file: BorrowedFd<'_>) -> io::Result<Handle> {
    let mut raw = RawHandle { length: MAX_HANDLE as u32, kind: 0, bytes: [0; MAX_HANDLE] };
    let mut mount = 0i32;
    // SAFETY: the handle has room for as many bytes as its length says; the empty path is a C string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_raw_fd(),
            c"".as_ptr(),
            &raw mut raw,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = raw.bytes.get(..raw.length as usize).unwrap_or(&[]).to_vec();
    Ok(Handle { kind: raw.kind, bytes })
}

/// The inode number in a handle of a file system of this type; `None` where the type keeps it in a way that is not known
/// here.
///
/// | type | kind | bytes |
/// |---|---|---|
/// | ext2, ext3, ext4, f2fs, XFS below 2^32 | 1 | inode number (4), generation (4) |
/// | XFS | 0x81 | inode number (8), generation (4) |
/// | tmpfs | 1 | generation (4), inode number (8) |
///
/// Source: `generic_encode_ino32_fh`, fs/libfs.c; `xfs_fs_encode_fh`, fs/xfs/xfs_export.c; `shmem_encode_fh`, mm/shmem.c.
pub fn inode_in(filesystem: &str, kind: i32, bytes: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    match (filesystem, kind, bytes.len()) {
        ("ext2" | "ext3" | "ext4" | "f2fs" | "xfs", 1, 8) => word(0).map(u64::from),
        ("xfs", 0x81, 12) => Some(u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?)),
        ("tmpfs", 1, 12) => Some(u64::from(word(4)?) | u64::from(word(8)?) << 32),
        _ => None,
    }
}

/// The handle of an inode of a file system of this type whatever its generation, where the type takes such handles.
///
/// Source: `ext4_nfs_get_inode`, fs/ext4/super.c; `f2fs_nfs_get_inode`, fs/f2fs/super.c.
pub fn of_any_generation(filesystem: &str, inode: u64) -> Option<Handle> {
    let known = ["ext2", "ext3", "ext4", "f2fs"].contains(&filesystem);
    let inode = u32::try_from(inode).ok().filter(|_| known)?;
    Some(Handle { kind: 1, bytes: [inode.to_ne_bytes(), [0; 4]].concat() })
}

/// A descriptor that only names the inode (`O_PATH`): opening it asks nobody.
///
/// # Errors
/// ESTALE when the inode is gone.
pub fn open_path(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8]) -> io::Result<OwnedFd> {
    open(mount, kind, bytes, libc::O_PATH | libc::O_CLOEXEC)
}

/// Opens the inode for reading, which waits for nobody but those who are asked about it.
///
/// # Errors
/// ESTALE when the inode is gone; what open(2) says.
pub fn open_reading(mount: BorrowedFd<'_>, handle: &Handle) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    open(mount, handle.kind, &handle.bytes, flags)
}

fn open(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8], flags: libc::c_int) -> io::Result<OwnedFd> {
    let mut raw = RawHandle { length: 0, kind, bytes: [0; MAX_HANDLE] };
    let room = raw.bytes.get_mut(..bytes.len()).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    room.copy_from_slice(bytes);
    raw.length = bytes.len() as u32;
    // SAFETY: the handle is initialised and as long as its length says.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened `fd` for us, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
