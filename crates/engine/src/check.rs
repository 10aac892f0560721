//! IMA's decisions: what is in force, and the questions that are put to it.
//!
//! | file | what |
//! |---|---|
//! | `access.rs` | what is asked about |
//! | `steps.rs` | from the question to the verdict |
//! | `listing.rs` | what is listed of a file |
//! | `for_everybody.rs` | what is left to do for a file, whoever comes |
//! | `label_update.rs` | labels that follow their content |
//! | `one_at_a_time.rs` | one label is written by one thread |

mod access;
mod for_everybody;
mod label_update;
mod listing;
mod one_at_a_time;
mod steps;

pub use self::access::{Access, File, Hook, Task, Verdict};
pub use self::for_everybody::Left;
pub use self::label_update::Content;
use crate::active_policy::ActivePolicy;
use crate::audit::{AuditRecord, AuditSink, TaskIdentity};
use crate::cache::{Cache, InodeId};
use crate::evm::{self, Evm};
use crate::keyring::Keyring;
use crate::label_writes::{LabelWrites, WritableLabels};
use crate::lock::{self, Sharded};
use crate::measure::MeasurementLog;
use crate::policy::CompiledPolicy;
use crate::trace::TraceSink;
use imara_format::hash::HashAlgorithm;
use imara_format::policy::Func;
use imara_format::template::Template;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

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
    trusted: AtomicU32,
    evm: Option<Arc<Evm>>,
    log: Arc<MeasurementLog>,
    template: Template,
    cache: Cache,
    mode: AtomicU8,
    audit: Box<dyn AuditSink>,
    /// Inodes whose digest label follows their content, once the last writer has gone.
    maintained: Sharded<InodeId, label_update::Followed>,
    /// Those whose label is just following.
    following: one_at_a_time::OneAtATime,
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
            trusted: AtomicU32::new(0),
            evm: None,
            log,
            template,
            cache: Cache::new(1 << 18),
            mode: AtomicU8::new(mode as u8),
            audit,
            maintained: Sharded::new(MAINTAINED, &lock::MAINTAINED),
            following: one_at_a_time::OneAtATime::default(),
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
        self.check_by(&self.policy(), access, hooks)
    }

    /// The same by a policy that was in force a moment ago, when it was begun with the access.
    pub fn check_by(&self, policy: &ActivePolicy, access: &Access<'_>, hooks: &[Hook]) -> Verdict {
        self.counters.accesses.fetch_add(1, Ordering::Relaxed);
        if access.writes {
            // From now on it can change without its times telling (tmpfs).
            self.cache.forget(access.file.id());
        }
        // What one hook has found out serves the next: one access is hashed once, however many hooks it stands for.
        let mut carried = None;
        for hook in hooks {
            let verdict = self.check_hook(policy, access, *hook, &mut carried);
            if verdict != Verdict::Allow {
                return verdict;
            }
        }
        Verdict::Allow
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
}

#[cfg(test)]
mod tests;
