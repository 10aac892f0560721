//! What the kernel need not ask again: ignore marks, and when they go.

use super::{Shared, lock};
use crate::opened::{OpenedFile, stamp};
use crate::sys::fanotify::Mask;
use imara_engine::check::File;
use imara_format::policy::Func;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

impl Shared {
    /// Drops every mark, and what programs named as their interpreters. A decision from before adds neither.
    pub(super) fn ask_again_all(&self) -> io::Result<()> {
        let mut generation = self.generation.write().unwrap_or_else(PoisonError::into_inner);
        *generation += 1;
        lock(&self.interpreters).clear();
        self.group.ask_again_all()
    }

    /// Tells the kernel not to ask again, where that is safe.
    pub(super) fn let_pass(&self, file: &OpenedFile<'_>, interpreter: bool, generation: u64) {
        // The state that was judged: owner and group are in it as well.
        let before = stamp(&file.stat);
        if self.ask_always.load(Ordering::SeqCst) || !self.changes_are_told(file) {
            return;
        }
        let policy = self.checker.policy();
        let opened: &[Func] = if file.mappable(&policy) {
            &[Func::FileCheck, Func::MmapCheck, Func::MmapCheckReqprot]
        } else {
            &[Func::FileCheck]
        };
        let executed: &[Func] = if interpreter { &[] } else { &[Func::BprmCheck, Func::CredsCheck] };
        let mut mask = Mask::NONE;
        let mut content_matters = false;
        for (funcs, kind) in [(opened, Mask::OPEN), (executed, Mask::OPEN_EXEC)] {
            if self.checker.nothing_to_do(file, funcs) {
                mask = mask.and(kind);
            } else if self.checker.done_for_everybody(file, funcs) {
                mask = mask.and(kind);
                content_matters = true;
            }
        }
        // Whether a file can be mapped executable is in its content, too.
        content_matters |= policy.wants(Func::MmapCheck);
        if mask.is_none() {
            return;
        }
        if content_matters && file.nobody_writes() != Some(true) {
            return;
        }
        if mask.contains(Mask::OPEN) && self.checker.appraised_by_digest(file) {
            // The mark hides the open of a writer, whose change the label has to follow. That root would be let through
            // is known; who else may write must be asked.
            if !file.root_only() {
                return;
            }
            self.checker.maintain(file.id());
        }
        let current = self.generation.read().unwrap_or_else(PoisonError::into_inner);
        if *current != generation {
            return;
        }
        // Held until the mark is set: a lease that is broken meanwhile is given up after it, and the mark with it.
        let mut leases = lock(&self.leases);
        if content_matters && !file.root_only() && self.hold_lease(file, &mut leases).is_err() {
            return;
        }
        if !self.mark(file.file, mask) {
            return;
        }
        drop(leases);
        if file.stamp().ok() != Some(before) {
            // It changed in between: the mark came too late. Failing to take it back cannot happen on a live group.
            let _ = self.group.ask_again_descriptor(file.file);
        }
    }

    pub(super) fn mark(&self, file: BorrowedFd<'_>, mask: Mask) -> bool {
        let marked = self.group.ignore_inode(file, mask).is_ok();
        if marked {
            self.counters.marks.fetch_add(1, Ordering::Relaxed);
        }
        marked
    }

    fn changes_are_told(&self, file: &OpenedFile<'_>) -> bool {
        // One file system may be watched by several directories of it; a subvolume has a device number of its own.
        self.watched.iter().all(|watched| watched.changes.is_some())
            || self.watched.iter().any(|watched| {
                watched.changes.is_some()
                    && rustix::fs::fstat(&watched.directory).is_ok_and(|stat| stat.st_dev == file.stat.st_dev)
            })
    }
}
