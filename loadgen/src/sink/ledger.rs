//! The books of the sink: what was accepted, event by event, and how calls ended. It knows nothing of HTTP. What
//! of it becomes JSON is in [`super::totals`].
//!
//! Invariants: an accepted line is counted in exactly one of `events_accepted`, `duplicate_events`,
//! `corrupted_events`, `foreign_events` and `untracked_events`; the bit sets together hold at most
//! [`BIT_SET_BYTES_MAX`].

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use foldhash::fast::RandomState;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::sequences::Sequences;
use super::timeline::Timeline;
use super::totals::{Percentiles, StreamTotals, Totals, Violations};
use crate::event::{self, Event, StreamSeed};

/// How closely accepted events are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Every check sum verified, every event noted: finds what is lost, duplicated, corrupted or reordered.
    Full,
    /// Events counted and their stated check sums added up a stream: cheap, and independent of order.
    Light,
    /// Records and bytes counted; nothing in them is looked at.
    None,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// 200, every record accepted.
    Ok,
    /// 200, some records accepted.
    Partial,
    /// 200, no record accepted.
    Throttled,
    /// 503, nothing accepted.
    Unavailable,
    /// 400 for breaking a rule of the API.
    Refused,
    /// 400 ResourceNotFoundException.
    Missing,
    /// 400 ValidationException for a poisonous record.
    Poisoned,
    /// Accepted, the connection closed without an answer.
    Cut,
    /// The connection closed before the body was read.
    CutEarly,
    /// Accepted, not answered for long, the connection closed.
    Stalled,
    /// Accepted, 200 with nonsense.
    Garbage,
    /// 200 with a wrong FailedPutCount; the entries are right.
    Miscounted,
    /// 500, accepted or not.
    Error500,
    /// The client went away before its body was whole.
    Broken,
}

impl Outcome {
    /// Its name in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partial",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Missing => "missing",
            Self::Poisoned => "poisoned",
            Self::Cut => "cut",
            Self::CutEarly => "cut_early",
            Self::Stalled => "stalled",
            Self::Garbage => "garbage",
            Self::Miscounted => "miscounted",
            Self::Error500 => "error_500",
            Self::Broken => "broken",
        }
    }

    /// The HTTP status that the client saw; `none` where there was no answer.
    pub fn status(self) -> &'static str {
        match self {
            Self::Ok | Self::Partial | Self::Throttled | Self::Garbage | Self::Miscounted => "200",
            Self::Refused | Self::Missing | Self::Poisoned => "400",
            Self::Error500 => "500",
            Self::Unavailable => "503",
            Self::Cut | Self::CutEarly | Self::Stalled | Self::Broken => "none",
        }
    }
}

/// What was counted for one delivery stream, or for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Calls that named it and broke no rule.
    pub calls: u64,
    /// Records accepted.
    pub records_accepted: u64,
    /// Records not accepted in calls that were otherwise understood.
    pub records_failed: u64,
    /// Bytes of the accepted records, before base64.
    pub raw_bytes: u64,
    /// The same with each record rounded up to 5 KiB, as Firehose bills them.
    pub billed_bytes: u64,
    /// Events accepted, each counted once (with `light`: all events).
    pub events_accepted: u64,
    /// Events accepted again.
    pub duplicate_events: u64,
    /// Events that are damaged, or belong to another stream.
    pub corrupted_events: u64,
    /// Lines that were not built by loadgen.
    pub foreign_events: u64,
    /// Good events whose numbers are too high to be noted in bounded memory.
    pub untracked_events: u64,
    /// Events behind a later one of the same connection in their record.
    pub reordered_events: u64,
    /// Accepted records that do not end with LF.
    pub unterminated_records: u64,
    /// Check sums of the accepted events, each event once (with `light`: all), added up modulo 2^64.
    pub check_sum: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.records_accepted += other.records_accepted;
        self.records_failed += other.records_failed;
        self.raw_bytes += other.raw_bytes;
        self.billed_bytes += other.billed_bytes;
        self.events_accepted += other.events_accepted;
        self.duplicate_events += other.duplicate_events;
        self.corrupted_events += other.corrupted_events;
        self.foreign_events += other.foreign_events;
        self.untracked_events += other.untracked_events;
        self.reordered_events += other.reordered_events;
        self.unterminated_records += other.unterminated_records;
        self.check_sum = self.check_sum.wrapping_add(other.check_sum);
    }
}

/// Firehose bills each record in steps of this many bytes.
pub const BILLING_STEP: u64 = 5_120;

/// The most memory for noting which events were accepted: enough for 8 G events.
pub const BIT_SET_BYTES_MAX: u64 = 1 << 30;

/// Streams with a latency histogram of their own; the rest share one.
const LATENCY_STREAMS_MAX: usize = 256;

/// The longest latency told apart, in µs: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Samples of violations kept.
const VIOLATION_SAMPLES_MAX: usize = 100;

/// The most seconds of throughput kept: a day.
const SECONDS_MAX: usize = 86_400;

/// Points of [`Ledger::latency_curve`] for each halving of what is left above.
const CURVE_STEPS_PER_HALVING: u32 = 5;

pub(super) type Latency = Histogram<u64>;

fn latency_histogram() -> Latency {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("these bounds are legal")
}

#[derive(Debug)]
struct DeliveryStream {
    counts: Counts,
    latency: Option<Latency>,
    /// The place of its stream among the streams: several delivery streams may carry one stream.
    stream: usize,
}

/// What was accepted of one stream, whichever delivery stream it came by.
#[derive(Debug)]
struct Stream {
    name: String,
    seed: StreamSeed,
    by_connection: HashMap<u32, Sequences, RandomState>,
}

/// The books.
#[derive(Debug)]
pub struct Ledger {
    check: Check,
    seed: u64,
    started: Instant,
    /// Delivery streams whose name is not the name in the frame.
    names: HashMap<String, String>,
    delivery_streams: HashMap<String, DeliveryStream, RandomState>,
    streams: Vec<Stream>,
    calls_total: u64,
    outcomes: BTreeMap<Outcome, u64>,
    violations: BTreeMap<&'static str, u64>,
    violation_samples: Vec<String>,
    other_latency: Latency,
    /// Kept only where it is asked for, since it costs time for every event.
    timeline: Option<Timeline>,
    events_by_second: Vec<u64>,
    last_accepted: Option<Instant>,
    /// Events accepted so far, over all streams.
    accepted: u64,
    bit_set_words: u64,
    /// Numbers records, from 1.
    record: u64,
}

impl Ledger {
    /// Empty books. `names` gives the stream name in the frame for delivery streams that are named otherwise.
    pub fn new(check: Check, seed: u64, names: HashMap<String, String>) -> Self {
        Self {
            check,
            seed,
            started: Instant::now(),
            names,
            delivery_streams: HashMap::default(),
            streams: Vec::new(),
            calls_total: 0,
            outcomes: BTreeMap::new(),
            violations: BTreeMap::new(),
            violation_samples: Vec::new(),
            other_latency: latency_histogram(),
            timeline: None,
            events_by_second: Vec::new(),
            last_accepted: None,
            accepted: 0,
            bit_set_words: 0,
            record: 0,
        }
    }

    /// Keeps from now on what [`Ledger::timeline`] tells.
    pub fn keep_timeline(&mut self) {
        self.timeline.get_or_insert_default();
    }

    /// Accepted events by time; `None` where that was not asked for.
    pub fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }

    /// Counts a call whose head has arrived, and gives it its number, from 0.
    pub fn begin_call(&mut self) -> u64 {
        self.calls_total += 1;
        self.calls_total - 1
    }

    /// Counts how a call ended.
    pub fn end_call(&mut self, outcome: Outcome) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// Notes a rule broken.
    pub fn violation(&mut self, kind: &'static str, message: &str) {
        *self.violations.entry(kind).or_default() += 1;
        if self.violation_samples.len() < VIOLATION_SAMPLES_MAX {
            self.violation_samples.push(format!("{kind}: {message}"));
        }
    }

    /// Counts a call for a delivery stream, and records of it that were not accepted.
    pub fn stream_call(&mut self, delivery_stream: &str, records_failed: u64) {
        let counts = &mut self.delivery_stream(delivery_stream).counts;
        counts.calls += 1;
        counts.records_failed += records_failed;
    }

    /// Accepts records of a delivery stream at a time in ns since the Unix epoch; `None` leaves latency out.
    pub fn accept<'a>(
        &mut self,
        delivery_stream: &str,
        records: impl Iterator<Item = &'a [u8]>,
        now_ns: Option<u64>,
    ) {
        self.delivery_stream(delivery_stream);
        let delivery = self.delivery_streams.get_mut(delivery_stream).expect("it was just looked up");
        let before = delivery.counts.events_accepted;
        let mut reader = Reader {
            check: self.check,
            stream: &mut self.streams[delivery.stream],
            counts: &mut delivery.counts,
            latency: delivery.latency.as_mut().unwrap_or(&mut self.other_latency),
            timeline: self.timeline.as_mut(),
            bit_set_words: &mut self.bit_set_words,
            record: self.record,
            now_ns,
        };
        records.for_each(|bytes| reader.record(bytes));
        self.record = reader.record;
        let events = delivery.counts.events_accepted - before;
        self.count_second(events);
    }

    fn count_second(&mut self, events: u64) {
        let now = Instant::now();
        self.last_accepted = Some(now);
        self.accepted += events;
        let second = (now.duration_since(self.started).as_secs() as usize).min(SECONDS_MAX - 1);
        if self.events_by_second.len() <= second {
            self.events_by_second.resize(second + 1, 0);
        }
        self.events_by_second[second] += events;
    }

    /// Events accepted so far, each counted once (with `light`: all events).
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Events accepted again so far.
    pub fn duplicates(&self) -> u64 {
        self.delivery_streams.values().map(|delivery| delivery.counts.duplicate_events).sum()
    }

    /// When the last record was accepted.
    pub fn last_accepted(&self) -> Option<Instant> {
        self.last_accepted
    }

    /// How many of these events of a stream were accepted (`full` only): of each connection the sequences below
    /// the number given.
    pub fn accepted_of(&self, stream: &str, sent: impl Iterator<Item = (u32, u64)>) -> u64 {
        let Some(known) = self.streams.iter().find(|known| known.name == stream) else { return 0 };
        let below = |(connection, end): (u32, u64)| {
            known.by_connection.get(&connection).map_or(0, |sequences| sequences.count_below(end))
        };
        sent.map(below).sum()
    }

    /// For each delivery stream the stream it carries, and the check sum of what was accepted.
    pub fn check_sums(&self) -> impl Iterator<Item = (String, u64)> {
        self.delivery_streams
            .values()
            .map(|delivery| (self.streams[delivery.stream].name.clone(), delivery.counts.check_sum))
    }

    /// The delivery stream of this name, which is entered if it is new.
    fn delivery_stream(&mut self, name: &str) -> &mut DeliveryStream {
        if !self.delivery_streams.contains_key(name) {
            let latency = (self.delivery_streams.len() < LATENCY_STREAMS_MAX).then(latency_histogram);
            let stream = self.stream(name);
            let delivery = DeliveryStream { counts: Counts::default(), latency, stream };
            self.delivery_streams.insert(name.to_owned(), delivery);
        }
        self.delivery_streams.get_mut(name).expect("was just inserted")
    }

    /// The place of the stream that this delivery stream carries.
    fn stream(&mut self, delivery_stream: &str) -> usize {
        let name = self.names.get(delivery_stream).map_or(delivery_stream, String::as_str);
        let shared =
            self.names.contains_key(delivery_stream) || self.names.values().any(|other| other == name);
        let known = if shared { self.streams.iter().position(|stream| stream.name == name) } else { None };
        known.unwrap_or_else(|| {
            let seed = StreamSeed::new(name);
            self.streams.push(Stream { name: name.to_owned(), seed, by_connection: HashMap::default() });
            self.streams.len() - 1
        })
    }

    /// Latencies over all streams.
    fn latency(&self) -> Latency {
        let mut latency = self.other_latency.clone();
        for own in self.delivery_streams.values().filter_map(|delivery| delivery.latency.as_ref()) {
            latency.add(own).expect("histograms of the same bounds add up");
        }
        latency
    }

    /// Latency by quantile, for a plot: pairs of a quantile below 1 and milliseconds, five for each halving of
    /// what is left above.
    pub fn latency_curve(&self) -> Vec<(f64, f64)> {
        let latency = self.latency();
        let steps = latency.iter_quantiles(CURVE_STEPS_PER_HALVING);
        let point = |quantile: f64, value: u64| (quantile, value as f64 / 1e3);
        let points = steps.map(|step| point(step.quantile_iterated_to(), step.value_iterated_to()));
        points.filter(|(quantile, _)| *quantile < 1.0).collect()
    }

    /// The books as they stand.
    pub fn totals(&self) -> Totals {
        let mut totals = Counts::default();
        let latency = self.latency();
        self.delivery_streams.values().for_each(|delivery| totals.add(&delivery.counts));
        let streams = self.delivery_streams.iter().map(|(name, delivery)| {
            let stream = &self.streams[delivery.stream];
            (name.clone(), delivery.totals(stream))
        });
        let streams = streams.collect();
        Totals {
            seed: self.seed,
            check: self.check,
            seconds: self.started.elapsed().as_secs_f64(),
            calls: self.calls(),
            calls_by_status: self.calls_by_status(),
            totals,
            streams,
            violations: Violations {
                total: self.violations.values().sum(),
                by_kind: self.violations.clone(),
                samples: self.violation_samples.clone(),
            },
            latency_ms: Percentiles::of(&latency),
            events_by_second: self.events_by_second.clone(),
        }
    }

    fn calls(&self) -> BTreeMap<&'static str, u64> {
        let outcomes = self.outcomes.iter().map(|(outcome, count)| (outcome.name(), *count));
        outcomes.chain([("total", self.calls_total)]).collect()
    }

    fn calls_by_status(&self) -> BTreeMap<&'static str, u64> {
        let mut statuses = BTreeMap::new();
        for (outcome, count) in &self.outcomes {
            *statuses.entry(outcome.status()).or_default() += count;
        }
        statuses
    }
}

impl DeliveryStream {
    fn totals(&self, stream: &Stream) -> StreamTotals {
        StreamTotals {
            counts: self.counts.clone(),
            missing_below_highest: stream.by_connection.values().map(Sequences::gaps).sum(),
            latency_ms: self.latency.as_ref().map(Percentiles::of),
        }
    }
}

/// Reads the records of one call into the books of its stream.
struct Reader<'a> {
    check: Check,
    stream: &'a mut Stream,
    counts: &'a mut Counts,
    latency: &'a mut Latency,
    timeline: Option<&'a mut Timeline>,
    bit_set_words: &'a mut u64,
    record: u64,
    now_ns: Option<u64>,
}

impl Reader<'_> {
    fn record(&mut self, bytes: &[u8]) {
        self.record += 1;
        self.counts.records_accepted += 1;
        self.counts.raw_bytes += bytes.len() as u64;
        self.counts.billed_bytes += (bytes.len() as u64).max(1).next_multiple_of(BILLING_STEP);
        if self.check == Check::None {
            return;
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            self.line(&bytes[start..end]);
            start = end + 1;
        }
        if start < bytes.len() {
            self.counts.unterminated_records += 1;
            self.line(&bytes[start..]);
        }
    }

    #[inline]
    fn line(&mut self, line: &[u8]) {
        match event::parse(line) {
            Some(event) if self.check == Check::Light => self.accepted(&event),
            Some(event) if event::verify(self.stream.seed, line, &event) => self.note(&event),
            Some(_) => self.counts.corrupted_events += 1,
            None if event::looks_generated(line) => self.counts.corrupted_events += 1,
            None => self.counts.foreign_events += 1,
        }
    }

    fn note(&mut self, event: &Event) {
        let sequences = self.stream.by_connection.entry(event.connection).or_default();
        let growth = sequences.growth(event.sequence);
        if growth > BIT_SET_BYTES_MAX / 8 - *self.bit_set_words {
            self.counts.untracked_events += 1;
            return;
        }
        *self.bit_set_words += growth;
        self.counts.reordered_events += u64::from(!sequences.in_order(self.record, event.sequence));
        match sequences.insert(event.sequence) {
            true => self.accepted(event),
            false => self.counts.duplicate_events += 1,
        }
    }

    fn accepted(&mut self, event: &Event) {
        self.counts.events_accepted += 1;
        self.counts.check_sum = self.counts.check_sum.wrapping_add(u64::from(event.check));
        if let Some(now_ns) = self.now_ns {
            self.latency.saturating_record(now_ns.saturating_sub(event.planned_ns) / 1_000);
            if let Some(timeline) = &mut self.timeline {
                timeline.note(event.planned_ns, now_ns);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Builder;
    use crate::units::Sizes;

    const PLANNED_NS: u64 = 1_000_000_000;

    /// The line, with LF, of an event of a connection.
    fn line(stream: &str, connection: u32, sequence: u64) -> Vec<u8> {
        let builder = Builder::new(1, Sizes { min: 100, max: 100 }).unwrap();
        let mut line = Vec::new();
        let event = Event { connection, sequence, planned_ns: PLANNED_NS, check: 0 };
        builder.append(&mut line, StreamSeed::new(stream), sequence, &event);
        line.push(b'\n');
        line
    }

    fn record(lines: &[(u32, u64)]) -> Vec<u8> {
        lines.iter().flat_map(|(connection, sequence)| line("clicks", *connection, *sequence)).collect()
    }

    fn ledger(check: Check) -> Ledger {
        Ledger::new(check, 1, HashMap::new())
    }

    fn accept(ledger: &mut Ledger, stream: &str, record: &[u8]) {
        ledger.accept(stream, std::iter::once(record), Some(PLANNED_NS + 5_000_000));
    }

    #[test]
    fn events_in_any_order_of_records_are_counted_once() {
        let mut ledger = ledger(Check::Full);
        accept(&mut ledger, "clicks", &record(&[(0, 2), (1, 0), (0, 3)]));
        accept(&mut ledger, "clicks", &record(&[(0, 0), (0, 1)]));
        let counts = ledger.totals().totals;
        assert_eq!((counts.events_accepted, counts.duplicate_events, counts.reordered_events), (5, 0, 0));
        assert_eq!((counts.raw_bytes, counts.billed_bytes), (505, 2 * 5_120));
        assert_eq!(ledger.accepted_of("clicks", [(0, 4), (7, 9)].into_iter()), 4);
        accept(&mut ledger, "clicks", &record(&[(0, 1), (0, 9)]));
        let totals = ledger.totals();
        assert_eq!((totals.totals.events_accepted, totals.totals.duplicate_events), (6, 1));
        assert_eq!(totals.streams["clicks"].missing_below_highest, 5);
        assert_eq!(totals.latency_ms.count, 6);
        assert!((4.99..5.01).contains(&totals.latency_ms.p50), "{:?}", totals.latency_ms);
        let curve = ledger.latency_curve();
        assert!(curve.iter().all(|(at, ms)| *at < 1.0 && (4.99..5.01).contains(ms)), "{curve:?}");
        assert_eq!(ledger.accepted(), 6);
    }

    #[test]
    fn order_inside_a_record_is_judged_by_connection() {
        let mut ledger = ledger(Check::Full);
        accept(&mut ledger, "clicks", &record(&[(0, 1), (1, 0), (0, 0), (1, 1)]));
        assert_eq!(ledger.totals().totals.reordered_events, 1);
    }

    #[test]
    fn damage_wrong_streams_and_strangers_are_told_apart() {
        let mut ledger = ledger(Check::Full);
        let mut damaged = record(&[(0, 0)]);
        damaged[80] ^= 1;
        accept(&mut ledger, "clicks", &damaged);
        accept(&mut ledger, "views", &record(&[(0, 1)]));
        accept(&mut ledger, "clicks", b"hello\n\nworld");
        let counts = ledger.totals().totals;
        assert_eq!((counts.corrupted_events, counts.foreign_events, counts.events_accepted), (2, 3, 0));
        assert_eq!(counts.unterminated_records, 1);
    }

    #[test]
    fn delivery_streams_may_be_named_otherwise() {
        let names = ["prod-1", "prod-2"].map(|delivery| (delivery.to_owned(), "clicks".to_owned()));
        let mut ledger = Ledger::new(Check::Full, 1, HashMap::from(names));
        accept(&mut ledger, "prod-1", &record(&[(0, 0), (0, 2)]));
        accept(&mut ledger, "prod-2", &record(&[(0, 1), (0, 2)]));
        let totals = ledger.totals().totals;
        assert_eq!((totals.events_accepted, totals.duplicate_events), (3, 1));
        assert_eq!(ledger.accepted_of("clicks", [(0, 3)].into_iter()), 3);
    }

    #[test]
    fn a_light_check_adds_up_without_order() {
        let (mut forth, mut back) = (ledger(Check::Light), ledger(Check::Light));
        accept(&mut forth, "clicks", &record(&[(0, 0), (0, 1), (1, 0)]));
        accept(&mut back, "clicks", &record(&[(1, 0), (0, 1), (0, 0)]));
        let (forth, back) = (forth.totals().totals, back.totals().totals);
        assert_eq!(forth, back);
        assert_eq!(forth.events_accepted, 3);
        let mut none = ledger(Check::None);
        accept(&mut none, "clicks", &record(&[(0, 0)]));
        assert_eq!((none.totals().totals.events_accepted, none.totals().totals.raw_bytes), (0, 101));
    }

    #[test]
    fn memory_for_notes_is_bounded() {
        let mut ledger = ledger(Check::Full);
        accept(&mut ledger, "clicks", &record(&[(0, event::MAX_SEQUENCE - 1)]));
        let counts = ledger.totals().totals;
        assert_eq!((counts.untracked_events, counts.events_accepted), (1, 0));
    }

    #[test]
    fn records_are_billed_in_steps() {
        let mut ledger = ledger(Check::None);
        for len in [1, 5_120, 5_121] {
            accept(&mut ledger, "clicks", &vec![b'x'; len]);
        }
        assert_eq!(ledger.totals().totals.billed_bytes, 5_120 * 4);
    }

    #[test]
    fn calls_are_counted_by_outcome_and_status() {
        let mut ledger = ledger(Check::Full);
        for outcome in [Outcome::Ok, Outcome::Garbage, Outcome::Cut] {
            ledger.begin_call();
            ledger.end_call(outcome);
        }
        ledger.violation("json", "what is that");
        let totals = ledger.totals();
        assert_eq!((totals.calls["total"], totals.calls["garbage"]), (3, 1));
        assert_eq!((totals.calls_by_status["200"], totals.calls_by_status["none"]), (2, 1));
        assert_eq!((totals.violations.total, totals.violations.by_kind["json"]), (1, 1));
    }
}
