//! The texts that the kernel's `encrypted` and `trusted` key types take and give.
//!
//! A key of these types is made by a command (`new`, `load`, `update`, see [`encrypted::Command`]) that is handed to
//! add_key(2) or `keyctl update` as the payload; reading the key gives its blob, which `load` takes back.

pub use crate::key::Errno;

pub mod encrypted;

/// Text that somebody gave, as an error shows it: escaped, and only its length where it is long enough to hold a key.
pub(crate) fn shown(text: &[u8]) -> String {
    if text.len() > LONGEST_SHOWN {
        return format!("a word of {} characters", text.len());
    }
    format!("`{}`", text.escape_ascii())
}

/// The shortest key has 20 bytes, which are 40 digits; what is shorter than a part of it that matters may be shown.
const LONGEST_SHOWN: usize = 24;
