//! The software TPM that Imara starts and stops: `swtpm`, where the machine has no TPM. It is no root of trust: whoever
//! is root can rewrite its state.
//!
//! It outlives the program that started it: `swtpm --daemon` runs in a session of its own, so that a killed daemon finds
//! its PCRs again. What lies in its directory (mode 0700):
//!
//! | file | content |
//! |---|---|
//! | `tpm2-00.permall`, `.lock` | `swtpm`'s state |
//! | `socket` | raw commands and responses, one client at a time; others wait |
//! | `pid` | the process, as `swtpm` writes it |
//! | `log`, `log.old` | what `swtpm` says, since its last start; what the one before it said |
//! | `starting` | locked while one of us looks for it or starts it |
//!
//! How PCRs fare:
//!
//! | what ended | the next start has |
//! |---|---|
//! | the program that uses it | all PCRs: it is still there ([`Resumed::Attached`]) |
//! | `swtpm`, by [`SoftwareTpm::stop`] | all PCRs ([`Resumed::State`]), unless it is asked to be fresh |
//! | `swtpm`, by SIGKILL, or the machine | PCRs from zero ([`Resumed::Cleared`]) |
//!
//! There is no control socket, because who can open one can reset the PCRs with it.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use imara_engine::tpm::{Bank, ResponseCode, Started, StartupType, Tpm, TpmError, Transport};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::FlockOperation,
    process::{Pid, PidfdFlags, Signal},
};

use crate::sys::process;
use crate::tpm_socket::SocketTransport;

/// A software TPM that runs, has been started up, and answers.
#[derive(Debug)]
pub struct SoftwareTpm {
    dir: PathBuf,
    pid: Pid,
    resumed: Resumed,
    banks: Vec<Bank>,
}

/// Where the PCRs of a software TPM come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// It was running: nothing has changed.
    Attached,
    /// It had been stopped in order and goes on where it was.
    State,
    /// Its PCRs are at zero: a fresh start was asked for, it is new, or it was killed and its PCRs are lost.
    Cleared,
}

/// What keeps the software TPM from being used.
#[derive(Debug, thiserror::Error)]
pub enum SwtpmError {
    /// There is no such program.
    #[error(
        "the program `swtpm` is not installed; install the package `swtpm`, e.g. `apt install swtpm` or `dnf install swtpm`"
    )]
    NotInstalled,
    /// The program does not run.
    #[error("`swtpm` cannot be run: {0}")]
    Run(io::Error),
    /// It ran and gave up.
    #[error("`swtpm` did not start ({status}); it says: {said} (log: {})", log.display())]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        said: String,
        /// Its log.
        log: PathBuf,
    },
    /// It does not come up, or does not go.
    #[error("`swtpm` did not {what} within {} s; it says: {said} (log: {})", limit.as_secs(), log.display())]
    TooSlow {
        /// What it should have done.
        what: &'static str,
        /// What it was given.
        limit: Duration,
        /// The last lines of its log.
        said: String,
        /// Its log.
        log: PathBuf,
    },
    /// It has ended without being told to, so its PCRs are lost.
    #[error("`swtpm` (process {pid}) has ended by itself and its PCRs are lost; it says: {said} (log: {})", log.display())]
    Ended {
        /// The process that it was.
        pid: i32,
        /// The last lines of its log.
        said: String,
        /// Its log.
        log: PathBuf,
    },
    /// The directory or a file in it cannot be used.
    #[error("{} cannot be used for the software TPM: {source}", path.display())]
    State {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The directory belongs to another user, who could read and replace the TPM's state.
    #[error("{} belongs to user {owner}, not to user {us}, who runs this: choose another directory or change its owner", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// A Unix socket's path has 107 bytes at most.
    #[error("{} is too long for a socket, by {} bytes: choose a directory with a shorter path", path.display(), path.as_os_str().len().saturating_sub(MAX_SOCKET_PATH))]
    PathTooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// `swtpm` takes a comma as the end of a path.
    #[error("{} has a comma in it, which `swtpm` cannot take: choose another directory", .0.display())]
    PathWithComma(PathBuf),
    /// It runs and does not answer as it should.
    #[error("the software TPM (process {pid}): {source}")]
    Tpm {
        /// The process.
        pid: i32,
        /// What is wrong.
        source: TpmError,
    },
}

/// `sun_path` without its final zero.
const MAX_SOCKET_PATH: usize = 107;
/// How long `swtpm` may take to come up or to end.
const LIMIT: Duration = Duration::from_secs(10);
impl SoftwareTpm {
    /// Finds the software TPM whose state is in `dir` running, or starts it there; makes `dir` when it is not there.
    ///
    /// With `fresh`, as at a machine's boot, its PCRs start from zero; else they go on, where they can.
    /// [`resumed`](Self::resumed) says what has become of them.
    ///
    /// # Errors
    /// [`SwtpmError`], with what `swtpm` says.
    pub fn start_or_attach(dir: &Path, fresh: bool) -> Result<Self, SwtpmError> {
        let dir = private_directory(dir)?;
        let place = Place::new(dir)?;
        let _starting = place.lock()?;
        match place.running() {
            Some(pid) if fresh => place.end(pid)?,
            Some(pid) => match place.meet(pid, fresh) {
                // It could not write its state once and refuses everything since; only a new process gets it out.
                Err(SwtpmError::Tpm { source: TpmError::Refused { code: ResponseCode::FAILURE, .. }, .. }) => {
                    place.end(pid)?;
                }
                met => return met,
            },
            None => {}
        }
        let pid = place.start()?;
        place.meet(pid, fresh)
    }

    /// The process of the software TPM whose state is in `dir`, if it runs. Asks it nothing, so it does not matter who
    /// else is using it.
    pub fn running(dir: &Path) -> Option<i32> {
        let place = Place { dir: dir.canonicalize().ok()? };
        place.running().map(|pid| pid.as_raw_nonzero().get())
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// What has become of its PCRs.
    pub fn resumed(&self) -> Resumed {
        self.resumed
    }

    /// Its PCR banks.
    pub fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// A way to it. Only one can be in use at a time: another waits until the first is dropped, five seconds at most.
    pub fn transport(&self) -> Box<dyn Transport> {
        Box::new(SocketTransport::unix(self.socket()))
    }

    /// Saves its PCRs and ends it. Every transport to it must have been dropped.
    ///
    /// # Errors
    /// [`SwtpmError`]; it may then still be running.
    pub fn stop(self) -> Result<(), SwtpmError> {
        let place = Place { dir: self.dir };
        let _starting = place.lock()?;
        if place.running() != Some(self.pid) {
            let pid = self.pid.as_raw_nonzero().get();
            return Err(SwtpmError::Ended { pid, said: place.said(), log: place.log() });
        }
        place.end(self.pid)
    }
}

/// Brings up a TPM that may have been up before.
fn start_up(tpm: &mut Tpm, fresh: bool) -> Result<Resumed, TpmError> {
    if !fresh {
        match tpm.startup(StartupType::State) {
            Ok(Started::Already) => return Ok(Resumed::Attached),
            Ok(Started::Now) => return Ok(Resumed::State),
            // There is no saved state: it was not stopped in order, or never ran.
            Err(TpmError::Refused { code: NO_SAVED_STATE, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    tpm.startup(StartupType::Clear).map(|_| Resumed::Cleared)
}

/// `TPM_RC_VALUE`, parameter 1: the startup type.
const NO_SAVED_STATE: ResponseCode = ResponseCode(0x1c4);

const SOCKET: &str = "socket";

/// The directory of a software TPM, absolute and of a length that will do.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn new(dir: PathBuf) -> Result<Self, SwtpmError> {
        let place = Self { dir };
        if place.dir.as_os_str().as_bytes().contains(&b',') {
            return Err(SwtpmError::PathWithComma(place.dir));
        }
        if place.socket().as_os_str().len() > MAX_SOCKET_PATH {
            return Err(SwtpmError::PathTooLong { path: place.socket() });
        }
        Ok(place)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Keeps others from starting a second one until the file is dropped.
    fn lock(&self) -> Result<File, SwtpmError> {
        let path = self.dir.join("starting");
        let locked = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).and_then(|file| {
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        });
        locked.map_err(|source| SwtpmError::State { path, source })
    }

    /// The option that tells this software TPM from any other.
    fn state_option(&self) -> OsString {
        option("dir=", &self.dir, "")
    }

    /// The process that serves this directory: the one in the pid file, else, should that be gone, any.
    fn running(&self) -> Option<Pid> {
        let noted = fs::read_to_string(self.pid_file()).ok().and_then(|text| text.trim().parse().ok());
        noted.and_then(Pid::from_raw).filter(|pid| self.is_ours(*pid)).or_else(|| {
            let processes = fs::read_dir("/proc").ok()?.flatten();
            let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
            pids.into_iter().find(|pid| self.is_ours(*pid))
        })
    }

    /// Whether a process is a `swtpm` that serves this directory, and not another that has got the number since.
    fn is_ours(&self, pid: Pid) -> bool {
        let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let state = self.state_option();
        let is_state = |argument: &[u8]| {
            argument.strip_prefix(state.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b","))
        };
        // A name and arguments are what a process says of itself: another user's could say the same.
        process.metadata().is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
            && fs::read(process.join("comm")).is_ok_and(|name| name == b"swtpm\n")
            // A zombie has no arguments left.
            && fs::read(process.join("cmdline"))
                .is_ok_and(|line| line.split(|byte| *byte == 0).any(is_state))
    }

    /// Starts up the TPM in a process of ours, if it is not.
    fn meet(&self, pid: Pid, fresh: bool) -> Result<SoftwareTpm, SwtpmError> {
        let mut tpm = Tpm::unstarted(Box::new(SocketTransport::unix(self.socket())));
        match start_up(&mut tpm, fresh) {
            Ok(resumed) => Ok(SoftwareTpm { dir: self.dir.clone(), pid, resumed, banks: tpm.banks().to_vec() }),
            Err(source) => Err(SwtpmError::Tpm { pid: pid.as_raw_nonzero().get(), source }),
        }
    }

    /// Starts `swtpm` and waits until it listens.
    fn start(&self) -> Result<Pid, SwtpmError> {
        for stale in [self.socket(), self.pid_file()] {
            match fs::remove_file(&stale) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(SwtpmError::State { path: stale, source });
                }
                _ => {}
            }
        }
        // Why the last one ended stays on record until this one has ended too.
        let _ = fs::rename(self.log(), self.dir.join("log.old"));
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(self.log());
        let log = log.and_then(|log| Ok((log.try_clone()?, log)));
        let (out, err) = log.map_err(|source| SwtpmError::State { path: self.log(), source })?;
        let mut swtpm = Command::new("swtpm");
        swtpm.args(["socket", "--tpm2", "--tpmstate"]).arg(option("dir=", &self.dir, ",mode=0600"));
        swtpm.arg("--server").arg(option("type=unixio,path=", &self.socket(), ",mode=0600"));
        swtpm.args(["--flags", "not-need-init", "--daemon", "--pid"]).arg(option("file=", &self.pid_file(), ""));
        swtpm.arg("--log").arg(option("file=", &self.log(), ""));
        swtpm.current_dir("/").stdin(Stdio::null()).stdout(out).stderr(err);
        // A guard blocks them, and this one has to be ended by them.
        process::block_no_signals_in(&mut swtpm);
        let mut child = swtpm.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SwtpmError::NotInstalled,
            _ => SwtpmError::Run(error),
        })?;
        // What we spawned ends as soon as the daemon that it forked is there.
        let status = until(|| child.try_wait().map_err(SwtpmError::Run))?;
        let Some(status) = status else {
            // It is our own child and has not been waited for, so the signal cannot reach another.
            let _ = child.kill();
            let _ = child.wait();
            return Err(self.too_slow("start"));
        };
        if !status.success() {
            return Err(SwtpmError::Failed { status, said: self.said(), log: self.log() });
        }
        until(|| Ok(self.running().filter(|_| self.socket().exists())))?.ok_or_else(|| self.too_slow("listen"))
    }

    /// Has it save its PCRs, then ends it.
    fn end(&self, pid: Pid) -> Result<(), SwtpmError> {
        let number = pid.as_raw_nonzero().get();
        let failed = |error: rustix::io::Errno| SwtpmError::State {
            path: PathBuf::from(format!("/proc/{number}")),
            source: error.into(),
        };
        // From here on the descriptor means the process, even if its number should be given to another.
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
        if !self.is_ours(pid) {
            return Err(SwtpmError::Ended { pid: number, said: self.said(), log: self.log() });
        }
        let mut tpm = Tpm::unstarted(Box::new(SocketTransport::unix(self.socket())));
        // One that was never started up, or that has failed, has nothing to save; what one that does not answer (its
        // socket was removed, say) has, nobody can reach any more. The next start says that the PCRs are lost.
        let _ = tpm.shutdown(StartupType::State);
        rustix::process::pidfd_send_signal(&process, Signal::TERM).map_err(failed)?;
        let limit = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        if rustix::event::poll(&mut ended, Some(&limit)).map_err(failed)? > 0 {
            return Ok(());
        }
        rustix::process::pidfd_send_signal(&process, Signal::KILL).map_err(failed)?;
        match rustix::event::poll(&mut ended, Some(&limit)).map_err(failed)? {
            0 => Err(self.too_slow("end")),
            _ => Ok(()),
        }
    }

    fn too_slow(&self, what: &'static str) -> SwtpmError {
        SwtpmError::TooSlow { what, limit: LIMIT, said: self.said(), log: self.log() }
    }

    /// The log's last lines: the very last often says no more than that it did not work.
    fn said(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let telling = |line: &&str| !line.is_empty() && !line.starts_with("Data client disconnected");
        let mut said: Vec<_> = log.lines().rev().map(str::trim).filter(telling).take(3).collect();
        said.reverse();
        if said.is_empty() { "nothing".to_owned() } else { said.join("; ") }
    }
}

/// Makes the directory, or takes it when it is ours alone, and gives its absolute path: a daemon's own directory is `/`.
fn private_directory(dir: &Path) -> Result<PathBuf, SwtpmError> {
    let state = |source| SwtpmError::State { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(state)?;
    let dir = dir.canonicalize().map_err(state)?;
    let found = dir.metadata().map_err(state)?;
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != us {
        return Err(SwtpmError::Owner { path: dir, owner: found.uid(), us });
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(state)?;
    }
    Ok(dir)
}

/// An option of `swtpm` with a path in it.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    OsString::from_vec([OsStr::new(before), path.as_os_str(), OsStr::new(after)].map(OsStr::as_bytes).concat())
}

/// Asks until there is an answer, or [`LIMIT`] has passed.
fn until<T>(mut ask: impl FnMut() -> Result<Option<T>, SwtpmError>) -> Result<Option<T>, SwtpmError> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let answer = ask()?;
        if answer.is_some() || begun.elapsed() > LIMIT {
            return Ok(answer);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
