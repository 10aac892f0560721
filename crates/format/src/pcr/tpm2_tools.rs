//! PCR values as tpm2-tools keep them beside a quote: structures of the C library, in little-endian byte order.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | number of banks that are selected |
//! | 4 | 16 times 8 | each: u16 algorithm, u8 size of the map, the map in 4 bytes, a byte unused |
//! | 132 | 4 | number of lists of digests |
//! | 136 | 532 each | a list: u32 number of digests, then room for 8: u16 size, 64 bytes |
//!
//! The digests follow the selection's order: banks as they stand, PCRs ascending, eight to a list. The other form that the
//! tools know (`-F values`) is the digests alone, one after the other.
//!
//! Source: tpm2_quote(1), `--pcrs_format`; files that tpm2-tools 5.4 wrote.

use super::{PcrErrorKind, PcrValues};
use crate::hash::Digest;
use crate::tpm::PcrSelection;

const BANKS: usize = 16;
const LISTS: usize = 4 + BANKS * 8;
const LIST: usize = 4 + IN_LIST * DIGEST;
const IN_LIST: usize = 8;
const DIGEST: usize = 2 + 64;

/// A little-endian number.
fn number(bytes: &[u8], offset: usize, size: usize) -> Option<usize> {
    let field = bytes.get(offset..offset.checked_add(size)?)?;
    field.iter().rev().try_fold(0_usize, |number, byte| number.checked_mul(256)?.checked_add(usize::from(*byte)))
}

impl PcrValues {
    /// Reads the values that `tpm2_quote -o` wrote, with the selection in its order; `None` when they are not that.
    pub fn from_tpm2_tools(bytes: &[u8]) -> Option<(PcrSelection, Self)> {
        let banks = number(bytes, 0, 4).filter(|count| (1..=BANKS).contains(count))?;
        let mut maps = Vec::new();
        for bank in 0..banks {
            let at = bank.checked_mul(8)?.checked_add(4)?;
            let size = number(bytes, at.checked_add(2)?, 1).filter(|size| *size <= 4)?;
            let map = u32::try_from(number(bytes, at.checked_add(3)?, size)?).ok()?;
            maps.push((u16::try_from(number(bytes, at, 2)?).ok()?, map));
        }
        let lists = number(bytes, LISTS, 4)?;
        let rest = bytes.get(LISTS.checked_add(4)?..)?;
        if rest.len() != lists.checked_mul(LIST)? {
            return None;
        }
        let mut digests = Vec::new();
        for list in rest.chunks_exact(LIST) {
            let count = number(list, 0, 4).filter(|count| *count <= IN_LIST)?;
            for digest in list.get(4..)?.chunks_exact(DIGEST).take(count) {
                digests.push(digest.get(2..)?.get(..number(digest, 0, 2)?)?);
            }
        }
        let selection = PcrSelection::from_maps(maps);
        let values = Self::in_order(&selection, &digests)?;
        Some((selection, values))
    }

    /// Reads the values of a selection, one after the other and nothing else; `None` when they do not fit it.
    pub fn from_digests(selection: &PcrSelection, mut bytes: &[u8]) -> Option<Self> {
        let mut digests = Vec::new();
        for (bank, _) in selection.iter() {
            let (digest, rest) = bytes.split_at_checked(bank?.digest_size())?;
            digests.push(digest);
            bytes = rest;
        }
        bytes.is_empty().then(|| Self::in_order(selection, &digests))?
    }

    fn in_order(selection: &PcrSelection, digests: &[&[u8]]) -> Option<Self> {
        let mut values = Self::new();
        let mut digests = digests.iter();
        for (bank, pcr) in selection.iter() {
            values.insert(pcr, Digest::new(bank?, digests.next()?).ok()?).ok()?;
        }
        digests.next().is_none().then_some(values)
    }

    /// The values of a selection as `tpm2_checkquote -f` reads them.
    ///
    /// # Errors
    /// [`PcrErrorKind::Missing`] when one of them is not there.
    pub fn to_tpm2_tools(&self, selection: &PcrSelection) -> Result<Vec<u8>, PcrErrorKind> {
        let mut digests = Vec::new();
        for (bank, pcr) in selection.iter() {
            let value = bank.and_then(|bank| self.value(bank, pcr));
            digests.push(value.ok_or(PcrErrorKind::Missing { pcr })?);
        }
        let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = word(selection.maps().len()).to_vec();
        for (id, map) in selection.maps().iter().take(BANKS) {
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.push(3);
            bytes.extend_from_slice(&map.to_le_bytes());
            bytes.push(0);
        }
        bytes.resize(LISTS, 0);
        let lists: Vec<&[Digest]> = digests.chunks(IN_LIST).collect();
        bytes.extend_from_slice(&word(lists.len()));
        for list in lists {
            let end = bytes.len().saturating_add(LIST);
            bytes.extend_from_slice(&word(list.len()));
            for digest in list {
                let after = bytes.len().saturating_add(DIGEST);
                bytes.extend_from_slice(&u16::try_from(digest.as_bytes().len()).unwrap_or(u16::MAX).to_le_bytes());
                bytes.extend_from_slice(digest.as_bytes());
                bytes.resize(after, 0);
            }
            bytes.resize(end, 0);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashAlgorithm::{Sha1, Sha256};
    use proptest::prelude::*;

    const WRITTEN: &[u8] = include_bytes!("../../../../tests/vectors/tpm/tpm2_tools/quote.pcrs");
    const DIGESTS: &[u8] = include_bytes!("../../../../tests/vectors/tpm/tpm2_tools/quote.values");

    #[test]
    fn what_tpm2_quote_wrote_is_read_and_written_the_same() {
        let (selection, values) = PcrValues::from_tpm2_tools(WRITTEN).unwrap();
        assert_eq!(selection.to_string(), "sha256:0,10+sha1:1");
        assert_eq!(values.iter().count(), 3);
        assert!(values.value(Sha256, 10).unwrap().is_zero() && values.value(Sha1, 1).unwrap().is_zero());
        assert_eq!(values.to_tpm2_tools(&selection).unwrap(), WRITTEN);
        assert_eq!(PcrValues::from_digests(&selection, DIGESTS), Some(values));
        assert_eq!(PcrValues::from_digests(&selection, &DIGESTS[1..]), None);
    }

    #[test]
    fn more_than_eight_values_make_more_lists() {
        let selection = PcrSelection::parse("sha256:all+sha1:0").unwrap();
        let mut values = PcrValues::new();
        for (place, (bank, pcr)) in selection.iter().enumerate() {
            let bank = bank.unwrap();
            values.insert(pcr, Digest::new(bank, &vec![place as u8; bank.digest_size()]).unwrap()).unwrap();
        }
        let bytes = values.to_tpm2_tools(&selection).unwrap();
        assert_eq!(bytes.len(), LISTS + 4 + 4 * LIST);
        assert_eq!(PcrValues::from_tpm2_tools(&bytes), Some((selection, values)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            changes in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = WRITTEN.to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            let _ = PcrValues::from_tpm2_tools(&bytes);
            let _ = PcrValues::from_tpm2_tools(&bytes[..cut.index(bytes.len())]);
        }
    }
}
