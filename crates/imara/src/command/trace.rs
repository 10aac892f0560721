//! `imara trace`: what a running guard decides, access by access, in a file that `imara policy test` tries policies on.

use super::paths::printable;
use super::{CommandResult, RuntimeDirectory, duration};
use crate::guard::control::{Request, ask};
use crate::guard::tracing::Wanted;
use crate::output::{Failure, Outcome, complain, print, print_json, utc};
use clap::{Args, Subcommand};
use imara_format::hash::to_hex;
use imara_format::policy::{Class, Mask, Policy, Target, Uuid};
use imara_format::trace::{Event, Header, LabelFacts, TraceReader};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Take traces of what the running guard decides, and show them.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Start(Start),
    Stop(Stop),
    Show(Show),
}

/// Have the running guard write down every decision from now on.
///
/// While a trace is taken the guard is asked about every open and every execution on the watched file systems, also where
/// the policy has no rule for it, so that another policy can be tried on the trace (`imara policy test --trace`). That costs
/// time. Returns at once.
#[derive(Args)]
struct Start {
    /// The file; it must not be there yet.
    file: PathBuf,
    /// For how long (90s, 10m, 1h, 7d); without it, until it is stopped.
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
    duration: Option<Duration>,
    /// The most bytes (64M, 1G); the trace ends there.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
    max_size: u64,
    /// Replace the file if it is there.
    #[arg(long)]
    force: bool,
    /// Only say what would be done, and whether it could be.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// End the trace that the running guard is taking.
#[derive(Args)]
struct Stop {
    /// Only say which trace would end.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// Show a trace: a line for each hook that was asked, then a summary.
///
/// Ends with 1 when the trace is cut off or damaged; what is before that is shown.
#[derive(Args)]
struct Show {
    /// The trace; `-` is standard input.
    file: PathBuf,
    /// Show at most so many events; the summary counts all.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print JSON: an object a line, the header first, the summary last.
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// There is no guard, it cannot, or the file is no trace.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Command::Start(start) => start.run(),
        Command::Stop(stop) => stop.run(),
        Command::Show(show) => show.run(),
    }
}

impl Start {
    fn run(self) -> CommandResult {
        // The guard has a working directory of its own.
        let path = std::path::absolute(&self.file)
            .map_err(|error| Failure::failed(format_args!("{}: {error}", self.file.display())))?;
        let seconds = self.duration.map(|duration| duration.as_secs());
        let wanted = Wanted { path, seconds, most: self.max_size, force: self.force, dry_run: self.dry_run };
        let trace = ask(&self.runtime.runtime_dir, &Request::Trace(wanted))?;
        if self.json {
            print_json(&trace);
        } else {
            print(format_args!("{}\n", for_people(&trace)));
        }
        Ok(Outcome::Done)
    }
}

impl Stop {
    fn run(self) -> CommandResult {
        let trace = if self.dry_run {
            would_end(ask(&self.runtime.runtime_dir, &Request::Status)?)?
        } else {
            ask(&self.runtime.runtime_dir, &Request::StopTrace)?
        };
        if self.json {
            print_json(&trace);
        } else {
            print(format_args!("{}\n", for_people(&trace)));
        }
        Ok(Outcome::Done)
    }
}

/// The trace that the guard is taking, by its status.
fn would_end(mut status: Value) -> Result<Value, Failure> {
    let mut trace = status["trace"].take();
    if trace["active"] != true {
        return Err(Failure::failed("no trace is being taken").next("imara trace start FILE"));
    }
    trace["schema"] = json!(1);
    Ok(trace)
}

/// One line about a trace that a guard is taking, has taken, or would take.
pub fn for_people(trace: &Value) -> String {
    let path = printable(Path::new(trace["path"].as_str().unwrap_or_default()));
    let (would_begin, active) = (trace["begun"] == false, trace["active"] == true);
    let mut text = match (would_begin, active) {
        (true, _) => format!("would trace to {path} until "),
        (false, true) => format!("tracing to {path}, {} events, until ", trace["events"]),
        (false, false) => format!("traced to {path}, {} events, ", trace["events"]),
    };
    let why = trace["ended"].as_str().unwrap_or_default();
    text += &match (would_begin || active, trace["until"].as_u64()) {
        (true, Some(until)) => utc(until),
        (true, None) => "it is stopped".to_owned(),
        (false, _) => format!("ended: {why}"),
    };
    if trace["lost"].as_u64().is_some_and(|lost| lost > 0) {
        // Writing to a String cannot fail.
        let _ = write!(text, "; {} events lost", trace["lost"]);
    }
    text
}

/// Bytes, as people write them.
fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no size: a number, and K, M or G for its unit, is (64M)");
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 10),
        Some(digits) if text.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.filter(|number| *number > 0).ok_or_else(bad)
}

/// How much is gathered before it is printed, in bytes.
const PRINTED: usize = 64 << 10;

impl Show {
    fn run(self) -> CommandResult {
        let shown = self.file.display();
        let input: Box<dyn Read> = match self.file == Path::new("-") {
            true => Box::new(std::io::stdin().lock()),
            false => {
                Box::new(File::open(&self.file).map_err(|error| Failure::failed(format_args!("{shown}: {error}")))?)
            }
        };
        let (header, mut reader) =
            TraceReader::new(input).map_err(|error| Failure::failed(format_args!("{shown}: {error}")))?;
        let lines = rule_lines(&header.policy);
        let mut out = match self.json {
            true => json_line(header_json(&header)),
            false => header_for_people(&header),
        };
        let mut summary = Summary::default();
        let mut failure = None;
        for event in reader.by_ref() {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    failure = Some(error.to_string());
                    break;
                }
            };
            if self.limit.is_none_or(|limit| summary.events < limit) {
                out +=
                    &if self.json { json_line(event_json(&event, &lines)) } else { event_for_people(&event, &lines) };
            }
            summary.add(&event);
            if out.len() > PRINTED {
                print(std::mem::take(&mut out));
            }
        }
        summary.lost = reader.lost();
        summary.ended = reader.ended().map(str::to_owned);
        summary.failure = failure;
        out += &if self.json { json_line(summary.to_json()) } else { summary.for_people() };
        print(out);
        match summary.failure {
            None => Ok(Outcome::Done),
            Some(error) => {
                complain(&Failure::failed(format_args!("{shown}: {error}")));
                Ok(Outcome::Failed)
            }
        }
    }
}

/// The line of each rule in the policy's text.
fn rule_lines(policy: &str) -> Vec<usize> {
    let rules = Policy::parse(policy.as_bytes(), &Target::guard()).map(|policy| policy.rules).unwrap_or_default();
    rules.iter().map(|rule| rule.line).collect()
}

fn json_line(value: Value) -> String {
    format!("{value}\n")
}

fn header_for_people(header: &Header) -> String {
    let rules = header.policy.lines().filter(|line| !line.is_empty()).count();
    format!(
        "began     {}, boot {}\nguard     mode {}, template {}, {}, PCR {} in {} banks\npolicy    {rules} rules\n\n\
         {:>13}  {:<7}  {:<18}  {:<18}  {:<22}  {:>10}  {:<15}  path\n",
        utc(header.started),
        printable(Path::new(&header.boot_id)),
        printable(Path::new(&header.mode)),
        printable(Path::new(&header.template)),
        header.hash,
        header.pcr,
        header.banks,
        "seconds",
        "verdict",
        "func",
        "mask",
        "rules (lines)",
        "uid",
        "command",
    )
}

fn header_json(header: &Header) -> Value {
    json!({
        "schema": 1,
        "type": "header",
        "started": header.started,
        "boot_id": header.boot_id,
        "hash": header.hash.name(),
        "pcr": header.pcr,
        "template": header.template,
        "mode": header.mode,
        "policy": header.policy,
        "banks": header.banks,
    })
}

/// The rules that decided, by the class of what they have done.
fn rules(event: &Event) -> [(Class, Option<u32>); 4] {
    [
        (Class::Measure, event.measured),
        (Class::Appraise, event.appraised),
        (Class::Audit, event.audited),
        (Class::Hash, event.hashed),
    ]
}

fn verdict(event: &Event) -> &'static str {
    match (&event.cause, event.denied) {
        (_, true) => "refused",
        (Some(_), false) => "failed",
        (None, false) if rules(event).iter().any(|(_, rule)| rule.is_some()) => "passed",
        (None, false) => "no rule",
    }
}

/// `MAY_READ` and so on; several are joined as in C.
fn mask_names(mask: u8) -> String {
    let names: Vec<&str> =
        Mask::ALL.iter().filter(|known| mask & known.bits() != 0).map(|known| known.name()).collect();
    if names.is_empty() { format!("{mask:#x}") } else { names.join("|") }
}

/// The line of a rule; its number where the policy's text does not have it.
fn line_of(rule: u32, lines: &[usize]) -> usize {
    let index = usize::try_from(rule).unwrap_or(usize::MAX);
    lines.get(index).copied().unwrap_or(index.saturating_add(1))
}

fn event_for_people(event: &Event, lines: &[usize]) -> String {
    let of = |bytes: &[u8]| printable(Path::new(OsStr::from_bytes(bytes)));
    let rules: Vec<String> = rules(event)
        .iter()
        .filter_map(|(class, rule)| Some(format!("{}:{}", class.name(), line_of((*rule)?, lines))))
        .collect();
    let cause = event.cause.as_ref().map_or_else(String::new, |cause| format!(" ({})", of(cause.as_bytes())));
    format!(
        "{:>3}.{:09}  {:<7}  {:<18}  {:<18}  {:<22}  {:>10}  {:<15}  {}{cause}\n",
        event.time / 1_000_000_000,
        event.time % 1_000_000_000,
        verdict(event),
        event.func.name(),
        mask_names(event.mask),
        rules.join(" "),
        event.subject.uid,
        of(&event.subject.command),
        of(&event.path),
    )
}

fn event_json(event: &Event, lines: &[usize]) -> Value {
    let mut rule_lines = Map::new();
    for (class, rule) in rules(event) {
        if let Some(rule) = rule {
            rule_lines
                .insert(class.name().into(), json!({ "rule": u64::from(rule) + 1, "line": line_of(rule, lines) }));
        }
    }
    let mut document = super::paths::path_json(Path::new(OsStr::from_bytes(&event.path)));
    let (subject, filesystem) = (&event.subject, &event.filesystem);
    let rest = json!({
        "type": "event",
        "time_ns": event.time,
        "verdict": verdict(event),
        "func": event.func.name(),
        "mask": mask_names(event.mask),
        "rules": rule_lines,
        "cause": event.cause,
        "entry": event.entry,
        "writes": event.writes,
        "created": event.created,
        "device": event.device,
        "inode": event.inode,
        "size": event.size,
        // As text: these do not fit into what JSON readers take for numbers.
        "modified_ns": event.modified.to_string(),
        "changed_ns": event.changed.to_string(),
        "owner": event.owner,
        "group": event.group,
        "filesystem": {
            "magic": format!("{:#x}", filesystem.magic),
            "name": filesystem.name,
            "subtype": filesystem.subtype,
            "uuid": filesystem.uuid.map(|uuid| Uuid(uuid).to_string()),
        },
        "subject": {
            "uid": subject.uid,
            "gid": subject.gid,
            "euids": subject.euids,
            "egids": subject.egids,
            "can_setuid": subject.can_setuid,
            "can_setgid": subject.can_setgid,
            "command": String::from_utf8_lossy(&subject.command),
        },
        "label_read": event.label != LabelFacts::NotRead,
        "label": match &event.label {
            LabelFacts::NotRead | LabelFacts::None => None,
            LabelFacts::Some(label) => Some(to_hex(label)),
        },
        "digest": event.digest.map(|digest| digest.to_string()),
    });
    if let Value::Object(rest) = rest {
        document.extend(rest);
    }
    Value::Object(document)
}

/// What all events come to.
#[derive(Default)]
struct Summary {
    events: u64,
    files: HashSet<(u64, u64)>,
    /// How many a rule had done, by class.
    decided: [u64; 4],
    entries: u64,
    failed: u64,
    refused: u64,
    lost: u64,
    ended: Option<String>,
    failure: Option<String>,
}

impl Summary {
    fn add(&mut self, event: &Event) {
        self.events += 1;
        self.files.insert((event.device, event.inode));
        for (count, (_, rule)) in self.decided.iter_mut().zip(rules(event)) {
            *count += u64::from(rule.is_some());
        }
        self.entries += u64::from(event.entry);
        self.failed += u64::from(event.cause.is_some());
        self.refused += u64::from(event.denied);
    }

    fn to_json(&self) -> Value {
        let [measure, appraise, audit, hash] = self.decided;
        json!({
            "type": "summary",
            "events": self.events,
            "files": self.files.len(),
            "decisions": { "measure": measure, "appraise": appraise, "audit": audit, "hash": hash },
            "entries": self.entries,
            "failed": self.failed,
            "refused": self.refused,
            "lost": self.lost,
            "ended": self.ended,
            "truncated": self.failure,
        })
    }

    fn for_people(&self) -> String {
        let [measure, appraise, audit, hash] = self.decided;
        let ended = match (&self.failure, &self.ended) {
            (Some(error), _) => error.clone(),
            (None, Some(why)) => printable(Path::new(why)),
            (None, None) => "without an end: the trace is still being taken, or its guard was killed".to_owned(),
        };
        format!(
            "\n{} events on {} files; {measure} measure, {appraise} appraise, {audit} audit, {hash} hash; \
             {} new entries, {} did not pass, {} refused; {} events lost\nended     {ended}\n",
            self.events,
            self.files.len(),
            self.entries,
            self.failed,
            self.refused,
            self.lost,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_perhaps_a_unit() {
        for (text, expected) in [
            ("1", Some(1)),
            ("64M", Some(64 << 20)),
            ("2K", Some(2048)),
            ("1G", Some(1 << 30)),
            ("0", None),
            ("", None),
            ("M", None),
            ("-1", None),
            ("+1", None),
            ("1T", None),
            ("99999999999G", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn an_event_is_a_line_that_names_its_rules_by_their_lines_and_does_nothing_to_a_terminal() {
        let lines = rule_lines("# comment\nmeasure func=BPRM_CHECK\n\nappraise func=BPRM_CHECK\n");
        let event = Event {
            time: 1_500_000_000,
            func: imara_format::policy::Func::BprmCheck,
            mask: 5,
            path: b"/a\x1b[2J\nb".to_vec(),
            device: 1,
            inode: 2,
            size: 0,
            modified: 0,
            changed: 0,
            owner: 0,
            group: 0,
            filesystem: std::sync::Arc::default(),
            subject: std::sync::Arc::default(),
            label: LabelFacts::None,
            digest: None,
            writes: false,
            created: false,
            measured: Some(0),
            appraised: Some(1),
            audited: Some(7),
            hashed: None,
            entry: true,
            cause: Some("missing-hash".into()),
            denied: true,
        };
        let line = event_for_people(&event, &lines);
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            [
                "1.500000000",
                "refused",
                "BPRM_CHECK",
                "MAY_EXEC|MAY_READ",
                "measure:2",
                "appraise:4",
                "audit:8",
                "0",
                "/a\\u{1b}[2J\\nb",
                "(missing-hash)"
            ]
        );
        let mut summary = Summary::default();
        summary.add(&event);
        summary.add(&Event { cause: None, denied: false, appraised: None, ..event });
        assert_eq!((summary.events, summary.files.len(), summary.decided), (2, 1, [2, 1, 2, 0]));
        assert_eq!((summary.failed, summary.refused, summary.entries), (1, 1, 2));
    }

    #[test]
    fn a_trace_under_way_or_over_is_told_in_a_line() {
        for (trace, expected) in [
            (
                json!({"path": "/t", "active": true, "events": 3, "until": 86400, "lost": 0}),
                "tracing to /t, 3 events, until 1970-01-02 00:00:00 UTC",
            ),
            (
                json!({"path": "/t", "active": true, "events": 3, "until": null, "lost": 2}),
                "tracing to /t, 3 events, until it is stopped; 2 events lost",
            ),
            (
                json!({"path": "/t", "active": false, "events": 3, "until": 5, "lost": 0, "ended": "stopped"}),
                "traced to /t, 3 events, ended: stopped",
            ),
        ] {
            assert_eq!(for_people(&trace), expected);
        }
    }
}
