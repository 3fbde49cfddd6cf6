//! Sockets: two drivers with one face. A driver owns the listeners and connections of one shard, reads bytes
//! and hands them to a [`Handler`]; it knows nothing of lines. Which driver is used changes no behaviour: the
//! whole test suite runs under both.
//!
//! The `uring` driver is the one to use; `epoll` is for where the kernel or a seccomp profile refuses io_uring.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::ListenAddress;
use crate::queue::Returns;

mod epoll;
pub mod probe;
#[cfg(test)]
mod tests;
mod uring;

use self::epoll::Epoll;
use self::uring::Uring;

/// A connection of one driver. It may name another connection once it was closed.
pub type Key = u32;

/// How much of a connection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As much as comes.
    Full,
    /// At most [`SMALL_READ_BYTES`] at a time, since memory is short.
    Small,
    /// Nothing.
    Paused,
}

/// The most that is read at a time with [`Reading::Small`].
pub const SMALL_READ_BYTES: usize = 4096;

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed its side; everything it sent was read.
    Closed,
    /// The connection was reset or failed.
    Failed,
}

/// What a driver tells its shard. Nothing may be done to the driver meanwhile; the shard does it afterwards.
pub trait Handler {
    /// The wait is over; what it brought comes next. The one look at a clock until the next wait.
    fn woke(&mut self, now: Instant);
    /// A connection was accepted; it is read from now on.
    fn opened(&mut self, key: Key, listener: usize);
    /// Bytes were read. They may come after the connection was paused: what had been read already.
    fn data(&mut self, key: Key, bytes: &[u8]);
    /// Nothing more will be read. The shard has to close it.
    fn ended(&mut self, key: Key, end: End);
    /// So many bytes of answers were written; `usize::MAX` where writing failed and all are given up.
    fn sent(&mut self, key: Key, bytes: usize);
    /// No connection could be accepted; the driver tries again.
    fn accept_failed(&mut self, error: &io::Error);
}

/// How much one wait brought, for the adaptive pause.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reaped {
    /// Reads that brought bytes.
    pub reads: u64,
    /// Bytes they brought.
    pub bytes: u64,
}

/// A driver chosen at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring, with incremental buffer rings (kernel 6.12) or plain ones (6.1).
    Uring {
        /// Whether buffers are consumed incrementally.
        incremental: bool,
    },
    /// epoll.
    Epoll,
}

impl DriverKind {
    /// The value of `io_driver_info{driver}`.
    pub fn label(self) -> &'static str {
        match self {
            DriverKind::Uring { incremental: true } => "uring",
            DriverKind::Uring { incremental: false } => "uring-plain-buffers",
            DriverKind::Epoll => "epoll",
        }
    }
}

/// The driver of one shard. It is made on the shard's thread and stays there.
pub enum Driver {
    /// See [`DriverKind::Uring`].
    Uring(Box<Uring>),
    /// See [`DriverKind::Epoll`].
    Epoll(Box<Epoll>),
}

/// Calls the same method of whichever driver there is.
macro_rules! either {
    ($driver:expr, $name:ident => $call:expr) => {
        match $driver {
            Driver::Uring($name) => $call,
            Driver::Epoll($name) => $call,
        }
    };
}

impl Driver {
    /// A driver that accepts from `listeners` and is woken by the bell of `returns`.
    ///
    /// # Errors
    /// Where the kernel refuses; for io_uring [`probe::probe`] has asked before.
    pub fn new(
        kind: DriverKind,
        listeners: Vec<OwnedFd>,
        returns: Arc<[Returns]>,
        shard: usize,
        receive_bytes: usize,
    ) -> io::Result<Self> {
        Ok(match kind {
            DriverKind::Uring { incremental } => {
                Driver::Uring(Box::new(Uring::new(listeners, returns, shard, receive_bytes, incremental)?))
            }
            DriverKind::Epoll => {
                Driver::Epoll(Box::new(Epoll::new(listeners, returns, shard, receive_bytes)?))
            }
        })
    }

    /// Waits for something to happen, at most `timeout`, then for `pause` more so that small reads come
    /// together, and hands everything to `handler`.
    ///
    /// # Errors
    /// Where the kernel fails in a way that no retry mends.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        pause: Duration,
        handler: &mut impl Handler,
    ) -> io::Result<Reaped> {
        either!(self, driver => driver.wait(timeout, pause, handler))
    }

    /// Sets how much of a connection is read.
    pub fn set_reading(&mut self, key: Key, reading: Reading) {
        either!(self, driver => driver.set_reading(key, reading));
    }

    /// Writes an answer behind those that are still to be written.
    pub fn send(&mut self, key: Key, bytes: &[u8]) {
        either!(self, driver => driver.send(key, bytes));
    }

    /// Tells the peer that nothing will be written any more; reading goes on.
    pub fn shut_down_writing(&mut self, key: Key) {
        either!(self, driver => driver.shut_down_writing(key));
    }

    /// Closes a connection. The key may be given to another afterwards.
    pub fn close(&mut self, key: Key) {
        either!(self, driver => driver.close(key));
    }

    /// Accepts what waits in the listeners' queues and closes them.
    pub fn stop_listening(&mut self, handler: &mut impl Handler) {
        either!(self, driver => driver.stop_listening(handler));
    }
}

/// Opens the listeners of every shard: for each shard, one descriptor an address. Also returns the addresses as
/// they are, with the port that was given for port 0.
///
/// A TCP address is first bound alone, so that a second relay by accident fails instead of silently taking half
/// of the connections; `takeover` leaves that out.
///
/// # Errors
/// Where an address cannot be bound, with a sentence that names it.
pub fn listen(
    addresses: &[ListenAddress],
    shards: usize,
    takeover: bool,
) -> io::Result<(Vec<Vec<OwnedFd>>, Vec<ListenAddress>)> {
    let mut by_shard: Vec<Vec<OwnedFd>> = (0..shards).map(|_| Vec::new()).collect();
    let mut bound = Vec::with_capacity(addresses.len());
    for address in addresses {
        let explain = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another process listens there (--takeover shares it on purpose)"
                }
                io::ErrorKind::PermissionDenied => "; this user may not",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
        };
        let (listeners, real) = match address {
            ListenAddress::Tcp(address) => {
                let (sockets, real) =
                    patiently(|| listen_tcp(*address, shards, takeover)).map_err(explain)?;
                (sockets, ListenAddress::Tcp(real))
            }
            ListenAddress::Unix(path) => {
                (patiently(|| listen_unix(path, shards)).map_err(explain)?, address.clone())
            }
        };
        for (shard, listener) in by_shard.iter_mut().zip(listeners) {
            shard.push(listener);
        }
        bound.push(real);
    }
    Ok((by_shard, bound))
}

/// How long an address may be in use still: a relay that was killed keeps it until the kernel has taken its rings
/// apart, which it does a moment after the process is gone.
const IN_USE_MAX: Duration = Duration::from_secs(1);

/// Tries again for a moment where an address is in use.
fn patiently<T>(mut listen: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + IN_USE_MAX;
    loop {
        match listen() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(IN_USE_MAX / 20);
            }
            result => return result,
        }
    }
}

/// Connections that may wait to be accepted, a listener. The kernel bounds it by net.core.somaxconn.
const BACKLOG: i32 = 4096;

fn listen_tcp(
    address: std::net::SocketAddr,
    shards: usize,
    takeover: bool,
) -> io::Result<(Vec<OwnedFd>, std::net::SocketAddr)> {
    use socket2::{Domain, Protocol, Socket, Type};
    let open = |address: std::net::SocketAddr, shared: bool| -> io::Result<Socket> {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    let mut address = address;
    if !takeover {
        let alone = open(address, false)?;
        address = alone.local_addr()?.as_socket().unwrap_or(address);
    }
    let mut sockets = Vec::with_capacity(shards);
    for _ in 0..shards {
        let socket = open(address, true)?;
        address = socket.local_addr()?.as_socket().unwrap_or(address);
        sockets.push(socket.into());
    }
    Ok((sockets, address))
}

/// One Unix socket whose descriptor every shard shares. A socket file that nobody listens on any more is
/// replaced; one that somebody does is not.
fn listen_unix(path: &Path, shards: usize) -> io::Result<Vec<OwnedFd>> {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    if let Ok(existing) = std::fs::symlink_metadata(path)
        && existing.file_type().is_socket()
    {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    (0..shards).map(|_| Ok(listener.try_clone()?.into())).collect()
}

/// Sleeps on purpose with work at hand: what arrives meanwhile is then handled at once instead of one by one.
fn pause_before_reaping(pause: Duration) {
    std::thread::sleep(pause);
}
