//! How the firmware's event log stands to claimed PCR values.

use imara_engine::crypto::UnsupportedHash;
use imara_engine::event_log::{Agreement, ReplayedBank};
use imara_format::event_log::EventLog;
use imara_format::pcr::PcrValues;
use serde::Serialize;

/// The last PCR that is the firmware's and the boot loader's alone; IMA's first entry sums up all up to it.
const LAST_OF_BOOT: u32 = 9;

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventLogReport {
    /// How many events the log has.
    pub events: usize,
    /// Each PCR that the log has events for or that was claimed, up to PCR 9, in each bank of the log.
    pub pcrs: Vec<LoggedPcr>,
}

/// A PCR in a bank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoggedPcr {
    /// The bank.
    pub bank: String,
    /// The PCR.
    pub pcr: u32,
    /// The log's events for it.
    pub events: usize,
    /// Its value after all of them, in hexadecimal.
    pub replayed: String,
    /// The claimed value, in hexadecimal.
    pub claimed: Option<String>,
    /// Whether they agree; none where nothing was claimed.
    pub agrees: Option<bool>,
}

impl EventLogReport {
    /// Replays a log and compares it with what is claimed. Gives what the PCRs come to as well.
    ///
    /// # Errors
    /// [`UnsupportedHash`] where a bank's hash cannot be computed.
    pub fn new(log: &EventLog, claims: &PcrValues) -> Result<(PcrValues, Self), UnsupportedHash> {
        let mut values = PcrValues::new();
        let mut pcrs = Vec::new();
        for bank in log.banks() {
            let replayed = ReplayedBank::new(log, bank)?;
            if !replayed.missing.is_empty() {
                // The log says nothing of this bank.
                continue;
            }
            for (pcr, value) in replayed.pcr_values().iter() {
                // A bank's PCRs are replayed once each.
                let _ = values.insert(pcr, value);
                let claimed = claims.value(bank, pcr);
                let events = replayed.events.get(pcr as usize).copied().unwrap_or_default();
                if pcr > LAST_OF_BOOT || (events == 0 && claimed.is_none()) {
                    continue;
                }
                let agrees = match replayed.agreement(pcr, claims) {
                    Agreement::Proven | Agreement::Untouched => Some(true),
                    Agreement::Different | Agreement::ExtendedLater => Some(false),
                    Agreement::Unknown => None,
                };
                pcrs.push(LoggedPcr {
                    bank: bank.to_string(),
                    pcr,
                    events,
                    replayed: value.to_hex(),
                    claimed: claimed.map(|claimed| claimed.to_hex()),
                    agrees,
                });
            }
        }
        Ok((values, Self { events: log.events.len(), pcrs }))
    }

    /// Which claimed PCR the log does not come to, if there is one.
    pub fn contradiction(&self) -> Option<String> {
        let differing = self.pcrs.iter().find(|pcr| pcr.agrees == Some(false))?;
        let LoggedPcr { bank, pcr, events, replayed, claimed, .. } = differing;
        let claimed = claimed.as_deref().unwrap_or_default();
        Some(format!(
            "the event log has {events} events for {bank} PCR {pcr} and comes to {replayed}, but its value is given as {claimed}"
        ))
    }

    /// How many PCRs agree with their claim.
    pub fn agreeing(&self) -> usize {
        self.pcrs.iter().filter(|pcr| pcr.agrees == Some(true)).count()
    }
}
