//! One guard for each file system: two that ask each other could wait for each other for ever.
//!
//! A lock on a file named after the device number, in a directory that only root can write to. It goes with the process.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

const DIRECTORY: &str = "/run/imara.guarded";

/// What came of a claim.
#[derive(Debug)]
pub(super) enum Claim {
    /// It is ours as long as the file is open; `None` where nothing can be claimed (`/run` is not there).
    Ours(Option<File>),
    /// Another guard, with its process, has it.
    Taken(String),
}

/// Claims the file system with this device number.
pub(super) fn claim(device: u64) -> Claim {
    match try_claim(Path::new(DIRECTORY), device) {
        Ok(claim) => claim,
        // A courtesy between guards of ours, which keeps nobody from guarding.
        Err(_) => Claim::Ours(None),
    }
}

fn try_claim(directory: &Path, device: u64) -> io::Result<Claim> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = directory.join(format!("{major}:{minor}"));
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            Ok(Claim::Ours(Some(file)))
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            // One that was killed guards nothing any more, also where the kernel is not done with it, or cannot let it go.
            let is_over = crate::process::is_dead(&pid) || crate::process::is_ending(&pid);
            Ok(if is_over { Claim::Ours(None) } else { Claim::Taken(pid) })
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_one_guard_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("claims");
        let Claim::Ours(Some(first)) = try_claim(&directory, 7).unwrap() else { panic!("nobody has it") };
        let Claim::Taken(pid) = try_claim(&directory, 7).unwrap() else { panic!("it is taken") };
        assert_eq!(pid, std::process::id().to_string());
        assert!(matches!(try_claim(&directory, 8).unwrap(), Claim::Ours(Some(_))), "another one");
        drop(first);
        assert!(matches!(try_claim(&directory, 7).unwrap(), Claim::Ours(Some(_))));
    }
}
