//! What happens each second, told from two looks at counters that only ever grow. Nothing is looked at while nobody
//! asks: a rate is one since the last look that is at least [`WINDOW`] old, whoever took it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::frame::Reject;
use crate::metrics::{Drop, Histogram, Label, LaneCounters, Metrics, Outcome, Totals};

/// Rates are taken over at least this long: a little below a second, so that who asks each second has new ones.
pub(super) const WINDOW: Duration = Duration::from_millis(900);
/// Latencies are those of the last so long, where somebody looked that long ago.
const LATENCY_WINDOW: Duration = Duration::from_secs(10);
/// Looks kept for the latencies.
const LATENCY_LOOKS_MAX: usize = 16;

/// Every counter at one instant.
#[derive(Debug)]
pub(super) struct Counts {
    pub at: Instant,
    /// In the order of their names.
    pub streams: Vec<StreamCounts>,
    /// In the order of their names.
    pub lanes: Vec<LaneCounts>,
    /// Bytes read, by shard.
    pub shards: Vec<u64>,
    pub rejected: [u64; Reject::ALL.len()],
    pub refused: u64,
    pub spool_bytes: u64,
    latencies: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct StreamCounts {
    pub totals: Totals,
    pub payload_bytes: u64,
    pub billed_bytes: u64,
    pub resent: u64,
}

#[derive(Debug)]
pub(super) struct LaneCounts {
    pub name: String,
    pub calls: [u64; Outcome::ALL.len()],
    pub records: u64,
}

impl Counts {
    pub(super) fn of(metrics: &Metrics, at: Instant) -> Arc<Self> {
        let stream = |label: &Arc<Label>| {
            let (payload_bytes, billed_bytes) = label.bytes_delivered();
            StreamCounts {
                totals: label.totals(),
                payload_bytes,
                billed_bytes,
                resent: label.possible_duplicates(),
            }
        };
        let lane = |lane: &Arc<LaneCounters>| LaneCounts {
            name: lane.name().to_owned(),
            calls: lane.calls(),
            records: lane.records_accepted(),
        };
        let shards = &metrics.shards;
        let rejected = |reason| shards.iter().map(|shard| shard.rejected[reason as usize].get()).sum();
        Arc::new(Self {
            at,
            streams: metrics.labels().iter().map(stream).collect(),
            lanes: metrics.lanes().iter().map(lane).collect(),
            shards: shards.iter().map(|shard| shard.received_bytes.get()).collect(),
            rejected: Reject::ALL.map(rejected),
            refused: shards.iter().map(|shard| shard.refused.get()).sum(),
            spool_bytes: metrics.spool.bytes.load(std::sync::atomic::Ordering::Relaxed),
            latencies: metrics.delivery_latency.buckets().1,
        })
    }

    /// How it was when the process started.
    fn none(shards: usize, at: Instant, latency: &Histogram) -> Self {
        Self {
            at,
            streams: Vec::new(),
            lanes: Vec::new(),
            shards: vec![0; shards],
            rejected: Default::default(),
            refused: 0,
            spool_bytes: 0,
            latencies: vec![0; latency.buckets().1.len()],
        }
    }
}

/// What happened each second between two looks.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// How long the looks were apart.
    pub window: Duration,
    pub streams: Vec<(String, StreamRates)>,
    pub lanes: Vec<(String, LaneRates)>,
    /// Bytes read a second, by shard.
    pub shards: Vec<f64>,
    /// Of all streams.
    pub total: StreamRates,
    pub dropped: [f64; Drop::ALL.len()],
    pub rejected: [f64; Reject::ALL.len()],
    pub refused: f64,
    /// Below zero where it empties.
    pub spool_bytes: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StreamRates {
    pub received: f64,
    pub delivered: f64,
    pub dropped: f64,
    pub payload_bytes: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct LaneRates {
    pub calls: f64,
    pub records: f64,
}

impl Rates {
    fn between(before: &Counts, after: &Counts) -> Self {
        let window = after.at.saturating_duration_since(before.at);
        let per_second = |before: u64, after: u64| after.saturating_sub(before) as f64 / window.as_secs_f64();
        let mut rates = Self { window, ..Self::default() };
        for now in &after.streams {
            let then = find(&before.streams, &now.totals.stream, |stream| &stream.totals.stream);
            let of = |pick: fn(&StreamCounts) -> u64| per_second(then.map_or(0, pick), pick(now));
            let stream = StreamRates {
                received: of(|stream| stream.totals.received),
                delivered: of(|stream| stream.totals.delivered),
                dropped: of(|stream| stream.totals.dropped_in_all()),
                payload_bytes: of(|stream| stream.payload_bytes),
            };
            rates.total.add(stream);
            for (index, dropped) in now.totals.dropped.into_iter().enumerate() {
                rates.dropped[index] +=
                    per_second(then.map_or(0, |then| then.totals.dropped[index]), dropped);
            }
            rates.streams.push((now.totals.stream.clone(), stream));
        }
        for now in &after.lanes {
            let then = find(&before.lanes, &now.name, |lane| &lane.name);
            let calls = |lane: &LaneCounts| lane.calls.iter().sum();
            let lane = LaneRates {
                calls: per_second(then.map_or(0, calls), calls(now)),
                records: per_second(then.map_or(0, |lane| lane.records), now.records),
            };
            rates.lanes.push((now.name.clone(), lane));
        }
        let pairs = before.shards.iter().zip(&after.shards);
        rates.shards = pairs.map(|(before, after)| per_second(*before, *after)).collect();
        for (rate, (before, after)) in
            rates.rejected.iter_mut().zip(before.rejected.iter().zip(after.rejected))
        {
            *rate = per_second(*before, after);
        }
        rates.refused = per_second(before.refused, after.refused);
        rates.spool_bytes = (after.spool_bytes as f64 - before.spool_bytes as f64) / window.as_secs_f64();
        rates
    }

    pub(super) fn stream(&self, name: &str) -> StreamRates {
        find(&self.streams, name, |(name, _)| name).map_or_else(StreamRates::default, |(_, rates)| *rates)
    }

    /// None where the lane shares its counters with others.
    pub(super) fn lane(&self, name: &str) -> Option<LaneRates> {
        find(&self.lanes, name, |(name, _)| name).map(|(_, rates)| *rates)
    }
}

impl StreamRates {
    fn add(&mut self, other: Self) {
        self.received += other.received;
        self.delivered += other.delivered;
        self.dropped += other.dropped;
        self.payload_bytes += other.payload_bytes;
    }
}

/// Finds by name in what is in the order of names.
fn find<'a, T>(all: &'a [T], name: &str, name_of: impl Fn(&T) -> &String) -> Option<&'a T> {
    all.binary_search_by(|one| name_of(one).as_str().cmp(name)).ok().map(|index| &all[index])
}

/// The last looks, and what they say.
#[derive(Debug)]
pub(super) struct Watch {
    before: Arc<Counts>,
    rates: Arc<Rates>,
    /// When, and the buckets of the latencies then.
    latencies: VecDeque<(Instant, Vec<u64>)>,
    bounds_seconds: &'static [f64],
}

/// What the latencies of a while were, as Prometheus' `histogram_quantile` reckons them.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(super) struct Latency {
    window_seconds: f64,
    /// Events delivered meanwhile.
    events: u64,
    /// Null where no event was.
    p50_seconds: Option<f64>,
    p90_seconds: Option<f64>,
    p99_seconds: Option<f64>,
    p999_seconds: Option<f64>,
}

impl Watch {
    /// A watch over a process that has started at the epoch of its metrics.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let before = Counts::none(metrics.shards.len(), metrics.epoch, &metrics.delivery_latency);
        Self {
            latencies: VecDeque::from([(before.at, before.latencies.clone())]),
            before: Arc::new(before),
            rates: Arc::default(),
            bounds_seconds: metrics.delivery_latency.buckets().0,
        }
    }

    /// What counters say now: rates of the last whole window, and latencies.
    pub(super) fn look(&mut self, now: &Arc<Counts>) -> (Arc<Rates>, Latency) {
        if now.at.saturating_duration_since(self.before.at) >= WINDOW {
            self.rates = Arc::new(Rates::between(&self.before, now));
            self.before = Arc::clone(now);
            self.latencies.push_back((now.at, now.latencies.clone()));
            let is_old = |at: Instant| now.at.saturating_duration_since(at) >= LATENCY_WINDOW;
            while self.latencies.len() > LATENCY_LOOKS_MAX
                || self.latencies.get(1).is_some_and(|(at, _)| is_old(*at))
            {
                self.latencies.pop_front();
            }
        }
        (Arc::clone(&self.rates), self.latency(now))
    }

    fn latency(&self, now: &Counts) -> Latency {
        let Some((since, before)) = self.latencies.front() else { return Latency::default() };
        let counts: Vec<u64> =
            now.latencies.iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).collect();
        let quantile = |share| quantile(self.bounds_seconds, &counts, share);
        Latency {
            window_seconds: now.at.saturating_duration_since(*since).as_secs_f64(),
            events: counts.iter().sum(),
            p50_seconds: quantile(0.5),
            p90_seconds: quantile(0.9),
            p99_seconds: quantile(0.99),
            p999_seconds: quantile(0.999),
        }
    }
}

/// The value below which `share` of the observations lie, on a straight line within its bucket; beyond the last bound,
/// that bound.
fn quantile(bounds: &[f64], counts: &[u64], share: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = share * total as f64;
    let mut below = 0.0;
    for (index, bound) in bounds.iter().enumerate() {
        let count = counts[index] as f64;
        if below + count >= rank && count > 0.0 {
            let from = if index == 0 { 0.0 } else { bounds[index - 1] };
            return Some(from + (bound - from) * ((rank - below) / count));
        }
        below += count;
    }
    bounds.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Arc<Metrics> {
        Metrics::new(Instant::now(), 1, vec!["test".to_owned()], 10)
    }

    #[test]
    fn rates_are_those_of_the_last_whole_window() {
        let metrics = metrics();
        let (mut watch, start) = (Watch::new(&metrics), metrics.epoch);
        let look = |watch: &mut Watch, milliseconds| {
            watch.look(&Counts::of(&metrics, start + Duration::from_millis(milliseconds))).0
        };
        metrics.label("b").delivered(100, 1_000, 0);
        metrics.label("a").dropped(10, Drop::Memory);
        let rates = look(&mut watch, 2_000);
        assert_eq!((rates.stream("b").delivered, rates.stream("b").payload_bytes), (50.0, 500.0));
        assert_eq!((rates.stream("a").dropped, rates.dropped[Drop::Memory as usize]), (5.0, 5.0));
        metrics.label("b").delivered(300, 0, 0);
        assert_eq!(look(&mut watch, 2_500).stream("b").delivered, 50.0, "the window is not over");
        assert_eq!(look(&mut watch, 3_000).stream("b").delivered, 300.0);
        assert_eq!(look(&mut watch, 4_000).total, StreamRates::default());
        assert_eq!(rates.stream("c"), StreamRates::default());
    }

    #[test]
    fn a_lane_that_shares_its_counters_has_no_rates() {
        let metrics = metrics();
        let mut watch = Watch::new(&metrics);
        metrics.lane("prod").call(Outcome::Ok);
        metrics.lane("prod").records(500, Outcome::Ok);
        let rates = watch.look(&Counts::of(&metrics, metrics.epoch + Duration::from_secs(1))).0;
        assert_eq!(rates.lane("prod"), Some(LaneRates { calls: 1.0, records: 500.0 }));
        assert_eq!(rates.lane("beyond the labels"), None);
    }

    #[test]
    fn quantiles_lie_on_a_line_within_their_bucket() {
        let bounds = [1.0, 2.0, 4.0];
        assert_eq!(quantile(&bounds, &[0, 0, 0, 0], 0.5), None);
        assert_eq!(quantile(&bounds, &[0, 10, 0, 0], 0.5), Some(1.5));
        assert_eq!(quantile(&bounds, &[5, 0, 5, 0], 0.9), Some(3.6));
        assert_eq!(quantile(&bounds, &[0, 0, 0, 3], 0.5), Some(4.0), "beyond all bounds is the last");
    }

    #[test]
    fn latencies_are_those_of_the_last_seconds() {
        let metrics = metrics();
        let (mut watch, start) = (Watch::new(&metrics), metrics.epoch);
        metrics.delivery_latency.observe_weighted(Duration::from_secs(100), 1_000);
        for second in 1..30 {
            metrics.delivery_latency.observe_weighted(Duration::from_millis(7), 10);
            let counts = Counts::of(&metrics, start + Duration::from_secs(second));
            let latency = watch.look(&counts).1;
            let is_over = second > LATENCY_WINDOW.as_secs();
            assert_eq!(latency.p50_seconds.is_some_and(|p50| p50 < 0.01), is_over, "{second}: {latency:?}");
            assert!(watch.latencies.len() <= LATENCY_LOOKS_MAX);
        }
    }
}
