//! The queue of one stream, and which lanes it waits for. It orders and counts; it starts nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::piece::{self, CallMax, Loose, Piece};
use crate::batch::Ticket;
use crate::destination::Encoding;
use crate::encode::CALL_BYTES_MAX;
use crate::memory::Memory;
use crate::metrics::Place;
use crate::stream::Stream;

/// Something queued.
#[derive(Debug)]
pub enum Item {
    /// Lines.
    Loose(Loose),
    /// Records, or lines that were packed.
    Piece(Piece),
}

impl Item {
    /// Whose events it holds, and how many of each.
    pub fn tickets(&self) -> Vec<(Arc<Ticket>, u64)> {
        match self {
            Item::Loose(loose) => vec![loose.shares()],
            Item::Piece(piece) => piece.tickets(),
        }
    }

    /// Its raw bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Item::Loose(loose) => loose.bytes(),
            Item::Piece(piece) => piece.bytes(),
        }
    }

    /// The memory charged for it.
    pub fn charged(&self) -> u64 {
        match self {
            Item::Loose(loose) => loose.charged(),
            Item::Piece(piece) => piece.charged(),
        }
    }

    /// Its events.
    pub fn events(&self) -> u64 {
        match self {
            Item::Loose(loose) => loose.events(),
            Item::Piece(piece) => piece.events(),
        }
    }

    /// When its oldest event was received.
    pub fn oldest(&self) -> Instant {
        match self {
            Item::Loose(loose) => loose.oldest(),
            Item::Piece(piece) => piece.oldest(),
        }
    }

    /// Its youngest event was received before this.
    pub fn newest(&self) -> Instant {
        match self {
            Item::Loose(loose) => loose.newest(),
            Item::Piece(piece) => piece.newest(),
        }
    }

    /// Whether some of it may have been delivered.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Item::Piece(piece) if piece.is_unknown || piece.is_doubtful)
    }

    /// Where its events wait.
    pub fn place(&self) -> Place {
        match self {
            Item::Loose(_) => Place::Queued,
            Item::Piece(piece) => piece.place(),
        }
    }
}

/// A stream's place at one of its lanes.
#[derive(Debug)]
pub struct LaneLink {
    /// The lane.
    pub lane: usize,
    /// Whether the stream stands in the lane's line already.
    pub is_waiting: bool,
    /// Bytes that the lane has taken from this stream, on the lane's clock: the least served is next.
    pub served: u64,
    /// Bytes that this stream has sent by the lane, over the lane's weight: of several lanes, the one that had least for
    /// what it can is tried first.
    pub sent: f64,
}

/// How much a lane that had no calls for long may have of a stream before the stream's other lanes have their turn.
const CATCH_UP_BYTES: f64 = 16.0 * CALL_BYTES_MAX as f64;
impl LaneLink {
    /// A place at a lane from which nothing was taken yet.
    pub fn new(lane: usize) -> Self {
        Self { lane, is_waiting: false, served: 0, sent: 0.0 }
    }
}

/// What one stream has sealed and not delivered, calls in flight apart.
#[derive(Debug)]
pub struct StreamQueue {
    /// The stream.
    pub stream: Arc<Stream>,
    /// Its lanes, at least one.
    pub links: Vec<LaneLink>,
    /// When the oldest event of each call in flight was received.
    pub in_flight: Vec<Instant>,
    /// When it last held anything, for the sweep.
    pub used_at: Instant,
    pieces: VecDeque<Piece>,
    /// Read back from disk.
    recalled: VecDeque<Piece>,
    /// Whether the next call is for what was read back, where there is a choice.
    recalled_next: bool,
    loose: VecDeque<Loose>,
    loose_bytes: usize,
    next_turn: u64,
}

impl StreamQueue {
    /// An empty queue.
    pub fn new(stream: Arc<Stream>, links: Vec<LaneLink>, now: Instant) -> Self {
        Self {
            stream,
            links,
            in_flight: Vec::new(),
            used_at: now,
            pieces: VecDeque::new(),
            recalled: VecDeque::new(),
            recalled_next: false,
            loose: VecDeque::new(),
            loose_bytes: 0,
            next_turn: 0,
        }
    }

    /// Adds a batch behind the others.
    pub fn push(&mut self, item: Item) {
        let turn = self.next_turn;
        self.next_turn += 1;
        match item {
            Item::Piece(mut piece) => {
                piece.turn = turn;
                self.pieces.push_back(piece);
            }
            Item::Loose(mut loose) => {
                loose.turn = turn;
                self.loose_bytes += loose.bytes();
                self.loose.push_back(loose);
            }
        }
    }

    /// Puts a piece that failed back to its place, unless it is a suspect alone: that one lets others go first, so
    /// that they can show whether the lane or the record is to blame.
    pub fn push_retry(&mut self, piece: Piece) {
        if piece.is_recalled {
            self.recalled.push_front(piece);
        } else if piece.refused_since.is_some() && piece.records().len() == 1 {
            self.pieces.push_back(piece);
        } else {
            self.insert(piece);
        }
    }

    /// Before whatever came later. Calls that were under way together fail in any order.
    fn insert(&mut self, piece: Piece) {
        let place = self.pieces.partition_point(|other| other.turn < piece.turn);
        self.pieces.insert(place, piece);
    }

    /// Adds what was read back from disk.
    pub fn push_recalled(&mut self, piece: Piece) {
        self.recalled.push_back(piece);
    }

    /// Whether something is queued that was read back from disk.
    pub fn has_recalled(&self) -> bool {
        !self.recalled.is_empty()
    }

    /// Puts back what was taken out, to its place.
    pub fn put_back(&mut self, item: Item) {
        match item {
            Item::Piece(piece) if piece.is_recalled => self.recalled.push_front(piece),
            Item::Piece(piece) => self.insert(piece),
            Item::Loose(loose) => {
                self.loose_bytes += loose.bytes();
                let place = self.loose.partition_point(|other| other.turn < loose.turn);
                self.loose.insert(place, loose);
            }
        }
    }

    /// Whether the oldest that was not read back from disk is packed.
    fn is_piece_first(&self) -> bool {
        match (self.pieces.front(), self.loose.front()) {
            (Some(piece), Some(loose)) => piece.turn <= loose.turn,
            (piece, _) => piece.is_some(),
        }
    }

    /// Takes the oldest that is queued and was not read back from disk.
    pub fn take_oldest(&mut self) -> Option<Item> {
        if self.is_piece_first() {
            return self.pieces.pop_front().map(Item::Piece);
        }
        let loose = self.loose.pop_front()?;
        self.loose_bytes -= loose.bytes();
        Some(Item::Loose(loose))
    }

    /// Takes what was read back from disk.
    pub fn take_recalled(&mut self) -> Option<Item> {
        self.recalled.pop_front().map(Item::Piece)
    }

    /// Raw bytes queued that were not read back from disk.
    pub fn fresh_bytes(&self) -> usize {
        self.loose_bytes + self.pieces.iter().map(Piece::bytes).sum::<usize>()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.loose.is_empty() && self.recalled.is_empty()
    }

    /// When there is something to call with: now, later, or not until more arrives.
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        if !self.pieces.is_empty() || !self.recalled.is_empty() || self.loose_bytes >= CALL_BYTES_MAX {
            return Some(now);
        }
        self.loose.front().map(|loose| loose.due.max(now))
    }

    /// One of its lanes takes so many bytes. `weights` are the lanes' relative to each other, in the order of the links.
    pub fn took(&mut self, lane: usize, bytes: usize, weights: &[f64]) {
        for (link, weight) in self.links.iter_mut().zip(weights).filter(|(link, _)| link.lane == lane) {
            link.sent += bytes as f64 / weight;
        }
        let furthest = self.links.iter().map(|link| link.sent).fold(0.0, f64::max);
        self.links.iter_mut().for_each(|link| link.sent = link.sent.max(furthest - CATCH_UP_BYTES));
    }

    /// Takes what goes into the next call, which has at most `max`: the older of what is packed and what is loose.
    ///
    /// What was read back from disk takes turns with the rest, and goes only where `may_recall` says so.
    pub fn next_call(
        &mut self,
        encoding: Encoding,
        memory: &Arc<Memory>,
        max: CallMax,
        may_recall: bool,
    ) -> Option<Piece> {
        let piece = self.next_piece(encoding, memory, max, may_recall)?;
        let Some([first, rest]) = piece.split(memory, max) else { return Some(piece) };
        self.put_back(Item::Piece(rest));
        Some(first)
    }

    fn next_piece(
        &mut self,
        encoding: Encoding,
        memory: &Arc<Memory>,
        max: CallMax,
        may_recall: bool,
    ) -> Option<Piece> {
        let has_fresh = !self.pieces.is_empty() || !self.loose.is_empty();
        self.recalled_next = !self.recalled_next;
        if may_recall && self.has_recalled() && (self.recalled_next || !has_fresh) {
            return piece::merge(&mut self.recalled, encoding, memory, max);
        }
        if self.is_piece_first() {
            return self.merge(encoding, memory, max);
        }
        let piece = self.pack(encoding, memory)?;
        self.loose_bytes -= piece.bytes();
        Some(piece)
    }

    /// Whether something that comes first is from before `limit`, to its youngest event.
    pub fn has_expired(&self, limit: Instant) -> bool {
        let first = [self.recalled.front(), self.pieces.front()];
        first.into_iter().flatten().any(|piece| piece.is_before(limit))
            || self.loose.front().is_some_and(|loose| loose.newest() < limit)
    }

    /// Takes that, packed.
    pub fn take_expired(
        &mut self,
        limit: Instant,
        encoding: Encoding,
        memory: &Arc<Memory>,
    ) -> Option<Piece> {
        for pieces in [&mut self.recalled, &mut self.pieces] {
            if let Some(piece) = pieces.pop_front_if(|piece| piece.is_before(limit)) {
                return Some(piece);
            }
        }
        let loose = self.loose.pop_front_if(|loose| loose.newest() < limit)?;
        self.loose_bytes -= loose.bytes();
        let mut alone = VecDeque::from([loose]);
        let piece = piece::pack(&mut alone, encoding, memory);
        // One call may not take all of it.
        alone.into_iter().for_each(|rest| self.put_back(Item::Loose(rest)));
        piece
    }

    /// Puts packed batches together, but none that came behind lines that are loose still.
    fn merge(&mut self, encoding: Encoding, memory: &Arc<Memory>, max: CallMax) -> Option<Piece> {
        let end = self.loose.front().map_or(u64::MAX, |loose| loose.turn);
        let mut behind = self.pieces.split_off(self.pieces.partition_point(|piece| piece.turn <= end));
        let piece = piece::merge(&mut self.pieces, encoding, memory, max);
        self.pieces.append(&mut behind);
        piece
    }

    /// Packs loose lines, but none that came behind a batch that is packed already.
    fn pack(&mut self, encoding: Encoding, memory: &Arc<Memory>) -> Option<Piece> {
        let end = self.pieces.front().map_or(u64::MAX, |piece| piece.turn);
        let mut behind = self.loose.split_off(self.loose.partition_point(|loose| loose.turn < end));
        let piece = piece::pack(&mut self.loose, encoding, memory);
        self.loose.append(&mut behind);
        piece
    }

    /// When the oldest event was received that is here or in flight.
    pub fn oldest(&self) -> Option<Instant> {
        let pieces = self.pieces.iter().chain(&self.recalled).map(Piece::oldest);
        pieces.chain(self.loose.iter().map(Loose::oldest)).chain(self.in_flight.iter().copied()).min()
    }

    /// Gives up everything: how many events were in each place.
    pub fn abandon(&mut self) -> [(u64, Place); 2] {
        let loose: u64 = self.loose.drain(..).map(|loose| loose.events()).sum();
        self.loose_bytes = 0;
        let mut events = [(loose, Place::Queued), (0, Place::Retry)];
        for piece in self.pieces.drain(..).chain(self.recalled.drain(..)) {
            events[usize::from(piece.is_retry)].0 += piece.events();
        }
        events
    }
}
