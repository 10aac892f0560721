//! What a policy means, as a plain loop over its rules: slow, and short enough to be seen to be right. The compiled
//! policy is tested against it, and the benchmark measures by it.
//!
//! Source: `ima_match_policy`, `ima_match_rules`, security/integrity/ima/ima_policy.c.

use imara_engine::policy::{Classes, Decision, Event, FileFacts, Slot};
use imara_format::policy::{Action, AppraiseType, Class, Func, IdCondition, Policy, Rule};

/// A policy that is walked from its first rule for each event.
pub struct FirstMatch<'a> {
    rules: &'a [Rule],
    labels: bool,
    fail_securely: bool,
    /// The classes that some rule does; rules for SETXATTR_CHECK do nothing.
    done: Classes,
}

impl<'a> FirstMatch<'a> {
    pub fn new(policy: &'a Policy, labels: bool, fail_securely: bool) -> Self {
        let mut done = Classes::default();
        for rule in &policy.rules {
            if rule.action.does() && rule.func != Some(Func::SetxattrCheck) {
                done = done.union(Classes::only(rule.action.class()));
            }
        }
        Self { rules: &policy.rules, labels, fail_securely, done }
    }

    /// The decision without `decided_by`, and the rule that decided each class.
    pub fn decide(&self, event: &Event<'_>) -> (Decision, [Option<usize>; 4]) {
        let mut decision = Decision::default();
        let mut decided_by = [None; 4];
        let mut undecided = Class::ALL.iter().filter(|class| self.done.contains(**class)).count();
        for (index, rule) in self.rules.iter().enumerate() {
            if undecided == 0 {
                break;
            }
            let class = rule.action.class();
            if !self.done.contains(class) || decided_by[class as usize].is_some() || !self.matches(rule, event) {
                continue;
            }
            decided_by[class as usize] = Some(index);
            undecided -= 1;

            let flags = &mut decision.flags;
            flags.signature_required |= rule.appraise_type.is_some();
            flags.modsig_allowed |= rule.appraise_type == Some(AppraiseType::ImasigModsig);
            flags.verity_required |= rule.verity;
            flags.permit_directio |= rule.permit_directio;
            flags.check_blacklist |= rule.check_blacklist;
            match rule.action {
                Action::Measure => decision.measure = Some(index),
                Action::Appraise => {
                    decision.appraise = Some(index);
                    decision.appraise_slot = slot(rule, event.func);
                    decision.hash = None;
                    flags.fail_unverifiable |= self.fail_securely;
                    if rule.appraise_algos.is_some() {
                        decision.allowed_algorithms = rule.appraise_algos;
                    }
                }
                Action::Audit => decision.audit = Some(index),
                Action::Hash => decision.hash = Some(index),
                Action::DontMeasure | Action::DontAppraise | Action::DontAudit | Action::DontHash => {}
            }
            if rule.pcr.is_some() {
                decision.pcr = rule.pcr;
            }
            if rule.template.is_some() {
                decision.template = rule.template;
            }
        }
        (decision, decided_by)
    }

    fn matches(&self, rule: &Rule, event: &Event<'_>) -> bool {
        if event.func == Func::KeyCheck || event.func == Func::CriticalData {
            let list = if event.func == Func::KeyCheck { &rule.keyrings } else { &rule.label };
            return rule.func == Some(event.func)
                && holds(rule.uid, &[event.subject.uid()])
                && (list.is_empty() || event.data.is_some_and(|data| list.iter().any(|item| item == data)));
        }
        if event.func != Func::PostSetattr {
            if rule.func.is_some_and(|func| func != event.func) {
                return false;
            }
            if rule.mask.is_some_and(|mask| !mask.holds(event.mask)) {
                return false;
            }
        }
        self.file_matches(rule, event.file) && self.subject_matches(rule, event)
    }

    fn file_matches(&self, rule: &Rule, file: &FileFacts<'_>) -> bool {
        rule.fsmagic.is_none_or(|magic| magic == file.fsmagic)
            && rule.fsname.as_ref().is_none_or(|name| name == file.fsname)
            && rule.fs_subtype.as_ref().is_none_or(|name| name == file.fs_subtype)
            && rule.fsuuid.is_none_or(|uuid| uuid == file.fsuuid.unwrap_or([0; 16]))
            && holds(rule.fowner, &[file.owner])
            && holds(rule.fgroup, &[file.group])
    }

    fn subject_matches(&self, rule: &Rule, event: &Event<'_>) -> bool {
        let subject = event.subject;
        let any = |ids: [u32; 3], able: bool, wanted| holds(wanted, if able { &ids } else { &ids[..1] });
        (rule.uid.is_none() || holds(rule.uid, &[subject.uid()]))
            && (rule.gid.is_none() || holds(rule.gid, &[subject.gid()]))
            && (rule.euid.is_none() || any(subject.euids(), subject.can_setuid(), rule.euid))
            && (rule.egid.is_none() || any(subject.egids(), subject.can_setgid(), rule.egid))
            && rule.lsm.iter().all(|label| self.labels && subject.has_label(label))
    }
}

fn holds(wanted: Option<IdCondition>, ids: &[u32]) -> bool {
    wanted.is_none_or(|wanted| ids.iter().any(|id| wanted.holds(*id)))
}

fn slot(rule: &Rule, func: Func) -> Slot {
    match (rule.func, func) {
        (None, _) | (_, Func::FileCheck | Func::PostSetattr) => Slot::File,
        (_, Func::MmapCheck | Func::MmapCheckReqprot) => Slot::Mmap,
        (_, Func::BprmCheck) => Slot::Bprm,
        (_, Func::CredsCheck) => Slot::Creds,
        _ => Slot::Read,
    }
}
