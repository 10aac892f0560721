//! The kernel's own cryptography (AF_ALG): keyed hashes whose key the kernel keeps.
//!
//! Source: Documentation/crypto/userspace-if.rst; include/uapi/linux/if_alg.h.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `ALG_SET_KEY_BY_KEY_SERIAL` (Linux 6.2).
const ALG_SET_KEY_BY_KEY_SERIAL: libc::c_int = 7;

/// A keyed hash, whose key is set once.
#[derive(Debug)]
pub struct KeyedHash {
    socket: OwnedFd,
    digest_size: usize,
}

/// A key for the kernel.
#[derive(Clone, Copy)]
pub enum Key<'a> {
    /// Its bytes, which the kernel copies.
    Bytes(&'a [u8]),
    /// The payload of a key of the key service: `user`, `logon`, `encrypted` or `trusted`.
    Serial(i32),
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl KeyedHash {
    /// The hash of this name (`hmac(sha1)`), keyed.
    ///
    /// # Errors
    /// EAFNOSUPPORT without AF_ALG, ENOENT without the hash, ENOPROTOOPT on Linux before 6.2 for a serial number, ENOKEY and
    /// EACCES for a key that is not there or must not be used.
    pub fn new(name: &str, digest_size: usize, key: Key<'_>) -> io::Result<Self> {
        // SAFETY: integers only.
        let socket = owned(unsafe { libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: an all-zero address is a valid value to fill in.
        let mut address: libc::sockaddr_alg = unsafe { std::mem::zeroed() };
        address.salg_family = libc::AF_ALG as u16;
        address.salg_type[..4].copy_from_slice(b"hash");
        let room = address.salg_name.get_mut(..name.len()).filter(|_| name.len() < 64);
        room.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?.copy_from_slice(name.as_bytes());
        // SAFETY: reads an initialised address of the size given.
        let bound = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_alg>() as u32)
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        let serial;
        let (option, bytes) = match key {
            Key::Bytes(bytes) => (libc::ALG_SET_KEY, bytes),
            Key::Serial(number) => {
                serial = number.to_ne_bytes();
                (ALG_SET_KEY_BY_KEY_SERIAL, &serial[..])
            }
        };
        // SAFETY: reads as many bytes as there are.
        let set = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_ALG, option, bytes.as_ptr().cast(), bytes.len() as u32)
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket, digest_size })
    }

    /// The hash over `parts`, one after the other.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn hash(&self, parts: &[&[u8]]) -> io::Result<Vec<u8>> {
        // SAFETY: null for an address that is not asked for.
        let operation = owned(unsafe {
            libc::accept4(self.socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        })?;
        let parts: Vec<libc::iovec> = parts
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() })
            .collect();
        let expected: usize = parts.iter().map(|part| part.iov_len).sum();
        // SAFETY: the kernel reads from buffers that outlive the call, as many bytes as each has.
        let written = unsafe { libc::writev(operation.as_raw_fd(), parts.as_ptr(), parts.len() as libc::c_int) };
        if written < 0 {
            return Err(io::Error::last_os_error());
        }
        if written.cast_unsigned() != expected {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the kernel took a part of what is to be hashed"));
        }
        let mut digest = vec![0; self.digest_size];
        let read = rustix::io::read(&operation, &mut digest[..])?;
        if read != self.digest_size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel gave a part of the hash"));
        }
        Ok(digest)
    }
}
