//! What the kernel need not ask again: ignore marks, and when they go.

use super::Shared;
use super::superblocks::Superblock;
use crate::opened::{OpenedFile, stamp};
use crate::sys::fanotify::Mask;
use crate::sys::lease;
use imara_engine::active_policy::ActivePolicy;
use imara_engine::check::{Checker, Content, File, Left};
use imara_format::policy::Func;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

impl Shared {
    /// Tells the kernel not to ask again about what was judged by a policy, where that is safe.
    pub(super) fn let_pass(
        &self,
        file: &OpenedFile<'_>,
        superblock: &Superblock,
        policy: &ActivePolicy,
        interpreter: bool,
        generation: u64,
        now: i128,
    ) {
        // The state that was judged: owner and group are in it as well.
        let before = stamp(&file.stat);
        // Changes that are not told could not take the mark back.
        if self.ask_always.load(Ordering::SeqCst) || superblock.told.is_none() {
            return;
        }
        let wanted = self.wanted_on(policy, superblock);
        let opened: &[Func] = if file.mappable(policy) {
            &[Func::FileCheck, Func::MmapCheck, Func::MmapCheckReqprot]
        } else {
            &[Func::FileCheck]
        };
        let executed: &[Func] = if interpreter { &[] } else { &[Func::BprmCheck, Func::CredsCheck] };
        let known = self.checker.known(file);
        let mut mask = Mask::NONE;
        let mut content_matters = false;
        for (funcs, kind) in [(opened, Mask::OPEN), (executed, Mask::OPEN_EXEC)] {
            // What nobody asks about, or can do, need not be ignored, and the kernel would look at the mark all the same.
            if !wanted.contains(kind) || kind == Mask::OPEN_EXEC && !file.is_executable() {
                continue;
            }
            match self.checker.left_to_do(policy, file, known.as_ref(), funcs) {
                Left::NeverAnything => mask = mask.and(kind),
                Left::Nothing => {
                    mask = mask.and(kind);
                    content_matters = true;
                }
                Left::Something => {}
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
        if mask.contains(Mask::OPEN) && Checker::appraised_by_digest(known.as_ref()) {
            // The mark hides the open of a writer, whose change the label has to follow. That root would be let through
            // is known; who else may write must be asked.
            if !file.root_only() {
                return;
            }
            // What root writes unasked is told by the content's times.
            self.checker.maintain_unasked(file.id(), Content::of(file, &before, now), known.as_ref());
        }
        let leased = content_matters && !file.root_only();
        if leased {
            // Between the opening of a program that is not asked about and the kernel's own ETXTBSY nobody would keep
            // writers away: see `passage.rs`.
            mask = mask.without(Mask::OPEN_EXEC);
            if mask.is_none() {
                return;
            }
        }
        let current = self.generation.read().unwrap_or_else(PoisonError::into_inner);
        if *current != generation {
            return;
        }
        // While it is open to be read nobody can begin to write without our knowing, and it stays so from the mark on.
        if leased && !file.is_held() && lease::hold(file.file, self.lease_thread.load(Ordering::Relaxed)).is_err() {
            return;
        }
        let marked = self.marked.add(file.id()) && self.mark(file.file, mask);
        if marked {
            // A notice of an earlier change may have taken it out again, before there was a mark.
            self.marked.add(file.id());
        }
        let kept = marked && (!leased || self.hold_lease(file, superblock).is_ok());
        if leased && !file.is_held() {
            // It goes with the descriptor at the latest.
            let _ = lease::release(file.file);
        }
        file.look_again();
        if marked && (!kept || file.stamp().ok() != Some(before)) {
            // It changed in between: the mark came too late. Failing to take it back cannot happen on a live group.
            let _ = self.group.ask_again_descriptor(file.file);
        }
        drop(current);
        if !marked && self.marked.is_full(file.id()) {
            // What is forgotten is asked about again.
            self.wish_to_ask_again();
        }
    }

    fn mark(&self, file: BorrowedFd<'_>, mask: Mask) -> bool {
        self.count_mark(&self.group.ignore_inode(file, mask))
    }

    /// Has the kernel never ask about this inode again, which is nothing that is looked at.
    pub(super) fn let_pass_for_good(&self, file: BorrowedFd<'_>, superblock: &Superblock) {
        let mask = self.wanted_on(&self.checker.policy(), superblock);
        self.count_mark(&self.group.ignore_inode_for_good(file, mask));
    }

    fn count_mark(&self, result: &io::Result<()>) -> bool {
        if result.is_ok() {
            self.counters.marks.fetch_add(1, Ordering::Relaxed);
        }
        result.is_ok()
    }
}
