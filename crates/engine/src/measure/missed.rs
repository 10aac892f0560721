//! What a TPM that did not answer has missed: it is given to it later, in the list's order, or it is told why it cannot be.
//!
//! After an error nobody knows whether an extend was done, or will be: what was sent to a socket can be done when its sender
//! has gone. So what each PCR must hold is kept here as well. After an error, nothing is extended before the PCR was read
//! again, which a TPM answers when it is done with what came before:
//!
//! | the PCR holds | so |
//! |---|---|
//! | what it held before the first entry that is missing | that entry is extended |
//! | what it holds after it | it was extended: the next one is |
//! | zeros | the TPM was reset: [`Departure::Reset`] |
//! | something else | somebody else extended it: [`Departure::Other`] |
//!
//! The digests stay in memory: what lies in the list's file by then may have been changed.

use crate::crypto;
use crate::tpm::{Tpm, TpmError};
use imara_format::hash::{Digest, HashAlgorithm};
use std::collections::{BTreeMap, VecDeque};

/// So many entries are kept for a TPM at most, some 16 MiB.
const MOST: usize = 1 << 16;

/// An entry that is listed: its PCR, and its digests, the first one by SHA-1.
#[derive(Clone, Debug)]
pub(super) struct Extend {
    pub(super) pcr: u32,
    pub(super) digests: Vec<Digest>,
}

/// Why a TPM can no longer be given what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Departure {
    /// Its PCR is at zero.
    #[error("the TPM was reset: PCR {pcr} holds zeros and not what the list came to")]
    Reset {
        /// The PCR.
        pcr: u32,
    },
    /// Its PCR holds something else.
    #[error("PCR {pcr} is not what the list came to: something else has extended it, or it is another TPM")]
    Other {
        /// The PCR.
        pcr: u32,
    },
    /// It has missed more than is kept for it.
    #[error("the TPM has missed more than {MOST} entries, which is more than are kept for it")]
    TooMany,
}

/// What the PCRs hold, and what they lack.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// By PCR, each bank's value; nothing of a PCR that could not be read yet, and was not extended either.
    held: BTreeMap<u32, Vec<Digest>>,
    missed: VecDeque<Extend>,
    departure: Option<Departure>,
    /// How many entries the TPM has missed for good.
    lost: u64,
}

impl Behind {
    /// How many entries at the list's end are not in the TPM.
    pub(super) fn entries(&self) -> u64 {
        self.lost + self.missed.len() as u64
    }

    pub(super) const fn departure(&self) -> Option<Departure> {
        self.departure
    }

    /// The first entry that is missing and can still be given to the TPM.
    pub(super) fn first(&self) -> Option<&Extend> {
        self.missed.front()
    }

    /// Adds an entry that the TPM does not have.
    pub(super) fn miss(&mut self, extend: Extend) {
        if self.departure.is_some() {
            self.lost += 1;
        } else if self.missed.len() < MOST {
            self.missed.push_back(extend);
        } else {
            self.depart(Departure::TooMany);
            self.lost += 1;
        }
    }

    /// Gives up.
    pub(super) fn depart(&mut self, why: Departure) {
        self.lost += self.missed.len() as u64;
        self.missed = VecDeque::new();
        self.departure = Some(why);
    }

    /// The TPM has the first one that was missing. `held` is what its PCR held before, where that was not known.
    pub(super) fn made_up(&mut self, held: Option<Vec<Digest>>) {
        if let Some(extend) = self.missed.pop_front() {
            if let Some(held) = held {
                self.held.insert(extend.pcr, held);
            }
            self.extended(&extend);
        }
    }

    /// What a PCR holds, where that is known.
    pub(super) fn held(&self, pcr: u32) -> Option<&Vec<Digest>> {
        self.held.get(&pcr)
    }

    /// What each PCR holds, as far as it is known.
    pub(super) const fn all_held(&self) -> &BTreeMap<u32, Vec<Digest>> {
        &self.held
    }

    /// A PCR holds this now.
    pub(super) fn hold(&mut self, pcr: u32, values: Vec<Digest>) {
        self.held.insert(pcr, values);
    }

    /// The TPM has extended an entry.
    pub(super) fn extended(&mut self, extend: &Extend) {
        if let Some(held) = self.held.get_mut(&extend.pcr) {
            *held = after(held, extend);
        }
    }
}

/// What a PCR holds after an extend. What cannot be computed, which no bank's digest is, stays as it is.
pub(super) fn after(held: &[Digest], extend: &Extend) -> Vec<Digest> {
    let of = |bank: HashAlgorithm| extend.digests.iter().find(|digest| digest.algorithm() == bank);
    let next =
        |value: &Digest| crypto::hash(value.algorithm(), &[value.as_bytes(), of(value.algorithm())?.as_bytes()]).ok();
    held.iter().map(|value| next(value).unwrap_or(*value)).collect()
}

/// What a PCR holds, in every bank.
pub(super) fn read(tpm: &mut Tpm, pcr: u32) -> Result<Vec<Digest>, TpmError> {
    Ok(tpm.pcr_read_many(&[pcr])?.into_iter().map(|(_, _, value)| value).collect())
}

/// Extends an entry in every bank.
pub(super) fn give(tpm: &mut Tpm, extend: &Extend) -> Result<(), TpmError> {
    let of = |bank| extend.digests.iter().find(|digest| Some(digest.algorithm()) == bank).copied();
    let banks: Vec<Digest> = tpm.banks().iter().filter_map(|bank| of(bank.algorithm)).collect();
    // Banks that the kernel does not map get the SHA-1 digest and zeros, as from the kernel.
    let sha1 = extend.digests.first().map_or(&[][..], Digest::as_bytes);
    tpm.pcr_extend_every_bank(extend.pcr, &banks, sha1)
}

/// What a PCR says of an entry that may or may not have been extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It was not.
    Missing,
    /// It was.
    Done,
    /// Neither can be: nothing can be given to the TPM any more.
    Departed(Departure),
}

/// Compares what a PCR holds with what it should.
fn find(held: &[Digest], extend: &Extend, found: &[Digest]) -> Found {
    let pcr = extend.pcr;
    if found == held {
        Found::Missing
    } else if found == after(held, extend) {
        Found::Done
    } else if found.iter().all(Digest::is_zero) {
        Found::Departed(Departure::Reset { pcr })
    } else {
        Found::Departed(Departure::Other { pcr })
    }
}

/// Gives a TPM an entry that it lacks. `held` is what its PCR should hold, if that is known; `sure` are the PCRs of which it was found
/// out. With what became of it comes what the PCR held before, where nothing was known of that.
pub(super) fn make_up(
    tpm: &mut Tpm,
    extend: &Extend,
    held: Option<Vec<Digest>>,
    sure: &mut Vec<u32>,
) -> Result<(Option<Vec<Digest>>, Found), TpmError> {
    let mut unknown = None;
    if !sure.contains(&extend.pcr) {
        let found = read(tpm, extend.pcr)?;
        match held.map(|held| find(&held, extend, &found)) {
            // Nothing of ours was ever sent to it.
            None => unknown = Some(found),
            Some(Found::Missing) => {}
            Some(Found::Done) => {
                sure.push(extend.pcr);
                return Ok((None, Found::Done));
            }
            Some(departed) => return Ok((None, departed)),
        }
        sure.push(extend.pcr);
    }
    give(tpm, extend)?;
    Ok((unknown, Found::Done))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extend(number: u8) -> Extend {
        let digest = |bank| crypto::hash(bank, &[&[number]]).unwrap();
        Extend { pcr: 10, digests: vec![digest(HashAlgorithm::Sha1), digest(HashAlgorithm::Sha256)] }
    }

    #[test]
    fn a_pcr_tells_what_became_of_an_extend() {
        let zeros = vec![Digest::zeros(HashAlgorithm::Sha1), Digest::zeros(HashAlgorithm::Sha256)];
        let held = after(&zeros, &extend(1));
        let done = after(&held, &extend(2));
        let half = vec![done[0], held[1]];
        for (name, found, expected) in [
            ("it waits still", &held, Found::Missing),
            ("it was done", &done, Found::Done),
            ("the TPM was reset", &zeros, Found::Departed(Departure::Reset { pcr: 10 })),
            ("somebody else was faster", &after(&held, &extend(3)), Found::Departed(Departure::Other { pcr: 10 })),
            ("in one bank only", &half, Found::Departed(Departure::Other { pcr: 10 })),
            ("no bank is left", &Vec::new(), Found::Departed(Departure::Reset { pcr: 10 })),
        ] {
            assert_eq!(find(&held, &extend(2), found), expected, "{name}");
        }
        assert_eq!(find(&zeros, &extend(2), &zeros), Found::Missing, "the first entry of all");
    }

    #[test]
    fn what_is_missing_is_kept_in_order_up_to_a_limit() {
        let mut behind = Behind::default();
        behind.hold(10, vec![Digest::zeros(HashAlgorithm::Sha1)]);
        for number in 0..MOST {
            behind.miss(extend(u8::try_from(number % 251).unwrap()));
        }
        assert_eq!((behind.entries(), behind.departure()), (MOST as u64, None));
        behind.made_up(None);
        assert_eq!(behind.held(10), Some(&after(&[Digest::zeros(HashAlgorithm::Sha1)], &extend(0))));
        assert_eq!(behind.first().map(|first| first.digests.clone()), Some(extend(1).digests));
        for _ in 0..3 {
            behind.miss(extend(7));
        }
        assert_eq!((behind.entries(), behind.departure()), (MOST as u64 + 2, Some(Departure::TooMany)));
        assert!(behind.first().is_none());
    }
}
