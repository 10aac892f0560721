//! A task that is kept from getting on between the check of its program and its execution.

use crate::scratch::*;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A control group of the first version's freezer, which freezes a task also where it waits for the guard; the second version's waits
/// until that is over.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Result<Self, String> {
        let group = Self(PathBuf::from(format!("/sys/fs/cgroup/freezer/imara-test-{}", std::process::id())));
        fs::create_dir(&group.0).map(|()| group).map_err(|error| format!("needs the first version's freezer: {error}"))
    }

    fn state(&self) -> String {
        fs::read_to_string(self.0.join("freezer.state")).unwrap().trim().to_owned()
    }

    fn put(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        let begun = Instant::now();
        // Who was in it may just be ending.
        while self.0.exists() && fs::remove_dir(&self.0).is_err() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_task_that_is_frozen_on_its_way_into_a_program_never_runs_what_is_written_to_it() {
    const NAME: &str = "a_task_that_is_frozen_on_its_way_into_a_program_never_runs_what_is_written_to_it";
    let mut scratch = scratch!("a_task_that_is_frozen_on_its_way_into_a_program_never_runs_what_is_written_to_it");
    let freezer = match Freezer::new() {
        Ok(freezer) => freezer,
        Err(reason) => return println!("skipped: {NAME}: {reason}"),
    };
    let patience = fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap().trim().parse::<u64>().unwrap();
    if !(2..=60).contains(&patience) {
        return println!("skipped: {NAME}: needs a lease to be broken within a minute, and not at once: {patience} s");
    }
    let program = scratch.signed_program("program");
    std::os::unix::fs::chown(&program, Some(USER), Some(USER)).unwrap();
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &level());
    // Its entry waits for the TPM, and the task for the guard.
    let swtpm = scratch.swtpm().unwrap();
    signal(Signal::STOP, swtpm);
    let mut task = command("sh");
    let script = format!("echo $$ > '{}/cgroup.procs' && exec '{}'", freezer.0.display(), program.display());
    let mut task = start(task.args(["-ec", &script])).unwrap();
    eventually("it waits", PATIENCE, || {
        scratch.status()["kernel"]["waiting"].as_u64().is_some_and(|waiting| waiting > 0)
    });
    freezer.put("FROZEN");
    let begun = Instant::now();
    while freezer.state() != "FROZEN" {
        if begun.elapsed() > Duration::from_secs(2) {
            signal(Signal::CONT, swtpm);
            freezer.put("THAWED");
            assert!(task.wait().unwrap().success());
            return println!("skipped: {NAME}: needs a kernel that freezes who waits for a guard");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(Signal::CONT, swtpm);
    eventually("it is answered", PATIENCE, || scratch.status()["kernel"]["waiting"] == 0);
    // Another program in its place, by somebody who may write it.
    let mut writer = command("sh");
    writer.args(["-ec", "printf '#!/bin/sh\\nexit 42\\n' > \"$1\"", "sh"]).arg(&program).uid(USER).gid(USER);
    let mut writer = start(writer.stderr(Stdio::null())).unwrap();
    if !level_2() {
        std::thread::sleep(Duration::from_millis(200));
        assert!(writer.try_wait().unwrap().is_none(), "who writes waits as long as somebody is about to execute it");
    }
    let wrote = ended(&mut writer, Duration::from_secs(patience)).expect("it gets through before the kernel lets it");
    assert!(wrote.success());
    assert!(task.try_wait().unwrap().is_none() && freezer.state() == "FROZEN", "the other is frozen all the time");
    freezer.put("THAWED");
    let how = ended(&mut task, PATIENCE).expect("it goes on");
    // At level 2 nobody has to wait, as the kernel looks at the content again when it is executed: 126 is what a shell says then.
    let expected = if level_2() { (None, Some(126)) } else { (Some(9), None) };
    assert_eq!((how.signal(), how.code()), expected, "it was killed or refused, and has run nothing");
    assert!(!runs(&program) && scratch.alive());
}
