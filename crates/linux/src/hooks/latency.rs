//! How long something took, counted so that a Prometheus histogram can be made of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds; what took longer is in a last one.
pub const BOUNDS: [u64; 13] =
    [10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000];

/// A histogram.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In nanoseconds.
    sum: AtomicU64,
}

impl Latency {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) * 1000 < took.as_nanos());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many are in each bucket, the last one without a bound.
    pub fn counts(&self) -> [u64; BOUNDS.len() + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed))
    }

    /// How long all took together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_counted_in_the_bucket_that_it_fits() {
        let latency = Latency::default();
        for (took, bucket) in [
            (Duration::ZERO, 0),
            (Duration::from_micros(10), 0),
            (Duration::from_nanos(10_001), 1),
            (Duration::from_millis(1), 4),
            (Duration::from_secs(10), 12),
            (Duration::from_secs(11), 13),
            (Duration::MAX, 13),
        ] {
            let before = latency.counts()[bucket];
            latency.record(took);
            assert_eq!(latency.counts()[bucket], before + 1, "{took:?}");
        }
        assert_eq!(latency.counts().iter().sum::<u64>(), 7);
    }
}
