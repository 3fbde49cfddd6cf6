//! The whole pure part of the relay: real shards without sockets, real delivery without tasks, the real spool over the
//! modelled disk, dead letters on another, and nothing that moves but what the schedule draws: bytes that come in any
//! pieces, outcomes of any kind, a disk that fails, processes that are killed, power that goes. A seed is a history.
//!
//! Here is what happens while a process runs; `ending` has how processes end and others follow, `checks` what holds at
//! every moment. What must hold stands where it is checked; see "What is promised" in the design.

use std::time::{Duration, Instant};

use fastrand::Rng;
use standpipe::config::SyncAt;
use standpipe::failpoint::{self, Flaw};

use crate::disk::{Disk, Faults};
use crate::endpoint::Endpoint;
use crate::host::Moment;
use crate::ledger::{Ledger, STREAMS};
use crate::letters;

mod checks;
mod ending;
mod process;
mod setting;
mod tally;

use self::process::Process;
use self::setting::Setting;
pub use self::tally::Tally;

/// The first millisecond since 1970.
const EPOCH_MILLIS: u64 = 1_000_000_000;

/// How a history is drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    pub steps: u32,
    /// Calls end in every way.
    pub has_outcomes: bool,
    /// Disks fail.
    pub has_disk_faults: bool,
    /// Processes are killed, and power goes.
    pub has_crashes: bool,
    /// Some events are never taken.
    pub has_poison: bool,
    /// Mutation: an fsync does nothing.
    pub skips_syncs: bool,
    /// Mutation: dead letters are said to be written that are not.
    pub loses_letters: bool,
    /// Mutation: a mistake in the relay's own code.
    pub flaw: Option<Flaw>,
}

pub struct World {
    rng: Rng,
    plan: Plan,
    setting: Setting,
    disk: Disk,
    letters: letters::Faults,
    ledger: Ledger,
    endpoint: Endpoint,
    process: Process,
    start: Instant,
    now: Instant,
    /// What happened to its processes; printed where it fails.
    history: Vec<String>,
    tally: Tally,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Setting { encoding, spool, keeps_letters, .. } = &self.setting;
            println!("{encoding:?}, dead letters: {keeps_letters}, {spool:?}\n{}", self.history.join("\n"));
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
            letters: letters::Faults { loses: plan.loses_letters, ..letters::Faults::default() },
            ledger: Ledger::default(),
            process,
            start: now,
            now,
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
        self.letters.writes = draw();
        self.letters.is_stuck = self.rng.u32(..8) == 0;
        self.note(format!("{:?} {:?}", self.disk.faults, self.letters));
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
        let may_age = self.setting.max_age(stream).is_some();
        for _ in 0..self.rng.usize(1..count) {
            let length = self.rng.usize(..length);
            let filler = self.rng.alphanumeric().to_string().repeat(length);
            let is_poison = self.plan.has_poison && self.rng.u32(..80) == 0;
            let (token, frame) = self.ledger.send(stream, &filler, is_poison, may_age);
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
            let sent = self.ledger.get_mut(token);
            sent.received_at = Some(self.process.turned_at[shard]);
            self.process.receive(token, sent.stream, shard);
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

    /// Disks do a little of what they are asked.
    fn perform_some(&mut self) {
        let millis = self.moment().1;
        for _ in 0..self.rng.u32(1..30) {
            if let Some(host) = &mut self.process.host {
                host.perform_one(&mut self.disk, &mut self.rng, millis);
            }
        }
        self.hear_disk();
        for _ in 0..self.rng.u32(..4) {
            self.write_letters();
        }
    }

    /// Disks do all that they are asked.
    fn perform_all(&mut self) {
        let moment = self.moment();
        if let Some(host) = &mut self.process.host {
            host.perform_all(&mut self.disk, &mut self.rng, moment.1);
            host.exchange(moment);
        }
        self.hear_disk();
        while self.write_letters() {}
    }

    /// What the disk did not give.
    fn hear_disk(&mut self) {
        let (failed, doubtful) = self.disk.take_failed_reads();
        failed.into_iter().for_each(|token| self.ledger.note_failed_read(token));
        doubtful.into_iter().for_each(|token| self.ledger.doubt(token));
    }

    /// A bundle of dead letters is written, or cannot be; false where there is none.
    fn write_letters(&mut self) -> bool {
        let Some(letters) = &mut self.process.letters else { return false };
        let Some(tokens) = letters.perform_one(self.letters, &mut self.ledger, &mut self.rng) else {
            return false;
        };
        tokens.into_iter().for_each(|token| self.process.settle(token, self.ledger.get(token).stream));
        true
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
            self.process.turned_at[index] = self.now;
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
        known.into_iter().for_each(|token| self.process.accept(token, self.ledger.get(token).stream));
        self.process.delivery.finish(flight, outcome, self.now);
        true
    }

    /// Time passes, and everybody does what there is to do.
    fn pass_all(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.run(true);
        self.perform_all();
        self.run(true);
    }

    fn feed_all(&mut self) {
        for at in 0..self.process.clients.len() {
            self.feed_one(at, usize::MAX);
        }
    }

    fn note(&mut self, what: String) {
        let millis = self.moment().1 - EPOCH_MILLIS;
        let totals = self.process.totals();
        let totals: Vec<_> =
            totals.iter().map(|t| (&t.stream, t.recovered, t.delivered, t.spool, t.dropped)).collect();
        self.history.push(format!("{millis} ms: {what}; {totals:?}"));
    }
}
