//! Threads and processes: who is ours, waking a blocked thread, limits, and keeping our memory to ourselves.

use std::io;
use std::time::Duration;

/// Whether the thread `tid` belongs to the process `pid`: asked without sending a signal.
pub fn belongs_to(tid: i32, pid: i32) -> bool {
    // SAFETY: signal 0 only checks; integers only.
    tid > 0 && unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) } == 0
}

/// Ends the process of the thread `tid`: it comes back to run none of its instructions.
pub fn kill_thread(tid: i32) {
    if tid > 0 {
        // ESRCH: it is gone already.
        // SAFETY: integers only.
        unsafe { libc::syscall(libc::SYS_tkill, tid, libc::SIGKILL) };
    }
}

/// The calling thread.
pub fn current_thread() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Interrupts a system call that the thread `tid` of this process waits in.
///
/// # Errors
/// ESRCH when the thread has ended.
pub fn interrupt(tid: i32) -> io::Result<()> {
    // SAFETY: getpid cannot fail.
    let process = unsafe { libc::getpid() };
    // SAFETY: integers only; the signal has the handler that `prepare_interrupts` installed.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, process, tid, libc::SIGUSR1) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the scheduler give this thread the processor for so long at a time, if somebody else waits for it: whoever has little to do
/// waits no longer for one who has much. Since Linux 6.12, and for threads without a real-time priority; elsewhere nothing changes.
///
/// # Errors
/// What sched_getattr(2) and sched_setattr(2) say.
pub fn take_turns_of(slice: Duration) -> io::Result<()> {
    let mut attributes = attributes()?;
    if matches!(attributes.sched_policy.cast_signed(), libc::SCHED_OTHER | libc::SCHED_BATCH) {
        attributes.sched_runtime = slice.as_nanos().try_into().unwrap_or(u64::MAX);
        // SAFETY: reads a struct of the size that is in it.
        let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// How this thread is scheduled.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: an all-zero struct of integers is valid.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of_val(&attributes);
    // SAFETY: writes no more than `size` bytes into a struct of that size.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes) }
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Lets [`interrupt`] end a system call with EINTR instead of ending the program.
pub fn prepare_interrupts() {
    // SAFETY: an all-zero sigaction is valid: no flags (so no SA_RESTART), an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it is safe in any context.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
}

/// Raises the number of open files to the hard limit; the limit in force then.
pub fn raise_file_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes into a struct of the right type.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads a struct of the right type.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    // SAFETY: as the first.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur
}

/// No core dumps, and no other process of ours may read our memory.
pub fn forbid_dumps() {
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Keeps what this process has in memory, and what it touches from now on, from being paged out.
///
/// # Errors
/// ENOMEM where the limit on locked memory is lower; EPERM.
pub fn keep_memory() -> io::Result<()> {
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: integers only.
    if unsafe { libc::mlockall(flags) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Blocks SIGTERM, SIGINT and SIGHUP in this thread and those it starts later, for [`wait_for_signal`].
pub fn block_termination() {
    let set = termination();
    // SAFETY: reads a set that is initialised; the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Has a program that is started with `command` block no signals, whatever this thread does.
pub fn block_no_signals_in(command: &mut std::process::Command) {
    // SAFETY: an all-zero set is a valid value to initialise.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes to a set of ours.
    unsafe { libc::sigemptyset(&raw mut none) };
    let unblock = move || {
        // SAFETY: reads a set that is initialised; the old one is not asked for.
        match unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: it allocates nothing and takes no lock.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, unblock) };
}

/// SIGHUP, as [`wait_for_signal`] tells it.
pub const HANGUP: i32 = libc::SIGHUP;

/// Waits for SIGTERM, SIGINT or SIGHUP; the number of the one that came.
pub fn wait_for_signal() -> i32 {
    let set = termination();
    loop {
        let mut number = 0;
        // SAFETY: reads an initialised set and writes an integer of ours.
        if unsafe { libc::sigwait(&raw const set, &raw mut number) } == 0 {
            return number;
        }
    }
}

fn termination() -> libc::sigset_t {
    // SAFETY: an all-zero set is a valid value to initialise.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours; the calls only write into it.
    unsafe { libc::sigemptyset(&raw mut set) };
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: as above.
        unsafe { libc::sigaddset(&raw mut set, number) };
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_takes_short_turns_keeps_all_else() {
        let before = attributes().unwrap();
        std::thread::spawn(move || {
            take_turns_of(Duration::from_micros(500)).unwrap();
            let after = attributes().unwrap();
            let others = |of: &libc::sched_attr| (of.sched_policy, of.sched_nice, of.sched_priority);
            assert_eq!(others(&after), others(&before));
            // Older kernels do not keep it.
            assert!(after.sched_runtime == 500_000 || after.sched_runtime == before.sched_runtime);
        })
        .join()
        .unwrap();
    }
}
