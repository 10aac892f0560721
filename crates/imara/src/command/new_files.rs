//! New files, whole or not at all.

use crate::output::Failure;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes files so that all of them are there, whole, or none of them; without `force` none is written over.
///
/// # Errors
/// What could not be written.
pub fn write_together(files: &[(&Path, &[u8], u32)], force: bool) -> Result<(), Failure> {
    let mut staged = Vec::new();
    let mut placed = Vec::new();
    let result = (|| {
        for (path, bytes, mode) in files {
            staged.push(stage(path, bytes, *mode)?);
        }
        for ((path, _, _), temporary) in files.iter().zip(&staged) {
            let failure = |error| Failure::failed(format!("{}: {error}", path.display()));
            if force {
                std::fs::rename(temporary, path).map_err(failure)?;
            } else {
                imara_linux::files::rename_new(temporary, path).map_err(failure)?;
                placed.push(*path);
            }
        }
        // A key that signs must still be there after a power failure; where folders cannot be synced, nothing helps.
        if let Some(folder) = files.first().and_then(|(path, _, _)| path.parent()) {
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    })();
    for temporary in &staged {
        // Renamed ones are gone already.
        let _ = std::fs::remove_file(temporary);
    }
    if result.is_err() {
        for path in placed {
            let _ = std::fs::remove_file(path);
        }
    }
    result
}

/// Writes a file beside `path` under a name of its own, down to the disk, and returns that name.
///
/// # Errors
/// What could not be written.
pub fn stage(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, Failure> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.{:?}.new", std::process::id(), std::thread::current().id()));
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(temporary),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::AlreadyExists {
                let _ = std::fs::remove_file(&temporary);
            }
            Err(Failure::failed(format!("{}: {error}", path.display())))
        }
    }
}
