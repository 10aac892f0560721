//! What is already known of an inode, so that nothing is done twice: the kernel's integrity record (`iint`).
//!
//! A record is good for one state of its file, named by a [`Stamp`]. Times have the file system's granularity, so a file
//! that changed twice within it can have the same stamp: a record whose file changed less than [`SETTLED`] before it was
//! collected is not trusted again (the rule that version control systems know as "racily clean").

use crate::appraise::{IntegrityStatus, Requirement};
use crate::lock::{self, Key, Sharded};
use crate::policy::Slot;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::policy::AlgorithmSet;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::LazyLock;
use std::time::Duration;

/// An inode of a mounted file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct InodeId {
    /// The device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
}

impl Key for InodeId {}

/// Whoever makes files may choose their numbers, and must not choose where they are looked for. A decision asks for its file's hash
/// some thirty times, so that it has to be quick: multiply-shift over vectors with a secret key, which is strongly universal. For any
/// two inodes that were chosen without knowing the key, every pair of hashes is as likely.
///
/// Source: M. Thorup, High Speed Hashing for Integers and Strings.
impl Hash for InodeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        static KEY: LazyLock<[u128; 3]> = LazyLock::new(|| {
            let random = || u128::from(RandomState::new().hash_one(0));
            std::array::from_fn(|_| random() << 64 | random())
        });
        let [device, inode, sum] = *KEY;
        let sum = sum.wrapping_add(device.wrapping_mul(self.device.into()));
        state.write_u64((sum.wrapping_add(inode.wrapping_mul(self.inode.into())) >> 64) as u64);
    }
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

/// The same where the file system keeps no more than whole seconds (ext3, ext4 with inodes of 128 bytes) or every second one
/// (vfat). That shows in the time itself; one of a finer file system that happens to be whole waits no longer either.
const SETTLED_COARSE: Duration = Duration::from_millis(2_020);

/// Whether a change after `now` is sure to show in the stamp.
pub fn is_settled(stamp: &Stamp, now: i128) -> bool {
    // One that has no room in 64 bits, which takes a division by hand, is later than any now.
    let whole = i64::try_from(stamp.changed).is_ok_and(|changed| changed % 1_000_000_000 == 0);
    let after = if whole { SETTLED_COARSE } else { SETTLED };
    stamp.changed + after.as_nanos().cast_signed() < now
}

/// What has been done for an inode in one state.
#[derive(Clone, Debug)]
pub struct Record {
    /// The state it is about.
    pub stamp: Stamp,
    /// Whether a later change is sure to show in the stamp.
    pub settled: bool,
    /// The content's digest, or fs-verity's.
    pub collected: Option<Digest>,
    /// Whether that is fs-verity's.
    pub verity: bool,
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
            verity: false,
            measured: 0,
            status: [None; 5],
            audited: false,
            immutable: false,
        }
    }
}

impl Record {
    /// Whether the content passed an appraisal that asked for as much: a signature, the fs-verity digest, and one of these algorithms.
    pub fn passes(&self, slot: Slot, asked: Requirement, algorithms: Option<&AlgorithmSet>) -> bool {
        self.status[slot as usize] == Some(IntegrityStatus::Pass)
            && (self.immutable || !asked.signature)
            && self.verity == asked.verity
            && self
                .collected
                .is_some_and(|digest| algorithms.is_none_or(|allowed| allowed.contains(digest.algorithm())))
    }
}

/// A record as it is kept, in two thirds of the room.
#[derive(Clone, Debug)]
struct Kept {
    size: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    changed: i64,
    /// PCRs have numbers below 64, and TPMs 24 of them.
    measured: u64,
    digest: KeptDigest,
    status: [Option<IntegrityStatus>; 5],
    flags: u8,
}

/// Of [`Kept::flags`], by what a [`Record`] says.
const SETTLED_FLAG: u8 = 1;
const AUDITED: u8 = 2;
const IMMUTABLE: u8 = 4;
const VERITY: u8 = 8;

/// A digest; the long ones, which are rare, lie elsewhere.
#[derive(Clone, Debug)]
enum KeptDigest {
    None,
    Short(HashAlgorithm, [u8; SHORT]),
    Long(Box<Digest>),
}

/// The size of a SHA-256 digest, in bytes.
const SHORT: usize = 32;

impl Kept {
    fn new(record: &Record) -> Option<Self> {
        let digest = match record.collected {
            None => KeptDigest::None,
            Some(digest) if digest.as_bytes().len() <= SHORT => {
                let mut bytes = [0; SHORT];
                bytes[..digest.as_bytes().len()].copy_from_slice(digest.as_bytes());
                KeptDigest::Short(digest.algorithm(), bytes)
            }
            Some(digest) => KeptDigest::Long(Box::new(digest)),
        };
        Some(Self {
            size: record.stamp.size,
            modified: record.stamp.modified.try_into().ok()?,
            changed: record.stamp.changed.try_into().ok()?,
            measured: record.measured,
            digest,
            status: record.status,
            flags: [
                (record.settled, SETTLED_FLAG),
                (record.audited, AUDITED),
                (record.immutable, IMMUTABLE),
                (record.verity, VERITY),
            ]
            .into_iter()
            .fold(0, |flags, (set, flag)| if set { flags | flag } else { flags }),
        })
    }

    fn open(&self) -> Record {
        let collected = match &self.digest {
            KeptDigest::None => None,
            // Its length is the algorithm's.
            KeptDigest::Short(algorithm, bytes) => Digest::new(*algorithm, &bytes[..algorithm.digest_size()]).ok(),
            KeptDigest::Long(digest) => Some(**digest),
        };
        Record {
            stamp: Stamp { size: self.size, modified: self.modified.into(), changed: self.changed.into() },
            settled: self.flags & SETTLED_FLAG != 0,
            collected,
            verity: self.flags & VERITY != 0,
            measured: self.measured,
            status: self.status,
            audited: self.flags & AUDITED != 0,
            immutable: self.flags & IMMUTABLE != 0,
        }
    }
}

/// Records of inodes, in shards so that accesses to different files rarely meet.
#[derive(Debug)]
pub struct Cache(Sharded<InodeId, Kept>);

impl Cache {
    /// Room for `records`; beyond that, old ones make way.
    pub fn new(records: usize) -> Self {
        Self(Sharded::new(records, &lock::CACHE))
    }

    /// What is known of the file in the state `stamp`.
    pub fn lookup(&self, id: InodeId, stamp: &Stamp) -> Option<Record> {
        self.0.shard(&id).get(&id).map(Kept::open).filter(|record| record.settled && record.stamp == *stamp)
    }

    /// Remembers a record.
    pub fn store(&self, id: InodeId, record: Record) {
        let Some(record) = Kept::new(&record) else {
            // A time that no file system of this century has; it is judged anew each time.
            return self.forget(id);
        };
        let mut shard = self.0.shard(&id);
        if shard.len() >= self.0.room() && !shard.contains_key(&id) {
            // Any one will do: what is forgotten is only done again.
            if let Some(other) = shard.keys().next().copied() {
                shard.remove(&other);
            }
        }
        shard.insert(id, record);
    }

    /// Whether something is known of an inode, in whatever state.
    pub fn knows(&self, id: InodeId) -> bool {
        self.0.shard(&id).contains_key(&id)
    }

    /// Forgets an inode.
    pub fn forget(&self, id: InodeId) {
        self.0.shard(&id).remove(&id);
    }

    /// Forgets every inode of a device.
    pub fn forget_device(&self, device: u64) {
        self.0.each().for_each(|mut shard| shard.retain(|id, _| id.device != device));
    }

    /// Forgets what came of appraisals: by other keys it may come to something else. Contents and what is measured stay known.
    pub fn forget_verdicts(&self) {
        self.0.each().for_each(|mut shard| {
            shard.values_mut().for_each(|record| {
                record.status = [None; 5];
                record.flags &= !IMMUTABLE;
            });
        });
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// How many inodes are known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no inode is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_has_settled_once_a_later_change_must_show_in_its_times() {
        const SECOND: i128 = 1_000_000_000;
        for (changed, age, settled) in [
            (5 * SECOND + 7, 20_000_000, false),
            (5 * SECOND + 7, 20_000_001, true),
            // Whole seconds, of which many changes in a row have the same.
            (5 * SECOND, 20_000_001, false),
            (5 * SECOND, 2 * SECOND, false),
            (5 * SECOND, 2_020_000_001, true),
            // In the future, after the clock was set back.
            (9 * SECOND + 1, -SECOND, false),
        ] {
            let stamp = Stamp { changed, ..Stamp::default() };
            assert_eq!(is_settled(&stamp, changed + age), settled, "{changed} {age}");
        }
    }

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
    fn a_record_comes_back_as_it_was_kept() {
        use imara_format::hash::HashAlgorithm::{Sha1, Sha256, Sha512};
        let stamp = Stamp { size: u64::MAX, modified: i64::MAX.into(), changed: 7 };
        for collected in [None, Some(Digest::ones(Sha1)), Some(Digest::ones(Sha256)), Some(Digest::ones(Sha512))] {
            let record = Record {
                settled: true,
                collected,
                measured: 1 << 23 | 1,
                status: [None, Some(IntegrityStatus::Pass), Some(IntegrityStatus::Unknown), None, None],
                audited: true,
                immutable: true,
                verity: true,
                ..Record::new(stamp)
            };
            let cache = Cache::new(100);
            cache.store(id(1), record.clone());
            assert_eq!(format!("{:?}", cache.lookup(id(1), &stamp)), format!("{:?}", Some(record)));
        }
        // A time that it has no room for is not known.
        let cache = Cache::new(100);
        let far = Stamp { changed: i128::MAX, ..stamp };
        cache.store(id(1), Record { settled: true, ..Record::new(far) });
        assert!(cache.lookup(id(1), &far).is_none());
        assert!(size_of::<Kept>() <= 96, "{}", size_of::<Kept>());
    }

    #[test]
    fn the_cache_keeps_to_its_room() {
        let cache = Cache::new(64);
        for inode in 0..10_000 {
            cache.store(id(inode), Record::new(Stamp::default()));
        }
        assert!(cache.len() <= 64 + lock::SHARDS, "{}", cache.len());
        cache.clear();
        assert_eq!(cache.len(), 0);
    }
}
