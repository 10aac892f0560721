//! The journal of a run that changes labels: what each file's labels were, and what they become. By it a run that was ended is
//! gone on with, and one that is over is undone.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | `IMAJOURN` |
//! | 8 | | blocks, the first of them *begun* |
//!
//! A block; integers are little-endian:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 1 | type |
//! | 1 | 4 | length of the payload, *n* |
//! | 5 | *n* | payload |
//! | 5 + *n* | 4 | CRC-32 (IEEE 802.3) of all before |
//!
//! | type | block | payload |
//! |---|---|---|
//! | 1 | begun | when (8, seconds since 1970), boot id, folder that relative paths start from, purpose, command line (texts) |
//! | 2 | changes | files whose labels are about to be changed |
//! | 3 | made | offset (8) of a *changes* block: all its files have their new labels, or have been told as failed |
//! | 4 | ended | the run came to its end; failed files (8) |
//! | 5 | undone | the run was undone; files that were not (8) |
//!
//! A text is its length (4) and its bytes. A file of a *changes* block:
//!
//! | size | meaning |
//! |---|---|
//! | 2 | bytes that its path shares with the path before it in the block |
//! | 2, … | length of the rest of the path, and the rest |
//! | 8, 8 | device and inode |
//! | 8 | size |
//! | 8, 4 | time of its last change of content: seconds since 1970 (signed), nanoseconds |
//! | 1 | number of labels |
//! | 1 | of each: where it is kept ([`Place`]), |
//! | 4, … | what it was: 0 for none, else its length and one, and its bytes, |
//! | 4, … | what it becomes: likewise |
//!
//! A process that is killed leaves a last block that may be cut off. What it announced has then not begun.

use std::io::{self, Read};

/// Where a label is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The attribute `security.ima`.
    SecurityIma,
    /// The attribute `security.evm`.
    SecurityEvm,
    /// The attribute `user.ima`, which no kernel looks at.
    UserIma,
    /// The attribute `user.evm`, which no kernel looks at.
    UserEvm,
    /// A file beside it, `FILE.sig`.
    SignatureFile,
}

impl Place {
    /// All of them, by number.
    pub const ALL: [Self; 5] =
        [Self::SecurityIma, Self::SecurityEvm, Self::UserIma, Self::UserEvm, Self::SignatureFile];

    /// The attribute's name; none for a file.
    pub const fn attribute(self) -> Option<&'static str> {
        match self {
            Self::SecurityIma => Some("security.ima"),
            Self::SecurityEvm => Some("security.evm"),
            Self::UserIma => Some("user.ima"),
            Self::UserEvm => Some("user.evm"),
            Self::SignatureFile => None,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::SecurityIma => 0,
            Self::SecurityEvm => 1,
            Self::UserIma => 2,
            Self::UserEvm => 3,
            Self::SignatureFile => 4,
        }
    }
}

/// How a run began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// When, in seconds since 1970.
    pub started: u64,
    /// In which boot (`/proc/sys/kernel/random/boot_id`): inode numbers are on known devices within one.
    pub boot_id: String,
    /// What relative paths start from.
    pub folder: Vec<u8>,
    /// What it writes: a run with another purpose does not go on with it.
    pub purpose: String,
    /// The command line, for people.
    pub command: String,
}

/// The state of a file by which it is found to be the same, unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Its device's number.
    pub device: u64,
    /// Its inode's number.
    pub inode: u64,
    /// Its size.
    pub size: u64,
    /// When its content last changed: seconds since 1970, nanoseconds.
    pub modified: (i64, u32),
}

/// A label that is exchanged, made or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub place: Place,
    /// What was there.
    pub old: Option<Vec<u8>>,
    /// What is to be there.
    pub new: Option<Vec<u8>>,
}

/// A file and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub path: Vec<u8>,
    /// Its state.
    pub state: FileState,
    /// Its labels.
    pub changes: Vec<Change>,
}

/// A block that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// How the run began.
    Begun(Begun),
    /// Files about to be changed.
    Changes(Vec<File>),
    /// The offset of a block of changes that have been made.
    Made(u64),
    /// The end, with so many files that failed.
    Ended(u64),
    /// It was undone, but for so many files.
    Undone(u64),
}

/// Bytes that are no journal, or a damaged one.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Not a journal.
    #[error("not a journal: it begins with {found:?}, not with {MAGIC:?}")]
    Magic {
        /// The bytes found.
        found: Vec<u8>,
    },
    /// It stops within a block.
    #[error("the journal is cut off in the block at offset {0}")]
    CutOff(u64),
    /// A block larger than any that is written.
    #[error("the block at offset {offset} claims {length} bytes, {LARGEST} at most")]
    TooLong {
        /// The block's offset.
        offset: u64,
        /// What it claims.
        length: u64,
    },
    /// A checksum that does not fit.
    #[error("the block at offset {offset} is damaged: its checksum is {found:#010x}, {computed:#010x} computed")]
    Checksum {
        /// The block's offset.
        offset: u64,
        /// The checksum read.
        found: u32,
        /// The checksum of what was read.
        computed: u32,
    },
    /// Content that makes no sense.
    #[error("the block at offset {offset}, type {kind}, makes no sense: {what}")]
    Content {
        /// The block's offset.
        offset: u64,
        /// Its type.
        kind: u8,
        /// What does not fit.
        what: &'static str,
    },
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// How a journal begins.
pub const MAGIC: &[u8; 8] = b"IMAJOURN";

/// The largest payload. 32 files with the longest path and the largest attributes are far below.
const LARGEST: u32 = 256 << 20;

const HEAD: usize = 5;
const TAIL: usize = 4;

fn block(kind: u8, payload: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut block = vec![kind, 0, 0, 0, 0];
    payload(&mut block);
    let length = length_of(block.len().saturating_sub(HEAD));
    block.iter_mut().skip(1).zip(length.to_le_bytes()).for_each(|(room, byte)| *room = byte);
    block.extend(crc32fast::hash(&block).to_le_bytes());
    block
}

/// What does not fit is cut to what no reader takes, rather than to something that looks right.
fn length_of(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(length_of(text.len()).to_le_bytes());
    out.extend_from_slice(text);
}

fn push_value(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        None => out.extend([0; 4]),
        Some(value) => {
            out.extend(length_of(value.len()).saturating_add(1).to_le_bytes());
            out.extend_from_slice(value);
        }
    }
}

impl Begun {
    /// The block; a journal is [`MAGIC`] and this, then others.
    pub fn encode(&self) -> Vec<u8> {
        block(1, |out| {
            out.extend(self.started.to_le_bytes());
            for text in [self.boot_id.as_bytes(), &self.folder, self.purpose.as_bytes(), self.command.as_bytes()] {
                push_text(out, text);
            }
        })
    }
}

/// The block that announces changes.
pub fn encode_changes(files: &[File]) -> Vec<u8> {
    block(2, |out| {
        let mut before: &[u8] = &[];
        for file in files {
            let shared = before.iter().zip(&file.path).take_while(|(left, right)| left == right).count();
            let shared = shared.min(usize::from(u16::MAX));
            let rest = file.path.get(shared..).unwrap_or_default();
            out.extend(u16::try_from(shared).unwrap_or(u16::MAX).to_le_bytes());
            out.extend(u16::try_from(rest.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(rest);
            let FileState { device, inode, size, modified: (seconds, nanoseconds) } = file.state;
            for number in [device, inode, size, seconds.cast_unsigned()] {
                out.extend(number.to_le_bytes());
            }
            out.extend(nanoseconds.to_le_bytes());
            out.push(u8::try_from(file.changes.len()).unwrap_or(u8::MAX));
            for change in &file.changes {
                out.push(change.place.number());
                push_value(out, change.old.as_deref());
                push_value(out, change.new.as_deref());
            }
            before = &file.path;
        }
    })
}

/// The block that says that the changes announced at `offset` are made.
pub fn encode_made(offset: u64) -> Vec<u8> {
    block(3, |out| out.extend(offset.to_le_bytes()))
}

/// The block that ends a run.
pub fn encode_ended(failed: u64) -> Vec<u8> {
    block(4, |out| out.extend(failed.to_le_bytes()))
}

/// The block that says that the run was undone, but for so many files.
pub fn encode_undone(left: u64) -> Vec<u8> {
    block(5, |out| out.extend(left.to_le_bytes()))
}

/// Reads how a journal begins.
///
/// # Errors
/// [`JournalError`].
pub fn read_magic(input: &mut impl Read) -> Result<(), JournalError> {
    let mut found = Vec::new();
    input.take(MAGIC.len() as u64).read_to_end(&mut found)?;
    if found == MAGIC { Ok(()) } else { Err(JournalError::Magic { found }) }
}

/// Whether a whole block begins anywhere in these bytes. In the rest of a journal that was cut off none does; where a block's
/// length was damaged, so that it only seems to be cut off, others follow.
pub fn holds_a_block(bytes: &[u8]) -> bool {
    (0..bytes.len()).filter_map(|start| bytes.get(start..)).any(|rest| {
        let [1..=5, a, b, c, d, after @ ..] = rest else { return false };
        // Asked first: looking at a block costs as much as it is long.
        let length = u64::from(u32::from_le_bytes([*a, *b, *c, *d])).saturating_add(TAIL as u64);
        length <= after.len() as u64 && matches!(read_block(&mut &*rest, 0), Ok(Some(_)))
    })
}

/// Reads the block at `offset`, where `input` stands, and how long it is; none at the end of the journal.
///
/// # Errors
/// [`JournalError`].
pub fn read_block(input: &mut impl Read, offset: u64) -> Result<Option<(Block, u64)>, JournalError> {
    let mut bytes = Vec::new();
    input.take(HEAD as u64).read_to_end(&mut bytes)?;
    let (kind, length) = match *bytes.as_slice() {
        [] => return Ok(None),
        [kind, a, b, c, d] => (kind, u32::from_le_bytes([a, b, c, d])),
        _ => return Err(JournalError::CutOff(offset)),
    };
    if length > LARGEST {
        return Err(JournalError::TooLong { offset, length: length.into() });
    }
    // A length that is made up takes no more memory than there are bytes.
    let rest = u64::from(length).saturating_add(TAIL as u64);
    if input.take(rest).read_to_end(&mut bytes)? as u64 != rest {
        return Err(JournalError::CutOff(offset));
    }
    let whole = bytes.len() as u64;
    let (before, checksum) = bytes.split_last_chunk::<TAIL>().ok_or(JournalError::CutOff(offset))?;
    let (found, computed) = (u32::from_le_bytes(*checksum), crc32fast::hash(before));
    if found != computed {
        return Err(JournalError::Checksum { offset, found, computed });
    }
    let mut payload = Payload(before.get(HEAD..).unwrap_or_default());
    let block = payload.block(kind).and_then(|block| match payload.0 {
        [] => Ok(block),
        _ => Err("bytes follow"),
    });
    block.map(|block| Some((block, whole))).map_err(|what| JournalError::Content { offset, kind, what })
}

struct Payload<'a>(&'a [u8]);

impl<'a> Payload<'a> {
    fn block(&mut self, kind: u8) -> Result<Block, &'static str> {
        match kind {
            1 => {
                let started = self.number()?;
                let mut texts = [self.text()?, self.text()?, self.text()?, self.text()?].into_iter();
                let mut next = || texts.next().unwrap_or_default().to_vec();
                let (boot_id, folder, purpose, command) = (next(), next(), next(), next());
                let [boot_id, purpose, command] = [boot_id, purpose, command].map(String::from_utf8);
                match (boot_id, purpose, command) {
                    (Ok(boot_id), Ok(purpose), Ok(command)) => {
                        Ok(Block::Begun(Begun { started, boot_id, folder, purpose, command }))
                    }
                    _ => Err("a text is not UTF-8"),
                }
            }
            2 => {
                let mut files: Vec<File> = Vec::new();
                while !self.0.is_empty() {
                    let file = self.file(files.last().map(|file| file.path.as_slice()).unwrap_or_default())?;
                    files.push(file);
                }
                Ok(Block::Changes(files))
            }
            3 => self.number().map(Block::Made),
            4 => self.number().map(Block::Ended),
            5 => self.number().map(Block::Undone),
            _ => Err("a type that is not known"),
        }
    }

    fn file(&mut self, before: &[u8]) -> Result<File, &'static str> {
        let shared = u16::from_le_bytes(self.array()?);
        let rest = u16::from_le_bytes(self.array()?);
        let mut path = before.get(..shared.into()).ok_or("a path shares more than there is")?.to_vec();
        path.extend_from_slice(self.take(rest.into())?);
        let [device, inode, size, seconds] = [self.number()?, self.number()?, self.number()?, self.number()?];
        let nanoseconds = u32::from_le_bytes(self.array()?);
        let state = FileState { device, inode, size, modified: (seconds.cast_signed(), nanoseconds) };
        let [count] = self.array()?;
        let changes = (0..count).map(|_| self.change()).collect::<Result<_, _>>()?;
        Ok(File { path, state, changes })
    }

    fn change(&mut self) -> Result<Change, &'static str> {
        let [place] = self.array()?;
        let place = Place::ALL.into_iter().find(|known| known.number() == place).ok_or("a place that is not known")?;
        Ok(Change { place, old: self.value()?, new: self.value()? })
    }

    fn value(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        match u32::from_le_bytes(self.array()?).checked_sub(1) {
            None => Ok(None),
            Some(length) => Ok(Some(self.take(length as usize)?.to_vec())),
        }
    }

    fn text(&mut self) -> Result<&'a [u8], &'static str> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(length as usize)
    }

    fn number(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (array, rest) = self.0.split_first_chunk().ok_or("it is too short")?;
        self.0 = rest;
        Ok(*array)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it is too short")?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn begun() -> Begun {
        Begun {
            started: 1_795_491_146,
            boot_id: "b".repeat(36),
            folder: b"/srv/\xff".to_vec(),
            purpose: "hash sha256 security.ima".into(),
            command: "imara hash -r app".into(),
        }
    }

    fn read(journal: &[u8]) -> Result<Vec<Block>, JournalError> {
        let (mut input, mut offset, mut blocks) = (journal, 8, Vec::new());
        read_magic(&mut input)?;
        while let Some((block, length)) = read_block(&mut input, offset)? {
            offset += length;
            blocks.push(block);
        }
        Ok(blocks)
    }

    fn file(path: &str, changes: Vec<Change>) -> File {
        let state = FileState { device: 0x801, inode: 77, size: 5, modified: (-1, 999_999_999) };
        File { path: path.into(), state, changes }
    }

    #[test]
    fn a_journal_is_read_as_it_was_written_up_to_where_it_is_cut_off() {
        let change = |place, old: Option<&[u8]>, new: Option<&[u8]>| Change {
            place,
            old: old.map(<[u8]>::to_vec),
            new: new.map(<[u8]>::to_vec),
        };
        let files = vec![
            file("app/bin/a", vec![change(Place::SecurityIma, None, Some(&[4, 4, 1]))]),
            file(
                "app/bin/ab",
                vec![change(Place::SecurityIma, Some(&[]), None), change(Place::SecurityEvm, None, None)],
            ),
            file("", vec![]),
            file("app", vec![change(Place::SignatureFile, Some(&[3; 300]), Some(&[3; 70_000]))]),
        ];
        let expected =
            [Block::Begun(begun()), Block::Changes(files.clone()), Block::Made(8), Block::Ended(2), Block::Undone(0)];
        let written = [begun().encode(), encode_changes(&files), encode_made(8), encode_ended(2), encode_undone(0)];
        let journal = [&MAGIC[..], &written.concat()].concat();
        assert_eq!(read(&journal).unwrap(), expected);
        let mut ends = vec![8];
        written.iter().for_each(|block| ends.push(ends[ends.len() - 1] + block.len()));
        for cut in (0..300).chain(journal.len() - 300..journal.len()) {
            match read(&journal[..cut]) {
                Ok(blocks) => assert_eq!(ends[blocks.len()], cut),
                Err(JournalError::Magic { .. }) => assert!(cut < 8),
                Err(JournalError::CutOff(offset)) => assert!(ends.contains(&(offset as usize)) && offset < cut as u64),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn the_checksum_is_the_common_one() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        assert_eq!(
            encode_made(0x0102),
            [&[3, 8, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0][..], &[0x7b, 0x50, 0xe0, 0x50]].concat()
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let sealed = |bytes: &[u8]| [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat();
        for (name, block, expected) in [
            (
                "a flipped bit",
                {
                    let mut block = encode_made(1);
                    block[6] ^= 1;
                    block
                },
                "is damaged: its checksum is",
            ),
            ("too long", vec![2, 0xff, 0xff, 0xff, 0xff], "claims 4294967295 bytes"),
            ("unknown type", sealed(&[9, 0, 0, 0, 0]), "type 9, makes no sense: a type that is not known"),
            ("too short", sealed(&[3, 2, 0, 0, 0, 1, 1]), "makes no sense: it is too short"),
            ("more follows", sealed(&[3, 9, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]), "makes no sense: bytes follow"),
            ("shares too much", sealed(&[2, 4, 0, 0, 0, 1, 0, 0, 0]), "a path shares more than there is"),
        ] {
            let journal = [&MAGIC[..], &begun().encode(), &block].concat();
            let error = read(&journal).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert!(read(b"IMATRACE").unwrap_err().to_string().starts_with("not a journal"));
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let value = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
        let change = (0..Place::ALL.len(), value(), value());
        let change = change.prop_map(|(place, old, new)| Change { place: Place::ALL[place], old, new });
        proptest::collection::vec(change, 0..4)
    }

    proptest! {
        #[test]
        fn any_files_are_read_as_written(
            files in proptest::collection::vec((proptest::collection::vec(97..100_u8, 0..12), any::<[u64; 3]>(), any::<(i64, u32)>(), changes()), 0..20),
        ) {
            let files = files.into_iter().map(|(path, [device, inode, size], modified, changes)| {
                File { path, state: FileState { device, inode, size, modified }, changes }
            });
            let files: Vec<File> = files.collect();
            let block = encode_changes(&files);
            let (read, length) = read_block(&mut &block[..], 0).unwrap().unwrap();
            prop_assert_eq!(length, block.len() as u64);
            prop_assert_eq!(read, Block::Changes(files));
        }

        #[test]
        fn any_bytes_are_read_or_refused(kind in 0..7_u8, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let sealed = block(kind, |out| out.extend(&payload));
            let _ = (read_block(&mut &payload[..], 0), read_block(&mut &sealed[..], 0), read(&payload));
        }
    }
}
