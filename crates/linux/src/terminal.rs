//! Asking a person for a secret, on the terminal alone and without showing it.

use rustix::fs::{Mode, OFlags};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io;
use std::os::fd::OwnedFd;

/// Asks on the process's terminal, whatever standard input is, and reads a line without showing it.
///
/// # Errors
/// `NotFound` when the process has no terminal; what the kernel refuses; `UnexpectedEof` when no line came.
pub fn ask_secret(question: &str) -> io::Result<Vec<u8>> {
    let terminal = rustix::fs::open("/dev/tty", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, io::Error::from(error)))?;
    let before = tcgetattr(&terminal)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON);
    tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
    let terminal = Silent { terminal, before };
    rustix::io::write(&terminal.terminal, question.as_bytes())?;
    let mut line = Vec::with_capacity(1024);
    let mut byte = [0];
    loop {
        // One byte at a time, so that no copy stays in a buffer.
        match rustix::io::read(&terminal.terminal, &mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == [b'\n'] => return Ok(line),
            Ok(_) => line.extend_from_slice(&byte),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A terminal that does not show what is typed, until it is dropped.
struct Silent {
    terminal: OwnedFd,
    before: Termios,
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that went away.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
