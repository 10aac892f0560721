//! Inodes that the kernel was told not to ask about: those whose marks must be taken back when they change.

use imara_engine::cache::InodeId;
use imara_engine::lock::{self, Sharded};

/// Inodes, at most. The kernel drops marks without telling, so that what is here only ever grows.
const MOST: usize = 1 << 20;

/// Which inodes may have a mark.
#[derive(Debug)]
pub(super) struct Marked(Sharded<InodeId, ()>);

impl Default for Marked {
    fn default() -> Self {
        Self(Sharded::new(MOST, &lock::MARKED))
    }
}

impl Marked {
    /// Adds one; false where there is no room.
    pub(super) fn add(&self, id: InodeId) -> bool {
        let mut shard = self.0.shard(&id);
        let room = shard.len() < self.0.room() || shard.contains_key(&id);
        if room {
            shard.insert(id, ());
        }
        room
    }

    /// Whether there is no room for this one.
    pub(super) fn is_full(&self, id: InodeId) -> bool {
        self.0.shard(&id).len() >= self.0.room()
    }

    /// Removes one, if it was there.
    pub(super) fn remove(&self, id: InodeId) -> bool {
        self.0.shard(&id).remove(&id).is_some()
    }

    /// Removes all of a device; whether there were any.
    pub(super) fn forget_device(&self, device: u64) -> bool {
        let mut any = false;
        for mut shard in self.0.each() {
            let before = shard.len();
            shard.retain(|id, ()| id.device != device);
            any |= shard.len() < before;
        }
        any
    }

    /// Removes all.
    pub(super) fn clear(&self) {
        self.0.clear();
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
        // Some shard is full before so many are there.
        let full = (0..=MOST as u64).find(|number| !marked.add(id(0, *number))).expect("there is no more room");
        assert!(full > MOST as u64 / 2 && marked.is_full(id(0, full)), "{full}");
        marked.clear();
        assert!(marked.add(id(0, full)) && !marked.is_full(id(0, full)));
    }
}
