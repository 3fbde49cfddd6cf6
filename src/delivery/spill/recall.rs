//! What comes back from disk: the oldest batch of each stream in turn, as long as there is room in memory and a lane
//! that takes it. Also what cannot come back, since it is damaged.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{RECALL_EVERY, Spill, Spilled};
use crate::batch::{BatchId, SPOOL, Settled, Ticket};
use crate::delivery::piece::{self, Loose, Piece};
use crate::delivery::{Delivery, Parts};
use crate::destination::Encoding;
use crate::memory::Charge;
use crate::metrics::{Drop, Place};
use crate::spool::format::BatchHeader;
use crate::spool::keeper::Command;
use crate::stream::Stream;

/// What waits on disk of one stream.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) stream: Arc<Stream>,
    pub(super) batches: u64,
    bytes: u64,
    /// Batches asked for, and batches in memory again.
    asked: usize,
    here: usize,
}

impl Spill {
    pub(super) fn add_waiting(&mut self, stream: &Arc<Stream>, batches: u64, bytes: u64) -> &mut Waiting {
        let waiting = self.waiting.entry(Arc::clone(&stream.name)).or_insert_with(|| {
            self.turns.push_back(Arc::clone(&stream.name));
            Waiting { stream: Arc::clone(stream), batches: 0, bytes: 0, asked: 0, here: 0 }
        });
        waiting.batches += batches;
        waiting.bytes += bytes;
        waiting
    }

    /// A batch is no longer in memory, or no longer anywhere.
    pub(super) fn forget_recalled(&mut self, id: u64) {
        let Some(bytes) = self.recalled.remove(&id) else { return };
        self.recalled_bytes -= bytes;
        self.has_room = true;
        if let Some(spilled) = self.batches.get(&id)
            && let Some(waiting) = self.waiting.get_mut(&spilled.stream.name)
        {
            waiting.here = waiting.here.saturating_sub(1);
        }
    }

    pub(super) fn drop_empty(&mut self, stream: &Arc<str>) {
        let is_over = |waiting: &Waiting| waiting.batches == 0 && waiting.asked == 0 && waiting.here == 0;
        if self.waiting.get(stream).is_some_and(is_over) {
            self.waiting.remove(stream);
            self.turns.retain(|name| name != stream);
        }
    }

    /// A batch of a stream that was asked for has come, or cannot.
    pub(super) fn answered(&mut self, stream: &Arc<str>, bytes: u64) {
        if let Some(waiting) = self.waiting.get_mut(stream) {
            waiting.asked = waiting.asked.saturating_sub(1);
        }
        self.asked_bytes = self.asked_bytes.saturating_sub(bytes);
        if self.waiting.values().all(|waiting| waiting.asked == 0) {
            self.asked_bytes = 0;
        }
    }

    /// A batch that nobody has asked for waits no longer.
    fn waits_no_longer(&mut self, stream: &Arc<str>, bytes: u64) {
        if let Some(waiting) = self.waiting.get_mut(stream) {
            waiting.batches = waiting.batches.saturating_sub(1);
            waiting.bytes = waiting.bytes.saturating_sub(bytes);
        }
    }

    /// A batch cannot be read: its events are lost, and counted.
    pub(super) fn damaged(&mut self, id: u64, header: &BatchHeader, was_asked: bool, parts: &Parts) {
        let stream = parts.registry.resolve_spooled(&header.stream);
        let stream = self.batches.get(&id).map_or(stream, |spilled| Arc::clone(&spilled.stream));
        let (events, bytes) = (u64::from(header.events), u64::from(header.length));
        if was_asked {
            self.answered(&stream.name, bytes);
        } else {
            self.waits_no_longer(&stream.name, bytes);
        }
        stream.label.leave(events, Place::Spool);
        stream.label.dropped(events, Drop::SpoolDamaged);
        self.settled(Settled { id: BatchId { shard: SPOOL, sequence: id }, lost: events }, &parts.returns);
        self.drop_empty(&stream.name);
    }

    /// When something was received, from milliseconds since 1970.
    fn received_at(&self, millis: u64, now: Instant) -> Instant {
        let (epoch, epoch_millis) = self.epoch;
        let since = Duration::from_millis(epoch_millis) + now.saturating_duration_since(epoch);
        now.checked_sub(since.saturating_sub(Duration::from_millis(millis))).unwrap_or(now)
    }

    /// Whether something that was read back has gone since the last look: to wait for the next would leave the disk
    /// and the lanes idle in turn.
    pub(super) fn may_recall(&self, now: Instant) -> bool {
        self.has_room && self.recalled_at.is_none_or(|at| now >= at + RECALL_EVERY)
    }

    /// Asks for batches of the streams that are ready for them.
    fn recall(&mut self, room: u64, is_ready: impl Fn(&Waiting) -> bool) {
        for _ in 0..self.turns.len() {
            let here = self.recalled_bytes + self.asked_bytes;
            if here >= room && here > 0 {
                return;
            }
            let Some(name) = self.turns.pop_front() else { return };
            self.turns.push_back(Arc::clone(&name));
            let Some(waiting) = self.waiting.get_mut(&name) else { continue };
            if waiting.batches == 0 || waiting.asked + waiting.here >= 8 || !is_ready(waiting) {
                continue;
            }
            let bytes = waiting.bytes / waiting.batches;
            waiting.batches -= 1;
            waiting.bytes -= bytes;
            waiting.asked += 1;
            self.asked_bytes += bytes;
            self.command(Command::Fetch(name));
        }
    }

    /// A batch is back in memory: the pieces that it makes.
    pub(super) fn loaded(
        &mut self,
        id: u64,
        header: &BatchHeader,
        lines: Bytes,
        parts: &Parts,
        encoding: Encoding,
        now: Instant,
    ) -> VecDeque<Piece> {
        let memory = &parts.memory;
        let average = u64::from(header.length);
        self.answered(&header.stream, average);
        // Damage elsewhere may have had its stream forgotten: the batch is here all the same.
        let stream = parts.registry.resolve_spooled(&header.stream);
        let stream = self.batches.get(&id).map_or(stream, |spilled| Arc::clone(&spilled.stream));
        self.add_waiting(&stream, 0, 0).here += 1;
        let (oldest, events) = (self.received_at(header.oldest, now), u64::from(header.events));
        self.recalled.insert(id, u64::from(header.length));
        self.recalled_bytes += u64::from(header.length);
        let spilled = self.batches.entry(id).or_insert_with(|| Spilled {
            stream: Arc::clone(&stream),
            origins: Vec::new(),
            events,
            bytes: u64::from(header.length),
            is_stored: true,
            is_unreadable: false,
            is_pending: false,
            items: Vec::new(),
        });
        spilled.is_unreadable = false;
        let charge = Charge::forced(memory, &stream.account, lines.len() as u64);
        let newest = (oldest + self.apart_max).min(now);
        let ticket = Ticket::new(BatchId { shard: SPOOL, sequence: id }, stream, events, oldest, newest);
        let mut loose = VecDeque::from([Loose::new(Arc::new(ticket), lines, charge, now)]);
        let mut pieces = VecDeque::new();
        while let Some(piece) = piece::pack(&mut loose, encoding, memory) {
            pieces.push_back(piece);
        }
        pieces
    }
}

impl Delivery {
    pub(super) fn take_recalled(
        &mut self,
        pieces: VecDeque<Piece>,
        header: &BatchHeader,
        is_doubtful: bool,
        now: Instant,
    ) {
        let Some(stream) = pieces.front().map(|piece| Arc::clone(piece.stream())) else { return };
        stream.label.enter(u64::from(header.events), Place::Queued);
        stream.label.leave(u64::from(header.events), Place::Spool);
        let id = self.open_queue(&stream, now);
        let queue = self.streams.get_mut(&id).expect("it was opened");
        queue.used_at = now;
        for mut piece in pieces {
            (piece.is_recalled, piece.is_unknown, piece.is_doubtful) = (true, header.is_unknown, is_doubtful);
            queue.push_recalled(piece);
        }
        self.offer(id, now);
    }

    /// Offers what was read back to the lanes again: one of them may take more of it now.
    pub(in super::super) fn offer_recalled(&mut self, now: Instant) {
        let Some(spill) = &self.spill else { return };
        let here = spill.waiting.values().filter(|waiting| waiting.here > 0);
        let streams: BTreeSet<u64> = here.map(|waiting| waiting.stream.id).collect();
        streams.into_iter().for_each(|stream| self.offer(stream, now));
    }

    /// Reads back from disk what there is room for.
    pub(super) fn recall(&mut self, now: Instant) {
        let memory = &self.parts.memory;
        let room = if memory.beyond_limit() > 0 { 0 } else { memory.limit() / 8 };
        let (streams, lanes) = (&self.streams, &self.lanes);
        let is_ready = |waiting: &Waiting| {
            let stream = &waiting.stream;
            // What comes back must leave room for what arrives. Encoded it is larger by a third.
            let asked = waiting.bytes / waiting.batches.max(1) * (waiting.asked as u64 + 1);
            let is_first = waiting.asked + waiting.here == 0;
            if !is_first && !memory.may_read_back(&stream.account, asked + asked / 3) {
                return false;
            }
            // Whether the first has grown too old is seen only in memory.
            if is_first && stream.settings.load().max_age.is_some() {
                return true;
            }
            let Some(queue) = streams.get(&stream.id) else { return true };
            let works = queue
                .links
                .iter()
                .any(|link| lanes[link.lane].as_ref().is_some_and(|entry| !entry.policy.is_failing()));
            // Where nothing else tries whether a failing lane works again, this must.
            works || (queue.is_empty() && queue.in_flight.is_empty())
        };
        if let Some(spill) = &mut self.spill {
            (spill.recalled_at, spill.has_room) = (Some(now), false);
            spill.recall(room, is_ready);
        }
    }
}
