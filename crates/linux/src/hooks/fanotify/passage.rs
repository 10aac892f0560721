//! From the answer to an execution until the kernel itself keeps writers away.
//!
//! execve(2) opens the program, for which we are asked, and only then denies everybody to write to it (ETXTBSY). Who opens
//! it for writing in between could run what nobody has judged: a few microseconds, or as long as the task does not get
//! a processor. So the read lease that was held while the file was judged is held on, by the event's own descriptor, until the
//! task runs the program, or is gone: a writer waits that long.

use super::Shared;
use super::question::Asked;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError};
use std::time::{Duration, Instant};

/// No longer than this is a writer kept waiting: a program that the kernel then does not run, or that runs itself anew without
/// having been forked, cannot be told from one that does not get a processor.
const MOST: Duration = Duration::from_secs(1);
/// How often it is looked whether a task has got there.
const STEP: Duration = Duration::from_micros(200);

/// So many tasks at once; more go without.
const MOST_AT_ONCE: usize = 1024;

/// A task on its way into a program.
pub(super) struct Passage {
    asked: Arc<Asked>,
    /// What it ran when it asked.
    before: Option<Program>,
    until: Instant,
}

/// What a task runs.
#[derive(PartialEq, Eq)]
enum Program {
    /// Its parent's: it was forked, and has executed nothing since (`PF_FORKNOEXEC`). No task can change that but by executing.
    Parents,
    /// This file, by device and inode.
    File(u32, u32, u64),
}

/// Looking at it opens nothing, and asks no server of a file system over a network.
fn program_of(tid: i32) -> Option<Program> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    if is_only_forked(&stat) {
        return Some(Program::Parents);
    }
    let file = statx(CWD, format!("/proc/{tid}/exe"), AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some(Program::File(file.stx_dev_major, file.stx_dev_minor, file.stx_ino))
}

/// Field 9 of proc_pid_stat(5), the task's flags. The second one, a name in parentheses, may hold anything.
fn is_only_forked(stat: &str) -> bool {
    const PF_FORKNOEXEC: u64 = 0x40;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let flags = fields.split_whitespace().nth(9 - 3).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_FORKNOEXEC != 0)
}

impl Passage {
    pub(super) fn new(asked: &Arc<Asked>) -> Self {
        Self { asked: Arc::clone(asked), before: program_of(asked.event.tid), until: Instant::now() + MOST }
    }

    fn is_over(&self) -> bool {
        let now = program_of(self.asked.event.tid);
        now.is_none() || now != self.before || Instant::now() > self.until
    }
}

impl Shared {
    /// Holds the file's lease on until the task is through.
    pub(super) fn let_through(&self, mut passage: Passage) {
        passage.until = Instant::now() + MOST;
        match self.passages.try_send(passage) {
            Ok(()) => {}
            // So many at once have no room: these go without.
            Err(TrySendError::Full(passage) | TrySendError::Disconnected(passage)) => drop(passage),
        }
    }

    /// A thread's life: lets go of the files of tasks that are through.
    pub(super) fn watch_passages(&self, passages: &Receiver<Passage>) {
        let mut under_way: Vec<Passage> = Vec::new();
        while !self.stopping.load(Ordering::Relaxed) {
            let patience = if under_way.is_empty() { Duration::from_millis(500) } else { STEP };
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
            under_way.retain(|passage| !passage.is_over());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

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

    #[test]
    fn the_name_of_a_program_moves_no_field() {
        for (stat, forked) in [
            ("12 (sh) S 1 2 3 4 5 64 0", true),
            ("12 (a) b 64 64 ) S 1 2 3 4 5 4194304 0", false),
            ("12 (a) b ) S 1 2 3 4 5 4194368 0", true),
            ("", false),
            ("12 (a", false),
            ("12 (a) S 1 2", false),
        ] {
            assert_eq!(is_only_forked(stat), forked, "{stat}");
        }
    }
}
