//! The measurement list and the PCR, in one critical section: the list's order is the PCR's order.
//!
//! An entry is appended first and extended second, as in the kernel: a TPM error leaves the entry in place (and shows
//! when the list is verified), it does not undo it. An entry whose template digest is already listed for the same PCR
//! is dropped, violations excepted. Writing can take as long as the list's file system is frozen: then one thread waits for it, and
//! whoever else has an entry is told [`MeasureError::Busy`]. What a TPM has missed it is given as soon as it answers again (`missed.rs`).
//!
//! Source: `ima_add_template_entry`, security/integrity/ima/ima_queue.c.

mod another_tpm;
mod missed;

pub use self::another_tpm::NotGiven;
pub use self::missed::Departure;
use self::missed::{Behind, Extend, Found};
use crate::crypto::{self, UnsupportedHash};
use crate::lock::{self, Lock};
use crate::replay::template_digests;
use crate::tpm::{Tpm, TpmError};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::measurement_list::{ByteOrder, Entry, Record};
use imara_format::template::{self, Field, Template};
use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where the list is kept so that it outlives the program: appended to, never rewritten.
pub trait Store: Send {
    /// Appends one binary record.
    ///
    /// # Errors
    /// What the write says; nothing may have been appended then.
    fn append(&mut self, record: &[u8]) -> io::Result<()>;
}

/// What a file contributes to an entry.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// The content's digest.
    pub digest: &'a Digest,
    /// Whether that is fs-verity's.
    pub verity: bool,
    /// What stands for it in the template `ima`, which has room for SHA-1 and MD5 alone; `None` where it is short enough itself.
    pub short: Option<&'a Digest>,
    /// The path, as it is known at the time.
    pub path: &'a [u8],
    /// The value of `security.ima`; empty without one.
    pub label: &'a [u8],
    /// The value of `security.evm`; empty without one.
    pub evm_label: &'a [u8],
    /// For the template `evm-sig`; `None` where there is no file.
    pub attributes: Option<&'a Attributes>,
}

impl<'a> Measured<'a> {
    /// What there is no file of, by its name.
    const fn of_no_file(digest: &'a Digest, short: &'a Digest, path: &'a [u8]) -> Self {
        Self { digest, verity: false, short: Some(short), path, label: &[], evm_label: &[], attributes: None }
    }
}

/// What the fields of the template `evm-sig` tell of a file beside its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its owner, as the filesystem has it.
    pub uid: u32,
    /// Its group, as the filesystem has it.
    pub gid: u32,
    /// Its mode, with the type.
    pub mode: u16,
    /// Those of the extended attributes that EVM protects which it has, in EVM's order.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is in the list and in the PCR.
    Listed,
    /// The same entry is listed already for that PCR.
    Known,
}

/// Why an entry could not be added.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A digest cannot be computed.
    #[error(transparent)]
    Hash(#[from] UnsupportedHash),
    /// Nothing can be appended to the list for now: an entry is being written, and that has been waiting. Nothing was done.
    #[error("the measurement list takes no entries now: its file system may be frozen, or its disk does not answer")]
    Busy,
    /// The list could not be appended to.
    #[error("the measurement list cannot be appended to: {0}")]
    Store(#[from] io::Error),
    /// The entry is listed, but a PCR does not have it.
    #[error("entry {entry} is listed but not in the TPM: {error}")]
    Tpm {
        /// The entry's number, from 1.
        entry: u64,
        /// What the TPM said.
        error: TpmError,
    },
}

/// An answer of the TPM that takes longer than this, and is none, makes it be left alone for [`REST`].
const SILENT: Duration = Duration::from_secs(1);
/// How long a TPM that has not answered is left alone.
const REST: Duration = Duration::from_secs(10);
/// How long a TPM that is given what it missed is waited for by whoever needs it.
const BUSY: Duration = Duration::from_secs(15);

/// How long one entry may be written before nobody waits for that.
const WRITING: Duration = Duration::from_millis(250);

/// How far the list has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries.
    pub entries: u64,
    /// Violations among them.
    pub violations: u64,
    /// Entries at the list's end that the TPM does not have.
    pub unextended: u64,
    /// Entries that it was given.
    pub extends: u64,
    /// How long it took for them.
    pub extending: Duration,
    /// How long an entry has been waiting to be written, where nobody waits for it any more.
    pub waiting: Option<Duration>,
}

/// The same, for whoever asks while an entry waits for the TPM.
#[derive(Debug, Default)]
struct Counters {
    entries: AtomicU64,
    violations: AtomicU64,
    unextended: AtomicU64,
    departure: Mutex<Option<Departure>>,
    extends: AtomicU64,
    /// In nanoseconds.
    extending: AtomicU64,
    /// Since when an entry is being written, in milliseconds after the list was begun; 0 where none is.
    writing: AtomicU64,
}

/// The measurement list of this boot.
pub struct MeasurementLog {
    state: Lock<State>,
    /// Taken by whoever has said in the state that an entry is written.
    file: Mutex<ListFile>,
    /// Told one of those who wait when it is.
    written: Condvar,
    /// Told when the TPM is back from being given what it missed.
    back: Condvar,
    begun: Instant,
    known: Known,
    /// What an entry is hashed with: SHA-1, which is listed; the default hash, which tells known entries; the TPM's banks.
    algorithms: Vec<HashAlgorithm>,
    counters: Arc<Counters>,
    banks: Vec<HashAlgorithm>,
    hash: HashAlgorithm,
    pcr: u32,
}

struct ListFile {
    store: Box<dyn Store>,
    record: Vec<u8>,
}

struct State {
    /// Since when an entry is being written.
    writing: Option<Instant>,
    /// How many wait until it is.
    waiting: u32,
    tpm: Option<Tpm>,
    counters: Arc<Counters>,
    /// What the PCRs hold, and what they lack.
    behind: Behind,
    /// The TPM is being given what it missed: nobody waits for that, and what comes now is missed as well.
    away: bool,
    /// There is none just now, and another will be given all that it misses.
    gone: bool,
    /// Until when the TPM is left alone.
    resting: Option<Instant>,
}

impl MeasurementLog {
    /// A list that continues with what `known` entries left (none at a fresh start).
    ///
    /// `hash` is the default hash (`ima_hash=`), `pcr` the default PCR.
    ///
    /// # Errors
    /// [`UnsupportedHash`] when the default hash cannot be computed.
    pub fn new(
        store: Box<dyn Store>,
        tpm: Option<Tpm>,
        hash: HashAlgorithm,
        pcr: u32,
    ) -> Result<Self, UnsupportedHash> {
        crypto::hash(hash, &[])?;
        let banks: Vec<_> = tpm.iter().flat_map(Tpm::banks).filter_map(|bank| bank.algorithm).collect();
        let mut algorithms: Vec<HashAlgorithm> = Vec::new();
        for algorithm in [HashAlgorithm::Sha1, hash].into_iter().chain(banks.iter().copied()) {
            if !algorithms.contains(&algorithm) {
                algorithms.push(algorithm);
            }
        }
        let counters = Arc::<Counters>::default();
        let state = State {
            writing: None,
            waiting: 0,
            tpm,
            counters: Arc::clone(&counters),
            behind: Behind::default(),
            away: false,
            gone: false,
            resting: None,
        };
        Ok(Self {
            state: Lock::new(state, &lock::LIST),
            file: Mutex::new(ListFile { store, record: Vec::new() }),
            written: Condvar::new(),
            back: Condvar::new(),
            begun: Instant::now(),
            known: Known::default(),
            algorithms,
            counters,
            banks,
            hash,
            pcr,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The state, while no entry is being written.
    fn state_to_write(&self) -> Result<MutexGuard<'_, State>, MeasureError> {
        let mut state = self.state();
        while let Some(since) = state.writing {
            let left = WRITING.checked_sub(since.elapsed()).ok_or(MeasureError::Busy)?;
            state = self.wait_written(state, left);
        }
        Ok(state)
    }

    fn wait_written<'a>(&self, mut state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        lock::LIST.waited();
        state.waiting += 1;
        let waited = self.written.wait_timeout(state, most);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
        state
    }

    /// Nothing is written now: the next one may.
    fn pass_on(&self, state: MutexGuard<'_, State>) {
        let wake = state.waiting > 0;
        drop(state);
        if wake {
            self.written.notify_one();
        }
    }

    /// Waits until no entry is being written, which it says, but no longer than `most`.
    pub fn wait_until_free(&self, most: Duration) -> bool {
        let mut state = self.state();
        if state.writing.is_some() {
            state = self.wait_written(state, most);
        }
        let free = state.writing.is_none();
        if free {
            self.pass_on(state);
        }
        free
    }

    /// Appends an entry and extends the TPM; `listed` is called as soon as both are done, before anybody else's turn. The state is
    /// not held while it is written, which may take as long as the file system is frozen.
    fn append(
        &self,
        mut state: MutexGuard<'_, State>,
        entry: &Entry,
        digests: &[Digest],
        listed: impl FnOnce(),
    ) -> Result<(), MeasureError> {
        let now = Instant::now();
        state.writing = Some(now);
        self.counters.writing.store(now.duration_since(self.begun).as_millis().max(1) as u64, Ordering::Relaxed);
        drop(state);
        let write = || {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            let ListFile { store, record } = &mut *file;
            record.clear();
            entry.write_binary(ByteOrder::Little, record);
            store.append(record)
        };
        // A panic, which is a bug of ours, costs this entry and keeps no other waiting.
        let written = catch_unwind(AssertUnwindSafe(write));
        let mut state = self.state();
        state.writing = None;
        self.counters.writing.store(0, Ordering::Relaxed);
        let written = match written {
            Ok(written) => written,
            Err(panic) => {
                self.pass_on(state);
                resume_unwind(panic)
            }
        };
        let result = written.map_err(MeasureError::from).and_then(|()| {
            state.counters.entries.fetch_add(1, Ordering::Relaxed);
            state.counters.violations.fetch_add(entry.is_violation().into(), Ordering::Relaxed);
            let result = state.extend(entry.pcr, digests);
            listed();
            result
        });
        self.pass_on(state);
        result
    }

    /// The default PCR.
    pub const fn pcr(&self) -> u32 {
        self.pcr
    }

    /// The default hash.
    pub const fn hash(&self) -> HashAlgorithm {
        self.hash
    }

    /// Takes over an entry that an earlier run has listed and extended.
    pub fn restore(&self, record: &Record<'_>) {
        let state = self.state();
        let violation = record.is_violation();
        if !violation {
            self.known.add(record.pcr, record.hash_input(ByteOrder::Little, &mut Vec::new()));
        }
        state.counters.entries.fetch_add(1, Ordering::Relaxed);
        state.counters.violations.fetch_add(violation.into(), Ordering::Relaxed);
    }

    /// Extends the TPM with an entry that is listed already but never reached it (the program was killed in between).
    ///
    /// # Errors
    /// [`MeasureError::Tpm`] when the TPM does not take it.
    pub fn extend_listed(&self, entry: &Entry) -> Result<(), MeasureError> {
        let digests = template_digests(entry, &self.algorithms)?;
        self.state().extend(entry.pcr, &digests)
    }

    /// Adds the entry of a file.
    ///
    /// # Errors
    /// [`MeasureError`]; with [`MeasureError::Tpm`] the entry is in the list nevertheless.
    pub fn add(&self, template: &Template, pcr: u32, measured: &Measured<'_>) -> Result<Added, MeasureError> {
        let fields = fields(template, measured);
        self.add_entry(template.listed_name().into_owned(), pcr, fields)
    }

    /// Adds the first entry of a fresh list: the digest of PCRs 0 to 9 (0 to 7 for SHA-1) in the bank of the default
    /// hash, else SHA-256, else SHA-1; zeros in the default hash where no bank or no TPM has one.
    ///
    /// Source: `ima_add_boot_aggregate`, security/integrity/ima/ima_init.c.
    ///
    /// # Errors
    /// As [`MeasurementLog::add`].
    pub fn add_boot_aggregate(&self, template: &Template) -> Result<Digest, MeasureError> {
        let digest = self
            .boot_aggregate(&[self.hash, HashAlgorithm::Sha256, HashAlgorithm::Sha1])?
            .unwrap_or_else(|| Digest::zeros(self.hash));
        let short = match digest.algorithm() {
            HashAlgorithm::Sha1 | HashAlgorithm::Md5 => digest,
            _ if !template.fields.contains(&Field::D) => digest,
            _ => self.boot_aggregate(&[HashAlgorithm::Sha1])?.unwrap_or_else(|| Digest::zeros(HashAlgorithm::Sha1)),
        };
        self.add(template, self.pcr, &Measured::of_no_file(&digest, &short, template::BOOT_AGGREGATE))?;
        Ok(digest)
    }

    /// Over the PCRs of the first of these banks that there is.
    fn boot_aggregate(&self, banks: &[HashAlgorithm]) -> Result<Option<Digest>, MeasureError> {
        let mut state = self.state();
        let bank = banks.iter().find(|bank| state.has_bank(**bank)).copied();
        let (Some(bank), Some(tpm)) = (bank, &mut state.tpm) else {
            return Ok(None);
        };
        let last = if bank == HashAlgorithm::Sha1 { 7 } else { 9 };
        let mut hasher = crypto::Hasher::new(bank)?;
        for index in 0..=last {
            let value = tpm.pcr_read(bank, index).map_err(|error| MeasureError::Tpm { entry: 1, error })?;
            hasher.update(value.as_bytes());
        }
        Ok(Some(hasher.finish()))
    }

    /// Records that what was measured may not be what is used: a violation, listed with zeros and extended with ones,
    /// always in the default PCR. What the file has of EVM is listed with it, and no label.
    ///
    /// # Errors
    /// As [`MeasurementLog::add`].
    pub fn add_violation(
        &self,
        template: &Template,
        path: &[u8],
        evm_label: &[u8],
        attributes: Option<&Attributes>,
    ) -> Result<(), MeasureError> {
        let (zeros, short) = (Digest::zeros(self.hash), Digest::zeros(HashAlgorithm::Sha1));
        let measured = Measured { evm_label, attributes, ..Measured::of_no_file(&zeros, &short, path) };
        let fields = fields(template, &measured);
        let template_digest = vec![0; HashAlgorithm::Sha1.digest_size()];
        let entry = Entry { pcr: self.pcr, template_digest, template: template.listed_name().into_owned(), fields };
        let digests = template_digests(&entry, &self.algorithms)?;
        self.append(self.state_to_write()?, &entry, &digests, || ())
    }

    /// Adds what is no file: a name and a buffer, with the template `ima-buf`, as the kernel does for critical data.
    ///
    /// # Errors
    /// As [`MeasurementLog::add`].
    pub fn add_buffer(&self, name: &[u8], buffer: &[u8]) -> Result<Added, MeasureError> {
        let digest = crypto::hash(self.hash, &[buffer])?;
        let fields = vec![template::encode_d_ng(&digest), template::encode_n_ng(name), buffer.to_vec()];
        self.add_entry("ima-buf".into(), self.pcr, fields)
    }

    fn add_entry(&self, template: String, pcr: u32, fields: Vec<Vec<u8>>) -> Result<Added, MeasureError> {
        // Anything but zeros, which would make it a violation; the real digest follows at once.
        let template_digest = vec![0xff; HashAlgorithm::Sha1.digest_size()];
        let mut entry = Entry { pcr, template_digest, template, fields };
        let input = entry.hash_input();
        // What is listed and extended is found without waiting for an entry that is just being extended.
        if self.known.has(pcr, &input) {
            return Ok(Added::Known);
        }
        // Before it is anybody's turn: only appending and extending have an order.
        let digests = template_digests(&entry, &self.algorithms)?;
        let of = |algorithm| digests.iter().find(|digest| digest.algorithm() == algorithm);
        let Some(listed) = of(HashAlgorithm::Sha1) else {
            return Err(UnsupportedHash(self.hash).into());
        };
        entry.template_digest = listed.as_bytes().to_vec();
        let state = self.state_to_write()?;
        if self.known.has(pcr, &input) {
            self.pass_on(state);
            return Ok(Added::Known);
        }
        // What is not listed must not be taken for known, nor what is not extended yet.
        self.append(state, &entry, &digests, || self.known.add(pcr, &input)).map(|()| Added::Listed)
    }

    /// How far the list has come. Never waits for the TPM.
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let since = Duration::from_millis(load(&self.counters.writing));
        let waiting = (!since.is_zero()).then(|| self.begun.elapsed().saturating_sub(since));
        Counts {
            waiting: waiting.filter(|waiting| *waiting >= WRITING),
            entries: load(&self.counters.entries),
            violations: load(&self.counters.violations),
            unextended: load(&self.counters.unextended),
            extends: load(&self.counters.extends),
            extending: Duration::from_nanos(load(&self.counters.extending)),
        }
    }

    /// The TPM's banks, as far as their algorithms are known; none without a TPM.
    pub fn banks(&self) -> &[HashAlgorithm] {
        &self.banks
    }

    /// The state, once the TPM is not away any more. One that does not come back is given up.
    fn state_at_rest(&self) -> MutexGuard<'_, State> {
        let waited = self.back.wait_timeout_while(self.state(), BUSY, |state| state.away);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Lets the TPM go: what is added from now on is listed alone.
    pub fn close_tpm(&self) {
        let mut state = self.state_at_rest();
        (state.tpm, state.away, state.gone) = (None, false, false);
    }

    /// Calls the TPM between two entries; `None` without one.
    pub fn with_tpm<T>(&self, call: impl FnOnce(&mut Tpm) -> T) -> Option<T> {
        self.state_at_rest().tpm.as_mut().map(call)
    }

    /// The number, from 1, of the first entry that the TPM does not have; all that follow it are missing as well.
    pub fn first_missing(&self) -> Option<u64> {
        let state = self.state();
        let (entries, missing) = (state.counters.entries.load(Ordering::Relaxed), state.behind.entries());
        (missing > 0).then(|| (entries + 1).saturating_sub(missing))
    }

    /// Why the TPM cannot be given any more what it lacks.
    ///
    /// Never waits for it.
    pub fn departure(&self) -> Option<Departure> {
        *self.counters.departure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the TPM what it has missed, if it answers again. Whoever adds an entry meanwhile does not wait. Returns how many entries it was
    /// given, or had been given without having said so.
    pub fn catch_up(&self) -> u64 {
        let mut state = self.state();
        let rests = state.resting.is_some_and(|until| Instant::now() < until);
        if rests || state.behind.first().is_none() {
            return 0;
        }
        let Some(mut tpm) = state.tpm.take() else {
            return 0;
        };
        state.away = true;
        let (mut made_up, mut gets_on) = (0, true);
        // PCRs that hold what they should, as far as nothing has failed since.
        let mut sure = Vec::new();
        while let Some(first) = state.behind.first().filter(|_| gets_on).cloned() {
            let held = state.behind.held(first.pcr).cloned();
            drop(state);
            let begun = Instant::now();
            let result = missed::make_up(&mut tpm, &first, held, &mut sure);
            let took = begun.elapsed();
            state = self.state();
            match result {
                Ok((held, Found::Done)) => {
                    state.behind.made_up(held);
                    made_up += 1;
                }
                Ok((_, Found::Departed(why))) => state.behind.depart(why),
                Ok((_, Found::Missing)) | Err(_) => {
                    gets_on = false;
                    state.resting = (took > SILENT).then(|| Instant::now() + REST);
                }
            }
            state.count_missing();
        }
        if state.away {
            state.tpm = Some(tpm);
        }
        state.away = false;
        self.back.notify_all();
        made_up
    }
}

/// Which entries are listed, each by 128 bits of a keyed hash over what its template digest is over, and its PCR. Who does not know the
/// key cannot make two entries meet; and a list of 100,000 entries is taken over in milliseconds and 5 MiB.
struct Known {
    keys: [RandomState; 2],
    entries: Vec<Lock<HashSet<u128>>>,
}

impl Default for Known {
    fn default() -> Self {
        let entries = (0..lock::SHARDS).map(|_| Lock::new(HashSet::new(), &lock::LISTED)).collect();
        Self { keys: Default::default(), entries }
    }
}

impl Known {
    fn key(&self, pcr: u32, input: &[u8]) -> u128 {
        let half = |key: &RandomState| {
            let mut hasher = key.build_hasher();
            hasher.write_u32(pcr);
            hasher.write(input);
            u128::from(hasher.finish())
        };
        half(&self.keys[0]) << 64 | half(&self.keys[1])
    }

    /// The shard of a key, whose bits are as good as random.
    fn entries(&self, key: u128) -> MutexGuard<'_, HashSet<u128>> {
        self.entries[key as usize % lock::SHARDS].lock()
    }

    fn has(&self, pcr: u32, input: &[u8]) -> bool {
        let key = self.key(pcr, input);
        self.entries(key).contains(&key)
    }

    fn add(&self, pcr: u32, input: &[u8]) {
        let key = self.key(pcr, input);
        self.entries(key).insert(key);
    }
}

impl State {
    fn has_bank(&self, bank: HashAlgorithm) -> bool {
        self.tpm.iter().flat_map(Tpm::banks).any(|other| other.algorithm == Some(bank))
    }

    fn extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), MeasureError> {
        if self.tpm.is_none() && !self.away && !self.gone {
            return Ok(());
        }
        let extend = Extend { pcr, digests: digests.to_vec() };
        let behind = &mut self.behind;
        let result = match &mut self.tpm {
            Some(tpm) if behind.entries() == 0 => {
                let begun = Instant::now();
                let result = match behind.held(pcr) {
                    Some(_) => Ok(()),
                    None => missed::read(tpm, pcr).map(|held| behind.hold(pcr, held)),
                };
                let result = result.and_then(|()| missed::give(tpm, &extend));
                let took = begun.elapsed();
                self.counters.extends.fetch_add(1, Ordering::Relaxed);
                self.counters.extending.fetch_add(took.as_nanos().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
                self.resting = (result.is_err() && took > SILENT).then(|| Instant::now() + REST);
                result
            }
            // In the list's order, or not at all.
            _ => {
                let what = match behind.departure() {
                    Some(departure) => departure.to_string(),
                    None if self.gone => "it has gone".to_owned(),
                    None => format!("it lacks {} entries before this one", behind.entries()),
                };
                Err(TpmError::Transport { command: "TPM2_PCR_Extend", source: io::Error::other(what) })
            }
        };
        match result {
            Ok(()) => behind.extended(&extend),
            Err(_) => behind.miss(extend),
        }
        self.count_missing();
        result.map_err(|error| MeasureError::Tpm { entry: self.counters.entries.load(Ordering::Relaxed), error })
    }

    fn count_missing(&self) {
        self.counters.unextended.store(self.behind.entries(), Ordering::Relaxed);
        if let Some(why) = self.behind.departure() {
            *self.counters.departure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
    }
}

/// The bytes of each field of a template, with numbers as the list has them.
fn fields(template: &Template, measured: &Measured<'_>) -> Vec<Vec<u8>> {
    let attribute = |field: fn(&Attributes) -> Vec<u8>| measured.attributes.map(field).unwrap_or_default();
    let one = |field: &Field| match field {
        Field::D => template::encode_d(measured.short.unwrap_or(measured.digest)),
        Field::N => template::encode_n(measured.path),
        Field::DNg => template::encode_d_ng(measured.digest),
        Field::DNgV2 => template::encode_d_ngv2(measured.digest, measured.verity),
        Field::NNg => template::encode_n_ng(measured.path),
        Field::Sig => {
            let signature = template::encode_sig(measured.label);
            // Without a signature of its own a file is listed with its portable one.
            if signature.is_empty() { template::encode_evmsig(measured.evm_label) } else { signature }
        }
        Field::Evmsig => template::encode_evmsig(measured.evm_label),
        Field::Buf | Field::Modsig | Field::DModsig => Vec::new(),
        Field::Iuid => attribute(|attributes| attributes.uid.to_le_bytes().to_vec()),
        Field::Igid => attribute(|attributes| attributes.gid.to_le_bytes().to_vec()),
        Field::Imode => attribute(|attributes| attributes.mode.to_le_bytes().to_vec()),
        Field::Xattrnames => attribute(|attributes| {
            let names: Vec<&str> = attributes.xattrs.iter().map(|(name, _)| &**name).collect();
            if names.is_empty() { Vec::new() } else { [names.join("|").as_bytes(), b"\0"].concat() }
        }),
        Field::Xattrlengths => attribute(|attributes| {
            attributes.xattrs.iter().flat_map(|(_, value)| (value.len() as u32).to_le_bytes()).collect()
        }),
        Field::Xattrvalues => {
            attribute(|attributes| attributes.xattrs.iter().flat_map(|(_, value)| value.iter().copied()).collect())
        }
    };
    template.fields.iter().map(one).collect()
}
