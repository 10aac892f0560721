//! The version that a policy states, so that whoever loads it can refuse one that is older.
//!
//! ```text
//! # policy-version: 42
//! ```
//!
//! It stands in a comment, which every kernel skips; blanks around it do not matter. Imara's own convention: the kernel's
//! language has none.

use super::lines;

const KEY: &[u8] = b"policy-version:";

/// Why a policy's statement of its version cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Not a number.
    #[error("line {line}: the policy version `{found}` is not a number from 0 to 18446744073709551615")]
    NotANumber {
        /// The line.
        line: usize,
        /// What stands there, cut to its first 32 characters.
        found: String,
    },
    /// Another statement before it.
    #[error("line {line}: a second policy version; line {first} states one")]
    Twice {
        /// The line.
        line: usize,
        /// The line of the first.
        first: usize,
    },
}

/// The version that a policy states; `None` where it states none.
///
/// # Errors
/// [`VersionError`].
pub fn stated_version(text: &[u8]) -> Result<Option<u64>, VersionError> {
    let mut stated: Option<(usize, u64)> = None;
    for (line, content) in lines(text) {
        let comment = content.trim_ascii_start().strip_prefix(b"#").map(<[u8]>::trim_ascii);
        let Some(value) = comment.and_then(|comment| comment.strip_prefix(KEY)) else {
            continue;
        };
        if let Some((first, _)) = stated {
            return Err(VersionError::Twice { line, first });
        }
        let value = String::from_utf8_lossy(value.trim_ascii()).into_owned();
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        match value.parse() {
            Ok(version) if digits => stated = Some((line, version)),
            _ => return Err(VersionError::NotANumber { line, found: value.chars().take(32).collect() }),
        }
    }
    Ok(stated.map(|(_, version)| version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_its_comment_alone() {
        let not = |line, found: &str| Err(VersionError::NotANumber { line, found: found.to_owned() });
        for (text, expected) in [
            ("", Ok(None)),
            ("measure\n", Ok(None)),
            ("# policy-version: 42\nmeasure\n", Ok(Some(42))),
            ("measure\n\t #policy-version:7 \r\n", Ok(Some(7))),
            ("# policy-version: 18446744073709551615", Ok(Some(u64::MAX))),
            ("# the policy-version: 3 is old", Ok(None)),
            ("policy-version: 3", Ok(None)),
            ("\n# policy-version: 18446744073709551616", not(2, "18446744073709551616")),
            ("# policy-version:", not(1, "")),
            ("# policy-version: +3", not(1, "+3")),
            ("# policy-version: -3", not(1, "-3")),
            ("# policy-version: 3 4", not(1, "3 4")),
            ("# policy-version: 1\n\n# policy-version: 1", Err(VersionError::Twice { line: 3, first: 1 })),
        ] {
            assert_eq!(stated_version(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(stated_version(b"# policy-version: \xff"), not(1, "\u{fffd}"));
    }
}
