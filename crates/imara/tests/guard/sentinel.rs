//! A guard that no longer answers keeps nobody waiting: its sentinel sees to that.

use crate::scratch::*;
use crate::stuck::{EVERYTHING, Fuse, opener};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// `seize PROCESS [BUT]`: holds all of its threads as a debugger does, except those of a name, until its standard input ends.
const SEIZE: &str = r#"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments) {
    alarm(60);
    char path[300], name[64];
    snprintf(path, sizeof path, "/proc/%s/task", arguments[1]);
    DIR *tasks = opendir(path);
    if (!tasks) return 1;
    for (struct dirent *task; (task = readdir(tasks));) {
        if (task->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%s/task/%s/comm", arguments[1], task->d_name);
        FILE *comm = fopen(path, "r");
        /* It has ended meanwhile. */
        if (!comm) continue;
        char *read = fgets(name, sizeof name, comm);
        fclose(comm);
        if (!read) continue;
        name[strcspn(name, "\n")] = 0;
        if (count > 2 && !strcmp(name, arguments[2])) continue;
        if (ptrace(PTRACE_ATTACH, atoi(task->d_name), 0, 0)) { if (errno == ESRCH) continue; perror("ptrace"); return 3; }
        /* It may be under way to an answer until then. */
        if (waitpid(atoi(task->d_name), 0, __WALL) < 0) { perror("waitpid"); return 4; }
    }
    puts("seized");
    fflush(stdout);
    getchar();
    return 0;
}
"#;

fn sentinel(scratch: &Scratch) -> Option<u32> {
    scratch.status()["sentinel"]["pid"].as_u64().and_then(|pid| pid.try_into().ok())
}

fn is_there(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Whether no thread of a process runs any more, stopped or gone.
fn all_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stat = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
    let state = |stat: &String| stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    threads.map(stat).all(|stat| !matches!(state(&stat), Some('R' | 'S' | 'D')))
}

/// What the next guard says of the end of the one before.
fn told_by_the_next(scratch: &mut Scratch, words: &str) {
    next_second();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(scratch.said().contains(words), "{words}: {}", scratch.said());
    assert!(scratch.list().iter().any(|line| line.contains("imara_gap")));
    scratch.stop();
}

#[test]
fn a_guard_that_is_stopped_or_held_by_a_debugger_holds_up_nobody_for_long() {
    let mut scratch = scratch!("a_guard_that_is_stopped_or_held_by_a_debugger_holds_up_nobody_for_long");
    let (source, seize) = (scratch.path("seize.c"), scratch.path("seize"));
    fs::write(&source, SEIZE).unwrap();
    must(command("cc").arg("-o").arg(&seize).arg(&source));
    let unsigned = scratch.program("unsigned");
    for (how, except) in [("stopped", ""), ("process", ""), ("process", "beat")] {
        // At level 2 no debugger holds a guard that is protected: `tests/vm/scenarios/level2-guard`.
        let protection = if how == "stopped" { "on" } else { "off" };
        scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--sentinel", "4s", "--protection", protection]);
        assert!(!runs(&unsigned));
        let pid = scratch.pid();
        let mut debugger: Option<Child> = None;
        if how == "stopped" {
            signal(Signal::STOP, pid);
            eventually("none of its threads runs", PATIENCE, || all_stopped(pid));
        } else {
            let mut seize = command(&seize);
            let mut child =
                start(seize.arg(pid.to_string()).arg(except).stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
            let mut line = String::new();
            let said = child.stdout.take().unwrap();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
            assert_eq!(line, "seized\n");
            debugger = Some(child);
        }
        let mut waiting: Vec<Child> = (0..4).map(|_| start(&mut command(&unsigned)).unwrap()).collect();
        for child in &mut waiting {
            assert!(ended(child, PATIENCE).expect("it goes on").success());
        }
        if let Some(mut debugger) = debugger {
            let _ = debugger.kill();
            let _ = debugger.wait();
        }
        scratch.guards.last().unwrap().end().expect("its sentinel has ended it");
        eventually("it says so", PATIENCE, || scratch.said().contains("was ended by its sentinel"));
        told_by_the_next(&mut scratch, if how == "stopped" { "it had been stopped (SIGSTOP)" } else { "had held it" });
    }
}

#[test]
fn a_guard_that_was_killed_and_that_the_kernel_cannot_let_go_holds_up_nobody() {
    let mut scratch = scratch!("a_guard_that_was_killed_and_that_the_kernel_cannot_let_go_holds_up_nobody");
    let unsigned = scratch.program("unsigned");
    let Some(dead) = Fuse::mount(&scratch, &scratch.on("dead")) else {
        return;
    };
    scratch.guard_with(EVERYTHING, "enforce", &["--follow", "below"]);
    eventually("it is watched", PATIENCE, || scratch.status()["watch"].as_array().unwrap().len() == 2);
    let mut stuck: Vec<Child> = (0..4).map(|number| opener(&scratch, &dead.on(&format!("open-{number}")))).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!runs(&unsigned));
    let guard = scratch.guards.last().unwrap();
    signal(Signal::KILL, guard.pid);
    eventually("what is elsewhere runs again", soon(10), || runs(&unsigned));
    let still_there = guard.child.lock().unwrap().try_wait().unwrap().is_none();
    assert!(still_there, "the dead one is kept by the file system that never answers");
    told_by_the_next(&mut scratch, "did not leave the kernel");
    drop(dead);
    for child in &mut stuck {
        ended(child, PATIENCE).expect("nobody is left behind");
    }
    scratch.guards[0].end().expect("let go at last");
}

#[test]
fn a_sentinel_that_ends_or_is_stopped_is_replaced_and_none_outlives_its_guard() {
    let mut scratch = scratch!("a_sentinel_that_ends_or_is_stopped_is_replaced_and_none_outlives_its_guard");
    let unsigned = scratch.program("unsigned");
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    for (restarts, how) in [(1, Signal::KILL), (2, Signal::STOP)] {
        let first = sentinel(&scratch).expect("there is one");
        signal(how, first);
        eventually("there is another one", PATIENCE, || sentinel(&scratch).is_some_and(|now| now != first));
        assert!(!is_there(first), "{how:?}");
        assert_eq!(scratch.status()["sentinel"]["restarts"], restarts);
        assert!(!runs(&unsigned));
    }
    // The new one watches as the first did.
    signal(Signal::STOP, scratch.pid());
    eventually("accesses go on", PATIENCE, || runs(&unsigned));
    for end in ["stop", "kill"] {
        scratch.guard(SIGNED_PROGRAMS, "enforce");
        let its = sentinel(&scratch).unwrap();
        if end == "stop" {
            scratch.stop()
        } else {
            scratch.kill()
        }
        eventually("it has ended, too", PATIENCE, || !is_there(its));
        assert!(runs(&unsigned), "{end}");
    }
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--sentinel", "none"]);
    let status = scratch.status();
    assert!(status["sentinel"]["pid"].is_null() && status["sentinel"]["why"] == "as configured", "{status}");
    scratch.stop();
}

#[test]
fn the_daemon_starts_its_sentinel_by_itself() {
    let mut scratch = scratch!("the_daemon_starts_its_sentinel_by_itself");
    let daemon = scratch.path("as-daemon");
    let imarad = Path::new(env!("CARGO_BIN_EXE_imarad")).display();
    fs::write(&daemon, format!("#!/bin/sh\nshift\nexec '{imarad}' \"$@\"\n")).unwrap();
    fs::set_permissions(&daemon, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    scratch.imara = daemon;
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    scratch.imara = IMARA.into();
    assert!(sentinel(&scratch).is_some());
    scratch.stop();
}
