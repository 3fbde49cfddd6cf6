//! What goes to disk and when: batches of a stream that is over its share, the oldest first; in `always` every batch
//! while it goes its way. What is in memory of a batch stays here until the spool says that it is synced, and goes
//! back to its queue where the spool refuses it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Spill, Spilled, tell_stored};
use crate::batch::{BatchId, SPOOL, Ticket};
use crate::config::SpoolMode;
use crate::delivery::Delivery;
use crate::delivery::queues::Item;
use crate::destination::Encoding;
use crate::encode::CALL_BYTES_MAX;
use crate::metrics::Place;
use crate::queue::Returns;
use crate::spool::keeper::{Command, Part};
use crate::stream::Stream;

/// After a batch was refused nothing is spilled for so long: the memory policy decides meanwhile.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);
/// Smaller batches of a stream go to disk together, up to this many bytes.
const TOGETHER_BYTES: usize = 1 << 20;
/// But not where their oldest events are further apart than this: on disk a batch has one age.
pub(super) const APART_MAX: Duration = Duration::from_secs(10);
/// Where a stream writes at all it writes so much, if it holds that: [`TOGETHER_BYTES`] as they are charged, encoded.
const WORTHWHILE_BYTES: u64 = TOGETHER_BYTES as u64 / 3 * 4;

/// The ticket under which a sealed batch goes its way: in `always`, that of the batch on disk.
pub(in super::super) fn wrap(spill: &mut Option<Spill>, ticket: Arc<Ticket>) -> Arc<Ticket> {
    match spill {
        Some(spill) if spill.mode == SpoolMode::Always => spill.wrap(ticket),
        _ => ticket,
    }
}

/// Writes a batch to disk that was wrapped, while it goes its way.
pub(in super::super) fn write_through(
    spill: &mut Option<Spill>,
    ticket: &Ticket,
    item: &Item,
    encoding: Encoding,
) {
    if let Some(spill) = spill.as_mut().filter(|_| ticket.id.shard == SPOOL) {
        let part = item.part(encoding);
        if let Some(spilled) = spill.batches.get_mut(&ticket.id.sequence) {
            spilled.bytes = item.bytes() as u64;
        }
        spill.append(ticket.id.sequence, &ticket.stream, vec![part], ticket.events, ticket.oldest, false);
    }
}

impl Item {
    /// What the spool takes of it.
    fn part(&self, encoding: Encoding) -> Part {
        match self {
            Item::Loose(loose) => Part::Lines(loose.lines()),
            Item::Piece(piece) => piece.part(encoding),
        }
    }
}

impl Spill {
    fn wrap(&mut self, ticket: Arc<Ticket>) -> Arc<Ticket> {
        let id = BatchId { shard: SPOOL, sequence: self.next_id };
        self.next_id += 1;
        let stream = Arc::clone(&ticket.stream);
        let (events, oldest, sealed) = (ticket.events, ticket.oldest, ticket.sealed);
        let spilled = Spilled {
            stream: Arc::clone(&stream),
            origins: vec![(ticket, events)],
            events,
            bytes: 0,
            is_stored: false,
            is_unreadable: false,
            is_pending: true,
            items: Vec::new(),
        };
        self.batches.insert(id.sequence, spilled);
        Arc::new(Ticket::new(id, stream, events, oldest, sealed))
    }

    fn append(
        &self,
        id: u64,
        stream: &Stream,
        parts: Vec<Part>,
        events: u64,
        oldest: Instant,
        is_unknown: bool,
    ) {
        let stream = Arc::clone(&stream.name);
        self.command(Command::Append { id, stream, parts, events, oldest, is_unknown });
    }

    /// Brings an item to disk: lets go of it where it is there already; else gives it back, to be written.
    pub(super) fn let_go(&mut self, item: Item) -> Option<Item> {
        let tickets = item.tickets();
        // The next process is to know that it may have been delivered: so it is written anew, with that.
        if self.leaving.is_some() && matches!(&item, Item::Piece(piece) if piece.is_unknown) {
            return Some(item);
        }
        let is_on_disk = |(ticket, events): &(Arc<Ticket>, u64)| {
            ticket.id.shard == SPOOL
                && *events == ticket.events
                && ticket.unsettled() == ticket.events
                && self.batches.get(&ticket.id.sequence).is_some_and(Spilled::is_readable)
        };
        if !tickets.iter().all(is_on_disk) {
            return Some(item);
        }
        for (ticket, events) in &tickets {
            self.command(Command::Release(ticket.id.sequence, item.is_unknown()));
            let bytes = self.batches.get(&ticket.id.sequence).map_or(0, |spilled| spilled.bytes);
            self.forget_recalled(ticket.id.sequence);
            self.add_waiting(&ticket.stream, 1, bytes);
            ticket.stream.label.enter(*events, Place::Spool);
        }
        let stream = &tickets[0].0.stream;
        stream.label.leave(item.events(), item.place());
        None
    }

    /// Whether an item waits for its batch to be stored, and must not be written once more.
    pub(super) fn is_being_stored(&self, item: &Item) -> bool {
        item.tickets().iter().any(|(ticket, _)| {
            let spilled = self.batches.get(&ticket.id.sequence);
            ticket.id.shard == SPOOL && spilled.is_some_and(|spilled| spilled.is_pending)
        })
    }

    /// Writes items of one stream as one batch.
    pub(super) fn write(&mut self, items: Vec<Item>, encoding: Encoding) {
        let Some(oldest) = items.iter().map(Item::oldest).min() else { return };
        // What was put together for a call may be far apart in age: then the youngest counts, which is not to be
        // taken for too old.
        let newest =
            items.iter().map(Item::newest).max().and_then(|newest| newest.checked_sub(self.apart_max));
        let oldest = newest.map_or(oldest, |newest| oldest.max(newest));
        let id = self.next_id;
        self.next_id += 1;
        let origins: Vec<(Arc<Ticket>, u64)> = items.iter().flat_map(Item::tickets).collect();
        let stream = Arc::clone(&origins[0].0.stream);
        let events = items.iter().map(Item::events).sum();
        let charged: u64 = items.iter().map(Item::charged).sum();
        for item in &items {
            stream.label.enter(item.events(), Place::Spool);
            stream.label.leave(item.events(), item.place());
        }
        let parts = items.iter().map(|item| item.part(encoding)).collect();
        let is_unknown = items.iter().any(Item::is_unknown);
        self.append(id, &stream, parts, events, oldest, is_unknown);
        *self.writing.entry(stream.id).or_default() += charged;
        self.writing_bytes += charged;
        let bytes = items.iter().map(|item| item.bytes() as u64).sum();
        let (is_stored, is_unreadable, is_pending) = (false, false, true);
        let spilled = Spilled { stream, origins, events, bytes, is_stored, is_unreadable, is_pending, items };
        self.batches.insert(id, spilled);
    }

    /// What an item being written holds in memory is no longer on its way.
    fn no_longer_writing(&mut self, stream: u64, items: &[Item]) {
        let charged: u64 = items.iter().map(Item::charged).sum();
        self.writing_bytes -= charged;
        if let Some(bytes) = self.writing.get_mut(&stream) {
            *bytes -= charged;
            if *bytes == 0 {
                self.writing.remove(&stream);
            }
        }
    }

    /// A batch is synced: its memory goes, and whoever waits hears of it.
    pub(super) fn stored(&mut self, id: u64, returns: &[Returns]) {
        let Some(spilled) = self.batches.get_mut(&id) else { return };
        spilled.is_stored = true;
        spilled.is_pending = false;
        for (ticket, events) in &spilled.origins {
            ticket.store(*events);
            tell_stored(ticket, returns);
        }
        // What is left of an older batch stands in newer ones: read back, it would be delivered a second time.
        let is_replaced = |(ticket, _): &&(Arc<Ticket>, u64)| ticket.id.shard == SPOOL && ticket.is_stored();
        let replaced: Vec<u64> =
            spilled.origins.iter().filter(is_replaced).map(|(ticket, _)| ticket.id.sequence).collect();
        let items = std::mem::take(&mut spilled.items);
        let (stream, bytes) = (Arc::clone(&spilled.stream), spilled.bytes);
        if !items.is_empty() {
            self.no_longer_writing(stream.id, &items);
            self.add_waiting(&stream, 1, bytes);
            self.command(Command::Release(id, false));
        }
        replaced.into_iter().for_each(|id| self.command(Command::Done(id)));
    }

    /// A batch cannot be read where it stands on disk: what is in memory of it is written anew before it is let go of.
    pub(super) fn unreadable(&mut self, id: u64) {
        if let Some(spilled) = self.batches.get_mut(&id) {
            spilled.is_unreadable = true;
        }
    }

    /// A batch is not on disk: what it held goes back to where it was.
    pub(super) fn refused(&mut self, id: u64, now: Instant) -> Vec<Item> {
        self.paused_until = Some(now + REFUSED_PAUSE);
        if let Some(leaving) = &mut self.leaving {
            leaving.is_full = true;
        }
        let Some(spilled) = self.batches.get_mut(&id) else { return Vec::new() };
        spilled.is_pending = false;
        let items = std::mem::take(&mut spilled.items);
        if items.is_empty() {
            // A queue holds it, under the ticket of a batch that is on no disk: that changes nothing for it.
            return items;
        }
        let spilled = self.batches.remove(&id).expect("it was just there");
        self.no_longer_writing(spilled.stream.id, &items);
        for item in &items {
            spilled.stream.label.enter(item.events(), item.place());
            spilled.stream.label.leave(item.events(), Place::Spool);
        }
        items
    }
}

impl Delivery {
    /// Writes the oldest of every stream that is over its share, and of the largest where memory as a whole is.
    pub(super) fn spill_over(&mut self) {
        let memory = Arc::clone(&self.parts.memory);
        let Some(spill) = &self.spill else { return };
        let mut beyond = memory.beyond_limit().saturating_sub(spill.writing_bytes);
        let mut wanted: Vec<(u64, u64)> = Vec::new();
        for (id, queue) in &self.streams {
            let writing = spill.writing.get(id).copied().unwrap_or(0);
            let over = memory.beyond_share(&queue.stream.account).saturating_sub(writing);
            if over > 0 {
                wanted.push((*id, over));
                beyond = beyond.saturating_sub(over);
            }
        }
        if beyond > 0 {
            let largest = self.streams.iter().max_by_key(|(id, queue)| (queue.fresh_bytes(), **id));
            wanted.extend(largest.map(|(id, _)| (*id, beyond)));
        }
        // Always in the same order, so that a simulation can be replayed.
        wanted.sort_unstable();
        for (id, bytes) in wanted {
            // A little at a time would make many small batches, of which the index holds only so many.
            self.spill_stream(id, bytes.max(WORTHWHILE_BYTES));
        }
    }

    /// Brings about so many bytes of a stream to disk, the oldest first.
    pub(super) fn spill_stream(&mut self, id: u64, bytes: u64) {
        let (Some(queue), Some(spill)) = (self.streams.get_mut(&id), &mut self.spill) else { return };
        let (mut left, mut together, mut size) = (bytes, Vec::new(), 0);
        let mut kept = Vec::new();
        while left > 0
            && let Some(item) = queue.take_oldest()
        {
            left = left.saturating_sub(item.charged().max(1));
            if spill.is_being_stored(&item) {
                kept.push(item);
                continue;
            }
            let Some(item) = spill.let_go(item) else {
                self.released = true;
                continue;
            };
            let is_large = size + item.bytes() > TOGETHER_BYTES.min(CALL_BYTES_MAX);
            let is_late =
                together.first().is_some_and(|first: &Item| item.oldest() > first.oldest() + APART_MAX);
            if size > 0 && (is_large || is_late) {
                spill.write(std::mem::take(&mut together), self.encoding);
                size = 0;
            }
            size += item.bytes();
            together.push(item);
        }
        spill.write(together, self.encoding);
        kept.into_iter().rev().for_each(|item| queue.put_back(item));
    }
}
