//! A shard without its driver and its clock: bytes in, sealed batches out, and nobody sleeps. For the benches, the
//! instruction guard, the fuzz targets and the simulation, which must not depend on how a kernel batches by timing. It
//! is no second shard: every step is the one that the driver's loop takes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::intake::{Intake, Peer};
use super::placing::Places;
use super::rejects::Rejects;
use super::{Orders, Shared};
use crate::buffer::Shape;
use crate::config::Config;
use crate::destination::Encoding;
use crate::memory::{Machine, Memory, Plan};
use crate::metrics::Metrics;
use crate::net::{Handler, Key, Reading};
use crate::queue::{Handoff, Returns};
use crate::stream::Registry;

/// What the shards of a configuration share on a machine with plenty of everything, where the destination takes
/// `encoding`.
///
/// # Panics
/// Where the configuration's memory is too small for its settings, or the machine gives no event descriptor.
pub fn shared(config: Config, encoding: Encoding) -> Arc<Shared> {
    let machine = Machine { memory: 4 << 30, cpus: 2, files: 20_000 };
    let plan = Plan::new(&config, machine).expect("the memory is enough for the settings");
    shared_with(config, encoding, Memory::new(&plan), Instant::now())
}

/// The same with a limit on memory of one's own, and the instant from which time is counted.
///
/// # Panics
/// Where the machine gives no event descriptor.
pub fn shared_with(config: Config, encoding: Encoding, memory: Arc<Memory>, epoch: Instant) -> Arc<Shared> {
    let shards = config.shards.unwrap_or(1);
    let metrics = Metrics::new(epoch, shards, vec!["bare".to_owned()], config.max_stream_labels);
    let config = Arc::new(config);
    let returns: std::io::Result<Arc<[Returns]>> = (0..shards).map(|_| Returns::new()).collect();
    Arc::new(Shared {
        shape: Shape::new(encoding, &memory),
        registry: Arc::new(Registry::new(Arc::clone(&config), Arc::clone(&metrics))),
        handoff: Arc::new(Handoff::default()),
        rejects: (0..shards).map(|_| Rejects::new(config.rejected_samples)).collect(),
        orders: Orders::default(),
        tails: Arc::default(),
        places: Places::new(shards),
        connections_max: config.max_connections,
        connections: AtomicUsize::new(0),
        returns: returns.expect("an event descriptor"),
        config: ArcSwap::new(config),
        metrics,
        memory,
    })
}

/// See the module. Its connections were accepted by listener 0.
#[derive(Debug)]
pub struct Bare(Intake);

impl Bare {
    /// Shard 0 of what it shares, with `connections` open connections, which have the keys from 0 on.
    pub fn new(shared: Arc<Shared>, connections: Key) -> Self {
        let now = Instant::now();
        Self::at(shared, 0, connections, now)
    }

    /// The shard with this number, whose connections were opened at `now`.
    pub fn at(shared: Arc<Shared>, index: usize, connections: Key, now: Instant) -> Self {
        let mut intake = Intake::new(index, shared);
        intake.woke(now);
        (0..connections).for_each(|key| {
            intake.shared().places.enter(index);
            intake.opened(key, 0);
        });
        Self(intake)
    }

    /// Takes bytes that were read from a connection.
    pub fn data(&mut self, key: Key, bytes: &[u8]) {
        self.0.data(key, bytes);
    }

    /// Does what is done once after each wait: seals what is due at `now`, hears of outcomes. What the driver would
    /// be told is never done, so a bench must not let a stream come to its cap.
    pub fn turn(&mut self, now: Instant) {
        self.0.woke(now);
        self.0.caught_up = now;
        self.0.turn();
    }

    /// Takes over what the configuration has become.
    pub fn adopt(&mut self) {
        self.0.adopt();
    }

    /// Seals whatever is open.
    pub fn seal_all(&mut self) {
        self.0.seal_all();
    }

    /// The end: closes every connection that waits for no answer, drops what finds no room, and seals the rest.
    pub fn close_all(&mut self) {
        self.0.begin_drain();
        self.0.close_all();
        self.0.seal_all();
    }

    /// The answers to control frames since the last look, with the connection of each.
    pub fn take_answers(&mut self) -> Vec<(Key, Vec<u8>)> {
        self.0.take_answers()
    }

    /// Whether a connection is open.
    pub fn is_open(&self, key: Key) -> bool {
        self.peer(key).is_some()
    }

    /// Whether a connection is open, and would be read.
    pub fn is_read(&self, key: Key) -> bool {
        self.peer(key).is_some_and(|peer| peer.reading != Reading::Paused)
    }

    fn peer(&self, key: Key) -> Option<&Peer> {
        self.0.peers.get(key as usize)?.as_ref()
    }

    /// Whether a connection waits for memory: from then on a bench would measure nothing.
    pub fn has_waiting(&self) -> bool {
        self.0.has_waiting()
    }

    /// When something is due although nothing has come.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.next_due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Body;
    use crate::frame::Reject;

    #[test]
    fn lines_reach_their_stream_whatever_place_was_guessed() {
        const STREAMS: usize = 2_000;
        let shared = shared(Config::default(), Encoding::Lines);
        let mut shard = Bare::new(Arc::clone(&shared), 1);
        // Each name once, then each twice running; between them names that are not allowed.
        let mut lines = String::new();
        let mut say = |name: &str| lines += &format!("{name} of {name}\n");
        for stream in 0..STREAMS {
            say(&format!("s{stream}"));
        }
        for stream in (0..STREAMS).rev() {
            say(&format!("s{stream}"));
            say(&format!("s{stream}"));
            say(&format!("s/{stream}"));
        }
        shard.data(0, lines.as_bytes());
        let streams = &shard.0.streams;
        let names = || (0..STREAMS).map(|stream| format!("s{stream}"));
        let is_wrong = |name: &String| streams.guess(name.as_bytes()) != streams.find(name.as_bytes());
        assert!(names().filter(is_wrong).count() > 0, "no guess was wrong");
        assert!(
            (0..STREAMS).any(|stream| streams.guess(format!("s/{stream}").as_bytes()).is_some()),
            "no unknown name was guessed"
        );
        shard.seal_all();
        let mut sealed = 0;
        while let Some(batch) = shared.handoff.pop() {
            let Body::Lines(lines) = batch.body else { panic!("lines stay lines") };
            let line = format!("of {}\n", batch.ticket.stream.name);
            assert_eq!(String::from_utf8(lines).unwrap(), line.repeat(3));
            sealed += 1;
        }
        assert_eq!(sealed, STREAMS);
        let rejected = &shared.metrics.shards[0].rejected;
        assert_eq!(rejected[Reject::BadName as usize].get(), STREAMS as u64);
    }
}
