//! The file and the task behind an event, as the engine asks about them; each answer is looked up once at most.

use crate::attribute_writer::AttributeWriter;
use crate::files::{self, Xattr};
use crate::inode;
use crate::mounts::{self, Filesystem};
use crate::process::{self, Credentials};
use crate::sys::lease;
use imara_engine::audit::TaskIdentity;
use imara_engine::cache::{InodeId, Stamp};
use imara_engine::check::{File, Task};
use imara_engine::crypto;
use imara_engine::evm::Place;
use imara_engine::policy::{FileFacts, Subject};
use imara_format::elf::{Elf, FILE_HEADER, ProgramHeaders};
use imara_format::evm::InodeMetadata;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::policy::Func;
use rustix::fs::{Stat, StatVfsMountFlags};
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

/// What is left to root alone is open to nobody else for writing: no lease is needed.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Without one of these nobody can execute a file: an ACL grants no more than the group's.
const EXECUTABLE: u32 = 0o111;

/// Up to this size a file that is about to be hashed is read whole where its headers are wanted first.
const SMALL: i64 = 16 << 10;

/// The time that a change of a file would be given now, in nanoseconds since 1970. That is the clock's value at the last tick,
/// which a busy machine can be late with: by a finer clock a change could seem to be long ago and the next one have the same time.
pub(crate) fn now() -> i128 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// What is known of those who write to a file, before anybody asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writers {
    /// Nothing.
    Unknown,
    /// There are none, and whoever comes waits: the descriptor holds a read lease.
    KeptAway,
    /// There were some when it was begun to judge.
    There,
}

/// What was seen of a file at one look: each system call is made once, and not for each question.
#[derive(Default)]
struct Seen {
    stamp: Cell<Option<Stamp>>,
    nobody_writes: Cell<Option<Option<bool>>>,
}

impl Seen {
    fn of(stat: &Stat) -> Self {
        Self { stamp: Cell::new(Some(stamp(stat))), nobody_writes: Cell::default() }
    }
}

/// The file behind an event.
pub struct OpenedFile<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) stat: Stat,
    filesystem: Arc<Filesystem>,
    elf: OnceCell<Option<Elf>>,
    writers: Writers,
    /// What was seen of it last, where a decision goes by that until it looks again.
    seen: Option<Seen>,
    /// Whether leases can be asked of its descriptor.
    leasable: Cell<bool>,
    /// Whether it is about to be hashed.
    to_be_hashed: bool,
    /// Its content, where it is small and nobody could write to it since the last look.
    content: RefCell<Option<Content>>,
    /// Whether a look from before it was read will do after it.
    steady: bool,
    /// Asked between two pieces of a large file: whoever ends the guard does not wait until it has been read.
    goes_on: Option<&'a dyn Fn() -> bool>,
    /// Who writes its attributes, where that must not be waited for.
    writer: Option<&'a Arc<AttributeWriter>>,
    /// Whether its label has not followed its content because it could not be written.
    label_is_late: bool,
    /// What comes before the path that its descriptor shows.
    place: Vec<u8>,
}

impl<'a> OpenedFile<'a> {
    /// The file behind a descriptor that is open for reading.
    ///
    /// # Errors
    /// What fstat(2), fstatfs(2) or mountinfo say.
    pub fn new(file: BorrowedFd<'a>) -> io::Result<Self> {
        Self::on(file, Arc::new(mounts::filesystem_of(file)?))
    }

    /// The same, where its file system is known already.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn on(file: BorrowedFd<'a>, filesystem: Arc<Filesystem>) -> io::Result<Self> {
        Ok(Self::in_state(file, rustix::fs::fstat(file)?, filesystem))
    }

    const fn in_state(file: BorrowedFd<'a>, stat: Stat, filesystem: Arc<Filesystem>) -> Self {
        Self {
            file,
            stat,
            filesystem,
            elf: OnceCell::new(),
            writers: Writers::Unknown,
            seen: None,
            leasable: Cell::new(false),
            to_be_hashed: false,
            content: RefCell::new(None),
            steady: false,
            goes_on: None,
            writer: None,
            label_is_late: false,
            place: Vec::new(),
        }
    }

    /// The file behind an event, in this state just now, whose reading ends when `goes_on` says so. What is seen of it holds
    /// until the decision looks again ([`File::look_again`]).
    pub(crate) fn of_event(
        file: BorrowedFd<'a>,
        stat: Stat,
        filesystem: Arc<Filesystem>,
        goes_on: &'a dyn Fn() -> bool,
    ) -> Self {
        Self { seen: Some(Seen::of(&stat)), goes_on: Some(goes_on), ..Self::in_state(file, stat, filesystem) }
    }

    /// Its attributes are written by `writer`, whom nobody waits for when the file system is frozen.
    #[must_use]
    pub(crate) const fn written_by(mut self, writer: &'a Arc<AttributeWriter>) -> Self {
        self.writer = Some(writer);
        self
    }

    /// Its path begins with this, before what its descriptor shows.
    #[must_use]
    pub(crate) fn in_place(mut self, place: Vec<u8>) -> Self {
        self.place = place;
        self
    }

    /// Its label has not followed its content, as it could not be written.
    pub(crate) const fn judge_without_label(&mut self) {
        self.label_is_late = true;
    }

    /// Keeps whoever would write to it waiting, from here on for as long as its descriptor is open; whose waiting is told to
    /// the thread `tid`. Where somebody can write already, that is how it is judged, even if they end meanwhile. Does nothing
    /// where the file that is written to may be another one.
    pub(crate) fn hold(&mut self, tid: i32) {
        /// A writer who is about to end is waited for as long.
        const TRIES: u32 = 5;
        const PAUSE: Duration = Duration::from_micros(200);
        // On an overlay it keeps those away who write by it, which is what can be done.
        if self.filesystem.foreign {
            return;
        }
        for attempt in 0..TRIES {
            match lease::hold(self.file, tid) {
                Ok(()) => {
                    self.writers = Writers::KeptAway;
                    // What it is now stays so.
                    if let Ok(stat) = rustix::fs::fstat(self.file) {
                        self.stat = stat;
                    }
                    self.seen = Some(Seen::of(&self.stat));
                    return;
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    self.writers = Writers::There;
                    if attempt + 1 < TRIES {
                        std::thread::sleep(PAUSE);
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Whether [`Self::hold`] keeps writers away.
    pub(crate) fn is_held(&self) -> bool {
        self.writers == Writers::KeptAway
    }

    /// Nothing is known of it yet: where its headers are looked at, its content is read with them.
    pub(crate) fn expect_hashing(&mut self) {
        self.to_be_hashed = true;
    }

    /// What was seen of it before it is read will do afterwards, where another look could find nothing that counts: nobody could
    /// write to it; root alone may open it for that, and is asked about and waits for this decision; and whoever changes it in
    /// another way changes its times, by which what is found out is kept, and which are compared before it is let pass unasked. Not
    /// for what is about to be run, which nobody may be changing meanwhile.
    pub(crate) fn trust_look(&mut self) {
        self.steady = self.root_only() && self.times_tell();
    }

    /// Whether another inode holds its data.
    pub(crate) fn is_on_overlay(&self) -> bool {
        self.filesystem.name == "overlay"
    }

    /// The inode that is written to need not be the one that a lease is asked of.
    fn is_elsewhere(&self) -> bool {
        self.filesystem.foreign || self.is_on_overlay()
    }

    fn nobody_writes_now(&self) -> Option<bool> {
        match self.writers {
            Writers::There => Some(false),
            // Asking for another lease, and giving it back, would end this one.
            Writers::KeptAway if !lease::is_held(self.file) => Some(false),
            // Whoever writes by the layer is not seen.
            _ if self.is_on_overlay() => self.ask_for_lease().filter(|nobody_writes| !nobody_writes),
            _ if self.is_elsewhere() => None,
            Writers::KeptAway => Some(true),
            Writers::Unknown => self.ask_for_lease(),
        }
    }

    /// Whether nobody can write by way of this very inode.
    fn ask_for_lease(&self) -> Option<bool> {
        if self.writers == Writers::KeptAway {
            return Some(true);
        }
        // Where root alone can be in the lease's way, its breaking may look like lost signals.
        if !self.root_only() && !self.leasable.get() {
            lease::prepare(self.file).ok()?;
            self.leasable.set(true);
        }
        lease::nobody_writes(self.file)
    }

    /// Our own change of its attributes is one, too.
    fn forget_stamp(&self) {
        if let Some(seen) = &self.seen {
            seen.stamp.set(None);
        }
    }

    /// Reads it whole, where it is small and its digest is wanted next; not where it may change meanwhile.
    fn read_ahead(&self) {
        let quiet = self.seen.as_ref().is_some_and(|seen| seen.nobody_writes.get() == Some(Some(true)));
        if self.to_be_hashed && quiet && self.stat.st_size <= SMALL {
            self.content.replace(Content::read(self.file, self.stat.st_size as usize));
        }
    }

    /// What a piece of it says, as far as it goes.
    fn read<T>(&self, offset: u64, length: usize, says: impl FnOnce(&[u8]) -> T) -> Option<T> {
        if let Some(content) = &*self.content.borrow() {
            let from = content.0.len().min(usize::try_from(offset).ok()?);
            let to = content.0.len().min(from.checked_add(length)?);
            return Some(says(&content.0[from..to]));
        }
        let mut bytes = vec![0; length];
        let read = rustix::io::pread(self.file, &mut bytes, offset).ok()?;
        Some(says(&bytes[..read]))
    }

    /// Its ELF headers, if it has any.
    pub fn elf(&self) -> Option<Elf> {
        *self.elf.get_or_init(|| {
            self.read_ahead();
            let headers = self.read(0, FILE_HEADER, ProgramHeaders::parse)??;
            self.read(headers.offset, headers.length(), |bytes| Elf::parse(&headers, bytes))
        })
    }

    /// Whether it was made just now: empty, and not a second old. A file system that does not know when is believed by the size alone,
    /// where the opening could have made it.
    pub(crate) fn is_newborn(&self, could_make: bool) -> bool {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        if self.stat.st_size != 0 {
            return false;
        }
        let flags = AtFlags::EMPTY_PATH;
        let born = statx(self.file, c"", flags, StatxFlags::BTIME)
            .ok()
            .filter(|statx| statx.stx_mask & StatxFlags::BTIME.bits() != 0);
        born.map_or(could_make, |statx| {
            let born = i128::from(statx.stx_btime.tv_sec) * 1_000_000_000 + i128::from(statx.stx_btime.tv_nsec);
            now() - born < 1_000_000_000
        })
    }

    /// Whether its size and time of change, as the kernel itself has them, are those that stat(2) shows.
    pub(crate) fn stamp_tells(&self) -> bool {
        self.times_tell()
    }

    /// Whether root alone may open it for writing.
    pub(crate) const fn root_only(&self) -> bool {
        self.stat.st_uid == 0 && self.stat.st_mode & WRITABLE_BY_OTHERS == 0
    }

    /// Whether anybody may execute it, root included; who gives that right later changes the inode.
    pub(crate) const fn is_executable(&self) -> bool {
        self.stat.st_mode & EXECUTABLE != 0
    }

    /// Whether MMAP_CHECK is to be asked when it is opened.
    pub fn mappable(&self, policy: &imara_engine::policy::CompiledPolicy) -> bool {
        (policy.wants(Func::MmapCheck) || policy.wants(Func::MmapCheckReqprot))
            && self.elf().is_some_and(|elf| elf.executable_segment)
    }

    pub(crate) fn interpreter_path(&self, offset: u64, length: u64) -> Option<String> {
        let length = usize::try_from(length).ok().filter(|length| *length <= libc::PATH_MAX as usize)?;
        self.read(offset, length, |bytes| {
            let path = bytes.split(|byte| *byte == 0).next()?;
            String::from_utf8(path.to_vec()).ok().filter(|path| path.starts_with('/'))
        })?
    }
}

/// A small file's content, in a buffer that serves one file after the other.
struct Content(Vec<u8>);

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Content {
    fn read(file: BorrowedFd<'_>, size: usize) -> Option<Self> {
        let mut content = Self(SPARE.take());
        content.0.resize(size, 0);
        (rustix::io::pread(file, &mut content.0[..], 0) == Ok(size)).then_some(content)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        SPARE.set(std::mem::take(&mut self.0));
    }
}

/// The path of an open file, from the root of the mount namespace that it was opened in.
pub(crate) fn path_of(file: BorrowedFd<'_>) -> Vec<u8> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    link.into_os_string().into_vec()
}

/// The state of a file that stat(2) shows.
pub(crate) fn stamp(stat: &Stat) -> Stamp {
    let time = |seconds: i64, nanoseconds: u64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    Stamp {
        size: stat.st_size.cast_unsigned(),
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

impl File for OpenedFile<'_> {
    fn id(&self) -> InodeId {
        InodeId { device: self.stat.st_dev, inode: self.stat.st_ino }
    }

    fn stamp(&self) -> io::Result<Stamp> {
        if let Some(seen) = self.seen.as_ref().and_then(|seen| seen.stamp.get()) {
            return Ok(seen);
        }
        let now = stamp(&rustix::fs::fstat(self.file)?);
        if let Some(seen) = &self.seen {
            seen.stamp.set(Some(now));
        }
        Ok(now)
    }

    fn facts(&self) -> FileFacts<'_> {
        FileFacts {
            owner: self.stat.st_uid,
            group: self.stat.st_gid,
            fsmagic: self.filesystem.magic,
            fsname: &self.filesystem.name,
            fs_subtype: &self.filesystem.subtype,
            fsuuid: self.filesystem.uuid,
        }
    }

    fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match files::read_xattr(self.file, name)? {
            Xattr::Value(value) => Ok(Some(value)),
            Xattr::Absent => Ok(None),
            Xattr::Unsupported => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn set_xattr(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.forget_stamp();
        match self.writer {
            Some(writer) => writer.set(self.file, name, value),
            None => files::set_xattr(self.file, name, value),
        }
    }

    fn remove_xattr(&self, name: &str) -> io::Result<()> {
        self.forget_stamp();
        match self.writer {
            Some(writer) => writer.remove(self.file, name),
            None => files::remove_xattr(self.file, name).map(drop),
        }
    }

    fn writes_wait(&self) -> bool {
        self.writer.is_some_and(|writer| writer.waits())
    }

    fn label_is_late(&self) -> bool {
        self.label_is_late
    }

    fn inode(&self) -> io::Result<InodeMetadata> {
        // As it is now, and not as it was when the event came.
        let stat = inode::raw_stat(self.file, rustix::fs::fstat(self.file)?)?;
        let mode = u16::try_from(stat.st_mode).map_err(io::Error::other)?;
        Ok(InodeMetadata { inode: stat.st_ino, generation: 0, uid: stat.st_uid, gid: stat.st_gid, mode })
    }

    fn generation(&self) -> io::Result<u32> {
        inode::generation(self.file)
    }

    fn fs_uuid(&self) -> io::Result<[u8; 16]> {
        self.filesystem.evm_uuid()
    }

    fn place(&self) -> io::Result<Place> {
        let flags = rustix::fs::fstatvfs(self.file)?.f_flag;
        Ok(Place {
            overlay: self.is_on_overlay(),
            // What user namespace mounted it cannot be asked.
            foreign: false,
            read_only: flags.contains(StatVfsMountFlags::RDONLY),
            pseudo: matches!(self.filesystem.name.as_str(), "tmpfs" | "sysfs"),
        })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file)
    }

    fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
        let goes_on = || self.goes_on.is_none_or(|goes_on| goes_on());
        let quiet = self.seen.as_ref().filter(|seen| seen.nobody_writes.get() == Some(Some(true)));
        let stamp = quiet.and_then(|seen| seen.stamp.get());
        if let (Some(stamp), Some(content)) = (stamp, &*self.content.borrow())
            && stamp.size == content.0.len() as u64
        {
            return crypto::hash(algorithm, &[&content.0])
                .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error));
        }
        match stamp {
            // Whether it was so until its end is seen afterwards.
            Some(stamp) => files::digest_of_size_while(self.file, stamp.size, algorithm, goes_on),
            None => files::digest_while(self.file, algorithm, goes_on),
        }
    }

    fn verity_digest(&self) -> io::Result<Option<Digest>> {
        crate::verity::measure(self.file)
    }

    fn path(&self) -> Vec<u8> {
        let mut path = path_of(self.file);
        // The kernel's IMA names a deleted file without the mark that /proc adds.
        if self.stat.st_nlink == 0 && path.ends_with(b" (deleted)") {
            path.truncate(path.len() - b" (deleted)".len());
        }
        if self.place.is_empty() { path } else { [&self.place[..], &path].concat() }
    }

    fn nobody_writes(&self) -> Option<bool> {
        if let Some(seen) = self.seen.as_ref().and_then(|seen| seen.nobody_writes.get()) {
            return seen;
        }
        let now = self.nobody_writes_now();
        if let Some(seen) = &self.seen {
            // A state from before may be that before the last writer's change, unless writers were kept away by then.
            if self.writers != Writers::KeptAway {
                seen.stamp.set(None);
            }
            seen.nobody_writes.set(Some(now));
        }
        now
    }

    fn last_writer_gone(&self) -> bool {
        // Who may write by the layer may write by the overlay, and a label that is behind is no pass.
        if !self.is_on_overlay() {
            return self.nobody_writes() == Some(true);
        }
        let gone = self.ask_for_lease();
        if let (Some(false), Some(seen)) = (gone, &self.seen) {
            // He has come since the last look, and the label has not followed yet.
            seen.nobody_writes.set(Some(Some(false)));
        }
        gone == Some(true)
    }

    fn look_again(&self) {
        self.content.take();
        if let Some(seen) = &self.seen {
            seen.stamp.set(None);
            seen.nobody_writes.set(None);
        }
    }

    fn was_read(&self) {
        if !self.steady {
            self.look_again();
        }
    }

    fn times_tell(&self) -> bool {
        // Elsewhere, and on tmpfs above all, a store through a mapping can leave the times as they are.
        ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "exfat"].contains(&self.filesystem.name.as_str())
    }
}

/// The task behind an event; what it is gets looked up when somebody asks.
pub struct OpeningTask {
    pub(crate) tid: i32,
    credentials: OnceCell<Credentials>,
}

impl OpeningTask {
    /// The task with this thread number.
    pub const fn new(tid: i32) -> Self {
        Self { tid, credentials: OnceCell::new() }
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        // Of a task that has ended meanwhile nothing is known, and nothing that is decided reaches it.
        self.credentials.get_or_init(|| process::credentials(self.tid).unwrap_or_default())
    }
}

impl Subject for OpeningTask {
    fn uid(&self) -> u32 {
        self.credentials().uids[0]
    }

    fn gid(&self) -> u32 {
        self.credentials().gids[0]
    }

    fn euids(&self) -> [u32; 3] {
        let [real, effective, saved, _] = self.credentials().uids;
        [effective, saved, real]
    }

    fn egids(&self) -> [u32; 3] {
        let [real, effective, saved, _] = self.credentials().gids;
        [effective, saved, real]
    }

    fn can_setuid(&self) -> bool {
        self.credentials().can_setuid()
    }

    fn can_setgid(&self) -> bool {
        self.credentials().can_setgid()
    }
}

impl Task for OpeningTask {
    fn identity(&self) -> TaskIdentity {
        process::identity(self.tid, self.credentials())
    }

    fn command(&self) -> Vec<u8> {
        self.credentials().command.clone().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_was_read_with_the_headers_serves_until_it_is_looked_at_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for size in [0, 1, 63, 8 << 10, 16 << 10, (16 << 10) + 1] {
            let [before, after] = [b'a', b'b'].map(|byte| vec![byte; size]);
            std::fs::write(&path, &before).unwrap();
            let opened = std::fs::File::open(&path).unwrap();
            let stat = rustix::fs::fstat(&opened).unwrap();
            let filesystem = Arc::new(mounts::filesystem_of(opened.as_fd()).unwrap());
            let goes_on = || true;
            let mut file = OpenedFile::of_event(opened.as_fd(), stat, filesystem, &goes_on);
            file.expect_hashing();
            let quiet = file.nobody_writes() == Some(true);
            assert_eq!(file.elf(), None);
            assert_eq!(file.content.borrow().is_some(), quiet && size <= 16 << 10, "{size}");
            let digest = |content: &[u8]| crypto::hash(HashAlgorithm::Sha256, &[content]).unwrap();
            assert_eq!(file.digest(HashAlgorithm::Sha256).unwrap(), digest(&before));
            std::fs::write(&path, &after).unwrap();
            file.look_again();
            assert_eq!(file.digest(HashAlgorithm::Sha256).unwrap(), digest(&after), "{size}");
        }
    }
}
