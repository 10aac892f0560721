//! The list's mirror: an append-only file in the kernel's binary form, and how a new guard takes up what an earlier one
//! of the same boot left.
//!
//! An entry is written before the TPM is extended. A guard that was killed in between left one entry too many, which is
//! extended then; one whose TPM did not answer left more, and has noted from which one on. One that was killed while it wrote
//! left a piece of an entry, which is cut off and kept beside.

use super::events::Events;
use super::runtime::{Heartbeat, LIST, Runtime};
use super::software_tpm::Reviver;
use crate::output::Failure;
use imara_engine::measure::{MeasurementLog, Store};
use imara_engine::replay::Replay;
use imara_engine::tpm::{Tpm, TpmError};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::measurement_list::{ByteOrder, Reader, Record};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The mirror, open for appending.
#[derive(Debug)]
pub struct Mirror {
    file: File,
    /// How long it is without the piece of an entry that it ends in: what were appended behind that could not be read.
    torn: Option<u64>,
}

impl Mirror {
    /// Opens the mirror, or makes it, readable by its owner alone.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(|file| Self { file, torn: None })
    }
}

impl Store for Mirror {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if let Some(whole) = self.torn {
            self.file.set_len(whole).map_err(|error| {
                let what = format!("it ends in a piece of an entry that cannot be taken back: {error}");
                io::Error::new(error.kind(), what)
            })?;
            self.torn = None;
        }
        let before = self.file.metadata()?.len();
        self.file.write_all(record).inspect_err(|_| {
            // A piece of an entry would make all that follows unreadable.
            let torn = self.file.metadata().map_or(true, |now| now.len() != before);
            self.torn = (torn && self.file.set_len(before).is_err()).then_some(before);
        })
    }
}

/// What of an earlier list agrees with the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// All of it.
    Whole,
    /// All but the last entries, so many, which the TPM never got: it gets them now.
    Missing(u64),
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
    /// How many entries at the end the TPM may lack: the last one, or what the guard before has noted (`missed_from`).
    pub fn may_lack(&self, missed_from: Option<u64>) -> u64 {
        missed_from.map_or(1, |first| (self.entries + 1).saturating_sub(first).max(1)).min(self.entries)
    }

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

/// The PCRs that an earlier list is in, as the TPM has them before it is given anything more.
#[derive(Debug)]
pub struct Claims(Vec<(HashAlgorithm, u32, Digest)>);

impl Claims {
    /// Asks the TPM for them.
    ///
    /// # Errors
    /// What the TPM says.
    pub fn read(restored: &Restored, tpm: &mut Tpm) -> Result<Self, TpmError> {
        tpm.pcr_read_many(&restored.pcrs).map(Self)
    }

    /// The bank that decides what becomes of the list, and those that are compared once the guard is in force: each takes as long.
    fn banks(&self) -> (Option<HashAlgorithm>, Vec<HashAlgorithm>) {
        let mut banks: Vec<HashAlgorithm> = Vec::new();
        for (bank, _, _) in &self.0 {
            if !banks.contains(bank) {
                banks.push(*bank);
            }
        }
        let deciding = banks.iter().position(|bank| *bank == HashAlgorithm::Sha256).unwrap_or(0);
        let deciding = (!banks.is_empty()).then(|| banks.remove(deciding));
        (deciding, banks)
    }

    /// With how many of its entries the list comes to what these banks hold; up to `may_lack` at its end may be missing.
    fn met_by(&self, restored: &Restored, banks: &[HashAlgorithm], may_lack: u64) -> Result<Vec<u64>, String> {
        let mut replay = Replay::new(banks).map_err(|error| error.to_string())?.per_bank_only();
        let agrees = |replay: &Replay| {
            let mut claims = self.0.iter().filter(|(bank, _, _)| banks.contains(bank));
            claims.all(|(bank, pcr, value)| replay.value(*pcr, *bank) == Some(*value))
        };
        let mut found = Vec::new();
        let mut result = Ok(());
        restored.each(|number, record| {
            if number + may_lack > restored.entries && agrees(&replay) {
                found.push(number - 1);
            }
            result = replay.extend_record(record).map_err(|error| error.to_string());
            result.is_ok()
        });
        if agrees(&replay) {
            found.push(restored.entries);
        }
        result.map(|()| found)
    }
}

/// Compares a list with one of the TPM's banks, in all PCRs that it touches. Up to `may_lack` entries at its end may be missing there.
pub fn compare(restored: &Restored, claims: Result<&Claims, &TpmError>, may_lack: u64) -> Chain {
    let claims = match claims {
        Ok(claims) => claims,
        Err(error) => return Chain::Broken(format!("the TPM's PCRs cannot be read: {error}")),
    };
    let Some(bank) = claims.banks().0 else {
        return Chain::Broken("the TPM has no bank whose algorithm is known".into());
    };
    match claims.met_by(restored, &[bank], may_lack) {
        Err(error) => Chain::Broken(error),
        Ok(found) => match found.last() {
            Some(entries) if *entries == restored.entries => Chain::Whole,
            Some(entries) => Chain::Missing(restored.entries - entries),
            None if claims.0.iter().all(|(_, _, value)| value.is_zero()) => {
                Chain::Broken("the PCRs are at zero: the TPM was reset".into())
            }
            None => Chain::Broken("the PCRs are not what the list comes to".into()),
        },
    }
}

/// An earlier list, and what is still to be compared with it.
#[derive(Debug)]
pub struct OtherBanks {
    /// The list.
    pub restored: Restored,
    /// What the TPM had.
    pub claims: Claims,
    /// How many entries at its end the TPM lacked by the bank that decided.
    pub lacked: u64,
}

impl OtherBanks {
    /// Why one of the TPM's other banks does not agree with the list, if one does not.
    pub fn differ(&self) -> Option<String> {
        let Self { restored, claims, lacked } = self;
        claims.banks().1.into_iter().find_map(|bank| match claims.met_by(restored, &[bank], *lacked) {
            Err(error) => Some(error),
            Ok(found) if found.contains(&(restored.entries - lacked)) => None,
            Ok(_) => Some(format!("the PCRs of the {bank} bank are not what the list comes to")),
        })
    }
}

/// Takes an earlier list over into `log`, and says meanwhile whether it agrees with the TPM.
pub fn take_over(log: &MeasurementLog, restored: &Restored, compare: impl FnOnce() -> Chain + Send) -> Chain {
    std::thread::scope(|scope| {
        let chain = scope.spawn(compare);
        restored.each(|_, record| {
            log.restore(record);
            true
        });
        chain.join().unwrap_or_else(|_| Chain::Broken("the thread that compares the list panicked".into()))
    })
}

/// Gives the TPM the list's last entries where those are missing.
///
/// # Errors
/// [`Failure`] when it does not take them.
pub fn give_missing(log: &MeasurementLog, restored: &Restored, chain: &Chain) -> Result<(), Failure> {
    let Chain::Missing(lacks) = chain else { return Ok(()) };
    let mut missing = Vec::new();
    restored.each(|number, record| {
        if number + lacks > restored.entries {
            missing.push(record.to_entry());
        }
        true
    });
    missing.iter().try_for_each(|entry| log.extend_listed(entry)).map_err(Failure::failed)
}

/// How often it is looked whether the TPM has missed something.
const LOOK: Duration = Duration::from_millis(500);

/// The thread that starts a software TPM again that has died, gives the TPM what it has missed as soon as it answers again, notes from which entry on it has, for the guard that comes
/// next, and tells both.
#[derive(Debug)]
pub struct KeepingUp {
    thread: JoinHandle<()>,
    ending: Arc<AtomicBool>,
}

impl KeepingUp {
    /// Starts it.
    ///
    /// # Errors
    /// What starting a thread says.
    pub fn start(
        log: &Arc<MeasurementLog>,
        noted: Heartbeat,
        events: &Arc<Events>,
        mut reviver: Option<Reviver>,
    ) -> io::Result<Self> {
        let ending = Arc::<AtomicBool>::default();
        let (log, events, ends) = (Arc::clone(log), Arc::clone(events), Arc::clone(&ending));
        let keep_up = move || {
            let mut told = Told::default();
            while !ends.load(Ordering::Relaxed) {
                if let Some(reviver) = &mut reviver {
                    reviver.look(&log, &events);
                }
                told.look(&log, &noted, &events);
                std::thread::park_timeout(LOOK);
            }
        };
        let thread = std::thread::Builder::new().name("tpm".into()).spawn(keep_up)?;
        Ok(Self { thread, ending })
    }

    /// Ends it. A TPM that it is just asking is waited for.
    pub fn stop(self) {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        // A thread that panicked has told so.
        let _ = self.thread.join();
    }
}

/// What was told of the TPM.
#[derive(Debug, Default)]
struct Told {
    first: Option<u64>,
    given: u64,
    departed: bool,
}

impl Told {
    fn look(&mut self, log: &MeasurementLog, noted: &Heartbeat, events: &Events) {
        self.given += log.catch_up();
        let first = log.first_missing();
        // What cannot be written down now is tried again.
        if first != self.first && noted.note_missed(first).is_ok() {
            match (self.first, first) {
                (None, Some(first)) => events.say(format!(
                    "the TPM does not take what is listed, from entry {first} on; it is given that when it answers again"
                )),
                (Some(_), None) => {
                    events.say(format!("the TPM answers again, and was given {} entries that it had missed", self.given));
                }
                _ => {}
            }
            self.first = first;
            self.given = 0;
        }
        if let Some(why) = log.departure().filter(|_| !self.departed) {
            events.say(format!(
                "{why}: the list cannot be proven beyond what the TPM has; end the guard and start it again"
            ));
            self.departed = true;
        }
    }
}
