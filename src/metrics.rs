//! Every counter of the process. Shards count in cells that only they write, so that the data plane pays a
//! plain store; delivery counts with atomics, a batch at a time. Nothing is summed before somebody scrapes:
//! that is `metrics::exposition`.
//!
//! Invariant: once nothing moves, `received + recovered = delivered + dropped + held` for every stream label,
//! and `held` is the sum of its places, never a difference.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::frame::Reject;

pub mod exposition;
mod histogram;
pub mod process;

pub use histogram::Histogram;

/// The label of every stream and delivery stream beyond `max_stream_labels`. No stream can have this name.
pub const OTHER: &str = "_other";

/// Upper bounds of `call_duration_seconds` and `fsync_duration_seconds`: from a local file to a call time-out.
const DURATION_BOUNDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Upper bounds of `delivery_latency_seconds`: around `linger` at its default, and up to an outage.
const LATENCY_BOUNDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
];

/// Why an event was dropped: the closed list behind `events_dropped_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// At the memory cap with `on_full = "drop"`.
    Memory,
    /// The same where there is a spool, and it takes no more.
    SpoolFull,
    /// Beyond the cap of a stream whose lanes are all parked.
    Parked,
    /// Refused alone by the destination.
    Rejected,
    /// Older than its stream's `max_age`, and no dead letter.
    MaxAge,
    /// On disk, and no longer readable.
    SpoolDamaged,
    /// Still here when the drain deadline passed.
    DrainDeadline,
    /// Lost by the relay that it was delivered to.
    LostDownstream,
    /// Written to the dead letters: it can never be delivered.
    DeadLetter,
}

impl Drop {
    /// Every reason, in the order of its index.
    pub const ALL: [Drop; 9] = [
        Drop::Memory,
        Drop::SpoolFull,
        Drop::Parked,
        Drop::Rejected,
        Drop::MaxAge,
        Drop::SpoolDamaged,
        Drop::DrainDeadline,
        Drop::LostDownstream,
        Drop::DeadLetter,
    ];

    /// The value of the metric's `reason` label.
    pub fn label(self) -> &'static str {
        match self {
            Drop::Memory => "memory",
            Drop::SpoolFull => "spool_full",
            Drop::Parked => "parked",
            Drop::Rejected => "rejected",
            Drop::MaxAge => "max_age",
            Drop::SpoolDamaged => "spool_damaged",
            Drop::DrainDeadline => "drain_deadline",
            Drop::LostDownstream => "lost_downstream",
            Drop::DeadLetter => "dead_letter",
        }
    }
}

/// Where a sealed event waits: `events_held{place}`. The open ones are counted by the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Sealed, and no call with it was made yet.
    Queued,
    /// In a call that has no answer yet.
    InFlight,
    /// In a call that failed, and waits for the next.
    Retry,
    /// On disk and not in memory, or on its way to that.
    Spool,
}

/// Why events may be delivered twice: the closed list behind `possible_duplicate_events_total{cause}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An earlier call with them ended without a known outcome.
    UnknownOutcome,
    /// They were read back from what a process left that ended without order.
    Recovery,
}

impl Cause {
    /// Every cause, in the order of its index.
    pub const ALL: [Cause; 2] = [Cause::UnknownOutcome, Cause::Recovery];

    /// The value of the metric's `cause` label.
    pub fn label(self) -> &'static str {
        match self {
            Cause::UnknownOutcome => "unknown_outcome",
            Cause::Recovery => "recovery",
        }
    }
}

/// What became of a record or a call: the closed list behind `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted.
    Ok,
    /// Over a quota.
    Throttled,
    /// An error inside the service, or none could be reached.
    Internal,
    /// Refused for what it is: no such delivery stream, no right, or bad content.
    Rejected,
    /// It cannot be known.
    Unknown,
}

impl Outcome {
    /// Every outcome, in the order of its index.
    pub const ALL: [Outcome; 5] =
        [Outcome::Ok, Outcome::Throttled, Outcome::Internal, Outcome::Rejected, Outcome::Unknown];

    /// The value of the metric's `outcome` label.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Throttled => "throttled",
            Outcome::Internal => "internal",
            Outcome::Rejected => "rejected",
            Outcome::Unknown => "unknown",
        }
    }
}

/// A count that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `n`. Only the cell's one writer may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Release);
    }

    /// Takes `n` away. Only the cell's one writer may call this.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Release);
    }

    /// Sets the value. Only the cell's one writer may call this.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value, perhaps a moment old.
    pub fn get(&self) -> u64 {
        self.0.load(Acquire)
    }
}

/// What one shard counts for one label. A cache line of its own, since another shard writes the next.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ShardCell {
    /// Events of good frames.
    pub received: Cell,
    /// Events in open buffers.
    pub open: Cell,
}

/// The counters of one stream label.
#[derive(Debug)]
pub struct Label {
    name: String,
    /// One a shard, which holds it directly.
    pub shards: Box<[Arc<ShardCell>]>,
    delivered: AtomicU64,
    dropped: [AtomicU64; Drop::ALL.len()],
    held: [AtomicU64; 4],
    recovered: AtomicU64,
    payload_bytes: AtomicU64,
    billed_bytes: AtomicU64,
    duplicates: [AtomicU64; Cause::ALL.len()],
}

impl Label {
    fn new(name: &str, shards: usize) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            shards: (0..shards).map(|_| Arc::default()).collect(),
            delivered: AtomicU64::new(0),
            dropped: Default::default(),
            held: Default::default(),
            payload_bytes: AtomicU64::new(0),
            billed_bytes: AtomicU64::new(0),
            recovered: AtomicU64::new(0),
            duplicates: Default::default(),
        })
    }

    /// The value of the metric's `stream` label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Events delivered, with the raw bytes and the billed bytes of their record.
    pub fn delivered(&self, events: u64, payload_bytes: u64, billed_bytes: u64) {
        self.delivered.fetch_add(events, AcqRel);
        self.payload_bytes.fetch_add(payload_bytes, Relaxed);
        self.billed_bytes.fetch_add(billed_bytes, Relaxed);
    }

    /// Events dropped.
    pub fn dropped(&self, events: u64, reason: Drop) {
        self.dropped[reason as usize].fetch_add(events, AcqRel);
    }

    /// Events that came to a place.
    pub fn enter(&self, events: u64, place: Place) {
        self.held[place as usize].fetch_add(events, AcqRel);
    }

    /// Events that left a place.
    pub fn leave(&self, events: u64, place: Place) {
        self.held[place as usize].fetch_sub(events, AcqRel);
    }

    /// Events that are sent again although they may have been accepted.
    pub fn resent(&self, events: u64, cause: Cause) {
        self.duplicates[cause as usize].fetch_add(events, Relaxed);
    }

    /// Bytes delivered, raw and as Firehose bills them.
    pub fn bytes_delivered(&self) -> (u64, u64) {
        (self.payload_bytes.load(Relaxed), self.billed_bytes.load(Relaxed))
    }

    /// Events that were sent again although they may have been accepted, for any cause.
    pub fn possible_duplicates(&self) -> u64 {
        self.duplicates.iter().map(|events| events.load(Relaxed)).sum()
    }

    /// Events that an earlier process left on disk.
    pub fn recovered(&self, events: u64) {
        self.recovered.fetch_add(events, AcqRel);
    }

    /// The figures of the identity. They are read one by one, in the order in which an event passes, and an event
    /// enters its next place before it leaves the last: one on its way may be seen twice, but is never missed.
    pub fn totals(&self) -> Totals {
        let held = |place: Place| self.held[place as usize].load(Acquire);
        let received = self.shards.iter().map(|cell| cell.received.get()).sum();
        let open = self.shards.iter().map(|cell| cell.open.get()).sum();
        let queued = held(Place::Queued);
        // Calls fail and are tried again, so these two are a circle: it is looked at from both sides.
        let (before, retry, after) = (held(Place::InFlight), held(Place::Retry), held(Place::InFlight));
        let in_flight = before.max(after);
        Totals {
            stream: self.name.clone(),
            received,
            recovered: self.recovered.load(Acquire),
            open,
            queued,
            in_flight,
            retry,
            spool: held(Place::Spool),
            delivered: self.delivered.load(Acquire),
            dropped: Drop::ALL.map(|reason| self.dropped[reason as usize].load(Acquire)),
        }
    }
}

/// Every event of one label and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of the metrics")]
pub struct Totals {
    pub stream: String,
    pub received: u64,
    pub recovered: u64,
    pub delivered: u64,
    pub dropped: [u64; Drop::ALL.len()],
    pub open: u64,
    pub queued: u64,
    pub in_flight: u64,
    pub retry: u64,
    pub spool: u64,
}

impl Totals {
    /// Events that are still here, the sum of their places.
    pub fn held(&self) -> u64 {
        self.open + self.queued + self.in_flight + self.retry + self.spool
    }

    /// Events dropped for any reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

/// How old the oldest event is that is held, by stream label.
#[derive(Clone, Debug, Default)]
pub struct Ages(HashMap<String, Duration>);

impl Ages {
    /// Notes an event of this label and age.
    pub fn note(&mut self, label: &str, age: Duration) {
        match self.0.get_mut(label) {
            Some(known) => *known = age.max(*known),
            None => drop(self.0.insert(label.to_owned(), age)),
        }
    }

    /// The greatest of all ages.
    pub fn greatest(&self) -> Option<Duration> {
        self.0.values().max().copied()
    }

    /// The greatest age noted of a label; zero where none was.
    pub fn of(&self, label: &str) -> Duration {
        self.0.get(label).copied().unwrap_or_default()
    }
}

/// What one shard counts beside its streams.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ShardCounters {
    /// Bytes read from sockets.
    pub received_bytes: Cell,
    /// Frames rejected, by reason.
    pub rejected: [Cell; Reject::ALL.len()],
    /// Connections accepted.
    pub opened: Cell,
    /// Connections that ended without a byte.
    pub health_probes: Cell,
    /// Connections refused because `max_connections` were open.
    pub refused: Cell,
    /// Connections closed because they held half a frame and gave no byte.
    pub stalled: Cell,
    /// Connections told to leave since they had reached `max_connection_age`.
    pub aged: Cell,
    /// Connections given to a shard with less to do than the one that accepted them.
    pub moved: Cell,
    /// Connections that were reset or failed.
    pub failed: Cell,
    /// Connections that are not read for lack of memory.
    pub paused: Cell,
    /// Syncs answered: nothing was lost.
    pub synced: Cell,
    /// Syncs answered: something was lost.
    pub lost: Cell,
    /// Syncs that wait for their answer.
    pub syncs_pending: Cell,
    /// Time spent working rather than waiting, in nanoseconds.
    pub busy_nanoseconds: Cell,
}

/// The counters of one delivery stream label.
#[derive(Debug)]
pub struct LaneCounters {
    name: String,
    calls: [AtomicU64; Outcome::ALL.len()],
    records: [AtomicU64; Outcome::ALL.len()],
}

impl LaneCounters {
    /// Counts a call.
    pub fn call(&self, outcome: Outcome) {
        self.calls[outcome as usize].fetch_add(1, Relaxed);
    }

    /// The value of the metrics' `delivery_stream` label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls counted, by outcome.
    pub fn calls(&self) -> [u64; Outcome::ALL.len()] {
        Outcome::ALL.map(|outcome| self.calls[outcome as usize].load(Relaxed))
    }

    /// Records of accepted calls.
    pub fn records_accepted(&self) -> u64 {
        self.records[Outcome::Ok as usize].load(Relaxed)
    }

    /// Counts records of a call.
    pub fn records(&self, records: u64, outcome: Outcome) {
        self.records[outcome as usize].fetch_add(records, Relaxed);
    }
}

/// What the spool holds, as its thread last said; zeros where there is none.
#[derive(Debug, Default)]
pub struct SpoolGauges {
    /// Bytes of all its files.
    pub bytes: AtomicU64,
    /// Their limit.
    pub limit: AtomicU64,
    /// Segments with damage, since the start.
    pub damaged_segments: AtomicU64,
    /// 1 where the last that was written failed.
    pub failing: AtomicU64,
    /// When the oldest event that is on disk alone was received, in milliseconds since 1970, by stream.
    pub oldest: Mutex<HashMap<Arc<str>, u64>>,
    /// Whether it takes no more, for lack of room or since the disk fails.
    pub is_full: AtomicBool,
}

/// What became of reading the configuration again.
#[derive(Debug)]
pub struct Reloads {
    /// Times that it was taken over.
    pub done: AtomicU64,
    /// Times that something in it was wrong, so that nothing changed.
    pub refused: AtomicU64,
    /// Whether the configuration that was read last, at start or later, is the one that holds.
    pub is_current: AtomicBool,
    /// When that was read which holds, in seconds since 1970.
    pub current_since: AtomicU64,
}

impl Reloads {
    /// The configuration was read at the start.
    fn new() -> Self {
        let (done, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Self {
            done,
            refused,
            is_current: AtomicBool::new(true),
            current_since: AtomicU64::new(seconds_now()),
        }
    }

    /// It was read again, and taken over or not.
    pub fn count(&self, is_done: bool) {
        self.is_current.store(is_done, Relaxed);
        if is_done {
            self.current_since.store(seconds_now(), Relaxed);
        }
        let counter = if is_done { &self.done } else { &self.refused };
        counter.fetch_add(1, Relaxed);
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The counters of one process.
#[derive(Debug)]
pub struct Metrics {
    /// What monotonic nanoseconds in cells count from.
    pub epoch: Instant,
    /// One a shard.
    pub shards: Box<[ShardCounters]>,
    /// Connections open now, by listener and shard.
    pub connections: Box<[Box<[Cell]>]>,
    listeners: Box<[String]>,
    labels_max: usize,
    labels: Mutex<BTreeMap<String, Arc<Label>>>,
    lanes: RwLock<BTreeMap<String, Arc<LaneCounters>>>,
    /// How long calls took.
    pub call_duration: Histogram,
    /// From receiving to accepted, weighted by events.
    pub delivery_latency: Histogram,
    /// How long syncs took, of the directory destination and of the spool.
    pub fsync_duration: Arc<Histogram>,
    /// What the spool holds.
    pub spool: Arc<SpoolGauges>,
    /// Bytes of all dead letters, as their thread last counted them.
    pub dead_letter_bytes: Arc<AtomicU64>,
    /// How reloads went.
    pub reloads: Reloads,
}

impl Metrics {
    /// Counters for `shards` shards, these listeners (by address), and at most `labels_max` stream labels.
    pub fn new(epoch: Instant, shards: usize, listeners: Vec<String>, labels_max: usize) -> Arc<Self> {
        let cells = |_| (0..shards).map(|_| Cell::default()).collect();
        Arc::new(Self {
            epoch,
            shards: (0..shards).map(|_| ShardCounters::default()).collect(),
            connections: (0..listeners.len()).map(cells).collect(),
            listeners: listeners.into(),
            labels_max,
            labels: Mutex::default(),
            lanes: RwLock::default(),
            call_duration: Histogram::new(DURATION_BOUNDS),
            delivery_latency: Histogram::new(LATENCY_BOUNDS),
            fsync_duration: Arc::new(Histogram::new(DURATION_BOUNDS)),
            spool: Arc::default(),
            dead_letter_bytes: Arc::default(),
            reloads: Reloads::new(),
        })
    }

    /// The label of a stream: its own, or the shared one once `max_stream_labels` are given out. A name that
    /// has one keeps it, and labels are never taken back, so a name never changes its label.
    pub fn label(&self, stream: &str) -> Arc<Label> {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        let own = labels.len() < self.labels_max || labels.contains_key(stream);
        let name = if own { stream } else { OTHER };
        let shards = self.shards.len();
        Arc::clone(labels.entry(name.to_owned()).or_insert_with(|| Label::new(name, shards)))
    }

    /// The counters of a delivery stream, bounded as the streams' labels are.
    pub fn lane(&self, delivery_stream: &str) -> Arc<LaneCounters> {
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        let own = lanes.len() < self.labels_max || lanes.contains_key(delivery_stream);
        let name = if own { delivery_stream } else { OTHER };
        let create = || {
            let name = name.to_owned();
            Arc::new(LaneCounters { name, calls: Default::default(), records: Default::default() })
        };
        Arc::clone(lanes.entry(name.to_owned()).or_insert_with(create))
    }

    /// The counters of every delivery stream label, in the order of their names.
    pub fn lanes(&self) -> Vec<Arc<LaneCounters>> {
        self.lanes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The addresses of the listeners, in the order of `connections`.
    pub fn listeners(&self) -> &[String] {
        &self.listeners
    }

    /// The identity's figures of every label.
    pub fn totals(&self) -> Vec<Totals> {
        self.labels().iter().map(|label| label.totals()).collect()
    }

    /// Every label, in the order of their names.
    pub fn labels(&self) -> Vec<Arc<Label>> {
        self.labels.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
