//! The file `evm` in securityfs: a number whose bits say what EVM does.
//!
//! | bit | meaning |
//! |---|---|
//! | 0x1 | HMACs are made and verified: the HMAC key is loaded |
//! | 0x2 | signatures are verified |
//! | 0x4 | every change of metadata is allowed (deprecated) |
//! | 0x8 | types 3 and 5 need signature version 3 (Linux 7.1 on) |
//! | 0x80000000 | set up: nothing more can be written; never shown when the file is read |
//!
//! Source: Documentation/ABI/testing/evm; security/integrity/evm/evm_secfs.c.

use crate::kernel_number::{self, KernelNumberError};
use std::fmt;
use std::ops::{BitAnd, BitOr, Not};

/// Where the kernel shows it; `/sys/kernel/security/evm` is a link to it.
pub const MODE_FILE: &str = "/sys/kernel/security/integrity/evm/evm";

/// A word that names no bit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no mode of EVM: hmac, x509, allow-metadata-writes, sigv3-required, lock, or a number")]
pub struct UnknownBit(pub String);

/// A set of the mode's bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EvmMode(pub u32);

impl EvmMode {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// HMACs are made and verified.
    pub const HMAC: Self = Self(1);
    /// Signatures are verified.
    pub const X509: Self = Self(2);
    /// Every change of metadata is allowed.
    pub const ALLOW_METADATA_WRITES: Self = Self(4);
    /// Signatures need version 3.
    pub const SIGV3_REQUIRED: Self = Self(8);
    /// Nothing more can be written.
    pub const SETUP_COMPLETE: Self = Self(0x8000_0000);

    /// Each bit with the word that `imara evm` has for it.
    pub const WORDS: [(Self, &'static str); 5] = [
        (Self::HMAC, "hmac"),
        (Self::X509, "x509"),
        (Self::ALLOW_METADATA_WRITES, "allow-metadata-writes"),
        (Self::SIGV3_REQUIRED, "sigv3-required"),
        (Self::SETUP_COMPLETE, "lock"),
    ];

    /// Whether all of these bits are set.
    pub const fn contains(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// Whether any key is loaded: without one EVM judges nothing.
    pub const fn key_loaded(self) -> bool {
        self.0 & (Self::HMAC.0 | Self::X509.0) != 0
    }

    /// Whether the HMAC key can never be loaded any more.
    pub const fn hmac_disabled(self) -> bool {
        self.contains(Self::SETUP_COMPLETE) && !self.contains(Self::HMAC)
    }

    /// The bits that words name, or a number; none for none.
    ///
    /// # Errors
    /// The word that names none.
    pub fn from_words<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<Self, UnknownBit> {
        words.into_iter().try_fold(Self::NONE, |mode, word| {
            let named = Self::WORDS.into_iter().find(|(_, name)| *name == word).map(|(bit, _)| bit);
            let bits =
                named.or_else(|| Self::parse(word.as_bytes()).ok()).ok_or_else(|| UnknownBit(word.to_owned()))?;
            Ok(mode | bits)
        })
    }

    /// The words for the bits that are set.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Self::WORDS.into_iter().filter(move |(bit, _)| self.contains(*bit)).map(|(_, word)| word)
    }

    /// What is written to the file, as the kernel reads it: at most 34 bytes, up to a zero byte.
    ///
    /// # Errors
    /// [`KernelNumberError`]: no number (`EINVAL`), or one that does not fit (`ERANGE`).
    pub fn parse(text: &[u8]) -> Result<Self, KernelNumberError> {
        let text = text.get(..34).unwrap_or(text);
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        kernel_number::parse_u32(text).map(Self)
    }

    /// What the file shows: decimal, without the highest bit and without a newline.
    pub fn to_text(self) -> String {
        (self & !Self::SETUP_COMPLETE).0.to_string()
    }
}

impl BitOr for EvmMode {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for EvmMode {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for EvmMode {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Display for EvmMode {
    /// `hmac, x509, lock`; bits without a word as a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        let mut rest = *self;
        for (bit, word) in Self::WORDS {
            if self.contains(bit) {
                words.push(word.to_owned());
                rest = rest & !bit;
            }
        }
        if rest != Self::NONE {
            words.push(format!("{:#x}", rest.0));
        }
        if words.is_empty() { f.write_str("off") } else { f.write_str(&words.join(", ")) }
    }
}

impl fmt::Debug for EvmMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ({self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_kernel_reads_it() {
        let long = [&[b'0'; 33][..], b"2junk"].concat();
        for (text, expected) in [
            (&b"2"[..], Ok(EvmMode::X509)),
            (b"0x80000002\n", Ok(EvmMode::SETUP_COMPLETE | EvmMode::X509)),
            (b"010", Ok(EvmMode::SIGV3_REQUIRED)),
            (b"2\0junk", Ok(EvmMode::X509)),
            // What comes after 34 bytes is never looked at.
            (&long, Ok(EvmMode::X509)),
            (b"abc", Err(KernelNumberError::Invalid)),
            (b" 2", Err(KernelNumberError::Invalid)),
            (b"-1", Err(KernelNumberError::Invalid)),
            (b"0x80000000junk", Err(KernelNumberError::Invalid)),
            (b"", Err(KernelNumberError::Invalid)),
            (b"4294967296", Err(KernelNumberError::Range(32))),
        ] {
            assert_eq!(EvmMode::parse(text), expected, "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_is_shown_hides_the_lock_and_has_no_newline() {
        assert_eq!((EvmMode::SETUP_COMPLETE | EvmMode::X509).to_text(), "2");
        assert_eq!(EvmMode::NONE.to_text(), "0");
        assert_eq!((EvmMode::SETUP_COMPLETE | EvmMode::HMAC).to_string(), "hmac, lock");
        assert_eq!(EvmMode(0x42).to_string(), "x509, 0x40");
        assert_eq!(EvmMode::NONE.to_string(), "off");
    }

    #[test]
    fn bits_are_named_by_words_or_numbers() {
        assert_eq!(EvmMode::from_words(["hmac", "lock"]), Ok(EvmMode::HMAC | EvmMode::SETUP_COMPLETE));
        assert_eq!(EvmMode::from_words(["0x80000002"]), Ok(EvmMode::X509 | EvmMode::SETUP_COMPLETE));
        assert_eq!(EvmMode::from_words([]), Ok(EvmMode::NONE));
        assert_eq!(EvmMode::from_words(["x509", "HMAC"]), Err(UnknownBit("HMAC".into())));
        assert_eq!(EvmMode(3).words().collect::<Vec<_>>(), ["hmac", "x509"]);
    }

    #[test]
    fn a_key_that_can_never_come_is_told_from_one_that_is_not_there_yet() {
        assert!((EvmMode::SETUP_COMPLETE | EvmMode::X509).hmac_disabled());
        assert!(!EvmMode::X509.hmac_disabled());
        assert!(!(EvmMode::SETUP_COMPLETE | EvmMode::HMAC).hmac_disabled());
        assert!(EvmMode::SETUP_COMPLETE.hmac_disabled() && !EvmMode::SETUP_COMPLETE.key_loaded());
    }
}
