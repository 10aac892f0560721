//! What is told of a decision afterwards: the kernel's audit records, in a form that any sink can take.

use crate::appraise::Cause;
use crate::cache::InodeId;
use crate::integrity_status::IntegrityStatus;
use imara_format::hash::Digest;
use imara_format::policy::Func;

/// The task that a record is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskIdentity {
    /// Thread.
    pub tid: i32,
    /// Process (thread group).
    pub pid: i32,
    /// Parent process.
    pub parent: i32,
    /// Real, effective, saved and file system user.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group.
    pub gids: [u32; 4],
    /// Login user, 4294967295 when unset.
    pub login_uid: u32,
    /// Audit session, 4294967295 when unset.
    pub session: u32,
    /// The command's name.
    pub command: Vec<u8>,
    /// The program's path.
    pub executable: Vec<u8>,
    /// Its label by the security module in force; empty without one.
    pub context: Vec<u8>,
}

/// One record.
#[derive(Clone, Debug)]
pub enum AuditRecord {
    /// An access did not pass its appraisal (`INTEGRITY_DATA`); `denied` says whether it was refused for it.
    Data {
        /// The hook that asked.
        func: Func,
        /// Why.
        cause: Cause,
        /// More of it, for people.
        detail: String,
        /// Who asked.
        task: TaskIdentity,
        /// The file's path.
        path: Vec<u8>,
        /// The inode.
        inode: InodeId,
        /// The rule that asked for it, by its index.
        rule: Option<usize>,
        /// Whether the access was refused.
        denied: bool,
        /// Whether the file was given the label that it lacked (fix mode).
        fixed: bool,
    },
    /// Protected metadata was changed as EVM would not have let it (`INTEGRITY_METADATA`); it was seen only afterwards.
    Metadata {
        /// The file's status before.
        status: IntegrityStatus,
        /// What was changed, for people.
        what: String,
        /// Who did it; all zeros where that is not known.
        task: TaskIdentity,
        /// The file's path.
        path: Vec<u8>,
        /// The inode.
        inode: InodeId,
    },
    /// An `audit` rule matched (`INTEGRITY_RULE`).
    Rule {
        /// The content's digest.
        digest: Digest,
        /// Who asked.
        task: TaskIdentity,
        /// The file's path.
        path: Vec<u8>,
    },
    /// The policy was replaced, or was not (`INTEGRITY_STATUS`).
    Status {
        /// `policy_update`.
        op: &'static str,
        /// `completed` or `failed`.
        cause: &'static str,
        /// Who did it.
        task: TaskIdentity,
        /// The policy's path.
        path: Vec<u8>,
        /// Whether it was done.
        success: bool,
    },
    /// A measured file was open for writing (`INTEGRITY_PCR`).
    Violation {
        /// `open_writers` or `ToMToU`.
        cause: &'static str,
        /// Who asked.
        task: TaskIdentity,
        /// The file's path.
        path: Vec<u8>,
        /// The inode.
        inode: InodeId,
    },
}

/// Takes records. It must not block: a decision waits for it.
pub trait AuditSink: Send + Sync {
    /// Takes one.
    fn record(&self, record: AuditRecord);
}
