//! The list's mirror: an append-only file in the kernel's binary form, and how a new guard takes up what an earlier one
//! of the same boot left.
//!
//! An entry is written before the TPM is extended. A guard that was killed in between left one entry too many, which is
//! extended then; one that was killed while it wrote left a piece of an entry, which is cut off and kept beside.

use super::runtime::{LIST, Runtime};
use crate::output::Failure;
use imara_engine::measure::{MeasurementLog, Store};
use imara_engine::replay::Replay;
use imara_engine::tpm::Tpm;
use imara_format::hash::HashAlgorithm;
use imara_format::measurement_list::{Entry, Reader};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The mirror, open for appending.
#[derive(Debug)]
pub struct Mirror {
    file: File,
    /// It ends in a piece of an entry: what were appended now could not be read.
    torn: bool,
}

impl Mirror {
    /// Opens the mirror, or makes it, readable by its owner alone.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(|file| Self { file, torn: false })
    }
}

impl Store for Mirror {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        if self.torn {
            return Err(io::Error::other("it ends in a piece of an entry that could not be taken back"));
        }
        self.file.write_all(record).inspect_err(|_| {
            // A piece of an entry would make all that follows unreadable.
            self.torn = self.file.set_len(before).is_err();
        })
    }
}

/// What of an earlier list agrees with the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// All of it.
    Whole,
    /// All but the last entry, which the TPM never got: it gets it now.
    LastMissing,
    /// There is no TPM to compare with.
    Unproven,
    /// It does not agree.
    Broken(String),
}

/// An earlier list.
#[derive(Debug)]
pub struct Restored {
    /// Its entries.
    pub entries: Vec<Entry>,
    /// Where a piece of an entry was kept that had to be cut off.
    pub cut: Option<PathBuf>,
}

/// Reads the mirror that an earlier guard of this boot left.
///
/// # Errors
/// [`Failure`] when it cannot be read or cut.
pub fn restore(runtime: &Runtime) -> Result<Restored, Failure> {
    let path = runtime.path(LIST);
    let failed = |error: io::Error| Failure::failed(format_args!("{}: {error}", path.display()));
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result.map_err(failed)?,
    };
    let mut entries = Vec::new();
    let mut good = 0;
    let mut record = Vec::new();
    let mut reader = Reader::new(&bytes);
    while let Ok(Some(found)) = reader.next_record() {
        let entry = found.to_entry();
        record.clear();
        found.write_binary(imara_format::measurement_list::ByteOrder::Little, &mut record);
        good += record.len();
        entries.push(entry);
    }
    let mut cut = None;
    if good < bytes.len() {
        let Some(kept) = free_name(runtime, "cut") else {
            return Err(Failure::failed("there is no free name for the piece of an entry that the list ends in"));
        };
        std::fs::write(&kept, &bytes[good..]).map_err(failed)?;
        OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(good as u64)).map_err(failed)?;
        cut = Some(kept);
    }
    Ok(Restored { entries, cut })
}

/// Puts a list aside under a name of its own, so that a fresh one can begin.
///
/// # Errors
/// What rename(2) says.
pub fn set_aside(runtime: &Runtime, why: &str) -> io::Result<Option<PathBuf>> {
    let path = runtime.path(LIST);
    if !path.exists() {
        return Ok(None);
    }
    let Some(aside) = free_name(runtime, why) else {
        return Ok(None);
    };
    std::fs::rename(&path, &aside)?;
    Ok(Some(aside))
}

/// A name beside the list that nothing has yet.
fn free_name(runtime: &Runtime, why: &str) -> Option<PathBuf> {
    (1..=9999).map(|number| runtime.path(&format!("{LIST}.{why}.{number}"))).find(|path| !path.exists())
}

/// Compares a list with the TPM: all PCRs that it touches, in every bank.
pub fn compare(entries: &[Entry], tpm: Option<&mut Tpm>) -> Chain {
    let Some(tpm) = tpm else {
        return Chain::Unproven;
    };
    let banks: Vec<HashAlgorithm> = tpm.banks().iter().filter_map(|bank| bank.algorithm).collect();
    let mut pcrs: Vec<u32> = entries.iter().map(|entry| entry.pcr).collect();
    pcrs.sort_unstable();
    pcrs.dedup();
    let claims = match tpm.pcr_read_many(&pcrs) {
        Ok(claims) => claims,
        Err(error) => return Chain::Broken(format!("the TPM's PCRs cannot be read: {error}")),
    };
    let agrees = |entries: &[Entry]| -> Result<bool, String> {
        let mut replay = Replay::new(&banks).map_err(|error| error.to_string())?;
        for entry in entries {
            replay.extend(entry).map_err(|error| error.to_string())?;
        }
        Ok(claims.iter().all(|(bank, pcr, value)| replay.value(*pcr, *bank) == Some(*value)))
    };
    match agrees(entries) {
        Ok(true) => Chain::Whole,
        Ok(false) if entries.split_last().is_some_and(|(_, rest)| agrees(rest) == Ok(true)) => Chain::LastMissing,
        Ok(false) => Chain::Broken("the PCRs are not what the list comes to".into()),
        Err(error) => Chain::Broken(error),
    }
}

/// Takes an earlier list over into `log`, which gives the TPM its last entry where that is missing.
///
/// # Errors
/// [`Failure`] when an entry cannot be taken over.
pub fn take_over(log: &MeasurementLog, entries: &[Entry], chain: &Chain) -> Result<(), Failure> {
    for entry in entries {
        log.restore(entry).map_err(Failure::failed)?;
    }
    if let (Chain::LastMissing, Some(last)) = (chain, entries.last()) {
        log.extend_listed(last).map_err(Failure::failed)?;
    }
    Ok(())
}
