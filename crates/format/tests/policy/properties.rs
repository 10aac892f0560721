//! What must hold for any bytes that are read as a policy. The fuzzer tries these too.

use imara_format::policy::{
    AlgorithmSet, KernelDisplay, KernelVersion, Lsm, LsmLabels, Policy, PolicyError, Rule, Target, lines, parse_line,
};

/// Kernels as distributions build them, kernels with everything built in, and the guard.
pub fn targets() -> Vec<Target> {
    let complete = |kernel, lsm| Target {
        lsm,
        lsm_labels: LsmLabels::Known,
        modsig: true,
        algorithms: AlgorithmSet::ALL,
        ..Target::kernel(kernel)
    };
    let usual = KernelVersion::ALL.iter().map(|kernel| Target::kernel(*kernel));
    let mut targets: Vec<_> = usual.collect();
    targets.extend([
        complete(KernelVersion::V6_1, Lsm::Selinux),
        complete(KernelVersion::Latest, Lsm::Smack),
        Target::guard(),
    ]);
    targets
}

/// Reads `text` for `target`; panics where the outcome is not as it must be.
pub fn check(text: &[u8], target: &Target) -> Result<Policy, Vec<PolicyError>> {
    let outcome = Policy::parse(text, target);
    match &outcome {
        Ok(policy) => {
            policy.rules.iter().for_each(|rule| check_rule(rule, target));
            let again = Policy::parse(policy.to_string().as_bytes(), target).expect("a printed policy is taken");
            assert_eq!(again.rules.len(), policy.rules.len(), "a rule a line");
        }
        Err(errors) => {
            let mut lines = lines(text);
            for error in errors {
                let line =
                    lines.find(|(number, _)| *number == error.line).expect("errors come in the order of lines").1;
                check_error(error, line);
            }
        }
    }
    outcome
}

fn check_rule(rule: &Rule, target: &Target) {
    let read = |text: &str| parse_line(text.as_bytes(), rule.line, target);
    let same = Ok(Some(rule.clone()));
    assert_eq!(read(&rule.to_string()), same, "{rule}");
    let kernel = KernelDisplay(rule).to_string();
    let outcome = read(&kernel);
    if reads_back(rule) {
        assert_eq!(outcome, same, "{kernel}");
    }
}

/// Whether the kernel's own way to print the rule can be read again.
fn reads_back(rule: &Rule) -> bool {
    let mut ids = [rule.uid, rule.euid, rule.gid, rule.egid, rule.fowner, rule.fgroup].into_iter().flatten();
    ids.all(|condition| i32::try_from(condition.id).is_ok())
        && rule.fsname.as_ref().is_none_or(|name| name.len() <= 63)
        && !(rule.verity && rule.appraise_type.is_some())
}

fn check_error(error: &PolicyError, line: &[u8]) {
    let start = error.column.checked_sub(1).expect("columns count from 1");
    let place = line.get(start..).and_then(|rest| rest.get(..error.length));
    let place = place.unwrap_or_else(|| panic!("{error}: {} bytes are not in a line of {}", error.length, line.len()));
    if !error.token.is_empty() {
        let token = std::str::from_utf8(place).expect("a token that is shown is text");
        assert_eq!(error.token, token.chars().take(64).collect::<String>(), "{error}");
    }
    assert!(error.to_string().len() < 600 && error.hint().len() < 300, "{error}");
}
