//! Changes of attributes and the end of the last writer, told by a second group: what was let pass is taken back.

use super::Shared;
use super::superblocks::Superblock;
use crate::opened::{OpenedFile, now};
use crate::process;
use crate::sys::fanotify::{Change, EventBuffer, FileHandle};
use crate::sys::identity::{self, Handle};
use imara_engine::cache::InodeId;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A file whose labels are to follow.
pub(super) struct Relabel {
    superblock: Arc<Superblock>,
    handle: Handle,
    follows: Follows,
}

/// What they follow.
#[derive(Clone, Copy)]
enum Follows {
    /// The content, whose last writer has gone.
    Content,
    /// What this process did to its attributes.
    Attributes { pid: i32 },
}

/// What is told of an inode.
#[derive(Clone, Copy)]
struct Told {
    writer_gone: bool,
    attributes: bool,
    /// Whose process did it; 0 where that is not to be seen from here.
    pid: i32,
}

impl Shared {
    /// A thread's life: takes back what was let pass when attributes change or the last writer goes.
    pub(super) fn watch_changes(&self, labels: &SyncSender<Relabel>) {
        let Some(changes) = &self.changes else {
            return;
        };
        let mut buffer = EventBuffer::new(256);
        while !self.stopping.load(Ordering::Relaxed) {
            // EINTR is how it is ended.
            let _ = changes.read(&mut buffer, |change| {
                self.counters.changes.fetch_add(1, Ordering::Relaxed);
                match change {
                    Change::Inode { fsid, handle, writer_gone, attributes, pid } => {
                        let told = Told { writer_gone, attributes, pid };
                        self.changed(fsid, &handle, told, labels);
                    }
                    Change::Overflow => {
                        self.counters.overflows.fetch_add(1, Ordering::Relaxed);
                        self.checker.cache().clear();
                        self.wish_to_ask_again();
                    }
                }
            });
        }
    }

    fn changed(&self, fsid: u64, handle: &FileHandle<'_>, told: Told, labels: &SyncSender<Relabel>) {
        let Told { writer_gone, attributes, pid } = told;
        // Unmounted meanwhile: its marks are gone, or were taken back with it.
        let Some(superblock) = self.superblocks.told_as(fsid) else {
            return;
        };
        let open = || identity::open_path(superblock.directory()?.as_fd(), handle.kind, handle.bytes);
        let mut named: Option<OwnedFd> = None;
        let id = match superblock.inode_in(handle.kind, handle.bytes) {
            Some(inode) => InodeId { device: superblock.device, inode },
            // Gone meanwhile: nobody opens it any more.
            None => {
                let Ok(file) = open() else {
                    return;
                };
                let Ok(stat) = rustix::fs::fstat(&file) else {
                    return;
                };
                named = Some(file);
                InodeId { device: stat.st_dev, inode: stat.st_ino }
            }
        };
        // Before anything is forgotten: what is judged from now on knows of it.
        let look = pid != self.own && self.checker.attributes_noticed(id, attributes);
        self.checker.changed(id, writer_gone);
        self.forget_interpreter(id);
        // It may have been deleted, and a descriptor of ours keeps its room taken. The mark goes with the lease.
        let leased = self.drop_lease(id);
        if self.marked.remove(id)
            && !leased
            && let Some(file) = named.or_else(|| open().ok())
        {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            // ENOENT, no mark, is no error; anything else cannot happen on a live group.
            let _ = self.group.ask_again(Path::new(&path));
        }
        // Labelling takes time, and changes must not wait for it; where the queue is full the next open sees to it.
        let follow = |follows| {
            let handle = Handle { kind: handle.kind, bytes: handle.bytes.to_vec() };
            let _ = labels.try_send(Relabel { superblock: Arc::clone(&superblock), handle, follows });
        };
        if writer_gone && self.checker.maintains(id) {
            follow(Follows::Content);
        }
        if look {
            follow(Follows::Attributes { pid });
        }
    }

    pub(super) fn forget_interpreter(&self, id: InodeId) {
        let known = self.interpreters.read().unwrap_or_else(PoisonError::into_inner).contains_key(&id);
        if known {
            self.interpreters.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }

    /// A thread's life: has digest labels follow what was written, and EVM's what was done to attributes.
    pub(super) fn refresh_labels(&self, files: &Receiver<Relabel>) {
        let mut late = Late::default();
        while !self.stopping.load(Ordering::Relaxed) {
            if let Ok(file) = files.recv_timeout(LOOK) {
                late.extend(self.relabel(file));
            }
            if late.is_due() {
                for file in late.take() {
                    late.extend(self.relabel(file));
                }
            }
            self.counters.late_labels.store(late.files.len() as u64, Ordering::Relaxed);
        }
    }

    /// Has a file's labels follow. Gives it back where nothing can be written to its file system now, which must not keep others'
    /// labels waiting.
    fn relabel(&self, file: Relabel) -> Option<Relabel> {
        let superblock = Arc::clone(&file.superblock);
        if superblock.writer.waits() {
            return Some(file);
        }
        // Our own open passes. A file that cannot be read or labelled is judged as it is.
        let descriptor = superblock.open(&file.handle).ok()?;
        let opened = OpenedFile::on(descriptor.as_fd(), Arc::clone(&superblock.filesystem)).ok()?;
        let opened = opened.written_by(&superblock.writer).in_place(superblock.place_of_handles());
        match file.follows {
            Follows::Content => {
                let result = self.checker.refresh_after_close(&opened);
                return result.is_err_and(|error| error.kind() == ErrorKind::TimedOut).then_some(file);
            }
            Follows::Attributes { pid } => {
                // One that has ended meanwhile is not known any more.
                let credentials = process::credentials(pid).ok();
                let who = credentials.map(|credentials| process::identity(pid, &credentials));
                self.checker.attributes_changed(&opened, who, now());
            }
        }
        None
    }
}

/// How often files whose labels are late are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How many there may be. For those beyond, the next one who opens them sees to it.
const MOST_LATE: usize = 1 << 16;

/// Files whose labels could not be written yet.
struct Late {
    files: Vec<Relabel>,
    looked: Instant,
}

impl Default for Late {
    fn default() -> Self {
        Self { files: Vec::new(), looked: Instant::now() }
    }
}

impl Late {
    fn extend(&mut self, file: Option<Relabel>) {
        if self.files.len() < MOST_LATE {
            self.files.extend(file);
        }
    }

    fn is_due(&self) -> bool {
        !self.files.is_empty() && self.looked.elapsed() >= LOOK
    }

    fn take(&mut self) -> Vec<Relabel> {
        self.looked = Instant::now();
        std::mem::take(&mut self.files)
    }
}
