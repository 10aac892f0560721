//! What files were like when their labels verified, and what has changed since.
//!
//! Whoever sees changes only afterwards must not give a changed file a good label because it changed: an offline change would
//! be laundered by the next harmless one. It may where the file's state before is known and was verified; where nothing but
//! the kernel's own calls can have changed it since, that is, where the inode has stayed in memory; and where the kernel would
//! have let the change be made. A record of a file whose inode is not *kept* in memory says what it was like and allows nothing.

use super::difference::{Difference, would_be_allowed};
use super::snapshot::Snapshot;
use crate::audit::TaskIdentity;
use crate::cache::InodeId;
use crate::integrity_status::IntegrityStatus;
use crate::lock::{self, Sharded};
use std::collections::VecDeque;

/// Files remembered at most: what is forgotten is judged by its label alone.
const FILES: usize = 1 << 16;
/// Changes remembered of one file.
const CHANGES: usize = 8;

/// A change that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When it was noticed, in nanoseconds since 1970.
    pub when: i128,
    /// Who made it, where the kernel told.
    pub who: Option<TaskIdentity>,
    /// What.
    pub what: Vec<Difference>,
    /// Whether the label was made anew for it.
    pub followed: bool,
}

/// What is known of a file.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it was like when its label last verified.
    pub verified: Snapshot,
    /// With which status.
    pub status: IntegrityStatus,
    /// Whether its inode has stayed in memory since.
    pub kept: bool,
    /// What has changed, the oldest first.
    pub changes: VecDeque<Change>,
}

/// Records of files.
#[derive(Debug)]
pub struct Recorded(Sharded<InodeId, Record>);

impl Default for Recorded {
    fn default() -> Self {
        Self(Sharded::new(FILES, &lock::EVM))
    }
}

/// What a change means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing that is protected has changed since the label verified.
    Same,
    /// Nothing is known of the file's state before: its label alone says whether it is good.
    Unknown,
    /// Its inode has left memory since, so that anybody may have changed it: its label alone says whether it is good.
    Unkept(Vec<Difference>),
    /// The kernel would have let it be changed so; the label has to follow.
    Allowed(Vec<Difference>),
    /// The kernel would have refused it.
    Refused(Vec<Difference>, IntegrityStatus),
    /// The label itself was exchanged or removed: it speaks for itself.
    Relabelled(Vec<Difference>),
}

impl Recorded {
    /// Notes that a label verified, or was made, of an inode that is kept in memory from before that on, or is not.
    pub fn verified(&self, id: InodeId, snapshot: Snapshot, status: IntegrityStatus, kept: bool) {
        let mut records = self.0.shard(&id);
        if records.len() >= self.0.room() && !records.contains_key(&id) {
            records.clear();
        }
        match records.get_mut(&id) {
            Some(record) if record.verified.inode.generation == snapshot.inode.generation => {
                record.verified = snapshot;
                record.status = status;
                record.kept = kept;
            }
            _ => {
                let record = Record { verified: snapshot, status, kept, changes: VecDeque::new() };
                records.insert(id, record);
            }
        }
    }

    /// The inode has not been kept in memory since.
    pub fn lose(&self, id: InodeId) {
        if let Some(record) = self.0.shard(&id).get_mut(&id) {
            record.kept = false;
        }
    }

    /// Nothing is known of it any more.
    pub fn forget(&self, id: InodeId) {
        self.0.shard(&id).remove(&id);
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// What is known.
    pub fn lookup(&self, id: InodeId) -> Option<Record> {
        self.0.shard(&id).get(&id).cloned()
    }

    /// Whether anything is known, and whether the inode is kept in memory.
    pub fn knows(&self, id: InodeId) -> Option<bool> {
        self.0.shard(&id).get(&id).map(|record| record.kept)
    }

    /// How many files are known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the file's present state means.
    pub fn meaning(&self, id: InodeId, now: &Snapshot) -> Meaning {
        let records = self.0.shard(&id);
        let Some(record) = records.get(&id) else { return Meaning::Unknown };
        let differences = record.verified.differences(now);
        if record.verified.label != now.label {
            return Meaning::Relabelled(differences);
        }
        if differences.is_empty() {
            return Meaning::Same;
        }
        if !would_be_allowed(&differences, record.status) {
            return Meaning::Refused(differences, record.status);
        }
        if record.kept { Meaning::Allowed(differences) } else { Meaning::Unkept(differences) }
    }

    /// Remembers a change.
    pub fn note(&self, id: InodeId, change: Change) {
        if let Some(record) = self.0.shard(&id).get_mut(&id) {
            if record.changes.len() >= CHANGES {
                record.changes.pop_front();
            }
            record.changes.push_back(change);
        }
    }

    /// The kernel tells who has changed a file: that is said of the changes that nobody was known for.
    pub fn attribute(&self, id: InodeId, who: &TaskIdentity) {
        if let Some(record) = self.0.shard(&id).get_mut(&id) {
            for change in record.changes.iter_mut().filter(|change| change.who.is_none()) {
                change.who = Some(who.clone());
            }
        }
    }
}
