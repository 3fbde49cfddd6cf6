//! Another relay: each call is written as frames with a `!sync` behind them, and its outcome is the answer to that.
//! So a relay on every host can stand before a fleet, and an event leaves the host's memory when it is safe there.
//!
//! The name is resolved for each connection and one of its addresses chosen at random; connections are replaced
//! after a while, so that a fleet that grows is found. Answers come in order, and one that is stuck holds up those
//! behind it: so a call goes over a connection that carries nothing else, or only calls of the same stream, as long
//! as there may be another connection.
//!
//! What is written nowhere was refused; what was written, in part at least, and not answered is unknown. There is no
//! time-out for the answer to a sync: silence is the other relay's way to say that it has not delivered yet, and to
//! send again would only duplicate. What has a time-out is a ping that the other relay can answer at once
//! (`progress`): one that does not read any more is found, one that is paused for memory is left alone. So a call is
//! held for good only by a relay that stopped in the middle of reading it and whose host lives, which looks like a
//! pause from here; a load balancer's health check ends that. A host that is gone is noticed by keep-alive probes, or
//! where something was written, when TCP gives up sending it again. (TCP_USER_TIMEOUT is no help: it also closes the
//! connection of a peer that is alive and leaves its window shut.)

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Call, Outcome, Refusal};

mod link;
mod progress;

use self::link::Job;
use self::progress::Progress;

/// Connections at most. A fleet of hosts has as many each.
const CONNECTIONS_MAX: usize = 8;
/// A connection takes no more calls after a time between this and three times as much.
const LIFETIME: Duration = Duration::from_secs(150);
/// Calls that may wait to be written, a connection; lanes have fewer in flight.
const JOBS_WAITING: usize = 1024;
/// A peer that is gone without a word is noticed after this time without traffic, and a few probes.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub struct Relay {
    /// `HOST:PORT`.
    address: String,
    connect_timeout: Duration,
    /// A ping is answered within this time.
    ping_timeout: Duration,
    links: Mutex<Vec<Arc<Link>>>,
    /// Held while a connection is made, so that calls that come together do not each make one.
    connecting: tokio::sync::Mutex<()>,
}

/// A connection as calls see it.
#[derive(Debug)]
struct Link {
    jobs: mpsc::Sender<Job>,
    expires: Instant,
    progress: Arc<Progress>,
    /// Calls without an outcome yet.
    outstanding: AtomicUsize,
    /// The stream of the last call: that of all, unless connections are short.
    stream: Mutex<Arc<str>>,
}

impl Link {
    fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    fn carries(&self, stream: &Arc<str>) -> bool {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) == *stream
    }

    /// Whether it takes another call. One that is not read goes on with those it has.
    fn is_usable(&self, ping_timeout: Duration) -> bool {
        let now = Instant::now();
        !self.jobs.is_closed() && now < self.expires && !self.progress.is_stalled(now, ping_timeout)
    }
}

impl Relay {
    /// The relay, or the fleet, at `HOST:PORT`. Connections are made as calls need them. A relay that does not answer
    /// a ping within `ping_timeout` is given up, where it has nothing else to do.
    pub fn new(address: &str, connect_timeout: Duration, ping_timeout: Duration) -> Self {
        Self {
            address: address.to_owned(),
            connect_timeout,
            ping_timeout,
            links: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// Sends the lines of a call and waits for what became of them, however long that takes.
    pub async fn call(&self, call: Call) -> Outcome {
        let link = match self.link(&call.delivery_stream).await {
            Ok(link) => link,
            Err(error) => {
                let message = format!("no connection to the relay {}: {error}", self.address);
                return Outcome::Refused { kind: Refusal::Transient, message };
            }
        };
        let (reply, answer) = oneshot::channel();
        let job = Job { stream: call.delivery_stream, lines: call.body, reply };
        let outcome = match link.jobs.send(job).await {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        link.outstanding.fetch_sub(1, Ordering::Relaxed);
        outcome.unwrap_or_else(|| Outcome::Refused {
            kind: Refusal::Transient,
            message: format!("the connection to the relay {} was lost before the call", self.address),
        })
    }

    /// A connection for a call of this stream, which is counted on it from now on.
    async fn link(&self, stream: &Arc<str>) -> io::Result<Arc<Link>> {
        if let Some(link) = self.choose(stream) {
            return Ok(link);
        }
        let _connecting = self.connecting.lock().await;
        // Somebody else may have made one meanwhile.
        if let Some(link) = self.choose(stream) {
            return Ok(link);
        }
        let progress = Arc::default();
        let connecting = connect(&self.address, Arc::clone(&progress), self.ping_timeout);
        let jobs = timeout(self.connect_timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let expires = Instant::now() + LIFETIME.mul_f64(1.0 + 2.0 * fastrand::f64());
        let (outstanding, stream) = (AtomicUsize::new(1), Mutex::new(Arc::clone(stream)));
        let link = Arc::new(Link { jobs, expires, progress, outstanding, stream });
        self.links.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&link));
        Ok(link)
    }

    /// One of the connections there are, unless a new one is better.
    fn choose(&self, stream: &Arc<str>) -> Option<Arc<Link>> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        // One that takes no more calls ends by itself, once its last is answered.
        links.retain(|link| link.is_usable(self.ping_timeout));
        let own = links.iter().find(|link| link.outstanding() == 0 || link.carries(stream));
        let least = || links.iter().min_by_key(|link| link.outstanding());
        let chosen = own.or_else(|| if links.len() < CONNECTIONS_MAX { None } else { least() })?;
        chosen.outstanding.fetch_add(1, Ordering::Relaxed);
        *chosen.stream.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(stream);
        Some(Arc::clone(chosen))
    }
}

/// Connects, says hello, and gives where calls go to.
async fn connect(
    address: &str,
    progress: Arc<Progress>,
    ping_timeout: Duration,
) -> io::Result<mpsc::Sender<Job>> {
    let mut addresses: Vec<_> = tokio::net::lookup_host(address).await?.collect();
    fastrand::shuffle(&mut addresses);
    let mut socket = Err(io::Error::other("the name has no address"));
    for address in addresses {
        socket = TcpStream::connect(address).await;
        if socket.is_ok() {
            break;
        }
    }
    let socket = socket?;
    socket.set_nodelay(true)?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
    socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    let (reader, mut writer) = socket.into_split();
    let mut reader = BufReader::new(reader);
    writer.write_all(b"!hello\n").await?;
    let mut greeting = String::new();
    reader.read_line(&mut greeting).await?;
    if !greeting.starts_with("!hello sync_at=") || greeting.starts_with("!hello sync_at=none") {
        let greeting = greeting.trim_end();
        return Err(io::Error::other(format!("it is no relay that syncs: it says {greeting:?} to a hello")));
    }
    let (jobs, waiting) = mpsc::channel(JOBS_WAITING);
    tokio::spawn(link::serve(reader, writer, waiting, progress, ping_timeout));
    Ok(jobs)
}
