//! Which file systems are watched, and how that follows what is mounted and unmounted.
//!
//! | [`Follow`] | watched |
//! |---|---|
//! | `Named` | the file systems that hold the named directories, also when these are mounted anew |
//! | `Below` | and all that are mounted in these directories, now or later |
//! | `All` | every file system that any process sees, in whatever mount namespace |
//!
//! The kernel tells of each change of our own mount namespace through `/proc/self/mountinfo`; other namespaces are looked
//! through every second. From mount(2)'s return until the mark is set nobody is asked about that file system.

use super::claim::{Claim, claim};
use super::lanes::{FOREIGN_MOST, Lane};
use super::superblocks::Superblock;
use super::{GuardError, Shared, lock};
use crate::mounts::{self, Mount};
use crate::opened::path_of;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// How long a file system whose answers come from somebody else may take to be marked at the start.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which file systems are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    /// Those that hold the named directories.
    #[default]
    Named,
    /// And those mounted in these directories.
    Below,
    /// All that any process sees.
    All,
}

/// A file system that should be watched and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwatched {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its type.
    pub kind: String,
    /// Why.
    pub why: String,
}

/// A named directory.
#[derive(Debug)]
struct Named {
    /// Its path as mountinfo has such, whatever links and working directory it was named by.
    path: PathBuf,
    /// The mount point of what held it at the start: where that is unmounted, the directory shows is another's.
    mount_point: PathBuf,
}

impl Named {
    /// What holds the directory now: the last one mounted at the longest place above it, unless that is what was below at the start.
    fn held_by<'a>(&self, own: &'a [Mount]) -> Option<&'a Mount> {
        let above = own.iter().filter(|other| self.path.starts_with(&other.mount_point));
        let holds = above.max_by_key(|other| other.mount_point.as_os_str().len());
        holds.filter(|holds| holds.mount_point.as_os_str().len() >= self.mount_point.as_os_str().len())
    }
}

/// Another mount namespace.
#[derive(Debug)]
struct Namespace {
    /// A process in it.
    pid: String,
    /// Of its mountinfo, to see whether it has changed.
    hash: u64,
    mounts: Vec<Mount>,
    /// Whether whoever made it may mount there what they like.
    foreign: bool,
}

/// What is mounted, and what of it is to be watched.
#[derive(Debug)]
pub(super) struct Follower {
    follow: Follow,
    named: Vec<Named>,
    mountinfo: File,
    namespaces: HashMap<PathBuf, Namespace>,
}

/// One that is to be watched, and by which place.
struct Wanted<'a> {
    mount: &'a Mount,
    path: PathBuf,
    foreign: bool,
}

impl Follower {
    /// Watches what is to be watched now.
    pub(super) fn start(shared: &Arc<Shared>, directories: &[PathBuf], follow: Follow) -> Result<Self, GuardError> {
        let failed = |path: &Path, error: io::Error| GuardError::Path { path: path.to_owned(), error };
        let mountinfo = File::open("/proc/self/mountinfo").map_err(|error| failed(Path::new("/proc"), error))?;
        let mut follower = Self { follow, named: Vec::new(), mountinfo, namespaces: HashMap::new() };
        for path in directories {
            let named = mounts::name(path).map_err(|error| failed(path, error))?;
            let stat = rustix::fs::fstat(&named).map_err(|error| failed(path, error.into()))?;
            if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
                return Err(failed(path, io::Error::from_raw_os_error(libc::ENOTDIR)));
            }
            let mount = mounts::mount_of(named.as_fd(), None).map_err(|error| failed(path, error))?;
            let kind = mount.kind.split('.').next().unwrap_or_default();
            if mounts::is_pseudo(kind) {
                return Err(GuardError::Pseudo { path: path.clone(), kind: kind.to_owned() });
            }
            if shared.superblocks.of(mount.device).is_none() {
                let place = mount.mount_point.clone();
                shared.watch_at_once(&mount, &place).map_err(|refusal| refusal.at(path))?;
            }
            let path = PathBuf::from(OsString::from_vec(path_of(named.as_fd())));
            follower.named.push(Named { path, mount_point: mount.mount_point });
        }
        follower.refresh(shared);
        Ok(follower)
    }

    /// A thread's life.
    pub(super) fn run(mut self, shared: &Arc<Shared>) {
        while !shared.stopping.load(Ordering::Relaxed) {
            let mut changed = [PollFd::new(&self.mountinfo, PollFlags::PRI)];
            let most = if self.follow == Follow::All { 1 } else { 3600 };
            // EINTR is how it is ended.
            let _ = rustix::event::poll(&mut changed, Some(&Timespec { tv_sec: most, tv_nsec: 0 }));
            if !shared.stopping.load(Ordering::Relaxed) {
                self.refresh(shared);
            }
        }
    }

    fn refresh(&mut self, shared: &Arc<Shared>) {
        let mut text = Vec::new();
        // Reading it is also what arms it again.
        if self.mountinfo.rewind().and_then(|()| self.mountinfo.read_to_end(&mut text)).is_err() {
            return;
        }
        let own = mounts::parse_mounts(&text);
        if self.follow == Follow::All {
            self.look_through_namespaces();
        }
        let wanted = self.wanted(&own);
        let mut unwatched = Vec::new();
        for superblock in shared.superblocks.all() {
            match wanted.get(&superblock.device) {
                Some(wanted) => {
                    let mounted_there = |mount: &Mount| {
                        mount.device == superblock.device && Some(&mount.mount_point) == superblock.path().as_ref()
                    };
                    if !own.iter().any(mounted_there) {
                        superblock.moved(Some(wanted.path.clone()));
                    }
                }
                None => {
                    let path = own.iter().find(|mount| mount.device == superblock.device);
                    match path {
                        // Not wanted any more, but there: a bind mount elsewhere keeps it in use, and asked about.
                        Some(mount) => superblock.moved(Some(mount.mount_point.clone())),
                        None => shared.unmounted(&superblock),
                    }
                }
            }
        }
        for wanted in wanted.values() {
            let kind = wanted.mount.kind.clone();
            match shared.watch(wanted.mount, &wanted.path, wanted.foreign, None) {
                Ok(()) | Err(Refusal::Gone) => {}
                Err(refusal) => unwatched.push(Unwatched { path: wanted.path.clone(), kind, why: refusal.to_string() }),
            }
        }
        let mut refused = lock(&shared.refused_foreign);
        refused.retain(|device, _| wanted.contains_key(device) && shared.superblocks.of(*device).is_none());
        unwatched.extend(refused.values().cloned());
        drop(refused);
        unwatched.sort_by(|one, other| one.path.cmp(&other.path));
        *lock(&shared.unwatched) = unwatched;
        let absent = self.named.iter().filter(|named| named.held_by(&own).is_none());
        *lock(&shared.unmounted) = absent.map(|named| named.path.clone()).collect();
    }

    /// What is to be watched, by device.
    fn wanted<'a>(&'a self, own: &'a [Mount]) -> HashMap<u64, Wanted<'a>> {
        let mut wanted = HashMap::new();
        for mount in own.iter().filter(|mount| holds_files(mount) && self.is_wanted(mount, own)) {
            let foreign = mounts::is_foreign(&mount.kind) || within_foreign(mount, own);
            wanted.entry(mount.device).or_insert_with(|| Wanted { mount, path: mount.mount_point.clone(), foreign });
        }
        if self.follow == Follow::All {
            for namespace in self.namespaces.values() {
                let root = Path::new("/proc").join(&namespace.pid).join("root");
                for mount in namespace.mounts.iter().filter(|mount| holds_files(mount)) {
                    let below = mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point);
                    let foreign = namespace.foreign || mounts::is_foreign(&mount.kind);
                    wanted.entry(mount.device).or_insert_with(|| Wanted { mount, path: root.join(below), foreign });
                }
            }
        }
        wanted
    }

    fn is_wanted(&self, mount: &Mount, own: &[Mount]) -> bool {
        match self.follow {
            Follow::All => true,
            Follow::Below if self.named.iter().any(|named| mount.mount_point.starts_with(&named.path)) => true,
            Follow::Named | Follow::Below => {
                self.named.iter().any(|named| named.held_by(own).is_some_and(|holds| holds.number == mount.number))
            }
        }
    }

    /// Other mount namespaces: those that have come, gone or changed.
    fn look_through_namespaces(&mut self) {
        let of = |process: &str, kind: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).ok();
        let (own, own_user) = (of("self", "mnt"), of("self", "user"));
        let mut there = HashSet::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
                continue;
            };
            let Some(namespace) = of(pid, "mnt").filter(|namespace| Some(namespace) != own.as_ref()) else {
                continue;
            };
            if !there.insert(namespace.clone()) {
                continue;
            }
            let Ok(text) = std::fs::read(format!("/proc/{pid}/mountinfo")) else {
                continue;
            };
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            let hash = hasher.finish();
            let known = self.namespaces.get_mut(&namespace);
            match known {
                Some(known) if known.hash == hash => pid.clone_into(&mut known.pid),
                _ => {
                    let foreign = of(pid, "user") != own_user;
                    let mounts = mounts::parse_mounts(&text);
                    self.namespaces.insert(namespace, Namespace { pid: pid.to_owned(), hash, mounts, foreign });
                }
            }
        }
        self.namespaces.retain(|namespace, _| there.contains(namespace));
    }
}

fn holds_files(mount: &Mount) -> bool {
    !mounts::is_pseudo(mount.kind.split('.').next().unwrap_or_default())
}

/// Whether it is mounted within a file system that may not answer.
fn within_foreign(mount: &Mount, own: &[Mount]) -> bool {
    own.iter().any(|above| mounts::is_foreign(&above.kind) && mount.mount_point.starts_with(&above.mount_point))
}

/// Why a file system is not watched.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It was unmounted meanwhile, or something else is mounted over it.
    #[error("it is gone")]
    Gone,
    /// Another guard has it.
    #[error("another guard (process {0}) watches it")]
    Taken(String),
    /// It does not answer.
    #[error("it does not answer")]
    Silent,
    /// There are many of its kind already.
    #[error("{FOREIGN_MOST} file systems whose answers come from somebody else are watched already")]
    TooMany,
    /// What the kernel said.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Self {
        Self::System(error.into())
    }
}

impl Refusal {
    fn at(self, path: &Path) -> GuardError {
        let path = path.to_owned();
        match self {
            Self::System(error) => GuardError::Path { path, error },
            Self::Taken(pid) => GuardError::Taken { path, pid },
            other => GuardError::Path { path, error: io::Error::other(other.to_string()) },
        }
    }
}

impl Shared {
    /// Watches a file system, and returns when it is watched.
    fn watch_at_once(self: &Arc<Self>, mount: &Mount, path: &Path) -> Result<(), Refusal> {
        let (sender, done) = sync_channel(1);
        self.watch(mount, path, mounts::is_foreign(&mount.kind), Some(sender))?;
        done.recv_timeout(PATIENCE).unwrap_or(Err(Refusal::Silent))
    }

    /// Watches a file system, unless it is watched already. One that answers only as long as somebody else does is marked by
    /// a thread of its own, which tells `done`.
    fn watch(
        self: &Arc<Self>,
        mount: &Mount,
        path: &Path,
        foreign: bool,
        done: Option<SyncSender<Result<(), Refusal>>>,
    ) -> Result<(), Refusal> {
        let known = self.superblocks.of(mount.device);
        if foreign {
            if let Some(known) = known {
                if known.mount == 0 || self.is_still_there(&known, mount, path) {
                    return Ok(());
                }
                self.unmounted(&known);
            }
            if !lock(&self.starting).insert(mount.device) {
                return Ok(());
            }
            if self.superblocks.all().iter().filter(|other| other.lane.is_some()).count() >= FOREIGN_MOST {
                lock(&self.starting).remove(&mount.device);
                return Err(Refusal::TooMany);
            }
            let (shared, mount, path) = (Arc::clone(self), mount.clone(), path.to_owned());
            std::thread::Builder::new().name("foreign".into()).spawn(move || {
                let result = shared.watch_foreign(&mount, &path);
                lock(&shared.starting).remove(&mount.device);
                if let Err(refusal) = &result {
                    let why = refusal.to_string();
                    lock(&shared.refused_foreign).insert(mount.device, Unwatched { path, kind: mount.kind, why });
                }
                if let Some(done) = done {
                    // Who no longer waits need not know.
                    let _ = done.send(result);
                }
            })?;
            return Ok(());
        }
        let named = mounts::name(path)?;
        if mounts::mount_id(named.as_fd())? != mount.number {
            return Err(Refusal::Gone);
        }
        if let Some(known) = known {
            if self.group.watches_filesystem(named.as_fd())? {
                return Ok(());
            }
            // Another file system, which has got the number of one that is gone.
            self.unmounted(&known);
        }
        let claim = match claim(mount.device) {
            Claim::Ours(claim) => claim,
            Claim::Taken(pid) => return Err(Refusal::Taken(pid)),
        };
        let mut superblock = Superblock::new(mount, path, named.as_fd(), claim)?;
        superblock.told = self.watch_changes_of(&superblock, named.as_fd(), mount);
        let mask = self.wanted_on(&self.checker.policy(), &superblock);
        let superblock = Arc::new(superblock);
        self.superblocks.add(Arc::clone(&superblock));
        self.group.watch_filesystem(named.as_fd(), mask).inspect_err(|_| drop(self.superblocks.remove(&superblock)))?;
        // A policy that came into force meanwhile may want more.
        let again = self.wanted_on(&self.checker.policy(), &superblock);
        self.group.watch_filesystem(named.as_fd(), again)?;
        self.refuse_on(&superblock)?;
        self.counters.followed.fetch_add(1, Ordering::Relaxed);
        if let Some(done) = done {
            // As above.
            let _ = done.send(Ok(()));
        }
        Ok(())
    }

    fn watch_foreign(self: &Arc<Self>, mount: &Mount, path: &Path) -> Result<(), Refusal> {
        let named = mounts::name(path)?;
        if mounts::mount_id(named.as_fd())? != mount.number {
            return Err(Refusal::Gone);
        }
        let claim = match claim(mount.device) {
            Claim::Ours(claim) => claim,
            Claim::Taken(pid) => return Err(Refusal::Taken(pid)),
        };
        let mut superblock = Superblock::foreign(mount, path, named.as_fd(), claim)?;
        let lane = Lane::foreign(self)?;
        superblock.lane = Some(Arc::clone(&lane));
        let mask = self.wanted_on(&self.checker.policy(), &superblock);
        let superblock = Arc::new(superblock);
        self.superblocks.add(Arc::clone(&superblock));
        let marked = lane.group.watch_filesystem(named.as_fd(), mask);
        if marked.is_err() || self.stopping.load(Ordering::SeqCst) {
            self.superblocks.remove(&superblock);
            lane.stop();
        }
        self.counters.followed.fetch_add(1, Ordering::Relaxed);
        marked?;
        Ok(self.refuse_on(&superblock)?)
    }

    /// The identifier by which a file system's changes are told, if they are.
    fn watch_changes_of(&self, superblock: &Superblock, named: BorrowedFd<'_>, mount: &Mount) -> Option<u64> {
        let changes = self.changes.as_ref()?;
        let fsid = |file: BorrowedFd<'_>| rustix::fs::fstatvfs(file).ok().map(|statvfs| statvfs.f_fsid);
        match changes.watch_filesystem(named) {
            Ok(()) => fsid(named),
            // A subvolume of a btrfs, whose changes are told by the topmost one's identifier.
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) && superblock.filesystem.name == "btrfs" => {
                let topmost = mounts::topmost_subvolume(mount).ok()?;
                changes.watch_filesystem(topmost.as_fd()).ok()?;
                fsid(topmost.as_fd())
            }
            Err(_) => None,
        }
    }

    /// Whether a file system whose answers come from somebody else is the one that was marked, without asking it. A FUSE is
    /// not asked when its root is named; others may be.
    fn is_still_there(&self, known: &Superblock, mount: &Mount, path: &Path) -> bool {
        !mount.kind.starts_with("fuse")
            || mounts::name(path)
                .and_then(|named| mounts::unique_mount_id(named.as_fd()))
                .is_ok_and(|id| id == known.mount)
    }

    /// A file system is mounted nowhere that we can see: nothing of ours may keep it, and what is known of it is forgotten,
    /// as its number may become another's. Where others still see it, it goes on being asked about.
    fn unmounted(&self, superblock: &Arc<Superblock>) {
        superblock.moved(None);
        if let Some(level2) = &self.level2 {
            // Who goes on seeing it is asked all the same.
            let _ = level2.unwatch(superblock.device);
        }
        self.release_leases_of(superblock.device);
        let mut marked = false;
        for device in self.superblocks.remove(superblock) {
            self.checker.cache().forget_device(device);
            marked |= self.marked.forget_device(device);
        }
        let told = superblock.told.is_some()
            && self.changes.as_ref().is_some_and(|changes| changes.watches(superblock.device));
        if marked && told {
            // It is still there, and its changes cannot be traced back to its inodes any more.
            self.wish_to_ask_again();
        }
        if let Some(lane) = superblock.lane.clone() {
            // It may take as long as the kernel takes to let its threads go.
            let _ = std::thread::Builder::new().name("farewell".into()).spawn(move || lane.stop());
        }
    }
}
