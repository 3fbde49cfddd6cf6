//! A histogram of durations with weighted observations, which the `prometheus` crate's own lacks: one
//! observation stands for all the events of a batch.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts of durations between fixed bounds.
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

    /// The upper bounds in seconds, and how many observations lie below each and above the one before; a last count
    /// is of those beyond all bounds.
    pub fn buckets(&self) -> (&'static [f64], Vec<u64>) {
        (self.bounds_seconds, self.counts.iter().map(|count| count.load(Relaxed)).collect())
    }

    /// The buckets as Prometheus wants them: upper bound and cumulative count; then the count in all and the
    /// sum in seconds.
    pub(super) fn cumulative(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut total = 0;
        let mut buckets = Vec::with_capacity(self.bounds_seconds.len());
        for (bound, count) in self.bounds_seconds.iter().zip(&self.counts) {
            total += count.load(Relaxed);
            buckets.push((*bound, total));
        }
        total += self.counts[self.bounds_seconds.len()].load(Relaxed);
        (buckets, total, self.sum_nanoseconds.load(Relaxed) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weighted_observation_counts_as_so_many() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        histogram.observe_weighted(Duration::from_millis(100), 3);
        histogram.observe(Duration::from_secs(5));
        assert_eq!(histogram.cumulative(), (vec![(0.1, 3), (1.0, 3)], 4, 5.3));
    }
}
