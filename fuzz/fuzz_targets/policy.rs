//! Any bytes as a policy: read for every target, printed and read again, compiled, and asked to decide.

#![no_main]

#[path = "../../crates/format/tests/policy/properties.rs"]
mod properties;

use imara_engine::policy::{CompiledPolicy, Event, FileFacts, Subject};
use imara_format::policy::{Class, Func, LsmCondition, Policy};
use libfuzzer_sys::fuzz_target;

struct Task;

impl Subject for Task {
    fn uid(&self) -> u32 {
        0
    }
    fn gid(&self) -> u32 {
        1
    }
    fn euids(&self) -> [u32; 3] {
        [0, 1, 2]
    }
    fn egids(&self) -> [u32; 3] {
        [0, 1, u32::MAX]
    }
    fn can_setuid(&self) -> bool {
        true
    }
    fn can_setgid(&self) -> bool {
        false
    }
    fn has_label(&self, condition: &LsmCondition) -> bool {
        condition.value.len() < 3
    }
}

fuzz_target!(|text: &[u8]| {
    for target in properties::targets() {
        if let Ok(policy) = properties::check(text, &target) {
            decide(policy);
        }
    }
});

/// For each hook, every rule is explained, and what is decided was possible.
fn decide(policy: Policy) {
    let file = FileFacts { owner: 0, group: 1, fsmagic: 0xef53, fsname: "ext4", fs_subtype: "", fsuuid: None };
    let policy = CompiledPolicy::with_labels(policy).fail_securely(true);
    for func in Func::ALL {
        let possible = policy.possible(*func, &file);
        let event = Event { func: *func, mask: 4, file: &file, subject: &Task, data: Some(".ima") };
        assert_eq!(policy.explain(&event).len(), policy.rules().len());
        for mask in [0, 1, 4, 6, 0x10] {
            let decision = policy.decide(&Event { mask, ..event });
            for class in Class::ALL {
                if let Some(rule) = decision.does(*class) {
                    assert!(possible.class(*class).any(|outcome| outcome.rule == rule), "{func}: rule {rule}");
                }
            }
        }
    }
}
