//! What EVM asks of an inode: its generation, and its owner and group as the file system has them.
//!
//! | | how it is found |
//! |---|---|
//! | generation | `FS_IOC_GETVERSION`; of tmpfs, which does not answer that, and of a file that is only named (`O_PATH`), from the file handle |
//! | owner, group | fstat(2), unless the file was opened through a mount that maps ids, or one that this mount namespace does not show: then through another mount of the same file system, by file handle |

use crate::mounts;
use crate::sys::{identity, inode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, StatxFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// The generation of the inode behind a descriptor.
///
/// # Errors
/// `Unsupported` where the file system does not tell.
pub fn generation(file: BorrowedFd<'_>) -> io::Result<u32> {
    match inode::generation(file) {
        Ok(generation) => Ok(generation),
        Err(error) => {
            let unsupported =
                || io::Error::new(io::ErrorKind::Unsupported, format!("the filesystem does not tell it ({error})"));
            let stat = rustix::fs::fstat(file)?;
            let handle = identity::handle(file).map_err(|_| unsupported())?;
            let from_handle = tmpfs_generation(&handle, stat.st_ino).or_else(|| inode_generation(&handle, stat.st_ino));
            from_handle.ok_or_else(unsupported)
        }
    }
}

/// A handle of tmpfs: generation, then the inode number's low and high halves, 4 bytes each in host order.
///
/// Source: `shmem_encode_fh`, mm/shmem.c.
fn tmpfs_generation(handle: &identity::Handle, inode: u64) -> Option<u32> {
    let words: Vec<u32> =
        handle.bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes).collect();
    match words[..] {
        [generation, low, high] if handle.kind == 1 && u64::from(high) << 32 | u64::from(low) == inode => {
            Some(generation)
        }
        _ => None,
    }
}

/// A handle of ext4, f2fs or XFS: the inode's number, 4 or, on a large XFS, 8 bytes, then the generation.
///
/// Source: `generic_encode_ino32_fh`, fs/libfs.c; `xfs_fs_encode_fh`, fs/xfs/xfs_export.c.
fn inode_generation(handle: &identity::Handle, inode: u64) -> Option<u32> {
    let (number, generation) = match (handle.kind, handle.bytes.len()) {
        (1, 8) => (u64::from(u32::from_ne_bytes(handle.bytes.get(..4)?.try_into().ok()?)), handle.bytes.get(4..8)?),
        (0x81, 12) => (u64::from_ne_bytes(handle.bytes.get(..8)?.try_into().ok()?), handle.bytes.get(8..12)?),
        _ => return None,
    };
    (number == inode).then_some(u32::from_ne_bytes(generation.try_into().ok()?))
}

/// What stat(2) says of an inode, with owner and group as the file system has them.
///
/// # Errors
/// What the kernel says; `Unsupported` where the file is reached through mapped ids, and in no other way.
pub fn raw_stat(file: BorrowedFd<'_>, stat: Stat) -> io::Result<Stat> {
    let mount = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let number = if mount.stx_mask & StatxFlags::MNT_ID.bits() == 0 { None } else { Some(mount.stx_mnt_id) };
    if number.is_some_and(|number| MOUNTS.is_plain(number)) {
        return Ok(stat);
    }
    let mapped = || {
        let what =
            "it is reached through a mount that may map user ids, and its filesystem is not mounted without that";
        io::Error::new(io::ErrorKind::Unsupported, what)
    };
    let handle = identity::handle(file).map_err(|_| mapped())?;
    let plain = mounts::mounts()?.into_iter().filter(|mount| mount.device == stat.st_dev && !mount.maps_ids);
    for mount in plain {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(directory) = rustix::fs::open(&mount.mount_point, flags, Mode::empty()) else { continue };
        // Another file system may be mounted over it.
        if rustix::fs::fstat(&directory).is_ok_and(|found| found.st_dev == stat.st_dev)
            && let Ok(same) = identity::open_path(directory.as_fd(), handle.kind, &handle.bytes)
        {
            return Ok(rustix::fs::fstat(&same)?);
        }
    }
    Err(mapped())
}

/// Which mounts of this namespace map no ids; read again when the kernel says that mounts have changed.
struct Mounts(Mutex<Option<Known>>);

struct Known {
    list: File,
    plain: HashMap<u64, bool>,
}

static MOUNTS: Mounts = Mounts(Mutex::new(None));

impl Mounts {
    fn is_plain(&self, mount: u64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = known.take().filter(|known| !changed(&known.list.as_fd())).or_else(|| Known::read().ok());
        let plain = current.as_ref().is_some_and(|known| known.plain.get(&mount) == Some(&true));
        *known = current;
        plain
    }
}

fn changed(list: &BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(list, PollFlags::PRI | PollFlags::ERR)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // The kernel tells a change once for each time that it is asked.
    poll(&mut polled, Some(&at_once)) != Ok(0)
}

impl Known {
    fn read() -> io::Result<Self> {
        let mut list = File::open("/proc/self/mountinfo")?;
        // Whatever changes from here on is told by the next poll.
        changed(&list.as_fd());
        let mut text = Vec::new();
        list.read_to_end(&mut text)?;
        let plain = mounts::parse_mounts(&text).into_iter().map(|mount| (mount.number, !mount.maps_ids)).collect();
        Ok(Self { list, plain })
    }
}

/// Opens what a descriptor names, for reading: what was opened to name it alone has no content and no attributes.
///
/// # Errors
/// What open(2) says.
pub fn reopen(named: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&named));
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_has_a_generation_where_its_file_system_tells() {
        for folder in [env!("CARGO_MANIFEST_DIR"), "/dev/shm"] {
            let Ok(directory) = tempfile::tempdir_in(folder) else { continue };
            let (one, other) = (directory.path().join("one"), directory.path().join("other"));
            std::fs::write(&one, b"").unwrap();
            let file = File::open(&one).unwrap();
            let Ok(first) = generation(file.as_fd()) else {
                println!("skipped: an_inode_has_a_generation_where_its_file_system_tells: not on {folder}");
                continue;
            };
            assert_eq!(generation(file.as_fd()).unwrap(), first, "{folder}");
            // Also of a file that is only named, as one that may not be opened, with its attributes.
            let named = mounts::name(&one).unwrap();
            match generation(named.as_fd()) {
                Ok(found) => assert_eq!(found, first, "{folder}"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{folder}: {error}"),
            }
            if crate::files::set_xattr(&file, "user.some", b"value").is_ok() {
                assert_eq!(crate::files::xattr(&named, "user.some").unwrap().as_deref(), Some(&b"value"[..]));
            }
            std::fs::write(&other, b"").unwrap();
            assert_ne!(generation(File::open(&other).unwrap().as_fd()).unwrap(), first, "{folder}");
        }
    }

    #[test]
    fn a_handle_of_tmpfs_is_believed_only_where_it_names_the_inode() {
        let handle = |kind, words: &[u32]| identity::Handle {
            kind,
            bytes: words.iter().flat_map(|word| word.to_ne_bytes()).collect(),
        };
        assert_eq!(tmpfs_generation(&handle(1, &[7, 5, 0]), 5), Some(7));
        assert_eq!(tmpfs_generation(&handle(1, &[7, 5, 1]), 0x1_0000_0005), Some(7));
        assert_eq!(tmpfs_generation(&handle(1, &[7, 6, 0]), 5), None);
        assert_eq!(tmpfs_generation(&handle(2, &[7, 5, 0]), 5), None);
        assert_eq!(tmpfs_generation(&handle(1, &[5, 7]), 5), None);
    }

    #[test]
    fn an_ordinary_mount_leaves_owner_and_group_as_they_are() {
        let file = File::open("/proc/self/exe").unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let raw = raw_stat(file.as_fd(), stat).unwrap();
        assert_eq!((raw.st_uid, raw.st_gid, raw.st_ino), (stat.st_uid, stat.st_gid, stat.st_ino));
    }
}
