//! Metrics.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A histogram of durations whose observations carry a weight, so that one observation can stand for all the
/// events of a batch.
#[derive(Debug)]
pub struct Histogram {
    bounds_seconds: &'static [f64],
    /// One count a bound, and a last one for what is beyond all of them.
    counts: Box<[AtomicU64]>,
    sum_nanoseconds: AtomicU64,
}

impl Histogram {
    /// A histogram with these upper bounds, in seconds, ascending.
    pub fn new(bounds_seconds: &'static [f64]) -> Self {
        let counts = (0..=bounds_seconds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds_seconds, counts, sum_nanoseconds: AtomicU64::new(0) }
    }

    /// Counts `weight` observations of `duration`.
    pub fn observe_weighted(&self, duration: Duration, weight: u64) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds_seconds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(weight, Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanoseconds.fetch_add(nanoseconds.saturating_mul(weight), Relaxed);
    }

    /// Counts one observation of `duration`.
    pub fn observe(&self, duration: Duration) {
        self.observe_weighted(duration, 1);
    }
}
