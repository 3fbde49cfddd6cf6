//! The last part of a drain: no more calls, everything to disk, and the end of the spool.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::Spill;
use crate::batch::{BatchId, SPOOL};
use crate::delivery::Delivery;
use crate::delivery::queues::{Item, StreamQueue};
use crate::destination::Outcome;
use crate::metrics::{Drop, Place};
use crate::spool::keeper::Command;

/// The last part of a drain.
#[derive(Debug)]
pub(super) struct Leaving {
    cut_at: Instant,
    was_cut: bool,
    /// Something was refused: it stays in its queue, to be dropped.
    pub(super) is_full: bool,
    done: Option<oneshot::Sender<()>>,
}

/// What a call is told that is cut off at the end.
pub(in super::super) fn cut_off() -> Outcome {
    Outcome::Unknown { message: "The process ends, and the call was cut off.".to_owned() }
}

/// Whether no more calls are made.
pub(in super::super) fn is_leaving(spill: &Option<Spill>) -> bool {
    spill.as_ref().is_some_and(|spill| spill.leaving.is_some())
}

impl Spill {
    /// Leaves an item to the next process as far as batches on disk hold it, and drops the rest, which no call and no
    /// disk will take any more; gives it back where nothing of it is on disk. Where more is on disk than the item, or
    /// may have been delivered, the next process is to know.
    fn leave_on_disk(&self, item: Item) -> Option<Item> {
        let is_on_disk = |id: &BatchId| {
            id.shard == SPOOL && self.batches.get(&id.sequence).is_some_and(|spilled| spilled.is_stored)
        };
        let mut stored = item.tickets();
        stored.retain(|(ticket, _)| is_on_disk(&ticket.id));
        let Some((first, _)) = stored.first() else { return Some(item) };
        let label = Arc::clone(&first.stream.label);
        let left: u64 = stored.iter().map(|(_, events)| events).sum();
        for (ticket, events) in stored {
            let is_whole = events == ticket.events && ticket.unsettled() == ticket.events;
            self.command(Command::Release(ticket.id.sequence, item.is_unknown() || !is_whole));
        }
        label.enter(left, Place::Spool);
        label.leave(item.events(), item.place());
        label.dropped(item.events() - left, Drop::DrainDeadline);
        None
    }

    /// Counts what is on its way to disk as dropped: nobody waits for it any more.
    fn abandon(&mut self) {
        for spilled in self.batches.values_mut().filter(|spilled| !spilled.items.is_empty()) {
            spilled.items.clear();
            spilled.stream.label.leave(spilled.events, Place::Spool);
            spilled.stream.label.dropped(spilled.events, Drop::DrainDeadline);
        }
    }
}

impl Delivery {
    /// Gives up what is on its way to disk, and leaves to the next process what is there.
    pub(in super::super) fn abandon_spill(&mut self) {
        self.leave_stored();
        if let Some(spill) = &mut self.spill {
            spill.abandon();
        }
    }

    /// What is queued and on disk as well is not lost with this process: it stays for the next one.
    fn leave_stored(&mut self) {
        let Some(spill) = &self.spill else { return };
        for queue in self.streams.values_mut() {
            let items = std::iter::from_fn(|| queue.take_oldest().or_else(|| queue.take_recalled()));
            let left: Vec<Item> = items.collect();
            let kept: Vec<Item> = left.into_iter().filter_map(|item| spill.leave_on_disk(item)).collect();
            kept.into_iter().rev().for_each(|item| queue.put_back(item));
        }
    }

    /// Makes no more calls and brings everything to disk; calls in flight are cut at `cut_at`.
    pub(in super::super) fn leave(&mut self, cut_at: Instant, done: oneshot::Sender<()>) {
        let Some(spill) = &mut self.spill else {
            let _ = done.send(());
            return;
        };
        spill.leaving = Some(Leaving { cut_at, was_cut: false, is_full: false, done: Some(done) });
    }

    pub(super) fn leave_further(&mut self, now: Instant) {
        let Some(leaving) = self.spill.as_mut().and_then(|spill| spill.leaving.as_mut()) else { return };
        let is_full = leaving.is_full;
        if now >= leaving.cut_at && !std::mem::replace(&mut leaving.was_cut, true) {
            self.is_cut = true;
            self.take_letters_back(now);
        }
        if !is_full {
            self.spill_everything();
        }
        let has_no_letters = self.has_no_letters();
        let Some(spill) = &mut self.spill else { return };
        let is_settled = self.in_flight == 0
            && spill.writing_bytes == 0
            && has_no_letters
            && (is_full || self.streams.values().all(StreamQueue::is_empty));
        if is_settled && let Some(done) = spill.leaving.as_mut().and_then(|leaving| leaving.done.take()) {
            self.leave_stored();
            if let Some(spill) = &self.spill {
                spill.command(Command::Stop(done));
            }
        }
    }

    fn spill_everything(&mut self) {
        for id in self.stream_ids() {
            self.spill_stream(id, u64::MAX);
            let (Some(queue), Some(spill)) = (self.streams.get_mut(&id), &mut self.spill) else { continue };
            while let Some(item) = queue.take_recalled() {
                if let Some(item) = spill.let_go(item) {
                    spill.write(vec![item], self.encoding);
                }
            }
        }
    }
}
