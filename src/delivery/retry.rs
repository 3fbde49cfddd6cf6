//! How long a lane waits after a failure: full jitter, so that a fleet that failed together does not come back
//! together. Pure.

use std::time::Duration;

/// Bounds of the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after the first failure.
    pub base: Duration,
    /// The longest wait at all.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `streak` failures in a row (at least 1), for a `fraction` drawn from 0 to 1: anything
    /// between nothing and `base` doubled with each failure. ("Full jitter": AWS Architecture Blog,
    /// "Exponential Backoff And Jitter".)
    pub fn delay(&self, streak: u32, fraction: f64) -> Duration {
        let doublings = streak.saturating_sub(1).min(31);
        let ceiling = self.base.saturating_mul(1 << doublings).min(self.max);
        ceiling.mul_f64(fraction.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_jitters_down_to_nothing() {
        let backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(30) };
        let longest = |streak| backoff.delay(streak, 1.0).as_millis();
        assert_eq!([1, 2, 3, 9, 10, 1000].map(longest), [100, 200, 400, 25_600, 30_000, 30_000]);
        assert_eq!(backoff.delay(5, 0.0), Duration::ZERO);
        assert_eq!(backoff.delay(2, 0.5), Duration::from_millis(100));
    }
}
