//! Append and seal, in CPU time.
//!
//! `encoder` is packing alone: payloads appended to the body of a PutRecordBatch call until it is full. Its floors
//! are a copy of the same payloads, since they must leave the receive buffer, and one bulk base64 of the same bytes,
//! since Firehose takes nothing else. What lies above the sum of both is the price of taking payloads one by one.
//! base64 is there twice: with the kernel that runs here, and with the portable one that runs elsewhere.
//!
//! `intake` is all that a shard does between its driver and delivery: framing, finding the stream, appending,
//! counting, sealing, over all numbers of streams, in order and shuffled. The sum of its floors is `memchr`, the
//! copy and the base64 of the same bytes. Its batches are settled by the bench as soon as they are sealed. Streams
//! that gather less than 64 KiB stay lines, as they do in the relay, so their floor has no base64; how few octets a
//! stream gets is what makes many streams cost more.
//!
//! `linger` is the same over many rounds, each of which stands for a part of a second: every stream is sealed at its
//! own instant and gathers for a second, as in a relay. Buffers of thousands of streams are then far larger than the
//! caches and lie where there was room, which is what the first touch of each line costs.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use standpipe::batch::{Body, Fate};
use standpipe::config::{Packing, PackingMode};
use standpipe::destination::Encoding;
use standpipe::encode::{self, CALL_BYTES_MAX, Encoder, STAGING_BYTES, base64};
use standpipe::shard::Shared;
use standpipe::shard::bare::Bare;

#[path = "support/sampling.rs"]
mod sampling;
mod support;

use support::traffic::{Order, Traffic};
use support::{READ_BYTES, SIZES};

/// Payload octets of one round with few streams: several full bodies, and more than the caches hold.
const BYTES: usize = 16 << 20;
const STREAMS: [usize; 4] = [1, 16, 1_000, 10_000];
/// What a round of [`BYTES`] stands for in `linger`: 270 MB a second.
const ROUND: Duration = Duration::from_millis(62);
const FULL: Packing = Packing {
    mode: PackingMode::Full,
    record_events_max: u32::MAX,
    record_bytes_max: Packing::RECORD_BYTES_LIMIT,
};

fn encoder(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encoder");
    for size in SIZES {
        let traffic = Traffic::of_bytes(size, 1, CALL_BYTES_MAX - size, Order::Sorted);
        let payloads: Vec<&[u8]> = traffic.payloads().collect();
        group.throughput(Throughput::ElementsAndBytes {
            elements: traffic.events,
            bytes: traffic.payload_bytes,
        });
        // Filled from the start: a filter may leave out the row that copies, and the next ones read it.
        let mut copy = payloads.concat();
        group.bench_function(BenchmarkId::new("floor: memcpy", size), |bencher| {
            bencher
                .iter_custom(|rounds| support::cpu_of(rounds, || copy_all(black_box(&payloads), &mut copy)));
        });
        let mut encoded = Vec::with_capacity(encode::body_bytes_max(CALL_BYTES_MAX));
        group.bench_function(BenchmarkId::new("floor: base64", size), |bencher| {
            bencher.iter_custom(|rounds| {
                support::cpu_of(rounds, || encode_bulk(base64::append, black_box(&copy), &mut encoded))
            });
        });
        group.bench_function(BenchmarkId::new("floor: base64, portable", size), |bencher| {
            bencher.iter_custom(|rounds| {
                support::cpu_of(rounds, || {
                    encode_bulk(base64::append_portably, black_box(&copy), &mut encoded);
                })
            });
        });
        group.bench_function(BenchmarkId::new("append and seal", size), |bencher| {
            bencher.iter_custom(|rounds| append_all(&payloads, rounds));
        });
    }
    group.finish();
}

fn copy_all(payloads: &[&[u8]], copy: &mut Vec<u8>) {
    copy.clear();
    payloads.iter().for_each(|payload| copy.extend_from_slice(payload));
}

fn encode_bulk(kernel: impl Fn(&[u8], &mut Vec<u8>), bytes: &[u8], encoded: &mut Vec<u8>) {
    encoded.clear();
    kernel(bytes, encoded);
}

/// The body is allocated before the clock runs: in the relay that is a matter of the buffer, which `intake` shows.
fn append_all(payloads: &[&[u8]], rounds: u64) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let mut encoder = Encoder::new(FULL, CALL_BYTES_MAX);
        encoder.reserve(encode::body_bytes_max(CALL_BYTES_MAX));
        let start = support::thread_cpu();
        for payload in payloads {
            assert!(encoder.fits(payload.len()), "the payloads fill one body");
            encoder.grow_for(payload.len());
            encoder.push(payload);
        }
        black_box(encoder.finish());
        spent += support::thread_cpu() - start;
    }
    spent
}

fn intake(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("intake");
    for size in SIZES {
        for_each_traffic(size, |traffic, name| intake_of(&mut group, traffic, name));
    }
    group.finish();
}

/// All numbers of streams, in order and shuffled, each with its name.
fn for_each_traffic(size: usize, mut then: impl FnMut(&Traffic, &str)) {
    for streams in STREAMS {
        for order in Order::ALL.into_iter().filter(|order| streams > 1 || *order == Order::Sorted) {
            let traffic = Traffic::of_bytes(size, streams, BYTES, order);
            then(&traffic, &format!("{size}B/{streams} streams {}", order.label()));
        }
    }
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn intake_of(group: &mut Group<'_>, traffic: &Traffic, name: &str) {
    let (shared, mut shard) = shard();
    let encoded = round(&mut shard, &shared, traffic);
    floor_of(group, traffic, encoded, name);
    group.bench_function(BenchmarkId::new("append and seal", name), |bencher| {
        bencher
            .iter_custom(|rounds| support::cpu_of(rounds, || round(&mut shard, &shared, black_box(traffic))));
    });
}

fn linger(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linger");
    for_each_traffic(250, |traffic, name| linger_of(&mut group, traffic, name));
    group.finish();
}

fn linger_of(group: &mut Group<'_>, traffic: &Traffic, name: &str) {
    let (shared, mut shard) = shard();
    let mut now = Instant::now();
    let mut round = || {
        let encoded = feed(&mut shard, &shared, traffic);
        now += ROUND;
        shard.turn(now);
        assert!(!shard.has_waiting(), "there is memory for all of it");
        encoded + settle(&shared)
    };
    // Two seconds of it: all streams have been sealed and begun anew.
    let rounds = (Duration::from_secs(2).as_nanos() / ROUND.as_nanos()) as u64;
    let encoded = (0..rounds).map(|_| round()).sum::<u64>() / rounds;
    floor_of(group, traffic, encoded.min(traffic.payload_bytes), name);
    group.bench_function(BenchmarkId::new("append and seal", name), |bencher| {
        bencher.iter_custom(|rounds| support::cpu_of(rounds, &mut round));
    });
}

/// A shard with one connection, and what it shares with delivery.
fn shard() -> (Arc<Shared>, Bare) {
    let shared = support::shared(Encoding::Records);
    let shard = Bare::new(Arc::clone(&shared), 1);
    (shared, shard)
}

/// The row of the floor, and the throughput of all rows of this name.
fn floor_of(group: &mut Group<'_>, traffic: &Traffic, encoded: u64, name: &str) {
    group.throughput(Throughput::ElementsAndBytes {
        elements: traffic.events,
        bytes: traffic.bytes.len() as u64,
    });
    let (mut copy, mut text) = (Vec::new(), Vec::new());
    group.bench_function(BenchmarkId::new("floor: memchr + memcpy + base64", name), |bencher| {
        bencher.iter_custom(|rounds| {
            support::cpu_of(rounds, || floor(black_box(traffic), encoded, &mut copy, &mut text))
        });
    });
}

/// The least that has to be done for the same bytes, of which `encoded` are sealed as base64: each block passes
/// through the same staging size, so that the floor is as kind to the caches as the code is.
fn floor(traffic: &Traffic, encoded: u64, copy: &mut Vec<u8>, text: &mut Vec<u8>) -> usize {
    copy.clear();
    text.clear();
    let mut lines = 0;
    for read in traffic.bytes.chunks(READ_BYTES) {
        lines += memchr::memchr_iter(b'\n', read).fold(0, |count, _| count + 1);
        copy.extend_from_slice(read);
    }
    for block in copy[..encoded as usize].chunks(STAGING_BYTES) {
        base64::append(block, text);
    }
    lines
}

/// Feeds all of the traffic, seals what is left, settles everything, and tells how many raw octets were encoded.
fn round(shard: &mut Bare, shared: &Shared, traffic: &Traffic) -> u64 {
    let mut encoded = feed(shard, shared, traffic);
    shard.turn(Instant::now());
    shard.seal_all();
    encoded += settle(shared);
    assert!(!shard.has_waiting(), "there is memory for all of it");
    encoded
}

/// Feeds all of the traffic and settles what is full, and tells how many raw octets of it were encoded.
fn feed(shard: &mut Bare, shared: &Shared, traffic: &Traffic) -> u64 {
    let mut encoded = 0;
    for read in traffic.bytes.chunks(READ_BYTES) {
        shard.data(0, read);
        encoded += settle(shared);
    }
    encoded
}

fn settle(shared: &Shared) -> u64 {
    let mut encoded = 0;
    while let Some(batch) = shared.handoff.pop() {
        if matches!(batch.body, Body::Records { .. }) {
            encoded += batch.bytes;
        }
        if let Some(settled) = batch.ticket.settle(batch.ticket.events, Fate::Delivered) {
            shared.returns[0].push(settled);
        }
    }
    encoded
}

criterion_group! { name = benches; config = sampling::quick(); targets = encoder, intake, linger }
criterion_main!(benches);
