//! What a policy would do: [`crate::check`] itself, asked about files to which nothing happens.
//!
//! Every answer is the checker's own, so that a simulation and a guard cannot differ in what they decide. Only the ports
//! behind it are others: the list is counted and not kept, there is no TPM, and each file is taken as a quiet one, whose
//! times tell, that nobody else writes to and that had settled long ago.
//!
//! A file's content is asked for only where the verdict depends on it, i.e. where a file with a label is appraised. For a
//! measurement alone the size of the digest is what counts, so a *stand-in* takes the digest's place: a digest of device,
//! inode, size and time of change, in the algorithm that the real one would be in. Entries then have their exact size in
//! bytes. Their number can differ from a real list's in one case: two files whose contents are the same and whose paths
//! differ only in spaces and underscores make one entry, and here two.

pub mod replay;

use crate::active_policy::ActivePolicy;
use crate::appraise::Cause;
use crate::audit::{AuditRecord, AuditSink};
use crate::cache::{InodeId, Stamp};
use crate::check::{Access, Checker, File, Hook, Mode, Task};
use crate::crypto::{self, UnsupportedHash};
use crate::keyring::Keyring;
use crate::measure::{MeasurementLog, Store};
use crate::policy::{CompiledPolicy, Decision, Event, FileFacts};
use imara_format::evm::InodeMetadata;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::measurement_list::Reader;
use imara_format::policy::{Class, Func};
use imara_format::signature::Signature;
use imara_format::template::Template;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// With what a policy is simulated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The template of rules without `template=`.
    pub template: Template,
    /// The default hash.
    pub hash: HashAlgorithm,
    /// The default PCR.
    pub pcr: u32,
    /// What a bad appraisal leads to. In [`Mode::Enforce`] it ends its access, as it would.
    pub mode: Mode,
    /// Whether content may be read; else what depends on it is [`Judged::unknown`].
    pub content: bool,
    /// How many paths are named for each rule and each cause: the first in their order.
    pub examples: usize,
    /// Whether the entries of the list are kept, for [`Simulation::list`].
    pub list: bool,
}

/// An access to a file, which may stand for several hooks.
#[derive(Clone, Copy)]
pub struct Use<'a> {
    /// Who.
    pub task: &'a dyn Task,
    /// The hooks, in their order.
    pub hooks: &'a [Hook],
    /// Whether this very open has created the file.
    pub created: bool,
    /// Whether the file is opened for writing.
    pub writes: bool,
    /// Whether somebody else can write to it meanwhile.
    pub written: bool,
    /// When the content is asked for.
    pub content: Content,
}

/// When a file's content is asked for; else a stand-in takes its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Where a verdict depends on it.
    #[default]
    AsNeeded,
    /// Also where only the verdict on a later access does: what is found out now serves that one, too.
    Appraised,
    /// Always: its digest is known.
    Known,
}

/// What one access would lead to.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Each hook that was asked, and what the policy decides.
    pub asked: Vec<(Hook, Decision)>,
    /// How many entries it adds to the list.
    pub entries: u32,
    /// Why it did not pass its appraisal.
    pub refused: Option<Refused>,
    /// Why it could not be judged.
    pub unknown: Option<String>,
}

/// A failed appraisal.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The hook.
    pub func: Func,
    /// Why.
    pub cause: Cause,
    /// More of it, for people.
    pub detail: String,
}

/// How often something happened, and to which files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub events: u64,
    /// To how many files.
    pub files: u64,
    /// The paths of some, the first in their order.
    pub examples: Vec<Vec<u8>>,
}

/// What a policy would do.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Files asked about.
    pub files: u64,
    /// Hooks asked.
    pub asked: u64,
    /// Files and hooks for which something would be done, for each of [`Class::ALL`].
    pub classes: Vec<Tally>,
    /// What each rule decides, do or don't, in the policy's order.
    pub rules: Vec<Tally>,
    /// Entries of the list, violations included, without the boot aggregate.
    pub entries: u64,
    /// Violations among them.
    pub violations: u64,
    /// Bytes of the list in the kernel's binary form.
    pub list_bytes: u64,
    /// Audit records of rules that audit.
    pub audit_records: u64,
    /// Accesses that would be refused.
    pub refused: Tally,
    /// The same by their cause, the most frequent first.
    pub causes: Vec<(Cause, Tally)>,
    /// Accesses that could not be judged, and why, the most frequent first.
    pub unknown: Vec<(String, Tally)>,
}

/// An entry that would be listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The file's path, as listed.
    pub path: Vec<u8>,
    /// The PCR.
    pub pcr: u32,
    /// The template.
    pub template: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A policy, tried on files.
pub struct Simulation {
    checker: Checker,
    settings: Settings,
    list: Arc<CountedList>,
    ledger: Mutex<Ledger>,
}

/// What is counted; each tally by what it is about.
#[derive(Default)]
struct Ledger {
    files: HashSet<InodeId>,
    asked: u64,
    audit_records: u64,
    classes: HashMap<Class, Counted>,
    rules: HashMap<usize, Counted>,
    refused: Counted,
    causes: HashMap<Cause, Counted>,
    unknown: HashMap<String, Counted>,
}

#[derive(Default)]
struct Counted {
    events: u64,
    files: HashSet<InodeId>,
    examples: BTreeSet<Vec<u8>>,
}

/// Stands in for the list: what would be appended is counted.
#[derive(Default)]
struct CountedList {
    bytes: AtomicU64,
    entries: Option<Mutex<Vec<Listed>>>,
}

struct CountingStore(Arc<CountedList>);

struct Records;

/// What the checker did beside its verdict.
#[derive(Default)]
struct LedTo {
    entries: u32,
    records: Vec<AuditRecord>,
}

thread_local! {
    /// What the access that this thread is asking about has led to: the checker's list and records are shared by threads, and
    /// it does all that belongs to an access on the thread that asks.
    static LED_TO: RefCell<LedTo> = RefCell::default();
}

impl Store for CountingStore {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let bytes = record.len() as u64;
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        LED_TO.with_borrow_mut(|led_to| led_to.entries += 1);
        if let Some(entries) = &self.0.entries {
            let mut reader = Reader::new(record);
            let entry = reader.next_record().map_err(io::Error::other)?;
            let listed = entry.map(|entry| Listed {
                path: entry.path().unwrap_or_default().to_vec(),
                pcr: entry.pcr,
                template: entry.template.listed_name().into_owned(),
                bytes,
            });
            lock(entries).extend(listed);
        }
        Ok(())
    }
}

impl AuditSink for Records {
    fn record(&self, record: AuditRecord) {
        LED_TO.with_borrow_mut(|led_to| led_to.records.push(record));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks protect is never half changed, so a panic elsewhere leaves it sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Simulation {
    /// A simulation that has seen no file yet.
    ///
    /// # Errors
    /// [`UnsupportedHash`] when the default hash cannot be computed.
    pub fn new(policy: CompiledPolicy, keys: Keyring, settings: Settings) -> Result<Self, UnsupportedHash> {
        let entries = settings.list.then(Mutex::default);
        let list = Arc::new(CountedList { bytes: AtomicU64::new(0), entries });
        let store = Box::new(CountingStore(Arc::clone(&list)));
        let log = Arc::new(MeasurementLog::new(store, None, settings.hash, settings.pcr)?);
        let checker = Checker::new(policy, keys, log, settings.template.clone(), settings.mode, Box::new(Records));
        Ok(Self { checker, settings, list, ledger: Mutex::default() })
    }

    /// The policy.
    pub fn policy(&self) -> Arc<ActivePolicy> {
        self.checker.policy()
    }

    /// Tries all the uses of a file, unless it has been tried already, under this name or another.
    pub fn file(&self, file: &dyn File, uses: &[Use<'_>]) -> Option<Vec<Judged>> {
        if !lock(&self.ledger).files.insert(file.id()) {
            return None;
        }
        let policy = self.checker.policy();
        let content = uses.iter().map(|one| content(&policy, file, one, self.settings.mode)).max().unwrap_or_default();
        let keys = self.checker.keys();
        let quiet = Quiet::new(file, content, &self.settings, &keys);
        Some(uses.iter().map(|one| self.judge(&policy, &quiet, one)).collect())
    }

    /// Tries one access to a file that may have been asked about before.
    pub fn access(&self, file: &dyn File, one: &Use<'_>) -> Judged {
        lock(&self.ledger).files.insert(file.id());
        let policy = self.checker.policy();
        let content = content(&policy, file, one, self.settings.mode);
        let keys = self.checker.keys();
        let quiet = Quiet::new(file, content, &self.settings, &keys);
        self.judge(&policy, &quiet, one)
    }

    /// Notes a file that could not even be asked about.
    pub fn could_not(&self, path: &[u8], why: &str) {
        let mut ledger = lock(&self.ledger);
        let counted = ledger.unknown.entry(why.to_owned()).or_default();
        counted.events += 1;
        counted.example(path, self.settings.examples);
    }

    fn judge(&self, policy: &CompiledPolicy, file: &Quiet<'_>, one: &Use<'_>) -> Judged {
        file.written.set(one.written);
        LED_TO.take();
        // Long after: every file has settled.
        let access = Access { file, task: one.task, created: one.created, writes: one.writes, now: i128::MAX };
        // What it means is in the records, which every mode makes.
        let _ = self.checker.check(&access, one.hooks);
        let LedTo { entries, records } = LED_TO.take();
        let failure = records.iter().find_map(|record| match record {
            AuditRecord::Data { cause, rule: None, .. } if cause.is_nothing_to_measure() => None,
            AuditRecord::Data { func, cause, detail, denied, .. } => Some((*func, *cause, detail.clone(), *denied)),
            AuditRecord::Rule { .. }
            | AuditRecord::Violation { .. }
            | AuditRecord::Status { .. }
            | AuditRecord::Metadata { .. } => None,
        });
        // What comes after a refusal is not asked.
        let last = failure.as_ref().filter(|(.., denied)| *denied);
        let last = last.and_then(|(func, ..)| one.hooks.iter().position(|hook| hook.func == *func));
        let hooks = &one.hooks[..last.map_or(one.hooks.len(), |index| index + 1)];
        let asked = hooks.iter().map(|hook| (*hook, decide(policy, file.facts(), one.task, *hook))).collect();
        let mut judged = Judged { asked, entries, refused: None, unknown: None };
        if let Some((func, cause, detail, _)) = failure {
            match file.why_unknown(cause, &detail) {
                Some(why) => judged.unknown = Some(why),
                None => judged.refused = Some(Refused { func, cause, detail }),
            }
        }
        let audited = records.iter().filter(|record| matches!(record, AuditRecord::Rule { .. })).count();
        self.count(file, &judged, audited as u64);
        judged
    }

    fn count(&self, file: &Quiet<'_>, judged: &Judged, audited: u64) {
        let (id, path) = (file.id(), file.known_path());
        let mut ledger = lock(&self.ledger);
        let Ledger { asked, audit_records, classes, rules, refused, causes, unknown, .. } = &mut *ledger;
        let room = self.settings.examples;
        *asked += judged.asked.len() as u64;
        *audit_records += audited;
        for (_, decision) in &judged.asked {
            for class in Class::ALL {
                if decision.does(*class).is_some() {
                    classes.entry(*class).or_default().add(id, path, room);
                }
                if let Some(rule) = decision.decided_by.class(*class) {
                    rules.entry(rule).or_default().add(id, path, room);
                }
            }
        }
        if let Some(why) = &judged.refused {
            refused.add(id, path, room);
            causes.entry(why.cause).or_default().add(id, path, room);
        }
        if let Some(why) = &judged.unknown {
            unknown.entry(why.clone()).or_default().add(id, path, room);
        }
    }

    /// What the policy would do with the files tried so far.
    pub fn report(&self) -> Report {
        let ledger = lock(&self.ledger);
        let counts = self.checker.log().counts();
        let of = |counted: Option<&Counted>| counted.map(Counted::tally).unwrap_or_default();
        let mut causes = tallies(&ledger.causes);
        causes.sort_by_key(|(cause, tally)| (std::cmp::Reverse(tally.events), cause.words()));
        let mut unknown = tallies(&ledger.unknown);
        unknown.sort_by(|(one, some), (other, others)| others.events.cmp(&some.events).then(one.cmp(other)));
        Report {
            files: ledger.files.len() as u64,
            asked: ledger.asked,
            classes: Class::ALL.iter().map(|class| of(ledger.classes.get(class))).collect(),
            rules: (0..self.policy().rules().len()).map(|rule| of(ledger.rules.get(&rule))).collect(),
            entries: counts.entries,
            violations: counts.violations,
            list_bytes: self.list.bytes.load(Ordering::Relaxed),
            audit_records: ledger.audit_records,
            refused: ledger.refused.tally(),
            causes,
            unknown,
        }
    }

    /// The entries that would be listed, in the order of their paths; empty unless the settings keep them.
    pub fn list(&self) -> Vec<Listed> {
        let mut entries = self.list.entries.as_ref().map(|entries| lock(entries).clone()).unwrap_or_default();
        entries.sort();
        entries
    }
}

fn tallies<K: Clone + Eq + Hash>(counted: &HashMap<K, Counted>) -> Vec<(K, Tally)> {
    counted.iter().map(|(key, counted)| (key.clone(), counted.tally())).collect()
}

impl Counted {
    fn add(&mut self, id: InodeId, path: &[u8], room: usize) {
        self.events += 1;
        if self.files.insert(id) {
            self.example(path, room);
        }
    }

    fn example(&mut self, path: &[u8], room: usize) {
        if self.examples.len() < room {
            self.examples.insert(path.to_vec());
        } else if self.examples.last().is_some_and(|last| path < last.as_slice()) && self.examples.insert(path.to_vec())
        {
            self.examples.pop_last();
        }
    }

    fn tally(&self) -> Tally {
        // What could not even be opened has no inode; each of these is a file.
        let files = if self.files.is_empty() { self.events } else { self.files.len() as u64 };
        Tally { events: self.events, files, examples: self.examples.iter().cloned().collect() }
    }
}

fn decide(policy: &CompiledPolicy, facts: FileFacts<'_>, task: &dyn Task, hook: Hook) -> Decision {
    policy.decide(&Event { func: hook.func, mask: hook.mask, file: &facts, subject: task, data: None })
}

fn content(policy: &CompiledPolicy, file: &dyn File, one: &Use<'_>, mode: Mode) -> Content {
    let may = policy.classes().contains(Class::Appraise) && mode != Mode::Off;
    let appraises = |hook: &Hook| decide(policy, file.facts(), one.task, *hook).appraise.is_some();
    let asked = if may && one.hooks.iter().any(appraises) { Content::Appraised } else { Content::AsNeeded };
    asked.max(one.content)
}

/// A file as it is when nobody else touches it. Each thing is asked of the real one once at most.
struct Quiet<'a> {
    file: &'a dyn File,
    content: Content,
    /// Whether the content may be read.
    readable: bool,
    keys: &'a Keyring,
    written: Cell<bool>,
    path: OnceCell<Vec<u8>>,
    stamp: OnceCell<Stamp>,
    label: OnceCell<Option<Vec<u8>>>,
    evm_label: OnceCell<Option<Vec<u8>>>,
    digests: RefCell<Vec<Digest>>,
    /// Why the content's digest is not known although a verdict depends on it.
    not_read: OnceCell<String>,
}

impl<'a> Quiet<'a> {
    fn new(file: &'a dyn File, content: Content, settings: &Settings, keys: &'a Keyring) -> Self {
        Self {
            file,
            content,
            readable: settings.content,
            keys,
            written: Cell::new(false),
            path: OnceCell::new(),
            stamp: OnceCell::new(),
            label: OnceCell::new(),
            evm_label: OnceCell::new(),
            digests: RefCell::default(),
            not_read: OnceCell::new(),
        }
    }

    fn known_path(&self) -> &[u8] {
        self.path.get_or_init(|| self.file.path())
    }

    fn label(&self) -> Option<&[u8]> {
        self.label.get().and_then(|label| label.as_deref()).filter(|label| !label.is_empty())
    }

    /// Whether a failure says nothing, as it comes from what is not known here and not from the file.
    fn why_unknown(&self, cause: Cause, detail: &str) -> Option<String> {
        match cause {
            Cause::CollectFailed
            | Cause::InvalidVerityDigest
            | Cause::MeasureFailed
            | Cause::Overdue
            | Cause::NoVerdict
            | Cause::FailedMprotect
            | Cause::Protected => Some(detail.to_owned()),
            Cause::InvalidHash => self.not_read.get().cloned(),
            Cause::InvalidSignature => match self.label().map(Signature::parse) {
                Some(Ok(Signature::V2(_))) if self.keys.is_empty() => {
                    Some("it is signed, and no key was given to verify that".to_owned())
                }
                // A signature by nobody known fails for every content.
                Some(Ok(Signature::V2(signature))) if self.keys.find(&signature.key_id).is_some() => {
                    self.not_read.get().cloned()
                }
                Some(_) | None => None,
            },
            Cause::MissingHash
            | Cause::ImaSignatureRequired
            | Cause::VeritySignatureRequired
            | Cause::NoVerityDigest
            | Cause::InvalidSignatureVersion
            | Cause::InvalidVeritySignature
            | Cause::MissingHmac
            | Cause::InvalidHmac
            | Cause::InvalidFailImmutable
            | Cause::UnknownImaData
            | Cause::Unknown
            | Cause::DeniedHashAlgorithm
            | Cause::UnavailableHashAlgorithm
            | Cause::Blocked
            | Cause::Immutable
            | Cause::Writers => None,
        }
    }

    /// A digest of the right size, of this file's state alone.
    fn stand_in(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
        let (id, stamp) = (self.id(), self.stamp()?);
        let numbers = [id.device, id.inode, stamp.size].map(u64::to_le_bytes);
        crypto::hash(algorithm, &[&numbers.concat(), &stamp.modified.to_le_bytes()])
            .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))
    }

    fn real_digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
        if !self.readable {
            let reason = "its content was not read, and the verdict depends on it";
            return Err(io::Error::other(reason));
        }
        self.file.digest(algorithm)
    }
}

impl File for Quiet<'_> {
    fn id(&self) -> InodeId {
        self.file.id()
    }

    fn stamp(&self) -> io::Result<Stamp> {
        match self.stamp.get() {
            Some(stamp) => Ok(*stamp),
            None => self.file.stamp().map(|stamp| *self.stamp.get_or_init(|| stamp)),
        }
    }

    fn facts(&self) -> FileFacts<'_> {
        self.file.facts()
    }

    fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let cell = match name {
            "security.ima" => &self.label,
            "security.evm" => &self.evm_label,
            _ => return self.file.xattr(name),
        };
        match cell.get() {
            Some(value) => Ok(value.clone()),
            None => self.file.xattr(name).map(|value| cell.get_or_init(|| value).clone()),
        }
    }

    fn set_xattr(&self, _: &str, _: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a simulation changes nothing"))
    }

    fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
        let asked = match self.content {
            Content::AsNeeded => false,
            // Without a label the content does not matter; the checker has asked for the label before.
            Content::Appraised => self.label().is_some(),
            Content::Known => true,
        };
        if !asked {
            return self.stand_in(algorithm);
        }
        if let Some(digest) = self.digests.borrow().iter().find(|digest| digest.algorithm() == algorithm) {
            return Ok(*digest);
        }
        let digest = match self.real_digest(algorithm) {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                // It is measured all the same; the first reason stands.
                let _ = self.not_read.set(error.to_string());
                self.stand_in(algorithm)?
            }
            result => result?,
        };
        self.digests.borrow_mut().push(digest);
        Ok(digest)
    }

    fn verity_digest(&self) -> io::Result<Option<Digest>> {
        self.file.verity_digest()
    }

    fn inode(&self) -> io::Result<InodeMetadata> {
        self.file.inode()
    }

    fn path(&self) -> Vec<u8> {
        self.known_path().to_vec()
    }

    fn nobody_writes(&self) -> Option<bool> {
        Some(!self.written.get())
    }

    fn times_tell(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{KeyType, SigningKey};
    use crate::explain::User;
    use imara_format::label;
    use imara_format::policy::{Policy, Target};

    /// A file in memory that counts what is asked of it.
    pub(super) struct Fake {
        pub(super) inode: u64,
        pub(super) path: &'static str,
        owner: u32,
        pub(super) content: Option<&'static [u8]>,
        label: Option<Vec<u8>>,
        hashed: Cell<u32>,
    }

    impl Fake {
        pub(super) fn new(inode: u64, path: &'static str) -> Self {
            Self { inode, path, owner: 0, content: Some(b"content"), label: None, hashed: Cell::new(0) }
        }

        pub(super) fn labelled(self, label: Vec<u8>) -> Self {
            Self { label: Some(label), ..self }
        }
    }

    impl File for Fake {
        fn id(&self) -> InodeId {
            InodeId { device: 1, inode: self.inode }
        }
        fn stamp(&self) -> io::Result<Stamp> {
            Ok(Stamp { size: 7, modified: 1, changed: 1 })
        }
        fn facts(&self) -> FileFacts<'_> {
            FileFacts { owner: self.owner, group: 0, fsmagic: 0xef53, fsname: "ext4", fs_subtype: "", fsuuid: None }
        }
        fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
            Ok(self.label.clone().filter(|_| name == "security.ima"))
        }
        fn set_xattr(&self, _: &str, _: &[u8]) -> io::Result<()> {
            panic!("a simulation writes nothing")
        }
        fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
            self.hashed.set(self.hashed.get() + 1);
            let content = self.content.ok_or_else(|| io::Error::other("the disk is gone"))?;
            Ok(crypto::hash(algorithm, &[content]).unwrap())
        }
        fn path(&self) -> Vec<u8> {
            self.path.into()
        }
        fn nobody_writes(&self) -> Option<bool> {
            panic!("a simulation takes no lease")
        }
        fn times_tell(&self) -> bool {
            panic!("a simulated file is a quiet one")
        }
    }

    const EXECUTE: &[Hook] = &[Hook { func: Func::BprmCheck, mask: 1 }, Hook { func: Func::CredsCheck, mask: 1 }];
    const READ: &[Hook] = &[Hook { func: Func::FileCheck, mask: 4 }];

    fn used<'a>(task: &'a User, hooks: &'a [Hook]) -> Use<'a> {
        Use { task, hooks, created: false, writes: false, written: false, content: Content::AsNeeded }
    }

    pub(super) fn settings() -> Settings {
        Settings {
            template: Template::built_in("ima-sig").unwrap().clone(),
            hash: HashAlgorithm::Sha256,
            pcr: 10,
            mode: Mode::Enforce,
            content: true,
            examples: 2,
            list: true,
        }
    }

    pub(super) fn simulation(policy: &str, settings: Settings, key: Option<&SigningKey>) -> Simulation {
        let policy = CompiledPolicy::new(Policy::parse(policy.as_bytes(), &Target::guard()).unwrap());
        Simulation::new(policy, key.iter().map(|key| key.public_key().unwrap()).collect(), settings).unwrap()
    }

    pub(super) fn digest_of(content: &[u8]) -> Digest {
        crypto::hash(HashAlgorithm::Sha256, &[content]).unwrap()
    }

    /// An entry of ima-sig: PCR, template digest, the template's name and the fields, each with its length.
    const fn entry_bytes(algorithm: &str, digest: u64, path: &str, signature: u64) -> u64 {
        let d_ng = 4 + algorithm.len() as u64 + 2 + digest;
        let n_ng = 4 + path.len() as u64 + 1;
        4 + 20 + 4 + "ima-sig".len() as u64 + 4 + d_ng + n_ng + 4 + signature
    }

    #[test]
    fn files_are_counted_as_the_policy_has_them_measured_appraised_and_refused() {
        let (key, stranger) =
            (SigningKey::generate(KeyType::P256).unwrap(), SigningKey::generate(KeyType::P256).unwrap());
        let sign = |content: &[u8], key| crate::label::sign(&digest_of(content), key, None).unwrap();
        let (good, tampered, foreign) = (sign(b"content", &key), sign(b"other", &key), sign(b"content", &stranger));
        let sizes = [&good, &tampered, &foreign].map(|label| label.len() as u64);
        let simulation = simulation(
            "dont_measure fowner=7\nmeasure func=BPRM_CHECK\nappraise func=BPRM_CHECK\naudit func=FILE_CHECK\nhash uid=9",
            settings(),
            Some(&key),
        );
        let digest_label = label::encode_digest(&crypto::hash(HashAlgorithm::Sha1, &[b"content"]).unwrap());
        let files = [
            Fake::new(1, "/good").labelled(good),
            Fake::new(1, "/good-by-another-name"),
            Fake::new(2, "/tampered").labelled(tampered),
            Fake::new(3, "/foreign").labelled(foreign),
            Fake::new(4, "/plain"),
            Fake { owner: 7, ..Fake::new(5, "/of seven").labelled(digest_label.clone()) },
            Fake::new(6, "/sha1").labelled(digest_label),
        ];
        let root = User(0);
        for file in &files {
            let judged = simulation.file(file, &[used(&root, EXECUTE), used(&root, READ)]);
            assert_eq!(judged.is_none(), file.path == "/good-by-another-name");
        }
        let report = simulation.report();
        // Executing the three that fail ends at BPRM_CHECK: CREDS_CHECK is not asked.
        assert_eq!((report.files, report.asked), (6, 6 * 3 - 3));
        let counts = |tallies: &[Tally]| tallies.iter().map(|tally| (tally.events, tally.files)).collect::<Vec<_>>();
        assert_eq!(counts(&report.classes), [(5, 5), (6, 6), (6, 6), (0, 0)], "measure, appraise, audit, hash");
        assert_eq!(counts(&report.rules), [(3, 1), (5, 5), (6, 6), (6, 6), (0, 0)]);
        assert_eq!(report.rules[1].examples, [b"/foreign".to_vec(), b"/good".to_vec()], "the first in their order");
        assert_eq!((report.entries, report.violations, report.audit_records), (5, 0, 6));
        let bytes = entry_bytes("sha256", 32, "/good", sizes[0])
            + entry_bytes("sha256", 32, "/tampered", sizes[1])
            + entry_bytes("sha256", 32, "/foreign", sizes[2])
            + entry_bytes("sha256", 32, "/plain", 0)
            + entry_bytes("sha1", 20, "/sha1", 0);
        assert_eq!(report.list_bytes, bytes);
        let list = simulation.list();
        assert_eq!(list.iter().map(|entry| entry.bytes).sum::<u64>(), bytes);
        assert_eq!(
            list[0],
            Listed {
                path: b"/foreign".to_vec(),
                pcr: 10,
                template: "ima-sig".into(),
                bytes: entry_bytes("sha256", 32, "/foreign", sizes[2]),
            }
        );
        assert_eq!((report.refused.events, report.refused.files), (3, 3));
        let causes: Vec<_> = report.causes.iter().map(|(cause, tally)| (*cause, tally.files)).collect();
        assert_eq!(causes, [(Cause::InvalidSignature, 2), (Cause::MissingHash, 1)]);
        assert!(report.unknown.is_empty());
        let hashed: Vec<_> = files.iter().map(|file| file.hashed.get()).collect();
        // Once where a label must be compared, and only there.
        assert_eq!(hashed, [1, 0, 1, 1, 0, 1, 1]);
    }

    #[test]
    fn what_only_the_content_could_tell_is_unknown_without_it() {
        let (key, stranger) =
            (SigningKey::generate(KeyType::P256).unwrap(), SigningKey::generate(KeyType::P256).unwrap());
        let sign = |key| crate::label::sign(&digest_of(b"content"), key, None).unwrap();
        let digest_label = || label::encode_digest(&digest_of(b"content"));
        let gone = |file: Fake| Fake { content: None, ..file };
        const APPRAISE: &str = "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK";
        const IMASIG: &str = "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK appraise_type=imasig";
        for (name, policy, content, file, refused, unknown) in [
            (
                "signed, not to be read",
                APPRAISE,
                false,
                Fake::new(1, "/f").labelled(sign(&key)),
                None,
                Some("was not read"),
            ),
            (
                "signed, unreadable",
                APPRAISE,
                true,
                gone(Fake::new(1, "/f").labelled(sign(&key))),
                None,
                Some("disk is gone"),
            ),
            ("a digest", APPRAISE, false, Fake::new(1, "/f").labelled(digest_label()), None, Some("was not read")),
            ("no label", APPRAISE, false, Fake::new(1, "/f"), Some(Cause::MissingHash), None),
            ("no label, unreadable", APPRAISE, true, gone(Fake::new(1, "/f")), Some(Cause::MissingHash), None),
            (
                "digest for a signature",
                IMASIG,
                false,
                Fake::new(1, "/f").labelled(digest_label()),
                Some(Cause::ImaSignatureRequired),
                None,
            ),
            (
                "a stranger's",
                APPRAISE,
                false,
                Fake::new(1, "/f").labelled(sign(&stranger)),
                Some(Cause::InvalidSignature),
                None,
            ),
            ("only measured", "measure", false, Fake::new(1, "/f").labelled(sign(&key)), None, None),
            ("readable", APPRAISE, true, Fake::new(1, "/f").labelled(sign(&key)), None, None),
        ] {
            let simulation = simulation(policy, Settings { content, ..settings() }, Some(&key));
            let judged = simulation.file(&file, &[used(&User(0), EXECUTE)]).unwrap();
            assert_eq!(judged[0].refused.as_ref().map(|refused| refused.cause), refused, "{name}");
            let why = judged[0].unknown.as_deref();
            assert_eq!(why.is_some(), unknown.is_some(), "{name}: {why:?}");
            assert!(why.unwrap_or_default().contains(unknown.unwrap_or_default()), "{name}: {why:?}");
            assert_eq!(judged[0].entries, 1, "{name}: it is measured all the same");
        }
    }

    #[test]
    fn a_log_mode_asks_every_hook_and_tells_the_first_failure() {
        let simulation = simulation(
            "appraise func=BPRM_CHECK\nappraise func=CREDS_CHECK",
            Settings { mode: Mode::Log, ..settings() },
            None,
        );
        let judged = simulation.file(&Fake::new(1, "/f"), &[used(&User(0), EXECUTE)]).unwrap();
        assert_eq!(judged[0].asked.len(), 2);
        assert_eq!(judged[0].refused.as_ref().map(|refused| refused.func), Some(Func::BprmCheck));
        assert_eq!(simulation.report().refused.events, 1, "one access");
    }

    #[test]
    fn an_access_may_come_again_and_its_file_is_measured_once() {
        let simulation = simulation("measure func=FILE_CHECK", settings(), None);
        let (file, task) = (Fake::new(1, "/f"), User(0));
        let entries = [1, 2].map(|_| simulation.access(&file, &used(&task, READ)).entries);
        assert_eq!(entries, [1, 0]);
        let judged = simulation.access(&file, &Use { written: true, ..used(&task, READ) });
        assert_eq!(judged.entries, 1, "a violation");
        let report = simulation.report();
        assert_eq!((report.files, report.asked, report.entries, report.violations), (1, 3, 2, 1));
    }

    #[test]
    fn a_template_that_cannot_be_filled_is_unknown_and_not_refused() {
        let simulation = simulation("measure template=evm-sig", settings(), None);
        let judged = simulation.file(&Fake::new(1, "/f"), &[used(&User(0), READ)]).unwrap();
        assert!(
            judged[0].unknown.as_ref().is_some_and(|why| why.contains("evm-sig tells owner and mode")),
            "{judged:?}"
        );
        assert!(judged[0].refused.is_none());
        simulation.could_not(b"/g", "it could not be opened");
        assert_eq!(simulation.report().unknown.len(), 2);
    }
}
