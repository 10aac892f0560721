//! The process behind an event: its identities, and how it is opening the file.
//!
//! Source: proc_pid_status(5), proc_pid_syscall(5).

use imara_engine::audit::TaskIdentity;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

/// A task's identities and effective capabilities, read from `/proc/TID/status`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Process (thread group).
    pub pid: i32,
    /// Parent process.
    pub parent: i32,
    /// Real, effective, saved and file system user.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group.
    pub gids: [u32; 4],
    /// Effective capabilities over our user namespace, bit n for capability n.
    pub capabilities: u64,
    /// The command's name.
    pub command: String,
}

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SYS_ADMIN: u32 = 21;

impl Credentials {
    /// Whether it may take on any user.
    pub const fn can_setuid(&self) -> bool {
        self.capabilities >> CAP_SETUID & 1 == 1
    }

    /// Whether it may administer the system, which writing labels needs.
    pub const fn can_administer(&self) -> bool {
        self.capabilities >> CAP_SYS_ADMIN & 1 == 1
    }

    /// Whether it may take on any group.
    pub const fn can_setgid(&self) -> bool {
        self.capabilities >> CAP_SETGID & 1 == 1
    }
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this process has CAP_SYS_ADMIN in the user namespace that it is in.
pub fn can_administer() -> bool {
    std::fs::read("/proc/self/status")
        .ok()
        .and_then(|text| parse_status(&String::from_utf8_lossy(&text)))
        .is_none_or(|credentials| credentials.can_administer())
}

/// The identities of a thread.
///
/// # Errors
/// ENOENT or ESRCH when it has ended; `InvalidData` when the file lacks a line.
pub fn credentials(tid: i32) -> io::Result<Credentials> {
    let text = std::fs::read(format!("/proc/{tid}/status"))?;
    let mut credentials = parse_status(&String::from_utf8_lossy(&text))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{tid}/status lacks an identity")))?;
    // Capabilities are those over the task's own user namespace, which anybody can make for themselves.
    if credentials.capabilities != 0 && user_namespace(&tid.to_string()) != user_namespace("self") {
        credentials.capabilities = 0;
    }
    Ok(credentials)
}

fn user_namespace(process: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/user")).ok()
}

fn parse_status(text: &str) -> Option<Credentials> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let four = |name: &str| -> Option<[u32; 4]> {
        let ids: Vec<u32> = line(name)?.split_whitespace().map_while(|id| id.parse().ok()).collect();
        ids.try_into().ok()
    };
    Some(Credentials {
        pid: line("Tgid:")?.parse().ok()?,
        parent: line("PPid:")?.parse().ok()?,
        uids: four("Uid:")?,
        gids: four("Gid:")?,
        capabilities: u64::from_str_radix(line("CapEff:")?, 16).ok()?,
        command: line("Name:")?.to_owned(),
    })
}

/// Who a thread is, for audit records: its credentials, and what else `/proc` says of it.
pub fn identity(tid: i32, credentials: &Credentials) -> TaskIdentity {
    const UNSET: u32 = u32::MAX;
    let number = |name: &str| {
        std::fs::read_to_string(format!("/proc/{tid}/{name}")).ok().and_then(|text| text.trim().parse().ok())
    };
    TaskIdentity {
        tid,
        pid: credentials.pid,
        parent: credentials.parent,
        uids: credentials.uids,
        gids: credentials.gids,
        login_uid: number("loginuid").unwrap_or(UNSET),
        session: number("sessionid").unwrap_or(UNSET),
        command: credentials.command.clone().into_bytes(),
        executable: std::fs::read_link(format!("/proc/{tid}/exe"))
            .map(|path| path.into_os_string().into_vec())
            .unwrap_or_default(),
        // EINVAL where no security module labels tasks.
        context: std::fs::read(format!("/proc/{tid}/attr/current"))
            .map(|label| label.trim_ascii_end().strip_suffix(b"\0").unwrap_or(label.trim_ascii_end()).to_vec())
            .unwrap_or_default(),
    }
}

/// What keeps a process from running, as far as `/proc` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standstill {
    /// Nothing that shows.
    None,
    /// SIGSTOP or the like.
    Stopped,
    /// This process holds one of its threads at least, as a debugger does.
    Traced(i32),
    /// It has ended, or was killed and a thread of it is still in the kernel.
    Dead,
}

/// What keeps the process from running, in any of its threads.
pub fn standstill(pid: i32) -> Standstill {
    let Ok(text) = std::fs::read(format!("/proc/{pid}/status")) else {
        return Standstill::Dead;
    };
    let found = standstill_of(&String::from_utf8_lossy(&text));
    if found != Standstill::None {
        return found;
    }
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read(thread.path().join("status")).ok())
        .map(|text| standstill_of(&String::from_utf8_lossy(&text)))
        .find(|found| matches!(found, Standstill::Traced(_) | Standstill::Stopped))
        .unwrap_or(Standstill::None)
}

fn standstill_of(status: &str) -> Standstill {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
    let tracer = line("TracerPid:").and_then(|pid| pid.parse().ok()).unwrap_or(0);
    match line("State:").and_then(|state| state.chars().next()) {
        Some('Z' | 'X') => Standstill::Dead,
        Some('T' | 't') if tracer != 0 => Standstill::Traced(tracer),
        Some('T') => Standstill::Stopped,
        _ => Standstill::None,
    }
}

/// Whether a task has another mount namespace than we have, so that a path may mean another file there.
pub fn has_other_mounts(tid: i32) -> bool {
    let namespace = |task: &str| std::fs::read_link(format!("/proc/{task}/ns/mnt")).ok();
    // One that has gone is taken for one of ours.
    namespace(&tid.to_string()).is_some_and(|its| namespace("self").is_some_and(|ours| its != ours))
}

/// Whether the process with this number is a corpse: killed, and kept by a thread that the kernel cannot let go.
pub fn is_dead(pid: &str) -> bool {
    let state = |stat: String| stat.rsplit(')').next()?.trim_start().chars().next();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    matches!(stat.ok().and_then(state), Some('Z' | 'X'))
}

/// Whether all that is left of the process with this number is ending: the kernel is putting away what it had, which takes it seconds where
/// that were the programs of level 2. A thread that the kernel cannot let go has not begun to end.
pub fn is_ending(pid: &str) -> bool {
    /// `include/linux/sched.h`; the seventh field after the name (proc_pid_stat(5)).
    const PF_EXITING: u64 = 4;
    let is_ending = |thread: std::fs::DirEntry| {
        // One that has gone meanwhile has ended.
        let Ok(stat) = std::fs::read_to_string(thread.path().join("stat")) else { return true };
        let flags = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
        flags.is_some_and(|flags| flags & PF_EXITING != 0)
    };
    std::fs::read_dir(format!("/proc/{}/task", pid.trim())).is_ok_and(|threads| threads.flatten().all(is_ending))
}

/// How a task that waits for our verdict is opening the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// To execute it.
    Exec,
    /// With these open(2) flags.
    Flags(u32),
    /// By a way that does not show (io_uring, openat2, the kernel itself).
    Unknown,
}

/// How the thread is opening a file: its system call and arguments, which cannot change while it waits.
///
/// An event can be read before its task has gone to sleep over it, and the kernel then says `running`; it is asked again
/// until it does.
pub fn opening(tid: i32) -> Opening {
    const PATIENCE: Duration = Duration::from_millis(200);
    let start = Instant::now();
    loop {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{tid}/syscall")) else {
            return Opening::Unknown;
        };
        if !text.starts_with("running") || start.elapsed() > PATIENCE {
            return parse_syscall(&text);
        }
        std::thread::yield_now();
    }
}

/// Whether a task waits in a system call that executes nothing. One that runs, or of which nothing is known, does not.
pub fn waits_elsewhere_than_in_exec(tid: i32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{tid}/syscall")) else {
        return false;
    };
    // "running" where it does not wait; -1 where it waits for another reason than a call of its own.
    let number = text.split_whitespace().next().and_then(|word| word.parse::<i64>().ok());
    number.is_some_and(|number| number >= 0) && parse_syscall(&text) != Opening::Exec
}

/// The text is the call's number and six arguments in hexadecimal, then stack and instruction pointer.
fn parse_syscall(text: &str) -> Opening {
    let mut words = text.split_whitespace();
    let Some(number) = words.next().and_then(|word| word.parse::<i64>().ok()) else {
        return Opening::Unknown;
    };
    let argument = |index: usize| {
        words
            .clone()
            .nth(index)
            .and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok())
            .map_or(Opening::Unknown, |flags| Opening::Flags(flags as u32))
    };
    const CREAT: u32 = (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u32;
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_open => return argument(1),
        libc::SYS_creat => return Opening::Flags(CREAT),
        // The 32-bit numbers. The calls that have these numbers at 64 bits (fstat, lseek, munmap, preadv and two unused
        // ones) open nothing, so there is no mistaking them.
        5 => return argument(1),
        8 => return Opening::Flags(CREAT),
        295 => return argument(2),
        342 => return argument(2),
        11 | 358 => return Opening::Exec,
        _ => {}
    }
    match number {
        libc::SYS_execve | libc::SYS_execveat => Opening::Exec,
        libc::SYS_openat | libc::SYS_open_by_handle_at => argument(2),
        _ => Opening::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_status_is_read() {
        let tid = crate::sys::process::current_thread();
        let credentials = credentials(tid).unwrap();
        assert_eq!(credentials.pid, std::process::id().cast_signed());
        assert_eq!(credentials.uids[0], rustix::process::getuid().as_raw());
    }

    #[test]
    fn a_process_is_ending_from_when_it_was_killed_until_it_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().to_string();
        assert!(!is_ending(&pid) && !is_dead(&pid));
        child.kill().unwrap();
        let begun = Instant::now();
        while !is_ending(&pid) && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(is_ending(&pid), "nobody has waited for it");
        child.wait().unwrap();
        assert!(!is_ending(&pid) && !is_ending("") && !is_ending("nobody"));
    }

    #[test]
    fn what_keeps_a_process_from_running_is_told() {
        for (status, expected) in [
            ("State:\tS (sleeping)\nTracerPid:\t0\n", Standstill::None),
            ("State:\tR (running)\nTracerPid:\t7\n", Standstill::None),
            ("State:\tD (disk sleep)\nTracerPid:\t0\n", Standstill::None),
            ("State:\tT (stopped)\nTracerPid:\t0\n", Standstill::Stopped),
            ("State:\tt (tracing stop)\nTracerPid:\t7\n", Standstill::Traced(7)),
            ("State:\tT (stopped)\nTracerPid:\t7\n", Standstill::Traced(7)),
            ("State:\tZ (zombie)\n", Standstill::Dead),
            ("", Standstill::None),
        ] {
            assert_eq!(standstill_of(status), expected, "{status}");
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert_eq!(standstill(pid), Standstill::None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(standstill(pid), Standstill::Dead);
    }

    #[test]
    fn a_status_that_lacks_a_line_gives_nothing() {
        let whole = "Name:\tsh\nTgid:\t7\nPPid:\t1\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapEff:\t00000000000000c0\n";
        let read = parse_status(whole).unwrap();
        assert_eq!((read.uids, read.gids, read.pid), ([1, 2, 3, 4], [5, 6, 7, 8], 7));
        assert!(read.can_setuid() && read.can_setgid());
        for missing in ["Name", "Tgid", "PPid", "Uid", "Gid", "CapEff"] {
            let cut: String =
                whole.lines().filter(|line| !line.starts_with(missing)).map(|l| format!("{l}\n")).collect();
            assert_eq!(parse_status(&cut), None, "{missing}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_system_call_tells_how_a_file_is_opened() {
        for (text, expected) in [
            ("257 0xffffff9c 0x7f 0x80000 0x0 0x0 0x0 0x7ffd 0x7f", Opening::Flags(0x80000)),
            ("2 0x7f 0x2 0x0 0x0 0x0 0x0 0x7ffd 0x7f", Opening::Flags(2)),
            ("59 0x1 0x2 0x3 0x0 0x0 0x0 0x7ffd 0x7f", Opening::Exec),
            ("437 0xffffff9c 0x7f 0x7f 0x18 0x0 0x0 0x7ffd 0x7f", Opening::Unknown),
            ("running", Opening::Unknown),
            ("-1 0x7ffd 0x7f", Opening::Unknown),
            ("", Opening::Unknown),
            ("257 0xffffff9c", Opening::Unknown),
        ] {
            assert_eq!(parse_syscall(text), expected, "{text}");
        }
    }
}
