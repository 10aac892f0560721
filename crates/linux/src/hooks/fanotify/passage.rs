//! From the answer to an execution until the kernel itself keeps writers away.
//!
//! execve(2) opens the program, for which we are asked, and only then denies everybody to write to it (ETXTBSY). Who opens
//! it for writing in between could run what nobody has judged: a few microseconds, or as long as the task does not get
//! a processor. So the read lease that was held while the file was judged is held on, by the event's own descriptor, until the
//! task runs the program, or is gone, or is seen at something else: a writer waits that long.
//!
//! No clock tells how long that takes, as a task can have itself starved (SCHED_IDLE) or frozen (cgroups). But the kernel
//! ends a lease by itself once somebody has waited to write for `/proc/sys/fs/lease-break-time` seconds. A task that has not
//! got through shortly before that is killed: it never comes to run what it executes.

use super::Shared;
use super::question::Asked;
use crate::process::waits_elsewhere_than_in_exec;
use crate::sys::{lease, process};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError};
use std::time::{Duration, Instant};

/// How often it is looked whether a task has got there: at first, and after a while.
const STEP: Duration = Duration::from_micros(200);
const LATER: Duration = Duration::from_millis(10);

/// From the opening of a program to ETXTBSY takes some microseconds of the processor: who has used this many clock ticks
/// (of 10 ms; the first may have been begun before) is elsewhere.
const MOST_TICKS: u64 = 2;

/// So many tasks at once; more go without.
const MOST_AT_ONCE: usize = 1024;

/// A task on its way into a program.
pub(super) struct Passage {
    asked: Arc<Asked>,
    /// What it was when it asked.
    before: Option<State>,
    begun: Instant,
}

/// What is seen of a task.
#[derive(Clone, PartialEq, Eq, Debug)]
struct State {
    program: Program,
    stat: Stat,
}

/// What a task runs.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Program {
    /// Its parent's: it was forked, and has executed nothing since (`PF_FORKNOEXEC`). No task can change that but by executing.
    Parents,
    /// This file, by device and inode.
    File(u32, u32, u64),
}

/// What proc_pid_stat(5) says of a task.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stat {
    /// Field 3.
    sleeps: bool,
    /// Field 9, the flag `PF_FORKNOEXEC`.
    is_only_forked: bool,
    /// Fields 14 and 15, the processor's time in clock ticks.
    ticks: u64,
    /// Field 22, when it was started: with its number this names it.
    started: u64,
}

impl Stat {
    /// The second field, a name in parentheses, may hold anything.
    fn parse(stat: &[u8]) -> Option<Self> {
        const PF_FORKNOEXEC: u64 = 0x40;
        let fields = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
        let fields: Vec<&str> = std::str::from_utf8(fields).ok()?.split_whitespace().collect();
        // The first of these is the third.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            sleeps: matches!(*fields.first()?, "S" | "D" | "I" | "T" | "t"),
            is_only_forked: number(9)? & PF_FORKNOEXEC != 0,
            ticks: number(14)?.saturating_add(number(15)?),
            started: number(22)?,
        })
    }
}

/// Looking at it opens nothing, and asks no server of a file system over a network.
fn state_of(tid: i32) -> Option<State> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let stat = Stat::parse(&std::fs::read(format!("/proc/{tid}/stat")).ok()?)?;
    if stat.is_only_forked {
        return Some(State { program: Program::Parents, stat });
    }
    let file = statx(CWD, format!("/proc/{tid}/exe"), AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some(State { program: Program::File(file.stx_dev_major, file.stx_dev_minor, file.stx_ino), stat })
}

/// Whether a task that was `before` and is `now` can no longer be on its way into a program.
fn is_elsewhere(before: &State, now: &State) -> bool {
    now.program != before.program
        || now.stat.started != before.stat.started
        || now.stat.ticks >= before.stat.ticks.saturating_add(MOST_TICKS)
}

impl Passage {
    pub(super) fn new(asked: &Arc<Asked>) -> Self {
        Self { asked: Arc::clone(asked), before: state_of(asked.event.tid), begun: Instant::now() }
    }

    /// Whether it is over; `most` is how long a writer may be kept waiting.
    fn is_over(&self, most: Duration) -> bool {
        let tid = self.asked.event.tid;
        let (Some(before), Some(now)) = (&self.before, state_of(tid)) else {
            return true;
        };
        if is_elsewhere(before, &now) || now.stat.sleeps && waits_elsewhere_than_in_exec(tid) {
            return true;
        }
        if self.begun.elapsed() < most || lease::is_held(self.asked.event.file.as_fd()) {
            // Nobody waits, or not for too long.
            return false;
        }
        process::kill_thread(tid);
        true
    }
}

impl Shared {
    /// Holds the file's lease on until the task is through.
    pub(super) fn let_through(&self, passage: Passage) {
        match self.passages.try_send(passage) {
            Ok(()) => {}
            // So many at once have no room: these go without.
            Err(TrySendError::Full(passage) | TrySendError::Disconnected(passage)) => drop(passage),
        }
    }

    /// A thread's life: lets go of the files of tasks that are through.
    pub(super) fn watch_passages(&self, passages: &Receiver<Passage>) {
        let mut under_way: Vec<Passage> = Vec::new();
        // The kernel counts from when the writer came, we from when the task went: ours is over first.
        let most = lease::break_time().mul_f32(0.5);
        while !self.stopping.load(Ordering::Relaxed) {
            let patience = match under_way.iter().map(|passage| passage.begun.elapsed()).min() {
                None => Duration::from_millis(500),
                Some(young) if young < LATER => STEP,
                Some(_) => LATER,
            };
            if under_way.len() >= MOST_AT_ONCE {
                // What has no room in the queue goes without.
                std::thread::sleep(STEP);
            } else {
                match passages.recv_timeout(patience) {
                    Ok(passage) => under_way.push(passage),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                under_way.extend(passages.try_iter().take(MOST_AT_ONCE - under_way.len()));
            }
            under_way.retain(|passage| !passage.is_over(most));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    fn program_of(tid: i32) -> Option<Program> {
        state_of(tid).map(|state| state.program)
    }

    #[test]
    fn a_task_is_through_when_it_executes_even_the_program_that_it_was_forked_from() {
        // A shell that forks, tells the number, waits, and executes itself.
        let script = "( sh -c 'echo $PPID'; read line; exec \"$0\" -c 'kill -STOP $$' )";
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        let mut shell = Command::new(&shell)
            .arg("-c")
            .arg(format!("{script}; true"))
            .arg(&shell)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let tid: i32 = line.trim().parse().unwrap();
        assert!(program_of(tid) == Some(Program::Parents), "as long as nothing happens");
        drop(shell.stdin.take());
        let until = Instant::now() + Duration::from_secs(30);
        while program_of(tid) == Some(Program::Parents) {
            assert!(Instant::now() < until, "it executes itself");
        }
        assert!(program_of(tid) == program_of(shell.id().cast_signed()), "the same program");
        Command::new("sh").args(["-c", &format!("kill -KILL {tid}")]).status().unwrap();
        shell.wait().unwrap();
        assert!(program_of(tid).is_none(), "it is gone");
    }

    /// As the kernel writes it, with these fields.
    fn stat(name: &[u8], state: &str, flags: u64, times: (u64, u64), started: u64) -> Vec<u8> {
        let (user, system) = times;
        let rest = format!(") {state} 1 2 3 4 5 {flags} 0 0 0 0 {user} {system} 0 0 20 0 1 0 {started} 4096 1 ");
        [b"12 (", name, rest.as_bytes()].concat()
    }

    #[test]
    fn what_the_name_of_a_program_holds_moves_no_field() {
        for name in [&b"sh"[..], b"a) b 64 64 ", b"\xff\xfe", b")", b"", b"(S) R"] {
            for (flags, forked) in [(64, true), (4_194_304, false), (4_194_368, true)] {
                let parsed = Stat::parse(&stat(name, "R", flags, (3, 4), 55)).unwrap();
                let expected = Stat { sleeps: false, is_only_forked: forked, ticks: 7, started: 55 };
                assert_eq!(parsed, expected, "{name:?}");
            }
        }
        for (state, sleeps) in [("R", false), ("S", true), ("D", true), ("t", true)] {
            assert_eq!(Stat::parse(&stat(b"sh", state, 0, (0, 0), 1)).unwrap().sleeps, sleeps, "{state}");
        }
        for short in [&b""[..], b"12 (a", b"12 (a) S 1 2", b"12 (a) S 1 2 3 4 5 x 0 0 0 0 1 1 0 0 20 0 1 0 5"] {
            assert_eq!(Stat::parse(short), None, "{short:?}");
        }
    }

    #[test]
    fn a_task_is_on_its_way_until_it_is_seen_elsewhere() {
        let stat = Stat { sleeps: false, is_only_forked: true, ticks: 100, started: 7 };
        let before = State { program: Program::Parents, stat: stat.clone() };
        for (program, ticks, started, elsewhere) in [
            (Program::Parents, 100, 7, false),
            (Program::Parents, 101, 7, false),
            (Program::Parents, 102, 7, true),
            (Program::File(8, 1, 12), 100, 7, true),
            (Program::Parents, 100, 8, true),
        ] {
            let now = State { program, stat: Stat { ticks, started, ..stat.clone() } };
            assert_eq!(is_elsewhere(&before, &now), elsewhere, "{now:?}");
        }
    }

    #[test]
    fn a_task_that_waits_in_another_call_is_seen() {
        let mut sleeper = Command::new("sleep").arg("30").spawn().unwrap();
        let tid = sleeper.id().cast_signed();
        let until = Instant::now() + Duration::from_secs(30);
        while !waits_elsewhere_than_in_exec(tid) {
            assert!(Instant::now() < until, "it sleeps");
        }
        process::kill_thread(tid);
        let ended = sleeper.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(libc::SIGKILL));
        assert!(!waits_elsewhere_than_in_exec(tid), "nothing is known of one that is gone");
    }
}
