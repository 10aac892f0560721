//! From the answer to an execution until the kernel itself keeps writers away.
//!
//! execve(2) opens the program, for which we are asked, and only then denies everybody to write to it (ETXTBSY). Who opens
//! it for writing in between could run what nobody has judged: a few microseconds, or as long as the task does not get
//! a processor. So the read lease that was held while the file was judged is held on, by the event's own descriptor, until the
//! task runs the program, or is gone: a writer waits that long.

use super::Shared;
use super::question::Asked;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError};
use std::time::{Duration, Instant};

/// No longer than this is a writer kept waiting: a program that runs itself anew, or that the kernel then does not run,
/// cannot be told from one that is not there yet.
const MOST: Duration = Duration::from_millis(50);
/// How often it is looked whether a task has got there.
const STEP: Duration = Duration::from_micros(200);

/// A task on its way into a program.
pub(super) struct Passage {
    asked: Arc<Asked>,
    /// What it ran when it asked.
    before: Option<(u64, u64)>,
    until: Instant,
}

/// The device and inode of what a task runs. Looking at it opens nothing.
fn program_of(tid: i32) -> Option<(u64, u64)> {
    let file = std::fs::metadata(format!("/proc/{tid}/exe")).ok()?;
    Some((file.dev(), file.ino()))
}

impl Passage {
    pub(super) fn new(asked: &Arc<Asked>) -> Self {
        Self { asked: Arc::clone(asked), before: program_of(asked.event.tid), until: Instant::now() + MOST }
    }

    fn is_over(&self) -> bool {
        let now = program_of(self.asked.event.tid);
        now.is_none() || now != self.before || Instant::now() > self.until
    }
}

impl Shared {
    /// Holds the file's lease on until the task is through.
    pub(super) fn let_through(&self, mut passage: Passage) {
        passage.until = Instant::now() + MOST;
        match self.passages.try_send(passage) {
            Ok(()) => {}
            // So many at once have no room: these go without.
            Err(TrySendError::Full(passage) | TrySendError::Disconnected(passage)) => drop(passage),
        }
    }

    /// A thread's life: lets go of the files of tasks that are through.
    pub(super) fn watch_passages(&self, passages: &Receiver<Passage>) {
        let mut under_way: Vec<Passage> = Vec::new();
        while !self.stopping.load(Ordering::Relaxed) {
            let patience = if under_way.is_empty() { Duration::from_millis(500) } else { STEP };
            match passages.recv_timeout(patience) {
                Ok(passage) => under_way.push(passage),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            under_way.extend(passages.try_iter());
            under_way.retain(|passage| !passage.is_over());
        }
    }
}
