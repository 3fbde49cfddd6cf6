//! Relays that share quotas and know nothing of each other: real shards without sockets and real delivery without tasks,
//! by a manual clock, in front of delivery streams that accept so many bytes a second and throttle the rest, record by
//! record. What is asked is whether the fleet comes to use a quota, evenly, and stays there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use standpipe::config::{
    Config, DeliveryStreamSettings, DestinationChoice, OnFull, Packing, PackingMode, StreamConfig,
};
use standpipe::delivery::bare::{Bare as Delivery, Flight};
use standpipe::destination::{Call, Destination, Encoding, Outcome, RecordOutcome, Refusal};
use standpipe::memory::Memory;
use standpipe::relay::parts;
use standpipe::shard::{Shared, bare, bare::Bare as Shard};

/// Between two looks at everything.
const TICK: Duration = Duration::from_millis(10);
/// One record of its own, so that nothing but the quota says how many go into a call.
pub const EVENT_BYTES: usize = 2_000;
/// The only stream.
const STREAM: &str = "clicks";

/// A delivery stream that takes so many bytes a second, with a second's worth of burst: the model of field-notes'
/// quotas, per record, as Firehose answers.
#[derive(Debug)]
pub struct Quota {
    pub bytes_per_second: f64,
    left: f64,
    at: Instant,
}

/// What the fleet did within one second.
#[derive(Clone, Debug, Default)]
pub struct Second {
    /// Raw bytes accepted, by relay.
    pub accepted: Vec<u64>,
    /// The same, by delivery stream.
    pub by_delivery_stream: BTreeMap<String, u64>,
    pub throttled: u64,
    pub calls: u64,
}

struct Relay {
    shared: Arc<Shared>,
    shard: Shard,
    delivery: Delivery,
    calls: Vec<(Instant, Call, Flight)>,
    /// Bytes that are still to be sent to it.
    owed: f64,
    is_up: bool,
}

pub struct Fleet {
    rng: Rng,
    relays: Vec<Relay>,
    quotas: BTreeMap<String, Quota>,
    /// Bytes a second that come to each relay.
    pub offered: f64,
    /// Where it is set, nothing is accepted.
    pub is_down: bool,
    /// The share of records that are throttled whatever is sent.
    pub noise: f64,
    now: Instant,
    event: Vec<u8>,
}

impl Quota {
    fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_second: bytes_per_second as f64, left: bytes_per_second as f64, at: now }
    }

    fn takes(&mut self, bytes: f64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + elapsed * self.bytes_per_second).min(self.bytes_per_second);
        self.at = now;
        let takes = self.left >= bytes;
        if takes {
            self.left -= bytes;
        }
        takes
    }
}

impl Second {
    pub fn sum(&self) -> f64 {
        self.accepted.iter().sum::<u64>() as f64
    }
}

impl Fleet {
    /// So many relays, each of which is offered so many bytes a second for delivery streams with these quotas.
    pub fn new(seed: u64, relays: usize, offered: u64, quotas: &[(&str, u64)]) -> Self {
        Self::configured(seed, relays, offered, quotas, DeliveryStreamSettings::default())
    }

    /// The same, with such settings for every delivery stream.
    pub fn configured(
        seed: u64,
        relays: usize,
        offered: u64,
        quotas: &[(&str, u64)],
        settings: DeliveryStreamSettings,
    ) -> Self {
        let mut rng = Rng::with_seed(seed);
        let now = Instant::now();
        let streams = StreamConfig {
            delivery_streams: quotas.iter().map(|(name, _)| (*name).to_owned()).collect(),
            packing: Packing { mode: PackingMode::Single, record_events_max: 1, record_bytes_max: 1_024_000 },
            on_full: OnFull::Drop,
            max_age: None,
        };
        let config = Config {
            destination: DestinationChoice::Firehose,
            shards: Some(1),
            streams: [(STREAM.to_owned(), streams)].into(),
            delivery_stream_defaults: settings,
            ..Config::default()
        };
        let relays = (0..relays).map(|_| Relay::start(&config, now, &mut rng)).collect();
        let mut event = format!("{STREAM} ").into_bytes();
        event.resize(event.len() + EVENT_BYTES - 1, b'x');
        event.push(b'\n');
        Self {
            rng,
            relays,
            quotas: quotas
                .iter()
                .map(|(name, quota)| ((*name).to_owned(), Quota::new(*quota, now)))
                .collect(),
            offered: offered as f64,
            is_down: false,
            noise: 0.0,
            now,
            event,
        }
    }

    /// A quota changes.
    pub fn set_quota(&mut self, delivery_stream: &str, bytes_per_second: u64) {
        self.quotas.insert(delivery_stream.to_owned(), Quota::new(bytes_per_second, self.now));
    }

    /// From now on only so many relays have anything to send.
    pub fn set_up(&mut self, count: usize) {
        self.relays.iter_mut().enumerate().for_each(|(index, relay)| relay.is_up = index < count);
    }

    /// What each second of the next so many was like.
    pub fn run(&mut self, seconds: u64) -> Vec<Second> {
        (0..seconds).map(|_| self.second()).collect()
    }

    fn second(&mut self) -> Second {
        let mut second = Second { accepted: vec![0; self.relays.len()], ..Second::default() };
        for _ in 0..Duration::from_secs(1).as_millis() / TICK.as_millis() {
            self.now += TICK;
            let mut order: Vec<usize> = (0..self.relays.len()).collect();
            self.rng.shuffle(&mut order);
            for index in order {
                self.receive(index);
                self.answer(index, &mut second);
                self.start_calls(index);
            }
        }
        second
    }

    fn receive(&mut self, index: usize) {
        let relay = &mut self.relays[index];
        // Traffic comes in bursts, as it does.
        relay.owed += self.offered * TICK.as_secs_f64() * self.rng.f64() * 2.0;
        if !relay.is_up {
            relay.owed = 0.0;
        }
        while relay.owed >= EVENT_BYTES as f64 {
            relay.owed -= EVENT_BYTES as f64;
            relay.shard.data(0, &self.event);
        }
        relay.shard.turn(self.now);
    }

    fn answer(&mut self, index: usize, second: &mut Second) {
        let relay = &mut self.relays[index];
        let ended: Vec<_> = relay.calls.extract_if(.., |(at, ..)| *at <= self.now).collect();
        for (_, call, flight) in ended {
            second.calls += 1;
            let quota =
                self.quotas.get_mut(&*call.delivery_stream).expect("a call goes where one is configured");
            let (takes, is_down, now) = (EVENT_BYTES as f64, self.is_down, self.now);
            let answers: Vec<_> = (0..call.records)
                .map(|_| match !is_down && self.rng.f64() >= self.noise && quota.takes(takes, now) {
                    true => RecordOutcome::Accepted,
                    false => RecordOutcome::Throttled,
                })
                .collect();
            let accepted = answers.iter().filter(|answer| **answer == RecordOutcome::Accepted).count();
            second.accepted[index] += (accepted * EVENT_BYTES) as u64;
            *second.by_delivery_stream.entry(call.delivery_stream.to_string()).or_default() +=
                (accepted * EVENT_BYTES) as u64;
            second.throttled += ((call.records - accepted) * EVENT_BYTES) as u64;
            let outcome = match accepted {
                0 => Outcome::Refused { kind: Refusal::Throttled, message: "Slow down.".to_owned() },
                _ if accepted == call.records => Outcome::Accepted,
                _ => Outcome::Partial(answers),
            };
            relay.delivery.finish(flight, outcome, self.now);
        }
    }

    fn start_calls(&mut self, index: usize) {
        let relay = &mut self.relays[index];
        for (call, flight) in relay.delivery.step(self.now) {
            let takes = Duration::from_millis(self.rng.u64(20..60));
            relay.calls.push((self.now + takes, call, flight));
        }
    }

    /// Events are never lost without being counted, whatever the pace.
    pub fn check_sums(&self) {
        for relay in &self.relays {
            for totals in relay.shared.metrics.totals() {
                let somewhere = totals.delivered + totals.dropped_in_all() + totals.held();
                assert_eq!(totals.received, somewhere, "{totals:?}");
            }
        }
    }
}

impl Relay {
    fn start(config: &Config, now: Instant, rng: &mut Rng) -> Self {
        let memory = Memory::with_limits(32 << 20, 16 << 20, 1 << 20);
        let shared = bare::shared_with(config.clone(), Encoding::Records, memory, now);
        let parts = parts(&shared, &Arc::new(Destination::Null));
        Self {
            shard: Shard::at(Arc::clone(&shared), 0, 1, now),
            delivery: Delivery::new(parts, None, Encoding::Records, (now, 0), rng.u64(..)),
            calls: Vec::new(),
            owed: 0.0,
            is_up: true,
            shared,
        }
    }
}
