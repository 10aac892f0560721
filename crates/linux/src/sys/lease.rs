//! File leases: whether anybody can write to a file now, and notice before somebody will.
//!
//! A read lease is granted exactly when no descriptor open for writing and no writable shared mapping exists. While it
//! is held, the next open for writing waits until we let go (or `/proc/sys/fs/lease-break-time` has passed) and the kernel
//! sends the chosen signal.
//!
//! Source: fcntl(2), `F_SETLEASE`, `F_SETSIG`, `F_SETOWN_EX`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

// Linux's own numbers, which the libc crate does not carry for glibc (include/uapi/asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    // libc's looks for commands that it has to prepare; these are none.
    // SAFETY: these commands take an integer and touch no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_fcntl, file.as_raw_fd(), command, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has this descriptor's leases told by the queued signal [`signal`] when they are broken. Once will do for a descriptor.
///
/// # Errors
/// What fcntl(2) says.
pub fn prepare(file: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(file, F_SETSIG, signal())
}

/// Whether a read lease could be had, that is, whether nobody can write to the file now. `None` where the file system
/// has no leases, so that nothing is known. A writer who comes between taking and releasing breaks the lease, which looks like lost
/// signals unless the descriptor was [prepared](prepare).
pub fn nobody_writes(file: BorrowedFd<'_>) -> Option<bool> {
    match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => {
            // Releasing our own lease cannot fail, and closing the descriptor would release it too.
            let _ = release(file);
            Some(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Some(false),
        Err(_) => None,
    }
}

/// Takes a read lease whose breaking is told to the thread `tid` by the queued signal [`signal`].
///
/// # Errors
/// EAGAIN when somebody can write, EINVAL where the file system has no leases.
pub fn hold(file: BorrowedFd<'_>, tid: i32) -> io::Result<()> {
    let owner = Owner { kind: F_OWNER_TID, pid: tid };
    // SAFETY: reads a plain struct of the layout that the command wants.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    prepare(file)?;
    fcntl(file, libc::F_SETLEASE, libc::F_RDLCK)?;
    // Taking the lease makes the calling thread's process the owner again.
    // SAFETY: as above.
    unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    Ok(())
}

/// Lets a lease go.
///
/// # Errors
/// What fcntl(2) says; EAGAIN when there was none.
pub fn release(file: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(file, libc::F_SETLEASE, libc::F_UNLCK)
}

/// Whether a read lease of this descriptor is in force still, and nobody waits for its end to write.
pub fn is_held(file: BorrowedFd<'_>) -> bool {
    // SAFETY: the command takes no argument and touches no memory of ours.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
}

/// How long the kernel has a writer wait for the end of a lease (`/proc/sys/fs/lease-break-time`).
pub fn break_time() -> std::time::Duration {
    const DEFAULT: u64 = 45;
    let seconds = std::fs::read_to_string("/proc/sys/fs/lease-break-time").ok();
    std::time::Duration::from_secs(seconds.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(DEFAULT))
}

#[repr(C)]
struct Owner {
    kind: libc::c_int,
    pid: libc::pid_t,
}

/// The signal that tells of a broken lease: queued, and it carries the descriptor.
pub fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

/// Blocks the lease signal (and SIGIO, which kills by default) in this thread and those it starts later.
pub fn block_signals() {
    let set = signal_set();
    // SAFETY: reads a set that is initialised; the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// A lease that stands in a writer's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The one that this descriptor holds.
    Descriptor(RawFd),
    /// Some: the signal queue was full, and which was lost.
    Any,
}

/// Waits up to `milliseconds` for a lease to be broken.
pub fn wait_broken(milliseconds: u32) -> Option<Broken> {
    let set = signal_set();
    let timeout = libc::timespec {
        tv_sec: libc::time_t::from(milliseconds / 1000),
        tv_nsec: libc::c_long::from(milliseconds % 1000) * 1_000_000,
    };
    // SAFETY: an all-zero siginfo_t is a valid one.
    let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: all three point to initialised values of the right types.
    let got = unsafe { libc::sigtimedwait(&raw const set, &raw mut information, &raw const timeout) };
    if got == libc::SIGIO {
        return Some(Broken::Any);
    }
    // For a signal sent by F_SETSIG the SIGPOLL arm of the union is filled in: si_signo, si_errno, si_code and padding
    // (4 bytes each), si_band (8 bytes), si_fd. A siginfo_t is 128 bytes, so there are 32 words.
    let words: *const [i32; 32] = (&raw const information).cast();
    // SAFETY: siginfo_t is as large and at least as aligned as 32 words, all of them initialised.
    (got == signal()).then(|| Broken::Descriptor(unsafe { *words }[6]))
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: an all-zero set is a valid value to initialise.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours; the calls only write into it.
    unsafe { libc::sigemptyset(&raw mut set) };
    for number in [signal(), libc::SIGIO] {
        // SAFETY: as above.
        unsafe { libc::sigaddset(&raw mut set, number) };
    }
    set
}
