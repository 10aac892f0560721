//! The policy in force: what each of its rules has decided so far, and what another policy in its place would change.
//!
//! Replacing a policy undoes nothing that was found out about files: digests, measurements and verdicts stay, as in the
//! kernel, where no policy load touches the per-inode cache. A verdict is good for a rule only if it asked for as much, which
//! is judged when it is used. What has to go is what the kernel was told not to ask about any more, and that only where the
//! two policies could decide differently.

use crate::policy::{CompiledPolicy, Decision, FileFacts};
use imara_format::policy::{Class, Func, Rule};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

/// A policy in force.
#[derive(Debug)]
pub struct ActivePolicy {
    compiled: CompiledPolicy,
    serial: u64,
    /// For each rule, how many hooks it decided, do or don't.
    hits: Box<[AtomicU64]>,
}

impl Deref for ActivePolicy {
    type Target = CompiledPolicy;

    fn deref(&self) -> &CompiledPolicy {
        &self.compiled
    }
}

impl ActivePolicy {
    /// Puts a policy in force that has decided nothing yet.
    pub fn new(compiled: CompiledPolicy) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let hits = compiled.rules().iter().map(|_| AtomicU64::new(0)).collect();
        Self { compiled, serial: SERIAL.fetch_add(1, Ordering::Relaxed), hits }
    }

    /// What no other policy of this process has, from 1 on: for what is worked out once for each.
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// Counts what was decided.
    pub(crate) fn count(&self, decision: &Decision) {
        for rule in Class::ALL.iter().filter_map(|class| decision.decided_by.class(*class)) {
            if let Some(hits) = self.hits.get(rule) {
                hits.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// For each rule, how many questions it decided. Accesses that the kernel does not ask about any more are not among
    /// them.
    pub fn hits(&self) -> Vec<u64> {
        self.hits.iter().map(|hits| hits.load(Ordering::Relaxed)).collect()
    }
}

/// Whether both policies decide alike for every file of this file system, whoever comes, by each of these hooks. When in
/// doubt they do not.
///
/// Of `filesystem` only the file system's facts are looked at, not owner and group.
pub fn decide_alike(one: &CompiledPolicy, other: &CompiledPolicy, funcs: &[Func], filesystem: &FileFacts<'_>) -> bool {
    let rules = |policy, func| concerned(policy, func, filesystem).map(|rule| Rule { line: 0, ..rule.clone() });
    funcs.iter().all(|func| rules(one, *func).eq(rules(other, *func)))
}

/// Whether the policy could have something done for some file of this file system, by one of these hooks. When in doubt it
/// could.
///
/// Of `filesystem` only the file system's facts are looked at, not owner and group.
pub fn has_something_done(policy: &CompiledPolicy, funcs: &[Func], filesystem: &FileFacts<'_>) -> bool {
    funcs.iter().any(|func| {
        let mut open = policy.classes();
        for rule in concerned(policy, *func, filesystem) {
            let class = rule.action.class();
            if !open.contains(class) {
                continue;
            }
            if rule.action.does() {
                return true;
            }
            if decides_for_all(rule) {
                open = open.without(class);
            }
        }
        false
    })
}

/// Whether the policy could have some file of this file system appraised, by one of these hooks. When in doubt it could.
///
/// Of `filesystem` only the file system's facts are looked at, not owner and group.
pub fn appraises(policy: &CompiledPolicy, funcs: &[Func], filesystem: &FileFacts<'_>) -> bool {
    funcs.iter().any(|func| {
        let rules = concerned(policy, *func, filesystem).filter(|rule| rule.action.class() == Class::Appraise);
        // The first that is for every file leaves nothing to those after it.
        let mut all = false;
        let mut rules = rules.take_while(|rule| !std::mem::replace(&mut all, decides_for_all(rule)));
        rules.any(|rule| rule.action.does())
    })
}

/// Whether it is for every file of the file systems that it is for, whoever comes.
fn decides_for_all(rule: &Rule) -> bool {
    let Rule { mask, uid, euid, gid, egid, fowner, fgroup, lsm, .. } = rule;
    mask.is_none()
        && [uid, euid, gid, egid, fowner, fgroup].iter().all(|condition| condition.is_none())
        && lsm.is_empty()
}

/// The rules that could decide an event of this hook on this file system.
fn concerned<'a>(policy: &'a CompiledPolicy, func: Func, filesystem: &FileFacts<'_>) -> impl Iterator<Item = &'a Rule> {
    let classes = policy.classes();
    policy.rules().iter().filter(move |rule| {
        rule.func.is_none_or(|wanted| wanted == func)
            && classes.contains(rule.action.class())
            && is_for_filesystem(rule, filesystem)
    })
}

fn is_for_filesystem(rule: &Rule, filesystem: &FileFacts<'_>) -> bool {
    rule.fsmagic.is_none_or(|magic| magic == filesystem.fsmagic)
        && rule.fsname.as_ref().is_none_or(|name| name == filesystem.fsname)
        && rule.fs_subtype.as_ref().is_none_or(|subtype| subtype == filesystem.fs_subtype)
        && rule.fsuuid.is_none_or(|uuid| uuid == filesystem.fsuuid.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::User;
    use crate::policy::Event;
    use imara_format::policy::{Policy, Target};
    use proptest::prelude::*;

    const EXT4: FileFacts<'_> =
        FileFacts { owner: 0, group: 0, fsmagic: 0xef53, fsname: "ext4", fs_subtype: "", fsuuid: Some([7; 16]) };

    fn policy(rules: &str) -> CompiledPolicy {
        CompiledPolicy::new(Policy::parse(rules.replace(';', "\n").as_bytes(), &Target::guard()).unwrap())
    }

    #[test]
    fn a_change_concerns_only_the_hooks_and_file_systems_that_it_is_about() {
        const BOTH: [Func; 2] = [Func::FileCheck, Func::BprmCheck];
        for (one, other, funcs, alike) in [
            ("measure", "measure", &BOTH[..], true),
            ("measure", "# moved\n\nmeasure", &BOTH, true),
            ("measure", "appraise", &BOTH, false),
            ("measure", "measure pcr=11", &BOTH, false),
            ("measure func=BPRM_CHECK", "measure func=BPRM_CHECK;measure func=MODULE_CHECK", &BOTH, true),
            ("measure func=BPRM_CHECK", "measure func=BPRM_CHECK;measure func=FILE_CHECK", &BOTH, false),
            ("measure func=BPRM_CHECK", "measure func=BPRM_CHECK;measure func=FILE_CHECK", &[Func::BprmCheck], true),
            ("measure", "dont_measure fsname=xfs;measure", &BOTH, true),
            ("measure", "dont_measure fsmagic=ef53;measure", &BOTH, false),
            ("measure", "dont_measure fsuuid=00000000-0000-0000-0000-000000000001;measure", &BOTH, true),
            ("measure", "dont_measure fs_subtype=sshfs;measure", &BOTH, true),
            // What nobody does nobody need except.
            ("measure", "dont_appraise;measure", &BOTH, true),
            ("measure;appraise fsname=xfs", "dont_appraise;measure;appraise fsname=xfs", &BOTH, false),
            ("measure;audit", "audit;measure", &BOTH, false),
        ] {
            assert_eq!(decide_alike(&policy(one), &policy(other), funcs, &EXT4), alike, "{one} | {other}");
        }
    }

    #[test]
    fn each_rule_counts_what_it_decided() {
        let active = ActivePolicy::new(policy("dont_measure uid=7;measure;appraise func=BPRM_CHECK"));
        for (func, uid) in [(Func::BprmCheck, 0), (Func::FileCheck, 7), (Func::FileCheck, 8)] {
            let event = Event { func, mask: 1, file: &EXT4, subject: &User(uid), data: None };
            active.count(&active.decide(&event));
        }
        assert_eq!(active.hits(), [1, 2, 1]);
    }

    #[test]
    fn only_file_systems_that_a_rule_could_reach_have_something_done() {
        const FILE: [Func; 1] = [Func::FileCheck];
        for (rules, expected) in [
            ("measure func=FILE_CHECK", true),
            ("measure func=BPRM_CHECK", false),
            ("dont_measure fsmagic=ef53;measure", false),
            ("dont_measure fsmagic=ef53 fowner=0;measure", true),
            ("dont_measure fsmagic=ef53 mask=MAY_READ;measure", true),
            ("dont_measure fsmagic=ef53 uid=0;measure", true),
            ("dont_measure fsmagic=ef53;measure;audit", true),
            ("dont_measure fsname=xfs;measure", true),
            ("measure fsname=xfs", false),
            ("measure fsname=ext4;dont_measure", true),
            ("", false),
        ] {
            assert_eq!(has_something_done(&policy(rules), &FILE, &EXT4), expected, "{rules}");
        }
    }

    #[test]
    fn only_file_systems_that_a_rule_could_reach_are_appraised() {
        const FILE: [Func; 1] = [Func::FileCheck];
        for (rules, expected) in [
            ("appraise func=FILE_CHECK", true),
            ("measure func=FILE_CHECK", false),
            ("appraise func=BPRM_CHECK", false),
            ("dont_appraise fsmagic=ef53;appraise", false),
            ("dont_appraise fsmagic=ef53 fowner=0;appraise", true),
            ("dont_measure fsmagic=ef53;appraise", true),
            ("appraise;dont_appraise", true),
            ("appraise fsname=xfs", false),
            ("", false),
        ] {
            assert_eq!(appraises(&policy(rules), &FILE, &EXT4), expected, "{rules}");
        }
    }

    fn rules() -> impl Strategy<Value = String> {
        let rule = "(dont_)?(measure|appraise)( func=(FILE|BPRM)_CHECK)?( uid=[01])?( fsname=(ext4|xfs))?";
        proptest::collection::vec(rule, 0..4).prop_map(|rules| rules.join(";"))
    }

    proptest! {
        #[test]
        fn what_is_said_to_be_alike_is(one in rules(), other in rules(), uid in 0u32..2, owner in 0u32..2) {
            let (one, other) = (policy(&one), policy(&other));
            let file = FileFacts { owner, ..EXT4 };
            for func in [Func::FileCheck, Func::BprmCheck] {
                let event = Event { func, mask: 1, file: &file, subject: &User(uid), data: None };
                let [one_does, other_does] = [&one, &other].map(|policy| {
                    let decision = policy.decide(&event);
                    Class::ALL.iter().map(|class| decision.does(*class).is_some()).collect::<Vec<_>>()
                });
                for (policy, does) in [(&one, &one_does), (&other, &other_does)] {
                    let something = does.iter().any(|does| *does);
                    prop_assert!(!something || has_something_done(policy, &[func], &file));
                }
                prop_assert!(!decide_alike(&one, &other, &[func], &file) || one_does == other_does);
            }
        }
    }
}
