//! Files by descriptor: content, attributes, xattrs.
//!
//! A path is looked up once; everything after that goes by the descriptor, so that a file that is exchanged in between
//! is not the one that is labelled.

use crate::interruption;
use imara_engine::crypto::{Hasher, hash};
use imara_format::hash::{Digest, HashAlgorithm};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, StatxFlags, XattrFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Why a path was not opened as a regular file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is something else.
    #[error("{}: is {found}, not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        found: &'static str,
    },
    /// The kernel refused.
    #[error("{}: {error}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl OpenError {
    /// What was found, without the path.
    pub fn reason(&self) -> String {
        match self {
            Self::NotRegular { found, .. } => format!("is {found}, not a regular file"),
            Self::System { error, .. } => error.to_string(),
        }
    }

    /// The same once more, for who has it only by reference.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::NotRegular { path, found } => Self::NotRegular { path: path.clone(), found },
            Self::System { path, error } => {
                let again = error.raw_os_error().map(io::Error::from_raw_os_error);
                let error = again.unwrap_or_else(|| io::Error::new(error.kind(), error.to_string()));
                Self::System { path: path.clone(), error }
            }
        }
    }
}

/// What an attribute of a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xattr {
    /// Its value.
    Value(Vec<u8>),
    /// The file has no such attribute.
    Absent,
    /// The filesystem keeps no such attributes.
    Unsupported,
}

/// Opens a regular file for reading, and nothing else: no symbolic link, no device, no pipe that would wait.
///
/// # Errors
/// [`OpenError`].
pub fn open_regular(path: &Path) -> Result<OwnedFd, OpenError> {
    open_regular_at(CWD, path.as_os_str(), path).map(|(file, _)| file)
}

/// Opens a regular file or a directory for reading, for its attributes: no symbolic link, and no device, whose opening can
/// have an effect.
///
/// # Errors
/// What the kernel says; `InvalidInput` for what is neither.
pub fn open_inode(path: &Path) -> io::Result<OwnedFd> {
    let harmless = |stat: &Stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory => Ok(()),
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file and no directory")),
    };
    harmless(&rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    harmless(&rustix::fs::fstat(&file)?)?;
    Ok(file)
}

/// Opens a regular file for reading, by the kernel's own links of `/proc` if need be, where its file system is one of
/// `devices`; `None` where it is another, which is not even asked: it may never answer.
///
/// # Errors
/// What the kernel says.
pub fn open_regular_on(path: &Path, devices: impl Fn(u64) -> bool) -> io::Result<Option<OwnedFd>> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    if kind != FileType::RegularFile || !devices(rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)) {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(Some(rustix::fs::open(path, flags, Mode::empty())?))
}

pub(crate) fn open_regular_at(directory: impl AsFd, name: &OsStr, path: &Path) -> Result<(OwnedFd, Stat), OpenError> {
    let system = |error: Errno| OpenError::System { path: path.into(), error: error.into() };
    let near = nearer(directory.as_fd(), name).map_err(system)?;
    let (directory, name) = match &near {
        Some((folder, rest)) => (folder.as_fd(), OsStr::from_bytes(rest)),
        None => (directory.as_fd(), name),
    };
    // Looked at before it is opened, since opening a device can already have an effect; and again after.
    let before = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(system)?;
    regular(&before, path)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(system)?;
    let stat = rustix::fs::fstat(&file).map_err(system)?;
    regular(&stat, path)?;
    Ok((file, stat))
}

/// Of a path that is longer than the kernel takes at once, a folder that is nearer and the path from there.
pub(crate) fn nearer<'n>(directory: BorrowedFd<'_>, name: &'n OsStr) -> Result<Option<(OwnedFd, &'n [u8])>, Errno> {
    let (mut rest, mut folder) = (name.as_bytes(), None::<OwnedFd>);
    while rest.len() > LONGEST {
        let Some(end) = rest.get(..LONGEST).and_then(|part| part.iter().rposition(|byte| *byte == b'/')) else { break };
        let from = folder.as_ref().map_or(directory, AsFd::as_fd);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let next = rustix::fs::openat(from, rest.get(..end.max(1)).unwrap_or_default(), flags, Mode::empty())?;
        rest = rest.get(end + 1..).unwrap_or_default();
        folder = Some(next);
    }
    Ok(folder.map(|folder| (folder, rest)))
}

/// `PATH_MAX` without the zero byte.
const LONGEST: usize = 4095;

pub(crate) fn regular(stat: &Stat, path: &Path) -> Result<(), OpenError> {
    let found = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of unknown type",
    };
    Err(OpenError::NotRegular { path: path.into(), found })
}

/// An attribute's value; `None` when the file, or its filesystem, has none. [`read_xattr`] tells these apart.
///
/// # Errors
/// What the kernel refuses, e.g. `EIO`.
pub fn xattr(file: impl AsFd, name: &str) -> io::Result<Option<Vec<u8>>> {
    Ok(match read_xattr(file, name)? {
        Xattr::Value(value) => Some(value),
        Xattr::Absent | Xattr::Unsupported => None,
    })
}

/// An attribute's value, or why there is none; also of what was opened to name it alone (`O_PATH`).
///
/// # Errors
/// What the kernel refuses, e.g. `EIO`.
pub fn read_xattr(file: impl AsFd, name: &str) -> io::Result<Xattr> {
    let file = file.as_fd();
    let read = |value: &mut [u8]| match rustix::fs::fgetxattr(file, name, &mut *value) {
        // Attributes are read by descriptors that are open alone, or by paths.
        Err(Errno::BADF) => {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            rustix::fs::getxattr(path, name, value)
        }
        result => result,
    };
    // Larger than the label of an RSA-4096 key, so that one call does.
    let mut small = [0; 1024];
    let large_size = match read(&mut small[..]) {
        Ok(length) => return Ok(Xattr::Value(small[..length].to_vec())),
        // XATTR_SIZE_MAX of include/uapi/linux/limits.h: no value is larger.
        Err(Errno::RANGE) => 65536,
        Err(Errno::NODATA) => return Ok(Xattr::Absent),
        Err(Errno::OPNOTSUPP) => return Ok(Xattr::Unsupported),
        Err(error) => return Err(error.into()),
    };
    let mut large = vec![0; large_size];
    match read(&mut large[..]) {
        Ok(length) => {
            large.truncate(length);
            Ok(Xattr::Value(large))
        }
        Err(Errno::NODATA) => Ok(Xattr::Absent),
        Err(error) => Err(error.into()),
    }
}

/// The names of a file's attributes, as listxattr(2) gives them. A security module may have a value for a name that is not
/// among them, which is then not kept in the file.
///
/// # Errors
/// What the kernel refuses.
pub fn xattr_names(file: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    // XATTR_LIST_MAX of include/uapi/linux/limits.h: no list is longer.
    let mut names = vec![0; 65536];
    let length = rustix::fs::flistxattr(file, &mut names[..])?;
    let names = names.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// Sets an attribute, new or not. The kernel exchanges the value in one step: a failure leaves the old one.
///
/// # Errors
/// What the kernel refuses.
pub fn set_xattr(file: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())?)
}

/// Removes an attribute; whether there was one.
///
/// # Errors
/// What the kernel refuses.
pub fn remove_xattr(file: impl AsFd, name: &str) -> io::Result<bool> {
    match rustix::fs::fremovexattr(file, name) {
        Ok(()) => Ok(true),
        Err(Errno::NODATA) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Renames a file to a name that nothing has yet.
///
/// # Errors
/// `AlreadyExists` when something has it, a dangling link too; what the kernel refuses.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some filesystems do not know the flag; a link does not write over anything either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => Ok(other?),
    }
}

/// Gives each of two paths what the other had, at once.
///
/// # Errors
/// `NotFound` when one of them is not there; what the kernel refuses.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        // Some filesystems do not know the flag: what was at `other` is gone then.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if other.symlink_metadata().is_ok() => {
            std::fs::rename(one, other)
        }
        other => Ok(other?),
    }
}

/// Bytes that one read takes: where larger ones no longer made hashing faster.
const CHUNK: usize = 256 * 1024;

/// The digest of a file's content, from the start to the size that it has now.
///
/// # Errors
/// What the kernel refuses; `Unsupported` for an algorithm that this build cannot compute; `InvalidData` for a file that
/// became shorter while it was read.
pub fn digest(file: impl AsFd, algorithm: HashAlgorithm) -> io::Result<Digest> {
    digest_while(file, algorithm, || true)
}

/// The same, as long as `goes_on` says so, which is asked before each read.
///
/// # Errors
/// As [`digest`]; `Interrupted` when it was not to go on.
pub fn digest_while(file: impl AsFd, algorithm: HashAlgorithm, goes_on: impl Fn() -> bool) -> io::Result<Digest> {
    let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
    digest_of_size_while(file, size, algorithm, goes_on)
}

/// The same of its first `size` bytes.
///
/// # Errors
/// As [`digest_while`].
pub fn digest_of_size_while(
    file: impl AsFd,
    size: u64,
    algorithm: HashAlgorithm,
    goes_on: impl Fn() -> bool,
) -> io::Result<Digest> {
    read_pieces(file, size, algorithm, |done| {
        if goes_on() {
            return Ok(());
        }
        let reason = format!("interrupted after {done} of {size} bytes");
        Err(io::Error::new(io::ErrorKind::Interrupted, reason))
    })
}

/// The digest of a file's first `size` bytes; `step` is told how many more are done.
///
/// # Errors
/// As [`digest`].
pub fn digest_of_size(
    file: impl AsFd,
    size: u64,
    algorithm: HashAlgorithm,
    mut step: impl FnMut(u64),
) -> io::Result<Digest> {
    let mut told = 0;
    let digest = read_pieces(file, size, algorithm, |done| {
        step(done - std::mem::replace(&mut told, done));
        interruption::go_on()
    })?;
    step(size - told);
    Ok(digest)
}

/// Reads and hashes; `before` is asked before each piece, of which it is told the offset.
fn read_pieces(
    file: impl AsFd,
    size: u64,
    algorithm: HashAlgorithm,
    before: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<Digest> {
    let unsupported = |error| io::Error::new(io::ErrorKind::Unsupported, error);
    let (mut hasher, mut digest) = (None, None);
    each_piece(file, size, before, |piece, last| {
        if hasher.is_none() && last {
            // Most files are one piece, and most of a small file's cost is not its bytes.
            digest = Some(hash(algorithm, &[piece]).map_err(unsupported)?);
            return Ok(());
        }
        let hashing = match &mut hasher {
            Some(hasher) => hasher,
            None => hasher.insert(Hasher::new(algorithm).map_err(unsupported)?),
        };
        hashing.update(piece);
        if last {
            digest = hasher.take().map(Hasher::finish);
        }
        Ok(())
    })?;
    Ok(digest.expect("the last piece makes the digest"))
}

/// Gives a file's first `size` bytes to `take` in pieces, with the word whether a piece is the last; an empty file has one. `before`
/// is asked before each read, of which it is told the offset.
///
/// # Errors
/// What the kernel, `before` and `take` say; `InvalidData` for a file that became shorter while it was read.
pub fn each_piece(
    file: impl AsFd,
    size: u64,
    mut before: impl FnMut(u64) -> io::Result<()>,
    mut take: impl FnMut(&[u8], bool) -> io::Result<()>,
) -> io::Result<()> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(CHUNK, 0);
        let mut offset = 0;
        loop {
            let wanted = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
            let mut filled = 0;
            while filled < wanted {
                before(offset + filled as u64)?;
                match rustix::io::pread(&file, &mut buffer[filled..wanted], offset + filled as u64) {
                    Ok(0) => {
                        let offset = offset + filled as u64;
                        let reason = format!("the file became shorter while it was read: {offset} of {size} bytes");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                    }
                    Ok(read) => filled += read,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            offset += filled as u64;
            take(&buffer[..filled], offset == size)?;
            if offset == size {
                return Ok(());
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_files_digest_is_that_of_all_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17] {
            let content = (0..size).map(|index| (index % 251) as u8).collect::<Vec<_>>();
            fs::write(&path, &content).unwrap();
            let file = open_regular(&path).unwrap();
            for algorithm in [HashAlgorithm::Sha256, HashAlgorithm::Sha1] {
                assert_eq!(digest(&file, algorithm).unwrap(), hash(algorithm, &[&content]).unwrap());
            }
        }
        let file = open_regular(&path).unwrap();
        assert_eq!(digest(&file, HashAlgorithm::Tgr192).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        symlink("/etc/passwd", &link).unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let socket = directory.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, text) in [
            (link.as_path(), "is a symbolic link, not a regular file"),
            (&pipe, "is a pipe, not a regular file"),
            (&socket, "is a socket, not a regular file"),
            (directory.path(), "is a directory, not a regular file"),
            (Path::new("/dev/null"), "is a device, not a regular file"),
        ] {
            let error = open_regular(path).unwrap_err().to_string();
            assert_eq!(error, format!("{}: {text}", path.display()));
        }
        let missing = open_regular(&directory.path().join("missing")).unwrap_err();
        assert!(matches!(missing, OpenError::System { error, .. } if error.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn attributes_are_set_read_and_removed_by_descriptor() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "content").unwrap();
        let file = open_regular(&path).unwrap();
        if read_xattr(&file, "user.test").unwrap() == Xattr::Unsupported {
            println!("skipped: this filesystem has no user attributes");
            return;
        }
        assert_eq!(xattr(&file, "user.test").unwrap(), None);
        for value in [vec![], vec![7; 10], vec![8; 1024], vec![9; 1025], vec![1; 3000]] {
            match set_xattr(&file, "user.test", &value) {
                Ok(()) => assert_eq!(xattr(&file, "user.test").unwrap(), Some(value)),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{} bytes", value.len()),
            }
        }
        assert!(remove_xattr(&file, "user.test").unwrap());
        assert!(!remove_xattr(&file, "user.test").unwrap());
        assert_eq!(read_xattr(&file, "user.test").unwrap(), Xattr::Absent);
        // procfs keeps no such attributes.
        let proc = open_regular(Path::new("/proc/self/status")).unwrap();
        assert_eq!(read_xattr(&proc, "user.test").unwrap(), Xattr::Unsupported);
    }

    #[test]
    fn a_new_name_is_taken_only_when_it_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let [from, free, taken, link] = ["from", "free", "taken", "link"].map(|name| directory.path().join(name));
        fs::write(&from, "new").unwrap();
        fs::write(&taken, "old").unwrap();
        symlink("/nonexistent/place", &link).unwrap();
        for to in [&taken, &link] {
            assert_eq!(rename_new(&from, to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        rename_new(&from, &free).unwrap();
        assert_eq!(fs::read_to_string(free).unwrap(), "new");
        assert_eq!(fs::read_to_string(taken).unwrap(), "old");
        assert!(!from.exists());
    }

    #[test]
    fn two_names_are_exchanged_at_once_and_only_where_both_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other, none] = ["one", "other", "none"].map(|name| directory.path().join(name));
        fs::write(&one, "1").unwrap();
        fs::write(&other, "2").unwrap();
        exchange(&one, &other).unwrap();
        assert_eq!([&one, &other].map(|path| fs::read_to_string(path).unwrap()), ["2", "1"]);
        assert_eq!(exchange(&one, &none).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(one.exists() && !none.exists());
    }

    #[test]
    fn what_is_on_another_file_system_or_no_regular_file_is_not_opened() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
        fs::write(&file, "content").unwrap();
        symlink(&file, &link).unwrap();
        let own = fs::metadata(&file).unwrap().dev();
        for (path, device, opened) in [
            (&*file, own, true),
            (&link, own, true),
            (&file, own + 1, false),
            (directory.path(), own, false),
            (Path::new("/proc/self/exe"), fs::metadata("/proc/self/exe").unwrap().dev(), true),
            (Path::new("/dev/null"), fs::metadata("/dev/null").unwrap().dev(), false),
        ] {
            let file = open_regular_on(path, |found| found == device).unwrap();
            assert_eq!(file.is_some(), opened, "{}", path.display());
        }
        assert!(open_regular_on(&directory.path().join("none"), |_| true).is_err());
    }
}
