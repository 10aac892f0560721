//! Whatever fails or is slow, nobody hangs.

use crate::scratch::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn nobody_hangs_when_the_guard_is_killed() {
    let mut scratch = scratch!("nobody_hangs_when_the_guard_is_killed");
    for number in 0..20 {
        scratch.signed_program(&format!("f{number}"));
    }
    let large = scratch.data("large", 0);
    OpenOptions::new().write(true).open(&large).unwrap().set_len(1 << 40).unwrap();
    let policy = format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n");
    scratch.guard(&policy, "enforce");
    let mnt = scratch.mnt.to_str().unwrap().to_owned();
    let mut blocked = start(&mut scratch.tool(&["open", "0", large.to_str().unwrap(), "1"])).unwrap();
    let mut busy: Vec<Child> =
        (0..4).map(|seed| start(&mut scratch.tool(&["mix", &mnt, "20", "1500", &seed.to_string()])).unwrap()).collect();
    thread::sleep(Duration::from_millis(100));
    assert!(blocked.try_wait().unwrap().is_none(), "hashing a terabyte takes longer");
    scratch.kill();
    let status = ended(&mut blocked, PATIENCE).expect("an access that waited goes on");
    assert_eq!(status.code(), Some(0));
    for child in &mut busy {
        assert_eq!(ended(child, PATIENCE).expect("nobody hangs").code(), Some(0));
    }
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let chain = scratch.status()["list"]["chain"].as_str().unwrap().to_owned();
    assert!(chain.starts_with("whole"), "{chain}");
    scratch.proven();
}

#[test]
fn the_guards_own_files_may_lie_on_what_it_watches() {
    let mut scratch = scratch!("the_guards_own_files_may_lie_on_what_it_watches");
    scratch.run = scratch.on("run");
    scratch.imara = scratch.on("imara");
    copy(IMARA, &scratch.imara);
    let mut cp = command("cp");
    must(cp.arg("-r").arg(scratch.path("keys")).arg(scratch.on("keys")));
    let files = scratch.on("files");
    fs::create_dir(&files).unwrap();
    for number in 0..200 {
        copy_quickly(Path::new("/bin/true"), &files.join(format!("f{number}")));
    }
    let half: Vec<PathBuf> = (0..100).map(|number| files.join(format!("f{number}"))).collect();
    let mut labelled: Vec<&Path> = half.iter().map(PathBuf::as_path).collect();
    let (imara, key, policy) = (scratch.imara.clone(), scratch.on("keys/x509_ima.der"), scratch.on("policy"));
    labelled.push(&imara);
    fs::write(&policy, "measure\nappraise func=FILE_CHECK mask=MAY_READ\nappraise func=BPRM_CHECK\naudit\n").unwrap();
    scratch.sign(&labelled);
    settle();
    let mnt = scratch.mnt.clone();
    if let Err(failed) = scratch.launch_with(&mnt, &policy, &key, "log", &[]) {
        panic!("{}", failed.stderr);
    }
    assert!(opens(&policy) && runs(&files.join("f0")) && runs(&files.join("f150")));
    scratch.proven();
    let mut busy: Vec<Child> = (0..8)
        .map(|seed| {
            start(&mut scratch.tool(&["mix", files.to_str().unwrap(), "200", "500", &seed.to_string()])).unwrap()
        })
        .collect();
    let mut modes = ["enforce", "log"].iter().cycle();
    let begun = Instant::now();
    while busy.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        assert!(begun.elapsed() < PATIENCE, "accesses hang");
        scratch.switch(modes.next().unwrap());
    }
    for child in &mut busy {
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    scratch.switch("enforce");
    assert!(runs(&files.join("f1")) && !runs(&files.join("f151")) && !opens(&policy));
    assert!(opens(&files.join("f2")) && !opens(&files.join("f152")));
    for number in 0..200 {
        assert_eq!(opens(&files.join(format!("f{number}"))), number < 100, "f{number}, let pass before or not");
    }
    assert!(scratch.alive());
    scratch.switch("log");
    scratch.proven();
    scratch.stop();
    assert!(fs::metadata(scratch.run.join("audit.log")).unwrap().len() > 0);
}

fn copy_quickly(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}

#[test]
fn large_files_do_not_hold_up_small_ones() {
    let mut scratch = scratch!("large_files_do_not_hold_up_small_ones");
    let small: Vec<PathBuf> = (0..20).map(|number| scratch.signed_program(&format!("small-{number}"))).collect();
    let policy = format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n");
    let mut opening = Vec::new();
    let large: Vec<PathBuf> = (0..12).map(|number| scratch.on(&format!("large-{number}"))).collect();
    for path in &large {
        File::create(path).unwrap().set_len(1 << 40).unwrap();
    }
    settle();
    scratch.guard(&policy, "enforce");
    for path in &large {
        opening.push(start(&mut scratch.tool(&["open", "0", path.to_str().unwrap(), "1"])).unwrap());
        thread::sleep(Duration::from_millis(10));
    }
    let mut slowest = Duration::ZERO;
    for path in &small {
        let begun = Instant::now();
        assert!(runs(path));
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "a small program waited for {slowest:?}");
    assert!(opening.iter_mut().all(|child| child.try_wait().unwrap().is_none()), "hashing a terabyte takes longer");
    assert!(scratch.alive());
    scratch.kill();
    for child in &mut opening {
        ended(child, PATIENCE).expect("nobody hangs");
    }
}

#[test]
fn few_descriptors_are_enough() {
    let mut scratch = scratch!("few_descriptors_are_enough");
    let limited = scratch.path("limited-imara");
    fs::write(&limited, format!("#!/bin/sh\nulimit -n 96\nexec '{IMARA}' \"$@\"\n")).unwrap();
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755)).unwrap();
    let paths: Vec<PathBuf> = (0..300).map(|number| scratch.data(&format!("f{number}"), USER)).collect();
    let signed = scratch.signed_program("signed");
    settle();
    scratch.imara = limited;
    scratch.guard(&format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n"), "enforce");
    scratch.imara = IMARA.into();
    for _ in 0..2 {
        assert!(paths.iter().all(|path| opens(path)));
    }
    let status = scratch.status();
    let leases = status["kernel"]["leases"].as_u64().unwrap();
    assert!(leases > 0 && leases <= 24, "{leases} leases");
    assert_eq!(status["kernel"]["lost"], 0);
    shell(&format!("for file in '{}'/f*; do echo more >> \"$file\"; done", scratch.mnt.display()));
    assert!(paths.iter().all(|path| opens(path)) && runs(&signed) && scratch.alive());
    assert!(paths.iter().all(|path| scratch.listed(path) == 2));
    scratch.proven();
}

#[test]
fn a_software_tpm_that_dies_is_started_again_and_given_the_list() {
    let mut scratch = scratch!("a_software_tpm_that_dies_is_started_again_and_given_the_list");
    let programs = ["one", "two", "three"].map(|name| scratch.signed_program(name));
    let unsigned = scratch.program("unsigned");
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[0]));
    scratch.proven();
    let first = scratch.swtpm().unwrap();
    // At level 2 whoever has started the guard can, and nobody else.
    let is_protected = |tpm: u32| !level_2() || !is_killed_by_a_stranger(tpm);
    assert!(is_protected(first));
    signal(Signal::KILL, first);
    assert!(runs(&programs[1]) && !runs(&unsigned), "accesses go on meanwhile");
    let again = |scratch: &Scratch, restarts: u64| {
        eventually("it runs again and has the list", PATIENCE, || {
            let status = scratch.status();
            status["tpm"]["restarts"] == restarts && status["list"]["not_in_tpm"] == 0
        });
    };
    again(&scratch, 1);
    let second = scratch.swtpm().unwrap();
    assert_ne!(first, second);
    assert_eq!(scratch.status()["tpm"]["pid"], second);
    scratch.proven();
    assert!(is_protected(second), "as the first one was");
    assert!(runs(&programs[2]) && scratch.listed(&programs[2]) == 1);
    scratch.proven();
    eventually("it is told", PATIENCE, || scratch.said().contains("it was started again"));
    // Signals end it, although the guard blocks them; so it is stopped with its PCRs kept.
    let status = fs::read_to_string(format!("/proc/{second}/status")).unwrap();
    assert!(status.lines().any(|line| line == "SigBlk:\t0000000000000000"), "{status}");
    signal(Signal::KILL, second);
    again(&scratch, 2);
    scratch.proven();
    scratch.stop();
    next_second();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let chain = scratch.status()["list"]["chain"].as_str().unwrap().to_owned();
    assert!(chain.starts_with("whole"), "{chain}");
    scratch.proven();
}

#[test]
fn a_list_that_was_changed_is_not_given_to_a_software_tpm_that_had_died() {
    let mut scratch = scratch!("a_list_that_was_changed_is_not_given_to_a_software_tpm_that_had_died");
    let programs = ["one", "two"].map(|name| scratch.signed_program(name));
    settle();
    // At level 2 nobody but the guard may change its list.
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--protection", "off"]);
    assert!(runs(&programs[0]));
    scratch.proven();
    change_a_byte(&scratch.run.join("measurements"));
    scratch.kill_swtpm();
    assert!(runs(&programs[1]) && runs(&programs[0]), "the entry stands, and accesses go on");
    assert!(!runs(&scratch.program("unsigned")));
    eventually("that is told", PATIENCE, || scratch.said().contains("does not come to what PCR 10 held"));
    assert!(scratch.status()["list"]["departure"].as_str().is_some_and(|why| why.contains("the TPM was reset")));
    assert!(scratch.status()["list"]["not_in_tpm"].as_u64().unwrap() > 0);
    let verified = scratch.imara(&["measurement", "verify"]);
    assert!(matches!(verified.status.code(), Some(1 | 3)), "{verified:?}");
    assert!(scratch.alive());
}

#[test]
fn changes_that_found_no_room_in_the_queue_have_everything_asked_about_again() {
    const NAME: &str = "changes_that_found_no_room_in_the_queue_have_everything_asked_about_again";
    let limit = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap_or_default();
    let limit: u32 = limit.trim().parse().unwrap_or(16384);
    if limit > 20_000 {
        return println!("skipped: {NAME}: needs a limit on queues that can be reached: {limit}");
    }
    let mut scratch = scratch!("changes_that_found_no_room_in_the_queue_have_everything_asked_about_again");
    let program = scratch.signed_program("program");
    let many: Vec<PathBuf> = (0..limit + 1000).map(|number| scratch.on(&number.to_string())).collect();
    for path in &many {
        File::create(path).unwrap();
    }
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--level", "1", "--sentinel", "none"]);
    for _ in 0..3 {
        assert!(runs(&program));
    }
    let before = scratch.events();
    assert!(runs(&program));
    assert_eq!(scratch.events(), before, "it is let pass unasked");
    assert_eq!(scratch.status()["kernel"]["overflows"], 0);
    signal(Signal::STOP, scratch.pid());
    let threads = PathBuf::from(format!("/proc/{}/task", scratch.pid()));
    let stopped = |thread: &Path| fs::read_to_string(thread.join("stat")).is_ok_and(|stat| stat.contains(") T "));
    eventually("each of its threads is stopped", PATIENCE, || {
        fs::read_dir(&threads).unwrap().all(|thread| stopped(&thread.unwrap().path()))
    });
    // Changes of one inode are told once, so it takes as many inodes as there is room.
    for path in &many {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    must(command("setfattr").args(["-x", "security.ima"]).arg(&program));
    assert!(runs(&program), "nobody has heard of it");
    signal(Signal::CONT, scratch.pid());
    eventually("it is counted", PATIENCE, || {
        scratch.status()["kernel"]["overflows"].as_u64().is_some_and(|lost| lost > 0)
    });
    eventually("and asked about again", PATIENCE, || !runs(&program));
    let shown = must(&mut scratch.command(&["status", "--metrics"]));
    let counted = |line: &str| line.strip_prefix("imara_queue_overflows_total ").is_some_and(|count| count != "0");
    assert!(text(&shown.stdout).lines().any(counted));
    scratch.proven();
}

/// A file system for the runtime directory.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = output(command("umount").arg("-l").arg(&self.0));
    }
}

#[test]
fn what_cannot_be_listed_is_refused_until_it_can() {
    let mut scratch = scratch!("what_cannot_be_listed_is_refused_until_it_can");
    let small = scratch.path("small");
    fs::create_dir(&small).unwrap();
    must(command("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&small));
    let small = Small(small);
    scratch.run = small.0.join("run");
    let programs: Vec<PathBuf> = (0..40).map(|number| scratch.signed_program(&format!("p{number}"))).collect();
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--tpm", "none"]);
    assert!(runs(&programs[0]));
    let filler = small.0.join("filler");
    let filled = output(command("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display()))).unwrap();
    assert!(!filled.status.success(), "the file system is full");
    // What is left of the list's last page.
    let refused = programs.iter().skip(1).filter(|path| !runs(path)).count();
    assert!(refused > 0);
    assert_eq!(scratch.status()["recent"][0]["cause"], "measurement-failed");
    assert!(runs(&programs[0]), "what is listed already");
    fs::remove_file(&filler).unwrap();
    assert!(programs.iter().all(|path| runs(path)), "there is room again");
    assert!(programs.iter().all(|path| scratch.listed(path) == 1));
    assert_eq!(scratch.list().len(), 1 + programs.len());
    let mut verify = command(IMARA);
    let verified =
        must(verify.args(["measurement", "verify", "-"]).stdin(File::open(scratch.run.join("measurements")).unwrap()));
    assert!(text(&verified.stdout).contains("entries 41"), "no entry is broken: {verified:?}");
    scratch.stop();
}

#[test]
fn a_list_whose_file_system_went_read_only_refuses_what_would_have_to_be_listed() {
    const NAME: &str = "a_list_whose_file_system_went_read_only_refuses_what_would_have_to_be_listed";
    let mut scratch = scratch!("a_list_whose_file_system_went_read_only_refuses_what_would_have_to_be_listed");
    let (image, place) = (scratch.path("disk"), scratch.path("place"));
    File::create(&image).and_then(|file| file.set_len(16 << 20)).unwrap();
    fs::create_dir(&place).unwrap();
    must(command("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    must(command("mount").args(["-o", "loop,errors=remount-ro"]).arg(&image).arg(&place));
    let place = Small(place);
    let device = must(command("findmnt").args(["-n", "-o", "SOURCE"]).arg(&place.0));
    let device = text(&device.stdout).trim().trim_start_matches("/dev/").to_owned();
    let fault = PathBuf::from(format!("/sys/fs/ext4/{device}/trigger_fs_error"));
    if !fault.exists() {
        return println!("skipped: {NAME}: needs {}", fault.display());
    }
    scratch.run = place.0.join("run");
    let [listed, new, more] = ["listed", "new", "more"].map(|name| scratch.signed_program(name));
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--tpm", "none"]);
    assert!(runs(&listed));
    // As when the disk answers with an error.
    fs::write(&fault, "1").unwrap();
    assert!(!runs(&new) && !runs(&more), "it cannot be listed");
    assert!(runs(&listed), "what is listed already");
    let recent = scratch.status()["recent"][0].clone();
    assert_eq!(recent["cause"], "measurement-failed", "{recent}");
    // Which of them is the kernel's choice.
    let tells = |said: &str| said.contains("Read-only") || said.contains("Input/output error");
    assert!(recent["detail"].as_str().is_some_and(tells), "{recent}");
    scratch.switch("log");
    assert!(runs(&new), "in log mode it goes on");
    let shown = scratch.imara(&["measurement", "show", "--ascii"]);
    // Linux 6.12 does not let such a file system be read any more, either.
    let is_read = !text(&shown.stderr).contains("Input/output error");
    let entries = text(&shown.stdout).lines().count();
    assert!(!is_read || entries == 2, "no entry is broken, and none is there that was not whole: {shown:?}");
    signal(Signal::TERM, scratch.pid());
    let ended = scratch.guards.last().unwrap().end().expect("it ends");
    assert_eq!(ended.code(), Some(1), "it cannot note that it ended in order: {}", scratch.said());
    assert!(tells(&scratch.said()), "{}", scratch.said());
}
