//! Stages in memory over the lines of a load, each alone, on a thread of its own whose CPU time is read from the
//! kernel's clock of that thread.
//!
//! The lines are a block of at least 256 KiB, read again and again: warm in the cache, as they are in a relay that
//! reads into few buffers. Only the bodies that are hashed several at once come from memory: sixteen full ones
//! are 90 MB, as they are in a relay.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Context;
use base64_simd::{Out, STANDARD};
use memchr::memchr_iter;
use sha2::{Digest, Sha256};

use crate::event::{Builder, Event, StreamSeed};
use crate::send::{Load, stream_names};

/// CPU of each stage, in nanoseconds an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stages {
    /// Finding each line feed and copying each payload into one buffer.
    pub scan: f64,
    /// Base64 of the payloads, a record of up to 1,000 KiB at a time.
    pub base64: f64,
    /// SHA-256 of the encoded bytes, one body at a time.
    pub sha256: f64,
    /// SHA-256 of sixteen full bodies, sixteen or four at once, whichever is cheaper here; or one at a time, where
    /// the processor has room for no more.
    pub sha256_grouped: f64,
    /// The same with short bodies that stay in the cache.
    pub sha256_grouped_cached: f64,
    /// Writing the encoded bytes to a connection over loopback whose peer discards them.
    pub send: f64,
}

/// The least bytes of lines in the block, and the least lines.
const BLOCK_BYTES_MIN: usize = 256 << 10;
const BLOCK_LINES_MIN: usize = 16;
/// What a record holds at most.
const RECORD_BYTES: usize = 1_024_000;
/// A full body, encoded: 4 MiB in base64.
const BODY_BYTES: usize = (4 << 20) / 3 * 4;
/// A short one: sixteen of them stay in the cache.
const BODY_BYTES_CACHED: usize = 16 << 10;
/// Bodies that there are at once, and how many of them are hashed at once.
const BODIES: usize = 16;
const AT_ONCE: [usize; 2] = [16, 4];
/// CPU time that one pass of a stage takes at least.
const PASS: Duration = Duration::from_millis(50);
const PASSES: usize = 3;

/// Measures all stages on the CPU `pin`; the discarding peer is on the CPU `pin_peer`.
///
/// # Errors
///
/// A sentence if the loopback is not to be had, or the load's sizes are impossible.
pub fn measure(load: &Load, pin: Option<usize>, pin_peer: Option<usize>) -> anyhow::Result<Stages> {
    let block = Block::new(load)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("the discarding peer cannot listen")?;
    let address = listener.local_addr().context("the discarding peer has no address")?;
    let peer = std::thread::spawn(move || {
        crate::pin_to(pin_peer);
        discard(&listener)
    });
    let measuring = std::thread::spawn(move || {
        crate::pin_to(pin);
        let connection = TcpStream::connect(address).context("the discarding peer cannot be reached")?;
        block.stages(connection)
    });
    let stages = measuring.join().expect("measuring does not panic");
    if stages.is_ok() {
        // Its connection is closed now, so it ends.
        peer.join().expect("discarding does not panic").context("the discarding peer failed")?;
    }
    stages
}

/// Below so many payload bytes a call is too small to be encoded as its lines come: they are gathered first.
const GATHERED_BYTES_MAX: f64 = 65_536.0;
/// What the buffers of all streams take at most.
const GATHER_BYTES_MAX: usize = 1 << 30;

/// Finding each line feed and copying each payload to the buffer of its stream, in nanoseconds of CPU an event: as
/// many buffers as there are streams, each as large as the payload of a call. `None` where calls are so large that a
/// relay need not gather lines. With thousands of streams every copy leaves the caches, whatever it is that copies.
///
/// # Errors
///
/// A sentence if the load's sizes are impossible.
pub fn gather(load: &Load, call_bytes: f64, pin: Option<usize>) -> anyhow::Result<Option<f64>> {
    if call_bytes >= GATHERED_BYTES_MAX {
        return Ok(None);
    }
    let block = Block::new(load)?;
    let streams = stream_names(load).len();
    let longest = block.lines.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap_or(0);
    let bytes = (call_bytes as usize).min(GATHER_BYTES_MAX / streams).max(longest);
    let measuring = std::thread::spawn(move || {
        crate::pin_to(pin);
        // Written, so that no page is new when it is measured.
        let mut buffers =
            Buffers { bytes: vec![vec![b'-'; bytes]; streams], filled: vec![0; streams], next: 0 };
        block.least(|| block.gather(&mut buffers))
    });
    Ok(Some(measuring.join().expect("measuring does not panic")))
}

/// A buffer for each stream.
struct Buffers {
    bytes: Vec<Vec<u8>>,
    filled: Vec<usize>,
    next: usize,
}

impl Buffers {
    /// Appends to the next stream's; one that is full is begun anew.
    fn append(&mut self, payload: &[u8]) {
        let (buffer, filled) = (&mut self.bytes[self.next], &mut self.filled[self.next]);
        if *filled + payload.len() > buffer.len() {
            *filled = 0;
        }
        buffer[*filled..*filled + payload.len()].copy_from_slice(payload);
        *filled += payload.len();
        self.next = if self.next + 1 < self.bytes.len() { self.next + 1 } else { 0 };
    }
}

fn discard(listener: &TcpListener) -> std::io::Result<()> {
    let (mut connection, _) = listener.accept()?;
    let mut buffer = vec![0; 256 << 10];
    while connection.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Lines, and what becomes of them.
struct Block {
    lines: Vec<u8>,
    events: usize,
}

impl Block {
    fn new(load: &Load) -> anyhow::Result<Self> {
        let builder = Builder::new(load.seed, load.size)?;
        let names = stream_names(load);
        let (mut lines, mut events) = (Vec::new(), 0);
        while lines.len() < BLOCK_BYTES_MIN || events < BLOCK_LINES_MIN {
            let name = &names[events % names.len()];
            let event = Event { connection: 0, sequence: events as u64, planned_ns: 0, check: 0 };
            lines.extend_from_slice(name.as_bytes());
            lines.push(b' ');
            builder.append(&mut lines, StreamSeed::new(name), events as u64, &event);
            lines.push(b'\n');
            events += 1;
        }
        Ok(Self { lines, events })
    }

    fn stages(&self, mut connection: TcpStream) -> anyhow::Result<Stages> {
        let mut payloads = Vec::with_capacity(self.lines.len());
        let mut encoded = vec![0; STANDARD.encoded_length(self.lines.len()) + 1024];
        let scan = self.least(|| self.scan(&mut payloads));
        let mut written = 0;
        let base64 = self.least(|| written = encode(&payloads, &mut encoded));
        let encoded = &encoded[..written];
        let sha256 = self.least(|| hash(encoded));
        let sha256_grouped = self.hash_grouped(encoded, BODY_BYTES).min(sha256);
        let sha256_grouped_cached = self.hash_grouped(encoded, BODY_BYTES_CACHED).min(sha256);
        let mut sent = Ok(());
        let send = self.least(|| {
            if sent.is_ok() {
                sent = connection.write_all(encoded);
            }
        });
        sent.context("the discarding peer went away")?;
        Ok(Stages { scan, base64, sha256, sha256_grouped, sha256_grouped_cached, send })
    }

    /// Copies each payload, its line feed included, as a relay must at least once.
    fn scan(&self, payloads: &mut Vec<u8>) {
        payloads.clear();
        self.each_payload(|payload| payloads.extend_from_slice(payload));
    }

    /// The same, each to the buffer of its stream.
    fn gather(&self, buffers: &mut Buffers) {
        self.each_payload(|payload| buffers.append(payload));
    }

    #[inline]
    fn each_payload(&self, mut take: impl FnMut(&[u8])) {
        let mut start = 0;
        for end in memchr_iter(b'\n', std::hint::black_box(&self.lines)) {
            let line = &self.lines[start..=end];
            // A name is short: where it ends is found by looking at its bytes.
            let space = line.iter().position(|byte| *byte == b' ').expect("a line built here has a space");
            take(&line[space + 1..]);
            start = end + 1;
        }
    }

    /// Hashing bodies of so many of these encoded bytes, several at once, in nanoseconds of CPU an event.
    fn hash_grouped(&self, encoded: &[u8], body_bytes: usize) -> f64 {
        let body: Vec<u8> = encoded.iter().copied().cycle().take(body_bytes).collect();
        let bodies = vec![body; BODIES];
        let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        // An event's share of what was hashed, where a round of `least` counts as the events of the block.
        let share = encoded.len() as f64 / (BODIES * body_bytes) as f64;
        let grouped = AT_ONCE.map(|at_once| self.least(|| hash_at_once(&bodies, at_once)) * share);
        grouped.into_iter().fold(f64::INFINITY, f64::min)
    }

    /// The least of some passes, in nanoseconds of CPU an event.
    fn least(&self, mut stage: impl FnMut()) -> f64 {
        let mut pass = || {
            let start = thread_cpu();
            let mut rounds = 0;
            while thread_cpu() - start < PASS {
                stage();
                rounds += 1;
            }
            (thread_cpu() - start).as_nanos() as f64 / (rounds * self.events) as f64
        };
        (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min)
    }
}

/// Encodes record by record; how many bytes were written.
fn encode(payloads: &[u8], out: &mut [u8]) -> usize {
    let mut at = 0;
    for record in std::hint::black_box(payloads).chunks(RECORD_BYTES) {
        at += STANDARD.encode(record, Out::from_slice(&mut out[at..])).len();
    }
    at
}

fn hash(encoded: &[u8]) {
    std::hint::black_box(Sha256::digest(std::hint::black_box(encoded)));
}

fn hash_at_once(bodies: &[&[u8]], at_once: usize) {
    let mut digests = [[0; 32]; BODIES];
    for (bodies, digests) in bodies.chunks(at_once).zip(digests.chunks_mut(at_once)) {
        digest_at_once(std::hint::black_box(bodies), digests);
    }
    std::hint::black_box(digests);
}

#[cfg(target_arch = "x86_64")]
fn digest_at_once(bodies: &[&[u8]], digests: &mut [[u8; 32]]) {
    tape_sha256::hash_many(bodies, digests);
}

/// Elsewhere the relay has no way to hash several at once either.
#[cfg(not(target_arch = "x86_64"))]
fn digest_at_once(bodies: &[&[u8]], digests: &mut [[u8; 32]]) {
    bodies.iter().zip(digests).for_each(|(body, digest)| *digest = Sha256::digest(body).into());
}

/// CPU time of this thread.
pub(super) fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sizes;

    fn block(size: usize) -> Block {
        let builder = Builder::new(1, Sizes { min: size, max: size }).unwrap();
        let mut lines = Vec::new();
        for sequence in 0..4 {
            lines.extend_from_slice(b"clicks ");
            let event = Event { connection: 0, sequence, planned_ns: 0, check: 0 };
            builder.append(&mut lines, StreamSeed::new("clicks"), sequence, &event);
            lines.push(b'\n');
        }
        Block { lines, events: 4 }
    }

    #[test]
    fn gathering_goes_round_the_streams_and_begins_full_buffers_anew() {
        let mut buffers = Buffers { bytes: vec![vec![0; 5]; 2], filled: vec![0; 2], next: 0 };
        for payload in [b"ab", b"cd", b"ef", b"gh", b"ij"] {
            buffers.append(payload);
        }
        assert_eq!((&buffers.bytes[0][..4], &buffers.bytes[1][..4]), (&b"ijef"[..], &b"cdgh"[..]));
        let load = crate::profile::options_of("--streams 3 --size 250".split(' ')).unwrap().load;
        assert!(gather(&load, 1_000.0, None).unwrap() > Some(0.0));
        assert_eq!(gather(&load, 65_536.0, None).unwrap(), None);
    }

    #[test]
    fn the_scan_keeps_payloads_with_their_line_feeds() {
        let mut payloads = Vec::new();
        block(100).scan(&mut payloads);
        assert_eq!(payloads.len(), 4 * 101);
        assert!(payloads.split_inclusive(|byte| *byte == b'\n').all(|line| line.starts_with(b"{\"e\"")));
    }

    #[test]
    fn bodies_hashed_at_once_have_the_digests_of_each() {
        let bodies: Vec<Vec<u8>> =
            (0..BODIES as u8).map(|fill| vec![fill; 1_000 + usize::from(fill)]).collect();
        let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        for at_once in AT_ONCE {
            let mut digests = vec![[0; 32]; at_once];
            digest_at_once(&bodies[..at_once], &mut digests);
            let expected: Vec<[u8; 32]> =
                bodies[..at_once].iter().map(|body| Sha256::digest(body).into()).collect();
            assert_eq!(digests, expected);
        }
    }

    #[test]
    fn records_are_encoded_one_by_one() {
        let mut out = vec![0; 16 << 20];
        assert_eq!(encode(&vec![7; RECORD_BYTES + 1], &mut out), RECORD_BYTES.div_ceil(3) * 4 + 4);
    }
}
