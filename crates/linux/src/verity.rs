//! fs-verity: a file's digest, computed or the kernel's own, and making a file immutable by it.

use crate::files;
use crate::sys::verity as sys;
use imara_engine::verity::VerityHasher;
use imara_format::hash::Digest;
use imara_format::verity::{VerityHash, VerityParameters};
use std::io;
use std::os::fd::AsFd;

/// The file's fs-verity digest, computed from its content; whether fs-verity is enabled for it does not matter.
///
/// # Errors
/// As [`files::digest`].
pub fn compute(file: impl AsFd, parameters: &VerityParameters) -> io::Result<Digest> {
    let unsupported = |error| io::Error::new(io::ErrorKind::Unsupported, error);
    let mut hasher = VerityHasher::new(parameters.clone()).map_err(unsupported)?;
    let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
    files::each_piece(
        file,
        size,
        |_| Ok(()),
        |piece, _| {
            hasher.update(piece);
            Ok(())
        },
    )?;
    hasher.finish().map_err(unsupported)
}

/// The file's digest as the kernel has it; `None` where fs-verity is not enabled for it, or its filesystem has none.
///
/// # Errors
/// What the kernel says; `InvalidData` for a hash that is not known here.
pub fn measure(file: impl AsFd) -> io::Result<Option<Digest>> {
    let (number, bytes) = match sys::measure(file) {
        Ok(measured) => measured,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::ENOTTY | libc::EOPNOTSUPP)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, format!("fs-verity's hash {number} is not known here"));
    let hash = VerityHash::from_id(number).ok_or_else(unknown)?;
    Digest::new(hash.algorithm(), &bytes).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Makes the file immutable: from now on the kernel gives no byte of it that is not in its tree. Nothing undoes that but
/// deleting the file.
///
/// # Errors
/// What the kernel says: `EEXIST` where it is enabled already, `ETXTBSY` where somebody has it open for writing, `EOPNOTSUPP` or
/// `ENOTTY` where the filesystem has no fs-verity, `EINVAL` for a block size that it does not take.
pub fn enable(file: impl AsFd, parameters: &VerityParameters, signature: &[u8]) -> io::Result<()> {
    let block_size = u32::try_from(parameters.block_size()).unwrap_or(u32::MAX);
    sys::enable(file, parameters.hash().id(), block_size, parameters.salt(), signature)
}
