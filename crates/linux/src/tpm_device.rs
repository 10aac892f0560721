//! The TPM character device.
//!
//! `/dev/tpmrm0` takes any number of users, one command a write; `/dev/tpm0` takes one user at a time. The response is
//! read after the write has returned; what is left unread the driver drops after 120 s.
//!
//! Source: drivers/char/tpm/tpm-dev-common.c, tpmrm-dev.c.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use imara_engine::tpm::Transport;

/// The device that is shared through the kernel's resource manager.
pub const RESOURCE_MANAGER: &str = "/dev/tpmrm0";

/// An open TPM device.
#[derive(Debug)]
pub struct DeviceTransport {
    path: PathBuf,
    file: File,
}

/// A device that does not open.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is none.
    #[error("{} does not exist: the machine has no TPM 2.0 that the kernel knows; look in the firmware's settings", .0.display())]
    Absent(PathBuf),
    /// There is none, and it is no device's name.
    #[error("{} does not exist: where it is a software TPM's socket, that TPM is not running", .0.display())]
    NoSocket(PathBuf),
    /// Another has it.
    #[error("{} is in use by another program; use {RESOURCE_MANAGER}, which is shared", .0.display())]
    InUse(PathBuf),
    /// The kernel refuses.
    #[error("{} cannot be opened: {source}{}", path.display(), if source.kind() == io::ErrorKind::PermissionDenied { "; root or the group `tss` may" } else { "" })]
    Open {
        /// The device.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The driver's buffer, so the largest response.
const BUFFER: usize = 4096;
/// Tag, size and code.
const HEADER: usize = 10;

impl DeviceTransport {
    /// Opens the device at `path`.
    ///
    /// # Errors
    /// [`DeviceError`] naming the path.
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        // The standard library opens with O_CLOEXEC.
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file }),
            Err(source) => Err(match source.raw_os_error() {
                Some(libc::ENOENT) if !path.starts_with("/dev") => DeviceError::NoSocket(path.to_owned()),
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => DeviceError::Absent(path.to_owned()),
                Some(libc::EBUSY) => DeviceError::InUse(path.to_owned()),
                _ => DeviceError::Open { path: path.to_owned(), source },
            }),
        }
    }
}

impl Transport for DeviceTransport {
    fn transmit(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        let said = |doing: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("{} {}: {error}", doing, self.path.display()))
        };
        // One command is one write: what a second write would carry is another command.
        let written = retried(|| self.file.write(command)).map_err(|error| said("writing to", error))?;
        if written != command.len() {
            let short = format!("took {written} of {} bytes", command.len());
            return Err(said("writing to", io::Error::new(io::ErrorKind::WriteZero, short)));
        }
        let file = &mut self.file;
        read_response(response, |room| retried(|| file.read(room))).map_err(|error| said("reading from", error))
    }
}

/// Reads until the response is as long as its header says. The kernel hands over all of it at once, if there is room.
pub(crate) fn read_response(
    response: &mut Vec<u8>,
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<()> {
    response.clear();
    response.resize(BUFFER, 0);
    let mut filled = 0;
    let result = loop {
        if whole_size(&response[..filled])?.is_some_and(|size| filled >= size) {
            break Ok(());
        }
        if filled == BUFFER {
            break Err(io::Error::new(io::ErrorKind::InvalidData, format!("response of more than {BUFFER} bytes")));
        }
        match read(&mut response[filled..]) {
            Ok(0) => {
                let short = format!("response ended after {filled} bytes");
                break Err(io::Error::new(io::ErrorKind::UnexpectedEof, short));
            }
            Ok(count) => filled += count,
            Err(error) => break Err(error),
        }
    };
    response.truncate(filled);
    result
}

/// The size that the header names, once it is there.
fn whole_size(filled: &[u8]) -> io::Result<Option<usize>> {
    let Some(header) = filled.first_chunk::<HEADER>() else { return Ok(None) };
    let size = u32::from_be_bytes([header[2], header[3], header[4], header[5]]) as usize;
    if (HEADER..=BUFFER).contains(&size) {
        return Ok(Some(size));
    }
    let wrong = format!("response names a size of {size} bytes, {HEADER} to {BUFFER} are possible");
    Err(io::Error::new(io::ErrorKind::InvalidData, wrong))
}

/// Calls again when a signal came between.
pub(crate) fn retried(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_read_in_whatever_pieces_it_comes() {
        let whole = [0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7, 8];
        for piece in 1..=whole.len() {
            let (mut rest, mut response) = (whole.as_slice(), vec![9; 3]);
            read_response(&mut response, |room| {
                let count = piece.min(rest.len()).min(room.len());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                Ok(count)
            })
            .unwrap();
            assert_eq!(response, whole, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_response_cut_short_or_of_an_impossible_size_is_refused_with_the_reason() {
        for (bytes, reason) in [
            (vec![0x80, 1, 0, 0], "response ended after 4 bytes"),
            (vec![0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0], "response ended after 10 bytes"),
            (vec![0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0], "response names a size of 9 bytes, 10 to 4096 are possible"),
            (
                vec![0x80, 1, 0xff, 0, 0, 9, 0, 0, 0, 0],
                "response names a size of 4278190089 bytes, 10 to 4096 are possible",
            ),
        ] {
            let mut rest = bytes.as_slice();
            let error = read_response(&mut Vec::new(), |room| rest.read(room)).unwrap_err();
            assert_eq!(error.to_string(), reason);
        }
    }

    #[test]
    fn a_command_is_written_whole_and_the_response_read_back() {
        // A FIFO opened both ways hands back what was written: a command that is its own response.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("echo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let mut device = DeviceTransport::open(&path).unwrap();
        let mut response = Vec::new();
        for size in [10u32, 12, 4096] {
            let mut command = vec![0x5a; size as usize];
            command[..6].copy_from_slice(&[[0x80, 1].as_slice(), &size.to_be_bytes()].concat());
            device.transmit(&command, &mut response).unwrap();
            assert_eq!(response, command);
        }
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = DeviceTransport::open(Path::new("/dev/imara-no-such-tpm")).unwrap_err();
        assert!(error.to_string().starts_with("/dev/imara-no-such-tpm does not exist"), "{error}");
        assert!(matches!(DeviceTransport::open(Path::new("/")), Err(DeviceError::Open { .. })));
    }
}
