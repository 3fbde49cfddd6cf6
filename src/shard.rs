//! A shard: one pinned thread that reads its connections, cuts frames, gathers events in stream buffers and
//! seals batches. No locks, no async; after start-up nothing is allocated, logged or timed per event.
//!
//! It meets delivery only in `queue`. [`run`] is the loop; `shard::intake` is what happens to bytes;
//! `shard::reading` decides how much of each connection is read; `shard::adopting` takes over changed settings; `shard::answering` answers control frames and,
//! with `shard::sync` and `shard::window`, says when what a connection sent is safe; `shard::leaving` closes
//! connections without loss, and `shard::placing` says which shard gets a connection.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::buffer::Shape;
use crate::config::Config;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::net::listen::Listener;
use crate::net::{Driver, DriverKind, Reaped};
use crate::queue::{Handoff, Returns};
use crate::stream::Registry;
use crate::tail::Tails;

mod adopting;
mod answering;
#[doc(hidden)]
pub mod bare;
mod intake;
mod leaving;
pub mod placing;
mod reading;
pub mod rejects;
mod roster;
mod sync;
mod window;

use self::intake::Intake;
use self::placing::Places;
use self::rejects::Rejects;

/// A read of fewer bytes on average than this comes from writers of single lines.
const SMALL_READ_MEAN_BYTES: u64 = 4 * 1024;
/// How long a shard lets such reads gather. Never noticed behind `linger`, whose least value is ten times this.
const GATHER_PAUSE: Duration = Duration::from_micros(950);
/// How often a shard looks after connections that wait for memory, beside being woken for it.
const WAITING_CHECK: Duration = Duration::from_millis(100);
/// How long the last answers to syncs may take to be written before the thread ends.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// What all shards share.
#[derive(Debug)]
pub struct Shared {
    /// The settings as they are now. Shards have a copy of their own, and take over another when they are told to.
    pub config: ArcSwap<Config>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The limit on memory.
    pub memory: Arc<Memory>,
    /// Streams by name.
    pub registry: Arc<Registry>,
    /// Where batches go.
    pub handoff: Arc<Handoff>,
    /// Where outcomes and bells come from, one a shard.
    pub returns: Arc<[Returns]>,
    /// How stream buffers are built.
    pub shape: Shape,
    /// The last frames that were not taken, one a shard.
    pub rejects: Box<[Rejects]>,
    /// What the shards are to do.
    pub orders: Orders,
    /// Who looks at events as they come.
    pub tails: Arc<Tails>,
    /// Which shard gets a connection.
    pub places: Places,
    /// Connections accepted at most, over all shards.
    pub connections_max: usize,
    /// Connections open now, over all shards.
    pub connections: AtomicUsize,
}

/// What shards are told, and what they tell back.
#[derive(Debug, Default)]
pub struct Orders {
    phase: AtomicU8,
    /// Shards that accept and read.
    serving: Count,
    /// Shards that accept no more.
    stopped: Count,
    /// Shards that have sealed all and read nothing any more.
    quiet: Count,
    /// By the index of an address: whether another process goes on listening on its sockets.
    kept: OnceLock<Box<[bool]>>,
    /// How often every shard has been asked to forget idle streams.
    sweeps: AtomicUsize,
    /// How often the settings have changed, and how many shards have taken them over, all times together.
    reloads: AtomicUsize,
    adopted: Count,
    /// How often the roll was called, and how many answers there were to all calls.
    rolls: AtomicUsize,
    present: Count,
}

/// How many shards have come to a point.
#[derive(Debug, Default)]
struct Count {
    shards: AtomicUsize,
    more: tokio::sync::Notify,
}

impl Count {
    fn one_more(&self) {
        self.shards.fetch_add(1, Ordering::AcqRel);
        self.more.notify_one();
    }

    fn get(&self) -> usize {
        self.shards.load(Ordering::Acquire)
    }

    /// Resolves when there are so many. Only one may wait at a time.
    async fn reaches(&self, shards: usize) {
        while self.get() < shards {
            self.more.notified().await;
        }
    }
}

/// What the shards do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accept and read.
    Serve = 0,
    /// Accept no more, read every connection out, seal.
    Drain = 1,
    /// Close what is still open and seal.
    Close = 2,
    /// End the thread.
    Stop = 3,
}

impl Orders {
    /// What the shards are to do now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serve,
            1 => Phase::Drain,
            2 => Phase::Close,
            _ => Phase::Stop,
        }
    }

    /// Tells every shard to go on to a phase.
    pub fn advance(&self, phase: Phase, returns: &[Returns]) {
        self.phase.store(phase as u8, Ordering::Release);
        returns.iter().for_each(|shard| shard.bell.ring());
    }

    /// Tells every shard to forget the streams that have been idle for long.
    pub fn sweep(&self, returns: &[Returns]) {
        self.sweeps.fetch_add(1, Ordering::AcqRel);
        returns.iter().for_each(|shard| shard.bell.ring());
    }

    /// Resolves when every shard has taken over what [`Shared::config`] has become. Only one may wait at a time.
    pub async fn reload(&self, returns: &[Returns]) {
        let reloads = self.reloads.fetch_add(1, Ordering::AcqRel) + 1;
        returns.iter().for_each(|shard| shard.bell.ring());
        self.adopted.reaches(reloads * returns.len()).await;
    }

    /// Says which addresses another process goes on listening on, by their index. Only the first word counts.
    pub fn keep(&self, kept: Box<[bool]>) {
        let _ = self.kept.set(kept);
    }

    fn is_kept(&self, address: usize) -> bool {
        self.kept.get().is_some_and(|kept| kept.get(address).is_some_and(|kept| *kept))
    }

    /// Resolves when every shard accepts and reads.
    pub async fn all_serving(&self, shards: usize) {
        self.serving.reaches(shards).await;
    }

    /// Resolves when every shard accepts no more.
    pub async fn all_stopped(&self, shards: usize) {
        self.stopped.reaches(shards).await;
    }

    /// Resolves when every shard is done with reading.
    pub async fn all_quiet(&self, shards: usize) {
        self.quiet.reaches(shards).await;
    }

    /// Resolves when every shard has come round since.
    pub async fn call_the_roll(&self, returns: &[Returns]) {
        let rolls = self.rolls.fetch_add(1, Ordering::AcqRel) + 1;
        returns.iter().for_each(|shard| shard.bell.ring());
        self.present.reaches(rolls * returns.len()).await;
    }
}

/// One shard's part of the start.
#[derive(Debug)]
pub struct Seat {
    /// Its number, from 0.
    pub index: usize,
    /// The CPU that it is pinned to, where there are enough of them.
    pub core: Option<core_affinity::CoreId>,
    /// Its own listening sockets.
    pub listeners: Vec<Listener>,
    /// Which driver it uses.
    pub driver: DriverKind,
    /// Bytes of receive buffers.
    pub receive_bytes: usize,
}

/// Runs one shard on the calling thread until it is told to stop.
///
/// # Errors
/// Where the driver fails in a way that nothing mends.
pub fn run(seat: Seat, shared: Arc<Shared>) -> io::Result<()> {
    if let Some(core) = seat.core {
        core_affinity::set_for_current(core);
    }
    let returns = Arc::clone(&shared.returns);
    let driver = Driver::new(seat.driver, seat.listeners, returns, seat.index, seat.receive_bytes)?;
    shared.orders.serving.one_more();
    Shard::new(seat.index, driver, shared).run()
}

/// The state of one shard.
struct Shard {
    driver: Driver,
    intake: Intake,
    phase: Phase,
    sweeps: usize,
    reloads: usize,
    rolls: usize,
    pause: Duration,
    is_quiet: bool,
    draining_since: Option<Instant>,
}

impl Shard {
    fn new(index: usize, driver: Driver, shared: Arc<Shared>) -> Self {
        let intake = Intake::new(index, shared);
        Self {
            driver,
            intake,
            phase: Phase::Serve,
            sweeps: 0,
            reloads: 0,
            rolls: 0,
            pause: Duration::ZERO,
            is_quiet: false,
            draining_since: None,
        }
    }

    fn run(mut self) -> io::Result<()> {
        let mut woke = Instant::now();
        loop {
            let busy = woke.elapsed();
            self.intake.counters().busy_nanoseconds.add(u64::try_from(busy.as_nanos()).unwrap_or(0));
            let timeout = self.timeout(Instant::now());
            let reaped = self.driver.wait(timeout, self.pause, &mut self.intake)?;
            woke = self.intake.now();
            self.intake.caught_up = reaped.caught_up.unwrap_or(self.intake.caught_up);
            self.pause = self.pause_after(reaped);
            self.intake.turn();
            self.obey();
            self.intake.apply(&mut self.driver);
            if self.phase == Phase::Stop {
                return self.say_the_last();
            }
        }
    }

    /// Answers what the last outcomes make possible, and gives the answers a moment to be written.
    fn say_the_last(mut self) -> io::Result<()> {
        let until = Instant::now() + LAST_ANSWERS;
        self.intake.turn();
        self.intake.apply(&mut self.driver);
        while self.intake.has_unwritten() && Instant::now() < until {
            self.driver.wait(Some(LAST_ANSWERS / 10), Duration::ZERO, &mut self.intake)?;
            self.intake.apply(&mut self.driver);
        }
        Ok(())
    }

    /// How long nothing needs to be done unless something comes.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let due = self.intake.next_due().map(|due| due.saturating_duration_since(now));
        let waiting = self.intake.has_waiting().then_some(WAITING_CHECK);
        let look = self.intake.look_at.map(|at| at.saturating_duration_since(now));
        let draining = (self.phase > Phase::Serve && !self.is_read_out()).then_some(leaving::LOOK_INTERVAL);
        [due, waiting, look, draining].into_iter().flatten().min()
    }

    /// Does what the process wants of all shards.
    fn obey(&mut self) {
        let phase = self.intake.orders().phase();
        if phase > self.phase {
            self.enter(phase);
        }
        self.intake.welcome(&mut self.driver);
        self.intake.see_off();
        if self.phase > Phase::Serve {
            self.become_quiet();
        }
        let sweeps = self.intake.orders().sweeps.load(Ordering::Acquire);
        if sweeps != self.sweeps {
            self.sweeps = sweeps;
            self.intake.sweep();
        }
        // What came before the last was answered is answered as well, or the counts would lag for ever.
        while self.reloads < self.intake.orders().reloads.load(Ordering::Acquire) {
            self.reloads += 1;
            self.intake.adopt();
            self.intake.orders().adopted.one_more();
        }
        while self.rolls < self.intake.orders().rolls.load(Ordering::Acquire) {
            self.rolls += 1;
            self.intake.orders().present.one_more();
        }
    }

    /// Seals all once nothing is read any more.
    fn become_quiet(&mut self) {
        if self.phase > Phase::Drain {
            self.intake.close_all();
        }
        // Connections that were accepted just before listening stopped may still be on their way here.
        let settles = if self.phase == Phase::Drain { leaving::QUIET } else { Duration::ZERO };
        let settled = self.draining_since.is_some_and(|since| since.elapsed() >= settles);
        let was_quiet = self.is_quiet;
        self.is_quiet |= self.intake.is_done() && settled && !self.intake.may_have_arrivals();
        if self.is_quiet {
            // One that comes even later has brought more.
            self.intake.seal_all();
        }
        if self.is_quiet && !was_quiet {
            self.intake.orders().quiet.one_more();
        }
    }

    fn is_read_out(&self) -> bool {
        self.is_quiet && self.intake.is_done()
    }

    fn enter(&mut self, phase: Phase) {
        if self.phase == Phase::Serve {
            self.draining_since = Some(Instant::now());
            let shared = self.intake.shared_again();
            self.driver.stop_listening(|address| shared.orders.is_kept(address), &mut self.intake);
            shared.orders.stopped.one_more();
            self.intake.begin_drain();
        }
        self.phase = phase;
    }

    /// Reads of single lines are worth waiting for: they cost several times less when they come together. And a
    /// shard that is ahead of delivery lets it have the processor: it still takes all its buffers hold after that.
    fn pause_after(&self, reaped: Reaped) -> Duration {
        let is_small = reaped.reads > 0 && reaped.bytes / reaped.reads < SMALL_READ_MEAN_BYTES;
        let is_ahead = self.intake.shared().memory.is_behind();
        if is_small || is_ahead { GATHER_PAUSE } else { Duration::ZERO }
    }
}
