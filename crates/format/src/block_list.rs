//! Lists of digests and keys that are never taken, as text.
//!
//! A line is an entry; what follows a `#`, and blank lines, are left out.
//!
//! | entry | what is never taken |
//! |---|---|
//! | `bin:HEX` | a file with this digest; its length says which hash: SHA-1, SHA-224, SHA-256, SHA-384 or SHA-512 |
//! | `ALGORITHM:HEX` | a file with this digest |
//! | `tbs:HEX` | a certificate whose signed part has this digest |
//! | `id:HEX` | whatever is signed with a key whose id ends so (4 bytes at least) |
//!
//! `bin:` and `tbs:` are the descriptions of the keys in the kernel's `.blacklist`. The form in which the kernel is given them when it is
//! built (CONFIG_SYSTEM_BLACKLIST_HASH_LIST: in quotes, and with a comma) is read as well.
//!
//! Source: certs/blacklist.c, scripts/check-blacklist-hashes.awk.

use crate::hash::{Digest, HashAlgorithm, from_hex};

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// A file's content.
    Content(Digest),
    /// A certificate, by the digest of what its issuer signed.
    Certificate(Vec<u8>),
    /// A key, by the end of its id, at least 4 bytes of it.
    Key(Vec<u8>),
}

/// A line that is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BlockListError {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: EntryError,
}

/// Text that is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Neither of the words before the colon.
    #[error("`{0}` is no entry: bin:HEX, tbs:HEX, id:HEX or ALGORITHM:HEX is needed")]
    Form(String),
    /// Digits that are none, or an odd number of them.
    #[error("`{0}` has no hexadecimal digits, two for each byte, behind the colon")]
    Digits(String),
    /// A digest of a length that no hash has.
    #[error("{found} bytes, where {needed} are needed")]
    Length {
        /// Bytes found.
        found: usize,
        /// What is needed.
        needed: &'static str,
    },
}

/// Reads an entry.
///
/// # Errors
/// [`EntryError`].
pub fn parse_entry(text: &str) -> Result<Blocked, EntryError> {
    let shown = || text.chars().take(80).collect::<String>();
    let (kind, digits) = text.split_once(':').ok_or_else(|| EntryError::Form(shown()))?;
    let bytes = from_hex(digits).map_err(|_| EntryError::Digits(shown()));
    let found = digits.len() / 2;
    match kind {
        "bin" => {
            let bytes = bytes?;
            let algorithm = match bytes.len() {
                20 => HashAlgorithm::Sha1,
                28 => HashAlgorithm::Sha224,
                32 => HashAlgorithm::Sha256,
                48 => HashAlgorithm::Sha384,
                64 => HashAlgorithm::Sha512,
                _ => return Err(EntryError::Length { found, needed: "20, 28, 32, 48 or 64" }),
            };
            digest(algorithm, &bytes)
        }
        "tbs" => match bytes? {
            bytes if bytes.len() < 16 => Err(EntryError::Length { found, needed: "those of a digest" }),
            bytes => Ok(Blocked::Certificate(bytes)),
        },
        "id" => match bytes? {
            bytes if bytes.len() < 4 => Err(EntryError::Length { found, needed: "4 or more" }),
            bytes => Ok(Blocked::Key(bytes)),
        },
        name => match HashAlgorithm::from_name(name) {
            Some(algorithm) => digest(algorithm, &bytes?),
            None => Err(EntryError::Form(shown())),
        },
    }
}

fn digest(algorithm: HashAlgorithm, bytes: &[u8]) -> Result<Blocked, EntryError> {
    let length = EntryError::Length { found: bytes.len(), needed: "as many as the hash has" };
    Digest::new(algorithm, bytes).map(Blocked::Content).map_err(|_| length)
}

/// Reads a list.
///
/// # Errors
/// [`BlockListError`] with the first line that is no entry: a list that is not understood whole blocks too little.
pub fn parse(text: &str) -> Result<Vec<Blocked>, BlockListError> {
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        // As the kernel's build has it.
        for entry in line.split(',').map(|entry| entry.trim().trim_matches('"')).filter(|entry| !entry.is_empty()) {
            entries.push(parse_entry(entry).map_err(|what| BlockListError { line: number, what })?);
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_read_or_refused_with_the_reason() {
        let content =
            |algorithm, length: usize| Ok(vec![Blocked::Content(Digest::new(algorithm, &vec![0xab; length]).unwrap())]);
        let hex = |length: usize| "ab".repeat(length);
        for (text, expected) in [
            (format!("bin:{}", hex(20)), content(HashAlgorithm::Sha1, 20)),
            (format!("  bin:{}  # why", hex(32)), content(HashAlgorithm::Sha256, 32)),
            (format!("\"bin:{}\",", hex(64).to_uppercase()), content(HashAlgorithm::Sha512, 64)),
            (format!("sm3:{}", hex(32)), content(HashAlgorithm::Sm3, 32)),
            (format!("tbs:{}", hex(32)), Ok(vec![Blocked::Certificate(vec![0xab; 32])])),
            (format!("id:{}", hex(4)), Ok(vec![Blocked::Key(vec![0xab; 4])])),
            ("# nothing\n\n".into(), Ok(vec![])),
        ] {
            assert_eq!(parse(&text), expected, "{text}");
        }
        for (text, reason) in [
            ("abab", "line 1: `abab` is no entry"),
            ("# one\nbin:ab", "line 2: 1 bytes, where 20, 28, 32, 48 or 64 are needed"),
            ("bin:xy", "no hexadecimal digits"),
            ("sha256:abab", "2 bytes, where as many as the hash has are needed"),
            ("md9:abab", "is no entry"),
            ("id:ab", "1 bytes, where 4 or more are needed"),
            ("tbs:ab", "1 bytes, where those of a digest are needed"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_none(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
