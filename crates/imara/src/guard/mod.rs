//! The daemon around the engine: configuration, start, control, end.

pub mod answers;
pub mod audit_log;
pub mod config;
pub mod control;
pub mod explanation;
pub mod list;
pub mod run;
pub mod runtime;
