//! Assembly: what is started in which order, and stopped in which. The only module that knows all others.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::admin::{self, Admin, Busy};
use crate::buffer::Shape;
use crate::config::{BodyHash, Config, DestinationChoice, ListenAddress};
use crate::dead_letter::{self, DeadLetters};
use crate::delivery::{Command, Delivery, Parts};
use crate::destination::Destination;
use crate::destination::directory::Directory;
use crate::destination::firehose::{Firehose, FirehoseSettings};
use crate::destination::relay::Relay;
use crate::drain::{self, Drained};
use crate::lifecycle::Lifecycle;
use crate::memory::{Memory, Plan};
use crate::metrics::Metrics;
use crate::net::{self, DriverKind, probe};
use crate::queue::{Handoff, Returns};
use crate::shard::{self, Orders, Seat, Shared};
use crate::spool;
use crate::spool::keeper::{self, Keeper};
use crate::stream::Registry;

/// Questions to delivery that may wait for their turn: scrapes, a drain.
const COMMANDS_WAITING: usize = 64;
/// How often streams that were idle for an hour are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// A file of the spool is left for a new one when it has grown to this.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Runs a relay until it was told to stop and has drained.
///
/// # Errors
/// Where it cannot start: an address is taken, or a destination is not usable.
pub async fn run(config: Config, plan: Plan) -> anyhow::Result<Drained> {
    let (driver, refused) = probe::choose(config.io)?;
    if let Some(refused) = refused {
        warn!("{refused}. Sockets are read with epoll instead, at a higher cost in CPU");
    }
    let (listeners, listening) = net::listen(&config.listen, plan.shards, config.takeover)?;
    let admin_listener = bind_admin(config.admin).await?;
    let admin_address = admin_listener.local_addr()?;

    let labels: Vec<String> = listening.iter().map(ToString::to_string).collect();
    let config = Arc::new(config);
    let metrics = Metrics::new(Instant::now(), plan.shards, labels.clone(), config.max_stream_labels);
    let destination = Arc::new(open_destination(&config, &metrics).await?);
    let shared = share(Arc::clone(&config), &plan, metrics, &destination)?;
    let (delivery, commands) = mpsc::channel(COMMANDS_WAITING);
    let spool = open_spool(&shared, driver, &plan)?;
    let mut deliverer = Delivery::new(parts(&shared, &destination), spool);
    if let Some(dead) = open_dead_letters(&shared)? {
        deliverer = deliverer.with_dead_letters(dead);
    }
    tokio::spawn(deliverer.run(commands));
    let lifecycle = Arc::new(Lifecycle::default());
    let admin = Arc::new(Admin {
        shared: Arc::clone(&shared),
        destination,
        delivery: delivery.clone(),
        lifecycle: Arc::clone(&lifecycle),
        plan: plan.clone(),
        driver: driver.label(),
        busy: Mutex::new(Busy::new(plan.shards)),
    });
    let served = tokio::spawn(async move { axum::serve(admin_listener, admin::router(admin)).await });

    let signals = Signals::catch()?;
    let threads = start_shards(listeners, driver, &plan, &shared)?;
    lifecycle.ready();
    info!(
        "ready listen={} admin={admin_address} destination={} io={} shards={} linger={:?} memory={}MiB",
        labels.join(","),
        config.destination,
        driver.label(),
        plan.shards,
        config.linger,
        plan.total >> 20,
    );
    let housekeeping = tokio::spawn(sweep_idle(Arc::clone(&shared), delivery.clone()));

    let drained = wait_and_drain(&shared, &delivery, &lifecycle, signals).await;
    housekeeping.abort();
    served.abort();
    for thread in threads {
        if thread.join().is_err() {
            error!("a shard ended in a panic");
        }
    }
    remove_sockets(&listening);
    Ok(drained)
}

async fn bind_admin(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot serve the admin endpoints on {address}; set --admin to an address that is free")
    })
}

async fn open_destination(config: &Config, metrics: &Metrics) -> anyhow::Result<Destination> {
    Ok(match &config.destination {
        DestinationChoice::Null => Destination::Null,
        DestinationChoice::Relay(address) => {
            Destination::Relay(Relay::new(address, config.connect_timeout, config.call_timeout))
        }
        DestinationChoice::Directory(root) => {
            Destination::Directory(Directory::open(root, &instance(), Arc::clone(&metrics.fsync_duration))?)
        }
        DestinationChoice::Firehose => Destination::Firehose(
            Firehose::connect(FirehoseSettings {
                endpoint_url: config.endpoint_url.clone(),
                region: config.region.clone(),
                call_timeout: config.call_timeout,
                connect_timeout: config.connect_timeout,
                max_idle_connections: config.max_calls,
                groups_hashes: config.body_hash == BodyHash::Grouped,
            })
            .await?,
        ),
    })
}

/// Starts the spool's thread where there is a spool. A disk that does not work is no reason not to start.
fn open_spool(shared: &Shared, driver: DriverKind, plan: &Plan) -> io::Result<Option<Keeper>> {
    let (config, metrics) = (&shared.config, &shared.metrics);
    let Some(root) = config.spool.clone() else { return Ok(None) };
    let keep_sent = u64::try_from(config.spool_keep_sent.as_millis()).unwrap_or(u64::MAX);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let settings = keeper::Settings {
        root,
        // The time first, so that directories are taken over in the order in which they were made.
        instance: format!("{:010}-{}", since.as_secs(), instance()),
        uses_uring: matches!(driver, DriverKind::Uring { .. }),
        limits: spool::Limits {
            bytes_max: config.spool_limit,
            free_floor: config.spool_free_floor,
            batches_max: usize::try_from(plan.events / 8 / spool::BATCH_MEMORY_BYTES).unwrap_or(usize::MAX),
            segment_bytes: SEGMENT_BYTES.min(config.spool_limit / 4),
            group_bytes: plan.spool_group,
            keep_sent,
        },
        fsync: Arc::clone(&metrics.fsync_duration),
        gauges: Arc::clone(&metrics.spool),
    };
    Keeper::start(settings).map(Some)
}

/// Starts the thread of the dead letters where they are kept.
fn open_dead_letters(shared: &Shared) -> io::Result<Option<DeadLetters>> {
    let Some(root) = shared.config.dead_letter.clone() else { return Ok(None) };
    let bytes = Arc::clone(&shared.metrics.dead_letter_bytes);
    let bytes_max = shared.config.dead_letter_limit;
    DeadLetters::start(dead_letter::Settings { root, bytes_max, instance: instance(), bytes }).map(Some)
}

/// A name for this process that no other of any host is likely to have: it stands in file names.
fn instance() -> String {
    format!("{:08x}", fastrand::u32(..))
}

fn share(
    config: Arc<Config>,
    plan: &Plan,
    metrics: Arc<Metrics>,
    destination: &Destination,
) -> io::Result<Arc<Shared>> {
    let memory = Memory::new(plan);
    let returns = (0..plan.shards).map(|_| Returns::new()).collect::<io::Result<Arc<[Returns]>>>()?;
    Ok(Arc::new(Shared {
        shape: Shape::new(destination.encoding(), &memory),
        registry: Arc::new(Registry::new(Arc::clone(&config), Arc::clone(&metrics))),
        handoff: Arc::new(Handoff::default()),
        orders: Orders::default(),
        connections_max: plan.connections_max,
        connections: AtomicUsize::new(0),
        config,
        metrics,
        memory,
        returns,
    }))
}

/// What delivery is made of, beside the shards.
#[doc(hidden)]
pub fn parts(shared: &Shared, destination: &Arc<Destination>) -> Parts {
    Parts {
        config: Arc::clone(&shared.config),
        destination: Arc::clone(destination),
        memory: Arc::clone(&shared.memory),
        metrics: Arc::clone(&shared.metrics),
        handoff: Arc::clone(&shared.handoff),
        returns: Arc::clone(&shared.returns),
        registry: Arc::clone(&shared.registry),
    }
}

/// Starts one thread a shard. A shard that fails takes the process with it: half a relay would lose events.
fn start_shards(
    listeners: Vec<Vec<std::os::fd::OwnedFd>>,
    driver: DriverKind,
    plan: &Plan,
    shared: &Arc<Shared>,
) -> io::Result<Vec<std::thread::JoinHandle<()>>> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let receive_bytes = usize::try_from(plan.receive_bytes).unwrap_or(usize::MAX);
    let mut threads = Vec::with_capacity(listeners.len());
    for (index, listeners) in listeners.into_iter().enumerate() {
        // More shards than CPUs are left to the scheduler.
        let core = cores.get(index).copied().filter(|_| plan.shards <= cores.len());
        let seat = Seat { index, core, listeners, driver, receive_bytes };
        let shared = Arc::clone(shared);
        let body = move || {
            if let Err(error) = shard::run(seat, shared) {
                error!("shard {index} failed, and the process ends with it: {error}");
                std::process::exit(1);
            }
        };
        threads.push(std::thread::Builder::new().name(format!("shard-{index}")).spawn(body)?);
    }
    Ok(threads)
}

async fn sweep_idle(shared: Arc<Shared>, delivery: mpsc::Sender<Command>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        interval.tick().await;
        shared.orders.sweep(&shared.returns);
        if delivery.send(Command::Sweep).await.is_err() {
            return;
        }
        shared.registry.sweep();
    }
}

/// The signals that ask for the end. They are caught before anybody can know that the relay is ready, or one that
/// comes at once would end it without a drain.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// Waits to be told, then drains. SIGTERM, SIGINT and SIGHUP (a terminal that was closed) tell, as does
/// `POST /drain`. A second
/// signal cuts `pre_drain_delay` short; one during the drain hurries that.
async fn wait_and_drain(
    shared: &Arc<Shared>,
    delivery: &mpsc::Sender<Command>,
    lifecycle: &Lifecycle,
    signals: Signals,
) -> Drained {
    let Signals { mut terminate, mut interrupt, mut hang_up } = signals;
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: draining"),
        _ = interrupt.recv() => info!("SIGINT: draining"),
        _ = hang_up.recv() => info!("SIGHUP: draining"),
        () = lifecycle.drain_asked() => info!("asked to drain"),
    }
    lifecycle.draining();
    let delay = shared.config.pre_drain_delay;
    if !delay.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(delay) => (),
            () = either(&mut terminate, &mut interrupt) => info!("a signal again: pre_drain_delay is cut short"),
        }
    }
    drain::drain(shared, delivery, either(&mut terminate, &mut interrupt)).await
}

/// Resolves at the next of either signal.
async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => (),
        _ = other.recv() => (),
    }
}

fn remove_sockets(listening: &[ListenAddress]) {
    for address in listening {
        if let ListenAddress::Unix(path) = address {
            let _ = std::fs::remove_file(path);
        }
    }
}
