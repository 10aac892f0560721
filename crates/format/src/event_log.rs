//! The firmware's event log: what was measured into PCRs before Linux ran.
//!
//! Linux shows it as the firmware left it, in `/sys/kernel/security/tpm0/binary_bios_measurements`. All integers are little
//! endian. An event of the form of TPM 1.2:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | PCR |
//! | 4 | 4 | type |
//! | 8 | 20 | SHA-1 digest |
//! | 28 | 4 | size of the data |
//! | 32 | | data: what the digest is of, or a name for it |
//!
//! A *crypto-agile* log (TPM 2.0) begins with one such event, of type 3, whose data is
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 16 | `Spec ID Event03` and a NUL |
//! | 16 | 4 | platform's class |
//! | 20 | 4 | minor, major version, errata; bits of a machine word: 1 = 32, 2 = 64 |
//! | 24 | 4 | number of algorithms |
//! | 28 | 4, each | algorithm, and size of its digests |
//! | | 1 + n | size of what the vendor says, and that |
//!
//! and goes on with events that have a u32 count of digests in the place of the one, each behind the u16 number of its
//! algorithm.
//!
//! Events of type 3 (`EV_NO_ACTION`) were not measured, whatever digest they carry.
//!
//! Source: TCG PC Client Platform Firmware Profile, chapter 10; for the older form, TCG PC Client Specific Implementation
//! Specification for Conventional BIOS, 11.3.

use crate::hash::{Digest, HashAlgorithm};

mod describe;
mod kind;

pub use kind::EventType;

/// A log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog {
    /// What a crypto-agile log says of itself; none in the form of TPM 1.2.
    pub specification: Option<Specification>,
    /// The events, in the order in which they were measured.
    pub events: Vec<Event>,
}

/// What a crypto-agile log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specification {
    /// Major and minor version, and errata, of the specification.
    pub version: (u8, u8, u8),
    /// The TPM's numbers of the algorithms and the sizes of their digests.
    pub algorithms: Vec<(u16, u16)>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it begins, in bytes from the log's start.
    pub offset: usize,
    /// The PCR that it was measured into.
    pub pcr: u32,
    /// What kind of event it is.
    pub kind: EventType,
    /// Its digests: the TPM's number of the algorithm, and the bytes.
    pub digests: Vec<(u16, Vec<u8>)>,
    /// What was measured, or what stands for it.
    pub data: Vec<u8>,
}

/// Bytes that are no log, or one that is cut off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {event} at byte {offset}: {what} is {found}, {needed} needed")]
pub struct EventLogError {
    /// The event, counted from 1.
    pub event: usize,
    /// Where, in bytes from the log's start.
    pub offset: usize,
    /// Which part of it.
    pub what: &'static str,
    /// What stands there, or how much is left.
    pub found: u64,
    /// What should stand there, or how much is needed.
    pub needed: String,
}

const SHA1: u16 = 0x0004;
const SHA1_SIZE: u16 = 20;
const SPEC_ID: &[u8] = b"Spec ID Event03\0";
/// More than any real log has, and few enough to hold.
const MOST_ALGORITHMS: u32 = 16;

impl EventLog {
    /// Reads a whole log.
    ///
    /// # Errors
    /// [`EventLogError`] with the place.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        match Self::parse_beginning(bytes) {
            (log, None) => Ok(log),
            (_, Some(error)) => Err(error),
        }
    }

    /// Reads as many events as are whole, and says why it goes no further.
    pub fn parse_beginning(bytes: &[u8]) -> (Self, Option<EventLogError>) {
        let mut reader = Reader { bytes, offset: 0, event: 1 };
        let mut log = Self { specification: None, events: Vec::new() };
        while !reader.is_at_end() {
            match reader.event(log.specification.as_ref()) {
                Ok(event) => {
                    if log.events.is_empty() && event.kind == EventType::NO_ACTION && event.data.starts_with(SPEC_ID) {
                        match reader.specification(&event) {
                            Ok(specification) => log.specification = Some(specification),
                            Err(error) => return (log, Some(error)),
                        }
                    }
                    log.events.push(event);
                    reader.event = reader.event.saturating_add(1);
                }
                Err(error) => return (log, Some(error)),
            }
        }
        (log, None)
    }

    /// The banks that it has digests for, in its order, as far as the kernel maps them.
    pub fn banks(&self) -> Vec<HashAlgorithm> {
        match &self.specification {
            None => vec![HashAlgorithm::Sha1],
            Some(specification) => {
                specification.algorithms.iter().filter_map(|(id, _)| HashAlgorithm::from_tpm_id(*id)).collect()
            }
        }
    }
}

impl Event {
    /// Its digest in a bank.
    pub fn digest(&self, bank: HashAlgorithm) -> Option<Digest> {
        let id = bank.tpm_id()?;
        let (_, bytes) = self.digests.iter().find(|(algorithm, _)| *algorithm == id)?;
        Digest::new(bank, bytes).ok()
    }

    /// Whether a PCR was extended with it.
    pub fn is_measured(&self) -> bool {
        self.kind != EventType::NO_ACTION
    }

    /// The locality that the machine started at, if this event tells it: PCR 0 begins with that number.
    pub fn startup_locality(&self) -> Option<u8> {
        match self.data.strip_prefix(b"StartupLocality\0") {
            Some([locality]) if self.kind == EventType::NO_ACTION => Some(*locality),
            _ => None,
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
    event: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    /// Nothing follows, or what firmware fills a log's memory up with.
    fn is_at_end(&self) -> bool {
        let rest = self.rest();
        // Fewer zeros than the smallest event has bytes may be the beginning of one: PCR 0.
        const SMALLEST: usize = 32;
        let zeros = rest.len() >= SMALLEST && rest.iter().all(|byte| *byte == 0);
        rest.iter().all(|byte| *byte == 0xff) || (zeros && self.event > 1)
    }

    fn error(&self, offset: usize, what: &'static str, found: u64, needed: impl Into<String>) -> EventLogError {
        EventLogError { event: self.event, offset, what, found, needed: needed.into() }
    }

    fn take(&mut self, what: &'static str, length: usize) -> Result<&'a [u8], EventLogError> {
        let rest = self.rest();
        let taken = rest
            .get(..length)
            .ok_or_else(|| self.error(self.offset, what, rest.len() as u64, format!("{length} bytes")))?;
        self.offset = self.offset.saturating_add(length);
        Ok(taken)
    }

    fn number(&mut self, what: &'static str, size: usize) -> Result<u32, EventLogError> {
        Ok(self.take(what, size)?.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, EventLogError> {
        self.number(what, 2).map(|number| u16::try_from(number).unwrap_or(u16::MAX))
    }

    fn event(&mut self, specification: Option<&Specification>) -> Result<Event, EventLogError> {
        let offset = self.offset;
        let (pcr, kind) = (self.number("PCR", 4)?, EventType(self.number("type", 4)?));
        let mut digests = Vec::new();
        match specification {
            None => digests.push((SHA1, self.take("digest", SHA1_SIZE.into())?.to_vec())),
            Some(specification) => {
                let (at, count) = (self.offset, self.number("number of digests", 4)?);
                if count > MOST_ALGORITHMS {
                    let needed = format!("at most {MOST_ALGORITHMS}");
                    return Err(self.error(at, "number of digests", count.into(), needed));
                }
                for _ in 0..count {
                    let (at, id) = (self.offset, self.u16("digest's algorithm")?);
                    let size = specification.algorithms.iter().find(|(known, _)| *known == id);
                    let Some((_, size)) = size else {
                        let needed = "one of those that the log begins with";
                        return Err(self.error(at, "digest's algorithm", id.into(), needed));
                    };
                    digests.push((id, self.take("digest", (*size).into())?.to_vec()));
                }
            }
        }
        let size = self.number("size of the data", 4)?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let data = self.take("data", size)?.to_vec();
        Ok(Event { offset, pcr, kind, digests, data })
    }

    /// What the first event of a crypto-agile log says.
    fn specification(&self, event: &Event) -> Result<Specification, EventLogError> {
        const DATA: usize = 32;
        let start = event.offset.saturating_add(DATA);
        let mut reader = Reader { bytes: &event.data, offset: SPEC_ID.len(), event: self.event };
        let read = |reader: &mut Reader<'_>| {
            reader.number("platform's class", 4)?;
            let version = reader.take("version", 4)?;
            let version = match version {
                [minor, major, errata, _] => (*major, *minor, *errata),
                _ => (0, 0, 0),
            };
            let (at, count) = (reader.offset, reader.number("number of algorithms", 4)?);
            if !(1..=MOST_ALGORITHMS).contains(&count) {
                let needed = format!("1 to {MOST_ALGORITHMS}");
                return Err(reader.error(at, "number of algorithms", count.into(), needed));
            }
            let mut algorithms = Vec::new();
            for _ in 0..count {
                let id = reader.u16("algorithm")?;
                let (at, size) = (reader.offset, reader.u16("size of its digests")?);
                let known = HashAlgorithm::from_tpm_id(id).map(HashAlgorithm::digest_size);
                match known {
                    Some(known) if known != usize::from(size) => {
                        return Err(reader.error(at, "size of the digests", size.into(), known.to_string()));
                    }
                    _ => algorithms.push((id, size)),
                }
            }
            let vendor = reader.number("size of the vendor's part", 1)?;
            reader.take("vendor's part", usize::try_from(vendor).unwrap_or(usize::MAX))?;
            Ok(Specification { version, algorithms })
        };
        // The event's own data counts from the log's start, as all other places do.
        read(&mut reader).map_err(|error| EventLogError { offset: error.offset.saturating_add(start), ..error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const SEABIOS: &[u8] = include_bytes!("../../../tests/vectors/tpm/event_log/debian-seabios.bin");
    pub(super) const OVMF: &[u8] = include_bytes!("../../../tests/vectors/tpm/event_log/debian-ovmf.bin");
    pub(super) const TPM12: &[u8] = include_bytes!("../../../tests/vectors/tpm/event_log/seabios-tpm12.bin");

    #[test]
    fn logs_of_both_forms_are_read_to_their_end() {
        use HashAlgorithm::{Sha1, Sha256, Sha384};
        let with_sha384 = include_bytes!("../../../tests/vectors/tpm/event_log/debian-ovmf-sha384.bin").as_slice();
        for (name, bytes, banks, events) in [
            ("SeaBIOS", SEABIOS, vec![Sha1, Sha256], 14),
            ("OVMF", OVMF, vec![Sha1, Sha256], 25),
            ("OVMF with SHA-384", with_sha384, vec![Sha1, Sha256, Sha384], 25),
            ("TPM 1.2", TPM12, vec![Sha1], 13),
        ] {
            let log = EventLog::parse(bytes).unwrap();
            assert_eq!((log.banks(), log.events.len()), (banks, events), "{name}");
            let filled: Vec<u8> = [bytes, &[0xff; 100]].concat();
            assert_eq!(EventLog::parse(&filled), Ok(log.clone()), "{name}, filled up");
            let filled: Vec<u8> = [bytes, &[0; 100]].concat();
            assert_eq!(EventLog::parse(&filled), Ok(log), "{name}, filled up");
        }
        let nothing = EventLog::parse(&[]).unwrap();
        assert_eq!((nothing.banks(), nothing.events.len()), (vec![Sha1], 0));
    }

    #[test]
    fn a_log_that_is_cut_off_is_read_up_to_its_last_whole_event() {
        let whole = EventLog::parse(OVMF).unwrap();
        for cut in 1..OVMF.len() {
            let (log, error) = EventLog::parse_beginning(&OVMF[..cut]);
            assert_eq!(log.events, whole.events[..log.events.len()]);
            let ends_here = whole.events.iter().any(|event| event.offset == cut);
            assert_eq!(error.is_none(), ends_here, "{cut}: {error:?}");
        }
    }

    #[test]
    fn what_is_no_log_is_refused_with_the_place() {
        let changed = |offset: usize, byte: u8| {
            let mut bytes = SEABIOS.to_vec();
            bytes[offset] = byte;
            bytes
        };
        for (bytes, reason) in [
            (b"text, not a log at all".to_vec(), "event 1 at byte 8: digest is 14, 20 bytes needed"),
            (changed(62, 21), "event 1 at byte 62: size of the digests is 21, 20 needed"),
            (changed(56, 0), "event 1 at byte 56: number of algorithms is 0, 1 to 16 needed"),
            (changed(77, 99), "event 2 at byte 77: number of digests is 99, at most 16 needed"),
            (
                changed(81, 0x7f),
                "event 2 at byte 81: digest's algorithm is 127, one of those that the log begins with needed",
            ),
            (changed(138, 0xff), "event 2 at byte 141: data is 1024, 65308 bytes needed"),
        ] {
            let error = EventLog::parse(&bytes).unwrap_err().to_string();
            assert_eq!(error, reason);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            base in prop::sample::select(vec![SEABIOS, OVMF, TPM12, b"".as_slice()]),
            changes in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 0..8),
            tail in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = [base, &tail].concat();
            for (place, byte) in changes {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            let (log, _) = EventLog::parse_beginning(&bytes);
            for event in &log.events {
                let text = event.description();
                prop_assert!(!text.chars().any(char::is_control), "{text:?}");
                let _ = (event.digest(HashAlgorithm::Sha256), event.startup_locality(), event.kind.to_string());
            }
        }
    }
}
