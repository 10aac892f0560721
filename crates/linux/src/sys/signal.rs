//! SIGINT and SIGTERM, kept by a handler for whoever asks, until they end the program as they would have.
//!
//! Source: sigaction(2), signal-safety(7).

use std::sync::atomic::{AtomicI32, Ordering};

/// The signals that end a command.
const ENDING: [libc::c_int; 2] = [libc::SIGINT, libc::SIGTERM];

/// Its number, as [`came`] tells it.
pub const SIGTERM: i32 = libc::SIGTERM;

/// The one that came.
static CAME: AtomicI32 = AtomicI32::new(0);

extern "C" fn keep(signal: libc::c_int) {
    CAME.store(signal, Ordering::Relaxed);
}

/// What the signals did before, which they do again when this is dropped.
pub struct Caught([Option<libc::sigaction>; ENDING.len()]);

/// Keeps the first SIGINT or SIGTERM for [`came`]; the next one of its kind ends the program. What was ignored (nohup(1), a shell's background) stays so.
pub fn catch() -> Caught {
    // SAFETY: an all-zero sigaction is valid: an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = keep as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // No call is interrupted: what is under way is to be ended in order.
    action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
    Caught(ENDING.map(|signal| {
        let before = action_of(signal)?;
        if before.sa_sigaction == libc::SIG_IGN {
            return None;
        }
        set(signal, &action);
        Some(before)
    }))
}

impl Drop for Caught {
    fn drop(&mut self) {
        for (signal, before) in ENDING.iter().zip(&self.0) {
            if let Some(before) = before {
                set(*signal, before);
            }
        }
    }
}

fn action_of(signal: libc::c_int) -> Option<libc::sigaction> {
    // SAFETY: an all-zero sigaction is a valid value to be written over.
    let mut found: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: writes into a struct of the right type; nothing is set.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut found) };
    (result == 0).then_some(found)
}

fn set(signal: libc::c_int, action: &libc::sigaction) {
    // SAFETY: the action is either one that the kernel gave, or has a handler that only stores into an atomic, which is safe in any context.
    unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) };
}

/// The signal that came, if one did while it was caught.
pub fn came() -> Option<i32> {
    Some(CAME.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// Ends the program by a signal, so that whoever started it sees by what it ended: a shell stops its loop, and has 128 and its number as exit status.
pub fn end_by(signal: i32) {
    // SAFETY: an all-zero sigaction is valid, and is the default action.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    set(signal, &default);
    // SAFETY: integers only.
    unsafe { libc::raise(signal) };
}
