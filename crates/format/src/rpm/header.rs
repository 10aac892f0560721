//! A package's header, as RPM keeps it of an installed package. All numbers are big-endian.
//!
//! | size | meaning |
//! |---|---|
//! | 4 | how many entries: `il` |
//! | 4 | how many bytes of values: `dl` |
//! | 16 `il` | entries: tag, type, where its value begins, how many values (4 bytes each) |
//! | `dl` | values |
//!
//! | type | a value |
//! |---|---|
//! | 1, 2, 7 | a byte |
//! | 3, 4, 5 | a number of 2, 4, 8 bytes |
//! | 6, 8, 9 | text that ends with a zero byte |
//!
//! The first entry, `HEADERIMMUTABLE`, says where the *immutable region* ends: what came in the package, and what its maker signed. Its value lies behind
//! all others of the region and is an entry again, with minus the size of the region's entries in place of a beginning. What was *added* follows, entries
//! after entries and values after values: what is known since the installation, and what vouched for the region.
//!
//! What is signed is `8e ad e8 01 00 00 00 00`, `il` and `dl` of the region alone, its entries, its values.
//!
//! RPM looks for a tag among the added ones first, so that whoever can write the database can give a signed package's files other digests. Here it is
//! always said which part is meant.
//!
//! Source: `docs/manual/hregions.md`, `docs/manual/format_header.md` and `lib/header.cc` of RPM.

/// What a value is of. Those that are read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
#[allow(missing_docs, reason = "they are RPM's names")]
pub enum Tag {
    HeaderImmutable = 63,
    DsaHeader = 267,
    RsaHeader = 268,
    Sha1Header = 269,
    Sha256Header = 273,
    OpenPgp = 278,
    Name = 1000,
    Version = 1001,
    Release = 1002,
    Epoch = 1003,
    Arch = 1022,
    OldFileNames = 1027,
    FileSizes = 1028,
    FileStates = 1029,
    FileModes = 1030,
    FileDigests = 1035,
    FileLinkTos = 1036,
    FileFlags = 1037,
    FileUserName = 1039,
    FileGroupName = 1040,
    FileVerifyFlags = 1045,
    DirIndexes = 1116,
    BaseNames = 1117,
    DirNames = 1118,
    LongFileSizes = 5008,
    FileDigestAlgo = 5011,
    FileSignatures = 5090,
}

/// Bytes that are no header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is shorter or longer than its beginning says.
    #[error("the header has {found} bytes, and says that it has {needed}")]
    Length {
        /// What is there.
        found: usize,
        /// What it says.
        needed: u64,
    },
    /// Its region contradicts it.
    #[error("the header's immutable region is damaged: {0}")]
    Region(&'static str),
    /// One tag twice: which one counts would be a matter of taste.
    #[error("the header has the tag {0} twice in one part")]
    Twice(u32),
    /// A value does not lie where it should.
    #[error("the value of the header's tag {0} lies outside of its part")]
    Outside(u32),
    /// A value is of another type.
    #[error("the value of the header's tag {tag} is of type {found}")]
    Type {
        /// Of which tag.
        tag: u32,
        /// The type.
        found: u32,
    },
    /// It lacks what each package has.
    #[error("the header has no tag {0}")]
    Missing(u32),
    /// Values that must go together are not equally many.
    #[error("the header has {found} values of the tag {tag}, for {files} files")]
    Count {
        /// Of which tag.
        tag: u32,
        /// How many.
        found: usize,
        /// How many files.
        files: usize,
    },
    /// What a value says is not possible.
    #[error("the header's tag {tag}: {what}")]
    Value {
        /// Of which tag.
        tag: u32,
        /// What is wrong.
        what: &'static str,
    },
}

/// Which part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What came in the package, and was signed if anything was.
    Immutable,
    /// What was added since.
    Added,
}

#[derive(Clone, Copy)]
struct Entry {
    tag: u32,
    kind: u32,
    offset: u32,
    count: u32,
}

/// Its size.
const ENTRY: usize = 16;

/// What stands before what is signed.
const MAGIC: [u8; 8] = [0x8e, 0xad, 0xe8, 0x01, 0, 0, 0, 0];

impl Entry {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |offset: usize| Some(u32::from_be_bytes(*bytes.get(offset..)?.first_chunk()?));
        Some(Self { tag: number(0)?, kind: number(4)?, offset: number(8)?, count: number(12)? })
    }
}

/// A header.
pub struct Header<'h> {
    immutable: Vec<Entry>,
    added: Vec<Entry>,
    /// Entries and values of the region.
    region: (&'h [u8], &'h [u8]),
    values: &'h [u8],
}

impl<'h> Header<'h> {
    /// Reads one. One without a region, of a package that RPM 3 made, has nothing that could be signed.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn parse(bytes: &'h [u8]) -> Result<Self, HeaderError> {
        let found = bytes.len();
        let short = HeaderError::Length { found, needed: 8 };
        let (head, rest) = bytes.split_first_chunk::<8>().ok_or(short)?;
        let [a, b, c, d, e, f, g, h] = *head;
        let (il, dl) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        let index = u64::from(il).saturating_mul(ENTRY as u64);
        let needed = index.saturating_add(u64::from(dl)).saturating_add(8);
        if needed != found as u64 {
            return Err(HeaderError::Length { found, needed });
        }
        let length = || HeaderError::Length { found, needed };
        let (index, values) =
            rest.split_at_checked(usize::try_from(index).map_err(|_| length())?).ok_or_else(length)?;
        let mut entries = index.chunks(ENTRY).filter_map(Entry::parse).collect::<Vec<_>>();
        let (inner, end) = region(&entries, values)?.unwrap_or((0, 0));
        let added = entries.split_off(inner);
        let immutable = entries.split_off(inner.min(1));
        let region =
            (index.get(..inner.saturating_mul(ENTRY)).unwrap_or_default(), values.get(..end).unwrap_or_default());
        for part in [&immutable, &added] {
            let mut tags = part.iter().map(|entry| entry.tag).collect::<Vec<_>>();
            tags.sort_unstable();
            if let Some([twice, _]) = tags.array_windows().find(|[one, two]| one == two) {
                return Err(HeaderError::Twice(*twice));
            }
        }
        Ok(Self { immutable, added, region, values })
    }

    /// Whether there is anything that could be signed.
    pub fn has_region(&self) -> bool {
        !self.region.0.is_empty()
    }

    /// What is signed, in pieces.
    pub fn signed(&self) -> [Vec<u8>; 3] {
        let (entries, values) = self.region;
        let count = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
        let il = entries.len().checked_div(ENTRY).unwrap_or(0);
        [[MAGIC.as_slice(), &count(il), &count(values.len())].concat(), entries.to_vec(), values.to_vec()]
    }

    /// Whether a part has a tag.
    pub fn has(&self, part: Part, tag: Tag) -> bool {
        let entries = match part {
            Part::Immutable => &self.immutable,
            Part::Added => &self.added,
        };
        entries.iter().any(|entry| entry.tag == tag as u32)
    }

    /// Type, how many, and all bytes from the first value on.
    fn value(&self, part: Part, tag: Tag) -> Result<Option<(Entry, &'h [u8])>, HeaderError> {
        let (entries, values) = match part {
            Part::Immutable => (&self.immutable, self.region.1),
            Part::Added => (&self.added, self.values),
        };
        let Some(entry) = entries.iter().find(|entry| entry.tag == tag as u32) else { return Ok(None) };
        let value = values.get(entry.offset as usize..).ok_or(HeaderError::Outside(entry.tag))?;
        Ok(Some((*entry, value)))
    }

    /// Bytes; none where there is no such tag.
    ///
    /// # Errors
    /// [`HeaderError`]: outside, of another type.
    pub fn bytes(&self, part: Part, tag: Tag) -> Result<Option<&'h [u8]>, HeaderError> {
        let Some((entry, value)) = self.value(part, tag)? else { return Ok(None) };
        match entry.kind {
            1 | 2 | 7 => value.get(..entry.count as usize).map(Some).ok_or(HeaderError::Outside(entry.tag)),
            found => Err(HeaderError::Type { tag: entry.tag, found }),
        }
    }

    /// Numbers, of whatever size; empty where there is no such tag.
    ///
    /// # Errors
    /// [`HeaderError`]: outside, of another type.
    pub fn numbers(&self, part: Part, tag: Tag) -> Result<Vec<u64>, HeaderError> {
        let Some((entry, value)) = self.value(part, tag)? else { return Ok(Vec::new()) };
        let size: usize = match entry.kind {
            3 => 2,
            4 => 4,
            5 => 8,
            found => return Err(HeaderError::Type { tag: entry.tag, found }),
        };
        let value = value.get(..size.saturating_mul(entry.count as usize)).ok_or(HeaderError::Outside(entry.tag))?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok(value.chunks(size).map(number).collect())
    }

    /// Texts; empty where there is no such tag.
    ///
    /// # Errors
    /// [`HeaderError`]: outside, of another type.
    pub fn texts(&self, part: Part, tag: Tag) -> Result<Vec<&'h [u8]>, HeaderError> {
        let Some((entry, mut value)) = self.value(part, tag)? else { return Ok(Vec::new()) };
        if !matches!(entry.kind, 6 | 8 | 9) {
            return Err(HeaderError::Type { tag: entry.tag, found: entry.kind });
        }
        let mut texts = Vec::new();
        for _ in 0..entry.count {
            let end = value.iter().position(|byte| *byte == 0).ok_or(HeaderError::Outside(entry.tag))?;
            let (text, rest) = value.split_at_checked(end).ok_or(HeaderError::Outside(entry.tag))?;
            texts.push(text);
            value = rest.get(1..).unwrap_or_default();
        }
        Ok(texts)
    }
}

/// How many entries the region has, and where its values end.
fn region(entries: &[Entry], values: &[u8]) -> Result<Option<(usize, usize)>, HeaderError> {
    let Some(first) = entries.first().filter(|entry| entry.tag == Tag::HeaderImmutable as u32) else { return Ok(None) };
    let damaged = HeaderError::Region;
    if (first.kind, first.count) != (7, ENTRY as u32) {
        return Err(damaged("its first entry is none of a region"));
    }
    let trailer = values.get(first.offset as usize..).and_then(Entry::parse).ok_or(damaged("its end is not there"))?;
    if (trailer.tag, trailer.kind, trailer.count) != (first.tag, first.kind, first.count) {
        return Err(damaged("its end is that of another one"));
    }
    let size = usize::try_from(trailer.offset.cast_signed().unsigned_abs()).unwrap_or(usize::MAX);
    let inner = size.checked_div(ENTRY).unwrap_or(0);
    if trailer.offset.cast_signed() >= 0 || !size.is_multiple_of(ENTRY) || inner > entries.len() {
        return Err(damaged("it has a number of entries that is not possible"));
    }
    Ok(Some((inner, (first.offset as usize).saturating_add(ENTRY))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(tag: u32, kind: u32, offset: u32, count: u32) -> Vec<u8> {
        [tag, kind, offset, count].map(u32::to_be_bytes).concat()
    }

    /// A region with a name and two numbers, and a name that was added, by which somebody hopes to be believed.
    fn sound() -> Vec<u8> {
        let end = entry(63, 7, 48_u32.wrapping_neg(), 16);
        let values = [b"name\0\0".as_slice(), &[0, 1, 0, 2], &end, b"other\0"].concat();
        let index = [entry(63, 7, 10, 16), entry(1000, 6, 0, 1), entry(1030, 3, 6, 2), entry(1000, 6, 26, 1)].concat();
        [&4_u32.to_be_bytes()[..], &(values.len() as u32).to_be_bytes(), &index, &values].concat()
    }

    #[test]
    fn what_came_in_the_package_is_told_from_what_was_added() {
        let bytes = sound();
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.texts(Part::Immutable, Tag::Name).unwrap(), [b"name"]);
        assert_eq!(header.texts(Part::Added, Tag::Name).unwrap(), [b"other"]);
        assert_eq!(header.numbers(Part::Immutable, Tag::FileModes).unwrap(), [1, 2]);
        assert_eq!(header.numbers(Part::Added, Tag::FileModes).unwrap(), []);
        assert_eq!(header.bytes(Part::Immutable, Tag::FileStates).unwrap(), None);
        let signed = header.signed().concat();
        assert_eq!(signed[..16], [0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 26]);
        assert_eq!(signed[16..], [&bytes[8..56], &bytes[72..98]].concat());
    }

    #[test]
    fn damage_is_named() {
        let with = |offset: usize, bytes: &[u8]| {
            let mut header = sound();
            header[offset..][..bytes.len()].copy_from_slice(bytes);
            header
        };
        let cut = &sound()[..90];
        for (header, what) in [
            (vec![0; 7], "has 7 bytes, and says that it has 8"),
            (cut.to_vec(), "has 90 bytes, and says that it has 104"),
            (with(0, &[0xff; 8]), "says that it has 73014444023"),
            (with(8 + 8, &[0xff; 4]), "region is damaged: its end is not there"),
            (with(8 + 12, &[0; 4]), "region is damaged: its first entry"),
            (with(72 + 10, &[1]), "region is damaged: its end is that of another"),
            (with(72 + 18, &[0; 4]), "region is damaged: it has a number of entries"),
            (with(72 + 18, &[0xff, 0xff, 0xff, 0]), "region is damaged: it has a number of entries"),
            (with(8 + 32, &1000_u32.to_be_bytes()), "has the tag 1000 twice"),
        ] {
            let error = Header::parse(&header).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
        // A value of the region does not reach behind it.
        for (offset, bytes) in [(8 + 16 + 8, [0, 0, 0, 27]), (8 + 16 + 12, [0, 0, 1, 0]), (8 + 16 + 12, [0xff; 4])] {
            let header = with(offset, &bytes);
            let header = Header::parse(&header).unwrap();
            assert_eq!(header.texts(Part::Immutable, Tag::Name), Err(HeaderError::Outside(1000)));
        }
        let header = sound();
        let header = Header::parse(&header).unwrap();
        assert_eq!(header.numbers(Part::Immutable, Tag::Name), Err(HeaderError::Type { tag: 1000, found: 6 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(offset in 0..104_usize, byte: u8, any in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut changed = sound();
            changed[offset] = byte;
            for bytes in [changed, any] {
                let Ok(header) = Header::parse(&bytes) else { continue };
                for part in [Part::Immutable, Part::Added] {
                    let _ = (header.texts(part, Tag::Name), header.numbers(part, Tag::FileModes), header.bytes(part, Tag::FileStates));
                }
                let _ = (header.signed(), crate::rpm::package::Package::parse(&bytes));
            }
        }
    }
}
