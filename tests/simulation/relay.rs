//! The whole pure part of the relay: real shards without sockets, real delivery without tasks, the real spool over the
//! modelled disk, and nothing that moves but what the schedule draws: bytes that come in any pieces, outcomes of any
//! kind, a disk that fails, processes that are killed, power that goes. A seed is a history.
//!
//! What must hold stands where it is checked; see "What is promised" in the design.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use standpipe::config::{
    Config, DestinationChoice, OnFull, Packing, PackingMode, SpoolMode, StreamConfig, SyncAt,
};
use standpipe::delivery::bare::Bare as Delivery;
use standpipe::delivery::lane::LaneState;
use standpipe::destination::{Destination, Encoding};
use standpipe::failpoint::{self, Flaw};
use standpipe::memory::Memory;
use standpipe::metrics::{Drop, Label};
use standpipe::net::Key;
use standpipe::relay::parts;
use standpipe::shard::{Shared, bare, bare::Bare as Shard};
use standpipe::spool::Limits;

use crate::client::Client;
use crate::disk::{Disk, Faults};
use crate::endpoint::Endpoint;
use crate::host::{Host, Moment};
use crate::ledger::{Ledger, STREAMS};

/// Connections of a shard.
const CONNECTIONS: Key = 3;
/// When nothing fails any more, everything is delivered within so long.
const DRAINED_WITHIN: Duration = Duration::from_secs(120);
/// How long an orderly end may take.
const DRAIN_DEADLINE: Duration = Duration::from_secs(8);
/// The first millisecond since 1970.
const EPOCH_MILLIS: u64 = 1_000_000_000;

/// How a history is drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    pub steps: u32,
    /// Calls end in every way.
    pub has_outcomes: bool,
    /// The disk fails.
    pub has_disk_faults: bool,
    /// Processes are killed, and power goes.
    pub has_crashes: bool,
    /// Some events are never taken.
    pub has_poison: bool,
    /// Mutation: an fsync does nothing.
    pub skips_syncs: bool,
    /// Mutation: a mistake in the relay's own code.
    pub flaw: Option<Flaw>,
}

/// What a history came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    pub deliveries: u64,
    pub repeats: u64,
    pub possible_repeats: u64,
    pub dropped: u64,
    pub recovered: u64,
    /// Events on disk, at most at one time.
    pub spooled: u64,
    pub answers: u64,
    /// Answers that said that something is lost.
    pub losses: u64,
    /// How often a connection was not read for want of memory.
    pub pauses: u64,
    /// Calls that started while their lane was failing.
    pub probes: u64,
    pub crashes: u64,
    pub restarts: u64,
    pub reloads: u64,
    /// How far memory was ever over its limit, in bytes, and how long the end ever took.
    pub over_run: u64,
    pub drained_millis: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.deliveries += other.deliveries;
        self.repeats += other.repeats;
        self.possible_repeats += other.possible_repeats;
        self.dropped += other.dropped;
        self.recovered += other.recovered;
        self.spooled = self.spooled.max(other.spooled);
        self.answers += other.answers;
        self.losses += other.losses;
        self.pauses += other.pauses;
        self.probes += other.probes;
        self.crashes += other.crashes;
        self.restarts += other.restarts;
        self.reloads += other.reloads;
        self.over_run = self.over_run.max(other.over_run);
        self.drained_millis = self.drained_millis.max(other.drained_millis);
    }
}

/// What is the same for every process of a history.
#[derive(Clone, Debug)]
struct Setting {
    config: Config,
    encoding: Encoding,
    limit: u64,
    stream_max: u64,
    spool: Option<Limits>,
}

/// One process.
struct Process {
    shared: Arc<Shared>,
    shards: Vec<Shard>,
    delivery: Delivery,
    host: Option<Host>,
    clients: Vec<Client>,
    /// The events that were received here and are not known to be accepted, with their shard.
    received: BTreeMap<u64, usize>,
    /// How many they are, by shard and stream.
    unsettled: Vec<[u64; STREAMS.len()]>,
    /// Events that the destination accepted, as this process was told.
    accepted: [u64; STREAMS.len()],
}

pub struct World {
    rng: Rng,
    plan: Plan,
    setting: Setting,
    disk: Disk,
    ledger: Ledger,
    endpoint: Endpoint,
    process: Process,
    start: Instant,
    now: Instant,
    had_bad_reads: bool,
    /// What happened to its processes; printed where it fails.
    history: Vec<String>,
    tally: Tally,
}

impl std::ops::Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{:?}\n{}", self.setting.spool, self.history.join("\n"));
        }
    }
}

/// Runs one history.
pub fn run(seed: u64, plan: Plan) -> Tally {
    failpoint::make(plan.flaw);
    let mut world = World::new(seed, plan);
    for _ in 0..plan.steps {
        world.act();
    }
    world.finish();
    world.tally
}

impl Setting {
    fn draw(rng: &mut Rng) -> Self {
        let has_spool = rng.u32(..4) > 0;
        let mut config = Config {
            destination: DestinationChoice::Firehose,
            shards: Some(rng.usize(1..=2)),
            sync_at: if has_spool && rng.bool() { SyncAt::Stored } else { SyncAt::Delivered },
            spool_mode: if rng.bool() { SpoolMode::Overflow } else { SpoolMode::Always },
            linger: Duration::from_millis([256, 512, 1024][rng.usize(..3)]),
            max_calls: rng.usize(1..=6),
            retry_base: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            park_probe: Duration::from_secs(5),
            frame_bytes_max: 40_000,
            packing: draw_packing(rng),
            ..Config::default()
        };
        config.max_lane_calls = rng.usize(1..=config.max_calls.min(3));
        for (name, lanes) in STREAMS {
            let stream = StreamConfig {
                delivery_streams: lanes.iter().map(|lane| (*lane).to_owned()).collect(),
                packing: if rng.bool() { config.packing } else { draw_packing(rng) },
                on_full: if rng.bool() { OnFull::Wait } else { OnFull::Drop },
                max_age: None,
            };
            config.streams.insert(name.to_owned(), stream);
        }
        // One in eight is large enough for batches that are encoded on their shard.
        let stream_max =
            if rng.u32(..8) == 0 { 512 << 10 } else { [24 << 10, 48 << 10, 128 << 10][rng.usize(..3)] };
        let spool = Limits {
            bytes_max: if rng.u32(..4) == 0 { 48 << 10 } else { 16 << 20 },
            free_floor: 0,
            batches_max: if rng.u32(..5) == 0 { 12 } else { 10_000 },
            segment_bytes: [2 << 10, 16 << 10, 128 << 10][rng.usize(..3)],
            group_bytes: [2 << 10, 32 << 10, 8 << 20][rng.usize(..3)],
            keep_sent: if rng.u32(..5) == 0 { 3_000 } else { 0 },
        };
        // A reload tells the spool what the configuration says.
        (config.spool_limit, config.spool_free_floor) = (spool.bytes_max, spool.free_floor);
        config.spool_keep_sent = Duration::from_millis(spool.keep_sent);
        Self {
            config,
            encoding: if rng.u32(..3) == 0 { Encoding::Lines } else { Encoding::Records },
            limit: stream_max * rng.u64(2..=6),
            stream_max,
            spool: has_spool.then_some(spool),
        }
    }

    /// Draws anew what a reload may change and a history can do without.
    fn change(&mut self, rng: &mut Rng) {
        let lanes: Vec<&str> = STREAMS.iter().flat_map(|(_, lanes)| lanes.iter().copied()).collect();
        self.config.linger = Duration::from_millis([256, 512, 1024][rng.usize(..3)]);
        self.config.retry_max = Duration::from_secs(rng.u64(1..=5));
        self.config.park_probe = Duration::from_secs(rng.u64(1..=5));
        for stream in self.config.streams.values_mut() {
            let count = rng.usize(1..=3);
            let mapped = rng.choose_multiple(lanes.iter(), count);
            // One lane has two streams, and stands there twice.
            let mapped: BTreeSet<&str> = mapped.into_iter().copied().collect();
            stream.delivery_streams = mapped.into_iter().map(str::to_owned).collect();
            stream.packing = draw_packing(rng);
            stream.on_full = if rng.bool() { OnFull::Wait } else { OnFull::Drop };
        }
    }
}

fn draw_packing(rng: &mut Rng) -> Packing {
    Packing {
        mode: if rng.u32(..3) == 0 { PackingMode::Single } else { PackingMode::Full },
        record_events_max: [1, 3, 500][rng.usize(..3)],
        record_bytes_max: [200, 1_000, 5_000, 1_024_000][rng.usize(..4)],
    }
}

impl Process {
    fn start(setting: &Setting, disk: &mut Disk, moment: Moment, rng: &mut Rng) -> Self {
        let memory = Memory::with_limits(setting.limit, setting.stream_max, setting.limit / 4);
        let shared = bare::shared_with(setting.config.clone(), setting.encoding, memory, moment.0);
        let parts = parts(&shared, &Arc::new(Destination::Null));
        let (host, keeper) = match setting.spool {
            Some(limits) => {
                let (host, keeper) = Host::start(disk, limits, rng.u64(..));
                (Some(host), Some(keeper))
            }
            None => (None, None),
        };
        let count = shared.returns.len();
        let shards = (0..count).map(|index| Shard::at(Arc::clone(&shared), index, CONNECTIONS, moment.0));
        let clients = (0..count).flat_map(|shard| (0..CONNECTIONS).map(move |key| (shard, key)));
        Self {
            shards: shards.collect(),
            delivery: Delivery::new(parts, keeper, setting.encoding, moment, rng.u64(..)),
            host,
            clients: clients.map(|(shard, key)| Client::new(shard, key, rng)).collect(),
            received: BTreeMap::new(),
            unsettled: vec![Default::default(); count],
            accepted: Default::default(),
            shared,
        }
    }

    fn label(&self, stream: usize) -> Arc<Label> {
        self.shared.metrics.label(STREAMS[stream].0)
    }

    /// Events that are held in memory or on disk.
    fn held(&self) -> u64 {
        self.shared.metrics.totals().iter().map(standpipe::metrics::Totals::held).sum()
    }
}

impl World {
    fn new(seed: u64, plan: Plan) -> Self {
        let mut rng = Rng::with_seed(seed);
        let setting = Setting::draw(&mut rng);
        let mut disk = Disk::default();
        disk.skips_syncs = plan.skips_syncs;
        let now = Instant::now();
        let process = Process::start(&setting, &mut disk, (now, EPOCH_MILLIS), &mut rng);
        let mut endpoint = Endpoint::new(setting.encoding, plan.has_outcomes);
        endpoint.map(&setting.config);
        Self {
            endpoint,
            rng,
            plan,
            setting,
            disk,
            ledger: Ledger::default(),
            process,
            start: now,
            now,
            had_bad_reads: false,
            history: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn moment(&self) -> Moment {
        let since = u64::try_from((self.now - self.start).as_millis()).expect("a history is short");
        (self.now, EPOCH_MILLIS + since)
    }

    fn act(&mut self) {
        match self.rng.u32(..1000) {
            0..230 => self.send(),
            230..290 => self.sync(),
            290..520 => self.feed(),
            520..760 => {
                let millis = [1, 5, 20, 100][self.rng.usize(..4)];
                self.pass(millis);
            }
            760..800 => {
                let millis = [300, 1_000, 6_000][self.rng.usize(..3)];
                self.pass(millis);
            }
            800..900 => self.perform_some(),
            900..960 => self.endpoint.change(&mut self.rng),
            960..980 if self.plan.has_disk_faults => self.change_faults(),
            980..985 if self.plan.has_crashes => self.crash(self.setting.spool.is_none()),
            985..990 if self.plan.has_crashes => self.crash(true),
            990..994 => self.restart(),
            994..998 => self.reload(),
            _ => (),
        }
        self.run(false);
        if self.rng.u32(..4) == 0 {
            self.run(true);
            self.check_delays();
        }
    }

    fn change_faults(&mut self) {
        let often = [0, 0, 0, 20, 300, 1000];
        let mut draw = || often[self.rng.usize(..often.len())];
        self.disk.faults = Faults { writes: draw(), syncs: draw(), reads: draw(), names: draw() };
        self.had_bad_reads |= self.disk.faults.reads > 0;
        self.note(format!("{:?}", self.disk.faults));
    }

    fn draw_client(&mut self) -> usize {
        self.rng.usize(..self.process.clients.len())
    }

    fn send(&mut self) {
        let at = self.draw_client();
        if self.rng.u32(..40) == 0 {
            return self.process.clients[at].send_bad(&mut self.rng);
        }
        let stream = self.rng.usize(..STREAMS.len());
        let (count, length) = match self.rng.u32(..12) {
            0..8 => (6, 40),
            8..11 => (20, 400),
            _ => (16, 20_000),
        };
        for _ in 0..self.rng.usize(1..count) {
            let length = self.rng.usize(..length);
            let filler = self.rng.alphanumeric().to_string().repeat(length);
            let is_poison = self.plan.has_poison && self.rng.u32(..80) == 0;
            let (token, frame) = self.ledger.send(stream, &filler, is_poison);
            self.process.clients[at].send(token, &frame);
        }
    }

    fn sync(&mut self) {
        let at = self.draw_client();
        self.process.clients[at].sync();
    }

    fn feed(&mut self) {
        let at = self.draw_client();
        let bytes_max = [1, 30, 1_000, 60_000, 60_000][self.rng.usize(..5)];
        self.feed_one(at, bytes_max);
    }

    fn feed_one(&mut self, at: usize, bytes_max: usize) {
        let client = &mut self.process.clients[at];
        let shard = client.shard;
        if client.is_closed(&self.process.shards[shard]) {
            // It held half a frame for too long.
            return client.give_up().for_each(|token| self.ledger.leave_unread(token));
        }
        self.tally.pauses += u64::from(!client.is_read(&self.process.shards[shard]));
        for token in client.feed(&mut self.process.shards[shard], bytes_max) {
            self.process.received.insert(token, shard);
            self.process.unsettled[shard][self.ledger.get(token).stream] += 1;
        }
    }

    /// Time passes, in a few steps.
    fn pass(&mut self, millis: u64) {
        let parts = self.rng.u64(1..=4);
        for _ in 0..parts {
            self.now += Duration::from_micros(millis * 1_000 / parts);
            self.run(false);
        }
    }

    fn perform_some(&mut self) {
        let millis = self.moment().1;
        let Some(host) = &mut self.process.host else { return };
        for _ in 0..self.rng.u32(1..30) {
            host.perform_one(&mut self.disk, &mut self.rng, millis);
        }
    }

    /// Everybody has a turn, or, where not all are asked to, only some.
    fn run(&mut self, all: bool) {
        let moment = self.moment();
        for _ in 0..if all { 3 } else { 1 } {
            while (all || self.rng.u32(..4) > 0) && self.end_call() {}
            if all || self.rng.u32(..4) > 0 {
                self.step_delivery();
            }
            if (all || self.rng.u32(..4) > 0)
                && let Some(host) = &mut self.process.host
            {
                host.exchange(moment);
            }
            self.turn_shards(all);
            self.check();
        }
    }

    fn turn_shards(&mut self, all: bool) {
        for index in 0..self.process.shards.len() {
            if !all && self.rng.u32(..4) == 0 {
                continue;
            }
            self.process.shards[index].turn(self.now);
            let needs_delivery = self.setting.config.sync_at == SyncAt::Delivered;
            for (key, answer) in self.process.shards[index].take_answers() {
                let client = self.process.clients.iter_mut().find(|client| client.is(index, key));
                client.expect("only who is there is answered").hear(
                    &answer,
                    &mut self.ledger,
                    needs_delivery,
                );
                self.tally.answers += 1;
                self.tally.losses += u64::from(answer.starts_with(b"!lost"));
            }
        }
    }

    fn end_call(&mut self) -> bool {
        let Some((flight, outcome, known)) = self.endpoint.end_one(self.now, &mut self.ledger, &mut self.rng)
        else {
            return false;
        };
        for token in known {
            self.settle(token);
        }
        self.process.delivery.finish(flight, outcome, self.now);
        true
    }

    /// The process is told that an event was accepted.
    fn settle(&mut self, token: u64) {
        let stream = self.ledger.get(token).stream;
        self.process.accepted[stream] += 1;
        if let Some(shard) = self.process.received.remove(&token) {
            self.process.unsettled[shard][stream] -= 1;
        }
    }

    /// Delivery has its step. A lane that fails has one call in flight, and all of them half of all calls.
    fn step_delivery(&mut self) {
        let config = &self.setting.config;
        let before = self.process.delivery.view(self.now).lanes;
        for (call, flight) in self.process.delivery.step(self.now) {
            let lane = before.iter().find(|lane| lane.delivery_stream == call.delivery_stream);
            let was_failing = lane.is_some_and(|lane| lane.state != LaneState::Active);
            self.tally.probes += u64::from(was_failing);
            self.endpoint.start(call, flight, was_failing, self.now, &mut self.rng);
        }
        for lane in self.process.delivery.view(self.now).lanes {
            assert!(lane.in_flight <= config.max_lane_calls, "{lane:?} has too many calls");
            let before = before.iter().find(|before| before.delivery_stream == lane.delivery_stream);
            let has_started = before.is_some_and(|before| before.in_flight < lane.in_flight);
            let is_failing = lane.state != LaneState::Active;
            assert!(
                !has_started || !is_failing || lane.in_flight == 1,
                "{lane:?} fails, and calls twice at once"
            );
        }
        assert!(self.endpoint.len() <= config.max_calls, "{} calls are in flight", self.endpoint.len());
        let failing = self.endpoint.failing();
        assert!(failing <= config.max_calls.div_ceil(2), "failing lanes have {failing} calls");
    }
    /// What holds at every moment.
    fn check(&mut self) {
        let process = &self.process;
        for totals in process.shared.metrics.totals() {
            let arrived = totals.received + totals.recovered;
            let somewhere = totals.delivered + totals.dropped_in_all() + totals.held();
            assert_eq!(arrived, somewhere, "every event is in exactly one place: {totals:?}");
            self.tally.spooled = self.tally.spooled.max(totals.spool);
        }
        for (stream, (name, _)) in STREAMS.iter().enumerate() {
            let label = process.label(stream);
            let (delivered, accepted) = (label.totals().delivered, process.accepted[stream]);
            assert_eq!(delivered, accepted, "{name}: what is counted as delivered is what was accepted");
            let possible = self.ledger.counted[stream].possible + label.possible_duplicates();
            let repeats = self.ledger.repeats[stream];
            assert!(
                repeats <= possible,
                "{name}: {repeats} events came twice, {possible} are counted as possible"
            );
        }
        self.check_memory();
    }

    /// Memory is never over its limit but by what is encoded for calls, which is charged whether there is room or not,
    /// and by what is read back from disk: an eighth of the limit and one batch beyond that, larger by a third once it
    /// is encoded.
    fn check_memory(&mut self) {
        let memory = &self.process.shared.memory;
        let over_run = memory.used().saturating_sub(memory.limit());
        self.tally.over_run = self.tally.over_run.max(over_run);
        let calls = (self.setting.config.max_calls as u64 + 1) * self.endpoint.largest();
        let longest = self.process.host.as_ref().map_or(0, |host| host.longest_read);
        let read_back = (memory.limit() / 8 + longest) * 4 / 3;
        assert!(
            over_run <= read_back + calls,
            "memory is {over_run} bytes over its limit of {}, where {read_back} may be read back, and all calls \
             together have {calls} at most",
            memory.limit()
        );
    }

    /// A lane that is stuck delays no sync that does not cover it. Where there is a spool, one batch on disk holds what
    /// several shards had of a stream, and is settled as a whole.
    fn check_delays(&self) {
        let unsettled = &self.process.unsettled;
        for client in &self.process.clients {
            let is_unsettled = |stream: usize| match self.process.host {
                Some(_) => unsettled.iter().any(|shard| shard[stream] > 0),
                None => unsettled[client.shard][stream] > 0,
            };
            let is_delayed =
                client.is_delayed(&self.process.shards[client.shard], &self.ledger, is_unsettled);
            assert!(
                !is_delayed,
                "nothing that it covers is on its way, and a sync is not answered: {client:?}"
            );
        }
    }

    fn note(&mut self, what: String) {
        let millis = self.moment().1 - EPOCH_MILLIS;
        let totals: Vec<_> = self
            .process
            .shared
            .metrics
            .totals()
            .iter()
            .map(|t| (t.stream.clone(), t.recovered, t.delivered, t.spool, t.dropped))
            .collect();
        self.history.push(format!("{millis} ms: {what}; {totals:?}"));
    }

    /// The process is killed; with it goes power, or not.
    fn crash(&mut self, power: bool) {
        self.tally.crashes += 1;
        self.note(format!("killed, with power: {power}"));
        drop(self.endpoint.cut(&mut self.ledger, &mut self.rng));
        if let Some(host) = self.process.host.take() {
            host.die(&mut self.disk, &mut self.rng);
        }
        if power {
            self.disk.lose_power(&mut self.rng);
        }
        self.ledger.kill();
        self.replace();
    }

    /// Another process takes the place of one that has ended.
    fn replace(&mut self) {
        for client in &self.process.clients {
            client.unread().for_each(|token| self.ledger.leave_unread(token));
        }
        for stream in 0..STREAMS.len() {
            let label = self.process.label(stream);
            let (totals, counted) = (label.totals(), &mut self.ledger.counted[stream]);
            counted.possible += label.possible_duplicates();
            counted.dropped += totals.dropped_in_all();
            let of = |reason: Drop| totals.dropped[reason as usize];
            counted.dropped_from_disk +=
                of(Drop::Rejected) + of(Drop::SpoolDamaged) + of(Drop::LostDownstream);
            self.tally.dropped += totals.dropped_in_all();
            self.tally.recovered += totals.recovered;
            self.tally.possible_repeats += label.possible_duplicates();
        }
        let moment = self.moment();
        self.process = Process::start(&self.setting, &mut self.disk, moment, &mut self.rng);
    }

    /// Time passes, and everybody does what there is to do.
    fn pass_all(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        let moment = self.moment();
        self.run(true);
        if let Some(host) = &mut self.process.host {
            host.perform_all(&mut self.disk, &mut self.rng, moment.1);
            host.exchange(moment);
        }
        self.run(true);
    }

    fn feed_all(&mut self) {
        for at in 0..self.process.clients.len() {
            self.feed_one(at, usize::MAX);
        }
    }

    /// The process ends in order, and another starts.
    fn restart(&mut self) {
        self.tally.restarts += 1;
        self.feed_all();
        self.run(true);
        self.process.shards.iter_mut().for_each(Shard::close_all);
        let mut drained = self.process.delivery.drain(self.now);
        let until = self.now + DRAIN_DEADLINE;
        while drained.try_recv().is_err() && self.now < until {
            self.pass_all(50);
        }
        let has_left = self.process.host.is_none() || self.leave();
        self.process.delivery.abandon(self.now);
        self.run(true);
        for totals in self.process.shared.metrics.totals() {
            assert_eq!(totals.held(), totals.spool, "what is left is on disk: {totals:?}");
        }
        drop(self.endpoint.cut(&mut self.ledger, &mut self.rng));
        let is_clean = match self.process.host.take() {
            Some(host) if has_left => host.finish(&mut self.disk),
            Some(host) => {
                host.die(&mut self.disk, &mut self.rng);
                false
            }
            None => true,
        };
        self.note(format!("ended, in time: {has_left}, clean: {is_clean}"));
        // A mark that cannot be read, and a batch that was refused and is on disk all the same, come again as well.
        if !is_clean || self.had_bad_reads {
            self.ledger.doubt_all();
        }
        self.replace();
    }

    /// The configuration is read again and is another: streams move to other lanes, are packed otherwise, or lose their
    /// table. Shards and delivery hear of it one after the other, as in a process.
    fn reload(&mut self) {
        self.tally.reloads += 1;
        self.setting.change(&mut self.rng);
        let config = Arc::new(self.setting.config.clone());
        self.endpoint.map_too(&config);
        self.process.shared.config.store(Arc::clone(&config));
        self.process.shared.registry.reload(Arc::clone(&config));
        for index in 0..self.process.shards.len() {
            self.process.shards[index].adopt();
            self.run(false);
        }
        self.endpoint.map(&config);
        self.process.delivery.reload(config, self.now);
    }

    /// Brings what is left to disk; false where the disk does not take it in time.
    fn leave(&mut self) -> bool {
        let _left = self.process.delivery.leave(self.now + Duration::from_secs(1));
        for _ in 0..200 {
            self.pass_all(50);
            if let Some(outcome) = self.process.delivery.cut() {
                for flight in self.endpoint.cut(&mut self.ledger, &mut self.rng) {
                    self.process.delivery.finish(flight, outcome.clone(), self.now);
                }
            }
            if self.process.host.as_ref().is_some_and(Host::has_stopped) {
                return true;
            }
        }
        false
    }

    /// Nothing fails any more: everything is delivered, in this process and in those that find what others left.
    fn finish(&mut self) {
        self.endpoint.heal();
        self.disk.faults = Faults::default();
        self.process.clients.iter_mut().for_each(Client::sync);
        self.drain();
        for _ in 0..2 {
            self.restart();
            self.drain();
        }
        let recovered: u64 = self.process.shared.metrics.totals().iter().map(|totals| totals.recovered).sum();
        assert_eq!((recovered, self.disk.bytes()), (0, 0), "nothing is left behind");
        self.restart();
        self.ledger.check_end(!self.had_bad_reads);
        self.tally.sent = self.ledger.len() as u64;
        self.tally.deliveries = self.ledger.deliveries;
        self.tally.repeats = self.ledger.repeats.iter().sum();
    }

    fn drain(&mut self) {
        let began = self.now;
        // What an earlier process left is found first.
        self.pass_all(100);
        loop {
            self.feed_all();
            self.pass_all(100);
            let process = &self.process;
            let is_on_disk = process.host.as_ref().is_some_and(|host| host.spool.batches() > 0);
            if process.clients.iter().all(Client::is_done) && process.held() == 0 && !is_on_disk {
                break;
            }
            assert!(
                self.now - began <= DRAINED_WITHIN,
                "nothing fails, and it is not delivered: {:?} {:?}",
                process.shared.metrics.totals(),
                process.clients
            );
        }
        let took = u64::try_from((self.now - began).as_millis()).expect("it is short");
        self.tally.drained_millis = self.tally.drained_millis.max(took);
        // Segments that are kept for a while go, too.
        for _ in 0..10 {
            self.pass_all(1_000);
        }
        assert_eq!(self.process.shared.memory.used(), 0, "all memory has come home");
    }
}
