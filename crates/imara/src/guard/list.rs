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
use imara_format::measurement_list::{ByteOrder, Reader, Record};
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
    /// Its bytes, which are whole entries.
    bytes: Vec<u8>,
    /// How many.
    entries: u64,
    /// The PCRs that they are in.
    pcrs: Vec<u32>,
    /// Where a piece of an entry was kept that had to be cut off.
    pub cut: Option<PathBuf>,
}

impl Restored {
    /// Whether there is no entry.
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Calls `take` for each entry in turn, with its number from 1, until it says that it does not want any more.
    fn each(&self, mut take: impl FnMut(u64, &Record<'_>) -> bool) {
        let mut reader = Reader::new(&self.bytes);
        let mut number = 0;
        // They have been read once.
        while let Ok(Some(record)) = reader.next_record() {
            number += 1;
            if !take(number, &record) {
                return;
            }
        }
    }
}

/// Reads the mirror that an earlier guard of this boot left.
///
/// # Errors
/// [`Failure`] when it cannot be read or cut.
pub fn restore(runtime: &Runtime) -> Result<Restored, Failure> {
    let path = runtime.path(LIST);
    let failed = |error: io::Error| Failure::failed(format_args!("{}: {error}", path.display()));
    let mut bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result.map_err(failed)?,
    };
    let (mut entries, mut pcrs) = (0, Vec::new());
    let mut good = 0;
    let mut record = Vec::new();
    let mut reader = Reader::new(&bytes);
    while let Ok(Some(found)) = reader.next_record() {
        record.clear();
        found.write_binary(ByteOrder::Little, &mut record);
        good += record.len();
        entries += 1;
        if !pcrs.contains(&found.pcr) {
            pcrs.push(found.pcr);
        }
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
    bytes.truncate(good);
    Ok(Restored { bytes, entries, pcrs, cut })
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
pub fn compare(restored: &Restored, tpm: Option<&mut Tpm>) -> Chain {
    let Some(tpm) = tpm else {
        return Chain::Unproven;
    };
    let banks: Vec<HashAlgorithm> = tpm.banks().iter().filter_map(|bank| bank.algorithm).collect();
    let claims = match tpm.pcr_read_many(&restored.pcrs) {
        Ok(claims) => claims,
        Err(error) => return Chain::Broken(format!("the TPM's PCRs cannot be read: {error}")),
    };
    // Each processor has some of the banks. Whether the list comes to what they hold, and whether it does without its last entry.
    let comes_to = |banks: Vec<HashAlgorithm>| -> Result<[bool; 2], String> {
        let mut replay = Replay::new(&banks).map_err(|error| error.to_string())?.per_bank_only();
        let agrees = |replay: &Replay| {
            let mut claims = claims.iter().filter(|(bank, _, _)| banks.contains(bank));
            claims.all(|(bank, pcr, value)| replay.value(*pcr, *bank) == Some(*value))
        };
        let mut without_last = false;
        let mut result = Ok(());
        restored.each(|number, record| {
            without_last = number == restored.entries && agrees(&replay);
            result = replay.extend_record(record).map_err(|error| error.to_string());
            result.is_ok()
        });
        result.map(|()| [agrees(&replay), without_last])
    };
    let results: Vec<Result<[bool; 2], String>> = std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(banks.len()).max(1);
        let shares = (0..processors).map(|first| banks.iter().copied().skip(first).step_by(processors).collect());
        let threads: Vec<_> = shares.map(|share| scope.spawn(|| comes_to(share))).collect();
        let panicked = |_| Err("a thread that compares the list panicked".to_owned());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    if let Some(error) = results.iter().find_map(|result| result.as_ref().err()) {
        return Chain::Broken(error.clone());
    }
    let all = |which: usize| results.iter().all(|result| result.as_ref().is_ok_and(|agrees| agrees[which]));
    match (all(0), all(1)) {
        (true, _) => Chain::Whole,
        (false, true) => Chain::LastMissing,
        (false, false) => Chain::Broken("the PCRs are not what the list comes to".into()),
    }
}

/// Takes an earlier list over into `log`, which gives the TPM its last entry where that is missing.
///
/// # Errors
/// [`Failure`] when the last entry cannot be given to the TPM.
pub fn take_over(log: &MeasurementLog, restored: &Restored, chain: &Chain) -> Result<(), Failure> {
    let mut last = None;
    restored.each(|number, record| {
        log.restore(record);
        if number == restored.entries {
            last = Some(record.to_entry());
        }
        true
    });
    if let (Chain::LastMissing, Some(last)) = (chain, last) {
        log.extend_listed(&last).map_err(Failure::failed)?;
    }
    Ok(())
}
