//! SQLite's database files, as far as reading the rows of one table needs it: no SQL, no index, nothing is written.
//!
//! A file is pages of equal size, counted from 1. All numbers are big-endian.
//!
//! | offset | size | the header, at the beginning of page 1 |
//! |---|---|---|
//! | 0 | 16 | `SQLite format 3\0` |
//! | 16 | 2 | size of a page: a power of two from 512 on; 1 means 65536 |
//! | 18 | 2 | version to write, to read: 1, or 2 where there is a write-ahead log |
//! | 20 | 1 | bytes at the end of each page that are not used |
//! | 21 | 3 | 64, 32, 32 |
//! | 56 | 4 | encoding of text: 1 is UTF-8 |
//!
//! | offset | size | a page of a table's tree, in page 1 behind the header |
//! |---|---|---|
//! | 0 | 1 | 5: numbers and pages below; 13: rows |
//! | 3 | 2 | how many cells |
//! | 8 | 4 | of kind 5: the page below behind all others |
//! | 8 or 12 | 2 each | where the cells begin |
//!
//! A cell of kind 5 is a page's number (4 bytes) and a varint, the largest row in it; one of kind 13 is the row's length and number (varints)
//! and as much of the row as fits, else the number of a page with the rest: the next such page (4 bytes, 0 for none) and bytes. A row is the length of its
//! header (varint), a varint for each column that says its type, and the columns.
//!
//! | offset | size | the write-ahead log's header |
//! |---|---|---|
//! | 0 | 4 | 0x377f0682, or 0x377f0683 where the checksums are over big-endian numbers |
//! | 4 | 4 | 3007000 |
//! | 8 | 4 | size of a page |
//! | 16 | 8 | salt |
//! | 24 | 8 | checksum of the 24 bytes before |
//!
//! Then frames: the page's number, the size of the database in pages if it ends a transaction, else 0 (4 bytes each); the salt (8), the checksum over
//! all so far (8); and the page. What comes after the last one that ends a transaction does not count, nor what has another salt.
//!
//! Why not SQLite itself: it is a quarter of a million lines of C to read bytes that may be hostile, it opens files by their names, and it wants to
//! write beside them. What `rpm` keeps there is one table.
//!
//! Source: <https://www.sqlite.org/fileformat2.html>.

use crate::read_at::ReadAt;
use std::collections::HashMap;
use std::io;

/// Why a database is not read.
#[derive(Debug, thiserror::Error)]
pub enum SqliteError {
    /// The kernel refuses.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("no SQLite database: {0}")]
    NotSqlite(&'static str),
    /// It has what this reader has not.
    #[error("a SQLite database with {0}, which is not read")]
    Unsupported(&'static str),
    /// There is no such table.
    #[error("the database has no table {0}")]
    NoTable(&'static str),
    /// It contradicts itself.
    #[error("the database is damaged at page {page}: {what}")]
    Damaged {
        /// Which page, counted from 1.
        page: u32,
        /// What is wrong there.
        what: &'static str,
    },
}

/// No column is larger here: a package's header has at most 256 MiB.
const LARGEST_ROW: u64 = 256 << 20;

/// Deeper than a tree of 2^32 pages can be.
const DEEPEST: usize = 32;

/// A database, open.
pub struct Sqlite<R> {
    file: R,
    log: Option<(R, HashMap<u32, u64>)>,
    page_size: usize,
    usable: usize,
    pages: u32,
}

/// What a column holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Nothing.
    Null,
    /// A whole number.
    Integer(i64),
    /// Another number, which no table here has.
    Float,
    /// Text.
    Text(Vec<u8>),
    /// Bytes.
    Blob(Vec<u8>),
}

impl<R: ReadAt> Sqlite<R> {
    /// Opens a database with its write-ahead log, if there is one.
    ///
    /// # Errors
    /// [`SqliteError`].
    pub fn open(file: R, log: Option<R>) -> Result<Self, SqliteError> {
        let log = match log {
            Some(log) => frames(&log)?.map(|frames| (log, frames)),
            None => None,
        };
        let mut header = [0; 100];
        let first = log.as_ref().and_then(|(log, frames)| Some((log, frames.pages.get(&1)?)));
        let read = match first {
            Some((log, offset)) => log.read_at(*offset, &mut header),
            None => file.read_at(0, &mut header),
        };
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(SqliteError::NotSqlite("it is shorter than a header"));
            }
            Err(error) => return Err(error.into()),
        }
        if !header.starts_with(b"SQLite format 3\0") {
            return Err(SqliteError::NotSqlite("it begins otherwise"));
        }
        let [high, low, _, read_version, reserved] =
            *header.get(16..).and_then(|rest| rest.first_chunk()).unwrap_or(&[0; 5]);
        let page_size = page_size(u32::from(u16::from_be_bytes([high, low])));
        let page_size = page_size.ok_or(SqliteError::NotSqlite("it has no page size that is possible"))?;
        if !matches!(read_version, 1 | 2) {
            return Err(SqliteError::Unsupported("a newer format"));
        }
        if u32_at(&header, 56).unwrap_or(0) > 1 {
            return Err(SqliteError::Unsupported("text that is not UTF-8"));
        }
        let usable = page_size.saturating_sub(usize::from(reserved));
        if usable < 480 {
            return Err(SqliteError::NotSqlite("its pages have no room"));
        }
        let pages = match &log {
            Some((_, frames)) if frames.page_size != page_size => {
                return Err(SqliteError::Damaged { page: 1, what: "its write-ahead log has pages of another size" });
            }
            Some((_, frames)) => frames.size,
            None => u32::try_from(file.size().checked_div(page_size as u64).unwrap_or(0)).unwrap_or(u32::MAX),
        };
        let log = log.map(|(log, frames)| (log, frames.pages));
        Ok(Self { file, log, page_size, usable, pages })
    }

    /// The rows of a table, in the order of their numbers.
    ///
    /// # Errors
    /// [`SqliteError`]: no such table.
    pub fn rows(&self, table: &'static str) -> Result<Rows<'_, R>, SqliteError> {
        let mut root = None;
        for row in Rows::new(self, 1)? {
            let (_, columns) = row?;
            if let [Column::Text(kind), Column::Text(name), _, Column::Integer(page), ..] = columns.as_slice()
                && kind == b"table"
                && name == table.as_bytes()
            {
                root = Some(u32::try_from(*page).map_err(|_| damaged(1, "a table's page has no possible number"))?);
            }
        }
        Rows::new(self, root.ok_or(SqliteError::NoTable(table))?)
    }

    fn page(&self, number: u32) -> Result<Vec<u8>, SqliteError> {
        if number == 0 || number > self.pages {
            return Err(damaged(number, "there is no such page"));
        }
        let mut page = vec![0; self.page_size];
        match self.log.as_ref().and_then(|(log, frames)| Some((log, frames.get(&number)?))) {
            Some((log, offset)) => log.read_at(*offset, &mut page)?,
            None => {
                let before = u64::from(number.saturating_sub(1));
                self.file.read_at(before.saturating_mul(self.page_size as u64), &mut page)?;
            }
        }
        page.truncate(self.usable);
        Ok(page)
    }
}

fn damaged(page: u32, what: &'static str) -> SqliteError {
    SqliteError::Damaged { page, what }
}

fn page_size(found: u32) -> Option<usize> {
    let size = if found == 1 { 65536 } else { found };
    (size.is_power_of_two() && (512..=65536).contains(&size)).then_some(size as usize)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// A number in 1 to 9 bytes: seven bits each, of the ninth all eight.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for index in 0..9 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if index == 8 {
            return Some(value << 8 | u64::from(*byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A page of a tree, with the cell that is next.
struct Node {
    number: u32,
    page: Vec<u8>,
    rows: bool,
    cells: usize,
    next: usize,
}

/// The rows of a table.
pub struct Rows<'s, R> {
    database: &'s Sqlite<R>,
    path: Vec<Node>,
    /// In a sound database each page has one place: whoever meets more goes in a circle.
    budget: u32,
    last: Option<i64>,
    ended: bool,
}

impl<'s, R: ReadAt> Rows<'s, R> {
    fn new(database: &'s Sqlite<R>, root: u32) -> Result<Self, SqliteError> {
        let mut rows = Self { database, path: Vec::new(), budget: database.pages, last: None, ended: false };
        rows.enter(root)?;
        Ok(rows)
    }

    fn page(&mut self, number: u32) -> Result<Vec<u8>, SqliteError> {
        let page = self.database.page(number)?;
        self.budget = self.budget.checked_sub(1).ok_or_else(|| damaged(number, "pages lead in a circle"))?;
        Ok(page)
    }

    fn enter(&mut self, number: u32) -> Result<(), SqliteError> {
        if self.path.len() >= DEEPEST {
            return Err(damaged(number, "the tree is deeper than one can be"));
        }
        let page = self.page(number)?;
        let begin = if number == 1 { 100 } else { 0 };
        let rows = match page.get(begin) {
            Some(5) => false,
            Some(13) => true,
            _ => return Err(damaged(number, "it is no page of a table")),
        };
        let cells = u16_at(&page, begin.saturating_add(3)).map(usize::from);
        let cells = cells.ok_or_else(|| damaged(number, "it is too short"))?;
        self.path.push(Node { number, page, rows, cells, next: 0 });
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<(i64, Vec<Column>)>, SqliteError> {
        while let Some(node) = self.path.last_mut() {
            let (number, index) = (node.number, node.next);
            node.next = index.saturating_add(1);
            let begin = if number == 1 { 100_usize } else { 0 };
            let outside = || damaged(number, "a cell is outside of it");
            if index < node.cells {
                let pointers = begin.saturating_add(if node.rows { 8 } else { 12 });
                let at = u16_at(&node.page, pointers.saturating_add(index.saturating_mul(2))).ok_or_else(outside)?;
                let cell = node.page.get(usize::from(at)..).ok_or_else(outside)?;
                if node.rows {
                    let cell = cell.to_vec();
                    return self.row(number, &cell).map(Some);
                }
                let below = u32_at(cell, 0).ok_or_else(outside)?;
                self.enter(below)?;
            } else if index == node.cells && !node.rows {
                let below = u32_at(&node.page, begin.saturating_add(8)).ok_or_else(outside)?;
                self.enter(below)?;
            } else {
                self.path.pop();
            }
        }
        Ok(None)
    }

    fn row(&mut self, page: u32, mut rest: &[u8]) -> Result<(i64, Vec<Column>), SqliteError> {
        let cut_off = || damaged(page, "a row is cut off");
        let length = varint(&mut rest).ok_or_else(cut_off)?;
        let number = varint(&mut rest).ok_or_else(cut_off)?.cast_signed();
        if self.last.is_some_and(|last| last >= number) {
            return Err(damaged(page, "rows are not in their order"));
        }
        self.last = Some(number);
        let room = u64::from(self.database.pages).saturating_mul(self.database.page_size as u64);
        if length > room.min(LARGEST_ROW) {
            return Err(damaged(page, "a row is longer than there is room for"));
        }
        let length = usize::try_from(length).map_err(|_| cut_off())?;
        let local = local(length, self.database.usable);
        let mut row = rest.get(..local).ok_or_else(cut_off)?.to_vec();
        let mut next = if local < length { u32_at(rest, local).ok_or_else(cut_off)? } else { 0 };
        while row.len() < length {
            let page = self.page(next)?;
            let (head, content) = page.split_first_chunk::<4>().ok_or_else(cut_off)?;
            let missing = length.saturating_sub(row.len());
            row.extend(content.iter().take(missing));
            next = u32::from_be_bytes(*head);
        }
        let columns = columns(&row).ok_or_else(|| damaged(page, "a row's columns are not what its header says"))?;
        Ok((number, columns))
    }
}

impl<R: ReadAt> Iterator for Rows<'_, R> {
    type Item = Result<(i64, Vec<Column>), SqliteError>;

    /// After the first error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.advance().transpose();
        self.ended = !matches!(row, Some(Ok(_)));
        row
    }
}

/// How much of a row is in the page of the tree itself.
fn local(length: usize, usable: usize) -> usize {
    let most = usable.saturating_sub(35);
    if length <= most {
        return length;
    }
    let least = usable.saturating_sub(12).saturating_mul(32).checked_div(255).unwrap_or(0).saturating_sub(23);
    let over = length.saturating_sub(least).checked_rem(usable.saturating_sub(4)).unwrap_or(0);
    let fitting = least.saturating_add(over);
    if fitting <= most { fitting } else { least }
}

fn columns(row: &[u8]) -> Option<Vec<Column>> {
    let mut types = row;
    let length = usize::try_from(varint(&mut types)?).ok()?;
    let taken = row.len().checked_sub(types.len())?;
    let mut types = types.get(..length.checked_sub(taken)?)?;
    let mut content = row.get(length..)?;
    let mut columns = Vec::new();
    while !types.is_empty() {
        let kind = varint(&mut types)?;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => kind.checked_sub(12)? / 2,
        };
        let (bytes, rest) = content.split_at_checked(usize::try_from(length).ok()?)?;
        content = rest;
        columns.push(match kind {
            0 => Column::Null,
            8 => Column::Integer(0),
            9 => Column::Integer(1),
            7 => Column::Float,
            1..=6 => {
                let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
                let start = if negative { -1_i64 } else { 0 };
                Column::Integer(bytes.iter().fold(start, |value, byte| value << 8 | i64::from(*byte)))
            }
            _ if kind & 1 == 0 => Column::Blob(bytes.to_vec()),
            _ => Column::Text(bytes.to_vec()),
        });
    }
    Some(columns)
}

/// What a write-ahead log holds of transactions that were ended.
struct Frames {
    page_size: usize,
    /// Of the database, in pages.
    size: u32,
    /// Where the newest of each page is.
    pages: HashMap<u32, u64>,
}

/// Nothing where no transaction has been ended.
fn frames(log: &impl ReadAt) -> Result<Option<Frames>, SqliteError> {
    let mut header = [0; 32];
    if log.size() < 32 {
        return Ok(None);
    }
    log.read_at(0, &mut header)?;
    let big = match u32_at(&header, 0) {
        Some(0x377f_0682) => false,
        Some(0x377f_0683) => true,
        // One that was begun anew and is not written yet.
        _ => return Ok(None),
    };
    if u32_at(&header, 4) != Some(3_007_000) {
        return Err(SqliteError::Unsupported("a write-ahead log of another version"));
    }
    let Some(page_size) = u32_at(&header, 8).and_then(page_size) else { return Ok(None) };
    let (head, sum) = header.split_at(24);
    let mut running = checksum([0, 0], head, big);
    if pair(sum) != Some(running) {
        return Ok(None);
    }
    let salt = header.get(16..24).unwrap_or_default().to_vec();
    let (mut ended, mut under_way, mut pending) = (None::<Frames>, HashMap::new(), Vec::new());
    let mut frame = vec![0; page_size.saturating_add(24)];
    let mut offset = 32_u64;
    while offset.saturating_add(frame.len() as u64) <= log.size() {
        log.read_at(offset, &mut frame)?;
        let (head, page) = frame.split_at(24);
        let (Some(number), Some(size)) = (u32_at(head, 0), u32_at(head, 4)) else { break };
        running = checksum(running, head.get(..8).unwrap_or_default(), big);
        running = checksum(running, page, big);
        if number == 0 || head.get(8..16) != Some(salt.as_slice()) || head.get(16..).and_then(pair) != Some(running) {
            break;
        }
        pending.push((number, offset.saturating_add(24)));
        if size > 0 {
            under_way.extend(pending.drain(..));
            ended = Some(Frames { page_size, size, pages: HashMap::new() });
        }
        offset = offset.saturating_add(frame.len() as u64);
    }
    Ok(ended.map(|frames| Frames { pages: under_way, ..frames }))
}

fn pair(bytes: &[u8]) -> Option<[u32; 2]> {
    Some([u32_at(bytes, 0)?, u32_at(bytes, 4)?])
}

fn checksum(mut sum: [u32; 2], bytes: &[u8], big: bool) -> [u32; 2] {
    let read = |word: &[u8; 4]| if big { u32::from_be_bytes(*word) } else { u32::from_le_bytes(*word) };
    for [first, second] in bytes.as_chunks::<4>().0.as_chunks::<2>().0 {
        let [low, high] = &mut sum;
        *low = low.wrapping_add(read(first)).wrapping_add(*high);
        *high = high.wrapping_add(read(second)).wrapping_add(*low);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made by RPM: `Packages` has a row of five pages, and leaves below a page.
    const INSTALLED: &[u8] = include_bytes!("../../../tests/vectors/rpm/installed/rpmdb.sqlite");
    /// Of the same database: row 2 is deleted, a row 99 of 9000 zero bytes inserted.
    const LOG: &[u8] = include_bytes!("../../../tests/vectors/rpm/log/rpmdb.sqlite-wal");

    fn lengths(file: &[u8], log: Option<&[u8]>, table: &'static str) -> Result<Vec<(i64, usize)>, SqliteError> {
        let database = Sqlite::open(file, log)?;
        let row = |row: Result<(i64, Vec<Column>), SqliteError>| match row {
            Ok((number, columns)) => match columns.as_slice() {
                [Column::Null, Column::Blob(blob)] => Ok((number, blob.len())),
                columns => panic!("{columns:?}"),
            },
            Err(error) => Err(error),
        };
        database.rows(table)?.map(row).collect()
    }

    const ROWS: [(i64, usize); 7] = [(1, 16684), (2, 1992), (3, 1736), (4, 1952), (5, 1888), (6, 1916), (7, 3388)];

    #[test]
    fn rows_are_read_with_what_is_in_other_pages() {
        assert_eq!(lengths(INSTALLED, None, "Packages").unwrap(), ROWS);
        assert_eq!(lengths(INSTALLED, Some(b""), "Packages").unwrap(), ROWS);
        assert!(matches!(lengths(INSTALLED, None, "packages"), Err(SqliteError::NoTable("packages"))));
    }

    #[test]
    fn the_log_counts_up_to_the_last_transaction_that_was_ended() {
        let deleted = [(1, 16684), (3, 1736), (4, 1952), (5, 1888), (6, 1916), (7, 3388)];
        let inserted = [deleted.as_slice(), &[(99, 9000)]].concat();
        assert_eq!(lengths(INSTALLED, Some(LOG), "Packages").unwrap(), inserted);
        // The last frame cut off, or its checksum wrong: the second transaction was never ended.
        assert_eq!(lengths(INSTALLED, Some(&LOG[..LOG.len() - 1]), "Packages").unwrap(), deleted);
        let mut changed = LOG.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(lengths(INSTALLED, Some(&changed), "Packages").unwrap(), deleted);
        // Another salt, a log that is being begun: nothing of it counts.
        for offset in [0, 16, 24, 32 + 8] {
            let mut changed = LOG.to_vec();
            changed[offset] ^= 1;
            assert_eq!(lengths(INSTALLED, Some(&changed), "Packages").unwrap(), ROWS, "{offset}");
        }
    }

    #[test]
    fn what_is_no_sound_database_is_refused_with_the_reason() {
        let with = |changes: &[(usize, &[u8])]| {
            let mut file = INSTALLED.to_vec();
            for (offset, bytes) in changes {
                file[*offset..][..bytes.len()].copy_from_slice(bytes);
            }
            file
        };
        // The page on top of the table, which has seven rows in leaves.
        let top = (1..INSTALLED.len() / 4096).map(|page| page * 4096).find(|page| INSTALLED[*page] == 5).unwrap();
        let number = (top / 4096 + 1) as u32;
        let first = top + usize::from(u16::from_be_bytes([INSTALLED[top + 12], INSTALLED[top + 13]]));
        for (file, what) in [
            (b"SQLite".to_vec(), "shorter than a header"),
            (with(&[(0, b"x")]), "it begins otherwise"),
            (with(&[(16, &[0, 3])]), "no page size"),
            (with(&[(19, &[3])]), "a newer format"),
            (with(&[(20, &[0xff]), (16, &[2, 0])]), "no room"),
            (with(&[(56, &[0, 0, 0, 2])]), "not UTF-8"),
            (with(&[(100, &[2])]), "page 1: it is no page of a table"),
            (with(&[(top + 12, &[0xff, 0xff])]), "a cell is outside"),
            (with(&[(first, &number.to_be_bytes())]), "the tree is deeper"),
            (with(&[(first, &[0xff; 4])]), "there is no such page"),
            (with(&[(first, &[0; 4])]), "there is no such page"),
            (with(&[(top + 8, &number.to_be_bytes())]), "rows are not in their order"),
            (INSTALLED[..4096].to_vec(), "there is no such page"),
        ] {
            let error = lengths(&file, None, "Packages").unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }

    #[test]
    fn a_circle_of_pages_ends() {
        // Every page that a row goes on in leads to itself: there are as many steps as pages, and no more.
        let mut file = INSTALLED.to_vec();
        for page in 2..=file.len() / 4096 {
            let offset = (page - 1) * 4096;
            if u32::from_be_bytes(*file[offset..].first_chunk().unwrap()) == page as u32 + 1 {
                file[offset..][..4].copy_from_slice(&(page as u32).to_be_bytes());
            }
        }
        assert!(lengths(&file, None, "Packages").is_ok(), "as long as what a row needs, which is wrong then");
    }

    #[test]
    fn numbers_and_types_are_those_of_the_format() {
        let row = [8, 0, 8, 9, 1, 2, 6, 17, 0xff, 0xff, 0xfe, 0, 0, 0, 0, 0, 0, 1, 0, b'a', b'b'];
        let expected = [
            Column::Null,
            Column::Integer(0),
            Column::Integer(1),
            Column::Integer(-1),
            Column::Integer(-2),
            Column::Integer(256),
            Column::Text(b"ab".to_vec()),
        ];
        assert_eq!(columns(&row).unwrap(), expected);
        assert_eq!(columns(&row[..20]), None);
        for (bytes, value) in [
            (&[0x7f_u8][..], Some(127)),
            (&[0x81, 0], Some(128)),
            (&[0xff; 9], Some(u64::MAX)),
            (&[0xff; 8], None),
            (&[], None),
        ] {
            assert_eq!(varint(&mut &*bytes), value);
        }
        for (length, usable, kept) in [(4061, 4096, 4061), (4062, 4096, 489), (8000, 4096, 3908), (100, 512, 100)] {
            assert_eq!(local(length, usable), kept, "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_change_is_read_or_refused(offset in 0..INSTALLED.len(), bytes: [u8; 4], log_offset in 0..LOG.len()) {
            let (mut file, mut log) = (INSTALLED.to_vec(), LOG.to_vec());
            for (byte, to) in bytes.iter().zip(file[offset..].iter_mut()) {
                *to = *byte;
            }
            log[log_offset] = bytes[0];
            for log in [None, Some(log.as_slice())] {
                let Ok(database) = Sqlite::open(file.as_slice(), log) else { continue };
                let Ok(rows) = database.rows("Packages") else { continue };
                let _ = rows.count();
            }
        }
    }
}
