//! The guard's software TPM: stopped at the end so that its PCRs come back, and started again when it has died meanwhile.
//!
//! One that was killed has lost its PCRs. It is no root of trust (whoever is root can rewrite its state), so that nothing is lost by giving
//! it the list again, as far as that comes to what its PCRs held (`engine/measure/another_tpm.rs`). One that dies again and again is started
//! after a pause that doubles, from a second to five minutes.

use super::events::Events;
use super::level2::Programs;
use imara_engine::measure::MeasurementLog;
use imara_engine::tpm::Tpm;
use imara_linux::hooks::fanotify::Guard;
use imara_linux::swtpm::{Resumed, SoftwareTpm, SwtpmError};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long it is waited before one that has died is started again: at first, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// One that has run for so long does not die again and again.
const STEADY: Duration = Duration::from_secs(600);

/// The software TPM, whichever process that is just now.
#[derive(Debug)]
pub struct GuardsTpm {
    /// `None` once it is stopped.
    process: Mutex<Option<SoftwareTpm>>,
    directory: PathBuf,
    restarts: AtomicU64,
}

impl GuardsTpm {
    /// Finds it running, or starts it.
    ///
    /// # Errors
    /// [`SwtpmError`], with what it says.
    pub fn start(directory: &Path, fresh: bool) -> Result<Self, SwtpmError> {
        let process = SoftwareTpm::start_or_attach(directory, fresh)?;
        Ok(Self { process: Mutex::new(Some(process)), directory: directory.to_owned(), restarts: AtomicU64::new(0) })
    }

    fn process(&self) -> MutexGuard<'_, Option<SoftwareTpm>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process; 0 once it is stopped.
    pub fn pid(&self) -> i32 {
        self.process().as_ref().map_or(0, SoftwareTpm::pid)
    }

    /// What had become of its PCRs when it was found or started.
    pub fn resumed(&self) -> Option<Resumed> {
        self.process().as_ref().map(SoftwareTpm::resumed)
    }

    /// A way to it.
    ///
    /// # Errors
    /// [`SwtpmError`] where it does not answer.
    pub fn open(&self) -> Result<Tpm, SwtpmError> {
        let process = self.process();
        let Some(software) = process.as_ref() else {
            return Err(SwtpmError::Run(std::io::Error::other("it is stopped")));
        };
        Tpm::new(software.transport()).map_err(|source| SwtpmError::Tpm { pid: software.pid(), source })
    }

    /// Saves its PCRs and ends it, once.
    ///
    /// # Errors
    /// [`SwtpmError`].
    pub fn stop(&self) -> Result<(), SwtpmError> {
        self.process().take().map_or(Ok(()), SoftwareTpm::stop)
    }

    /// For the status.
    pub fn status(&self) -> [(String, Value); 3] {
        let (pid, socket) = (self.pid(), self.process().as_ref().map(SoftwareTpm::socket));
        let restarts = self.restarts.load(Ordering::Relaxed);
        [("pid".into(), json!(pid)), ("socket".into(), json!(socket)), ("restarts".into(), json!(restarts))]
    }
}

impl Drop for GuardsTpm {
    fn drop(&mut self) {
        // Why the guard ends without having started is worth more than that this failed, too.
        let _ = self.stop();
    }
}

/// How long it is waited before the next one, after one that was started after this pause and has lived so long.
fn next_pause(pause: Duration, lived: Duration) -> Duration {
    if lived > STEADY { PAUSE } else { (pause * 2).clamp(PAUSE, LONGEST_PAUSE) }
}

/// Why it does not have the list.
struct NotRevived {
    why: String,
    /// Whether it is of no use to try again.
    is_final: bool,
}

impl<T: std::fmt::Display> From<T> for NotRevived {
    fn from(why: T) -> Self {
        Self { why: why.to_string(), is_final: false }
    }
}

/// What starts it again.
pub struct Reviver {
    /// The one that may die.
    pub tpm: Arc<GuardsTpm>,
    /// Whose accesses pass.
    pub guard: Arc<Mutex<Option<Arc<Guard>>>>,
    /// By whom it is protected.
    pub programs: Arc<Programs>,
    /// The list's file.
    pub list: PathBuf,
    /// When the last one was started, and how long it is waited for the next.
    started: Instant,
    pause: Duration,
    /// It runs and has not taken the list yet.
    lacks: bool,
    /// Why it could not be started, or has not taken the list, was told.
    told: bool,
}

impl Reviver {
    /// For a software TPM that runs now.
    pub fn new(
        tpm: Arc<GuardsTpm>,
        guard: Arc<Mutex<Option<Arc<Guard>>>>,
        programs: Arc<Programs>,
        list: PathBuf,
    ) -> Self {
        Self { tpm, guard, programs, list, started: Instant::now(), pause: Duration::ZERO, lacks: false, told: false }
    }

    /// Starts the software TPM again where it has died, and gives it the list.
    pub fn look(&mut self, log: &MeasurementLog, events: &Events) {
        let pid = self.tpm.pid();
        let waits = self.started.elapsed() < self.pause;
        if pid == 0 || waits || !self.lacks && SoftwareTpm::running(&self.tpm.directory) == Some(pid) {
            return;
        }
        self.pause = next_pause(self.pause, self.started.elapsed());
        self.started = Instant::now();
        // Before anything can be given to the next one.
        log.tpm_is_gone();
        match self.revive(log) {
            Ok(given) => {
                let now = self.tpm.pid();
                events.say(format!(
                    "the software TPM (process {pid}) had ended; it was started again (process {now}) and given {given} entries of the list"
                ));
                (self.lacks, self.told) = (false, false);
            }
            Err(error) => {
                self.lacks = !error.is_final;
                if !std::mem::replace(&mut self.told, true) {
                    events.say(format!(
                        "the software TPM (process {pid}) has ended, and its list cannot be given to another: {}",
                        error.why
                    ));
                }
            }
        }
    }

    fn revive(&self, log: &MeasurementLog) -> Result<u64, NotRevived> {
        let software = SoftwareTpm::start_or_attach(&self.tpm.directory, false)?;
        let pid = software.pid();
        // From now on nobody is asked about what it opens.
        if let Some(guard) = self.guard.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            guard.take_for_software_tpm(pid);
        }
        if let Some(level2) = self.programs.level2() {
            // Unprotected it is as good a TPM.
            let _ = level2.take_for_software_tpm(pid);
        }
        if self.tpm.process().replace(software).is_none_or(|before| before.pid() != pid) {
            self.tpm.restarts.fetch_add(1, Ordering::Relaxed);
        }
        let tpm = self.tpm.open()?;
        let listed = std::fs::read(&self.list).map_err(|error| format!("{}: {error}", self.list.display()))?;
        let given = log.take_another_tpm(tpm, &listed);
        given.map_err(|error| NotRevived { why: error.to_string(), is_final: error.is_final() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_dies_again_and_again_is_waited_for_longer_and_longer_up_to_a_limit() {
        let seconds = Duration::from_secs;
        let mut pauses = vec![Duration::ZERO];
        for _ in 0..12 {
            pauses.push(next_pause(*pauses.last().unwrap(), seconds(1)));
        }
        let expected = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300].map(seconds);
        assert_eq!(pauses, expected);
        assert_eq!(next_pause(LONGEST_PAUSE, seconds(3600)), PAUSE, "one that ran for an hour");
    }
}
