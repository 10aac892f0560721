//! Selections of PCRs: which PCRs of which banks.
//!
//! | size | meaning |
//! |---|---|
//! | 4 | number of banks |
//! | 2 | the bank's algorithm, each |
//! | 1 | size of the map: 3 in PC Client TPMs, 4 at most |
//! | 3 | the map; PCR n is bit n % 8 of byte n / 8 |
//!
//! As text it is what tpm2-tools take: `sha256:0,7,10+sha1:10`, `sha256:all`.
//!
//! Source: TPML_PCR_SELECTION, TCG TPM 2.0 Library, part 2.

use super::{Reader, StructureError};
use crate::hash::HashAlgorithm;
use std::fmt;

/// Which PCRs of which banks, in an order of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PcrSelection {
    /// The banks' TPM identifiers and their PCRs; bit n is PCR n.
    banks: Vec<(u16, u32)>,
}

/// Text that selects no PCRs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// Not a bank and its PCRs.
    #[error("`{0}` selects no PCRs; a form like `sha256:0,7,10` or `sha1:10+sha256:all` is needed")]
    Form(String),
    /// No algorithm that a bank can have.
    #[error("`{0}` is no PCR bank; there are sha1, sha256, sha384, sha512 and sm3")]
    Bank(String),
    /// No PCR of a PC Client TPM.
    #[error("`{0}` is no PCR; there are 0 to 23")]
    Pcr(String),
    /// The same bank again.
    #[error("the bank {0} is named twice")]
    Twice(HashAlgorithm),
}

/// PCRs of a PC Client TPM.
const PCRS: u32 = 24;
/// The map's size in bytes.
const MAP: u8 = 3;
/// Banks that a selection may have in TPMs and tools.
const MOST_BANKS: u32 = 16;

impl PcrSelection {
    /// PCRs of one bank; none where the TPM has no identifier for the algorithm.
    pub fn of(bank: HashAlgorithm, pcrs: impl IntoIterator<Item = u32>) -> Option<Self> {
        let map = pcrs.into_iter().fold(0, |map, pcr| map | 1_u32.checked_shl(pcr).unwrap_or(0));
        Some(Self { banks: vec![(bank.tpm_id()?, map)] })
    }

    /// PCRs by the banks' TPM identifiers; bit n of a map is PCR n.
    pub fn from_maps(banks: impl IntoIterator<Item = (u16, u32)>) -> Self {
        Self { banks: banks.into_iter().collect() }
    }

    /// Reads text.
    ///
    /// # Errors
    /// [`SelectionError`].
    pub fn parse(text: &str) -> Result<Self, SelectionError> {
        let mut banks: Vec<(u16, u32)> = Vec::new();
        for part in text.split('+') {
            let (name, pcrs) = part.split_once(':').ok_or_else(|| SelectionError::Form(shown(part)))?;
            let algorithm = bank(name.trim()).ok_or_else(|| SelectionError::Bank(shown(name)))?;
            let id = algorithm.tpm_id().ok_or_else(|| SelectionError::Bank(shown(name)))?;
            if banks.iter().any(|(other, _)| *other == id) {
                return Err(SelectionError::Twice(algorithm));
            }
            let mut map = 0;
            for pcr in pcrs.split(',').map(str::trim) {
                map |= match pcr {
                    "all" => ALL,
                    "none" => 0,
                    number => {
                        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
                        let number: Option<u32> = number.parse().ok().filter(|pcr| digits && *pcr < PCRS);
                        let number = number.ok_or_else(|| SelectionError::Pcr(shown(pcr)))?;
                        1_u32.checked_shl(number).unwrap_or(0)
                    }
                };
            }
            banks.push((id, map));
        }
        Ok(Self { banks })
    }

    /// Reads the TPM's form.
    ///
    /// # Errors
    /// [`StructureError`].
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, StructureError> {
        let at = reader.offset();
        let count = reader.u32("number of PCR selections")?;
        if count > MOST_BANKS {
            return Err(reader.malformed("number of PCR selections", at, count.into(), MOST_BANKS.into()));
        }
        let mut banks = Vec::new();
        for _ in 0..count {
            let tpm_id = reader.u16("PCR bank")?;
            let (at, size) = (reader.offset(), reader.u8("size of a PCR selection")?);
            if size > 4 {
                return Err(reader.malformed("size of a PCR selection", at, size.into(), 4));
            }
            let map = reader.bytes("PCR selection", size.into())?;
            banks.push((tpm_id, map.iter().rev().fold(0, |pcrs, byte| pcrs << 8 | u32::from(*byte))));
        }
        Ok(Self { banks })
    }

    /// The TPM's form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from(u32::try_from(self.banks.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (id, map) in &self.banks {
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.push(MAP);
            let [low, middle, high, _] = map.to_le_bytes();
            bytes.extend_from_slice(&[low, middle, high]);
        }
        bytes
    }

    /// The banks' TPM identifiers and the maps of their PCRs, in order.
    pub fn maps(&self) -> &[(u16, u32)] {
        &self.banks
    }

    /// Each PCR, in order: banks as they stand, PCRs ascending. The algorithm is missing where the kernel does not map it.
    pub fn iter(&self) -> impl Iterator<Item = (Option<HashAlgorithm>, u32)> + '_ {
        self.banks.iter().flat_map(|(id, map)| {
            let bank = HashAlgorithm::from_tpm_id(*id);
            (0..u32::BITS).filter(move |pcr| map.checked_shr(*pcr).unwrap_or(0) & 1 == 1).map(move |pcr| (bank, pcr))
        })
    }

    /// Whether no PCR is selected.
    pub fn is_empty(&self) -> bool {
        self.banks.iter().all(|(_, map)| *map == 0)
    }

    /// Whether every PCR of `other` is selected here too.
    pub fn contains(&self, other: &Self) -> bool {
        other.banks.iter().all(|(id, wanted)| {
            let here = self.banks.iter().filter(|(own, _)| own == id).fold(0, |all, (_, map)| all | map);
            wanted & !here == 0
        })
    }
}

impl fmt::Display for PcrSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (id, map)) in self.banks.iter().enumerate() {
            let separator = if place == 0 { "" } else { "+" };
            match HashAlgorithm::from_tpm_id(*id) {
                Some(bank) => write!(f, "{separator}{bank}:")?,
                None => write!(f, "{separator}{id:#06x}:")?,
            }
            match *map {
                0 => f.write_str("none")?,
                ALL => f.write_str("all")?,
                map => {
                    let pcrs = (0..u32::BITS).filter(|pcr| map.checked_shr(*pcr).unwrap_or(0) & 1 == 1);
                    f.write_str(&pcrs.map(|pcr| pcr.to_string()).collect::<Vec<_>>().join(","))?;
                }
            }
        }
        Ok(())
    }
}

const ALL: u32 = 0x00ff_ffff;

/// A bank by the kernel's or tpm2-tools' name.
fn bank(name: &str) -> Option<HashAlgorithm> {
    HashAlgorithm::from_name(if name == "sm3_256" { "sm3" } else { name })
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_and_bytes_of_a_selection_agree() {
        for (text, hex, printed) in [
            ("sha256:10", "00000001000b03000400", "sha256:10"),
            ("sha1:10+sha256:10", "00000002000403000400000b03000400", "sha1:10+sha256:10"),
            ("sha256:23, 0,8,0", "00000001000b03010180", "sha256:0,8,23"),
            ("sha384:all", "00000001000c03ffffff", "sha384:all"),
            ("sha512:none", "00000001000d03000000", "sha512:none"),
        ] {
            let selection = PcrSelection::parse(text).unwrap();
            assert_eq!(crate::hash::to_hex(&selection.to_bytes()), hex);
            assert_eq!(selection.to_string(), printed);
            let bytes = selection.to_bytes();
            let mut reader = Reader::new("a selection", &bytes);
            assert_eq!(PcrSelection::read(&mut reader), Ok(selection));
            reader.end().unwrap();
        }
    }

    #[test]
    fn what_selects_nothing_is_refused() {
        for (text, reason) in [
            ("", "`` selects no PCRs; a form like `sha256:0,7,10` or `sha1:10+sha256:all` is needed"),
            ("sha256", "`sha256` selects no PCRs; a form like `sha256:0,7,10` or `sha1:10+sha256:all` is needed"),
            ("sha3:1", "`sha3` is no PCR bank; there are sha1, sha256, sha384, sha512 and sm3"),
            ("md5:1", "`md5` is no PCR bank; there are sha1, sha256, sha384, sha512 and sm3"),
            ("sha1:", "`` is no PCR; there are 0 to 23"),
            ("sha1:24", "`24` is no PCR; there are 0 to 23"),
            ("sha1:+4", "`` is no PCR; there are 0 to 23"),
            ("sha1:1+sha1:2", "the bank sha1 is named twice"),
        ] {
            assert_eq!(PcrSelection::parse(text).unwrap_err().to_string(), reason, "{text}");
        }
    }

    #[test]
    fn containing_goes_by_banks_and_pcrs() {
        let parse = |text| PcrSelection::parse(text).unwrap();
        for (whole, part, contained) in [
            ("sha256:0,1,2", "sha256:1", true),
            ("sha256:0", "sha256:none", true),
            ("sha256:0", "sha1:0", false),
            ("sha256:0+sha1:1", "sha1:1+sha256:0", true),
            ("sha256:0", "sha256:0,1", false),
        ] {
            assert_eq!(parse(whole).contains(&parse(part)), contained, "{whole} {part}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(sha1|sha256|all|none|:|,|\\+|[0-9]{1,12}|\\PC){0,12}") {
            if let Ok(selection) = PcrSelection::parse(&text) {
                prop_assert_eq!(PcrSelection::parse(&selection.to_string()).unwrap(), selection);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(selection) = PcrSelection::read(&mut Reader::new("a selection", &bytes)) {
                let _ = (selection.to_string(), selection.iter().count());
            }
        }
    }
}
