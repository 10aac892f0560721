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
