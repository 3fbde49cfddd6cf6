//! Sockets: two drivers with one face. A driver owns the listeners and connections of one shard, reads bytes
//! and hands them to a [`Handler`]; it knows nothing of lines. Which driver is used changes no behaviour: the
//! whole test suite runs under both.
//!
//! The `uring` driver is the one to use; `epoll` is for where the kernel or a seccomp profile refuses io_uring.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::queue::Returns;

mod epoll;
pub mod listen;
pub mod probe;
#[cfg(test)]
mod tests;
mod uring;

use self::epoll::Epoll;
use self::listen::Listener;
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
    /// A connection was accepted by a listener of the address with this index. It is given back where it stays.
    fn accepted(&mut self, socket: OwnedFd, address: usize) -> Option<OwnedFd>;
    /// It stays, and is read from now on.
    fn opened(&mut self, key: Key, address: usize);
    /// Bytes were read. They may come after the connection was paused: what had been read already.
    fn data(&mut self, key: Key, bytes: &[u8]);
    /// Nothing more will be read. The shard has to close it.
    fn ended(&mut self, key: Key, end: End);
    /// So many bytes of answers were written; `usize::MAX` where writing failed and all are given up.
    fn sent(&mut self, key: Key, bytes: usize);
    /// No connection could be accepted; the driver tries again.
    fn accept_failed(&mut self, error: &io::Error);
}

/// What one wait brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reaped {
    /// Reads that brought bytes.
    pub reads: u64,
    /// Bytes they brought.
    pub bytes: u64,
    /// Whatever connection had something to read at this moment was read since. None where some were not: what they
    /// sent may have been waiting for long.
    pub caught_up: Option<Instant>,
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
        listeners: Vec<Listener>,
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

    /// Reads a connection that was accepted elsewhere, by a listener of the address with this index.
    pub fn adopt(&mut self, socket: OwnedFd, address: usize, handler: &mut impl Handler) {
        either!(self, driver => driver.open(socket, address, handler));
    }

    /// Whom a connection is from; none where it is from a Unix socket or gone.
    pub fn peer(&self, key: Key) -> Option<SocketAddr> {
        let socket: BorrowedFd<'_> = either!(self, driver => driver.socket(key))?;
        rustix::net::getpeername(socket).ok()??.try_into().ok()
    }

    /// Closes a connection. The key may be given to another afterwards.
    pub fn close(&mut self, key: Key) {
        either!(self, driver => driver.close(key));
    }

    /// Accepts what waits in the listeners' queues and closes them. The queues of those whose address is `kept` are
    /// left to the other process that listens on the same sockets.
    pub fn stop_listening(&mut self, kept: impl Fn(usize) -> bool, handler: &mut impl Handler) {
        either!(self, driver => driver.stop_listening(kept, handler));
    }
}

/// Sleeps on purpose with work at hand: what arrives meanwhile is then handled at once instead of one by one.
fn pause_before_reaping(pause: Duration) {
    std::thread::sleep(pause);
}
