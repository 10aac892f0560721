//! The file systems that are watched: what a policy asks about them, and how one of their inodes is reached without keeping
//! the file system from being unmounted.
//!
//! Nothing of a watched file system is held open for longer than it is used. Where a directory is needed, to open an inode by
//! its handle, it is opened on a mount of our own that nobody sees (open_tree(2)), and let go within about a second or when
//! the file system is unmounted, whichever comes first.

use super::question::Asked;
use super::{Shared, lanes::Lane, lock};
use crate::attribute_writer::AttributeWriter;
use crate::mounts::{self, Filesystem, Mount};
use crate::opened::path_of;
use crate::sys::fanotify::Mask;
use crate::sys::identity::{self, Handle};
use imara_engine::active_policy::ActivePolicy;
use imara_engine::lock::Numbers;
use imara_engine::policy::FileFacts;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How many threads may decide on files of one file system at a time: one that does not answer must leave some to the others.
const CROWD: usize = 16;

/// How long a directory is kept after it was last used.
const IDLE: Duration = Duration::from_millis(500);

/// A device and inode, as stat(2) shows them.
type Root = (u64, u64);

/// A file system.
#[derive(Debug)]
pub(super) struct Superblock {
    /// The number that mountinfo gives it. A btrfs shows others to stat(2), one for each subvolume.
    pub(super) device: u64,
    pub(super) filesystem: Arc<Filesystem>,
    /// The identifier by which its changes are told, where they are.
    pub(super) told: Option<u64>,
    /// Whether inode numbers can be read from its handles.
    inodes_in_handles: bool,
    /// The directory that was marked.
    root: Root,
    /// What the policy in force asks about on it.
    pub(super) wanted: Wanted,
    /// Threads of its own, where its answers come from somebody else; `None` where it has the guard's.
    pub(super) lane: Option<Arc<Lane>>,
    /// The mount that its mark was set by.
    pub(super) mount: u64,
    place: Mutex<Place>,
    /// Writes its files' attributes.
    pub(super) writer: Arc<AttributeWriter>,
    /// So many are under way.
    busy: AtomicUsize,
    /// What waits until fewer are, and how many those are.
    parked: Mutex<VecDeque<Arc<Asked>>>,
    waiting: AtomicUsize,
    /// Kept by one guard alone.
    _claim: Option<File>,
}

/// What a policy asks about on a file system, for the one that was asked last: every rule has to be looked at for it.
#[derive(Debug, Default)]
pub(super) struct Wanted(AtomicU64);

impl Wanted {
    const OPEN: u64 = 1;
    const OPEN_EXEC: u64 = 2;

    pub(super) fn get(&self, policy: &ActivePolicy) -> Option<Mask> {
        let wanted = self.0.load(Ordering::Relaxed);
        let mask = |bit, kind| if wanted & bit != 0 { kind } else { Mask::NONE };
        let known = wanted >> 2 == policy.serial();
        known.then(|| mask(Self::OPEN, Mask::OPEN).and(mask(Self::OPEN_EXEC, Mask::OPEN_EXEC)))
    }

    pub(super) fn set(&self, policy: &ActivePolicy, mask: Mask) {
        let bit = |bit, kind| if mask.contains(kind) { bit } else { 0 };
        let bits = bit(Self::OPEN, Mask::OPEN) | bit(Self::OPEN_EXEC, Mask::OPEN_EXEC);
        self.0.store(policy.serial() << 2 | bits, Ordering::Relaxed);
    }
}

/// Where it can be reached.
#[derive(Debug, Default)]
struct Place {
    /// Where it is mounted; `None` when no place is known.
    path: Option<PathBuf>,
    directory: Option<Directory>,
}

/// A directory of it, while that is used.
#[derive(Debug)]
struct Directory {
    descriptor: Arc<OwnedFd>,
    used: Instant,
    /// Whether it is on a mount of our own, whose root is what is mounted at the place.
    detached: bool,
}

/// One of those who are under way on a file system.
pub(super) struct Busy<'a>(&'a Superblock);

impl Superblock {
    /// What is known of a file system that is to be watched; `named` names the directory that its mark is set by.
    pub(super) fn new(mount: &Mount, path: &Path, named: BorrowedFd<'_>, claim: Option<File>) -> io::Result<Self> {
        let root = root_of(named)?;
        let mut superblock = Self {
            device: mount.device,
            filesystem: Arc::new(mounts::filesystem_on(named, mount)?),
            told: None,
            inodes_in_handles: false,
            root,
            wanted: Wanted::default(),
            lane: None,
            mount: mounts::unique_mount_id(named)?,
            place: Mutex::new(Place { path: Some(path.to_owned()), directory: None }),
            writer: Arc::default(),
            busy: AtomicUsize::new(0),
            parked: Mutex::default(),
            waiting: AtomicUsize::new(0),
            _claim: claim,
        };
        // Of an opened directory the kernel tells more. A file that something is mounted on is not opened: somebody might
        // have to be asked about it.
        if let Ok(directory) = superblock.directory() {
            superblock.filesystem = Arc::new(mounts::filesystem_on(directory.as_fd(), mount)?);
            let inode = identity::handle(directory.as_fd())
                .ok()
                .and_then(|handle| identity::inode_in(&superblock.filesystem.name, handle.kind, &handle.bytes));
            superblock.inodes_in_handles = inode == Some(root.1) && mount.device == root.0;
        }
        Ok(superblock)
    }

    /// One that answers only as long as somebody else does: nothing is opened on it.
    pub(super) fn foreign(mount: &Mount, path: &Path, named: BorrowedFd<'_>, claim: Option<File>) -> io::Result<Self> {
        Ok(Self {
            root: root_of(named)?,
            mount: mounts::unique_mount_id(named)?,
            place: Mutex::new(Place { path: Some(path.to_owned()), directory: None }),
            ..Self::stray(mounts::filesystem_on(named, mount)?, mount.device, claim)
        })
    }

    /// One that an event has come from and that is nowhere to be found.
    pub(super) fn stray(filesystem: Filesystem, device: u64, claim: Option<File>) -> Self {
        Self {
            device,
            filesystem: Arc::new(filesystem),
            told: None,
            inodes_in_handles: false,
            root: (0, 0),
            wanted: Wanted::default(),
            lane: None,
            mount: 0,
            place: Mutex::default(),
            writer: Arc::default(),
            busy: AtomicUsize::new(0),
            parked: Mutex::default(),
            waiting: AtomicUsize::new(0),
            _claim: claim,
        }
    }

    /// What a policy asks about the file system alone.
    pub(super) fn facts(&self) -> FileFacts<'_> {
        FileFacts {
            owner: 0,
            group: 0,
            fsmagic: self.filesystem.magic,
            fsname: &self.filesystem.name,
            fs_subtype: &self.filesystem.subtype,
            fsuuid: self.filesystem.uuid,
        }
    }

    /// Where it is mounted, as far as that is known.
    pub(super) fn path(&self) -> Option<PathBuf> {
        lock(&self.place).path.clone()
    }

    /// It is mounted elsewhere now, or nowhere that we can see.
    pub(super) fn moved(&self, path: Option<PathBuf>) {
        let mut place = lock(&self.place);
        if place.path != path {
            *place = Place { path, directory: None };
        }
    }

    /// A directory of it, to open inodes by their handles; it keeps no mount busy.
    pub(super) fn directory(&self) -> io::Result<Arc<OwnedFd>> {
        let mut place = lock(&self.place);
        let now = Instant::now();
        if let Some(directory) = &mut place.directory {
            directory.used = now;
            return Ok(Arc::clone(&directory.descriptor));
        }
        let path = place.path.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let (directory, detached) = match mounts::detached(path) {
            Ok(directory) if root_of(directory.as_fd())? == self.root => (directory, true),
            // Something else is mounted over it.
            _ => (mounts::open_named(self.uncovered(path)?.as_fd())?, false),
        };
        let descriptor = Arc::new(directory);
        place.directory = Some(Directory { descriptor: Arc::clone(&descriptor), used: now, detached });
        Ok(descriptor)
    }

    /// What is missing before the path of a file that was opened by its handle, which shows from the root of our own mount.
    pub(super) fn place_of_handles(&self) -> Vec<u8> {
        let place = lock(&self.place);
        let detached = place.directory.as_ref().is_some_and(|directory| directory.detached);
        let path = place.path.as_ref().filter(|_| detached).map(|path| within_namespace(path)).unwrap_or_default();
        let bytes = path.into_os_string().into_vec();
        if bytes == b"/" { Vec::new() } else { bytes }
    }

    /// The path of an inode that is used just now, where its number is enough to find it and its name is this.
    pub(super) fn path_of_inode(&self, inode: u64, name: &[u8]) -> Option<Vec<u8>> {
        let handle = identity::of_any_generation(&self.filesystem.name, inode).filter(|_| self.inodes_in_handles)?;
        let file = identity::open_path(self.directory().ok()?.as_fd(), handle.kind, &handle.bytes).ok()?;
        let path = [self.place_of_handles(), path_of(file.as_fd())].concat();
        path.rsplit(|byte| *byte == b'/').next().is_some_and(|last| last == name).then_some(path)
    }

    /// Names the directory that its mark is set by.
    pub(super) fn named(&self) -> io::Result<OwnedFd> {
        let path = self.path().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let named = mounts::name(&path)?;
        if root_of(named.as_fd())? == self.root { Ok(named) } else { self.uncovered(&path) }
    }

    fn uncovered(&self, path: &Path) -> io::Result<OwnedFd> {
        mounts::uncovered(path, |named| root_of(named).is_ok_and(|root| root == self.root))
    }

    /// Lets go of the directory if it was not used for a while.
    pub(super) fn rest(&self) {
        let mut place = lock(&self.place);
        if place.directory.as_ref().is_some_and(|directory| directory.used.elapsed() > IDLE) {
            place.directory = None;
        }
    }

    /// Opens an inode of it for reading, without keeping it from being unmounted.
    pub(super) fn open(&self, handle: &Handle) -> io::Result<OwnedFd> {
        identity::open_reading(self.directory()?.as_fd(), handle)
    }

    /// The inode number in a handle of its.
    pub(super) fn inode_in(&self, kind: i32, bytes: &[u8]) -> Option<u64> {
        self.inodes_in_handles.then(|| identity::inode_in(&self.filesystem.name, kind, bytes)).flatten()
    }

    /// Goes under way, or leaves `asked` to those who are already.
    pub(super) fn enter(&self, asked: &Arc<Asked>) -> Option<Busy<'_>> {
        if self.busy.fetch_add(1, Ordering::SeqCst) < CROWD {
            return Some(Busy(self));
        }
        self.busy.fetch_sub(1, Ordering::SeqCst);
        lock(&self.parked).push_back(Arc::clone(asked));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Who left meanwhile has not seen that it waits.
        None
    }

    /// What waits, if there is room now.
    pub(super) fn take_parked(&self) -> Option<(Arc<Asked>, Busy<'_>)> {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return None;
        }
        if self.busy.fetch_add(1, Ordering::SeqCst) >= CROWD {
            self.busy.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        let busy = Busy(self);
        let asked = lock(&self.parked).pop_front()?;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Some((asked, busy))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A path as it is in the mount namespace that it was found in by one of its processes.
fn within_namespace(path: &Path) -> PathBuf {
    let mut parts = path.components();
    let mut part = || parts.next().map(|part| part.as_os_str().to_owned()).unwrap_or_default();
    match [part(), part(), part(), part()] {
        [_, proc, pid, root] if proc == "proc" && root == "root" && pid.as_bytes().iter().all(u8::is_ascii_digit) => {
            Path::new("/").join(parts.as_path())
        }
        _ => path.to_owned(),
    }
}

fn root_of(directory: BorrowedFd<'_>) -> io::Result<Root> {
    use rustix::fs::{AtFlags, StatxFlags, makedev, statx};
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let statx = statx(directory, c"", flags, StatxFlags::INO)?;
    Ok((makedev(statx.stx_dev_major, statx.stx_dev_minor), statx.stx_ino))
}

/// All file systems that are watched.
#[derive(Debug, Default)]
pub(super) struct Superblocks {
    /// By the number in mountinfo.
    all: RwLock<Numbers<u64, Arc<Superblock>>>,
    /// By the number that stat(2) shows for its files.
    by_stat: RwLock<Numbers<u64, Arc<Superblock>>>,
}

impl Superblocks {
    pub(super) fn all(&self) -> Vec<Arc<Superblock>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn of(&self, device: u64) -> Option<Arc<Superblock>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(&device).cloned()
    }

    /// The one whose changes are told by that identifier.
    pub(super) fn told_as(&self, fsid: u64) -> Option<Arc<Superblock>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values().find(|superblock| superblock.told == Some(fsid)).cloned()
    }

    /// The one that holds files of this device, as far as that is known.
    pub(super) fn known(&self, device: u64) -> Option<Arc<Superblock>> {
        self.by_stat.read().unwrap_or_else(PoisonError::into_inner).get(&device).cloned()
    }

    /// Adds one, in place of another that had its number.
    pub(super) fn add(&self, superblock: Arc<Superblock>) {
        let mut by_stat = self.by_stat.write().unwrap_or_else(PoisonError::into_inner);
        by_stat.retain(|_, other| other.device != superblock.device);
        by_stat.insert(superblock.root.0, Arc::clone(&superblock));
        self.all.write().unwrap_or_else(PoisonError::into_inner).insert(superblock.device, superblock);
    }

    /// Forgets one; the numbers that stat(2) showed for its files, which may become another's.
    pub(super) fn remove(&self, superblock: &Superblock) -> Vec<u64> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if all.get(&superblock.device).is_some_and(|other| std::ptr::eq(&**other, superblock)) {
            all.remove(&superblock.device);
        }
        let mut by_stat = self.by_stat.write().unwrap_or_else(PoisonError::into_inner);
        by_stat.extract_if(|_, other| other.device == superblock.device).map(|(device, _)| device).collect()
    }

    /// While this is held no file system is met for the first time.
    pub(super) fn hold(&self) -> std::sync::RwLockReadGuard<'_, Numbers<u64, Arc<Superblock>>> {
        self.by_stat.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The file system of an event's file.
    pub(super) fn superblock(&self, device: u64, file: BorrowedFd<'_>, tid: i32) -> io::Result<Arc<Superblock>> {
        if let Some(known) = self.superblocks.known(device) {
            return Ok(known);
        }
        // A subvolume, whose device number is its own; or a mount that only others see.
        let (filesystem, number) = mounts::filesystem_seen_by(file, Some(tid))?;
        let found = number.and_then(|number| self.superblocks.of(number));
        let superblock =
            found.unwrap_or_else(|| Arc::new(Superblock::stray(filesystem, number.unwrap_or(device), None)));
        let mut by_stat = self.superblocks.by_stat.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(by_stat.entry(device).or_insert(superblock)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_as_in_the_namespace_that_it_was_found_in() {
        for (path, expected) in [
            ("/", "/"),
            ("/srv/app", "/srv/app"),
            ("/proc/12/root/srv/app", "/srv/app"),
            ("/proc/12/root", "/"),
            ("/proc/self/root/srv", "/proc/self/root/srv"),
            ("/srv/12/root/x", "/srv/12/root/x"),
        ] {
            assert_eq!(within_namespace(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
