//! System calls that no library wraps safely, one family a file: safe signatures, owned descriptors.

pub mod alg;
pub mod bpf;
pub mod fanotify;
pub mod filesystem;
pub mod identity;
pub mod inode;
pub mod key;
pub mod lease;
pub mod namespace;
pub mod process;
pub mod secret_memory;
pub mod signal;
pub mod verity;
