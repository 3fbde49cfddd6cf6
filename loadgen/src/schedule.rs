//! When each event is due and on which connection: closed formulas of its index, so that nothing that happens
//! while sending can move them (an open loop), and nothing has to be stored for events not yet built.
//!
//! Event `i` of a run is planned for `start + i / rate` and belongs to connection `i mod N`; the `k`-th event of
//! connection `c` is therefore event `k · N + c`. Flat out there is no plan: then only the assignment holds.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::units::Rate;

/// Wall-clock time that never jumps: the time of day at its start, continued by the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base: Instant,
    base_unix_ns: u64,
}

impl Clock {
    /// A clock that agrees with the time of day now.
    pub fn new() -> Self {
        Self { base: Instant::now(), base_unix_ns: unix_ns() }
    }

    /// Nanoseconds since the Unix epoch.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.base_unix_ns + self.base.elapsed().as_nanos() as u64
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// The time of day, in nanoseconds since the Unix epoch.
pub fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The plan of a run. Times are nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start_ns: u64,
    /// Time between two events; 0 is flat out.
    interval_ns: f64,
    /// Events in all; `u64::MAX` where only time ends the run.
    total: u64,
    connections: u64,
    /// When sending stops, whatever is still due.
    stop_ns: u64,
}

/// How long after a planned end the last events may still be written before they count as unsent.
const GRACE: Duration = Duration::from_millis(250);

impl Schedule {
    /// A schedule that starts now. Without a number of events or a duration it never ends; where both are given
    /// the first to be reached ends it.
    pub fn starting(
        start_ns: u64,
        rate: Rate,
        events: Option<u64>,
        duration: Option<Duration>,
        connections: usize,
    ) -> Self {
        let duration_ns = duration.map(|duration| duration.as_nanos() as u64);
        let (interval_ns, by_time, grace) = match rate {
            Rate::Max => (0.0, None, 0),
            Rate::PerSecond(rate) => {
                let by_time = duration.map(|duration| (duration.as_secs_f64() * rate).floor() as u64);
                (1e9 / rate, by_time, GRACE.as_nanos() as u64)
            }
        };
        let total = events.unwrap_or(u64::MAX).min(by_time.unwrap_or(u64::MAX));
        let stop_ns = duration_ns.map_or(u64::MAX, |ns| start_ns.saturating_add(ns).saturating_add(grace));
        Self { start_ns, interval_ns, total, connections: connections as u64, stop_ns }
    }

    /// Whether events are due as fast as they can be written.
    pub fn flat_out(&self) -> bool {
        self.interval_ns == 0.0
    }

    /// Events planned in all; `None` where only time ends the run.
    pub fn total(&self) -> Option<u64> {
        (self.total != u64::MAX).then_some(self.total)
    }

    /// When the first event is planned.
    pub fn start_ns(&self) -> u64 {
        self.start_ns
    }

    /// Whether sending has to stop.
    pub fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.stop_ns
    }

    /// When this event, counted over all connections, is planned.
    #[inline]
    pub fn planned_ns(&self, event: u64) -> u64 {
        self.start_ns + (event as f64 * self.interval_ns) as u64
    }

    /// How many events, over all connections, are due by now.
    #[inline]
    pub fn due(&self, now_ns: u64) -> u64 {
        if self.flat_out() {
            return self.total;
        }
        match now_ns.checked_sub(self.start_ns) {
            Some(elapsed) => self.total.min((elapsed as f64 / self.interval_ns) as u64 + 1),
            None => 0,
        }
    }

    /// How many of the first `events` events belong to this connection.
    #[inline]
    pub fn share(&self, events: u64, connection: u32) -> u64 {
        match events {
            u64::MAX => u64::MAX,
            events => events.saturating_sub(u64::from(connection)).div_ceil(self.connections),
        }
    }

    /// The number, over all connections, of the `index`-th event of this connection.
    #[inline]
    pub fn event(&self, connection: u32, index: u64) -> u64 {
        index * self.connections + u64::from(connection)
    }

    /// The connection of this event.
    pub fn connection(&self, event: u64) -> u32 {
        (event % self.connections) as u32
    }
}

/// How the events of a connection are spread over the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Assignment {
    /// Event `k` of connection `c` goes to stream `(c + k) mod S`.
    RoundRobin,
    /// All events of connection `c` go to stream `c mod S`.
    OneStreamPerConnection,
}

impl Assignment {
    /// The stream of this event and its sequence within (connection, stream).
    #[inline]
    pub fn place(self, streams: usize, connection: u32, index: u64) -> (usize, u64) {
        let streams = streams as u64;
        let connection = u64::from(connection);
        match self {
            Self::RoundRobin => (((connection + index) % streams) as usize, index / streams),
            Self::OneStreamPerConnection => ((connection % streams) as usize, index),
        }
    }

    /// How many of the first `events` events of this connection go to this stream: its sequences are `0..n`.
    pub fn share(self, streams: usize, connection: u32, events: u64, stream: usize) -> u64 {
        let (streams, stream, connection) = (streams as u64, stream as u64, u64::from(connection));
        match self {
            Self::RoundRobin => {
                let first = (stream + streams - connection % streams) % streams;
                events.saturating_sub(first).div_ceil(streams)
            }
            Self::OneStreamPerConnection if connection % streams == stream => events,
            Self::OneStreamPerConnection => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_what_counting_gives() {
        for assignment in [Assignment::RoundRobin, Assignment::OneStreamPerConnection] {
            for (streams, connection, events) in
                [(1, 0, 9), (3, 0, 10), (3, 5, 10), (7, 2, 3), (16, 31, 1_000)]
            {
                let mut next = vec![0; streams];
                for index in 0..events {
                    let (stream, sequence) = assignment.place(streams, connection, index);
                    assert_eq!(sequence, next[stream], "sequences have no gaps");
                    next[stream] += 1;
                }
                let shares: Vec<u64> =
                    (0..streams).map(|s| assignment.share(streams, connection, events, s)).collect();
                assert_eq!(shares, next);
            }
        }
    }

    #[test]
    fn every_event_belongs_to_one_connection() {
        let schedule = Schedule::starting(0, Rate::Max, Some(10), None, 4);
        assert_eq!([0, 1, 2, 3].map(|c| schedule.share(10, c)), [3, 3, 2, 2]);
        for event in 0..10 {
            let connection = schedule.connection(event);
            assert_eq!(schedule.event(connection, event / 4), event);
        }
    }

    #[test]
    fn the_plan_ignores_what_was_sent() {
        let schedule = Schedule::starting(1_000, Rate::PerSecond(1e6), Some(100), None, 4);
        assert_eq!(schedule.due(999), 0);
        assert_eq!(schedule.due(1_000), 1);
        assert_eq!(schedule.due(3_500), 3);
        assert_eq!(schedule.due(u64::MAX), 100);
        assert_eq!(schedule.planned_ns(2), 3_000);
    }

    #[test]
    fn a_duration_and_a_rate_give_a_number_of_events() {
        let schedule = Schedule::starting(0, Rate::PerSecond(10.0), None, Some(Duration::from_secs(3)), 2);
        assert_eq!(schedule.total(), Some(30));
        assert!(!schedule.is_over(3_000_000_000) && schedule.is_over(3_300_000_000));
        let flat = Schedule::starting(0, Rate::Max, None, Some(Duration::from_secs(3)), 2);
        assert_eq!(flat.total(), None);
        assert!(flat.is_over(3_000_000_000));
    }
}
