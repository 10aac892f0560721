//! fanotify: permission events that wait for our verdict, and notifications of attribute changes by file handle.
//!
//! Event record, as read(2) returns it (host byte order):
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | length of the record, information records included |
//! | 4 | 1 | version (3) |
//! | 5 | 1 | reserved |
//! | 6 | 2 | length of this header (24) |
//! | 8 | 8 | mask |
//! | 16 | 4 | descriptor, -1 where there is none |
//! | 20 | 4 | thread that caused it (`FAN_REPORT_TID`), 0 outside our pid namespace |
//!
//! In a group that reports file identifiers an information record follows: type (1), pad (1), length (2), file system
//! identifier (8), handle length (4), handle type (4), handle.
//!
//! Source: fanotify(7), include/uapi/linux/fanotify.h.

use super::identity::Handle;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const HEADER: usize = 24;
/// Since Linux 5.19: an ignore mark that does not keep its inode in memory.
const FAN_MARK_EVICTABLE: libc::c_uint = 0x200;

/// What a permission group is asked, or an inode is ignored for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mask(u64);

impl Mask {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// May this file be opened?
    pub const OPEN: Self = Self(libc::FAN_OPEN_PERM);
    /// May this file be opened to be executed?
    pub const OPEN_EXEC: Self = Self(libc::FAN_OPEN_EXEC_PERM);

    /// Both of two masks.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in it and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether it is [`Mask::NONE`].
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// A group whose events wait for our verdict.
#[derive(Debug)]
pub struct PermissionGroup {
    group: OwnedFd,
}

/// An access that waits for our verdict. The kernel holds the task until [`PermissionGroup::answer`].
#[derive(Debug)]
pub struct PermissionEvent {
    /// What is asked: one or both of [`Mask::OPEN`] and [`Mask::OPEN_EXEC`].
    pub mask: Mask,
    /// The file, opened for reading; reading through it raises no events.
    pub file: OwnedFd,
    /// The thread that asks, 0 when it is outside our pid namespace.
    pub tid: i32,
}

/// What a [`PermissionGroup`] tells.
#[derive(Debug)]
pub enum Told {
    /// Somebody waits for an answer.
    Asked(PermissionEvent),
    /// The queue was full: the kernel has let accesses go on without asking.
    Overflow,
}

/// Room for what one read returns.
#[derive(Debug)]
pub struct EventBuffer(Vec<u64>);

impl EventBuffer {
    /// Room for about `events` permission events.
    pub fn new(events: usize) -> Self {
        Self(vec![0; (events * HEADER).div_ceil(8)])
    }
}

/// Reads into an aligned buffer; what was read comes back as bytes.
fn read_into<'a>(group: &OwnedFd, buffer: &'a mut EventBuffer) -> io::Result<&'a [u8]> {
    let room = size_of_val(buffer.0.as_slice());
    // SAFETY: the buffer is initialised, that large, and u64 has no padding.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.0.as_mut_ptr().cast::<u8>(), room) };
    // Not libc's, which makes ready to be cancelled first.
    let read = rustix::io::read(group, &mut *bytes)?;
    Ok(&bytes[..read])
}

/// A record, split.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    mask: u64,
    fd: i32,
    tid: i32,
    information: &'a [u8],
    /// What follows the record.
    rest: &'a [u8],
}

/// The record at the front of `bytes`.
fn split_record(bytes: &[u8]) -> Option<Record<'_>> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let header = usize::from(u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?));
    Some(Record {
        mask: u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?),
        fd: i32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?),
        tid: i32::from_ne_bytes(bytes.get(20..24)?.try_into().ok()?),
        information: bytes.get(header.max(HEADER)..length)?,
        rest: bytes.get(length..)?,
    })
}

fn mark(group: &OwnedFd, flags: libc::c_uint, mask: u64, target: Target<'_>) -> io::Result<()> {
    let path;
    let (directory, name) = match target {
        Target::Path(target) => {
            path = CString::new(target.as_os_str().as_bytes())?;
            (libc::AT_FDCWD, path.as_ptr())
        }
        // A null path marks what the descriptor refers to: no second lookup.
        Target::Descriptor(file) => (file.as_raw_fd(), std::ptr::null()),
        Target::None => (libc::AT_FDCWD, std::ptr::null()),
    };
    // SAFETY: `name` is null or a C string that outlives the call; the rest are integers.
    let result = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, directory, name) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[derive(Clone, Copy)]
enum Target<'a> {
    Path(&'a Path),
    Descriptor(BorrowedFd<'a>),
    None,
}

/// What names a file in order to mark its inode or its file system, also where it was opened only to name it (`O_PATH`),
/// which fanotify_mark(2) does not take.
fn named(file: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn init(flags: libc::c_uint) -> io::Result<OwnedFd> {
    // Not to wait: kernels that ask about FIFOs open them for us, which would wait for a writer.
    let event_flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_LARGEFILE | libc::O_CLOEXEC | libc::O_NOATIME;
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::fanotify_init(flags | libc::FAN_CLOEXEC, event_flags.cast_unsigned()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened `fd` for us, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl PermissionGroup {
    /// Opens a group; it needs CAP_SYS_ADMIN. Its queue has no limit, as the kernel lets go on unasked what finds no room; each event
    /// has a task that waits for it, so that there are no more than there are tasks.
    ///
    /// # Errors
    /// EPERM without the capability, EINVAL or ENOSYS where the kernel has no permission events.
    pub fn open() -> io::Result<Self> {
        let flags =
            libc::FAN_CLASS_CONTENT | libc::FAN_UNLIMITED_QUEUE | libc::FAN_UNLIMITED_MARKS | libc::FAN_REPORT_TID;
        Ok(Self { group: init(flags)? })
    }

    /// Asks to decide `mask` on the whole file system that holds this file or directory: by its descriptor, as another file
    /// system may be mounted over its path meanwhile. The descriptor may be one that only names it (`O_PATH`).
    ///
    /// # Errors
    /// What fanotify_mark(2) says; EINVAL where the file system does not take such marks.
    pub fn watch_filesystem(&self, file: BorrowedFd<'_>, mask: Mask) -> io::Result<()> {
        mark(&self.group, libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM, mask.0, Target::Path(&named(file)))
    }

    /// Asks no longer for `mask` on that file system.
    ///
    /// # Errors
    /// What fanotify_mark(2) says; ENOENT when it was not marked.
    pub fn unwatch_filesystem(&self, file: BorrowedFd<'_>, mask: Mask) -> io::Result<()> {
        mark(&self.group, libc::FAN_MARK_REMOVE | libc::FAN_MARK_FILESYSTEM, mask.0, Target::Path(&named(file)))
    }

    /// Whether this group watches that file system. A number that names a file system can be another's after an unmount;
    /// the mark goes with the file system itself.
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    pub fn watches_filesystem(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        // Takes away what is never asked for: ENOENT where there is no mark at all.
        match self.unwatch_filesystem(file, Mask(libc::FAN_ACCESS_PERM)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether an event waits to be read.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub fn is_pending(&self) -> io::Result<bool> {
        Ok(rustix::io::ioctl_fionread(&self.group)? > 0)
    }

    /// Lets `mask` on this inode pass without asking, until it is written to or truncated. The mark does not keep the
    /// inode in memory (on Linux before 5.19, which cannot do that, it does).
    ///
    /// The mark stays on the inode until that is evicted, also when nothing is ignored any more: the kernel lets an access
    /// pass unasked while a mark of the same group is taken off its inode (`fsnotify_prepare_user_wait`, fs/notify/mark.c),
    /// and whoever changes a file can have it executed at that very moment. So before it is asked again the mark is given
    /// `FAN_ONDIR`, which asks nothing of a file and keeps the mark from being empty.
    ///
    /// # Errors
    /// What fanotify_mark(2) says. EEXIST on some kernels when somebody has it open for writing.
    pub fn ignore_inode(&self, file: BorrowedFd<'_>, mask: Mask) -> io::Result<()> {
        self.mark_inode(libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORED_MASK, mask.0, Target::Descriptor(file))
    }

    fn mark_inode(&self, flags: libc::c_uint, mask: u64, inode: Target<'_>) -> io::Result<()> {
        match mark(&self.group, flags | FAN_MARK_EVICTABLE, mask, inode) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self::mark(&self.group, flags, mask, inode),
            result => result,
        }
    }

    fn ignore_no_more(&self, inode: Target<'_>) -> io::Result<()> {
        self.mark_inode(libc::FAN_MARK_ADD, libc::FAN_ONDIR, inode)?;
        let both = Mask::OPEN.and(Mask::OPEN_EXEC);
        let flags = libc::FAN_MARK_REMOVE | libc::FAN_MARK_IGNORED_MASK;
        match mark(&self.group, flags, both.0, inode) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Asks again at the next access to the inode that `path` names. To name an open descriptor, pass its
    /// `/proc/self/fd` entry.
    ///
    /// # Errors
    /// What fanotify_mark(2) says; an inode without a mark is no error.
    pub fn ask_again(&self, path: &Path) -> io::Result<()> {
        self.ignore_no_more(Target::Path(path))
    }

    /// The same for the inode behind a descriptor.
    ///
    /// # Errors
    /// As [`PermissionGroup::ask_again`].
    pub fn ask_again_descriptor(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.ignore_no_more(Target::Descriptor(file))
    }

    /// Lets `mask` on this inode pass without asking for as long as the inode is in memory, whatever happens to it: what a mark
    /// says that [`PermissionGroup::each_ignored`] does not tell.
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    pub fn ignore_inode_for_good(&self, file: BorrowedFd<'_>, mask: Mask) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORED_MASK | libc::FAN_MARK_IGNORED_SURV_MODIFY;
        self.mark_inode(flags, mask.0, Target::Descriptor(file))
    }

    /// Tells each inode that is let pass without asking by [`PermissionGroup::ignore_inode`], as the kernel lists the group's marks.
    ///
    /// # Errors
    /// What reading `/proc/self/fdinfo` says.
    pub fn each_ignored(&self, mut told: impl FnMut(IgnoredInode)) -> io::Result<()> {
        let mut marks =
            BufReader::with_capacity(1 << 16, File::open(format!("/proc/self/fdinfo/{}", self.group.as_raw_fd()))?);
        let mut line = Vec::new();
        while marks.read_until(b'\n', &mut line)? > 0 {
            std::str::from_utf8(&line).ok().and_then(IgnoredInode::parse).map(&mut told);
            line.clear();
        }
        Ok(())
    }

    /// Asks again for every inode, by taking all marks off: who comes at that very moment passes unasked (see
    /// [`PermissionGroup::ignore_inode`]).
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    pub fn ask_again_all(&self) -> io::Result<()> {
        mark(&self.group, libc::FAN_MARK_FLUSH, 0, Target::None)
    }

    /// Waits for events and tells each.
    ///
    /// # Errors
    /// EINTR when a signal came. Any other error belongs to one event that could not be handed over (EMFILE, say); the
    /// kernel has then answered that event with a refusal.
    pub fn read(&self, buffer: &mut EventBuffer, mut told: impl FnMut(Told)) -> io::Result<()> {
        let mut bytes = read_into(&self.group, buffer)?;
        while let Some(record) = split_record(bytes) {
            if record.fd >= 0 {
                // SAFETY: the kernel has just opened it for us, so nothing else owns it.
                let file = unsafe { OwnedFd::from_raw_fd(record.fd) };
                told(Told::Asked(PermissionEvent { mask: Mask(record.mask), file, tid: record.tid }));
            } else if record.mask & libc::FAN_Q_OVERFLOW != 0 {
                told(Told::Overflow);
            }
            bytes = record.rest;
        }
        Ok(())
    }

    /// Asks about nothing any more, on any file system: what could not be answered otherwise goes on.
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    pub fn unwatch_everything(&self) -> io::Result<()> {
        mark(&self.group, libc::FAN_MARK_FLUSH | libc::FAN_MARK_FILESYSTEM, 0, Target::None)?;
        mark(&self.group, libc::FAN_MARK_FLUSH, 0, Target::None)
    }

    /// Lets every access go on whose event another process has read, has not answered, and knows by a descriptor below
    /// `most`; how many there were.
    pub fn let_go_on(&self, most: RawFd) -> usize {
        (0..most).filter(|number| self.answer_number(*number, true).is_ok()).count()
    }

    /// Lets the access behind `file` go on, or fail with EPERM.
    ///
    /// # Errors
    /// ENOENT when the task was killed meanwhile.
    pub fn answer(&self, file: BorrowedFd<'_>, allow: bool) -> io::Result<()> {
        self.answer_number(file.as_raw_fd(), allow)
    }

    fn answer_number(&self, fd: RawFd, allow: bool) -> io::Result<()> {
        // struct fanotify_response of include/uapi/linux/fanotify.h.
        let mut response = [0; 8];
        response[..4].copy_from_slice(&fd.to_ne_bytes());
        response[4..].copy_from_slice(&if allow { libc::FAN_ALLOW } else { libc::FAN_DENY }.to_ne_bytes());
        Ok(rustix::io::write(&self.group, &response).map(drop)?)
    }
}

/// An inode that is let pass without asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredInode {
    /// Its file system's number, as mountinfo shows it.
    pub device: u64,
    /// Its number.
    pub inode: u64,
    /// Its handle; `None` where the kernel lists none.
    pub handle: Option<Handle>,
}

impl IgnoredInode {
    /// A line of a group's file in `/proc/PID/fdinfo`, every number in hexadecimal:
    ///
    /// `fanotify ino:b sdev:800010 mflags:200 mask:40000000 ignored_mask:10000 fhandle-bytes:8 fhandle-type:1 f_handle:0b00…`
    ///
    /// `None` of any other line, and of a mark that ignores nothing or ignores for good.
    ///
    /// Source: `fanotify_fdinfo`, fs/notify/fdinfo.c.
    fn parse(line: &str) -> Option<Self> {
        let fields = line.strip_prefix("fanotify ino:").map(|_| line.split_ascii_whitespace())?;
        let text = |name: &str| fields.clone().find_map(|field| field.strip_prefix(name));
        let number = |name: &str| u64::from_str_radix(text(name)?, 16).ok();
        if number("ignored_mask:")? == 0 || number("mflags:")? & u64::from(libc::FAN_MARK_IGNORED_SURV_MODIFY) != 0 {
            return None;
        }
        // The kernel's own form of a device number: 12 bits and 20.
        let device = u32::try_from(number("sdev:")?).ok()?;
        let handle = || {
            let bytes = text("f_handle:")?.as_bytes().chunks(2);
            let bytes: Option<Vec<u8>> =
                bytes.map(|byte| u8::from_str_radix(std::str::from_utf8(byte).ok()?, 16).ok()).collect();
            let kind = u32::try_from(number("fhandle-type:")?).ok()?.cast_signed();
            let bytes = bytes.filter(|bytes| number("fhandle-bytes:") == Some(bytes.len() as u64))?;
            Some(Handle { kind, bytes })
        };
        Some(Self {
            device: rustix::fs::makedev(device >> 20, device & 0xf_ffff),
            inode: number("ino:")?,
            handle: handle(),
        })
    }
}

impl From<OwnedFd> for PermissionGroup {
    /// A group that another process has opened and handed over.
    fn from(group: OwnedFd) -> Self {
        Self { group }
    }
}

impl AsFd for PermissionGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

/// A group that tells nothing, and whose marks keep inodes in memory: a mark goes with its inode alone, when that is evicted or
/// deleted, or its file system unmounted, which a mark does not hinder.
#[derive(Debug)]
pub struct KeepingGroup {
    group: OwnedFd,
}

impl KeepingGroup {
    /// Opens a group; it needs CAP_SYS_ADMIN for as many marks as it takes.
    ///
    /// # Errors
    /// What fanotify_init(2) says.
    pub fn open() -> io::Result<Self> {
        Ok(Self { group: init(libc::FAN_CLASS_NOTIF | libc::FAN_UNLIMITED_MARKS)? })
    }

    /// Keeps the inode behind a descriptor in memory.
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    pub fn keep(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        // It ignores what the group is not told anyway.
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORED_MASK | libc::FAN_MARK_IGNORED_SURV_MODIFY;
        mark(&self.group, flags, libc::FAN_OPEN, Target::Descriptor(file))
    }

    /// Whether the inode has been kept in memory since it was asked for.
    pub fn is_kept(&self, file: BorrowedFd<'_>) -> bool {
        // What the mark has not cannot be taken from it, which is said only where there is none.
        let flags = libc::FAN_MARK_REMOVE | libc::FAN_MARK_IGNORED_MASK;
        mark(&self.group, flags, libc::FAN_ACCESS, Target::Descriptor(file)).is_ok()
    }

    /// Keeps none any more.
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    pub fn let_go(&self) -> io::Result<()> {
        mark(&self.group, libc::FAN_MARK_FLUSH, 0, Target::None)
    }
}

/// A group that tells, afterwards, which inode's attributes changed or which lost its last writer.
#[derive(Debug)]
pub struct ChangeGroup {
    group: OwnedFd,
}

/// What a [`ChangeGroup`] tells.
#[derive(Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Attributes or xattrs changed, or a descriptor open for writing and its writable mappings are gone.
    Inode {
        /// The file system's identifier, as statvfs(3) gives it.
        fsid: u64,
        /// The inode's handle.
        handle: FileHandle<'a>,
        /// Whether a writer went.
        writer_gone: bool,
        /// Whether attributes changed.
        attributes: bool,
        /// Whose process did it; 0 where that is not to be seen from here.
        pid: i32,
    },
    /// Events were lost: anything may have changed.
    Overflow,
}

/// An inode, as name_to_handle_at(2) and fanotify name it. Handles are equal exactly when the inode is the same.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
pub struct FileHandle<'a> {
    /// The kind of handle; the file system's own affair.
    pub kind: i32,
    /// The file system's bytes.
    pub bytes: &'a [u8],
}

impl ChangeGroup {
    /// Opens a group; it needs CAP_SYS_ADMIN for whole file systems. Its queue has the system's limit
    /// (`fs.fanotify.max_queued_events`): whoever changes attributes does not wait for us, and could fill any memory.
    ///
    /// # Errors
    /// What fanotify_init(2) says.
    pub fn open() -> io::Result<Self> {
        Ok(Self { group: init(libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID)? })
    }

    /// Watches the whole file system that holds this file or directory, which may be opened only to name it (`O_PATH`).
    ///
    /// # Errors
    /// ENODEV or EOPNOTSUPP where the file system has no handles, EXDEV on a subvolume other than the topmost.
    pub fn watch_filesystem(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let mask = libc::FAN_ATTRIB | libc::FAN_CLOSE_WRITE;
        mark(&self.group, libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM, mask, Target::Path(&named(file)))
    }

    /// Whether the file system with this device number is there and watched: what the kernel shows of the group's marks.
    /// In doubt it is.
    pub fn watches(&self, device: u64) -> bool {
        // The kernel's own form of a device number: 12 bits and 20.
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let mark = format!("sdev:{:x} ", major << 20 | minor);
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.group.as_raw_fd()))
            .map_or(true, |marks| marks.contains(&mark))
    }

    /// Waits for changes and tells each.
    ///
    /// # Errors
    /// What read(2) says, EINTR when a signal came.
    pub fn read(&self, buffer: &mut EventBuffer, mut change: impl FnMut(Change<'_>)) -> io::Result<()> {
        let mut bytes = read_into(&self.group, buffer)?;
        while let Some(record) = split_record(bytes) {
            if record.mask & libc::FAN_Q_OVERFLOW != 0 {
                change(Change::Overflow);
            } else if let Some((fsid, handle)) = split_handle(record.information) {
                let writer_gone = record.mask & libc::FAN_CLOSE_WRITE != 0;
                let attributes = record.mask & libc::FAN_ATTRIB != 0;
                change(Change::Inode { fsid, handle, writer_gone, attributes, pid: record.tid });
            }
            bytes = record.rest;
        }
        Ok(())
    }
}

/// The file system and the handle in a file identifier record.
fn split_handle(information: &[u8]) -> Option<(u64, FileHandle<'_>)> {
    let word = |at: usize| Some(u32::from_ne_bytes(information.get(at..at + 4)?.try_into().ok()?));
    let fsid = u64::from(word(4)?) | u64::from(word(8)?) << 32;
    let length = usize::try_from(word(12)?).ok()?;
    let kind = word(16)?.cast_signed();
    Some((fsid, FileHandle { kind, bytes: information.get(20..20 + length)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_split_or_refused_when_cut_short() {
        let mut record = Vec::new();
        record.extend(24u32.to_ne_bytes());
        record.extend([3, 0]);
        record.extend(24u16.to_ne_bytes());
        record.extend(libc::FAN_OPEN_PERM.to_ne_bytes());
        record.extend(7i32.to_ne_bytes());
        record.extend(42i32.to_ne_bytes());
        let split = Record { mask: libc::FAN_OPEN_PERM, fd: 7, tid: 42, information: &[], rest: &[] };
        assert_eq!(split_record(&record), Some(split));
        for length in 0..24 {
            assert_eq!(split_record(&record[..length]), None, "{length}");
        }
        record[0] = 200;
        assert_eq!(split_record(&record), None, "a length beyond what was read");
    }

    #[test]
    fn the_kernel_s_list_of_marks_is_read() {
        let line = |flags: &str, ignored: &str, handle: &str| {
            format!("fanotify ino:4f969 sdev:800013 mflags:{flags} mask:40000000 ignored_mask:{ignored} {handle}\n")
        };
        let handle = "fhandle-bytes:8 fhandle-type:1 f_handle:69f90400ff00b21a";
        let device = rustix::fs::makedev(8, 19);
        let parsed = IgnoredInode::parse(&line("200", "50000", handle)).unwrap();
        let bytes = vec![0x69, 0xf9, 4, 0, 0xff, 0, 0xb2, 0x1a];
        assert_eq!(parsed, IgnoredInode { device, inode: 0x4f969, handle: Some(Handle { kind: 1, bytes }) });
        for (name, line) in [
            ("it ignores nothing", line("200", "0", handle)),
            ("it ignores for good", line("240", "50000", handle)),
            ("a file system's", "fanotify sdev:800013 mflags:0 mask:50000 ignored_mask:0\n".into()),
            ("the group's own", "fanotify flags:137 event-flags:48800\n".into()),
            ("another field", "pos:\t0\n".into()),
            ("nothing", String::new()),
        ] {
            assert_eq!(IgnoredInode::parse(&line), None, "{name}");
        }
        for handle in
            ["", "fhandle-bytes:8 fhandle-type:1 f_handle:69f904", "fhandle-bytes:1 fhandle-type:1 f_handle:xy"]
        {
            let parsed = IgnoredInode::parse(&line("200", "50000", handle)).unwrap();
            assert_eq!((parsed.inode, parsed.handle), (0x4f969, None), "{handle}");
        }
    }

    #[test]
    fn a_queue_that_was_full_is_told() {
        const NAME: &str = "a_queue_that_was_full_is_told";
        let Ok(group) = ChangeGroup::open() else {
            println!("skipped: {NAME}: needs fanotify");
            return;
        };
        let limit = std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events");
        let limit = limit.ok().and_then(|limit| limit.trim().parse::<u32>().ok()).unwrap_or(16384);
        let directory = tempfile::tempdir().unwrap();
        let mask = libc::FAN_ATTRIB | libc::FAN_EVENT_ON_CHILD;
        if let Err(error) = mark(&group.group, libc::FAN_MARK_ADD, mask, Target::Path(directory.path())) {
            println!("skipped: {NAME}: needs file handles: {error}");
            return;
        }
        if limit > 100_000 {
            println!("skipped: {NAME}: needs a limit on queues that can be reached: {limit}");
            return;
        }
        // Changes of one inode are told once.
        for number in 0..=limit {
            let file = std::fs::File::create(directory.path().join(number.to_string())).unwrap();
            rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR).unwrap();
        }
        let (mut changes, mut full) = (0, false);
        while !full {
            let read = group.read(&mut EventBuffer::new(1024), |change| match change {
                Change::Inode { .. } => changes += 1,
                Change::Overflow => full = true,
            });
            read.unwrap();
        }
        assert_eq!(changes, limit);
    }
}
