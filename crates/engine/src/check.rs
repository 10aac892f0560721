//! The seven steps of one event: decide, remember, collect, measure, appraise, audit, verdict.
//!
//! One direction: a step takes the previous step's type and returns the next one's. A file is measured before it is
//! appraised, so that a refused file is on record. Whatever goes wrong on the way becomes a refusal in enforce mode, in
//! `Checker::fail` and nowhere else.
//!
//! Source: `process_measurement`, security/integrity/ima/ima_main.c.

mod for_everybody;
mod label_update;

pub use self::for_everybody::Left;
pub use self::label_update::Content;
use crate::active_policy::ActivePolicy;
use crate::appraise::{self, Appraisal, Cause, IntegrityStatus, Requirement};
use crate::audit::{AuditRecord, AuditSink, TaskIdentity};
use crate::cache::{Cache, InodeId, Record, Stamp, is_settled};
use crate::evm::{self, Evm, Place};
use crate::keyring::Keyring;
use crate::label_writes::{LATELY, LabelWrites, WritableLabels};
use crate::lock::{self, Sharded};
use crate::measure::{Added, MeasureError, Measured, MeasurementLog};
use crate::policy::{CompiledPolicy, Decision, Event, FileFacts, Slot, Subject};
use crate::trace::{self, Seen, TraceSink};
use imara_format::evm::InodeMetadata;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label;
use imara_format::policy::{Func, Mask};
use imara_format::template::Template;
use imara_format::trace::LabelFacts;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The file behind an event, by its descriptor.
pub trait File {
    /// The inode.
    fn id(&self) -> InodeId;
    /// Its state now.
    ///
    /// # Errors
    /// What stat(2) says.
    fn stamp(&self) -> io::Result<Stamp>;
    /// What a policy asks about it.
    fn facts(&self) -> FileFacts<'_>;
    /// An extended attribute; `None` where it has none by that name.
    ///
    /// # Errors
    /// `Unsupported` where the filesystem keeps none; what getxattr(2) says.
    fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Writes an extended attribute.
    ///
    /// # Errors
    /// What setxattr(2) says.
    fn set_xattr(&self, name: &str, value: &[u8]) -> io::Result<()>;
    /// Removes an extended attribute.
    ///
    /// # Errors
    /// What removexattr(2) says.
    fn remove_xattr(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// What the inode says of itself, for EVM, with owner and group as the filesystem has them; its generation may be left 0.
    ///
    /// # Errors
    /// `Unsupported` where that cannot be found out, or where EVM is never asked.
    fn inode(&self) -> io::Result<InodeMetadata> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The inode's generation, for EVM.
    ///
    /// # Errors
    /// As [`File::inode`].
    fn generation(&self) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The filesystem's UUID, for EVM; zeros where it has none.
    ///
    /// # Errors
    /// As [`File::inode`].
    fn fs_uuid(&self) -> io::Result<[u8; 16]> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Where it is, for EVM.
    ///
    /// # Errors
    /// As [`File::inode`].
    fn place(&self) -> io::Result<Place> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The open file itself, for whoever keeps its inode in memory; `None` where there is none.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// The content's digest.
    ///
    /// # Errors
    /// What reading says; `Unsupported` for an algorithm that cannot be computed.
    fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest>;
    /// The path, for people and for the list.
    fn path(&self) -> Vec<u8>;
    /// Whether nobody can write to it now; `None` where that cannot be told.
    fn nobody_writes(&self) -> Option<bool>;
    /// What follows must not go by a look at it from before: its content has been read since, or time has passed. For a file that
    /// keeps its state and whether anybody writes from one look to the next.
    fn look_again(&self) {}
    /// Whether every change shows in its times, stores through mappings included.
    fn times_tell(&self) -> bool;
}

/// The task behind an event.
pub trait Task: Subject {
    /// Who it is, for the records.
    fn identity(&self) -> TaskIdentity;
    /// Its command's name alone.
    fn command(&self) -> Vec<u8> {
        self.identity().command
    }
}

/// A question that the kernel's IMA would ask at this point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Which.
    pub func: Func,
    /// The access, `MAY_*` bits.
    pub mask: u8,
}

/// One access to one file, which may stand for several hooks.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// The file.
    pub file: &'a dyn File,
    /// The task.
    pub task: &'a dyn Task,
    /// Whether this very open has created the file.
    pub created: bool,
    /// Whether the task opens the file for writing.
    pub writes: bool,
    /// The time when the event came, in nanoseconds since 1970.
    pub now: i128,
}

/// May the access go on?
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny(Cause),
}

/// What a bad appraisal leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Nothing is appraised.
    Off = 0,
    /// It is recorded.
    Log = 1,
    /// It is recorded, and a digest label is written where no signature is in the way.
    Fix = 2,
    /// The access is refused.
    Enforce = 3,
}

impl Mode {
    /// All, in ascending strictness.
    pub const ALL: [Self; 4] = [Self::Off, Self::Log, Self::Fix, Self::Enforce];

    /// As `ima_appraise=` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Log => "log",
            Self::Fix => "fix",
            Self::Enforce => "enforce",
        }
    }

    /// The mode of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// What happened since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Accesses asked about.
    pub accesses: AtomicU64,
    /// Questions of a rule that the cache had the answer to.
    pub known: AtomicU64,
    /// Files hashed.
    pub collected: AtomicU64,
    /// Accesses that did not pass their appraisal.
    pub failed: AtomicU64,
    /// Accesses refused.
    pub denied: AtomicU64,
    /// Steps that went wrong: content that could not be read, entries that could not be listed or extended.
    pub measure_errors: AtomicU64,
}

/// IMA.
pub struct Checker {
    policy: RwLock<Arc<ActivePolicy>>,
    keys: RwLock<Arc<Keyring>>,
    /// How often what verdicts go by has changed.
    trusted: AtomicU64,
    evm: Option<Arc<Evm>>,
    log: Arc<MeasurementLog>,
    template: Template,
    cache: Cache,
    mode: AtomicU8,
    audit: Box<dyn AuditSink>,
    /// Inodes whose digest label follows their content, once the last writer has gone.
    maintained: Sharded<InodeId, Option<Content>>,
    /// Labels that the policy does not let be written.
    label_writes: LabelWrites,
    /// Inodes whose present writer has been listed as a violation.
    violated: Sharded<InodeId, ()>,
    /// Whether there is a trace to write, so that nobody takes the lock for nothing.
    tracing: AtomicBool,
    trace: RwLock<Option<Arc<dyn TraceSink>>>,
    /// What happened since the start.
    pub counters: Counters,
}

/// How many inodes' labels are followed at most. Beyond that the oldest knowledge goes, and such a file must be labelled
/// by hand after a change.
const MAINTAINED: usize = 1 << 20;

/// Adds an inode, and says whether it was not there; where its shard has no room more, what is in that goes.
fn insert(inodes: &Sharded<InodeId, ()>, id: InodeId) -> bool {
    let mut shard = inodes.shard(&id);
    if shard.len() >= inodes.room() {
        shard.clear();
    }
    shard.insert(id, ()).is_none()
}

/// Step 1's result.
struct Decided {
    hook: Hook,
    decision: Decision,
    /// What verdicts went by then (see `Checker::trusted`).
    trusted: u64,
}

/// Step 2's result: what is still to do.
struct Pending {
    decided: Decided,
    record: Record,
    measure: Option<u32>,
    appraise: bool,
    audit: bool,
}

/// Step 3's result.
struct Collected {
    pending: Pending,
    label: Option<Vec<u8>>,
    digest: Digest,
}

/// Step 5's result.
struct Appraised {
    collected: Collected,
    appraisal: Option<Appraisal>,
    /// Why EVM is not satisfied.
    evm_reason: Option<evm::Reason>,
}

/// What step 7 comes to: why the file does not pass, with more of it for people.
struct Concluded {
    decided: Decided,
    cause: Option<(Cause, String)>,
    immutable: bool,
    /// Whether the file was labelled for it.
    fixed: bool,
}

/// Step 7's result: why the access did not pass, and whether it is refused for it.
#[derive(Clone, Copy)]
struct Judged {
    cause: Option<Cause>,
    denied: bool,
}

impl Judged {
    const PASSED: Self = Self { cause: None, denied: false };

    const fn verdict(self) -> Verdict {
        match self {
            Self { cause: Some(cause), denied: true } => Verdict::Deny(cause),
            Self { cause: None, .. } | Self { denied: false, .. } => Verdict::Allow,
        }
    }
}

/// How often a file that is executed is judged for one access, as long as its attributes change meanwhile (`chmod -R`, say).
const ATTEMPTS: u32 = 4;

/// The type byte of a label that holds a signature.
const SIGNATURE: u8 = 3;

/// Why steps 1 to 5 could not be taken.
enum Trouble {
    Collect(io::Error),
    Measure(MeasureError),
}

impl Checker {
    /// An IMA that starts with this policy, in this mode.
    pub fn new(
        policy: CompiledPolicy,
        keys: Keyring,
        log: Arc<MeasurementLog>,
        template: Template,
        mode: Mode,
        audit: Box<dyn AuditSink>,
    ) -> Self {
        Self {
            policy: RwLock::new(Arc::new(ActivePolicy::new(policy))),
            keys: RwLock::new(Arc::new(keys)),
            trusted: AtomicU64::new(0),
            evm: None,
            log,
            template,
            cache: Cache::new(1 << 18),
            mode: AtomicU8::new(mode as u8),
            audit,
            maintained: Sharded::new(MAINTAINED, &lock::MAINTAINED),
            label_writes: LabelWrites::default(),
            violated: Sharded::new(MAINTAINED, &lock::VIOLATED),
            tracing: AtomicBool::new(false),
            trace: RwLock::default(),
            counters: Counters::default(),
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<ActivePolicy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another policy in force and returns the one before. An access that is being judged is judged to its end by the
    /// policy it began with. What the kernel was told not to ask about is the caller's part.
    pub fn replace_policy(&self, policy: Arc<ActivePolicy>) -> Arc<ActivePolicy> {
        std::mem::replace(&mut *self.policy.write().unwrap_or_else(PoisonError::into_inner), policy)
    }

    /// The keys that signatures are verified with, and what is never taken.
    pub fn keys(&self) -> Arc<Keyring> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other keys in force, also EVM's where they are given, and returns those before. What was judged is judged anew; what the
    /// kernel was told not to ask about is the caller's part.
    pub fn replace_keys(&self, keys: Arc<Keyring>, evm: Option<Arc<Keyring>>) -> (Arc<Keyring>, Option<Arc<Keyring>>) {
        let before = std::mem::replace(&mut *self.keys.write().unwrap_or_else(PoisonError::into_inner), keys);
        let evm_before = evm.and_then(|keys| Some(self.evm.as_ref()?.replace_keys(keys)));
        // In this order: what is judged by those before is not kept, or is forgotten here.
        self.trusted.fetch_add(1, Ordering::SeqCst);
        self.cache.forget_verdicts();
        (before, evm_before)
    }

    /// The same, with an EVM that is asked about what is appraised, and follows what is labelled.
    #[must_use]
    pub fn with_evm(mut self, evm: Arc<Evm>) -> Self {
        self.evm = Some(evm);
        self
    }

    /// EVM, where there is one.
    pub const fn evm(&self) -> Option<&Arc<Evm>> {
        self.evm.as_ref()
    }

    /// Where audit records go.
    pub fn audit_sink(&self) -> &dyn AuditSink {
        &*self.audit
    }

    /// The measurement list.
    pub fn log(&self) -> &MeasurementLog {
        &self.log
    }

    /// The template that rules without `template=` measure with.
    pub const fn template(&self) -> &Template {
        &self.template
    }

    /// What is known of inodes.
    pub const fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The mode in force.
    pub fn mode(&self) -> Mode {
        let number = self.mode.load(Ordering::Relaxed);
        Mode::ALL.into_iter().find(|mode| *mode as u8 == number).unwrap_or(Mode::Enforce)
    }

    /// Changes the mode. What was allowed for everybody before must be asked about again; that is the caller's part.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Tells every decision to `sink` from now on, or none any more.
    pub fn set_trace(&self, sink: Option<Arc<dyn TraceSink>>) {
        let mut trace = self.trace.write().unwrap_or_else(PoisonError::into_inner);
        self.tracing.store(sink.is_some(), Ordering::Relaxed);
        *trace = sink;
    }

    /// Asks every hook in turn; the first refusal ends it.
    pub fn check(&self, access: &Access<'_>, hooks: &[Hook]) -> Verdict {
        self.counters.accesses.fetch_add(1, Ordering::Relaxed);
        if access.writes {
            // From now on it can change without its times telling (tmpfs).
            self.cache.forget(access.file.id());
        }
        let policy = self.policy();
        // What one hook has found out serves the next: one access is hashed once, however many hooks it stands for.
        let mut carried = None;
        for hook in hooks {
            let verdict = self.check_hook(&policy, access, *hook, &mut carried);
            if verdict != Verdict::Allow {
                return verdict;
            }
        }
        Verdict::Allow
    }

    fn check_hook(
        &self,
        policy: &ActivePolicy,
        access: &Access<'_>,
        hook: Hook,
        carried: &mut Option<Record>,
    ) -> Verdict {
        let decided = self.decide(policy, access, hook);
        policy.count(&decided.decision);
        if !self.tracing.load(Ordering::Relaxed) {
            return self.judge(decided, access, carried, &mut None).verdict();
        }
        let decision = decided.decision;
        let mut seen = Some(Seen::default());
        let judged = self.judge(decided, access, carried, &mut seen);
        let sink = self.trace.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Some(sink), Some(mut seen)) = (sink, seen) {
            seen.digest = seen.digest.or_else(|| self.known_digest(access.file, carried.as_ref()));
            let event = trace::event(&*sink, access, hook, &decision, seen);
            let cause = judged.cause.map(|cause| cause.words().to_owned());
            sink.record(policy, imara_format::trace::Event { cause, denied: judged.denied, ..event });
        }
        judged.verdict()
    }

    /// The digest of a file that this hook had nothing hashed of, where it is known all the same.
    fn known_digest(&self, file: &dyn File, carried: Option<&Record>) -> Option<Digest> {
        let stamp = file.stamp().ok()?;
        let trusted = file.nobody_writes() == Some(true) && file.times_tell();
        let known = trusted.then(|| self.cache.lookup(file.id(), &stamp)).flatten();
        known.as_ref().or(carried.filter(|record| record.stamp == stamp))?.collected
    }

    /// Steps 2 to 7, and once more if attributes changed meanwhile. `seen` takes what a trace tells of them.
    fn judge(
        &self,
        decided: Decided,
        access: &Access<'_>,
        carried: &mut Option<Record>,
        seen: &mut Option<Seen>,
    ) -> Judged {
        for _ in 1..ATTEMPTS {
            let again = Decided { hook: decided.hook, decision: decided.decision, trusted: decided.trusted };
            if let Some(judged) = self.attempt(again, access, carried, seen, false) {
                return judged;
            }
        }
        self.attempt(decided, access, carried, seen, true).unwrap_or(Judged::PASSED)
    }

    /// Steps 2 to 7 once; nothing where it is not the last time and should be done again.
    fn attempt(
        &self,
        decided: Decided,
        access: &Access<'_>,
        carried: &mut Option<Record>,
        seen: &mut Option<Seen>,
        last: bool,
    ) -> Option<Judged> {
        let hook = decided.hook;
        let pending = match self.remember(decided, access, carried.as_ref()) {
            Ok(Ok(pending)) => pending,
            Ok(Err(judged)) => return Some(judged),
            Err(trouble) => return Some(self.trouble(access, hook, &Decision::default(), &trouble)),
        };
        let decision = pending.decided.decision;
        let result = self.collect(pending, access).and_then(|collected| {
            if let Some(seen) = seen {
                seen.label = collected.label.clone().map_or(LabelFacts::None, LabelFacts::Some);
                seen.digest = Some(collected.digest);
            }
            let entry = self.measure(&collected, access)?;
            if let Some(seen) = seen {
                seen.entry |= entry;
            }
            match self.blocked(&collected, access)? {
                Some(digest) => Ok(self.refuse_content(collected, digest)),
                None => Ok(self.appraise(collected, access)),
            }
        });
        // Whether it is what it was before it was read.
        access.file.look_again();
        Some(match result {
            Ok(appraised) if !last && attributes_changed(&appraised, access) => return None,
            Ok(appraised) => {
                self.audit(&appraised, access);
                // Not its status: who runs the file is asked about its writers anew.
                let Pending { record, audit, .. } = &appraised.collected.pending;
                *carried = Some(Record { audited: record.audited || *audit, ..record.clone() });
                self.verdict(appraised, access)
            }
            Err(trouble) => self.trouble(access, hook, &decision, &trouble),
        })
    }

    /// Step 1: which of measure, appraise, audit, hash.
    fn decide(&self, policy: &CompiledPolicy, access: &Access<'_>, hook: Hook) -> Decided {
        let facts = access.file.facts();
        let event = Event { func: hook.func, mask: hook.mask, file: &facts, subject: access.task, data: None };
        Decided { hook, decision: policy.decide(&event), trusted: self.trusted.load(Ordering::SeqCst) }
    }

    /// Step 2: what of it is not done yet for this inode in this state. Nothing left gives the verdict at once.
    fn remember(
        &self,
        decided: Decided,
        access: &Access<'_>,
        carried: Option<&Record>,
    ) -> Result<Result<Pending, Judged>, Trouble> {
        // A copy, as `decided` moves on into what is pending.
        let decision = &decided.decision.clone();
        let appraise = decision.appraise.is_some() && self.mode() != Mode::Off;
        if decision.measure.is_none() && !appraise && decision.audit.is_none() {
            if decision.hash.is_some() {
                self.maintain_from(access, access.file.stamp().ok().as_ref());
            }
            return Ok(Err(Judged::PASSED));
        }
        let stamp = access.file.stamp().map_err(Trouble::Collect)?;
        // While somebody can write, what is known may not be so any more.
        let nobody_writes = access.file.nobody_writes();
        let known = (nobody_writes == Some(true) && access.file.times_tell())
            .then(|| self.cache.lookup(access.file.id(), &stamp))
            .flatten();
        let carried = carried.filter(|record| record.stamp == stamp);
        let record = known.or_else(|| carried.cloned()).unwrap_or_else(|| Record::new(stamp));
        if decision.measure.is_some() && !access.writes && nobody_writes == Some(false) && watches_writers(decided.hook)
        {
            self.violation(access);
        }
        let pcr = decision.pcr.unwrap_or(self.log.pcr());
        let algorithms = decision.allowed_algorithms.as_ref();
        let passed = record.passes(decision.appraise_slot, decision.flags.signature_required, algorithms);
        let pending = Pending {
            measure: (decision.measure.is_some() && record.measured >> pcr & 1 == 0).then_some(pcr),
            appraise: appraise && !passed,
            audit: decision.audit.is_some() && !record.audited,
            record,
            decided,
        };
        if pending.measure.is_none() && !pending.appraise && !pending.audit {
            self.counters.known.fetch_add(1, Ordering::Relaxed);
            let immutable = appraise && access.writes && pending.record.immutable;
            if decision.hash.is_some() || (appraise && access.writes && !immutable) {
                self.maintain_from(access, Some(&stamp));
            }
            return Ok(Err(if immutable { self.refuse_write(access, &pending.decided) } else { Judged::PASSED }));
        }
        Ok(Ok(pending))
    }

    /// Step 3: the label, and the content's digest in the algorithm that the label names.
    fn collect(&self, mut pending: Pending, access: &Access<'_>) -> Result<Collected, Trouble> {
        let label = match access.file.xattr("security.ima") {
            Ok(label) => label,
            // Without xattrs there is no label.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
            Err(error) => return Err(Trouble::Collect(error)),
        };
        let digest = match pending.record.collected {
            Some(digest) => digest,
            None => {
                let algorithm = label.as_deref().and_then(label::algorithm_of).unwrap_or(self.log.hash());
                self.counters.collected.fetch_add(1, Ordering::Relaxed);
                let digest = access.file.digest(algorithm).or_else(|error| match error.kind() {
                    // A label that names an algorithm nobody here can compute is judged by the default hash, and fails.
                    io::ErrorKind::Unsupported => access.file.digest(self.log.hash()),
                    _ => Err(error),
                });
                digest.map_err(Trouble::Collect)?
            }
        };
        pending.record.collected = Some(digest);
        Ok(Collected { pending, label, digest })
    }

    /// Step 4: the entry, then the PCR; whether the entry is a new one.
    fn measure(&self, collected: &Collected, access: &Access<'_>) -> Result<bool, Trouble> {
        let Some(pcr) = collected.pending.measure else {
            return Ok(false);
        };
        let label = collected.label.as_deref().unwrap_or(&[]);
        let evm_label = match access.file.xattr("security.evm") {
            Ok(Some(label)) => label,
            // Nothing that could be recorded.
            Ok(None) | Err(_) => Vec::new(),
        };
        let path = access.file.path();
        let measured = Measured { digest: &collected.digest, path: &path, label, evm_label: &evm_label };
        let named = collected.pending.decided.decision.template;
        let template = named.and_then(|name| Template::built_in(name.name())).unwrap_or(&self.template);
        match self.log.add(template, pcr, &measured) {
            Ok(added) => Ok(added == Added::Listed),
            // The entry stands; that a PCR lacks it shows when the list is verified. The kernel goes on, too.
            Err(MeasureError::Tpm { .. }) => {
                self.counters.measure_errors.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) => Err(Trouble::Measure(error)),
        }
    }

    /// Before step 5: the digest by which the content is on the block list.
    fn blocked(&self, collected: &Collected, access: &Access<'_>) -> Result<Option<Digest>, Trouble> {
        if !collected.pending.appraise {
            return Ok(None);
        }
        let found = self.keys().blocked().find(&collected.digest, |algorithm| access.file.digest(algorithm));
        found.map_err(Trouble::Collect)
    }

    /// In place of step 5: no label makes up for being on the block list. What is measured is listed as that, too.
    fn refuse_content(&self, mut collected: Collected, digest: Digest) -> Appraised {
        let pending = &mut collected.pending;
        if let Some(pcr) = pending.measure {
            pending.record.measured |= 1 << pcr;
        }
        if pending.decided.decision.measure.is_some()
            && self.log.add_buffer(b"blacklisted-hash", digest.as_bytes()).is_err()
        {
            self.counters.measure_errors.fetch_add(1, Ordering::Relaxed);
        }
        Appraised { collected, appraisal: Some(Appraisal::blocked(digest)), evm_reason: None }
    }

    /// Step 5: the label against the content.
    fn appraise(&self, mut collected: Collected, access: &Access<'_>) -> Appraised {
        let pending = &mut collected.pending;
        if let Some(pcr) = pending.measure {
            pending.record.measured |= 1 << pcr;
        }
        if !pending.appraise {
            return Appraised { collected, appraisal: None, evm_reason: None };
        }
        let flags = pending.decided.decision.flags;
        let requirement = Requirement { signature: flags.signature_required, verity: flags.verity_required };
        let mut judged = None;
        let ask_evm = || match &self.evm {
            Some(evm) => judged.insert(evm.judge(access.file, access.now)).status,
            None => IntegrityStatus::Unknown,
        };
        let appraisal = appraise::appraise(
            collected.label.as_deref(),
            &collected.digest,
            collected.pending.record.stamp.size == 0,
            access.created,
            requirement,
            &self.keys(),
            ask_evm,
        );
        let record = &mut collected.pending.record;
        if judged.as_ref().is_some_and(|judged| judged.wrote)
            && let Ok(now) = access.file.stamp()
            && (now.size, now.modified) == (record.stamp.size, record.stamp.modified)
        {
            // Writing a label is a change of the file, though none of its content.
            record.stamp = now;
        }
        let evm_reason = judged.and_then(|judged| judged.reason);
        Appraised { collected, appraisal: Some(appraisal), evm_reason }
    }

    /// Step 6: the records.
    fn audit(&self, appraised: &Appraised, access: &Access<'_>) {
        if appraised.collected.pending.audit {
            self.audit.record(AuditRecord::Rule {
                digest: appraised.collected.digest,
                task: access.task.identity(),
                path: access.file.path(),
            });
        }
    }

    /// Step 7: the verdict, and what is remembered of it.
    fn verdict(&self, appraised: Appraised, access: &Access<'_>) -> Judged {
        let hook = appraised.collected.pending.decided.hook;
        let Concluded { decided, cause, immutable, fixed } = self.conclude(appraised, access);
        if let Some((cause, detail)) = cause {
            return self.fail(access, hook, &decided.decision, cause, detail, fixed);
        }
        if decided.decision.appraise.is_some() && immutable && access.writes && self.mode() != Mode::Off {
            return self.refuse_write(access, &decided);
        }
        Judged::PASSED
    }

    /// What the steps before come to, and what is remembered of it; nothing is recorded yet.
    fn conclude(&self, appraised: Appraised, access: &Access<'_>) -> Concluded {
        let Appraised { collected, appraisal, evm_reason } = appraised;
        let Pending { decided, mut record, audit, .. } = collected.pending;
        record.audited |= audit;
        let mut cause = None;
        let mut detail = String::new();
        let mut fixed = false;
        let appraisal_passed = appraisal.as_ref().is_some_and(|appraisal| appraisal.cause.is_none());
        if let Some(appraisal) = appraisal {
            let algorithm = collected.digest.algorithm();
            record.immutable = appraisal.immutable;
            record.status[decided.decision.appraise_slot as usize] = Some(appraisal.status);
            cause = appraisal.cause;
            if let Some(error) = &appraisal.signature_error {
                detail = error.to_string();
            } else if let Some(digest) = &appraisal.blocked {
                detail = format!("{digest} is on the block list");
            } else if let (Some(Cause::MissingHmac | Cause::InvalidHmac | Cause::InvalidFailImmutable), Some(reason)) =
                (cause, &evm_reason)
            {
                detail = reason.to_string();
            }
            if cause.is_some() && self.mode() == Mode::Fix && appraisal.fixable {
                // What cannot be labelled stays as it is; the record of the failure has been made all the same.
                if let Ok(digest) = self.fix(access, &collected.digest) {
                    detail = format!("labelled with {digest}");
                    record = Record::new(record.stamp);
                    fixed = true;
                }
            }
            if cause.is_none() && decided.decision.allowed_algorithms.is_some_and(|set| !set.contains(algorithm)) {
                cause = Some(Cause::DeniedHashAlgorithm);
                detail = format!("{algorithm} is not among the rule's appraise_algos");
            }
            let unchanged = record.stamp.changed + LATELY.as_nanos().cast_signed() < access.now;
            if cause.is_none()
                && !fixed
                && let Some(algorithm) =
                    self.label_not_to_be_written(access.file.id(), collected.label.as_deref(), unchanged)
            {
                // The rule may allow it, and the next access would be let through.
                record.status[decided.decision.appraise_slot as usize] = Some(IntegrityStatus::Fail);
                let denied;
                (denied, detail) = self.writable_labels().cause(algorithm);
                cause = Some(denied);
            }
        }
        let immutable = record.immutable;
        let signed = !fixed && collected.label.as_deref().and_then(<[u8]>::first) == Some(&SIGNATURE);
        // As in the kernel: `hash` follows every change, `appraise` those of a writer who found the label right.
        let appraised = (appraisal_passed || fixed) && access.writes && decided.decision.appraise_slot == Slot::File;
        if !signed && !immutable && (decided.decision.hash.is_some() || appraised) {
            self.maintain_from(access, Some(&record.stamp));
        }
        let stable = self.keep(record, access, decided.trusted);
        let enforced = decided.decision.appraise.is_some() && self.mode() != Mode::Off;
        if cause.is_none() && enforced && !stable && runs_code(decided.hook) && !access.writes {
            // The kernel keeps writers from a file that is executed only after it has asked us.
            cause = Some(Cause::Writers);
            detail = "it was open for writing, or changed, while it was judged".into();
        }
        Concluded { decided, cause: cause.map(|cause| (cause, detail)), immutable, fixed }
    }

    /// Does for a hook what it asks for ahead of it, where the kernel will come to it without asking again: the file is measured
    /// and appraised.
    ///
    /// # Errors
    /// Why it would be refused. That is recorded nowhere, as nothing is refused yet.
    pub fn ahead(&self, access: &Access<'_>, hook: Hook) -> Result<(), Cause> {
        let policy = self.policy();
        let decided = self.decide(&policy, access, hook);
        let pending = match self.remember(decided, access, None) {
            Ok(Ok(pending)) => pending,
            Ok(Err(judged)) => return judged.cause.map_or(Ok(()), Err),
            Err(_) => return Err(Cause::CollectFailed),
        };
        let collected = self.collect(pending, access).map_err(|_| Cause::CollectFailed)?;
        self.measure(&collected, access).map_err(|_| Cause::MeasureFailed)?;
        let appraised = self.appraise(collected, access);
        access.file.look_again();
        self.audit(&appraised, access);
        self.conclude(appraised, access).cause.map_or(Ok(()), |(cause, _)| Err(cause))
    }

    /// Remembers a record, unless the file changed meanwhile or somebody can change it unseen; whether neither is so.
    fn keep(&self, mut record: Record, access: &Access<'_>, trusted: u64) -> bool {
        let unchanged = access.file.stamp().is_ok_and(|stamp| stamp == record.stamp);
        let nobody_writes = access.file.nobody_writes();
        record.settled = is_settled(&record.stamp, access.now);
        if unchanged && !access.writes && nobody_writes != Some(false) {
            self.cache.store(access.file.id(), record);
            if self.trusted.load(Ordering::SeqCst) != trusted {
                // It went by other keys.
                self.cache.forget(access.file.id());
            }
        } else {
            self.cache.forget(access.file.id());
        }
        unchanged && nobody_writes != Some(false)
    }

    fn fix(&self, access: &Access<'_>, digest: &Digest) -> io::Result<Digest> {
        self.write_label(access.file, digest)?;
        Ok(*digest)
    }

    fn refuse_write(&self, access: &Access<'_>, decided: &Decided) -> Judged {
        if access.created {
            return Judged::PASSED;
        }
        self.fail(access, decided.hook, &decided.decision, Cause::Immutable, String::new(), false)
    }

    /// Once for each writer, as the kernel does since 6.12: or an unprivileged writer could fill the list.
    fn violation(&self, access: &Access<'_>) {
        if !insert(&self.violated, access.file.id()) {
            return;
        }
        let path = access.file.path();
        if self.log.add_violation(&self.template, &path).is_err() {
            self.counters.measure_errors.fetch_add(1, Ordering::Relaxed);
        }
        let (task, inode) = (access.task.identity(), access.file.id());
        self.audit.record(AuditRecord::Violation { cause: "open_writers", task, path, inode });
    }

    /// An error in one of the steps.
    fn trouble(&self, access: &Access<'_>, hook: Hook, decision: &Decision, trouble: &Trouble) -> Judged {
        let (cause, detail) = match trouble {
            Trouble::Collect(error) => (Cause::CollectFailed, error.to_string()),
            Trouble::Measure(error) => (Cause::MeasureFailed, error.to_string()),
        };
        self.counters.measure_errors.fetch_add(1, Ordering::Relaxed);
        self.fail(access, hook, decision, cause, detail, false)
    }

    /// Where every refusal comes from.
    fn fail(
        &self,
        access: &Access<'_>,
        hook: Hook,
        decision: &Decision,
        cause: Cause,
        detail: String,
        fixed: bool,
    ) -> Judged {
        let denied = self.mode() == Mode::Enforce;
        self.counters.failed.fetch_add(1, Ordering::Relaxed);
        self.audit.record(AuditRecord::Data {
            func: hook.func,
            cause,
            detail,
            task: access.task.identity(),
            path: access.file.path(),
            inode: access.file.id(),
            rule: decision.appraise,
            denied,
            fixed,
        });
        if denied {
            self.counters.denied.fetch_add(1, Ordering::Relaxed);
        }
        Judged { cause: Some(cause), denied }
    }

    /// The last writer of a file has gone, or its attributes have changed: what was known of it is not so any more.
    pub fn changed(&self, id: InodeId, writer_gone: bool) {
        self.cache.forget(id);
        if writer_gone {
            self.violated.shard(&id).remove(&id);
        }
    }

    /// Somebody has changed an inode, `attributes` says whether these: whether the file has to be looked at for it
    /// ([`Checker::attributes_changed`]).
    pub fn attributes_noticed(&self, id: InodeId, attributes: bool) -> bool {
        // Without a rule, what is written to files that nobody uses is not worth a look at each.
        let label = attributes && (self.policy().setxattr_algorithms().is_some() || self.cache.knows(id));
        if label {
            self.label_writes.suspect(id);
        }
        label || self.evm.as_ref().is_some_and(|evm| evm.follows(id))
    }

    /// The algorithm of a label that the policy does not let be written, and that was not there before it was in force. `unchanged` says that
    /// the inode has not changed lately.
    pub fn label_not_to_be_written(&self, id: InodeId, label: Option<&[u8]>, unchanged: bool) -> Option<HashAlgorithm> {
        let labels = Some(self.writable_labels()).filter(WritableLabels::by_rule)?;
        let denied = label.and_then(|label| labels.denied(label))?;
        (!self.label_writes.was_there(id, label?, unchanged)).then_some(denied)
    }

    /// The algorithms that labels may be written in.
    pub fn writable_labels(&self) -> WritableLabels {
        WritableLabels::new(self.policy().setxattr_algorithms(), self.log.hash())
    }

    /// Records a label that the kernel would not have let be written. At level 1 that is seen afterwards.
    fn look_at_written_label(&self, file: &dyn File, who: Option<&TaskIdentity>) {
        let policy = self.policy();
        let labels = self.writable_labels();
        let denied = self.label_writes.look(file.id(), || {
            // What cannot be read does not pass either.
            let label = file.xattr("security.ima").ok().flatten()?;
            let algorithm = labels.denied(&label)?;
            Some((label, algorithm))
        });
        let Some(algorithm) = denied else { return };
        let (cause, detail) = labels.cause(algorithm);
        self.audit.record(AuditRecord::Data {
            func: Func::SetxattrCheck,
            cause,
            detail,
            task: who.cloned().unwrap_or_default(),
            path: file.path(),
            inode: file.id(),
            rule: policy.rules().iter().position(|rule| rule.func == Some(Func::SetxattrCheck)),
            denied: false,
            fixed: false,
        });
    }

    /// Somebody has changed a file's attributes: EVM follows it where that may be, and what could not be is recorded.
    pub fn attributes_changed(&self, file: &dyn File, who: Option<TaskIdentity>, now: i128) {
        self.look_at_written_label(file, who.as_ref());
        let Some(evm) = &self.evm else { return };
        let Ok(changed) = evm.changed(file, who.as_ref(), now) else { return };
        let (what, status) = match changed {
            evm::running::Changed::Refused(what, status) => (what, status),
            evm::running::Changed::Nothing | evm::running::Changed::Followed(_) | evm::running::Changed::Stale(_) => {
                return;
            }
        };
        let what: Vec<String> = what.iter().map(ToString::to_string).collect();
        let (task, path, inode) = (who.unwrap_or_default(), file.path(), file.id());
        self.audit.record(AuditRecord::Metadata { status, what: what.join("; "), task, path, inode });
    }

    /// Whether a program that was just let through may be believed about its interpreter: it passed its appraisal.
    pub fn may_name_interpreter(&self, access: &Access<'_>) -> bool {
        let hook = Hook { func: Func::BprmCheck, mask: Mask::MAY_EXEC.bits() };
        let decided = self.decide(&self.policy(), access, hook);
        if decided.decision.appraise.is_none() {
            return false;
        }
        // In enforce mode nothing else would have been let through.
        self.mode() == Mode::Enforce
            || self.known(access.file).is_some_and(|record| record.passes(decided.decision.appraise_slot, false, None))
    }
}

/// Whether the content is about to be run, so that nobody may be changing it.
/// Whether what runs code is not in the state any more that it was judged in, though nobody can write to it and its content has the
/// same times: it is the new state that counts.
fn attributes_changed(appraised: &Appraised, access: &Access<'_>) -> bool {
    let Pending { decided, record, .. } = &appraised.collected.pending;
    let content = |stamp: &Stamp| (stamp.size, stamp.modified);
    appraised.appraisal.is_some()
        && runs_code(decided.hook)
        && !access.writes
        && access.file.nobody_writes() != Some(false)
        && access.file.stamp().is_ok_and(|now| now != record.stamp && content(&now) == content(&record.stamp))
}

const fn runs_code(hook: Hook) -> bool {
    mask_of(hook.func).is_some()
}

/// Whether IMA looks for writers here.
const fn watches_writers(hook: Hook) -> bool {
    matches!(hook.func, Func::FileCheck | Func::MmapCheck | Func::MmapCheckReqprot)
}

/// The access that a hook always asks for, where there is but one.
const fn mask_of(func: Func) -> Option<u8> {
    match func {
        Func::BprmCheck | Func::CredsCheck | Func::MmapCheck | Func::MmapCheckReqprot => Some(Mask::MAY_EXEC.bits()),
        Func::FileCheck
        | Func::PostSetattr
        | Func::ModuleCheck
        | Func::FirmwareCheck
        | Func::KexecKernelCheck
        | Func::KexecInitramfsCheck
        | Func::PolicyCheck
        | Func::KexecCmdline
        | Func::KeyCheck
        | Func::CriticalData
        | Func::SetxattrCheck => None,
    }
}

#[cfg(test)]
mod tests;
