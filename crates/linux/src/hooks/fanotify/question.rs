//! An event that waits for its answer, and a file that is being decided on: whatever becomes of the thread, nobody is left
//! waiting.
//!
//! Every event that is not answered at once is in a table until it is. A thread of its own looks through that table: where
//! nothing has moved on an event for as long as the configuration allows, that thread answers it with the configured outcome,
//! while the one that decides stays wherever the kernel holds it.

use super::{Overdue, Shared, wanted};
use crate::sys::fanotify::{PermissionEvent, PermissionGroup};
use imara_engine::cache::InodeId;
use imara_engine::check::Mode;
use imara_engine::lock::{self, Sharded};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// When something last moved, in milliseconds since the guard began.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU64);

impl Progress {
    pub(super) fn moved(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }
}

/// An event, from when it was read until its last holder lets go of it. Its descriptor stays open as long, so that its number
/// means nothing else meanwhile.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) event: PermissionEvent,
    group: Arc<PermissionGroup>,
    number: u64,
    arrived: Instant,
    /// When something last moved on it.
    pub(super) progress: Progress,
    /// What it waits for, whose progress is its own as well.
    follows: OnceLock<Arc<Progress>>,
    answered: AtomicBool,
    /// Whether it waits for the measurement list, which is to have it whatever it was answered meanwhile.
    unlisted: AtomicBool,
}

impl Asked {
    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether nobody is left who would have anything from a decision.
    pub(super) fn is_over(&self) -> bool {
        self.is_answered() && !self.unlisted.load(Ordering::Relaxed)
    }

    /// From now on it waits for the measurement list.
    pub(super) fn wait_for_list(&self) {
        self.unlisted.store(true, Ordering::Relaxed);
    }

    /// From now on it gets on when that does.
    pub(super) fn follow(&self, progress: &Arc<Progress>) {
        // What it followed first goes on being right.
        let _ = self.follows.set(Arc::clone(progress));
    }

    pub(super) fn advance(&self, now: u64) {
        self.progress.moved(now);
        if let Some(followed) = self.follows.get() {
            followed.moved(now);
        }
    }

    fn last_moved(&self) -> u64 {
        let followed = self.follows.get().map_or(0, |progress| progress.0.load(Ordering::Relaxed));
        self.progress.0.load(Ordering::Relaxed).max(followed)
    }

    /// Gives the answer, unless somebody else has.
    fn answer(&self, allow: bool) -> bool {
        let first = !self.answered.swap(true, Ordering::SeqCst);
        if first {
            // ENOENT: the task was killed while it waited.
            let _ = self.group.answer(self.event.file.as_fd(), allow);
        }
        first
    }
}

/// The events that have no answer yet. How many there may be is the kernel's matter.
#[derive(Debug)]
pub(super) struct Unanswered {
    events: Sharded<u64, Arc<Asked>>,
    next: AtomicU64,
}

impl Default for Unanswered {
    fn default() -> Self {
        Self { events: Sharded::new(usize::MAX, &lock::UNANSWERED), next: AtomicU64::new(0) }
    }
}

impl Unanswered {
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    fn all(&self) -> Vec<Arc<Asked>> {
        self.events.each().flat_map(|shard| shard.values().cloned().collect::<Vec<_>>()).collect()
    }

    fn remove(&self, number: u64) {
        self.events.shard(&number).remove(&number);
    }
}

impl Shared {
    /// Milliseconds since the guard began, for [`Progress`].
    pub(super) fn elapsed(&self) -> u64 {
        self.since_begun(Instant::now())
    }

    pub(super) fn since_begun(&self, then: Instant) -> u64 {
        then.duration_since(self.begun).as_millis() as u64
    }

    /// Takes up an event that is not answered at once.
    pub(super) fn take_up(&self, event: PermissionEvent, group: &Arc<PermissionGroup>, arrived: Instant) -> Arc<Asked> {
        let number = self.unanswered.next.fetch_add(1, Ordering::Relaxed);
        let asked = Asked {
            event,
            group: Arc::clone(group),
            number,
            arrived,
            progress: Progress(AtomicU64::new(self.since_begun(arrived))),
            follows: OnceLock::new(),
            answered: AtomicBool::new(false),
            unlisted: AtomicBool::new(false),
        };
        let asked = Arc::new(asked);
        self.unanswered.events.shard(&number).insert(number, Arc::clone(&asked));
        asked
    }

    fn settle(&self, asked: &Asked, allow: bool) {
        if asked.answer(allow) {
            self.counters.latency.record(asked.arrived.elapsed());
        }
        self.unanswered.remove(asked.number);
    }

    /// What an access comes to about which nothing could be decided: refused in enforce mode, so that nothing unclear passes.
    pub(super) fn without_a_decision(&self, asked: &Asked) -> bool {
        // What is asked about for a trace's sake alone has nobody to refuse it.
        let for_the_policy = asked.event.mask.without(wanted(&self.checker.policy())) != asked.event.mask;
        self.checker.mode() != Mode::Enforce || !for_the_policy
    }

    /// Answers what nothing has moved on for too long.
    pub(super) fn answer_overdue(&self) {
        let Some(deadline) = self.deadline else {
            return;
        };
        let now = self.elapsed();
        for asked in self.unanswered.all() {
            if Duration::from_millis(now.saturating_sub(asked.last_moved())) <= deadline {
                continue;
            }
            let allow = self.on_deadline == Overdue::Allow || self.without_a_decision(&asked);
            if asked.answer(allow) {
                self.counters.overdue.fetch_add(1, Ordering::Relaxed);
                self.counters.latency.record(asked.arrived.elapsed());
                self.tell_overdue(&asked, allow);
            }
            self.unanswered.remove(asked.number);
        }
    }

    /// How long the event that has waited longest without anything moving on it has waited.
    pub(super) fn longest_standstill(&self) -> Duration {
        let now = self.elapsed();
        let waited = |asked: &Arc<Asked>| now.saturating_sub(asked.last_moved());
        Duration::from_millis(self.unanswered.all().iter().map(waited).max().unwrap_or(0))
    }
}

/// An event in the hands of the thread that decides. Dropped without an answer it is refused in enforce mode, so that no task
/// waits for ever.
pub(super) struct Question<'a> {
    pub(super) asked: Option<Arc<Asked>>,
    pub(super) shared: &'a Shared,
}

impl Question<'_> {
    pub(super) fn answer(mut self, allow: bool) {
        if let Some(asked) = self.asked.take() {
            self.shared.settle(&asked, allow);
        }
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.shared.settle(&asked, self.shared.without_a_decision(&asked));
        }
    }
}

/// Files that a thread is deciding on, with the events that came meanwhile.
#[derive(Debug)]
pub(super) struct UnderWay(Sharded<InodeId, Waiting>);

impl Default for UnderWay {
    fn default() -> Self {
        Self(Sharded::new(usize::MAX, &lock::UNDER_WAY))
    }
}

#[derive(Debug)]
struct Waiting {
    events: VecDeque<Arc<Asked>>,
    /// The one that is decided on: whose progress, once there are others, is theirs.
    present: Arc<Asked>,
}

impl UnderWay {
    /// Begins with a file; or, where somebody is at it, leaves the event to them.
    pub(super) fn begin<'a>(&self, id: InodeId, mut question: Question<'a>) -> Option<(Question<'a>, Deciding<'a>)> {
        let shared = question.shared;
        let asked = question.asked.as_ref()?;
        let mut shard = self.0.shard(&id);
        if let Some(waiting) = shard.get_mut(&id) {
            asked.follow(waiting.present.follows.get_or_init(Arc::default));
            waiting.events.extend(question.asked.take());
            return None;
        }
        shard.insert(id, Waiting { events: VecDeque::new(), present: Arc::clone(asked) });
        Some((question, Deciding { id, shared, over: false }))
    }
}

/// A file that this thread decides on; at the end, however it comes, nobody is left waiting for it.
pub(super) struct Deciding<'a> {
    id: InodeId,
    shared: &'a Shared,
    /// Its entry has been removed in order; another thread's may be in its place.
    over: bool,
}

impl<'a> Deciding<'a> {
    /// The next event of this file that came meanwhile.
    pub(super) fn next(&mut self) -> Option<Question<'a>> {
        let mut shard = self.shared.under_way.0.shard(&self.id);
        let next = shard.get_mut(&self.id).and_then(|waiting| {
            let next = waiting.events.pop_front()?;
            let before = std::mem::replace(&mut waiting.present, Arc::clone(&next));
            Some((next, before))
        });
        self.over = next.is_none();
        let ended = if self.over { shard.remove(&self.id) } else { None };
        // Before their descriptors are closed, which a file system can make last.
        drop(shard);
        drop(ended);
        next.map(|(asked, _)| Question { asked: Some(asked), shared: self.shared })
    }
}

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let waiting = self.shared.under_way.0.shard(&self.id).remove(&self.id);
        for asked in waiting.into_iter().flat_map(|waiting| waiting.events) {
            drop(Question { asked: Some(asked), shared: self.shared });
        }
    }
}
