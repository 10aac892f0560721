//! `imara report`.

use super::paths::{path_json, printable};
use super::{CommandResult, RuntimeDirectory};
use crate::guard::control::{Request, ask};
use crate::output::{Failure, Outcome, print, print_json, utc};
use imara_format::audit::{ReadRecord, RecordType};
use imara_format::hash::from_hex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Show what did not pass since the guard started, or by an audit log, grouped: after a time in log mode, what enforce mode would
/// refuse.
///
/// With -0 or --paths it prints the files alone, for `imara sign -k KEY --files-from - -0`: by default those that only lack a label. What has
/// one that does not fit may have been tampered with, and is listed only where its cause is named with --cause. Ends with 1 when
/// something did not pass.
#[derive(clap::Args)]
pub struct Arguments {
    /// Read audit records from this file instead (`-`: standard input): the guard's audit.log, the audit daemon's log, or the kernel
    /// log, of a kernel that runs with ima_appraise=log.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Only these causes, such as missing-hash (may be repeated).
    #[arg(long, value_name = "CAUSE")]
    cause: Vec<String>,
    /// Only these hooks, such as BPRM_CHECK (may be repeated); audit records do not name one.
    #[arg(long, value_name = "HOOK", conflicts_with = "log")]
    func: Vec<String>,
    /// Only files at this path or below it (may be repeated).
    #[arg(long, value_name = "PATH")]
    path: Vec<PathBuf>,
    /// Name each file, not only its folder.
    #[arg(long)]
    all: bool,
    /// Print paths alone, a line each.
    #[arg(long, conflicts_with_all = ["json", "all"])]
    paths: bool,
    /// Print paths alone, each ended by a zero byte.
    #[arg(short = '0', long = "null", conflicts_with_all = ["json", "all", "paths"])]
    null: bool,
    /// Begin anew afterwards: the guard forgets what it has reported.
    #[arg(long, conflicts_with = "log")]
    forget: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// Causes that a label cures without a question.
const UNLABELLED: [&str; 2] = ["missing-hash", "IMA-signature-required"];
/// How many folders are named for each cause.
const FOLDERS: usize = 20;

/// Accesses to one file that did not pass by one hook, for one cause.
#[derive(Debug)]
struct Failed {
    path: PathBuf,
    func: Option<String>,
    cause: String,
    count: u64,
    refused: u64,
    last: u64,
    /// Which file it was; a log names no device that could be compared.
    inode: Option<u64>,
    device: Option<u64>,
}

/// What is at a path now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Here {
    /// The file that did not pass.
    Same,
    /// Another one.
    Another,
    Nothing,
}

impl Failed {
    fn here(&self) -> Here {
        let Ok(now) = self.path.symlink_metadata() else { return Here::Nothing };
        let agrees = |then: Option<u64>, now: u64| then.is_none_or(|then| then == now);
        let same = now.is_file() && agrees(self.inode, now.ino()) && agrees(self.device, now.dev());
        if same { Here::Same } else { Here::Another }
    }
}

/// Those of some paths where something is, each once.
fn those<'a>(paths: &[(&'a Path, Here)], wanted: Here) -> Vec<&'a Path> {
    let mut those: Vec<&Path> = paths.iter().filter(|(_, here)| *here == wanted).map(|(path, _)| *path).collect();
    those.sort_unstable();
    those.dedup();
    those
}

/// Where from, and what.
struct Report {
    failed: Vec<Failed>,
    left_out: u64,
    source: Value,
}

/// Runs it.
///
/// # Errors
/// There is no guard, or the log cannot be read.
pub fn run(arguments: Arguments) -> CommandResult {
    let mut report = match &arguments.log {
        Some(log) => of_log(log)?,
        None => {
            let request = Request::Report { forget: arguments.forget };
            of_guard(&ask(&arguments.runtime.runtime_dir, &request)?)
        }
    };
    report.failed.retain(|failed| arguments.wants(failed));
    if arguments.null || arguments.paths {
        return arguments.print_paths(&report);
    }
    if arguments.json {
        print_json(&report.to_json());
    } else {
        print(report.for_people(arguments.all));
    }
    Ok(if report.failed.is_empty() { Outcome::Done } else { Outcome::Failed })
}

impl Arguments {
    fn wants(&self, failed: &Failed) -> bool {
        let func = failed.func.as_deref().unwrap_or_default();
        (self.cause.is_empty() || self.cause.contains(&failed.cause))
            && (self.func.is_empty() || self.func.iter().any(|wanted| wanted == func))
            && (self.path.is_empty() || self.path.iter().any(|path| failed.path.starts_with(path)))
    }

    fn print_paths(&self, report: &Report) -> CommandResult {
        let end: &[u8] = if self.null { b"\0" } else { b"\n" };
        let wanted = |failed: &&Failed| !self.cause.is_empty() || UNLABELLED.contains(&failed.cause.as_str());
        let found: Vec<(&Path, Here)> =
            report.failed.iter().filter(wanted).map(|failed| (failed.path.as_path(), failed.here())).collect();
        // A label for another file than the one that did not pass is not what anybody asked for.
        if let Some(others) = of_others(&those(&found, Here::Another)) {
            eprintln!("imara: left out: {others}");
        }
        let paths = those(&found, Here::Same);
        let mut stdout = io::stdout().lock();
        let write = |path: &&Path| stdout.write_all(&[path.as_os_str().as_bytes(), end].concat());
        // A reader that went away has had enough.
        if paths.iter().try_for_each(write).is_err() {
            return Ok(Outcome::Failed);
        }
        Ok(Outcome::Done)
    }
}

fn of_guard(document: &Value) -> Report {
    let failed = document["failures"].as_array().into_iter().flatten().map(|failed| {
        let text = |name: &str| failed[name].as_str().unwrap_or_default().to_owned();
        let exact = failed["path_hex"].as_str().and_then(|hex| from_hex(hex).ok());
        Failed {
            path: exact.map_or_else(|| text("path").into(), |bytes| OsString::from_vec(bytes).into()),
            func: Some(text("func")),
            cause: text("cause"),
            count: failed["count"].as_u64().unwrap_or(0),
            refused: failed["refused"].as_u64().unwrap_or(0),
            last: failed["last"].as_u64().unwrap_or(0),
            inode: failed["inode"].as_u64(),
            device: failed["device"].as_u64(),
        }
    });
    Report {
        failed: failed.collect(),
        left_out: document["left_out"].as_u64().unwrap_or(0),
        source: json!({ "since": document["since"], "mode": document["mode"] }),
    }
}

fn of_log(log: &Path) -> Result<Report, Failure> {
    let failed = |error: io::Error| Failure::failed(format_args!("{}: {error}", log.display()));
    let mut input: Box<dyn BufRead> = if log.as_os_str() == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(log).map_err(failed)?))
    };
    let mut found: BTreeMap<(Vec<u8>, Vec<u8>), Failed> = BTreeMap::new();
    let mut line = Vec::new();
    // A log has short lines; what is none is not kept.
    while io::Read::take(&mut input, 1 << 20).read_until(b'\n', &mut line).map_err(failed)? > 0 {
        if let Some(record) = ReadRecord::parse(&line).filter(|record| record.kind == RecordType::Data)
            && let (Some(path), Some(cause)) = (record.field("name"), record.field("cause"))
        {
            let one = found.entry((cause.to_vec(), path.to_vec())).or_insert_with(|| Failed {
                path: OsString::from_vec(path.to_vec()).into(),
                func: None,
                cause: String::from_utf8_lossy(cause).into_owned(),
                count: 0,
                refused: 0,
                last: 0,
                inode: None,
                device: None,
            });
            one.inode = record.number("ino").and_then(|inode| u64::try_from(inode).ok()).filter(|inode| *inode != 0);
            one.count += 1;
            one.refused += u64::from(record.number("res") == Some(0));
            one.last = one.last.max(record.milliseconds / 1000);
        }
        line.clear();
    }
    Ok(Report { failed: found.into_values().collect(), left_out: 0, source: json!({ "log": log }) })
}

impl Report {
    fn to_json(&self) -> Value {
        let failures: Vec<Value> = self
            .failed
            .iter()
            .map(|failed| {
                let mut object = path_json(&failed.path);
                object.insert("func".into(), json!(failed.func));
                object.insert("cause".into(), json!(failed.cause));
                object.insert("count".into(), json!(failed.count));
                object.insert("refused".into(), json!(failed.refused));
                object.insert("last".into(), json!(failed.last));
                object.insert("is_there".into(), json!(failed.here() == Here::Same));
                Value::Object(object)
            })
            .collect();
        json!({ "schema": 1, "source": self.source, "failures": failures, "left_out": self.left_out })
    }

    fn for_people(&self, all: bool) -> String {
        let mut out = String::new();
        let from = match (self.source["since"].as_u64(), self.source["log"].as_str()) {
            (Some(since), _) => {
                let mode = self.source["mode"].as_str().unwrap_or_default();
                format!("since {} (mode now: {mode})", utc(since))
            }
            (None, Some(log)) => format!("by {}", printable(Path::new(log))),
            (None, None) => String::new(),
        };
        if self.failed.is_empty() {
            return format!("everything passed {from}\n");
        }
        let mut paths: Vec<&Path> = self.failed.iter().map(|failed| failed.path.as_path()).collect();
        paths.sort_unstable();
        paths.dedup();
        let (count, refused) = self
            .failed
            .iter()
            .fold((0, 0), |(count, refused), failed| (count + failed.count, refused + failed.refused));
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{} did not pass {from}: {}, {refused} refused",
            plural(paths.len(), "file"),
            accesses(count)
        );
        let mut groups: BTreeMap<(&str, &str), Vec<&Failed>> = BTreeMap::new();
        for failed in &self.failed {
            groups.entry((&failed.cause, failed.func.as_deref().unwrap_or_default())).or_default().push(failed);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.len()));
        for ((cause, func), group) in &groups {
            let when = if func.is_empty() { String::new() } else { format!(" ({func})") };
            let count = group.iter().map(|failed| failed.count).sum();
            let _ = writeln!(out, "\n{cause}{when}: {}, {}", plural(group.len(), "file"), accesses(count));
            write_places(&mut out, group, all);
        }
        let found: Vec<(&Path, Here)> =
            self.failed.iter().map(|failed| (failed.path.as_path(), failed.here())).collect();
        let gone = those(&found, Here::Nothing).len();
        if gone > 0 {
            let _ = writeln!(out, "\n{} no longer there, or of another mount namespace", plural(gone, "file"));
        }
        if let Some(others) = of_others(&those(&found, Here::Another)) {
            let _ = writeln!(out, "\nnot to be labelled by these paths: {others}");
        }
        if self.left_out > 0 {
            let _ = writeln!(out, "\n{} more are not listed: there are too many", accesses(self.left_out));
        }
        if self.failed.iter().any(|failed| UNLABELLED.contains(&failed.cause.as_str())) {
            let log = self.source["log"].as_str().map_or(String::new(), |log| format!(" --log {log}"));
            let _ = writeln!(
                out,
                "\nto label what has no label (or no signature), if it is what you meant:\n  imara report{log} -0 | imara sign -k /etc/keys/privkey_ima.pem --files-from - -0"
            );
        }
        if let Some(failed) = self.failed.iter().find(|failed| !UNLABELLED.contains(&failed.cause.as_str())) {
            let _ = writeln!(out, "\nwhy one with a label does not pass:\n  imara explain {}", printable(&failed.path));
        }
        out
    }
}

/// The files of a group, or the folders with the most of them.
fn write_places(out: &mut String, group: &[&Failed], all: bool) {
    if all {
        for failed in group {
            let _ = writeln!(
                out,
                "  {}  {}, the last {}",
                printable(&failed.path),
                accesses(failed.count),
                utc(failed.last)
            );
        }
        return;
    }
    let mut folders: BTreeMap<&Path, Vec<&Failed>> = BTreeMap::new();
    for failed in group {
        folders.entry(failed.path.parent().unwrap_or(&failed.path)).or_default().push(failed);
    }
    let mut folders: Vec<_> = folders.into_iter().collect();
    folders.sort_by_key(|(_, failed)| std::cmp::Reverse(failed.len()));
    for (folder, failed) in folders.iter().take(FOLDERS) {
        let _ = match failed.as_slice() {
            [one] => writeln!(out, "  {}", printable(&one.path)),
            several => {
                writeln!(out, "  {}/  {}", printable(folder).trim_end_matches('/'), plural(several.len(), "file"))
            }
        };
    }
    if folders.len() > FOLDERS {
        let _ = writeln!(out, "  … and {} (--all names every file)", plural(folders.len() - FOLDERS, "more folder"));
    }
}

/// What is said of paths that do not lead to what did not pass.
fn of_others(paths: &[&Path]) -> Option<String> {
    let first = printable(paths.first()?);
    Some(format!(
        "{}, such as {first}, where there is now another file than the one that did not pass: it was replaced since, or was in another \
         mount namespace (a container)",
        plural(paths.len(), "file")
    ))
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

fn accesses(count: u64) -> String {
    if count == 1 { "1 access".into() } else { format!("{count} accesses") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(path: &str, cause: &str, count: u64) -> Failed {
        let (path, func, cause) = (path.into(), Some("BPRM_CHECK".into()), cause.into());
        Failed { path, func, cause, count, refused: 1, last: 60, inode: None, device: None }
    }

    #[test]
    fn what_did_not_pass_is_grouped_by_cause_and_folder_with_what_to_type() {
        let report = Report {
            failed: vec![
                failed("/nowhere/bin/a", "missing-hash", 3),
                failed("/nowhere/bin/b", "missing-hash", 4),
                failed("/nowhere/lib/c\u{1b}", "missing-hash", 1),
                failed("/nowhere/bin/a", "invalid-signature", 1),
            ],
            left_out: 2,
            source: json!({ "since": 0, "mode": "log" }),
        };
        let text = report.for_people(false);
        for words in [
            "3 files did not pass since 1970-01-01 00:00:00 UTC (mode now: log): 9 accesses, 4 refused\n",
            "\nmissing-hash (BPRM_CHECK): 3 files, 8 accesses\n  /nowhere/bin/  2 files\n  /nowhere/lib/c",
            "\ninvalid-signature (BPRM_CHECK): 1 file, 1 access\n  /nowhere/bin/a\n",
            "\n3 files no longer there",
            "\n2 accesses more are not listed",
            "imara report -0 | imara sign",
            "imara explain /nowhere/bin/a",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(report.for_people(true).contains("  /nowhere/bin/b  4 accesses, the last 1970-01-01 00:01:00 UTC\n"));
        let none = Report { failed: Vec::new(), left_out: 0, source: json!({ "log": "/l" }) };
        assert_eq!(none.for_people(false), "everything passed by /l\n");
    }

    #[test]
    fn a_path_that_leads_to_another_file_now_is_told_from_the_one_that_did_not_pass() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "").unwrap();
        let now = path.metadata().unwrap();
        for (inode, device, expected) in [
            (None, None, Here::Same),
            (Some(now.ino()), None, Here::Same),
            (Some(now.ino()), Some(now.dev()), Here::Same),
            (Some(now.ino() + 1), None, Here::Another),
            (Some(now.ino()), Some(now.dev() + 1), Here::Another),
        ] {
            let failed = Failed { inode, device, ..failed(path.to_str().unwrap(), "missing-hash", 1) };
            assert_eq!(failed.here(), expected, "{inode:?} {device:?}");
            let report = Report { failed: vec![failed], left_out: 0, source: json!({ "since": 0 }) };
            let told = report.for_people(false).contains("not to be labelled by these paths: 1 file");
            assert_eq!(told, expected == Here::Another, "{inode:?} {device:?}");
        }
        assert_eq!(failed("/nowhere/file", "missing-hash", 1).here(), Here::Nothing);
    }

    #[test]
    fn a_log_is_read_whoever_wrote_it() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(
            &log,
            b"type=SYSCALL msg=audit(1.2:3): a=b\n\
              type=INTEGRITY_DATA msg=audit(7.000:1): pid=1 cause=missing-hash comm=\"sh\" name=\"/a\" dev=\"vda\" ino=7 res=0 errno=0\n\
              [ 1.0] audit: type=1800 audit(8.000:2): pid=1 cause=missing-hash comm=\"sh\" name=\"/a\" res=1 errno=0\n\
              type=INTEGRITY_RULE msg=audit(9.000:3): file=\"/b\"\n\
              type=INTEGRITY_DATA msg=audit(9.000:4): pid=1 cause=invalid-hash comm=\"sh\" name=FF20 res=0 errno=0\n\xff\xfe",
        )
        .unwrap();
        let report = of_log(&log).unwrap();
        assert_eq!(report.failed.len(), 2, "{:?}", report.failed);
        let a = report.failed.iter().find(|failed| failed.path == Path::new("/a")).unwrap();
        assert_eq!((a.count, a.refused, a.last), (2, 1, 8));
        assert!(report.failed.iter().any(|failed| failed.path.as_os_str().as_bytes() == b"\xff "));
    }
}
