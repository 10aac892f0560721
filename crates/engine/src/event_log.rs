//! What the firmware's event log comes to: replayed into PCRs, and compared with a TPM's.
//!
//! A PCR begins at zero; PCRs 17 to 22, which a later launch measures into, at all ones; PCR 0 at the number of the locality
//! that the machine started at, if the log tells it or a hardware root of trust measured first (then 4). Each event
//! extends its PCR in every bank.
//!
//! Source: TCG PC Client Platform Firmware Profile, 3.3.2 and 10.4.5.3.

use crate::crypto::{UnsupportedHash, hash};
use imara_format::event_log::{Event, EventLog, EventType};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::pcr::PcrValues;

mod departure;

pub use departure::{Departure, departure};

/// PCRs of a PC Client TPM.
const PCRS: u32 = 24;

/// A log that was replayed into a bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayedBank {
    /// The bank.
    pub bank: HashAlgorithm,
    /// What each PCR from 0 to 23 comes to.
    pub values: Vec<Digest>,
    /// How many events each was extended with.
    pub events: Vec<usize>,
    /// Events, counted from 1, that carry no digest for this bank: it cannot be proven by this log.
    pub missing: Vec<usize>,
}

/// How a PCR stands to what the log says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// It has the value that the log comes to.
    Proven,
    /// The log has no events for it, and it was never extended.
    Untouched,
    /// The log has no events for it, and somebody has extended it since: IMA (PCR 10), the boot loader, the system.
    ExtendedLater,
    /// It has another value: the log was changed, or is not of this boot, or somebody has extended the PCR since.
    Different,
    /// There is no value of it to compare with.
    Unknown,
}

impl ReplayedBank {
    /// Replays a log into a bank.
    ///
    /// # Errors
    /// [`UnsupportedHash`] where the bank's hash cannot be computed.
    pub fn new(log: &EventLog, bank: HashAlgorithm) -> Result<Self, UnsupportedHash> {
        let mut values: Vec<Digest> = (0..PCRS).map(|pcr| beginning(log, bank, pcr)).collect();
        let mut events = vec![0; PCRS as usize];
        let mut missing = Vec::new();
        for (place, event) in log.events.iter().enumerate().filter(|(_, event)| event.is_measured()) {
            let pcr = event.pcr as usize;
            match (event.digest(bank), values.get_mut(pcr)) {
                (Some(digest), Some(value)) => {
                    *value = hash(bank, &[value.as_bytes(), digest.as_bytes()])?;
                    events[pcr] += 1;
                }
                // A PCR that no TPM has was extended nowhere.
                (_, None) => {}
                (None, Some(_)) => missing.push(place + 1),
            }
        }
        Ok(Self { bank, values, events, missing })
    }

    /// How a PCR stands to values that a TPM has, or had.
    pub fn agreement(&self, pcr: u32, found: &PcrValues) -> Agreement {
        let (Some(value), Some(events)) = (self.values.get(pcr as usize), self.events.get(pcr as usize)) else {
            return Agreement::Unknown;
        };
        match found.value(self.bank, pcr) {
            None => Agreement::Unknown,
            Some(found) if found == *value => match events {
                0 => Agreement::Untouched,
                _ => Agreement::Proven,
            },
            Some(_) if *events == 0 => Agreement::ExtendedLater,
            Some(_) => Agreement::Different,
        }
    }

    /// What the PCRs come to that the log has events for; and PCRs 0 to 9, over which IMA's first entry is made.
    pub fn pcr_values(&self) -> PcrValues {
        let mut values = PcrValues::new();
        for (pcr, value) in (0..).zip(&self.values) {
            if pcr < 10 || self.events.get(pcr as usize).is_some_and(|events| *events > 0) {
                values.insert(pcr, *value).expect("each PCR once");
            }
        }
        values
    }
}

/// Whether an event's digest should be that of its data, and is not: then the data were changed, or its firmware does not
/// keep to the specification. An event whose digest is not of its data, but of what that stands for, is not contradicted.
///
/// # Errors
/// [`UnsupportedHash`] where the bank's hash cannot be computed.
pub fn contradicts_its_data(event: &Event, bank: HashAlgorithm) -> Result<bool, UnsupportedHash> {
    let Some(listed) = event.digest(bank).filter(|_| is_of_its_data(event)) else { return Ok(false) };
    Ok(!data_digests(event, bank)?.contains(&listed))
}

/// Whether the specification has such an event's digest be that of its data.
fn is_of_its_data(event: &Event) -> bool {
    matches!(
        event.kind,
        EventType::SEPARATOR
            | EventType::EFI_ACTION
            | EventType::S_CRTM_VERSION
            | EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_AUTHORITY
            | EventType::EFI_GPT_EVENT
    )
}

/// What an event's digest can be if it is made of its data: of all of them, without the NUL of a text, or of a variable's
/// value alone.
fn data_digests(event: &Event, bank: HashAlgorithm) -> Result<Vec<Digest>, UnsupportedHash> {
    let mut parts = vec![event.data.as_slice()];
    parts.extend(event.data.strip_suffix(&[0]));
    parts.extend(event.variable_value());
    parts.into_iter().map(|part| hash(bank, &[part])).collect()
}

/// What a PCR has before the first event.
fn beginning(log: &EventLog, bank: HashAlgorithm, pcr: u32) -> Digest {
    /// The locality of a hardware root of trust.
    const HARDWARE: u8 = 4;
    match pcr {
        0 => {
            let told = log.events.iter().find_map(|event| event.startup_locality());
            let hardware = log.events.iter().any(|event| event.kind == EventType::EFI_HCRTM_EVENT);
            let mut bytes = vec![0; bank.digest_size()];
            if let (Some(last), Some(locality)) = (bytes.last_mut(), told.or(hardware.then_some(HARDWARE))) {
                *last = locality;
            }
            Digest::new(bank, &bytes).unwrap_or(Digest::zeros(bank))
        }
        17..=22 => Digest::ones(bank),
        _ => Digest::zeros(bank),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HashAlgorithm::{Sha1, Sha256, Sha384};
    use imara_format::event_log::Event;

    macro_rules! vector {
        ($name:literal) => {
            include_bytes!(concat!("../../../tests/vectors/tpm/event_log/", $name)).as_slice()
        };
    }

    fn pcrs(parts: &[(&[u8], HashAlgorithm)]) -> PcrValues {
        let mut values = PcrValues::new();
        for (text, bank) in parts {
            let text = std::str::from_utf8(text).unwrap();
            for (pcr, digest) in PcrValues::from_text(text, *bank).unwrap().iter() {
                values.insert(pcr, digest).unwrap();
            }
        }
        values
    }

    #[test]
    fn real_logs_come_to_the_pcrs_of_their_machines() {
        let seabios = [(vector!("debian-seabios.pcrs-sha1"), Sha1), (vector!("debian-seabios.pcrs-sha256"), Sha256)];
        for (name, log, values, banks) in [
            ("SeaBIOS", vector!("debian-seabios.bin"), pcrs(&seabios), vec![Sha1, Sha256]),
            ("OVMF", vector!("debian-ovmf.bin"), pcrs(&[(vector!("debian-ovmf.pcrs"), Sha1)]), vec![Sha1, Sha256]),
            (
                "OVMF with SHA-384",
                vector!("debian-ovmf-sha384.bin"),
                pcrs(&[(vector!("debian-ovmf-sha384.pcrs"), Sha1)]),
                vec![Sha1, Sha256, Sha384],
            ),
            ("TPM 1.2", vector!("seabios-tpm12.bin"), pcrs(&[(vector!("seabios-tpm12.pcrs"), Sha1)]), vec![Sha1]),
        ] {
            let log = EventLog::parse(log).unwrap();
            assert_eq!(log.banks(), banks, "{name}");
            for bank in banks {
                let replayed = ReplayedBank::new(&log, bank).unwrap();
                assert!(replayed.missing.is_empty(), "{name}");
                for pcr in 0..24 {
                    let expected = match (pcr, replayed.events[pcr as usize]) {
                        // IMA measures into it, once Linux runs.
                        (10, _) => Agreement::ExtendedLater,
                        (_, 0) => Agreement::Untouched,
                        _ => Agreement::Proven,
                    };
                    assert_eq!(replayed.agreement(pcr, &values), expected, "{name} {bank} {pcr}");
                }
            }
        }
    }

    #[test]
    fn digests_that_should_be_of_an_events_data_are_and_no_other_data_pass() {
        for log in [vector!("debian-seabios.bin"), vector!("debian-ovmf.bin"), vector!("debian-ovmf-sha384.bin")] {
            for mut event in EventLog::parse(log).unwrap().events {
                assert_eq!(contradicts_its_data(&event, Sha256), Ok(false), "{event:?}");
                event.data.push(1);
                assert_eq!(contradicts_its_data(&event, Sha256), Ok(is_of_its_data(&event)), "{event:?}");
            }
        }
    }

    #[test]
    fn a_changed_log_proves_the_pcr_of_its_event_no_more() {
        let values = pcrs(&[(vector!("debian-ovmf.pcrs"), Sha1)]);
        let whole = EventLog::parse(vector!("debian-ovmf.bin")).unwrap();
        for place in (0..whole.events.len()).filter(|place| whole.events[*place].is_measured()) {
            let mut log = whole.clone();
            let pcr = log.events[place].pcr;
            log.events[place].digests[1].1[0] ^= 1;
            let replayed = ReplayedBank::new(&log, Sha256).unwrap();
            assert_eq!(replayed.agreement(pcr, &values), Agreement::Different, "{place}");
            let unchanged = ReplayedBank::new(&log, Sha1).unwrap();
            assert_eq!(unchanged.agreement(pcr, &values), Agreement::Proven, "{place}");
        }
    }

    #[test]
    fn pcr_0_begins_with_the_locality_of_the_start() {
        let event = |kind, data: &[u8]| Event {
            offset: 0,
            pcr: 0,
            kind,
            digests: vec![(0xb, vec![0; 32])],
            data: data.to_vec(),
        };
        let extended = |first: u8| {
            let mut start = [0; 32];
            start[31] = first;
            hash(Sha256, &[&start, &[0; 32]]).unwrap()
        };
        for (name, events, expected) in [
            ("nothing told", vec![event(EventType::POST_CODE, b"")], extended(0)),
            (
                "locality 3",
                vec![event(EventType::NO_ACTION, b"StartupLocality\0\x03"), event(EventType::POST_CODE, b"")],
                extended(3),
            ),
            ("a hardware root of trust", vec![event(EventType::EFI_HCRTM_EVENT, b"HCRTM")], extended(4)),
        ] {
            let log = EventLog { specification: None, events };
            assert_eq!(ReplayedBank::new(&log, Sha256).unwrap().values[0], expected, "{name}");
        }
    }
}
