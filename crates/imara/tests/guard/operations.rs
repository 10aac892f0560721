//! What is told of a running guard: events, reports, metrics, words on standard error; and its policy read again.

use crate::scratch::*;
use imara_format::hash::HashAlgorithm;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

const PROGRAMS: &str = "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK\n";

fn lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_would_have_been_refused_is_reported_and_labelled_with_what_the_report_says() {
    let mut scratch = scratch!("what_would_have_been_refused_is_reported_and_labelled_with_what_the_report_says");
    let odd = std::os::unix::ffi::OsStringExt::from_vec(b"od d\nname\xff".to_vec());
    let odd: std::ffi::OsString = odd;
    let unlabelled = [scratch.program("one"), scratch.program("two"), scratch.mnt.join(&odd)];
    copy("/bin/true", &unlabelled[2]);
    let tampered = scratch.signed_program("tampered");
    change_a_byte(&tampered);
    let gone = scratch.program("gone");
    scratch.guard(PROGRAMS, "log");
    let everything = scratch.imara(&["report"]);
    assert_eq!(everything.status.code(), Some(0), "{everything:?}");
    assert!(text(&everything.stdout).contains("everything passed"));
    for path in unlabelled.iter().chain([&gone]) {
        assert!(runs(path) && runs(path));
    }
    // Tampered with where nothing runs.
    assert!(runs(&tampered));
    fs::remove_file(&gone).unwrap();
    let report = scratch.imara(&["report"]);
    assert_eq!(report.status.code(), Some(1), "{report:?}");
    let shown = text(&report.stdout);
    assert!(
        shown.contains("5 files did not pass") && shown.contains("missing-hash (BPRM_CHECK): 4 files, 8 accesses"),
        "{shown}"
    );
    assert!(
        shown.contains("invalid-signature (BPRM_CHECK): 1 file") && shown.contains("1 file no longer there"),
        "{shown}"
    );
    let json = scratch.json(&["report", "--json", "--cause", "invalid-signature"]);
    assert_eq!(json["failures"].as_array().unwrap().len(), 1);
    assert_eq!(json["failures"][0]["path"], tampered.to_str().unwrap());

    // As it says: what has no label is signed, what was tampered with is not.
    let line = shown.lines().find(|line| line.contains("imara report -0")).unwrap().trim();
    let line = line
        .replace("/etc/keys/privkey_ima.pem", scratch.private_key().to_str().unwrap())
        .replace("report", &format!("report --runtime-dir '{}'", scratch.run.display()))
        .replace("imara ", &format!("'{IMARA}' "));
    shell(&line);
    scratch.switch("enforce");
    for path in &unlabelled {
        assert!(runs(path), "{path:?}: {line}");
    }
    assert!(!runs(&tampered));
    assert_eq!(scratch.imara(&["report", "--forget"]).status.code(), Some(1));
    assert_eq!(scratch.imara(&["report"]).status.code(), Some(0));

    // The same by the log, which outlives the guard.
    let log = scratch.run.join("audit.log");
    eventually("it is written", PATIENCE, || scratch.audit().contains("op=appraise_mode cause=enforce"));
    let by_log = scratch.json(&["report", "--json", "--log", log.to_str().unwrap()]);
    assert_eq!(by_log["failures"].as_array().unwrap().len(), 5, "{by_log}");
    let record = scratch.audit();
    let record = record.lines().find(|line| line.contains("invalid-signature")).unwrap().to_owned();
    let device = must(command("findmnt").args(["-n", "-o", "SOURCE"]).arg(&scratch.mnt));
    let device = text(&device.stdout).trim().trim_start_matches("/dev/").to_owned();
    for words in [format!("dev=\"{device}\" ino="), "op=appraise_data".into(), " res=1 errno=0".into()] {
        assert!(record.contains(&words), "{words}: {record}");
    }
}

#[test]
fn events_are_told_as_they_happen_and_only_those_that_are_wanted() {
    let mut scratch = scratch!("events_are_told_as_they_happen_and_only_those_that_are_wanted");
    let (before, unsigned) = (scratch.program("before"), scratch.program("unsigned"));
    scratch.guard(PROGRAMS, "enforce");
    assert!(!runs(&before));
    let mut all = scratch.command(&["events", "--json"]);
    let mut all = start(all.stdout(Stdio::piped())).unwrap();
    let mut heard = BufReader::new(all.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&heard.next().unwrap().unwrap()).unwrap();
    let first = next();
    assert_eq!((first["path"].as_str(), first["refused"].as_bool()), (before.to_str(), Some(true)), "{first}");
    assert!(!runs(&unsigned));
    let second = next();
    assert_eq!(
        (second["path"].as_str(), second["cause"].as_str()),
        (unsigned.to_str(), Some("missing-hash")),
        "{second}"
    );
    scratch.switch("log");
    let switched = next();
    assert_eq!(
        (switched["op"].as_str(), switched["cause"].as_str()),
        (Some("appraise_mode"), Some("log")),
        "{switched}"
    );
    assert_eq!(switched["command"], "imara", "by whom");
    must(&mut scratch.command(&["policy", "load"]));
    assert_eq!(next()["op"], "policy_update");

    let mut some =
        scratch.command(&["events", "--json", "--last", "0", "--count", "1", "--path", unsigned.to_str().unwrap()]);
    let mut some = start(some.stdout(Stdio::piped())).unwrap();
    // It hears of nothing from before it listens.
    eventually("one is enough", PATIENCE, || {
        assert!(runs(&before) && runs(&unsigned));
        some.try_wait().unwrap().is_some()
    });
    assert!(some.wait().unwrap().success());
    let mut told = Vec::new();
    std::io::Read::read_to_end(&mut some.stdout.take().unwrap(), &mut told).unwrap();
    assert_eq!(lines(&told)[0]["path"], unsigned.to_str().unwrap());
    let nothing = scratch.imara(&["events", "--last", "0", "--for", "1s"]);
    assert!(nothing.status.success() && nothing.stdout.is_empty(), "{nothing:?}");

    // Whoever listens hears that the guard has ended.
    scratch.stop();
    let status = ended(&mut all, PATIENCE).expect("it ends with the guard");
    assert_eq!(status.code(), Some(3));
}

#[test]
fn those_who_listen_and_do_not_read_hold_up_nobody() {
    let mut scratch = scratch!("those_who_listen_and_do_not_read_hold_up_nobody");
    let unsigned = scratch.program("unsigned");
    scratch.guard(PROGRAMS, "enforce");
    let deaf: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = std::os::unix::net::UnixStream::connect(scratch.run.join("control.sock")).unwrap();
            stream.write_all(b"{\"command\":\"events\",\"recent\":0}\n").unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let more = scratch.imara(&["events"]);
    assert!(more.status.code() == Some(1) && text(&more.stderr).contains("too many listen"), "{more:?}");
    for _ in 0..300 {
        assert!(!runs(&unsigned));
    }
    assert!(scratch.alive());
    scratch.switch("log");
    assert!(runs(&unsigned));
    drop(deaf);
}

#[test]
fn metrics_count_what_happened() {
    let mut scratch = scratch!("metrics_count_what_happened");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.program("unsigned"));
    scratch.guard(PROGRAMS, "enforce");
    assert!(runs(&signed) && !runs(&unsigned) && !runs(&unsigned));
    let shown = must(&mut scratch.command(&["status", "--metrics"]));
    let shown = text(&shown.stdout);
    let value = |name: &str| -> f64 {
        let line = shown.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name}: {shown}"))
    };
    for (name, least) in [
        ("imara_up", 1.0),
        ("imara_mode{mode=\"enforce\"}", 1.0),
        ("imara_failed_total{func=\"BPRM_CHECK\",cause=\"missing-hash\",verdict=\"refused\"}", 2.0),
        ("imara_refused_total", 2.0),
        ("imara_files_hashed_total", 2.0),
        ("imara_measurements", 3.0),
        ("imara_tpm_extends_total", 3.0),
        ("imara_tpm_seconds_total", 1e-9),
        ("imara_sentinel_up", 1.0),
        ("imara_file_systems_watched", 1.0),
        ("imara_decision_duration_seconds_count", 3.0),
        ("imara_decision_duration_seconds_bucket{le=\"+Inf\"}", 3.0),
        ("imara_decision_duration_seconds_sum", 1e-9),
    ] {
        assert!(value(name) >= least, "{name}: {shown}");
    }
    assert_eq!(value("imara_queue_overflows_total"), 0.0);
    scratch.stop();
    let without = scratch.imara(&["status", "--metrics"]);
    // Where the kernel has an IMA of its own there is something in force.
    let kernels_own = std::path::Path::new("/sys/kernel/security/ima").exists();
    assert!(text(&without.stdout).contains("\nimara_up 0\n"), "{without:?}");
    assert_eq!(without.status.code() == Some(0), kernels_own, "{without:?}");
}

#[test]
fn a_refusal_is_explained_once_with_what_to_type() {
    let mut scratch = scratch!("a_refusal_is_explained_once_with_what_to_type");
    let unsigned = scratch.program("unsigned");
    scratch.guard(PROGRAMS, "enforce");
    for _ in 0..5 {
        assert!(!runs(&unsigned));
    }
    eventually("it is explained", PATIENCE, || scratch.said().contains("refused"));
    let said = scratch.said();
    let line = said.lines().find(|line| line.contains("refused")).unwrap();
    assert!(line.contains(&format!("imara sign -k /etc/keys/privkey_ima.pem {}", unsigned.display())), "{line}");
    assert!(line.contains("BPRM_CHECK, missing-hash"), "{line}");
    scratch.stop();
    assert_eq!(scratch.said().matches("BPRM_CHECK").count(), 1, "{}", scratch.said());
}

#[test]
fn a_hangup_has_the_policy_read_again_and_a_wrong_one_changes_nothing() {
    let mut scratch = scratch!("a_hangup_has_the_policy_read_again_and_a_wrong_one_changes_nothing");
    let unsigned = scratch.program("unsigned");
    scratch.guard("measure func=BPRM_CHECK\n", "enforce");
    assert!(runs(&unsigned));
    fs::write(scratch.path("policy"), PROGRAMS).unwrap();
    signal(Signal::HUP, scratch.pid());
    eventually("it is in force", PATIENCE, || scratch.said().contains("read again"));
    assert!(!runs(&unsigned));
    fs::write(scratch.path("policy"), "measure func=NONSENSE\n").unwrap();
    signal(Signal::HUP, scratch.pid());
    eventually("it is refused", PATIENCE, || scratch.said().contains("was not loaded"));
    assert!(!runs(&unsigned) && scratch.alive());
    scratch.stop();
}

#[test]
fn the_service_manager_hears_that_it_is_ready_that_it_gets_on_and_that_it_ends() {
    let mut scratch = scratch!("the_service_manager_hears_that_it_is_ready_that_it_gets_on_and_that_it_ends");
    let socket = scratch.path("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let service = scratch.path("service");
    fs::write(&service, format!("#!/bin/sh\nexport NOTIFY_SOCKET='{}'\nexec '{IMARA}' \"$@\"\n", socket.display()))
        .unwrap();
    fs::set_permissions(&service, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    scratch.imara = service;
    scratch.guard(PROGRAMS, "log");
    scratch.imara = IMARA.into();
    let hear = |wanted: &str| {
        let mut room = [0; 4096];
        eventually(wanted, PATIENCE, || {
            let length = manager.recv(&mut room).unwrap();
            &room[..length] == wanted.as_bytes()
        });
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    scratch.stop();
    hear("STOPPING=1");
}

#[test]
fn a_label_that_may_not_be_written_is_told_by_the_files_whole_path() {
    let mut scratch = scratch!("a_label_that_may_not_be_written_is_told_by_the_files_whole_path");
    let place = scratch.on("some").join("where");
    fs::create_dir_all(&place).unwrap();
    let path = place.join("file");
    fs::write(&path, "content\n").unwrap();
    set_label(&path, &digest_label(&path, HashAlgorithm::Sha256));
    settle();
    let policy = "appraise func=FILE_CHECK\nappraise func=SETXATTR_CHECK appraise_algos=sha256\n";
    scratch.guard_with(policy, "enforce", &["--level", "1"]);
    assert!(opens(&path));
    set_label(&path, &digest_label(&path, HashAlgorithm::Sha1));
    let told = |line: &str| line.contains("op=set_data cause=denied-hash-algorithm");
    eventually("it is told", PATIENCE, || scratch.audit().lines().any(told));
    let audit = scratch.audit();
    let record = audit.lines().find(|line| told(line)).unwrap();
    assert!(record.contains(&format!("name=\"{}\"", path.display())), "{record}");
}
