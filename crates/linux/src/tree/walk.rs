//! The walk: which regular files a command works on, in which order.
//!
//! Within a folder in the order of the names; a folder's files come where its name stands. Of a folder with more than
//! [`BLOCK`] entries, in that order within each so many that the file system lists.
//!
//! The folders from the root down to where the walk is need not all stay open: of a deep tree the upper ones are closed, and
//! opened again as `..` of the one below, if that still is the same folder.

use super::inodes::Inodes;
use super::{Batch, Folder};
use crate::files::OpenError;
use crate::mounts;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names that are sorted together, so that memory has a bound.
const BLOCK: usize = 16 * 1024;

/// Folders of one path that are kept open.
const OPEN_LEVELS: usize = 64;

/// Where files are taken from.
#[derive(Debug)]
pub enum Root {
    /// A file, as it is named.
    File(PathBuf),
    /// A folder with all that is in it; or a file.
    Tree(PathBuf),
    /// A list of them that could not be read further.
    Failed(PathBuf, io::Error),
}

/// Which files of a tree are taken. Files that are named are always taken.
#[derive(Clone, Copy, Default)]
pub struct Choice<'c> {
    /// Nothing on another file system than the root.
    pub one_device: bool,
    /// Only what may be executed (a bit of its mode says so) or is an ELF file: programs, libraries, kernel modules.
    pub executables: bool,
    /// Only those for which this says so, which is given a path below the root and whether that is a folder; of a folder that
    /// it refuses, nothing is taken.
    pub wanted: Option<&'c Wanted<'c>>,
}

/// Whether a path below the root, which may be a folder, is wanted.
pub type Wanted<'c> = dyn Fn(&Path, bool) -> bool + Sync + 'c;

/// What a walk passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Symbolic links.
    pub symbolic_links: u64,
    /// Devices, pipes and sockets.
    pub special: u64,
    /// Names of files that had been taken by another of their names.
    pub hard_links: u64,
    /// Mounted file systems that are not to be entered, or that the kernel makes up.
    pub mounts: u64,
}

/// A walk through the trees and files of `roots`.
pub struct Walk<'c, I> {
    roots: I,
    choice: Choice<'c>,
    /// From the root to where the walk is; the last is always open.
    levels: Vec<Level>,
    root_length: usize,
    root_device: u64,
    linked: Inodes,
    /// Whether a device is a file system that the kernel makes up.
    pseudo: HashMap<u64, bool>,
    buffer: Vec<MaybeUninit<u8>>,
    skipped: Skipped,
}

struct Level {
    /// None once it was closed.
    folder: Option<Arc<Folder>>,
    device: u64,
    inode: u64,
    names: Vec<u8>,
    seen: Vec<Seen>,
    next: usize,
    at_end: bool,
}

/// An entry of a folder that was looked at.
struct Seen {
    name: Range<u32>,
    inode: u64,
    kind: Result<Kind, Errno>,
}

enum Kind {
    Folder { device: u64 },
    File { device: u64, size: u64, linked: bool, executable: bool },
    SymbolicLink,
    Special,
}

impl<'c, I: Iterator<Item = Root>> Walk<'c, I> {
    /// A walk that has not begun.
    pub fn new(roots: I, choice: Choice<'c>) -> Self {
        Self {
            roots,
            choice,
            levels: Vec::new(),
            root_length: 0,
            root_device: 0,
            linked: Inodes::default(),
            pseudo: HashMap::new(),
            buffer: vec![MaybeUninit::uninit(); 64 * 1024],
            skipped: Skipped::default(),
        }
    }

    /// What was passed over so far.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// The next files; none at the end.
    pub fn next_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        while !batch.is_full() {
            if !self.levels.is_empty() {
                self.step(&mut batch);
            } else if let Some(root) = self.roots.next() {
                self.begin(root, &mut batch);
            } else {
                break;
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    fn begin(&mut self, root: Root, batch: &mut Batch) {
        let path = match root {
            Root::Failed(path, error) => return batch.push_failed(OpenError::System { path, error }),
            Root::File(path) => return batch.push_named(&path),
            Root::Tree(path) => path,
        };
        match open_folder(CWD, path.as_os_str()) {
            Ok((descriptor, device, inode)) => {
                self.root_length = path.as_os_str().len();
                self.root_device = device;
                self.levels.push(Level::new(Folder { descriptor, path }, device, inode));
            }
            Err(Errno::NOTDIR | Errno::LOOP) => batch.push_named(&path),
            Err(error) => batch.push_failed(OpenError::System { path, error: error.into() }),
        }
    }

    /// One entry of the folder where the walk is.
    fn step(&mut self, batch: &mut Batch) {
        let Some(level) = self.levels.last_mut() else { return };
        let Some(folder) = level.folder.clone() else { return self.leave(batch) };
        let Some(seen) = level.seen.get(level.next) else {
            return if level.at_end { self.leave(batch) } else { self.read(&folder, batch) };
        };
        level.next += 1;
        let name = &level.names[seen.name.start as usize..seen.name.end as usize];
        match seen.kind {
            Ok(Kind::File { size, linked, executable, device }) => {
                let (inode, sniff) = (seen.inode, self.choice.executables && !executable);
                if device != level.device && is_left_out(&self.choice, self.root_device, &mut self.pseudo, device) {
                    self.skipped.mounts += 1;
                } else if linked && !self.linked.insert(device, inode) {
                    self.skipped.hard_links += 1;
                } else {
                    batch.push(Some(&folder), name, size, inode, sniff);
                }
            }
            Ok(Kind::Folder { device }) => {
                if device != level.device && is_left_out(&self.choice, self.root_device, &mut self.pseudo, device) {
                    self.skipped.mounts += 1;
                } else {
                    let name = OsStr::from_bytes(name).to_owned();
                    self.enter(&folder, &name, batch);
                }
            }
            Ok(Kind::SymbolicLink) => self.skipped.symbolic_links += 1,
            Ok(Kind::Special) => self.skipped.special += 1,
            Err(error) => {
                let path = folder.path.join(OsStr::from_bytes(name));
                batch.push_failed(OpenError::System { path, error: error.into() });
            }
        }
    }

    /// Reads the next entries of a folder and looks at each, in the order in which a disk has them.
    fn read(&mut self, folder: &Folder, batch: &mut Batch) {
        let Some(level) = self.levels.last_mut() else { return };
        level.names.clear();
        level.seen.clear();
        level.next = 0;
        let below = folder.path.as_os_str().as_bytes().get(self.root_length..).unwrap_or_default();
        let mut below = PathBuf::from(OsStr::from_bytes(below.strip_prefix(b"/").unwrap_or(below)));
        let mut raw = RawDir::new(&folder.descriptor, &mut self.buffer);
        level.at_end = loop {
            match raw.next() {
                None | Some(Err(Errno::NOENT)) => break true,
                Some(Err(error)) => {
                    batch.push_failed(OpenError::System { path: folder.path.clone(), error: error.into() });
                    break true;
                }
                Some(Ok(entry)) => {
                    let name = entry.file_name().to_bytes();
                    match entry.file_type() {
                        // No file system should list a name with a slash; looking it up would leave the folder.
                        _ if matches!(name, b"." | b"..") || name.contains(&b'/') => {}
                        FileType::Symlink => self.skipped.symbolic_links += 1,
                        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                            self.skipped.special += 1;
                        }
                        FileType::RegularFile | FileType::Directory | FileType::Unknown => {
                            level.push(name, entry.ino());
                        }
                    }
                }
            }
            if level.seen.len() >= BLOCK && raw.is_buffer_empty() {
                break false;
            }
        };
        level.seen.sort_unstable_by_key(|seen| seen.inode);
        let (names, choice) = (&level.names, &self.choice);
        level.seen.retain_mut(|seen| {
            let name = OsStr::from_bytes(&names[seen.name.start as usize..seen.name.end as usize]);
            seen.look(folder, name);
            let is_folder = matches!(seen.kind, Ok(Kind::Folder { .. }));
            choice.wanted.is_none_or(|wanted| {
                below.push(name);
                let wanted = wanted(&below, is_folder);
                below.pop();
                wanted
            })
        });
        let name = |seen: &Seen| &names[seen.name.start as usize..seen.name.end as usize];
        level.seen.sort_unstable_by(|left, right| name(left).cmp(name(right)));
    }

    fn enter(&mut self, above: &Folder, name: &OsStr, batch: &mut Batch) {
        let path = above.path.join(name);
        match open_folder(&above.descriptor, name) {
            Ok((descriptor, device, inode)) => {
                self.levels.push(Level::new(Folder { descriptor, path }, device, inode));
                // One that has more to read is kept: its place in it would be lost.
                let upper = self.levels.len().checked_sub(OPEN_LEVELS).and_then(|upper| self.levels.get_mut(upper));
                if let Some(upper) = upper.filter(|level| level.at_end) {
                    upper.folder = None;
                }
            }
            Err(error) => batch.push_failed(OpenError::System { path, error: error.into() }),
        }
    }

    /// Goes back to the folder above, which may have been closed meanwhile.
    fn leave(&mut self, batch: &mut Batch) {
        let left = self.levels.pop().and_then(|level| level.folder);
        let Some(above) = self.levels.last_mut().filter(|above| above.folder.is_none()) else { return };
        // Without the folder below there is no way back: that was told when it was lost.
        let Some(left) = left else { return };
        let path = left.path.parent().unwrap_or(Path::new("")).to_owned();
        match open_folder(&left.descriptor, OsStr::new("..")) {
            Ok((descriptor, device, inode)) if (device, inode) == (above.device, above.inode) => {
                above.folder = Some(Arc::new(Folder { descriptor, path }));
            }
            Ok(_) => {
                let error = io::Error::other("the folder was moved while it was walked; the rest of it was not");
                batch.push_failed(OpenError::System { path, error });
            }
            Err(error) => batch.push_failed(OpenError::System { path, error: error.into() }),
        }
    }
}

/// Whether nothing is taken of a device that is not the one of the folder where it was met.
fn is_left_out(choice: &Choice<'_>, root_device: u64, pseudo: &mut HashMap<u64, bool>, device: u64) -> bool {
    if choice.one_device {
        return device != root_device;
    }
    // A device that mountinfo does not show is a subvolume of a file system.
    *pseudo.entry(device).or_insert_with(|| {
        mounts::mounts().is_ok_and(|all| {
            let kind = all.iter().find(|mount| mount.device == device).map(|mount| mount.kind.as_str());
            kind.is_some_and(|kind| mounts::is_pseudo(kind.split_once('.').map_or(kind, |(kind, _)| kind)))
        })
    })
}

impl Level {
    fn new(folder: Folder, device: u64, inode: u64) -> Self {
        let folder = Some(Arc::new(folder));
        Self { folder, device, inode, names: Vec::new(), seen: Vec::new(), next: 0, at_end: false }
    }

    fn push(&mut self, name: &[u8], inode: u64) {
        // A block has 16 Ki names of 255 bytes and what one buffer holds more.
        let offset = |length: usize| u32::try_from(length).expect("a block of names is small");
        let start = offset(self.names.len());
        self.names.extend_from_slice(name);
        self.seen.push(Seen { name: start..offset(self.names.len()), inode, kind: Ok(Kind::Special) });
    }
}

impl Seen {
    fn look(&mut self, folder: &Folder, name: &OsStr) {
        // Looking must not mount anything.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        self.kind = rustix::fs::statat(&folder.descriptor, name, flags).map(|stat| {
            self.inode = stat.st_ino;
            let device = stat.st_dev;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Kind::Folder { device },
                FileType::RegularFile => Kind::File {
                    device,
                    size: u64::try_from(stat.st_size).unwrap_or(0),
                    linked: stat.st_nlink > 1,
                    executable: stat.st_mode & 0o111 != 0,
                },
                FileType::Symlink => Kind::SymbolicLink,
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => Kind::Special,
            }
        });
    }
}

fn open_folder(at: impl std::os::fd::AsFd, name: &OsStr) -> Result<(OwnedFd, u64, u64), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let descriptor = rustix::fs::openat(at, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&descriptor)?;
    Ok((descriptor, stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// The paths that a walk takes, or why not, each with what was skipped.
    fn walked(roots: Vec<Root>, choice: Choice<'_>) -> (Vec<String>, Skipped) {
        let mut walk = Walk::new(roots.into_iter(), choice);
        let (mut taken, mut path) = (Vec::new(), PathBuf::new());
        while let Some(batch) = walk.next_batch() {
            for index in 0..batch.len() {
                batch.path(index, &mut path);
                match batch.open(index, &path) {
                    Ok(Some(file)) => taken.push(file.path.display().to_string()),
                    Ok(None) => {}
                    Err(error) => taken.push(error.to_string()),
                }
            }
        }
        (taken, walk.skipped())
    }

    fn names(root: &Path, taken: &[String]) -> String {
        let root = format!("{}/", root.display());
        taken.iter().map(|path| path.strip_prefix(&root).unwrap_or(path)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_regular_file_is_taken_once_in_the_order_of_names_and_nothing_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("b/deep")).unwrap();
        fs::create_dir(root.join("empty")).unwrap();
        for name in ["a", "b/deep/file", "b.c", "c"] {
            fs::write(root.join(name), name).unwrap();
        }
        fs::hard_link(root.join("a"), root.join("b/again")).unwrap();
        symlink(root.join("c"), root.join("d")).unwrap();
        symlink("/etc", root.join("e")).unwrap();
        rustix::fs::mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let (taken, skipped) = walked(vec![Root::Tree(root.into())], Choice::default());
        assert_eq!(names(root, &taken), "a b/deep/file b.c c");
        assert_eq!(skipped, Skipped { symbolic_links: 2, special: 1, hard_links: 1, mounts: 0 });
        // A tree of one file, files that are named, and what is not there.
        let roots = vec![
            Root::Tree(root.join("c")),
            Root::File(root.join("a")),
            Root::File(root.join("a")),
            Root::Tree(root.join("d")),
            Root::File(root.join("b")),
            Root::Tree(root.join("none")),
            Root::Failed("list".into(), io::Error::other("broken")),
        ];
        let (taken, _) = walked(roots, Choice::default());
        let place = root.display();
        let expected = [
            format!("{place}/c"),
            format!("{place}/a"),
            format!("{place}/a"),
            format!("{place}/d: is a symbolic link, not a regular file"),
            format!("{place}/b: is a directory, not a regular file"),
            format!("{place}/none: No such file or directory (os error 2)"),
            "list: broken".to_owned(),
        ];
        assert_eq!(taken, expected);
    }

    #[test]
    fn a_choice_takes_programs_or_what_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("lib/inner")).unwrap();
        for (name, content, mode) in [
            ("lib/inner/library.so", &b"\x7fELF..."[..], 0o644),
            ("lib/text", b"text", 0o644),
            ("lib/short", b"\x7fEL", 0o644),
            ("program", b"\x7fELF", 0o755),
            ("script", b"#!/bin/sh", 0o744),
        ] {
            fs::write(root.join(name), content).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let choice = Choice { executables: true, ..Choice::default() };
        let (taken, _) = walked(vec![Root::Tree(root.into())], choice);
        assert_eq!(names(root, &taken), "lib/inner/library.so program script");
        let asked = std::sync::Mutex::new(Vec::new());
        let wanted = |path: &Path, folder: bool| {
            asked.lock().unwrap().push((path.display().to_string(), folder));
            path != Path::new("lib/inner") && path != Path::new("script")
        };
        let choice = Choice { wanted: Some(&wanted), ..Choice::default() };
        let (taken, _) = walked(vec![Root::Tree(root.join(""))], choice);
        assert_eq!(names(root, &taken), "lib/short lib/text program");
        let mut asked = asked.into_inner().unwrap();
        asked.sort();
        let expected =
            [("lib", true), ("lib/inner", true), ("lib/short", false), ("lib/text", false), ("program", false)];
        let expected = expected.into_iter().chain([("script", false)]).map(|(path, folder)| (path.to_owned(), folder));
        assert_eq!(asked, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_tree_deeper_than_what_is_kept_open_is_walked_to_its_end_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let depth = 3 * OPEN_LEVELS + 5;
        let mut folder = directory.path().to_owned();
        for level in 0..depth {
            fs::write(folder.join("a"), "before").unwrap();
            fs::write(folder.join("z"), format!("after {level}")).unwrap();
            folder.push("d");
            fs::create_dir(&folder).unwrap();
        }
        let mut walk = Walk::new([Root::Tree(directory.path().into())].into_iter(), Choice::default());
        let mut batches = Vec::new();
        let (mut path, mut taken) = (PathBuf::new(), 0);
        while let Some(batch) = walk.next_batch() {
            assert!(walk.levels.iter().filter(|level| level.folder.is_some()).count() <= OPEN_LEVELS);
            for index in 0..batch.len() {
                batch.path(index, &mut path);
                let file = batch.open(index, &path).unwrap().unwrap();
                assert_eq!(fs::read(&path).unwrap().len() as u64, file.stat.st_size.cast_unsigned(), "{path:?}");
                taken += 1;
            }
            batches.push(batch.len());
        }
        assert_eq!(taken, 2 * depth);
    }

    #[test]
    fn a_folder_that_is_moved_away_under_the_walk_is_told_and_left() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let mut folder = root.join("x");
        for _ in 0..OPEN_LEVELS + 2 {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("z"), "after").unwrap();
            folder.push("d");
        }
        let mut walk = Walk::new([Root::Tree(root.clone())].into_iter(), Choice::default());
        let mut batch = Batch::default();
        while walk.levels.len() < OPEN_LEVELS + 3 {
            if walk.levels.is_empty() {
                let root = walk.roots.next().unwrap();
                walk.begin(root, &mut batch);
            }
            walk.step(&mut batch);
        }
        // The second level is closed by now; what it holds is moved to another folder.
        fs::rename(root.join("x/d"), directory.path().join("elsewhere")).unwrap();
        let mut told = Vec::new();
        let mut path = PathBuf::new();
        while let Some(batch) = walk.next_batch() {
            for index in 0..batch.len() {
                batch.path(index, &mut path);
                told.extend(batch.open(index, &path).err().map(|error| error.to_string()));
            }
        }
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("was moved while it was walked"), "{told:?}");
    }

    #[test]
    fn a_large_file_that_is_named_holds_up_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let roots = ["a", "large", "b", "none", "again", "c"].map(|name| {
            let path = directory.path().join(name);
            let size = if matches!(name, "large" | "again") { 5 << 20 } else { 5 };
            if name != "none" {
                fs::File::create(&path).unwrap().set_len(size).unwrap();
            }
            // Also where it is taken for a tree.
            if name == "again" { Root::Tree(path) } else { Root::File(path) }
        });
        let mut walk = Walk::new(roots.into_iter(), Choice::default());
        let batches = std::iter::from_fn(|| walk.next_batch()).map(|batch| batch.len()).collect::<Vec<_>>();
        assert_eq!(batches, [2, 3, 1]);
    }

    #[test]
    fn a_folder_with_more_entries_than_a_block_is_taken_whole() {
        let directory = tempfile::tempdir().unwrap();
        let count = BLOCK + 3000;
        for number in 0..count {
            fs::write(directory.path().join(format!("{number}")), "").unwrap();
        }
        let (mut taken, _) = walked(vec![Root::Tree(directory.path().into())], Choice::default());
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), count);
    }
}
