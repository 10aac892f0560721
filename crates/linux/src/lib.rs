//! The ports that meet the kernel: files, xattrs and trees of them, mounts, processes, fanotify, the TPM device and the software TPM.
//!
//! Unsafe code lives in [`sys`] alone, one system call family a file.
#![deny(unsafe_code)]

pub mod attribute_writer;
pub mod evm_key;
pub mod files;
pub mod hooks;
pub mod inode;
pub mod interruption;
pub mod kept;
pub mod kernel_evm;
pub mod kernel_ima;
pub mod kernel_keyring;
pub mod key_service;
pub mod local_socket;
pub mod mounts;
pub mod opened;
pub mod process;
pub mod process_handle;
pub mod swtpm;
#[allow(unsafe_code)]
pub mod sys;
pub mod terminal;
pub mod token;
pub mod tpm_address;
pub mod tpm_device;
pub mod tpm_record;
pub mod tpm_socket;
pub mod tree;
pub mod verity;
