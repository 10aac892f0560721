//! Authorisation values that commands are given, each from a file of its own, so that none stands on a command line.

use crate::command::key::secret::read_secret;
use crate::command::paths::printable;
use crate::output::Failure;
use imara_engine::tpm::AuthValue;
use std::path::Path;

/// The authorisation value in a file: all of its bytes, also a newline at the end. Without a file the empty one.
///
/// # Errors
/// The file cannot be read, or holds more than a TPM takes.
pub fn value(file: Option<&Path>) -> Result<AuthValue, Failure> {
    let Some(file) = file else { return Ok(AuthValue::empty()) };
    let secret = read_secret(file)?;
    AuthValue::new(secret.as_bytes().to_vec()).ok_or_else(|| {
        Failure::failed(format!(
            "{} has {} bytes, and no authorisation value more than 64",
            printable(file),
            secret.len()
        ))
    })
}
