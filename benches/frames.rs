//! Cutting frames out of what a connection sent: `Connection::feed` with `frame::parse`, over bytes in memory, in CPU
//! time.
//!
//! The floor is `memchr_iter('\n')` over the same bytes: whoever wants lines has to look at every octet once, and
//! nothing known looks faster. What lies above it is the search for the space, the checks, and what a call costs
//! for each line.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use standpipe::connection::{Connection, Cut, Taken};
use standpipe::frame::{self, Frame, PAYLOAD_BYTES_MAX, STREAM_NAME_BYTES_MAX};

#[path = "support/sampling.rs"]
mod sampling;
mod support;

use support::traffic::{Order, Traffic};
use support::{READ_BYTES, SIZES};

/// More than any cache of one core, so that memory is read as it is when the kernel has just written it.
const BYTES: usize = 16 << 20;

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    for size in SIZES {
        let traffic = Traffic::of_bytes(size, 16, BYTES, Order::Shuffled);
        group.throughput(Throughput::ElementsAndBytes {
            elements: traffic.events,
            bytes: traffic.bytes.len() as u64,
        });
        let bytes = &traffic.bytes[..];
        assert_eq!((parse(bytes), look(bytes)), (traffic.payload_bytes, traffic.events as usize));
        group.bench_function(BenchmarkId::new("floor: memchr", size), |bencher| {
            bencher.iter_custom(|rounds| support::cpu_of(rounds, || look(black_box(bytes))));
        });
        group.bench_function(BenchmarkId::new("parse", size), |bencher| {
            bencher.iter_custom(|rounds| support::cpu_of(rounds, || parse(black_box(bytes))));
        });
    }
    group.finish();
}

/// How many lines there are.
fn look(bytes: &[u8]) -> usize {
    bytes.chunks(READ_BYTES).map(|read| memchr::memchr_iter(b'\n', read).fold(0, |count, _| count + 1)).sum()
}

/// The octets of all payloads.
fn parse(bytes: &[u8]) -> u64 {
    let mut connection = Connection::new(STREAM_NAME_BYTES_MAX + 1 + PAYLOAD_BYTES_MAX + 1);
    let mut payloads = 0;
    for read in bytes.chunks(READ_BYTES) {
        connection.feed(read, &mut |cut: Cut<'_>| {
            if let Cut::Line(line) = cut
                && let Ok(Frame::Event { stream, payload }) = frame::parse(line, PAYLOAD_BYTES_MAX)
            {
                black_box(stream);
                payloads += payload.len() as u64;
            }
            Taken::Yes
        });
    }
    payloads
}

criterion_group! { name = benches; config = sampling::quick(); targets = frames }
criterion_main!(benches);
