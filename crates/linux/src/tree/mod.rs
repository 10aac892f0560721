//! Trees of files, walked by descriptor and worked on by several threads, told in order.
//!
//! ```text
//! roots ─▶ walk ── batches of some 32 names, each with its folder's descriptor ─▶ in_order ─▶ results, in the walk's order
//! ```
//!
//! The walk reads folders and looks at each file once (`fstatat`); opening and reading is left to the workers, so that many
//! files are waited for at a time. No path is looked up twice: a folder is opened in the folder above it, a file in its folder,
//! and a symbolic link is never followed. What is kept in memory does not grow with the tree, but for one bit for each inode
//! with more than one link.

mod file;
mod in_order;
mod in_root;
mod inodes;
mod walk;

pub use file::TreeFile;
pub use in_order::in_order;
pub use in_root::{InRoot, Kind, Looked};
pub use walk::{Choice, Root, Skipped, Walk, Wanted};

use crate::files::{OpenError, open_regular_at, regular};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A folder of a tree, open.
struct Folder {
    descriptor: OwnedFd,
    path: PathBuf,
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.path, f)
    }
}

/// Files of one walk, to be worked on together.
#[derive(Debug, Default)]
pub struct Batch {
    names: Vec<u8>,
    entries: Vec<Entry>,
    bytes: u64,
    folders: usize,
}

#[derive(Debug)]
struct Entry {
    /// Its folder; none for a path that was named, which is looked up as it is.
    folder: Option<Arc<Folder>>,
    name: Range<usize>,
    /// Its size when the walk passed.
    size: u64,
    inode: u64,
    /// Whether it is to be taken only if it is an ELF file.
    elf_alone: bool,
    failed: Option<OpenError>,
}

impl Batch {
    /// So many files that what is done once for a batch no longer counts, and so few that it is soon told.
    const FILES: usize = 32;
    /// A large file is a batch of its own, or nearly so: others need not wait for it.
    const BYTES: u64 = 4 << 20;

    /// Folders are open as long as a batch names them.
    const FOLDERS: usize = 16;

    fn is_full(&self) -> bool {
        self.entries.len() >= Self::FILES || self.bytes >= Self::BYTES || self.folders >= Self::FOLDERS
    }

    fn push(&mut self, folder: Option<&Arc<Folder>>, name: &[u8], size: u64, inode: u64, elf_alone: bool) {
        let last = self.entries.last().and_then(|entry| entry.folder.as_ref());
        if folder.is_some_and(|folder| last.is_none_or(|last| !Arc::ptr_eq(last, folder))) {
            self.folders += 1;
        }
        let start = self.names.len();
        self.names.extend_from_slice(name);
        let name = start..self.names.len();
        self.bytes = self.bytes.saturating_add(size);
        self.entries.push(Entry { folder: folder.cloned(), name, size, inode, elf_alone, failed: None });
    }

    /// A file that is named; what is wrong with it shows when it is opened.
    fn push_named(&mut self, path: &Path) {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let size = rustix::fs::statat(CWD, path, flags).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        self.push(None, path.as_os_str().as_bytes(), size, 0, false);
    }

    fn push_failed(&mut self, error: OpenError) {
        self.entries.push(Entry { folder: None, name: 0..0, size: 0, inode: 0, elf_alone: false, failed: Some(error) });
    }

    /// How many files there are, with those that could not be looked at.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The place of a file, written over what `path` held.
    pub fn path(&self, index: usize, path: &mut PathBuf) {
        path.clear();
        let entry = &self.entries[index];
        match (&entry.failed, &entry.folder) {
            (Some(OpenError::NotRegular { path: place, .. } | OpenError::System { path: place, .. }), _) => {
                path.push(place);
            }
            (None, Some(folder)) => {
                path.push(&folder.path);
                path.push(self.name(entry));
            }
            (None, None) => path.push(self.name(entry)),
        }
    }

    fn name(&self, entry: &Entry) -> &OsStr {
        OsStr::from_bytes(&self.names[entry.name.clone()])
    }

    /// The size that a file had when the walk passed it.
    pub fn size(&self, index: usize) -> u64 {
        self.entries[index].size
    }

    /// The files' numbers in the order in which a disk has them, as far as inode numbers tell.
    pub fn by_inode(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by_key(|index| self.entries[*index].inode);
        order
    }

    /// Opens a file, whose place [`Batch::path`] has told; none where it turns out not to be among those chosen.
    ///
    /// # Errors
    /// [`OpenError`]: what the walk met there, or what it is by now.
    pub fn open<'p>(&'p self, index: usize, path: &'p Path) -> Result<Option<TreeFile<'p>>, OpenError> {
        let entry = &self.entries[index];
        if let Some(error) = &entry.failed {
            return Err(error.again());
        }
        let (descriptor, stat) = match &entry.folder {
            Some(folder) => open_at(&folder.descriptor, self.name(entry), path)?,
            None => open_regular_at(CWD, self.name(entry), path)?,
        };
        if entry.elf_alone && !is_elf(&descriptor) {
            return Ok(None);
        }
        Ok(Some(TreeFile { path, stat, descriptor, folder: entry.folder.as_deref() }))
    }
}

fn is_elf(file: &OwnedFd) -> bool {
    let mut magic = [0; 4];
    matches!(rustix::io::pread(file, &mut magic[..], 0), Ok(4)) && magic == *b"\x7fELF"
}

/// Opens what the walk has just seen to be a regular file, and looks again at what was opened.
fn open_at(folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<(OwnedFd, Stat), OpenError> {
    // Reading a tree is no use of its files: their access times stay, where the kernel lets us.
    static KEEP_ACCESS_TIMES: AtomicBool = AtomicBool::new(true);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::openat(folder, name, flags, Mode::empty());
    let opened = match KEEP_ACCESS_TIMES.load(Ordering::Relaxed) {
        true => open(flags | OFlags::NOATIME).or_else(|error| match error {
            Errno::PERM => {
                let opened = open(flags);
                // Others' files are refused this without CAP_FOWNER: not asked for again, since it costs a call each.
                KEEP_ACCESS_TIMES.fetch_and(opened.is_err(), Ordering::Relaxed);
                opened
            }
            error => Err(error),
        }),
        false => open(flags),
    };
    let system = |error: Errno| OpenError::System { path: path.into(), error: error.into() };
    let file = opened.map_err(system)?;
    let stat = rustix::fs::fstat(&file).map_err(system)?;
    regular(&stat, path)?;
    Ok((file, stat))
}

/// How many threads work on a tree: more than cores, so that a disk always has something to do.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(4).clamp(8, 64)
}

/// Raises the limit of open files as far as it goes: folders and files are open in every thread.
pub fn allow_many_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(ENOUGH, |maximum| maximum.min(ENOUGH));
    if limit.current.is_some_and(|current| current < most) {
        // What the limit is then still does for most trees.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    }
}

const ENOUGH: u64 = 16 * 1024;
