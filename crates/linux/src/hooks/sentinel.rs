//! What lets everybody go on when the guard no longer does: the line between it and a process beside it, the sentinel.
//!
//! The kernel lets every access go on once the last descriptor of a fanotify group is closed. A guard that was killed does
//! that; one that was stopped, or that hangs, does not, and neither does one of which a thread stays in the kernel after it was
//! killed (a FUSE that never answers). So the sentinel holds the guard's groups as well: it can take every mark away,
//! answer what the guard has read (an answer names the descriptor by its number in the guard, whoever gives it), and read and
//! answer the rest.
//!
//! A message is one packet:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 1 | `b`: the guard gets on; `h`: hold this group, which comes with the packet; `r`: let it go |
//! | 1 | 8 | the group's number, little-endian; 0 for `b` |

use crate::sys::fanotify::{EventBuffer, PermissionGroup, Told};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

const BEAT: u8 = b'b';
const HOLD: u8 = b'h';
const RELEASE: u8 = b'r';
const MESSAGE: usize = 9;

/// A line: the guard's end and the sentinel's.
///
/// # Errors
/// What socketpair(2) says.
pub fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The first line that a process says on its standard output, or as much of it as it has said when it closes that. Nothing where it
/// has not come to its end within `patience`.
///
/// # Errors
/// What poll(2) and read(2) say.
pub fn first_line(mut output: impl Read + AsFd, patience: Duration) -> io::Result<Option<String>> {
    let begun = Instant::now();
    let mut line = Vec::new();
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut byte = [0];
        if output.read(&mut byte)? == 0 || byte[0] == b'\n' {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
        line.push(byte[0]);
    }
}

/// The guard's end, over which the sentinel learns of every group there is, one that is started later as well.
#[derive(Debug, Default)]
pub struct SentinelLink(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    line: Option<OwnedFd>,
    groups: BTreeMap<u64, Weak<PermissionGroup>>,
    next: u64,
}

/// A group that the sentinel holds, too, until this is dropped.
#[derive(Debug)]
pub struct Held {
    link: Arc<SentinelLink>,
    number: u64,
}

impl SentinelLink {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What it protects is never half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the sentinel at the other end of `line` from now on, first of every group there is.
    pub fn connect(&self, line: OwnedFd) {
        let mut state = self.lock();
        state.line = Some(line);
        let groups: Vec<_> = state.groups.iter().map(|(number, group)| (*number, group.clone())).collect();
        for (number, group) in groups {
            if let Some(group) = group.upgrade() {
                state.send(HOLD, number, Some((*group).as_fd()));
            }
        }
    }

    /// Tells nobody any more: the sentinel ends.
    pub fn disconnect(&self) {
        self.lock().line = None;
    }

    /// Whether there is a sentinel that takes what it is told.
    pub fn is_connected(&self) -> bool {
        self.lock().line.is_some()
    }

    /// The guard gets on.
    pub fn beat(&self) {
        self.lock().send(BEAT, 0, None);
    }

    /// Has the sentinel hold a group.
    pub fn hold(self: &Arc<Self>, group: &Arc<PermissionGroup>) -> Held {
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        state.groups.insert(number, Arc::downgrade(group));
        state.send(HOLD, number, Some((**group).as_fd()));
        Held { link: Arc::clone(self), number }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.link.lock();
        state.groups.remove(&self.number);
        state.send(RELEASE, self.number, None);
    }
}

impl State {
    /// Never waits: a sentinel that does not take what it is told is no longer one.
    fn send(&mut self, kind: u8, number: u64, group: Option<BorrowedFd<'_>>) {
        let Some(line) = &self.line else {
            return;
        };
        let mut message = [0; MESSAGE];
        message[0] = kind;
        message[1..].copy_from_slice(&number.to_le_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let groups: Vec<BorrowedFd<'_>> = group.into_iter().collect();
        if !groups.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&groups));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if rustix::net::sendmsg(line, &[IoSlice::new(&message)], &mut control, flags).is_err() {
            self.line = None;
        }
    }
}

/// The sentinel's end.
#[derive(Debug)]
pub struct Sentinel {
    line: OwnedFd,
    groups: BTreeMap<u64, PermissionGroup>,
}

/// What became of waiting for the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It gets on.
    Beat,
    /// It has not said so.
    Nothing,
    /// It has closed its end.
    Closed,
}

impl Sentinel {
    /// A sentinel at the other end of [`SentinelLink`].
    pub const fn new(line: OwnedFd) -> Self {
        Self { line, groups: BTreeMap::new() }
    }

    /// How many groups it holds.
    pub fn held(&self) -> usize {
        self.groups.len()
    }

    /// Waits for what the guard says, no longer than `most`, and takes in all of it.
    pub fn listen(&mut self, most: Duration) -> Heard {
        let timeout =
            Timespec { tv_sec: most.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: most.subsec_nanos().into() };
        let mut line = [PollFd::new(&self.line, PollFlags::IN)];
        // A signal makes it look once more, which is as good.
        if !matches!(rustix::event::poll(&mut line, Some(&timeout)), Ok(1..)) {
            return Heard::Nothing;
        }
        let mut heard = Heard::Nothing;
        loop {
            match self.take() {
                Ok(Some(BEAT)) => heard = Heard::Beat,
                Ok(Some(_)) => {}
                Ok(None) => return Heard::Closed,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return heard,
                Err(_) => return Heard::Closed,
            }
        }
    }

    /// Takes one message; `None` at the end.
    fn take(&mut self) -> io::Result<Option<u8>> {
        let mut message = [0; MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.line, &mut [IoSliceMut::new(&mut message)], &mut control, flags)?;
        let group = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        if received.bytes < MESSAGE || received.flags.contains(ReturnFlags::TRUNC) {
            return Ok(None);
        }
        let number = u64::from_le_bytes(std::array::from_fn(|index| message[index + 1]));
        match (message[0], group) {
            (HOLD, Some(group)) => {
                self.groups.insert(number, PermissionGroup::from(group));
            }
            (RELEASE, _) => {
                self.groups.remove(&number);
            }
            _ => {}
        }
        Ok(Some(message[0]))
    }

    /// Lets every access go on that waits for an answer through these groups, and asks about nothing any more; `files` is how
    /// many descriptors the guard may have. Returns how many were let go on.
    ///
    /// Only the first group's events are read: the others' are of file systems that may keep whoever reads for ever, so that those
    /// whose event the guard has not read wait until it is gone.
    pub fn let_all_go_on(&self, files: u64) -> usize {
        for group in self.groups.values() {
            // Whatever cannot be done is not the reason to leave out the rest.
            let _ = group.unwatch_everything();
        }
        let numbers = i32::try_from(files).unwrap_or(i32::MAX).min(MOST_NUMBERS);
        let mut gone_on: usize = self.groups.values().map(|group| group.let_go_on(numbers)).sum();
        if let Some(local) = self.groups.values().next() {
            let mut buffer = EventBuffer::new(32);
            while local.is_pending().unwrap_or(false) {
                let told = local.read(&mut buffer, |told| {
                    if let Told::Asked(event) = told {
                        // The task may have been killed.
                        gone_on += usize::from(local.answer(event.file.as_fd(), true).is_ok());
                    }
                });
                // What cannot be handed over the kernel has answered.
                drop(told);
            }
        }
        gone_on
    }
}

/// The highest descriptor that is tried.
const MOST_NUMBERS: i32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    #[test]
    fn a_line_is_waited_for_no_longer_than_one_has_patience() {
        const SOON: Duration = Duration::from_millis(50);
        let long = Duration::from_secs(60);
        for (said, closes, patience, expected) in [
            ("armed\nand more\n", false, long, Some("armed")),
            ("no room", true, long, Some("no room")),
            ("", true, long, Some("")),
            ("", false, SOON, None),
            ("arm", false, SOON, None),
        ] {
            let (reader, mut writer) = std::io::pipe().unwrap();
            std::io::Write::write_all(&mut writer, said.as_bytes()).unwrap();
            let kept = (!closes).then_some(writer);
            let line = first_line(reader, patience).unwrap();
            assert_eq!(line.as_deref(), expected, "{said:?} {closes}");
            drop(kept);
        }
    }

    #[test]
    fn what_the_guard_says_is_heard_and_its_end_as_well() {
        let (guard, sentinel) = line().unwrap();
        let (link, mut sentinel) = (SentinelLink::default(), Sentinel::new(sentinel));
        assert_eq!(sentinel.listen(AT_ONCE), Heard::Nothing);
        link.beat();
        assert_eq!(sentinel.listen(AT_ONCE), Heard::Nothing, "nobody is connected");
        link.connect(guard);
        link.beat();
        link.beat();
        assert_eq!(sentinel.listen(AT_ONCE), Heard::Beat);
        assert_eq!(sentinel.listen(AT_ONCE), Heard::Nothing);
        link.disconnect();
        assert_eq!(sentinel.listen(AT_ONCE), Heard::Closed);
    }

    #[test]
    fn a_sentinel_that_takes_nothing_is_given_up_and_one_that_has_ended_too() {
        let (guard, sentinel) = line().unwrap();
        let link = SentinelLink::default();
        link.connect(guard);
        for _ in 0..100_000 {
            link.beat();
        }
        assert!(!link.is_connected());
        drop(sentinel);
        let (guard, sentinel) = line().unwrap();
        link.connect(guard);
        drop(sentinel);
        link.beat();
        assert!(!link.is_connected());
    }

    #[test]
    fn groups_are_held_as_long_as_the_guard_wants_and_a_new_sentinel_learns_of_all() {
        let Ok(group) = PermissionGroup::open() else {
            println!(
                "skipped: groups_are_held_as_long_as_the_guard_wants_and_a_new_sentinel_learns_of_all: needs fanotify"
            );
            return;
        };
        let group = Arc::new(group);
        let link = Arc::new(SentinelLink::default());
        let first = link.hold(&group);
        let (guard, sentinel) = line().unwrap();
        link.connect(guard);
        let mut sentinel = Sentinel::new(sentinel);
        assert_eq!((sentinel.listen(AT_ONCE), sentinel.held()), (Heard::Nothing, 1));
        let second = link.hold(&group);
        assert_eq!((sentinel.listen(AT_ONCE), sentinel.held()), (Heard::Nothing, 2));
        assert_eq!(sentinel.let_all_go_on(64), 0);
        drop(first);
        assert_eq!((sentinel.listen(AT_ONCE), sentinel.held()), (Heard::Nothing, 1));
        drop(second);
        assert_eq!((sentinel.listen(AT_ONCE), sentinel.held()), (Heard::Nothing, 0));
        assert_eq!(sentinel.let_all_go_on(64), 0);
    }
}
