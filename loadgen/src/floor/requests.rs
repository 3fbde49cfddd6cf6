//! Bare requests: what it costs at least to bring calls of the size that the relay made to a sink of the same kind,
//! and to take the answers. Heads and bodies are prepared; nothing is encoded, hashed, signed or understood.
//!
//! - Bare: one thread with edge-triggered epoll, one `writev` a request where the socket takes it, and of an answer
//!   its length alone.
//! - hyper: the same requests by the HTTP library that the relay's SDK stands on, with tokio on one
//!   thread. It is in no sum: a relay may do with less.
//!
//! All connections are busy all the time, which is cheap: what is ready is found together. Each is also measured with a
//! pause before each look, as the receivers are, since without one a fast sink is answered call by call.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use base64_simd::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::memory::thread_cpu;
use crate::run::report::Report;
use crate::run::{Destination, Options};
use crate::sink::faults::Faults;
use crate::sink::ledger::Check;
use crate::sink::{Settings, Sink};

/// As many as a relay has calls under way at most, where it is told nothing else.
const CONNECTIONS: usize = 64;
/// How long each way is measured, after a start that does not count.
const MEASURED: Duration = Duration::from_secs(1);
const START: Duration = Duration::from_millis(200);
/// The pause before each look.
const PAUSE: Duration = Duration::from_micros(500);
/// The head of an answer must come in one read of so many bytes.
const READ_BYTES: usize = 64 << 10;

/// The calls of a run, on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calls {
    /// Events in one.
    pub events: f64,
    /// Records in one.
    pub records: usize,
    /// Payload bytes of a record, before base64.
    pub record_bytes: usize,
}

impl Calls {
    /// Payload bytes in one.
    pub fn bytes(&self) -> f64 {
        (self.records * self.record_bytes) as f64
    }

    /// Those of a run; `None` where there were none.
    pub fn of(report: &Report) -> Option<Self> {
        let ledger = report.ledger.as_ref().filter(|_| report.destination == Destination::Firehose)?;
        let (counts, calls) = (&ledger.totals, ledger.totals.calls as f64);
        let records = (counts.records_accepted as f64 / calls).round().max(1.0);
        (counts.events_accepted > 0).then(|| Self {
            events: counts.events_accepted as f64 / calls,
            records: records as usize,
            record_bytes: (counts.raw_bytes as f64 / calls / records) as usize,
        })
    }
}

/// CPU of requests and their answers, in nanoseconds an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Requests {
    /// Over bare sockets.
    pub bare: f64,
    /// By hyper.
    pub hyper: f64,
}

/// Measures both ways on the relay's CPU, against a sink on that of the load.
///
/// # Errors
///
/// A sentence if the sink cannot be started or does not accept what is sent.
pub fn measure(options: &Options, calls: Calls) -> anyhow::Result<Requests> {
    let settings = Settings {
        check: Check::None,
        verify_signature: Some(false),
        faults: Faults::default(),
        ..options.settings.clone()
    };
    let sink = Sink::start(([127, 0, 0, 1], 0).into(), options.load.seed, settings, options.pin_load)?;
    let (address, body) = (sink.address(), body(calls));
    let pin = options.pin_relay;
    let measuring = std::thread::spawn(move || {
        crate::pin_to(pin);
        let head = head(address, body.len());
        let bare = [Duration::ZERO, PAUSE].map(|pause| Bare::connect(address, &head, &body)?.measure(pause));
        let [bare, bare_paused] = bare;
        let (bare, hyper) = (bare?.min(bare_paused?), with_hyper(address, body)?);
        Ok(Requests { bare: bare / calls.events, hyper: hyper / calls.events })
    });
    measuring.join().expect("measuring does not panic")
}

/// A body of so many records of so many bytes.
fn body(calls: Calls) -> Bytes {
    let data = STANDARD.encode_to_string(vec![b'x'; calls.record_bytes]);
    let records = vec![format!(r#"{{"Data":"{data}"}}"#); calls.records.max(1)].join(",");
    format!(r#"{{"Records":[{records}],"DeliveryStreamName":"floor"}}"#).into()
}

/// The headers that a sink looks at, and the length of those that it does not.
const HEADERS: [(&str, &str); 5] = [
    ("content-type", "application/x-amz-json-1.1"),
    ("x-amz-target", "Firehose_20150804.PutRecordBatch"),
    ("x-amz-date", "20260101T000000Z"),
    (
        "user-agent",
        "as long as that of a client that tells its version, its system, its language and its features",
    ),
    (
        "authorization",
        "AWS4-HMAC-SHA256 Credential=floor/20260101/us-east-1/firehose/aws4_request, \
         SignedHeaders=content-type;host;x-amz-date;x-amz-target;x-amz-user-agent, \
         Signature=0000000000000000000000000000000000000000000000000000000000000000",
    ),
];

fn head(address: SocketAddr, length: usize) -> Vec<u8> {
    let mut head = format!("POST / HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n");
    HEADERS.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    (head + "\r\n").into_bytes()
}

/// Bare sockets.
struct Bare<'a> {
    head: &'a [u8],
    body: &'a [u8],
    epoll: OwnedFd,
    connections: Vec<Connection>,
    answered: u64,
}

/// One connection: it writes a request, then reads the answer, and so on.
struct Connection {
    socket: TcpStream,
    /// How much of the request was written.
    written: usize,
    /// How much of the answer is missing, once its head is read.
    missing: usize,
}

impl<'a> Bare<'a> {
    fn connect(address: SocketAddr, head: &'a [u8], body: &'a [u8]) -> anyhow::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("epoll is not available")?;
        let mut connections = Vec::new();
        for index in 0..CONNECTIONS {
            let socket = TcpStream::connect(address).context("the sink cannot be reached")?;
            socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).context("a socket")?;
            let wanted = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            epoll::add(&epoll, &socket, EventData::new_u64(index as u64), wanted)
                .context("a connection could not be watched")?;
            connections.push(Connection { socket, written: 0, missing: 0 });
        }
        Ok(Self { head, body, epoll, connections, answered: 0 })
    }

    /// CPU of a request, in nanoseconds.
    fn measure(&mut self, pause: Duration) -> anyhow::Result<f64> {
        self.run_for(START, pause)?;
        let (cpu, answered) = (thread_cpu(), self.answered);
        self.run_for(MEASURED, pause)?;
        let answered = self.answered - answered;
        anyhow::ensure!(answered > 0, "the sink answered no bare request");
        Ok((thread_cpu() - cpu).as_nanos() as f64 / answered as f64)
    }

    fn run_for(&mut self, time: Duration, pause: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        let (mut ready, mut buffer) = (Vec::with_capacity(CONNECTIONS), vec![0; READ_BYTES]);
        while Instant::now() < until {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            ready.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll failed"),
            }
            for event in &ready {
                self.drive(event.data.u64() as usize, &mut buffer)?;
            }
        }
        Ok(())
    }

    /// Writes and reads until the socket has no room, or nothing has come.
    fn drive(&mut self, index: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
        let connection = &mut self.connections[index];
        loop {
            let done = if connection.written < self.head.len() + self.body.len() {
                connection.write(self.head, self.body)
            } else {
                connection.read(buffer)
            };
            match done {
                Ok(true) => self.answered += 1,
                Ok(false) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("a bare request failed"),
            }
        }
    }
}

impl Connection {
    fn write(&mut self, head: &[u8], body: &[u8]) -> std::io::Result<bool> {
        let head_left = &head[self.written.min(head.len())..];
        let body_left = &body[self.written.saturating_sub(head.len())..];
        self.written += self.socket.write_vectored(&[IoSlice::new(head_left), IoSlice::new(body_left)])?;
        Ok(false)
    }

    /// Whether this ended the answer.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<bool> {
        let read = self.socket.read(buffer)?;
        if self.missing == 0 {
            self.missing =
                length(&buffer[..read]).ok_or_else(|| std::io::Error::other("no 200 was answered"))?;
        }
        self.missing -= read.min(self.missing);
        if self.missing == 0 {
            self.written = 0;
        }
        Ok(self.missing == 0)
    }
}

/// The length of an answer, its head included; `None` where it is not the head of a success.
fn length(answer: &[u8]) -> Option<usize> {
    let head = memmem::find(answer, b"\r\n\r\n")? + 4;
    let declared = memmem::find(&answer[..head], b"content-length: ")? + 16;
    let digits = answer[declared..head].split(|byte| *byte == b'\r').next()?;
    let body: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    answer.starts_with(b"HTTP/1.1 200 ").then_some(head + body)
}

/// CPU of a request by hyper, in nanoseconds.
fn with_hyper(address: SocketAddr, body: Bytes) -> anyhow::Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no runtime could be started")?.block_on(async {
        let mut calling = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let socket =
                tokio::net::TcpStream::connect(address).await.context("the sink cannot be reached")?;
            socket.set_nodelay(true).context("a socket")?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
            tokio::spawn(connection);
            let body = body.clone();
            calling.spawn(async move {
                let (start, mut answered) = (Instant::now(), 0u64);
                while start.elapsed() < START + MEASURED {
                    let mut request = hyper::Request::post("/").header("host", address.to_string());
                    for (name, value) in HEADERS {
                        request = request.header(name, value);
                    }
                    let answer = sender.send_request(request.body(Full::new(body.clone()))?).await?;
                    anyhow::ensure!(answer.status().is_success(), "no 200 was answered");
                    answer.into_body().collect().await?;
                    answered += u64::from(start.elapsed() > START);
                }
                Ok(answered)
            });
        }
        tokio::time::sleep(START).await;
        let cpu = thread_cpu();
        let mut answered = 0;
        while let Some(done) = calling.join_next().await {
            answered += done.expect("calling does not panic")?;
        }
        anyhow::ensure!(answered > 0, "the sink answered no request of hyper");
        Ok((thread_cpu() - cpu).as_nanos() as f64 / answered as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_a_call_of_the_right_size() {
        let body = body(Calls { events: 8.0, records: 3, record_bytes: 1_000 });
        let call: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(call["Records"].as_array().unwrap().len(), 3);
        assert_eq!(call["Records"][2]["Data"].as_str().unwrap().len(), 1_336);
    }

    #[test]
    fn the_length_of_an_answer_is_that_of_head_and_body() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\ndate: x\r\n\r\n{\"a\":";
        assert_eq!(length(answer.as_bytes()), Some(answer.len() - 5 + 12));
        assert_eq!(length(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}"), None);
        assert_eq!(length(b"HTTP/1.1 200 OK\r\ncontent-len"), None);
    }
}
