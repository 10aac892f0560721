//! The record of what is loaded in a TPM without resource manager: a file that is locked while it is used.
//!
//! It lies in a folder that goes with the machine's power, as what it tells of does: `/run/imara-tpm` for root, else
//! `$XDG_RUNTIME_DIR/imara-tpm`.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use imara_engine::tpm::LoadedRecord;
use rustix::{fs::FlockOperation, io::Errno};

use crate::tpm_address::TpmAddress;

/// A record's file; its lock keeps other processes of ours from the TPM.
#[derive(Debug)]
pub struct RecordFile(File);

/// How long another process of ours may use the TPM.
const LIMIT: Duration = Duration::from_secs(30);

impl RecordFile {
    /// The record of a TPM, once no other process of ours uses that.
    ///
    /// `None` where there is no folder for it: the user has no runtime directory.
    ///
    /// # Errors
    /// Where the folder is not ours or cannot be made, and when another process keeps the TPM to itself.
    pub fn lock(tpm: &TpmAddress) -> io::Result<Option<Self>> {
        let Some(folder) = folder() else { return Ok(None) };
        Self::lock_in(&folder, tpm).map(Some)
    }

    fn lock_in(folder: &Path, tpm: &TpmAddress) -> io::Result<Self> {
        let said = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", folder.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(said)?;
        let found = folder.symlink_metadata().map_err(said)?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(said(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "not a folder that this user alone can write to",
            )));
        }
        let path = folder.join(tpm.file_name());
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(said)?;
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::WOULDBLOCK | Errno::INTR) if begun.elapsed() < LIMIT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(Errno::WOULDBLOCK) => {
                    let what =
                        format!("another imara has used {tpm} for {} s (lock: {})", LIMIT.as_secs(), path.display());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                Err(error) => return Err(said(error.into())),
            }
        }
    }
}

impl LoadedRecord for RecordFile {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.0.seek(SeekFrom::Start(0))?;
        (&self.0).take(1 << 16).read_to_end(&mut text)?;
        Ok(text)
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        // One write: a kill comes before or after it. What is left of a longer record stands behind this one's end.
        self.0.write_all_at(text, 0)
    }
}

fn folder() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/run/imara-tpm"));
    }
    let runtime = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    runtime.is_absolute().then(|| runtime.join("imara-tpm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_outlives_its_process_and_a_shorter_one_ends_before_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let tpm: TpmAddress = "tcp:localhost:2321".parse().unwrap();
        let mut record = RecordFile::lock_in(&dir.path().join("records"), &tpm).unwrap();
        assert_eq!(record.read().unwrap(), b"");
        record.write(b"a long record\nend\n").unwrap();
        drop(record);
        let mut record = RecordFile::lock_in(&dir.path().join("records"), &tpm).unwrap();
        assert_eq!(record.read().unwrap(), b"a long record\nend\n");
        record.write(b"short\nend\n").unwrap();
        assert!(record.read().unwrap().starts_with(b"short\nend\n"));
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = RecordFile::lock_in(dir.path(), &"/dev/tpm0".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
