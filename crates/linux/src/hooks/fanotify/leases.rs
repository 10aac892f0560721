//! Read leases on files that others than root may write: the next open for writing waits until the ignore mark is gone.

use super::{Shared, lock};
use crate::opened::OpenedFile;
use crate::sys::lease;
use imara_engine::cache::InodeId;
use imara_engine::check::File;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

#[derive(Default)]
pub(super) struct Leases {
    pub(super) held: HashMap<InodeId, OwnedFd>,
    by_descriptor: HashMap<RawFd, InodeId>,
    /// The oldest first; what is no longer held may still be in it.
    order: VecDeque<InodeId>,
    most: usize,
}

impl Leases {
    /// Room for so many.
    pub(super) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }
}

impl Shared {
    /// Takes a read lease on a descriptor of its own, which outlives the event's; one for each inode.
    pub(super) fn hold_lease(&self, file: &OpenedFile<'_>, leases: &mut Leases) -> io::Result<()> {
        if leases.held.contains_key(&file.id()) {
            return Ok(());
        }
        let kept = file.file.try_clone_to_owned()?;
        lease::hold(kept.as_fd(), self.lease_thread.load(Ordering::Relaxed))?;
        while leases.held.len() >= leases.most
            && let Some(oldest) = leases.order.pop_front()
        {
            if let Some(file) = leases.held.remove(&oldest) {
                leases.by_descriptor.remove(&file.as_raw_fd());
                self.checker.cache().forget(oldest);
                self.give_up_lease(&file);
            }
        }
        leases.by_descriptor.insert(kept.as_raw_fd(), file.id());
        leases.held.insert(file.id(), kept);
        leases.order.push_back(file.id());
        Ok(())
    }

    /// The mark goes first: from then on the file is asked about again.
    fn give_up_lease(&self, file: &OwnedFd) {
        // Neither fails on descriptors that are ours.
        let _ = self.group.ask_again_descriptor(file.as_fd());
        let _ = lease::release(file.as_fd());
    }

    pub(super) fn drop_lease(&self, id: InodeId) {
        let mut leases = lock(&self.leases);
        if let Some(file) = leases.held.remove(&id) {
            leases.by_descriptor.remove(&file.as_raw_fd());
            self.give_up_lease(&file);
        }
    }

    pub(super) fn release_all_leases(&self) {
        let mut leases = lock(&self.leases);
        leases.order.clear();
        leases.by_descriptor.clear();
        for (id, file) in leases.held.drain() {
            self.checker.cache().forget(id);
            self.give_up_lease(&file);
        }
    }

    /// A thread's life: lets go of every lease that stands in a writer's way.
    pub(super) fn watch_leases(&self) {
        while !self.stopping.load(Ordering::Relaxed) {
            match lease::wait_broken(500) {
                None => {}
                Some(lease::Broken::Descriptor(number)) => {
                    self.counters.leases_broken.fetch_add(1, Ordering::Relaxed);
                    let mut leases = lock(&self.leases);
                    let Some(id) = leases.by_descriptor.remove(&number) else {
                        continue;
                    };
                    if let Some(file) = leases.held.remove(&id) {
                        self.checker.cache().forget(id);
                        self.give_up_lease(&file);
                    }
                    if leases.order.len() > 2 * leases.held.len() + 1024 {
                        let Leases { order, held, .. } = &mut *leases;
                        order.retain(|id| held.contains_key(id));
                    }
                }
                // More signals than the queue takes: nobody knows whose.
                Some(lease::Broken::Any) => self.release_all_leases(),
            }
        }
    }
}
