//! Memory for secrets: memfd_secret(2), which the kernel takes out of its own mapping, so that neither ptrace nor a core
//! dump, swap or another process reaches it; else locked memory that is left out of core dumps and forked children.
//!
//! Source: memfd_secret(2), mlock(2), madvise(2).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// `memfd_secret(2)`; its number is the same on every architecture that has it.
const SYS_MEMFD_SECRET: libc::c_long = 447;

/// A page with a secret, wiped at its end. It cannot be shown.
pub struct SecretMemory {
    page: NonNull<u8>,
    mapped: usize,
    length: usize,
    kind: Kind,
}

/// How far the secret is kept away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// memfd_secret(2).
    Secret,
    /// Locked, and left out of core dumps.
    Locked,
}

// SAFETY: the page belongs to the value alone, and is only read once it is filled.
unsafe impl Send for SecretMemory {}
// SAFETY: as above.
unsafe impl Sync for SecretMemory {}

impl SecretMemory {
    /// Copies a secret of up to 4096 bytes. What it is copied from is the caller's to wipe.
    ///
    /// # Errors
    /// EPERM or ENOMEM where memory cannot even be locked.
    pub fn new(secret: &[u8]) -> io::Result<Self> {
        Self::of_kind(secret, Kind::Secret).or_else(|_| Self::of_kind(secret, Kind::Locked))
    }

    /// The same, kept away this far.
    ///
    /// # Errors
    /// ENOSYS where the kernel has no secret memory, EPERM or ENOMEM for want of lockable memory.
    pub fn of_kind(secret: &[u8], kind: Kind) -> io::Result<Self> {
        const PAGE: usize = 4096;
        if secret.len() > PAGE {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let (flags, file) = match kind {
            Kind::Secret => (libc::MAP_SHARED, Some(secret_file(PAGE)?)),
            Kind::Locked => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None),
        };
        let descriptor = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, flags, descriptor, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast::<u8>()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let memory = Self { page, mapped: PAGE, length: secret.len(), kind };
        if kind == Kind::Locked {
            // SAFETY: the mapping is ours.
            if unsafe { libc::mlock(page.as_ptr().cast(), PAGE) } < 0 {
                return Err(io::Error::last_os_error());
            }
            for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
                // SAFETY: as above.
                if unsafe { libc::madvise(page.as_ptr().cast(), PAGE, advice) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        // SAFETY: the page is mapped, writable, as large as the secret at least, and nobody else knows of it yet.
        unsafe { std::ptr::copy_nonoverlapping(secret.as_ptr(), page.as_ptr(), secret.len()) };
        Ok(memory)
    }

    /// The secret.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: the page is mapped as long as this lives, its first `length` bytes were written, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.page.as_ptr(), self.length) }
    }

    /// How far it is kept away.
    pub const fn kind(&self) -> Kind {
        self.kind
    }
}

fn secret_file(size: usize) -> io::Result<OwnedFd> {
    // SAFETY: an integer only.
    let fd = unsafe { libc::syscall(SYS_MEMFD_SECRET, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us, so nothing else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    rustix::fs::ftruncate(&file, size as u64)?;
    Ok(file)
}

impl Drop for SecretMemory {
    fn drop(&mut self) {
        // SAFETY: the page is mapped until the call below, and nobody else looks at it any more.
        unsafe { std::slice::from_raw_parts_mut(self.page.as_ptr(), self.mapped) }.fill(0);
        // What is handed to the kernel must be as it was left, so the wiping stays.
        // SAFETY: the mapping is ours and nobody can use it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_secret_is_there_for_this_process_and_secret_memory_for_nobody_else() {
        for kind in [Kind::Secret, Kind::Locked] {
            let memory = match SecretMemory::of_kind(b"a secret", kind) {
                Ok(memory) => memory,
                Err(error) => {
                    let name = "a_secret_is_there_for_this_process_and_secret_memory_for_nobody_else";
                    println!("skipped: {name}: {kind:?}: {error}");
                    continue;
                }
            };
            assert_eq!((memory.as_bytes(), memory.kind()), (&b"a secret"[..], kind));
            // What ptrace and a core dump would read through.
            let process = std::fs::File::open("/proc/self/mem").unwrap();
            let mut seen = [0; 8];
            let result = process.read_exact_at(&mut seen, memory.as_bytes().as_ptr() as u64);
            match kind {
                Kind::Secret => assert!(result.is_err(), "{seen:?}"),
                Kind::Locked => assert_eq!((result.is_ok(), &seen), (true, b"a secret")),
            }
        }
        assert!(SecretMemory::new(&[0; 4097]).is_err());
    }
}
