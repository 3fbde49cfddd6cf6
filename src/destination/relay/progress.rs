//! How far the other relay has read a connection, from its answers to `!ping`. They overtake the answers to syncs, so
//! they tell a relay that waits for its own destination from one that does nothing any more. Pure but for the clock.
//!
//! A ping that goes out when all before it was read must be answered at once: nothing that the other relay could wait
//! for stands between. It is the probe, and one that stays unanswered is a fault. A ping behind events may wait as long
//! as a connection that is paused for memory does, which is no fault, however long it takes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The question.
pub(super) const PING: &[u8] = b"!ping\n";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Pings>);

#[derive(Debug, Default)]
struct Pings {
    asked: u64,
    answered: u64,
    /// When the last was asked before which all was answered.
    waits_since: Option<Instant>,
    /// The probe, by number, and when it was asked.
    probe: Option<(u64, Instant)>,
}

impl Progress {
    fn pings(&self) -> MutexGuard<'_, Pings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that [`PING`] is about to be written.
    pub(super) fn ask(&self, now: Instant) {
        let mut pings = self.pings();
        let had_read_all = pings.asked == pings.answered;
        pings.asked += 1;
        if had_read_all {
            pings.probe = Some((pings.asked, now));
            pings.waits_since = Some(now);
        }
    }

    /// Hears an answer. Says whether there was a question.
    pub(super) fn hear(&self, now: Instant) -> bool {
        let mut pings = self.pings();
        if pings.answered == pings.asked {
            return false;
        }
        pings.answered += 1;
        pings.waits_since = (pings.answered < pings.asked).then_some(now);
        let answered = pings.answered;
        pings.probe.take_if(|(number, _)| *number <= answered);
        true
    }

    /// Whether all was read up to the last ping.
    pub(super) fn has_read_all(&self) -> bool {
        let pings = self.pings();
        pings.asked == pings.answered
    }

    /// Whether nothing was read for so long although something was there to be read.
    pub(super) fn is_stalled(&self, now: Instant, after: Duration) -> bool {
        self.pings().waits_since.is_some_and(|since| now.saturating_duration_since(since) > after)
    }

    /// Whether a probe has not been answered for so long: then the other relay does nothing any more.
    pub(super) fn is_dead(&self, now: Instant, after: Duration) -> bool {
        self.pings().probe.is_some_and(|(_, since)| now.saturating_duration_since(since) > after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_probe_can_tell_that_a_relay_is_dead() {
        let (progress, start, limit) = (Progress::default(), Instant::now(), Duration::from_secs(30));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!progress.hear(at(0)), "nothing was asked");
        // One before a call, one behind it.
        progress.ask(at(0));
        progress.ask(at(0));
        assert!(progress.is_dead(at(31), limit) && progress.is_stalled(at(31), limit));
        assert!(progress.hear(at(1)) && !progress.has_read_all());
        assert!(!progress.is_dead(at(1_000), limit), "it may be paused for memory");
        assert!(progress.is_stalled(at(1_000), limit));
        progress.ask(at(2));
        assert!(!progress.is_dead(at(1_000), limit), "that one stands behind events, too");
        assert!(progress.hear(at(900)) && progress.hear(at(901)) && progress.has_read_all());
        assert!(!progress.is_stalled(at(2_000), limit));
        progress.ask(at(2_000));
        assert!(!progress.is_dead(at(2_030), limit) && progress.is_dead(at(2_031), limit));
    }
}
