//! What a measurement list proves against PCR values.
//!
//! [`Prover`] takes the list in pieces and ends in a [`Report`]: what was listed, replayed and claimed for each PCR, the
//! first entry that does not hold together, and whether the first entry, `boot_aggregate`, sums up the claimed PCRs 0 to
//! 9 (0 to 7 in the SHA-1 bank).
//!
//! Source of boot_aggregate: security/integrity/ima/ima_crypto.c (`ima_calc_boot_aggregate_tfm`).

use crate::contents::{Contents, ContentsReport};
use crate::event_log::EventLogReport;
use imara_engine::crypto::{UnsupportedHash, hash};
use imara_engine::replay::{Extension, Match, PcrResult, Replay, ReplayError, ReplayedList, Unproven};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::measurement_list::{Decoder, ListError, ListForm, Record};
use imara_format::pcr::PcrValues;
use imara_format::template::BOOT_AGGREGATE;
use serde::Serialize;

/// Proves a list that comes in pieces.
#[derive(Debug)]
pub struct Prover {
    decoder: Decoder,
    replay: Replay,
    claims: PcrValues,
    boot_aggregate: BootAggregate,
    /// What the firmware's event log comes to, and how that stands to the claims.
    event_log: Option<(PcrValues, EventLogReport)>,
    contents: Option<Contents>,
    bad: Option<BadEntry>,
}

/// What came out, for people and programs; made by [`Prover::finish`] alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version of this report's form.
    pub schema: u32,
    /// What is known now.
    pub verdict: Verdict,
    /// Entries read, up to the first bad one.
    pub entries: u64,
    /// How many of them, from the first on, the PCRs prove.
    pub proven: u64,
    /// How many of the entries are violations: of these, PCRs prove that there was one, but not of which file.
    pub violations: u64,
    /// Each PCR that the list touches, in each bank.
    pub pcrs: Vec<PcrReport>,
    /// The first entry.
    pub boot_aggregate: BootAggregate,
    /// How the firmware's event log stands to the claims, where one was given.
    pub event_log: Option<EventLogReport>,
    /// What keys and references say of the entries' contents, where any were given.
    pub contents: Option<ContentsReport>,
    /// The first entry that does not hold together.
    pub bad_entry: Option<BadEntry>,
    /// Why it is not proven, where no entry is to blame.
    pub reason: Option<String>,
}

/// What is known of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every claimed PCR was met, after the list's last entry.
    Proven,
    /// Every claimed PCR was met, and the list has grown since.
    BeginningProven,
    /// No PCR was claimed: the template digests fit the entries, which anyone can bring about.
    OnlyConsistent,
    /// It does not hold together, or does not come to the claimed values.
    Refused,
}

/// A PCR in a bank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PcrReport {
    /// The bank.
    pub bank: String,
    /// The PCR.
    pub pcr: u32,
    /// The list's entries for it.
    pub entries: u64,
    /// Its value after all of them, in hexadecimal.
    pub replayed: String,
    /// The claimed value, in hexadecimal.
    pub claimed: Option<String>,
    /// How the claim was met.
    pub matched: Option<Matched>,
}

/// How a claimed value was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Matched {
    /// How the values that were extended were made.
    pub by: MatchKind,
    /// Up to which entry of the list.
    pub up_to_entry: u64,
}

/// How extended values are made; see [`Extension`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MatchKind {
    /// With the bank's own algorithm.
    PerBank,
    /// With SHA-1, padded with zeros.
    Sha1Padded,
    /// With SHA-1, padded with zeros, violations as well.
    Sha1PaddedViolations,
}

/// How the first entry stands to the claimed PCRs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum BootAggregate {
    /// The list does not begin with one.
    Absent,
    /// It is all zero: the machine had no usable TPM.
    NoTpm,
    /// Not all of the PCRs that it sums up were claimed, or all as zero.
    Unchecked,
    /// It sums up the claimed PCRs.
    Matched,
    /// Not all of the PCRs that it sums up were claimed; it sums up what the event log comes to.
    MatchedByEventLog,
    /// It does not.
    Mismatched {
        /// As the list has it.
        listed: String,
        /// As the claimed PCRs give it.
        computed: String,
    },
}

/// The first entry that does not hold together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BadEntry {
    /// Its number; the first is 1.
    pub entry: u64,
    /// Where in the list, in bytes: the entry's beginning, or the place that could not be read.
    pub offset: u64,
    /// Its name, where it could be read; bytes that are no text are escaped.
    pub path: Option<String>,
    /// What is wrong with it.
    pub why: String,
}

impl Report {
    /// Whether a claim was not met that a value padded from SHA-1 could meet.
    pub fn may_be_padded(&self) -> bool {
        let unmet = |pcr: &PcrReport| pcr.claimed.is_some() && pcr.matched.is_none();
        self.bad_entry.is_none() && self.pcrs.iter().any(|pcr| unmet(pcr) && pcr.bank != HashAlgorithm::Sha1.name())
    }
}

impl From<ListError> for BadEntry {
    fn from(error: ListError) -> Self {
        Self { entry: error.entry, offset: error.offset, path: None, why: error.kind.to_string() }
    }
}

impl From<Match> for Matched {
    fn from(met: Match) -> Self {
        let by = match met.extension {
            Extension::PerBank => MatchKind::PerBank,
            Extension::PaddedSha1 => MatchKind::Sha1Padded,
            Extension::PaddedSha1Violation => MatchKind::Sha1PaddedViolations,
        };
        Self { by, up_to_entry: met.up_to }
    }
}

impl From<&PcrResult> for PcrReport {
    fn from(result: &PcrResult) -> Self {
        Self {
            bank: result.bank.to_string(),
            pcr: result.pcr,
            entries: result.entries,
            replayed: result.replayed.to_hex(),
            claimed: result.claimed.map(|claimed| claimed.to_hex()),
            matched: result.met.map(Matched::from),
        }
    }
}

impl Prover {
    /// Proves a list by `claims`; without any, only looks whether the list is consistent.
    ///
    /// # Errors
    /// [`UnsupportedHash`] when a claimed bank's algorithm cannot be computed.
    pub fn new(claims: PcrValues) -> Result<Self, UnsupportedHash> {
        Ok(Self {
            decoder: Decoder::new(),
            replay: Replay::against(claims.clone())?,
            claims,
            boot_aggregate: BootAggregate::Absent,
            event_log: None,
            contents: None,
            bad: None,
        })
    }

    /// Compares the firmware's event log with the claims, and the first entry with it where the claims do not suffice.
    #[must_use]
    pub fn with_event_log(mut self, values: PcrValues, report: EventLogReport) -> Self {
        self.event_log = Some((values, report));
        self
    }

    /// Judges each entry's content, too.
    #[must_use]
    pub fn with_contents(mut self, contents: Contents) -> Self {
        self.contents = Some(contents);
        self
    }

    /// Replays in these banks as well, so that the report has their values.
    ///
    /// # Errors
    /// As [`Prover::new`].
    pub fn with_banks(mut self, banks: &[HashAlgorithm]) -> Result<Self, UnsupportedHash> {
        self.replay.add_banks(banks)?;
        Ok(self)
    }

    /// Expects extensions with each bank's own algorithm only, which takes a third less time. A list that is refused for
    /// its PCR values should then be tried without this: see [`Report::may_be_padded`].
    #[must_use]
    pub fn per_bank_only(mut self) -> Self {
        self.replay = self.replay.per_bank_only();
        self
    }

    /// Takes a further piece of the list. Says whether more is of use: not after a bad entry.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        self.decoder.feed(piece);
        self.take_entries();
        self.bad.is_none()
    }

    /// How many entries were taken so far.
    pub fn entries(&self) -> u64 {
        self.replay.entries()
    }

    /// How the list is written, once an entry has been read.
    pub fn form(&self) -> Option<ListForm> {
        self.decoder.form()
    }

    /// Ends the list.
    pub fn finish(mut self) -> (Report, Option<ReplayedList>) {
        self.decoder.end();
        self.take_entries();
        let proof = self.replay.prove();
        let mismatch = matches!(self.boot_aggregate, BootAggregate::Mismatched { .. });
        let (verdict, reason) = match &proof {
            _ if self.bad.is_some() => (Verdict::Refused, None),
            _ if mismatch => {
                let by = if self.event_log.is_some() { " or those that the event log comes to" } else { "" };
                (Verdict::Refused, Some(format!("boot_aggregate does not sum up the PCR values given{by}")))
            }
            _ if let Some(reason) = self.event_log.as_ref().and_then(|(_, report)| report.contradiction()) => {
                (Verdict::Refused, Some(reason))
            }
            Ok(list) if list.unproven() == 0 => (Verdict::Proven, None),
            Ok(_) => (Verdict::BeginningProven, None),
            Err(Unproven::NothingClaimed | Unproven::Empty) if self.claims.is_empty() => {
                (Verdict::OnlyConsistent, None)
            }
            Err(reason) => (Verdict::Refused, Some(reason.to_string())),
        };
        let proof = match verdict {
            Verdict::Proven | Verdict::BeginningProven => proof.ok(),
            Verdict::OnlyConsistent | Verdict::Refused => None,
        };
        let report = Report {
            schema: 1,
            verdict,
            entries: self.replay.entries(),
            proven: proof.as_ref().map_or(0, ReplayedList::entries),
            violations: self.replay.violations(),
            pcrs: self.replay.pcrs().iter().map(PcrReport::from).collect(),
            boot_aggregate: self.boot_aggregate,
            event_log: self.event_log.map(|(_, report)| report),
            contents: self.contents.map(Contents::finish),
            bad_entry: self.bad,
            reason,
        };
        (report, proof)
    }

    fn take_entries(&mut self) {
        while self.bad.is_none() {
            match self.decoder.next_record() {
                Ok(Some(record)) => {
                    if record.number == 1 {
                        let logged = self.event_log.as_ref().map(|(values, _)| values);
                        self.boot_aggregate = check_boot_aggregate(&record, &self.claims, logged);
                    }
                    if let Some(contents) = &mut self.contents {
                        contents.judge(&record);
                    }
                    if let Err(error) = self.replay.extend_record(&record) {
                        let path = record.path().map(|path| path.escape_ascii().to_string());
                        let why = reason(&error);
                        self.bad = Some(BadEntry { entry: record.number, offset: record.offset, path, why });
                    }
                }
                Ok(None) => break,
                Err(error) => self.bad = Some(error.into()),
            }
        }
    }
}

/// What is wrong, without the entry's number and name, which stand beside it.
fn reason(error: &ReplayError) -> String {
    match error {
        ReplayError::TemplateDigest { listed, computed, .. } => {
            format!("the template digest is listed as {listed}, but the entry's fields give {computed}")
        }
        ReplayError::TemplateDigestSize { size, .. } => {
            format!("the template digest has {size} bytes; 20, 32, 48 or 64 were needed")
        }
        ReplayError::Violation { .. } => {
            "the template digest is zero as for a violation, but the file's digest is not".to_owned()
        }
        ReplayError::Unsupported(error) => error.to_string(),
    }
}

/// The boot aggregate of a bank, if all PCRs that it sums up are known: 0 to 7, and but for SHA-1 8 and 9.
///
/// # Errors
/// [`UnsupportedHash`] when the bank's algorithm cannot be computed.
pub fn boot_aggregate(pcrs: &PcrValues, bank: HashAlgorithm) -> Result<Option<Digest>, UnsupportedHash> {
    let last = if bank == HashAlgorithm::Sha1 { 7 } else { 9 };
    let values: Option<Vec<Digest>> = (0..=last).map(|pcr| pcrs.value(bank, pcr)).collect();
    values.map(|values| hash(bank, &values.iter().map(Digest::as_bytes).collect::<Vec<_>>())).transpose()
}

fn check_boot_aggregate(first: &Record<'_>, claims: &PcrValues, logged: Option<&PcrValues>) -> BootAggregate {
    let Some(listed) = first.digest().filter(|_| first.path() == Some(BOOT_AGGREGATE)) else {
        return BootAggregate::Absent;
    };
    if listed.is_zero() {
        return BootAggregate::NoTpm;
    }
    let by_event_log = || match logged.map(|logged| boot_aggregate(logged, listed.algorithm())) {
        Some(Ok(Some(computed))) if computed == listed => BootAggregate::MatchedByEventLog,
        Some(Ok(Some(computed))) => {
            BootAggregate::Mismatched { listed: listed.to_string(), computed: computed.to_string() }
        }
        _ => BootAggregate::Unchecked,
    };
    match boot_aggregate(claims, listed.algorithm()) {
        Ok(Some(computed)) if computed == listed => BootAggregate::Matched,
        // Firmware leaves no PCR at zero; whoever gives only zeros knows nothing about these PCRs.
        Ok(Some(_))
            if (0..=7).all(|pcr| claims.value(listed.algorithm(), pcr).is_some_and(|value| value.is_zero())) =>
        {
            by_event_log()
        }
        Ok(Some(computed)) => BootAggregate::Mismatched { listed: listed.to_string(), computed: computed.to_string() },
        Ok(None) => by_event_log(),
        Err(UnsupportedHash(_)) => BootAggregate::Unchecked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn vector(name: &str) -> (Vec<u8>, PcrValues) {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/measurement_list").join(name);
        let claims = std::fs::read_to_string(case.join("pcrs")).unwrap();
        let claims = PcrValues::from_text(&claims, HashAlgorithm::Sha1).unwrap();
        (std::fs::read(case.join("binary")).unwrap(), claims)
    }

    fn report(list: &[u8], claims: &PcrValues) -> Report {
        let mut prover = Prover::new(claims.clone()).unwrap();
        list.chunks(1000).for_each(|piece| {
            prover.feed(piece);
        });
        let (report, proof) = prover.finish();
        let proven = matches!(report.verdict, Verdict::Proven | Verdict::BeginningProven);
        assert_eq!(proof.is_some(), proven);
        report
    }

    #[test]
    fn kernel_lists_are_proven_with_their_boot_aggregate() {
        for (name, boot_aggregate) in [
            ("tcb", BootAggregate::Matched),
            ("tcb-sha1", BootAggregate::Matched),
            ("tcb-sha512", BootAggregate::Matched),
            ("tpl-ima", BootAggregate::Matched),
            ("tpl-ima-sha256", BootAggregate::Matched),
            ("fmt-many", BootAggregate::Matched),
            ("tpm-quote", BootAggregate::Unchecked),
        ] {
            let (list, claims) = vector(name);
            let report = report(&list, &claims);
            assert_eq!((report.verdict, report.boot_aggregate), (Verdict::Proven, boot_aggregate), "{name}");
            assert_eq!(report.proven, report.entries, "{name}");
        }
        let (list, claims) = vector("notpm");
        let report = report(&list, &claims);
        assert_eq!((report.verdict, report.boot_aggregate), (Verdict::OnlyConsistent, BootAggregate::NoTpm));
    }

    #[test]
    fn what_does_not_hold_is_refused_with_the_reason() {
        let (list, claims) = vector("tcb");
        let mut edited = list.clone();
        edited[200] ^= 1;
        let bad = report(&edited, &claims).bad_entry.unwrap();
        assert_eq!((bad.entry, bad.path.as_deref()), (2, Some("/mnt/trte")));

        let cut = report(&list[..300], &claims);
        assert!(cut.bad_entry.unwrap().why.starts_with("the list ends within"));

        let shorter = report(&list[..list.len() - 104], &claims);
        assert_eq!(shorter.verdict, Verdict::Refused);

        let (other, _) = vector("tpl-ima-ng");
        let foreign = report(&other, &claims);
        assert_eq!(foreign.verdict, Verdict::Refused);
        assert!(foreign.reason.unwrap().contains("no beginning of it gives that value"));

        let mut rebooted = PcrValues::new();
        for (pcr, value) in claims.iter() {
            rebooted.insert(pcr, if pcr == 4 { Digest::zeros(value.algorithm()) } else { value }).unwrap();
        }
        let aggregate = report(&list, &rebooted);
        assert_eq!(aggregate.verdict, Verdict::Refused);
        assert!(matches!(aggregate.boot_aggregate, BootAggregate::Mismatched { .. }));

        let mut unknown = PcrValues::new();
        for (pcr, value) in claims.iter() {
            unknown.insert(pcr, if pcr < 10 { Digest::zeros(value.algorithm()) } else { value }).unwrap();
        }
        let aggregate = report(&list, &unknown);
        assert_eq!((aggregate.verdict, aggregate.boot_aggregate), (Verdict::Proven, BootAggregate::Unchecked));
    }

    #[test]
    fn the_report_has_its_pinned_form() {
        let (list, claims) = vector("tpm-quote");
        let grown = [list.clone(), vector("tcb").0].concat();
        let report = serde_json::to_value(report(&grown, &claims)).unwrap();
        assert_eq!(report["verdict"], "beginning-proven");
        assert_eq!(report["proven"], 6);
        assert_eq!(report["pcrs"][1]["matched"], serde_json::json!({"by": "per-bank", "up_to_entry": 6}));
        assert_eq!(report["boot_aggregate"], serde_json::json!({"result": "unchecked"}));
        assert_eq!(report["bad_entry"], serde_json::Value::Null);
    }
}
