//! RPM's database `Packages.db` ("ndb", of SUSE). All numbers are little-endian.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | `RpmP` |
//! | 4 | 4 | version: 0 |
//! | 8 | 4 | generation: goes up with each change |
//! | 12 | 4 | how many pages of 4096 bytes have slots |
//! | 16 | 4 | the next package's number |
//! | 32 | 16 each | slots, to the end of these pages: `Slot`, the package's number, the block (of 16 bytes) where its header begins, how many blocks; the block is 0 where there is none |
//!
//! What a slot leads to is `BlbS`, the package's number, a time, the header's length (4 bytes each), the header, zeros up to the last 12 bytes of
//! the last block: Adler-32 of all before, the length again, `BlbE`.
//!
//! Source: `lib/backend/ndb/rpmpkg.c` of RPM.

use crate::read_at::ReadAt;
use std::io;

/// Why a database is not read.
#[derive(Debug, thiserror::Error)]
pub enum NdbError {
    /// The kernel refuses.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("no database of RPM's: {0}")]
    NotNdb(&'static str),
    /// It contradicts itself.
    #[error("the database is damaged at offset {offset}: {what}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
}

const PAGE: u64 = 4096;
const BLOCK: u64 = 16;
const HEAD: usize = 16;
const TAIL: usize = 12;

/// A database, open, with where each package's header is.
pub struct Ndb<R> {
    file: R,
    slots: Vec<Slot>,
}

struct Slot {
    package: u32,
    offset: u64,
    size: u64,
}

fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

impl<R: ReadAt> Ndb<R> {
    /// Opens it, and finds what is in it.
    ///
    /// # Errors
    /// [`NdbError`].
    pub fn open(file: R) -> Result<Self, NdbError> {
        let mut header = [0; 32];
        if file.size() < PAGE {
            return Err(NdbError::NotNdb("it is shorter than a page"));
        }
        file.read_at(0, &mut header)?;
        if !header.starts_with(b"RpmP") {
            return Err(NdbError::NotNdb("it does not begin with `RpmP`"));
        }
        if number(&header, 4) != Some(0) {
            return Err(NdbError::NotNdb("its version is not 0"));
        }
        let pages = u64::from(number(&header, 12).unwrap_or(0));
        let slots_end = pages.saturating_mul(PAGE);
        if pages == 0 || slots_end > file.size() {
            return Err(NdbError::Damaged { offset: 12, what: "it has no room for as many slots" });
        }
        let mut slots = Vec::new();
        let mut page = [0; PAGE as usize];
        for start in (0..slots_end).step_by(PAGE as usize) {
            file.read_at(start, &mut page)?;
            let first = if start == 0 { header.len() } else { 0 };
            for (offset, slot) in (start..).step_by(16).zip(page.as_chunks::<16>().0) {
                let damaged = |what| NdbError::Damaged { offset, what };
                if offset < first as u64 {
                    continue;
                }
                if !slot.starts_with(b"Slot") {
                    return Err(damaged("no slot is there"));
                }
                let [package, block, blocks] = [4, 8, 12].map(|offset| number(slot, offset).unwrap_or(0));
                if block == 0 {
                    continue;
                }
                let (begin, size) = (u64::from(block).saturating_mul(BLOCK), u64::from(blocks).saturating_mul(BLOCK));
                if package == 0 || begin < slots_end || size < (HEAD as u64).saturating_add(TAIL as u64) {
                    return Err(damaged("the slot leads to no header"));
                }
                if begin.saturating_add(size) > file.size() {
                    return Err(damaged("the slot leads behind the end"));
                }
                slots.push(Slot { package, offset: begin, size });
            }
        }
        // Two that overlap could make a small file as much work as a large one.
        slots.sort_unstable_by_key(|slot| slot.offset);
        for pair in slots.windows(2) {
            if let [one, two] = pair
                && one.offset.saturating_add(one.size) > two.offset
            {
                return Err(NdbError::Damaged { offset: two.offset, what: "two headers overlap" });
            }
        }
        slots.sort_unstable_by_key(|slot| slot.package);
        Ok(Self { file, slots })
    }

    /// Each package's number and header.
    pub fn headers(&self) -> impl Iterator<Item = Result<(u32, Vec<u8>), NdbError>> {
        self.slots.iter().map(|slot| Ok((slot.package, self.read(slot)?)))
    }

    fn read(&self, slot: &Slot) -> Result<Vec<u8>, NdbError> {
        let damaged = |what| NdbError::Damaged { offset: slot.offset, what };
        let size = usize::try_from(slot.size).map_err(|_| damaged("a header is too large"))?;
        let mut blob = vec![0; size];
        self.file.read_at(slot.offset, &mut blob)?;
        if !blob.starts_with(b"BlbS") || number(&blob, 4) != Some(slot.package) {
            return Err(damaged("the slot's package is not there"));
        }
        let length = number(&blob, 12).unwrap_or(0);
        let end = HEAD.saturating_add(length as usize);
        let tail = size.saturating_sub(TAIL);
        let last = blob.split_off(tail);
        if number(&last, 4) != Some(length) || last.get(8..) != Some(b"BlbE") || end > tail {
            return Err(damaged("a header does not end where it should"));
        }
        if number(&last, 0) != Some(adler32(&blob)) {
            return Err(damaged("a header's checksum is another"));
        }
        blob.truncate(end);
        blob.drain(..HEAD);
        Ok(blob)
    }
}

/// Source: RFC 1950.
fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65521;
    let (mut low, mut high) = (1_u32, 0_u32);
    for piece in bytes.chunks(5552) {
        for byte in piece {
            low = low.wrapping_add(u32::from(*byte));
            high = high.wrapping_add(low);
        }
        (low, high) = (low % MODULUS, high % MODULUS);
    }
    high << 16 | low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A database with a page of slots, as `rpmpkg.c` writes it.
    fn database(headers: &[(u32, &[u8])]) -> Vec<u8> {
        let mut file =
            [b"RpmP".as_slice(), &[0; 4], &7_u32.to_le_bytes(), &1_u32.to_le_bytes(), &9_u32.to_le_bytes()].concat();
        file.resize(32, 0);
        let mut blobs = Vec::<u8>::new();
        for (package, header) in headers {
            let mut blob =
                [b"BlbS".as_slice(), &package.to_le_bytes(), &[0; 4], &(header.len() as u32).to_le_bytes(), header]
                    .concat();
            blob.resize((blob.len() + TAIL).next_multiple_of(16) - TAIL, 0);
            let sum = adler32(&blob);
            blob.extend([&sum.to_le_bytes()[..], &(header.len() as u32).to_le_bytes(), b"BlbE"].concat());
            let block = (4096 + blobs.len()) as u32 / 16;
            file.extend(
                [&b"Slot"[..], &package.to_le_bytes(), &block.to_le_bytes(), &(blob.len() as u32 / 16).to_le_bytes()]
                    .concat(),
            );
            blobs.extend(blob);
        }
        while file.len() < 4096 {
            file.extend(b"Slot\0\0\0\0\0\0\0\0\0\0\0\0");
        }
        [file, blobs].concat()
    }

    fn read(file: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, NdbError> {
        Ndb::open(file)?.headers().collect()
    }

    #[test]
    fn headers_are_found_in_the_order_of_their_numbers() {
        let file = database(&[(5, b"five"), (2, b""), (3, &[7; 100])]);
        let expected = [(2, vec![]), (3, vec![7; 100]), (5, b"five".to_vec())];
        assert_eq!(read(&file).unwrap(), expected);
        assert_eq!(read(&database(&[])).unwrap(), []);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn damage_is_named_with_its_place() {
        let sound = database(&[(1, b"one"), (2, b"two")]);
        let with = |offset: usize, bytes: &[u8]| {
            let mut file = sound.clone();
            file[offset..][..bytes.len()].copy_from_slice(bytes);
            file
        };
        for (file, what) in [
            (b"RpmP".to_vec(), "shorter than a page"),
            (with(0, b"rpm"), "does not begin"),
            (with(4, b"\x01"), "version is not 0"),
            (with(12, b"\0"), "offset 12: it has no room"),
            (with(12, b"\xff\xff\xff\xff"), "offset 12: it has no room"),
            (with(48, b"slot"), "offset 48: no slot"),
            (with(40, &[1, 0, 0, 0]), "offset 32: the slot leads to no header"),
            (with(44, b"\xff\xff\xff\xff"), "offset 32: the slot leads behind the end"),
            (with(44, &[3]), "offset 4128: two headers overlap"),
            (with(4096 + 4, &[9]), "offset 4096: the slot's package is not there"),
            (with(4096 + 12, b"\xff\xff"), "offset 4096: a header does not end"),
            (with(4096 + 16, b"x"), "offset 4096: a header's checksum"),
        ] {
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
        assert!(read(&sound[..sound.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_change_is_read_or_refused(offset in 0..4200_usize, byte: u8, cut in 0..4200_usize) {
            let mut file = database(&[(1, b"one"), (2, &[5; 40])]);
            file[offset] = byte;
            let _ = (read(&file), read(&file[..cut]));
        }
    }
}
