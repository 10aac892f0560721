//! The locks that decisions take, and how often one had to wait for another.
//!
//! Decisions on different files are to share no lock but the measurement list's, whose order is the PCR's. What is known by inode is
//! kept in shards, so that two files rarely meet. Whether that holds under load is counted: each lock has a name, and whoever does
//! not get it at once counts once for that name. Counting costs nothing where nobody waits.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// How often somebody waited for the locks of a name, since the program began.
#[derive(Debug)]
pub struct Waits {
    /// What is behind them.
    pub name: &'static str,
    count: AtomicU64,
}

impl Waits {
    const fn named(name: &'static str) -> Self {
        Self { name, count: AtomicU64::new(0) }
    }

    /// Somebody waits for what is behind it, in another way than for the lock itself.
    pub(crate) fn waited(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How often.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// The measurement list and the TPM.
pub static LIST: Waits = Waits::named("list");
/// Which entries are listed.
pub static LISTED: Waits = Waits::named("listed");
/// What is known of files.
pub static CACHE: Waits = Waits::named("cache");
/// Whose labels follow their content.
pub static MAINTAINED: Waits = Waits::named("maintained");
/// Who is open for writing.
pub static VIOLATED: Waits = Waits::named("violated");
/// What EVM's labels were seen good over.
pub static EVM: Waits = Waits::named("evm");
/// Events that have no answer yet.
pub static UNANSWERED: Waits = Waits::named("unanswered");
/// Files that are being decided on.
pub static UNDER_WAY: Waits = Waits::named("under_way");
/// Inodes that the kernel does not ask about.
pub static MARKED: Waits = Waits::named("marked");
/// What events were read and nobody has begun with.
pub static QUEUE: Waits = Waits::named("queue");
/// Read leases.
pub static LEASES: Waits = Waits::named("leases");
/// What failed, for those who ask.
pub static EVENTS: Waits = Waits::named("events");

/// All of them.
pub static ALL: [&Waits; 12] =
    [&LIST, &LISTED, &CACHE, &MAINTAINED, &VIOLATED, &EVM, &UNANSWERED, &UNDER_WAY, &MARKED, &QUEUE, &LEASES, &EVENTS];

/// A mutex that counts for whom it was not free.
#[derive(Debug)]
pub struct Lock<T> {
    mutex: Mutex<T>,
    waits: &'static Waits,
}

impl<T> Lock<T> {
    /// Protects a value; waits count for that name.
    pub const fn new(value: T, waits: &'static Waits) -> Self {
        Self { mutex: Mutex::new(value), waits }
    }

    /// Takes it. What these locks protect is never half changed, so a panic elsewhere leaves it sound.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        match self.mutex.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.waits.count.fetch_add(1, Ordering::Relaxed);
                self.mutex.lock().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }
}

/// How many shards there are: many more than processors, so that two who work at a time rarely meet.
pub const SHARDS: usize = 64;

/// A key whose [`Hash`] is one number that nobody outside can aim at: a keyed hash, or one that is given out by us or the kernel.
pub trait Key: Hash + Eq {}

/// Numbers that are given out one after the other.
impl Key for u64 {}

/// Takes the number of a [`Key`] for its hash, spread over all bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbered(u64);

impl Numbered {
    /// 2^64 divided by the golden ratio, odd: a bijection.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

    fn of(key: &impl Key) -> u64 {
        let mut hasher = Self::default();
        key.hash(&mut hasher);
        hasher.finish()
    }
}

impl Hasher for Numbered {
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(Self::SPREAD);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What is known of things that have a number.
pub type Numbers<K, V> = HashMap<K, V, BuildHasherDefault<Numbered>>;

/// What is known of many things, in shards.
#[derive(Debug)]
pub struct Sharded<K, V> {
    shards: Vec<Lock<Numbers<K, V>>>,
    room: usize,
}

impl<K: Key, V> Sharded<K, V> {
    /// Room for so many; what comes beyond that makes the caller choose (see [`Self::room`]).
    pub fn new(room: usize, waits: &'static Waits) -> Self {
        let shards = (0..SHARDS).map(|_| Lock::new(Numbers::default(), waits)).collect();
        Self { shards, room: room.div_ceil(SHARDS).max(1) }
    }

    /// The shard of a key.
    pub fn shard(&self, key: &K) -> MutexGuard<'_, Numbers<K, V>> {
        // By bits that the map within goes by last: its places are the lowest, its tags the highest.
        self.shards[(Numbered::of(key) >> 48) as usize % SHARDS].lock()
    }

    /// Each shard in turn.
    pub fn each(&self) -> impl Iterator<Item = MutexGuard<'_, Numbers<K, V>>> {
        self.shards.iter().map(Lock::lock)
    }

    /// How many may be in a shard.
    pub const fn room(&self) -> usize {
        self.room
    }

    /// Removes all.
    pub fn clear(&self) {
        self.each().for_each(|mut shard| shard.clear());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.each().map(|shard| shard.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.each().all(|shard| shard.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_not_get_a_lock_at_once_is_counted() {
        static WAITS: Waits = Waits::named("tried");
        let lock = Lock::new(0, &WAITS);
        *lock.lock() += 1;
        assert_eq!(WAITS.count(), 0, "it was free");
        std::thread::scope(|scope| {
            let held = lock.lock();
            scope.spawn(|| *lock.lock() += 1);
            while WAITS.count() == 0 {
                std::thread::yield_now();
            }
            drop(held);
        });
        assert_eq!((*lock.lock(), WAITS.count()), (2, 1));
    }

    #[test]
    fn a_panic_leaves_what_is_protected() {
        static WAITS: Waits = Waits::named("tried");
        let lock = Lock::new(7, &WAITS);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = lock.lock();
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!((*lock.lock(), WAITS.count()), (7, 0));
    }

    #[test]
    fn what_is_in_shards_is_found_again() {
        static WAITS: Waits = Waits::named("tried");
        let sharded = Sharded::new(1000, &WAITS);
        for number in 0..1000_u64 {
            sharded.shard(&number).insert(number, number + 1);
        }
        assert_eq!((sharded.len(), sharded.shard(&7).get(&7).copied()), (1000, Some(8)));
        // They spread: no shard has a quarter of them.
        assert!(sharded.each().all(|shard| shard.len() < 250));
        sharded.clear();
        assert!(sharded.is_empty());
    }
}
