//! A log line that would repeat itself, said now and then.

use std::time::{Duration, Instant};

/// What lasts is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// One cause for a log line.
#[derive(Debug, Default)]
pub(super) struct Rarely(Option<Instant>);

impl Rarely {
    /// Whether it is to be said again; then the next time is [`LOG_INTERVAL`] away.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}
