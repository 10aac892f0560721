//! An event that waits for its answer, and a file that is being decided on: whatever becomes of the thread, nobody is left waiting.

use super::{Shared, lock, wanted};
use crate::sys::fanotify::PermissionEvent;
use imara_engine::cache::InodeId;
use imara_engine::check::Mode;
use std::os::fd::AsFd;

/// An event that waits for its answer. Dropped without one it is refused in enforce mode, so that no task waits for ever.
pub(super) struct Question<'a> {
    pub(super) event: Option<PermissionEvent>,
    pub(super) shared: &'a Shared,
}

impl Question<'_> {
    pub(super) fn answer(mut self, allow: bool) -> Option<PermissionEvent> {
        let event = self.event.take();
        if let Some(event) = &event {
            // ENOENT: the task was killed while it waited.
            let _ = self.shared.group.answer(event.file.as_fd(), allow);
        }
        event
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            let checker = &self.shared.checker;
            // What is asked about for a trace's sake alone has nobody to refuse it.
            let for_the_policy = event.mask.without(wanted(&checker.policy())) != event.mask;
            let allow = checker.mode() != Mode::Enforce || !for_the_policy;
            // As above.
            let _ = self.shared.group.answer(event.file.as_fd(), allow);
        }
    }
}

/// A file that this thread decides on; at the end, however it comes, nobody is left waiting for it.
pub(super) struct UnderWay<'a> {
    pub(super) id: InodeId,
    pub(super) shared: &'a Shared,
    /// Its entry has been removed in order; another thread's may be in its place.
    pub(super) over: bool,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        for event in lock(&self.shared.under_way).remove(&self.id).unwrap_or_default() {
            drop(Question { event: Some(event), shared: self.shared });
        }
    }
}
