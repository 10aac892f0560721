//! A switch of the mode that undoes itself unless somebody confirms it.
//!
//! A second process waits and rolls back, so that a guard that hangs cannot prevent it: it asks the guard, and where the guard
//! does not answer it ends it, after which the kernel lets every access go on. Once armed it opens no file, so that no
//! watched file system can hold it up.
//!
//! | name in the runtime directory | what |
//! |---|---|
//! | `rollback.lock` | locked while that process waits |
//! | `rollback.json` | what it waits for, or how it ended |

use super::control::{Request, ask};
use crate::output::Failure;
use imara_linux::process_handle::{ProcessHandle, leave_session};
use imara_linux::sys::process::block_termination;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The mode's switch that waits for its confirmation, or how the last one ended.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Rollback {
    /// The process that rolls back.
    pub pid: i32,
    /// The guard.
    pub guard: i32,
    /// The mode that was switched to.
    pub from: String,
    /// The mode that it goes back to.
    pub to: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// How it ended: `rolled back`, or `the guard did not answer and was ended`; nothing while it waits.
    pub ended: Option<String>,
}

const LOCK: &str = "rollback.lock";
const STATE: &str = "rollback.json";
/// How long a guard has to answer before it is taken to hang.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the process says once nothing can keep it from rolling back.
const ARMED: &str = "armed";

/// What the second process is told.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The guard's runtime directory.
    #[arg(long)]
    runtime_dir: PathBuf,
    /// The guard.
    #[arg(long)]
    guard: i32,
    /// The mode to go back from.
    #[arg(long)]
    from: String,
    /// The mode to go back to.
    #[arg(long)]
    to: String,
    /// After how many seconds.
    #[arg(long)]
    seconds: u64,
}

/// The switch that waits for its confirmation now, or how the last one ended.
pub fn state(directory: &Path) -> Option<Rollback> {
    let state: Rollback = serde_json::from_slice(&std::fs::read(directory.join(STATE)).ok()?).ok()?;
    (state.ended.is_some() || waits(directory)).then_some(state)
}

fn waits(directory: &Path) -> bool {
    // Shared, so that two who look at the same time do not take each other for the one who waits.
    File::open(directory.join(LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_err())
}

/// Starts the second process; on return nothing but [`confirm`] keeps it from rolling back.
///
/// # Errors
/// [`Failure`]; nothing waits then.
pub fn arm(directory: &Path, guard: i32, from: &str, to: &str, after: Duration) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format_args!("the process that would roll back cannot be started: {error}"))
            .next("the mode is as it was")
    };
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut child = Command::new(program)
        .arg("roll-back")
        .arg("--runtime-dir")
        .arg(directory)
        .args(["--guard", &guard.to_string(), "--from", from, "--to", to])
        .args(["--seconds", &after.as_secs().to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(&error))?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut said).map_err(|error| failed(&error))?;
    }
    if said.trim_end() == ARMED {
        return Ok(());
    }
    // It has ended, or is of no use.
    let _ = child.kill();
    let _ = child.wait();
    Err(failed(&if said.is_empty() { "it ended at once" } else { said.trim_end() }))
}

/// The second process's life.
///
/// # Errors
/// What keeps it from waiting; it has said so on standard output.
pub fn wait(arguments: &Arguments) -> Result<(), Failure> {
    let (guard, lock, mut state) = prepare(arguments).inspect_err(|failure| {
        println!("{}", failure.what);
    })?;
    println!("{ARMED}");
    if guard.wait(Duration::from_secs(arguments.seconds)) {
        // There is nobody left to roll back, and nothing is refused.
        let _ = std::fs::remove_file(arguments.runtime_dir.join(STATE));
        return Ok(());
    }
    // Who confirms from now on is told that it was too late, and how it ended. Before the thread, which must have it, too.
    block_termination();
    let (sender, answer) = std::sync::mpsc::channel();
    let (directory, mode) = (arguments.runtime_dir.clone(), arguments.to.clone());
    // In a thread of its own: even connecting can wait for a guard that takes no connections.
    std::thread::spawn(move || sender.send(ask(&directory, &Request::Mode { mode })));
    let rolled_back = matches!(answer.recv_timeout(PATIENCE), Ok(Ok(_)));
    state.ended = Some(if rolled_back {
        "rolled back".into()
    } else {
        // Ended meanwhile is as good.
        let _ = guard.kill();
        "the guard did not answer and was ended".into()
    });
    write(&arguments.runtime_dir, &state)?;
    drop(lock);
    Ok(())
}

fn prepare(arguments: &Arguments) -> Result<(ProcessHandle, File, Rollback), Failure> {
    // Fails where it leads a session already, which is as good.
    let _ = leave_session();
    let guard = ProcessHandle::open(arguments.guard)
        .map_err(|error| Failure::failed(format_args!("process {}: {error}", arguments.guard)))?;
    // Before anything is switched: a guard that hangs later could not be told any more.
    ask(&arguments.runtime_dir, &Request::WillRollBack)?;
    let path = arguments.runtime_dir.join(LOCK);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
    // Whoever looks whether it is locked holds it for a moment.
    let begun = Instant::now();
    while let Err(error) = lock.try_lock() {
        if begun.elapsed() > Duration::from_secs(1) {
            return Err(Failure::failed(format_args!("{}: {error}", path.display())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let state = Rollback {
        pid: std::process::id().cast_signed(),
        guard: arguments.guard,
        from: arguments.from.clone(),
        to: arguments.to.clone(),
        at: now().saturating_add(arguments.seconds),
        ended: None,
    };
    write(&arguments.runtime_dir, &state)?;
    Ok((guard, lock, state))
}

fn write(directory: &Path, state: &Rollback) -> Result<(), Failure> {
    let path = directory.join(STATE);
    let failed = |error: std::io::Error| Failure::failed(format_args!("{}: {error}", path.display()));
    let text = serde_json::to_vec(state).map_err(Failure::failed)?;
    let fresh = directory.join("rollback.new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(failed)?;
    file.write_all(&text).and_then(|()| std::fs::rename(&fresh, &path)).map_err(failed)
}

/// Ends the waiting process before it rolls back; `None` when none waits.
///
/// # Errors
/// [`Failure`]: it cannot be ended.
pub fn confirm(directory: &Path) -> Result<Option<Rollback>, Failure> {
    let Some(waiting) = state(directory).filter(|state| state.ended.is_none()) else {
        return Ok(None);
    };
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format_args!("process {}, which waits to roll back, cannot be ended: {error}", waiting.pid))
    };
    let process = ProcessHandle::open(waiting.pid).map_err(|error| failed(&error))?;
    // It held the lock before and holds it now: the handle is of the process that is meant.
    if !waits(directory) {
        return Ok(None);
    }
    process.terminate().map_err(|error| failed(&error))?;
    // Where it is about to roll back it comes to its end first, which takes as long as the guard may take to answer.
    if !process.wait(2 * PATIENCE) {
        return Err(failed(&"it does not end").next(format_args!("kill -9 {}", waiting.pid)));
    }
    // It may have come to its end just before.
    if let Some(ended) = state(directory).filter(|state| state.ended.is_some() && state.pid == waiting.pid) {
        return Err(Failure::failed(format_args!(
            "too late: the mode went back to {} ({})",
            ended.to,
            ended.ended.unwrap_or_default()
        )));
    }
    // Nobody waits any more, whether it is there or not.
    let _ = std::fs::remove_file(directory.join(STATE));
    Ok(Some(waiting))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_whether_somebody_waits_is_not_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        File::create(directory.path().join(LOCK)).unwrap();
        let look = || (0..20_000).filter(|_| waits(directory.path())).count();
        let seen: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(look)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(seen, 0);
        let lock = OpenOptions::new().write(true).open(directory.path().join(LOCK)).unwrap();
        lock.lock().unwrap();
        assert!(waits(directory.path()));
    }
}
