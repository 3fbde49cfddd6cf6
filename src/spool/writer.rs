//! Writing: groups of batches, one write and one fsync each; segments made, sealed and poisoned. One step at a
//! time, so that what an fsync covers is never in doubt. Its invariant: a batch is `Stored` only when the write of
//! its group, the fsync after it, and the fsync of the directory after the segment was made have all succeeded.

use bytes::Bytes;

use super::format::{self, BATCH_OVERHEAD, BatchHeader, CONTENT_START, FileHeader, Position};
use super::index::Where;
use super::reader::is_whole;
use super::segment::{Phase, Segment};
use super::{Event, File, IDLE_SEGMENT, Kind, Lines, Notice, OWN, Op, OpResult, RETRY_AFTER, Refusal, Spool};

/// A batch to be written.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) lines: Lines,
    /// Whether it stands in a poisoned segment and is to stand in another.
    pub(super) is_move: bool,
}

/// Batches that are written and synced together.
#[derive(Debug)]
pub(super) struct Group {
    /// With the offset that each gets.
    jobs: Vec<(Job, u32, BatchHeader)>,
    /// Where the segment ends behind them.
    end: u64,
}

#[derive(Debug)]
pub(super) enum Step {
    Create,
    SyncDir,
    Write(Group),
    Sync(Group),
    WriteIndex,
    SyncIndex(u64),
}

#[derive(Debug)]
pub(super) enum Writer {
    Idle,
    /// The next step is to be asked for.
    Ready(u32, Step),
    /// It is under way.
    Busy(u32, Step),
}

impl Spool {
    pub(super) fn next_write(&mut self, now: u64) -> Option<Op> {
        let (number, step) = match std::mem::replace(&mut self.writer, Writer::Idle) {
            Writer::Idle => self.first_step(now)?,
            Writer::Ready(number, step) => (number, step),
            busy @ Writer::Busy(..) => {
                self.writer = busy;
                return None;
            }
        };
        let op = self.op_of(number, &step, now);
        self.writer = Writer::Busy(number, step);
        Some(op)
    }

    /// What to do where nothing is under way.
    fn first_step(&mut self, now: u64) -> Option<(u32, Step)> {
        if self.is_failing && now < self.retry_at {
            return None;
        }
        let open = self.next_number - 1;
        if let Some(segment) = self.segments.get_mut(&(OWN, open)).filter(|s| s.phase == Phase::Open) {
            let is_full = segment.length >= self.limits.segment_bytes;
            let is_last = self.is_stopping && self.queue.is_empty();
            let is_idle = self.queue.is_empty() && now >= self.appended_at + IDLE_SEGMENT;
            if segment.live.is_empty() && (is_full || is_last || is_idle) {
                // All of it is done: it is removed, and needs no index.
                self.close_segment(open, Phase::Sealed, now);
            } else if is_full || is_last {
                return Some((open, Step::WriteIndex));
            }
        }
        self.queue.front()?;
        let is_open = self.segments.get(&(OWN, open)).is_some_and(|segment| segment.phase == Phase::Open);
        if !is_open {
            return Some((self.new_segment(), Step::Create));
        }
        Some((open, Step::Write(self.gather(open)?)))
    }

    fn new_segment(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        let salt = self.salt();
        self.segments.insert((OWN, number), Segment::new(OWN, number, salt, Phase::Open));
        number
    }

    /// Takes from the queue what fits into one group.
    fn gather(&mut self, number: u32) -> Option<Group> {
        let length = self.segments.get(&(OWN, number))?.length.max(u64::from(CONTENT_START));
        let (mut end, mut jobs) = (length, Vec::new());
        while let Some(job) = self.queue.front() {
            let Some(entry) = self.index.get_mut(job.id) else {
                // Settled meanwhile: a batch that was to be moved.
                self.moving_bytes -= self.queue.pop_front().map_or(0, |job| job.lines.bytes() as u64);
                continue;
            };
            let span = entry.header.span();
            if !jobs.is_empty() && end + span > length + self.limits.group_bytes {
                break;
            }
            let mut job = self.queue.pop_front()?;
            if job.is_move {
                self.moving_bytes -= job.lines.bytes() as u64;
            } else {
                entry.place = Where::Writing;
                entry.header.crc = crc32c::crc32c(&job.lines.together());
                self.queue_bytes -= span;
            }
            jobs.push((job, u32::try_from(end).ok()?, entry.header.clone()));
            end += span;
            if end >= self.limits.segment_bytes {
                break;
            }
        }
        self.group_bytes = end - length;
        (!jobs.is_empty()).then_some(Group { jobs, end })
    }

    fn op_of(&mut self, number: u32, step: &Step, now: u64) -> Op {
        let file = File { dir: OWN, number, kind: Kind::Segment };
        let segment = self.segments.get(&(OWN, number)).expect("a segment stays while it is written");
        match step {
            Step::Create => Op::Create(file),
            Step::SyncDir => Op::SyncDir(OWN),
            Step::Write(group) => Op::Write { file, offset: segment.length, parts: parts(segment, group) },
            Step::WriteIndex => {
                let entries = segment.headers.iter().map(|(offset, header)| (*offset, header));
                let index = format::index(entries, segment.salt, segment.length, now);
                Op::Write { file, offset: segment.length, parts: vec![Bytes::from(index)] }
            }
            Step::Sync(_) | Step::SyncIndex(_) => Op::Sync(file),
        }
    }

    pub(super) fn wrote(&mut self, result: OpResult, now: u64) {
        let Writer::Busy(number, step) = std::mem::replace(&mut self.writer, Writer::Idle) else { return };
        let error = match result {
            OpResult::Failed(error) => Some(error),
            _ => None,
        };
        match (step, error) {
            (Step::Create, None) => self.writer = Writer::Ready(number, Step::SyncDir),
            (Step::SyncDir, None) => self.appended_at = now,
            (Step::Write(group), None) => self.writer = Writer::Ready(number, Step::Sync(group)),
            (Step::Sync(group), None) => self.group_stored(number, group, now),
            (Step::WriteIndex, None) => {
                self.writer = Writer::Ready(number, Step::SyncIndex(self.index_length(number)));
            }
            (Step::SyncIndex(length), None) => {
                if let Some(segment) = self.segments.get_mut(&(OWN, number)) {
                    segment.length += length;
                }
                self.close_segment(number, Phase::Sealed, now);
            }
            (Step::Sync(group), Some(error)) => self.poison(number, Some(group), error, now),
            (Step::SyncIndex(_), Some(error)) => self.poison(number, None, error, now),
            (Step::Write(group), Some(error)) => {
                self.close_segment(number, Phase::Sealed, now);
                self.requeue(number, group);
                self.fail(error, now);
            }
            (Step::Create | Step::SyncDir | Step::WriteIndex, Some(error)) => {
                self.close_segment(number, Phase::Sealed, now);
                self.fail(error, now);
            }
        }
    }

    fn index_length(&self, number: u32) -> u64 {
        let segment = self.segments.get(&(OWN, number)).expect("a segment stays while it is written");
        let entries = segment.headers.iter().map(|(offset, header)| (*offset, header));
        format::index(entries, segment.salt, segment.length, 0).len() as u64
    }

    fn group_stored(&mut self, number: u32, group: Group, now: u64) {
        self.appended_at = now;
        self.sync_failures = 0;
        if std::mem::take(&mut self.is_failing) {
            self.events.push_back(Event::Notice(Notice::Works));
        }
        let segment = self.segments.get_mut(&(OWN, number)).expect("a segment stays while it is written");
        let written = group.end - segment.length;
        self.group_bytes = 0;
        segment.length = group.end;
        self.free = self.free.map(|free| free.saturating_sub(written));
        for (job, offset, header) in group.jobs {
            let segment = self.segments.get_mut(&(OWN, number)).expect("a segment stays while it is written");
            segment.headers.push((offset, header.clone()));
            segment.live.insert(offset, job.id);
            self.stored(job, Where::Stored { dir: OWN, number, offset }, header.sequence, now);
        }
    }

    fn stored(&mut self, job: Job, place: Where, sequence: u64, now: u64) {
        let Some(entry) = self.index.get_mut(job.id) else {
            // It was to be moved, and was settled on the way.
            self.mark_done(place, sequence, now);
            return;
        };
        let before = std::mem::replace(&mut entry.place, place);
        let is_done = entry.is_done;
        if job.is_move {
            self.forget_place(before, now);
        } else {
            self.events.push_back(Event::Stored(job.id));
        }
        if is_done {
            self.settle(job.id, now);
        }
    }

    /// Nothing more is written to the segment.
    fn close_segment(&mut self, number: u32, phase: Phase, now: u64) {
        let Some(segment) = self.segments.get_mut(&(OWN, number)) else { return };
        segment.phase = phase;
        segment.headers = Vec::new();
        segment.done_at = segment.live.is_empty().then_some(now);
        self.closes.push_back(segment.file);
    }

    /// An fsync failed: the segment is given up, and what is not done in it is written anew elsewhere.
    fn poison(&mut self, number: u32, group: Option<Group>, error: String, now: u64) {
        self.close_segment(number, Phase::Poisoned, now);
        let segment = self.segments.get(&(OWN, number)).expect("a segment stays while it is written");
        self.moves.extend(segment.live.values());
        if let Some(group) = group {
            self.requeue(number, group);
        }
        self.sync_failures += 1;
        // Once may be that file's fate; twice is the disk's.
        if self.sync_failures > 1 {
            self.fail(error, now);
        }
    }

    /// Puts a group that was not stored in this segment back to the front.
    fn requeue(&mut self, number: u32, group: Group) {
        if let Some(segment) = self.segments.get_mut(&(OWN, number)) {
            segment.left_over = group.end - segment.length;
        }
        self.group_bytes = 0;
        for (job, _, header) in group.jobs.into_iter().rev() {
            if job.is_move {
                self.moving_bytes += job.lines.bytes() as u64;
            } else if let Some(entry) = self.index.get_mut(job.id) {
                if entry.is_done {
                    self.index.remove(job.id);
                    continue;
                }
                entry.place = Where::Queued;
                self.queue_bytes += header.span();
            }
            self.queue.push_front(job);
        }
    }

    /// The disk fails: what waits for it goes back to the caller, and it is left alone for a while.
    fn fail(&mut self, error: String, now: u64) {
        if !std::mem::replace(&mut self.is_failing, true) {
            self.events.push_back(Event::Notice(Notice::Failing(error)));
        }
        self.retry_at = now + RETRY_AFTER;
        for job in std::mem::take(&mut self.queue) {
            if job.is_move {
                self.moves.push_back(job.id);
            } else {
                self.index.remove(job.id);
                self.events.push_back(Event::Refused(job.id, Refusal::Failing));
            }
        }
        (self.queue_bytes, self.moving_bytes) = (0, 0);
    }

    /// The next batch of a poisoned segment to be read back: one at a time, and a group's worth ahead of the writer.
    pub(super) fn next_move(&mut self, now: u64) -> Option<(u64, Op)> {
        let is_ahead = self.moving_bytes >= self.limits.group_bytes;
        if self.is_moving || is_ahead || now < self.moves_at || (self.is_failing && now < self.retry_at) {
            return None;
        }
        while let Some(id) = self.moves.pop_front() {
            if let Some(op) = self.read_batch(id) {
                self.is_moving = true;
                return Some((id, op));
            }
        }
        None
    }

    pub(super) fn read_to_move(&mut self, id: u64, result: OpResult, now: u64) {
        self.is_moving = false;
        let Some(entry) = self.index.get(id) else { return };
        match result {
            OpResult::Read(lines) if is_whole(&entry.header, &lines) => {
                self.moving_bytes += lines.len() as u64;
                self.queue.push_back(Job { id, lines: lines.into(), is_move: true });
            }
            OpResult::Failed(_) if self.index.may_read_again(id) => {
                self.moves_at = now + RETRY_AFTER;
                self.moves.push_back(id);
            }
            _ => self.damaged(id, now),
        }
    }
}

fn parts(segment: &Segment, group: &Group) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(3 * group.jobs.len() + 1);
    if segment.length == 0 {
        let header = FileHeader { kind: Kind::Segment, salt: segment.salt };
        parts.push(Bytes::from(format::file_header(header)));
    }
    let synced = group.jobs.first().map_or(0, |(_, offset, _)| *offset);
    for (job, offset, header) in &group.jobs {
        debug_assert_eq!(header.span(), job.lines.bytes() as u64 + u64::from(BATCH_OVERHEAD));
        let position = Position { salt: segment.salt, offset: *offset, synced };
        parts.push(format::batch_header(header, position, false));
        parts.push(job.lines.clone().together());
        parts.push(format::batch_header(header, position, true));
    }
    parts
}
