//! What a run that was ended had done, so that it need not be done again.
//!
//! A file is known by its inode, size, time of change and by the label that it got: whoever changed it since, or exchanged it, has
//! changed one of these. Of so many files that memory has a bound; what is not known is done again, which does no harm.

use super::journal::{Progress, ReadJournal};
use crate::command::paths::printable;
use crate::output::Failure;
use imara_format::journal::{FileState, Place};
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

/// So many files at most: 16 bytes each, in a table that is at least seven eighths full when it grows.
const MOST: usize = 1 << 20;

/// The files that were done.
#[derive(Debug, Default)]
pub struct Before {
    files: HashSet<u64, BuildHasherDefault<Same>>,
}

/// What is in the table is a hash already.
#[derive(Debug, Default)]
pub struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl Before {
    /// Reads what was done.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn read(journal: &mut ReadJournal) -> Result<Self, Failure> {
        let mut before = Self::default();
        for number in 0..journal.blocks() {
            let Some((files, true)) = journal.block(number)? else { continue };
            for file in files.iter().take(MOST.saturating_sub(before.files.len())) {
                let labels = file.changes.iter().map(|change| (change.place, change.new.as_deref()));
                before.files.insert(fingerprint(&file.state, labels));
            }
        }
        Ok(before)
    }

    /// Whether a file was done, and still is what it was then.
    pub fn has<'l>(&self, state: &FileState, labels: impl Iterator<Item = (Place, Option<&'l [u8]>)>) -> bool {
        !self.files.is_empty() && self.files.contains(&fingerprint(state, labels))
    }
}

fn fingerprint<'l>(state: &FileState, labels: impl Iterator<Item = (Place, Option<&'l [u8]>)>) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Not the device, whose number can be another after a restart.
    (state.inode, state.size, state.modified).hash(&mut hasher);
    labels.for_each(|label| label.hash(&mut hasher));
    hasher.finish()
}

/// Whether a run can be gone on with for this purpose.
///
/// # Errors
/// Its journal is damaged, it came to its end, or had another purpose.
pub fn check(read: &ReadJournal, purpose: &str) -> Result<(), Failure> {
    let run = &read.run;
    if read.begun.purpose != purpose {
        return Err(Failure::usage(format!(
            "the run {run} was to write something else ({}; this one: {purpose})",
            read.begun.purpose
        ))
        .next(format_args!("go on with its own command: {}", read.begun.command)));
    }
    // Going on would cut off what follows the damage, and the old labels with it.
    if let Some(damage) = read.damage() {
        return Err(Failure::failed(format!("{}: {damage}; the run cannot be gone on with", printable(&read.path)))
            .next(format_args!(
                "begin a new run, or undo what comes before the damage with `imara undo --force {run}`"
            )));
    }
    match read.progress {
        Progress::Interrupted | Progress::Ended(1..) => Ok(()),
        Progress::Ended(0) => Err(Failure::failed(format!("the run {run} came to its end: nothing is left to do"))),
        Progress::Undone(_) => Err(Failure::failed(format!("the run {run} was undone")).next("begin a new one")),
    }
}
