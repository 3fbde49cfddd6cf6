//! The events that are not synced, as the bytes that go over the wire. Pure: it sees no socket and reads no clock.
//!
//! They stand in segments, each closed by the `!sync` that covers it. An answer removes the first segment; a lost
//! connection only sets back how far each was written.
//!
//! Invariants: only the last segment is open; answers are taken for the first closed one and no other; `bytes` is
//! the sum of the segments' bytes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Report;

/// Segments that fill the buffer: more would have the relay wait with 64 syncs, fewer would free it in large steps.
const SEGMENTS: usize = 32;

#[derive(Debug)]
struct Segment {
    id: u64,
    bytes: Vec<u8>,
    events: u64,
    /// When its first event came.
    opened: Instant,
    is_closed: bool,
    written: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) report: Report,
    pub(super) is_stopped: bool,
    segments: VecDeque<Segment>,
    bytes: usize,
    bytes_max: usize,
    next_id: u64,
}

impl Held {
    pub(super) fn new(bytes_max: usize) -> Self {
        let segments = VecDeque::new();
        Self { report: Report::default(), is_stopped: false, segments, bytes: 0, bytes_max, next_id: 1 }
    }

    /// Whether a frame of this length could ever be held.
    pub(super) fn could_take(&self, frame: usize) -> bool {
        frame <= self.bytes_max
    }

    pub(super) fn has_room(&self, frame: usize) -> bool {
        self.bytes + frame <= self.bytes_max
    }

    /// Adds an event. Says whether there was nothing to write before, so that the thread must be woken.
    pub(super) fn push(&mut self, stream: &[u8], payload: &[u8], now: Instant) -> bool {
        let was_idle = !self.has_unwritten();
        if self.segments.back().is_none_or(|segment| segment.is_closed) {
            let (id, bytes) = (self.next_id, Vec::new());
            self.next_id += 1;
            let segment = Segment { id, bytes, events: 0, opened: now, is_closed: false, written: 0 };
            self.segments.push_back(segment);
        }
        let segment = self.segments.back_mut().expect("one was opened");
        let before = segment.bytes.len();
        for part in [stream, b" ", payload, b"\n"] {
            segment.bytes.extend_from_slice(part);
        }
        segment.events += 1;
        self.bytes += segment.bytes.len() - before;
        if segment.bytes.len() >= self.bytes_max / SEGMENTS {
            self.close_segment();
        }
        was_idle
    }

    /// Has everything so far covered by a sync. Says whether something was not.
    pub(super) fn close_segment(&mut self) -> bool {
        let Some(segment) = self.segments.back_mut().filter(|segment| !segment.is_closed) else {
            return false;
        };
        let before = segment.bytes.len();
        segment.bytes.extend_from_slice(format!("!sync {}\n", segment.id).as_bytes());
        segment.is_closed = true;
        self.bytes += segment.bytes.len() - before;
        true
    }

    /// Closes the open segment once it is `interval` old; else says how long that takes.
    pub(super) fn close_if_due(&mut self, now: Instant, interval: Duration) -> Option<Duration> {
        let open = self.segments.back().filter(|segment| !segment.is_closed)?;
        let left = (open.opened + interval).saturating_duration_since(now);
        if left.is_zero() {
            self.close_segment();
            return None;
        }
        Some(left)
    }

    pub(super) fn has_unwritten(&self) -> bool {
        self.segments.iter().rev().any(|segment| segment.written < segment.bytes.len())
    }

    /// Copies what is to be written next behind `scratch`, up to `length` bytes in all.
    pub(super) fn copy_unwritten(&self, scratch: &mut Vec<u8>, length: usize) {
        for segment in &self.segments {
            let left = length.saturating_sub(scratch.len());
            let unwritten = &segment.bytes[segment.written..];
            scratch.extend_from_slice(&unwritten[..unwritten.len().min(left)]);
        }
    }

    /// So many more bytes were written.
    pub(super) fn wrote(&mut self, mut length: usize) {
        for segment in &mut self.segments {
            let here = length.min(segment.bytes.len() - segment.written);
            segment.written += here;
            length -= here;
        }
    }

    /// The connection is lost: everything is to be written again.
    pub(super) fn rewind(&mut self) {
        for segment in &mut self.segments {
            let written = std::mem::take(&mut segment.written);
            let whole = written >= segment.bytes.len();
            let frames = || memchr::memchr_iter(b'\n', &segment.bytes[..written]).count() as u64;
            self.report.possible_duplicates += if whole { segment.events } else { frames() };
        }
    }

    /// The relay has answered a sync. Says whether it was one that is waited for.
    pub(super) fn answer(&mut self, id: u64, lost: u64) -> bool {
        let Some(first) = self.segments.front() else { return false };
        if first.id != id || !first.is_closed || first.written < first.bytes.len() {
            return false;
        }
        // An upper bound may be above what was sent.
        let lost = lost.min(first.events);
        self.report.lost += lost;
        self.report.synced += first.events - lost;
        self.bytes -= first.bytes.len();
        self.segments.pop_front();
        true
    }

    /// The segment that took the last event.
    pub(super) fn last_id(&self) -> u64 {
        self.next_id - 1
    }

    pub(super) fn is_answered(&self, id: u64) -> bool {
        self.segments.front().is_none_or(|segment| segment.id > id)
    }

    pub(super) fn report(&self) -> Report {
        let unsynced = self.segments.iter().map(|segment| segment.events).sum();
        Report { unsynced, ..self.report.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(held: &mut Held, length: usize) -> String {
        let mut scratch = Vec::new();
        held.copy_unwritten(&mut scratch, length);
        held.wrote(scratch.len());
        String::from_utf8(scratch).expect("text")
    }

    #[test]
    fn what_is_not_answered_is_written_again_and_nothing_else() {
        let (mut held, now) = (Held::new(1 << 20), Instant::now());
        assert!(held.push(b"a", b"1", now) && !held.push(b"a", b"2", now));
        assert!(held.close_segment() && !held.close_segment());
        held.push(b"b", b"3", now);
        assert_eq!(written(&mut held, 7), "a 1\na 2");
        assert!(!held.answer(1, 0), "it is not written yet");
        assert_eq!(written(&mut held, 99), "\n!sync 1\nb 3\n");
        assert!(!held.answer(2, 0) && held.answer(1, 1) && !held.answer(1, 0));
        held.rewind();
        held.push(b"b", b"4", now);
        assert_eq!(held.close_if_due(now, Duration::from_secs(1)), Some(Duration::from_secs(1)));
        assert_eq!(held.close_if_due(now, Duration::ZERO), None);
        assert_eq!(written(&mut held, 99), "b 3\nb 4\n!sync 2\n");
        let wanted = held.last_id();
        assert!(!held.is_answered(wanted) && held.answer(2, 0) && held.is_answered(wanted));
        let report = held.report();
        assert_eq!((report.synced, report.lost, report.unsynced, report.possible_duplicates), (3, 1, 0, 1));
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn it_is_bounded_and_closes_segments_as_it_fills() {
        let (mut held, now) = (Held::new(64 << 10), Instant::now());
        let mut events = 0;
        while held.has_room(110) {
            held.push(b"stream", &[b'x'; 102], now);
            events += 1;
        }
        assert!(held.segments.len() >= SEGMENTS - 2 && held.bytes <= (64 << 10));
        assert_eq!(held.report().unsynced, events);
    }
}
