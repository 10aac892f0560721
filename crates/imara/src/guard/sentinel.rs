//! The process beside the guard that lets everybody go on when the guard no longer does.
//!
//! The guard says twice a second that it gets on, which it does as long as events are read and answered. The sentinel ends it,
//! and with that lets every access go on, when it
//!
//! | is | after |
//! |---|---|
//! | stopped (SIGSTOP), or one of its threads is held by a debugger | 2 s |
//! | silent for any other reason | `sentinel` in the configuration (10 s) |
//! | dead, and a thread of it does not leave the kernel | half a second |
//!
//! Time is counted in beats of its own, so that neither a machine that slept nor one that is overloaded is taken for a guard
//! that hangs. Once armed it opens nothing but `/proc`, so that no watched file system can hold it up. It writes what it
//! did into `sentinel.json` in the runtime directory, for the next guard to tell.

use super::runtime::SENTINEL;
use super::service_manager;
use crate::output::Failure;
use imara_linux::hooks::bpf::Level2;
use imara_linux::hooks::fanotify::Guard;
use imara_linux::hooks::sentinel::{Heard, Sentinel, SentinelLink, first_line, line};
use imara_linux::process::{self, Standstill};
use imara_linux::process_handle::{ProcessHandle, leave_session};
use imara_linux::sys::process::{block_termination, keep_memory, raise_file_limit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the guard says that it gets on.
pub const BEAT: Duration = Duration::from_millis(500);
/// After how many beats without a word a guard that is stopped is ended.
const STOPPED: u32 = 4;
/// How long a killed guard may take to be gone.
const DYING: Duration = Duration::from_secs(1);
/// How long accesses are let go on of a guard that is dead and not gone; then nobody is left who waits.
const RELEASING: Duration = Duration::from_secs(60);
/// How long it is waited until another sentinel is started where that failed.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a new sentinel may take until it is on watch, and one that is killed until it has ended.
const STARTING: Duration = Duration::from_secs(5);
/// What the process says once it is on watch.
const ARMED: &str = "armed";
/// The size of the record, filled up with spaces, in bytes.
const RECORD: usize = 256;

/// What the sentinel's process is told.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The guard's runtime directory.
    #[arg(long)]
    runtime_dir: PathBuf,
    /// The guard.
    #[arg(long)]
    guard: i32,
    /// After how many milliseconds of silence it is ended.
    #[arg(long)]
    patience: u64,
}

/// Which guard a sentinel has ended, and why.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Ended {
    /// Its process.
    pub guard: u32,
    /// Why, to complete "because".
    pub why: String,
}

/// What an earlier sentinel has left.
pub fn ended(directory: &Path) -> Option<Ended> {
    serde_json::from_slice(&std::fs::read(directory.join(SENTINEL)).ok()?).ok()
}

/// The guard's side: starts a sentinel, and another one when it ends.
#[derive(Debug)]
pub struct Beside {
    link: Arc<SentinelLink>,
    directory: PathBuf,
    patience: Option<Duration>,
    level2: Option<Arc<Level2>>,
    process: Mutex<Process>,
}

#[derive(Debug)]
struct Process {
    child: Option<Child>,
    /// The same, to wait for its end.
    handle: Option<Arc<ProcessHandle>>,
    /// Why there is none.
    why_not: String,
    tried: Instant,
    restarts: u64,
    /// No other is started: the guard has ended in order.
    ending: bool,
}

impl Beside {
    /// Starts a sentinel that takes a guard that is silent for `patience` to hang; none without. At level 2 it is protected.
    pub fn start(directory: &Path, patience: Option<Duration>, level2: Option<Arc<Level2>>) -> Self {
        let why_not = "as configured".into();
        let process = Process { child: None, handle: None, why_not, tried: Instant::now(), restarts: 0, ending: false };
        let (link, process) = (Arc::default(), Mutex::new(process));
        let beside = Self { link, directory: directory.into(), patience, level2, process };
        beside.start_process();
        beside
    }

    fn lock(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line on which it learns of the guard's groups.
    pub const fn link(&self) -> &Arc<SentinelLink> {
        &self.link
    }

    /// Why there is no sentinel, where one is wanted.
    pub fn why_not(&self) -> Option<String> {
        let process = self.lock();
        (self.patience.is_some() && process.child.is_none()).then(|| process.why_not.clone())
    }

    /// What `imara status` says of it.
    pub fn status(&self) -> Value {
        let process = self.lock();
        match &process.child {
            Some(child) => json!({ "pid": child.id(), "restarts": process.restarts }),
            None => json!({ "pid": null, "restarts": process.restarts, "why": process.why_not }),
        }
    }

    /// A thread's life: says that the guard gets on, as long as it does, to the sentinel and to the service manager.
    pub fn beat(&self, guard: &Mutex<Option<Arc<Guard>>>) {
        loop {
            // Where somebody holds it the guard is about to end.
            let gets_on = guard.try_lock().map_or(true, |guard| guard.as_ref().is_none_or(|guard| guard.gets_on()));
            if gets_on {
                self.link.beat();
                service_manager::tell("WATCHDOG=1");
            }
            self.look_after();
            let handle = self.lock().handle.clone();
            match handle {
                // Until it ends, if that is sooner: without a sentinel nobody lets everybody go on.
                Some(handle) => drop(handle.wait(BEAT)),
                None => std::thread::sleep(BEAT),
            }
        }
    }

    /// Sees to it that there is a sentinel that watches.
    fn look_after(&self) {
        let mut process = self.lock();
        if let Some(child) = &mut process.child {
            let ended = child.try_wait().map_or(true, |status| status.is_some());
            let watches = self.link.is_connected() && process::standstill(child.id().cast_signed()) == Standstill::None;
            if !ended && watches {
                return;
            }
            // One that is stopped would keep everybody waiting if the guard ended now.
            self.link.disconnect();
            let child = process.child.take();
            process.handle = None;
            process.why_not = "it ended".into();
            process.restarts += 1;
            drop(process);
            if let Some(child) = child {
                end(child);
            }
        } else if self.patience.is_none() || process.tried.elapsed() < PAUSE {
            return;
        } else {
            drop(process);
        }
        self.start_process();
    }

    /// Whoever asks for the status meanwhile does not wait.
    fn start_process(&self) {
        let Some(patience) = self.patience else {
            return;
        };
        {
            let mut process = self.lock();
            if process.ending {
                return;
            }
            process.tried = Instant::now();
        }
        let started = start(&self.directory, patience).and_then(|(child, line)| {
            let told = self.level2.as_ref().map_or(Ok(()), |level2| level2.sentinel_started(child.id()));
            if let Err(error) = told {
                // It could not end a guard that hangs.
                end(child);
                return Err(format!("the programs in the kernel cannot be told of it: {error}"));
            }
            Ok((child, line))
        });
        let mut process = self.lock();
        match started {
            Ok((child, _)) if process.ending => {
                drop(process);
                end(child);
            }
            Ok((child, line)) => {
                self.link.connect(line);
                // What cannot be waited for is looked at every half second.
                process.handle = ProcessHandle::open(child.id().cast_signed()).ok().map(Arc::new);
                process.child = Some(child);
            }
            Err(why) => process.why_not = why,
        }
    }

    /// Ends the sentinel: the guard has ended in order.
    pub fn stop(&self) {
        let child = {
            let mut process = self.lock();
            process.ending = true;
            process.child.take()
        };
        self.link.disconnect();
        if let Some(child) = child {
            // It has ended by itself, or does now.
            end(child);
        }
    }
}

/// Kills a sentinel. One that the kernel does not let go is not waited for: it stays until the guard has ended.
fn end(mut child: Child) {
    let _ = child.kill();
    if ProcessHandle::open(child.id().cast_signed()).is_ok_and(|handle| handle.wait(STARTING)) {
        let _ = child.wait();
    }
}

fn start(directory: &Path, patience: Duration) -> Result<(Child, std::os::fd::OwnedFd), String> {
    let (ours, its) = line().map_err(|error| error.to_string())?;
    // By what runs, whatever has become of the file; in a group of its own, so that what is typed at a terminal does not end it.
    let mut child = Command::new("/proc/self/exe")
        .arg("sentinel")
        .arg("--runtime-dir")
        .arg(directory)
        .args(["--guard", &std::process::id().to_string()])
        .args(["--patience", &patience.as_millis().to_string()])
        .current_dir("/")
        .stdin(Stdio::from(its))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let said = child.stdout.take().map(|output| first_line(output, STARTING));
    let why = match said {
        Some(Ok(Some(said))) if said.trim_end() == ARMED => return Ok((child, ours)),
        Some(Ok(Some(said))) if !said.is_empty() => said.trim_end().into(),
        Some(Ok(None)) => format!("it was not on watch within {} s", STARTING.as_secs()),
        Some(Err(error)) => error.to_string(),
        Some(Ok(Some(_))) | None => "it ended at once".into(),
    };
    end(child);
    Err(why)
}

/// The sentinel's life.
///
/// # Errors
/// What keeps it from watching; it has said so on standard output.
pub fn watch(arguments: &Arguments) -> Result<(), Failure> {
    let say = |word: &str| writeln!(std::io::stdout(), "{word}");
    let (guard, mut sentinel, record) = prepare(arguments).inspect_err(|failure| drop(say(&failure.what)))?;
    if say(ARMED).is_err() {
        // Whoever has started it is gone.
        return Ok(());
    }
    let patience = (arguments.patience.div_ceil(BEAT.as_millis() as u64)).clamp(1, u32::MAX.into()) as u32;
    let (mut silent, mut held) = (0, 0);
    let why = loop {
        match sentinel.listen(BEAT) {
            Heard::Closed => return Ok(()),
            Heard::Beat => silent = 0,
            Heard::Nothing => silent += 1,
        }
        // Also while it says that it gets on: of a thread that is held nobody knows what it was about to do.
        let standstill = process::standstill(arguments.guard);
        held = if matches!(standstill, Standstill::Stopped | Standstill::Traced(_)) { held + 1 } else { 0 };
        if silent >= patience || held >= patience.min(STOPPED) || silent > 0 && standstill == Standstill::Dead {
            break why(standstill, silent.max(held));
        }
    };
    // Ended meanwhile is as good.
    let _ = guard.kill();
    if !guard.wait(DYING) {
        let files = raise_file_limit();
        let begun = Instant::now();
        // Once more after there was none: what a thread was just reading comes to light when it has read it.
        let mut quiet = 0;
        while quiet < 3 && begun.elapsed() < RELEASING {
            quiet = if sentinel.let_all_go_on(files) == 0 { quiet + 1 } else { 0 };
            if guard.wait(Duration::from_millis(300)) {
                break;
            }
        }
    }
    drop(sentinel);
    // Only now: whoever reads what we say may have waited for the guard.
    let ended = Ended { guard: arguments.guard.cast_unsigned(), why };
    let text = serde_json::to_string(&ended).unwrap_or_default();
    // It is told on standard error all the same.
    let _ = record.write_all_at(format!("{text:<RECORD$}").as_bytes(), 0);
    let _ = writeln!(
        std::io::stderr(),
        "imara: the guard (process {}) was ended by its sentinel, because {}; every access goes on unasked until a guard is started",
        ended.guard,
        ended.why
    );
    Ok(())
}

fn why(standstill: Standstill, beats: u32) -> String {
    let seconds = (BEAT * beats).as_secs();
    match standstill {
        Standstill::Dead => "it was killed, and a thread of it did not leave the kernel".into(),
        Standstill::Stopped => format!("it had been stopped (SIGSTOP) for {seconds} s"),
        Standstill::Traced(by) => format!("process {by} had held it as a debugger does for {seconds} s"),
        Standstill::None => format!("it had answered nothing for {seconds} s"),
    }
}

fn prepare(arguments: &Arguments) -> Result<(ProcessHandle, Sentinel, File), Failure> {
    // Whoever wants the guard to end ends the guard.
    block_termination();
    // Fails where it leads a session already, which is as good.
    let _ = leave_session();
    // Where the limit on locked memory is too low it works as long as nothing is paged out.
    let _ = keep_memory();
    let guard = ProcessHandle::open(arguments.guard)
        .map_err(|error| Failure::failed(format_args!("process {}: {error}", arguments.guard)))?;
    let line = std::io::stdin().as_fd().try_clone_to_owned().map_err(Failure::failed)?;
    let path = arguments.runtime_dir.join(SENTINEL);
    let record = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
    Ok((guard, Sentinel::new(line), record))
}
