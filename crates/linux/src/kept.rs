//! Inodes that are kept in memory, so that what the guard knows of them stays true: see `imara_engine::evm::recorded`.

use crate::sys::fanotify::KeepingGroup;
use imara_engine::check::File;
use imara_engine::evm::running::Keeper;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Inodes kept at a time; each takes about a kilobyte of the kernel's memory.
const MOST: usize = 1 << 14;

/// Keeps inodes in memory by marks of a group of its own.
#[derive(Debug)]
pub struct Kept {
    group: KeepingGroup,
    /// Marks set since none was.
    count: Mutex<usize>,
}

impl Kept {
    /// None yet.
    ///
    /// # Errors
    /// What fanotify_init(2) says.
    pub fn new() -> io::Result<Self> {
        Ok(Self { group: KeepingGroup::open()?, count: Mutex::new(0) })
    }
}

impl Keeper for Kept {
    fn is_kept(&self, file: &dyn File) -> bool {
        file.descriptor().is_some_and(|file| self.group.is_kept(file))
    }

    fn keep(&self, file: &dyn File) -> bool {
        let Some(file) = file.descriptor() else { return false };
        if self.group.is_kept(file) {
            return true;
        }
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if *count >= MOST {
            // All anew: who is used is kept again.
            if self.group.let_go().is_err() {
                return false;
            }
            *count = 0;
        }
        let kept = self.group.keep(file).is_ok();
        *count += usize::from(kept);
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;

    #[test]
    fn a_kept_inode_is_told_from_one_that_is_not() {
        let Ok(group) = KeepingGroup::open() else {
            println!(
                "skipped: a_kept_inode_is_told_from_one_that_is_not: fanotify with unlimited marks needs CAP_SYS_ADMIN"
            );
            return;
        };
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        for path in [&one, &other] {
            fs::write(path, b"content").unwrap();
        }
        let open = |path| fs::File::open(path).unwrap();
        group.keep(open(&one).as_fd()).unwrap();
        // However it is used and asked about meanwhile.
        fs::write(&one, b"other content").unwrap();
        for _ in 0..3 {
            assert!(group.is_kept(open(&one).as_fd()));
            assert!(!group.is_kept(open(&other).as_fd()));
        }
        // Another file of that name is another inode.
        fs::rename(&other, &one).unwrap();
        assert!(!group.is_kept(open(&one).as_fd()));
        group.keep(open(&one).as_fd()).unwrap();
        group.let_go().unwrap();
        assert!(!group.is_kept(open(&one).as_fd()));
    }
}
