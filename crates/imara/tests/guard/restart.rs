//! A guard that starts, ends, is killed, and goes on.

use crate::scratch::*;
use imara_engine::tpm::Tpm;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::measurement_list::{ByteOrder, Reader};
use imara_linux::tpm_socket::SocketTransport;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn the_list_goes_on_after_an_end_in_order_and_after_a_kill() {
    let mut scratch = scratch!("the_list_goes_on_after_an_end_in_order_and_after_a_kill");
    let programs = ["one", "two", "three"].map(|name| scratch.signed_program(name));
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[0]));
    let first = scratch.list();
    scratch.stop();
    assert!(scratch.swtpm().is_none(), "the software TPM ends with the guard");
    // The kernel's own IMA has a status as well.
    let without = if Path::new("/sys/kernel/security/ima").exists() { 0 } else { 3 };
    assert_eq!(scratch.imara(&["status"]).status.code(), Some(without));

    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[1]));
    let second = scratch.list();
    assert_eq!(second[..first.len()], first);
    let gap = &second[first.len()];
    assert!(gap.contains(" ima-buf ") && gap.contains(" imara_gap "), "{gap}");
    let status = scratch.status();
    assert_eq!((status["gap"]["cause"].as_str(), status["list"]["chain"].as_str()), (Some("stopped"), Some("whole")));
    scratch.proven();

    scratch.kill();
    let pid = scratch.pid();
    assert!(runs(&scratch.program("while-nobody-guards")));
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let said = scratch.said();
    assert!(said.contains(&format!("(process {pid}) was killed")) && said.contains("imara_gap"), "{said}");
    assert!(runs(&programs[2]) && !runs(&scratch.on("while-nobody-guards")));
    let third = scratch.list();
    assert_eq!(third[..second.len()], second);
    assert!(third[second.len()].contains(" imara_gap "), "{third:?}");
    let status = scratch.status();
    assert_eq!((status["gap"]["cause"].as_str(), status["list"]["chain"].as_str()), (Some("killed"), Some("whole")));
    scratch.proven();

    scratch.kill();
    scratch.kill_swtpm();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(scratch.said().contains("a fresh list begins"), "{}", scratch.said());
    let kept = fs::read(scratch.run.join("measurements.tpm-lost.1")).unwrap();
    let mut shown = command(IMARA);
    let shown = must(shown.args(["measurement", "show", "--ascii"]).arg(scratch.run.join("measurements.tpm-lost.1")));
    assert_eq!(text(&shown.stdout).lines().collect::<Vec<_>>(), third, "{} bytes", kept.len());
    assert!(scratch.list()[0].contains("boot_aggregate") && scratch.list().len() == 2, "{:?}", scratch.list());
    scratch.proven();
}

#[test]
fn a_list_that_a_kill_left_unfinished_is_mended() {
    let mut scratch = scratch!("a_list_that_a_kill_left_unfinished_is_mended");
    let programs = ["one", "two", "three"].map(|name| scratch.signed_program(name));
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[0]));
    scratch.kill();
    let mirror = scratch.run.join("measurements");
    let records = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        let mut records = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            let mut room = Vec::new();
            record.write_binary(ByteOrder::Little, &mut room);
            records.push(room);
        }
        records
    };
    let append = |bytes: &[u8]| OpenOptions::new().append(true).open(&mirror).unwrap().write_all(bytes).unwrap();

    // Killed while it wrote an entry.
    let whole = fs::read(&mirror).unwrap();
    let last = records(&whole).pop().unwrap();
    append(&last[..last.len() - 7]);
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(scratch.said().contains("measurements.cut"), "{}", scratch.said());
    assert_eq!(fs::read(scratch.run.join("measurements.cut.1")).unwrap(), &last[..last.len() - 7]);
    assert!(runs(&programs[1]));
    assert!(fs::read(&mirror).unwrap().starts_with(&whole));
    scratch.proven();

    // Killed between the entry and the TPM.
    scratch.kill();
    let whole = fs::read(&mirror).unwrap();
    append(&records(&whole).pop().unwrap());
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let chain = scratch.status()["list"]["chain"].as_str().unwrap().to_owned();
    assert!(chain.contains("given the last entry"), "{chain}");
    assert!(runs(&programs[2]));
    scratch.proven();

    // Changed by somebody.
    scratch.kill();
    let whole = fs::read(&mirror).unwrap();
    append(&[records(&whole).pop().unwrap(), records(&whole).pop().unwrap()].concat());
    next_second();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(scratch.said().contains("the chain of the measurement list is broken"), "{}", scratch.said());
    let verified = scratch.imara(&["measurement", "verify"]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    assert!(runs(&programs[2]));
}

#[test]
fn a_bank_that_does_not_agree_with_the_list_is_told_once_the_guard_is_in_force() {
    const NAME: &str = "a_bank_that_does_not_agree_with_the_list_is_told_once_the_guard_is_in_force";
    let mut scratch = scratch!("a_bank_that_does_not_agree_with_the_list_is_told_once_the_guard_is_in_force");
    let program = scratch.signed_program("program");
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&program));
    let tpm = scratch.status()["tpm"].clone();
    let banks = tpm["banks"].as_array().unwrap().iter().map(|bank| bank.as_str().unwrap().to_owned());
    // The guard decides by SHA-256 alone.
    let Some(other) =
        banks.filter_map(|bank| HashAlgorithm::from_name(&bank)).find(|bank| *bank != HashAlgorithm::Sha256)
    else {
        println!("skipped: {NAME}: needs a TPM with more banks than SHA-256");
        return;
    };
    scratch.kill();
    let socket = SocketTransport::unix(tpm["socket"].as_str().unwrap().into());
    Tpm::new(Box::new(socket)).unwrap().pcr_extend(10, &[Digest::ones(other)]).unwrap();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    eventually("the bank is told", PATIENCE, || {
        let chain = scratch.status()["list"]["chain"].as_str().unwrap().to_owned();
        chain.contains(&format!("broken: the PCRs of the {other} bank"))
    });
    let said = format!("the chain of the measurement list is broken: the PCRs of the {other} bank");
    eventually("it is said", PATIENCE, || scratch.said().contains(&said));
    assert!(runs(&program));
}

#[test]
fn what_the_tpm_of_a_killed_guard_had_missed_the_next_one_gives_it() {
    let mut scratch = scratch!("what_the_tpm_of_a_killed_guard_had_missed_the_next_one_gives_it");
    let programs: Vec<_> = (0..5).map(|number| scratch.signed_program(&format!("p{number}"))).collect();
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[0]));
    let swtpm = scratch.swtpm().unwrap();
    signal(Signal::STOP, swtpm);
    assert!(programs.iter().all(|program| runs(program)));
    eventually("the guard has noted it", PATIENCE, || scratch.said().contains("from entry 3 on"));
    scratch.kill();
    signal(Signal::CONT, swtpm);
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let chain = scratch.status()["list"]["chain"].as_str().unwrap().to_owned();
    // The one that was sent when the TPM was stopped may have been done since.
    assert!(chain.contains("given the last 4 entries") || chain.contains("given the last 3 entries"), "{chain}");
    assert_eq!(scratch.status()["list"]["not_in_tpm"], 0);
    scratch.proven();
}

#[test]
fn a_guard_that_cannot_start_says_why_and_watches_nothing() {
    let mut scratch = scratch!("a_guard_that_cannot_start_says_why_and_watches_nothing");
    let unsigned = scratch.program("unsigned");
    let (mnt, certificate) = (scratch.mnt.clone(), scratch.certificate());
    let policy = scratch.path("good-policy");
    fs::write(&policy, SIGNED_PROGRAMS).unwrap();
    let bad = scratch.path("bad-policy");
    fs::write(&bad, "measure func=BPRM_CHECK\nappraise func=BPRM_CHEKC\n").unwrap();
    let random = scratch.path("random");
    fs::write(&random, [0x30, 0x82, 0xff, 0xff, 1, 2, 3]).unwrap();
    let nothing = scratch.path("nothing");
    let cases: [(&str, &Path, &Path, &Path, i32, &str); 7] = [
        ("a bad policy", &mnt, &bad, &certificate, 1, "line 2"),
        ("no policy", &mnt, &nothing, &certificate, 1, "nothing"),
        ("no key", &mnt, &policy, &nothing, 1, "nothing"),
        ("a random key", &mnt, &policy, &random, 1, "random"),
        ("no directory", &nothing, &policy, &certificate, 1, "nothing"),
        ("no directory but a file", &random, &policy, &certificate, 1, "random"),
        ("nothing to guard", Path::new("/proc"), &policy, &certificate, 2, "proc"),
    ];
    for (what, watch, policy, key, code, word) in cases {
        let failed = scratch.launch_with(watch, policy, key, "enforce", &["--tpm", "none"]).expect_err(what);
        assert_eq!(failed.status.code(), Some(code), "{what}: {}", failed.stderr);
        assert!(failed.stderr.contains(word), "{what}: {}", failed.stderr);
        assert!(runs(&unsigned), "{what}: nothing is watched");
    }
    // Found out only when the software TPM runs already: it is stopped again.
    let _ = fs::remove_file(scratch.run.join("control.sock"));
    fs::create_dir_all(scratch.run.join("control.sock/occupied")).unwrap();
    let with_tpm: [(&str, &[&str], i32, &str); 3] = [
        ("a template that nobody has", &["--template", "ima-x"], 2, "ima-x"),
        ("a hash that nobody computes", &["--hash", "md4"], 2, "md4"),
        ("no room for the socket", &[], 1, "directory"),
    ];
    for (what, more, code, word) in with_tpm {
        let failed = scratch.launch(SIGNED_PROGRAMS, "enforce", more).expect_err(what);
        assert_eq!(failed.status.code(), Some(code), "{what}: {}", failed.stderr);
        assert!(failed.stderr.contains(word), "{what}: {}", failed.stderr);
        assert!(runs(&unsigned) && scratch.swtpm().is_none(), "{what}: nothing is left");
    }
    fs::remove_dir_all(scratch.run.join("control.sock")).unwrap();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert_eq!((scratch.said().as_str(), &scratch.status()["gap"]["cause"]), ("", &"stopped".into()));
    let pid = scratch.pid();
    let failed = scratch.launch_with(&mnt, &policy, &certificate, "enforce", &[]).expect_err("a second guard");
    assert_eq!(failed.status.code(), Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains(&format!("process {pid}")), "{}", failed.stderr);
    assert!(scratch.alive() && !runs(&unsigned), "the first goes on");
    scratch.proven();
}

#[test]
fn a_guard_follows_one_that_was_killed_just_now() {
    let mut scratch = scratch!("a_guard_follows_one_that_was_killed_just_now");
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    for _ in 0..3 {
        // Not waited for: its lock goes with its last thread.
        signal(Signal::KILL, scratch.pid());
        scratch.guard(SIGNED_PROGRAMS, "enforce");
    }
    assert_eq!(scratch.list().iter().filter(|line| line.contains(" imara_gap ")).count(), 3);
    scratch.proven();
}

#[test]
fn a_guard_that_is_ended_leaves_nothing_behind() {
    let mut scratch = scratch!("a_guard_that_is_ended_leaves_nothing_behind");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.program("unsigned"));
    let users = scratch.data("users", USER);
    settle();
    for _ in 0..2 {
        scratch.guard(&format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK\n"), "enforce");
        assert!(runs(&signed) && !runs(&unsigned) && opens(&users));
        settle();
        assert!(opens(&users));
        let pid = scratch.pid();
        scratch.stop();
        assert!(!Path::new(&format!("/proc/{pid}/fd/0")).exists());
        assert!(runs(&unsigned), "nothing is guarded any more");
        assert!(!scratch.run.join("control.sock").exists());
        assert!(scratch.swtpm().is_none());
        unmount(&scratch.mnt);
        must(command("mount").args(["-o", "loop"]).arg(scratch.path("image")).arg(&scratch.mnt));
    }
}

#[test]
fn a_guard_ends_in_order_while_it_reads_a_large_file() {
    let mut scratch = scratch!("a_guard_ends_in_order_while_it_reads_a_large_file");
    let large = scratch.on("large");
    File::create(&large).unwrap().set_len(1 << 40).unwrap();
    settle();
    scratch.guard("measure func=FILE_CHECK mask=MAY_READ\n", "enforce");
    let mut blocked = start(&mut scratch.tool(&["open", "0", large.to_str().unwrap(), "1"])).unwrap();
    thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    scratch.stop();
    assert!(begun.elapsed() < soon(5), "{:?}", begun.elapsed());
    assert_eq!(ended(&mut blocked, PATIENCE).expect("nobody hangs").code(), Some(EPERM), "what cannot be measured");
    assert!(opens(&large), "nothing is guarded any more");
    scratch.guard("measure func=FILE_CHECK mask=MAY_READ\n", "enforce");
    assert_eq!(scratch.status()["gap"]["cause"], "stopped");
    scratch.proven();
}
