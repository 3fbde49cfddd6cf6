//! The end of delivery: every wait is cut short, what is left is delivered, and what cannot be is dropped and counted.
//! What goes to disk instead is `spill`'s.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Delivery;
use super::lane::LaneLimits;
use super::queues::StreamQueue;
use super::retry::Backoff;
use super::spill::Spill;
use crate::metrics::{Drop, Place};

/// While draining no lane waits longer than this.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(1);

impl Delivery {
    pub(super) fn drain(&mut self, done: oneshot::Sender<()>, now: Instant) {
        self.draining = true;
        self.drained = Some(done);
        for index in 0..self.lanes.len() {
            if let Some(entry) = self.lanes[index].as_mut() {
                entry.policy.cut_wait_short();
            }
            self.wake(index);
        }
        self.stream_ids().into_iter().for_each(|stream| self.offer(stream, now));
    }

    /// Whether nothing is left that another call could deliver: what is parked stays parked.
    pub(super) fn is_drained(&self) -> bool {
        let is_done = |queue: &StreamQueue| queue.is_empty() || queue.stream.parked.load(Relaxed);
        let is_spool_empty = self.spill.as_ref().is_none_or(Spill::is_empty);
        self.in_flight == 0
            && self.parts.handoff.is_empty()
            && is_spool_empty
            && self.has_no_letters()
            && self.streams.values().all(is_done)
    }

    /// What lanes go by: while draining, shorter waits.
    pub(super) fn limits_now(&self) -> LaneLimits {
        if !self.draining {
            return self.limits;
        }
        let backoff = Backoff { base: self.limits.backoff.base, max: DRAIN_WAIT_MAX };
        LaneLimits { backoff, park_probe: self.limits.park_probe.min(DRAIN_WAIT_MAX), ..self.limits }
    }

    pub(super) fn abandon(&mut self, now: Instant) {
        while let Some(batch) = self.parts.handoff.pop() {
            self.take_batch(batch, now);
        }
        self.take_letters_back(now);
        self.abandon_spill();
        for queue in self.streams.values_mut() {
            let label = Arc::clone(&queue.stream.label);
            for (events, place) in queue.abandon() {
                label.leave(events, place);
                label.dropped(events, Drop::DrainDeadline);
            }
            // Calls in flight are cut by the end of the process: nobody will know what became of them.
            let totals = label.totals();
            if !queue.in_flight.is_empty() {
                label.leave(totals.in_flight, Place::InFlight);
                label.dropped(totals.in_flight, Drop::DrainDeadline);
            }
        }
    }
}
