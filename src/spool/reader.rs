//! Reading batches back: those that are asked for, again where a read fails, from another copy where there is one; and
//! what follows where a batch cannot be read at all. Its invariant: whatever was asked for is answered, once.

use super::format::{self, BatchHeader};
use super::index::Where;
use super::{Event, File, Kind, Op, OpResult, Purpose, RETRY_AFTER, Spool};

impl Spool {
    /// Asks for the oldest batch of a stream that nobody holds: [`Event::Loaded`] or [`Event::Damaged`] follows.
    /// Gives its id and its header, or nothing where there is none ([`Event::Nothing`] follows).
    pub fn fetch(&mut self, stream: &str) -> Option<(u64, BatchHeader)> {
        let Some(id) = self.index.take_oldest(stream) else {
            self.events.push_back(Event::Nothing(stream.into()));
            return None;
        };
        self.fetches.push_back(id);
        self.index.get(id).map(|entry| (id, entry.header.clone()))
    }

    pub(super) fn next_fetch(&mut self) -> Option<(Op, Purpose)> {
        while let Some(id) = self.fetches.pop_front() {
            // What was found to be damaged since it was asked for is no longer there.
            if let (Some(entry), Some(op)) = (self.index.get(id), self.read_batch(id)) {
                return Some((op, Purpose::Fetch(id, entry.place)));
            }
        }
        None
    }

    pub(super) fn next_reread(&mut self, now: u64) -> Option<u64> {
        self.rereads.front().filter(|(at, _)| now >= *at)?;
        self.rereads.pop_front().map(|(_, id)| id)
    }

    pub(super) fn read_batch(&self, id: u64) -> Option<Op> {
        let entry = self.index.get(id)?;
        let Where::Stored { dir, number, offset } = entry.place else { return None };
        let file = File { dir, number, kind: Kind::Segment };
        let offset = u64::from(offset) + format::BATCH_HEADER_BYTES as u64;
        Some(Op::Read { file, offset, length: u64::from(entry.header.length) })
    }

    pub(super) fn fetched(&mut self, id: u64, place: Where, result: OpResult, now: u64) {
        let Some(entry) = self.index.get(id) else { return };
        let header = entry.header.clone();
        let is_doubtful = entry.is_doubtful;
        match result {
            OpResult::Read(lines) if is_whole(&header, &lines) => {
                self.index.hold(id);
                self.events.push_back(Event::Loaded { id, header, lines, is_doubtful });
            }
            // It was moved meanwhile, and what it was moved from may be gone.
            _ if self.index.get(id).is_some_and(|entry| entry.place != place) => self.fetches.push_back(id),
            // What cannot be read now may be readable later: a disk that is busy with errors, too many open files.
            OpResult::Failed(_) if self.index.may_read_again(id) => {
                self.rereads.push_back((now + RETRY_AFTER, id));
            }
            _ if self.index.use_copy(id) => {
                self.note_damage(place);
                self.fetches.push_back(id);
            }
            _ => self.damaged(id, now),
        }
    }

    /// Something at this place could not be read.
    fn note_damage(&mut self, place: Where) {
        if let Where::Stored { dir, number, offset } = place
            && let Some(segment) = self.segments.get_mut(&(dir, number))
            && segment.torn_from.is_none_or(|torn_from| offset < torn_from)
            && !std::mem::replace(&mut segment.is_damaged, true)
        {
            self.damaged_segments += 1;
        }
    }

    /// A batch cannot be read. Where the caller has it in memory it stays, should that end before the batch is settled;
    /// else it is settled, and counted. Either way its segment will be put aside.
    pub(super) fn damaged(&mut self, id: u64, now: u64) {
        let Some(entry) = self.index.get_mut(id) else { return };
        let (place, header, is_held) = (entry.place, entry.header.clone(), entry.is_held);
        entry.failed_reads = 0;
        self.note_damage(place);
        if is_held {
            self.events.push_back(Event::Unreadable(id));
            return;
        }
        let was_asked = !self.index.is_waiting(id);
        self.settle(id, now);
        self.events.push_back(Event::Damaged { id, header, was_asked });
    }
}

/// Whether lines are what a batch's header says.
pub(super) fn is_whole(header: &BatchHeader, lines: &[u8]) -> bool {
    lines.len() == header.length as usize && crc32c::crc32c(lines) == header.crc
}
