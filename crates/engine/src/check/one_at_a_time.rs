//! Work on an inode that only one thread may do at a time; another waits until that has ended, whatever is done for other inodes.

use crate::cache::InodeId;
use crate::lock::{self, Lock};
use std::collections::HashSet;
use std::sync::{Condvar, PoisonError};

/// Which inodes are being worked on.
#[derive(Debug)]
pub(super) struct OneAtATime {
    busy: Lock<HashSet<InodeId>>,
    ended: Condvar,
}

impl Default for OneAtATime {
    fn default() -> Self {
        Self { busy: Lock::new(HashSet::new(), &lock::MAINTAINED), ended: Condvar::new() }
    }
}

/// The work on one inode; it ends with this.
pub(super) struct Turn<'a> {
    all: &'a OneAtATime,
    id: InodeId,
}

impl OneAtATime {
    /// Waits until nobody else works on the inode; `waited` is done if somebody did.
    pub(super) fn turn(&self, id: InodeId, waited: impl FnOnce()) -> Turn<'_> {
        let mut busy = self.busy.lock();
        let mut others = false;
        while !busy.insert(id) {
            others = true;
            busy = self.ended.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        drop(busy);
        if others {
            waited();
        }
        Turn { all: self, id }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.all.busy.lock().remove(&self.id);
        self.all.ended.notify_all();
    }
}
