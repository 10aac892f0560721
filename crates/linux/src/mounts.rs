//! Mounted file systems: what a policy asks about them (magic, name, UUID), and which can be guarded.
//!
//! Source: proc_pid_mountinfo(5); superblock layouts: ext4 (Documentation/filesystems/ext4), XFS and btrfs on-disk
//! format descriptions.

use crate::sys;
use rustix::fs::{FileType, Mode, OFlags};
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
    /// Whether its answers come from a process or over a network.
    pub foreign: bool,
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

/// A line of mountinfo, as far as it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number, unique as long as it is mounted, over all namespaces.
    pub number: u64,
    /// Whether it maps user and group ids, so that a file's owner is not what stat(2) says.
    pub maps_ids: bool,
    /// The device number, `major:minor`: one for each superblock.
    pub device: u64,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The file system's type, with the subtype behind a dot.
    pub kind: String,
    /// What is mounted: a block device's path, or any word.
    pub source: PathBuf,
    /// Whether nobody may write to the file system.
    pub read_only: bool,
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

/// A file system's name as the kernel's records have it: its block device's, else its type; else, where it is not mounted in this
/// namespace, its number.
///
/// Source: `s_id` of `struct super_block`.
pub fn device_name(device: u64) -> String {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let block = std::fs::read_link(format!("/sys/dev/block/{number}")).ok();
    if let Some(name) = block.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()) {
        return name.to_owned();
    }
    let mounted = mounts().unwrap_or_default().into_iter().find(|mount| mount.device == device);
    mounted.map_or(number, |mount| mount.kind)
}

/// All mounts of this mount namespace.
///
/// # Errors
/// What reading `/proc/self/mountinfo` says.
pub fn mounts() -> io::Result<Vec<Mount>> {
    mounts_of("self")
}

/// All mounts that a process (its number, or `self`) sees, with the places where it sees them.
///
/// # Errors
/// What reading its mountinfo says.
pub fn mounts_of(process: &str) -> io::Result<Vec<Mount>> {
    Ok(parse_mounts(&std::fs::read(format!("/proc/{process}/mountinfo"))?))
}

/// The mounts that a mountinfo lists.
pub(crate) fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_mount).collect()
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
        read_only: rest.next().is_some_and(|options| options.split(|byte| *byte == b',').any(|word| word == b"ro")),
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

/// The mount through which the file or directory behind `file` was opened, in our mount namespace or else in that of
/// `thread`. Nothing is asked of the file system itself.
///
/// # Errors
/// What statx(2) or reading mountinfo say; ENOENT where no namespace has it any more.
pub fn mount_of(file: BorrowedFd<'_>, thread: Option<i32>) -> io::Result<Mount> {
    let id = mount_id(file)?;
    let own = mounts()?;
    let found = own.into_iter().find(|mount| mount.number == id).or_else(|| {
        let theirs = mounts_of(&thread?.to_string()).ok()?;
        theirs.into_iter().find(|mount| mount.number == id)
    });
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// The number of the mount through which a file was opened.
///
/// # Errors
/// What statx(2) says.
pub fn mount_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(file, c"", flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// The file system that holds the file behind a descriptor.
///
/// # Errors
/// What statx(2), fstatfs(2) or mountinfo say.
pub fn filesystem_of(file: BorrowedFd<'_>) -> io::Result<Filesystem> {
    filesystem_seen_by(file, None).map(|(filesystem, _)| filesystem)
}

/// The same for a file that a thread in another mount namespace may have opened; with the superblock's device number, where
/// it is known.
///
/// # Errors
/// What fstatfs(2) says.
pub fn filesystem_seen_by(file: BorrowedFd<'_>, thread: Option<i32>) -> io::Result<(Filesystem, Option<u64>)> {
    match mount_of(file, thread) {
        Ok(mount) => Ok((filesystem_on(file, &mount)?, Some(mount.device))),
        // Unmounted meanwhile, or somewhere that nobody can be asked about: what the magic number alone says.
        Err(_) => {
            let magic = rustix::fs::fstatfs(file)?.f_type.cast_unsigned();
            let name = FILE_SYSTEMS.iter().find(|(number, _)| *number == magic).map_or("", |(_, name)| *name);
            let (uuid, uuid_source) = uuid_of(file, None);
            let (foreign, name) = (is_foreign(name), name.to_owned());
            let (subtype, mount_point) = (String::new(), PathBuf::new());
            Ok((Filesystem { magic, name, foreign, subtype, uuid, uuid_source, mount_point }, None))
        }
    }
}

/// The file system of a mount, which holds `file`.
///
/// # Errors
/// What fstatfs(2) says.
pub fn filesystem_on(file: BorrowedFd<'_>, mount: &Mount) -> io::Result<Filesystem> {
    let (name, subtype) = mount.kind.split_once('.').unwrap_or((&mount.kind, ""));
    let (uuid, uuid_source) = uuid_of(file, Some(mount));
    Ok(Filesystem {
        magic: rustix::fs::fstatfs(file)?.f_type.cast_unsigned(),
        name: name.to_owned(),
        foreign: is_foreign(name),
        subtype: subtype.to_owned(),
        uuid,
        uuid_source,
        mount_point: mount.mount_point.clone(),
    })
}

/// Magic numbers of file systems that can be told by it.
const FILE_SYSTEMS: [(u64, &str); 6] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlay"),
    (0x6573_5546, "fuse"),
];

/// File systems whose every answer comes from a process or over a network, and may never come.
const FOREIGN: [&str; 10] = ["fuse", "fuseblk", "nfs", "nfs4", "9p", "cifs", "smb3", "ceph", "afs", "virtiofs"];

/// Whether a file system of this type answers only as long as somebody else does.
pub fn is_foreign(kind: &str) -> bool {
    FOREIGN.contains(&kind.split('.').next().unwrap_or_default())
}

/// Names a file or directory without opening it: nobody is asked, and nothing is mounted for it.
///
/// # Errors
/// What open(2) says.
pub fn name(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Names what is mounted at `place` under other mounts: what `is_it` recognises. That is looked for in a copy of the mount
/// namespace, where what covers it is taken away.
///
/// # Errors
/// ENOENT where it is not there; what unshare(2) and umount(2) say.
pub fn uncovered(place: &Path, is_it: impl Fn(BorrowedFd<'_>) -> bool + Sync) -> io::Result<OwnedFd> {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
    let search = || {
        sys::namespace::leave_mounts()?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // As many as are mounted there; the place itself is on the last.
        for _ in 0..64 {
            let named = name(place)?;
            if is_it(named.as_fd()) {
                return Ok(named);
            }
            unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("uncover".into()).spawn_scoped(scope, search)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that looked for it panicked")))
    })
}

/// A number of the mount behind a descriptor that never becomes another's (Linux 6.8), else one that may.
///
/// # Errors
/// What statx(2) says.
pub fn unique_mount_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(file, c"", flags, MNT_ID_UNIQUE | StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// The topmost subvolume of a mounted btrfs, on a mount of its own that nobody sees.
///
/// # Errors
/// What fsopen(2), fsconfig(2) and fsmount(2) say.
pub fn topmost_subvolume(mount: &Mount) -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
    let context = fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", mount.source.as_path())?;
    fsconfig_set_string(context.as_fd(), "subvolid", "5")?;
    if mount.read_only {
        fsconfig_set_flag(context.as_fd(), "ro")?;
    }
    fsconfig_create(context.as_fd())?;
    open_named(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?.as_fd())
}

/// A directory of the mount at `place`, on a mount of its own that nobody sees: its descriptor keeps no mount from being
/// unmounted. It keeps the file system itself in memory.
///
/// # Errors
/// What open_tree(2) or open(2) say.
pub fn detached(place: &Path) -> io::Result<OwnedFd> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_NO_AUTOMOUNT;
    open_named(open_tree(rustix::fs::CWD, place, flags)?.as_fd())
}

/// Opens a directory that was only named.
///
/// # Errors
/// What open(2) says.
pub fn open_named(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
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
    // Whatever else is named as the source may be a file that somebody must first be asked about.
    let source = rustix::fs::stat(&mount.source).ok()?;
    if FileType::from_raw_mode(source.st_mode) != FileType::BlockDevice {
        return None;
    }
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
                read_only: false,
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
