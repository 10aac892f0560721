//! The daemon around the engine: configuration, start, control, end.

pub mod answers;
pub mod audit_log;
pub mod config;
pub mod control;
pub mod events;
pub mod evm;
pub mod explanation;
pub mod level2;
pub mod list;
pub mod live_policy;
pub mod policy_source;
pub mod rollback;
pub mod run;
pub mod running;
pub mod runtime;
pub mod sentinel;
pub mod service_manager;
pub mod software_tpm;
pub mod tracing;
pub mod trusted_keys;
