//! A small client of the relay: it sends events, keeps those that are not synced, and sends them again over a new
//! connection when one is lost. It is for programs that must not lose events; who need not know may as well write
//! lines to a socket (`docs/protocol.md`).
//!
//! The interface blocks, and one thread a client does all I/O: users need no runtime, an event is handed over
//! without a system call while the thread is busy, and answers are heard while the program does something else.
//!
//! ```
//! # use std::io::{BufRead, BufReader, Write};
//! # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! # let address = listener.local_addr()?.to_string();
//! # std::thread::spawn(move || {
//! #     let (mut connection, _) = listener.accept().unwrap();
//! #     for line in BufReader::new(connection.try_clone().unwrap()).lines() {
//! #         let line = line.unwrap();
//! #         if line == "!hello" {
//! #             connection.write_all(b"!hello sync_at=delivered\n").unwrap();
//! #         } else if let Some(id) = line.strip_prefix("!sync ") {
//! #             connection.write_all(format!("!synced {id}\n").as_bytes()).unwrap();
//! #         }
//! #     }
//! # });
//! use standpipe::client::Client;
//! use std::time::Duration;
//!
//! let client = Client::connect(&address)?;
//! client.send("clicks", br#"{"a":1}"#)?;
//! client.send("clicks", br#"{"a":2}"#)?;
//! // Waits until the relay says what became of both.
//! let report = client.sync(Duration::from_secs(60))?;
//! assert_eq!((report.synced, report.lost, report.unsynced), (2, 0, 0));
//! client.close(Duration::from_secs(60))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Invariants: an event is in one place, unsynced, synced, lost or dropped; what is unsynced is bounded; an event
//! is forgotten only when the relay has answered the sync that covers it. What was written to a connection that was
//! lost is sent again and may be a duplicate: it is counted.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::frame::{self, PAYLOAD_BYTES_MAX};
use crate::queue::Bell;

mod address;
mod held;
mod worker;

use self::address::Address;
pub use self::address::AddressError;
use self::held::Held;

/// What a client does with an event that finds no room among those that are not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// [`Client::send`] waits until there is room.
    Wait,
    /// The event is dropped and counted.
    Drop,
}

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The bytes of events that are not synced, at most; at least 64 KiB. It bounds the rate too: so much can be on
    /// its way in the time that the relay takes to deliver.
    pub bytes_max: usize,
    /// What happens beyond that.
    pub when_full: WhenFull,
    /// An event is covered by a sync after this time at the latest.
    pub sync_interval: Duration,
    /// The longest that connecting to one address may take.
    pub connect_timeout: Duration,
    /// The longest wait before the second attempt to connect; each further one doubles it. Waits are random.
    pub retry_base: Duration,
    /// The longest wait before any attempt.
    pub retry_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bytes_max: 8 << 20,
            when_full: WhenFull::Wait,
            sync_interval: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(3),
            retry_base: Duration::from_millis(100),
            retry_max: Duration::from_secs(10),
        }
    }
}

/// What became of the events of a client so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that are safe.
    pub synced: u64,
    /// Events that the relay says are lost: rejected, dropped, or refused by the destination.
    pub lost: u64,
    /// Events dropped here, since there was no room.
    pub dropped: u64,
    /// Events that wait to be synced.
    pub unsynced: u64,
    /// Events sent again after a connection was lost: each may be a duplicate.
    pub possible_duplicates: u64,
    /// Connections made.
    pub connections: u64,
    /// What went wrong last with a connection, as a sentence.
    pub last_error: Option<String>,
}

/// Why an event was not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SendError {
    /// The name is not one of the protocol.
    #[error("not a stream's name: use 1 to 64 letters, digits, dots, underscores and hyphens")]
    BadStream,
    /// The payload is empty or has an LF in it.
    #[error("a payload has at least one byte and no line feed")]
    BadPayload,
    /// The payload is longer than the protocol or the buffer allows.
    #[error("the payload is longer than 1,023,999 bytes, or than the client may hold")]
    TooLong,
    /// There was no room, and the policy is to drop.
    #[error("too much is not synced yet: the event is dropped")]
    Dropped,
}

/// A sync was not answered in time; everything that is unsynced is still held and still sent.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{} events are not synced yet{}", report.unsynced, because(report))]
pub struct NotSynced {
    /// What became of the events so far.
    pub report: Report,
}

fn because(report: &Report) -> String {
    report.last_error.as_ref().map_or(String::new(), |error| format!("; {error}"))
}

/// What the interface and the thread share.
#[derive(Debug)]
struct Shared {
    options: Options,
    held: Mutex<Held>,
    /// Something was answered, so that there may be room.
    answered: Condvar,
    /// Wakes the thread.
    bell: Bell,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client of one relay, or of the fleet behind one name. It may be shared by threads; the events of one thread
/// keep their order.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// A client of the relay at `HOST:PORT` or `unix:PATH`, with the default options.
    ///
    /// # Errors
    /// As [`Client::with`].
    pub fn connect(address: &str) -> Result<Self, AddressError> {
        Self::with(address, Options::default())
    }

    /// A client of the relay at `HOST:PORT` or `unix:PATH`. It does not wait for the connection: a relay that is
    /// away is tried again, now as later.
    ///
    /// # Errors
    /// Where the address is not of that form, or the system gives no thread.
    pub fn with(address: &str, options: Options) -> Result<Self, AddressError> {
        let address: Address = address.parse()?;
        let options = Options { bytes_max: options.bytes_max.max(64 << 10), ..options };
        let shared = Arc::new(Shared {
            options,
            held: Mutex::new(Held::new(options.bytes_max)),
            answered: Condvar::new(),
            bell: Bell::new().map_err(AddressError::System)?,
        });
        let for_worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("standpipe-client".to_owned())
            .spawn(move || worker::run(&address, &for_worker))
            .map_err(AddressError::System)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Hands one event over. Where the client holds all that it may, it waits or drops, as its options say.
    ///
    /// # Errors
    /// Where the event cannot be sent, or was dropped.
    pub fn send(&self, stream: &str, payload: &[u8]) -> Result<(), SendError> {
        check(stream, payload)?;
        let frame = stream.len() + payload.len() + 2;
        let mut held = self.shared.held();
        if !held.could_take(frame) {
            return Err(SendError::TooLong);
        }
        while !held.has_room(frame) {
            if self.shared.options.when_full == WhenFull::Drop {
                held.report.dropped += 1;
                return Err(SendError::Dropped);
            }
            if held.close_segment() {
                self.shared.bell.ring();
            }
            held = self.shared.answered.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        if held.push(stream.as_bytes(), payload, Instant::now()) {
            self.shared.bell.ring();
        }
        Ok(())
    }

    /// Waits until everything that was sent before is synced or lost.
    ///
    /// # Errors
    /// Where that was not answered within `timeout`. Nothing is given up by that.
    pub fn sync(&self, timeout: Duration) -> Result<Report, NotSynced> {
        let deadline = Instant::now() + timeout;
        let mut held = self.shared.held();
        held.close_segment();
        let wanted = held.last_id();
        self.shared.bell.ring();
        loop {
            if held.is_answered(wanted) {
                return Ok(held.report());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotSynced { report: held.report() });
            }
            let waited = self.shared.answered.wait_timeout(held, left);
            held = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What became of the events so far.
    pub fn report(&self) -> Report {
        self.shared.held().report()
    }

    /// Syncs, and closes the connection. Dropping a client instead gives up what is not synced.
    ///
    /// # Errors
    /// Where not everything was answered within `timeout`: that is given up.
    pub fn close(mut self, timeout: Duration) -> Result<Report, NotSynced> {
        let result = self.sync(timeout);
        self.stop();
        if let Some(thread) = self.thread.take().filter(|_| result.is_ok()) {
            // A panic of the thread was printed by the thread; everything is answered.
            let _ = thread.join();
        }
        result
    }

    fn stop(&self) {
        self.shared.held().is_stopped = true;
        self.shared.bell.ring();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}

fn check(stream: &str, payload: &[u8]) -> Result<(), SendError> {
    if !frame::is_stream_name(stream.as_bytes()) {
        return Err(SendError::BadStream);
    }
    if payload.is_empty() || memchr::memchr(b'\n', payload).is_some() {
        return Err(SendError::BadPayload);
    }
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(SendError::TooLong);
    }
    Ok(())
}

/// A connection was lost or could not be made.
fn broken(message: impl Into<String>) -> io::Error {
    io::Error::other(message.into())
}
