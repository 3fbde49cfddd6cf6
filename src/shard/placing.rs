//! Which shard gets a connection: the one with the least to do, whoever accepted it. The kernel deals connections out
//! by a hash, which is even for many and not for few: of four, all are on one of two shards once in eight times.
//!
//! What counts is how many connections a shard has and, by half of that, how many bytes it received lately. The shard
//! that accepted keeps a connection where that is about as good, since passing it on costs a wake-up.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_queue::SegQueue;

/// How often a choice is made anew because another shard has chosen meanwhile.
const TRIES: usize = 8;
/// What bytes weigh against connections.
const BYTES_WEIGHT: f64 = 0.5;
/// Received bytes a second below which it makes no difference where they are received.
const BYTES_FLOOR: f64 = 1e6;
/// So much more than the least loaded a shard may have to do and still keep what it accepted, in parts of the mean.
const SLACK: f64 = 1.0 / 16.0;

/// What every shard has to do, as all of them see it, and connections on their way from one to another.
#[derive(Debug)]
pub struct Places(Box<[Place]>);

/// One shard. A cache line of its own, since all shards look at it when they accept.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place {
    /// Connections that it has or will have.
    connections: AtomicUsize,
    bytes_a_second: AtomicU64,
    arrivals: SegQueue<Arrival>,
}

/// A connection that another shard has accepted.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) socket: OwnedFd,
    pub(super) address: usize,
}

impl Places {
    /// Places for so many shards.
    pub fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| Place::default()).collect())
    }

    /// Takes note of what each shard received within the last second. The mean of the last few counts.
    pub fn weigh(&self, received: impl Iterator<Item = u64>) {
        for (place, bytes) in self.0.iter().zip(received) {
            let before = place.bytes_a_second.load(Ordering::Relaxed);
            place.bytes_a_second.store(before.midpoint(bytes), Ordering::Relaxed);
        }
    }

    /// Chooses a shard for a connection that shard `here` has accepted, and counts it there.
    pub(super) fn choose(&self, here: usize) -> usize {
        for _ in 0..TRIES {
            let (shard, connections) = self.least_loaded(here);
            let place = &self.0[shard].connections;
            let taken =
                place.compare_exchange(connections, connections + 1, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_ok() {
                return shard;
            }
        }
        self.enter(here);
        here
    }

    /// A connection is on this shard.
    pub(super) fn enter(&self, shard: usize) {
        self.0[shard].connections.fetch_add(1, Ordering::AcqRel);
    }

    /// A connection is on this shard no more.
    pub(super) fn leave(&self, shard: usize) {
        self.0[shard].connections.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn send(&self, shard: usize, arrival: Arrival) {
        self.0[shard].arrivals.push(arrival);
    }

    pub(super) fn arrival(&self, shard: usize) -> Option<Arrival> {
        self.0[shard].arrivals.pop()
    }

    pub(super) fn has_arrivals(&self, shard: usize) -> bool {
        !self.0[shard].arrivals.is_empty()
    }

    /// The shard, with its number of connections.
    fn least_loaded(&self, here: usize) -> (usize, usize) {
        let shards = self.0.len() as f64;
        let (connections, bytes) =
            self.0.iter().map(Place::load).fold((0, 0), |sum, load| (sum.0 + load.0, sum.1 + load.1));
        let mean_connections = (connections as f64 / shards).max(1.0 / shards);
        let mean_bytes = (bytes as f64 / shards).max(BYTES_FLOOR);
        let score = |(connections, bytes): (usize, u64)| {
            connections as f64 / mean_connections + BYTES_WEIGHT * bytes as f64 / mean_bytes
        };
        let own = self.0[here].load();
        let first = (here, own.0, score(own) - SLACK);
        let loads = self.0.iter().map(Place::load).enumerate();
        let (shard, connections, _) = loads.fold(first, |least, (shard, load)| {
            let score = score(load);
            if score < least.2 { (shard, load.0, score) } else { least }
        });
        (shard, connections)
    }
}

impl Place {
    fn load(&self) -> (usize, u64) {
        (self.connections.load(Ordering::Acquire), self.bytes_a_second.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(places: &Places) -> Vec<usize> {
        places.0.iter().map(|place| place.load().0).collect()
    }

    #[test]
    fn few_connections_are_dealt_out_evenly_whoever_accepts_them() {
        let places = Places::new(4);
        for _ in 0..16 {
            places.choose(3);
        }
        assert_eq!(counts(&places), [4, 4, 4, 4]);
        (0..4).for_each(|_| places.leave(1));
        (0..4).for_each(|_| assert_eq!(places.choose(0), 1));
    }

    #[test]
    fn of_many_connections_few_are_passed_on() {
        let places = Places::new(2);
        let mut random = fastrand::Rng::with_seed(7);
        let mut passed = 0;
        for _ in 0..10_000 {
            let here = random.usize(..2);
            passed += usize::from(places.choose(here) != here);
        }
        let counts = counts(&places);
        assert!(counts[0].abs_diff(counts[1]) <= 10_000 / 16, "{counts:?}");
        assert!(passed < 500, "{passed} were passed on");
    }

    #[test]
    fn who_receives_much_gets_fewer() {
        let places = Places::new(2);
        (0..2).for_each(|shard| (0..10).for_each(|_| places.enter(shard)));
        (0..4).for_each(|_| places.weigh([900_000_000, 1_000].into_iter()));
        (0..5).for_each(|_| assert_eq!(places.choose(0), 1));
        // But not all of them.
        (0..100).for_each(|_| _ = places.choose(0));
        assert!(counts(&places)[0] > 30, "{:?}", counts(&places));
    }

    #[test]
    fn shards_that_choose_at_the_same_time_do_not_choose_the_same() {
        let places = Places::new(4);
        std::thread::scope(|scope| {
            (0..4).for_each(|here| {
                let places = &places;
                scope.spawn(move || (0..8).for_each(|_| _ = places.choose(here)));
            });
        });
        assert_eq!(counts(&places).iter().sum::<usize>(), 32);
        assert!(counts(&places).iter().all(|count| (7..=9).contains(count)), "{:?}", counts(&places));
    }
}
