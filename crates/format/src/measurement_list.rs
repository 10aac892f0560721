//! The measurement list, binary and ascii.
//!
//! A binary list is its entries one after the other, without header or padding:
//!
//! | size | meaning |
//! |---|---|
//! | 4 | PCR |
//! | 20, 32, 48 or 64 | template digest: SHA-1, or the algorithm of a per-bank list; all zero for a violation |
//! | 4 | length N of the template's name |
//! | N | the template's name, or its format if it has none |
//! | 4 | length of the fields; absent for template `ima` |
//! | | each field: 4-byte length, bytes |
//!
//! For template `ima` the fields are the digest without a length (20 bytes, or 16 for MD5), then the name's length and
//! the name without its NUL; so its hashed bytes are not its listed bytes, see [`Entry::hash_input`].
//!
//! Words are in the machine's byte order, little-endian everywhere but on big-endian machines without
//! `ima_canonical_fmt`. Neither order nor digest size is written anywhere; [`Decoder`] finds them out from the first
//! entry. An ascii line is the PCR (two columns), the template digest, the template and the fields, separated by single
//! spaces. Names keep their newlines there, so that the ascii list is ambiguous where a name looks like a line.
//!
//! Source: security/integrity/ima/ima_fs.c, ima_template.c, ima_crypto.c (`ima_calc_field_array_hash_tfm`).

use crate::hash::{Digest, from_hex, to_hex};
use crate::template::{Field, Template, TemplateError, until_nul};
use std::borrow::Cow;
use std::io::Write as _;
use std::ops::Range;

/// An entry of a measurement list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The PCR that it was extended into.
    pub pcr: u32,
    /// The template digest as listed: 20 bytes in the SHA-1 list; all zero for a violation.
    pub template_digest: Vec<u8>,
    /// The template's name, or its format if it has none.
    pub template: String,
    /// The stored bytes of each field, numbers little-endian.
    pub fields: Vec<Vec<u8>>,
}

/// An entry that was just read, as long as the next one is not: nothing in it is owned.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its number in the list; the first is 1.
    pub number: u64,
    /// Where it begins in the list, in bytes.
    pub offset: u64,
    /// How the list is written.
    pub form: ListForm,
    /// The PCR that it was extended into.
    pub pcr: u32,
    /// The template digest as listed.
    pub template_digest: &'a [u8],
    /// The template.
    pub template: &'a Template,
    /// Each field's length and bytes, little-endian.
    data: &'a [u8],
}

/// The order of bytes in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl ByteOrder {
    fn read(self, word: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(word),
            Self::Big => u32::from_be_bytes(word),
        }
    }

    fn write(self, word: usize, out: &mut Vec<u8>) {
        // No entry that can be held in memory as the reader limits it reaches the largest word.
        let word = u32::try_from(word).unwrap_or(u32::MAX);
        out.extend_from_slice(&match self {
            Self::Little => word.to_le_bytes(),
            Self::Big => word.to_be_bytes(),
        });
    }
}

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListForm {
    /// Binary.
    Binary {
        /// The byte order of its words.
        order: ByteOrder,
        /// The size of its template digests, in bytes.
        digest_size: usize,
    },
    /// Text, a line each.
    Ascii {
        /// The size of its template digests, in bytes.
        digest_size: usize,
    },
}

/// The sizes of template digests.
const DIGEST_SIZES: [usize; 4] = [20, 32, 48, 64];
/// The longest template name or format, as the kernel limits it.
const MAX_TEMPLATE_NAME: usize = 255;
/// The most bytes of one entry's fields that are read; real ones stay far below (a key or a signature is some KiB).
pub const MAX_TEMPLATE_DATA: usize = 16 << 20;
/// The kernel refuses PCR numbers from here on.
const PCR_LIMIT: u32 = 64;
/// Template `ima` hashes its name padded to this size.
const LEGACY_HASHED_NAME: usize = 256;

impl Entry {
    /// Exactly the bytes that template digests are computed over: for each field its length and bytes, but for template
    /// `ima` the digest and the name padded with zeros to 256 bytes.
    pub fn hash_input(&self) -> Vec<u8> {
        self.hash_input_in(ByteOrder::Little)
    }

    /// The same as a machine of that byte order hashes it.
    pub fn hash_input_in(&self, order: ByteOrder) -> Vec<u8> {
        let mut out = Vec::new();
        write_hash_input(&self.known_template(), self.fields.iter().map(Vec::as_slice), order, &mut out);
        out
    }

    /// Appends the entry as a binary list has it.
    pub fn write_binary(&self, order: ByteOrder, out: &mut Vec<u8>) {
        let fields = self.fields.iter().map(Vec::as_slice);
        write_binary(self.pcr, &self.template_digest, &self.template, &self.known_template(), fields, order, out);
    }

    /// Appends the entry as an ascii list has it, newline included.
    pub fn write_ascii(&self, out: &mut Vec<u8>) {
        let fields = self.fields.iter().map(Vec::as_slice);
        write_ascii(self.pcr, &self.template_digest, &self.template, &self.known_template(), fields, out);
    }

    /// Whether it records a violation: its template digest is all zero, and the PCR was extended with 0xff bytes.
    pub fn is_violation(&self) -> bool {
        is_violation(&self.template_digest)
    }

    /// The file's digest, from the first field that has one.
    pub fn digest(&self) -> Option<Digest> {
        digest(&self.known_template(), self.fields.iter().map(Vec::as_slice))
    }

    /// The name, from the first field that has one.
    pub fn path(&self) -> Option<&[u8]> {
        path(&self.known_template(), self.fields.iter().map(Vec::as_slice))
    }

    /// The signature, from the first field that has one.
    pub fn signature(&self) -> Option<&[u8]> {
        signature(&self.known_template(), self.fields.iter().map(Vec::as_slice))
    }

    /// The template; a name that is no template has every field shown in hexadecimal.
    fn known_template(&self) -> Cow<'_, Template> {
        if let Some(template) = Template::BUILT_IN.iter().find(|template| template.name == self.template) {
            return Cow::Borrowed(template);
        }
        Cow::Owned(Template::from_name_or_format(&self.template).unwrap_or_else(|_| Template {
            name: Cow::Borrowed(""),
            fields: Cow::Owned(vec![Field::Buf; self.fields.len()]),
        }))
    }
}

impl<'a> Record<'a> {
    /// The stored bytes of each field, numbers little-endian.
    pub fn fields(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        Fields(self.data)
    }

    /// As [`Entry::hash_input_in`], in `room` unless the bytes are at hand as they are.
    pub fn hash_input<'b>(&self, order: ByteOrder, room: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        if order == ByteOrder::Little && !self.template.is_legacy() {
            return self.data;
        }
        room.clear();
        write_hash_input(self.template, self.fields(), order, room);
        room
    }

    /// Appends the fields as a binary list has them, without the length of all of them: each field's length and bytes,
    /// but for template `ima` the digest, the name's length and the name.
    pub fn write_template_data(&self, order: ByteOrder, out: &mut Vec<u8>) {
        write_template_data(self.template, self.fields(), order, out);
    }

    /// As [`Entry::write_binary`].
    pub fn write_binary(&self, order: ByteOrder, out: &mut Vec<u8>) {
        let name = self.template.listed_name();
        write_binary(self.pcr, self.template_digest, &name, self.template, self.fields(), order, out);
    }

    /// As [`Entry::write_ascii`].
    pub fn write_ascii(&self, out: &mut Vec<u8>) {
        let name = self.template.listed_name();
        write_ascii(self.pcr, self.template_digest, &name, self.template, self.fields(), out);
    }

    /// As [`Entry::is_violation`].
    pub fn is_violation(&self) -> bool {
        is_violation(self.template_digest)
    }

    /// As [`Entry::digest`].
    pub fn digest(&self) -> Option<Digest> {
        digest(self.template, self.fields())
    }

    /// As [`Entry::path`].
    pub fn path(&self) -> Option<&'a [u8]> {
        path(self.template, self.fields())
    }

    /// As [`Entry::signature`].
    pub fn signature(&self) -> Option<&'a [u8]> {
        signature(self.template, self.fields())
    }

    /// The entry, to be kept.
    pub fn to_entry(&self) -> Entry {
        Entry {
            pcr: self.pcr,
            template_digest: self.template_digest.to_vec(),
            template: self.template.listed_name().into_owned(),
            fields: self.fields().map(<[u8]>::to_vec).collect(),
        }
    }
}

/// Fields from length-and-bytes, which the reader has checked.
#[derive(Clone)]
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (field, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        self.0 = rest;
        Some(field)
    }
}

fn is_violation(template_digest: &[u8]) -> bool {
    !template_digest.is_empty() && template_digest.iter().all(|byte| *byte == 0)
}

fn digest<'a>(template: &Template, fields: impl Iterator<Item = &'a [u8]>) -> Option<Digest> {
    template.fields.iter().zip(fields).find_map(|(field, stored)| field.digest(stored))
}

fn path<'a>(template: &Template, fields: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    let (_, stored) = template.fields.iter().zip(fields).find(|(field, _)| field.is_name())?;
    Some(stored.strip_suffix(&[0]).unwrap_or(stored))
}

fn signature<'a>(template: &Template, fields: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    let holds_one = |field: &Field| matches!(field, Field::Sig | Field::Evmsig);
    let mut fields = template.fields.iter().zip(fields);
    fields.find_map(|(field, stored)| (holds_one(field) && !stored.is_empty()).then_some(stored))
}

/// Appends a field as a machine of that byte order stores it; the same way back.
fn push_in_order(field: Option<&Field>, stored: &[u8], order: ByteOrder, out: &mut Vec<u8>) {
    match (order, field.and_then(|field| field.number_size())) {
        (ByteOrder::Big, Some(size)) if stored.len().checked_rem(size) == Some(0) => {
            stored.chunks(size).for_each(|number| out.extend(number.iter().rev()));
        }
        _ => out.extend_from_slice(stored),
    }
}

/// Appends each field's length and bytes.
fn write_fields<'a>(template: &Template, fields: impl Iterator<Item = &'a [u8]>, order: ByteOrder, out: &mut Vec<u8>) {
    for (index, stored) in fields.enumerate() {
        order.write(stored.len(), out);
        push_in_order(template.fields.get(index), stored, order, out);
    }
}

fn write_hash_input<'a>(
    template: &Template,
    mut fields: impl Iterator<Item = &'a [u8]>,
    order: ByteOrder,
    out: &mut Vec<u8>,
) {
    if !template.is_legacy() {
        return write_fields(template, fields, order, out);
    }
    out.extend_from_slice(fields.next().unwrap_or_default());
    let name = fields.next().unwrap_or_default();
    out.extend(name.iter().copied().chain(std::iter::repeat(0)).take(LEGACY_HASHED_NAME));
}

fn write_binary<'a>(
    pcr: u32,
    template_digest: &[u8],
    name: &str,
    template: &Template,
    fields: impl Iterator<Item = &'a [u8]> + Clone,
    order: ByteOrder,
    out: &mut Vec<u8>,
) {
    order.write(usize::try_from(pcr).unwrap_or(usize::MAX), out);
    out.extend_from_slice(template_digest);
    order.write(name.len(), out);
    out.extend_from_slice(name.as_bytes());
    if !template.is_legacy() {
        let size = fields.clone().fold(0usize, |size, stored| size.saturating_add(4).saturating_add(stored.len()));
        order.write(size, out);
    }
    write_template_data(template, fields, order, out);
}

/// Appends the fields as a binary list has them.
fn write_template_data<'a>(
    template: &Template,
    mut fields: impl Iterator<Item = &'a [u8]>,
    order: ByteOrder,
    out: &mut Vec<u8>,
) {
    if !template.is_legacy() {
        return write_fields(template, fields, order, out);
    }
    out.extend_from_slice(fields.next().unwrap_or_default());
    let name = fields.next().unwrap_or_default();
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    order.write(name.len(), out);
    out.extend_from_slice(name);
}

fn write_ascii<'a>(
    pcr: u32,
    template_digest: &[u8],
    name: &str,
    template: &Template,
    fields: impl Iterator<Item = &'a [u8]>,
    out: &mut Vec<u8>,
) {
    // Writing into memory does not fail.
    let _ = write!(out, "{pcr:2} {} {name}", to_hex(template_digest));
    for (field, stored) in template.fields.iter().zip(fields) {
        out.push(b' ');
        field.write_ascii(stored, out);
    }
    out.push(b'\n');
}

/// What is wrong with a list, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry}, at offset {offset}: {kind}")]
pub struct ListError {
    /// The entry's number; the first is 1.
    pub entry: u64,
    /// Where in the list, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub kind: ListErrorKind,
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListErrorKind {
    /// The list ends within the entry.
    #[error("the list ends within {what}: {found} bytes are left, {needed} needed")]
    Truncated {
        /// What it ends within.
        what: &'static str,
        /// Bytes that are left.
        found: usize,
        /// Bytes needed, at least.
        needed: usize,
    },
    /// Neither a binary nor an ascii list.
    #[error(
        "this is no measurement list: it begins with {found}, where a PCR, a template digest (20, 32, 48 or 64 bytes) \
         and a template's name were needed"
    )]
    NoList {
        /// The first bytes in hexadecimal.
        found: String,
    },
    /// A PCR number that the kernel does not have.
    #[error("PCR {0} does not exist; less than {PCR_LIMIT} was needed")]
    Pcr(u32),
    /// A template name of a length that cannot be.
    #[error("the template's name is {0} bytes long; 1 to {MAX_TEMPLATE_NAME} were needed")]
    NameLength(u32),
    /// An unknown template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// More bytes in the fields than the reader takes.
    #[error("the fields are {0} bytes long; {MAX_TEMPLATE_DATA} are the most")]
    DataLength(u32),
    /// A field is longer than what is left of the entry.
    #[error("field `{field}` is {length} bytes long, but only {left} are left of the entry")]
    FieldLength {
        /// The field.
        field: &'static str,
        /// Its length as the list has it.
        length: u32,
        /// Bytes left.
        left: usize,
    },
    /// Bytes after the template's last field.
    #[error("{left} bytes follow the {fields} fields that template `{template}` has")]
    Surplus {
        /// The template.
        template: String,
        /// How many fields it has.
        fields: usize,
        /// Bytes left over.
        left: usize,
    },
    /// Fewer fields than the template has.
    #[error("field `{field}` of template `{template}` is missing")]
    MissingField {
        /// The template.
        template: String,
        /// The first field that is missing.
        field: &'static str,
    },
    /// An entry of template `ima` whose name is longer than the template allows.
    #[error("the name in template `ima` is {0} bytes long; 255 are the most")]
    LegacyName(u32),
    /// A line of an ascii list that does not read as one.
    #[error(
        "{what} was needed, but the text is `{found}`; a name that holds a newline can be the cause: use the binary list"
    )]
    Text {
        /// What was needed.
        what: &'static str,
        /// The text, cut to a readable length.
        found: String,
    },
}

/// Reads a list that is in memory, binary or ascii.
///
/// It ends after the first error.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    state: State,
    failed: bool,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, state: State::default(), failed: false }
    }

    /// The next entry without a copy; `None` at the end.
    ///
    /// # Errors
    /// [`ListError`] with the entry's number and the offset.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ListError> {
        if self.failed {
            return Ok(None);
        }
        let bytes = self.bytes;
        match self.state.step(bytes, true) {
            Ok(Some(parsed)) => {
                self.bytes = bytes.get(parsed.length..).unwrap_or_default();
                Ok(self.state.record(bytes, &parsed))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    /// How the list is written, once the first entry has been read.
    pub fn form(&self) -> Option<ListForm> {
        self.state.form
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Entry, ListError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_record().map(|record| record.map(|record| record.to_entry())).transpose()
    }
}

/// Reads a list that comes in pieces, binary or ascii, and keeps no more of it than one entry and one piece.
///
/// ```
/// # use imara_format::measurement_list::Decoder;
/// # fn show(pieces: &[&[u8]]) -> Result<(), imara_format::measurement_list::ListError> {
/// let mut decoder = Decoder::new();
/// for piece in pieces {
///     decoder.feed(piece);
///     while let Some(record) = decoder.next_record()? {
///         println!("{:?}", record.path());
///     }
/// }
/// decoder.end();
/// while let Some(record) = decoder.next_record()? {
///     println!("{:?}", record.path());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    ended: bool,
    failed: bool,
    state: State,
}

impl Decoder {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a further piece.
    pub fn feed(&mut self, piece: &[u8]) {
        let start = std::mem::take(&mut self.start);
        self.buffer.drain(..start.min(self.buffer.len()));
        self.buffer.extend_from_slice(piece);
    }

    /// Nothing follows: what is left must be whole entries.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The next entry; `None` when a further piece is needed, or at the end. Ends after the first error.
    ///
    /// # Errors
    /// [`ListError`] with the entry's number and the offset.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ListError> {
        if self.failed {
            return Ok(None);
        }
        let bytes = self.buffer.get(self.start..).unwrap_or_default();
        match self.state.step(bytes, self.ended) {
            Ok(Some(parsed)) => {
                self.start = self.start.saturating_add(parsed.length);
                Ok(self.state.record(bytes, &parsed))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    /// How the list is written, once the first entry has been read.
    pub fn form(&self) -> Option<ListForm> {
        self.state.form
    }
}

/// Where a reader stands.
#[derive(Debug, Default)]
struct State {
    form: Option<ListForm>,
    entries: u64,
    offset: u64,
    /// The template of the entry just read; most lists have one for all.
    template: Option<(Vec<u8>, Template)>,
    /// The fields of an entry whose list does not have them little-endian with lengths.
    fields: Vec<u8>,
    /// The template digest of an ascii entry.
    digest: Vec<u8>,
}

/// An entry found in the bytes at hand.
struct Parsed {
    length: usize,
    number: u64,
    offset: u64,
    pcr: u32,
    /// Where the template digest is in those bytes; else in [`State::digest`].
    digest: Option<Range<usize>>,
    /// Where the fields are in those bytes; else in [`State::fields`].
    data: Option<Range<usize>>,
}

/// Why no entry was found.
enum Stop {
    /// More bytes are needed.
    Short {
        what: &'static str,
        needed: usize,
    },
    Bad(ListErrorKind),
}

impl From<ListErrorKind> for Stop {
    fn from(kind: ListErrorKind) -> Self {
        Self::Bad(kind)
    }
}

impl State {
    fn step(&mut self, bytes: &[u8], ended: bool) -> Result<Option<Parsed>, ListError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut cursor = Cursor { bytes, at: 0 };
        let result = match self.form.map_or_else(|| find_form(bytes, ended), Ok) {
            Ok(form) => {
                self.form = Some(form);
                match form {
                    ListForm::Binary { order, digest_size } => self.binary(&mut cursor, order, digest_size, ended),
                    ListForm::Ascii { digest_size } => self.ascii(&mut cursor, digest_size, ended),
                }
            }
            Err(stop) => Err(stop),
        };
        let number = self.entries.saturating_add(1);
        let at = |at: usize| self.offset.saturating_add(u64::try_from(at).unwrap_or(u64::MAX));
        match result {
            Ok((pcr, digest, data)) => {
                let parsed = Parsed { length: cursor.at, number, offset: self.offset, pcr, digest, data };
                self.offset = at(cursor.at);
                self.entries = number;
                Ok(Some(parsed))
            }
            Err(Stop::Short { .. }) if !ended => Ok(None),
            Err(stop) => {
                let found = bytes.len().saturating_sub(cursor.at);
                let kind = match stop {
                    Stop::Short { what, needed } => ListErrorKind::Truncated { what, found, needed },
                    Stop::Bad(kind) => kind,
                };
                Err(ListError { entry: number, offset: at(cursor.at), kind })
            }
        }
    }

    /// Gives out what [`State::step`] found in `bytes`.
    fn record<'a>(&'a self, bytes: &'a [u8], parsed: &Parsed) -> Option<Record<'a>> {
        let within = |range: &Option<Range<usize>>, other: &'a [u8]| match range {
            Some(range) => bytes.get(range.clone()).unwrap_or_default(),
            None => other,
        };
        let (_, template) = self.template.as_ref()?;
        Some(Record {
            number: parsed.number,
            offset: parsed.offset,
            form: self.form?,
            pcr: parsed.pcr,
            template_digest: within(&parsed.digest, &self.digest),
            template,
            data: within(&parsed.data, &self.fields),
        })
    }

    /// Makes the template of that name the current one.
    fn name_template(&mut self, name: &[u8]) -> Result<&Template, ListErrorKind> {
        let current = match self.template.take() {
            Some(current) if current.0 == name => current,
            _ => (name.to_vec(), Template::from_name_or_format(&String::from_utf8_lossy(name))?),
        };
        Ok(&self.template.insert(current).1)
    }

    #[allow(clippy::type_complexity, reason = "the three parts of an entry, taken apart at once by the only caller")]
    fn binary(
        &mut self,
        cursor: &mut Cursor<'_>,
        order: ByteOrder,
        digest_size: usize,
        ended: bool,
    ) -> Result<(u32, Option<Range<usize>>, Option<Range<usize>>), Stop> {
        let pcr = cursor
            .check_word(order, "the PCR", |pcr| if pcr < PCR_LIMIT { Ok(pcr) } else { Err(ListErrorKind::Pcr(pcr)) })?;
        let digest_at = cursor.at;
        cursor.take(digest_size, "the template digest")?;
        let digest = Some(digest_at..cursor.at);
        let name_length =
            cursor.check_word(order, "the length of the template's name", |length| match usize::try_from(length) {
                Ok(size @ 1..=MAX_TEMPLATE_NAME) => Ok(size),
                _ => Err(ListErrorKind::NameLength(length)),
            })?;
        let name_at = cursor.at;
        let name = cursor.take(name_length, "the template's name")?;
        if let Err(kind) = self.name_template(name) {
            cursor.at = name_at;
            return Err(kind.into());
        }
        let Self { template: Some((_, template)), fields, .. } = self else {
            return Err(ListErrorKind::NameLength(0).into());
        };
        if template.is_legacy() {
            fields.clear();
            legacy_fields(cursor, order, ended, fields)?;
            return Ok((pcr, digest, None));
        }
        let size = cursor.check_word(order, "the length of the fields", |length| match usize::try_from(length) {
            Ok(size @ 0..=MAX_TEMPLATE_DATA) => Ok(size),
            _ => Err(ListErrorKind::DataLength(length)),
        })?;
        let data_at = cursor.at;
        let data = cursor.take(size, "the fields")?;
        let mut inner = Cursor { bytes: data, at: 0 };
        if order == ByteOrder::Big {
            fields.clear();
        }
        for field in template.fields.iter() {
            let result = field_bytes(&mut inner, *field, order, template);
            let stored = match result {
                Ok(stored) => stored,
                Err(kind) => {
                    cursor.at = data_at.saturating_add(inner.at);
                    return Err(kind.into());
                }
            };
            if order == ByteOrder::Big {
                ByteOrder::Little.write(stored.len(), fields);
                push_in_order(Some(field), stored, order, fields);
            }
        }
        let left = data.len().saturating_sub(inner.at);
        if left > 0 {
            cursor.at = data_at.saturating_add(inner.at);
            let template = template.listed_name().into_owned();
            let surplus = self.template.as_ref().map_or(0, |(_, template)| template.fields.len());
            return Err(ListErrorKind::Surplus { template, fields: surplus, left }.into());
        }
        Ok((pcr, digest, (order == ByteOrder::Little).then_some(data_at..cursor.at)))
    }

    #[allow(clippy::type_complexity, reason = "as for binary entries")]
    fn ascii(
        &mut self,
        cursor: &mut Cursor<'_>,
        digest_size: usize,
        ended: bool,
    ) -> Result<(u32, Option<Range<usize>>, Option<Range<usize>>), Stop> {
        let line = cursor.bytes;
        if line.first() == Some(&b' ') {
            cursor.at = 1;
        }
        let pcr_at = cursor.at;
        let (pcr, _) = cursor.word(ended, 10, "a PCR's number")?;
        let pcr = std::str::from_utf8(pcr).ok().and_then(|pcr| pcr.parse().ok());
        let Some(pcr) = pcr.filter(|pcr| *pcr < PCR_LIMIT) else {
            cursor.at = pcr_at;
            return Err(cursor.unreadable("a PCR's number"));
        };
        let digest_at = cursor.at;
        let (digest, _) = cursor.word(ended, 128, "a template digest in hexadecimal")?;
        match std::str::from_utf8(digest).ok().and_then(|digest| from_hex(digest).ok()) {
            Some(digest) if digest.len() == digest_size => self.digest = digest,
            _ => {
                cursor.at = digest_at;
                return Err(cursor.unreadable("a template digest in hexadecimal, as long as the first entry's,"));
            }
        }
        let name_at = cursor.at;
        let (name, mut end) = cursor.word(ended, MAX_TEMPLATE_NAME, "a template's name")?;
        if let Err(kind) = self.name_template(name) {
            cursor.at = name_at;
            return Err(kind.into());
        }
        let Self { template: Some((_, template)), fields, .. } = self else {
            return Err(ListErrorKind::NameLength(0).into());
        };
        fields.clear();
        let last = template.fields.len().saturating_sub(1);
        for (index, field) in template.fields.iter().enumerate() {
            let field_at = cursor.at;
            // Whoever stripped spaces from line ends took empty last fields with them.
            let text = if end == b'\n' && index > 0 {
                &[]
            } else {
                let (text, found_end) = cursor.text(ended, field.is_name())?;
                end = found_end;
                text
            };
            if index == last && end != b'\n' {
                return Err(cursor.unreadable("the end of the line"));
            }
            let Some(stored) = field.read_ascii(text) else {
                cursor.at = field_at;
                return Err(cursor.unreadable(field.id()));
            };
            ByteOrder::Little.write(stored.len(), fields);
            fields.extend_from_slice(&stored);
        }
        if fields.len() > MAX_TEMPLATE_DATA {
            return Err(ListErrorKind::DataLength(u32::try_from(fields.len()).unwrap_or(u32::MAX)).into());
        }
        Ok((pcr, None, None))
    }
}

/// A field of an entry, by its length.
fn field_bytes<'a>(
    inner: &mut Cursor<'a>,
    field: Field,
    order: ByteOrder,
    template: &Template,
) -> Result<&'a [u8], ListErrorKind> {
    let missing = || ListErrorKind::MissingField { template: template.listed_name().into_owned(), field: field.id() };
    let length = inner.u32(order, "").map_err(|_| missing())?;
    let left = inner.bytes.len().saturating_sub(inner.at);
    usize::try_from(length).ok().and_then(|size| inner.take(size, "").ok()).ok_or(ListErrorKind::FieldLength {
        field: field.id(),
        length,
        left,
    })
}

/// The fields of template `ima`. Nothing says whether its digest has 20 bytes or, as MD5, 16: it is 16 only where 20
/// leave no name of a possible length.
fn legacy_fields(cursor: &mut Cursor<'_>, order: ByteOrder, ended: bool, fields: &mut Vec<u8>) -> Result<(), Stop> {
    let start = cursor.at;
    let mut attempt = |size: usize| {
        cursor.at = start;
        let digest = cursor.take(size, "the digest")?;
        let length = cursor.check_word(order, "the length of the name", |length| match usize::try_from(length) {
            Ok(length @ 0..LEGACY_HASHED_NAME) => Ok(length),
            _ => Err(ListErrorKind::LegacyName(length)),
        })?;
        let name = cursor.take(length, "the name")?;
        fields.clear();
        ByteOrder::Little.write(digest.len(), fields);
        fields.extend_from_slice(digest);
        ByteOrder::Little.write(name.len().saturating_add(1), fields);
        fields.extend_from_slice(name);
        fields.push(0);
        Ok(())
    };
    match attempt(20) {
        Ok(()) => Ok(()),
        Err(stop @ Stop::Short { .. }) if !ended => Err(stop),
        Err(stop) => attempt(16).map_err(|_| {
            // The entry is wrong either way; SHA-1 is the likelier one to speak of.
            let _ = attempt(20);
            stop
        }),
    }
}

/// Finds out how a list is written, from its first bytes.
fn find_form(bytes: &[u8], ended: bool) -> Result<ListForm, Stop> {
    let first_entry = 4usize.saturating_add(64).saturating_add(4).saturating_add(MAX_TEMPLATE_NAME);
    if bytes.len() < first_entry && !ended {
        return Err(Stop::Short { what: "the first entry", needed: first_entry });
    }
    if let [b' ' | b'0'..=b'9', b'0'..=b'9', ..] = bytes {
        let digest = bytes.splitn(4, |byte| *byte == b' ').find(|word| word.len() > 3).unwrap_or_default();
        if let Some(digest_size) = DIGEST_SIZES.into_iter().find(|size| size.checked_mul(2) == Some(digest.len())) {
            return Ok(ListForm::Ascii { digest_size });
        }
    }
    let name = |order: ByteOrder, digest_size: usize| {
        let mut cursor = Cursor { bytes, at: 0 };
        let pcr = cursor.u32(order, "").ok()?;
        cursor.take(digest_size, "").ok()?;
        let length = usize::try_from(cursor.u32(order, "").ok()?).ok()?;
        let name = (1..=MAX_TEMPLATE_NAME).contains(&length).then(|| cursor.take(length, "").ok())??;
        (pcr < PCR_LIMIT).then_some(std::str::from_utf8(name).ok()?)
    };
    let known = |name: &str| Template::from_name_or_format(name).is_ok();
    // A name that only looks like one is let through, so that the error can name it.
    let likely = |name: &str| name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'|'));
    for fits in [&known as &dyn Fn(&str) -> bool, &likely] {
        for order in [ByteOrder::Little, ByteOrder::Big] {
            for digest_size in DIGEST_SIZES {
                if name(order, digest_size).is_some_and(fits) {
                    return Ok(ListForm::Binary { order, digest_size });
                }
            }
        }
    }
    let found = to_hex(bytes.get(..16).unwrap_or(bytes));
    Err(ListErrorKind::NoList { found }.into())
}

/// A place in bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, size: usize, what: &'static str) -> Result<&'a [u8], Stop> {
        let (taken, _) = self.rest().split_at_checked(size).ok_or(Stop::Short { what, needed: size })?;
        self.at = self.at.saturating_add(size);
        Ok(taken)
    }

    fn u32(&mut self, order: ByteOrder, what: &'static str) -> Result<u32, Stop> {
        let word = self.rest().first_chunk().ok_or(Stop::Short { what, needed: 4 })?;
        self.at = self.at.saturating_add(4);
        Ok(order.read(*word))
    }

    /// A word that must satisfy `check`; the error's offset is the word's.
    fn check_word<T>(
        &mut self,
        order: ByteOrder,
        what: &'static str,
        check: impl FnOnce(u32) -> Result<T, ListErrorKind>,
    ) -> Result<T, Stop> {
        let at = self.at;
        check(self.u32(order, what)?).map_err(|kind| {
            self.at = at;
            kind.into()
        })
    }

    /// Text up to a space or newline, at most `most` bytes of it, and which of both ended it.
    fn word(&mut self, ended: bool, most: usize, what: &'static str) -> Result<(&'a [u8], u8), Stop> {
        let rest = self.rest();
        let room = rest.get(..most.saturating_add(1)).unwrap_or(rest);
        match room.iter().position(|byte| matches!(byte, b' ' | b'\n')) {
            Some(length) => {
                let (word, end) = room.split_at_checked(length).unwrap_or_default();
                self.at = self.at.saturating_add(length).saturating_add(1);
                Ok((word, end.first().copied().unwrap_or(b'\n')))
            }
            None if room.len() > most => Err(self.unreadable(what)),
            None if ended => Err(Stop::Short { what, needed: rest.len().saturating_add(1) }),
            None => Err(Stop::Short { what, needed: most }),
        }
    }

    /// A field's text, and the space or newline that ended it. A newline belongs to a name unless a line begins there.
    fn text(&mut self, ended: bool, is_name: bool) -> Result<(&'a [u8], u8), Stop> {
        let rest = self.rest();
        let short = Stop::Short { what: "a field", needed: rest.len().saturating_add(1) };
        for (length, byte) in rest.iter().enumerate() {
            let (text, after) = rest.split_at_checked(length).unwrap_or_default();
            let after = after.get(1..).unwrap_or_default();
            match *byte {
                b' ' => {}
                b'\n' if !is_name => {}
                b'\n' if after.len() < LINE_START && !ended => return Err(short),
                b'\n' if begins_line(after) => {}
                _ if length > MAX_TEMPLATE_DATA => {
                    return Err(ListErrorKind::DataLength(u32::try_from(length).unwrap_or(u32::MAX)).into());
                }
                _ => continue,
            }
            self.at = self.at.saturating_add(length).saturating_add(1);
            return Ok((text, *byte));
        }
        Err(short)
    }

    fn unreadable(&self, what: &'static str) -> Stop {
        let rest = self.rest();
        let text = rest.split(|byte| *byte == b'\n').next().unwrap_or(rest);
        let found = until_nul(text.get(..64).unwrap_or(text)).escape_ascii().to_string();
        ListErrorKind::Text { what, found }.into()
    }
}

/// How many bytes must be there to tell whether a line begins: space, PCR, space, digest, space, a letter.
const LINE_START: usize = 136;

/// Whether an ascii entry, or nothing, begins here.
fn begins_line(bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        return true;
    }
    let bytes = bytes.get(..LINE_START).unwrap_or(bytes);
    let mut words = bytes.strip_prefix(b" ").unwrap_or(bytes).splitn(3, |byte| *byte == b' ');
    let (Some(pcr), Some(digest), Some(rest)) = (words.next(), words.next(), words.next()) else { return false };
    (1..=2).contains(&pcr.len())
        && pcr.iter().all(u8::is_ascii_digit)
        && DIGEST_SIZES.iter().any(|size| size.checked_mul(2) == Some(digest.len()))
        && digest.iter().all(u8::is_ascii_hexdigit)
        && rest.first().is_some_and(u8::is_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::{encode_d_ng, encode_n_ng};
    use proptest::prelude::*;
    use std::path::{Path, PathBuf};

    fn vectors() -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/measurement_list");
        let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|case| case.unwrap().path()).collect();
        cases.retain(|case| case.is_dir());
        cases.sort();
        assert!(cases.len() > 20);
        cases
    }

    fn entries(list: &[u8]) -> Vec<Entry> {
        Reader::new(list).collect::<Result<_, _>>().unwrap()
    }

    fn binary(entries: &[Entry], order: ByteOrder) -> Vec<u8> {
        let mut out = Vec::new();
        entries.iter().for_each(|entry| entry.write_binary(order, &mut out));
        out
    }

    #[test]
    fn every_kernel_list_is_read_and_written_back_byte_for_byte() {
        for case in vectors() {
            let list = std::fs::read(case.join("binary")).unwrap();
            let entries = entries(&list);
            let number = |file| std::fs::read_to_string(case.join(file)).unwrap().trim().parse::<usize>().unwrap();
            assert_eq!(entries.len(), number("count"), "{case:?}");
            assert_eq!(entries.iter().filter(|entry| entry.is_violation()).count(), number("violations"), "{case:?}");
            assert!(binary(&entries, ByteOrder::Little) == list, "{case:?}");
            let Ok(ascii) = std::fs::read(case.join("ascii")) else { continue };
            let mut shown = Vec::new();
            entries.iter().for_each(|entry| entry.write_ascii(&mut shown));
            assert_eq!(String::from_utf8_lossy(&shown), String::from_utf8_lossy(&ascii), "{case:?}");
        }
    }

    #[test]
    fn every_ascii_list_gives_the_entries_of_the_binary_one() {
        for case in vectors() {
            let Ok(ascii) = std::fs::read(case.join("ascii")) else { continue };
            let list = std::fs::read(case.join("binary")).unwrap();
            assert_eq!(entries(&ascii), entries(&list), "{case:?}");
        }
    }

    #[test]
    fn a_big_endian_list_gives_the_same_entries() {
        for case in vectors() {
            let entries = entries(&std::fs::read(case.join("binary")).unwrap());
            let big = binary(&entries, ByteOrder::Big);
            let mut reader = Reader::new(&big);
            assert_eq!(reader.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), entries, "{case:?}");
            assert_eq!(reader.form(), Some(ListForm::Binary { order: ByteOrder::Big, digest_size: 20 }));
        }
    }

    #[test]
    fn lists_of_larger_banks_are_told_apart_by_their_first_entry() {
        for case in vectors() {
            let mut entries = entries(&std::fs::read(case.join("binary")).unwrap());
            for digest_size in DIGEST_SIZES {
                entries.iter_mut().for_each(|entry| entry.template_digest = vec![0xa5; digest_size]);
                for order in [ByteOrder::Little, ByteOrder::Big] {
                    let list = binary(&entries, order);
                    let mut reader = Reader::new(&list);
                    assert_eq!(reader.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), entries, "{case:?}");
                    assert_eq!(reader.form(), Some(ListForm::Binary { order, digest_size }));
                }
            }
        }
    }

    #[test]
    fn pieces_of_any_size_give_the_same_entries() {
        for case in vectors() {
            for file in ["binary", "ascii"] {
                let Ok(list) = std::fs::read(case.join(file)) else { continue };
                for size in [1, 7, 100, 5000] {
                    let (mut decoder, mut found) = (Decoder::new(), Vec::new());
                    for piece in list.chunks(size) {
                        decoder.feed(piece);
                        while let Some(record) = decoder.next_record().unwrap() {
                            found.push(record.to_entry());
                        }
                    }
                    decoder.end();
                    while let Some(record) = decoder.next_record().unwrap() {
                        found.push(record.to_entry());
                    }
                    assert_eq!(found, entries(&list), "{case:?} {file} {size}");
                }
            }
        }
    }

    #[test]
    fn a_list_cut_anywhere_is_refused_or_ends_between_entries() {
        let case = vectors().into_iter().find(|case| case.ends_with("verity")).unwrap();
        for file in ["binary", "ascii"] {
            let list = std::fs::read(case.join(file)).unwrap();
            let whole = entries(&list);
            for end in 0..list.len() {
                let (read, failed): (Vec<_>, Vec<_>) = Reader::new(&list[..end]).partition(Result::is_ok);
                let read: Vec<_> = read.into_iter().map(Result::unwrap).collect();
                let mut rest = Vec::new();
                match file {
                    "binary" => read.iter().for_each(|entry| entry.write_binary(ByteOrder::Little, &mut rest)),
                    _ => read.iter().for_each(|entry| entry.write_ascii(&mut rest)),
                }
                assert_eq!(failed.is_empty(), rest.len() == end, "{file} cut at {end}");
                assert_eq!(read, whole[..read.len()], "{file} cut at {end}");
            }
        }
    }

    #[test]
    fn bad_entries_are_refused_with_number_offset_and_reason() {
        let entry = Entry {
            pcr: 10,
            template_digest: vec![1; 20],
            template: "ima-ng".into(),
            fields: vec![encode_d_ng(&Digest::zeros(crate::hash::HashAlgorithm::Sha1)), encode_n_ng(b"/x")],
        };
        let good = binary(std::slice::from_ref(&entry), ByteOrder::Little);
        let second = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut list = good.clone();
            change(&mut list);
            Reader::new(&[good.clone(), list].concat()).last().unwrap().unwrap_err().to_string()
        };
        // PCR 0, digest 4, name's length 24, name 28, fields' length 34, `d-ng` 38, `n-ng` 68.
        for (change, expected) in [
            (
                &(|list: &mut Vec<u8>| list.truncate(20)) as &dyn Fn(&mut Vec<u8>),
                "entry 2, at offset 79: the list ends within the template digest: 16 bytes are left, 20 needed",
            ),
            (&|list| list[1] = 1, "entry 2, at offset 75: PCR 266 does not exist; less than 64 was needed"),
            (
                &|list| list[27] = 0xff,
                "entry 2, at offset 99: the template's name is 4278190086 bytes long; 1 to 255 were needed",
            ),
            (
                &|list| list[28] = b'I',
                "entry 2, at offset 103: template `Ima-ng` is neither a template's name nor a format: unknown field `Ima-ng`",
            ),
            (
                &|list| list[37] = 0xff,
                "entry 2, at offset 109: the fields are 4278190117 bytes long; 16777216 are the most",
            ),
            (
                &|list| list[41] = 0xff,
                "entry 2, at offset 117: field `d-ng` is 4278190106 bytes long, but only 33 are left of the entry",
            ),
            (&|list| list[68] = 2, "entry 2, at offset 149: 1 bytes follow the 2 fields that template `ima-ng` has"),
            (
                &|list| list[68] = 4,
                "entry 2, at offset 147: field `n-ng` is 4 bytes long, but only 3 are left of the entry",
            ),
            (&|list| list[34] = 30, "entry 2, at offset 143: field `n-ng` of template `ima-ng` is missing"),
        ] {
            assert_eq!(second(change), expected);
        }
        let noise = Reader::new(b"\x7fELF\x02\x01\x01").last().unwrap().unwrap_err().to_string();
        assert!(
            noise.starts_with("entry 1, at offset 0: this is no measurement list: it begins with 7f454c46"),
            "{noise}"
        );
        assert!(Reader::new(b"").next().is_none());
    }

    #[test]
    fn a_hostile_length_costs_no_memory() {
        let mut list = vec![10, 0, 0, 0];
        list.extend([1; 20]);
        list.extend(b"\x06\0\0\0ima-ng\0\0\0\x01");
        list.extend([0; 400]);
        let mut decoder = Decoder::new();
        decoder.feed(&list);
        assert!(decoder.next_record().unwrap().is_none());
        assert!(decoder.buffer.capacity() < 10_000);
    }

    #[test]
    fn a_name_of_newlines_does_not_take_quadratic_time() {
        let line = format!("10 {} ima-ng sha1:{} /a", "11".repeat(20), "22".repeat(20));
        let newlines = 2_000_000;
        let list = entries(&[line.as_bytes(), &vec![b'\n'; newlines]].concat());
        assert_eq!(list[0].path().unwrap().len(), "/a".len() + newlines - 1);
    }

    #[test]
    fn the_digest_of_template_ima_may_be_md5() {
        let names = [&b"/mnt/true"[..], b"a", b"boot_aggregate"];
        let list: Vec<Entry> = names
            .iter()
            .enumerate()
            .map(|(index, name)| Entry {
                pcr: 10,
                template_digest: vec![9; 20],
                template: "ima".into(),
                fields: vec![vec![7; if index == 2 { 20 } else { 16 }], encode_n_ng(name)],
            })
            .collect();
        for order in [ByteOrder::Little, ByteOrder::Big] {
            assert_eq!(entries(&binary(&list, order)), list);
            for last in 0..3 {
                assert_eq!(entries(&binary(&list[last..=last], order)), list[last..=last]);
            }
        }
        assert_eq!(list[0].hash_input().len(), 16 + 256);
    }

    #[test]
    fn an_ascii_name_that_looks_like_a_line_is_the_ambiguity_that_remains() {
        let line = format!("10 {} ima-ng sha1:{} /a\nb\n", "11".repeat(20), "22".repeat(20));
        let list = entries(format!("{line}{line}").as_bytes());
        assert_eq!(list.len(), 2);
        assert_eq!(list[1].path(), Some(&b"/a\nb"[..]));
        let forged = format!("10 {} ima-ng sha1:{} /a\n{line}", "11".repeat(20), "22".repeat(20));
        assert_eq!(entries(forged.as_bytes())[0].path(), Some(&b"/a"[..]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            Reader::new(&bytes).for_each(drop);
        }

        #[test]
        fn no_change_to_a_list_panics(case in 0usize..20, at in any::<prop::sample::Index>(), byte in any::<u8>(), ascii in any::<bool>()) {
            let case = &vectors()[case];
            let file = if ascii && case.join("ascii").exists() { "ascii" } else { "binary" };
            let mut list = std::fs::read(case.join(file)).unwrap();
            let at = at.index(list.len());
            list[at] = byte;
            for entry in Reader::new(&list).flatten() {
                entry.write_ascii(&mut Vec::new());
                entry.write_binary(ByteOrder::Big, &mut Vec::new());
            }
        }

        #[test]
        fn entries_are_read_back_as_written(
            pcr in 0u32..64,
            template in 1usize..Template::BUILT_IN.len(),
            size in prop::sample::select(&DIGEST_SIZES[..]),
            fields in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 9),
            big in any::<bool>(),
        ) {
            let template = &Template::BUILT_IN[template];
            let entry = Entry {
                pcr,
                template_digest: vec![1; size],
                template: template.name.to_string(),
                fields: fields[..template.fields.len()].to_vec(),
            };
            let list = binary(&[entry.clone(), entry.clone()], if big { ByteOrder::Big } else { ByteOrder::Little });
            prop_assert_eq!(entries(&list), vec![entry.clone(), entry]);
        }
    }
}
