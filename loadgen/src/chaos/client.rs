//! A client that promises: it sends events with `!sync` between them, keeps whatever is not synced, and after a
//! broken connection sends exactly that again. It is written from docs/protocol.md alone.
//!
//! Invariants: an event is in at most one chunk; a chunk is let go of only by the answer to a sync that covers it;
//! at most [`PENDING_MAX`] chunks are kept.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

use super::schedule::Phase;
use super::world::World;
use crate::event::{Builder, Event, StreamSeed};

/// Syncs without an answer at a time: half of what the protocol allows.
const PENDING_MAX: usize = 32;
/// Events in a chunk of a burst.
const CHUNK_EVENTS_MAX: u64 = 300;
/// Between two events when idle.
const IDLE_PAUSE: Duration = Duration::from_millis(10);
/// Until a connection is tried again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(5);
/// The longest that a read waits before the client looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(100);

/// What lies between two syncs.
#[derive(Debug)]
struct Chunk {
    id: u64,
    bytes: Vec<u8>,
    events: u64,
    /// By stream, the sequences.
    ranges: Vec<(usize, Range<u64>)>,
}

/// What a client has seen.
#[derive(Debug, Default, Clone)]
pub struct Told {
    /// Events that were built: of each stream the sequences below this.
    pub sent: Vec<u64>,
    /// Events that were answered `!synced`.
    pub synced: u64,
    /// Events that were answered `!lost`.
    pub lost: u64,
    /// Events sent again.
    pub resent: u64,
    /// Connections that broke.
    pub broken: u64,
    /// What was not as the protocol has it.
    pub wrong: Vec<String>,
}

/// See the module.
pub struct Client<'a> {
    world: &'a World,
    number: u32,
    builder: &'a Builder,
    random: Rng,
    index: u64,
    chunks: VecDeque<Chunk>,
    next_id: u64,
    told: Told,
}

/// Why a connection is left.
enum Left {
    /// It broke, or the relay closes it.
    Broken,
    /// Everything is synced and nothing more is wanted.
    Done,
}

impl<'a> Client<'a> {
    /// A client with this number, which stands in its events.
    pub fn new(world: &'a World, number: u32, builder: &'a Builder, seed: u64) -> Self {
        let told = Told { sent: vec![0; world.streams.len()], ..Told::default() };
        let random = Rng::with_seed(seed ^ u64::from(number) << 32);
        Self { world, number, builder, random, index: 0, chunks: VecDeque::new(), next_id: 0, told }
    }

    /// Sends until the world says that it is enough, and then until everything is synced or time is over.
    pub fn run(mut self) -> Told {
        loop {
            if self.is_done() || self.world.is_over() {
                return self.told;
            }
            let Ok(socket) = TcpStream::connect(self.world.address()) else {
                std::thread::sleep(RECONNECT_PAUSE);
                continue;
            };
            if let Left::Broken = self.talk(socket) {
                self.told.broken += 1;
                std::thread::sleep(RECONNECT_PAUSE);
            }
        }
    }

    fn is_done(&self) -> bool {
        self.world.is_enough() && self.chunks.is_empty()
    }

    fn talk(&mut self, socket: TcpStream) -> Left {
        // Without these a client would only be slower to notice its end.
        let _ = socket.set_read_timeout(Some(PATIENCE));
        let _ = socket.set_write_timeout(Some(PATIENCE));
        let mut line = Line::new(socket);
        let again: Vec<u8> = self.chunks.iter().flat_map(|chunk| chunk.bytes.iter().copied()).collect();
        let mut waiting: VecDeque<u64> = self.chunks.iter().map(|chunk| chunk.id).collect();
        if !self.write(&mut line, b"!hello\n") || !self.hello(&mut line) {
            return Left::Broken;
        }
        self.told.resent += self.chunks.iter().map(|chunk| chunk.events).sum::<u64>();
        if !self.write(&mut line, &again) {
            return Left::Broken;
        }
        while !self.is_done() {
            let wants_more = !self.world.is_enough() && self.chunks.len() < PENDING_MAX;
            if wants_more && !self.send_chunk(&mut line, &mut waiting) {
                return Left::Broken;
            }
            if wants_more && self.world.phase() == Phase::Idle {
                std::thread::sleep(IDLE_PAUSE);
            }
            while let Some(answer) = line.next(!wants_more && !waiting.is_empty()) {
                match answer {
                    Ok(answer) => self.answered(&answer, &mut waiting),
                    Err(()) => return Left::Broken,
                }
            }
            if self.world.is_over() {
                return Left::Broken;
            }
        }
        Left::Done
    }

    fn send_chunk(&mut self, line: &mut Line, waiting: &mut VecDeque<u64>) -> bool {
        let mut chunk = self.build();
        waiting.push_back(chunk.id);
        let bytes = std::mem::take(&mut chunk.bytes);
        self.chunks.push_back(chunk);
        let written = self.write(line, &bytes);
        self.chunks.back_mut().expect("it was just put there").bytes = bytes;
        written
    }

    fn hello(&mut self, line: &mut Line) -> bool {
        while !self.world.is_over() {
            match line.next(true) {
                Some(Ok(answer)) if answer.starts_with("!hello sync_at=") => return true,
                Some(Ok(answer)) => self.told.wrong.push(format!("`!hello` was answered `{answer}`")),
                Some(Err(())) => return false,
                None => {}
            }
        }
        false
    }

    /// Writes it all, unless the connection breaks or time is over.
    fn write(&mut self, line: &mut Line, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match line.socket.write(bytes) {
                Ok(taken) => bytes = &bytes[taken..],
                Err(error) if is_patience(&error) && !self.world.is_over() => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn build(&mut self) -> Chunk {
        let events = match self.world.phase() {
            Phase::Idle => 1,
            Phase::Burst | Phase::Drain => self.random.u64(1..=CHUNK_EVENTS_MAX),
        };
        let mut chunk = Chunk { id: self.next_id, bytes: Vec::new(), events, ranges: Vec::new() };
        self.next_id += 1;
        // A chunk is for one stream or for some, so that a sync covers batches of several.
        let streams = self.random.usize(1..=self.world.streams.len());
        for number in 0..events {
            let stream = (self.number as usize + number as usize) % streams;
            self.append(&mut chunk, stream);
        }
        chunk.bytes.extend_from_slice(format!("!sync {}\n", chunk.id).as_bytes());
        chunk
    }

    fn append(&mut self, chunk: &mut Chunk, stream: usize) {
        let name = &self.world.streams[stream];
        let sequence = self.told.sent[stream];
        self.told.sent[stream] += 1;
        match chunk.ranges.iter_mut().find(|(known, _)| *known == stream) {
            Some((_, range)) => range.end = sequence + 1,
            None => chunk.ranges.push((stream, sequence..sequence + 1)),
        }
        chunk.bytes.extend_from_slice(name.as_bytes());
        chunk.bytes.push(b' ');
        let event = Event { connection: self.number, sequence, planned_ns: 0, check: 0 };
        self.builder.append(&mut chunk.bytes, StreamSeed::new(name), self.index, &event);
        chunk.bytes.push(b'\n');
        self.index += 1;
    }

    fn answered(&mut self, answer: &str, waiting: &mut VecDeque<u64>) {
        let Some(id) = waiting.pop_front() else {
            return self.told.wrong.push(format!("`{answer}` answers nothing"));
        };
        let chunk = self.chunks.pop_front().expect("a chunk waits for every sync");
        if answer == format!("!synced {id}") {
            self.told.synced += chunk.events;
            for (stream, range) in &chunk.ranges {
                if let Some(wrong) = self.world.synced(*stream, self.number, range) {
                    self.told.wrong.push(wrong);
                }
            }
        } else if let Some(count) = answer.strip_prefix(&format!("!lost {id} ")) {
            match count.parse::<u64>() {
                Ok(count) => self.told.lost += count.min(chunk.events),
                Err(_) => self.told.wrong.push(format!("`{answer}` has no count")),
            }
        } else {
            self.told.wrong.push(format!("sync {id} was answered `{answer}`"));
        }
    }
}

fn is_patience(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// A connection that is read line by line.
struct Line {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Line {
    fn new(socket: TcpStream) -> Self {
        Self { socket, read: Vec::new() }
    }

    /// The next line; `None` where there is none yet, or after some patience if it is to wait; an error at the end.
    fn next(&mut self, wait: bool) -> Option<Result<String, ()>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.read) {
                let line = String::from_utf8_lossy(&self.read[..end]).into_owned();
                self.read.drain(..=end);
                return Some(Ok(line));
            }
            let mut bytes = [0; 4096];
            if self.socket.set_nonblocking(!wait).is_err() {
                return Some(Err(()));
            }
            let got = self.socket.read(&mut bytes);
            if self.socket.set_nonblocking(false).is_err() {
                return Some(Err(()));
            }
            match got {
                Ok(0) => return Some(Err(())),
                Ok(count) => self.read.extend_from_slice(&bytes[..count]),
                Err(error) if is_patience(&error) => return None,
                Err(_) => return Some(Err(())),
            }
        }
    }
}
