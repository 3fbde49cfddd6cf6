//! Accepted events by time: for each tenth of a second how late the events were that were planned in it, when the
//! last of them came, and how many came in it. From it a report tells what an outage did, and how long its backlog
//! took. It knows neither streams nor calls.
//!
//! Invariant: at most `SLOTS_MAX` slots are kept; what lies beyond counts in the last.

use hdrhistogram::Histogram;

/// The length of a slot, in nanoseconds.
const SLOT_NS: u64 = 100_000_000;
/// The most slots: nearly three hours.
const SLOTS_MAX: usize = 100_000;

#[derive(Debug, Clone)]
struct Slot {
    /// Latencies of the events planned in it, in µs, to two digits.
    latency: Histogram<u32>,
    /// When the last event planned in it was accepted, in nanoseconds since 1970.
    last_ns: u64,
    /// Events accepted in it.
    arrived: u64,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// The start of the first slot, in nanoseconds since 1970; known with the first event.
    origin_ns: Option<u64>,
    slots: Vec<Slot>,
}

impl Timeline {
    /// Notes an event that was planned and accepted at these times, in nanoseconds since 1970.
    pub fn note(&mut self, planned_ns: u64, accepted_ns: u64) {
        self.origin_ns.get_or_insert(planned_ns / SLOT_NS * SLOT_NS);
        let planned = self.slot(planned_ns);
        planned.last_ns = planned.last_ns.max(accepted_ns);
        // The histogram grows by itself; only beyond a u64 of µs would there be an error.
        let _ = planned.latency.record(accepted_ns.saturating_sub(planned_ns) / 1_000);
        self.slot(accepted_ns).arrived += 1;
    }

    fn slot(&mut self, at_ns: u64) -> &mut Slot {
        let index = self.index(at_ns).min(SLOTS_MAX - 1);
        while self.slots.len() <= index {
            let latency = Histogram::new(2).expect("two digits are legal");
            self.slots.push(Slot { latency, last_ns: 0, arrived: 0 });
        }
        &mut self.slots[index]
    }

    fn index(&self, at_ns: u64) -> usize {
        (at_ns.saturating_sub(self.origin_ns.unwrap_or(at_ns)) / SLOT_NS) as usize
    }

    /// The start of the first slot, in nanoseconds since 1970; `None` where nothing was noted.
    pub fn origin_ns(&self) -> Option<u64> {
        self.origin_ns
    }

    /// When the first event came that was accepted at `from_ns` or later, to the tenth of a second.
    pub fn first_arrival(&self, from_ns: u64) -> Option<u64> {
        let from = self.index(from_ns);
        let found = self.slots.iter().skip(from).position(|slot| slot.arrived > 0)?;
        Some(self.origin_ns? + (from + found) as u64 * SLOT_NS)
    }

    /// Events accepted before this moment, to the tenth of a second.
    pub fn arrived_before(&self, at_ns: u64) -> u64 {
        self.slots.iter().take(self.index(at_ns)).map(|slot| slot.arrived).sum()
    }

    /// When the last event was accepted that was planned before this moment; the moment itself if none was.
    pub fn last_of_planned_before(&self, at_ns: u64) -> u64 {
        self.slots.iter().take(self.index(at_ns)).map(|slot| slot.last_ns).max().unwrap_or(0).max(at_ns)
    }

    /// This quantile of the latencies of what was planned between two moments, in milliseconds; `None` where
    /// nothing was.
    pub fn latency_ms(&self, from_ns: u64, to_ns: u64, quantile: f64) -> Option<f64> {
        let mut sum = Histogram::<u32>::new(2).expect("two digits are legal");
        let (from, to) = (self.index(from_ns), self.index(to_ns).max(self.index(from_ns)));
        for slot in self.slots.iter().take(to).skip(from) {
            sum.add(&slot.latency).expect("a histogram that grows takes what another has taken");
        }
        (!sum.is_empty()).then(|| sum.value_at_quantile(quantile) as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_800_000_000_000_000_000;

    fn at(millis: u64) -> u64 {
        START + millis * 1_000_000
    }

    #[test]
    fn an_outage_is_seen_from_both_sides() {
        let mut timeline = Timeline::default();
        // Ten events a second; between 1 s and 3 s nothing is accepted, the backlog comes at 3.5 s.
        for number in 0..50 {
            let planned = number * 100;
            let accepted = if (1_000..3_000).contains(&planned) { 3_500 } else { planned + 50 };
            timeline.note(at(planned), at(accepted));
        }
        assert_eq!(timeline.first_arrival(at(1_000)), Some(at(3_000)));
        assert_eq!(timeline.arrived_before(at(3_000)), 10);
        assert_eq!(timeline.last_of_planned_before(at(3_000)), at(3_500));
        assert_eq!(timeline.first_arrival(at(9_000)), None);
        let near = |found: Option<f64>, expected: f64| (found.unwrap() / expected - 1.0).abs() < 0.02;
        assert!(near(timeline.latency_ms(at(0), at(1_000), 0.99), 50.0));
        assert!(near(timeline.latency_ms(at(1_000), at(1_100), 1.0), 2_500.0));
        assert_eq!(timeline.latency_ms(at(7_000), at(8_000), 0.5), None);
    }
}
