//! Where shards and delivery meet, and the only place: sealed batches one way, outcomes the other, and bells
//! that wake whoever sleeps. Nothing here decides anything. What waits here is bounded by the memory that it is
//! charged for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use crate::batch::{Batch, BatchId, Settled};

/// Sealed batches on their way to delivery.
#[derive(Debug, Default)]
pub struct Handoff {
    batches: SegQueue<Batch>,
    arrived: Notify,
}

impl Handoff {
    /// Hands a batch over.
    pub fn push(&self, batch: Batch) {
        self.batches.push(batch);
        self.arrived.notify_one();
    }

    /// The next batch, if there is one.
    pub fn pop(&self) -> Option<Batch> {
        self.batches.pop()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Resolves when batches have been pushed since the last time.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

/// What a shard hears of a batch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// Every event of it is delivered or lost.
    Settled(Settled),
    /// It is on disk, synced, and not settled yet.
    Stored(BatchId),
}

/// Outcomes on their way back to one shard.
#[derive(Debug)]
pub struct Returns {
    returned: SegQueue<Returned>,
    /// Whether somebody waits for them.
    is_wanted: AtomicBool,
    /// The shard's bell.
    pub bell: Bell,
}

impl Returns {
    /// An empty way back.
    ///
    /// # Errors
    /// Where the system gives no event descriptor.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { returned: SegQueue::new(), is_wanted: AtomicBool::new(false), bell: Bell::new()? })
    }

    /// Tells the shard what became of one of its batches. It looks when it next wakes, and is woken where a sync
    /// waits.
    pub fn push(&self, settled: Settled) {
        self.push_returned(Returned::Settled(settled));
    }

    /// Tells the shard that one of its batches is on disk and synced.
    pub fn push_stored(&self, id: BatchId) {
        self.push_returned(Returned::Stored(id));
    }

    fn push_returned(&self, returned: Returned) {
        self.returned.push(returned);
        // With the one in `want`: either the shard finds what was pushed, or we see that it wants to be woken.
        fence(Ordering::SeqCst);
        if self.is_wanted.load(Ordering::Relaxed) {
            self.bell.ring();
        }
    }

    /// The shard says whether it is to be woken for what comes. Once it wants to be, it must look again before it
    /// sleeps.
    pub fn want(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// What came back next, if anything did.
    pub fn pop(&self) -> Option<Returned> {
        self.returned.pop()
    }
}

/// Wakes a shard that waits in its driver. Ringing it again before it was heard costs one load.
#[derive(Debug)]
pub struct Bell {
    descriptor: OwnedFd,
    rung: AtomicBool,
}

impl Bell {
    /// A silent bell.
    ///
    /// # Errors
    /// Where the system gives no event descriptor.
    pub fn new() -> std::io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { descriptor, rung: AtomicBool::new(false) })
    }

    /// Wakes the shard.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // An event descriptor takes 2^64 − 2 rings before it would block, and takes one at a time here.
            let _ = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
        }
    }

    /// Called by the shard when it was woken, before it looks at what it was woken for: whoever rings after
    /// this wakes it again.
    pub fn hear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.descriptor, &mut count);
        self.rung.store(false, Ordering::Release);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
