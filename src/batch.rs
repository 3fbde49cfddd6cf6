//! A batch: what one shard gathered for one stream, sealed and never changed after. It carries its identity,
//! the memory that it is charged for, and a ticket by which its outcome finds the way back to its shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::memory::Charge;
use crate::stream::Stream;

/// Batches of fewer bytes travel as lines and are packed by the lane, several shards' into one record.
pub const LINES_BYTES_MAX: usize = 64 * 1024;

/// Stands for a shard in the identity of a batch that was read back from the spool, or is written to it.
pub const SPOOL: u16 = u16::MAX;

/// Which batch: no two of one process are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchId {
    /// The shard that sealed it, or [`SPOOL`].
    pub shard: u16,
    /// Its number on that shard, counting from 0.
    pub sequence: u64,
}

/// One record of an encoded body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where its JSON object starts in the body.
    pub start: u32,
    /// Behind its last byte.
    pub end: u32,
    /// Its raw bytes: what Firehose counts against its limits.
    pub bytes: u32,
    /// The events in it.
    pub events: u32,
}

/// The bytes of a batch.
#[derive(Debug)]
pub enum Body {
    /// Raw lines; a destination that takes lines, or too few of them to be worth a call of their own.
    Lines(Vec<u8>),
    /// The start of a PutRecordBatch body up to its last record, and where each record stands in it.
    Records {
        /// `{"Records":[{"Data":"…"},…`, without what closes it.
        json: Vec<u8>,
        /// In the order of the body.
        records: Vec<Record>,
    },
}

/// A sealed batch on its way from a shard to delivery.
#[derive(Debug)]
pub struct Batch {
    /// Who waits for its outcome.
    pub ticket: Arc<Ticket>,
    /// Its bytes.
    pub body: Body,
    /// Raw bytes, LFs included.
    pub bytes: u64,
    /// The memory that its bytes take; it goes back when this is dropped.
    pub charge: Charge,
}

/// What is known of a sealed batch until its last event is settled.
#[derive(Debug)]
pub struct Ticket {
    /// Which batch.
    pub id: BatchId,
    /// Its stream.
    pub stream: Arc<Stream>,
    /// The events in it.
    pub events: u64,
    /// When its oldest event was received.
    pub oldest: Instant,
    /// When it was sealed.
    pub sealed: Instant,
    unsettled: AtomicU64,
    lost: AtomicU64,
    /// Events on disk that are not settled yet.
    stored: AtomicU64,
    is_told: AtomicBool,
}

/// A batch whose every event is delivered or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Which batch.
    pub id: BatchId,
    /// How many of its events were dropped.
    pub lost: u64,
}

impl Ticket {
    /// The ticket of a batch of `events` events, none of them settled.
    pub fn new(id: BatchId, stream: Arc<Stream>, events: u64, oldest: Instant, sealed: Instant) -> Self {
        Self {
            id,
            stream,
            events,
            oldest,
            sealed,
            unsettled: AtomicU64::new(events),
            lost: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            is_told: AtomicBool::new(false),
        }
    }

    /// Settles `events` of the batch. Gives the batch's outcome when they were the last.
    ///
    /// Only delivery settles, so loads and stores need not be one step.
    pub fn settle(&self, events: u64, fate: Fate) -> Option<Settled> {
        if fate == Fate::Lost {
            self.lost.fetch_add(events, Relaxed);
        }
        let before = self.unsettled.fetch_sub(events, Relaxed);
        debug_assert!(before >= events, "an event is settled once");
        (before == events).then(|| Settled { id: self.id, lost: self.lost.load(Relaxed) })
    }

    /// Events that are neither delivered nor lost.
    pub fn unsettled(&self) -> u64 {
        self.unsettled.load(Relaxed)
    }

    /// `events` of the batch are on disk, synced.
    pub fn store(&self, events: u64) {
        self.stored.fetch_add(events, Relaxed);
    }

    /// `events` of the batch, on disk until now, are about to be settled, or are on disk no longer.
    pub fn unstore(&self, events: u64) {
        self.stored.fetch_sub(events, Relaxed);
    }

    /// Whether every event of the batch that is not settled is on disk, and there are some.
    pub fn is_stored(&self) -> bool {
        let stored = self.stored.load(Relaxed);
        stored > 0 && stored >= self.unsettled()
    }

    /// Whether every event of the batch is on disk or delivered, and some are on disk; said once. Where some are
    /// lost, nothing is said before all are settled.
    pub fn becomes_safe(&self) -> bool {
        let is_safe = self.is_stored() && self.lost.load(Relaxed) == 0;
        is_safe && !self.is_told.swap(true, Relaxed)
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Accepted by the destination.
    Delivered,
    /// Dropped, and counted with a reason.
    Lost,
}
