//! A run that somebody ends with SIGINT (Ctrl-C) or SIGTERM: it stops where that leaves everything in order, and says how far it came.
//!
//! The first signal is kept, and asked for between files and between pieces of a large one. The second ends the program as ever.

use crate::sys::signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::io::{self, Read, Stdin};

pub use signal::{Caught, came, catch, end_by};

/// SIGTERM's number, as [`came`] tells it.
pub const SIGTERM: i32 = signal::SIGTERM;

/// How long is waited for input before it is asked whether the run is to end.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What a file that is being read says then.
///
/// # Errors
/// A signal came.
pub fn go_on() -> io::Result<()> {
    match came() {
        None => Ok(()),
        Some(_) => Err(io::Error::other("not read to its end, since the run was interrupted")),
    }
}

/// Standard input, which ends when the run is to.
#[derive(Debug)]
pub struct Input(Stdin);

impl Input {
    /// Standard input.
    pub fn new() -> Self {
        Self(io::stdin())
    }
}

impl Default for Input {
    fn default() -> Self {
        Self::new()
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if came().is_some() {
                return Ok(0);
            }
            let mut waiting = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut waiting, Some(&PATIENCE)) {
                Ok(0) => {}
                Err(rustix::io::Errno::INTR) => {}
                // What cannot be polled is read as it is. Past the buffer of the library's, of which poll(2) knows nothing.
                Ok(_) | Err(_) => match rustix::io::read(&self.0, &mut *into) {
                    Err(rustix::io::Errno::INTR) => {}
                    result => return Ok(result?),
                },
            }
        }
    }
}
