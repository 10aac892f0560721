//! Read leases on files that others than root may write: the next open for writing waits until the ignore mark is gone.
//!
//! A lease is held by a descriptor on a mount that nobody sees (see `superblocks.rs`), so that the file's own mount can be
//! unmounted; then the lease goes, and with it the file system.

use super::Shared;
use super::superblocks::Superblock;
use crate::opened::OpenedFile;
use crate::sys::{identity, lease};
use imara_engine::cache::InodeId;
use imara_engine::check::File;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

#[derive(Debug, Default)]
pub(super) struct Leases {
    held: HashMap<InodeId, Lease>,
    by_descriptor: HashMap<RawFd, InodeId>,
    /// The oldest first; what is no longer held may still be in it.
    order: VecDeque<InodeId>,
    most: usize,
}

#[derive(Debug)]
struct Lease {
    file: OwnedFd,
    /// The file system's number.
    superblock: u64,
}

impl Leases {
    /// Room for so many.
    pub(super) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    fn remove(&mut self, id: InodeId) -> Option<OwnedFd> {
        let lease = self.held.remove(&id)?;
        self.by_descriptor.remove(&lease.file.as_raw_fd());
        Some(lease.file)
    }
}

impl Shared {
    /// Keeps writers waiting until the mark of this file is gone. The mark must be set: opening the file is not asked about
    /// then.
    pub(super) fn hold_lease(&self, file: &OpenedFile<'_>, superblock: &Superblock) -> io::Result<()> {
        let id = file.id();
        if self.leases.lock().held.contains_key(&id) {
            return Ok(());
        }
        let kept = superblock.open(&identity::handle(file.file)?)?;
        // Held until it is entered: whoever is told that it is broken finds it.
        let mut leases = self.leases.lock();
        lease::hold(kept.as_fd(), self.lease_thread.load(Ordering::Relaxed))?;
        while leases.held.len() >= leases.most
            && let Some(oldest) = leases.order.pop_front()
        {
            if let Some(file) = leases.remove(oldest) {
                self.checker.cache().forget(oldest);
                self.give_up_lease(&file);
            }
        }
        leases.by_descriptor.insert(kept.as_raw_fd(), id);
        leases.held.insert(id, Lease { file: kept, superblock: superblock.device });
        leases.order.push_back(id);
        Ok(())
    }

    /// The mark goes first: from then on the file is asked about again.
    fn give_up_lease(&self, file: &OwnedFd) {
        // Neither fails on descriptors that are ours.
        let _ = self.group.ask_again_descriptor(file.as_fd());
        let _ = lease::release(file.as_fd());
    }

    /// Whether there was one.
    pub(super) fn drop_lease(&self, id: InodeId) -> bool {
        let file = self.leases.lock().remove(id);
        file.is_some_and(|file| {
            self.give_up_lease(&file);
            true
        })
    }

    pub(super) fn release_all_leases(&self) {
        self.release_leases(|_| true);
    }

    /// Those of a file system, by its number.
    pub(super) fn release_leases_of(&self, superblock: u64) {
        self.release_leases(|lease| lease.superblock == superblock);
    }

    fn release_leases(&self, which: impl Fn(&Lease) -> bool) {
        let mut leases = self.leases.lock();
        let Leases { held, by_descriptor, .. } = &mut *leases;
        for (id, Lease { file, .. }) in held.extract_if(|_, lease| which(lease)) {
            by_descriptor.remove(&file.as_raw_fd());
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
                    let mut leases = self.leases.lock();
                    let Some(id) = leases.by_descriptor.get(&number).copied() else {
                        continue;
                    };
                    if let Some(file) = leases.remove(id) {
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
