//! Traces of a guard at work.

use crate::scratch::*;
use imara_engine::crypto;
use imara_format::hash::HashAlgorithm;
use imara_format::policy::Func;
use imara_format::trace::{Event, Header, LabelFacts, TraceReader};
use serde_json::Value;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// The rules are in lines 2 and 4.
const RULES: &str = "# signed programs\nmeasure func=BPRM_CHECK\n\nappraise func=BPRM_CHECK appraise_type=imasig\n";

/// Runs a program by `sh`, as a user; whether it was let run.
fn runs(path: &Path, user: u32) -> bool {
    let mut shell = command("sh");
    let done = output(shell.arg("-c").arg(format!("{} && true", path.display())).uid(user).gid(user)).unwrap();
    match done.status.code() {
        Some(0) => true,
        // What a shell says of a program that it may not run.
        Some(126) => false,
        _ => panic!("{}: {done:?}", path.display()),
    }
}

impl Scratch {
    fn start(&mut self) {
        self.guard_with(RULES, "enforce", &["--tpm", "none"]);
    }

    /// Begins a trace; what was said where that is refused.
    fn begin(&self, name: &str, more: &[&str]) -> Result<Value, String> {
        let path = self.path(name);
        let done = self.imara(&[&["trace", "start", path.to_str().unwrap(), "--json"], more].concat());
        match done.status.code() {
            Some(0) => Ok(serde_json::from_slice(&done.stdout).unwrap()),
            Some(1) => Err(text(&done.stderr)),
            _ => panic!("{done:?}"),
        }
    }

    /// Everything in a trace that ended in order.
    fn read(&self, name: &str) -> (Header, Vec<Event>, String) {
        let (header, mut reader) = TraceReader::new(File::open(self.path(name)).unwrap()).unwrap();
        let events = reader.by_ref().collect::<Result<_, _>>().unwrap();
        assert_eq!(reader.lost(), 0);
        let ended = reader.ended().unwrap_or("without an end").to_owned();
        (header, events, ended)
    }

    /// That a program which nobody has changed is let pass unasked once it was judged.
    fn is_let_pass(&self, program: &Path) {
        assert!(runs(program, 0));
        let before = self.events();
        assert!(runs(program, 0));
        assert_eq!(self.events(), before);
    }
}

fn of<'a>(events: &'a [Event], path: &Path, func: Func) -> Vec<&'a Event> {
    let path = path.to_str().unwrap().as_bytes();
    events.iter().filter(|event| event.path == path && event.func == func).collect()
}

#[test]
fn every_access_is_in_the_trace_with_what_was_decided_and_for_whom() {
    let mut scratch = scratch!("every_access_is_in_the_trace_with_what_was_decided_and_for_whom");
    scratch.start();
    let (good, bad) = (scratch.signed_program("good"), scratch.signed_program("bad"));
    let data = scratch.path("mnt/data");
    fs::write(&data, "no rule is for it\n").unwrap();
    let offset = fs::metadata(&bad).unwrap().len() - 100;
    let tamper = format!("printf '\\220' | dd of='{}' bs=1 seek={offset} conv=notrunc status=none", bad.display());
    must(command("sh").args(["-ec", &tamper]));
    settle();
    scratch.is_let_pass(&good);

    let would = scratch.begin("trace", &["--dry-run", "--for", "1h"]).unwrap();
    let hour = would["until"].as_u64().zip(would["started"].as_u64()).map(|(until, started)| until - started);
    assert_eq!((&would["begun"], hour, scratch.path("trace").exists()), (&false.into(), Some(3600), false));
    assert!(scratch.begin("mnt/data", &["--dry-run"]).unwrap_err().contains("exists already"));
    assert!(scratch.begin("nowhere/trace", &["--dry-run"]).unwrap_err().contains("nowhere"));
    assert_eq!(scratch.imara(&["trace", "stop", "--dry-run"]).status.code(), Some(1), "none is taken");
    scratch.is_let_pass(&good);

    let begun = scratch.begin("trace", &[]).unwrap();
    assert_eq!((&begun["active"], &begun["until"], &begun["schema"]), (&true.into(), &Value::Null, &1.into()));
    for user in [0, 0, USER] {
        assert!(runs(&good, user));
    }
    assert!(!runs(&bad, 0));
    fs::read(&data).unwrap();
    assert!(scratch.begin("other", &[]).unwrap_err().contains("a trace is being taken already"));
    assert!(!scratch.path("other").exists());
    let shown = String::from_utf8(scratch.imara(&["status"]).stdout).unwrap();
    assert!(shown.contains("tracing to") && shown.contains("until it is stopped"), "{shown}");
    let would = String::from_utf8(scratch.imara(&["trace", "stop", "--dry-run"]).stdout).unwrap();
    assert!(would.contains("tracing to"), "{would}");
    let stopped = scratch.imara(&["trace", "stop"]);
    assert!(stopped.status.success(), "{stopped:?}");
    scratch.is_let_pass(&good);
    assert_eq!(scratch.status()["trace"]["ended"], "stopped");

    let (header, events, ended) = scratch.read("trace");
    assert_eq!(ended, "stopped");
    assert_eq!(
        (header.mode.as_str(), header.hash, header.pcr, header.banks),
        ("enforce", HashAlgorithm::Sha256, 10, 0)
    );
    assert_eq!(header.policy, "\nmeasure func=BPRM_CHECK\n\nappraise func=BPRM_CHECK appraise_type=imasig\n");
    assert_eq!(fs::metadata(scratch.path("trace")).unwrap().mode() & 0o777, 0o600);

    let good_runs = of(&events, &good, Func::BprmCheck);
    let users: Vec<u32> = good_runs.iter().map(|event| event.subject.uid).collect();
    assert_eq!(users, [0, 0, USER], "each of them, also those that nothing was left to do for");
    let digest = crypto::hash(HashAlgorithm::Sha256, &[&fs::read(&good).unwrap()]).unwrap();
    let stat = fs::metadata(&good).unwrap();
    for event in good_runs {
        let root = event.subject.uid == 0;
        assert_eq!((event.measured, event.appraised, &event.cause, event.denied), (Some(0), Some(1), &None, false));
        assert_eq!((event.mask, event.digest), (1, Some(digest)));
        assert_eq!((&event.label, event.entry), (&LabelFacts::NotRead, false), "known before");
        assert_eq!((event.subject.command.as_slice(), event.subject.can_setuid), (&b"sh"[..], root));
        assert_eq!((event.subject.euids, event.subject.egids), ([event.subject.uid; 3], [event.subject.gid; 3]));
        assert_eq!((event.inode, event.size, event.filesystem.name.as_str()), (stat.ino(), stat.size(), "ext4"));
        let changed = i128::from(stat.ctime()) * 1_000_000_000 + i128::from(stat.ctime_nsec());
        assert_eq!(event.changed, changed);
    }
    let [refused] = of(&events, &bad, Func::BprmCheck)[..] else { panic!("{events:?}") };
    assert_eq!((refused.measured, refused.appraised, refused.denied), (Some(0), Some(1), true));
    assert_eq!((refused.cause.as_deref(), refused.entry), (Some("invalid-signature"), true));
    assert!(matches!(refused.label, LabelFacts::Some(_)) && refused.digest.is_some());
    let [read] = of(&events, &data, Func::FileCheck)[..] else { panic!("{events:?}") };
    assert_eq!((read.mask, read.measured, read.appraised, read.denied), (4, None, None, false), "no rule is for it");

    let shown = command(IMARA).args(["trace", "show"]).arg(scratch.path("trace")).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = shown.lines().find(|line| line.contains("refused  BPRM_CHECK")).unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains("measure:2 appraise:4") && line.ends_with("/mnt/bad (invalid-signature)"), "{line}");
    let mut show = command(IMARA);
    let shown = must(show.args(["trace", "show", "--json", "--limit", "1"]).arg(scratch.path("trace")));
    let lines: Vec<Value> =
        shown.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let [header, event, summary] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&header["type"], &event["type"], &header["schema"]), (&"header".into(), &"event".into(), &1.into()));
    assert_eq!((&summary["events"], &summary["refused"]), (&events.len().into(), &1.into()));
}

#[test]
fn a_policy_tried_on_a_trace_decides_as_the_guard_did() {
    let mut scratch = scratch!("a_policy_tried_on_a_trace_decides_as_the_guard_did");
    scratch.start();
    let (before, good, unsigned) =
        (scratch.signed_program("before"), scratch.signed_program("good"), scratch.path("mnt/unsigned"));
    must(command("cp").arg("/bin/true").arg(&unsigned));
    settle();
    scratch.is_let_pass(&before);
    scratch.begin("trace", &[]).unwrap();
    for user in [0, USER, 0] {
        assert!(runs(&before, user) && runs(&good, user) && !runs(&unsigned, user));
    }
    // Written to while the trace is taken: another state, another entry.
    fs::write(&unsigned, "#!/bin/sh\n").unwrap();
    assert!(!runs(&unsigned, 0));
    assert!(scratch.imara(&["trace", "stop"]).status.success());
    let (_, events, _) = scratch.read("trace");

    let test = |policy: &[&str]| {
        let mut test = command(IMARA);
        test.args(["policy", "test", "--json"]).args(policy).arg("--trace").arg(scratch.path("trace"));
        let done = test.arg("--key").arg(scratch.path("keys/x509_ima.der")).output().unwrap();
        let document: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
        (document, done.status.code())
    };
    let (document, status) = test(&[]);
    assert_eq!((&document["agrees"], status), (&true.into(), Some(0)), "{document:#}");
    assert_eq!(document["trace"]["events"], events.len());
    // The guard had listed one of them before the trace began.
    let entries = events.iter().filter(|event| event.entry).count();
    assert_eq!((document["entries"].as_u64(), entries), (Some(4), 3));
    assert_eq!(document["refused"]["events"], 4);

    fs::write(scratch.path("another"), "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK uid=0\n").unwrap();
    let (document, status) = test(&[scratch.path("another").to_str().unwrap()]);
    assert_eq!(status, Some(1));
    let changes = document["changes"].as_array().unwrap().iter();
    let told: Vec<_> = changes.map(|change| (change["change"].as_str().unwrap(), change["events"].clone())).collect();
    // Without `imasig` what has no label lacks a hash; and only root is asked about any more.
    let expected = [("no-longer-refused", 1), ("other-cause", 3), ("no-longer-appraised", 3)];
    let expected = expected.map(|(change, events)| (change, Value::from(events)));
    assert_eq!(told, expected);
}

#[test]
fn a_trace_ends_by_itself_and_replaces_a_file_only_by_force() {
    let mut scratch = scratch!("a_trace_ends_by_itself_and_replaces_a_file_only_by_force");
    scratch.start();
    let good = scratch.signed_program("good");
    settle();
    let ended = || scratch.status()["trace"]["ended"].as_str().map(str::to_owned);
    assert_eq!(scratch.status()["trace"], Value::Null);
    assert!(String::from_utf8(scratch.imara(&["trace", "stop"]).stderr).unwrap().contains("no trace is being taken"));

    let begun = scratch.begin("trace", &["--for", "1s"]).unwrap();
    assert_eq!(begun["until"].as_u64(), begun["started"].as_u64().map(|started| started + 1));
    assert!(runs(&good, 0));
    eventually("the time is over", PATIENCE, || ended().as_deref() == Some("its time was over"));
    scratch.is_let_pass(&good);
    let (_, events, why) = scratch.read("trace");
    assert_eq!((of(&events, &good, Func::BprmCheck).len(), why.as_str()), (1, "its time was over"));

    assert!(scratch.begin("trace", &[]).unwrap_err().contains("exists already"));
    assert_eq!(scratch.read("trace").1, events, "as it was");
    scratch.begin("trace", &["--force", "--max-size", "1K"]).unwrap();
    eventually("the trace is full", PATIENCE, || {
        fs::read(&good).unwrap();
        ended().as_deref() == Some("it is as large as it may be")
    });
    let size = fs::metadata(scratch.path("trace")).unwrap().len();
    assert!((1024..2048).contains(&size), "{size}");
    assert_eq!(scratch.read("trace").2, "it is as large as it may be");
    let again = scratch.imara(&["trace", "stop"]);
    assert!(String::from_utf8(again.stderr).unwrap().contains("has ended: it is as large as it may be"));
    scratch.is_let_pass(&good);
}

#[test]
fn a_trace_that_finds_no_room_ends_and_costs_nobody_an_access() {
    let mut scratch = scratch!("a_trace_that_finds_no_room_ends_and_costs_nobody_an_access");
    scratch.start();
    let good = scratch.signed_program("good");
    settle();
    let small = scratch.path("small");
    fs::create_dir(&small).unwrap();
    must(command("mount").args(["-t", "tmpfs", "-o", "size=16k", "none"]).arg(&small));
    let begun = scratch.begin("small/trace", &[]);
    let ended = || scratch.status()["trace"]["ended"].as_str().unwrap_or_default().to_owned();
    eventually("the disk is full", PATIENCE, || {
        for number in 0..100 {
            let path = scratch.on(&format!("a-name-that-is-long-enough-to-fill-{number}"));
            fs::write(&path, "content").unwrap();
            fs::remove_file(path).unwrap();
        }
        ended().starts_with("it cannot be written: No space left")
    });
    let (header, events) = TraceReader::new(File::open(small.join("trace")).unwrap()).unwrap();
    let whole = events.map_while(Result::ok).count();
    // With its disk full from the beginning none is begun, and nothing is left of it.
    let again = scratch.begin("small/again", &[]);
    let left = small.join("again").exists();
    must(command("umount").arg("-l").arg(&small));
    assert!(begun.is_ok() && header.mode == "enforce" && whole > 0, "{begun:?} {whole}");
    assert!(again.as_ref().is_err_and(|said| said.contains("No space left")) && !left, "{again:?} {left}");
    scratch.is_let_pass(&good);
}

#[test]
fn a_trace_ends_with_the_policy_whose_rules_it_names() {
    let mut scratch = scratch!("a_trace_ends_with_the_policy_whose_rules_it_names");
    scratch.start();
    let good = scratch.signed_program("good");
    settle();
    scratch.begin("trace", &[]).unwrap();
    assert!(runs(&good, 0));
    fs::write(scratch.path("another"), "measure func=FILE_CHECK mask=MAY_READ\n").unwrap();
    let loaded = scratch.imara(&["policy", "load", scratch.path("another").to_str().unwrap()]);
    assert!(loaded.status.success(), "{loaded:?}");
    assert!(runs(&good, 0));
    eventually("the trace has ended", PATIENCE, || scratch.status()["trace"]["active"] == false);
    let (_, events, why) = scratch.read("trace");
    assert_eq!(why, "another policy came into force");
    assert_eq!(of(&events, &good, Func::BprmCheck).len(), 1);
    assert!(events.iter().all(|event| event.func != Func::FileCheck || event.measured.is_none()));
    // What the new policy needs is still asked about.
    let entries = || scratch.status()["list"]["entries"].as_u64().unwrap();
    let before = entries();
    fs::write(scratch.path("mnt/new"), "new\n").unwrap();
    fs::read(scratch.path("mnt/new")).unwrap();
    assert_eq!(entries(), before + 1);
}

#[test]
fn a_killed_guard_leaves_a_trace_that_can_be_read() {
    let mut scratch = scratch!("a_killed_guard_leaves_a_trace_that_can_be_read");
    scratch.start();
    let good = scratch.signed_program("good");
    scratch.begin("trace", &[]).unwrap();
    assert!(runs(&good, 0) && runs(&good, 0));
    // Written as soon as nothing else is to be.
    let good_runs = || -> io::Result<usize> {
        let (_, reader) = TraceReader::new(File::open(scratch.path("trace"))?).map_err(io::Error::other)?;
        let events: Vec<Event> = reader.map_while(Result::ok).collect();
        Ok(of(&events, &good, Func::BprmCheck).len())
    };
    eventually("both are written", PATIENCE, || good_runs().is_ok_and(|count| count == 2));
    scratch.kill();
    let mut show = command(IMARA);
    let shown = String::from_utf8(must(show.args(["trace", "show"]).arg(scratch.path("trace"))).stdout).unwrap();
    assert!(shown.contains("without an end: the trace is still being taken, or its guard was killed"), "{shown}");

    // Cut off anywhere, what is whole is shown, and that it is cut off is said.
    let whole = fs::read(scratch.path("trace")).unwrap();
    fs::write(scratch.path("cut"), &whole[..whole.len() - 1]).unwrap();
    let shown = command(IMARA).args(["trace", "show"]).arg(scratch.path("cut")).output().unwrap();
    assert_eq!(shown.status.code(), Some(1));
    assert!(String::from_utf8(shown.stderr).unwrap().contains("cut off within the record at offset"));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("passed   BPRM_CHECK"), "{shown}");
    // A guard that starts again takes no trace, and is asked to end in order.
    scratch.start();
    assert_eq!(scratch.status()["trace"], Value::Null);
    // On the file system that is traced: what the guard itself does there is not asked about.
    scratch.begin("mnt/second", &[]).unwrap();
    assert!(runs(&good, 0));
    scratch.stop();
    let (_, events, why) = scratch.read("mnt/second");
    assert_eq!((of(&events, &good, Func::BprmCheck).len(), why.as_str()), (1, "the guard ended"));
    assert!(events.iter().all(|event| !event.path.ends_with(b"/second")), "{events:?}");
}
