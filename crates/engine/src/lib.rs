//! Every decision of the integrity subsystem: policy, collect, measure, appraise, keys, TPM operations.
//!
//! It touches nothing itself: files, subjects, the TPM and the clock are ports (traits) that `imara-linux` fills.
//! Reading [`check`] is reading IMA.
#![forbid(unsafe_code)]

pub mod active_policy;
pub mod appraise;
pub mod audit;
pub mod block_list;
pub mod boot;
pub mod cache;
pub mod check;
pub mod crypto;
pub mod event_log;
pub mod evm;
pub mod explain;
pub mod integrity_status;
pub mod keyring;
pub mod keys;
pub mod label;
pub mod label_writes;
pub mod lock;
pub mod measure;
pub mod package_keys;
pub mod policy;
pub mod policy_analysis;
pub mod policy_difference;
pub mod policy_lists;
pub mod policy_space;
pub mod replay;
pub mod simulate;
pub mod tpm;
pub mod trace;
pub mod verity;
