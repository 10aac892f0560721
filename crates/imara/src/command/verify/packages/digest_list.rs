//! A list of the digests of files that are as they were installed.

use crate::command::paths::printable;
use crate::output::{Failure, utc, warn};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A list of digests that is written, and is there when it is whole.
pub struct DigestList {
    by: &'static str,
    place: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
}

impl DigestList {
    /// Begins one, whose first line says what it was made `by`.
    ///
    /// # Errors
    /// A place where none can be made.
    pub fn begin(place: &Path, by: &'static str) -> Result<Self, Failure> {
        let mut name = std::ffi::OsString::from(".");
        name.push(
            place.file_name().ok_or_else(|| Failure::usage(format!("{}: is no name of a file", printable(place))))?,
        );
        name.push(format!(".{}.new", std::process::id()));
        let temporary = place.with_file_name(name);
        let file =
            File::create_new(&temporary).map_err(|error| Failure::failed(format!("{}: {error}", printable(place))))?;
        let mut list = Self { by, place: place.into(), temporary, file: BufWriter::new(file) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let head = format!("# Files of packages as found on {}, {by}\n", utc(now));
        list.write(head.as_bytes())?;
        Ok(list)
    }

    /// Adds lines.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn write(&mut self, lines: &[u8]) -> Result<(), Failure> {
        self.file.write_all(lines).map_err(|error| self.failure(&error))
    }

    /// Puts it in its place, and says what it is worth.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn end(mut self) -> Result<(), Failure> {
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let placed = written.and_then(|()| std::fs::rename(&self.temporary, &self.place));
        placed.map_err(|error| self.failure(&error))?;
        warn(format_args!(
            "{}: made {by}; sign it before it is relied on elsewhere",
            printable(&self.place),
            by = self.by
        ));
        Ok(())
    }

    fn failure(&self, error: &io::Error) -> Failure {
        Failure::failed(format!("{}: {error}", printable(&self.place)))
    }
}

impl Drop for DigestList {
    fn drop(&mut self) {
        // It is gone already when all went well.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
