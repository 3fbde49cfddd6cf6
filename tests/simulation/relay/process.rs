//! One process of a history: the relay's parts, the threads beside them that are played, and its clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;
use standpipe::delivery::bare::Bare as Delivery;
use standpipe::destination::Destination;
use standpipe::memory::Memory;
use standpipe::metrics::{Drop, Label, Totals};
use standpipe::net::Key;
use standpipe::relay::parts;
use standpipe::shard::{Shared, bare, bare::Bare as Shard};

use super::setting::Setting;
use crate::client::Client;
use crate::disk::Disk;
use crate::host::{Host, Moment};
use crate::ledger::{Counted, Ledger, STREAMS};
use crate::letters::Letters;

/// Connections of a shard.
const CONNECTIONS: Key = 3;

pub struct Process {
    pub shared: Arc<Shared>,
    pub shards: Vec<Shard>,
    /// When each was last told the time: for it, what comes now came then.
    pub turned_at: Vec<Instant>,
    pub delivery: Delivery,
    pub host: Option<Host>,
    pub letters: Option<Letters>,
    pub clients: Vec<Client>,
    /// The events that were received here and are not known to be settled, with their shard.
    received: BTreeMap<u64, usize>,
    /// How many they are, by shard and stream.
    pub unsettled: Vec<[u64; STREAMS.len()]>,
    /// Events that the destination accepted, as this process was told.
    pub accepted: [u64; STREAMS.len()],
}

impl Process {
    /// A process that starts on a disk on which others may have left something.
    pub fn start(setting: &Setting, disk: &mut Disk, moment: Moment, rng: &mut Rng) -> Self {
        let memory = Memory::with_limits(setting.limit, setting.stream_max, setting.limit / 4);
        let shared = bare::shared_with(setting.config.clone(), setting.encoding, memory, moment.0);
        let parts = parts(&shared, &Arc::new(Destination::Null));
        let (host, keeper) = setting.spool.map(|limits| Host::start(disk, limits, rng.u64(..))).unzip();
        let mut delivery = Delivery::new(parts, keeper, setting.encoding, moment, rng.u64(..));
        let (letters, dead) = setting.keeps_letters.then(Letters::start).unzip();
        if let Some(dead) = dead {
            delivery = delivery.with_dead_letters(dead);
        }
        let count = shared.returns.len();
        let shards = (0..count).map(|index| Shard::at(Arc::clone(&shared), index, CONNECTIONS, moment.0));
        let clients = (0..count).flat_map(|shard| (0..CONNECTIONS).map(move |key| (shard, key)));
        Self {
            shards: shards.collect(),
            turned_at: vec![moment.0; count],
            delivery,
            host,
            letters,
            clients: clients.map(|(shard, key)| Client::new(shard, key, rng)).collect(),
            received: BTreeMap::new(),
            unsettled: vec![Default::default(); count],
            accepted: Default::default(),
            shared,
        }
    }

    pub fn label(&self, stream: usize) -> Arc<Label> {
        self.shared.metrics.label(STREAMS[stream].0)
    }

    pub fn totals(&self) -> Vec<Totals> {
        self.shared.metrics.totals()
    }

    /// Events that are held in memory or on disk.
    pub fn held(&self) -> u64 {
        self.totals().iter().map(Totals::held).sum()
    }

    /// A shard has received an event.
    pub fn receive(&mut self, token: u64, stream: usize, shard: usize) {
        self.received.insert(token, shard);
        self.unsettled[shard][stream] += 1;
    }

    /// The process is told that an event was accepted.
    pub fn accept(&mut self, token: u64, stream: usize) {
        self.accepted[stream] += 1;
        self.settle(token, stream);
    }

    /// The process is told what became of an event.
    pub fn settle(&mut self, token: u64, stream: usize) {
        if let Some(shard) = self.received.remove(&token) {
            self.unsettled[shard][stream] -= 1;
        }
    }

    /// Hands what it has counted to the ledger, and what it has not read: it has ended.
    pub fn close(&self, ledger: &mut Ledger) {
        for client in &self.clients {
            client.unread().for_each(|token| ledger.leave_unread(token));
        }
        for stream in 0..STREAMS.len() {
            let label = self.label(stream);
            ledger.counted[stream] += counted(&label.totals(), label.possible_duplicates());
        }
    }
}

fn counted(totals: &Totals, possible: u64) -> Counted {
    let of = |reason: Drop| totals.dropped[reason as usize];
    Counted {
        possible,
        recovered: totals.recovered,
        letters: of(Drop::DeadLetter),
        dropped: totals.dropped_in_all() - of(Drop::DeadLetter),
        damaged: of(Drop::SpoolDamaged),
        rejected: of(Drop::Rejected),
        aged: of(Drop::MaxAge),
        lost: of(Drop::LostDownstream),
    }
}
