//! The seven steps of one event: decide, remember, collect, measure, appraise, audit, verdict.
//!
//! One direction: a step takes the previous step's type and returns the next one's. A file is measured before it is
//! appraised, so that a refused file is on record. Whatever goes wrong on the way becomes a refusal in enforce mode, in
//! `Checker::fail` and nowhere else.
//!
//! Source: `process_measurement`, security/integrity/ima/ima_main.c.

use super::{Access, Checker, File, Hook, Mode, Verdict};
use crate::active_policy::ActivePolicy;
use crate::appraise::{self, Appraisal, Cause, IntegrityStatus, Requirement};
use crate::audit::AuditRecord;
use crate::cache::{Record, Stamp, is_settled};
use crate::evm;
use crate::keyring::Keyring;
use crate::label_writes::LATELY;
use crate::measure::MeasureError;
use crate::policy::{CompiledPolicy, Decision, Event, Slot};
use crate::trace::{self, Seen};
use imara_format::hash::Digest;
use imara_format::label;
use imara_format::policy::{Func, Mask};
use imara_format::template::Template;
use imara_format::trace::LabelFacts;
use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Step 1's result.
pub(super) struct Decided {
    hook: Hook,
    pub(super) decision: Decision,
    /// What verdicts went by then (see `Checker::trusted`).
    trusted: u32,
    /// Whether the policy says in which algorithms labels may be written.
    rules_labels: bool,
}

/// Step 2's result: what is still to do.
pub(super) struct Pending<'a> {
    pub(super) decided: &'a Decided,
    pub(super) record: Record,
    pub(super) measure: Option<u32>,
    appraise: bool,
    audit: bool,
}

/// Step 3's result.
pub(super) struct Collected<'a> {
    pub(super) pending: Pending<'a>,
    pub(super) label: Option<Vec<u8>>,
    /// Whether that is its first one and late, so that there is nothing yet that EVM protects.
    first: bool,
    pub(super) digest: Digest,
}

/// Step 5's result.
struct Appraised<'a> {
    collected: Collected<'a>,
    appraisal: Option<Appraisal>,
    /// Why EVM is not satisfied.
    evm_reason: Option<evm::Reason>,
}

/// What step 7 comes to: why the file does not pass, with more of it for people.
struct Concluded {
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
    /// Whether it is neither yet.
    later: bool,
}

impl Judged {
    const PASSED: Self = Self { cause: None, denied: false, later: false };
    const LATER: Self = Self { later: true, ..Self::PASSED };

    const fn verdict(self) -> Verdict {
        match self {
            Self { later: true, .. } => Verdict::Later,
            Self { cause: Some(cause), denied: true, .. } => Verdict::Deny(cause),
            Self { cause: None, .. } | Self { denied: false, .. } => Verdict::Allow,
        }
    }
}

/// How often a file that is executed is judged for one access, as long as its attributes change meanwhile (`chmod -R`, say).
pub(super) const ATTEMPTS: u32 = 4;

/// The type byte of a label that holds a signature.
pub(super) const SIGNATURE: u8 = 3;

/// Why steps 1 to 5 could not be taken.
pub(super) enum Trouble {
    Collect(io::Error),
    /// There is no fs-verity digest, or it cannot be had.
    Verity(Option<io::Error>),
    Measure(MeasureError),
}

impl Trouble {
    /// Whether it will be over without anything being done.
    const fn is_passing(&self) -> bool {
        matches!(self, Self::Measure(MeasureError::Busy))
    }

    const fn cause(&self) -> Cause {
        match self {
            Self::Collect(_) => Cause::CollectFailed,
            Self::Verity(None) => Cause::NoVerityDigest,
            Self::Verity(Some(_)) => Cause::InvalidVerityDigest,
            Self::Measure(_) => Cause::MeasureFailed,
        }
    }
}

impl Checker {
    pub(super) fn check_hook(
        &self,
        policy: &ActivePolicy,
        access: &Access<'_>,
        hook: Hook,
        carried: &mut Option<Record>,
    ) -> Verdict {
        let decided = self.decide(policy, access, hook);
        policy.count(&decided.decision);
        if !self.tracing.load(Ordering::Relaxed) {
            return self.judge(&decided, access, carried, &mut None).verdict();
        }
        let decision = decided.decision;
        let mut seen = Some(Seen::default());
        let judged = self.judge(&decided, access, carried, &mut seen);
        if judged.later {
            return judged.verdict();
        }
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
        let record = known.as_ref().or(carried.filter(|record| record.stamp == stamp))?;
        record.collected.filter(|_| !record.verity)
    }

    /// Steps 2 to 7, and once more if attributes changed meanwhile. `seen` takes what a trace tells of them.
    fn judge(
        &self,
        decided: &Decided,
        access: &Access<'_>,
        carried: &mut Option<Record>,
        seen: &mut Option<Seen>,
    ) -> Judged {
        for _ in 1..ATTEMPTS {
            if let Some(judged) = self.attempt(decided, access, carried, seen, false) {
                return judged;
            }
        }
        self.attempt(decided, access, carried, seen, true).unwrap_or(Judged::PASSED)
    }

    /// Steps 2 to 7 once; nothing where it is not the last time and should be done again.
    fn attempt(
        &self,
        decided: &Decided,
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
        let keys = self.keys();
        let result = self.collect(pending, access).and_then(|collected| {
            if let Some(seen) = seen {
                seen.label = collected.label.clone().map_or(LabelFacts::None, LabelFacts::Some);
                seen.digest = Some(collected.digest).filter(|_| !collected.pending.record.verity);
            }
            let entry = self.measure(&collected, access).inspect_err(|trouble| {
                if trouble.is_passing() {
                    // So that it is not read again for each attempt.
                    access.file.was_read();
                    self.keep(collected.pending.record.clone(), access, collected.pending.decided.trusted);
                }
            })?;
            if let Some(seen) = seen {
                seen.entry |= entry;
            }
            match blocked(&collected, access, &keys)? {
                Some(digest) => self.refuse_content(collected, digest),
                None => Ok(self.appraise(collected, access, &keys)),
            }
        });
        // Whether it is what it was before it was read.
        access.file.was_read();
        Some(match result {
            Ok(appraised) if !last && attributes_changed(&appraised, access) => return None,
            Ok(appraised) => {
                self.audit(&appraised, access);
                // Not its status: who runs the file is asked about its writers anew.
                let Pending { record, audit, .. } = &appraised.collected.pending;
                *carried = Some(Record { audited: record.audited || *audit, ..record.clone() });
                self.verdict(appraised, access)
            }
            Err(trouble) => self.trouble(access, hook, &decided.decision, &trouble),
        })
    }

    /// Step 1: which of measure, appraise, audit, hash.
    fn decide(&self, policy: &CompiledPolicy, access: &Access<'_>, hook: Hook) -> Decided {
        let facts = access.file.facts();
        let event = Event { func: hook.func, mask: hook.mask, file: &facts, subject: access.task, data: None };
        let rules_labels = policy.setxattr_algorithms().is_some();
        Decided { hook, decision: policy.decide(&event), trusted: self.trusted.load(Ordering::SeqCst), rules_labels }
    }

    /// Step 2: what of it is not done yet for this inode in this state. Nothing left gives the verdict at once.
    fn remember<'a>(
        &self,
        decided: &'a Decided,
        access: &Access<'_>,
        carried: Option<&Record>,
    ) -> Result<Result<Pending<'a>, Judged>, Trouble> {
        let decision = &decided.decision;
        let appraise = decision.appraise.is_some() && self.mode() != Mode::Off;
        if decision.measure.is_none() && !appraise && decision.audit.is_none() {
            if decision.hash.is_some() {
                self.maintain_from(access, access.file.stamp().ok().as_ref(), None);
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
            self.violation(access)?;
        }
        let pcr = decision.pcr.unwrap_or(self.log.pcr());
        let algorithms = decision.allowed_algorithms.as_ref();
        let passed = record.passes(decision.appraise_slot, decision.flags.requirement(), algorithms)
            || (appraise
                && nobody_writes == Some(false)
                && self.passes_while_written(access, decision).map_err(Trouble::Collect)?);
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
                self.maintain_from(access, Some(&stamp), Some(&pending.record));
            }
            return Ok(Err(if immutable { self.refuse_write(access, pending.decided) } else { Judged::PASSED }));
        }
        Ok(Ok(pending))
    }

    /// The template that a decision measures with.
    pub(super) fn template_of(&self, decision: &Decision) -> &Template {
        decision.template.and_then(|name| Template::built_in(name.name())).unwrap_or(&self.template)
    }

    /// Step 3: the label, and the content's digest in the algorithm that the label names; or fs-verity's digest, whichever it is in.
    fn collect<'a>(&self, mut pending: Pending<'a>, access: &Access<'_>) -> Result<Collected<'a>, Trouble> {
        let label = match access.file.xattr("security.ima") {
            Ok(label) => label,
            // Without xattrs there is no label.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
            Err(error) => return Err(Trouble::Collect(error)),
        };
        let decision = &pending.decided.decision;
        let verity = decision.flags.verity_required;
        let known = pending.record.collected.filter(|_| pending.record.verity == verity);
        let digest = match known {
            Some(digest) => digest,
            None if verity => {
                let digest = access.file.verity_digest().map_err(|error| Trouble::Verity(Some(error)))?;
                digest.ok_or(Trouble::Verity(None))?
            }
            None => {
                // Only for an entry of the one template that has no room for its digest the label is not looked at.
                let named = decision.appraise.is_some() || !self.template_of(decision).is_legacy();
                // One that is late would be in the default hash.
                let named = named && !access.file.label_is_late();
                let algorithm = label.as_deref().filter(|_| named).and_then(label::algorithm_of);
                self.counters.collected.fetch_add(1, Ordering::Relaxed);
                let digest = access.file.digest(algorithm.unwrap_or(self.log.hash()));
                let digest = digest.or_else(|error| match error.kind() {
                    // A label that names an algorithm nobody here can compute is judged by the default hash, and fails.
                    io::ErrorKind::Unsupported => access.file.digest(self.log.hash()),
                    _ => Err(error),
                });
                digest.map_err(Trouble::Collect)?
            }
        };
        (pending.record.collected, pending.record.verity) = (Some(digest), verity);
        let late = access.file.label_is_late().then(|| self.late_label(access.file.id(), &digest)).flatten();
        let first = late.is_some() && label.is_none();
        Ok(Collected { pending, label: late.or(label), first, digest })
    }

    /// In place of step 5: no label makes up for being on the block list. What is measured is listed as that, too.
    fn refuse_content<'a>(&self, mut collected: Collected<'a>, digest: Digest) -> Result<Appraised<'a>, Trouble> {
        let pending = &mut collected.pending;
        if let Some(pcr) = pending.measure {
            pending.record.measured |= 1 << pcr;
        }
        if pending.decided.decision.measure.is_some() {
            match self.log.add_buffer(b"blacklisted-hash", digest.as_bytes()) {
                Ok(_) => {}
                Err(MeasureError::Busy) => return Err(Trouble::Measure(MeasureError::Busy)),
                Err(_) => drop(self.counters.measure_errors.fetch_add(1, Ordering::Relaxed)),
            }
        }
        Ok(Appraised { collected, appraisal: Some(Appraisal::blocked(digest)), evm_reason: None })
    }

    /// Step 5: the label against the content.
    fn appraise<'a>(&self, mut collected: Collected<'a>, access: &Access<'_>, keys: &Keyring) -> Appraised<'a> {
        let pending = &mut collected.pending;
        if let Some(pcr) = pending.measure {
            pending.record.measured |= 1 << pcr;
        }
        if !pending.appraise {
            return Appraised { collected, appraisal: None, evm_reason: None };
        }
        let requirement = pending.decided.decision.flags.requirement();
        let mut judged = None;
        let ask_evm = || match &self.evm {
            Some(evm) if !collected.first => judged.insert(evm.judge(access.file, access.now)).status,
            Some(_) | None => IntegrityStatus::Unknown,
        };
        let empty = collected.pending.record.stamp.size == 0;
        let appraisal = appraise::appraise(
            collected.label.as_deref(),
            &collected.digest,
            empty,
            // Whatever it was when it was asked about.
            access.created && empty,
            requirement,
            keys,
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
    fn audit(&self, appraised: &Appraised<'_>, access: &Access<'_>) {
        if appraised.collected.pending.audit {
            self.audit.record(AuditRecord::Rule {
                digest: appraised.collected.digest,
                task: access.task.identity(),
                path: access.file.path(),
            });
        }
    }

    /// Step 7: the verdict, and what is remembered of it.
    fn verdict(&self, appraised: Appraised<'_>, access: &Access<'_>) -> Judged {
        let decided = appraised.collected.pending.decided;
        let Concluded { cause, immutable, fixed } = self.conclude(appraised, access);
        if let Some((cause, detail)) = cause {
            return self.fail(access, decided.hook, &decided.decision, cause, detail, fixed);
        }
        if decided.decision.appraise.is_some() && immutable && access.writes && self.mode() != Mode::Off {
            return self.refuse_write(access, decided);
        }
        Judged::PASSED
    }

    /// What the steps before come to, and what is remembered of it; nothing is recorded yet.
    fn conclude(&self, appraised: Appraised<'_>, access: &Access<'_>) -> Concluded {
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
                    // Who comes to write after this one, before the label has followed, goes by what it says now.
                    let (collected, verity) = (Some(collected.digest), record.verity);
                    record = Record { collected, verity, ..Record::new(record.stamp) };
                    record.status[decided.decision.appraise_slot as usize] = Some(IntegrityStatus::Pass);
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
                && decided.rules_labels
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
        let passed = (appraisal_passed || fixed) && decided.decision.appraise_slot == Slot::File;
        let new = passed && !fixed && access.created && collected.label.as_deref().is_none_or(<[u8]>::is_empty);
        if new {
            self.maintain_new(access.file.id());
        } else if !signed && !immutable && (decided.decision.hash.is_some() || passed && access.writes) {
            self.maintain_from(access, Some(&record.stamp), Some(&record));
        }
        let stable = self.keep(record, access, decided.trusted);
        let enforced = decided.decision.appraise.is_some() && self.mode() != Mode::Off;
        if cause.is_none() && enforced && !stable && runs_code(decided.hook) && !access.writes {
            // The kernel keeps writers from a file that is executed only after it has asked us.
            cause = Some(Cause::Writers);
            detail = "it was open for writing, or changed, while it was judged".into();
        }
        Concluded { cause: cause.map(|cause| (cause, detail)), immutable, fixed }
    }

    /// Does for a hook what it asks for ahead of it, where the kernel will come to it without asking again: the file is measured
    /// and appraised.
    ///
    /// # Errors
    /// Why it would be refused. That is recorded nowhere, as nothing is refused yet.
    pub fn ahead(&self, access: &Access<'_>, hook: Hook) -> Result<(), Cause> {
        let policy = self.policy();
        let decided = self.decide(&policy, access, hook);
        let pending = match self.remember(&decided, access, None) {
            Ok(Ok(pending)) => pending,
            Ok(Err(judged)) => return judged.cause.map_or(Ok(()), Err),
            Err(trouble) => return Err(trouble.cause()),
        };
        let collected = self.collect(pending, access).map_err(|trouble| trouble.cause())?;
        self.measure(&collected, access).map_err(|_| Cause::MeasureFailed)?;
        let appraised = self.appraise(collected, access, &self.keys());
        access.file.look_again();
        self.audit(&appraised, access);
        self.conclude(appraised, access).cause.map_or(Ok(()), |(cause, _)| Err(cause))
    }

    /// Remembers a record, unless the file changed meanwhile or somebody can change it unseen; whether neither is so.
    fn keep(&self, mut record: Record, access: &Access<'_>, trusted: u32) -> bool {
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

    /// An error in one of the steps.
    fn trouble(&self, access: &Access<'_>, hook: Hook, decision: &Decision, trouble: &Trouble) -> Judged {
        if trouble.is_passing() {
            return Judged::LATER;
        }
        let detail = match trouble {
            Trouble::Collect(error) | Trouble::Verity(Some(error)) => error.to_string(),
            Trouble::Verity(None) => "fs-verity is not enabled for it".into(),
            Trouble::Measure(error) => error.to_string(),
        };
        self.counters.measure_errors.fetch_add(1, Ordering::Relaxed);
        self.fail(access, hook, decision, trouble.cause(), detail, false)
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
        let measured_alone = decision.appraise.is_none() && cause.is_nothing_to_measure();
        let denied = self.mode() == Mode::Enforce && !measured_alone;
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
        Judged { cause: Some(cause), denied, later: false }
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
            || self.known(access.file).is_some_and(|record| {
                let asked = Requirement { signature: false, ..decided.decision.flags.requirement() };
                record.passes(decided.decision.appraise_slot, asked, None)
            })
    }
}

/// Before step 5: the digest by which the content is on the block list.
fn blocked(collected: &Collected<'_>, access: &Access<'_>, keys: &Keyring) -> Result<Option<Digest>, Trouble> {
    if !collected.pending.appraise {
        return Ok(None);
    }
    let (digest, verity) = (&collected.digest, collected.pending.record.verity);
    keys.blocked().find(digest, verity, |algorithm| access.file.digest(algorithm)).map_err(Trouble::Collect)
}

/// Whether what runs code is not in the state any more that it was judged in, though nobody can write to it and its content has the
/// same times: it is the new state that counts.
fn attributes_changed(appraised: &Appraised<'_>, access: &Access<'_>) -> bool {
    let Pending { decided, record, .. } = &appraised.collected.pending;
    let content = |stamp: &Stamp| (stamp.size, stamp.modified);
    appraised.appraisal.is_some()
        && runs_code(decided.hook)
        && !access.writes
        && access.file.nobody_writes() != Some(false)
        && access.file.stamp().is_ok_and(|now| now != record.stamp && content(&now) == content(&record.stamp))
}

/// Whether the content is about to be run, so that nobody may be changing it.
const fn runs_code(hook: Hook) -> bool {
    mask_of(hook.func).is_some()
}

/// Whether IMA looks for writers here.
const fn watches_writers(hook: Hook) -> bool {
    matches!(hook.func, Func::FileCheck | Func::MmapCheck | Func::MmapCheckReqprot)
}

/// The access that a hook always asks for, where there is but one.
pub(super) const fn mask_of(func: Func) -> Option<u8> {
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
