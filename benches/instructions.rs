//! What `tests/guard.sh` counts the instructions of: parse → append → seal → outcome, over bytes in memory, with no
//! socket, no thread, no clock that decides anything, and no hash (the destination is `null`). Run by itself it
//! shows nothing.
//!
//! `instructions SIZE STREAMS` feeds the same events again and again through one shard and settles all of its
//! batches by delivery itself; the first rounds warm up, and only what happens below [`measured`] is to be counted.
//! On standard output it says how many events that were. Hash seeds and the allocator's choices differ from run to
//! run, hence many rounds.
//!
//! Streams that gather 64 KiB are encoded as they come, for Firehose; others stay lines, as they would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use standpipe::delivery::Delivery;
use standpipe::destination::{Destination, Encoding};
use standpipe::relay::parts;
use standpipe::shard::Shared;
use standpipe::shard::bare::Bare;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

mod support;

use support::READ_BYTES;
use support::traffic::{Order, Traffic};

/// Octets of payload in one round: a full body for one stream, and one well begun for each of sixteen.
const BYTES: usize = 6 << 20;

const WARM_UP_ROUNDS: u64 = 4;
const ROUNDS: u64 = 8;

/// A relay of one shard, on one thread, whose time passes only when it is told.
struct Relay {
    shared: Arc<Shared>,
    shard: Bare,
    runtime: Runtime,
    now: Instant,
    /// Delivery lives as long as somebody could command it.
    _commands: mpsc::Sender<standpipe::delivery::Command>,
}

impl Relay {
    fn new() -> Self {
        let shared = support::shared(Encoding::Records);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime of one thread");
        let parts = parts(&shared, &Arc::new(Destination::Null));
        let (commands, orders) = mpsc::channel(1);
        runtime.spawn(Delivery::new(parts, None).run(orders));
        let (shard, now) = (Bare::new(Arc::clone(&shared), 1), shared.metrics.epoch);
        Self { shared, shard, runtime, now, _commands: commands }
    }

    /// Feeds everything, then lets `linger` pass so that what is open is sealed, and delivers.
    fn round(&mut self, traffic: &Traffic) {
        for read in traffic.bytes.chunks(READ_BYTES) {
            self.shard.data(0, read);
            self.deliver();
        }
        self.now += 2 * self.shared.config.load().linger;
        self.shard.turn(self.now);
        self.deliver();
        self.now += Duration::from_millis(1);
        self.shard.turn(self.now);
        assert_eq!(self.shared.memory.used(), 0, "every batch is settled and its memory has come home");
    }

    /// Lets delivery run until it has nothing left to do.
    fn deliver(&self) {
        if self.shared.handoff.is_empty() {
            return;
        }
        let used = || self.shared.memory.used();
        self.runtime.block_on(async {
            let mut before = u64::MAX;
            while !self.shared.handoff.is_empty() || used() < before {
                before = used();
                // Delivery hears of a batch, calls, and hears of the outcome: each is one turn of the runtime.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
}

/// The instructions below this function are counted.
#[inline(never)]
fn measured(relay: &mut Relay, traffic: &Traffic) {
    (0..ROUNDS).for_each(|_| relay.round(traffic));
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<usize>());
    let (Some(Ok(size)), Some(Ok(streams))) = (numbers.next(), numbers.next()) else {
        eprintln!("usage: instructions SIZE STREAMS");
        std::process::exit(2);
    };
    let traffic = Traffic::of_bytes(size, streams, BYTES, Order::Shuffled);
    let mut relay = Relay::new();
    (0..WARM_UP_ROUNDS).for_each(|_| relay.round(&traffic));
    measured(&mut relay, &traffic);
    let totals = relay.shared.metrics.totals();
    let delivered: u64 = totals.iter().map(|totals| totals.delivered).sum();
    assert_eq!(delivered, (WARM_UP_ROUNDS + ROUNDS) * traffic.events, "every event is delivered");
    println!("{}", ROUNDS * traffic.events);
}
