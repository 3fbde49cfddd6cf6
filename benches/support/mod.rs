//! What the benches share: traffic that is the same in every run, the state of a relay of one shard without
//! its sockets, and the clock of CPU time.

#![allow(dead_code, reason = "no bench uses all of it")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use standpipe::buffer::Shape;
use standpipe::config::{Config, DestinationChoice};
use standpipe::destination::Encoding;
use standpipe::memory::{Machine, Memory, Plan};
use standpipe::metrics::Metrics;
use standpipe::queue::{Handoff, Returns};
use standpipe::shard::placing::Places;
use standpipe::shard::rejects::Rejects;
use standpipe::shard::{Orders, Shared};
use standpipe::stream::Registry;

pub mod thread;
pub mod traffic;

/// The relay's own: what the memory of a body costs is part of what is measured. Freed pages are kept and nothing is
/// done in the background, so that no run depends on the allocator's clock.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[allow(unsafe_code, reason = "the allocator reads its options from this symbol")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 52] = b"narenas:2,dirty_decay_ms:-1,background_thread:false\0";

/// Sizes of payloads, in bytes, their LF included.
pub const SIZES: [usize; 4] = [64, 250, 1000, 16_000];
/// Bytes that a shard reads at a time.
pub const READ_BYTES: usize = 64 * 1024;

/// What all shards share, for one shard whose destination takes `encoding` and never fails.
///
/// # Panics
/// Where the machine gives no event descriptor.
pub fn shared(encoding: Encoding) -> Arc<Shared> {
    let config = Config {
        destination: DestinationChoice::Null,
        memory: Some(1 << 30),
        shards: Some(1),
        ..Config::default()
    };
    let machine = Machine { memory: 4 << 30, cpus: 2, files: 20_000 };
    let plan = Plan::new(&config, machine).expect("a gibibyte is enough");
    let memory = Memory::new(&plan);
    let metrics = Metrics::new(Instant::now(), 1, vec!["bench".to_owned()], config.max_stream_labels);
    let config = Arc::new(config);
    let returns: io::Result<Arc<[Returns]>> = (0..1).map(|_| Returns::new()).collect();
    Arc::new(Shared {
        shape: Shape::new(encoding, &memory),
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
}

/// The CPU time that the calling thread has used.
pub fn thread_cpu() -> Duration {
    duration(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime))
}

/// The CPU time that the calling thread uses for `rounds` times `once`: unlike the clock on the wall it does not
/// count what others do on this CPU meanwhile.
pub fn cpu_of<R>(rounds: u64, mut once: impl FnMut() -> R) -> Duration {
    let before = thread_cpu();
    for _ in 0..rounds {
        std::hint::black_box(once());
    }
    thread_cpu() - before
}

fn duration(time: rustix::time::Timespec) -> Duration {
    let part = |value: i64| u64::try_from(value).expect("CPU time is never negative");
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}
