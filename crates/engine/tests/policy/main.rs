//! A compiled policy decides as the plain loop over its rules does, whatever the policy and the event.

mod first_match;

use first_match::FirstMatch;
use imara_engine::policy::{CompiledPolicy, DecidedBy, Decision, Event, FileFacts, Subject};
use imara_format::policy::{Class, Func, Lsm, LsmCondition, LsmLabels, Policy, Target, builtin};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Task {
    uids: [u32; 3],
    gids: [u32; 3],
    setuid: bool,
    setgid: bool,
    label: String,
}

impl Subject for Task {
    fn uid(&self) -> u32 {
        self.uids[2]
    }
    fn gid(&self) -> u32 {
        self.gids[2]
    }
    fn euids(&self) -> [u32; 3] {
        self.uids
    }
    fn egids(&self) -> [u32; 3] {
        self.gids
    }
    fn can_setuid(&self) -> bool {
        self.setuid
    }
    fn can_setgid(&self) -> bool {
        self.setgid
    }
    fn has_label(&self, condition: &LsmCondition) -> bool {
        condition.value == self.label
    }
}

/// What an event is made of; few values of each kind, so that conditions hold about as often as not.
#[derive(Clone, Debug)]
struct Facts {
    func: Func,
    mask: u8,
    owners: [u32; 2],
    fsmagic: u64,
    fsname: &'static str,
    fs_subtype: &'static str,
    fsuuid: Option<[u8; 16]>,
    task: Task,
    data: Option<&'static str>,
}

/// The ids of the ends of the range too: `uid<0` never holds, `uid>4294967294` only for the id that stands for none.
const IDS: &[u32] = &[0, 1, 2, u32::MAX - 1];
const UUIDS: &[&str] = &["00000000-0000-0000-0000-000000000000", "01010101-0101-0101-0101-010101010101"];

fn target() -> Target {
    Target { lsm: Lsm::Selinux, lsm_labels: LsmLabels::Known, ..Target::guard() }
}

fn facts() -> impl Strategy<Value = Facts> {
    use proptest::sample::select;
    let id = || prop_oneof![6 => select(IDS), 1 => Just(u32::MAX)];
    let hooks: Vec<_> = Func::ALL.iter().copied().filter(|func| *func != Func::SetxattrCheck).collect();
    let task = (any::<[bool; 2]>(), "[ab]?", proptest::array::uniform6(id())).prop_map(|(able, label, ids)| Task {
        uids: [ids[0], ids[1], ids[2]],
        gids: [ids[3], ids[4], ids[5]],
        setuid: able[0],
        setgid: able[1],
        label,
    });
    let filesystem = (
        select(&[0, 0xef53, u64::MAX][..]),
        select(&["", "ext4", "xfs", "fuse"][..]),
        select(&["", "sshfs"][..]),
        select(&[None, Some([0; 16]), Some([1; 16]), Some([9; 16])][..]),
    );
    let mask = prop_oneof![4 => 0u8..17, 1 => any::<u8>()];
    let data = select(&[None, Some("a"), Some("b"), Some("")][..]);
    (select(hooks), mask, [id(), id()], filesystem, task, data).prop_map(
        |(func, mask, owners, (fsmagic, fsname, fs_subtype, fsuuid), task, data)| Facts {
            func,
            mask,
            owners,
            fsmagic,
            fsname,
            fs_subtype,
            fsuuid,
            task,
            data,
        },
    )
}

fn rules() -> impl Strategy<Value = String> {
    use proptest::sample::select;
    let hooks: Vec<_> = Func::ALL.iter().map(|func| func.name()).collect();
    let id = ("(uid|euid|gid|egid|fowner|fgroup)", "[=<>]", select(IDS));
    let condition = prop_oneof![
        8 => id.prop_map(|(key, op, id)| format!("{key}{op}{id}")),
        3 => "mask=\\^?MAY_(READ|WRITE|EXEC|APPEND)",
        2 => "fsmagic=(0|ef53|ffffffffffffffff)",
        2 => "fsname=(ext4|xfs|fuse|none)",
        1 => "fs_subtype=(sshfs|none)",
        2 => select(UUIDS).prop_map(|uuid| format!("fsuuid={uuid}")),
        2 => "(obj_type|subj_role)=[ab]",
        2 => "(keyrings|label)=([abc]|a\\|c)",
        4 => "pcr=[3-5]|template=ima-(ng|sig)|permit_directio|digest_type=verity|appraise_algos=sha(1|256)",
        2 => "appraise_type=(imasig|imasig\\|modsig|sigv3)",
    ];
    let func = proptest::option::weighted(0.4, select(hooks));
    let rule = ("(dont_)?(measure|appraise|audit|hash)", func, proptest::collection::vec(condition, 0..5)).prop_map(
        |(action, func, conditions)| {
            let func = func.map(|func| format!(" func={func}")).unwrap_or_default();
            format!("{action}{func} {}", conditions.join(" "))
        },
    );
    // Some of more than the 64 rules that are judged together.
    let rules = prop_oneof![proptest::collection::vec(rule.clone(), 0..24), proptest::collection::vec(rule, 100..200)];
    rules.prop_map(|rules| {
        let good = |rule: &String| Policy::parse(rule.as_bytes(), &target()).is_ok();
        rules.into_iter().filter(good).collect::<Vec<_>>().join("\n")
    })
}

/// That the compiled policy and the loop agree on an event, and on the part of it that hooks which only appraise ask for.
fn check(policy: &Policy, labels: bool, fail_securely: bool, facts: &Facts) -> Result<(), TestCaseError> {
    let compile = if labels { CompiledPolicy::with_labels } else { CompiledPolicy::new };
    let compiled = compile(policy.clone()).fail_securely(fail_securely);
    let file = FileFacts {
        owner: facts.owners[0],
        group: facts.owners[1],
        fsmagic: facts.fsmagic,
        fsname: facts.fsname,
        fs_subtype: facts.fs_subtype,
        fsuuid: facts.fsuuid,
    };
    let event = Event { func: facts.func, mask: facts.mask, file: &file, subject: &facts.task, data: facts.data };
    let (expected, decided_by) = FirstMatch::new(policy, labels, fail_securely).decide(&event);
    let found = compiled.decide(&event);
    prop_assert_eq!(Decision { decided_by: DecidedBy::default(), ..found }, expected);
    for class in Class::ALL {
        prop_assert_eq!(found.decided_by.class(*class), decided_by[*class as usize], "{}", class);
    }
    let appraised = compiled.must_appraise(&event);
    prop_assert_eq!((appraised.appraise, appraised.hash), (expected.appraise, expected.hash));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_compiled_policy_decides_as_the_plain_loop(
        rules in rules(),
        labels in any::<bool>(),
        fail_securely in any::<bool>(),
        events in proptest::collection::vec(facts(), 16),
    ) {
        let policy = Policy::parse(rules.as_bytes(), &target()).unwrap();
        for facts in &events {
            check(&policy, labels, fail_securely, facts)?;
        }
    }

    #[test]
    fn built_in_policies_decide_as_the_plain_loop(
        name in proptest::sample::select(imara_format::policy::BUILTIN_NAMES),
        facts in facts(),
    ) {
        check(&builtin(name).unwrap(), false, false, &facts)?;
    }
}
