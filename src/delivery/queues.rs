//! The queue of one stream, and which lanes it waits for. It orders and counts; it starts nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::piece::{self, Loose, Piece};
use crate::destination::Encoding;
use crate::encode::CALL_BYTES_MAX;
use crate::memory::Memory;
use crate::metrics::Place;
use crate::stream::Stream;

/// A stream's place at one of its lanes.
#[derive(Debug)]
pub struct LaneLink {
    /// The lane.
    pub lane: usize,
    /// Whether the stream stands in the lane's line already.
    pub is_waiting: bool,
    /// Bytes that the lane has taken from this stream, on the lane's clock: the least served is next.
    pub served: u64,
    /// Bytes that this stream has sent by the lane: of several lanes, the one that had least is tried first.
    pub sent: u64,
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
    loose: VecDeque<Loose>,
    loose_bytes: usize,
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
            loose: VecDeque::new(),
            loose_bytes: 0,
        }
    }

    /// Adds lines that may wait for others.
    pub fn push_loose(&mut self, loose: Loose) {
        self.loose_bytes += loose.bytes();
        self.loose.push_back(loose);
    }

    /// Adds a piece behind the others.
    pub fn push(&mut self, piece: Piece) {
        self.pieces.push_back(piece);
    }

    /// Puts a piece that failed before the others, unless it is a suspect alone: that one lets others go first,
    /// so that they can show whether the lane or the record is to blame.
    pub fn push_retry(&mut self, piece: Piece) {
        if piece.refused_since.is_some() && piece.records().len() == 1 {
            self.pieces.push_back(piece);
        } else {
            self.pieces.push_front(piece);
        }
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.loose.is_empty()
    }

    /// When there is something to call with: now, later, or not until more arrives.
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        if !self.pieces.is_empty() || self.loose_bytes >= CALL_BYTES_MAX {
            return Some(now);
        }
        self.loose.front().map(|loose| loose.due.max(now))
    }

    /// Takes what goes into the next call: the older of what is packed and what is loose. The events have left
    /// the place that is returned.
    pub fn next_call(&mut self, encoding: Encoding, memory: &Arc<Memory>) -> Option<(Piece, Place)> {
        let piece_first = match (self.pieces.front(), self.loose.front()) {
            (Some(piece), Some(loose)) => piece.oldest() <= loose.oldest(),
            (piece, _) => piece.is_some(),
        };
        let piece = if piece_first {
            piece::merge(&mut self.pieces, encoding, memory)?
        } else {
            let piece = piece::pack(&mut self.loose, encoding, memory)?;
            self.loose_bytes -= piece.bytes();
            piece
        };
        let place = if piece.is_retry { Place::Retry } else { Place::Queued };
        Some((piece, place))
    }

    /// When the oldest event was received that is here or in flight.
    pub fn oldest(&self) -> Option<Instant> {
        let pieces = self.pieces.iter().map(Piece::oldest);
        pieces.chain(self.loose.iter().map(Loose::oldest)).chain(self.in_flight.iter().copied()).min()
    }

    /// Gives up everything: how many events were in each place.
    pub fn abandon(&mut self) -> [(u64, Place); 2] {
        let loose: u64 = self.loose.drain(..).map(|loose| loose.events()).sum();
        self.loose_bytes = 0;
        let mut events = [(loose, Place::Queued), (0, Place::Retry)];
        for piece in self.pieces.drain(..) {
            events[usize::from(piece.is_retry)].0 += piece.events();
        }
        events
    }
}
