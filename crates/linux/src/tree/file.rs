//! A file of a tree, open: its labels, its content, and whether it stays what it is meanwhile.

use super::Folder;
use crate::files::{self, OpenError, Xattr};
use crate::opened::{now, stamp};
use crate::sys::lease;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::journal::{FileState, Place};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A regular file, open for reading; everything after that goes by its descriptor.
#[derive(Debug)]
pub struct TreeFile<'p> {
    /// Where it was found: for people, and not to be looked up again.
    pub path: &'p Path,
    /// What fstat(2) said once it was open.
    pub stat: Stat,
    pub(super) descriptor: OwnedFd,
    /// Its folder; none for a file that was named.
    pub(super) folder: Option<&'p Folder>,
}

/// The largest `FILE.sig` that is read: no signature is as long.
const LARGEST_SIGNATURE: u64 = 1 << 20;

/// Two changes of a file within a tick of the kernel's clock have the same time. No kernel's tick is longer.
const TICK: i128 = 20_000_000;

impl AsFd for TreeFile<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl<'p> TreeFile<'p> {
    /// A file that is named.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn named(path: &'p Path) -> Result<Self, OpenError> {
        let (descriptor, stat) = files::open_regular_at(CWD, path.as_os_str(), path)?;
        Ok(Self { path, stat, descriptor, folder: None })
    }
}

impl TreeFile<'_> {
    /// By what it is known to be the same file, unchanged.
    pub fn state(&self) -> FileState {
        FileState {
            device: self.stat.st_dev,
            inode: self.stat.st_ino,
            size: u64::try_from(self.stat.st_size).unwrap_or(0),
            modified: (self.stat.st_mtime, u32::try_from(self.stat.st_mtime_nsec).unwrap_or(0)),
        }
    }

    /// Makes sure that a change of its content from now on shows in its times, and takes them again.
    ///
    /// Two changes within one tick look like one, so a file that has just been written is waited for. A store through a mapping
    /// that had been written through before shows only after the page was written back, so where somebody may write, that is
    /// done now.
    ///
    /// # Errors
    /// What fstat(2) or fdatasync(2) say.
    pub fn settle(&mut self) -> io::Result<()> {
        let written_to = lease::prepare(self.as_fd()).is_ok() && lease::nobody_writes(self.as_fd()) == Some(false);
        let age = now() - stamp(&self.stat).changed;
        let young = (0..TICK).contains(&age);
        if written_to {
            rustix::fs::fdatasync(&self.descriptor)?;
        }
        if young {
            std::thread::sleep(Duration::from_nanos(u64::try_from(TICK - age).unwrap_or(0)));
        }
        if written_to || young {
            self.stat = rustix::fs::fstat(&self.descriptor)?;
        }
        Ok(())
    }

    /// Whether its content and its attributes are what they were when it was opened, or settled.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(stamp(&rustix::fs::fstat(&self.descriptor)?) == stamp(&self.stat))
    }

    /// Whether its content is what it was when it was opened, or settled, whatever became of its attributes.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn has_its_content(&self) -> io::Result<bool> {
        let (before, now) = (stamp(&self.stat), stamp(&rustix::fs::fstat(&self.descriptor)?));
        Ok((before.size, before.modified) == (now.size, now.modified))
    }

    /// The digest of its content; `step` is told of every piece that was read.
    ///
    /// # Errors
    /// As [`files::digest`].
    pub fn digest(&self, algorithm: HashAlgorithm, step: impl FnMut(u64)) -> io::Result<Digest> {
        files::digest_of_size(self, self.state().size, algorithm, step)
    }

    /// A label.
    ///
    /// # Errors
    /// What the kernel refuses; `InvalidData` for a `FILE.sig` that is too large to be one.
    pub fn label(&self, place: Place) -> io::Result<Xattr> {
        if let Some(name) = place.attribute() {
            return files::read_xattr(self, name);
        }
        let (folder, name) = self.beside()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&folder, &name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Xattr::Absent),
            Err(error) => return Err(error.into()),
        };
        let mut label = Vec::new();
        File::from(file).take(LARGEST_SIGNATURE + 1).read_to_end(&mut label)?;
        if label.len() as u64 > LARGEST_SIGNATURE {
            let reason = format!("it has more than {LARGEST_SIGNATURE} bytes, so it is no signature");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(Xattr::Value(label))
    }

    /// Exchanges a label, or removes it. Whoever looks meanwhile finds the old one or the new one; a failure leaves the old.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn set_label(&self, place: Place, label: Option<&[u8]>) -> io::Result<()> {
        match (place.attribute(), label) {
            (Some(name), Some(label)) => files::set_xattr(self, name, label),
            (Some(name), None) => files::remove_xattr(self, name).map(|_| ()),
            (None, Some(label)) => self.write_beside(label),
            (None, None) => {
                let (folder, name) = self.beside()?;
                match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Its folder and the name of its `FILE.sig` in it.
    fn beside(&self) -> io::Result<(OwnedFd, OsString)> {
        let folder = match self.folder {
            Some(folder) => folder.descriptor.as_fd().try_clone_to_owned()?,
            None => {
                let folder = self.path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                match files::nearer(CWD, folder.as_os_str())? {
                    Some((near, rest)) => rustix::fs::openat(near, rest, flags, Mode::empty())?,
                    None => rustix::fs::openat(CWD, folder, flags, Mode::empty())?,
                }
            }
        };
        let mut name = self.path.file_name().unwrap_or(OsStr::new("")).to_owned();
        name.push(".sig");
        Ok((folder, name))
    }

    fn write_beside(&self, label: &[u8]) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (folder, name) = self.beside()?;
        // Short, so that it fits wherever the name itself does.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".imara-{}-{number}.new", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let mut file = File::from(rustix::fs::openat(&folder, &temporary, flags, mode)?);
        let written = file.write_all(label);
        let placed = written.and_then(|()| Ok(rustix::fs::renameat(&folder, &temporary, &folder, &name)?));
        if placed.is_err() {
            let _ = rustix::fs::unlinkat(&folder, &temporary, AtFlags::empty());
        }
        placed
    }

    /// Whether nobody may change it because it is marked so (`chattr +i`, `+a`): root is refused as well.
    pub fn is_immutable(&self) -> bool {
        const IMMUTABLE_OR_APPEND: u64 = 0x10 | 0x20;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let statx = rustix::fs::statx(&self.descriptor, c"", flags, rustix::fs::StatxFlags::TYPE);
        statx.is_ok_and(|statx| statx.stx_attributes.bits() & IMMUTABLE_OR_APPEND != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Choice, Root, Walk};
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, symlink};
    use std::path::PathBuf;

    fn with_file<T>(root: Root, act: impl FnOnce(TreeFile<'_>) -> T) -> T {
        let mut walk = Walk::new([root].into_iter(), Choice::default());
        let batch = walk.next_batch().unwrap();
        let mut path = PathBuf::new();
        batch.path(0, &mut path);
        act(batch.open(0, &path).unwrap().unwrap())
    }

    #[test]
    fn a_signature_beside_a_file_is_written_read_and_removed_and_no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f".repeat(251));
        fs::write(&path, "content").unwrap();
        let beside = directory.path().join(format!("{}.sig", "f".repeat(251)));
        let elsewhere = directory.path().join("elsewhere");
        for root in [Root::File(path.clone()), Root::Tree(directory.path().into())] {
            with_file(root, |file| {
                let label = || file.label(Place::SignatureFile);
                assert_eq!(label().unwrap(), Xattr::Absent);
                file.set_label(Place::SignatureFile, Some(b"signature")).unwrap();
                assert_eq!(label().unwrap(), Xattr::Value(b"signature".to_vec()));
                fs::write(&beside, vec![0; 1 << 20]).unwrap();
                assert!(label().is_ok());
                fs::write(&beside, vec![0; (1 << 20) + 1]).unwrap();
                assert!(label().unwrap_err().to_string().contains("it is no signature"));
                fs::write(&elsewhere, "other").unwrap();
                fs::remove_file(&beside).unwrap();
                symlink(&elsewhere, &beside).unwrap();
                assert!(label().is_err());
                file.set_label(Place::SignatureFile, Some(b"new")).unwrap();
                assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "other");
                assert_eq!(label().unwrap(), Xattr::Value(b"new".to_vec()));
                fs::remove_file(&elsewhere).unwrap();
                file.set_label(Place::SignatureFile, None).unwrap();
                file.set_label(Place::SignatureFile, None).unwrap();
            });
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_change_after_settling_is_noticed() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        for _ in 0..20 {
            // Written just now, and once more within the same tick, most likely.
            fs::write(&path, "content").unwrap();
            with_file(Root::File(path.clone()), |mut file| {
                file.settle().unwrap();
                assert!(file.is_unchanged().unwrap());
                fs::OpenOptions::new().write(true).open(&path).unwrap().write_at(b"x", 0).unwrap();
                assert!(!file.is_unchanged().unwrap());
                file.settle().unwrap();
            });
        }
    }
}
