//! The sink: a Firehose-compatible HTTP endpoint that checks every limit, keeps a ledger of every event, and
//! fails on purpose. Plain HTTP/1.1, PutRecordBatch only; signatures must be there, and are verified where the
//! secret is known.
//!
//! Beside `POST /` for calls there is `GET /ledger` (totals as JSON), `GET /faults` and `POST /faults` (settings
//! as JSON; what is left out is off, and windows of time count from that moment).
//!
//! It is one thread, so that it can share a core with the sender without disturbing the relay's.

mod call;
pub mod faults;
pub mod ledger;
pub mod protocol;
pub mod sequences;
pub mod signature;
pub mod timeline;
pub mod totals;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot, watch};

use faults::Faults;
use ledger::{Check, Ledger};
use totals::Totals;

/// What the sink does: the options that `sink` and `run` share.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// How closely accepted events are looked at.
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    pub check: Check,
    /// Recompute each signature from what arrived [default: where the secret is known and --check is full].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub verify_signature: Option<bool>,
    /// The secret access key of the clients; `run` knows the one that it gives to the relay.
    #[arg(long, value_name = "KEY")]
    pub secret: Option<String>,
    /// The stream in the frame, where the delivery stream is named otherwise; may be repeated.
    #[arg(long, value_name = "DELIVERY_STREAM=STREAM", value_parser = parse_map)]
    pub map: Vec<(String, String)>,
    /// Keep latencies by the tenth of a second in which events were planned, for `outage`.
    #[arg(long, hide = true)]
    pub timeline: bool,
    /// What it does wrong.
    #[command(flatten)]
    pub faults: Faults,
}

impl Settings {
    /// The secret that signatures are verified with, if they are to be.
    fn verified_with(&self) -> anyhow::Result<Option<String>> {
        match (self.verify_signature, &self.secret) {
            (Some(true), None) => {
                anyhow::bail!("--verify-signature needs the secret that clients sign with: give --secret")
            }
            (Some(true), secret) => Ok(secret.clone()),
            (Some(false), _) => Ok(None),
            (None, secret) => Ok(secret.clone().filter(|_| self.check == Check::Full)),
        }
    }
}

fn parse_map(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(delivery, stream)| (delivery.to_owned(), stream.to_owned()));
    pair.ok_or_else(|| format!("`{text}` is not DELIVERY_STREAM=STREAM"))
}

/// The faults in force, and since when.
#[derive(Debug)]
struct Active {
    faults: Arc<Faults>,
    since: Instant,
}

/// What all connections share.
#[derive(Debug)]
struct State {
    seed: u64,
    check: Check,
    /// The secret that signatures are verified with.
    secret: Option<String>,
    active: Mutex<Active>,
    ledger: Mutex<Ledger>,
    /// Bytes that each delivery stream may still accept, and when that was reckoned.
    quotas: Mutex<HashMap<String, (f64, Instant)>>,
    /// Buffers for bodies and records, kept between calls.
    buffers: Mutex<Vec<Vec<u8>>>,
    faults_changed: Notify,
    /// Connections that are being served.
    connections: AtomicUsize,
}

impl State {
    fn active(&self) -> (Arc<Faults>, Duration) {
        let active = lock(&self.active);
        (active.faults.clone(), active.since.elapsed())
    }

    fn set_faults(&self, faults: Faults) {
        *lock(&self.active) = Active { faults: Arc::new(faults), since: Instant::now() };
        lock(&self.quotas).clear();
        self.faults_changed.notify_one();
    }
}

/// A poisoned lock only means that another thread panicked, which ends the test anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A running sink. Dropping it stops it.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Starts a sink on a thread of its own, bound to the CPU `pin` if that is given.
    ///
    /// # Errors
    ///
    /// A sentence if the faults make no sense or the address cannot be listened on.
    pub fn start(
        listen: SocketAddr,
        seed: u64,
        settings: Settings,
        pin: Option<usize>,
    ) -> anyhow::Result<Self> {
        settings.faults.validate().map_err(anyhow::Error::msg)?;
        crate::send::raise_file_limit(SOCKETS_EXPECTED)?;
        let listener = std::net::TcpListener::bind(listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .with_context(|| format!("the sink cannot listen on {listen}"))?;
        let address = listener.local_addr().context("the listener has no address")?;
        let secret = settings.verified_with()?;
        let names = settings.map.into_iter().collect();
        let mut ledger = Ledger::new(settings.check, seed, names);
        if settings.timeline {
            ledger.keep_timeline();
        }
        let state = Arc::new(State {
            seed,
            check: settings.check,
            secret,
            active: Mutex::new(Active { faults: Arc::new(settings.faults), since: Instant::now() }),
            ledger: Mutex::new(ledger),
            quotas: Mutex::default(),
            buffers: Mutex::default(),
            faults_changed: Notify::new(),
            connections: AtomicUsize::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime for the sink could be started")?;
        let (stop, stopped) = oneshot::channel();
        let shared = state.clone();
        let thread = std::thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || {
                crate::pin_to(pin);
                runtime.block_on(async {
                    tokio::select! {
                        () = serve(address, listener, shared) => {}
                        _ = stopped => {}
                    }
                });
            })
            .context("no thread for the sink could be started")?;
        Ok(Self { address, state, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Looks into the books. The sink waits meanwhile.
    pub fn with_ledger<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        look(&mut lock(&self.state.ledger))
    }

    /// The books as they stand.
    pub fn totals(&self) -> Totals {
        self.with_ledger(|ledger| ledger.totals())
    }

    /// Connections that are being served: once a client is gone and none is left, nothing of it is to come.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Relaxed)
    }

    /// Changes what it does wrong; windows of time count from now.
    ///
    /// # Errors
    ///
    /// A sentence if the faults make no sense.
    pub fn set_faults(&self, faults: Faults) -> Result<(), String> {
        faults.validate()?;
        self.state.set_faults(faults);
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A sink that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

/// Open files that the sink's connections may need.
const SOCKETS_EXPECTED: usize = 1_024;

/// Accepts connections for ever, but for the windows in which it refuses them.
async fn serve(address: SocketAddr, listener: std::net::TcpListener, state: Arc<State>) {
    let mut listener =
        Some(TcpListener::from_std(listener).expect("it is a listening socket that does not block"));
    let (refusing, _) = watch::channel(false);
    loop {
        let (refuse, change) = gate(&state);
        if refuse != *refusing.borrow() {
            refusing.send_replace(refuse);
        }
        match (refuse, &listener) {
            (true, _) => listener = None,
            (false, None) => {
                listener = TcpListener::bind(address).await.ok();
                continue_after_failed_bind(listener.is_none()).await;
                continue;
            }
            (false, Some(_)) => {}
        }
        tokio::select! {
            connection = accept(listener.as_ref()) => {
                if let Some(connection) = connection {
                    tokio::spawn(connect(connection, state.clone(), refusing.subscribe()));
                }
            }
            () = sleep(change) => {}
            () = state.faults_changed.notified() => {}
        }
    }
}

async fn continue_after_failed_bind(failed: bool) {
    if failed {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether connections are refused now, and how long that stays so.
fn gate(state: &State) -> (bool, Option<Duration>) {
    let (faults, elapsed) = state.active();
    match faults.refuse {
        Some(window) if elapsed < window.from => (false, Some(window.from - elapsed)),
        Some(window) if elapsed < window.to => (true, Some(window.to - elapsed)),
        _ => (false, None),
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        None => std::future::pending().await,
        Some(listener) => match listener.accept().await {
            Ok((connection, _)) => Some(connection),
            Err(_) => {
                // Out of descriptors, most likely: others must end before another can begin.
                tokio::time::sleep(Duration::from_millis(10)).await;
                None
            }
        },
    }
}

/// Serves one connection until either side closes it, or connections are refused.
async fn connect(connection: TcpStream, state: Arc<State>, mut refusing: watch::Receiver<bool>) {
    // Without it answers are only later, never wrong.
    let _ = connection.set_nodelay(true);
    state.connections.fetch_add(1, Relaxed);
    let shared = state.clone();
    let service = service_fn(move |request| call::handle(shared.clone(), request));
    let serving =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(connection), service);
    tokio::select! {
        // Errors here are connections closed on purpose, by a fault or by the client; the ledger has them.
        _ = serving => {}
        _ = refusing.wait_for(|refuse| *refuse) => {}
    }
    state.connections.fetch_sub(1, Relaxed);
}
