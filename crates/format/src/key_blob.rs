//! The texts that the kernel's `encrypted` and `trusted` key types take and give.
//!
//! A key of these types is made by a command (`new`, `load`, `update`, see [`encrypted::Command`]) that is handed to
//! add_key(2) or `keyctl update` as the payload; reading the key gives its blob, which `load` takes back.

use std::fmt;

pub mod encrypted;

/// The error number that the kernel's key types refuse a command with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// A word, a length or a MAC is wrong.
    Einval,
    /// The master key is not there.
    Enokey,
    /// The master key has expired.
    Ekeyexpired,
    /// The master key was revoked.
    Ekeyrevoked,
    /// The master key may not be used.
    Eacces,
    /// The TPM refuses.
    Eperm,
    /// A sealed key does not fit.
    E2big,
    /// The key type is not built into the kernel.
    Eopnotsupp,
}

impl Errno {
    /// The number's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Einval => "EINVAL",
            Self::Enokey => "ENOKEY",
            Self::Ekeyexpired => "EKEYEXPIRED",
            Self::Ekeyrevoked => "EKEYREVOKED",
            Self::Eacces => "EACCES",
            Self::Eperm => "EPERM",
            Self::E2big => "E2BIG",
            Self::Eopnotsupp => "EOPNOTSUPP",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that somebody gave, as an error shows it: escaped, and only its length where it is long enough to hold a key.
pub(crate) fn shown(text: &[u8]) -> String {
    if text.len() > LONGEST_SHOWN {
        return format!("a word of {} characters", text.len());
    }
    format!("`{}`", text.escape_ascii())
}

/// The shortest key has 20 bytes, which are 40 digits; what is shorter than a part of it that matters may be shown.
const LONGEST_SHOWN: usize = 24;
