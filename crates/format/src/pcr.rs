//! PCR values as text: files, `tpm2_pcrread` output, sysfs.
//!
//! | form | lines |
//! |---|---|
//! | ours | `sha256:10 HEX` |
//! | `tpm2_pcrread` | `sha256:`, then `  10: 0xHEX` |
//! | evmctl, TPM 1.2 sysfs | `PCR-10: HEX`, bytes apart or not, of a bank named elsewhere |
//! | TPM 2.0 sysfs | a file `pcr-sha256/10` that holds `HEX` |
//! | beside a quote of tpm2-tools | binary, see `tpm2_tools` |
//!
//! Blank lines and lines that begin with `#` are skipped; hexadecimal digits may be of either case.

use crate::hash::{Digest, DigestLengthError, HashAlgorithm, HexError, from_hex};
use std::collections::BTreeMap;

mod tpm2_tools;

/// Values of PCRs, by bank and number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PcrValues(BTreeMap<(HashAlgorithm, u32), Digest>);

/// PCR values that do not read as such.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {kind}")]
pub struct PcrError {
    /// The line, or the file.
    pub place: String,
    /// What is wrong there.
    pub kind: PcrErrorKind,
}

/// What is wrong with a PCR value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PcrErrorKind {
    /// No form that is known.
    #[error("`{0}` is no PCR value; `sha256:10 HEX`, `PCR-10: HEX` or the output of tpm2_pcrread was needed")]
    Form(String),
    /// A bank's name that is no algorithm's.
    #[error("`{0}` is no bank: no such hash algorithm")]
    Bank(String),
    /// A PCR that no TPM has.
    #[error("`{0}` is no PCR; a number below {PCR_LIMIT} was needed")]
    Number(String),
    /// No hexadecimal digits.
    #[error(transparent)]
    Hex(#[from] HexErrorText),
    /// Too few or too many of them.
    #[error("{algorithm} PCR value has {found} bytes, {needed} needed")]
    Length {
        /// The bank.
        algorithm: HashAlgorithm,
        /// Bytes found.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A value is needed that is not there.
    #[error("there is no value of PCR {pcr}")]
    Missing {
        /// The PCR.
        pcr: u32,
    },
    /// A second, different value for the same PCR.
    #[error("{bank} PCR {pcr} was already given, with another value")]
    Contradiction {
        /// The bank.
        bank: HashAlgorithm,
        /// The PCR.
        pcr: u32,
    },
}

/// A [`HexError`] as text, so that errors can be compared and copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HexErrorText(String);

impl From<HexError> for PcrErrorKind {
    fn from(error: HexError) -> Self {
        Self::Hex(HexErrorText(error.to_string()))
    }
}

impl From<DigestLengthError> for PcrErrorKind {
    fn from(error: DigestLengthError) -> Self {
        let DigestLengthError { algorithm, found, needed } = error;
        Self::Length { algorithm, found, needed }
    }
}

/// PCR numbers from here on are refused.
const PCR_LIMIT: u32 = 64;

impl PcrValues {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads text in any of the forms above; values whose form names no bank are of `bank`.
    ///
    /// # Errors
    /// [`PcrError`] with the line.
    pub fn from_text(text: &str, bank: HashAlgorithm) -> Result<Self, PcrError> {
        let mut values = Self::default();
        let mut section = bank;
        for (index, line) in text.lines().enumerate() {
            values
                .read_line(line.trim(), &mut section)
                .map_err(|kind| PcrError { place: format!("line {}", index.saturating_add(1)), kind })?;
        }
        Ok(values)
    }

    fn read_line(&mut self, line: &str, section: &mut HashAlgorithm) -> Result<(), PcrErrorKind> {
        let unreadable = || PcrErrorKind::Form(line.chars().take(64).collect());
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (bank, rest) = match line.split_once(':') {
            Some((name, "")) => {
                *section = bank_named(name.trim())?;
                return Ok(());
            }
            Some((number, value)) if number.trim().bytes().all(|byte| byte.is_ascii_digit()) => {
                (*section, (number, value))
            }
            Some((number, value)) if number.starts_with("PCR-") => {
                (*section, (number.strip_prefix("PCR-").unwrap_or_default(), value))
            }
            Some((name, rest)) => {
                let (number, value) = rest.trim_start().split_once([' ', '\t', ':', '=']).ok_or_else(unreadable)?;
                (bank_named(name.trim())?, (number, value))
            }
            None => return Err(unreadable()),
        };
        let (number, value) = rest;
        let pcr = pcr_number(number.trim())?;
        let value: String = value.trim_start_matches([':', '=']).split_whitespace().collect();
        let value = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")).unwrap_or(&value);
        self.insert(pcr, Digest::new(bank, &from_hex(value)?)?)
    }

    /// Takes what the files of sysfs's `pcr-ALG` folder hold, by their names.
    ///
    /// # Errors
    /// [`PcrError`] with the file's name.
    pub fn add_sysfs<'a>(
        &mut self,
        bank: HashAlgorithm,
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), PcrError> {
        for (name, content) in files {
            let take = |values: &mut Self| {
                let digest = Digest::new(bank, &from_hex(content.trim())?)?;
                values.insert(pcr_number(name)?, digest)
            };
            take(self).map_err(|kind| PcrError { place: format!("pcr-{bank}/{name}"), kind })?;
        }
        Ok(())
    }

    /// Adds a value; its bank is its algorithm.
    ///
    /// # Errors
    /// [`PcrErrorKind::Contradiction`] when another value is there.
    pub fn insert(&mut self, pcr: u32, value: Digest) -> Result<(), PcrErrorKind> {
        let bank = value.algorithm();
        match self.0.insert((bank, pcr), value) {
            Some(other) if other != value => Err(PcrErrorKind::Contradiction { bank, pcr }),
            _ => Ok(()),
        }
    }

    /// The value of a PCR.
    pub fn value(&self, bank: HashAlgorithm, pcr: u32) -> Option<Digest> {
        self.0.get(&(bank, pcr)).copied()
    }

    /// The banks that have values.
    pub fn banks(&self) -> Vec<HashAlgorithm> {
        let mut banks: Vec<_> = self.0.keys().map(|(bank, _)| *bank).collect();
        banks.dedup();
        banks
    }

    /// All values, by bank and number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Digest)> + '_ {
        self.0.iter().map(|((_, pcr), value)| (*pcr, *value))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As lines `sha256:10 HEX`.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|((bank, pcr), value)| format!("{bank}:{pcr} {}\n", value.to_hex())).collect()
    }
}

/// A bank by the kernel's name of its algorithm, or by the TPM tools'.
fn bank_named(name: &str) -> Result<HashAlgorithm, PcrErrorKind> {
    let kernel_name = match name {
        "sm3_256" | "sm3-256" => "sm3",
        "sha3_256" => "sha3-256",
        "sha3_384" => "sha3-384",
        "sha3_512" => "sha3-512",
        other => other,
    };
    HashAlgorithm::from_name(kernel_name).ok_or_else(|| PcrErrorKind::Bank(name.chars().take(64).collect()))
}

fn pcr_number(text: &str) -> Result<u32, PcrErrorKind> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && *number < PCR_LIMIT);
    number.ok_or_else(|| PcrErrorKind::Number(text.chars().take(64).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_read_in_every_form() {
        let (one, two) = (Digest::ones(HashAlgorithm::Sha1), Digest::zeros(HashAlgorithm::Sha256));
        let (ones, zeros) = ("FF".repeat(20), "00".repeat(32));
        let apart = "ff ".repeat(20);
        for (name, text) in [
            ("lines", format!("# PCRs\n\nsha1:10 {ones}\nsha256:11 {zeros}\n")),
            ("lines with colons", format!("sha1:10: {ones}\nsha256:11: {zeros}\n")),
            ("tpm2_pcrread", format!("  sha1:\n    10: 0x{ones}\n  sha256:\n    11: 0x{zeros}\n")),
            ("tpm2_pcrread, padded", format!("sha1 :\n  10 : {ones}\nsha256 :\n  11 : {zeros}\n")),
            ("evmctl", format!("PCR-10: {apart}\nsha256:11 {zeros}")),
        ] {
            let values = PcrValues::from_text(&text, HashAlgorithm::Sha1).unwrap();
            assert_eq!(values.iter().collect::<Vec<_>>(), [(10, one), (11, two)], "{name}");
            assert_eq!(PcrValues::from_text(&values.to_text(), HashAlgorithm::Sm3), Ok(values), "{name}");
        }
        let mut values = PcrValues::new();
        values.add_sysfs(HashAlgorithm::Sha1, [("10", format!("{ones}\n").as_str())]).unwrap();
        assert_eq!(values.value(HashAlgorithm::Sha1, 10), Some(one));
        assert_eq!(values.banks(), [HashAlgorithm::Sha1]);
    }

    #[test]
    fn what_is_no_value_is_refused_with_its_line() {
        let ones = "ff".repeat(20);
        for (text, expected) in [
            ("\nsha1:10 ff".to_owned(), "line 2: sha1 PCR value has 1 bytes, 20 needed"),
            (
                "hello".to_owned(),
                "line 1: `hello` is no PCR value; `sha256:10 HEX`, `PCR-10: HEX` or the output of tpm2_pcrread was needed",
            ),
            (format!("sha2:10 {ones}"), "line 1: `sha2` is no bank: no such hash algorithm"),
            (format!("sha1:x {ones}"), "line 1: `x` is no PCR; a number below 64 was needed"),
            (format!("sha1:10 {}g", &ones[1..]), "line 1: 0x67 at offset 39 is not a hexadecimal digit"),
            (
                format!("sha1:10 {ones}\nsha1:10 {}", "00".repeat(20)),
                "line 2: sha1 PCR 10 was already given, with another value",
            ),
        ] {
            assert_eq!(PcrValues::from_text(&text, HashAlgorithm::Sha1).unwrap_err().to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(sha1|sha256|PCR-|:|0x| |\n|[0-9a-f]{1,40}|\\PC){0,30}") {
            let _ = PcrValues::from_text(&text, HashAlgorithm::Sha1);
        }
    }
}
