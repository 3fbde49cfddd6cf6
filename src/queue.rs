//! Where shards and delivery meet, and the only place: sealed batches one way, outcomes the other, and bells
//! that wake whoever sleeps. Nothing here decides anything. What waits here is bounded by the memory that it is
//! charged for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use crate::batch::{Batch, Settled};

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

/// Outcomes on their way back to one shard.
#[derive(Debug)]
pub struct Returns {
    settled: SegQueue<Settled>,
    /// The shard's bell.
    pub bell: Bell,
}

impl Returns {
    /// An empty way back.
    ///
    /// # Errors
    /// Where the system gives no event descriptor.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { settled: SegQueue::new(), bell: Bell::new()? })
    }

    /// Tells the shard what became of one of its batches. It looks when it next wakes.
    pub fn push(&self, settled: Settled) {
        self.settled.push(settled);
    }

    /// The next outcome, if there is one.
    pub fn pop(&self) -> Option<Settled> {
        self.settled.pop()
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
