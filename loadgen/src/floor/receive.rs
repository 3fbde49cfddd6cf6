//! The bare receiver: as a child ([`serve`]), and measured from outside as the relay is ([`measure`]).

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::run::Options;
use crate::run::relay::{Usage, spawn_pinned};
use crate::send::{Plan, Progress, Target, raise_file_limit, send};

/// Bytes that one read may take.
const READ_BYTES_MAX: usize = 64 << 10;
/// Connections looked at in one round.
const READY_MAX: usize = 1_024;
/// Open files that a receiver may need.
const CONNECTIONS_EXPECTED: usize = 10_000;
/// Stands for the listener among the connections.
const LISTENER: u64 = u64::MAX;

/// The same backlog as a relay's, or connecting 10,000 would be what is measured.
const BACKLOG: i32 = 4_096;

/// Listens, says where on standard output, then reads and discards until it is killed: in so many loops, each on
/// a thread of its own with a listener of its own, among which the kernel spreads the connections as among the
/// shards of a relay.
///
/// # Errors
///
/// A sentence if it cannot listen, or epoll fails.
pub fn serve(pause: Duration, loops: usize) -> anyhow::Result<()> {
    raise_file_limit(CONNECTIONS_EXPECTED)?;
    let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut listeners = Vec::new();
    for _ in 0..loops {
        let listener = listen(address).context("the bare receiver cannot listen")?;
        let bound = rustix::net::getsockname(&listener).context("the listener has no address")?;
        address = bound.try_into().context("the listener has no IP address")?;
        listeners.push(listener);
    }
    println!("listening on {address}");
    std::io::stdout().flush().context("standard output is closed")?;
    std::thread::scope(|scope| {
        let loops: Vec<_> =
            listeners.iter().map(|listener| scope.spawn(move || receive(listener, pause))).collect();
        loops.into_iter().try_for_each(|each| each.join().expect("receiving does not panic"))
    })
}

fn listen(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseport(&listener, true)?;
    rustix::net::bind(&listener, &address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// One loop; it ends only with an error.
fn receive(listener: &OwnedFd, pause: Duration) -> anyhow::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC).context("epoll is not available")?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)
        .context("the listener could not be watched")?;
    let mut connections = Vec::new();
    let (mut ready, mut buffer) = (Vec::with_capacity(READY_MAX), vec![0; READ_BYTES_MAX]);
    loop {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        ready.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut ready), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll failed"),
        }
        for event in &ready {
            match event.data.u64() {
                LISTENER => accept_all(&epoll, listener, &mut connections)?,
                index => discard(&mut connections[index as usize], &mut buffer),
            }
        }
    }
}

fn accept_all(
    epoll: &OwnedFd,
    listener: &OwnedFd,
    connections: &mut Vec<Option<OwnedFd>>,
) -> anyhow::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    while let Ok(connection) = rustix::net::accept_with(listener, flags) {
        epoll::add(epoll, &connection, EventData::new_u64(connections.len() as u64), EventFlags::IN)
            .context("a connection could not be watched")?;
        connections.push(Some(connection));
    }
    Ok(())
}

/// One read; at the end of a connection it is closed, which takes it out of epoll.
fn discard(slot: &mut Option<OwnedFd>, buffer: &mut [u8]) {
    let Some(connection) = slot else { return };
    match rustix::io::read(&*connection, buffer) {
        Ok(1..) | Err(Errno::AGAIN | Errno::INTR) => {}
        Ok(0) | Err(_) => *slot = None,
    }
}

/// The longest that a floor is measured; a shorter `--duration` is kept.
const DURATION_MAX: Duration = Duration::from_secs(4);

/// CPU of a bare receiver with so many loops, in nanoseconds an event, under the load of these options.
///
/// # Errors
///
/// A sentence if it cannot be started or fed, or nothing was sent.
pub fn measure(options: &Options, pause: Duration, loops: usize) -> anyhow::Result<f64> {
    let duration = options.load.duration.unwrap_or(DURATION_MAX).min(DURATION_MAX);
    let mut load = options.load.clone();
    (load.duration, load.events) = (Some(duration), None);
    let plan = Plan::new(load)?;
    let receiver = Receiver::start(pause, loops, options.pin_relay)?;
    let progress = Progress::default();
    let target = Target::Tcp(receiver.address);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            crate::pin_to(options.pin_load);
            receiver.cpu_per_event(&progress, duration)
        });
        send(&plan, &target, &progress, options.pin_load)?;
        watching.join().expect("watching does not panic")
    })
}

/// A running receiver. Dropping it kills it.
struct Receiver {
    child: Child,
    address: SocketAddr,
}

impl Receiver {
    fn start(pause: Duration, loops: usize, pin: Option<usize>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this binary does not know where it is")?;
        let mut command = Command::new(program);
        command.args(["floor", "receive", "--pause", &humantime::format_duration(pause).to_string()]);
        command.args(["--loops", &loops.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = spawn_pinned(&mut command, pin).context("the bare receiver could not be started")?;
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().expect("it was asked for")).read_line(&mut line);
        let address = line.trim().strip_prefix("listening on ").and_then(|text| text.parse().ok());
        match (read, address) {
            (Ok(_), Some(address)) => Ok(Self { child, address }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                anyhow::bail!("the bare receiver did not say where it listens: `{}`", line.trim())
            }
        }
    }

    /// Between a quarter of the time and just before its end. What was sent is what was received, but for the
    /// bytes that wait in sockets at either end.
    fn cpu_per_event(&self, progress: &Progress, duration: Duration) -> anyhow::Result<f64> {
        let patience = Instant::now() + duration + Duration::from_secs(30);
        while progress.events() == 0 {
            anyhow::ensure!(Instant::now() < patience, "nothing was sent to the bare receiver");
            std::thread::sleep(Duration::from_millis(1));
        }
        let look = || Usage::of(&self.child.id().to_string()).map(|usage| (usage, progress.events()));
        std::thread::sleep(duration / 4);
        let (before, events_before) = look()?;
        std::thread::sleep(duration * 3 / 4 - duration / 20);
        let (after, events_after) = look()?;
        anyhow::ensure!(events_after > events_before, "the bare receiver was not fed");
        let (user, system) = after.cpu_since(&before);
        Ok((user + system) * 1e9 / (events_after - events_before) as f64)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
