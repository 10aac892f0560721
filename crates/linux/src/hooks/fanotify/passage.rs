//! From the answer to an execution until the kernel itself keeps writers away.
//!
//! execve(2) opens the program, for which we are asked, and only then denies everybody to write to it (ETXTBSY). Who opens
//! it for writing in between could run what nobody has judged: a few microseconds, or as long as the task does not get
//! a processor. So the read lease that was held while the file was judged is held on, by the event's own descriptor, until the
//! task runs the program, or is gone: a writer waits that long.

use super::Shared;
use super::question::Asked;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError};
use std::time::{Duration, Instant};

/// No longer than this is a writer kept waiting: a program that the kernel then does not run cannot be told from one that does
/// not get a processor.
const MOST: Duration = Duration::from_secs(1);
/// How often it is looked whether a task has got there.
const STEP: Duration = Duration::from_micros(200);

/// A task on its way into a program.
pub(super) struct Passage {
    asked: Arc<Asked>,
    /// What it ran when it asked.
    before: Option<Program>,
    until: Instant,
}

/// What a task runs: the file, and where its stack begins, which is another place each time. Looking at it opens nothing.
#[derive(PartialEq, Eq)]
struct Program {
    file: (u64, u64),
    stack: Option<u64>,
}

fn program_of(tid: i32) -> Option<Program> {
    let file = std::fs::metadata(format!("/proc/{tid}/exe")).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    Some(Program { file: (file.dev(), file.ino()), stack: stack_of(&stat) })
}

/// Field 28 of proc_pid_stat(5). The second one, a name in parentheses, may hold anything.
fn stack_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(28 - 3)?.parse().ok()
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
            match passages.recv_timeout(patience) {
                Ok(passage) => under_way.push(passage),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            under_way.extend(passages.try_iter());
            under_way.retain(|passage| !passage.is_over());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_program_that_runs_itself_anew_is_told_from_before() {
        // The file is the same, and so is the process.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "read line; exec /bin/sh -c 'kill -STOP $$'"]);
        let mut child = shell.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let tid = child.id().cast_signed();
        let until = Instant::now() + Duration::from_secs(30);
        let running = std::fs::canonicalize("/bin/sh").unwrap();
        while std::fs::read_link(format!("/proc/{tid}/exe")).unwrap() != running {
            assert!(Instant::now() < until);
        }
        let before = program_of(tid);
        assert!(before.as_ref().is_some_and(|program| program.stack.is_some_and(|stack| stack > 0)));
        assert!(program_of(tid) == before, "as long as nothing happens");
        drop(child.stdin.take());
        while program_of(tid) == before {
            assert!(Instant::now() < until, "it runs itself anew");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(program_of(tid).is_none());
    }

    #[test]
    fn the_name_of_a_program_moves_no_field() {
        let fields = (3..=52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(stack_of(&format!("12 (a) b ) {fields}")), Some(28));
        for stat in ["", "12 (a", "12 (a) S 1 2"] {
            assert_eq!(stack_of(stat), None, "{stat}");
        }
    }
}
