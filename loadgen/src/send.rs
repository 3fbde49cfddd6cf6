//! The sender: opens the connections, writes events by the schedule, closes properly, and tells what was sent.
//! It knows nothing of the relay but its address and the frame `STREAM SP PAYLOAD LF`.
//!
//! Open loop: what is due is due by the schedule alone; a connection that cannot be written falls behind and
//! the delay shows in the planned times inside its events. Memory is bounded: a connection holds at most one
//! write's bytes.

mod connection;
mod driver;

use std::fmt;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fd::OwnedFd;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use crate::event::{Builder, MAX_CONNECTIONS, StreamSeed};
use crate::schedule::{Assignment, Clock, Schedule};
use crate::units::{Rate, Sizes, parse_duration, parse_number};
use driver::Share;

/// Where events are sent: `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let mut addresses = text
            .to_socket_addrs()
            .map_err(|error| format!("`{text}` is not HOST:PORT or unix:PATH: {error}"))?;
        addresses.next().map(Self::Tcp).ok_or_else(|| format!("`{text}` has no address"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What to send: the options that `send` and `run` share.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Load {
    /// Connections to open.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub connections: usize,
    /// Streams to send to, named by `--stream-prefix` and a zero-padded number.
    #[arg(long, default_value_t = 16, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// What the names of the streams start with.
    #[arg(long, default_value = "stream-", value_name = "TEXT")]
    pub stream_prefix: String,
    /// A stream's name, instead of numbered ones; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub stream: Vec<String>,
    /// Each connection sends to one stream only, instead of to all in turn.
    #[arg(long)]
    pub one_stream_per_connection: bool,
    /// Events a second over all connections, on an open-loop schedule; `max` is flat out.
    #[arg(long, default_value = "max", value_name = "R|max")]
    pub rate: Rate,
    /// Events to send in all [default: 1000000 unless --duration is given].
    #[arg(long, value_name = "TOTAL", value_parser = parse_number)]
    pub events: Option<u64>,
    /// How long to send, such as 10s.
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Bytes of one event without its frame: from 57 to 1023999, or a range MIN-MAX.
    #[arg(long, default_value = "250", value_name = "BYTES")]
    pub size: Sizes,
    /// Seed of sizes, fillers and (in `sink` and `run`) faults.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Most bytes put into one write; 0 writes one line at a time.
    #[arg(long, default_value = "65536", value_name = "BYTES", value_parser = parse_number)]
    pub write: u64,
    /// Threads that send; each drives its share of the connections.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub threads: usize,
    /// How long to wait at the end for unwritten bytes and for the peer to close.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub close_timeout: Duration,
    /// Give up when something is due and no connection took a byte for so long.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = parse_duration)]
    pub stuck_timeout: Duration,
}

/// One stream of a plan.
#[derive(Debug)]
struct Stream {
    name: String,
    seed: StreamSeed,
}

/// A load whose options fit together.
#[derive(Debug)]
pub struct Plan {
    streams: Vec<Stream>,
    assignment: Assignment,
    builder: Builder,
    events: Option<u64>,
    load: Load,
}

/// What is sent where neither events nor a duration was asked for.
const DEFAULT_EVENTS: u64 = 1_000_000;

impl Plan {
    /// Checks the options.
    ///
    /// # Errors
    ///
    /// A sentence on the first option that is out of bounds.
    pub fn new(load: Load) -> anyhow::Result<Self> {
        anyhow::ensure!(
            (1..=MAX_CONNECTIONS as usize).contains(&load.connections),
            "--connections must be from 1 to {MAX_CONNECTIONS}"
        );
        anyhow::ensure!((1..=256).contains(&load.threads), "--threads must be from 1 to 256");
        let names = stream_names(&load);
        for name in &names {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            let fits = (1..=64).contains(&name.len()) && name.bytes().all(legal);
            anyhow::ensure!(fits, "`{name}` is no stream name: 1 to 64 letters, digits, `_`, `.` or `-`");
        }
        let assignment = match load.one_stream_per_connection {
            true => Assignment::OneStreamPerConnection,
            false => Assignment::RoundRobin,
        };
        let builder = Builder::new(load.seed, load.size)?;
        let events = load.events.or(load.duration.is_none().then_some(DEFAULT_EVENTS));
        let streams = names.into_iter().map(|name| Stream { seed: StreamSeed::new(&name), name }).collect();
        Ok(Self { streams, assignment, builder, events, load })
    }

    /// Events that will be sent if all goes well; `None` flat out for a duration.
    pub fn events(&self) -> Option<u64> {
        self.schedule(0).total()
    }

    /// The options that the plan was made from.
    pub fn load(&self) -> &Load {
        &self.load
    }

    fn schedule(&self, start_ns: u64) -> Schedule {
        Schedule::starting(start_ns, self.load.rate, self.events, self.load.duration, self.load.connections)
    }
}

pub(crate) fn stream_names(load: &Load) -> Vec<String> {
    if !load.stream.is_empty() {
        return load.stream.clone();
    }
    let width = (load.streams - 1).to_string().len();
    (0..load.streams).map(|number| format!("{}{number:0width$}", load.stream_prefix)).collect()
}

/// Events written so far, for a progress bar.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Events written so far.
    pub fn events(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn add(&self, events: u64) {
        self.0.fetch_add(events, Relaxed);
    }
}

/// What was sent to one stream.
#[derive(Debug, Clone, Serialize)]
pub struct StreamSent {
    /// Its name.
    pub stream: String,
    /// Events written whole.
    pub events: u64,
    /// Their check sums, added up modulo 2^64: independent of order.
    pub check_sum: u64,
}

/// What was sent. An event counts as sent when its last byte was taken by the kernel.
#[derive(Debug, Clone, Serialize)]
pub struct Sent {
    /// When the first event was planned, after all connections were open.
    #[serde(skip)]
    pub started: Instant,
    /// The seed of sizes and fillers.
    pub seed: u64,
    /// Events that the plan asked for; where only time ended the run, those sent.
    pub events_planned: u64,
    /// Events written whole.
    pub events_sent: u64,
    /// Events planned and not written whole: the peer closed, or the time was over.
    pub events_unsent: u64,
    /// Bytes of the events sent, each with its LF.
    pub payload_bytes: u64,
    /// Bytes written, frames and all.
    pub line_bytes: u64,
    /// Write calls that took at least a byte.
    pub writes: u64,
    /// From the first planned event to the last write.
    pub seconds: f64,
    /// Events sent a second.
    pub events_per_second: f64,
    /// How late, at worst, an event was built after its planned time; 0 flat out.
    pub behind_schedule_ms_max: f64,
    /// Connections that the peer closed or reset before all was written.
    pub connections_failed: u64,
    /// Connections that the peer had not closed when the close time-out was over.
    pub connections_not_closed: u64,
    /// The first few failures.
    pub errors: Vec<String>,
    /// How events were spread over streams.
    pub assignment: Assignment,
    /// What was sent to each stream.
    pub streams: Vec<StreamSent>,
    /// Events sent on each connection. With `assignment` these give the sequences sent: see `sent`.
    pub events_by_connection: Vec<u64>,
    /// Events sent by connection and stream (in the order of `streams`): their sequences are `0..n`. Left out
    /// where it would have more than a million entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<Vec<Vec<u64>>>,
}

/// The most entries of [`Sent::sent`].
const SENT_ENTRIES_MAX: usize = 1_000_000;

impl Sent {
    /// How many events this connection sent to the stream with this index.
    pub fn share(&self, connection: usize, stream: usize) -> u64 {
        let events = self.events_by_connection[connection];
        self.assignment.share(self.streams.len(), connection as u32, events, stream)
    }

    /// Whether everything planned was sent and no connection failed. Events unsent because time was over are
    /// no failure.
    pub fn is_complete(&self) -> bool {
        self.connections_failed == 0
    }
}

/// Opens the connections, sends all that is planned, half-closes, waits for the peer to close. `pin` is the
/// CPU that the sending threads are bound to.
///
/// # Errors
///
/// A sentence if a connection cannot be opened. What happens to connections later is in the result.
pub fn send(plan: &Plan, target: &Target, progress: &Progress, pin: Option<usize>) -> anyhow::Result<Sent> {
    raise_file_limit(plan.load.connections)?;
    let sockets = connect_all(target, plan.load.connections)?;
    let clock = Clock::new();
    let schedule = plan.schedule(clock.now_ns());
    let started = Instant::now();
    let mut shares: Vec<_> =
        (0..plan.load.threads).map(|thread| Share::new(plan, schedule, clock, thread)).collect();
    for (number, socket) in sockets.into_iter().enumerate() {
        shares[number % plan.load.threads].add(number as u32, socket)?;
    }
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .map(|share| {
                scope.spawn(move || {
                    crate::pin_to(pin);
                    share.run(progress)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a sending thread does not panic")).collect()
    });
    summary(plan, schedule, started, done)
}

/// What one thread did.
#[derive(Debug, Default)]
struct Done {
    /// (connection, events sent)
    events: Vec<(u32, u64)>,
    check_sums: Vec<u64>,
    payload_bytes: u64,
    line_bytes: u64,
    writes: u64,
    last_write_ns: u64,
    behind_ns_max: u64,
    connections_failed: u64,
    connections_not_closed: u64,
    errors: Vec<String>,
}

/// The most failures told in full.
const ERRORS_MAX: usize = 10;

fn summary(
    plan: &Plan,
    schedule: Schedule,
    started: Instant,
    done: Vec<anyhow::Result<Done>>,
) -> anyhow::Result<Sent> {
    let done = done.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let sum = |of: fn(&Done) -> u64| done.iter().map(of).sum::<u64>();
    let max = |of: fn(&Done) -> u64| done.iter().map(of).max().unwrap_or(0);
    let mut events_by_connection = vec![0; plan.load.connections];
    for &(connection, events) in done.iter().flat_map(|done| &done.events) {
        events_by_connection[connection as usize] = events;
    }
    let events_sent: u64 = events_by_connection.iter().sum();
    let events_planned = schedule.total().unwrap_or(events_sent);
    let seconds = max(|done| done.last_write_ns).saturating_sub(schedule.start_ns()) as f64 / 1e9;
    let mut sent = Sent {
        started,
        seed: plan.load.seed,
        events_planned,
        events_sent,
        events_unsent: events_planned - events_sent,
        payload_bytes: sum(|done| done.payload_bytes),
        line_bytes: sum(|done| done.line_bytes),
        writes: sum(|done| done.writes),
        seconds,
        events_per_second: if seconds > 0.0 { events_sent as f64 / seconds } else { 0.0 },
        behind_schedule_ms_max: max(|done| done.behind_ns_max) as f64 / 1e6,
        connections_failed: sum(|done| done.connections_failed),
        connections_not_closed: sum(|done| done.connections_not_closed),
        errors: done.iter().flat_map(|done| done.errors.iter().cloned()).take(ERRORS_MAX).collect(),
        assignment: plan.assignment,
        streams: Vec::new(),
        events_by_connection,
        sent: None,
    };
    sent.streams = streams_sent(plan, &sent.events_by_connection, &done);
    if plan.load.connections.saturating_mul(plan.streams.len()) <= SENT_ENTRIES_MAX {
        let row = |connection| (0..plan.streams.len()).map(|s| sent.share(connection, s)).collect();
        sent.sent = Some((0..plan.load.connections).map(row).collect());
    }
    Ok(sent)
}

fn streams_sent(plan: &Plan, events_by_connection: &[u64], done: &[Done]) -> Vec<StreamSent> {
    let count = plan.streams.len();
    let mut events = vec![0; count];
    for (connection, &sent) in events_by_connection.iter().enumerate() {
        match plan.assignment {
            Assignment::OneStreamPerConnection => events[connection % count] += sent,
            Assignment::RoundRobin => {
                for (stream, total) in events.iter_mut().enumerate() {
                    *total += plan.assignment.share(count, connection as u32, sent, stream);
                }
            }
        }
    }
    let check_sum =
        |stream: usize| done.iter().map(|done| done.check_sums[stream]).fold(0, u64::wrapping_add);
    let named = plan.streams.iter().zip(events).enumerate();
    named
        .map(|(index, (stream, events))| StreamSent {
            stream: stream.name.clone(),
            events,
            check_sum: check_sum(index),
        })
        .collect()
}

/// Descriptors needed besides the connections: standard streams, epoll, the sink's sockets.
const SPARE_FILES: u64 = 256;

/// Raises the soft limit on open files to the hard one.
///
/// # Errors
///
/// A sentence if the hard limit is below what is needed.
pub fn raise_file_limit(connections: usize) -> anyhow::Result<()> {
    let needed = connections as u64 + SPARE_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(maximum) = limit.maximum {
        anyhow::ensure!(
            maximum >= needed,
            "{connections} connections need {needed} open files, but the hard limit is {maximum}; raise it with `ulimit -Hn`"
        );
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("the limit on open files could not be raised")
}

/// A pause after this many connections, so that accept queues do not overflow.
const CONNECT_BURST: usize = 100;
const CONNECT_PAUSE: Duration = Duration::from_millis(1);
/// How long a refused connection is tried again: a listener may be starting, an accept queue full.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn connect_all(target: &Target, connections: usize) -> anyhow::Result<Vec<OwnedFd>> {
    let mut sockets = Vec::with_capacity(connections);
    for number in 0..connections {
        if number % CONNECT_BURST == CONNECT_BURST - 1 {
            std::thread::sleep(CONNECT_PAUSE);
        }
        let socket = connect_patiently(target).with_context(|| {
            format!("connection {number} of {connections} to {target} could not be opened")
        })?;
        sockets.push(socket);
    }
    Ok(sockets)
}

fn connect_patiently(target: &Target) -> std::io::Result<OwnedFd> {
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        match connect(target) {
            Ok(socket) => return Ok(socket),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(10 * CONNECT_PAUSE),
        }
    }
}

fn connect(target: &Target) -> std::io::Result<OwnedFd> {
    match target {
        Target::Tcp(address) => {
            let socket = TcpStream::connect_timeout(address, CONNECT_PATIENCE)?;
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        }
        Target::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        }
    }
}

#[cfg(test)]
mod tests;
