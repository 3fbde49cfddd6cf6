//! Delivery: it owns the queues of all streams and the policy of all lanes, hears of batches and of the outcomes of
//! calls, and decides which call starts next. It never sees AWS. This is a state machine: it is told the time, what
//! has come and what became of calls, and it waits for nothing and makes no call itself. `task` runs it beside
//! everything that it waits for; `bare` lets a test do so.
//!
//! Invariants: a piece is in exactly one place (a queue or one call in flight); an event is settled once; a
//! lane that fails has one call in flight, and failing lanes together at most half of all calls.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::batch::{Batch, Body, LINES_BYTES_MAX};
use crate::config::{Config, DestinationChoice};
use crate::destination::{Call, Destination, Encoding, Outcome};
use crate::failpoint::{self, Flaw, Point};
use crate::memory::Memory;
use crate::metrics::{Cause, LaneCounters, Metrics, Place};
use crate::queue::{Handoff, Returns};
use crate::rarely::Rarely;
use crate::spool::keeper::Keeper;
use crate::stream::{Registry, Stream};
use crate::tail::Tails;

#[doc(hidden)]
pub mod bare;
mod drain;
pub mod lane;
mod letters;
mod outcome;
pub mod pace;
mod piece;
mod queues;
mod reload;
pub mod retry;
mod spill;
mod task;
mod view;

use self::lane::{Lane, LaneLimits, LaneState, Readiness};
use self::letters::Letters;
use self::pace::Ceilings;
use self::piece::{Loose, Piece};
use self::queues::{Item, LaneLink, StreamQueue};
use self::spill::Spill;
use self::view::Logged;
pub use self::view::{LaneError, LaneView, View};

/// How long lines of one shard wait for those of the others, at most.
const GATHER_WAIT: Duration = Duration::from_millis(5);
/// A stream that held nothing for so long gives its place up.
const IDLE_STREAM: Duration = Duration::from_secs(3600);
/// All lanes are looked at for those that wait in vain at most this often.
const HURRY_PAUSE: Duration = Duration::from_millis(100);

/// What delivery is made of.
#[derive(Debug)]
pub struct Parts {
    /// The settings as they are now.
    pub config: Arc<Config>,
    /// Where calls go.
    pub destination: Arc<Destination>,
    /// The memory that batches are charged to.
    pub memory: Arc<Memory>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Where batches come from.
    pub handoff: Arc<Handoff>,
    /// Where outcomes go, one a shard.
    pub returns: Arc<[Returns]>,
    /// The streams by name: what is on disk knows no more.
    pub registry: Arc<Registry>,
    /// Who looks at events as they come.
    pub tails: Arc<Tails>,
}

/// What delivery can be asked.
#[derive(Debug)]
pub enum Command {
    /// What there is now.
    Look(oneshot::Sender<View>),
    /// No more batches come: cut every wait short, deliver what is left, and say when that is done.
    Drain(oneshot::Sender<()>),
    /// Call no more, bring what is left to the spool, cut the calls that are in flight then, and say when all is
    /// synced.
    Spool(Instant, oneshot::Sender<()>),
    /// Drop what is left, counted, and say when that is done.
    Abandon(oneshot::Sender<()>),
    /// Forget idle streams.
    Sweep,
    /// Go by these settings from now on, by which the streams go already, and say when that is so.
    Reload(Arc<Config>, oneshot::Sender<()>),
}

/// One lane with all that belongs to it.
#[derive(Debug)]
struct LaneEntry {
    delivery_stream: Arc<str>,
    policy: Lane,
    counters: Arc<LaneCounters>,
    /// The streams mapped to it.
    streams: Vec<u64>,
    /// Streams with something to call, the least served first.
    line: BinaryHeap<Reverse<(u64, u64)>>,
    /// How far the line has come, in bytes served: a stream that comes back does not catch up.
    served: u64,
    /// Calls in flight with what was read back from disk.
    recalled: usize,
    has_timer: bool,
    /// Whether it is about to be looked at, or stands among the starved.
    is_awake: bool,
    last_error: Option<LaneError>,
    /// Its calls fail.
    failing: Rarely,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lane(usize),
    Stream(u64),
    /// Something may have grown too old.
    Age,
}

/// What is kept of a call while it is under way.
#[derive(Debug)]
struct Started {
    lane: usize,
    piece: Piece,
    started: Instant,
    was_failing: bool,
}

/// A call that has ended.
#[derive(Debug)]
struct Ended {
    call: Started,
    outcome: Outcome,
}

/// The state of delivery.
#[derive(Debug)]
pub struct Delivery {
    parts: Parts,
    encoding: Encoding,
    limits: LaneLimits,
    streams: HashMap<u64, StreamQueue, foldhash::fast::RandomState>,
    lanes: Vec<Option<LaneEntry>>,
    lane_of: HashMap<Arc<str>, usize, foldhash::fast::RandomState>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    /// Lanes that may be able to start a call.
    runnable: VecDeque<usize>,
    /// Lanes that wait for a call of any lane to end, in the order in which they came.
    starved: VecDeque<usize>,
    /// Failing lanes that wait for a call of a failing lane to end.
    starved_failing: VecDeque<usize>,
    lanes_free: Vec<usize>,
    in_flight: usize,
    failing_in_flight: usize,
    hurried_at: Option<Instant>,
    /// Calls that have been chosen and are to be made.
    starting: Vec<(Call, Started)>,
    released: bool,
    drained: Option<oneshot::Sender<()>>,
    draining: bool,
    spill: Option<Spill>,
    letters: Option<Letters>,
    /// Whether the timer for what grows too old runs.
    watches_age: bool,
    /// Calls in flight are to be cut: their outcome will be unknown.
    is_cut: bool,
    jitter: fastrand::Rng,
    logged: Logged,
}

impl Delivery {
    /// Delivery with nothing to do yet.
    pub fn new(parts: Parts, spool: Option<Keeper>) -> Self {
        Self {
            encoding: parts.destination.encoding(),
            limits: LaneLimits::of(&parts.config),
            streams: HashMap::default(),
            lanes: Vec::new(),
            lane_of: HashMap::default(),
            timers: BinaryHeap::new(),
            runnable: VecDeque::new(),
            starved: VecDeque::new(),
            starved_failing: VecDeque::new(),
            lanes_free: Vec::new(),
            in_flight: 0,
            failing_in_flight: 0,
            hurried_at: None,
            starting: Vec::new(),
            released: false,
            drained: None,
            draining: false,
            spill: spool.map(|keeper| Spill::new(keeper, &parts)),
            letters: None,
            watches_age: false,
            is_cut: false,
            jitter: fastrand::Rng::new(),
            logged: Logged::default(),
            parts,
        }
    }

    /// Does all that can be done at `now` without waiting.
    fn step(&mut self, now: Instant) {
        while let Some(batch) = self.parts.handoff.pop() {
            self.take_batch(batch, now);
        }
        self.hear_of_letters(now);
        self.fire_timers(now);
        self.spill(now);
        self.wake_starved();
        while let Some(lane) = self.runnable.pop_front() {
            self.run_lane(lane, now);
        }
        if std::mem::take(&mut self.released) && self.parts.memory.waiting() > 0 {
            self.parts.returns.iter().for_each(|shard| shard.bell.ring());
        }
        if self.draining && self.is_drained() {
            self.drained.take().map(|done| done.send(()));
        }
    }

    fn take_batch(&mut self, batch: Batch, now: Instant) {
        let Batch { ticket, body, charge, .. } = batch;
        if self.parts.tails.is_open() {
            self.parts.tails.offer(&ticket.stream.name, &body, ticket.events, now);
        }
        let id = self.open_queue(&ticket.stream, now);
        let queue = self.streams.get_mut(&id).expect("it was opened");
        queue.used_at = now;
        let ticket = spill::wrap(&mut self.spill, ticket);
        let item = match body {
            Body::Records { json, records } => {
                Item::Piece(Piece::from_encoded(Arc::clone(&ticket), json, records, charge))
            }
            Body::Lines(lines) => {
                let alone = self.parts.returns.len() == 1 || self.draining || lines.len() >= LINES_BYTES_MAX;
                let due = if alone { now } else { ticket.sealed + GATHER_WAIT };
                Item::Loose(Loose::new(Arc::clone(&ticket), lines, charge, due))
            }
        };
        spill::write_through(&mut self.spill, &ticket, &item, self.encoding);
        queue.push(item);
        self.offer(id, now);
    }

    /// The queue of a stream, made with its lanes when it is first seen.
    fn open_queue(&mut self, stream: &Arc<Stream>, now: Instant) -> u64 {
        if !self.streams.contains_key(&stream.id) {
            let settings = stream.settings.load_full();
            let names = settings.delivery_streams.iter();
            let links: Vec<LaneLink> = names.map(|name| LaneLink::new(self.open_lane(name))).collect();
            for link in &links {
                self.lane(link.lane).streams.push(stream.id);
            }
            self.streams.insert(stream.id, StreamQueue::new(Arc::clone(stream), links, now));
            self.note_parked(stream.id);
            if settings.max_age.is_some() {
                self.watch_age(now);
            }
        }
        stream.id
    }

    fn open_lane(&mut self, delivery_stream: &Arc<str>) -> usize {
        if let Some(lane) = self.lane_of.get(delivery_stream) {
            return *lane;
        }
        let entry = LaneEntry {
            delivery_stream: Arc::clone(delivery_stream),
            policy: Lane::new(self.ceilings(delivery_stream)),
            counters: self.parts.metrics.lane(delivery_stream),
            streams: Vec::new(),
            line: BinaryHeap::new(),
            served: 0,
            recalled: 0,
            has_timer: false,
            is_awake: false,
            last_error: None,
            failing: Rarely::default(),
        };
        let index = self.lanes_free.pop().unwrap_or_else(|| {
            self.lanes.push(None);
            self.lanes.len() - 1
        });
        self.lanes[index] = Some(entry);
        self.lane_of.insert(Arc::clone(delivery_stream), index);
        index
    }

    /// Only Firehose has quotas.
    fn ceilings(&self, delivery_stream: &str) -> Ceilings {
        let config = &self.parts.config;
        if config.destination != DestinationChoice::Firehose {
            return Ceilings::default();
        }
        let settings = config.delivery_stream_settings(delivery_stream);
        Ceilings {
            bytes: settings.max_bytes_per_second,
            records: settings.max_records_per_second,
            calls: settings.max_calls_per_second,
        }
    }

    fn lane(&mut self, index: usize) -> &mut LaneEntry {
        self.lanes[index].as_mut().expect("a lane lives while a stream is mapped to it")
    }

    /// Lets the lanes of a stream know that it has something, now or when its lines are due.
    fn offer(&mut self, stream: u64, now: Instant) {
        let Some(queue) = self.streams.get_mut(&stream) else { return };
        match queue.ready_at(now) {
            None => (),
            Some(at) if at > now => self.timers.push(Reverse((at, Timer::Stream(stream)))),
            Some(_) => {
                queue.links.sort_by(|one, other| one.sent.total_cmp(&other.sent));
                for link in queue.links.iter_mut().filter(|link| !link.is_waiting) {
                    let entry = self.lanes[link.lane].as_mut().expect("a link keeps its lane");
                    link.is_waiting = true;
                    link.served = link.served.max(entry.served);
                    entry.line.push(Reverse((link.served, stream)));
                    if !std::mem::replace(&mut entry.is_awake, true) {
                        self.runnable.push_back(link.lane);
                    }
                }
            }
        }
    }

    fn fire_timers(&mut self, now: Instant) {
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Stream(stream) => self.offer(stream, now),
                Timer::Age => self.expire_all(now),
                Timer::Lane(lane) => {
                    if let Some(entry) = self.lanes[lane].as_mut() {
                        entry.has_timer = false;
                    }
                    self.wake(lane);
                }
            }
        }
    }

    /// Has a lane looked at in this step, once.
    fn wake(&mut self, index: usize) {
        if let Some(entry) = self.lanes[index].as_mut()
            && !std::mem::replace(&mut entry.is_awake, true)
        {
            self.runnable.push_back(index);
        }
    }

    /// Gives places that have become free to the lanes that have waited longest for one, before any other: behind
    /// lanes that have just become ready they would find no place again and again.
    fn wake_starved(&mut self) {
        let free = self.calls_max().saturating_sub(self.in_flight);
        let free_failing = self.failing_calls_max().saturating_sub(self.failing_in_flight).min(free);
        for (starved, free) in [(&mut self.starved_failing, free_failing), (&mut self.starved, free)] {
            let woken = free.min(starved.len());
            starved.drain(..woken).rev().for_each(|lane| self.runnable.push_front(lane));
        }
    }

    fn calls_max(&self) -> usize {
        self.parts.config.max_calls
    }

    fn failing_calls_max(&self) -> usize {
        self.calls_max().div_ceil(2)
    }

    /// Starts a call of a lane if it may have one. Others have their turn before it is looked at again.
    fn run_lane(&mut self, index: usize, now: Instant) {
        let (limits, full) = (self.limits, self.in_flight >= self.calls_max());
        let failing_full = self.failing_in_flight >= self.failing_calls_max();
        let Some(entry) = self.lanes[index].as_mut() else { return };
        entry.is_awake = false;
        if entry.line.is_empty() || spill::is_leaving(&self.spill) {
            return;
        }
        match entry.policy.readiness(now, &limits) {
            Readiness::Busy => return,
            Readiness::At(at) => {
                if !std::mem::replace(&mut entry.has_timer, true) {
                    self.timers.push(Reverse((at, Timer::Lane(index))));
                }
                return;
            }
            Readiness::Now => (),
        }
        if full || (failing_full && entry.policy.is_failing()) {
            entry.is_awake = true;
            let starved = if full { &mut self.starved } else { &mut self.starved_failing };
            starved.push_back(index);
            return;
        }
        if let Some(piece) = self.next_call(index, now) {
            self.start(index, piece, now);
        }
        self.wake(index);
    }

    /// The next call of the least served stream in a lane's line.
    fn next_call(&mut self, index: usize, now: Instant) -> Option<Piece> {
        let entry = self.lanes[index].as_mut()?;
        let Reverse((served, stream)) = entry.line.pop()?;
        entry.served = served;
        let queue = self.streams.get_mut(&stream)?;
        let link = queue.links.iter_mut().find(|link| link.lane == index)?;
        link.is_waiting = false;
        let waits = self.expire(stream, now);
        let (queue, entry) = (self.streams.get_mut(&stream)?, self.lanes[index].as_mut()?);
        if waits || queue.ready_at(now).is_none_or(|at| at > now) {
            return None;
        }
        let may_recall = entry.recalled < (self.limits.calls_max / 2).max(1);
        let max = entry.policy.pace().call_max();
        let call = queue.next_call(self.encoding, &self.parts.memory, max, may_recall);
        if call.is_none() && queue.has_recalled() {
            // Its turn comes when a call with what was read back ends.
            return None;
        }
        if let Some(piece) = &call {
            let link = queue.links.iter_mut().find(|link| link.lane == index)?;
            link.served = served + piece.bytes() as u64;
            if queue.links.len() > 1 {
                let lanes = queue.links.iter().filter_map(|link| self.lanes[link.lane].as_ref());
                let weights = lane::weights(lanes.map(|entry| &entry.policy));
                queue.took(index, piece.bytes(), &weights);
            }
        }
        self.offer(stream, now);
        call
    }

    fn start(&mut self, index: usize, mut piece: Piece, now: Instant) {
        let (events, stream) = (piece.events(), Arc::clone(piece.stream()));
        stream.label.enter(events, Place::InFlight);
        stream.label.leave(events, piece.place());
        if std::mem::take(&mut piece.is_unknown) {
            stream.label.resent(events, Cause::UnknownOutcome);
        }
        if std::mem::take(&mut piece.is_doubtful) {
            stream.label.resent(events, Cause::Recovery);
        }
        let encoding = self.encoding;
        let entry = self.lane(index);
        let was_failing = entry.policy.is_failing();
        entry.policy.started(piece.bytes() as u64, piece.records().len() as u64, now);
        entry.recalled += usize::from(piece.is_recalled);
        let delivery_stream = Arc::clone(&entry.delivery_stream);
        self.in_flight += 1;
        self.failing_in_flight += usize::from(was_failing);
        if let Some(queue) = self.streams.get_mut(&stream.id) {
            queue.in_flight.push(piece.oldest());
        }
        if failpoint::has(Flaw::SettlesEarly) {
            self.deliver(&piece, |_| true, now);
        }
        let body = piece.close(encoding, &delivery_stream);
        let due = piece.oldest() + self.parts.config.linger;
        let call = Call { delivery_stream, body, records: piece.records().len(), due, digest: None };
        self.starting.push((call, Started { lane: index, piece, started: now, was_failing }));
    }

    /// Hears of the end of a call: counts it, settles what is settled, queues the rest again.
    fn finish(&mut self, ended: Ended, now: Instant) {
        let Ended { call: Started { lane, piece, started, was_failing }, outcome } = ended;
        self.in_flight -= 1;
        self.failing_in_flight -= usize::from(was_failing);
        let was_recalled = piece.is_recalled;
        self.lane(lane).recalled -= usize::from(was_recalled);
        self.wake(lane);
        self.parts.metrics.call_duration.observe(now - started);
        let stream = Arc::clone(piece.stream());
        let events = piece.events();
        self.land(&stream, &piece);
        failpoint::pass(Point::Settle);
        let answered = outcome::answered(&piece, &outcome);
        let verdict = self.judge(lane, piece, outcome, now);
        stream.label.leave(events, Place::InFlight);
        let (limits, fraction) = (self.limits_now(), self.jitter.f64());
        let policy = &mut self.lane(lane).policy;
        let (before, was_unreached) = (policy.state(), policy.is_unreached());
        policy.finished(verdict, answered, started, now, &limits, fraction);
        let after = policy.state();
        self.report(lane, before, after, now);
        if was_unreached && after == LaneState::Active {
            self.hurry_others(now);
        }
        self.offer(stream.id, now);
        if was_recalled {
            self.offer_recalled(now);
        }
    }

    /// An endpoint answers again: lanes that wait because it did not are tried soon, each at a moment of its own.
    /// Otherwise each would find out by itself, up to the longest wait later, with fresh events behind it.
    fn hurry_others(&mut self, now: Instant) {
        if self.hurried_at.is_some_and(|at| now - at < HURRY_PAUSE) {
            return;
        }
        self.hurried_at = Some(now);
        for (index, entry) in self.lanes.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            if let Some(at) = entry.policy.hurry(now, &self.limits, self.jitter.f64()) {
                entry.has_timer = true;
                self.timers.push(Reverse((at, Timer::Lane(index))));
            }
        }
    }

    /// A call's piece is back.
    fn land(&mut self, stream: &Stream, piece: &Piece) {
        let Some(queue) = self.streams.get_mut(&stream.id) else { return };
        if let Some(place) = queue.in_flight.iter().position(|oldest| *oldest == piece.oldest()) {
            queue.in_flight.swap_remove(place);
        }
    }

    /// Every stream, always in the same order.
    fn stream_ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.streams.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn sweep(&mut self, now: Instant) {
        let idle = |queue: &StreamQueue| {
            queue.is_empty()
                && queue.in_flight.is_empty()
                && now.saturating_duration_since(queue.used_at) > IDLE_STREAM
        };
        let gone: Vec<u64> =
            self.streams.iter().filter(|(_, queue)| idle(queue)).map(|(id, _)| *id).collect();
        for id in gone {
            let Some(queue) = self.streams.remove(&id) else { continue };
            for link in queue.links {
                self.lane(link.lane).streams.retain(|stream| *stream != id);
            }
        }
        self.close_unused_lanes();
    }

    /// Forgets the lanes that no stream is mapped to, once nothing of theirs is under way.
    fn close_unused_lanes(&mut self) {
        let unused = |entry: &LaneEntry| {
            entry.streams.is_empty() && entry.policy.in_flight() == 0 && !entry.has_timer && !entry.is_awake
        };
        for index in 0..self.lanes.len() {
            if let Some(entry) = self.lanes[index].take_if(|entry| unused(entry)) {
                self.lane_of.remove(&entry.delivery_stream);
                self.lanes_free.push(index);
            }
        }
    }
}
