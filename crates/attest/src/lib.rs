//! Evidence, proof and reference values: messages in, messages out.
#![forbid(unsafe_code)]

pub mod proof;
pub mod quote;
