//! What is slow, full, dead or in the way: each has a stated outcome (docs/guard.md), and none holds up an access for long.

use crate::scratch::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// In log mode each read of a file without a label is a failure, and none is remembered.
const READS: &str = "appraise func=FILE_CHECK mask=MAY_READ\n";

#[test]
fn a_tpm_that_does_not_answer_is_waited_for_once() {
    let mut scratch = scratch!("a_tpm_that_does_not_answer_is_waited_for_once");
    let programs: Vec<PathBuf> = (0..8).map(|number| scratch.signed_program(&format!("p{number}"))).collect();
    let unsigned = scratch.program("unsigned");
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[0]));
    let swtpm = scratch.swtpm().unwrap();
    signal(Signal::STOP, swtpm);
    let begun = Instant::now();
    for program in &programs {
        assert!(runs(program), "the entry stands");
    }
    assert!(!runs(&unsigned), "and what is refused is refused");
    assert!(begun.elapsed() < PATIENCE / 2, "not each entry waits: {:?}", begun.elapsed());
    let begun = Instant::now();
    let status = scratch.status();
    assert!(begun.elapsed() < soon(5), "nor does whoever asks for the status");
    assert_eq!(status["list"]["not_in_tpm"], programs.len(), "{}", status["list"]);
    assert!(programs.iter().all(|program| scratch.listed(program) == 1));
    assert_ne!(scratch.imara(&["measurement", "verify"]).status.code(), Some(0), "it shows when the list is verified");
    signal(Signal::CONT, swtpm);
    eventually("it is given what it has missed", PATIENCE, || scratch.status()["list"]["not_in_tpm"] == 0);
    scratch.proven();
    eventually("both are told", PATIENCE, || {
        let said = scratch.said();
        said.contains("does not take what is listed, from entry 3 on") && said.contains("the TPM answers again")
    });
    assert!(scratch.alive());
    scratch.stop();
}

#[test]
fn an_audit_log_that_takes_nothing_loses_records_and_counts_them() {
    let mut scratch = scratch!("an_audit_log_that_takes_nothing_loses_records_and_counts_them");
    let file = scratch.data("file", 0);
    fs::create_dir_all(&scratch.run).unwrap();
    fs::set_permissions(&scratch.run, fs::Permissions::from_mode(0o700)).unwrap();
    let log = scratch.run.join("audit.log");
    must(command("mkfifo").arg(&log));
    // There is a reader, who never reads.
    let deaf = OpenOptions::new().read(true).write(true).open(&log).unwrap();
    scratch.guard_with(READS, "log", &["--tpm", "none"]);
    assert_eq!(scratch.open_as(0, libc_flags("O_RDONLY"), &file, 6000), 0);
    let counts = scratch.status()["counts"].clone();
    assert!(counts["audit_dropped"].as_u64().unwrap() > 0, "{counts}");
    assert_eq!(counts["failed"], 6000, "what happened is counted all the same: {counts}");
    scratch.switch("enforce");
    assert!(!opens(&file));
    let begun = Instant::now();
    scratch.stop();
    assert!(begun.elapsed() < soon(15), "nor does it hold up the end");
    drop(deaf);
}

#[test]
fn a_standard_error_that_takes_nothing_holds_up_nothing() {
    let mut scratch = scratch!("a_standard_error_that_takes_nothing_holds_up_nothing");
    let unsigned: Vec<PathBuf> = (0..12).map(|number| scratch.program(&format!("u{number}"))).collect();
    let full = scratch.path("full");
    must(command("mkfifo").arg(&full));
    // As the journal that waits for the guard: a pipe that is full already.
    let mut pipe = OpenOptions::new().read(true).write(true).open(&full).unwrap();
    must(command("sh").args(["-c", "timeout 2 cat /dev/zero > \"$1\" || true", "sh"]).arg(&full));
    let silent = scratch.path("silent");
    fs::write(&silent, format!("#!/bin/sh\nexec 2> '{}'\nexec '{IMARA}' \"$@\"\n", full.display())).unwrap();
    fs::set_permissions(&silent, fs::Permissions::from_mode(0o755)).unwrap();
    scratch.imara = silent;
    // A note at the start, a word for each of these, and one at the end.
    scratch.guard_with("appraise func=BPRM_CHECK\n", "enforce", &["--tpm", "none"]);
    scratch.imara = IMARA.into();
    assert!(unsigned.iter().all(|program| !runs(program)));
    assert!(scratch.alive());
    signal(Signal::HUP, scratch.pid());
    scratch.stop();
    // Not before its end: whoever has it open keeps it full.
    let mut room = [0; 16];
    std::io::Read::read_exact(&mut pipe, &mut room).unwrap();
}

/// A journal on what is watched, which for each word of the guard's asks the guard again.
#[test]
fn a_journal_that_needs_the_guards_answers_to_take_its_words_holds_up_nothing() {
    let mut scratch = scratch!("a_journal_that_needs_the_guards_answers_to_take_its_words_holds_up_nothing");
    let unsigned: Vec<PathBuf> = (0..20).map(|number| scratch.program(&format!("u{number}"))).collect();
    let (fifo, journal) = (scratch.path("fifo"), scratch.on("journal"));
    must(command("mkfifo").arg(&fifo));
    let pipe = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    // Each word is written to a file of its own, and read again.
    let script =
        "i=0; while read -r line; do i=$((i + 1)); echo \"$line\" > \"$2/$i\"; cat \"$2\"/* > /dev/null; done < \"$1\"";
    fs::create_dir(&journal).unwrap();
    let mut server = command("setpriv");
    server.args(["--pdeathsig", "KILL", "sh", "-c", script, "sh"]).arg(&fifo).arg(&journal);
    let mut server = start(server.stderr(Stdio::null())).unwrap();
    let wordy = scratch.path("wordy");
    fs::write(&wordy, format!("#!/bin/sh\nexec 2> '{}'\nexec '{IMARA}' \"$@\"\n", fifo.display())).unwrap();
    fs::set_permissions(&wordy, fs::Permissions::from_mode(0o755)).unwrap();
    scratch.imara = wordy;
    scratch.guard_with(&format!("{READS}appraise func=BPRM_CHECK\n"), "enforce", &["--tpm", "none"]);
    scratch.imara = IMARA.into();
    let begun = Instant::now();
    assert!(unsigned.iter().all(|program| !runs(program)));
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    eventually("what it said is there", PATIENCE, || fs::read_dir(&journal).unwrap().count() > 0);
    assert!(scratch.alive());
    scratch.stop();
    let said = shell(&format!("cat '{}'/*", journal.display()));
    assert!(text(&said.stdout).contains("missing-hash"), "{said:?}");
    let _ = server.kill();
    let _ = server.wait();
    drop(pipe);
}

#[test]
fn a_log_on_a_full_file_system_is_counted_and_decisions_go_on() {
    let mut scratch = scratch!("a_log_on_a_full_file_system_is_counted_and_decisions_go_on");
    let unsigned = scratch.program("unsigned");
    let small = scratch.path("small");
    fs::create_dir(&small).unwrap();
    must(command("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&small));
    scratch.run = small.join("run");
    scratch.guard_with("appraise func=BPRM_CHECK\n", "enforce", &["--tpm", "none"]);
    let filler = small.join("filler");
    let filled = output(command("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display()))).unwrap();
    assert!(!filled.status.success(), "the file system is full");
    for _ in 0..100 {
        assert!(!runs(&unsigned));
    }
    eventually("what could not be written is counted", PATIENCE, || {
        scratch.status()["counts"]["audit_unwritten"].as_u64().unwrap() > 0
    });
    let report = scratch.json(&["report", "--json"]);
    assert_eq!(report["failures"][0]["count"], 100, "{report}");
    fs::remove_file(&filler).unwrap();
    scratch.stop();
    let _ = output(command("umount").arg("-l").arg(&small));
}

#[test]
fn a_guard_without_memory_holds_up_nobody() {
    let mut scratch = scratch!("a_guard_without_memory_holds_up_nobody");
    let programs: Vec<PathBuf> = (0..30).map(|number| scratch.signed_program(&format!("p{number}"))).collect();
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--tpm", "none"]);
    assert!(runs(&programs[0]));
    // Not a byte more from here on: it goes on with what it has, refuses, or ends, in which case the kernel lets accesses go on.
    leave_no_memory(scratch.pid());
    let begun = Instant::now();
    for program in &programs {
        // `output` has its patience.
        let _ = output(&mut command(program));
    }
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    scratch.kill();
    assert!(runs(&programs[1]));
    next_second();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(scratch.said().contains("the guard before"), "{}", scratch.said());
}

#[test]
fn a_package_is_installed_on_what_is_guarded() {
    let mut scratch = scratch!("a_package_is_installed_on_what_is_guarded");
    let package = scratch.path("package");
    fs::create_dir_all(package.join("DEBIAN")).unwrap();
    fs::create_dir_all(package.join("usr/bin")).unwrap();
    fs::write(
        package.join("DEBIAN/control"),
        "Package: imara-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.com>\nDescription: test\n",
    )
    .unwrap();
    copy("/bin/true", &package.join("usr/bin/imara-test"));
    for number in 0..200 {
        fs::write(package.join(format!("usr/bin/data-{number}")), format!("{number}\n").repeat(100)).unwrap();
    }
    let built = scratch.path("package.deb");
    let Ok(made) = output(command("dpkg-deb").args(["-Znone", "-b"]).arg(&package).arg(&built)) else {
        println!("skipped: a_package_is_installed_on_what_is_guarded: needs dpkg-deb");
        return;
    };
    assert!(made.status.success(), "{made:?}");
    let root = scratch.on("root");
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    File::create(root.join("var/lib/dpkg/status")).unwrap();
    File::create(root.join("var/lib/dpkg/available")).unwrap();
    let policy = "measure func=FILE_CHECK mask=MAY_READ\nmeasure func=BPRM_CHECK\nhash func=FILE_CHECK\nappraise func=BPRM_CHECK\n";
    scratch.guard(policy, "enforce");
    let begun = Instant::now();
    let mut dpkg = command("dpkg");
    dpkg.arg("--root").arg(&root).args(["--force-not-root", "--force-all", "-i"]).arg(&built).stdout(Stdio::null());
    let done = output(&mut dpkg).unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(begun.elapsed() < PATIENCE);
    let program = root.join("usr/bin/imara-test");
    eventually("what it has written is labelled at its last close, and runs", PATIENCE, || runs(&program));
    assert!(scratch.alive());
    scratch.proven();
}

/// A control group with little memory.
struct LittleMemory(PathBuf);

impl LittleMemory {
    fn new() -> Result<Self, String> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let first = groups.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path.to_owned()));
        let name = format!("imara-test-{}", std::process::id());
        let (place, limit) = match first {
            Some(path) => (PathBuf::from(format!("/sys/fs/cgroup/memory{path}/{name}")), "memory.limit_in_bytes"),
            None => (PathBuf::from(format!("/sys/fs/cgroup/{name}")), "memory.max"),
        };
        let group = Self(place);
        let made = fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(limit), (96 << 20).to_string()));
        made.map(|()| group).map_err(|error| format!("needs a control group for memory: {error}"))
    }

    /// A shell's words that enter it, with a readiness to be killed.
    fn enter(&self, score: i32) -> String {
        format!("echo {score} > /proc/self/oom_score_adj && echo $$ > '{}/cgroup.procs'", self.0.display())
    }
}

impl Drop for LittleMemory {
    fn drop(&mut self) {
        let begun = Instant::now();
        // Who was in it may just be ending.
        while self.0.exists() && fs::remove_dir(&self.0).is_err() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn the_oom_killer_holds_up_nobody_and_spares_a_guard_that_runs_as_its_unit_says() {
    const NAME: &str = "the_oom_killer_holds_up_nobody_and_spares_a_guard_that_runs_as_its_unit_says";
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../dist/imarad.service")).unwrap();
    assert!(unit.contains("OOMScoreAdjust=-1000"));
    // Whoever has more is killed first. That a score may be lowered depends on CAP_SYS_RESOURCE.
    for (guards, hogs) in [(0, 1000), (1000, 0)] {
        let mut scratch = scratch!("the_oom_killer_holds_up_nobody_and_spares_a_guard_that_runs_as_its_unit_says");
        let little = match LittleMemory::new() {
            Ok(little) => little,
            Err(reason) => return println!("skipped: {NAME}: {reason}"),
        };
        let unsigned = scratch.program("unsigned");
        let inside = scratch.path("inside");
        fs::write(&inside, format!("#!/bin/sh\n{} && exec '{IMARA}' \"$@\"\n", little.enter(guards))).unwrap();
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755)).unwrap();
        scratch.imara = inside;
        scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--tpm", "none"]);
        scratch.imara = IMARA.into();
        assert!(!runs(&unsigned));
        let status = scratch.status();
        for pid in [u64::from(scratch.pid()), status["sentinel"]["pid"].as_u64().unwrap()] {
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
            assert_eq!(score.trim(), guards.to_string(), "{pid}: as much for the sentinel");
        }
        // Keeps all that it reads from a pipe.
        let mut hog = command("setpriv");
        hog.args(["--pdeathsig", "KILL", "sh", "-c"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut hog = start(hog.arg(format!("{} && head -c 1G /dev/zero | tail -c 1G", little.enter(hogs)))).unwrap();
        if guards < hogs {
            assert!(!ended(&mut hog, PATIENCE).expect("somebody is killed").success());
            assert!(scratch.alive() && !runs(&unsigned));
            scratch.stop();
            continue;
        }
        scratch.guards.last().unwrap().end().expect("somebody is killed");
        assert!(runs(&unsigned), "nothing is guarded any more, and nobody waits");
        let _ = hog.kill();
        let _ = hog.wait();
        next_second();
        scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--tpm", "none"]);
        assert!(scratch.said().contains("the guard before") && !runs(&unsigned), "{}", scratch.said());
        scratch.stop();
    }
}
