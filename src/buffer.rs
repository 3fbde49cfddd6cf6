//! The open buffer of one stream on one shard. It starts as a few lines and grows; from 64 KiB on, where the
//! destination takes records, it is encoded as it fills, so that sealing costs nothing. It asks for memory
//! before it grows and never reads a clock.

use std::sync::Arc;
use std::time::Instant;

use crate::batch::{Batch, BatchId, Body, LINES_BYTES_MAX, Ticket};
use crate::destination::Encoding;
use crate::encode::{self, CALL_BYTES_MAX, Encoder};
use crate::memory::{Charge, Memory};
use crate::prefetch;
use crate::stream::Stream;

/// The first allocation of a buffer, in bytes.
const LINES_BYTES_MIN: usize = 512;
/// What a batch takes beside its bytes: its ticket and its place in the queues.
const BATCH_BYTES: u64 = 384;

/// What became of a line that was to be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    /// It stands in the buffer.
    Done,
    /// It does not fit: the buffer must be sealed first.
    SealFirst,
    /// There is no memory for it.
    Full,
}

/// How a stream's buffers are built: fixed while the process lives.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What the destination takes.
    pub encoding: Encoding,
    /// Raw bytes at which a buffer is sealed.
    pub bytes_max: usize,
}

impl Shape {
    /// Buffers that leave a stream's share of memory room for several of them.
    pub fn new(encoding: Encoding, memory: &Memory) -> Self {
        let share = usize::try_from(memory.batch_bytes_max()).unwrap_or(usize::MAX);
        Self { encoding, bytes_max: share.clamp(LINES_BYTES_MAX, CALL_BYTES_MAX) }
    }
}

/// The events of one stream that one shard has gathered and not sealed.
#[derive(Debug)]
pub struct Buffer {
    stream: Arc<Stream>,
    shape: Shape,
    lines: Vec<u8>,
    lines_events: u32,
    encoder: Option<Box<Encoder>>,
    oldest: Option<Instant>,
    charge: Charge,
    /// Capacity of the last body that was encoded here: the next one likely grows to the same size.
    last_capacity: usize,
    /// Bytes of lines that the last buffer came to, for the same reason: growing by doubling copies them all.
    last_lines: usize,
}

impl Buffer {
    /// An empty buffer.
    pub fn new(shape: Shape, memory: &Arc<Memory>, stream: &Arc<Stream>) -> Self {
        Self {
            stream: Arc::clone(stream),
            shape,
            lines: Vec::new(),
            lines_events: 0,
            encoder: None,
            oldest: None,
            charge: Charge::none(memory, &stream.account),
            last_capacity: 0,
            last_lines: 0,
        }
    }

    /// Events gathered.
    pub fn events(&self) -> u64 {
        u64::from(self.lines_events) + self.encoder.as_ref().map_or(0, |encoder| encoder.events())
    }

    /// Whether nothing is gathered.
    pub fn is_empty(&self) -> bool {
        self.oldest.is_none()
    }

    /// Raw bytes gathered.
    pub fn bytes(&self) -> usize {
        self.lines.len() + self.encoder.as_ref().map_or(0, |encoder| encoder.bytes())
    }

    /// Hints that a line of `length` bytes will be appended soon, where it is known to which place. The encoder's end
    /// is warm anyway.
    #[inline]
    pub fn prefetch(&self, length: usize) {
        if self.lines.capacity() > 0 {
            prefetch::for_writing(self.lines.as_ptr().wrapping_add(self.lines.len()), length);
        }
    }

    /// Appends one line, LF included, received at `now`.
    #[inline]
    pub fn append(&mut self, line: &[u8], now: Instant, memory: &Memory) -> Append {
        if self.encoder.is_some() {
            return self.append_encoded(line, memory);
        }
        if self.lines.capacity() - self.lines.len() < line.len() {
            match self.make_room(line.len(), memory) {
                Append::Done if self.encoder.is_some() => return self.append_encoded(line, memory),
                Append::Done => (),
                other => return other,
            }
        }
        self.lines.extend_from_slice(line);
        self.lines_events += 1;
        if self.oldest.is_none() {
            self.oldest = Some(now);
        }
        Append::Done
    }

    fn append_encoded(&mut self, line: &[u8], memory: &Memory) -> Append {
        let encoder = self.encoder.as_mut().expect("called only with an encoder");
        if !encoder.fits(line.len()) {
            return Append::SealFirst;
        }
        let growth = encoder.growth_for(line.len());
        if growth > 0 {
            if memory.is_above_half() {
                return Append::SealFirst;
            }
            if !self.charge.try_add(growth as u64) {
                return Append::Full;
            }
            encoder.grow_for(line.len());
        }
        encoder.push(line);
        Append::Done
    }

    /// Makes room for a line: a larger buffer of lines, or an encoder once they are many.
    #[cold]
    fn make_room(&mut self, length: usize, memory: &Memory) -> Append {
        let wanted = self.lines.len() + length;
        let encodes = self.shape.encoding == Encoding::Records;
        let bound = if encodes { LINES_BYTES_MAX } else { self.shape.bytes_max };
        if !self.is_empty() && wanted > self.shape.bytes_max.min(CALL_BYTES_MAX) {
            return Append::SealFirst;
        }
        if !self.is_empty() && self.bytes() >= LINES_BYTES_MAX && memory.is_above_half() {
            return Append::SealFirst;
        }
        if encodes && wanted > bound && !self.is_empty() {
            return self.start_encoding(memory);
        }
        let likely = if self.is_empty() && !memory.is_above_half() { self.likely_lines() } else { 0 };
        let doubled = (2 * self.lines.capacity()).max(likely).min(bound);
        let capacity = wanted.max(doubled).max(LINES_BYTES_MIN);
        let beside = if self.lines.capacity() == 0 { BATCH_BYTES } else { 0 };
        if !self.charge.try_add((capacity - self.lines.capacity()) as u64 + beside) {
            return Append::Full;
        }
        self.lines.reserve_exact(capacity - self.lines.len());
        Append::Done
    }

    /// The bytes of lines that the next buffer will likely come to: as many as the last, and a bit more, since half of
    /// all have more than the one before.
    fn likely_lines(&self) -> usize {
        self.last_lines + self.last_lines / 8
    }

    /// Turns the lines gathered so far into an open body.
    fn start_encoding(&mut self, memory: &Memory) -> Append {
        let packing = self.stream.settings.load().packing;
        let mut encoder = Box::new(Encoder::new(packing, self.shape.bytes_max));
        let above_half = memory.is_above_half();
        let first = encode::body_bytes_max(2 * LINES_BYTES_MAX);
        let hint = if above_half { first } else { self.last_capacity.max(first) };
        let capacity = (hint + encode::STAGING_BYTES) as u64;
        if !self.charge.try_add(capacity) {
            return Append::SealFirst;
        }
        encoder.reserve(hint);
        let taken = encoder.push_lines(&self.lines, self.lines_events);
        if taken < self.lines.len() {
            // More records than one call may have: the lane packs these lines, into several calls.
            self.charge.set(self.lines.capacity() as u64 + BATCH_BYTES);
            return Append::SealFirst;
        }
        self.last_lines = LINES_BYTES_MAX;
        self.lines = Vec::new();
        self.lines_events = 0;
        self.charge.set(encoder.capacity() as u64 + BATCH_BYTES);
        self.encoder = Some(encoder);
        Append::Done
    }

    /// Seals what was gathered, if anything was.
    pub fn seal(&mut self, id: BatchId, now: Instant) -> Option<Batch> {
        let oldest = self.oldest.take()?;
        let (events, bytes) = (self.events(), self.bytes() as u64);
        let body = match self.encoder.take() {
            Some(encoder) => {
                let (json, records) = encoder.finish();
                self.last_capacity = json.capacity();
                Body::Records { json, records }
            }
            None => {
                self.last_lines = self.lines.len();
                Body::Lines(std::mem::take(&mut self.lines))
            }
        };
        self.lines_events = 0;
        let ticket = Arc::new(Ticket::new(id, Arc::clone(&self.stream), events, oldest, now));
        Some(Batch { ticket, body, bytes, charge: self.charge.take() })
    }
}
