//! What a write to the file `evm` does: bits are only ever added, but for one, and a lock ends it.
//!
//! Source: `evm_write_key`, security/integrity/evm/evm_secfs.c.

use imara_format::evm::EvmMode;
use imara_format::kernel_number::KernelNumberError;
use imara_format::policy::KernelVersion;

/// A write that is refused; the mode stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// It was locked, or the writer is not privileged.
    #[error("{0}")]
    NotPermitted(NotPermitted),
    /// No number.
    #[error(transparent)]
    Number(KernelNumberError),
    /// Zero, or a bit that means nothing.
    #[error("{0:?} is no mode: the bits are 1 (hmac), 2 (x509), 4 (allow-metadata-writes){sigv3} and 0x80000000 (lock), at least one of them",
        sigv3 = if *.1 >= KernelVersion::Latest { ", 8 (sigv3-required)" } else { "" })]
    NoMode(EvmMode, KernelVersion),
    /// The HMAC key could not be had. Whatever it is, the kernel says ENOENT; a key of a wrong length is EINVAL.
    #[error("the EVM key: {what}")]
    Key {
        /// What happened.
        what: String,
        /// The error number's name.
        errno: &'static str,
    },
}

/// Why a write is not permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotPermitted {
    /// The set-up is complete.
    #[error("EVM's mode is locked until the next start")]
    Locked,
    /// The writer lacks CAP_SYS_ADMIN.
    #[error("it takes CAP_SYS_ADMIN")]
    Unprivileged,
    /// Metadata cannot be let go once HMACs are made.
    #[error("metadata writes cannot be allowed while HMACs are verified")]
    HmacInUse,
}

impl ModeError {
    /// The error number's name.
    pub const fn errno(&self) -> &'static str {
        match self {
            Self::NotPermitted(_) => "EPERM",
            Self::Number(KernelNumberError::Invalid) | Self::NoMode(..) => "EINVAL",
            Self::Number(KernelNumberError::Range(_)) => "ERANGE",
            Self::Key { errno, .. } => errno,
        }
    }
}

/// The mode after `text` was written in `mode`. `load_key` is asked for the HMAC key where that is to be loaded.
///
/// # Errors
/// [`ModeError`], in the kernel's order.
pub fn write(
    mode: EvmMode,
    text: &[u8],
    kernel: KernelVersion,
    privileged: bool,
    load_key: impl FnOnce() -> Result<(), ModeError>,
) -> Result<EvmMode, ModeError> {
    if !privileged {
        return Err(ModeError::NotPermitted(NotPermitted::Unprivileged));
    }
    if mode.contains(EvmMode::SETUP_COMPLETE) {
        return Err(ModeError::NotPermitted(NotPermitted::Locked));
    }
    let asked = EvmMode::parse(text).map_err(ModeError::Number)?;
    let mut known = EvmMode::HMAC | EvmMode::X509 | EvmMode::ALLOW_METADATA_WRITES | EvmMode::SETUP_COMPLETE;
    if kernel >= KernelVersion::Latest {
        known = known | EvmMode::SIGV3_REQUIRED;
    }
    if asked == EvmMode::NONE || !known.contains(asked) {
        return Err(ModeError::NoMode(asked, kernel));
    }
    if asked.contains(EvmMode::ALLOW_METADATA_WRITES) && mode.contains(EvmMode::HMAC) {
        return Err(ModeError::NotPermitted(NotPermitted::HmacInUse));
    }
    if !asked.contains(EvmMode::HMAC) {
        return Ok(mode | asked);
    }
    load_key()?;
    Ok((mode | asked | EvmMode::SETUP_COMPLETE) & !EvmMode::ALLOW_METADATA_WRITES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_does_what_the_kernel_does() {
        const LOCK: u32 = 0x8000_0000;
        let missing = || ModeError::Key { what: "none".into(), errno: "ENOENT" };
        for (name, before, text, key, expected) in [
            ("locked", LOCK | 2, "2", true, Err("EPERM")),
            ("locked and nonsense", LOCK, "abc", true, Err("EPERM")),
            ("no number", 0, "abc", true, Err("EINVAL")),
            ("blank before it", 0, " 2", true, Err("EINVAL")),
            ("negative", 0, "-1", true, Err("EINVAL")),
            ("more than a number", 0, "0x80000000junk", true, Err("EINVAL")),
            ("too large", 0, "4294967296", true, Err("ERANGE")),
            ("nothing", 0, "0", true, Err("EINVAL")),
            ("bit 8", 0, "8", true, Err("EINVAL")),
            ("bit 8, octal", 0, "010", true, Err("EINVAL")),
            ("bit 0x10", 0, "0x10", true, Err("EINVAL")),
            ("x509", 0, "2", true, Ok(2)),
            ("x509, newline", 0, "2\n", true, Ok(2)),
            ("allow writes", 0, "4", true, Ok(4)),
            ("both", 0, "6", true, Ok(6)),
            ("added", 2, "4", true, Ok(6)),
            ("added the other way round", 4, "2", true, Ok(6)),
            ("hmac without a key", 0, "1", false, Err("ENOENT")),
            ("hmac and more without a key", 2, "3", false, Err("ENOENT")),
            ("hmac", 0, "1", true, Ok(LOCK | 1)),
            ("hmac added", 2, "1", true, Ok(LOCK | 3)),
            ("hmac takes the allowance away", 6, "1", true, Ok(LOCK | 3)),
            ("hmac and the allowance", 0, "5", true, Ok(LOCK | 1)),
            ("x509, locked", 0, "0x80000002", true, Ok(LOCK | 2)),
            ("the lock alone", 0, "0x80000000", true, Ok(LOCK)),
            ("the lock alone, decimal", 2, "2147483648", true, Ok(LOCK | 2)),
        ] {
            let load = || if key { Ok(()) } else { Err(missing()) };
            let written = write(EvmMode(before), text.as_bytes(), KernelVersion::V6_12, true, load);
            assert_eq!(written.as_ref().map(|mode| mode.0).map_err(ModeError::errno), expected, "{name}");
        }
    }

    #[test]
    fn what_differs_between_versions_and_writers() {
        let write = |mode, text: &str, kernel, privileged| {
            write(EvmMode(mode), text.as_bytes(), kernel, privileged, || Ok(())).map(|mode| mode.0)
        };
        assert_eq!(write(0, "8", KernelVersion::Latest, true), Ok(8));
        assert_eq!(write(2, "2", KernelVersion::Latest, false).unwrap_err().errno(), "EPERM");
        // Only a key that kernel code has set leaves the mode unlocked with HMACs in use.
        assert_eq!(write(1, "4", KernelVersion::V6_1, true).unwrap_err().errno(), "EPERM");
    }

    #[test]
    fn the_key_is_not_asked_for_unless_it_is_to_be_loaded() {
        for text in ["2", "0x80000002", "nonsense", "0"] {
            let _ = write(EvmMode::NONE, text.as_bytes(), KernelVersion::V6_1, true, || panic!("{text}"));
        }
    }
}
