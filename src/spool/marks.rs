//! What follows when batches are done: marks, and the end of segments and directories. Nothing here is urgent:
//! a mark that comes late repeats a batch after a crash, and a segment that leaves late takes room. The one
//! invariant is the order: a segment's name is durably gone before its marks are removed.

use bytes::Bytes;

use super::format::{self, FileHeader};
use super::index::Where;
use super::segment::Segment;
use super::{Event, Kind, MARKS_EVERY, Notice, OWN, Op, OpResult, RETRY_AFTER, Spool};

/// Marks are synced after so long, in milliseconds.
const SYNC_EVERY: u64 = 1_000;

type Key = (u32, u32);

/// One step of what follows.
#[derive(Clone, Debug)]
pub(super) enum Chore {
    CreateMarks(Key),
    WriteMarks(Key, Vec<u8>),
    SyncMarks(Key),
    Remove(Key),
    Quarantine(Key),
    SyncDir(Key),
    RemoveMarks(Key),
    RemoveDir(u32),
}

impl Spool {
    /// A batch is done, wherever it stands.
    pub(super) fn settle(&mut self, id: u64, now: u64) {
        let places = self.index.places(id);
        let Some(entry) = self.index.remove(id) else { return };
        for place in places {
            self.mark_done(place, entry.header.sequence, now);
        }
    }

    /// The batch at a place is done: a mark for it is to be written.
    pub(super) fn mark_done(&mut self, place: Where, sequence: u64, now: u64) {
        let Where::Stored { dir, number, offset } = place else { return };
        let Some(segment) = self.segments.get_mut(&(dir, number)) else { return };
        if segment.live.remove(&offset).is_some() {
            segment.marks.pending.extend_from_slice(&format::mark(offset, sequence, segment.salt));
        }
        segment.done_at = segment.live.is_empty().then_some(now);
    }

    /// The batch at a place stands elsewhere now.
    pub(super) fn forget_place(&mut self, place: Where, now: u64) {
        let Where::Stored { dir, number, offset } = place else { return };
        let Some(segment) = self.segments.get_mut(&(dir, number)) else { return };
        segment.live.remove(&offset);
        segment.done_at = segment.live.is_empty().then_some(now);
    }

    /// Lets kept segments go before their time.
    pub(super) fn forget_kept(&mut self, now: u64) {
        let keep_sent = self.limits.keep_sent;
        let is_kept =
            |segment: &&mut Segment| segment.is_over() && !segment.is_leaving && !segment.is_damaged;
        for segment in self.segments.values_mut().filter(is_kept) {
            segment.done_at = Some(now.saturating_sub(keep_sent));
        }
    }

    pub(super) fn next_chore(&mut self, now: u64) -> Option<(Op, Chore)> {
        if let Some(chore) = self.chores.pop_front() {
            return self.op_of_chore(&chore).map(|op| (op, chore));
        }
        if now < self.marks_due && !self.is_stopping {
            return None;
        }
        let keys: Vec<Key> = self.segments.keys().copied().collect();
        if let Some(found) = keys.into_iter().find_map(|key| self.chore_of(key, now)) {
            return Some(found);
        }
        let empty = |(number, dir): (&u32, &super::Dir)| {
            let is_over = dir.is_adopted && !dir.is_kept && !dir.is_removing;
            (is_over && !self.has_files(*number)).then_some(*number)
        };
        if let Some(dir) = self.dirs.iter().find_map(empty) {
            self.dirs.get_mut(&dir)?.is_removing = true;
            return Some((Op::RemoveDir(dir), Chore::RemoveDir(dir)));
        }
        self.marks_due = now + MARKS_EVERY;
        None
    }

    fn chore_of(&mut self, key: Key, now: u64) -> Option<(Op, Chore)> {
        let keep_sent = self.limits.keep_sent;
        let is_writing = self.is_writing(key);
        let is_stopping = self.is_stopping;
        let segment = self.segments.get_mut(&key)?;
        if segment.is_leaving || segment.marks.is_busy || now < segment.wait_until {
            return None;
        }
        let is_sent = segment.done_at.is_none_or(|at| now >= at.saturating_add(keep_sent));
        let chore = if segment.is_over() && !is_writing && (segment.is_damaged || is_sent) {
            segment.is_leaving = true;
            if segment.is_damaged { Chore::Quarantine(key) } else { Chore::Remove(key) }
        } else if !segment.marks.pending.is_empty() && !segment.marks.exists {
            segment.marks.is_busy = true;
            Chore::CreateMarks(key)
        } else if !segment.marks.pending.is_empty() {
            segment.marks.is_busy = true;
            Chore::WriteMarks(key, std::mem::take(&mut segment.marks.pending))
        } else if segment.marks.is_dirty && (is_stopping || now >= segment.marks.sync_at) {
            segment.marks.is_busy = true;
            Chore::SyncMarks(key)
        } else {
            return None;
        };
        self.op_of_chore(&chore).map(|op| (op, chore))
    }

    fn op_of_chore(&self, chore: &Chore) -> Option<Op> {
        let segment = |key: &Key| self.segments.get(key);
        Some(match chore {
            Chore::CreateMarks(key) => Op::Create(segment(key)?.marks_file()),
            Chore::WriteMarks(key, marks) => {
                let segment = segment(key)?;
                let header = FileHeader { kind: Kind::Done, salt: segment.salt };
                let head = if segment.marks.length == 0 { format::file_header(header) } else { Vec::new() };
                let offset = if segment.marks.length == 0 { 0 } else { segment.marks.end() };
                let parts = vec![Bytes::from(head), Bytes::copy_from_slice(marks)];
                Op::Write { file: segment.marks_file(), offset, parts }
            }
            Chore::SyncMarks(key) => Op::Sync(segment(key)?.marks_file()),
            Chore::Remove(key) => Op::Remove(segment(key)?.file),
            Chore::Quarantine(key) => Op::Quarantine(segment(key)?.file),
            Chore::SyncDir((dir, _)) => Op::SyncDir(*dir),
            Chore::RemoveMarks(key) => Op::Remove(segment(key)?.marks_file()),
            Chore::RemoveDir(dir) => Op::RemoveDir(*dir),
        })
    }

    pub(super) fn chore_done(&mut self, chore: Chore, result: &OpResult, now: u64) {
        let has_failed = matches!(result, OpResult::Failed(_));
        match chore {
            Chore::RemoveDir(dir) => {
                if has_failed {
                    self.dirs.entry(dir).and_modify(|dir| dir.is_kept = true);
                } else {
                    self.dirs.remove(&dir);
                }
            }
            Chore::CreateMarks(key) | Chore::WriteMarks(key, _) | Chore::SyncMarks(key) => {
                self.marks_done(key, chore, has_failed, now);
            }
            Chore::Remove(key) | Chore::Quarantine(key) if has_failed => {
                if let Some(segment) = self.segments.get_mut(&key) {
                    segment.is_leaving = false;
                    segment.wait_until = now + 5 * RETRY_AFTER;
                }
            }
            Chore::Remove(key) => self.chores.push_back(Chore::SyncDir(key)),
            Chore::Quarantine(key) => {
                let Some(segment) = self.segments.get(&key) else { return };
                self.quarantined_bytes += segment.length + segment.left_over;
                self.events.push_back(Event::Notice(Notice::Quarantined(segment.file)));
                self.chores.push_back(Chore::SyncDir(key));
            }
            Chore::SyncDir(key) => {
                let has_marks = self.segments.get(&key).is_some_and(|segment| segment.marks.exists);
                if has_marks && !has_failed {
                    self.chores.push_back(Chore::RemoveMarks(key));
                } else {
                    self.segments.remove(&key);
                }
            }
            // Marks without a segment mean nothing: whoever adopts the directory removes them.
            Chore::RemoveMarks(key) => {
                self.segments.remove(&key);
            }
        }
    }

    fn marks_done(&mut self, key: Key, chore: Chore, has_failed: bool, now: u64) {
        let Some(segment) = self.segments.get_mut(&key) else { return };
        segment.marks.is_busy = false;
        if has_failed {
            segment.wait_until = now + RETRY_AFTER;
        }
        match chore {
            Chore::CreateMarks(_) => segment.marks.exists = !has_failed,
            Chore::WriteMarks(_, mut marks) if has_failed => {
                marks.append(&mut segment.marks.pending);
                segment.marks.pending = marks;
            }
            Chore::WriteMarks(_, marks) => {
                segment.marks.length = segment.marks.end() + marks.len() as u64;
                if !std::mem::replace(&mut segment.marks.is_dirty, true) {
                    segment.marks.sync_at = now + SYNC_EVERY;
                }
            }
            // A failed sync of marks is not tried again: what it lost is repeated, at worst.
            _ => {
                segment.marks.is_dirty = false;
                segment.marks.is_doubtful |= has_failed;
            }
        }
    }

    /// Whether the writer has a step of this segment under way.
    fn is_writing(&self, key: Key) -> bool {
        use super::writer::Writer::{Busy, Idle, Ready};
        match &self.writer {
            Idle => false,
            Ready(number, _) | Busy(number, _) => key == (OWN, *number),
        }
    }
}
