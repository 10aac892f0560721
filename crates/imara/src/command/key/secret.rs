//! Secret bytes from a file or standard input: read once, into memory that is wiped.

use crate::command::paths::printable;
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The most bytes that a key of type `user` may have.
const LONGEST: usize = 32_767;

/// Reads a secret: all the file's bytes, also a newline at the end. `-` is standard input.
///
/// # Errors
/// It cannot be read, is empty, or longer than a key may be.
pub fn read_secret(path: &Path) -> Result<KeyMaterial, Failure> {
    let shown = printable(path);
    let failure = |error: io::Error| Failure::failed(format!("{shown}: {error}"));
    // All the room that is ever needed: a buffer that grows leaves copies behind.
    let mut bytes = Vec::with_capacity(LONGEST + 1);
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(LONGEST as u64 + 1).read_to_end(&mut bytes).map(|_| ())
    } else {
        File::open(path).and_then(|file| {
            let mode = file.metadata()?.mode();
            if mode & 0o077 != 0 && mode & 0o170_000 == 0o100_000 {
                eprintln!("imara: warning: {shown} can be read by others than its owner: chmod 600 {shown}");
            }
            file.take(LONGEST as u64 + 1).read_to_end(&mut bytes).map(|_| ())
        })
    };
    let secret = KeyMaterial::new(bytes);
    read.map_err(failure)?;
    match secret.len() {
        0 => Err(Failure::failed(format!("{shown} is empty: at least one byte is needed"))),
        1..=LONGEST => Ok(secret),
        _ => Err(Failure::failed(format!("{shown} has more than {LONGEST} bytes, which no key and no passphrase has"))),
    }
}
