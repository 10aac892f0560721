//! What is likely wrong with a policy that is valid: rules without effect, rules with more effect than is wanted, and
//! rules that a machine cannot follow.
//!
//! A warning is certain: it is searched for among every event that a hook could make ([`crate::policy_space`]). Where a
//! search would take too long there is no warning.

use crate::policy::{CompiledPolicy, Condition};
use crate::policy_space::{Holds, LOOKUPS, Matcher, Region, Space, magics_of};
use imara_format::policy::{
    AlgorithmSet, AppraiseType, Class, Func, IdCondition, Lsm, Mask, MaskCondition, Policy, Rule, Target, lines,
};
use std::cell::Cell;
use std::collections::BTreeSet;

/// Something that is likely wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What kind of thing.
    pub kind: WarningKind,
    /// The rule, by its place; `None` where the whole policy or its text is meant.
    pub rule: Option<usize>,
    /// The line, from 1; 0 where no line is meant.
    pub line: usize,
    /// What is wrong, and why.
    pub message: String,
    /// What to do; lines to write each stand on a line.
    pub hint: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What kind of thing is likely wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum WarningKind { $($(#[$doc])* $variant,)* }

        impl WarningKind {
            /// The name for scripts.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
        }
    };
}

kinds! {
    /// No event satisfies the rule.
    NeverMatches = "never-matches",
    /// The rule matches only when attributes change, where neither `func=` nor `mask=` is looked at.
    OnlyAttributeChanges = "only-attribute-changes",
    /// Earlier rules decide all that it matches.
    Shadowed = "shadowed",
    /// A `dont_…` rule with nothing after it that it could except from.
    ExceptsNothing = "excepts-nothing",
    /// Files that the kernel makes up are measured or appraised.
    PseudoFileSystem = "pseudo-file-system",
    /// A signature is required, and there is no key.
    MissingKey = "missing-key",
    /// The kernel was built without what the rule needs.
    Unsupported = "unsupported",
    /// A condition that is taken and never looked at.
    IgnoredCondition = "ignored-condition",
    /// No rule has an effect.
    NothingInForce = "nothing-in-force",
    /// The text's last line lacks its newline.
    NoLastNewline = "no-last-newline",
    /// A line is longer than what one write takes.
    LongLine = "long-line",
}

/// What is known about who is to follow the policy.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The security module that answers conditions on labels.
    pub lsm: Lsm,
    /// How many keys signatures are verified with; `None` where that was not asked.
    pub keys: Option<usize>,
    /// What the kernel was built with; `None` where that was not asked.
    pub support: Option<Support>,
    /// Whether the file systems that the kernel makes up are in reach, as they are for a kernel; the guard watches none.
    pub pseudo_file_systems: bool,
}

/// What a kernel was built with, as far as policies are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// CONFIG_IMA.
    pub ima: bool,
    /// CONFIG_IMA_APPRAISE.
    pub appraise: bool,
    /// CONFIG_IMA_APPRAISE_MODSIG.
    pub modsig: bool,
    /// CONFIG_FS_VERITY.
    pub verity: bool,
    /// CONFIG_IMA_MEASURE_ASYMMETRIC_KEYS.
    pub key_measurement: bool,
    /// CONFIG_IMA_LSM_RULES.
    pub lsm_rules: bool,
    /// The hash algorithms that it can compute.
    pub algorithms: AlgorithmSet,
}

impl Support {
    /// The same language, as far as a kernel with this support takes it.
    #[must_use]
    pub fn narrow(&self, target: Target) -> Target {
        let lsm = if self.lsm_rules { target.lsm } else { Lsm::None };
        Target {
            lsm,
            modsig: self.modsig,
            key_measurement: self.key_measurement,
            algorithms: self.algorithms,
            ..target
        }
    }
}

/// What a kernel takes of one write, in bytes: a page, less its end.
pub const MAX_WRITE: usize = 4095;

/// What one way of loading the text takes and another does not.
pub fn text_warnings(text: &[u8]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if !text.is_empty() && !text.ends_with(b"\n") {
        warnings.push(Warning {
            kind: WarningKind::NoLastNewline,
            rule: None,
            line: lines(text).count(),
            message: "the last line has no newline: the kernel refuses it (EINVAL) when it is given the file's path"
                .into(),
            hint: "end the file with a newline".into(),
        });
    }
    for (number, line) in lines(text).filter(|(_, line)| line.len() > MAX_WRITE) {
        let length = line.len();
        warnings.push(Warning {
            kind: WarningKind::LongLine,
            rule: None,
            line: number,
            message: format!("{length} bytes: of a rule that is written to it the kernel reads {MAX_WRITE}"),
            hint: "give the kernel the file's path".into(),
        });
    }
    warnings
}

/// What is likely wrong with `policy`, in the order of its rules.
pub fn warnings(policy: &Policy, context: &Context) -> Vec<Warning> {
    let analysis = Analysis::new(policy, context);
    let mut warnings = Vec::new();
    if context.support.is_some_and(|support| !support.ima) {
        warnings.push(Warning {
            kind: WarningKind::Unsupported,
            rule: None,
            line: 0,
            message: "the kernel was built without CONFIG_IMA: it takes no policy".into(),
            hint: "use the guard (imara guard), or a kernel with CONFIG_IMA".into(),
        });
    }
    let mut effective = false;
    let mut said = BTreeSet::new();
    for (at, rule) in policy.rules.iter().enumerate() {
        let without_effect = analysis.without_effect(at);
        let nothing = |warning: &Warning| matches!(warning.kind, WarningKind::NeverMatches | WarningKind::Shadowed);
        effective |= rule.action.does() && !without_effect.as_ref().is_some_and(nothing);
        if without_effect.is_none() {
            warnings.extend(analysis.pseudo_file_systems(at, &mut said));
            warnings.extend(analysis.missing_key(at));
        }
        warnings.extend(without_effect);
        warnings.extend(analysis.unsupported(at));
        warnings.extend(analysis.ignored(at));
    }
    if !effective && !policy.rules.is_empty() {
        warnings.push(Warning {
            kind: WarningKind::NothingInForce,
            rule: None,
            line: 0,
            message: "no rule has an effect: nothing is measured, appraised, audited or hashed".into(),
            hint: "add a rule that does something".into(),
        });
    }
    warnings
}

/// The file systems that the kernel makes up.
const PSEUDO: [&str; 12] = [
    "proc",
    "sysfs",
    "debugfs",
    "tmpfs",
    "devpts",
    "binfmt_misc",
    "securityfs",
    "selinuxfs",
    "cgroup",
    "cgroup2",
    "nsfs",
    "efivarfs",
];

/// How much work an analysis may be: rules judged. A second's worth or two, in an optimised build.
const BOUND: usize = 10_000_000;

/// What becomes of a rule at one hook.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    /// No event satisfies it.
    Never,
    /// These earlier rules decide all that it matches.
    Covered(BTreeSet<usize>),
    /// It decides some event, or that could not be found out.
    Decides,
}

struct Analysis<'a> {
    policy: &'a Policy,
    compiled: CompiledPolicy,
    context: &'a Context,
    /// Each lookup's events, and what each rule asks of them.
    spaces: Vec<(Space, Vec<Option<Matcher>>)>,
    work: Cell<usize>,
}

impl<'a> Analysis<'a> {
    fn new(policy: &'a Policy, context: &'a Context) -> Self {
        let rules: Vec<&Rule> = policy.rules.iter().collect();
        let space = |lookup| {
            let space = Space::new(lookup, &rules, context.lsm);
            let matchers = rules.iter().map(|rule| space.matcher(rule)).collect();
            (space, matchers)
        };
        let spaces = LOOKUPS.iter().map(space).collect();
        Self { policy, compiled: CompiledPolicy::new(policy.clone()), context, spaces, work: Cell::new(0) }
    }

    fn warning(&self, kind: WarningKind, at: usize, message: impl Into<String>, hint: impl Into<String>) -> Warning {
        let line = self.policy.rules[at].line;
        Warning { kind, rule: Some(at), line, message: message.into(), hint: hint.into() }
    }

    /// A rule for people.
    fn place(&self, at: usize) -> String {
        match self.policy.rules[at].line {
            0 => format!("rule {}", at + 1),
            line => format!("line {line}"),
        }
    }

    /// What becomes of a rule in `region`.
    fn reach(&self, at: usize, space: usize, region: Region) -> Reach {
        let matchers = &self.spaces[space].1;
        let Some(matcher) = &matchers[at] else { return Reach::Never };
        let class = self.policy.rules[at].action.class();
        let earlier: Vec<(usize, &Matcher)> = (0..at)
            .filter(|other| self.policy.rules[*other].action.class() == class)
            .filter_map(|other| Some((other, matchers[other].as_ref()?)))
            .collect();
        let mut covering = BTreeSet::new();
        let mut open = vec![region];
        while let Some(region) = open.pop() {
            self.work.set(self.work.get() + 1 + earlier.len());
            if self.work.get() > BOUND {
                return Reach::Decides;
            }
            let split = match matcher.holds(&region) {
                Holds::Never => None,
                Holds::Sometimes(dimension, set) => Some((dimension, set)),
                Holds::Always => {
                    let first = earlier.iter().map(|(other, matcher)| (*other, matcher.holds(&region)));
                    match first.into_iter().find(|(_, holds)| *holds != Holds::Never) {
                        None => return Reach::Decides,
                        Some((_, Holds::Sometimes(dimension, set))) => Some((dimension, set)),
                        Some((other, Holds::Always | Holds::Never)) => {
                            covering.insert(other);
                            None
                        }
                    }
                }
            };
            if let Some((dimension, set)) = split {
                let (inside, outside) = region.split(dimension, &set);
                open.extend([inside, outside]);
            }
        }
        if covering.is_empty() { Reach::Never } else { Reach::Covered(covering) }
    }

    /// Why a rule has no effect.
    fn without_effect(&self, at: usize) -> Option<Warning> {
        let rule = &self.policy.rules[at];
        let class = rule.action.class();
        if rule.func == Some(Func::SetxattrCheck) {
            let first = self.policy.rules[..at].iter().position(|rule| rule.func == Some(Func::SetxattrCheck))?;
            let why =
                format!("the algorithms for security.ima are those of {}, the first such rule", self.place(first));
            return Some(self.warning(WarningKind::Shadowed, at, why, "write one rule with all algorithms"));
        }
        if !rule.action.does() && !self.compiled.classes().contains(class) {
            let why = format!("no rule says `{}`, so there is nothing to except from", class.name());
            return Some(self.warning(WarningKind::ExceptsNothing, at, why, "leave it out"));
        }
        let mut covering = BTreeSet::new();
        let mut matching = Vec::new();
        for (space, (events, _)) in self.spaces.iter().enumerate() {
            if !events.lookup.classes.contains(class) {
                continue;
            }
            match self.reach(at, space, events.whole()) {
                Reach::Never => continue,
                Reach::Covered(by) => covering.extend(by),
                Reach::Decides => covering.extend([at]),
            }
            matching.push(events.lookup.func);
        }
        if matching.is_empty() {
            return Some(self.warning(
                WarningKind::NeverMatches,
                at,
                self.impossible(at),
                "correct it, or leave it out",
            ));
        }
        if matching == [Func::PostSetattr] {
            let why = format!("{}; it is asked only when attributes change (chmod, chown)", self.impossible(at));
            return Some(self.warning(WarningKind::OnlyAttributeChanges, at, why, "correct `mask=`, or leave it out"));
        }
        if !covering.contains(&at) {
            const NAMED: usize = 4;
            let mut places: Vec<String> = covering.iter().take(NAMED).map(|other| self.place(*other)).collect();
            if covering.len() > NAMED {
                places.push(format!("{} more", covering.len() - NAMED));
            }
            let verb = if places.len() == 1 { "decides" } else { "decide" };
            let why = format!("it never decides: {} {verb} all that it matches", places.join(" and "));
            return Some(self.warning(WarningKind::Shadowed, at, why, "move it up, or leave it out"));
        }
        // A don't-rule, too, can say how others are done.
        let counts = |rule: &Rule| rule.action.does() || rule.permit_directio || rule.verity;
        let rest = &self.policy.rules[at..];
        if !rest.iter().any(|later| counts(later) && later.action.class() == class) {
            let why = format!("no `{}` rule follows that it could except from", class.name());
            return Some(self.warning(WarningKind::ExceptsNothing, at, why, "move it up, or leave it out"));
        }
        None
    }

    /// Why no event of its hook satisfies a rule.
    fn impossible(&self, at: usize) -> String {
        let rule = &self.policy.rules[at];
        let func = rule.func.unwrap_or(Func::FileCheck);
        let of_hook = self.spaces.iter().find(|(space, _)| space.lookup.func == func);
        let Some((space, Some(matcher))) = of_hook.map(|(space, matchers)| (space, matchers[at].as_ref())) else {
            return format!("{func} asks no rule of this class");
        };
        let why = |condition: Condition| match condition {
            Condition::Mask => {
                let passed: Vec<_> = Mask::ALL
                    .iter()
                    .filter(|mask| space.lookup.masks.contains(&mask.bits()))
                    .map(|mask| mask.name())
                    .collect();
                let wanted = match rule.mask {
                    Some(MaskCondition::Exact(mask) | MaskCondition::Contains(mask)) => mask.name(),
                    None => "any",
                };
                format!("{func} passes {}, never {wanted}", passed.join(" or "))
            }
            Condition::Fsname | Condition::Fsmagic => {
                let name = rule.fsname.as_deref().unwrap_or_default();
                let numbers: Vec<String> =
                    magics_of(name).unwrap_or_default().iter().map(|magic| format!("{magic:#x}")).collect();
                let asked = rule.fsmagic.unwrap_or_default();
                format!("a file system {name} has the magic number {}, never {asked:#x}", numbers.join(" or "))
            }
            Condition::Uid => no_id("uid", rule.uid),
            Condition::Euid => no_id("euid", rule.euid),
            Condition::Gid => no_id("gid", rule.gid),
            Condition::Egid => no_id("egid", rule.egid),
            Condition::Fowner => no_id("fowner", rule.fowner),
            Condition::Fgroup => no_id("fgroup", rule.fgroup),
            Condition::Label => {
                let missing = rule.lsm.iter().find(|label| !self.context.lsm.has(label.field));
                let field = missing.map_or("such label", |label| label.field.name());
                match self.context.lsm {
                    Lsm::None => format!("nobody is asked for labels here, so {field} never holds"),
                    Lsm::AppArmor | Lsm::Selinux | Lsm::Smack => format!("{} has no {field}", self.context.lsm),
                }
            }
            Condition::Func | Condition::FsSubtype | Condition::Fsuuid | Condition::Data => {
                format!("{condition} never holds")
            }
        };
        let reasons: Vec<String> = matcher.impossible(&space.whole()).into_iter().map(why).collect();
        if reasons.is_empty() { "no event satisfies all its conditions".into() } else { reasons.join("; ") }
    }

    /// A rule that has files of the kernel's making measured or appraised when they are read or written. Executing is
    /// not looked at: nothing is executed there but on tmpfs, where a program is a program.
    fn pseudo_file_systems(&self, at: usize, said: &mut BTreeSet<(usize, &'static str)>) -> Option<Warning> {
        const OPENED: &[u8] = &[4, 2, 6];
        let rule = &self.policy.rules[at];
        let class = rule.action.class();
        let appraised = match class {
            Class::Measure => false,
            Class::Appraise => true,
            Class::Audit | Class::Hash => return None,
        };
        // A subtype, UUID or label of a file is a place of its own, of which nothing is known.
        let placed = rule.fs_subtype.is_some()
            || rule.fsuuid.is_some()
            || rule.lsm.iter().any(|label| label.field.name().starts_with("obj_"));
        let opens = rule.func.is_none_or(|func| func == Func::FileCheck);
        if !self.context.pseudo_file_systems || !rule.action.does() || placed || !opens {
            return None;
        }
        let space = self.spaces.iter().position(|(space, _)| space.lookup.func == Func::FileCheck)?;
        let events = &self.spaces[space].0;
        let reached: Vec<&str> = PSEUDO
            .into_iter()
            .filter(|name| {
                let region = events.with_masks(OPENED, events.on(name, events.whole()));
                self.reach(at, space, region) == Reach::Decides && said.insert((class as usize, name))
            })
            .collect();
        if reached.is_empty() {
            return None;
        }
        let (what, why) = match appraised {
            true => ("appraised", "their files have no labels, so they are refused"),
            false => ("measured", "each new content of their files is a new entry in the list"),
        };
        let lines: Vec<String> = reached
            .iter()
            .filter_map(|name| Some(format!("dont_{} fsmagic={:#x}", class.name(), magics_of(name)?.first()?)))
            .collect();
        Some(self.warning(
            WarningKind::PseudoFileSystem,
            at,
            format!("files of {} are {what}: {why}", reached.join(", ")),
            format!("write before it:\n{}", lines.join("\n")),
        ))
    }

    fn missing_key(&self, at: usize) -> Option<Warning> {
        let required = self.policy.rules[at].appraise_type.is_some() && self.context.keys == Some(0);
        let why = "a signature is required, and there is no key to verify it with: all that it matches is refused";
        required.then(|| self.warning(WarningKind::MissingKey, at, why, "give a certificate with --key CERT"))
    }

    /// What the kernel was built without.
    fn unsupported(&self, at: usize) -> Vec<Warning> {
        let Some(support) = self.context.support.filter(|support| support.ima) else { return Vec::new() };
        let rule = &self.policy.rules[at];
        let labels = matches!(rule.action.class(), Class::Appraise | Class::Hash);
        let modsig = rule.appraise_type == Some(AppraiseType::ImasigModsig);
        let keys = rule.func == Some(Func::KeyCheck);
        let algorithms = rule.appraise_algos.unwrap_or_default();
        let missing: AlgorithmSet =
            algorithms.iter().filter(|algorithm| !support.algorithms.contains(*algorithm)).collect();
        let needs = [
            (labels && !support.appraise, "CONFIG_IMA_APPRAISE", "the rule has no effect"),
            (modsig && !support.modsig, "CONFIG_IMA_APPRAISE_MODSIG", "it refuses the rule"),
            (rule.verity && !support.verity, "CONFIG_FS_VERITY", "no file has an fs-verity digest"),
            (keys && !support.key_measurement, "CONFIG_IMA_MEASURE_ASYMMETRIC_KEYS", "it refuses the rule"),
            (!rule.lsm.is_empty() && !support.lsm_rules, "CONFIG_IMA_LSM_RULES", "it knows no label"),
        ];
        let missing = (!missing.is_empty()).then(|| format!("it cannot compute {missing}: it refuses the rule"));
        let needs = needs.into_iter().filter(|(needed, ..)| *needed);
        let built = needs.map(|(_, option, effect)| format!("the kernel was built without {option}: {effect}"));
        let warn =
            |why: String| self.warning(WarningKind::Unsupported, at, why, "leave it out, or use a kernel that has it");
        built.chain(missing).map(warn).collect()
    }

    /// Conditions that are taken and never looked at.
    fn ignored(&self, at: usize) -> Vec<Warning> {
        let rule = &self.policy.rules[at];
        let Some(func) = rule.func else { return Vec::new() };
        let data = func.is_data();
        let mut found = Vec::new();
        if data && rule.gid.is_some() {
            found.push((
                format!("`gid` is not looked at with `func={func}`: the rule is for every group"),
                "leave it out",
            ));
        }
        if (data || func == Func::KexecCmdline) && rule.pcr == Some(0) {
            found.push((
                format!("`pcr=0` stands for the default PCR with `func={func}`"),
                "leave it out, or name another PCR",
            ));
        }
        if func == Func::SetxattrCheck && !rule.lsm.is_empty() {
            found.push((
                format!("labels are not looked at with `func={func}`: the rule is for every file"),
                "leave them out",
            ));
        }
        found.into_iter().map(|(why, hint)| self.warning(WarningKind::IgnoredCondition, at, why, hint)).collect()
    }
}

fn no_id(name: &str, condition: Option<IdCondition>) -> String {
    let asked = condition.map_or_else(String::new, |IdCondition { op, id }| format!("{name}{}{id}", op.symbol()));
    format!("no id satisfies {asked} (ids go from 0 to 4294967294)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy_space::tests::{events, rules, target};
    use imara_format::policy::{BUILTIN_NAMES, LsmLabels, builtin};
    use proptest::prelude::*;

    const NOT_ASKED: Context = Context { lsm: Lsm::Selinux, keys: None, support: None, pseudo_file_systems: false };
    const ALL: Support = Support {
        ima: true,
        appraise: true,
        modsig: true,
        verity: true,
        key_measurement: true,
        lsm_rules: true,
        algorithms: AlgorithmSet::ALL,
    };

    fn found(rules: &str, context: &Context) -> Vec<(WarningKind, usize)> {
        // A module that lacks a field refuses a rule for it, unless it is taken and left inactive.
        let target = Target { lsm_labels: LsmLabels::Inactive, ..target() };
        let policy = Policy::parse(rules.replace(';', "\n").as_bytes(), &target).unwrap();
        warnings(&policy, context).into_iter().map(|warning| (warning.kind, warning.line)).collect()
    }

    #[test]
    fn rules_without_effect_are_named() {
        use WarningKind::*;
        let shadowed = |line| vec![(Shadowed, line)];
        let never = |line| vec![(NeverMatches, line)];
        for (name, rules, expected) in [
            ("a mask that the hook never passes", "measure func=BPRM_CHECK mask=MAY_READ;audit", never(1)),
            ("the same, contained", "measure func=MODULE_CHECK mask=^MAY_EXEC;audit", never(1)),
            ("masks that an open passes", "measure func=FILE_CHECK mask=MAY_APPEND;audit mask=^MAY_APPEND", vec![]),
            ("no uid is below 0", "measure uid<0;audit", never(1)),
            ("nor above the last", "measure egid>4294967294;audit", never(1)),
            ("an owner that is not mapped", "measure fowner>4294967294", vec![]),
            ("the highest uid", "measure uid>4294967293", vec![]),
            ("name and magic number of two", "measure fsname=ext4 fsmagic=0x9fa0;audit", never(1)),
            ("of one", "measure fsname=ext4 fsmagic=0xef53", vec![]),
            ("of one that has two", "measure fsname=tmpfs fsmagic=0x858458f6", vec![]),
            ("of an unknown one", "measure fsname=foo fsmagic=0xef53", vec![]),
            ("attribute changes", "appraise func=BPRM_CHECK mask=MAY_READ;audit", vec![(OnlyAttributeChanges, 1)]),
            ("equal", "measure uid=0;measure uid=0", shadowed(2)),
            ("a don't-rule covers", "dont_measure;measure uid=0;audit", shadowed(2)),
            ("another class does not", "dont_measure uid=1;audit;measure uid=0", vec![]),
            ("wider", "measure uid<10;measure uid=9", shadowed(2)),
            ("wider by one only", "measure uid<10;measure uid=10", vec![]),
            ("two cover together", "measure uid<5;measure uid>4;measure func=BPRM_CHECK", shadowed(3)),
            ("two leave one", "measure uid<5;measure uid>5;measure func=BPRM_CHECK", vec![]),
            ("without func covers a hook", "measure;measure func=MODULE_CHECK", shadowed(2)),
            ("a hook does not cover all", "measure func=MODULE_CHECK;measure", vec![]),
            ("but not keys", "measure;measure func=KEY_CHECK", vec![]),
            ("keyrings", "measure func=KEY_CHECK keyrings=a|b;measure func=KEY_CHECK keyrings=b", shadowed(2)),
            ("a keyring more", "measure func=KEY_CHECK keyrings=a;measure func=KEY_CHECK keyrings=a|b", vec![]),
            (
                "only the uid of a key counts",
                "measure func=KEY_CHECK gid=1;measure func=KEY_CHECK gid=2",
                vec![(IgnoredCondition, 1), (Shadowed, 2), (IgnoredCondition, 2)],
            ),
            ("data", "measure func=CRITICAL_DATA;measure func=CRITICAL_DATA label=selinux", shadowed(2)),
            ("the only mask of a hook", "measure func=BPRM_CHECK mask=MAY_EXEC;measure func=BPRM_CHECK", shadowed(2)),
            (
                "contained covers alone",
                "measure func=FILE_CHECK mask=^MAY_READ;measure func=FILE_CHECK mask=MAY_READ",
                shadowed(2),
            ),
            (
                "alone does not cover contained",
                "measure func=FILE_CHECK mask=MAY_READ;measure func=FILE_CHECK mask=^MAY_READ",
                vec![],
            ),
            (
                "a name has its magic number",
                "measure fsmagic=0xef53;measure fsname=xfs;measure fsname=ext4",
                shadowed(3),
            ),
            ("a magic number has other names", "measure fsname=ext4;measure fsmagic=0xef53", vec![]),
            ("a label", "measure obj_type=a;measure obj_type=a uid=0", shadowed(2)),
            ("another label", "measure obj_type=b;measure obj_type=a uid=0", vec![]),
            ("euid covers with less", "measure euid<3;measure euid=2", shadowed(2)),
            ("uid does not cover euid", "measure uid=0;measure euid=0", vec![]),
            ("nor euid uid", "measure euid=0;measure uid=0", vec![]),
            // The event of a changed attribute asks for neither hook nor mask.
            ("attribute changes are left", "appraise func=BPRM_CHECK;appraise func=MMAP_CHECK", vec![]),
            (
                "algorithms of the label",
                "appraise func=SETXATTR_CHECK appraise_algos=sha1;appraise func=SETXATTR_CHECK appraise_algos=sha256",
                shadowed(2),
            ),
            ("nothing of that class", "dont_appraise fsname=ext4;measure", vec![(ExceptsNothing, 1)]),
            ("nothing after it", "measure uid=0;dont_measure fsname=ext4", vec![(ExceptsNothing, 2)]),
            ("nothing after it, but it permits", "appraise uid=0;dont_appraise fsname=ext4 permit_directio", vec![]),
            (
                "nothing after it but what permits",
                "appraise uid=0;dont_appraise fsname=ext4;dont_appraise permit_directio",
                vec![],
            ),
            ("no effect at all", "dont_measure", vec![(ExceptsNothing, 1), (NothingInForce, 0)]),
            ("nor here", "measure uid<0", vec![(NeverMatches, 1), (NothingInForce, 0)]),
            (
                "a condition not looked at",
                "measure func=KEY_CHECK gid=0;measure func=KEXEC_CMDLINE pcr=0",
                vec![(IgnoredCondition, 1), (IgnoredCondition, 2)],
            ),
            (
                "a label not looked at",
                "appraise func=SETXATTR_CHECK appraise_algos=sha1 obj_type=a",
                vec![(IgnoredCondition, 1)],
            ),
            ("an empty policy", "", vec![]),
        ] {
            assert_eq!(found(rules, &NOT_ASKED), expected, "{name}: {rules}");
        }
        let apparmor = Context { lsm: Lsm::AppArmor, ..NOT_ASKED };
        assert_eq!(found("measure obj_type=a;measure subj_role=a", &apparmor), never(1));
        let nobody = Context { lsm: Lsm::None, ..NOT_ASKED };
        assert_eq!(found("measure subj_role=a;audit", &nobody), never(1));
    }

    #[test]
    fn warnings_say_why_and_what_to_do() {
        for (rules, expected) in [
            ("measure func=BPRM_CHECK mask=MAY_READ;audit", "BPRM_CHECK passes MAY_EXEC, never MAY_READ"),
            ("measure uid<0;audit", "no id satisfies uid<0 (ids go from 0 to 4294967294)"),
            (
                "measure fsname=tmpfs fsmagic=0x9fa0;audit",
                "a file system tmpfs has the magic number 0x1021994 or 0x858458f6, never 0x9fa0",
            ),
            (
                "measure uid<5;measure uid>4;measure gid=1",
                "it never decides: line 1 and line 2 decide all that it matches",
            ),
            (
                "appraise func=MMAP_CHECK mask=MAY_WRITE;audit",
                "MMAP_CHECK passes MAY_EXEC, never MAY_WRITE; it is asked only when attributes change (chmod, chown)",
            ),
        ] {
            let policy = Policy::parse(rules.replace(';', "\n").as_bytes(), &target()).unwrap();
            let warnings = warnings(&policy, &NOT_ASKED);
            assert_eq!(warnings[0].message, expected);
            assert!(!warnings[0].hint.is_empty());
        }
    }

    #[test]
    fn files_of_the_kernels_making_are_to_be_excepted() {
        let context = Context { pseudo_file_systems: true, ..NOT_ASKED };
        let warned = |rules: &str| {
            let policy = Policy::parse(rules.replace(';', "\n").as_bytes(), &target()).unwrap();
            warnings(&policy, &context)
        };
        let all = warned("measure func=FILE_CHECK");
        assert_eq!(all.len(), 1);
        let lines: Vec<&str> = all[0].hint.lines().skip(1).collect();
        assert_eq!(lines.len(), PSEUDO.len());
        assert_eq!(lines[0], "dont_measure fsmagic=0x9fa0");
        // What the hint says is enough.
        assert_eq!(warned(&format!("{};measure func=FILE_CHECK", lines.join(";"))), vec![]);
        for (rules, expected) in [
            ("measure fsname=ext4", 0),
            ("measure func=BPRM_CHECK", 0),
            ("appraise func=MODULE_CHECK", 0),
            ("appraise fowner=0", 1),
            ("audit", 0),
            ("measure fsname=proc", 1),
            ("measure func=FILE_CHECK mask=MAY_EXEC", 0),
            ("measure func=FILE_CHECK uid=0;measure func=FILE_CHECK euid=0", 1),
            ("measure func=FILE_CHECK uid=0;appraise func=FILE_CHECK euid=0", 2),
            ("measure obj_type=a", 0),
            ("measure fsuuid=8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6", 0),
            ("dont_measure func=BPRM_CHECK;measure", 1),
        ] {
            assert_eq!(warned(rules).len(), expected, "{rules}");
        }
        let guard = Context { pseudo_file_systems: false, ..context };
        assert_eq!(found("measure", &guard), vec![]);
    }

    #[test]
    fn what_a_machine_lacks_is_named() {
        use WarningKind::*;
        let rules = "appraise func=BPRM_CHECK appraise_type=imasig;appraise func=MMAP_CHECK;measure";
        for (keys, expected) in [(None, vec![]), (Some(1), vec![]), (Some(0), vec![(MissingKey, 1)])] {
            assert_eq!(found(rules, &Context { keys, ..NOT_ASKED }), expected, "{keys:?}");
        }
        let sha256 = AlgorithmSet::USUAL;
        for (name, support, rules, expected) in [
            ("all", ALL, "appraise", vec![]),
            ("no IMA", Support { ima: false, ..ALL }, "appraise", vec![(Unsupported, 0)]),
            (
                "no appraisal",
                Support { appraise: false, ..ALL },
                "appraise uid=0;hash;measure",
                vec![(Unsupported, 1), (Unsupported, 2)],
            ),
            (
                "no modsig",
                Support { modsig: false, ..ALL },
                "appraise func=MODULE_CHECK appraise_type=imasig|modsig",
                vec![(Unsupported, 1)],
            ),
            ("no fs-verity", Support { verity: false, ..ALL }, "measure digest_type=verity", vec![(Unsupported, 1)]),
            ("no keys", Support { key_measurement: false, ..ALL }, "measure func=KEY_CHECK", vec![(Unsupported, 1)]),
            ("no labels", Support { lsm_rules: false, ..ALL }, "measure obj_type=a", vec![(Unsupported, 1)]),
            (
                "an algorithm",
                Support { algorithms: sha256, ..ALL },
                "appraise appraise_algos=sha256,sm3",
                vec![(Unsupported, 1)],
            ),
            ("of those it has", Support { algorithms: sha256, ..ALL }, "appraise appraise_algos=sha256", vec![]),
        ] {
            assert_eq!(found(rules, &Context { support: Some(support), ..NOT_ASKED }), expected, "{name}");
        }
        let narrowed = Support { modsig: false, lsm_rules: false, algorithms: sha256, ..ALL }.narrow(target());
        assert!(!narrowed.modsig && narrowed.lsm == Lsm::None && narrowed.algorithms == sha256);
    }

    #[test]
    fn the_kernels_own_policies_are_without_fault() {
        let context = Context { pseudo_file_systems: true, keys: Some(1), support: Some(ALL), ..NOT_ASKED };
        for name in BUILTIN_NAMES {
            assert_eq!(warnings(&builtin(name).unwrap(), &context), vec![], "{name}");
        }
    }

    #[test]
    fn what_only_one_way_of_loading_takes_is_warned_of() {
        use WarningKind::*;
        for (text, expected) in [
            (b"measure\n".to_vec(), vec![]),
            (b"measure\naudit".to_vec(), vec![(NoLastNewline, 2)]),
            ([b"audit\nmeasure".as_slice(), &b" ".repeat(4090), b"\n"].concat(), vec![(LongLine, 2)]),
        ] {
            let found: Vec<_> = text_warnings(&text).iter().map(|warning| (warning.kind, warning.line)).collect();
            assert_eq!(found, expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn a_rule_said_to_have_no_effect_never_decides(
            rules in rules(),
            events in proptest::collection::vec(events(), 64),
        ) {
            let policy = Policy::parse(rules.as_bytes(), &target()).unwrap();
            let warnings = warnings(&policy, &NOT_ASKED);
            let compiled = CompiledPolicy::with_labels(policy);
            for (lookup, witness) in &events {
                let file = witness.file();
                let decision = compiled.decide_classes(&witness.event(&file), lookup.classes);
                for class in Class::ALL {
                    let by = decision.decided_by.class(*class);
                    let wrong = warnings.iter().find(|warning| warning.rule.is_some() && warning.rule == by && match warning.kind {
                        WarningKind::NeverMatches | WarningKind::Shadowed => true,
                        WarningKind::OnlyAttributeChanges => lookup.func != Func::PostSetattr,
                        WarningKind::ExceptsNothing => decision.does(*class).is_some(),
                        WarningKind::PseudoFileSystem
                        | WarningKind::MissingKey
                        | WarningKind::Unsupported
                        | WarningKind::IgnoredCondition
                        | WarningKind::NothingInForce
                        | WarningKind::NoLastNewline
                        | WarningKind::LongLine => false,
                    });
                    prop_assert!(wrong.is_none(), "{:?} at {}", wrong, witness);
                }
                let nothing = warnings.iter().any(|warning| warning.kind == WarningKind::NothingInForce);
                prop_assert!(!nothing || decision.is_nothing());
            }
        }
    }
}
