//! The spool's state machine over the modelled disk, with a caller that appends, holds, delivers, lets go of and
//! fetches batches in random order, while the disk fails, processes are killed and power goes. It knows nothing of
//! lanes and calls; `relay` does.
//!
//! What must hold is written beside where it is checked; a failed check panics, and the caller names the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use standpipe::spool::{Event, Limits, NewBatch, Notice, OWN, Op, OpId, Spool};

use crate::disk::{Disk, Faults, token_of};
use crate::host::dir_of;

const EVENTS_MAX: usize = 3;
const STREAMS: [&str; 3] = ["clicks", "views", "a.rather-long_name.that-still-is-allowed.0123456789"];

/// What is known of a batch over all processes.
#[derive(Clone, Debug)]
struct Fact {
    lines: Bytes,
    stream: &'static str,
    events: u32,
    /// Reported stored, and not given back since.
    is_stored: bool,
    /// Said to be damaged.
    is_damaged: bool,
    /// How often the destination got each of its events.
    deliveries: [u32; EVENTS_MAX],
}

/// What a process knows of one of its batches that is in memory.
#[derive(Clone, Copy, Debug)]
struct Held {
    token: u64,
    is_stored: bool,
    /// The spool has not said yet what became of it.
    is_pending: bool,
    /// Whether to deliver it again may be to repeat it, and that is counted.
    is_flagged: bool,
    is_unknown: bool,
    /// A bit for each event that was not accepted yet.
    left: u8,
}

impl Fact {
    fn all(&self) -> u8 {
        (1 << self.events) - 1
    }

    fn is_delivered(&self) -> bool {
        self.deliveries[..self.events as usize].iter().all(|deliveries| *deliveries > 0)
    }
}

/// One process.
#[derive(Debug)]
struct Process {
    spool: Spool,
    own: u64,
    /// Disk directories by the number that the machine knows.
    dirs: BTreeMap<u32, u64>,
    under_way: Vec<(OpId, Op)>,
    held: BTreeMap<u64, Held>,
    /// In memory and not in the spool: refused, and still to be delivered.
    loose: Vec<Held>,
    /// Batches on disk that nobody holds, and those that were asked for.
    waiting: u64,
    asked: BTreeSet<u64>,
    adopting: usize,
    next_id: u64,
    appended: u64,
    is_failing_disk: bool,
    /// Bytes on disk when it started.
    found_bytes: u64,
}

/// What a history came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub appended: u64,
    pub recovered: u64,
    pub deliveries: u64,
    pub repeats: u64,
    pub damaged: u64,
    pub crashes: u64,
    pub failed_ops: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.appended += other.appended;
        self.recovered += other.recovered;
        self.deliveries += other.deliveries;
        self.repeats += other.repeats;
        self.damaged += other.damaged;
        self.crashes += other.crashes;
        self.failed_ops += other.failed_ops;
    }
}

/// How a history is drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Every batch is written and delivered at once, rather than written to make room.
    pub is_always: bool,
    pub has_faults: bool,
    /// Reads fail as well.
    pub has_bad_reads: bool,
    pub has_flips: bool,
    /// Mutation: an fsync does nothing.
    pub skips_syncs: bool,
    /// Mutation: a batch is settled when its call starts.
    pub settles_early: bool,
    /// Mutation: a call that was accepted in part is made again as a whole.
    pub resends_whole: bool,
    pub steps: u32,
}

pub struct World {
    rng: Rng,
    plan: Plan,
    disk: Disk,
    limits: Limits,
    facts: BTreeMap<u64, Fact>,
    process: Process,
    now: u64,
    /// A done mark may have been damaged: a repeat may come without a flag.
    may_repeat: bool,
    /// Reads have failed.
    had_bad_reads: bool,
    tally: Tally,
}

/// Runs one history.
pub fn run(seed: u64, plan: Plan) -> Tally {
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
        let limits = Limits {
            bytes_max: if rng.u32(..3) == 0 { 24 << 10 } else { 1 << 20 },
            free_floor: 0,
            batches_max: if rng.u32(..5) == 0 { 12 } else { 10_000 },
            segment_bytes: [900, 4 << 10, 16 << 10][rng.usize(..3)],
            group_bytes: [700, 8 << 10, 8 << 20][rng.usize(..3)],
            keep_sent: if rng.u32(..5) == 0 { 3_000 } else { 0 },
        };
        let mut disk = Disk::default();
        disk.skips_syncs = plan.skips_syncs;
        let process = Process::new(&mut disk, limits, rng.u64(..));
        Self {
            rng,
            plan,
            disk,
            limits,
            facts: BTreeMap::new(),
            process,
            now: 1_000_000,
            may_repeat: false,
            had_bad_reads: false,
            tally: Tally::default(),
        }
    }

    fn act(&mut self) {
        match self.rng.u32(..1000) {
            0..180 => self.append(),
            180..330 => self.deliver(),
            330..420 => self.release(),
            420..520 => self.fetch(),
            520..900 => self.perform_some(),
            900..960 => self.now += [1, 20, 120, 1_100, 6_000][self.rng.usize(..5)],
            960..972 => self.append_again(),
            972..984 if self.plan.has_faults => self.change_faults(),
            984..988 if self.plan.has_flips => self.flip(),
            988..993 => self.crash(true),
            993..997 => self.crash(false),
            997..1000 => self.restart(),
            _ => (),
        }
        self.check();
    }

    fn change_faults(&mut self) {
        let often = [0, 0, 20, 300, 1000];
        let mut draw = || often[self.rng.usize(..often.len())];
        self.disk.faults = Faults { writes: draw(), syncs: draw(), reads: draw(), names: draw() };
        if !self.plan.has_bad_reads {
            self.disk.faults.reads = 0;
        }
        self.had_bad_reads |= self.disk.faults.reads > 0;
        self.process.is_failing_disk = true;
    }

    fn flip(&mut self) {
        self.may_repeat |= self.disk.flip(&mut self.rng);
    }

    fn append(&mut self) {
        let token = self.facts.len() as u64;
        let events = self.rng.u32(1..=EVENTS_MAX as u32);
        let mut lines = Vec::new();
        for event in 0..events {
            lines.extend_from_slice(format!("token {token} event {event} ").as_bytes());
            // What looks like a part of the format, in the payload.
            if self.rng.u32(..6) == 0 {
                lines.extend_from_slice(b"\xc5\x1eBATCH\x01");
            }
            let length = [5, 60, 700, 3_000][self.rng.usize(..4)];
            lines.extend((0..self.rng.usize(..length)).map(|_| self.rng.alphanumeric() as u8));
            lines.push(b'\n');
        }
        let stream = STREAMS[self.rng.usize(..STREAMS.len())];
        let fact = Fact {
            lines: lines.into(),
            stream,
            events,
            is_stored: false,
            is_damaged: false,
            deliveries: [0; EVENTS_MAX],
        };
        self.facts.insert(token, fact);
        self.tally.appended += 1;
        let left = (1 << events) - 1;
        let fresh =
            Held { token, is_stored: false, is_pending: false, is_flagged: false, is_unknown: false, left };
        if self.plan.is_always || self.rng.u32(..4) > 0 {
            self.give(fresh);
        } else {
            self.process.loose.push(fresh);
        }
    }

    /// Gives to the spool what is in memory alone, after a refusal for instance.
    fn append_again(&mut self) {
        if !self.process.loose.is_empty() {
            let at = self.rng.usize(..self.process.loose.len());
            let held = self.process.loose[at];
            if held.left == self.facts[&held.token].all() {
                self.process.loose.swap_remove(at);
                self.give(held);
            }
        }
    }

    fn give(&mut self, held: Held) {
        let fact = &self.facts[&held.token];
        let process = &mut self.process;
        let id = process.next_id;
        process.next_id += 1;
        process.appended += 1;
        let batch = NewBatch {
            stream: Arc::from(fact.stream),
            lines: fact.lines.clone().into(),
            events: fact.events,
            oldest: self.now,
            is_unknown: held.is_unknown,
        };
        process.held.insert(id, Held { is_pending: true, is_stored: false, ..held });
        process.spool.append(id, batch, self.now);
        self.hear();
    }

    /// A call with a batch that is in memory is made, and ends.
    fn deliver(&mut self) {
        let ids: Vec<u64> = self.process.held.keys().copied().collect();
        let at = self.rng.usize(..=ids.len() + self.process.loose.len());
        if let Some(id) = ids.get(at) {
            if self.plan.settles_early {
                self.process.spool.done(*id, self.now);
            }
            let mut held = self.process.held[id];
            self.call(&mut held);
            if held.left > 0 {
                self.process.held.insert(*id, held);
            } else {
                self.process.held.remove(id);
                self.process.spool.done(*id, self.now);
            }
        } else if at - ids.len() < self.process.loose.len() {
            let mut held = self.process.loose.swap_remove(at - ids.len());
            self.call(&mut held);
            if held.left > 0 {
                self.process.loose.push(held);
            }
        }
    }

    /// One call: what is accepted of it is not sent again, unless nobody can know.
    fn call(&mut self, held: &mut Held) {
        match self.rng.u32(..10) {
            0 => (),
            1 => {
                self.arrive(*held, held.left);
                (held.is_flagged, held.is_unknown) = (true, true);
            }
            2..5 => {
                let accepted = held.left & self.rng.u8(..);
                self.arrive(*held, accepted);
                if accepted == held.left || !self.plan.resends_whole {
                    held.left &= !accepted;
                }
            }
            _ => {
                self.arrive(*held, held.left);
                held.left = 0;
            }
        }
    }

    /// The destination gets events of a batch. It gets none twice unless that was counted as possible.
    fn arrive(&mut self, held: Held, events: u8) {
        let fact = self.facts.get_mut(&held.token).expect("known");
        for event in (0..fact.events as usize).filter(|event| events & (1 << event) != 0) {
            fact.deliveries[event] += 1;
            self.tally.deliveries += 1;
            if fact.deliveries[event] > 1 {
                self.tally.repeats += 1;
                let is_allowed = held.is_flagged || self.may_repeat;
                assert!(is_allowed, "batch {} is repeated and that is counted nowhere", held.token);
            }
        }
    }

    /// Memory is short: something that is stored is let go of.
    fn release(&mut self) {
        let is_whole = |held: &Held| held.left == self.facts[&held.token].all();
        let stored = self.process.held.iter().filter(|(_, held)| held.is_stored && is_whole(held));
        let ids: Vec<u64> = stored.map(|(id, _)| *id).collect();
        let Some(id) = self.rng.choice(ids) else { return };
        let held = self.process.held.remove(&id).expect("it is held");
        self.process.waiting += 1;
        self.process.spool.release(id, held.is_unknown);
        self.hear();
    }

    fn fetch(&mut self) {
        let stream = STREAMS[self.rng.usize(..STREAMS.len())];
        self.ask(stream);
        self.hear();
    }

    fn ask(&mut self, stream: &str) -> bool {
        let Some((id, _)) = self.process.spool.fetch(stream) else { return false };
        self.process.waiting -= 1;
        assert!(self.process.asked.insert(id), "{id} is given twice");
        true
    }

    /// Starts an operation, or ends one that is under way; which, is drawn.
    fn perform_one(&mut self) -> bool {
        let process = &mut self.process;
        if process.under_way.is_empty() || (process.under_way.len() < 8 && self.rng.bool()) {
            match process.spool.next_op(self.now) {
                Some(started) => process.under_way.push(started),
                None if process.under_way.is_empty() => {
                    self.hear();
                    return false;
                }
                None => (),
            }
        }
        if !process.under_way.is_empty() && self.rng.u32(..3) > 0 {
            let at = self.rng.usize(..process.under_way.len());
            let (id, op) = process.under_way.swap_remove(at);
            let dir = process.dirs[&dir_of(&op)];
            let result = self.disk.perform(dir, &op, &mut self.rng);
            process.spool.completed(id, result, self.now);
        }
        self.hear();
        true
    }

    fn perform_some(&mut self) {
        for _ in 0..self.rng.u32(1..12) {
            self.perform_one();
        }
    }

    /// Performs until nothing is left to do for now.
    fn perform_all(&mut self) {
        for _ in 0..1_000_000 {
            if !self.perform_one() {
                return;
            }
        }
        panic!("the machine never comes to rest");
    }

    fn hear(&mut self) {
        while let Some(event) = self.process.spool.next_event() {
            match event {
                Event::Stored(id) => self.stored(id),
                Event::Refused(id, _) => {
                    let held = self.process.held.remove(&id);
                    if let Some(held) = held {
                        self.facts.get_mut(&held.token).expect("known").is_stored = false;
                        self.process.loose.push(Held { is_pending: false, is_stored: false, ..held });
                    }
                }
                Event::Loaded { id, header, lines, is_doubtful } => {
                    let is_flagged = is_doubtful || header.is_unknown;
                    self.loaded(id, &header.stream, header.events, &lines, is_flagged, header.is_unknown);
                }
                Event::Damaged { id, header, was_asked } => {
                    self.damaged(id, header.crc, &header.stream, was_asked);
                }
                // It is held in memory, or was until just now, and stays on disk.
                Event::Unreadable(_) | Event::Nothing(_) => (),
                Event::Recovered { batches, .. } => {
                    self.process.waiting += batches;
                    self.tally.recovered += batches;
                }
                Event::Notice(Notice::Adopted { .. }) => self.process.adopting -= 1,
                Event::Notice(notice) => drop(notice.to_string()),
                Event::Left(dir) => panic!("directory {dir} is left alone"),
            }
        }
    }

    fn stored(&mut self, id: u64) {
        // It may have been delivered while it was written.
        if let Some(held) = self.process.held.get_mut(&id) {
            assert!(std::mem::take(&mut held.is_pending), "{id} is stored twice");
            held.is_stored = true;
            self.facts.get_mut(&held.token).expect("known").is_stored = true;
        }
    }

    /// Nothing comes back that was not given, and what comes back is the same.
    fn loaded(
        &mut self,
        id: u64,
        stream: &str,
        events: u32,
        lines: &[u8],
        is_flagged: bool,
        is_unknown: bool,
    ) {
        assert!(self.process.asked.remove(&id), "{id} comes without being asked for");
        let token = token_of(lines).expect("what is read back was appended");
        let fact = &self.facts[&token];
        assert!(fact.lines == lines && fact.stream == stream && fact.events == events, "{token} has changed");
        let left = fact.all();
        let held = Held { token, is_stored: true, is_pending: false, is_flagged, is_unknown, left };
        assert!(self.process.held.insert(id, held).is_none(), "{id} is read back while it is held");
    }

    fn damaged(&mut self, id: u64, crc: u32, stream: &str, was_asked: bool) {
        // What is moved to another segment is read without being asked for.
        assert_eq!(self.process.asked.remove(&id), was_asked, "{id} was asked for");
        self.process.waiting -= u64::from(!was_asked);
        self.tally.damaged += 1;
        let is_it = |fact: &&u64| {
            let fact = &self.facts[*fact];
            fact.stream == stream && crc32c::crc32c(&fact.lines) == crc
        };
        let token = *self.facts.keys().find(is_it).expect("what is damaged was appended");
        self.lose(token);
    }

    /// One copy of a batch is counted as damaged: `finish` looks whether there should have been another.
    fn lose(&mut self, token: u64) {
        self.facts.get_mut(&token).expect("known").is_damaged = true;
    }

    /// The process dies; with it goes power, or not.
    fn crash(&mut self, power: bool) {
        self.tally.crashes += 1;
        for (_, op) in std::mem::take(&mut self.process.under_way) {
            let dir = self.process.dirs[&dir_of(&op)];
            self.disk.perform_partly(dir, &op, &mut self.rng);
        }
        if power {
            self.disk.lose_power(&mut self.rng);
        }
        self.start();
    }

    /// The process ends in order, and another starts.
    fn restart(&mut self) {
        // What is in memory goes to disk, is delivered, or is dropped and counted.
        while self.process.held.values().any(|held| held.is_pending) {
            self.perform_all();
            self.now += 1_000;
        }
        for (id, held) in self.process.held.clone() {
            if held.left != self.facts[&held.token].all() {
                self.process.held.remove(&id);
                self.arrive(held, held.left);
                self.process.spool.done(id, self.now);
            }
        }
        while self.process.held.values().any(|held| held.is_stored) {
            self.release();
        }
        self.process.loose.clear();
        self.process.spool.stop();
        for _ in 0..100 {
            self.perform_all();
            if self.process.spool.is_idle() {
                break;
            }
            self.now += 1_000;
        }
        assert!(self.process.spool.is_idle(), "it never comes to its end: {:?}", self.process.spool);
        for (dir, on_disk) in self.process.dirs.clone() {
            if !self.process.spool.has_files(dir) {
                self.disk.remove_if_empty(on_disk);
            }
            if !self.process.spool.is_doubtful(dir) {
                self.disk.note_clean(on_disk);
            }
        }
        self.start();
    }

    fn start(&mut self) {
        self.process = Process::new(&mut self.disk, self.limits, self.rng.u64(..));
        self.process.is_failing_disk =
            self.disk.faults.writes + self.disk.faults.syncs + self.disk.faults.names > 0;
        self.process.adopt(&mut self.disk);
    }

    /// What holds at every moment.
    fn check(&mut self) {
        if !self.had_bad_reads && !self.disk.has_flips() {
            assert_eq!(self.process.spool.damaged_segments(), 0, "what power tore is no damage");
        }
        let process = &self.process;
        let spool = &process.spool;
        if process.under_way.is_empty() && process.adopting == 0 {
            // Everything is in one place. What is settled while it is written leaves when that is done.
            let held = process.held.len() as u64 + process.waiting + process.asked.len() as u64;
            assert!(
                spool.batches() as u64 >= held,
                "the spool has {}, and should have {held}",
                spool.batches()
            );
        }
        if !process.is_failing_disk && !self.disk.has_flips() {
            // Headers, indexes and marks come on top of what a batch is charged with.
            let beside = 4_096 + 160 * process.appended;
            let bytes = self.disk.bytes();
            assert!(
                bytes <= self.limits.bytes_max.max(process.found_bytes) + beside,
                "{bytes} bytes are on disk, of which the spool knows {}, and the limit is {}",
                spool.bytes(),
                self.limits.bytes_max
            );
        }
    }

    /// The last crash; then a process on a disk that works reads everything back, and ends.
    fn finish(&mut self) {
        self.tally.failed_ops = self.disk.failed;
        self.disk.faults = Faults::default();
        let power = self.rng.bool();
        self.crash(power);
        self.perform_all();
        assert_eq!(self.process.adopting, 0, "everything is taken over");
        let mut found = BTreeSet::new();
        for stream in STREAMS {
            while self.ask(stream) {
                self.perform_all();
                for (id, held) in std::mem::take(&mut self.process.held) {
                    found.insert(held.token);
                    self.arrive(held, held.left);
                    self.process.spool.done(id, self.now);
                }
            }
        }
        self.hear();
        assert_eq!(
            (self.process.waiting, self.process.asked.len()),
            (0, 0),
            "what was recovered was read back"
        );
        for (token, fact) in &self.facts {
            if fact.is_stored && !fact.is_delivered() && !found.contains(token) {
                let damage = self.disk.damage(*token);
                // What cannot be read again and again counts as damaged.
                let is_unreadable = fact.is_damaged && self.had_bad_reads;
                assert!(
                    damage.lines || damage.heads || is_unreadable,
                    "batch {token} was stored, and is lost"
                );
                assert!(
                    fact.is_damaged || damage.heads,
                    "batch {token} was damaged, and that is not counted"
                );
            }
        }
        self.process.spool.stop();
        for _ in 0..100 {
            self.perform_all();
            self.now += 1_000;
        }
        assert!(self.process.spool.is_idle(), "it never comes to its end: {:?}", self.process.spool);
        assert_eq!((self.process.spool.batches(), self.disk.bytes()), (0, 0), "nothing is left behind");
    }
}

impl Process {
    fn new(disk: &mut Disk, limits: Limits, seed: u64) -> Self {
        let own = disk.make_dir();
        Self {
            spool: Spool::new(limits, seed),
            own,
            dirs: BTreeMap::from([(OWN, own)]),
            under_way: Vec::new(),
            held: BTreeMap::new(),
            loose: Vec::new(),
            waiting: 0,
            asked: BTreeSet::new(),
            adopting: 0,
            next_id: 0,
            appended: 0,
            is_failing_disk: false,
            found_bytes: disk.bytes(),
        }
    }

    fn adopt(&mut self, disk: &mut Disk) {
        for dir in disk.dirs().into_iter().filter(|dir| *dir != self.own) {
            let number = self.dirs.len() as u32;
            self.dirs.insert(number, dir);
            let is_clean = disk.take_clean(dir);
            self.spool.adopt(number, &disk.list(dir), !is_clean);
            self.adopting += 1;
        }
    }
}
