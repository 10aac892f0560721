//! The meaning of a policy: which rules decide an event, and what they decide.
//!
//! A policy is walked once for each event, in the order written. Each class (measure, appraise, audit, hash) is decided
//! by the first rule of that class that matches, whether it says do or don't, and independently of the other classes:
//! a `dont_measure` never stops an `appraise`. What is easily overlooked, all of it as in the kernel:
//!
//! * A class is looked at only if some rule of the policy does it. Then a matching don't-rule, too, adds its
//!   `permit_directio` and `digest_type=verity` to the decision.
//! * `appraise` takes away a `hash` that an earlier rule gave; a `hash` after it stays.
//! * A rule without `func=` matches every hook that has a file, and its appraisal is kept in the slot of FILE_CHECK.
//! * KEY_CHECK and CRITICAL_DATA see only rules that name them, and only their `uid` and list conditions.
//! * For POST_SETATTR `func=` and `mask=` are not looked at.
//!
//! Conditions on labels never match unless the policy was compiled [with labels](CompiledPolicy::with_labels), as in a
//! kernel whose security module does not know the label.
//!
//! The rules are not walked one by one but judged 64 at a time (`policy/block.rs`); what is decided is the same.
//!
//! Source: `ima_match_policy`, `ima_match_rules`, security/integrity/ima/ima_policy.c.

mod block;
mod condition;
mod explain;
mod possible;

pub use condition::Condition;
pub use explain::{Explanation, Why};
pub use possible::{Outcome, Possible};

use crate::appraise::Requirement;
use block::Block;
use condition::Facts;
use imara_format::policy::{Action, AlgorithmSet, AppraiseType, Class, Func, LsmCondition, Policy, Rule, TemplateName};

/// Who does it. Each is asked only when a rule needs the answer, and then once for an event: an answer may cost a read
/// of `/proc`.
pub trait Subject {
    /// The real user.
    fn uid(&self) -> u32;
    /// The real group.
    fn gid(&self) -> u32;
    /// The effective, saved and real user.
    fn euids(&self) -> [u32; 3];
    /// The effective, saved and real group.
    fn egids(&self) -> [u32; 3];
    /// Whether the task has CAP_SETUID.
    fn can_setuid(&self) -> bool;
    /// Whether the task has CAP_SETGID.
    fn can_setgid(&self) -> bool;
    /// Whether the label that `condition` asks for, the subject's or the file's, is the one it names. Asked only of
    /// policies compiled [with labels](CompiledPolicy::with_labels).
    fn has_label(&self, _condition: &LsmCondition) -> bool {
        false
    }
}

/// What a policy asks about a file.
#[derive(Clone, Copy, Debug)]
pub struct FileFacts<'a> {
    /// The owner, as seen through the mount.
    pub owner: u32,
    /// The group, likewise.
    pub group: u32,
    /// The filesystem's magic number.
    pub fsmagic: u64,
    /// The filesystem type's name.
    pub fsname: &'a str,
    /// The filesystem's subtype; empty for none.
    pub fs_subtype: &'a str,
    /// The filesystem's UUID; `None` is compared as all zeros.
    pub fsuuid: Option<[u8; 16]>,
}

/// Something that a hook asks about.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// The hook.
    pub func: Func,
    /// The access asked for.
    pub mask: u8,
    /// The file.
    pub file: &'a FileFacts<'a>,
    /// Who does it.
    pub subject: &'a dyn Subject,
    /// The keyring's name for KEY_CHECK, the data's label for CRITICAL_DATA.
    pub data: Option<&'a str>,
}

/// What a policy says to an event. Rules are named by their place in [`CompiledPolicy::rules`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The rule that has it measured.
    pub measure: Option<usize>,
    /// The rule that has it appraised.
    pub appraise: Option<usize>,
    /// The rule that has it audited.
    pub audit: Option<usize>,
    /// The rule that has its hash kept in `security.ima`.
    pub hash: Option<usize>,
    /// Under which hook's name the result of the appraisal is kept.
    pub appraise_slot: Slot,
    /// How it is to be done.
    pub flags: Flags,
    /// The PCR to extend, where a rule names one.
    pub pcr: Option<u32>,
    /// The template to measure with, where a rule names one.
    pub template: Option<TemplateName>,
    /// The hash algorithms accepted in the label, where a rule names some.
    pub allowed_algorithms: Option<AlgorithmSet>,
    /// The rule that decided each class, a don't-rule included.
    pub decided_by: DecidedBy,
}

/// The rule that decided each class, do or don't.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecidedBy([Option<usize>; 4]);

/// Where the result of an appraisal is kept for an inode: one place for each group of hooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Slot {
    /// FILE_CHECK, POST_SETATTR, and every rule without `func=`.
    #[default]
    File,
    /// MMAP_CHECK, MMAP_CHECK_REQPROT.
    Mmap,
    /// BPRM_CHECK.
    Bprm,
    /// CREDS_CHECK.
    Creds,
    /// Whatever the kernel reads for itself: modules, firmware, kexec, policies.
    Read,
}

/// How it is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// A signature is required; a digest does not do.
    pub signature_required: bool,
    /// The digest is the one of fs-verity.
    pub verity_required: bool,
    /// A signature appended to the file will do.
    pub modsig_allowed: bool,
    /// O_DIRECT is not refused.
    pub permit_directio: bool,
    /// The blacklist is consulted.
    pub check_blacklist: bool,
    /// Signatures on filesystems that cannot be trusted fail.
    pub fail_unverifiable: bool,
}

/// A policy, ready to decide. Deciding allocates nothing.
#[derive(Clone, Debug)]
pub struct CompiledPolicy {
    policy: Policy,
    labels: bool,
    fail_securely: bool,
    /// The classes that some rule does.
    done: Classes,
    setxattr_algorithms: Option<AlgorithmSet>,
    /// The rules, 64 at a time.
    blocks: Vec<Block>,
}

impl DecidedBy {
    /// The rule that decided `class`, do or don't; `None` where no rule matched.
    pub const fn class(&self, class: Class) -> Option<usize> {
        self.0[class as usize]
    }
}

impl Decision {
    /// Whether there is nothing to do.
    pub const fn is_nothing(&self) -> bool {
        self.measure.is_none() && self.appraise.is_none() && self.audit.is_none() && self.hash.is_none()
    }

    /// The rule that has `class` done.
    pub const fn does(&self, class: Class) -> Option<usize> {
        match class {
            Class::Measure => self.measure,
            Class::Appraise => self.appraise,
            Class::Audit => self.audit,
            Class::Hash => self.hash,
        }
    }
}

impl Flags {
    /// All that either has.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self {
            signature_required: self.signature_required || other.signature_required,
            verity_required: self.verity_required || other.verity_required,
            modsig_allowed: self.modsig_allowed || other.modsig_allowed,
            permit_directio: self.permit_directio || other.permit_directio,
            check_blacklist: self.check_blacklist || other.check_blacklist,
            fail_unverifiable: self.fail_unverifiable || other.fail_unverifiable,
        }
    }

    /// What is asked of the label.
    pub const fn requirement(self) -> Requirement {
        Requirement { signature: self.signature_required, verity: self.verity_required }
    }

    fn of(rule: &Rule) -> Self {
        Self {
            signature_required: rule.appraise_type.is_some(),
            verity_required: rule.verity,
            modsig_allowed: rule.appraise_type == Some(AppraiseType::ImasigModsig),
            permit_directio: rule.permit_directio,
            check_blacklist: rule.check_blacklist,
            fail_unverifiable: false,
        }
    }
}

impl Slot {
    /// The slot for a rule that names a hook or not, and the event's hook.
    fn of(rule: &Rule, func: Func) -> Self {
        if rule.func.is_none() {
            return Self::File;
        }
        match func {
            Func::FileCheck | Func::PostSetattr => Self::File,
            Func::MmapCheck | Func::MmapCheckReqprot => Self::Mmap,
            Func::BprmCheck => Self::Bprm,
            Func::CredsCheck => Self::Creds,
            Func::ModuleCheck
            | Func::FirmwareCheck
            | Func::KexecKernelCheck
            | Func::KexecInitramfsCheck
            | Func::PolicyCheck
            | Func::KexecCmdline
            | Func::KeyCheck
            | Func::CriticalData
            | Func::SetxattrCheck => Self::Read,
        }
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes(u8);

impl Classes {
    /// All classes.
    pub const ALL: Self = Self(0b1111);

    /// `class` alone.
    pub const fn only(class: Class) -> Self {
        Self(1 << class as u8)
    }

    /// Whether it holds `class`.
    pub const fn contains(self, class: Class) -> bool {
        self.0 & Self::only(class).0 != 0
    }

    /// What both hold.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What either holds.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it holds none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn without(self, class: Class) -> Self {
        Self(self.0 & !Self::only(class).0)
    }
}

impl CompiledPolicy {
    /// A policy for where nobody knows labels: rules that ask for one never match.
    pub fn new(policy: Policy) -> Self {
        Self::compile(policy, false)
    }

    /// A policy whose label conditions are answered by [`Subject::has_label`].
    pub fn with_labels(policy: Policy) -> Self {
        Self::compile(policy, true)
    }

    /// The same, refusing signatures on filesystems that cannot be trusted (`ima_policy=fail_securely`).
    #[must_use]
    pub fn fail_securely(self, fail_securely: bool) -> Self {
        Self { fail_securely, ..self }
    }

    fn compile(policy: Policy, labels: bool) -> Self {
        let rules = || policy.rules.iter().filter(|rule| rule.func != Some(Func::SetxattrCheck));
        let done = rules()
            .filter(|rule| rule.action.does())
            .fold(Classes::default(), |classes, rule| classes.union(Classes::only(rule.action.class())));
        let setxattr_algorithms = policy
            .rules
            .iter()
            .find(|rule| rule.func == Some(Func::SetxattrCheck))
            .and_then(|rule| rule.appraise_algos);
        let could_match = |rule: &Rule, func: Func| {
            let named = match func {
                Func::PostSetattr => true,
                // Its rules only name algorithms; no event reaches them.
                Func::SetxattrCheck => false,
                Func::KeyCheck | Func::CriticalData => rule.func == Some(func),
                _ => rule.func.is_none_or(|wanted| wanted == func),
            };
            named && (labels || rule.lsm.is_empty()) && done.contains(rule.action.class())
        };
        let blocks = policy.rules.chunks(Block::SIZE).enumerate();
        let blocks = blocks.map(|(number, rules)| Block::new(number * Block::SIZE, rules, could_match)).collect();
        Self { labels, fail_securely: false, done, setxattr_algorithms, blocks, policy }
    }

    /// The rules, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.policy.rules
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The classes that some rule does; for all others the policy is never walked.
    pub fn classes(&self) -> Classes {
        self.done
    }

    /// The hash algorithms that may be written to `security.ima`: those of the first SETXATTR_CHECK rule.
    pub fn setxattr_algorithms(&self) -> Option<AlgorithmSet> {
        self.setxattr_algorithms
    }

    /// Whether some event of that hook could have something done.
    pub fn wants(&self, func: Func) -> bool {
        self.blocks.iter().any(|block| block.wants(func))
    }

    /// Whether a rule for that hook asks for the access.
    pub fn needs_mask(&self, func: Func) -> bool {
        self.blocks.iter().any(|block| block.asking_mask(func) != 0)
    }

    /// Decides an event.
    pub fn decide(&self, event: &Event<'_>) -> Decision {
        self.decide_classes(event, self.done)
    }

    /// Decides only whether the file is to be appraised or its hash kept, as hooks that do nothing else ask.
    pub fn must_appraise(&self, event: &Event<'_>) -> Decision {
        self.decide_classes(event, Classes::only(Class::Appraise).union(Classes::only(Class::Hash)))
    }

    /// Decides an event for some classes; the others stay undecided, as if no rule matched.
    pub fn decide_classes(&self, event: &Event<'_>, classes: Classes) -> Decision {
        let mut decision = Decision::default();
        let mut open = classes.intersection(self.done);
        let facts = Facts::new(event);
        for block in &self.blocks {
            if open.is_empty() {
                break;
            }
            let mut remaining = block.remaining(event, open);
            while let Some(index) = remaining.first(&facts, &self.policy.rules) {
                let class = self.policy.rules[index].action.class();
                open = open.without(class);
                remaining.close(class);
                self.apply(&mut decision, index, event.func);
            }
        }
        decision
    }

    fn apply(&self, decision: &mut Decision, index: usize, func: Func) {
        let rule = &self.policy.rules[index];
        decision.decided_by.0[rule.action.class() as usize] = Some(index);
        decision.flags = decision.flags.union(self.flags(rule));
        match rule.action {
            Action::Measure => decision.measure = Some(index),
            Action::Audit => decision.audit = Some(index),
            Action::Hash => decision.hash = Some(index),
            Action::Appraise => {
                decision.appraise = Some(index);
                decision.appraise_slot = Slot::of(rule, func);
                decision.hash = None;
                decision.allowed_algorithms = rule.appraise_algos.or(decision.allowed_algorithms);
            }
            Action::DontMeasure | Action::DontAppraise | Action::DontAudit | Action::DontHash => {}
        }
        decision.pcr = rule.pcr.or(decision.pcr);
        decision.template = rule.template.or(decision.template);
    }

    fn flags(&self, rule: &Rule) -> Flags {
        let fail_unverifiable = self.fail_securely && rule.action == Action::Appraise;
        Flags { fail_unverifiable, ..Flags::of(rule) }
    }
}

#[cfg(test)]
mod tests;
