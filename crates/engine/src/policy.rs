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
//! Source: `ima_match_policy`, `ima_match_rules`, security/integrity/ima/ima_policy.c.

use imara_format::policy::{
    Action, AlgorithmSet, AppraiseType, Class, Func, IdCondition, LsmCondition, Policy, Rule, TemplateName,
};
use std::cell::OnceCell;
use std::fmt;

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
    /// For each hook, the rules that it could match, in their order.
    by_func: Vec<Vec<Candidate>>,
}

/// A rule that an event of one hook could match.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    rule: usize,
    class: Class,
    /// What it asks of events of this hook.
    conditions: Conditions,
}

/// A set of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Conditions(u16);

impl Conditions {
    /// Those on the file.
    const FILE: Self = Self(
        1 << Condition::Fsmagic as u16
            | 1 << Condition::Fsname as u16
            | 1 << Condition::FsSubtype as u16
            | 1 << Condition::Fsuuid as u16
            | 1 << Condition::Fowner as u16
            | 1 << Condition::Fgroup as u16,
    );
    /// That on the access.
    const MASK: Self = Self(1 << Condition::Mask as u16);

    /// What `rule` asks of an event of the hook `func`.
    fn of(rule: &Rule, func: Func) -> Self {
        let data = func.is_data();
        let asked = |condition: &Condition| match condition {
            // A candidate is for the hook.
            Condition::Func => false,
            Condition::Mask => rule.mask.is_some() && func != Func::PostSetattr && !data,
            Condition::Fsmagic => rule.fsmagic.is_some() && !data,
            Condition::Fsname => rule.fsname.is_some() && !data,
            Condition::FsSubtype => rule.fs_subtype.is_some() && !data,
            Condition::Fsuuid => rule.fsuuid.is_some() && !data,
            Condition::Fowner => rule.fowner.is_some() && !data,
            Condition::Fgroup => rule.fgroup.is_some() && !data,
            Condition::Uid => rule.uid.is_some(),
            Condition::Euid => rule.euid.is_some() && !data,
            Condition::Gid => rule.gid.is_some() && !data,
            Condition::Egid => rule.egid.is_some() && !data,
            Condition::Label => !rule.lsm.is_empty() && !data,
            Condition::Data => data && !data_list(rule, func).is_empty(),
        };
        let asked = Condition::ALL.iter().filter(|condition| asked(condition));
        Self(asked.fold(0, |bits, condition| bits | 1 << *condition as u16))
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn iter(self) -> impl Iterator<Item = Condition> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            let condition = Condition::ALL.get(bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some(*condition)
        })
    }
}

/// What anybody could make a policy decide for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Possible {
    /// Whether every subject gets the same decision.
    pub uniform: bool,
    /// The do-rules that decide their class for some subject, in their order.
    pub outcomes: Vec<Outcome>,
    /// All flags that some subject could get.
    pub flags: Flags,
}

/// A rule that has something done, for some subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The rule.
    pub rule: usize,
    /// What it has done.
    pub class: Class,
    /// The PCR, for [`Class::Measure`].
    pub pcr: Option<u32>,
    /// The template, for [`Class::Measure`].
    pub template: Option<TemplateName>,
    /// Where the result is kept, for [`Class::Appraise`].
    pub slot: Slot,
    /// The flags of this rule alone; those of other classes' rules may come to it.
    pub flags: Flags,
    /// The hash algorithms accepted, for [`Class::Appraise`].
    pub allowed_algorithms: Option<AlgorithmSet>,
}

/// What became of one rule when an event was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The rule.
    pub rule: usize,
    /// What became of it.
    pub why: Why,
}

/// Why a rule decided its class, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It matched first, and decided its class.
    Decides,
    /// An earlier rule had decided its class.
    Decided {
        /// The earlier rule.
        by: usize,
    },
    /// No rule of the policy does what its class is about, so the class is never looked at.
    NothingToDo,
    /// A condition did not hold.
    Fails {
        /// The condition.
        condition: Condition,
        /// What the event had instead.
        found: String,
    },
}

macro_rules! conditions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// A condition of a rule, in the order in which they are judged: what costs nothing to know comes first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Condition { $($(#[$doc])* $variant,)* }

        impl Condition {
            const ALL: &[Self] = &[$(Self::$variant,)*];
        }

        impl fmt::Display for Condition {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }
    };
}

conditions! {
    /// `func=`.
    Func = "func",
    /// `mask=`.
    Mask = "mask",
    /// `fsmagic=`.
    Fsmagic = "fsmagic",
    /// `fsname=`.
    Fsname = "fsname",
    /// `fs_subtype=`.
    FsSubtype = "fs_subtype",
    /// `fsuuid=`.
    Fsuuid = "fsuuid",
    /// `fowner=`.
    Fowner = "fowner",
    /// `fgroup=`.
    Fgroup = "fgroup",
    /// `uid=`.
    Uid = "uid",
    /// `euid=`.
    Euid = "euid",
    /// `gid=`.
    Gid = "gid",
    /// `egid=`.
    Egid = "egid",
    /// `obj_user=` … `subj_type=`.
    Label = "label of the security module",
    /// `keyrings=`, or `label=` of CRITICAL_DATA.
    Data = "keyrings or label",
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

    const fn without(self, class: Class) -> Self {
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
        let by_func = Func::ALL
            .iter()
            .map(|func| {
                let rules = policy.rules.iter().enumerate().filter(|(_, rule)| could_match(rule, *func));
                let candidate = |(index, rule): (usize, &Rule)| Candidate {
                    rule: index,
                    class: rule.action.class(),
                    conditions: Conditions::of(rule, *func),
                };
                rules.map(candidate).collect()
            })
            .collect();
        Self { labels, fail_securely: false, done, setxattr_algorithms, by_func, policy }
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
        self.candidates(func).any(|(_, rule)| rule.action.does())
    }

    /// Whether a rule for that hook asks for the access.
    pub fn needs_mask(&self, func: Func) -> bool {
        self.candidates(func).any(|(candidate, _)| !candidate.conditions.and(Conditions::MASK).is_empty())
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
        for (candidate, rule) in self.candidates(event.func) {
            if open.is_empty() {
                break;
            }
            if open.contains(candidate.class) && facts.failing(rule, candidate.conditions).is_none() {
                open = open.without(candidate.class);
                self.apply(&mut decision, candidate.rule, rule, event.func);
            }
        }
        decision
    }

    fn apply(&self, decision: &mut Decision, index: usize, rule: &Rule, func: Func) {
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

    /// What became of each rule, for people.
    pub fn explain(&self, event: &Event<'_>) -> Vec<Explanation> {
        let decision = self.decide(event);
        let facts = Facts::new(event);
        let why = |index: usize, rule: &Rule| {
            let class = rule.action.class();
            if !self.done.contains(class) {
                return Why::NothingToDo;
            }
            if let Some(by) = decision.decided_by.class(class) {
                if by == index {
                    return Why::Decides;
                }
                if by < index {
                    return Why::Decided { by };
                }
            }
            let condition = match facts.wrong_func(rule) {
                true => Condition::Func,
                false if !self.labels && !rule.lsm.is_empty() && !event.func.is_data() => Condition::Label,
                // Every rule before the deciding one failed, and so did all of them where none decided.
                false => facts.failing(rule, Conditions::of(rule, event.func)).unwrap_or(Condition::Func),
            };
            Why::Fails { condition, found: facts.found(condition) }
        };
        let rules = self.policy.rules.iter().enumerate();
        rules.map(|(rule, text)| Explanation { rule, why: why(rule, text) }).collect()
    }

    /// What any subject with any access could still make this policy decide for this file. If that is done, it is done
    /// for everybody.
    ///
    /// Conditions on the file are judged; those on the subject, the access, a label or data may hold or not.
    pub fn possible(&self, func: Func, file: &FileFacts<'_>) -> Possible {
        self.possible_with(func, None, file)
    }

    /// The same, for one access where it is known.
    pub fn possible_with(&self, func: Func, mask: Option<u8>, file: &FileFacts<'_>) -> Possible {
        let mut possible = Possible { uniform: true, outcomes: Vec::new(), flags: Flags::default() };
        let mut open = self.done;
        for (candidate, rule) in self.candidates(func) {
            let Candidate { rule: index, class, conditions } = *candidate;
            let on_file = conditions.and(Conditions::FILE);
            if !open.contains(class) || !on_file.iter().all(|condition| file_holds(condition, rule, file)) {
                continue;
            }
            let mut unsure = conditions.without(Conditions::FILE);
            if let (Some(wanted), Some(mask)) = (rule.mask, mask)
                && !unsure.and(Conditions::MASK).is_empty()
            {
                if !wanted.holds(mask) {
                    continue;
                }
                unsure = unsure.without(Conditions::MASK);
            }
            if unsure.is_empty() {
                open = open.without(class);
            } else {
                possible.uniform = false;
            }
            let flags = self.flags(rule);
            possible.flags = possible.flags.union(flags);
            if rule.action.does() {
                possible.outcomes.push(Outcome {
                    rule: index,
                    class,
                    pcr: rule.pcr,
                    template: rule.template,
                    slot: if class == Class::Appraise { Slot::of(rule, func) } else { Slot::File },
                    flags,
                    allowed_algorithms: rule.appraise_algos,
                });
            }
        }
        possible
    }

    fn candidates(&self, func: Func) -> impl Iterator<Item = (&Candidate, &Rule)> {
        self.by_func[func as usize].iter().map(|candidate| (candidate, &self.policy.rules[candidate.rule]))
    }
}

impl Possible {
    /// Whether nobody can have anything done.
    pub fn is_nothing(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// The outcomes of one class.
    pub fn class(&self, class: Class) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(move |outcome| outcome.class == class)
    }
}

/// An event whose subject has been asked each thing once at most.
struct Facts<'a> {
    event: &'a Event<'a>,
    uid: OnceCell<u32>,
    gid: OnceCell<u32>,
    /// The users that `euid` conditions are for.
    euids: OnceCell<([u32; 3], usize)>,
    egids: OnceCell<([u32; 3], usize)>,
}

impl<'a> Facts<'a> {
    fn new(event: &'a Event<'a>) -> Self {
        let (uid, gid, euids, egids) = (OnceCell::new(), OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { event, uid, gid, euids, egids }
    }

    /// Whether the rule is for another hook.
    fn wrong_func(&self, rule: &Rule) -> bool {
        let func = self.event.func;
        match rule.func {
            _ if func == Func::PostSetattr => false,
            Some(wanted) => wanted != func,
            None => func.is_data(),
        }
    }

    /// The first of a rule's conditions that does not hold; the rule is for this hook.
    fn failing(&self, rule: &Rule, conditions: Conditions) -> Option<Condition> {
        conditions.iter().find(|condition| !self.holds(*condition, rule))
    }

    fn holds(&self, condition: Condition, rule: &Rule) -> bool {
        let event = self.event;
        let holds = |wanted: Option<IdCondition>, id: u32| wanted.is_none_or(|wanted| wanted.holds(id));
        let any = |wanted: Option<IdCondition>, (ids, count): ([u32; 3], usize)| {
            wanted.is_none_or(|wanted| ids.iter().take(count).any(|id| wanted.holds(*id)))
        };
        match condition {
            Condition::Func => !self.wrong_func(rule),
            Condition::Mask => rule.mask.is_none_or(|mask| mask.holds(event.mask)),
            Condition::Fsmagic
            | Condition::Fsname
            | Condition::FsSubtype
            | Condition::Fsuuid
            | Condition::Fowner
            | Condition::Fgroup => file_holds(condition, rule, event.file),
            Condition::Uid => holds(rule.uid, self.uid()),
            Condition::Euid => any(rule.euid, self.euids()),
            Condition::Gid => holds(rule.gid, self.gid()),
            Condition::Egid => any(rule.egid, self.egids()),
            Condition::Label => rule.lsm.iter().all(|label| event.subject.has_label(label)),
            Condition::Data => {
                event.data.is_some_and(|data| data_list(rule, event.func).iter().any(|item| item == data))
            }
        }
    }

    fn uid(&self) -> u32 {
        *self.uid.get_or_init(|| self.event.subject.uid())
    }

    fn gid(&self) -> u32 {
        *self.gid.get_or_init(|| self.event.subject.gid())
    }

    /// With CAP_SETUID all three, else the effective user alone.
    fn euids(&self) -> ([u32; 3], usize) {
        let subject = self.event.subject;
        *self.euids.get_or_init(|| (subject.euids(), if subject.can_setuid() { 3 } else { 1 }))
    }

    fn egids(&self) -> ([u32; 3], usize) {
        let subject = self.event.subject;
        *self.egids.get_or_init(|| (subject.egids(), if subject.can_setgid() { 3 } else { 1 }))
    }

    /// What the event has where a rule asked for something else.
    fn found(&self, condition: Condition) -> String {
        let file = self.event.file;
        let ids = |(ids, count): ([u32; 3], usize)| {
            let ids: Vec<_> = ids.iter().take(count).map(u32::to_string).collect();
            ids.join(" ")
        };
        match condition {
            Condition::Func => self.event.func.to_string(),
            Condition::Mask => mask_text(self.event.mask),
            Condition::Fsmagic => format!("{:#x}", file.fsmagic),
            Condition::Fsname => file.fsname.to_owned(),
            Condition::FsSubtype => file.fs_subtype.to_owned(),
            Condition::Fsuuid => imara_format::hash::to_hex(&file.fsuuid.unwrap_or_default()),
            Condition::Uid => self.uid().to_string(),
            Condition::Euid => ids(self.euids()),
            Condition::Gid => self.gid().to_string(),
            Condition::Egid => ids(self.egids()),
            Condition::Fowner => file.owner.to_string(),
            Condition::Fgroup => file.group.to_string(),
            Condition::Label => "not known, or another".to_owned(),
            Condition::Data => self.event.data.unwrap_or_default().to_owned(),
        }
    }
}

/// Whether a condition on the file holds; conditions on anything else do.
fn file_holds(condition: Condition, rule: &Rule, file: &FileFacts<'_>) -> bool {
    match condition {
        Condition::Fsmagic => rule.fsmagic.is_none_or(|magic| magic == file.fsmagic),
        Condition::Fsname => rule.fsname.as_deref().is_none_or(|name| name == file.fsname),
        Condition::FsSubtype => rule.fs_subtype.as_deref().is_none_or(|name| name == file.fs_subtype),
        Condition::Fsuuid => rule.fsuuid.is_none_or(|uuid| uuid == file.fsuuid.unwrap_or_default()),
        Condition::Fowner => rule.fowner.is_none_or(|owner| owner.holds(file.owner)),
        Condition::Fgroup => rule.fgroup.is_none_or(|group| group.holds(file.group)),
        Condition::Func
        | Condition::Mask
        | Condition::Uid
        | Condition::Euid
        | Condition::Gid
        | Condition::Egid
        | Condition::Label
        | Condition::Data => true,
    }
}

fn data_list(rule: &Rule, func: Func) -> &[String] {
    if func == Func::KeyCheck { &rule.keyrings } else { &rule.label }
}

fn mask_text(mask: u8) -> String {
    use imara_format::policy::Mask;
    let names: Vec<_> = Mask::ALL.iter().filter(|bit| mask & bit.bits() != 0).map(|bit| bit.name()).collect();
    if names.is_empty() { format!("{mask:#x}") } else { names.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::hash::HashAlgorithm;
    use imara_format::policy::{KernelVersion, Lsm, LsmLabels, Target, builtin};
    use proptest::prelude::*;
    use std::cell::Cell;

    const EXT4: FileFacts<'_> =
        FileFacts { owner: 0, group: 0, fsmagic: 0xef53, fsname: "ext4", fs_subtype: "", fsuuid: Some([7; 16]) };

    #[derive(Clone, Debug, Default)]
    struct Task {
        uids: [u32; 3],
        gids: [u32; 3],
        setuid: bool,
        setgid: bool,
        label: Option<String>,
        asked: Cell<usize>,
    }

    impl Task {
        fn told<T>(&self, answer: T) -> T {
            self.asked.set(self.asked.get() + 1);
            answer
        }
    }

    impl Subject for Task {
        fn uid(&self) -> u32 {
            self.told(self.uids[2])
        }
        fn gid(&self) -> u32 {
            self.told(self.gids[2])
        }
        fn euids(&self) -> [u32; 3] {
            self.told(self.uids)
        }
        fn egids(&self) -> [u32; 3] {
            self.told(self.gids)
        }
        fn can_setuid(&self) -> bool {
            self.setuid
        }
        fn can_setgid(&self) -> bool {
            self.setgid
        }
        fn has_label(&self, condition: &LsmCondition) -> bool {
            self.label.as_ref() == Some(&condition.value)
        }
    }

    fn target() -> Target {
        Target { lsm: Lsm::Selinux, lsm_labels: LsmLabels::Known, ..Target::guard() }
    }

    fn policy(rules: &str) -> CompiledPolicy {
        let text = rules.replace(';', "\n");
        CompiledPolicy::new(Policy::parse(text.as_bytes(), &target()).unwrap())
    }

    fn decide(rules: &str, func: Func, mask: u8) -> Decision {
        policy(rules).decide(&Event { func, mask, file: &EXT4, subject: &Task::default(), data: None })
    }

    /// The decision as the kernel's word: do-bits, the appraisal's slot, flags.
    fn word(decision: &Decision) -> u32 {
        let slot = match decision.appraise_slot {
            Slot::File => 0x1000,
            Slot::Mmap => 0x4000,
            Slot::Bprm => 0x1_0000,
            Slot::Creds => 0x10_0000,
            Slot::Read => 0x4_0000,
        };
        let flags = decision.flags;
        [
            (decision.measure.is_some(), 1),
            (decision.appraise.is_some(), 4 | slot),
            (decision.audit.is_some(), 0x40),
            (decision.hash.is_some(), 0x100),
            (flags.signature_required, 0x0100_0000),
            (flags.permit_directio, 0x0200_0000),
            (flags.fail_unverifiable, 0x1000_0000),
            (flags.modsig_allowed, 0x2000_0000),
            (flags.verity_required, 0x8000_0000),
        ]
        .iter()
        .fold(0, |word, (set, bits)| if *set { word | bits } else { word })
    }

    #[test]
    fn results_are_the_kernels() {
        use Func::*;
        for (rules, func, mask, expected, pcr) in [
            ("hash func=FILE_CHECK ; appraise fowner=0", FileCheck, 4, 0x1004, None),
            ("appraise fowner=0 ; hash func=FILE_CHECK", FileCheck, 4, 0x1104, None),
            ("dont_measure fsname=ext4 ; appraise ; measure pcr=4", BprmCheck, 1, 0x1004, None),
            ("measure func=FILE_CHECK mask=MAY_READ ; audit", FileCheck, 6, 0x40, None),
            ("measure func=FILE_CHECK mask=^MAY_READ pcr=4 ; audit", FileCheck, 6, 0x41, Some(4)),
            (
                "appraise func=BPRM_CHECK appraise_algos=sha256;appraise appraise_algos=sha512",
                BprmCheck,
                1,
                0x1_0004,
                None,
            ),
            ("measure", KeyCheck, 0, 0, None),
            ("measure", CriticalData, 0, 0, None),
            ("measure", KexecCmdline, 0, 1, None),
            ("appraise func=BPRM_CHECK mask=MAY_EXEC uid=0", PostSetattr, 0x10, 0x1004, None),
            ("appraise func=BPRM_CHECK", BprmCheck, 1, 0x1_0004, None),
            ("appraise func=MMAP_CHECK", MmapCheck, 1, 0x4004, None),
            ("appraise func=MMAP_CHECK_REQPROT", MmapCheckReqprot, 1, 0x4004, None),
            ("appraise func=MMAP_CHECK", MmapCheckReqprot, 1, 0, None),
            ("appraise func=CREDS_CHECK", CredsCheck, 1, 0x10_0004, None),
            ("appraise func=MODULE_CHECK", ModuleCheck, 4, 0x4_0004, None),
            ("appraise", ModuleCheck, 4, 0x1004, None),
            ("appraise appraise_type=imasig", FileCheck, 4, 0x0100_1004, None),
            ("appraise digest_type=verity appraise_type=sigv3", FileCheck, 4, 0x8100_1004, None),
            ("appraise func=MODULE_CHECK appraise_type=imasig|modsig", ModuleCheck, 4, 0x2104_0004, None),
            // A don't-rule adds its flags only where its class is looked at.
            ("dont_appraise permit_directio ; measure", FileCheck, 4, 1, None),
            ("dont_appraise permit_directio ; measure ; appraise", FileCheck, 4, 0x0200_0001, None),
            ("dont_hash;hash;dont_audit;audit;measure pcr=9;dont_measure;measure pcr=8", FileCheck, 4, 1, Some(9)),
            // A rule for writing the label is no reason to appraise.
            ("appraise func=SETXATTR_CHECK appraise_algos=sha256", FileCheck, 4, 0, None),
            ("", FileCheck, 4, 0, None),
        ] {
            let decision = decide(rules, func, mask);
            assert_eq!(word(&decision), expected, "{rules}: {decision:?}");
            assert_eq!(decision.pcr, pcr, "{rules}");
        }
        let algorithms =
            decide("appraise func=BPRM_CHECK appraise_algos=sha256;appraise appraise_algos=sha512", BprmCheck, 1);
        assert_eq!(algorithms.allowed_algorithms, Some(AlgorithmSet::EMPTY.with(HashAlgorithm::Sha256)));
        let template = decide("measure template=ima-sig;audit", BprmCheck, 1);
        assert_eq!(template.template, Some(TemplateName::ImaSig));
    }

    #[test]
    fn the_rule_that_decided_is_named_for_each_class() {
        let decision = decide("hash ; dont_measure fsname=ext4 ; appraise ; measure", Func::BprmCheck, 1);
        assert_eq!((decision.measure, decision.appraise, decision.hash), (None, Some(2), None));
        let by = Class::ALL.iter().map(|class| decision.decided_by.class(*class)).collect::<Vec<_>>();
        assert_eq!(by, [Some(1), Some(2), None, Some(0)]);
        assert!(!decision.is_nothing());
    }

    #[test]
    fn each_condition_holds_or_not() {
        let task = Task { uids: [10, 20, 30], gids: [40, 50, 60], ..Task::default() };
        let able = Task { setuid: true, setgid: true, ..task.clone() };
        let file = FileFacts { owner: 5, group: 6, fs_subtype: "sshfs", fsuuid: None, ..EXT4 };
        for (rule, plain, privileged) in [
            ("measure uid=30", true, true),
            ("measure uid=10", false, false),
            ("measure uid>29", true, true),
            ("measure uid<30", false, false),
            ("measure euid=10", true, true),
            ("measure euid=20", false, true),
            ("measure euid=30", false, true),
            ("measure euid>30", false, false),
            ("measure gid=60", true, true),
            ("measure egid=40", true, true),
            ("measure egid<41", true, true),
            ("measure egid=50", false, true),
            ("measure fowner=5", true, true),
            ("measure fowner>5", false, false),
            ("measure fgroup<7", true, true),
            ("measure fsmagic=ef53", true, true),
            ("measure fsmagic=ef54", false, false),
            ("measure fsname=ext4", true, true),
            ("measure fsname=ext", false, false),
            ("measure fs_subtype=sshfs", true, true),
            ("measure fsuuid=00000000-0000-0000-0000-000000000000", true, true),
            ("measure fsuuid=10000000-0000-0000-0000-000000000000", false, false),
            ("measure mask=MAY_READ", true, true),
            ("measure mask=^MAY_WRITE", false, false),
            ("measure obj_type=t", false, false),
        ] {
            for (task, expected) in [(&task, plain), (&able, privileged)] {
                let event = Event { func: Func::FileCheck, mask: 4, file: &file, subject: task, data: None };
                assert_eq!(policy(rule).decide(&event).measure.is_some(), expected, "{rule}");
            }
        }
    }

    #[test]
    fn keys_and_critical_data_see_their_own_rules_user_and_list() {
        let task = Task { uids: [0, 0, 7], ..Task::default() };
        for (rule, func, data, expected) in [
            ("measure func=KEY_CHECK", Func::KeyCheck, None, true),
            ("measure func=KEY_CHECK", Func::CriticalData, None, false),
            ("measure func=KEY_CHECK keyrings=.ima|.evm", Func::KeyCheck, Some(".evm"), true),
            ("measure func=KEY_CHECK keyrings=.ima|.evm", Func::KeyCheck, Some(".ev"), false),
            ("measure func=KEY_CHECK keyrings=.ima", Func::KeyCheck, None, false),
            ("measure func=KEY_CHECK gid=9", Func::KeyCheck, None, true),
            ("measure func=KEY_CHECK uid=7", Func::KeyCheck, None, true),
            ("measure func=KEY_CHECK uid=8", Func::KeyCheck, None, false),
            ("measure func=CRITICAL_DATA label=a|b", Func::CriticalData, Some("b"), true),
            ("measure func=CRITICAL_DATA label=a|b", Func::CriticalData, Some("c"), false),
        ] {
            let event = Event { func, mask: 0, file: &EXT4, subject: &task, data };
            assert_eq!(policy(rule).decide(&event).measure.is_some(), expected, "{rule}");
        }
    }

    #[test]
    fn labels_are_asked_only_where_somebody_knows_them() {
        let rules = Policy::parse(b"measure obj_type=t", &target()).unwrap();
        let task = Task { label: Some("t".into()), ..Task::default() };
        let event = Event { func: Func::FileCheck, mask: 4, file: &EXT4, subject: &task, data: None };
        let (with, without) = (CompiledPolicy::with_labels(rules.clone()), CompiledPolicy::new(rules));
        assert_eq!((with.decide(&event).measure, without.decide(&event).measure), (Some(0), None));
        assert_eq!((with.wants(Func::FileCheck), without.wants(Func::FileCheck)), (true, false));
        assert!(!with.possible(Func::FileCheck, &EXT4).uniform && without.possible(Func::FileCheck, &EXT4).uniform);
    }

    #[test]
    fn a_subject_is_asked_only_when_a_rule_needs_it_and_then_once() {
        for (rules, asked) in [
            ("measure func=BPRM_CHECK", 0),
            ("measure fowner=1 uid=0;measure", 0),
            ("measure uid=9;measure uid=8;measure uid=7;measure", 1),
            ("measure euid=9;appraise euid=8;audit uid=1;measure", 2),
        ] {
            let task = Task::default();
            policy(rules).decide(&Event { func: Func::BprmCheck, mask: 1, file: &EXT4, subject: &task, data: None });
            assert_eq!(task.asked.get(), asked, "{rules}");
        }
    }

    #[test]
    fn a_policy_knows_what_it_wants_and_what_it_must_be_told() {
        let tcb = CompiledPolicy::new(builtin("tcb").unwrap());
        assert!(tcb.wants(Func::BprmCheck) && tcb.wants(Func::FileCheck) && !tcb.wants(Func::CredsCheck));
        assert!(tcb.needs_mask(Func::FileCheck) && !tcb.needs_mask(Func::ModuleCheck));
        assert_eq!(tcb.classes(), Classes::only(Class::Measure));
        let both = policy(
            "appraise func=SETXATTR_CHECK appraise_algos=sha256;appraise func=SETXATTR_CHECK appraise_algos=sha1",
        );
        assert_eq!(both.setxattr_algorithms(), Some(AlgorithmSet::EMPTY.with(HashAlgorithm::Sha256)));
        assert!(both.classes().is_empty());
        let none = CompiledPolicy::new(builtin("fail_securely").unwrap());
        assert!(Func::ALL.iter().all(|func| !none.wants(*func)));
    }

    #[test]
    fn failing_securely_marks_every_appraisal() {
        let event = Event { func: Func::FileCheck, mask: 4, file: &EXT4, subject: &Task::default(), data: None };
        assert!(policy("appraise").fail_securely(true).decide(&event).flags.fail_unverifiable);
        assert!(!policy("measure;appraise func=BPRM_CHECK").fail_securely(true).decide(&event).flags.fail_unverifiable);
        assert!(!policy("appraise").decide(&event).flags.fail_unverifiable);
    }

    #[test]
    fn hooks_that_only_appraise_get_nothing_else() {
        let event = Event { func: Func::PostSetattr, mask: 0x10, file: &EXT4, subject: &Task::default(), data: None };
        let decision = policy("measure;audit;hash;appraise").must_appraise(&event);
        assert_eq!((decision.measure, decision.audit, decision.appraise), (None, None, Some(3)));
    }

    #[test]
    fn every_rule_is_explained() {
        let rules = policy("measure uid=5;dont_measure fsname=xfs;measure func=KEY_CHECK;measure;measure;dont_hash");
        let event = Event { func: Func::FileCheck, mask: 4, file: &EXT4, subject: &Task::default(), data: None };
        let why: Vec<_> = rules.explain(&event).into_iter().map(|explanation| explanation.why).collect();
        let fails = |condition, found: &str| Why::Fails { condition, found: found.to_owned() };
        assert_eq!(
            why[..3],
            [fails(Condition::Uid, "0"), fails(Condition::Fsname, "ext4"), fails(Condition::Func, "FILE_CHECK")]
        );
        assert_eq!(why[3..], [Why::Decides, Why::Decided { by: 3 }, Why::NothingToDo]);
    }

    #[test]
    fn what_is_possible_ends_at_the_first_rule_that_everybody_matches() {
        for (rules, mask, uniform, outcomes) in [
            ("measure func=FILE_CHECK mask=MAY_READ pcr=4;measure pcr=5;measure pcr=6", None, false, vec![0, 1]),
            ("measure func=FILE_CHECK mask=MAY_READ pcr=4;measure pcr=5", Some(4), true, vec![0]),
            ("measure func=FILE_CHECK mask=MAY_READ pcr=4;measure pcr=5", Some(2), true, vec![1]),
            ("dont_measure fsname=ext4;measure uid=0", None, true, vec![]),
            ("dont_measure fsname=xfs;measure uid=0;appraise", None, false, vec![1, 2]),
            ("dont_measure uid=0;measure", None, false, vec![1]),
            ("measure func=BPRM_CHECK", None, true, vec![]),
        ] {
            let possible = policy(rules).possible_with(Func::FileCheck, mask, &EXT4);
            assert_eq!(possible.uniform, uniform, "{rules}");
            assert_eq!(possible.outcomes.iter().map(|outcome| outcome.rule).collect::<Vec<_>>(), outcomes, "{rules}");
        }
    }

    fn rules() -> impl Strategy<Value = String> {
        let condition = "(uid|euid|gid|egid|fowner)[=<>][0-2]|mask=\\^?MAY_(READ|EXEC)|fsname=(ext4|xfs)|pcr=[3-5]|\
             template=ima-(ng|sig)|appraise_algos=sha(1|256)|appraise_type=imasig|permit_directio|func=(FILE_CHECK|\
             BPRM_CHECK|KEY_CHECK)|keyrings=[ab]|obj_type=[ab]|digest_type=verity";
        let action = "(dont_)?(measure|appraise|audit|hash)";
        let rule = (action, proptest::collection::vec(condition, 0..3))
            .prop_map(|(action, rest)| format!("{action} {}", rest.join(" ")));
        proptest::collection::vec(rule, 0..12).prop_map(|rules| {
            let good = |rule: &String| Policy::parse(rule.as_bytes(), &target()).is_ok();
            rules.into_iter().filter(good).collect::<Vec<_>>().join("\n")
        })
    }

    fn task() -> impl Strategy<Value = Task> {
        (any::<[bool; 2]>(), "[ab]?", proptest::array::uniform6(0u32..3)).prop_map(|([setuid, setgid], label, ids)| {
            Task {
                uids: [ids[0], ids[1], ids[2]],
                gids: [ids[3], ids[4], ids[5]],
                setuid,
                setgid,
                label: Some(label),
                asked: Cell::new(0),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn whatever_is_decided_was_possible(
            rules in rules(),
            tasks in proptest::collection::vec((task(), 0u8..16, 0usize..3), 8),
            func in proptest::sample::select(&[Func::FileCheck, Func::BprmCheck, Func::KeyCheck, Func::PostSetattr][..]),
            labels in any::<bool>(),
            owner in 0u32..3,
        ) {
            let parsed = Policy::parse(rules.as_bytes(), &target()).unwrap();
            let policy = if labels { CompiledPolicy::with_labels(parsed) } else { CompiledPolicy::new(parsed) };
            let file = FileFacts { owner, ..EXT4 };
            let possible = policy.possible(func, &file);
            let mut first = None;
            for (task, mask, data) in &tasks {
                let data = [None, Some("a"), Some("b")][*data];
                let event = Event { func, mask: *mask, file: &file, subject: task, data };
                let decision = policy.decide(&event);
                let known = policy.possible_with(func, Some(*mask), &file);
                for possible in [&possible, &known] {
                    for class in Class::ALL {
                        let Some(rule) = decision.does(*class) else { continue };
                        let outcome = possible.class(*class).find(|outcome| outcome.rule == rule);
                        prop_assert!(outcome.is_some(), "{:?} by rule {}", class, rule);
                        let outcome = outcome.unwrap();
                        match class {
                            Class::Measure => {
                                prop_assert_eq!((decision.pcr, decision.template), (outcome.pcr, outcome.template));
                            }
                            Class::Appraise => {
                                let found = (decision.appraise_slot, decision.allowed_algorithms);
                                prop_assert_eq!(found, (outcome.slot, outcome.allowed_algorithms));
                            }
                            Class::Audit | Class::Hash => {}
                        }
                    }
                    prop_assert_eq!(possible.flags.union(decision.flags), possible.flags);
                }
                prop_assert!(!possible.uniform || *first.get_or_insert(decision) == decision);
                prop_assert!(policy.wants(func) || decision.is_nothing());
                let explained = policy.explain(&event);
                for class in Class::ALL {
                    let decides = explained.iter().find(|explanation| {
                        explanation.why == Why::Decides && policy.rules()[explanation.rule].action.class() == *class
                    });
                    prop_assert_eq!(decides.map(|explanation| explanation.rule), decision.decided_by.class(*class));
                }
            }
        }
    }

    #[test]
    fn every_kernels_policy_compiles() {
        for kernel in KernelVersion::ALL {
            let tcb = builtin("appraise_tcb").unwrap().to_string();
            let policy = CompiledPolicy::new(Policy::parse(tcb.as_bytes(), &Target::kernel(*kernel)).unwrap());
            assert!(policy.wants(Func::BprmCheck), "{kernel}");
        }
    }
}
