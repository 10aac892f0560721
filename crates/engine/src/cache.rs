//! What is already known of an inode, so that nothing is done twice: the kernel's integrity record (`iint`).
//!
//! A record is good for one state of its file, named by a [`Stamp`]. Times have the file system's granularity, so a file
//! that changed twice within it can have the same stamp: a record whose file changed less than [`SETTLED`] before it was
//! collected is not trusted again (the rule that version control systems know as "racily clean").

use crate::appraise::IntegrityStatus;
use crate::policy::Slot;
use imara_format::hash::Digest;
use imara_format::policy::AlgorithmSet;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::Duration;

/// An inode of a mounted file system.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct InodeId {
    /// The device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
}

/// A state of a file, as stat(2) shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Last change of the content, in nanoseconds since 1970.
    pub modified: i128,
    /// Last change of content or attributes, in nanoseconds since 1970.
    pub changed: i128,
}

/// How long after its last change a file must have been collected for its stamp to tell later changes: more than the
/// coarsest clock tick that Linux stamps files with (10 ms at 100 Hz).
pub const SETTLED: Duration = Duration::from_millis(20);

/// What has been done for an inode in one state.
#[derive(Clone, Debug)]
pub struct Record {
    /// The state it is about.
    pub stamp: Stamp,
    /// Whether a later change is sure to show in the stamp.
    pub settled: bool,
    /// The content's digest.
    pub collected: Option<Digest>,
    /// PCRs it has been measured into, bit n for PCR n.
    pub measured: u64,
    /// The status under each [`Slot`].
    pub status: [Option<IntegrityStatus>; 5],
    /// Whether the audit record of the `audit` action has been made.
    pub audited: bool,
    /// Whether the label is a signature, or EVM's a portable one, so that the file may not be opened for writing.
    pub immutable: bool,
}

impl Record {
    /// A record that knows nothing yet.
    pub const fn new(stamp: Stamp) -> Self {
        Self {
            stamp,
            settled: false,
            collected: None,
            measured: 0,
            status: [None; 5],
            audited: false,
            immutable: false,
        }
    }
}

impl Record {
    /// Whether the content passed an appraisal that asked for as much: a signature, and one of these algorithms.
    pub fn passes(&self, slot: Slot, signature: bool, algorithms: Option<&AlgorithmSet>) -> bool {
        self.status[slot as usize] == Some(IntegrityStatus::Pass)
            && (self.immutable || !signature)
            && self
                .collected
                .is_some_and(|digest| algorithms.is_none_or(|allowed| allowed.contains(digest.algorithm())))
    }
}

/// Records of inodes, in shards so that accesses to different files rarely meet.
#[derive(Debug)]
pub struct Cache {
    shards: Vec<Mutex<HashMap<InodeId, Record>>>,
    hasher: RandomState,
    room: usize,
}

const SHARDS: usize = 16;

impl Cache {
    /// Room for `records`; beyond that, old ones make way.
    pub fn new(records: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new(), room: records.div_ceil(SHARDS).max(1) }
    }

    fn shard(&self, id: InodeId) -> std::sync::MutexGuard<'_, HashMap<InodeId, Record>> {
        let index = self.hasher.hash_one(id) as usize % SHARDS;
        // A panic while the map was locked is our own bug; the map itself is sound, as nothing in here is half done.
        self.shards[index].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What is known of the file in the state `stamp`.
    pub fn lookup(&self, id: InodeId, stamp: &Stamp) -> Option<Record> {
        self.shard(id).get(&id).filter(|record| record.settled && record.stamp == *stamp).cloned()
    }

    /// Remembers a record.
    pub fn store(&self, id: InodeId, record: Record) {
        let mut shard = self.shard(id);
        if shard.len() >= self.room && !shard.contains_key(&id) {
            // Any one will do: what is forgotten is only done again.
            if let Some(other) = shard.keys().next().copied() {
                shard.remove(&other);
            }
        }
        shard.insert(id, record);
    }

    /// Forgets an inode.
    pub fn forget(&self, id: InodeId) {
        self.shard(id).remove(&id);
    }

    /// Forgets every inode of a device.
    pub fn forget_device(&self, device: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shard.retain(|id, _| id.device != device);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        }
    }

    /// How many inodes are known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len()).sum()
    }

    /// Whether no inode is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(inode: u64) -> InodeId {
        InodeId { device: 1, inode }
    }

    #[test]
    fn a_record_serves_only_the_state_it_is_about_and_only_when_settled() {
        let cache = Cache::new(100);
        let stamp = Stamp { size: 1, modified: 5, changed: 5 };
        cache.store(id(1), Record { settled: true, ..Record::new(stamp) });
        assert!(cache.lookup(id(1), &stamp).is_some());
        assert!(cache.lookup(id(1), &Stamp { changed: 6, ..stamp }).is_none());
        assert!(cache.lookup(id(2), &stamp).is_none());
        cache.store(id(1), Record::new(stamp));
        assert!(cache.lookup(id(1), &stamp).is_none(), "not settled");
        cache.forget(id(1));
        assert!(cache.is_empty());
    }

    #[test]
    fn the_cache_keeps_to_its_room() {
        let cache = Cache::new(64);
        for inode in 0..10_000 {
            cache.store(id(inode), Record::new(Stamp::default()));
        }
        assert!(cache.len() <= 64 + SHARDS, "{}", cache.len());
        cache.clear();
        assert_eq!(cache.len(), 0);
    }
}
