//! What lies below a folder that is taken for the root: of an image, of a container.

use super::TreeFile;
use crate::files::{self, OpenError};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A folder that is taken for the root: no link leads out of it.
#[derive(Debug)]
pub struct InRoot(OwnedFd);

impl InRoot {
    /// Opens the folder.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, root, flags, Mode::empty())?))
    }

    /// Opens a regular file `below` the root, and not what a link as its last name leads to; it is told of as `shown`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn file<'p>(&self, below: &Path, shown: &'p Path) -> Result<TreeFile<'p>, OpenError> {
        let (descriptor, stat) = self.regular(below, shown, OFlags::NOFOLLOW)?;
        Ok(TreeFile { path: shown, stat, descriptor, folder: None })
    }

    /// Opens a regular file `below` the root for its content, also where links within the root lead to it.
    ///
    /// # Errors
    /// As [`InRoot::file`].
    pub fn content(&self, below: &Path) -> io::Result<File> {
        match self.regular(below, below, OFlags::empty()) {
            Ok((descriptor, _)) => Ok(descriptor.into()),
            Err(OpenError::System { error, .. }) => Err(error),
            Err(error @ OpenError::NotRegular { .. }) => Err(io::Error::other(error.reason())),
        }
    }

    /// What is `below` the root, and where it leads if it is a link; `follow` looks at what such a link leads to.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn look(&self, below: &Path, follow: bool) -> io::Result<Looked> {
        let links = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let descriptor = self.at(below, OFlags::PATH | links)?;
        let mut looked = Looked::of(&rustix::fs::fstat(&descriptor)?);
        if looked.kind == Kind::Link {
            looked.link = Some(rustix::fs::readlinkat(&descriptor, "", Vec::new())?.into_bytes());
        }
        Ok(looked)
    }

    fn regular(&self, below: &Path, shown: &Path, links: OFlags) -> Result<(OwnedFd, Stat), OpenError> {
        let system = |error: Errno| OpenError::System { path: shown.into(), error: error.into() };
        // Opening a device can have an effect: it is looked at first.
        let found = rustix::fs::fstat(self.at(below, OFlags::PATH | links).map_err(system)?).map_err(system)?;
        files::regular(&found, shown)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | links;
        let descriptor = self.at(below, flags).map_err(system)?;
        let stat = rustix::fs::fstat(&descriptor).map_err(system)?;
        files::regular(&stat, shown)?;
        Ok((descriptor, stat))
    }

    fn at(&self, below: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.0, below, flags | OFlags::CLOEXEC, Mode::empty(), within)
    }
}

/// What something is that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// Its type.
    pub kind: Kind,
    /// Where it leads, of links.
    pub link: Option<Vec<u8>>,
    /// Its mode, without its type.
    pub mode: u32,
    /// Its owner.
    pub user: u32,
    /// Its group.
    pub group: u32,
}

/// A file's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    Regular,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a pipe, a socket.
    Special,
}

impl Kind {
    /// What it is, with its article.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Regular => "a regular file",
            Self::Folder => "a directory",
            Self::Link => "a symbolic link",
            Self::Special => "a device, a pipe or a socket",
        }
    }
}

impl Looked {
    /// What fstat(2) said, of what is no link.
    pub fn of(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::Special,
        };
        Self { kind, link: None, mode: stat.st_mode & 0o7777, user: stat.st_uid, group: stat.st_gid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn no_link_leads_out_of_a_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(directory.path().join("secret"), "outside").unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        symlink("../../../secret", root.join("etc/up")).unwrap();
        symlink("/secret", root.join("etc/down")).unwrap();
        symlink("/proc/self/cwd", root.join("etc/process")).unwrap();
        let in_root = InRoot::open(&root).unwrap();
        for below in ["etc/up", "etc/down", "../secret", "/secret"] {
            let read = io::read_to_string(in_root.content(Path::new(below)).unwrap()).unwrap();
            assert_eq!(read, "inside", "{below}");
        }
        for (below, reason) in [("etc", "is a directory"), ("etc/process", "No such file or directory")] {
            let error = in_root.content(Path::new(below)).unwrap_err().to_string();
            assert!(error.contains(reason), "{below}: {error}");
        }
        let looked = in_root.look(Path::new("etc/down"), false).unwrap();
        assert_eq!((looked.kind, looked.link), (Kind::Link, Some(b"/secret".to_vec())));
        fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o4711)).unwrap();
        let looked = in_root.look(Path::new("etc/up"), true).unwrap();
        assert_eq!((looked.kind, looked.link, looked.mode), (Kind::Regular, None, 0o4711));
        assert_eq!(in_root.look(Path::new("etc"), false).unwrap().kind, Kind::Folder);
        assert!(in_root.file(Path::new("etc/down"), Path::new("shown")).is_err(), "a link is no file");
    }
}
