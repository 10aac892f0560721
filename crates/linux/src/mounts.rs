//! Mounted file systems: what a policy asks about them (magic, name, UUID), and which can be guarded.
//!
//! Source: proc_pid_mountinfo(5); superblock layouts: ext4 (Documentation/filesystems/ext4), XFS and btrfs on-disk
//! format descriptions.

use crate::sys;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What a policy can ask about a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// The superblock's magic number (`fsmagic=`).
    pub magic: u64,
    /// The type's name (`fsname=`), such as `ext4`.
    pub name: String,
    /// The subtype (`fs_subtype=`), what follows the dot of a FUSE type; often empty.
    pub subtype: String,
    /// The UUID (`fsuuid=`), where it has one.
    pub uuid: Option<[u8; 16]>,
    /// How the UUID was found.
    pub uuid_source: UuidSource,
    /// Where it is mounted, for people.
    pub mount_point: PathBuf,
}

/// How a file system's UUID was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UuidSource {
    /// The kernel told (`FS_IOC_GETFSUUID`, 6.9 on).
    Kernel,
    /// The file system told, by an ioctl of its own.
    FileSystem,
    /// It stands in the superblock on the device.
    Superblock,
    /// The kernel keeps none for it.
    None,
    /// It could not be found out.
    Unknown,
}

impl UuidSource {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Kernel => "from the kernel (FS_IOC_GETFSUUID)",
            Self::FileSystem => "from the filesystem's own ioctl",
            Self::Superblock => "from the superblock on the device",
            Self::None => "the filesystem has none, so zeros",
            Self::Unknown => "not to be found out",
        }
    }
}

impl Filesystem {
    /// The UUID that EVM binds labels to: zeros where the file system has none.
    ///
    /// # Errors
    /// `Unsupported` where it cannot be found out.
    pub fn evm_uuid(&self) -> io::Result<[u8; 16]> {
        match (self.uuid, self.uuid_source) {
            (Some(uuid), _) => Ok(uuid),
            (None, UuidSource::None) => Ok([0; 16]),
            (None, _) => {
                let what = format!("Linux before 6.9 does not tell that of {}", self.name);
                Err(io::Error::new(io::ErrorKind::Unsupported, what))
            }
        }
    }
}

/// A line of `/proc/self/mountinfo`, as far as it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number.
    pub number: u64,
    /// Whether it maps user and group ids, so that a file's owner is not what stat(2) says.
    pub maps_ids: bool,
    /// The device number, `major:minor`.
    pub device: u64,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The file system's type, with the subtype behind a dot.
    pub kind: String,
    /// What is mounted: a block device's path, or any word.
    pub source: PathBuf,
}

/// File systems that hold no programs of their own, or that the kernel makes up: guarding them protects nothing and can
/// stop the machine.
const PSEUDO: [&str; 22] = [
    "proc",
    "sysfs",
    "devpts",
    "devtmpfs",
    "cgroup",
    "cgroup2",
    "securityfs",
    "debugfs",
    "tracefs",
    "configfs",
    "fusectl",
    "mqueue",
    "pstore",
    "efivarfs",
    "bpf",
    "binfmt_misc",
    "selinuxfs",
    "smackfs",
    "nsfs",
    "rpc_pipefs",
    "autofs",
    "hugetlbfs",
];

/// Whether a file system of this type is one of the kernel's own views and not a place for files.
pub fn is_pseudo(kind: &str) -> bool {
    PSEUDO.contains(&kind)
}

/// All mounts of this mount namespace.
///
/// # Errors
/// What reading `/proc/self/mountinfo` says.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse_mounts(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mounts that a mountinfo lists.
pub(crate) fn parse_mounts(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse_mount).collect()
}

fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let number = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(words.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mount_point = words.nth(1)?;
    let maps_ids = words.next()?.split(|byte| *byte == b',').any(|option| option == b"idmapped");
    let mut rest = words.skip_while(|word| *word != b"-").skip(1);
    Some(Mount {
        number,
        maps_ids,
        device: rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?),
        mount_point: unescape(mount_point),
        kind: String::from_utf8_lossy(rest.next()?).into_owned(),
        source: unescape(rest.next()?),
    })
}

/// Blanks, tabs, newlines and backslashes stand as three octal digits in mountinfo.
fn unescape(word: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut path = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                path.push(byte);
                rest = &tail[3..];
            }
            None => {
                path.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// The mount that holds the directory or file behind `file`: the last one mounted with its device.
fn mount_of(file: BorrowedFd<'_>) -> io::Result<Option<Mount>> {
    let device = rustix::fs::fstat(file)?.st_dev;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))?;
    let all = mounts()?;
    // A btrfs subvolume has a device number of its own that mountinfo does not show: the longest mount point above it.
    Ok(all.iter().rev().find(|mount| mount.device == device).cloned().or_else(|| {
        all.into_iter()
            .filter(|mount| link.starts_with(&mount.mount_point))
            .max_by_key(|mount| mount.mount_point.as_os_str().len())
    }))
}

/// The file system that holds the file behind a descriptor.
///
/// # Errors
/// What fstat(2), fstatfs(2) or mountinfo say.
pub fn filesystem_of(file: BorrowedFd<'_>) -> io::Result<Filesystem> {
    let statfs = rustix::fs::fstatfs(file)?;
    let mount = mount_of(file)?;
    let kind = mount.as_ref().map(|mount| mount.kind.clone()).unwrap_or_default();
    let (name, subtype) = kind.split_once('.').unwrap_or((&kind, ""));
    let (uuid, uuid_source) = uuid_of(file, mount.as_ref());
    Ok(Filesystem {
        magic: statfs.f_type.cast_unsigned(),
        name: name.to_owned(),
        subtype: subtype.to_owned(),
        uuid,
        uuid_source,
        mount_point: mount.map(|mount| mount.mount_point).unwrap_or_default(),
    })
}

/// Opens a directory only to name it.
///
/// # Errors
/// What open(2) says.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// From the kernel where it tells (6.9 on), else from the file system, else from the superblock on the device.
fn uuid_of(file: BorrowedFd<'_>, mount: Option<&Mount>) -> (Option<[u8; 16]>, UuidSource) {
    use sys::filesystem as ask;
    match ask::uuid(file) {
        Ok(uuid) => return (Some(uuid), UuidSource::Kernel),
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) && linux_tells_uuids() => {
            return (None, UuidSource::None);
        }
        Err(_) => {}
    }
    let kind = mount.map_or("", |mount| mount.kind.as_str());
    let told = match kind {
        "ext2" | "ext3" | "ext4" => ask::ext4_uuid(file).ok(),
        "xfs" => ask::xfs_uuid(file).ok(),
        "btrfs" => ask::btrfs_uuid(file).ok(),
        _ => None,
    };
    if told.is_some() {
        return (told, UuidSource::FileSystem);
    }
    match mount.and_then(superblock_uuid) {
        Some(uuid) => (Some(uuid), UuidSource::Superblock),
        None => (None, UuidSource::Unknown),
    }
}

fn superblock_uuid(mount: &Mount) -> Option<[u8; 16]> {
    let (offset, magic_offset, magic): (u64, u64, &[u8]) = match mount.kind.as_str() {
        "ext2" | "ext3" | "ext4" => (1024 + 0x68, 1024 + 0x38, &[0x53, 0xef]),
        "xfs" => (32, 0, b"XFSB"),
        "btrfs" => (0x1_0000 + 0x20, 0x1_0000 + 0x40, b"_BHRfS_M"),
        _ => return None,
    };
    let device = File::open(&mount.source).ok()?;
    let mut found = vec![0; magic.len()];
    device.read_exact_at(&mut found, magic_offset).ok()?;
    let mut uuid = [0; 16];
    device.read_exact_at(&mut uuid, offset).ok()?;
    (found == magic).then_some(uuid)
}

/// Whether this kernel answers FS_IOC_GETFSUUID (6.9 on), so that no answer means no UUID.
fn linux_tells_uuids() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse::<u32>());
        matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 9))
    })
}

/// The same for a path.
///
/// # Errors
/// What open(2) and the above say.
pub fn filesystem_at(path: &Path) -> io::Result<Filesystem> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    filesystem_of(file.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountinfo_line_is_read_with_its_escapes() {
        let line = b"36 35 98:0 /root /mnt\\040two rw,noatime master:1 - fuse.sshfs /dev/ro\\134ot rw";
        assert_eq!(
            parse_mount(line),
            Some(Mount {
                number: 36,
                maps_ids: false,
                device: rustix::fs::makedev(98, 0),
                mount_point: PathBuf::from("/mnt two"),
                kind: "fuse.sshfs".into(),
                source: PathBuf::from("/dev/ro\\ot"),
            })
        );
        let mapped = b"37 36 0:5 / /m rw,relatime,idmapped shared:1 - tmpfs tmpfs rw";
        assert!(parse_mount(mapped).unwrap().maps_ids);
        for length in 0..line.len() {
            // Cut anywhere: no panic, and nothing made up beyond the words that are there.
            let _ = parse_mount(&line[..length]);
        }
        assert_eq!(parse_mount(b""), None);
    }

    #[test]
    fn the_root_file_system_has_a_magic_number_and_a_type() {
        let root = filesystem_at(Path::new("/")).unwrap();
        assert_ne!(root.magic, 0);
        assert!(!root.name.is_empty());
    }
}
