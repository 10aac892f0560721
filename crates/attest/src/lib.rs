//! Evidence, proof and reference values: messages in, messages out.
#![forbid(unsafe_code)]

pub mod contents;
pub mod event_log;
pub mod proof;
pub mod quote;
