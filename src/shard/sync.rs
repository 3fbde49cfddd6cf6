//! What one connection is to be told of its syncs: which batches hold what it sent since its last `!sync`, what
//! of it is lost, and the syncs that wait. Pure: it takes events, syncs and outcomes and gives answers.
//!
//! A coverage is, for each stream, the range of the shard's batches from the first to the last that took an event
//! since the last sync. It is safe once no batch in any of its ranges is unsafe ([`Window`]), and what was lost
//! from a batch in one of them counts for it: an upper bound, since the batch may have been shared. So its size
//! is bounded by streams, not by events; beyond [`RANGES_MAX`] ranges it becomes a single one over all streams,
//! which is safe too and may wait longer.
//!
//! Tracking begins with the first control frame of a connection, so that one that sends none pays nothing for it.
//! Had it sent events before, everything that the shard held then is covered by the first sync.
//!
//! Invariants: answers come in the order of their syncs, one each; a sync is answered as safe only when every
//! batch that took an event of the connection between it and the one before is safe; only the first sync that is
//! not answered waits, and for one batch at a time.

use std::collections::VecDeque;

use super::window::{ANY_STREAM, Range, Window};
use crate::net::Key;

/// Syncs of one connection that may wait for their answer; then it is not read until one is answered.
pub(super) const PENDING_MAX: usize = 64;
/// Ranges that one connection keeps exactly. At most [`PENDING_MAX`] more are kept, one each a sync.
const RANGES_MAX: usize = 64;
/// No batch has this sequence.
const NONE: u64 = u64::MAX;

/// A sync that is not answered yet.
#[derive(Debug)]
struct Pending {
    /// How many of the first ranges of all are left of its coverage.
    ranges: usize,
    lost: u64,
    /// The answer where nothing is lost.
    answer: Vec<u8>,
}

/// The answer to one sync.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The line, LF included.
    pub(super) line: Vec<u8>,
    /// How much was lost of what it covers.
    pub(super) lost: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Syncs {
    /// The batch that took the last event: most often it takes the next as well.
    noted: u64,
    /// The coverages of all pending syncs in their order, and behind them that of the next.
    ranges: VecDeque<Range>,
    /// How many of the ranges belong to pending syncs.
    ranges_pending: usize,
    pending: VecDeque<Pending>,
    /// Lost since the last sync, from batches.
    lost: u64,
}

impl Syncs {
    /// The syncs of a connection that has sent no event yet.
    pub(super) fn new() -> Self {
        let (ranges, pending) = (VecDeque::new(), VecDeque::new());
        Self { noted: NONE, ranges, ranges_pending: 0, pending, lost: 0 }
    }

    /// The syncs of a connection whose events went unnoted, while `lost` events of the shard were lost: the next
    /// one covers all that is open or unsafe now.
    pub(super) fn covering_all(window: &Window, lost: u64) -> Self {
        Self { ranges: VecDeque::from([window.all()]), lost, ..Self::new() }
    }

    /// A batch took an event of this connection.
    #[inline]
    pub(super) fn note(&mut self, stream: u32, sequence: u64, window: &Window) {
        if self.noted != sequence {
            self.note_other(stream, sequence, window);
        }
    }

    fn note_other(&mut self, stream: u32, sequence: u64, window: &Window) {
        self.noted = sequence;
        let mut current = self.ranges.range_mut(self.ranges_pending..);
        if let Some(range) = current.find(|range| range.stream == stream || range.stream == ANY_STREAM) {
            range.first = range.first.min(sequence);
            range.last = range.last.max(sequence);
            return;
        }
        if self.ranges.len() >= RANGES_MAX {
            self.shrink(window);
        }
        let range = Range { stream, first: sequence, last: sequence };
        if self.ranges.len() >= RANGES_MAX && self.ranges.len() > self.ranges_pending {
            self.join(range);
        } else {
            self.ranges.push_back(range);
        }
    }

    /// Forgets the ranges of the next sync that are safe already.
    fn shrink(&mut self, window: &Window) {
        let mut index = 0;
        self.ranges.retain(|range| {
            index += 1;
            index <= self.ranges_pending || window.newest_unsafe(*range).is_some()
        });
    }

    /// Makes one range over all streams of those of the next sync and another.
    fn join(&mut self, other: Range) {
        let current = self.ranges.drain(self.ranges_pending..);
        let joined = current.fold(other, |joined, range| Range {
            stream: ANY_STREAM,
            first: joined.first.min(range.first),
            last: joined.last.max(range.last),
        });
        self.ranges.push_back(joined);
    }

    /// A sync with an ID of printable octets. `lost` frames since the last one never came into a batch.
    pub(super) fn sync(&mut self, id: &[u8], lost: u64) {
        let answer = [b"!synced ", id, b"\n"].concat();
        let ranges = self.ranges.len() - self.ranges_pending;
        self.ranges_pending = self.ranges.len();
        self.noted = NONE;
        self.pending.push_back(Pending { ranges, lost: lost + std::mem::take(&mut self.lost), answer });
    }

    /// A batch has lost events.
    pub(super) fn lose(&mut self, stream: u32, sequence: u64, lost: u64) {
        let mut ranges = self.ranges.iter();
        for pending in &mut self.pending {
            // Not `any`, which would leave the rest of this sync's ranges to the next one.
            let held = ranges.by_ref().take(pending.ranges).filter(|range| range.holds(stream, sequence));
            pending.lost += if held.count() > 0 { lost } else { 0 };
        }
        if ranges.any(|range| range.holds(stream, sequence)) {
            self.lost += lost;
        }
    }

    /// The next answer, if it can be given. If not, the connection waits for a batch that stands in its way.
    pub(super) fn next_answer(&mut self, key: Key, window: &mut Window) -> Option<Answer> {
        let head = self.pending.front_mut()?;
        while head.ranges > 0 {
            if let Some(sequence) = window.newest_unsafe(self.ranges[0]) {
                window.wait(key, sequence);
                return None;
            }
            self.ranges.pop_front();
            self.ranges_pending -= 1;
            head.ranges -= 1;
        }
        let Pending { lost, mut answer, .. } = self.pending.pop_front()?;
        if lost > 0 {
            let id = &answer[b"!synced ".len()..answer.len() - 1];
            answer = [b"!lost ", id, b" ", lost.to_string().as_bytes(), b"\n"].concat();
        }
        Some(Answer { line: answer, lost })
    }

    /// Syncs that wait for their answer.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether something was sent that no sync covers yet.
    pub(super) fn has_uncovered(&self) -> bool {
        self.ranges.len() > self.ranges_pending || self.lost > 0
    }

    /// The memory that is kept, in bytes.
    pub(super) fn bytes(&self) -> usize {
        // An answer is at most 73 octets, and an allocation has 80 for it.
        size_of::<Self>()
            + self.ranges.capacity() * size_of::<Range>()
            + self.pending.capacity() * (size_of::<Pending>() + 80)
    }
}

/// Whether an ID can stand in a sync: 1 to 64 printable ASCII octets without a space.
pub(super) fn is_id(id: &[u8]) -> bool {
    (1..=64).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests;
