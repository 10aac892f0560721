//! The kernel's own IMA, as securityfs shows it.
//!
//! Source: security/integrity/ima/ima_fs.c.

use std::path::Path;

/// The binary measurement list.
pub const BINARY_LIST: &str = "/sys/kernel/security/ima/binary_runtime_measurements";

/// How far the kernel's list has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelIma {
    /// Entries.
    pub entries: u64,
    /// Violations among them.
    pub violations: u64,
}

/// The kernel's IMA; `None` where it has none or securityfs does not show it.
pub fn status() -> Option<KernelIma> {
    let number = |name: &str| {
        let path = Path::new("/sys/kernel/security/ima").join(name);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some(KernelIma { entries: number("runtime_measurements_count")?, violations: number("violations")? })
}

/// The policy in force, where the kernel shows it.
pub const POLICY: &str = "/sys/kernel/security/ima/policy";

/// The text of the kernel's policy; `None` on a kernel without IMA.
///
/// # Errors
/// What reading it says: EACCES without CONFIG_IMA_READ_POLICY, EPERM without CAP_SYS_ADMIN.
pub fn policy() -> std::io::Result<Option<String>> {
    match std::fs::read_to_string(POLICY) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}
