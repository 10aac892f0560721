//! The runtime directory: one guard at a time, what the last one left, and where everything is.
//!
//! | name | what |
//! |---|---|
//! | `lock` | locked while a guard runs; its process |
//! | `control.sock` | where the commands ask |
//! | `measurements` | the list, in the kernel's binary form, appended to |
//! | `state.json` | boot, process and how it ended, for the next start; its time of change is when it last ran |
//! | `audit.log` | audit records, in the kernel's form |
//! | `sentinel.json` | which guard its sentinel had to end, and why |
//! | `tpm/` | the software TPM's state and socket |

use crate::output::Failure;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// The runtime directory, held by this process alone.
#[derive(Debug)]
pub struct Runtime {
    directory: PathBuf,
    _lock: File,
    state: File,
}

/// What `state.json` says.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct State {
    /// The boot that it is about (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The process.
    pub pid: u32,
    /// Whether it ended in order.
    pub ended: bool,
    /// The number, from 1, of the first entry of the list that the TPM had missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed_from: Option<u64>,
}

/// What an earlier guard left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its state.
    pub state: State,
    /// When it last ran.
    pub last_alive: SystemTime,
    /// Whether it is dead, and a thread of it still in the kernel, with all that it had open.
    pub stuck: bool,
}

/// The size of `state.json`, filled up with spaces, in bytes.
const STATE_SIZE: usize = 256;

/// How long a guard that was killed may take to begin to end, and how long to be gone: programs in the kernel are taken away one by one.
const KILLED: Duration = Duration::from_secs(1);
const ENDING: Duration = Duration::from_secs(30);

/// Names in the directory.
pub const SOCKET: &str = "control.sock";
/// The list.
pub const LIST: &str = "measurements";
/// Audit records.
pub const AUDIT_LOG: &str = "audit.log";
/// Which guard its sentinel had to end.
pub const SENTINEL: &str = "sentinel.json";
/// The software TPM.
pub const TPM: &str = "tpm";

/// This boot's identifier.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn open(path: &Path) -> Result<File, Failure> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))
}

/// Takes the lock, or finds that another guard (`holder`) has it. One that was killed has it until its last thread is gone.
fn locked(lock: &File, holder: &str) -> bool {
    let begun = Instant::now();
    loop {
        let patience = if imara_linux::process::is_ending(holder) { ENDING } else { KILLED };
        if lock.try_lock().is_ok() {
            return true;
        }
        if begun.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A lock in the place of one that nobody will ever let go.
fn another_lock(path: &Path) -> std::io::Result<File> {
    let aside = path.with_extension(std::process::id().to_string());
    let lock = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    // Ours before it can be found; should two do this at once, the one whose lock is in its place then has it.
    lock.try_lock().map_err(std::io::Error::from)?;
    std::fs::rename(&aside, path)?;
    let (ours, there) = (lock.metadata()?, std::fs::metadata(path)?);
    if std::os::unix::fs::MetadataExt::ino(&ours) == std::os::unix::fs::MetadataExt::ino(&there) {
        return Ok(lock);
    }
    open(path).map_err(|failure| std::io::Error::other(failure.what))
}

impl Runtime {
    /// Makes the directory where it is missing, readable by its owner alone, and takes it.
    ///
    /// # Errors
    /// [`Failure`]; when another guard holds it, with its process.
    pub fn take(directory: &Path) -> Result<(Self, Option<Left>), Failure> {
        let failed = |error: std::io::Error| Failure::failed(format_args!("{}: {error}", directory.display()));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(directory).map_err(failed)?;
        let directory = std::fs::canonicalize(directory).map_err(failed)?;
        let opened = open(&directory.join("lock"));
        // Who has it is a courtesy.
        let pid = std::fs::read_to_string(directory.join("lock")).unwrap_or_default();
        let runs_already = || {
            Failure::failed(format_args!("a guard runs already with {} (process {})", directory.display(), pid.trim()))
                .next("end it first (`kill` that process), or name another directory with --runtime-dir")
        };
        let mut lock = match opened {
            Ok(lock) => lock,
            // At level 2 nobody but the guard that has it may open it for writing.
            Err(refused) => {
                let held = File::open(directory.join("lock")).is_ok_and(|lock| !locked(&lock, &pid));
                return Err(if held { runs_already() } else { refused });
            }
        };
        let mut stuck = false;
        let taken = !locked(&lock, &pid) && {
            // One that was killed, and of which the kernel cannot let a thread go, will not let go of its lock either.
            stuck = imara_linux::process::is_dead(&pid);
            !stuck || {
                lock = another_lock(&directory.join("lock")).map_err(failed)?;
                !locked(&lock, &pid)
            }
        };
        if taken {
            return Err(runs_already());
        }
        let pid = format!("{}\n", std::process::id());
        lock.set_len(0).and_then(|()| lock.write_all(pid.as_bytes())).map_err(failed)?;
        let mut state = open(&directory.join("state.json"))?;
        let mut text = String::new();
        state.read_to_string(&mut text).map_err(failed)?;
        let last_alive = state.metadata().and_then(|metadata| metadata.modified()).map_err(failed)?;
        // A state that cannot be read beside a list that is there: somebody was killed, and in this boot until the TPM
        // says otherwise.
        let unknown = || State { boot_id: boot_id(), pid: 0, ended: false, missed_from: None };
        let left = match serde_json::from_str(&text) {
            Ok(state) => Some(Left { state, last_alive, stuck }),
            Err(_) => directory.join(LIST).exists().then(|| Left { state: unknown(), last_alive, stuck }),
        };
        Ok((Self { directory, _lock: lock, state }, left))
    }

    /// A name in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes down how this guard is doing, and what its TPM has missed.
    ///
    /// # Errors
    /// What the write says.
    pub fn write_state(&self, ended: bool, missed_from: Option<u64>) -> std::io::Result<()> {
        write_state(&self.state, ended, missed_from)
    }

    /// A handle that keeps the time at which this guard last ran.
    ///
    /// # Errors
    /// What duplicating a descriptor says.
    pub fn heartbeat(&self) -> std::io::Result<Heartbeat> {
        Ok(Heartbeat(self.state.try_clone()?))
    }
}

fn write_state(file: &File, ended: bool, missed_from: Option<u64>) -> std::io::Result<()> {
    let state = State { boot_id: boot_id(), pid: std::process::id(), ended, missed_from };
    let text = serde_json::to_string(&state).unwrap_or_default();
    // Always as long, in one write: whenever it is cut off, a whole state is there.
    file.write_all_at(format!("{text:<STATE_SIZE$}").as_bytes(), 0)
}

/// Keeps the time at which the guard last ran.
#[derive(Debug)]
pub struct Heartbeat(File);

/// How often it does.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

impl Heartbeat {
    /// It runs now.
    pub fn beat(&self) {
        // A gap that is told too long is the worst that comes of it.
        let _ = self.0.set_modified(SystemTime::now());
    }

    /// From this entry on the TPM has missed what is listed.
    ///
    /// # Errors
    /// What the write says.
    pub fn note_missed(&self, from: Option<u64>) -> std::io::Result<()> {
        write_state(&self.0, false, from)
    }
}
