//! What is noted beside a sealed blob, so that it can be told why it is not unsealed: nothing in it is secret, and nothing is
//! believed that the TPM does not prove.
//!
//! | line | meaning |
//! |---|---|
//! | `imara-sealed 1` | what this is |
//! | `sealed NAME` | the name of the sealed object whose record it is |
//! | `parent NAME` | the name of the parent key: another one cannot unseal it |
//! | `tpm NAME` | the name of the TPM's endorsement key on P-256, which `TPM2_Clear` leaves as it is |
//! | `pcrs sha256:7,11` | the PCRs of its policy, in the policy's order |
//! | `auth` | the policy has the authorisation value too |
//! | `sha256:7 HEX` | a value that the PCR has to have |
//! | `or` | another set of values follows, that will do as well |
//!
//! A blob alone has none of this: its policy is a digest, and its parent a handle.

use crate::hash::{HashAlgorithm, from_hex, to_hex};
use crate::pcr::{PcrErrorKind, PcrValues};
use crate::tpm::{PcrSelection, SelectionError};

/// What is noted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SealedRecord {
    /// The name of the sealed object.
    pub sealed: Option<Vec<u8>>,
    /// The parent's name.
    pub parent: Option<Vec<u8>>,
    /// The name of the TPM's endorsement key on P-256.
    pub tpm: Option<Vec<u8>>,
    /// The policy over PCRs.
    pub pcrs: Option<PcrRecord>,
}

/// A policy over PCRs, with the values that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrRecord {
    /// The PCRs, in the policy's order.
    pub selection: PcrSelection,
    /// The sets of values, of which one will do.
    pub sets: Vec<PcrValues>,
    /// Whether the authorisation value counts too.
    pub with_auth: bool,
}

/// Text that is no such record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The first line is another.
    #[error("line 1: no record of a sealed key: `{FIRST}` is needed")]
    First,
    /// A line that means nothing.
    #[error("line {line}: `{found}` means nothing here")]
    Line {
        /// Which one.
        line: usize,
        /// Its beginning.
        found: String,
    },
    /// A selection of PCRs.
    #[error("line {line}: {error}")]
    Selection {
        /// Which one.
        line: usize,
        /// What is wrong.
        error: SelectionError,
    },
    /// A PCR's value.
    #[error("line {line}: {error}")]
    Value {
        /// Which one.
        line: usize,
        /// What is wrong.
        error: PcrErrorKind,
    },
}

const FIRST: &str = "imara-sealed 1";

impl SealedRecord {
    /// Reads text. Blank lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`RecordError`] with the line.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        let mut lines = text.lines().enumerate().map(|(index, line)| (index.saturating_add(1), line.trim()));
        if lines.next().is_none_or(|(_, line)| line != FIRST) {
            return Err(RecordError::First);
        }
        let mut record = Self::default();
        for (line, content) in lines.filter(|(_, content)| !content.is_empty() && !content.starts_with('#')) {
            let unknown = || RecordError::Line { line, found: content.chars().take(40).collect() };
            let name = |text: &str| from_hex(text).ok().filter(|name| !name.is_empty()).ok_or_else(unknown);
            match (content.split_once(' '), &mut record.pcrs) {
                (Some(("sealed", text)), _) => record.sealed = Some(name(text)?),
                (Some(("parent", text)), _) => record.parent = Some(name(text)?),
                (Some(("tpm", text)), _) => record.tpm = Some(name(text)?),
                (Some(("pcrs", text)), pcrs @ None) => {
                    let selection =
                        PcrSelection::parse(text).map_err(|error| RecordError::Selection { line, error })?;
                    *pcrs = Some(PcrRecord { selection, sets: vec![PcrValues::new()], with_auth: false });
                }
                (None, Some(pcrs)) if content == "auth" => pcrs.with_auth = true,
                (None, Some(pcrs)) if content == "or" => pcrs.sets.push(PcrValues::new()),
                (Some(_), Some(pcrs)) if content.contains(':') => {
                    let found = PcrValues::from_text(content, HashAlgorithm::Sha256)
                        .map_err(|error| RecordError::Value { line, error: error.kind })?;
                    let set = pcrs.sets.last_mut().ok_or_else(unknown)?;
                    for (pcr, value) in found.iter() {
                        set.insert(pcr, value).map_err(|_| unknown())?;
                    }
                }
                _ => return Err(unknown()),
            }
        }
        Ok(record)
    }

    /// The text that [`SealedRecord::parse`] reads.
    pub fn to_text(&self) -> String {
        let mut text = format!("{FIRST}\n");
        for (word, name) in [("sealed", &self.sealed), ("parent", &self.parent), ("tpm", &self.tpm)] {
            if let Some(name) = name {
                text.push_str(&format!("{word} {}\n", to_hex(name)));
            }
        }
        if let Some(pcrs) = &self.pcrs {
            text.push_str(&format!("pcrs {}\n", pcrs.selection));
            if pcrs.with_auth {
                text.push_str("auth\n");
            }
            let sets: Vec<String> = pcrs.sets.iter().map(PcrValues::to_text).collect();
            text.push_str(&sets.join("or\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    #[test]
    fn a_record_prints_to_what_it_was_read_from() {
        for body in [
            String::new(),
            "parent 000b11\ntpm 000b22\n".to_owned(),
            "sealed 000b33\nparent 000b11\n".to_owned(),
            format!("parent 000b11\npcrs sha256:7\nauth\nsha256:7 {ZERO}\nor\nsha256:7 {}\n", ZERO.replace('0', "1")),
        ] {
            let text = format!("{FIRST}\n{body}");
            assert_eq!(SealedRecord::parse(&text).unwrap().to_text(), text);
        }
    }

    #[test]
    fn what_is_no_record_is_refused_with_the_line() {
        for (text, reason) in [
            ("", "line 1: no record of a sealed key: `imara-sealed 1` is needed"),
            ("imara-sealed 2\n", "line 1: no record of a sealed key: `imara-sealed 1` is needed"),
            ("imara-sealed 1\nparent xy\n", "line 2: `parent xy` means nothing here"),
            ("imara-sealed 1\n\nauth\n", "line 3: `auth` means nothing here"),
            ("imara-sealed 1\npcrs sha256:99\n", "line 2: `99` is no PCR; there are 0 to 23"),
            ("imara-sealed 1\npcrs sha256:7\nparents 00\n", "line 3: `parents 00` means nothing here"),
        ] {
            assert_eq!(SealedRecord::parse(text).unwrap_err().to_string(), reason, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "imara-sealed 1\n(sealed |parent |tpm |pcrs |sha256:|auth|or|[0-9a-f]{1,8}|:| |\n){0,24}") {
            if let Ok(record) = SealedRecord::parse(&text) {
                prop_assert_eq!(SealedRecord::parse(&record.to_text()), Ok(record));
            }
        }
    }
}
