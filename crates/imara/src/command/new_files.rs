//! New files, whole or not at all.
//!
//! Where several are written over, each is exchanged with the new one, which keeps the old until all are there: an error puts them
//! back. Whoever is killed in between leaves the old ones under the hidden names.
//!
//! A blob and the record of it are written so that at each moment a reader has both or neither of the new ones:
//!
//! | step | `F` | `F.sealed` | `F.sealed.next` | who reads now has |
//! |---|---|---|---|---|
//! | | old | old | | the old ones |
//! | the record is written | old | old | new | the old ones: the new record says whose it is |
//! | the blob is renamed | new | old | new | the new ones, and ends this |
//! | the record is renamed | new | new | | the new ones |

use crate::command::paths::printable;
use crate::output::{Failure, warn};
use imara_linux::files::{exchange, rename_new};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes files so that all of them are there, whole, or none of them; without `force` none is written over.
///
/// # Errors
/// What could not be written.
pub fn write_together(files: &[(&Path, &[u8], u32)], force: bool) -> Result<(), Failure> {
    let mut staged = Vec::new();
    let mut were_there = Vec::new();
    let result = (|| {
        for (path, bytes, mode) in files {
            staged.push(stage(path, bytes, *mode)?);
        }
        for ((path, _, _), temporary) in files.iter().zip(&staged) {
            were_there.push(place(temporary, path, force)?);
        }
        // A key that signs must still be there after a power failure.
        sync_folder(files.first().map(|(path, _, _)| *path));
        Ok(())
    })();
    if result.is_err() {
        for ((was_there, temporary), (path, _, _)) in were_there.into_iter().zip(&staged).zip(files) {
            let _ = match was_there {
                true => exchange(temporary, path),
                false => std::fs::remove_file(path),
            };
        }
    }
    for temporary in &staged {
        // What was written over, or what was not placed; renamed ones are gone already.
        let _ = std::fs::remove_file(temporary);
    }
    result
}

/// Gives a new file its name; with `force` what has the name gets that of the new file. Whether there was something.
fn place(temporary: &Path, path: &Path, force: bool) -> Result<bool, Failure> {
    let failure = |error| failure(path, error);
    if !force {
        return rename_new(temporary, path).map(|()| false).map_err(failure);
    }
    if path.symlink_metadata().is_ok_and(|there| there.is_dir()) {
        return Err(failure(ErrorKind::IsADirectory.into()));
    }
    match exchange(temporary, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            rename_new(temporary, path).map(|()| false).map_err(failure)
        }
        Err(error) => Err(failure(error)),
    }
}

fn failure(path: &Path, error: Error) -> Failure {
    match error.kind() {
        ErrorKind::AlreadyExists => {
            Failure::failed(format!("{} is already there, and is not written over", printable(path)))
                .next("choose another name, or take it away")
        }
        _ => Failure::failed(format!("{}: {error}", printable(path))),
    }
}

/// Writes a blob and the record of it, which goes beside it, so that no reader has the one without the other.
///
/// # Errors
/// What could not be written; then the old ones are there, or none.
pub fn write_with_record(
    (path, blob): (&Path, &[u8]),
    (beside, record): (&Path, &[u8]),
    mode: u32,
    force: bool,
) -> Result<(), Failure> {
    if !force && beside.symlink_metadata().is_ok() {
        return Err(failure(beside, ErrorKind::AlreadyExists.into()));
    }
    let new_blob = stage(path, blob, mode)?;
    let next = next_path(beside);
    let placed = stage(beside, record, mode).and_then(|new_record| {
        std::fs::rename(&new_record, &next).map_err(|error| {
            let _ = std::fs::remove_file(&new_record);
            failure(&next, error)
        })
    });
    let placed = placed.and_then(|()| {
        sync_folder(Some(path));
        let renamed = if force { std::fs::rename(&new_blob, path) } else { rename_new(&new_blob, path) };
        renamed.map_err(|error| {
            let _ = std::fs::remove_file(&next);
            failure(path, error)
        })
    });
    placed.inspect_err(|_| drop(std::fs::remove_file(&new_blob)))?;
    sync_folder(Some(path));
    match std::fs::rename(&next, beside) {
        Ok(()) => sync_folder(Some(path)),
        // A reader was faster.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // It is found there, too.
        Err(error) => warn(format_args!("{} stays beside {}: {error}", printable(&next), printable(path))),
    }
    Ok(())
}

/// Where a record is until its blob is there.
pub fn next_path(beside: &Path) -> PathBuf {
    let mut name = beside.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

/// Down to the disk; where folders cannot be synced, nothing helps.
fn sync_folder(path: Option<&Path>) {
    if let Some(folder) = path.and_then(Path::parent) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn content(folder: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries
            .filter(|entry| entry.path().is_file())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn where_one_cannot_be_written_the_others_are_as_they_were() {
        for (name, force, there) in [("none was there", false, &[][..]), ("one was there", true, &["one"])] {
            let folder = tempfile::tempdir().unwrap();
            let [one, two, in_the_way] = ["one", "two", "three"].map(|name| folder.path().join(name));
            fs::create_dir(&in_the_way).unwrap();
            for name in there {
                fs::write(folder.path().join(name), "old").unwrap();
            }
            let before = content(folder.path());
            let files = [(&*one, &b"new"[..], 0o600), (&*two, b"new", 0o600), (&*in_the_way, b"new", 0o600)];
            assert!(write_together(&files, force).is_err(), "{name}");
            assert_eq!(content(folder.path()), before, "{name}");
            fs::remove_dir(&in_the_way).unwrap();
            write_together(&files, force).unwrap();
            let after = content(folder.path());
            assert!(after.len() == 3 && after.iter().all(|(_, content)| content == "new"), "{name}: {after:?}");
        }
    }

    #[test]
    fn a_blob_and_its_record_are_written_both_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let [blob, record] = ["F", "F.sealed"].map(|name| folder.path().join(name));
        let write =
            |text: &str, force| write_with_record((&blob, text.as_bytes()), (&record, text.as_bytes()), 0o600, force);
        let pair = |text: &str| vec![("F".to_owned(), text.to_owned()), ("F.sealed".to_owned(), text.to_owned())];
        write("1", false).unwrap();
        assert_eq!(content(folder.path()), pair("1"));
        assert!(write("2", false).is_err());
        assert_eq!(content(folder.path()), pair("1"));
        // What a killed one has left is in nobody's way.
        fs::write(next_path(&record), "left").unwrap();
        write("3", true).unwrap();
        assert_eq!(content(folder.path()), pair("3"));
        // A record that is there alone is somebody's.
        fs::remove_file(&blob).unwrap();
        assert!(write("4", false).is_err());
        assert_eq!(content(folder.path()), [("F.sealed".to_owned(), "3".to_owned())]);
        fs::create_dir(&blob).unwrap();
        assert!(write("5", true).is_err());
        assert_eq!(content(folder.path()), [("F.sealed".to_owned(), "3".to_owned())]);
    }
}
