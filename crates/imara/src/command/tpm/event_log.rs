//! `imara tpm event-log`.

use super::SCHEMA;
use super::pcrs::read as read_pcrs;
use super::target::Target;
use crate::command::CommandResult;
use crate::command::paths::{printable, read};
use crate::command::pcr_files;
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_engine::event_log::{Agreement, Departure, ReplayedBank, contradicts_its_data, departure};
use imara_format::event_log::{Event, EventLog};
use imara_format::hash::{HashAlgorithm, to_hex};
use imara_format::pcr::PcrValues;
use imara_linux::tpm_address::TpmAddress;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Show the firmware's event log, and whether it comes to the PCRs.
///
/// Without LOG this machine's, compared with its TPM; another log is compared with --pcrs, or with the TPM of --tpm. Where a PCR
/// has another value, the event is named where the log departs from it, if that can be found out. What the events are of is
/// proven by their digests alone.
///
/// Exit status: 0 every PCR with events has the value that they come to, or there is nothing to compare with, which the output
/// says; 1 one has not, or the log is malformed; 2 wrong command line; 3 there is no log, or no TPM.
#[derive(clap::Args)]
pub struct Arguments {
    /// The log, in the TCG's binary form; `-` is standard input
    #[arg(value_name = "LOG")]
    log: Option<PathBuf>,
    /// PCR values to compare with: lines `sha256:0 HEX`, the output of tpm2_pcrread, what tpm2_quote -o wrote, or a folder like
    /// /sys/class/tpm/tpm0
    #[arg(long, value_name = "PCRS")]
    pcrs: Option<PathBuf>,
    /// Compare with this TPM's PCRs; see `imara tpm status --help` for its forms. Without LOG: /dev/tpmrm0
    #[arg(long, value_name = "TPM", conflicts_with = "pcrs")]
    tpm: Option<TpmAddress>,
    /// Compare with nothing
    #[arg(long, conflicts_with_all = ["pcrs", "tpm"])]
    no_pcrs: bool,
    /// The bank of PCR values whose form names none
    #[arg(long, value_name = "ALGORITHM", default_value = "sha1", value_parser = pcr_files::algorithm)]
    bank: HashAlgorithm,
    /// Show each event's digests
    #[arg(long)]
    digests: bool,
    /// Print JSON, with the digests and data of each event
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Where Linux shows the firmware's log.
pub const KERNEL_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// How a PCR stands to the log.
struct Row {
    bank: HashAlgorithm,
    pcr: u32,
    events: usize,
    replayed: String,
    found: Option<String>,
    agreement: Agreement,
    departure: Option<Departure>,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    let (name, bytes) = log_bytes(arguments.log.as_deref())?;
    let (log, malformed) = EventLog::parse_beginning(&bytes);
    let claims = arguments.claims()?;
    let rows = rows(&log, &claims)?;
    let missing: Vec<(HashAlgorithm, usize)> = missing(&log)?;
    let changed = contradictions(&log)?;
    let unlogged = unlogged(&log, &claims);
    let differ: Vec<&Row> = rows.iter().filter(|row| row.agreement == Agreement::Different).collect();
    if arguments.json {
        print_json(&json!({
            "schema": SCHEMA,
            "log": name,
            "specification": log.specification.as_ref().map(|specification| {
                let (major, minor, errata) = specification.version;
                format!("{major}.{minor} errata {errata}")
            }),
            "banks": log.banks().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "events": log.events.iter().enumerate().map(|(place, event)| event_json(place, event)).collect::<Vec<_>>(),
            "pcrs": rows.iter().map(Row::document).collect::<Vec<_>>(),
            "compared": !claims.is_empty(),
            "events_whose_data_differ": changed,
            "banks_without_log": unlogged.iter().map(|(bank, extended)| json!({
                "bank": bank.to_string(),
                "extended": extended,
            })).collect::<Vec<_>>(),
            "error": malformed.as_ref().map(ToString::to_string),
        }));
    } else if !arguments.quiet {
        print(text(&name, &log, &rows, &claims, arguments.digests));
        for (bank, count) in &missing {
            print(format_args!(
                "{bank}: {count} events have no digest for this bank, so it cannot be proven by this log\n"
            ));
        }
        for (bank, extended) in &unlogged {
            print(format_args!(
                "{bank}: the log has no digests for this bank{}\n",
                match extended {
                    true => ", which was extended all the same: it cannot be proven",
                    false =>
                        ", which the firmware has not extended: whoever runs now can extend it with anything, so do not rely on it",
                }
            ));
        }
        for event in &changed {
            print(format_args!(
                "event {event}: its data are not what its digest is of: what it says of itself is not what was measured\n"
            ));
        }
    }
    for row in &differ {
        let departure = row.departure.as_ref().map(|departure| words(departure, &log)).unwrap_or_default();
        complain(
            &Failure::failed(format!(
                "{name}: {} PCR {} is {}, but the log comes to {}: {departure}",
                row.bank,
                row.pcr,
                row.found.as_deref().unwrap_or_default(),
                row.replayed
            ))
            .next(""),
        );
    }
    if let Some(error) = &malformed {
        return Err(Failure::failed(format!("{name}: {error}")).next(match log.events.is_empty() {
            true => "this may be no event log, or its beginning is missing",
            false => "the log is cut off or damaged from there on; what was shown are the events before it",
        }));
    }
    Ok(if differ.is_empty() { Outcome::Done } else { Outcome::Failed })
}

/// A log's bytes, and where they are from.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn log_bytes(path: Option<&Path>) -> Result<(String, Vec<u8>), Failure> {
    let log = path.unwrap_or(Path::new(KERNEL_LOG));
    match read(log) {
        Ok(bytes) if bytes.is_empty() => {
            let name = if log.as_os_str() == "-" { "standard input".to_owned() } else { printable(log) };
            Err(Failure::failed(format!("{name}: is empty, and no event log: each has at least the event that says how it is written"))
                .next("copy it again: cp /sys/kernel/security/tpm0/binary_bios_measurements LOG; it is read in one go, and its size is told as 0"))
        }
        Ok(bytes) => Ok((if log.as_os_str() == "-" { "standard input".to_owned() } else { printable(log) }, bytes)),
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => Err(Failure::lacking(format!(
            "{KERNEL_LOG} does not exist: the machine has no TPM, its firmware left no log, or securityfs is not mounted"
        ))
        .next("name a log, or mount -t securityfs none /sys/kernel/security")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Failure::failed(format!("{}: {error}", printable(log))).next("run this as root"))
        }
        Err(error) => Err(Failure::failed(format!("{}: {error}", printable(log)))),
    }
}

impl Arguments {
    /// The values to compare with.
    fn claims(&self) -> Result<PcrValues, Failure> {
        if self.no_pcrs {
            return Ok(PcrValues::new());
        }
        if let Some(path) = &self.pcrs {
            return pcr_files::read(path, self.bank);
        }
        let tpm = match (&self.tpm, &self.log) {
            (Some(tpm), _) => tpm.clone(),
            (None, None) => Target::DEFAULT.parse().expect("the default is a TPM's address"),
            (None, Some(_)) => return Ok(PcrValues::new()),
        };
        Target { tpm }.with(|tpm| {
            let selection = super::pcrs::everything(tpm)?;
            Ok(read_pcrs(tpm, &selection)?)
        })
    }
}

/// Every PCR of every bank that the log has events for, or that was extended though it has none.
fn rows(log: &EventLog, claims: &PcrValues) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let replayed: Result<Vec<_>, _> = log.banks().into_iter().map(|bank| ReplayedBank::new(log, bank)).collect();
    let replayed = replayed.map_err(Failure::lacking)?;
    for bank in &replayed {
        for (pcr, (value, events)) in (0..).zip(bank.values.iter().zip(&bank.events)) {
            let agreement = bank.agreement(pcr, claims);
            if *events == 0 && !matches!(agreement, Agreement::ExtendedLater) {
                continue;
            }
            let found = claims.value(bank.bank, pcr);
            let departure = match (agreement, found) {
                (Agreement::Different, Some(found)) => {
                    let met = replayed.iter().find(|other| other.agreement(pcr, claims) == Agreement::Proven);
                    let met = met.map(|other| other.bank);
                    Some(departure(log, bank.bank, pcr, found, met).map_err(Failure::lacking)?)
                }
                _ => None,
            };
            rows.push(Row {
                bank: bank.bank,
                pcr,
                events: *events,
                replayed: value.to_hex(),
                found: found.map(|found| found.to_hex()),
                agreement,
                departure,
            });
        }
    }
    Ok(rows)
}

/// Banks that some events have no digest for.
fn missing(log: &EventLog) -> Result<Vec<(HashAlgorithm, usize)>, Failure> {
    let mut missing = Vec::new();
    for bank in log.banks() {
        let count = ReplayedBank::new(log, bank).map_err(Failure::lacking)?.missing.len();
        if count > 0 {
            missing.push((bank, count));
        }
    }
    Ok(missing)
}

/// Banks with PCRs that the log knows nothing of, and whether one of the firmware's was extended.
fn unlogged(log: &EventLog, claims: &PcrValues) -> Vec<(HashAlgorithm, bool)> {
    /// The firmware's PCRs.
    const FIRMWARES: std::ops::Range<u32> = 0..8;
    let known = log.banks();
    let banks = claims.banks().into_iter().filter(|bank| !log.events.is_empty() && !known.contains(bank));
    let extended = |bank| FIRMWARES.filter_map(|pcr| claims.value(bank, pcr)).any(|value| !value.is_zero());
    banks.map(|bank| (bank, extended(bank))).collect()
}

/// Events, counted from 1, whose data are not what their digests are of.
fn contradictions(log: &EventLog) -> Result<Vec<usize>, Failure> {
    let mut changed = Vec::new();
    for (place, event) in log.events.iter().enumerate() {
        let mut all = !log.banks().is_empty();
        for bank in log.banks() {
            all &= contradicts_its_data(event, bank).map_err(Failure::lacking)?;
        }
        // A digest of one bank alone that was changed shows in that bank's PCR.
        if all {
            changed.push(place + 1);
        }
    }
    Ok(changed)
}

fn text(name: &str, log: &EventLog, rows: &[Row], claims: &PcrValues, digests: bool) -> String {
    let mut text = String::new();
    let banks: Vec<_> = log.banks().iter().map(ToString::to_string).collect();
    // Writing into memory does not fail.
    let _ = writeln!(text, "{name}: {} events, banks {}", log.events.len(), banks.join(", "));
    for (place, event) in log.events.iter().enumerate() {
        let pcr = if event.is_measured() { event.pcr.to_string() } else { "-".to_owned() };
        let _ =
            writeln!(text, "{:>4}  PCR {pcr:<2}  {:<32}  {}", place + 1, event.kind.to_string(), event.description());
        if digests {
            for (id, digest) in &event.digests {
                let bank =
                    HashAlgorithm::from_tpm_id(*id).map_or_else(|| format!("{id:#06x}"), |bank| bank.to_string());
                let _ = writeln!(text, "              {bank} {}", to_hex(digest));
            }
        }
    }
    for row in rows {
        let Row { bank, pcr, events, replayed, .. } = row;
        let verdict = match row.agreement {
            Agreement::Proven => "proven".to_owned(),
            Agreement::Untouched => "untouched".to_owned(),
            Agreement::ExtendedLater => "not the firmware's: extended after it".to_owned(),
            Agreement::Different => "DIFFERS".to_owned(),
            Agreement::Unknown => format!("comes to {replayed}"),
        };
        let _ = writeln!(text, "{bank} PCR {pcr}, events {events}: {verdict}");
    }
    if claims.is_empty() {
        text.push_str("NOT proven: there were no PCR values to compare with\n");
    }
    text
}

impl Row {
    fn document(&self) -> Value {
        let agreement = match self.agreement {
            Agreement::Proven => "proven",
            Agreement::Untouched => "untouched",
            Agreement::ExtendedLater => "extended-later",
            Agreement::Different => "different",
            Agreement::Unknown => "unknown",
        };
        json!({
            "bank": self.bank.to_string(),
            "pcr": self.pcr,
            "events": self.events,
            "replayed": self.replayed,
            "found": self.found,
            "agreement": agreement,
            "departure": self.departure.as_ref().map(departure_json),
        })
    }
}

fn departure_json(departure: &Departure) -> Value {
    match departure {
        Departure::Later { last, first_later } => json!({ "is": "later", "last": last, "first_later": first_later }),
        Departure::Added { event } => json!({ "is": "added", "event": event }),
        Departure::Order { first, second } => json!({ "is": "order", "first": first, "second": second }),
        Departure::Digest { event, measured } => {
            json!({ "is": "digest", "event": event, "measured": measured.to_hex() })
        }
        Departure::OneBank { met, suspects } => {
            json!({ "is": "one-bank", "met": met.to_string(), "suspects": suspects })
        }
        Departure::Unknown { suspects } => json!({ "is": "unknown", "suspects": suspects }),
    }
}

/// How the log departs from a PCR, in words.
pub fn words(departure: &Departure, log: &EventLog) -> String {
    let named = |event: usize| {
        let description = log.events.get(event.saturating_sub(1)).map(Event::description).unwrap_or_default();
        format!("event {event} ({description})")
    };
    let suspected = |suspects: &[usize]| match suspects {
        [] => String::new(),
        suspects => {
            let names: Vec<_> = suspects.iter().map(|event| named(*event)).collect();
            format!("; the digest is not that of the event's data in {}", names.join(", "))
        }
    };
    match departure {
        Departure::Later { last: 0, first_later } => format!(
            "the PCR has none of its events, the first of which is {}: they were added, or the values are older",
            named(*first_later)
        ),
        Departure::Later { last, first_later } => format!(
            "the PCR has the value after {}; from {} on the log has what was added, or came after the values were read",
            named(*last),
            named(*first_later)
        ),
        Departure::Added { event } => format!("without {} the log comes to the PCR: it was added", named(*event)),
        Departure::Order { first, second } => {
            format!("{} and {} were extended the other way round", named(*first), named(*second))
        }
        Departure::Digest { event, measured } => {
            format!("the digest of {} was changed; what was measured is {}", named(*event), measured.to_hex())
        }
        Departure::OneBank { met, suspects } => format!(
            "bank {met} is proven, so the events are all there, and digests of this bank alone were changed{}",
            suspected(suspects)
        ),
        Departure::Unknown { suspects } => format!(
            "events were changed or taken out, the log is of another boot, or somebody else has extended the PCR{}",
            suspected(suspects)
        ),
    }
}

fn event_json(place: usize, event: &Event) -> Value {
    let digests = event.digests.iter().map(|(id, digest)| {
        let bank = HashAlgorithm::from_tpm_id(*id).map_or_else(|| format!("{id:#06x}"), |bank| bank.to_string());
        (bank, json!(to_hex(digest)))
    });
    json!({
        "event": place + 1,
        "offset": event.offset,
        "pcr": event.pcr,
        "type": event.kind.to_string(),
        "measured": event.is_measured(),
        "description": event.description(),
        "digests": Value::Object(digests.collect()),
        "data": to_hex(&event.data),
    })
}
