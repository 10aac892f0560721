//! What the integrity subsystem makes of a file: IMA and EVM share the statuses.
//!
//! Source: `enum integrity_status`, include/linux/integrity.h; `integrity_status_msg`, security/integrity/evm/evm_main.c.

use std::fmt;

/// A status, in the kernel's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IntegrityStatus {
    /// The label matches.
    Pass,
    /// A portable signature matches: nothing that it covers may change.
    PassImmutable,
    /// The label does not match, or cannot be checked.
    Fail,
    /// A portable signature does not match.
    FailImmutable,
    /// There is no label.
    NoLabel,
    /// There is no label, and nothing for one to protect.
    NoXattrs,
    /// It cannot be judged: no key, or no place for labels.
    Unknown,
}

impl IntegrityStatus {
    /// All, in the kernel's order.
    pub const ALL: [Self; 7] = [
        Self::Pass,
        Self::PassImmutable,
        Self::Fail,
        Self::FailImmutable,
        Self::NoLabel,
        Self::NoXattrs,
        Self::Unknown,
    ];

    /// The words of the kernel's audit records.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::PassImmutable => "pass_immutable",
            Self::Fail => "fail",
            Self::FailImmutable => "fail_immutable",
            Self::NoLabel => "no_label",
            Self::NoXattrs => "no_xattrs",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a label verified.
    pub const fn passes(self) -> bool {
        matches!(self, Self::Pass | Self::PassImmutable)
    }
}

impl fmt::Display for IntegrityStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}
