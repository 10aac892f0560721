//! Who may change what EVM protects, and what has to follow a change.
//!
//! One table, [`answer`], says it for each status; [`rule`] asks the questions before it in the kernel's order, and
//! [`follow`] says what comes after a change that was made. Nothing here touches a file, so that whoever can ask before a
//! change (a BPF LSM, say) can load the table as it is.
//!
//! | status | attribute | ACL | mode, owner, group |
//! |---|---|---|---|
//! | pass | allowed | allowed | allowed |
//! | no_xattrs | if no HMAC can ever be, the file is new, or on tmpfs or sysfs | allowed | allowed |
//! | no_label, unknown | if no HMAC can ever be | the same | the same |
//! | fail | refused | refused | refused |
//! | fail_immutable | allowed | allowed | allowed |
//! | pass_immutable | if the value stays the same | if the mode stays the same | if all three stay the same |
//!
//! Source: `evm_inode_setxattr` and its fellows, `evm_protect_xattr`, security/integrity/evm/evm_main.c.

use super::{PORTABLE_TYPE, SIGNATURE_TYPE};
use crate::integrity_status::IntegrityStatus;
use imara_format::evm::{EvmMode, SECURITY_EVM, XattrList};
use imara_format::policy::KernelVersion;

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `security.evm`, or an attribute that is protected.
    Attribute,
    /// A POSIX ACL, which can change the mode.
    Acl,
    /// Mode, owner or group.
    Metadata,
}

/// What a status answers to a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It may be made.
    Allow,
    /// It may not.
    Refuse,
    /// Only where the HMAC key can never be loaded any more.
    IfHmacDisabled,
    /// Only there, for a new file, or where files get their attributes after they were made.
    IfNew,
    /// Only if nothing changes by it.
    IfUnchanged,
}

/// The table.
pub const fn answer(kind: Kind, status: IntegrityStatus) -> Answer {
    match (status, kind) {
        (IntegrityStatus::Pass | IntegrityStatus::FailImmutable, _)
        | (IntegrityStatus::NoXattrs, Kind::Acl | Kind::Metadata) => Answer::Allow,
        (IntegrityStatus::NoXattrs, Kind::Attribute) => Answer::IfNew,
        (IntegrityStatus::NoLabel | IntegrityStatus::Unknown, _) => Answer::IfHmacDisabled,
        (IntegrityStatus::Fail, _) => Answer::Refuse,
        (IntegrityStatus::PassImmutable, _) => Answer::IfUnchanged,
    }
}

/// Whether a refusal is audited.
const fn audited(kind: Kind, status: IntegrityStatus) -> bool {
    // Changes of mode and owner always are; of the others, those of a file whose signature is good are not.
    matches!(kind, Kind::Metadata) || !matches!(status, IntegrityStatus::PassImmutable)
}

/// A change that somebody wants to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Sets an attribute; not an ACL.
    SetXattr {
        /// Its name.
        name: &'a str,
        /// Its new value.
        value: &'a [u8],
        /// Whether that is the one that it has.
        unchanged: bool,
    },
    /// Removes an attribute; not an ACL.
    RemoveXattr {
        /// Its name.
        name: &'a str,
    },
    /// Sets an ACL.
    SetAcl {
        /// Whether the mode stays as it is.
        mode_unchanged: bool,
    },
    /// Removes an ACL.
    RemoveAcl,
    /// Sets mode, owner or group, or none of them (times, size).
    SetAttr {
        /// Whether mode, owner or group are in the request.
        protected: bool,
        /// Whether all that are keep their values.
        unchanged: bool,
    },
}

/// Where the change is to be made, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// The mode.
    pub mode: EvmMode,
    /// Which kernel's rules.
    pub kernel: KernelVersion,
    /// Whether the task has CAP_SYS_ADMIN.
    pub privileged: bool,
    /// Whether it is a regular file: others are never looked at.
    pub regular: bool,
    /// `evm=fix`.
    pub fix: bool,
    /// overlayfs.
    pub overlay: bool,
    /// tmpfs or sysfs.
    pub pseudo: bool,
    /// Whether the file is new: up to Linux 6.8 an appraise rule covers it and it was just created; later it was made by
    /// mknod(2) and its last writer has not gone.
    pub new: bool,
}

/// May it be made?
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// It may.
    Allow,
    /// It may not.
    Refuse {
        /// The error number's name.
        errno: &'static str,
        /// The audit records' `op`, in their order; their `cause` is the status.
        audits: &'static [&'static str],
        /// The status, where it was asked for.
        status: Option<IntegrityStatus>,
    },
}

impl Ruling {
    const fn refuse(errno: &'static str) -> Self {
        Self::Refuse { errno, audits: &[], status: None }
    }
}

/// Rules on a change. `status` is asked for at most once, and only where it decides: asking can have an effect, since a good
/// signature of type 3 becomes an HMAC by it.
pub fn rule(
    operation: Operation<'_>,
    situation: &Situation,
    xattrs: &XattrList,
    status: impl FnOnce() -> IntegrityStatus,
) -> Ruling {
    if situation.mode.contains(EvmMode::ALLOW_METADATA_WRITES) {
        return Ruling::Allow;
    }
    let knows_overlay = situation.overlay && situation.kernel >= KernelVersion::V6_12;
    let kind = match operation {
        Operation::SetXattr { name: SECURITY_EVM, value, .. } => {
            match value.first() {
                None => return Ruling::refuse("EINVAL"),
                Some(&(SIGNATURE_TYPE | PORTABLE_TYPE)) => {}
                Some(_) => return Ruling::refuse("EPERM"),
            }
            if !situation.privileged || knows_overlay {
                return Ruling::refuse("EPERM");
            }
            Kind::Attribute
        }
        Operation::RemoveXattr { name: SECURITY_EVM } => {
            if !situation.privileged || knows_overlay {
                return Ruling::refuse("EPERM");
            }
            Kind::Attribute
        }
        Operation::SetXattr { name, .. } | Operation::RemoveXattr { name } => {
            if !xattrs.protects(name) || knows_overlay {
                return Ruling::Allow;
            }
            Kind::Attribute
        }
        Operation::SetAcl { .. } | Operation::RemoveAcl => {
            if knows_overlay {
                return Ruling::Allow;
            }
            Kind::Acl
        }
        Operation::SetAttr { protected, .. } => {
            if knows_overlay || !protected {
                return Ruling::Allow;
            }
            Kind::Metadata
        }
    };
    let looked_at = situation.mode.key_loaded() && situation.regular && !situation.fix;
    let status = if looked_at { status() } else { IntegrityStatus::Pass };
    let disabled = situation.mode.hmac_disabled();
    let unchanged = match operation {
        Operation::SetXattr { unchanged, .. } | Operation::SetAttr { unchanged, .. } => unchanged,
        Operation::SetAcl { mode_unchanged } => mode_unchanged,
        // Taking away never leaves things as they are.
        Operation::RemoveXattr { .. } | Operation::RemoveAcl => false,
    };
    let allowed = match answer(kind, status) {
        Answer::Allow => true,
        Answer::Refuse => false,
        Answer::IfHmacDisabled => disabled,
        Answer::IfNew => disabled || situation.new || situation.pseudo,
        Answer::IfUnchanged => unchanged,
    };
    if allowed {
        return Ruling::Allow;
    }
    let audits: &[_] = match (kind, status) {
        (Kind::Attribute, IntegrityStatus::NoXattrs) => &["update_metadata", "appraise_metadata"],
        (kind, status) if audited(kind, status) => &["appraise_metadata"],
        _ => &[],
    };
    Ruling::Refuse { errno: "EPERM", audits, status: Some(status) }
}

/// What has to follow a change that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Follow {
    /// What was found out about the file is not so any more.
    pub forget_status: bool,
    /// The HMAC is made anew, unless the label is a portable signature; where no protected attribute is left, the label
    /// goes.
    pub relabel: bool,
}

/// What has to follow.
pub fn follow(operation: Operation<'_>, situation: &Situation, xattrs: &XattrList) -> Follow {
    let (concerns, relabels) = match operation {
        Operation::SetXattr { name, .. } | Operation::RemoveXattr { name } => {
            (name == SECURITY_EVM || xattrs.protects(name), name != SECURITY_EVM)
        }
        Operation::SetAcl { .. } | Operation::RemoveAcl => (true, true),
        Operation::SetAttr { protected, .. } => (true, protected),
    };
    let forget_status = concerns && situation.mode.key_loaded();
    // On overlayfs the file below is labelled; removing lacks the test for it.
    let removes = matches!(operation, Operation::RemoveXattr { .. } | Operation::RemoveAcl);
    let overlay = situation.overlay && situation.kernel >= KernelVersion::V6_12 && !removes;
    Follow { forget_status, relabel: forget_status && relabels && !overlay && situation.mode.contains(EvmMode::HMAC) }
}
