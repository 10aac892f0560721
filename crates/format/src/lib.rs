//! Every byte layout of the integrity subsystem and the policy text, as types: it decides nothing and opens nothing.
//!
//! One concept, one file: each names the kernel source or the specification that its layout comes from. Bytes from
//! outside never panic here: every reader returns an error that says what was found, what was needed, and where.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

pub mod audit;
pub mod base64;
pub mod block_list;
pub mod boot_parameters;
pub mod bpf_object;
pub mod btf;
pub mod cel;
pub mod dpkg;
pub mod elf;
pub mod event_log;
pub mod evm;
pub mod hash;
pub mod journal;
pub mod kernel_config;
pub mod kernel_number;
pub mod key;
pub mod key_blob;
pub mod label;
pub mod measurement_list;
pub mod openpgp;
pub mod pcr;
pub mod pkcs11_uri;
pub mod policy;
pub mod read_at;
pub mod reference;
pub mod rpm;
pub mod signature;
pub mod sqlite;
pub mod template;
pub mod tpm;
pub mod trace;
pub mod uuid;
pub mod verity;
