//! The policies that a kernel carries within it, by the names that `ima_policy=` takes.

use super::{Action, AppraiseType, Func, IdCondition, Mask, MaskCondition, Operator, Policy, Rule};

/// The names that [`builtin`] knows.
pub const BUILTIN_NAMES: &[&str] =
    &["tcb", "appraise_tcb", "secure_boot", "critical_data", "fail_securely", "ima_tcb", "ima_appraise_tcb"];

/// The built-in policy called `name`: the items of `ima_policy=`, and the older parameters `ima_tcb` and
/// `ima_appraise_tcb`.
///
/// `fail_securely` has no rules: it makes every appraisal refuse signatures on filesystems that cannot be trusted.
/// `appraise_tcb` is that of a kernel whose policy can be written more than once and whose init needs no signature.
pub fn builtin(name: &str) -> Option<Policy> {
    let rules = match name {
        "tcb" => tcb(&[
            Rule { euid: Some(ROOT), ..measure(Func::FileCheck, Some(MaskCondition::Contains(Mask::MAY_READ))) },
            Rule { uid: Some(ROOT), ..measure(Func::FileCheck, Some(MaskCondition::Contains(Mask::MAY_READ))) },
            measure(Func::ModuleCheck, None),
            measure(Func::FirmwareCheck, None),
            measure(Func::PolicyCheck, None),
        ]),
        "ima_tcb" => tcb(&[
            Rule { uid: Some(ROOT), ..measure(Func::FileCheck, Some(MaskCondition::Exact(Mask::MAY_READ))) },
            measure(Func::ModuleCheck, None),
            measure(Func::FirmwareCheck, None),
        ]),
        "appraise_tcb" | "ima_appraise_tcb" => return Some(appraise_tcb(true, false)),
        "secure_boot" => [Func::ModuleCheck, Func::FirmwareCheck, Func::KexecKernelCheck, Func::PolicyCheck]
            .map(appraise_signed)
            .into(),
        "critical_data" => vec![measure(Func::CriticalData, None)],
        "fail_securely" => Vec::new(),
        _ => return None,
    };
    Some(Policy { rules })
}

/// The built-in policy `appraise_tcb` of a kernel whose policy can be written more than once or not
/// (`CONFIG_IMA_WRITE_POLICY`), and whose init needs a signature or not (`CONFIG_IMA_APPRAISE_SIGNED_INIT`).
pub fn appraise_tcb(write_policy: bool, signed_init: bool) -> Policy {
    let mut rules = exclusions(Action::DontAppraise, NOT_APPRAISED);
    if write_policy {
        rules.push(appraise_signed(Func::PolicyCheck));
    }
    let appraise_type = signed_init.then_some(AppraiseType::Imasig);
    rules.push(Rule { fowner: Some(ROOT), appraise_type, ..Rule::new(Action::Appraise) });
    Policy { rules }
}

const ROOT: IdCondition = IdCondition { op: Operator::Equal, id: 0 };

const PROC: u64 = 0x9fa0;
const SYSFS: u64 = 0x6265_6572;
const DEBUGFS: u64 = 0x6462_6720;
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
const DEVPTS: u64 = 0x1cd1;
const BINFMT_MISC: u64 = 0x4249_4e4d;
const SECURITYFS: u64 = 0x7363_6673;
const SELINUXFS: u64 = 0xf97c_ff8c;
const SMACKFS: u64 = 0x4341_5d53;
const CGROUP_V1: u64 = 0x0027_e0eb;
const CGROUP_V2: u64 = 0x6367_7270;
const NSFS: u64 = 0x6e73_6673;
const EFIVARFS: u64 = 0xde5e_81e4;

const NOT_MEASURED: &[u64] = &[
    PROC,
    SYSFS,
    DEBUGFS,
    TMPFS,
    DEVPTS,
    BINFMT_MISC,
    SECURITYFS,
    SELINUXFS,
    SMACKFS,
    CGROUP_V1,
    CGROUP_V2,
    NSFS,
    EFIVARFS,
];

const NOT_APPRAISED: &[u64] = &[
    PROC,
    SYSFS,
    DEBUGFS,
    TMPFS,
    RAMFS,
    DEVPTS,
    BINFMT_MISC,
    SECURITYFS,
    SELINUXFS,
    SMACKFS,
    NSFS,
    EFIVARFS,
    CGROUP_V1,
    CGROUP_V2,
];

fn tcb(files: &[Rule]) -> Vec<Rule> {
    let mut rules = exclusions(Action::DontMeasure, NOT_MEASURED);
    rules.push(measure(Func::MmapCheck, Some(MaskCondition::Exact(Mask::MAY_EXEC))));
    rules.push(measure(Func::BprmCheck, Some(MaskCondition::Exact(Mask::MAY_EXEC))));
    rules.extend_from_slice(files);
    rules
}

fn exclusions(action: Action, filesystems: &[u64]) -> Vec<Rule> {
    filesystems.iter().map(|magic| Rule { fsmagic: Some(*magic), ..Rule::new(action) }).collect()
}

fn measure(func: Func, mask: Option<MaskCondition>) -> Rule {
    Rule { func: Some(func), mask, ..Rule::new(Action::Measure) }
}

/// `appraise func=… appraise_type=imasig`, as kernels have it within them.
pub fn appraise_signed(func: Func) -> Rule {
    Rule { func: Some(func), appraise_type: Some(AppraiseType::Imasig), ..Rule::new(Action::Appraise) }
}
