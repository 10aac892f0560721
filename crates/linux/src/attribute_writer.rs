//! Attributes that a decision writes, on a file system that may be frozen.
//!
//! Who writes to a frozen file system (fsfreeze(8), a snapshot) waits in the kernel until it is thawed, which no signal ends, and
//! nothing tells beforehand that it is. So a file system's attributes are written by a thread of its own, and who wants one written
//! waits for [`PATIENCE`] alone: then it is told [`ErrorKind::TimedOut`]. What has been begun with is written when the file system
//! is thawed; what has not is dropped, as its file may be another by then. While one write waits, nobody waits for another.

use crate::files;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long one write is waited for. A disk that is busy takes as long; a snapshot takes longer.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// How long the thread stays when there is nothing to write.
const REST: Duration = Duration::from_secs(5);

/// What is done to an attribute.
#[derive(Clone, Debug)]
struct Change {
    name: String,
    /// Its new value; `None` takes it away.
    value: Option<Vec<u8>>,
}

impl Change {
    fn make(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        match &self.value {
            Some(value) => files::set_xattr(file, &self.name, value),
            None => files::remove_xattr(file, &self.name).map(drop),
        }
    }
}

#[derive(Debug)]
struct Job {
    number: u64,
    file: OwnedFd,
    change: Change,
    done: SyncSender<io::Result<()>>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    /// How many there were.
    jobs: u64,
    /// Whether there is a thread.
    runs: bool,
    /// Since when it has been at one.
    begun: Option<Instant>,
}

/// Writes the attributes of one file system's files.
#[derive(Debug, Default)]
pub struct AttributeWriter {
    state: Mutex<State>,
    wake: Condvar,
}

impl AttributeWriter {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a write has been waiting for so long that no other is waited for.
    pub fn waits(&self) -> bool {
        self.lock().begun.is_some_and(|begun| begun.elapsed() >= PATIENCE)
    }

    /// Sets an attribute, new or not.
    ///
    /// # Errors
    /// What the kernel says; `TimedOut` where it says nothing.
    pub fn set(self: &Arc<Self>, file: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<()> {
        self.change(file, Change { name: name.to_owned(), value: Some(value.to_vec()) })
    }

    /// Takes an attribute away, if there is one.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn remove(self: &Arc<Self>, file: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        self.change(file, Change { name: name.to_owned(), value: None })
    }

    fn change(self: &Arc<Self>, file: BorrowedFd<'_>, change: Change) -> io::Result<()> {
        if self.waits() {
            return Err(late());
        }
        let file = file.try_clone_to_owned()?;
        let (done, result) = sync_channel(1);
        let mut state = self.lock();
        state.jobs += 1;
        let number = state.jobs;
        if !state.runs {
            let writer = Arc::clone(self);
            std::thread::Builder::new().name("attributes".into()).spawn(move || writer.serve())?;
            state.runs = true;
        }
        state.queue.push_back(Job { number, file, change, done });
        drop(state);
        self.wake.notify_one();
        match result.recv_timeout(PATIENCE) {
            Ok(result) => result,
            // The thread panicked.
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the thread that writes attributes ended")),
            Err(RecvTimeoutError::Timeout) => {
                self.lock().queue.retain(|job| job.number != number);
                // It may have been done just now.
                result.try_recv().unwrap_or_else(|_| Err(late()))
            }
        }
    }

    /// The thread's life.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            let Some(Job { file, change, done, .. }) = state.queue.pop_front() else {
                let empty = |state: &mut State| state.queue.is_empty();
                let waited = self.wake.wait_timeout_while(state, REST, empty);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if state.queue.is_empty() {
                    state.runs = false;
                    return;
                }
                continue;
            };
            state.begun = Some(Instant::now());
            drop(state);
            let result = change.make(std::os::fd::AsFd::as_fd(&file));
            // Whoever goes on by it may unmount the file system.
            drop(file);
            state = self.lock();
            state.begun = None;
            drop(state);
            // Nobody may wait any more.
            let _ = done.send(result);
            state = self.lock();
        }
    }
}

/// What is told instead of waiting.
fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "its file system takes no changes now, as one that is frozen")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_are_written_in_turn_and_what_the_kernel_says_is_told() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = std::fs::File::create(directory.path().join("file")).unwrap();
        if files::set_xattr(&file, "user.imara", b"x").is_err() {
            return println!(
                "skipped: attributes_are_written_in_turn_and_what_the_kernel_says_is_told: needs user.* on /var/tmp"
            );
        }
        let writer = Arc::new(AttributeWriter::default());
        let value = || files::read_xattr(&file, "user.imara").unwrap();
        for number in 0..3_u8 {
            writer.set(file.as_fd(), "user.imara", &[number]).unwrap();
            assert!(matches!(value(), files::Xattr::Value(value) if value == [number]));
        }
        for _ in 0..2 {
            writer.remove(file.as_fd(), "user.imara").unwrap();
            assert!(matches!(value(), files::Xattr::Absent));
        }
        let error = writer.set(file.as_fd(), "no.such", b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(!writer.waits());
    }

    #[test]
    fn while_one_write_waits_nobody_waits_for_another() {
        let writer = Arc::new(AttributeWriter::default());
        let file = std::fs::File::open("/dev/null").unwrap();
        writer.lock().begun = Instant::now().checked_sub(PATIENCE);
        assert!(writer.waits());
        assert_eq!(writer.set(file.as_fd(), "user.imara", b"x").unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(writer.lock().queue.is_empty(), "it is not done later either");
        // As the thread does that is at another one.
        (writer.lock().begun, writer.lock().runs) = (None, true);
        assert_eq!(writer.set(file.as_fd(), "user.imara", b"x").unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(writer.lock().queue.is_empty(), "nor this one, which nobody has begun with");
    }
}
