//! Inodes that the kernel was told not to ask about: those whose marks must be taken back when they change.

use super::lock;
use imara_engine::cache::InodeId;
use std::collections::HashSet;
use std::sync::Mutex;

const SHARDS: usize = 16;
/// Inodes in a shard, at most. The kernel drops marks without telling, so that what is here only ever grows.
const MOST: usize = 1 << 16;

/// Which inodes may have a mark, in shards, so that threads rarely meet.
#[derive(Debug, Default)]
pub(super) struct Marked {
    shards: [Mutex<HashSet<InodeId>>; SHARDS],
}

impl Marked {
    fn shard(&self, id: InodeId) -> &Mutex<HashSet<InodeId>> {
        &self.shards[(id.inode ^ id.device) as usize % SHARDS]
    }

    /// Adds one; false where there is no room.
    pub(super) fn add(&self, id: InodeId) -> bool {
        let mut shard = lock(self.shard(id));
        let room = shard.len() < MOST || shard.contains(&id);
        if room {
            shard.insert(id);
        }
        room
    }

    /// Whether there is no room for this one.
    pub(super) fn is_full(&self, id: InodeId) -> bool {
        lock(self.shard(id)).len() >= MOST
    }

    /// Removes one, if it was there.
    pub(super) fn remove(&self, id: InodeId) -> bool {
        lock(self.shard(id)).remove(&id)
    }

    /// Removes all of a device; whether there were any.
    pub(super) fn forget_device(&self, device: u64) -> bool {
        let forget = |shard: &Mutex<HashSet<InodeId>>| {
            let mut shard = lock(shard);
            let before = shard.len();
            shard.retain(|id| id.device != device);
            shard.len() < before
        };
        self.shards.iter().map(forget).fold(false, |any, some| any | some)
    }

    /// Removes all.
    pub(super) fn clear(&self) {
        self.shards.iter().for_each(|shard| lock(shard).clear());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_known_until_it_is_removed() {
        let (marked, id) = (Marked::default(), |device, inode| InodeId { device, inode });
        assert!(marked.add(id(1, 2)) && marked.add(id(1, 2)) && marked.add(id(2, 2)));
        assert!(marked.remove(id(1, 2)) && !marked.remove(id(1, 2)));
        assert!(marked.forget_device(2) && !marked.forget_device(2));
        for number in 0..(SHARDS * MOST) as u64 {
            assert!(marked.add(id(0, number)), "{number}");
        }
        assert!(!marked.add(id(0, u64::MAX)) && marked.is_full(id(0, u64::MAX)));
        marked.clear();
        assert!(marked.add(id(0, u64::MAX)));
    }
}
