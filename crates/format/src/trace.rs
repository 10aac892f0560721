//! A trace: what a guard decided, access by access, so that another policy can be tried on the same accesses.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | `IMATRACE` |
//! | 8 | 2 | version, little-endian: 1 |
//! | 10 | | records, the first of them the header |
//!
//! A record is its type (1 byte), the length of its payload (integer), and the payload. An integer is a LEB128 varint:
//! seven bits a byte, the least significant first, the high bit set in all bytes but the last. A signed integer is folded
//! first: 0, -1, 1, -2 become 0, 1, 2, 3. A text is its length (integer) and its bytes.
//!
//! | type | record | payload |
//! |---|---|---|
//! | 1 | header | started, boot id (text), hash algorithm (the kernel's number), PCR, template (text), mode (text), policy (text), banks |
//! | 2 | *bytes* | bytes, to the end of the record |
//! | 3 | *file system* | magic, name (text), subtype (text), UUID (text of 16 bytes, or of none) |
//! | 4 | *subject* | uid, gid, three euids, three egids, can set uid (bit 0) and gid (bit 1), command (text) |
//! | 5 | *file* | path (reference), device, inode, size, modified (signed), changed (signed), owner, group, file system (reference) |
//! | 6 | event | nanoseconds since the event before (signed), flags, func (reference), mask, file (reference), subject (reference); then what the flags announce, in their order |
//! | 7 | lost | how many events were dropped at about this point |
//! | 8 | forget | none: references begin at 0 again |
//! | 9 | end | why the trace ended (text to the end of the record) |
//!
//! The records in italics define what later ones refer to, and are counted from 0, since the beginning or the last
//! `forget`. So what is repeated costs a byte or two. There are at most 131072 definitions, of 32 MiB together, at a time.
//! Records of other types are passed over.
//!
//! | bit | flag | announces |
//! |---|---|---|
//! | 0 | opened for writing | |
//! | 1 | created by this open | |
//! | 2 | added an entry to the list | |
//! | 3 | refused | |
//! | 4 to 7 | a rule measures, appraises, audits, hashes | the rule |
//! | 8, 9 | the label was read; it has one | the label (reference), where there is one |
//! | 10 | the digest is known | the kernel's number of the algorithm and the digest, as one definition (reference) |
//! | 11 | did not pass | the cause (reference) |
//!
//! A guard that is killed leaves a trace without an end, which may stop anywhere: whole records are good.

use crate::hash::{Digest, HashAlgorithm};
use crate::policy::Func;
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;

/// What holds for the whole trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// The boot that it is of (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The default hash.
    pub hash: HashAlgorithm,
    /// The PCR of rules without `pcr=`.
    pub pcr: u32,
    /// The template of rules without `template=`.
    pub template: String,
    /// The mode when it began, as `ima_appraise=` spells it.
    pub mode: String,
    /// The text of the policy in force; the rules of events are counted in it.
    pub policy: String,
    /// How many PCR banks the TPM extends; 0 without one.
    pub banks: u32,
}

/// What policies ask about a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FilesystemFacts {
    /// Its magic number.
    pub magic: u64,
    /// Its type's name.
    pub name: String,
    /// Its subtype; empty for none.
    pub subtype: String,
    /// Its UUID.
    pub uuid: Option<[u8; 16]>,
}

/// Who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SubjectFacts {
    /// The real user.
    pub uid: u32,
    /// The real group.
    pub gid: u32,
    /// The effective, saved and real user.
    pub euids: [u32; 3],
    /// The effective, saved and real group.
    pub egids: [u32; 3],
    /// Whether it had CAP_SETUID.
    pub can_setuid: bool,
    /// Whether it had CAP_SETGID.
    pub can_setgid: bool,
    /// The command's name.
    pub command: Vec<u8>,
}

/// What was seen of `security.ima`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum LabelFacts {
    /// Nobody looked.
    #[default]
    NotRead,
    /// There was none.
    None,
    /// Its value.
    Some(Vec<u8>),
}

/// One hook that was asked, and what was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds since the trace began.
    pub time: u64,
    /// The hook.
    pub func: Func,
    /// The access, `MAY_*` bits.
    pub mask: u8,
    /// The file's path.
    pub path: Vec<u8>,
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Last change of the content, in nanoseconds since 1970.
    pub modified: i128,
    /// Last change of content or attributes, in nanoseconds since 1970.
    pub changed: i128,
    /// Its owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Its file system.
    pub filesystem: Arc<FilesystemFacts>,
    /// Who asked.
    pub subject: Arc<SubjectFacts>,
    /// What was seen of its label.
    pub label: LabelFacts,
    /// Its content's digest, where it is known.
    pub digest: Option<Digest>,
    /// Whether it was opened for writing.
    pub writes: bool,
    /// Whether this open created it.
    pub created: bool,
    /// The rule that has it measured, the first is 0; also when it had been measured already.
    pub measured: Option<u32>,
    /// The rule that has it appraised, which it is unless the mode is `off`.
    pub appraised: Option<u32>,
    /// The rule that has it audited.
    pub audited: Option<u32>,
    /// The rule that has its hash kept.
    pub hashed: Option<u32>,
    /// Whether this access added an entry to the list.
    pub entry: bool,
    /// Why it did not pass.
    pub cause: Option<String>,
    /// Whether it was refused.
    pub denied: bool,
}

const MAGIC: [u8; 8] = *b"IMATRACE";
const VERSION: u16 = 1;

const HEADER: u8 = 1;
const BYTES: u8 = 2;
const FILESYSTEM: u8 = 3;
const SUBJECT: u8 = 4;
const FILE: u8 = 5;
const EVENT: u8 = 6;
const LOST: u8 = 7;
const FORGET: u8 = 8;
const END: u8 = 9;

const WRITES: u32 = 1;
const CREATED: u32 = 1 << 1;
const ENTRY: u32 = 1 << 2;
const DENIED: u32 = 1 << 3;
const MEASURED: u32 = 1 << 4;
const APPRAISED: u32 = 1 << 5;
const AUDITED: u32 = 1 << 6;
const HASHED: u32 = 1 << 7;
const LABEL_READ: u32 = 1 << 8;
const LABEL: u32 = 1 << 9;
const DIGEST: u32 = 1 << 10;
const CAUSE: u32 = 1 << 11;

/// The most bytes of one record; a header with a long policy is the longest.
const MAX_RECORD: u64 = 16 << 20;
/// The most bytes of one path, label or name; real ones are at most 64 KiB.
const MAX_FIELD: usize = 1 << 20;
/// The most definitions at a time, and their bytes together, that are read. The writer forgets at half of it, so that
/// one event's definitions never reach it.
const MAX_DEFINITIONS: usize = 1 << 17;
const MAX_DEFINED: usize = 32 << 20;

/// Writes a trace.
#[derive(Debug)]
pub struct TraceWriter<W: Write> {
    out: W,
    written: u64,
    time: u64,
    /// The type and payload of each definition, and its number.
    known: HashMap<Vec<u8>, usize>,
    defined: usize,
}

impl<W: Write> TraceWriter<W> {
    /// Writes the beginning and the header.
    ///
    /// # Errors
    /// What writing says; `InvalidInput` for a policy that is too long for a record.
    pub fn new(out: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self { out, written: 0, time: 0, known: HashMap::new(), defined: 0 };
        writer.out.write_all(&MAGIC)?;
        writer.out.write_all(&VERSION.to_le_bytes())?;
        writer.written = 10;
        let mut payload = Vec::new();
        push(&mut payload, header.started);
        push_text(&mut payload, header.boot_id.as_bytes());
        push(&mut payload, header.hash.id());
        push(&mut payload, header.pcr);
        push_text(&mut payload, header.template.as_bytes());
        push_text(&mut payload, header.mode.as_bytes());
        push_text(&mut payload, header.policy.as_bytes());
        push(&mut payload, header.banks);
        writer.record(HEADER, &payload)?;
        Ok(writer)
    }

    /// How many bytes it has so far.
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Writes an event, and before it what it refers to and was not there yet.
    ///
    /// # Errors
    /// What writing says; `InvalidInput` for a path, label or name beyond 1 MiB.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        if self.known.len() >= MAX_DEFINITIONS / 2 || self.defined >= MAX_DEFINED / 2 {
            self.record(FORGET, &[])?;
            self.known.clear();
            self.defined = 0;
        }
        let func = self.define(BYTES, event.func.name().as_bytes())?;
        let file = self.define_file(event)?;
        let subject = self.define_subject(&event.subject)?;
        let label = match &event.label {
            LabelFacts::NotRead | LabelFacts::None => None,
            LabelFacts::Some(label) => Some(self.define(BYTES, label)?),
        };
        let digest = match &event.digest {
            None => None,
            Some(digest) => Some(self.define(BYTES, &[&[digest.algorithm().id()], digest.as_bytes()].concat())?),
        };
        let cause = match &event.cause {
            None => None,
            Some(cause) => Some(self.define(BYTES, cause.as_bytes())?),
        };
        let flags = [
            (event.writes, WRITES),
            (event.created, CREATED),
            (event.entry, ENTRY),
            (event.denied, DENIED),
            (event.measured.is_some(), MEASURED),
            (event.appraised.is_some(), APPRAISED),
            (event.audited.is_some(), AUDITED),
            (event.hashed.is_some(), HASHED),
            (event.label != LabelFacts::NotRead, LABEL_READ),
            (label.is_some(), LABEL),
            (digest.is_some(), DIGEST),
            (cause.is_some(), CAUSE),
        ];
        let flags = flags.into_iter().fold(0, |bits, (set, flag)| if set { bits | flag } else { bits });
        let mut payload = Vec::with_capacity(32);
        push_signed(&mut payload, i128::from(event.time).saturating_sub(i128::from(self.time)));
        push(&mut payload, flags);
        push_number(&mut payload, func);
        push(&mut payload, event.mask);
        push_number(&mut payload, file);
        push_number(&mut payload, subject);
        for rule in [event.measured, event.appraised, event.audited, event.hashed].into_iter().flatten() {
            push(&mut payload, rule);
        }
        for reference in [label, digest, cause].into_iter().flatten() {
            push_number(&mut payload, reference);
        }
        self.record(EVENT, &payload)?;
        self.time = event.time;
        Ok(())
    }

    /// Writes that events were dropped.
    ///
    /// # Errors
    /// What writing says.
    pub fn lost(&mut self, count: u64) -> io::Result<()> {
        let mut payload = Vec::new();
        push(&mut payload, count);
        self.record(LOST, &payload)
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// What writing says.
    pub fn finish(self) -> io::Result<W> {
        self.finish_because("stopped")
    }

    /// Ends the trace and says why.
    ///
    /// # Errors
    /// What writing says.
    pub fn finish_because(mut self, why: &str) -> io::Result<W> {
        self.record(END, why.as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Hands over what a buffer may hold.
    ///
    /// # Errors
    /// What flushing says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn define_file(&mut self, event: &Event) -> io::Result<usize> {
        let path = self.define(BYTES, &event.path)?;
        let facts = &event.filesystem;
        let mut payload = Vec::with_capacity(64);
        push(&mut payload, facts.magic);
        push_text(&mut payload, facts.name.as_bytes());
        push_text(&mut payload, facts.subtype.as_bytes());
        push_text(&mut payload, facts.uuid.as_ref().map_or(&[], |uuid| uuid));
        let filesystem = self.define(FILESYSTEM, &payload)?;
        payload.clear();
        push_number(&mut payload, path);
        push(&mut payload, event.device);
        push(&mut payload, event.inode);
        push(&mut payload, event.size);
        push_signed(&mut payload, event.modified);
        push_signed(&mut payload, event.changed);
        push(&mut payload, event.owner);
        push(&mut payload, event.group);
        push_number(&mut payload, filesystem);
        self.define(FILE, &payload)
    }

    fn define_subject(&mut self, subject: &SubjectFacts) -> io::Result<usize> {
        let mut payload = Vec::with_capacity(32);
        push(&mut payload, subject.uid);
        push(&mut payload, subject.gid);
        subject.euids.into_iter().chain(subject.egids).for_each(|id| push(&mut payload, id));
        push(&mut payload, u8::from(subject.can_setuid) | u8::from(subject.can_setgid) << 1);
        push_text(&mut payload, &subject.command);
        self.define(SUBJECT, &payload)
    }

    /// The number of a definition, which is written where it is not known yet.
    fn define(&mut self, kind: u8, payload: &[u8]) -> io::Result<usize> {
        if payload.len() > MAX_FIELD {
            return Err(too_long(payload.len(), MAX_FIELD));
        }
        let key = [&[kind], payload].concat();
        if let Some(number) = self.known.get(&key) {
            return Ok(*number);
        }
        self.record(kind, payload)?;
        let number = self.known.len();
        self.defined = self.defined.saturating_add(payload.len());
        self.known.insert(key, number);
        Ok(number)
    }

    fn record(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let length = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        if length > MAX_RECORD {
            return Err(too_long(payload.len(), usize::try_from(MAX_RECORD).unwrap_or(usize::MAX)));
        }
        // In one write: what is cut off is cut off between two of them, where the writer is not buffered.
        let mut record = Vec::with_capacity(payload.len().saturating_add(6));
        record.push(kind);
        push(&mut record, length);
        record.extend_from_slice(payload);
        self.out.write_all(&record)?;
        self.written = self.written.saturating_add(u64::try_from(record.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}

fn too_long(found: usize, needed: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{found} bytes for a record of a trace; {needed} are the most"))
}

fn push(out: &mut Vec<u8>, number: impl Into<u64>) {
    push_varint(out, u128::from(number.into()));
}

fn push_number(out: &mut Vec<u8>, number: usize) {
    push(out, u64::try_from(number).unwrap_or(u64::MAX));
}

fn push_signed(out: &mut Vec<u8>, number: i128) {
    push_varint(out, ((number << 1) ^ (number >> 127)).cast_unsigned());
}

fn push_varint(out: &mut Vec<u8>, mut number: u128) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return out.push(low & 0x7f);
        }
        out.push(low | 0x80);
    }
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    push_number(out, text.len());
    out.extend_from_slice(text);
}

/// What is wrong with a trace, and where.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It begins with something else.
    #[error("this is no trace: it begins with {found:?}, where `IMATRACE` was needed")]
    NoTrace {
        /// The first bytes.
        found: String,
    },
    /// Another version.
    #[error("the trace is of version {found}; this program reads version {needed}")]
    Version {
        /// The version found.
        found: u16,
        /// The version that is read.
        needed: u16,
    },
    /// It ends within a record; the records before it are good.
    #[error("the trace is cut off within the record at offset {offset}")]
    Truncated {
        /// Where that record begins, in bytes.
        offset: u64,
    },
    /// A record that cannot be.
    #[error("record at offset {offset}: {what} is {found}, {needed} needed")]
    Bad {
        /// Where the record begins, in bytes.
        offset: u64,
        /// Which part of it.
        what: &'static str,
        /// What was found.
        found: String,
        /// What was needed.
        needed: String,
    },
    /// It cannot be read.
    #[error("the trace cannot be read at offset {offset}: {error}")]
    Io {
        /// Where the record begins, in bytes.
        offset: u64,
        /// What the reader said.
        #[source]
        error: io::Error,
    },
}

/// Reads a trace, and keeps no more of it than one record and the definitions. It ends after the first error.
#[derive(Debug)]
pub struct TraceReader<R: Read> {
    input: BufReader<R>,
    /// Where the record at hand begins, and where the next byte is.
    record: u64,
    offset: u64,
    time: u64,
    definitions: Vec<Definition>,
    defined: usize,
    lost: u64,
    ended: Option<String>,
    over: bool,
}

#[derive(Debug)]
enum Definition {
    Bytes(Vec<u8>),
    Filesystem(Arc<FilesystemFacts>),
    Subject(Arc<SubjectFacts>),
    File(Box<FileFacts>),
}

#[derive(Debug)]
struct FileFacts {
    /// The number of the path.
    path: usize,
    device: u64,
    inode: u64,
    size: u64,
    modified: i128,
    changed: i128,
    owner: u32,
    group: u32,
    filesystem: Arc<FilesystemFacts>,
}

impl<R: Read> TraceReader<R> {
    /// Reads the header. The input need not be buffered.
    ///
    /// # Errors
    /// [`TraceError`]: it is no trace, or its header is not whole.
    pub fn new(input: R) -> Result<(Header, Self), TraceError> {
        let mut reader = Self {
            input: BufReader::new(input),
            record: 0,
            offset: 0,
            time: 0,
            definitions: Vec::new(),
            defined: 0,
            lost: 0,
            ended: None,
            over: false,
        };
        let magic = reader.exactly(8)?;
        if magic != MAGIC {
            return Err(TraceError::NoTrace { found: String::from_utf8_lossy(&magic).into_owned() });
        }
        let version = reader.exactly(2)?;
        let version = version.first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
        if version != VERSION {
            return Err(TraceError::Version { found: version, needed: VERSION });
        }
        let truncated = TraceError::Truncated { offset: reader.offset };
        let (kind, payload) = reader.next_record()?.ok_or(truncated)?;
        let mut payload = Payload { bytes: &payload, record: reader.record };
        if kind != HEADER {
            return Err(payload.bad("the first record's type", kind, "1 (the header)"));
        }
        let header = Header {
            started: payload.number("the time")?,
            boot_id: payload.string("the boot id")?,
            hash: payload.algorithm()?,
            pcr: payload.number("the PCR")?,
            template: payload.string("the template")?,
            mode: payload.string("the mode")?,
            policy: payload.string("the policy")?,
            banks: payload.number("the number of banks")?,
        };
        Ok((header, reader))
    }

    /// How many events were dropped, as far as the trace has been read.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Why the trace ended, once it has been read to its end; `None` where the guard was killed.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Exactly so many bytes.
    fn exactly(&mut self, count: u64) -> Result<Vec<u8>, TraceError> {
        let mut bytes = Vec::new();
        // Room grows with what is there, not with what a length claims.
        let read = self.input.by_ref().take(count).read_to_end(&mut bytes);
        read.map_err(|error| TraceError::Io { offset: self.record, error })?;
        let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.offset = self.offset.saturating_add(found);
        if found < count { Err(TraceError::Truncated { offset: self.record }) } else { Ok(bytes) }
    }

    /// The next record's type and payload.
    fn next_record(&mut self) -> Result<Option<(u8, Vec<u8>)>, TraceError> {
        self.record = self.offset;
        let kind = match self.exactly(1) {
            Ok(kind) => kind,
            Err(TraceError::Truncated { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut prefix = Vec::new();
        while prefix.last().is_none_or(|byte| byte & 0x80 != 0) {
            prefix.extend(self.exactly(1)?);
            if prefix.len() > MAX_VARINT {
                break;
            }
        }
        let mut prefix = Payload { bytes: &prefix, record: self.record };
        let length: u64 = prefix.number("the length")?;
        if length > MAX_RECORD {
            return Err(prefix.bad("the length", length, format_args!("{MAX_RECORD} at most")));
        }
        let payload = self.exactly(length)?;
        Ok(kind.first().map(|kind| (*kind, payload)))
    }

    fn next_event(&mut self) -> Result<Option<Event>, TraceError> {
        while let Some((kind, bytes)) = self.next_record()? {
            let mut payload = Payload { bytes: &bytes, record: self.record };
            let definition = match kind {
                EVENT => return self.event(payload).map(Some),
                BYTES => Definition::Bytes(bytes),
                FILESYSTEM => Definition::Filesystem(payload.filesystem()?),
                SUBJECT => Definition::Subject(payload.subject()?),
                FILE => self.file(payload)?,
                LOST => {
                    self.lost = self.lost.saturating_add(payload.number("the number of lost events")?);
                    continue;
                }
                FORGET => {
                    self.definitions.clear();
                    self.defined = 0;
                    continue;
                }
                END => {
                    self.ended = Some(String::from_utf8_lossy(&bytes).into_owned());
                    continue;
                }
                _ => continue,
            };
            self.defined = self
                .defined
                .saturating_add(usize::try_from(self.offset.saturating_sub(self.record)).unwrap_or(usize::MAX));
            self.definitions.push(definition);
            if self.definitions.len() > MAX_DEFINITIONS || self.defined > MAX_DEFINED {
                let payload = Payload { bytes: &[], record: self.record };
                let found = format!("{} of {} bytes", self.definitions.len(), self.defined);
                let most = format_args!("{MAX_DEFINITIONS} of {MAX_DEFINED} at most");
                return Err(payload.bad("the number of definitions", found, most));
            }
        }
        Ok(None)
    }

    fn file(&self, mut payload: Payload<'_>) -> Result<Definition, TraceError> {
        let path = payload.number("the path")?;
        self.bytes(&payload, path, "the path")?;
        Ok(Definition::File(Box::new(FileFacts {
            path,
            device: payload.number("the device")?,
            inode: payload.number("the inode")?,
            size: payload.number("the size")?,
            modified: payload.signed("the time of modification")?,
            changed: payload.signed("the time of change")?,
            owner: payload.number("the owner")?,
            group: payload.number("the group")?,
            filesystem: {
                let number = payload.number("the file system")?;
                match self.definitions.get(number) {
                    Some(Definition::Filesystem(filesystem)) => Arc::clone(filesystem),
                    _ => return Err(self.no_definition(&payload, "the file system", number)),
                }
            },
        })))
    }

    fn event(&mut self, mut payload: Payload<'_>) -> Result<Event, TraceError> {
        let passed = payload.signed("the time")?;
        let time = i128::from(self.time).saturating_add(passed);
        let time = u64::try_from(time).map_err(|_| payload.bad("the time", time, "0 or more, in 64 bits"))?;
        let flags: u32 = payload.number("the flags")?;
        let has = |flag: u32| flags & flag != 0;
        let number = payload.number("the hook")?;
        let name = self.bytes(&payload, number, "the hook")?;
        let func = std::str::from_utf8(name).ok().and_then(Func::from_name).ok_or_else(|| {
            payload.bad("the hook", format_args!("`{}`", String::from_utf8_lossy(name)), "the name of one")
        })?;
        let mask = payload.number("the mask")?;
        let number = payload.number("the file")?;
        let Some(Definition::File(file)) = self.definitions.get(number) else {
            return Err(self.no_definition(&payload, "the file", number));
        };
        let path = self.bytes(&payload, file.path, "the path")?.to_vec();
        let number = payload.number("the subject")?;
        let Some(Definition::Subject(subject)) = self.definitions.get(number) else {
            return Err(self.no_definition(&payload, "the subject", number));
        };
        let mut rule = |flag| if has(flag) { payload.number("a rule").map(Some) } else { Ok(None) };
        let (measured, appraised, audited, hashed) = (rule(MEASURED)?, rule(APPRAISED)?, rule(AUDITED)?, rule(HASHED)?);
        let label = if has(LABEL) {
            let number = payload.number("the label")?;
            LabelFacts::Some(self.bytes(&payload, number, "the label")?.to_vec())
        } else if has(LABEL_READ) {
            LabelFacts::None
        } else {
            LabelFacts::NotRead
        };
        let digest = if has(DIGEST) {
            let number = payload.number("the digest")?;
            let bytes = self.bytes(&payload, number, "the digest")?;
            let mut stored = Payload { bytes, record: self.record };
            let algorithm = stored.algorithm()?;
            let digest = Digest::new(algorithm, stored.bytes);
            Some(digest.map_err(|error| payload.bad("the digest", error.found, error.needed))?)
        } else {
            None
        };
        let cause = if has(CAUSE) {
            let number = payload.number("the cause")?;
            Some(String::from_utf8_lossy(self.bytes(&payload, number, "the cause")?).into_owned())
        } else {
            None
        };
        let event = Event {
            time,
            func,
            mask,
            path,
            device: file.device,
            inode: file.inode,
            size: file.size,
            modified: file.modified,
            changed: file.changed,
            owner: file.owner,
            group: file.group,
            filesystem: Arc::clone(&file.filesystem),
            subject: Arc::clone(subject),
            label,
            digest,
            writes: has(WRITES),
            created: has(CREATED),
            measured,
            appraised,
            audited,
            hashed,
            entry: has(ENTRY),
            cause,
            denied: has(DENIED),
        };
        self.time = time;
        Ok(event)
    }

    fn bytes(&self, payload: &Payload<'_>, number: usize, what: &'static str) -> Result<&[u8], TraceError> {
        match self.definitions.get(number) {
            Some(Definition::Bytes(bytes)) => Ok(bytes),
            _ => Err(self.no_definition(payload, what, number)),
        }
    }

    fn no_definition(&self, payload: &Payload<'_>, what: &'static str, number: usize) -> TraceError {
        let needed = format_args!("the number of such a definition among {}", self.definitions.len());
        payload.bad(what, format_args!("reference {number}"), needed)
    }
}

impl<R: Read> Iterator for TraceReader<R> {
    type Item = Result<Event, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.next_event().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The most bytes of an integer: 128 bits, seven a byte.
const MAX_VARINT: usize = 19;

/// What is left of a record's payload.
struct Payload<'a> {
    bytes: &'a [u8],
    record: u64,
}

impl<'a> Payload<'a> {
    fn bad(&self, what: &'static str, found: impl ToString, needed: impl ToString) -> TraceError {
        TraceError::Bad { offset: self.record, what, found: found.to_string(), needed: needed.to_string() }
    }

    fn varint(&mut self, what: &'static str) -> Result<u128, TraceError> {
        let mut number = 0u128;
        for shift in (0..128u32).step_by(7) {
            let Some((byte, rest)) = self.bytes.split_first() else {
                return Err(self.bad(what, "cut off", "an integer"));
            };
            self.bytes = rest;
            let bits = u128::from(byte & 0x7f);
            let placed = bits.checked_shl(shift).unwrap_or(0);
            if placed.checked_shr(shift).unwrap_or(0) != bits {
                break;
            }
            number |= placed;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.bad(what, "longer", "an integer of at most 128 bits"))
    }

    fn number<T: TryFrom<u128>>(&mut self, what: &'static str) -> Result<T, TraceError> {
        let number = self.varint(what)?;
        T::try_from(number)
            .map_err(|_| self.bad(what, number, format_args!("at most {} bits", size_of::<T>().saturating_mul(8))))
    }

    fn signed(&mut self, what: &'static str) -> Result<i128, TraceError> {
        let folded = self.varint(what)?;
        let sign = if folded & 1 == 0 { 0 } else { -1 };
        Ok((folded >> 1).cast_signed() ^ sign)
    }

    fn text(&mut self, what: &'static str) -> Result<&'a [u8], TraceError> {
        let length: usize = self.number(what)?;
        let (text, rest) = self.bytes.split_at_checked(length).ok_or_else(|| {
            self.bad(what, format_args!("cut off: {} bytes are left", self.bytes.len()), format_args!("{length} are"))
        })?;
        self.bytes = rest;
        Ok(text)
    }

    fn string(&mut self, what: &'static str) -> Result<String, TraceError> {
        let text = self.text(what)?;
        String::from_utf8(text.to_vec()).map_err(|error| self.bad(what, error, "UTF-8"))
    }

    fn algorithm(&mut self) -> Result<HashAlgorithm, TraceError> {
        let id = self.number("the hash algorithm")?;
        HashAlgorithm::from_id(id).ok_or_else(|| self.bad("the hash algorithm", id, "the kernel's number of one"))
    }

    fn filesystem(&mut self) -> Result<Arc<FilesystemFacts>, TraceError> {
        Ok(Arc::new(FilesystemFacts {
            magic: self.number("the magic number")?,
            name: self.string("the file system's name")?,
            subtype: self.string("the file system's subtype")?,
            uuid: match self.text("the UUID")? {
                [] => None,
                uuid => {
                    Some(<[u8; 16]>::try_from(uuid).map_err(|_| self.bad("the UUID's length", uuid.len(), "0 or 16"))?)
                }
            },
        }))
    }

    fn subject(&mut self) -> Result<Arc<SubjectFacts>, TraceError> {
        let mut id = || self.number("an id");
        let (uid, gid) = (id()?, id()?);
        let euids = [id()?, id()?, id()?];
        let egids = [id()?, id()?, id()?];
        let capabilities: u8 = self.number("the capabilities")?;
        Ok(Arc::new(SubjectFacts {
            uid,
            gid,
            euids,
            egids,
            can_setuid: capabilities & 1 != 0,
            can_setgid: capabilities & 2 != 0,
            command: self.text("the command")?.to_vec(),
        }))
    }
}

#[cfg(test)]
mod tests;
