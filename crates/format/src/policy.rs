//! The IMA policy language: a rule a line, read as the kernel reads it and printed so that the kernel reads it again.
//!
//! ```text
//! policy  = *( line LF )
//! line    = *blank [ rule / "#" anything ]
//! rule    = token *( 1*blank token )            blank = space / tab
//! token   = action / condition / option         no quotes, no escapes, no comment after a rule
//! ```
//!
//! What a rule means is `imara_engine::policy`'s matter; this file knows which rules exist. A rule that one kernel
//! takes another refuses, so every reading is for a [`Target`]. The order of tokens matters in three places only:
//! `template=` after `measure`, `appraise_type=sigv3` after `digest_type=verity`, and no `digest_type=` after an
//! `appraise_type=`.
//!
//! Differs from the kernel on purpose: a value that is not UTF-8 is refused, where the kernel takes any bytes.
//!
//! Source: Documentation/ABI/testing/ima_policy; security/integrity/ima/ima_policy.c.

mod builtin;
mod parse;
mod print;
mod version;
mod words;

pub use crate::uuid::Uuid;
pub use builtin::{BUILTIN_NAMES, appraise_signed, appraise_tcb, builtin};
pub use parse::{Errno, PolicyError, PolicyErrorKind, parse_line};
pub use print::KernelDisplay;
pub use version::{VersionError, stated_version};
pub use words::{Action, AlgorithmSet, Class, Func, KernelVersion, Lsm, LsmField, Mask, TemplateName};

/// Rules in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One rule: an action, the conditions under which it applies, and how it is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What to do, or not to do.
    pub action: Action,
    /// `func=`: the hook; without one, every hook that has a file.
    pub func: Option<Func>,
    /// `mask=`: the access asked for.
    pub mask: Option<MaskCondition>,
    /// `fsmagic=`: the filesystem's magic number.
    pub fsmagic: Option<u64>,
    /// `fsname=`: the filesystem type's name.
    pub fsname: Option<String>,
    /// `fs_subtype=`: the filesystem's subtype, as FUSE filesystems have (newest kernels).
    pub fs_subtype: Option<String>,
    /// `fsuuid=`: the filesystem's UUID, in the order written.
    pub fsuuid: Option<[u8; 16]>,
    /// `uid=`: the real user.
    pub uid: Option<IdCondition>,
    /// `euid=`: the effective user; with CAP_SETUID, any of effective, saved and real.
    pub euid: Option<IdCondition>,
    /// `gid=`: the real group.
    pub gid: Option<IdCondition>,
    /// `egid=`: the effective group; with CAP_SETGID, any of effective, saved and real.
    pub egid: Option<IdCondition>,
    /// `fowner=`: the file's owner.
    pub fowner: Option<IdCondition>,
    /// `fgroup=`: the file's group.
    pub fgroup: Option<IdCondition>,
    /// `obj_user=` … `subj_type=`: labels of the file and of the subject; at most one for each field.
    pub lsm: Vec<LsmCondition>,
    /// `pcr=`: the PCR to extend instead of the configured one.
    pub pcr: Option<u32>,
    /// `template=`: the template to measure with.
    pub template: Option<TemplateName>,
    /// `keyrings=`: the keyrings a KEY_CHECK rule is for; empty stands for all.
    pub keyrings: Vec<String>,
    /// `label=`: the data a CRITICAL_DATA rule is for; empty stands for all.
    pub label: Vec<String>,
    /// `digest_type=verity`: the file's fs-verity digest, not the digest of its contents.
    pub verity: bool,
    /// `appraise_type=`: a signature is required.
    pub appraise_type: Option<AppraiseType>,
    /// Whether `appraise_flag=` was written and had an effect (only kernels up to 6.1 give it one).
    pub appraise_flag: bool,
    /// Whether the blacklist is consulted: by [`appraise_flag`](Self::appraise_flag) up to 6.1, with every
    /// `appraise_type=` since.
    pub check_blacklist: bool,
    /// `appraise_algos=`: the hash algorithms accepted in a label; `None` stands for all.
    pub appraise_algos: Option<AlgorithmSet>,
    /// `permit_directio`: files opened with O_DIRECT are not refused.
    pub permit_directio: bool,
    /// The line it stands in, from 1; 0 for a rule that was not read.
    pub line: usize,
}

/// `mask=NAME` or `mask=^NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskCondition {
    /// The access is exactly this: `mask=MAY_READ` is false for a file opened to read and write.
    Exact(Mask),
    /// The access contains this.
    Contains(Mask),
}

/// How an id is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `=`.
    Equal,
    /// `>`.
    Greater,
    /// `<`.
    Less,
}

/// A condition on a user or group id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdCondition {
    /// How.
    pub op: Operator,
    /// With what.
    pub id: u32,
}

/// A condition on a label of the system's security module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LsmCondition {
    /// Which part of which label.
    pub field: LsmField,
    /// The value, as written.
    pub value: String,
}

/// `appraise_type=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppraiseType {
    /// `imasig`: a signature in `security.ima`.
    Imasig,
    /// `imasig|modsig`: that, or one appended to the file.
    ImasigModsig,
    /// `sigv3`: a signature in `security.ima` of the fs-verity digest.
    Sigv3,
}

/// Which kernel, or whose guard, is to take the policy; this decides which rules are valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The kernel whose language is read.
    pub kernel: KernelVersion,
    /// The security module that LSM conditions would ask.
    pub lsm: Lsm,
    /// What becomes of an LSM condition.
    pub lsm_labels: LsmLabels,
    /// Whether appended signatures (`modsig`) are built in.
    pub modsig: bool,
    /// Whether keys can be measured (`keyrings=`).
    pub key_measurement: bool,
    /// The hash algorithms that the kernel can compute: `appraise_algos=` refuses all others.
    pub algorithms: AlgorithmSet,
}

/// What becomes of an LSM condition, i.e. whether the security module knows the label that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LsmLabels {
    /// It knows none: the rule is refused, as a kernel does with the first policy after boot.
    Unknown,
    /// It knows all that it has fields for: the rule is taken.
    Known,
    /// All rules are taken; one whose field the module lacks never matches, as with a policy added to another.
    Inactive,
}

impl Target {
    /// A kernel of that version as distributions build it: keys are measured, appended signatures are not read, the
    /// hash algorithms are MD5, SHA-1 and SHA-2, and no label is known.
    pub fn kernel(kernel: KernelVersion) -> Self {
        Self {
            kernel,
            lsm: Lsm::AppArmor,
            lsm_labels: LsmLabels::Unknown,
            modsig: false,
            key_measurement: true,
            algorithms: AlgorithmSet::USUAL,
        }
    }

    /// The guard: the newest language with all its options, and every algorithm that has a name.
    pub fn guard() -> Self {
        Self {
            lsm: Lsm::None,
            lsm_labels: LsmLabels::Inactive,
            modsig: true,
            algorithms: AlgorithmSet::ALL,
            ..Self::kernel(KernelVersion::Latest)
        }
    }
}

impl Policy {
    /// Reads a policy as `target` would take it: a line at a time, comments and empty lines left out.
    ///
    /// A last line without its newline is taken, as the kernel does when rules are written to it; a file that the
    /// kernel is to read by path must end in a newline.
    ///
    /// # Errors
    /// One [`PolicyError`] for each line that is refused.
    pub fn parse(text: &[u8], target: &Target) -> Result<Self, Vec<PolicyError>> {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for (number, line) in lines(text) {
            match parse_line(line, number, target) {
                Ok(rule) => rules.extend(rule),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Self { rules }) } else { Err(errors) }
    }
}

/// The lines of `text` with their numbers, from 1. Only a line feed ends a line; what follows the last one is a line if
/// it is not empty.
pub fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    (1..).zip(text.split(|byte| *byte == b'\n'))
}

impl Rule {
    /// A rule that does `action` for everything.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            func: None,
            mask: None,
            fsmagic: None,
            fsname: None,
            fs_subtype: None,
            fsuuid: None,
            uid: None,
            euid: None,
            gid: None,
            egid: None,
            fowner: None,
            fgroup: None,
            lsm: Vec::new(),
            pcr: None,
            template: None,
            keyrings: Vec::new(),
            label: Vec::new(),
            verity: false,
            appraise_type: None,
            appraise_flag: false,
            check_blacklist: false,
            appraise_algos: None,
            permit_directio: false,
            line: 0,
        }
    }
}

impl IdCondition {
    /// Whether it holds for `id`: ids are compared as unsigned numbers.
    pub const fn holds(self, id: u32) -> bool {
        match self.op {
            Operator::Equal => id == self.id,
            Operator::Greater => id > self.id,
            Operator::Less => id < self.id,
        }
    }
}

impl MaskCondition {
    /// Whether it holds for the access `mask`.
    pub const fn holds(self, mask: u8) -> bool {
        match self {
            Self::Exact(wanted) => mask == wanted.bits(),
            Self::Contains(wanted) => mask & wanted.bits() != 0,
        }
    }
}

impl Operator {
    /// The operator's character.
    pub const fn symbol(self) -> char {
        match self {
            Self::Equal => '=',
            Self::Greater => '>',
            Self::Less => '<',
        }
    }
}

impl AppraiseType {
    /// The name after `appraise_type=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Imasig => "imasig",
            Self::ImasigModsig => "imasig|modsig",
            Self::Sigv3 => "sigv3",
        }
    }
}

#[cfg(test)]
mod tests;
