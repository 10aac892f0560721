//! Who reads which events.
//!
//! All local file systems share one fanotify group and its threads. A file system whose answers come from a process or over
//! a network (FUSE, NFS; and whatever somebody with a user namespace of their own has mounted) has a group and threads of
//! its own: to hand over an event the kernel opens the file, and where that is never answered, nobody can read on in that
//! thread, and the event has no number yet by which anybody could answer it. So it holds up nobody but those who use that
//! file system.

use super::question::{Asked, Question};
use super::{Shared, lock};
use crate::hooks::sentinel::Held;
use crate::hooks::workers::{Service, Workers};
use crate::sys::fanotify::{EventBuffer, PermissionGroup, Told};
use crate::sys::process as threads;
use rustix::event::{PollFd, PollFlags};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Threads for one file system with a group of its own: at the start, and at most.
const FOREIGN_THREADS: (usize, usize) = (2, 4);
/// File systems that have a group of their own, at most.
pub(super) const FOREIGN_MOST: usize = 32;

/// A group and the threads that read from it.
pub(super) struct Lane {
    pub(super) group: Arc<PermissionGroup>,
    workers: Mutex<Option<Workers<Reader>>>,
    /// That the sentinel holds the group.
    _held: Held,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Lane {
    /// Starts the threads that answer for one file system alone.
    pub(super) fn foreign(shared: &Arc<Shared>) -> io::Result<Arc<Self>> {
        let group = Arc::new(PermissionGroup::open()?);
        let (least, most) = FOREIGN_THREADS;
        // One event at a time: the next one's file may be the one whose opening is never answered.
        let workers = Workers::start(Arc::new(Reader::new(shared, &group, 1)), least, most)?;
        let held = shared.sentinel.hold(&group);
        Ok(Arc::new(Self { group, workers: Mutex::new(Some(workers)), _held: held }))
    }

    /// Ends its threads. What waits goes on when the last of them has gone.
    pub(super) fn stop(&self) {
        // What cannot be done on a group of our own is not worth telling.
        let _ = self.group.unwatch_everything();
        if let Some(workers) = lock(&self.workers).take() {
            workers.stop();
        }
    }
}

/// What the threads of a lane do.
pub(super) struct Reader {
    shared: Arc<Shared>,
    group: Arc<PermissionGroup>,
    events: usize,
    buffer: Mutex<EventBuffer>,
    stranger: Stranger,
}

/// Who asked last and is none of ours, in the millisecond when that was found out: until its end no thread of ours can have got
/// that number, as the kernel gives out all others first.
#[derive(Debug, Default)]
struct Stranger(AtomicU64);

impl Stranger {
    fn of(tid: i32, millisecond: u64) -> u64 {
        u64::from(tid.cast_unsigned()) << 32 | millisecond & 0xffff_ffff
    }

    fn is(&self, tid: i32, millisecond: u64) -> bool {
        tid > 0 && self.0.load(Ordering::Relaxed) == Self::of(tid, millisecond)
    }

    fn remember(&self, tid: i32, millisecond: u64) {
        self.0.store(Self::of(tid, millisecond), Ordering::Relaxed);
    }
}

impl Reader {
    /// Reads up to about `events` at a time.
    pub(super) fn new(shared: &Arc<Shared>, group: &Arc<PermissionGroup>, events: usize) -> Self {
        let buffer = Mutex::new(EventBuffer::new(events));
        let (shared, group) = (Arc::clone(shared), Arc::clone(group));
        Self { shared, group, events, buffer, stranger: Stranger::default() }
    }

    fn read_into(&self, buffer: &mut EventBuffer, jobs: &mut VecDeque<Arc<Asked>>) -> io::Result<()> {
        let counters = &self.shared.counters;
        self.group.read(buffer, |told| match told {
            Told::Asked(event) => {
                counters.events.fetch_add(1, Ordering::Relaxed);
                let arrived = Instant::now();
                let millisecond = self.shared.since_begun(arrived);
                if !self.stranger.is(event.tid, millisecond) && self.shared.is_exempt(event.tid) {
                    counters.exempt.fetch_add(1, Ordering::Relaxed);
                    // ENOENT: the thread was killed while it waited.
                    let _ = self.group.answer(event.file.as_fd(), true);
                } else {
                    self.stranger.remember(event.tid, millisecond);
                    jobs.push_back(self.shared.take_up(event, &self.group, arrived));
                }
            }
            Told::Overflow => {
                counters.overflows.fetch_add(1, Ordering::Relaxed);
            }
        })
    }
}

impl Service for Reader {
    type Job = Arc<Asked>;

    fn read(&self, jobs: &mut VecDeque<Arc<Asked>>) -> io::Result<()> {
        let result = match self.buffer.try_lock() {
            Ok(mut buffer) => self.read_into(&mut buffer, jobs),
            // One that does not come back from reading has it.
            Err(_) => self.read_into(&mut EventBuffer::new(self.events), jobs),
        };
        if result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
            self.shared.counters.lost.fetch_add(1, Ordering::Relaxed);
            let number = result.as_ref().err().and_then(io::Error::raw_os_error);
            if matches!(number, Some(libc::EMFILE | libc::ENFILE)) {
                // Leases hold the most descriptors.
                self.shared.release_all_leases();
            }
        }
        result
    }

    fn wait(&self, most: Duration) {
        let mut events = [PollFd::new(&*self.group, PollFlags::IN)];
        let most = rustix::event::Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: 0 };
        // EINTR is how it is ended.
        let _ = rustix::event::poll(&mut events, Some(&most));
    }

    fn is_pending(&self) -> bool {
        self.group.is_pending().unwrap_or(false)
    }

    fn work(&self, asked: Arc<Asked>) {
        let question = Question { asked: Some(asked), shared: &self.shared };
        // A panic is a bug of ours; it must cost no more than this one answer, which the question's end gives.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.shared.handle(question, false)));
    }
}

impl Shared {
    /// Ours and the software TPM's own accesses pass: whoever we wait for must not wait for us.
    fn is_exempt(&self, tid: i32) -> bool {
        if threads::belongs_to(tid, self.own) {
            return true;
        }
        let software_tpm = self.software_tpm.load(Ordering::Relaxed);
        if software_tpm == 0 || !threads::belongs_to(tid, software_tpm) {
            return false;
        }
        let alive = lock(&self.software_tpm_process).as_ref().is_some_and(|process| {
            let mut ended = [PollFd::new(process, PollFlags::IN)];
            let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut ended, Some(&at_once)) == Ok(0)
        });
        if !alive {
            // Another one may be in its place by now.
            let _ = self.software_tpm.compare_exchange(software_tpm, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        alive
    }
}
