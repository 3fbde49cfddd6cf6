//! One call, from the bytes of a sealed batch to the bytes on the socket: the Firehose destination with the SDK
//! behind it, over plain HTTP to a sink in this process that reads and accepts. In CPU time of the calling thread,
//! which does all the work that is not the sink's.
//!
//! `floor: hash + send` is the SHA-256 of the same body by `sha2` and one blocking write of it with a minimal head,
//! and reading the answer: signing has to hash, and the kernel has to copy. What lies above it is the request, the HTTP
//! client and reading the answer of each record. For a full body that is little; for a small one, as each of many
//! streams has after a second, it is most.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group};
use sha2::{Digest, Sha256};
use standpipe::config::{DeliveryStreamSettings, Packing, PackingMode};
use standpipe::destination::firehose::{Firehose, FirehoseSettings};
use standpipe::destination::{Call, Outcome};
use standpipe::encode::{self, CALL_BYTES_MAX, Encoder};

#[path = "support/sampling.rs"]
mod sampling;
mod support;

use support::SIZES;
use support::thread::pin;
use support::traffic::{Order, Traffic};

const DELIVERY_STREAM: &str = "bench";
/// Raw bytes of a small body: a second of one of 10,000 streams at 2.5 million events of 250 bytes.
const SMALL_BYTES: usize = 64 * 1024;
/// As long as those of the service.
const RECORD_ID_LENGTH: usize = 224;

/// A body that is ready to be sent.
struct Ready {
    body: Bytes,
    records: usize,
    events: u64,
}

impl Ready {
    fn new(size: usize, mode: PackingMode, bytes_max: usize) -> Self {
        let packing =
            Packing { mode, record_events_max: u32::MAX, record_bytes_max: Packing::RECORD_BYTES_LIMIT };
        let traffic = Traffic::of_bytes(size, 1, bytes_max, Order::Sorted);
        let mut encoder = Encoder::new(packing, bytes_max);
        for payload in traffic.payloads() {
            if !encoder.fits(payload.len()) {
                break;
            }
            encoder.push(payload);
        }
        let events = encoder.events();
        let (mut body, records) = encoder.finish();
        encode::close_body(&mut body, DELIVERY_STREAM);
        Self { body: body.into(), records: records.len(), events }
    }
}

/// Accepts every request, whatever stands in it, as so many records as it was told.
struct Sink {
    address: SocketAddr,
    records: Arc<AtomicUsize>,
}

impl Sink {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let records = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&records);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (socket, asked) = (socket.expect("a connection"), Arc::clone(&asked));
                std::thread::spawn(move || {
                    pin(1);
                    serve(socket, &asked);
                });
            }
        });
        Self { address, records }
    }
}

/// Reads requests and answers them until the client goes.
fn serve(mut socket: TcpStream, records: &AtomicUsize) {
    let mut buffer = vec![0; 1 << 20];
    let (mut filled, mut answer, mut answered) = (0, Vec::new(), 0);
    loop {
        let head = loop {
            if let Some(end) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n") {
                break end + 4;
            }
            match socket.read(&mut buffer[filled..]) {
                Ok(0) | Err(_) => return,
                Ok(read) => filled += read,
            }
        };
        let mut left = content_length(&buffer[..head]) - (filled - head);
        while left > 0 {
            match socket.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(read) => left -= read,
            }
        }
        filled = 0;
        let count = records.load(Ordering::Acquire);
        if count != answered {
            (answer, answered) = (acceptance(count), count);
        }
        if socket.write_all(&answer).is_err() {
            return;
        }
    }
}

fn content_length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).expect("a head is ASCII").to_ascii_lowercase();
    let value = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    value.and_then(|value| value.trim().parse().ok()).expect("every request declares its length")
}

fn acceptance(records: usize) -> Vec<u8> {
    let entry = format!("{{\"RecordId\":\"{}\"}}", "r".repeat(RECORD_ID_LENGTH));
    let body = format!("{{\"FailedPutCount\":0,\"RequestResponses\":[{}]}}", vec![entry; records].join(","));
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Hashes a body, sends it and reads the answer.
fn send_plainly(socket: &mut TcpStream, body: &[u8], answer: &mut [u8]) {
    let hash = Sha256::digest(body);
    let head = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\nhash: {hash:x?}\r\n\r\n", body.len());
    socket.write_all(head.as_bytes()).expect("the sink reads");
    socket.write_all(body).expect("the sink reads");
    let mut filled = 0;
    let whole = loop {
        filled += socket.read(&mut answer[filled..]).expect("the sink answers");
        if let Some(end) = memchr::memmem::find(&answer[..filled], b"\r\n\r\n") {
            break end + 4 + content_length(&answer[..end + 4]);
        }
    };
    socket.read_exact(&mut answer[filled..whole]).expect("the sink answers in full");
}

fn call(criterion: &mut Criterion) {
    pin(0);
    let sink = Sink::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let endpoint_url = Some(format!("http://{}", sink.address));
    let defaults = DeliveryStreamSettings { endpoint_url, ..Default::default() };
    let settings = FirehoseSettings { defaults, ..Default::default() };
    let firehose = runtime.block_on(Firehose::connect(settings)).expect("region and endpoint are given");
    let mut socket = TcpStream::connect(sink.address).expect("the sink listens");
    socket.set_nodelay(true).expect("it is a TCP socket");
    let mut answer = vec![0; 1 << 20];
    let mut group = criterion.benchmark_group("call");
    group.sampling_mode(SamplingMode::Flat);
    let small = [(250, PackingMode::Full, "small", SMALL_BYTES)];
    let packed = SIZES.map(|size| (size, PackingMode::Full, "packed", CALL_BYTES_MAX));
    let single = SIZES.map(|size| (size, PackingMode::Single, "single", CALL_BYTES_MAX));
    for (size, mode, label, bytes_max) in small.into_iter().chain(packed).chain(single) {
        let ready = Ready::new(size, mode, bytes_max);
        sink.records.store(ready.records, Ordering::Release);
        group.throughput(Throughput::ElementsAndBytes {
            elements: ready.events,
            bytes: ready.body.len() as u64,
        });
        let name = format!("{size}B {label}, {} records", ready.records);
        group.bench_function(BenchmarkId::new("floor: hash + send", &name), |bencher| {
            bencher.iter_custom(|rounds| {
                support::cpu_of(rounds, || send_plainly(&mut socket, &ready.body, &mut answer))
            });
        });
        group.bench_function(BenchmarkId::new("firehose", &name), |bencher| {
            bencher.iter_custom(|rounds| {
                support::cpu_of(rounds, || {
                    let (body, records) = (ready.body.clone(), ready.records);
                    let call = Call {
                        delivery_stream: DELIVERY_STREAM.into(),
                        body,
                        records,
                        due: std::time::Instant::now(),
                        digest: None,
                    };
                    assert_eq!(runtime.block_on(firehose.call(call)), Outcome::Accepted);
                })
            });
        });
    }
    group.finish();
}

/// What the SDK's standard chain would otherwise look for on this host.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("AWS_ACCESS_KEY_ID", "AKIDBENCH"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_REGION", "eu-west-1"),
    ("AWS_CONFIG_FILE", "/dev/null"),
    ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
    ("NO_PROXY", "*"),
];

criterion_group! { name = benches; config = sampling::quick(); targets = call }

#[allow(unsafe_code, reason = "the environment can be set only so")]
fn main() {
    for (name, value) in ENVIRONMENT {
        // SAFETY: no other thread has been started yet, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
