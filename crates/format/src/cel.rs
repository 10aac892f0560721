//! The TCG's Canonical Event Log (CEL), written: a measurement list in the form that logs of every kind can be put in.
//!
//! A log is one record for each entry. In JSON and CBOR it is an array of maps, in TLV the records one after the other:
//!
//! | member | JSON name | CBOR key | TLV type | JSON | CBOR | TLV |
//! |---|---|---|---|---|---|---|
//! | record number, from 0 for each PCR | `recnum` | 0 | 0 | number | unsigned | 8 bytes |
//! | PCR | `pcr` | 1 | 1 | number | unsigned | as many bytes as it needs: 1 |
//! | digests, one a bank | `digests` | 3 | 3 | array | array | nested, below |
//! | kind of content: an IMA template | `content_type` | 9 | - | `ima_template` | 7 | - |
//! | content | `content` | 10 | 7 | map | map | nested, below |
//!
//! | member | JSON name | CBOR key | TLV type | JSON | CBOR | TLV |
//! |---|---|---|---|---|---|---|
//! | of a digest: hash algorithm | `hashAlg` | 0 | - | name | TPM identifier | - |
//! | of a digest: its bytes | `digest` | 1 | TPM identifier | hexadecimal | bytes | bytes |
//! | of the content: template's name | `template_name` | 0 | 0 | text | text | bytes |
//! | of the content: template's data | `template_data` | 1 | 1 | hexadecimal | bytes | bytes |
//!
//! A TLV is a 1-byte type, a 4-byte length and the value, numbers big-endian. CBOR is deterministic: lengths are definite,
//! numbers as short as they can be, keys ascending. So its array needs the number of records before the first of them.
//!
//! The digests are those that were *extended* into the PCR (section 4.2.4), so that a log is replayed without knowing what
//! IMA is: a violation, listed as zeros, has 0xff bytes. What template data is the specification leaves to IMA: here the
//! bytes that the binary list has for it, without their length.
//!
//! Source: TCG Canonical Event Log Format 1.0, revision 0.41, sections 4 (information model), 5.1 (TLV), 5.3 (JSON, with
//! its example); CBOR keys: section 5.2 of version 1.1. RFC 8949, section 4.2.1 (deterministic CBOR).

use crate::hash::{Digest, HashAlgorithm, to_hex};
use std::collections::BTreeMap;
use std::io::Write as _;

/// How a log is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// JSON: an array, a record a line.
    Json,
    /// CBOR: an array.
    Cbor,
    /// Type, length, value: records one after the other.
    Tlv,
}

/// What is told of an entry; its record number is given by the [`Writer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The PCR that was extended.
    pub pcr: u32,
    /// What was extended, one for each bank.
    pub digests: &'a [BankDigest],
    /// The template's name, or its format if it has none.
    pub template_name: &'a str,
    /// The template's data.
    pub template_data: &'a [u8],
}

/// A digest in an algorithm that a TPM can have a PCR bank of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankDigest {
    /// The algorithm's TPM identifier, which for every bank is a single byte, as TLV needs it.
    id: u8,
    name: &'static str,
    digest: Digest,
}

/// No TPM has PCRs of that algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no TPM has a PCR bank of {0}; {banks} are the banks there can be", banks = bank_names())]
pub struct NoBank(pub HashAlgorithm);

fn bank_names() -> String {
    let banks = HashAlgorithm::ALL.iter().filter(|algorithm| algorithm.tpm_id().is_some());
    banks.map(|algorithm| algorithm.name()).collect::<Vec<_>>().join(", ")
}

impl BankDigest {
    /// The bank's algorithm.
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.digest.algorithm()
    }
}

impl TryFrom<Digest> for BankDigest {
    type Error = NoBank;

    fn try_from(digest: Digest) -> Result<Self, NoBank> {
        let algorithm = digest.algorithm();
        let name = match algorithm {
            HashAlgorithm::Sm3 => "sm3_256",
            _ => algorithm.name(),
        };
        let id = algorithm.tpm_id().and_then(|id| u8::try_from(id).ok());
        Ok(Self { id: id.ok_or(NoBank(algorithm))?, name, digest })
    }
}

/// Writes a log, record by record.
///
/// ```
/// # use imara_format::cel::{Encoding, Event, Writer};
/// # fn write(events: &[Event<'_>]) -> Vec<u8> {
/// let (mut writer, mut records, mut log) = (Writer::new(Encoding::Cbor), Vec::new(), Vec::new());
/// for event in events {
///     writer.record(event, &mut records);
/// }
/// writer.begin(&mut log);
/// log.append(&mut records);
/// writer.end(&mut log);
/// log
/// # }
/// ```
#[derive(Debug)]
pub struct Writer {
    encoding: Encoding,
    records: u64,
    /// Each PCR's next record number.
    next: BTreeMap<u32, u64>,
}

impl Writer {
    /// A log without records.
    pub const fn new(encoding: Encoding) -> Self {
        Self { encoding, records: 0, next: BTreeMap::new() }
    }

    /// How many records it has.
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// Whether [`Writer::begin`] can be called only after the last record.
    pub const fn needs_their_number(&self) -> bool {
        matches!(self.encoding, Encoding::Cbor)
    }

    /// Appends what stands before the first record.
    pub fn begin(&self, out: &mut Vec<u8>) {
        match self.encoding {
            Encoding::Json => out.push(b'['),
            Encoding::Cbor => cbor_head(CBOR_ARRAY, self.records, out),
            Encoding::Tlv => {}
        }
    }

    /// Appends a record.
    pub fn record(&mut self, event: &Event<'_>, out: &mut Vec<u8>) {
        let next = self.next.entry(event.pcr).or_insert(0);
        let number = *next;
        *next = number.saturating_add(1);
        match self.encoding {
            Encoding::Json => {
                out.extend_from_slice(if self.records == 0 { b"\n" } else { b",\n" });
                json_record(number, event, out);
            }
            Encoding::Cbor => cbor_record(number, event, out),
            Encoding::Tlv => tlv_record(number, event, out),
        }
        self.records = self.records.saturating_add(1);
    }

    /// Appends what stands after the last record.
    pub fn end(&self, out: &mut Vec<u8>) {
        match self.encoding {
            Encoding::Json if self.records == 0 => out.extend_from_slice(b"]\n"),
            Encoding::Json => out.extend_from_slice(b"\n]\n"),
            Encoding::Cbor | Encoding::Tlv => {}
        }
    }
}

/// The content type `ima_template`.
const IMA_TEMPLATE: u8 = 7;

fn json_record(number: u64, event: &Event<'_>, out: &mut Vec<u8>) {
    // Writing into memory does not fail.
    let _ = write!(out, "{{\"recnum\":{number},\"pcr\":{},\"digests\":[", event.pcr);
    for (index, BankDigest { name, digest, .. }) in event.digests.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{{\"hashAlg\":\"{name}\",\"digest\":\"{}\"}}", digest.to_hex());
    }
    out.extend_from_slice(b"],\"content_type\":\"ima_template\",\"content\":{\"template_name\":\"");
    for character in event.template_name.chars() {
        let _ = match character {
            '"' | '\\' => write!(out, "\\{character}"),
            '\0'..='\x1f' => write!(out, "\\u{:04x}", u32::from(character)),
            _ => write!(out, "{character}"),
        };
    }
    let _ = write!(out, "\",\"template_data\":\"{}\"}}}}", to_hex(event.template_data));
}

const CBOR_UNSIGNED: u8 = 0;
const CBOR_BYTES: u8 = 2;
const CBOR_TEXT: u8 = 3;
const CBOR_ARRAY: u8 = 4;
const CBOR_MAP: u8 = 5;

/// Appends the head of an item: its major type, and its value or length in as few bytes as hold it.
fn cbor_head(major: u8, value: u64, out: &mut Vec<u8>) {
    let major = major << 5;
    if let Ok(byte) = u8::try_from(value) {
        match byte {
            0..=23 => out.push(major | byte),
            _ => out.extend([major | 24, byte]),
        }
    } else if let Ok(word) = u16::try_from(value) {
        out.push(major | 25);
        out.extend(word.to_be_bytes());
    } else if let Ok(word) = u32::try_from(value) {
        out.push(major | 26);
        out.extend(word.to_be_bytes());
    } else {
        out.push(major | 27);
        out.extend(value.to_be_bytes());
    }
}

/// Appends the head of an array, a map or a string of that length.
fn cbor_length(major: u8, length: usize, out: &mut Vec<u8>) {
    cbor_head(major, u64::try_from(length).unwrap_or(u64::MAX), out);
}

/// Appends the key of a member of a map; further heads follow as its value.
fn cbor_key(key: u8, out: &mut Vec<u8>) {
    cbor_head(CBOR_UNSIGNED, key.into(), out);
}

fn cbor_string(major: u8, bytes: &[u8], out: &mut Vec<u8>) {
    cbor_length(major, bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn cbor_record(number: u64, event: &Event<'_>, out: &mut Vec<u8>) {
    cbor_length(CBOR_MAP, 5, out);
    cbor_key(0, out);
    cbor_head(CBOR_UNSIGNED, number, out);
    cbor_key(1, out);
    cbor_head(CBOR_UNSIGNED, event.pcr.into(), out);
    cbor_key(3, out);
    cbor_length(CBOR_ARRAY, event.digests.len(), out);
    for BankDigest { id, digest, .. } in event.digests {
        cbor_length(CBOR_MAP, 2, out);
        cbor_key(0, out);
        cbor_head(CBOR_UNSIGNED, (*id).into(), out);
        cbor_key(1, out);
        cbor_string(CBOR_BYTES, digest.as_bytes(), out);
    }
    cbor_key(9, out);
    cbor_head(CBOR_UNSIGNED, IMA_TEMPLATE.into(), out);
    cbor_key(10, out);
    cbor_length(CBOR_MAP, 2, out);
    cbor_key(0, out);
    cbor_string(CBOR_TEXT, event.template_name.as_bytes(), out);
    cbor_key(1, out);
    cbor_string(CBOR_BYTES, event.template_data, out);
}

/// The size of a TLV's type and length.
const TLV_HEAD: usize = 5;

fn tlv_head(kind: u8, length: usize, out: &mut Vec<u8>) {
    out.push(kind);
    // No entry that can be held in memory as the list's reader limits it reaches the largest length.
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

fn tlv(kind: u8, value: &[u8], out: &mut Vec<u8>) {
    tlv_head(kind, value.len(), out);
    out.extend_from_slice(value);
}

fn tlv_record(number: u64, event: &Event<'_>, out: &mut Vec<u8>) {
    tlv(0, &number.to_be_bytes(), out);
    // Readers take a PCR of one byte, which is what every PCR there is needs.
    let pcr = event.pcr.to_be_bytes();
    let zeros = pcr.iter().take(3).take_while(|byte| **byte == 0).count();
    tlv(1, pcr.get(zeros..).unwrap_or_default(), out);
    let nested = |sizes: &mut dyn Iterator<Item = usize>| {
        sizes.fold(0_usize, |sum, size| sum.saturating_add(TLV_HEAD).saturating_add(size))
    };
    tlv_head(3, nested(&mut event.digests.iter().map(|bank| bank.digest.as_bytes().len())), out);
    for BankDigest { id, digest, .. } in event.digests {
        tlv(*id, digest.as_bytes(), out);
    }
    let (name, data) = (event.template_name.as_bytes(), event.template_data);
    tlv_head(IMA_TEMPLATE, nested(&mut [name.len(), data.len()].into_iter()), out);
    tlv(0, name, out);
    tlv(1, data, out);
}

#[cfg(test)]
mod tests;
