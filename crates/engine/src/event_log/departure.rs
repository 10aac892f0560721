//! Where an event log departs from a PCR that it does not come to.
//!
//! A PCR is one hash over all that was extended, so it does not tell what was changed. But most changes are small, and each of
//! these is found by trying it:
//!
//! | tried | what it says if it comes to the PCR's value |
//! |---|---|
//! | only the first events | the others were added to the log, or came after the value was read |
//! | all but one event | that event was added |
//! | two neighbours the other way round | their order was changed |
//! | the digest of an event's data in place of the one listed | that digest was changed |
//! | the same event's digest as another bank's proof allows | see [`Departure::OneBank`] |
//!
//! What remains is an event that was taken out or changed beyond finding, another boot's log, or an extend by somebody else.

use super::{beginning, data_digests};
use crate::crypto::{UnsupportedHash, hash};
use imara_format::event_log::EventLog;
use imara_format::hash::{Digest, HashAlgorithm};

/// How a log departs from a PCR's value. Events are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Departure {
    /// The value is that after this event; 0 for none. The events of this PCR after it were not extended, or not yet.
    Later {
        /// The last event that the value has.
        last: usize,
        /// The first that it has not.
        first_later: usize,
    },
    /// Without this event the log comes to the value: it was added.
    Added {
        /// The event.
        event: usize,
    },
    /// With these two the other way round the log comes to the value.
    Order {
        /// The one that was listed first.
        first: usize,
        /// The one that was listed behind it.
        second: usize,
    },
    /// With the digest of the event's own data the log comes to the value: the digest was changed.
    Digest {
        /// The event.
        event: usize,
        /// What was measured.
        measured: Digest,
    },
    /// Another bank's value is met, so the events are all there: digests of this bank alone were changed.
    OneBank {
        /// The bank that is met.
        met: HashAlgorithm,
        /// Events whose digest in this bank is not that of their data, though it should be.
        suspects: Vec<usize>,
    },
    /// None of these.
    Unknown {
        /// Events whose digest is not that of their data, though it should be.
        suspects: Vec<usize>,
    },
}

/// Finds out how a log departs from the value `found` of a PCR. `met` is another bank whose value of this PCR it comes to.
///
/// # Errors
/// [`UnsupportedHash`] where the bank's hash cannot be computed.
pub fn departure(
    log: &EventLog,
    bank: HashAlgorithm,
    pcr: u32,
    found: Digest,
    met: Option<HashAlgorithm>,
) -> Result<Departure, UnsupportedHash> {
    let events: Vec<(usize, Digest)> = log
        .events
        .iter()
        .enumerate()
        .filter(|(_, event)| event.pcr == pcr && event.is_measured())
        .filter_map(|(place, event)| Some((place, event.digest(bank)?)))
        .collect();
    let start = beginning(log, bank, pcr);
    // The value before each event, and after the last.
    let mut values = vec![start];
    for (_, digest) in &events {
        let last = values[values.len() - 1];
        values.push(extend(bank, last, digest)?);
    }
    if let Some(count) = values[..events.len()].iter().position(|value| *value == found) {
        let last = count.checked_sub(1).map_or(0, |place| events[place].0 + 1);
        return Ok(Departure::Later { last, first_later: events[count].0 + 1 });
    }
    let comes_to = |value: Digest, rest: &[(usize, Digest)]| -> Result<bool, UnsupportedHash> {
        let mut value = value;
        for (_, digest) in rest {
            value = extend(bank, value, digest)?;
        }
        Ok(value == found)
    };
    for (index, (place, _)) in events.iter().enumerate() {
        if comes_to(values[index], &events[index + 1..])? {
            return Ok(Departure::Added { event: place + 1 });
        }
    }
    for (index, pair) in events.windows(2).enumerate() {
        let turned = extend(bank, extend(bank, values[index], &pair[1].1)?, &pair[0].1)?;
        if comes_to(turned, &events[index + 2..])? {
            return Ok(Departure::Order { first: pair[0].0 + 1, second: pair[1].0 + 1 });
        }
    }
    let mut suspects = Vec::new();
    for (index, (place, listed)) in events.iter().enumerate() {
        let event = &log.events[*place];
        let digests = data_digests(event, bank)?;
        for measured in digests.iter().filter(|digest| *digest != listed) {
            if comes_to(extend(bank, values[index], measured)?, &events[index + 1..])? {
                return Ok(Departure::Digest { event: place + 1, measured: *measured });
            }
        }
        if super::is_of_its_data(event) && !digests.contains(listed) {
            suspects.push(place + 1);
        }
    }
    Ok(match met {
        Some(met) => Departure::OneBank { met, suspects },
        None => Departure::Unknown { suspects },
    })
}

fn extend(bank: HashAlgorithm, value: Digest, digest: &Digest) -> Result<Digest, UnsupportedHash> {
    hash(bank, &[value.as_bytes(), digest.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_log::ReplayedBank;
    use HashAlgorithm::Sha256;

    const OVMF: &[u8] = include_bytes!("../../../../tests/vectors/tpm/event_log/debian-ovmf.bin");

    /// Where the log departs from its own PCR 7 after a change; of that PCR it has events 4 to 8 and some later ones.
    fn after(change: impl FnOnce(&mut EventLog)) -> Departure {
        let whole = EventLog::parse(OVMF).unwrap();
        let found = ReplayedBank::new(&whole, Sha256).unwrap().values[7];
        let mut log = whole;
        change(&mut log);
        departure(&log, Sha256, 7, found, None).unwrap()
    }

    #[test]
    fn small_changes_are_found() {
        let places: Vec<usize> = EventLog::parse(OVMF)
            .unwrap()
            .events
            .iter()
            .enumerate()
            .filter(|(_, event)| event.pcr == 7 && event.is_measured())
            .map(|(place, _)| place)
            .collect();
        let (first, second, last) = (places[0], places[1], places[places.len() - 1]);
        let of_bank = |event: &mut imara_format::event_log::Event| {
            let digest = event.digests.iter_mut().find(|(id, _)| Some(*id) == Sha256.tpm_id()).unwrap();
            digest.1[5] ^= 0x10;
        };
        let changed = after(|log| of_bank(&mut log.events[second]));
        assert!(matches!(changed, Departure::Digest { event, .. } if event == second + 1), "{changed:?}");
        let doubled = after(|log| log.events.insert(first, log.events[last].clone()));
        assert_eq!(doubled, Departure::Added { event: first + 1 });
        let turned = after(|log| log.events.swap(first, second));
        assert_eq!(turned, Departure::Order { first: first + 1, second: second + 1 });
        let longer = after(|log| log.events.push(log.events[first].clone()));
        assert!(matches!(longer, Departure::Later { last: found, .. } if found == last + 1), "{longer:?}");
        let shorter = after(|log| drop(log.events.remove(second)));
        assert_eq!(shorter, Departure::Unknown { suspects: vec![] });
        let two = after(|log| [first, second].into_iter().for_each(|place| of_bank(&mut log.events[place])));
        assert_eq!(two, Departure::Unknown { suspects: vec![first + 1, second + 1] });
    }
}
