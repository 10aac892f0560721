//! EVM: does a file's metadata match its label, and who may change it?
//!
//! [`Snapshot`] is what it protects, [`Verifier`] what it makes of it, [`hooks`] what it lets happen, [`mode`] and [`xattrs`]
//! its two files in securityfs, [`sign`] how labels are made: all of it decides about values. [`Evm`] is EVM as it runs.
//!
//! Source: security/integrity/evm.

pub mod difference;
pub mod explain;
pub mod hooks;
pub mod key;
pub mod mode;
pub mod recorded;
pub mod rules;
pub mod running;
pub mod sign;
pub mod snapshot;
pub mod verify;
pub mod xattrs;

pub use difference::Difference;
pub use key::{Custody, HmacKey};
pub use rules::Rules;
pub use running::{Evm, KeySource};
pub use snapshot::{EvmLabel, Place, Snapshot};
pub use verify::{Found, Reason, Verifier};

/// The type byte of an HMAC label.
pub const HMAC_TYPE: u8 = 2;
/// The type byte of a signature that belongs to one file of one filesystem.
pub const SIGNATURE_TYPE: u8 = 3;
/// The type byte of a portable signature.
pub const PORTABLE_TYPE: u8 = 5;

#[cfg(test)]
mod tests;
