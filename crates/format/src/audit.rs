//! Integrity audit records as text, in the kernel's form.
//!
//! `type=INTEGRITY_DATA msg=audit(1700000000.123:42): pid=1234 uid=0 … name="/etc/example.conf" … res=0 errno=0`
//!
//! A string that anybody may choose (`comm`, `name`, `file`, `exe`) stands in double quotes, or as upper-case hexadecimal
//! without quotes when a byte is below 0x21, above 0x7e or a double quote.
//!
//! Source: security/integrity/integrity_audit.c; `audit_log_untrustedstring`, kernel/audit.c;
//! include/uapi/linux/audit.h.

use crate::hash::Digest;
use std::fmt::{self, Write as _};

/// The integrity subsystem's record types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordType {
    /// Data: collection and appraisal (1800).
    Data,
    /// Metadata: EVM (1801).
    Metadata,
    /// Status: policy and modes (1802).
    Status,
    /// List and PCR, violations (1804).
    Pcr,
    /// The `audit` action (1805).
    Rule,
}

impl RecordType {
    /// The name that audit tools print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "INTEGRITY_DATA",
            Self::Metadata => "INTEGRITY_METADATA",
            Self::Status => "INTEGRITY_STATUS",
            Self::Pcr => "INTEGRITY_PCR",
            Self::Rule => "INTEGRITY_RULE",
        }
    }

    /// The type by its name, or by its number as the kernel log has it.
    pub fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "INTEGRITY_DATA" | "1800" => Self::Data,
            "INTEGRITY_METADATA" | "1801" => Self::Metadata,
            "INTEGRITY_STATUS" | "1802" => Self::Status,
            "INTEGRITY_PCR" | "1804" => Self::Pcr,
            "INTEGRITY_RULE" | "1805" => Self::Rule,
            _ => return None,
        })
    }
}

/// A record that was read: from `audit.log`, from what `ausearch` prints, or from the kernel log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRecord {
    /// Its type.
    pub kind: RecordType,
    /// When, in milliseconds since 1970.
    pub milliseconds: u64,
    /// Its number.
    pub serial: u64,
    fields: Vec<(String, Vec<u8>)>,
}

/// Fields whose value stands in quotes, or in hexadecimal.
const UNTRUSTED: [&str; 6] = ["comm", "name", "dev", "file", "exe", "hash"];

impl ReadRecord {
    /// The integrity record that stands in a line; `None` where none does.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = line.trim_ascii();
        let kind = after(line, b"type=")?;
        let kind = kind.split(|byte| byte.is_ascii_whitespace()).next()?;
        let kind = RecordType::from_word(std::str::from_utf8(kind).ok()?)?;
        let (stamp, rest) = split_at(after(line, b"audit(")?, b"):")?;
        let (time, serial) = std::str::from_utf8(stamp).ok()?.split_once(':')?;
        let (seconds, fraction) = time.split_once('.')?;
        let milliseconds =
            seconds.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(fraction.parse::<u64>().ok()?.min(999))?;
        let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
        let mut rest = rest.trim_ascii_start();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| matches!(byte, b'=' | b' ')).unwrap_or(rest.len());
            let (name, value) = rest.split_at_checked(end)?;
            let Some(value) = value.strip_prefix(b"=") else {
                // A cause may have more than one word.
                if let Some((_, last)) = fields.last_mut() {
                    last.push(b' ');
                    last.extend_from_slice(name);
                }
                rest = value.trim_ascii_start();
                continue;
            };
            let name = std::str::from_utf8(name).ok()?.to_owned();
            let (value, next) = match value.strip_prefix(b"\"") {
                Some(quoted) => {
                    let (inside, next) = split_at(quoted, b"\"")?;
                    (inside.to_vec(), next)
                }
                None => {
                    let end = value.iter().position(|byte| byte.is_ascii_whitespace()).unwrap_or(value.len());
                    let (bare, next) = value.split_at_checked(end)?;
                    let text = UNTRUSTED.contains(&name.as_str()).then(|| from_hex(bare)).flatten();
                    (text.unwrap_or_else(|| bare.to_vec()), next)
                }
            };
            fields.push((name, value));
            rest = next.trim_ascii_start();
        }
        Some(Self { kind, milliseconds, serial: serial.parse().ok()?, fields })
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// The value of a field that is a number.
    pub fn number(&self, name: &str) -> Option<i64> {
        std::str::from_utf8(self.field(name)?).ok()?.parse().ok()
    }
}

fn split_at<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(separator.len()).position(|window| window == separator)?;
    Some((bytes.get(..at)?, bytes.get(at.checked_add(separator.len())?..)?))
}

fn after<'a>(bytes: &'a [u8], words: &[u8]) -> Option<&'a [u8]> {
    split_at(bytes, words).map(|(_, rest)| rest)
}

fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    if text.is_empty() {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    crate::hash::from_hex(text).ok()
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number.
    Number(i64),
    /// A bare word, or words: nobody else chooses them.
    Word(&'a str),
    /// A digest with its algorithm's name, in quotes.
    Digest(&'a Digest),
    /// A string that anybody may choose.
    Untrusted(&'a [u8]),
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its type.
    pub kind: RecordType,
    /// When, in milliseconds since 1970.
    pub milliseconds: u64,
    /// Its number.
    pub serial: u64,
    /// Its fields, in order.
    pub fields: Vec<(&'static str, Value<'a>)>,
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Word(word) => f.write_str(word),
            Self::Digest(digest) => write!(f, "\"{digest}\""),
            Self::Untrusted(bytes) => {
                let plain = bytes.iter().all(|byte| (0x21..=0x7e).contains(byte) && *byte != b'"');
                if !plain {
                    return bytes.iter().try_for_each(|byte| write!(f, "{byte:02X}"));
                }
                f.write_char('"')?;
                bytes.iter().try_for_each(|byte| f.write_char(char::from(*byte)))?;
                f.write_char('"')
            }
        }
    }
}

impl fmt::Display for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.milliseconds / 1000, self.milliseconds % 1000);
        write!(f, "type={} msg=audit({seconds}.{rest:03}:{}):", self.kind.name(), self.serial)?;
        self.fields.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_printed_is_read_again_and_so_is_the_kernels_own() {
        for (line, cause, name, res) in [
            (
                &b"type=INTEGRITY_DATA msg=audit(1700000000.123:42): pid=7 uid=0 op=appraise_data cause=missing-hash comm=\"cat\" \
                   name=\"/etc/example.conf\" dev=\"sda2\" ino=4711 res=0 errno=0\n"[..],
                "missing-hash",
                &b"/etc/example.conf"[..],
                Some(0),
            ),
            (
                b"[   12.3] audit: type=1800 audit(1700000000.123:42): pid=7 cause=invalid-hash comm=6162 name=2F6574632F612062FF res=1",
                "invalid-hash",
                b"/etc/a b\xff",
                Some(1),
            ),
            (
                b"type=INTEGRITY_STATUS msg=audit(1700000000.123:42): op=policy_update cause=signed policy required comm=\"sh\"",
                "signed policy required",
                b"",
                None,
            ),
        ] {
            let record = ReadRecord::parse(line).unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(line)));
            assert_eq!((record.milliseconds, record.serial), (1_700_000_000_123, 42));
            assert_eq!(record.field("cause"), Some(cause.as_bytes()));
            assert_eq!(record.field("name").unwrap_or_default(), name);
            assert_eq!(record.number("res"), res);
        }
        for line in [
            "",
            "type=SYSCALL msg=audit(1.2:3): a=b",
            "type=1800",
            "type=1800 audit(1:2): a=b",
            "type=1800 audit(x.1:2): a=b",
            "type=1800 audit(99999999999999999999.1:2): a=b",
            "type=1800 audit(1.1:2): name=\"no end",
        ] {
            assert_eq!(ReadRecord::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn no_line_makes_it_panic() {
        let whole = b"type=1800 msg=audit(1700000000.123:42): pid=7 cause=a b comm=6162 name=\"/x\" res=1";
        for at in 0..whole.len() {
            let _ = ReadRecord::parse(&whole[..at]);
            for byte in [0, b'"', b'=', b' ', 0xff] {
                let mut changed = whole.to_vec();
                changed[at] = byte;
                let _ = ReadRecord::parse(&changed);
            }
        }
    }

    #[test]
    fn a_record_reads_as_the_kernels() {
        let record = |name: &'static [u8]| Record {
            kind: RecordType::Data,
            milliseconds: 1_700_000_000_123,
            serial: 42,
            fields: vec![
                ("pid", Value::Number(1234)),
                ("op", Value::Word("appraise_data")),
                ("cause", Value::Word("missing-hash")),
                ("comm", Value::Untrusted(b"cat")),
                ("name", Value::Untrusted(name)),
                ("res", Value::Number(0)),
            ],
        };
        assert_eq!(
            record(b"/etc/example.conf").to_string(),
            "type=INTEGRITY_DATA msg=audit(1700000000.123:42): pid=1234 op=appraise_data cause=missing-hash \
             comm=\"cat\" name=\"/etc/example.conf\" res=0"
        );
        assert!(record(b"/etc/a b").to_string().contains("name=2F6574632F612062 "));
        assert!(record(b"/etc/\"").to_string().contains("name=2F6574632F22 "));
    }
}
