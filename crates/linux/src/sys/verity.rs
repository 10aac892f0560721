//! fs-verity's ioctl(2) requests.
//!
//! Source: include/uapi/linux/fsverity.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    sig_size: u32,
    reserved_1: u32,
    sig: u64,
    reserved_2: [u64; 11],
}

/// `struct fsverity_digest`, with room for the largest digest.
#[repr(C)]
struct MeasuredDigest {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

/// `_IOW('f', 133, struct fsverity_enable_arg)`.
const ENABLE: libc::Ioctl = request(1, 133, size_of::<EnableArgument>());
/// `_IOWR('f', 134, struct fsverity_digest)`, whose digest has no size there.
const MEASURE: libc::Ioctl = request(3, 134, 4);

/// What `_IOC` of include/uapi/asm-generic/ioctl.h makes; most architectures have that one.
const fn request(direction: u32, number: u32, size: usize) -> libc::Ioctl {
    (direction << 30 | (size as u32) << 16 | (b'f' as u32) << 8 | number) as libc::Ioctl
}

/// Makes the file's tree and enables fs-verity for it, which nothing undoes. The file must be open for reading, and nowhere for
/// writing.
pub fn enable(file: impl AsFd, hash: u8, block_size: u32, salt: &[u8], signature: &[u8]) -> io::Result<()> {
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE));
    let address = |bytes: &[u8]| if bytes.is_empty() { 0 } else { bytes.as_ptr() as u64 };
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: hash.into(),
        block_size,
        salt_size: size(salt)?,
        salt: address(salt),
        sig_size: size(signature)?,
        reserved_1: 0,
        sig: address(signature),
        reserved_2: [0; 11],
    };
    // SAFETY: the request reads the argument, and as many bytes behind its two pointers as it states; all outlive the call.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), ENABLE, &raw const argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The file's digest as the kernel has it: fs-verity's number of the hash, and the digest's bytes.
pub fn measure(file: impl AsFd) -> io::Result<(u16, Vec<u8>)> {
    let mut measured = MeasuredDigest { algorithm: 0, size: 64, digest: [0; 64] };
    // SAFETY: the request writes no more than `size` bytes behind the two numbers, which is the room that the structure has.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), MEASURE, &raw mut measured) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let size = usize::from(measured.size).min(measured.digest.len());
    Ok((measured.algorithm, measured.digest[..size].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_those_of_the_header() {
        assert_eq!((ENABLE, MEASURE), (0x4080_6685, 0xc004_6686));
    }
}
