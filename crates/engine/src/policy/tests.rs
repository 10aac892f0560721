//! The kernel's results, and what must hold for every policy.

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
        ("appraise func=BPRM_CHECK appraise_algos=sha256;appraise appraise_algos=sha512", BprmCheck, 1, 0x1_0004, None),
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
    let both =
        policy("appraise func=SETXATTR_CHECK appraise_algos=sha256;appraise func=SETXATTR_CHECK appraise_algos=sha1");
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
    (any::<[bool; 2]>(), "[ab]?", proptest::array::uniform6(0u32..3)).prop_map(|([setuid, setgid], label, ids)| Task {
        uids: [ids[0], ids[1], ids[2]],
        gids: [ids[3], ids[4], ids[5]],
        setuid,
        setgid,
        label: Some(label),
        asked: Cell::new(0),
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
