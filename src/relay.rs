//! Assembly: what is started in which order, and stopped in which. The only module that knows all others.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::admin::{self, Admin};
use crate::buffer::Shape;
use crate::config::{BodyHash, Config, DestinationChoice, ListenAddress, Sources};
use crate::dead_letter::{self, DeadLetters};
use crate::delivery::{Command, Delivery, Parts};
use crate::destination::Destination;
use crate::destination::directory::Directory;
use crate::destination::firehose::{Firehose, FirehoseSettings};
use crate::destination::relay::Relay;
use crate::drain::{self, Drained};
use crate::handover::{Offer, Sockets, TakenOver};
use crate::health;
use crate::inheritance::{self, Inheritance};
use crate::lifecycle::Lifecycle;
use crate::log::Log;
use crate::memory::{Memory, Plan};
use crate::metrics::Metrics;
use crate::net::listen::{Listener, Listening};
use crate::net::{DriverKind, probe};
use crate::queue::{Handoff, Returns};
use crate::reload::Reloader;
use crate::shard::placing::Places;
use crate::shard::rejects::Rejects;
use crate::shard::{self, Orders, Phase, Seat, Shared};
use crate::spool;
use crate::spool::keeper::{self, Keeper};
use crate::stream::Registry;
use crate::supervisor;

/// Questions to delivery that may wait for their turn: scrapes, a drain.
const COMMANDS_WAITING: usize = 64;
/// How often streams that were idle for an hour are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// A file of the spool is left for a new one when it has grown to this.
const SEGMENT_BYTES: u64 = 64 << 20;
/// How often it is looked at what the shards received: what they receive within it counts as a second's.
const WEIGH_INTERVAL: Duration = Duration::from_secs(1);
/// How often the file that stands for maintenance is looked for.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long shards may take to accept no more.
const STOPPING_MAX: Duration = Duration::from_secs(5);

/// Runs a relay until it was told to stop and has drained. `sources` are those of the configuration, for when it is read
/// again.
///
/// # Errors
/// Where it cannot start: an address is taken, or a destination is not usable.
pub async fn run(config: Config, sources: Sources, plan: Plan, log: Log) -> anyhow::Result<Drained> {
    if let Some(sentence) = config.without_effect() {
        warn!("{sentence}");
    }
    let (driver, refused) = probe::choose(config.io)?;
    if let Some(refused) = refused {
        warn!("{refused}. Sockets are read with epoll instead, at a higher cost in CPU");
    }
    let mut sockets = Inheritance::claim(&config)?;
    let listening = sockets.listen(&config, plan.shards)?;
    let door = sockets.admin(&config).await?;
    let admin_address = door.address()?;

    let labels: Vec<String> = listening.addresses.iter().map(ToString::to_string).collect();
    let metrics = Metrics::new(Instant::now(), plan.shards, labels.clone(), config.max_stream_labels);
    let destination = Arc::new(open_destination(&config, &metrics).await?);
    let config = Arc::new(config);
    let shared = share(Arc::clone(&config), &plan, metrics, &destination)?;
    let (delivery, commands) = mpsc::channel(COMMANDS_WAITING);
    let spool = open_spool(&shared, driver, &plan)?;
    let mut deliverer = Delivery::new(parts(&shared, &destination), spool);
    if let Some(dead) = open_dead_letters(&shared)? {
        deliverer = deliverer.with_dead_letters(dead);
    }
    tokio::spawn(deliverer.run(commands));
    let lifecycle = Arc::new(Lifecycle::default());
    let reloader = Arc::new(Reloader::new(sources, log, &shared, &destination, &delivery, &lifecycle));
    let admin = Arc::new(Admin::new(admin::Parts {
        shared: Arc::clone(&shared),
        destination,
        delivery: delivery.clone(),
        lifecycle: Arc::clone(&lifecycle),
        reloader: Arc::clone(&reloader),
        plan: plan.clone(),
        driver: driver.label(),
    }));
    let copy = door.copy()?;
    let mut served = tokio::spawn(door.serve(admin::router(admin)));

    let mut signals = Signals::catch()?;
    let Listening { by_shard, addresses, copies } = listening;
    let threads = start_shards(by_shard, driver, &plan, &shared)?;
    shared.orders.all_serving(plan.shards).await;
    lifecycle.ready();
    sockets.served(&addresses);
    let offer = inheritance::offer(&config, admin_address, Sockets::new(&addresses, copies, copy));
    supervisor::ready();
    info!(
        "ready listen={} admin={admin_address} destination={} io={} shards={} linger={:?} memory={}MiB; \
         to look at it: http://{}/",
        labels.join(","),
        config.destination,
        driver.label(),
        plan.shards,
        config.linger,
        plan.total >> 20,
        health::reachable(admin_address),
    );
    let mut housekeeping = keep_house(&shared, &delivery, &lifecycle);
    if let Some(hang_up) = signals.hang_up.take_if(|_| reloader.has_file()) {
        housekeeping.push(tokio::spawn(reloader.at_each(hang_up)));
    }

    let mut end = TheEnd { signals, offer, taken: None, are_kept: sockets.are_kept };
    end.wait(&shared, &lifecycle).await;
    shared.orders.keep(addresses.iter().map(|address| end.is_kept(address)).collect());
    let files: Vec<_> = addresses.iter().filter(|address| end.owns_file(address)).collect();
    if end.taken.as_ref().is_some_and(|taken| taken.admin) {
        served.abort();
        let _ = (&mut served).await;
    }
    let drained = end.drain(&shared, &delivery).await;
    housekeeping.iter().for_each(JoinHandle::abort);
    served.abort();
    for thread in threads {
        if thread.join().is_err() {
            error!("a shard ended in a panic");
        }
    }
    remove_sockets(&files);
    Ok(drained)
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
                defaults: config.delivery_stream_defaults.clone(),
                delivery_streams: config.delivery_streams.clone(),
                session_name: session_name(),
                call_timeout: config.call_timeout,
                connect_timeout: config.connect_timeout,
                groups_hashes: config.body_hash == BodyHash::Grouped,
            })
            .await?,
        ),
    })
}

/// Starts the spool's thread where there is a spool. A disk that does not work is no reason not to start.
fn open_spool(shared: &Shared, driver: DriverKind, plan: &Plan) -> io::Result<Option<Keeper>> {
    let (config, metrics) = (shared.config.load(), &shared.metrics);
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
            batches_max: usize::try_from(plan.events / 4 / spool::BATCH_MEMORY_BYTES).unwrap_or(usize::MAX),
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
    let config = shared.config.load();
    let Some(root) = config.dead_letter.clone() else { return Ok(None) };
    let bytes = Arc::clone(&shared.metrics.dead_letter_bytes);
    let bytes_max = Arc::new(AtomicU64::new(config.dead_letter_limit));
    DeadLetters::start(dead_letter::Settings { root, bytes_max, instance: instance(), bytes }).map(Some)
}

/// A name for this process that no other of any host is likely to have: it stands in file names.
fn instance() -> String {
    format!("{:08x}", fastrand::u32(..))
}

/// How the account whose role is assumed sees this relay: STS takes 64 characters, fewer than a host's name may have.
fn session_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let legal = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    "standpipe-".chars().chain(legal).take(64).collect()
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
        rejects: (0..plan.shards).map(|_| Rejects::new(config.rejected_samples)).collect(),
        orders: Orders::default(),
        tails: Arc::default(),
        places: Places::new(plan.shards),
        connections_max: plan.connections_max,
        connections: AtomicUsize::new(0),
        config: ArcSwap::new(config),
        metrics,
        memory,
        returns,
    }))
}

/// What delivery is made of, beside the shards.
#[doc(hidden)]
pub fn parts(shared: &Shared, destination: &Arc<Destination>) -> Parts {
    Parts {
        config: shared.config.load_full(),
        destination: Arc::clone(destination),
        memory: Arc::clone(&shared.memory),
        metrics: Arc::clone(&shared.metrics),
        handoff: Arc::clone(&shared.handoff),
        returns: Arc::clone(&shared.returns),
        registry: Arc::clone(&shared.registry),
        tails: Arc::clone(&shared.tails),
    }
}

/// Starts one thread a shard. A shard that fails takes the process with it: half a relay would lose events.
fn start_shards(
    listeners: Vec<Vec<Listener>>,
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

/// Starts what is done again and again.
fn keep_house(
    shared: &Arc<Shared>,
    delivery: &mpsc::Sender<Command>,
    lifecycle: &Arc<Lifecycle>,
) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(sweep_idle(Arc::clone(shared), delivery.clone())),
        tokio::spawn(weigh_shards(Arc::clone(shared))),
        tokio::spawn(supervisor::watch(Arc::clone(shared), delivery.clone())),
        tokio::spawn(look_for_maintenance(Arc::clone(shared), Arc::clone(lifecycle))),
    ]
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

/// Has it known what every shard receives, so that connections come to those that receive less.
async fn weigh_shards(shared: Arc<Shared>) {
    let mut before = vec![0; shared.returns.len()];
    let mut interval = tokio::time::interval(WEIGH_INTERVAL);
    loop {
        interval.tick().await;
        let received = shared.metrics.shards.iter().zip(&mut before).map(|(shard, before)| {
            let now = shard.received_bytes.get();
            now - std::mem::replace(before, now)
        });
        shared.places.weigh(received);
    }
}

/// The signals that ask for the end. They are caught before anybody can know that the relay is ready, or one that
/// comes at once would end it without a drain.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None where it has the configuration read again.
    hang_up: Option<Signal>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: Some(signal(SignalKind::hangup())?),
        })
    }
}

/// Who may bring the end about, and how.
struct TheEnd {
    signals: Signals,
    offer: Option<Offer>,
    /// Somebody else serves our sockets.
    taken: Option<TakenOver>,
    /// Systemd keeps them.
    are_kept: bool,
}

impl TheEnd {
    /// Waits to be told. SIGTERM and SIGINT tell, as do `POST /drain` and a relay that takes over, and SIGHUP (a terminal
    /// that was closed) where there is no file that could be read again. Then `pre_drain_delay` passes, unless there is
    /// a second signal, or another relay that serves.
    async fn wait(&mut self, shared: &Shared, lifecycle: &Lifecycle) {
        let Signals { terminate, interrupt, hang_up } = &mut self.signals;
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM: draining"),
            _ = interrupt.recv() => info!("SIGINT: draining"),
            () = hung_up(hang_up) => info!("SIGHUP, and there is no configuration file to read again: draining"),
            () = lifecycle.drain_asked() => info!("asked to drain"),
            taken = taken_over(&mut self.offer) => self.taken = Some(taken),
        }
        lifecycle.draining();
        let config = shared.config.load_full();
        let delay = config.pre_drain_delay;
        if self.taken.is_none() {
            supervisor::stopping(delay + config.drain_deadline);
        }
        if !delay.is_zero() && self.taken.is_none() {
            tokio::select! {
                () = tokio::time::sleep(delay) => (),
                () = either(terminate, interrupt) => info!("a signal again: pre_drain_delay is cut short"),
                taken = taken_over(&mut self.offer) => self.taken = Some(taken),
            }
        }
        if self.taken.is_some() {
            info!("another relay has taken over: draining");
        }
    }

    /// Whether another process goes on listening on this address.
    fn is_kept(&self, address: &ListenAddress) -> bool {
        self.are_kept || self.taken.as_ref().is_some_and(|taken| taken.has(address))
    }

    /// Whether nobody needs a socket's file any more: who has got our sockets may come to serve them still.
    fn owns_file(&self, address: &ListenAddress) -> bool {
        !self.is_kept(address) && !self.offer.as_ref().is_some_and(Offer::is_given)
    }

    /// Accepts no more, says so to whoever took over, and drains. A signal hurries that.
    async fn drain(mut self, shared: &Arc<Shared>, delivery: &mpsc::Sender<Command>) -> Drained {
        // With the copies that it offers open, the sockets would go on listening.
        drop(self.offer.take());
        shared.orders.advance(Phase::Drain, &shared.returns);
        // A shard that does not answer is found out by the drain.
        let _ = timeout(STOPPING_MAX, shared.orders.all_stopped(shared.returns.len())).await;
        drop(self.taken.take());
        drain::drain(shared, delivery, either(&mut self.signals.terminate, &mut self.signals.interrupt)).await
    }
}

async fn taken_over(offer: &mut Option<Offer>) -> TakenOver {
    match offer {
        Some(offer) => offer.taken().await,
        None => std::future::pending().await,
    }
}

async fn hung_up(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Keeps the relay in maintenance as long as the file for that is there.
async fn look_for_maintenance(shared: Arc<Shared>, lifecycle: Arc<Lifecycle>) {
    let mut interval = tokio::time::interval(MAINTENANCE_INTERVAL);
    loop {
        interval.tick().await;
        let config = shared.config.load_full();
        let is_there = config.maintenance_file.as_ref().is_some_and(|file| file.exists());
        if lifecycle.set_maintenance_file(is_there) != is_there {
            let file = config
                .maintenance_file
                .as_ref()
                .map_or("maintenance_file".into(), |file| file.to_string_lossy());
            info!("{file} is {}", if is_there { "there: maintenance" } else { "gone" });
        }
    }
}

/// Resolves at the next of either signal.
async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => (),
        _ = other.recv() => (),
    }
}

fn remove_sockets(addresses: &[&ListenAddress]) {
    for address in addresses {
        if let ListenAddress::Unix(path) = address {
            let _ = std::fs::remove_file(path);
        }
    }
}
