//! Asking anew about everything that was let pass: another policy, mode or key is in force.
//!
//! To take every mark off would be one call (`FAN_MARK_FLUSH`), and a gap: the kernel lets an access pass unasked while a mark
//! of its inode is being taken off. So the marks stay, and what they ignore is taken back inode by inode. The kernel lists them
//! with their handles, and lists none that it has dropped itself, so nothing of it need be kept here:
//!
//! ```text
//!   generation + 1              what was judged before sets no mark any more
//!   /proc/self/fdinfo/GROUP ──▶ open by handle (O_PATH) ──▶ FAN_MARK_REMOVE of what is ignored
//!   what could not be opened ─▶ listed still? then FAN_MARK_FLUSH after all
//! ```
//!
//! A thread of its own does it, since opening an inode by its handle may wait for a disk, and whoever wishes it must not: who has waited for
//! [`PATIENCE`] without anything having moved has all marks taken off.

use super::Shared;
use crate::sys::fanotify::IgnoredInode;
use crate::sys::identity;
use imara_engine::cache::InodeId;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// How long nothing need move before it is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who wants to hear of it, if anybody.
type Wish = Option<SyncSender<io::Result<()>>>;

/// The line to the thread.
#[derive(Debug)]
pub(super) struct Wishes {
    line: SyncSender<Wish>,
    /// How many inodes it has been at.
    moved: AtomicU64,
}

/// Both ends of the line.
pub(super) fn wishes() -> (Wishes, Receiver<Wish>) {
    let (line, wished) = sync_channel(64);
    (Wishes { line, moved: AtomicU64::new(0) }, wished)
}

impl Shared {
    /// Has everything that was let pass asked about again, and forgets what programs named as their interpreters. A decision
    /// from before adds neither.
    pub(super) fn ask_again_all(&self) -> io::Result<()> {
        self.begin_anew();
        let (answer, answered) = sync_channel(1);
        if self.wishes.line.try_send(Some(answer)).is_err() {
            return self.group.ask_again_all();
        }
        loop {
            let before = self.wishes.moved.load(Ordering::Relaxed);
            match answered.recv_timeout(PATIENCE) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if self.wishes.moved.load(Ordering::Relaxed) != before => {}
                Err(_) => return self.group.ask_again_all(),
            }
        }
    }

    /// The same, without waiting for it.
    pub(super) fn wish_to_ask_again(&self) {
        self.begin_anew();
        if self.wishes.line.try_send(None).is_err() {
            // Cannot fail on a live group.
            let _ = self.group.ask_again_all();
        }
    }

    fn begin_anew(&self) {
        let mut generation = self.generation.write().unwrap_or_else(PoisonError::into_inner);
        *generation += 1;
        self.interpreters.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.marked.clear();
    }

    /// A thread's life: asks again about everything whenever somebody wishes it.
    pub(super) fn ask_again_when_wished(&self, wished: &Receiver<Wish>) {
        while !self.stopping.load(Ordering::Relaxed) {
            let Ok(first) = wished.recv_timeout(Duration::from_millis(500)) else {
                continue;
            };
            // One pass does for all who have wished it by now.
            let all: Vec<Wish> = std::iter::once(first).chain(wished.try_iter()).collect();
            let result = self.take_back_all();
            for wish in all.into_iter().flatten() {
                let result = result
                    .as_ref()
                    .map_or_else(|error| Err(io::Error::new(error.kind(), error.to_string())), |()| Ok(()));
                // It may have lost patience.
                let _ = wish.try_send(result);
            }
        }
    }

    fn take_back_all(&self) -> io::Result<()> {
        let mut left = HashSet::new();
        let read = self.group.each_ignored(|ignored| {
            if !self.take_back(&ignored) {
                left.insert(InodeId { device: ignored.device, inode: ignored.inode });
            }
            self.wishes.moved.fetch_add(1, Ordering::Relaxed);
        });
        let mut still_ignored = read.is_err();
        if !left.is_empty() && !still_ignored {
            // Gone meanwhile, most likely, and their marks with them.
            let read = self.group.each_ignored(|ignored| {
                still_ignored |= left.contains(&InodeId { device: ignored.device, inode: ignored.inode });
            });
            still_ignored |= read.is_err();
        }
        if still_ignored { self.group.ask_again_all() } else { Ok(()) }
    }

    /// Takes back what the mark of one inode ignores; false where the inode cannot be reached.
    fn take_back(&self, ignored: &IgnoredInode) -> bool {
        let Some((superblock, handle)) = self.superblocks.of(ignored.device).zip(ignored.handle.as_ref()) else {
            return false;
        };
        let file = superblock
            .directory()
            .and_then(|directory| identity::open_path(directory.as_fd(), handle.kind, &handle.bytes));
        file.and_then(|file| self.group.ask_again(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))).is_ok()
    }
}
