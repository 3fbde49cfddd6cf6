//! A shard without its driver: events and control frames at any split give the same answers, the same rejections
//! and the same events as when they come whole.

#![no_main]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use standpipe::buffer::Shape;
use standpipe::config::{Config, DestinationChoice};
use standpipe::destination::Encoding;
use standpipe::memory::{Machine, Memory, Plan};
use standpipe::metrics::Metrics;
use standpipe::queue::{Handoff, Returns};
use standpipe::shard::bare::Bare;
use standpipe::shard::placing::Places;
use standpipe::shard::rejects::Rejects;
use standpipe::shard::{Orders, Shared};
use standpipe::stream::Registry;

static SHARED: LazyLock<Arc<Shared>> = LazyLock::new(|| {
    let config = Config {
        destination: DestinationChoice::Null,
        memory: Some(1 << 30),
        shards: Some(1),
        frame_bytes_max: 300,
        max_streams: 50,
        ..Config::default()
    };
    let machine = Machine { memory: 4 << 30, cpus: 2, files: 20_000 };
    let plan = Plan::new(&config, machine).expect("a gibibyte is enough");
    let memory = Memory::new(&plan);
    let metrics = Metrics::new(Instant::now(), 1, vec!["fuzz".to_owned()], config.max_stream_labels);
    let config = Arc::new(config);
    let returns: std::io::Result<Arc<[Returns]>> = (0..1).map(|_| Returns::new()).collect();
    Arc::new(Shared {
        shape: Shape::new(Encoding::Lines, &memory),
        registry: Arc::new(Registry::new(Arc::clone(&config), Arc::clone(&metrics))),
        handoff: Arc::new(Handoff::default()),
        rejects: [Rejects::new(config.rejected_samples)].into(),
        orders: Orders::default(),
        places: Places::new(1),
        connections_max: plan.connections_max,
        connections: AtomicUsize::new(0),
        returns: returns.expect("an event descriptor"),
        config,
        metrics,
        memory,
    })
});

/// What came of the bytes: answers, rejected frames by reason, and events received.
#[derive(Debug, PartialEq)]
struct Seen {
    answers: Vec<u8>,
    rejected: Vec<u64>,
    received: u64,
}

fn counters() -> (Vec<u64>, u64) {
    let rejected = SHARED.metrics.shards[0].rejected.iter().map(|cell| cell.get()).collect();
    (rejected, SHARED.metrics.totals().iter().map(|totals| totals.received).sum())
}

fn feed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Seen {
    SHARED.connections.store(0, Ordering::Relaxed);
    let (rejected_before, received_before) = counters();
    let mut shard = Bare::new(Arc::clone(&SHARED), 1);
    let mut answers = Vec::new();
    for piece in pieces {
        shard.data(0, piece);
        // A turn lets a connection go on that had too many answers to read.
        loop {
            let more = shard.take_answers();
            let had = !more.is_empty();
            more.into_iter().for_each(|(_, answer)| answers.extend(answer));
            shard.turn(SHARED.metrics.epoch);
            if !had {
                break;
            }
        }
    }
    shard.seal_all();
    while SHARED.handoff.pop().is_some() {}
    let (rejected, received) = counters();
    let since = rejected.iter().zip(rejected_before).map(|(now, before)| now - before);
    Seen { answers, rejected: since.collect(), received: received - received_before }
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (splits, bytes) = input;
    let mut rest = &bytes[..];
    let mut sizes = splits.iter().map(|size| usize::from(*size) + 1).chain(std::iter::repeat(3));
    let pieces: Vec<&[u8]> = std::iter::from_fn(|| {
        let (piece, left) = rest.split_at(sizes.next()?.min(rest.len()));
        rest = left;
        (!piece.is_empty()).then_some(piece)
    })
    .collect();
    let whole = feed(std::iter::once(&bytes[..]));
    assert_eq!(whole, feed(pieces.into_iter()));
    assert!(whole.answers.is_empty() || bytes.contains(&b'!'), "nothing is written that was not asked for");
    assert!(whole.answers.is_empty() || whole.answers.ends_with(b"\n"));
});
