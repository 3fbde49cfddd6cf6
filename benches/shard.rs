//! A whole shard over loopback into `null`, in CPU time of its thread: no clock on the wall counts here, and what
//! delivery and the sender use on the other CPU does not either.
//!
//! `floor: receive` is the same driver with a handler that only counts octets: what the kernel and the ring cost
//! whoever reads sockets so. `floor: receive + memchr + memcpy` also looks for every LF and copies every octet
//! once, which nobody who gathers lines can leave out.
//!
//! `bulk` is eight connections that write 64 KiB at a time, `lines` two hundred that write line by line. How many
//! reads a line takes is then a matter of timing between sender and reader, on which the pause before reaping
//! answers: read ratios, and of several runs.

use std::hint::black_box;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use standpipe::config::{IoChoice, ListenAddress};
use standpipe::delivery::{self, Delivery};
use standpipe::destination::{Destination, Encoding};
use standpipe::net::listen::{Listening, listen};
use standpipe::net::{Driver, End, Handler, Key, Reaped, probe};
use standpipe::queue::Returns;
use standpipe::relay;
use standpipe::shard::{self, Phase, Seat, Shared};

#[path = "support/sampling.rs"]
mod sampling;
mod support;

use support::thread::{Measured, pin};
use support::traffic::{Order, Traffic};
use support::{READ_BYTES, SIZES};

const BULK_CONNECTIONS: usize = 8;
const BULK_BYTES: usize = 32 << 20;
const LINE_CONNECTIONS: usize = 200;
const LINE_EVENTS: usize = 100_000;
const RECEIVE_BYTES: usize = 4 << 20;
/// How the shard itself waits for small reads to come together (`shard`): the floor must not be poorer for lack
/// of it.
const SMALL_READ_MEAN_BYTES: u64 = 4 * 1024;
const GATHER_PAUSE: Duration = Duration::from_micros(950);
/// The shard sleeps so long at most when nothing comes, so that it hears of its end.
const PATIENCE: Duration = Duration::from_millis(20);

/// Something that reads sockets on a thread of its own.
struct Reader {
    address: SocketAddr,
    measured: Measured,
    thread: JoinHandle<()>,
    ended: Ended,
    orders: Arc<Shared>,
}

/// How many connections have come to their end there.
enum Ended {
    Bare(Arc<AtomicUsize>),
    Shard(Arc<Shared>),
}

impl Reader {
    /// Starts `body` on CPU 0 with a listener of its own.
    fn start(
        ended: Ended,
        shared: &Arc<Shared>,
        body: impl FnOnce(Seat, Arc<Shared>) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let anywhere = ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listening = listen(&[anywhere], 1, false, Duration::ZERO, Vec::new());
        let Listening { mut by_shard, addresses, .. } = listening.expect("a port is free");
        let ListenAddress::Tcp(address) = addresses[0] else { panic!("it is a TCP address") };
        let (driver, _) = probe::choose(IoChoice::Auto).expect("there is always epoll");
        let listeners = by_shard.pop().expect("one shard");
        let seat = Seat {
            index: 0,
            core: support::thread::core(0),
            listeners,
            driver,
            receive_bytes: RECEIVE_BYTES,
        };
        let shared_there = Arc::clone(shared);
        let (measured, thread) = Measured::spawn(move || body(seat, shared_there).expect("the driver works"));
        Self { address, measured, thread, ended, orders: Arc::clone(shared) }
    }

    /// A shard as the relay runs it.
    fn shard(shared: &Arc<Shared>) -> Self {
        Self::start(Ended::Shard(Arc::clone(shared)), shared, shard::run)
    }

    /// The driver alone, with `handle` called for what it reads.
    fn bare(handle: impl FnMut(&[u8]) + Send + 'static) -> Self {
        let ended = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ended);
        Self::start(Ended::Bare(ended), &support::shared(Encoding::Lines), |seat, shared| {
            receive(seat, &shared, Counter { handle, ended: count, closing: Vec::new() })
        })
    }

    /// Sends everything and returns the CPU time that the reader used for it.
    fn read(&self, parcels: &[Vec<u8>], write_by: &WriteBy) -> Duration {
        let (before, target) = (self.measured.when_idle(), self.ended.count() + parcels.len());
        send(self.address, parcels, write_by);
        while self.ended.count() < target {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.measured.when_idle() - before
    }

    fn stop(self) {
        self.orders.orders.advance(Phase::Stop, &self.orders.returns);
        self.thread.join().expect("the reader ends well");
    }
}

impl Ended {
    fn count(&self) -> usize {
        match self {
            Ended::Bare(ended) => ended.load(Ordering::Acquire),
            Ended::Shard(shared) => {
                let opened = shared.metrics.shards[0].opened.get() as usize;
                opened - shared.connections.load(Ordering::Acquire)
            }
        }
    }
}

/// Reads and does next to nothing.
struct Counter<H> {
    handle: H,
    ended: Arc<AtomicUsize>,
    closing: Vec<Key>,
}

impl<H: FnMut(&[u8])> Handler for Counter<H> {
    fn woke(&mut self, _: Instant) {}
    fn accepted(&mut self, socket: OwnedFd, _: usize) -> Option<OwnedFd> {
        Some(socket)
    }

    fn opened(&mut self, _: Key, _: usize) {}

    fn data(&mut self, _: Key, bytes: &[u8]) {
        (self.handle)(bytes);
    }

    fn ended(&mut self, key: Key, _: End) {
        self.closing.push(key);
        self.ended.fetch_add(1, Ordering::AcqRel);
    }

    fn sent(&mut self, _: Key, _: usize) {}

    fn accept_failed(&mut self, error: &io::Error) {
        panic!("a bench has few connections: {error}");
    }
}

fn receive<H: FnMut(&[u8])>(seat: Seat, shared: &Shared, mut counter: Counter<H>) -> io::Result<()> {
    pin(0);
    let returns: Arc<[Returns]> = Arc::clone(&shared.returns);
    let mut driver = Driver::new(seat.driver, seat.listeners, returns, 0, seat.receive_bytes)?;
    let mut pause = Duration::ZERO;
    while shared.orders.phase() != Phase::Stop {
        let Reaped { reads, bytes, .. } = driver.wait(Some(PATIENCE), pause, &mut counter)?;
        let is_small = reads > 0 && bytes / reads < SMALL_READ_MEAN_BYTES;
        pause = if is_small { GATHER_PAUSE } else { Duration::ZERO };
        counter.closing.drain(..).for_each(|key| driver.close(key));
    }
    Ok(())
}

/// What one write holds.
enum WriteBy {
    Bytes(usize),
    Line,
}

/// Sends each parcel over a connection of its own, a write each in turn, from CPU 1.
fn send(address: SocketAddr, parcels: &[Vec<u8>], write_by: &WriteBy) {
    let mut open: Vec<(TcpStream, Vec<&[u8]>)> = Vec::with_capacity(parcels.len());
    for parcel in parcels {
        let socket = TcpStream::connect(address).expect("the reader listens");
        socket.set_nodelay(true).expect("it is a TCP socket");
        let mut writes: Vec<&[u8]> = match write_by {
            WriteBy::Bytes(length) => parcel.chunks(*length).collect(),
            WriteBy::Line => parcel.split_inclusive(|octet| *octet == b'\n').collect(),
        };
        writes.reverse();
        open.push((socket, writes));
    }
    while !open.is_empty() {
        open.retain_mut(|(socket, writes)| {
            let Some(write) = writes.pop() else { return false };
            socket.write_all(write).expect("the reader reads");
            true
        });
    }
}

/// Settles what the shard seals, on CPU 1.
fn deliver_to_null(shared: &Arc<Shared>) -> tokio::sync::mpsc::Sender<delivery::Command> {
    let parts = relay::parts(shared, &Arc::new(Destination::Null));
    let (commands, orders) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        pin(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime of one thread").block_on(Delivery::new(parts, None).run(orders));
    });
    commands
}

/// Divides frames among connections, whole ones to each.
fn parcels(traffic: &Traffic, connections: usize) -> Vec<Vec<u8>> {
    let mut parcels = vec![Vec::new(); connections];
    let per_parcel = traffic.events.div_ceil(connections as u64) as usize;
    for (index, frame) in traffic.bytes.split_inclusive(|octet| *octet == b'\n').enumerate() {
        parcels[index / per_parcel].extend_from_slice(frame);
    }
    parcels
}

fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    traffic: &Traffic,
    connections: usize,
    by: &WriteBy,
) {
    group.throughput(Throughput::ElementsAndBytes {
        elements: traffic.events,
        bytes: traffic.bytes.len() as u64,
    });
    let parcels = parcels(traffic, connections);
    let mut run = |what: &str, reader: Reader| {
        group.bench_function(BenchmarkId::new(what, name), |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| reader.read(&parcels, by)).sum());
        });
        reader.stop();
    };
    run("floor: receive", Reader::bare(|bytes| assert!(!black_box(bytes).is_empty())));
    let mut copy: Vec<u8> = Vec::with_capacity(4 << 20);
    let look_and_copy = move |bytes: &[u8]| {
        if copy.len() + bytes.len() > copy.capacity() {
            copy.clear();
        }
        black_box(memchr::memchr_iter(b'\n', bytes).fold(0, |count, _| count + 1));
        copy.extend_from_slice(bytes);
    };
    run("floor: receive + memchr + memcpy", Reader::bare(look_and_copy));
    let shared = support::shared(Encoding::Lines);
    let delivery = deliver_to_null(&shared);
    run("shard into null", Reader::shard(&shared));
    drop(delivery);
    let lost: u64 = shared.metrics.totals().iter().map(|totals| totals.dropped.iter().sum::<u64>()).sum();
    assert_eq!(lost, 0, "a bench that loses events measures nothing");
}

fn bulk(criterion: &mut Criterion) {
    pin(1);
    let mut group = criterion.benchmark_group("shard/bulk");
    group.sampling_mode(SamplingMode::Flat);
    let sizes = SIZES.map(|size| (size, 16, Order::Shuffled));
    let streams = [
        (250, 1, Order::Sorted),
        (250, 16, Order::Sorted),
        (250, 1_000, Order::Sorted),
        (250, 1_000, Order::Shuffled),
        (250, 10_000, Order::Sorted),
        (250, 10_000, Order::Shuffled),
    ];
    for (size, streams, order) in sizes.into_iter().chain(streams) {
        let traffic = Traffic::of_bytes(size, streams, BULK_BYTES, order);
        let name = format!("{size}B/{streams} streams {}", order.label());
        bench(&mut group, &name, &traffic, BULK_CONNECTIONS, &WriteBy::Bytes(READ_BYTES));
    }
    group.finish();
}

fn lines(criterion: &mut Criterion) {
    pin(1);
    let mut group = criterion.benchmark_group("shard/lines");
    group.sampling_mode(SamplingMode::Flat);
    let traffic = Traffic::new(250, 16, LINE_EVENTS, Order::Shuffled);
    bench(&mut group, "250B/16 streams shuffled", &traffic, LINE_CONNECTIONS, &WriteBy::Line);
    group.finish();
}

criterion_group! { name = benches; config = sampling::quick(); targets = bulk, lines }
criterion_main!(benches);
