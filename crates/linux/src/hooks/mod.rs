//! Where the kernel asks: permission events, and the threads that answer them.

pub mod bpf;
pub mod fanotify;
pub mod latency;
pub mod sentinel;
pub mod workers;
