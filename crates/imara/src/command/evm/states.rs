//! States that verified, kept in a file: a line of JSON for each file, so that a later difference can be told.
//!
//! ```text
//! {"path":P,"status":"pass","inode":N,"generation":N,"uid":N,"gid":N,"mode":"100644","fsuuid":U,"xattrs":{NAME:HEX},"label":HEX}
//! ```
//!
//! `path_hex` stands beside a path that is not UTF-8. The file is the owner's alone, and proves nothing: it says what to look for.

use crate::command::paths::{path_json, printable};
use crate::output::Failure;
use imara_engine::evm::{EvmLabel, Place, Snapshot};
use imara_engine::integrity_status::IntegrityStatus;
use imara_format::evm::InodeMetadata;
use imara_format::hash::{from_hex, to_hex};
use imara_format::uuid::Uuid;
use imara_linux::tree::TreeFile;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The longest line that is read: attributes are 64 KiB at most, in hexadecimal.
const LONGEST: u64 = 4 << 20;

/// A file of states that is being written, beside the one that it takes the place of.
pub struct Recording {
    place: PathBuf,
    temporary: PathBuf,
    /// Device and inode of that.
    identity: (u64, u64),
    inner: Mutex<Inner>,
}

struct Inner {
    file: BufWriter<File>,
    paths: HashSet<PathBuf>,
    failed: Option<io::Error>,
}

impl Recording {
    /// Begins one.
    ///
    /// # Errors
    /// It cannot be written there.
    pub fn begin(place: &Path) -> Result<Self, Failure> {
        let mut name = OsString::from(".");
        name.push(place.file_name().unwrap_or_default());
        name.push(format!(".{}.new", std::process::id()));
        let temporary = place.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = file.and_then(|file| file.metadata().map(|found| (file, (found.dev(), found.ino()))));
        let (file, identity) = file.map_err(|error| Failure::failed(format!("{}: {error}", printable(&temporary))))?;
        let inner = Inner { file: BufWriter::new(file), paths: HashSet::new(), failed: None };
        Ok(Self { place: place.to_owned(), temporary, identity, inner: Mutex::new(inner) })
    }

    /// Whether a file is the one that is being written.
    pub fn is_written_to(&self, file: &TreeFile<'_>) -> bool {
        let state = file.state();
        (state.device, state.inode) == self.identity
    }

    /// Notes a file that verified.
    pub fn note(&self, path: &Path, snapshot: &Snapshot, status: IntegrityStatus) {
        let Ok(path) = std::path::absolute(path) else { return };
        let line = line(&path, snapshot, status);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let written = writeln!(inner.file, "{line}");
        if let Err(error) = written {
            inner.failed.get_or_insert(error);
        }
        inner.paths.insert(path);
    }

    /// Puts it in place. What was known of files that did not verify now is kept: that is what it is for.
    ///
    /// # Errors
    /// What could not be read or written; the file of before stays then.
    pub fn finish(self) -> Result<(), Failure> {
        let failure = |error: io::Error| Failure::failed(format!("{}: {error}", printable(&self.place)));
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = inner.failed.take() {
            return Err(failure(error));
        }
        match File::open(&self.place) {
            Ok(before) => {
                for line in lines(before) {
                    let line = line.map_err(failure)?;
                    let known = serde_json::from_str(&line).ok().and_then(|value: Value| path_of(&value));
                    if known.is_some_and(|path| !inner.paths.contains(&path)) {
                        writeln!(inner.file, "{line}").map_err(failure)?;
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failure(error)),
        }
        inner.file.flush().and_then(|()| inner.file.get_ref().sync_all()).map_err(failure)?;
        std::fs::rename(&self.temporary, &self.place).map_err(failure)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Once it is in place there is nothing under that name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// The state of a file that was noted, and the status that it had.
///
/// # Errors
/// The file cannot be read.
pub fn lookup(place: &Path, path: &Path) -> Result<Option<Snapshot>, Failure> {
    let failure = |error: io::Error| Failure::failed(format!("{}: {error}", printable(place)));
    let path = std::path::absolute(path).map_err(failure)?;
    for line in lines(File::open(place).map_err(failure)?) {
        let Ok(value) = serde_json::from_str::<Value>(&line.map_err(failure)?) else { continue };
        if path_of(&value).as_ref() == Some(&path) {
            return Ok(parse(&value));
        }
    }
    Ok(None)
}

fn lines(file: File) -> impl Iterator<Item = io::Result<String>> {
    let mut reader = BufReader::new(file);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match io::Read::take(&mut reader, LONGEST).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())),
            Err(error) => Some(Err(error)),
        }
    })
}

fn line(path: &Path, snapshot: &Snapshot, status: IntegrityStatus) -> String {
    let Snapshot { inode, fs_uuid, xattrs, label, .. } = snapshot;
    let mut object = path_json(path);
    let xattrs: serde_json::Map<String, Value> =
        xattrs.iter().map(|(name, value)| (name.clone(), json!(to_hex(value)))).collect();
    for (name, value) in [
        ("status", json!(status.words())),
        ("inode", json!(inode.inode)),
        ("generation", json!(inode.generation)),
        ("uid", json!(inode.uid)),
        ("gid", json!(inode.gid)),
        ("mode", json!(format!("{:o}", inode.mode))),
        ("fsuuid", json!(Uuid(*fs_uuid).to_string())),
        ("xattrs", Value::Object(xattrs)),
        ("label", json!(label.value().map(to_hex))),
    ] {
        object.insert(name.to_owned(), value);
    }
    Value::Object(object).to_string()
}

fn path_of(value: &Value) -> Option<PathBuf> {
    match value["path_hex"].as_str() {
        Some(hex) => Some(OsString::from_vec(from_hex(hex).ok()?).into()),
        None => value["path"].as_str().map(PathBuf::from),
    }
}

/// A state; `None` for a line that is none.
fn parse(value: &Value) -> Option<Snapshot> {
    let number = |name: &str| value[name].as_u64();
    let small = |name: &str| number(name).and_then(|number| u32::try_from(number).ok());
    let mut xattrs = std::collections::BTreeMap::new();
    for (name, value) in value["xattrs"].as_object()? {
        xattrs.insert(name.clone(), from_hex(value.as_str()?).ok()?);
    }
    Some(Snapshot {
        inode: InodeMetadata {
            inode: number("inode")?,
            generation: small("generation")?,
            uid: small("uid")?,
            gid: small("gid")?,
            mode: u16::from_str_radix(value["mode"].as_str()?, 8).ok()?,
        },
        fs_uuid: value["fsuuid"].as_str()?.parse::<Uuid>().ok()?.0,
        unbound: None,
        place: Place::default(),
        xattrs,
        label: match value["label"].as_str() {
            Some(hex) => EvmLabel::Value(from_hex(hex).ok()?),
            None => EvmLabel::Absent,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn state(mode: u16) -> Snapshot {
        Snapshot {
            inode: InodeMetadata { inode: 12, generation: u32::MAX, uid: 1, gid: 2, mode },
            fs_uuid: [7; 16],
            unbound: None,
            place: Place::default(),
            xattrs: [("security.ima".to_owned(), vec![1, 2, 3])].into(),
            label: EvmLabel::Value(vec![2; 21]),
        }
    }

    #[test]
    fn states_come_back_and_those_of_files_that_fail_now_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("states");
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/a/\xff\n\"b"));
        let first = Recording::begin(&place).unwrap();
        first.note(Path::new("/a/one"), &state(0o100_644), IntegrityStatus::Pass);
        first.note(odd, &state(0o100_600), IntegrityStatus::Pass);
        first.finish().unwrap();
        assert_eq!(lookup(&place, odd).unwrap(), Some(state(0o100_600)));
        let second = Recording::begin(&place).unwrap();
        second.note(Path::new("/a/one"), &state(0o100_755), IntegrityStatus::Pass);
        second.finish().unwrap();
        assert_eq!(lookup(&place, Path::new("/a/one")).unwrap(), Some(state(0o100_755)));
        assert_eq!(lookup(&place, odd).unwrap(), Some(state(0o100_600)));
        assert_eq!(lookup(&place, Path::new("/a/two")).unwrap(), None);
        // One that is given up leaves all as it was.
        Recording::begin(&place).unwrap().note(Path::new("/a/two"), &state(0), IntegrityStatus::Pass);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_line_that_is_no_state_is_none() {
        for text in ["{}", "1", r#"{"path":"/a","xattrs":{}}"#, r#"{"path":"/a","xattrs":{"x":"zz"},"inode":1}"#] {
            assert_eq!(parse(&serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }
}
