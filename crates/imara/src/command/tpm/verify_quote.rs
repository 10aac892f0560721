//! `imara tpm verify-quote`.

use super::quote_files::{QuoteFiles, Quoted};
use super::{SCHEMA, event_log, pcrs};
use crate::command::CommandResult;
use crate::command::measurement::{prove_file, why_not_proven};
use crate::command::paths::printable;
use crate::command::pcr_files;
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_attest::proof::{Report, Verdict};
use imara_attest::quote::{Blamed, Check, CheckResult, Examination};
use imara_engine::event_log::{Agreement, ReplayedBank, departure};
use imara_format::event_log::EventLog;
use imara_format::hash::{HashAlgorithm, to_hex};
use imara_format::pcr::PcrValues;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Verify a quote: the signature, the nonce, that a TPM made it, and that it is of the PCR values given.
///
/// With an event log, a measurement list or expected values each quoted PCR is explained: what it is the sum of, and which one
/// differs. Without PCR values those that the logs come to are tried.
///
/// Exit status: 0 all that was given is verified (what was not given is said to be not checked), 1 something does not verify,
/// 2 wrong command line, 3 a hash cannot be computed here.
#[derive(clap::Args)]
pub struct VerifyQuote {
    #[command(flatten)]
    files: QuoteFiles,
    /// The firmware's event log, which should come to the quoted PCRs
    #[arg(long, value_name = "LOG")]
    event_log: Option<PathBuf>,
    /// The measurement list, which should come to the quoted PCR 10
    #[arg(long, value_name = "LIST")]
    measurement_list: Option<PathBuf>,
    /// Accept a list that goes on after the entries that the quote proves: it has grown since
    #[arg(long, requires = "measurement_list")]
    prefix: bool,
    /// PCR values that are wanted, in any form that `imara measurement verify --pcrs` takes: each must be quoted, and the same
    #[arg(long, value_name = "PCRS")]
    expect: Option<PathBuf>,
    /// The bank of wanted values whose form names none
    #[arg(long, value_name = "ALGORITHM", default_value = "sha1", value_parser = pcr_files::algorithm)]
    bank: HashAlgorithm,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// All that came out.
struct Found {
    examination: Examination,
    checks: Vec<Check>,
    blamed: Vec<Blamed>,
    list: Option<Report>,
}

impl VerifyQuote {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        if self.measurement_list.as_ref().is_some_and(|list| list.as_os_str() == "-") {
            return Err(Failure::usage("--measurement-list: a list is read twice, and standard input cannot be"));
        }
        let quoted = self.files.read()?;
        let log = match &self.event_log {
            None => None,
            Some(path) => {
                let (name, bytes) = event_log::log_bytes(Some(path))?;
                let log = EventLog::parse(&bytes).map_err(|error| Failure::failed(format!("{name}: {error}")))?;
                Some((name, log))
            }
        };
        let found = self.examine(&quoted, log.as_ref())?;
        let failed = found.checks.iter().filter(|check| check.result == CheckResult::Failed);
        let outcome = if failed.clone().count() == 0 { Outcome::Done } else { Outcome::Failed };
        if self.json {
            print_json(&found.document(&quoted.name));
            return Ok(outcome);
        }
        if !self.quiet {
            print(found.text(&quoted.name));
        } else {
            for check in failed {
                complain(&Failure::failed(format!("{}: {}: {}", quoted.name, check.check, check.detail)));
            }
        }
        Ok(outcome)
    }

    fn examine(&self, quoted: &Quoted, log: Option<&(String, EventLog)>) -> Result<Found, Failure> {
        let candidates = self.candidates(log)?;
        // What came without values may be of those that the logs come to.
        let examination = quoted.examine((!quoted.has_values() && !candidates.is_empty()).then_some(&candidates));
        let blamed = examination.blame(&candidates);
        let mut checks = examination.checks.clone();
        if !quoted.key_is_known {
            checks.push(Check {
                check: "key-known",
                result: CheckResult::NotChecked,
                detail: "the key came with the quote: any TPM's would do; compare it, or name the one known with --key"
                    .to_owned(),
            });
        }
        let mut list = None;
        if let Some(values) = examination.proven_values() {
            if let Some((name, log)) = log {
                checks.push(event_log_check(name, log, values)?);
            }
            if let Some(path) = &self.measurement_list {
                let report = prove_file(path, values)?;
                checks.push(self.list_check(&printable(path), &report));
                list = Some(report);
            }
            if let Some(path) = &self.expect {
                checks.push(expected_check(&pcr_files::read(path, self.bank)?, values));
            }
        } else {
            let given = [
                ("event-log", log.is_some()),
                ("measurement-list", self.measurement_list.is_some()),
                ("expected-values", self.expect.is_some()),
            ];
            checks.extend(given.into_iter().filter(|(_, given)| *given).map(|(check, _)| Check {
                check,
                result: CheckResult::Failed,
                detail: "there are no values that were certainly quoted to compare with".to_owned(),
            }));
        }
        Ok(Found { examination, checks, blamed, list })
    }

    /// What the logs say that the PCRs have.
    fn candidates(&self, log: Option<&(String, EventLog)>) -> Result<PcrValues, Failure> {
        let mut candidates = PcrValues::new();
        let mut add = |pcr, value| {
            // What the event log says of a PCR that it has events for comes first.
            let _ = candidates.insert(pcr, value);
        };
        let mut in_log: Vec<(HashAlgorithm, u32)> = Vec::new();
        let list = match &self.measurement_list {
            Some(path) => Some(prove_file(path, &PcrValues::new())?),
            None => None,
        };
        for pcr in list.iter().flat_map(|report| &report.pcrs) {
            let text = format!("{}:{} {}", pcr.bank, pcr.pcr, pcr.replayed);
            for (pcr, value) in PcrValues::from_text(&text, HashAlgorithm::Sha1).map_err(Failure::failed)?.iter() {
                in_log.push((value.algorithm(), pcr));
                add(pcr, value);
            }
        }
        if let Some((_, log)) = log {
            for bank in log.banks() {
                let replayed = ReplayedBank::new(log, bank).map_err(Failure::lacking)?;
                for (pcr, value) in (0..).zip(&replayed.values) {
                    if !in_log.contains(&(bank, pcr)) {
                        add(pcr, *value);
                    }
                }
            }
        }
        Ok(candidates)
    }

    fn list_check(&self, name: &str, report: &Report) -> Check {
        let (result, detail) = match report.verdict {
            Verdict::Proven => (CheckResult::Passed, format!("{name}: all {} entries are proven", report.entries)),
            Verdict::BeginningProven => {
                let result = if self.prefix { CheckResult::Passed } else { CheckResult::Failed };
                let rest = if self.prefix { "" } else { ": it has grown since (--prefix accepts that), or was forged" };
                (result, format!("{name}: the first {} of {} entries are proven{rest}", report.proven, report.entries))
            }
            Verdict::OnlyConsistent | Verdict::Refused => {
                (CheckResult::Failed, format!("{name}: {}", why_not_proven(report)))
            }
        };
        Check { check: "measurement-list", result, detail }
    }
}

/// Whether the event log comes to the quoted PCRs that it has events for.
fn event_log_check(name: &str, log: &EventLog, values: &PcrValues) -> Result<Check, Failure> {
    let replayed: Result<Vec<_>, _> = log.banks().into_iter().map(|bank| ReplayedBank::new(log, bank)).collect();
    let replayed = replayed.map_err(Failure::lacking)?;
    let (mut proven, mut wrong) = (Vec::new(), Vec::new());
    for bank in &replayed {
        for (pcr, value) in values.iter().filter(|(_, value)| value.algorithm() == bank.bank) {
            match bank.agreement(pcr, values) {
                Agreement::Proven => proven.push(format!("{}:{pcr}", bank.bank)),
                Agreement::Different => {
                    let met = replayed.iter().find(|other| other.agreement(pcr, values) == Agreement::Proven);
                    let met = met.map(|other| other.bank);
                    let departure = departure(log, bank.bank, pcr, value, met).map_err(Failure::lacking)?;
                    let words = event_log::words(&departure, log);
                    wrong.push(format!("it does not come to {} PCR {pcr}: {words}", bank.bank));
                }
                Agreement::Untouched | Agreement::ExtendedLater | Agreement::Unknown => {}
            }
        }
    }
    let (result, detail) = match (proven.as_slice(), wrong.as_slice()) {
        ([], []) => (CheckResult::Failed, "no PCR that it has events for was quoted".to_owned()),
        (proven, []) => (CheckResult::Passed, format!("it comes to {}", proven.join(", "))),
        (_, wrong) => (CheckResult::Failed, wrong.join("; ")),
    };
    Ok(Check { check: "event-log", result, detail: format!("{name}: {detail}") })
}

/// Whether each wanted value is the quoted one.
fn expected_check(wanted: &PcrValues, values: &PcrValues) -> Check {
    let mut wrong = Vec::new();
    for (pcr, value) in wanted.iter() {
        let bank = value.algorithm();
        match values.value(bank, pcr) {
            Some(found) if found == value => {}
            Some(found) => {
                wrong.push(format!("{bank} PCR {pcr} is {}, {} is wanted", found.to_hex(), value.to_hex()));
            }
            None => wrong.push(format!("{bank} PCR {pcr} was not quoted")),
        }
    }
    let (result, detail) = match (wrong.as_slice(), wanted.iter().count()) {
        (_, 0) => (CheckResult::Failed, "no value is wanted".to_owned()),
        ([], count) => (CheckResult::Passed, format!("all {count} are as wanted")),
        (wrong, _) => (CheckResult::Failed, wrong.join("; ")),
    };
    Check { check: "expected-values", result, detail }
}

impl Found {
    fn text(&self, name: &str) -> String {
        let mut text = format!("{name}\n");
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            // Writing into memory does not fail.
            let _ = writeln!(text, "{arguments}");
        };
        for Check { check, result, detail } in &self.checks {
            let result = match result {
                CheckResult::Passed => "passed",
                CheckResult::Failed => "FAILED",
                CheckResult::NotChecked => "not checked",
            };
            line(format_args!("  {result:<12} {check:<17} {detail}"));
        }
        for Blamed { bank, pcr, given, quoted } in &self.blamed {
            line(format_args!(
                "  {bank} PCR {pcr} is said to be {given}, but {quoted} was quoted, which the logs come to"
            ));
        }
        if let Some(quote) = &self.examination.quote {
            line(format_args!(
                "made by firmware {:016x} after {} resets and {} restarts{}",
                quote.firmware,
                quote.reset_count,
                quote.restart_count,
                if quote.safe { "" } else { "; its clock may have gone back" }
            ));
        }
        for (pcr, value) in self.examination.proven_values().into_iter().flat_map(PcrValues::iter) {
            line(format_args!("{}:{pcr} {}", value.algorithm(), value.to_hex()));
        }
        let count = |wanted| self.checks.iter().filter(|check| check.result == wanted).count();
        match (count(CheckResult::Failed), count(CheckResult::NotChecked)) {
            (0, 0) => line(format_args!("proven")),
            (0, open) => line(format_args!("verified, as far as it was checked; not checked: {open}")),
            (failed, _) => line(format_args!("REFUSED: {failed} checks failed")),
        }
        text
    }

    fn document(&self, name: &str) -> Value {
        let count = |wanted| self.checks.iter().filter(|check| check.result == wanted).count();
        let verdict = match (count(CheckResult::Failed), count(CheckResult::NotChecked)) {
            (0, 0) => "proven",
            (0, _) => "verified-in-part",
            (_, _) => "refused",
        };
        json!({
            "schema": SCHEMA,
            "quote": name,
            "verdict": verdict,
            "checks": self.checks,
            "blamed": self.blamed,
            "pcrs": self.examination.proven_values().map(pcrs::document),
            "attested": self.examination.quote.as_ref().map(|quote| json!({
                "selection": quote.selection.to_string(),
                "nonce": to_hex(&quote.nonce),
                "signer": to_hex(&quote.signer),
                "pcr_digest": to_hex(&quote.pcr_digest),
                "firmware": format!("{:016x}", quote.firmware),
                "clock_ms": quote.clock,
                "resets": quote.reset_count,
                "restarts": quote.restart_count,
                "safe": quote.safe,
            })),
            "measurement_list": self.list,
        })
    }
}
