//! A process by a descriptor (pidfd), which stays that process's when its number is given to another.
//!
//! Source: pidfd_open(2), pidfd_send_signal(2).

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A process that was there when it was opened.
#[derive(Debug)]
pub struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// The process with that number now.
    ///
    /// # Errors
    /// ESRCH when there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = (pid > 0).then(|| Pid::from_raw(pid)).flatten();
        let pid = pid.ok_or_else(|| io::Error::from(rustix::io::Errno::SRCH))?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Waits until it has ended, but no longer than `patience`; whether it has.
    pub fn wait(&self, patience: Duration) -> bool {
        // Without an end where it is beyond what can be counted.
        let until = Instant::now().checked_add(patience);
        loop {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            let seconds = i64::try_from(left.as_secs()).ok();
            let timeout = seconds.map(|tv_sec| Timespec { tv_sec, tv_nsec: left.subsec_nanos().into() });
            match rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => return false,
                Ok(_) => return true,
                // A signal, or a descriptor that cannot be polled, which no pidfd is.
                Err(_) if left.is_zero() => return false,
                Err(_) => {}
            }
        }
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// ESRCH when it has ended; EPERM.
    pub fn terminate(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::TERM)?)
    }

    /// Ends it (SIGKILL).
    ///
    /// # Errors
    /// As [`ProcessHandle::terminate`].
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::KILL)?)
    }
}

/// Leaves the terminal and the session of whoever started this process.
///
/// # Errors
/// EPERM when it leads a session or a group already.
pub fn leave_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_waited_for_and_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let handle = ProcessHandle::open(child.id().cast_signed()).unwrap();
        assert!(!handle.wait(Duration::from_millis(20)));
        handle.terminate().unwrap();
        for patience in [Duration::from_secs(10), Duration::from_secs(u64::MAX), Duration::MAX] {
            assert!(handle.wait(patience));
        }
        assert_eq!(child.wait().unwrap().code(), None);
        assert!(handle.kill().is_err());
        for none in [0, -1, i32::MAX] {
            assert!(ProcessHandle::open(none).is_err(), "{none}");
        }
    }
}
