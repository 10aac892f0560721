//! Another TPM in the place of one that has gone with its PCRs, as a software TPM does that was killed: it is given the whole list.
//!
//! What the list's file says by then may have been changed, and must not come to be proven by this. So its beginning, up to the
//! last entry that the TPM had, has to come to what the PCRs held (which is computed along, see `missed.rs`) before anything is
//! extended. The entries after that were never in a TPM, and wait in memory.
//!
//! | the TPM's PCRs | so |
//! |---|---|
//! | hold what they held | it goes on |
//! | zeros | it is given the beginning of the list, and then what it has missed |
//! | something else | nothing is given to it |

use super::missed::{self, Departure, Extend};
use super::{MeasureError, MeasurementLog};
use crate::replay::template_digests;
use crate::tpm::{Tpm, TpmError};
use imara_format::hash::Digest;
use imara_format::measurement_list::Reader;
use std::collections::BTreeMap;

/// Why another TPM is not given the list.
#[derive(Debug, thiserror::Error)]
pub enum NotGiven {
    /// The list's file is not what the PCRs held.
    #[error("the list's file does not come to what PCR {pcr} held, so that it was changed, or is another list")]
    AnotherList {
        /// The PCR.
        pcr: u32,
    },
    /// It has values of its own.
    #[error(transparent)]
    Departed(#[from] Departure),
    /// It does not answer.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The list's file cannot be read.
    #[error("the list's file cannot be read: {0}")]
    List(String),
    /// A digest cannot be computed.
    #[error(transparent)]
    Measure(#[from] MeasureError),
}

impl NotGiven {
    /// Whether it is of no use to try again.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::AnotherList { .. } | Self::Departed(_))
    }
}

impl MeasurementLog {
    /// The TPM has gone, and another will come: nothing is given to whatever answers in its place until
    /// [`MeasurementLog::take_another_tpm`].
    pub fn tpm_is_gone(&self) {
        let mut state = self.state_at_rest();
        (state.tpm, state.gone, state.resting) = (None, true, None);
    }

    /// Takes `tpm` in the place of the one before, which is gone, and gives it the list, whose file holds `listed`; returns how many
    /// entries that were. What the one before had missed is given to it by [`MeasurementLog::catch_up`]. Whoever adds an entry meanwhile
    /// does not wait.
    ///
    /// # Errors
    /// [`NotGiven`]: what is missing for good, or until another is taken.
    pub fn take_another_tpm(&self, mut tpm: Tpm, listed: &[u8]) -> Result<u64, NotGiven> {
        let mut state = self.state_at_rest();
        let entries = state.counters.entries.load(std::sync::atomic::Ordering::Relaxed);
        let had = entries.saturating_sub(state.behind.entries());
        let held = state.behind.all_held().clone();
        let departed = state.behind.departure();
        (state.tpm, state.away, state.gone, state.resting) = (None, true, true, None);
        drop(state);
        let given = match departed {
            Some(why) => Err(why.into()),
            None => self.give_beginning(&mut tpm, listed, had, &held),
        };
        let mut state = self.state();
        // Given up meanwhile where it is not away any more.
        if std::mem::take(&mut state.away) {
            match &given {
                Err(NotGiven::Departed(why)) => state.behind.depart(*why),
                Err(NotGiven::AnotherList { pcr }) => state.behind.depart(Departure::Reset { pcr: *pcr }),
                _ => {}
            }
            state.gone = given.as_ref().is_err_and(|why| !why.is_final());
            state.tpm = (!state.gone).then_some(tpm);
            state.count_missing();
        }
        self.back.notify_all();
        given
    }

    /// Gives a TPM the first `had` entries, where it has none.
    fn give_beginning(
        &self,
        tpm: &mut Tpm,
        listed: &[u8],
        had: u64,
        held: &BTreeMap<u32, Vec<Digest>>,
    ) -> Result<u64, NotGiven> {
        let mut lacks = false;
        let mut zeros = Vec::new();
        for (pcr, values) in held {
            let found = missed::read(tpm, *pcr)?;
            zeros = found.iter().map(|value| Digest::zeros(value.algorithm())).collect();
            match (found == *values, found == zeros) {
                (true, _) => {}
                (false, true) => lacks = true,
                (false, false) => return Err(Departure::Other { pcr: *pcr }.into()),
            }
        }
        if !lacks {
            return Ok(0);
        }
        let mut values: BTreeMap<u32, Vec<Digest>> = BTreeMap::new();
        self.each_extend(listed, had, |extend| {
            let value = values.entry(extend.pcr).or_insert_with(|| zeros.clone());
            *value = missed::after(value, extend);
            Ok(())
        })?;
        if let Some(pcr) = values.keys().chain(held.keys()).find(|pcr| values.get(pcr) != held.get(pcr)) {
            return Err(NotGiven::AnotherList { pcr: *pcr });
        }
        self.each_extend(listed, had, |extend| Ok(missed::give(tpm, extend)?))?;
        for (pcr, values) in held {
            if missed::read(tpm, *pcr)? != *values {
                return Err(Departure::Other { pcr: *pcr }.into());
            }
        }
        Ok(had)
    }

    /// The first `had` entries, one after the other.
    fn each_extend(
        &self,
        listed: &[u8],
        had: u64,
        mut each: impl FnMut(&Extend) -> Result<(), NotGiven>,
    ) -> Result<(), NotGiven> {
        let mut reader = Reader::new(listed);
        for number in 1..=had {
            let record = reader.next_record().map_err(|error| NotGiven::List(error.to_string()))?;
            let record = record.ok_or_else(|| NotGiven::List(format!("it ends before entry {number}")))?;
            let digests = template_digests(&record.to_entry(), &self.algorithms).map_err(MeasureError::from)?;
            each(&Extend { pcr: record.pcr, digests })?;
        }
        Ok(())
    }
}
