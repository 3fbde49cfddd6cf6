//! `/status`: the state of the process as JSON, which docs/status.md describes. It is bounded whatever the relay
//! holds: lists show their first [`ROWS_DEFAULT`] rows, or as many as are asked for, and say how many there are. One
//! look serves everybody who asks within [`LOOK_LASTS`], so that many viewers cost no more than ten looks a second.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::conditions::{Condition, Facts, conditions};
use super::watch::{Counts, LaneRates, Latency, Rates, StreamCounts, StreamRates, Watch};
use super::{Admin, resident_bytes};
use crate::delivery::lane::LaneState;
use crate::delivery::{LaneView, View};
use crate::frame::Reject;
use crate::lifecycle::Stage;
use crate::metrics::{Drop, Outcome};
use crate::shard::rejects::{Rejects, Sample};

/// How long a look at the counters is good for.
const LOOK_LASTS: Duration = Duration::from_millis(100);
/// Rows of the list of streams and of that of lanes, unless the query says otherwise.
const ROWS_DEFAULT: usize = 100;
/// The most rows that can be asked for.
const ROWS_MAX: usize = 1_000;
/// The most octets of a name that can be searched for: those of the longest delivery stream's.
const SEARCH_BYTES_MAX: usize = 64;

/// Which rows are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    streams: usize,
    lanes: usize,
    sort: Sort,
    /// Part of a name, in lower case.
    search: String,
}

/// By what the streams are sorted: the greatest first, and by name where they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Rate,
    Received,
    Delivered,
    Dropped,
    Held,
    Oldest,
    Name,
}

impl Sort {
    const ALL: [(&str, Sort); 7] = [
        ("rate", Sort::Rate),
        ("received", Sort::Received),
        ("delivered", Sort::Delivered),
        ("dropped", Sort::Dropped),
        ("held", Sort::Held),
        ("oldest", Sort::Oldest),
        ("name", Sort::Name),
    ];
}

impl Query {
    /// Reads what stands behind the `?`.
    ///
    /// # Errors
    /// A sentence about the first parameter that is not understood.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut query =
            Self { streams: ROWS_DEFAULT, lanes: ROWS_DEFAULT, sort: Sort::Rate, search: String::new() };
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let rows = || {
                let rows = value.parse().ok().filter(|rows| *rows <= ROWS_MAX);
                rows.ok_or_else(|| {
                    format!("{name} must be a number from 0 to {ROWS_MAX}, and is \"{value}\"")
                })
            };
            match &*name {
                "streams" => query.streams = rows()?,
                "lanes" => query.lanes = rows()?,
                "sort" => {
                    let sort = Sort::ALL.into_iter().find(|(word, _)| *word == value);
                    let words = || Sort::ALL.map(|(word, _)| word).join(", ");
                    query.sort = sort.ok_or_else(|| format!("sort must be one of {}", words()))?.1;
                }
                "search" if value.len() <= SEARCH_BYTES_MAX => query.search = value.to_ascii_lowercase(),
                "search" => return Err(format!("search takes at most {SEARCH_BYTES_MAX} octets")),
                _ => {
                    return Err(format!(
                        "there is no parameter {name}; there are streams, lanes, sort and search"
                    ));
                }
            }
        }
        Ok(query)
    }

    fn matches(&self, name: &str) -> bool {
        self.search.is_empty() || name.to_ascii_lowercase().contains(&self.search)
    }
}

/// One look at everything, from which any query can be answered.
#[derive(Debug)]
pub(super) struct Look {
    at: Instant,
    time: SystemTime,
    counts: Arc<Counts>,
    rates: Arc<Rates>,
    latency: Latency,
    view: View,
    busy_ratios: Vec<f64>,
    resident_bytes: u64,
}

/// The last look, and what rates are told from.
#[derive(Debug)]
pub(super) struct Looker {
    last: Option<Arc<Look>>,
    watch: Watch,
}

impl Looker {
    pub(super) fn new(metrics: &crate::metrics::Metrics) -> Self {
        Self { last: None, watch: Watch::new(metrics) }
    }

    /// A look that is not older than [`LOOK_LASTS`].
    pub(super) async fn look(&mut self, admin: &Admin) -> Arc<Look> {
        if let Some(last) = self.last.as_ref().filter(|last| last.at.elapsed() < LOOK_LASTS) {
            return Arc::clone(last);
        }
        let view = admin.view().await;
        let at = Instant::now();
        let counts = Counts::of(&admin.shared.metrics, at);
        let (rates, latency) = self.watch.look(&counts);
        let look = Arc::new(Look {
            at,
            time: SystemTime::now(),
            counts,
            rates,
            latency,
            view,
            busy_ratios: admin.busy_ratios(at),
            resident_bytes: resident_bytes(),
        });
        self.last = Some(Arc::clone(&look));
        look
    }
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Status<'a> {
    version: &'static str,
    stage: Stage,
    host: &'a str,
    pid: u32,
    started_at: f64,
    uptime_seconds: f64,
    /// When this was looked at.
    at: f64,
    /// How long the time is over which rates are taken.
    window_seconds: f64,
    io_driver: &'static str,
    destination: &'a str,
    conditions: Vec<Condition>,
    totals: Totals,
    rates: TotalRates,
    held: u64,
    held_by_place: Places,
    oldest_held_seconds: Option<f64>,
    dropped: BTreeMap<&'static str, u64>,
    rejected: BTreeMap<&'static str, Rejected>,
    latency: &'a Latency,
    memory: MemoryStatus,
    spool: Option<SpoolStatus>,
    connections: Connections<'a>,
    shards: Vec<ShardStatus>,
    lanes_known: usize,
    lanes_by_state: BTreeMap<&'static str, usize>,
    lanes: Vec<LaneStatus<'a>>,
    streams_known: usize,
    /// How many names the search has found.
    streams_found: usize,
    streams: Vec<StreamStatus<'a>>,
}

#[derive(Debug, Default, Serialize)]
struct Totals {
    received: u64,
    recovered: u64,
    delivered: u64,
    dropped: u64,
    rejected: u64,
    possible_duplicates: u64,
    received_bytes: u64,
    payload_bytes_delivered: u64,
    billed_bytes: u64,
    calls: u64,
}

#[derive(Debug, Serialize)]
struct TotalRates {
    received: f64,
    delivered: f64,
    dropped: f64,
    rejected: f64,
    received_bytes: f64,
    payload_bytes_delivered: f64,
    spool_bytes: f64,
}

/// Events held, by where.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Places {
    open: u64,
    queued: u64,
    in_flight: u64,
    retry: u64,
    spool: u64,
}

#[derive(Debug, Serialize)]
struct Rejected {
    count: u64,
    frames: Vec<RejectedFrame>,
}

#[derive(Debug, Serialize)]
struct RejectedFrame {
    at: f64,
    peer: Option<String>,
    /// Escaped as in a Rust byte string.
    frame: String,
    is_cut: bool,
}

#[derive(Debug, Serialize)]
struct MemoryStatus {
    limit_bytes: u64,
    events_limit_bytes: u64,
    events_bytes: u64,
    partial_bytes: u64,
    resident_bytes: u64,
}

#[derive(Debug, Serialize)]
struct SpoolStatus {
    bytes: u64,
    limit_bytes: u64,
    events: u64,
    oldest_seconds: Option<f64>,
    /// Whether the last that was written failed.
    is_failing: bool,
    damaged_segments: u64,
}

#[derive(Debug, Serialize)]
struct Connections<'a> {
    open: u64,
    paused: u64,
    opened: u64,
    refused: u64,
    failed: u64,
    stalled: u64,
    health_probes: u64,
    listeners: Vec<Listener<'a>>,
}

#[derive(Debug, Serialize)]
struct Listener<'a> {
    listener: &'a str,
    open: u64,
}

#[derive(Debug, Serialize)]
struct ShardStatus {
    shard: usize,
    busy_ratio: f64,
    connections: u64,
    received_bytes_per_second: f64,
}

#[derive(Debug, Serialize)]
struct LaneStatus<'a> {
    delivery_stream: &'a str,
    state: &'static str,
    calls_in_flight: usize,
    /// Null where there is no limit.
    rate_limit_bytes_per_second: Option<f64>,
    streams: usize,
    /// Null where the lane has no metrics label of its own.
    calls_per_second: Option<f64>,
    records_per_second: Option<f64>,
    last_error: Option<&'a str>,
    last_error_outcome: Option<&'static str>,
    last_error_seconds_ago: Option<f64>,
}

#[derive(Debug, Serialize)]
struct StreamStatus<'a> {
    stream: &'a str,
    received: u64,
    recovered: u64,
    delivered: u64,
    dropped: u64,
    held: Places,
    oldest_held_seconds: Option<f64>,
    received_per_second: f64,
    delivered_per_second: f64,
    bytes_delivered_per_second: f64,
}

impl Look {
    /// The answer to a query.
    pub(super) fn status<'a>(&'a self, admin: &'a Admin, query: &Query) -> Status<'a> {
        let held_by_place = self.held_by_place();
        let held = held_by_place.sum();
        let spool = self.spool(admin, held_by_place.spool);
        let connections = self.connections(admin);
        let oldest_held_seconds = self.view.ages.greatest().map(|age| age.as_secs_f64());
        let (streams_found, streams) = self.streams(query);
        let seconds_since_1970 =
            |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let uptime = self.at.saturating_duration_since(admin.shared.metrics.epoch);
        let stage = admin.lifecycle.stage();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            stage,
            host: &admin.host,
            pid: std::process::id(),
            started_at: seconds_since_1970(self.time) - uptime.as_secs_f64(),
            uptime_seconds: uptime.as_secs_f64(),
            at: seconds_since_1970(self.time),
            window_seconds: self.rates.window.as_secs_f64(),
            io_driver: admin.driver,
            destination: &admin.destination_name,
            conditions: conditions(&Facts {
                stage,
                destination: &admin.destination_name,
                held,
                oldest_seconds: oldest_held_seconds,
                lanes: &self.view.lanes,
                now: self.at,
                rates: &self.rates,
                spool_bytes: spool.as_ref().map_or(0, |spool| spool.bytes),
                spool_limit: spool.as_ref().map_or(0, |spool| spool.limit_bytes),
                is_config_current: admin.shared.metrics.reloads.is_current.load(Relaxed),
                spool_is_failing: spool.as_ref().is_some_and(|spool| spool.is_failing),
                spool_damaged: spool.as_ref().map_or(0, |spool| spool.damaged_segments),
                memory_used: admin.shared.memory.used(),
                memory_limit: admin.plan.events,
                paused: connections.paused,
                credentials: self.credentials(admin),
                busy_ratios: &self.busy_ratios,
            }),
            totals: self.totals(),
            rates: self.total_rates(),
            held,
            held_by_place,
            oldest_held_seconds,
            dropped: self.dropped(),
            rejected: self.rejected(admin),
            latency: &self.latency,
            memory: MemoryStatus {
                limit_bytes: admin.plan.total,
                events_limit_bytes: admin.plan.events,
                events_bytes: admin.shared.memory.used(),
                partial_bytes: admin.shared.memory.partial(),
                resident_bytes: self.resident_bytes,
            },
            spool,
            connections,
            shards: self.shards(admin),
            lanes_known: self.view.lanes.len(),
            lanes_by_state: self.lanes_by_state(),
            lanes: self.lanes(query),
            streams_known: self.counts.streams.len(),
            streams_found,
            streams,
        }
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals {
            rejected: self.counts.rejected.iter().sum(),
            received_bytes: self.counts.shards.iter().sum(),
            calls: self.counts.lanes.iter().map(|lane| lane.calls.iter().sum::<u64>()).sum(),
            ..Totals::default()
        };
        for stream in &self.counts.streams {
            totals.received += stream.totals.received;
            totals.recovered += stream.totals.recovered;
            totals.delivered += stream.totals.delivered;
            totals.dropped += stream.totals.dropped_in_all();
            totals.possible_duplicates += stream.resent;
            totals.payload_bytes_delivered += stream.payload_bytes;
            totals.billed_bytes += stream.billed_bytes;
        }
        totals
    }

    fn total_rates(&self) -> TotalRates {
        let rates = &self.rates;
        TotalRates {
            received: rates.total.received,
            delivered: rates.total.delivered,
            dropped: rates.total.dropped,
            rejected: rates.rejected.iter().sum(),
            received_bytes: rates.shards.iter().sum(),
            payload_bytes_delivered: rates.total.payload_bytes,
            spool_bytes: rates.spool_bytes,
        }
    }

    fn held_by_place(&self) -> Places {
        self.counts.streams.iter().fold(Places::default(), |sum, stream| sum.plus(Places::of(stream)))
    }

    fn dropped(&self) -> BTreeMap<&'static str, u64> {
        let of = |reason: Drop| {
            self.counts.streams.iter().map(|stream| stream.totals.dropped[reason as usize]).sum()
        };
        Drop::ALL.into_iter().map(|reason| (reason.label(), of(reason))).collect()
    }

    fn rejected(&self, admin: &Admin) -> BTreeMap<&'static str, Rejected> {
        let of = |reason: Reject| Rejected {
            count: self.counts.rejected[reason as usize],
            frames: Rejects::last(&admin.shared.rejects, reason).iter().map(RejectedFrame::new).collect(),
        };
        Reject::ALL.into_iter().map(|reason| (reason.label(), of(reason))).collect()
    }

    fn spool(&self, admin: &Admin, events: u64) -> Option<SpoolStatus> {
        let gauges = &admin.shared.metrics.spool;
        let limit_bytes = gauges.limit.load(Relaxed);
        let age = || {
            let oldest =
                gauges.oldest.lock().unwrap_or_else(PoisonError::into_inner).values().min().copied()?;
            let age =
                self.time.duration_since(UNIX_EPOCH).ok()?.saturating_sub(Duration::from_millis(oldest));
            Some(age.as_secs_f64())
        };
        (limit_bytes > 0).then(|| SpoolStatus {
            bytes: self.counts.spool_bytes,
            limit_bytes,
            events,
            oldest_seconds: if events > 0 { age() } else { None },
            is_failing: gauges.failing.load(Relaxed) > 0,
            damaged_segments: gauges.damaged_segments.load(Relaxed),
        })
    }

    fn credentials(&self, admin: &Admin) -> Option<Duration> {
        let expiry = admin.destination.credentials_expiry()?;
        Some(expiry.duration_since(self.time).unwrap_or_default())
    }

    fn connections<'a>(&self, admin: &'a Admin) -> Connections<'a> {
        let metrics = &admin.shared.metrics;
        let sum = |pick: fn(&crate::metrics::ShardCounters) -> u64| metrics.shards.iter().map(pick).sum();
        let listeners: Vec<Listener<'_>> = metrics
            .listeners()
            .iter()
            .zip(&metrics.connections)
            .map(|(listener, cells)| Listener {
                listener,
                open: cells.iter().fold(0, |sum, cell| sum.wrapping_add(cell.get())),
            })
            .collect();
        Connections {
            open: listeners.iter().fold(0, |sum, listener| sum.wrapping_add(listener.open)),
            paused: sum(|shard| shard.paused.get()),
            opened: sum(|shard| shard.opened.get()),
            refused: self.counts.refused,
            failed: sum(|shard| shard.failed.get()),
            stalled: sum(|shard| shard.stalled.get()),
            health_probes: sum(|shard| shard.health_probes.get()),
            listeners,
        }
    }

    fn shards(&self, admin: &Admin) -> Vec<ShardStatus> {
        let connections = |shard: usize| {
            let cells = admin.shared.metrics.connections.iter().map(|cells| cells[shard].get());
            cells.fold(0, u64::wrapping_add)
        };
        let shard = |(shard, busy_ratio): (usize, &f64)| ShardStatus {
            shard,
            busy_ratio: *busy_ratio,
            connections: connections(shard),
            received_bytes_per_second: self.rates.shards.get(shard).copied().unwrap_or(0.0),
        };
        self.busy_ratios.iter().enumerate().map(shard).collect()
    }

    fn lanes_by_state(&self) -> BTreeMap<&'static str, usize> {
        let states = [LaneState::Active, LaneState::BackingOff, LaneState::Parked];
        let of = |state| self.view.lanes.iter().filter(|lane| lane.state == state).count();
        states.into_iter().map(|state| (state_label(state), of(state))).collect()
    }

    /// The lanes that are worst off first, then the busiest.
    fn lanes(&self, query: &Query) -> Vec<LaneStatus<'_>> {
        let rates = |lane: &LaneView| self.rates.lane(&lane.delivery_stream);
        let mut lanes: Vec<(&LaneView, Option<LaneRates>)> =
            self.view.lanes.iter().map(|lane| (lane, rates(lane))).collect();
        let records = |rates: &Option<LaneRates>| rates.map_or(0.0, |rates| rates.records);
        first_by(&mut lanes, query.lanes, |(one, one_rates), (other, other_rates)| {
            let by_state = (other.state as u8).cmp(&(one.state as u8));
            by_state
                .then(records(other_rates).total_cmp(&records(one_rates)))
                .then(one.delivery_stream.cmp(&other.delivery_stream))
        });
        lanes.into_iter().map(|(lane, rates)| LaneStatus::new(lane, rates, self.at)).collect()
    }

    /// How many streams are found, and the first of them.
    fn streams(&self, query: &Query) -> (usize, Vec<StreamStatus<'_>>) {
        let age = |stream: &StreamCounts| {
            let age = self.view.ages.of(&stream.totals.stream);
            (!age.is_zero()).then_some(age.as_secs_f64())
        };
        let found = self.counts.streams.iter().filter(|stream| query.matches(&stream.totals.stream));
        let mut streams: Vec<StreamStatus<'_>> = found
            .map(|stream| StreamStatus::new(stream, self.rates.stream(&stream.totals.stream), age(stream)))
            .collect();
        let found = streams.len();
        first_by(&mut streams, query.streams, |one, other| one.order(other, query.sort));
        (found, streams)
    }
}

/// Leaves the first `most` in order: what is not shown is not sorted.
fn first_by<T>(rows: &mut Vec<T>, most: usize, order: impl Fn(&T, &T) -> Ordering) {
    if rows.len() > most && most > 0 {
        rows.select_nth_unstable_by(most - 1, &order);
    }
    rows.truncate(most);
    rows.sort_unstable_by(order);
}

fn state_label(state: LaneState) -> &'static str {
    match state {
        LaneState::Active => "active",
        LaneState::BackingOff => "backing_off",
        LaneState::Parked => "parked",
    }
}

impl Places {
    fn of(stream: &StreamCounts) -> Self {
        let totals = &stream.totals;
        Self {
            open: totals.open,
            queued: totals.queued,
            in_flight: totals.in_flight,
            retry: totals.retry,
            spool: totals.spool,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            open: self.open + other.open,
            queued: self.queued + other.queued,
            in_flight: self.in_flight + other.in_flight,
            retry: self.retry + other.retry,
            spool: self.spool + other.spool,
        }
    }

    fn sum(self) -> u64 {
        self.open + self.queued + self.in_flight + self.retry + self.spool
    }
}

/// Printable ASCII as it is, everything else escaped.
fn readable(octets: &[u8]) -> String {
    let mut text = String::new();
    for octet in octets {
        match octet {
            b'"' | b'\'' => text.push(char::from(*octet)),
            other => text.extend(other.escape_ascii().map(char::from)),
        }
    }
    text
}

impl RejectedFrame {
    fn new(sample: &Sample) -> Self {
        Self {
            at: sample.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            peer: sample.peer.map(|peer| peer.to_string()),
            frame: readable(&sample.head),
            is_cut: sample.is_cut,
        }
    }
}

impl<'a> LaneStatus<'a> {
    fn new(lane: &'a LaneView, rates: Option<LaneRates>, now: Instant) -> Self {
        let error = lane.last_error.as_ref();
        Self {
            delivery_stream: &lane.delivery_stream,
            state: state_label(lane.state),
            calls_in_flight: lane.in_flight,
            rate_limit_bytes_per_second: lane.rate,
            streams: lane.streams,
            calls_per_second: rates.map(|rates| rates.calls),
            records_per_second: rates.map(|rates| rates.records),
            last_error: error.map(|error| error.message.as_str()),
            last_error_outcome: error.map(|error| Outcome::label(error.outcome)),
            last_error_seconds_ago: error.map(|error| now.saturating_duration_since(error.at).as_secs_f64()),
        }
    }
}

impl<'a> StreamStatus<'a> {
    fn new(stream: &'a StreamCounts, rates: StreamRates, oldest_held_seconds: Option<f64>) -> Self {
        Self {
            stream: &stream.totals.stream,
            received: stream.totals.received,
            recovered: stream.totals.recovered,
            delivered: stream.totals.delivered,
            dropped: stream.totals.dropped_in_all(),
            held: Places::of(stream),
            oldest_held_seconds,
            received_per_second: rates.received,
            delivered_per_second: rates.delivered,
            bytes_delivered_per_second: rates.payload_bytes,
        }
    }

    fn order(&self, other: &Self, sort: Sort) -> Ordering {
        let oldest = |row: &Self| row.oldest_held_seconds.unwrap_or(-1.0);
        let rate = |row: &Self| row.received_per_second.max(row.delivered_per_second);
        let order = match sort {
            Sort::Rate => rate(other).total_cmp(&rate(self)),
            Sort::Received => other.received.cmp(&self.received),
            Sort::Delivered => other.delivered.cmp(&self.delivered),
            Sort::Dropped => other.dropped.cmp(&self.dropped),
            Sort::Held => other.held.sum().cmp(&self.held.sum()),
            Sort::Oldest => oldest(other).total_cmp(&oldest(self)),
            Sort::Name => Ordering::Equal,
        };
        order.then_with(|| self.stream.cmp(other.stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_shown_as_they_came_as_far_as_they_can_be() {
        let shown = [(&b"{\"a\": '1'}"[..], "{\"a\": '1'}"), (b"a\\b\t\xff", "a\\\\b\\t\\xff")];
        shown.into_iter().for_each(|(octets, text)| assert_eq!(readable(octets), text));
    }

    #[test]
    fn a_query_says_which_rows_and_a_wrong_one_what_is_wrong() {
        let query = Query::parse("streams=5&sort=held&search=Prod-%31").expect("all is well");
        assert_eq!((query.streams, query.lanes, query.sort), (5, ROWS_DEFAULT, Sort::Held));
        assert!(query.matches("my-PROD-1") && !query.matches("prod-2"));
        assert_eq!(Query::parse(""), Query::parse("sort=rate&streams=100"));
        for (text, sentence) in [
            ("streams=1001", "streams must be a number from 0 to 1000, and is \"1001\""),
            ("lanes=-1", "lanes must be a number from 0 to 1000"),
            ("sort=size", "sort must be one of rate, received"),
            ("limit=1", "there is no parameter limit"),
        ] {
            let error = Query::parse(text).expect_err(text);
            assert!(error.contains(sentence), "{error}");
        }
    }

    #[test]
    fn only_the_first_rows_are_left_in_order() {
        let numbers = [5, 3, 9, 1, 7];
        for most in 0..7 {
            let mut rows = numbers.to_vec();
            first_by(&mut rows, most, Ord::cmp);
            let mut all = numbers.to_vec();
            all.sort_unstable();
            all.truncate(most);
            assert_eq!(rows, all);
        }
    }
}
