//! `imara measurement verify`.
//!
//! PCR values are read before the list, so that they can be older than the list but never newer: what the list has gained
//! in between is said to be unproven.

use super::{List, Source};
use crate::command::CommandResult;
use crate::command::certificates::read_keyring;
use crate::command::paths::read;
use crate::command::pcr_files;
use crate::command::tpm::{Nonce, QuoteFiles, nonce};
use crate::guard::control::{Request, ask};
use crate::output::{Failure, Outcome, complain, print, print_json};
use clap::Args;
use imara_attest::contents::{Contents, ContentsReport, Referenced, Signatures};
use imara_attest::event_log::EventLogReport;
use imara_attest::proof::{BootAggregate, MatchKind, Prover, Report, Verdict};
use imara_engine::crypto::UnsupportedHash;
use imara_engine::keyring::Keyring;
use imara_format::event_log::EventLog;
use imara_format::hash::HashAlgorithm;
use imara_format::measurement_list::ListForm;
use imara_format::pcr::PcrValues;
use imara_format::reference::References;
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The PCR that kernels measure into unless built otherwise.
const IMA_PCR: u32 = 10;
/// The kernel's view of the TPM.
const KERNEL_TPM: &str = "/sys/class/tpm/tpm0";

/// Verify a list: that each entry holds together, and that all of them come to the PCR values.
///
/// Exit status: 0 proven (without PCR values: consistent, which the output says), 1 not, 2 wrong command line, 3 PCR
/// values could not be had.
#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    list: List,
    /// PCR values: lines `sha256:10 HEX`, the output of tpm2_pcrread, lines `PCR-10: HEX` (see --bank), or a folder like
    /// /sys/class/tpm/tpm0. Without: those of this machine for its own list, none for any other.
    #[arg(long, value_name = "PCRS")]
    pcrs: Vec<PathBuf>,
    /// PCR values that a TPM has signed: a folder that `imara tpm quote` wrote. The quote is verified first.
    #[arg(long, value_name = "DIR", conflicts_with = "pcrs")]
    quote: Option<PathBuf>,
    /// The key that is known to be the TPM's, in any form that `imara tpm verify-quote --key` takes. Without, the one that came
    /// with the quote.
    #[arg(long, value_name = "FILE", requires = "quote")]
    quote_key: Option<PathBuf>,
    /// The nonce that the quote was asked with, in hexadecimal.
    #[arg(long, value_name = "HEX", value_parser = nonce, requires = "quote")]
    nonce: Option<Nonce>,
    /// The bank of values whose form names none.
    #[arg(long, value_name = "ALGORITHM", default_value = "sha1", value_parser = pcr_files::algorithm)]
    bank: HashAlgorithm,
    /// The firmware's event log, as the kernel shows it: it is compared with the PCR values, and where these lack PCRs 0 to 9
    /// boot_aggregate is checked against it.
    #[arg(long, value_name = "F")]
    event_log: Option<PathBuf>,
    /// A certificate or public key: each entry's signature must be by one of these. May be given several times; entries
    /// without a signature are counted.
    #[arg(long, value_name = "CERT")]
    key: Vec<PathBuf>,
    /// Contents that files are meant to have, lines `HEX  PATH` as sha256sum writes them (`ALGORITHM:HEX  PATH` names the
    /// hash): each entry must be one of them. May be given several times.
    #[arg(long, value_name = "F")]
    reference: Vec<PathBuf>,
    /// Accept a list that goes on after the entries that the PCR values prove: it has grown since they were read. The
    /// running provider's own list, which grows all the time, is always accepted so.
    #[arg(long)]
    prefix: bool,
    /// Print a report as JSON.
    #[arg(long)]
    json: bool,
    /// Print errors only.
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
}

/// How many entries the running guard could not give to the TPM, and why it cannot do so later, where that is so.
fn not_in_tpm(arguments: &Verify) -> (u64, Option<String>) {
    // A guard that has ended meanwhile has said what it had to.
    let status = ask(&arguments.list.runtime_dir, &Request::Status).unwrap_or_default();
    let list = &status["list"];
    (list["not_in_tpm"].as_u64().unwrap_or(0), list["departure"].as_str().map(str::to_owned))
}

/// Verifies a list.
pub fn verify(arguments: &Verify) -> CommandResult {
    let source = Source::find(&arguments.list)?;
    // Before the list, so that the list cannot be the older one.
    let claims = claimed(arguments, &source)?;
    let against = Against::read(arguments, claims)?;
    let claims = &against.claims;
    let (report, is_ascii) = prove_twice(&source, &against)?;
    let unmeant = report.contents.as_ref().map_or(0, ContentsReport::failed);
    let grown = !(arguments.prefix || source.is_live()) && report.verdict == Verdict::BeginningProven;
    // An entry that the TPM did not take is no entry that came meanwhile.
    let (missing, departure) = match (&source, report.verdict == Verdict::BeginningProven) {
        (Source::Guard(_), true) => not_in_tpm(arguments),
        _ => (0, None),
    };
    let outcome = match report.verdict {
        _ if missing > 0 => Outcome::Failed,
        _ if unmeant > 0 => Outcome::Failed,
        Verdict::Proven | Verdict::OnlyConsistent => Outcome::Done,
        Verdict::BeginningProven if grown => Outcome::Failed,
        Verdict::BeginningProven => Outcome::Done,
        Verdict::Refused => Outcome::Failed,
    };
    if arguments.json {
        let mut value = serde_json::to_value(&report).map_err(Failure::failed)?;
        value["list"] = json!(source.name());
        print_json(&value);
        return Ok(outcome);
    }
    if !arguments.quiet {
        print(describe(&report, &source, claims));
    }
    match (&report.bad_entry, &report.reason) {
        (Some(bad), _) => {
            let path = bad.path.as_ref().map(|path| format!(" ({path})")).unwrap_or_default();
            Err(Failure::failed(format_args!(
                "{}: entry {}{path}, at offset {}: {}",
                source.name(),
                bad.entry,
                bad.offset,
                bad.why
            ))
            .next(match (report.entries, is_ascii) {
                (0, _) => "this may be no measurement list, or its beginning is missing",
                (_, true) => "the list was changed, or the file's name holds a newline: verify the binary list",
                (_, false) => "the list was changed or cut from this entry on: get it from the machine anew",
            }))
        }
        (None, Some(reason)) => Err(Failure::failed(format_args!("{}: not proven: {reason}", source.name()))
            .next("the list was changed, or the PCR values are of another boot or machine")),
        (None, None) if grown => Err(Failure::failed(format_args!(
            "{}: the PCR values prove only the first {} of {} entries",
            source.name(),
            report.proven,
            report.entries
        ))
        .next("entries were added since the PCR values were read, or forged: read the values anew, or accept the rest as unproven with --prefix")),
        (None, None) if missing > 0 => Err(Failure::failed(format_args!(
            "{}: the TPM did not take {missing} of the {} entries, and proves the first {}",
            source.name(),
            report.entries,
            report.proven
        ))
        .next(match departure {
            Some(why) => format!("{why}; a list can be proven again from the next boot on"),
            None => "the guard gives it what it lacks as soon as it answers again: see that it does, and verify then".into(),
        })),
        (None, None) if unmeant > 0 => {
            for finding in report.contents.iter().flat_map(|contents| &contents.findings) {
                complain(&Failure::failed(format_args!("entry {} ({}): {}", finding.entry, finding.path, finding.why)));
            }
            Err(Failure::failed(format_args!(
                "{}: {} did not pass by the keys and references given",
                source.name(),
                match unmeant {
                    1 => "1 entry".to_owned(),
                    _ => format!("{unmeant} entries"),
                }
            ))
            .next("what ran is proven, but not that it was meant: look into each, or add the key or the reference that is missing"))
        }
        (None, None) => Ok(outcome),
    }
}

/// What a list is held against.
struct Against {
    claims: PcrValues,
    event_log: Option<EventLog>,
    keyring: Option<Arc<Keyring>>,
    references: Option<Arc<References>>,
}

impl Against {
    fn read(arguments: &Verify, claims: PcrValues) -> Result<Self, Failure> {
        let bytes = |path: &Path| read(path).map_err(|error| pcr_files::unreadable(path, &error));
        let event_log = match &arguments.event_log {
            Some(path) => Some(EventLog::parse(&bytes(path)?).map_err(|error| {
                Failure::failed(format_args!("{}: {error}", path.display())).next(
                    "--event-log takes the firmware's log, as /sys/kernel/security/tpm0/binary_bios_measurements has it",
                )
            })?),
            None => None,
        };
        let keyring = (!arguments.key.is_empty()).then(|| read_keyring(&arguments.key, "")).transpose()?.map(Arc::new);
        let mut references = None;
        for path in &arguments.reference {
            let references = references.get_or_insert_with(References::default);
            references
                .add(&bytes(path)?)
                .map_err(|error| Failure::failed(format_args!("{}, {error}", path.display())))?;
        }
        Ok(Self { claims, event_log, keyring, references: references.map(Arc::new) })
    }

    /// A prover that does so.
    fn prover(&self) -> Result<Prover, UnsupportedHash> {
        let mut prover = Prover::new(self.claims.clone())?;
        if let Some(log) = &self.event_log {
            let (values, report) = EventLogReport::new(log, &self.claims)?;
            prover = prover.with_event_log(values, report);
        }
        if self.keyring.is_some() || self.references.is_some() {
            prover = prover.with_contents(Contents::new(self.keyring.clone(), self.references.clone()));
        }
        Ok(prover)
    }
}

/// Proves a list in a file by PCR values; without any, replays it.
///
/// # Errors
/// It cannot be read, or a hash cannot be computed.
pub fn prove_file(list: &Path, claims: &PcrValues) -> Result<Report, Failure> {
    let against = Against { claims: claims.clone(), event_log: None, keyring: None, references: None };
    Ok(prove_twice(&Source::named(list.to_owned()), &against)?.0)
}

/// Why a list is not proven, in words.
pub fn why_not_proven(report: &Report) -> String {
    match (&report.bad_entry, &report.reason) {
        (Some(bad), _) => format!("entry {}, at offset {}: {}", bad.entry, bad.offset, bad.why),
        (None, Some(reason)) => format!("not proven: {reason}"),
        (None, None) => "not proven: there are no PCR values for it".to_owned(),
    }
}

/// Proves a list in the faster way, and again with the rarer ways to extend a PCR where these could make a difference.
fn prove_twice(source: &Source, against: &Against) -> Result<(Report, bool), Failure> {
    let (report, is_ascii) = prove(source, against, source.can_be_read_again())?;
    match source.can_be_read_again() && report.may_be_padded() {
        true => prove(source, against, false),
        false => Ok((report, is_ascii)),
    }
}

/// Reads and proves a list; with `per_bank_only` faster, but without the rarer ways to extend a PCR. Says also whether the
/// list is ascii.
fn prove(source: &Source, against: &Against, per_bank_only: bool) -> Result<(Report, bool), Failure> {
    let mut prover = against.prover().map_err(Failure::lacking)?;
    if against.claims.is_empty() {
        // The values are worth telling even though nothing is there to compare them with.
        prover = prover.with_banks(&[HashAlgorithm::Sha1, HashAlgorithm::Sha256]).map_err(Failure::lacking)?;
    }
    if per_bank_only {
        prover = prover.per_bank_only();
    }
    let mut pieces = source.open()?;
    while let Some(piece) = pieces.next()? {
        if !prover.feed(piece) {
            break;
        }
    }
    let is_ascii = matches!(prover.form(), Some(ListForm::Ascii { .. }));
    Ok((prover.finish().0, is_ascii))
}

/// What was and what was not proven, for people.
fn describe(report: &Report, source: &Source, claims: &PcrValues) -> String {
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // Writing into memory does not fail.
        let _ = writeln!(text, "{arguments}");
    };
    let Report { entries, violations, proven, .. } = report;
    line(format_args!("{}: entries {entries}, of them violations {violations}", source.name()));
    for pcr in &report.pcrs {
        let verdict = match (&pcr.claimed, &pcr.matched) {
            (None, _) => format!("{} (no value given)", pcr.replayed),
            (Some(claimed), None) => format!("differs: given {claimed}, replayed {}", pcr.replayed),
            (Some(_), Some(matched)) => {
                let by = match matched.by {
                    MatchKind::PerBank => "",
                    MatchKind::Sha1Padded => ", with SHA-1 template digests padded with zeros",
                    MatchKind::Sha1PaddedViolations => ", with SHA-1 template digests and violations padded with zeros",
                };
                let until = match matched.up_to_entry {
                    up_to if up_to == *entries => String::new(),
                    up_to => format!(" after entry {up_to}"),
                };
                format!("matches{until}{by}")
            }
        };
        line(format_args!("{} PCR {}, entries {}: {verdict}", pcr.bank, pcr.pcr, pcr.entries));
    }
    match &report.boot_aggregate {
        BootAggregate::Absent if *entries == 0 => {}
        BootAggregate::Absent => line(format_args!("boot_aggregate: the list does not begin with one")),
        BootAggregate::NoTpm => line(format_args!("boot_aggregate: zero, so the kernel had no TPM to sum up")),
        BootAggregate::Unchecked if claims.is_empty() => {}
        BootAggregate::Unchecked => {
            line(format_args!(
                "boot_aggregate: not checked, for that PCRs 0 to 9 (0 to 7 in sha1) are needed, and not all zero"
            ));
        }
        BootAggregate::Matched => line(format_args!("boot_aggregate: sums up the PCR values given")),
        BootAggregate::MatchedByEventLog => {
            line(format_args!(
                "boot_aggregate: sums up the PCRs that the event log comes to; their values were not all given"
            ));
        }
        BootAggregate::Mismatched { listed, computed } => {
            line(format_args!("boot_aggregate: listed as {listed}, but the PCR values give {computed}"));
        }
    }
    if let Some(log) = &report.event_log {
        let (events, agreeing, compared) =
            (log.events, log.agreeing(), log.pcrs.iter().filter(|pcr| pcr.agrees.is_some()));
        match compared.count() {
            0 => line(format_args!("event log: events {events}; no value of its PCRs was given to compare with")),
            count => line(format_args!("event log: events {events}; {agreeing} of {count} PCR values given agree")),
        }
    }
    if let Some(contents) = &report.contents {
        let without = contents.without_content;
        if let Some(Signatures { verified, unsigned, portable, failed }) = contents.signatures {
            line(format_args!(
                "signatures: verified {verified}, failed {failed}; unsigned {unsigned}, over metadata too {portable}, without a \
                 content {without}"
            ));
        }
        if let Some(Referenced { known, changed, unlisted }) = contents.references {
            line(format_args!(
                "references: as meant {known}, another content {changed}, not named {unlisted}; without a content {without}"
            ));
        }
    }
    match report.verdict {
        Verdict::Proven => line(format_args!("proven: all {entries} entries")),
        Verdict::BeginningProven => line(format_args!(
            "proven: entries 1 to {proven}; NOT proven: the {} after them, which came after the PCR values",
            entries - proven
        )),
        Verdict::OnlyConsistent => line(format_args!(
            "NOT proven: no PCR values were given. Each entry's template digest fits its fields, which a forger can do \
             as well"
        )),
        Verdict::Refused => {}
    }
    if matches!(report.verdict, Verdict::Proven | Verdict::BeginningProven) {
        let also = match violations {
            0 => String::new(),
            1 => ", nor which file the violation concerns".to_owned(),
            _ => format!(", nor which files the {violations} violations concern"),
        };
        line(format_args!("no PCR proves the names of templates{also}"));
    }
    if claims.iter().any(|(pcr, value)| pcr == IMA_PCR && !value.is_zero())
        && report.pcrs.iter().all(|pcr| pcr.pcr != IMA_PCR)
    {
        line(format_args!(
            "PCR {IMA_PCR} has a value, but the list has no entry for it: this list is not all there is"
        ));
    }
    text
}

/// The PCR values to prove the list with.
fn claimed(arguments: &Verify, source: &Source) -> Result<PcrValues, Failure> {
    if let Some(folder) = &arguments.quote {
        let files = QuoteFiles::of_folder(folder.clone(), arguments.quote_key.clone(), arguments.nonce.clone());
        return files.read()?.certain_values();
    }
    if arguments.pcrs.is_empty() {
        return match source {
            Source::StandardInput | Source::File(_) => Ok(PcrValues::new()),
            Source::Guard(_) => guard_pcrs(&arguments.list.runtime_dir),
            Source::Kernel(path) => {
                let values = pcr_files::read_folder(Path::new(KERNEL_TPM))?;
                if values.is_empty() {
                    return Err(Failure::lacking(format_args!(
                        "{KERNEL_TPM} has no PCR values to prove the list with"
                    ))
                    .next(format_args!(
                        "`imara measurement verify - < {}` checks the entries without a TPM",
                        path.display()
                    )));
                }
                Ok(values)
            }
        };
    }
    let mut values = PcrValues::new();
    for path in &arguments.pcrs {
        if path.as_os_str() == "-" && matches!(source, Source::StandardInput) {
            return Err(Failure::usage("the list and the PCR values cannot both come from standard input"));
        }
        for (pcr, value) in pcr_files::read(path, arguments.bank)?.iter() {
            values.insert(pcr, value).map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
        }
    }
    if values.is_empty() {
        return Err(Failure::failed("--pcrs: there is no PCR value in what was given"));
    }
    Ok(values)
}

/// The values of the PCRs that the running guard extends.
fn guard_pcrs(runtime_dir: &Path) -> Result<PcrValues, Failure> {
    let answer = ask(runtime_dir, &Request::Pcrs)?;
    let text = answer.as_str().ok_or_else(|| Failure::failed("the guard's answer holds no PCR values"))?;
    PcrValues::from_text(text, HashAlgorithm::Sha1)
        .map_err(|error| Failure::failed(format_args!("the guard's PCR values: {error}")))
}
