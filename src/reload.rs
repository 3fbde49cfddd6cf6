//! Reading the configuration again while the relay runs: SIGHUP and `POST /reload` do the same. Everything is read as at
//! the start, the file, the environment that the process got and its flags, with the same precedence. Where anything is
//! wrong nothing changes, and the answer and the log have every error. Else all that may change while the relay runs
//! changes, and what may not stays as it is and is named.
//!
//! Which settings these are is a matter of the rows in the table of [`crate::config`]. Reloadable is what is looked up
//! when it is needed, or can be made anew without anybody noticing: everything about streams, the bounds of lanes and of
//! files, how connections end, regions and roles, the log. Sockets, threads, memory with all that is planned from it, and
//! the destination itself are made once; a new process that takes over (`--takeover`) has them otherwise.
//!
//! Nothing is lost or repeated by it: streams stay the same with their queues and accounts, and only learn their new
//! settings; shards turn away streams that are no longer taken, after sealing what they hold of them; delivery has
//! streams wait for other lanes. Between the first and the last of them a moment passes, in which some go by the old
//! settings and some by the new. Reloads come one after the other.
//!
//! Where there is no file there is nothing to read again, and SIGHUP means what it meant before there were daemons: the
//! terminal is gone. Then the relay drains.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::config::{Changes, Config, Errors, Sources};
use crate::delivery::Command;
use crate::destination::Destination;
use crate::destination::firehose::FirehoseError;
use crate::lifecycle::{Lifecycle, Stage};
use crate::log::Log;
use crate::memory::{Machine, Plan, PlanError};
use crate::shard::Shared;
use crate::supervisor;

/// How long shards may take to go by other settings: they do it in the turn of their loop that comes next.
const ADOPTING_MAX: Duration = Duration::from_secs(5);

/// What reads the configuration again, and whom it tells.
#[derive(Debug)]
pub struct Reloader {
    sources: Sources,
    log: Log,
    shared: Arc<Shared>,
    destination: Arc<Destination>,
    delivery: mpsc::Sender<Command>,
    lifecycle: Arc<Lifecycle>,
    turn: Mutex<()>,
}

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Something in the sources is wrong: a line each.
    #[error("{0}")]
    Configuration(Errors),
    /// The settings ask for more memory than they allow, so that no relay would start with them.
    #[error("{0}")]
    Memory(PlanError),
    /// Calls cannot be made as the settings have it.
    #[error("{0}")]
    Destination(FirehoseError),
    /// The process is about to end.
    #[error("the relay drains, and changes nothing any more")]
    Draining,
}

impl Reloader {
    /// Reads these sources when it is asked to.
    pub fn new(
        sources: Sources,
        log: Log,
        shared: &Arc<Shared>,
        destination: &Arc<Destination>,
        delivery: &mpsc::Sender<Command>,
        lifecycle: &Arc<Lifecycle>,
    ) -> Self {
        Self {
            sources,
            log,
            shared: Arc::clone(shared),
            destination: Arc::clone(destination),
            delivery: delivery.clone(),
            lifecycle: Arc::clone(lifecycle),
            turn: Mutex::default(),
        }
    }

    /// Whether there is a file that can be read again.
    pub fn has_file(&self) -> bool {
        self.sources.file().is_some()
    }

    /// Reloads at each of these signals, for ever.
    pub async fn at_each(self: Arc<Self>, mut signal: Signal) {
        while signal.recv().await.is_some() {
            // The log says what became of it.
            let _ = self.reload().await;
        }
    }

    /// Reads the configuration and takes it over. Says what is different now.
    ///
    /// # Errors
    /// Why nothing is.
    pub async fn reload(&self) -> Result<Changes, Refused> {
        let _turn = self.turn.lock().await;
        if self.lifecycle.stage() == Stage::Draining {
            return Err(Refused::Draining);
        }
        supervisor::reloading();
        let reloaded = self.read_and_take_over().await;
        supervisor::ready();
        self.shared.metrics.reloads.count(reloaded.is_ok());
        match &reloaded {
            Ok(changes) => changes.to_string().lines().for_each(|line| info!("reloaded: {line}")),
            Err(refused) => {
                refused
                    .to_string()
                    .lines()
                    .for_each(|line| error!("reload refused, nothing changes: {line}"));
            }
        }
        reloaded
    }

    async fn read_and_take_over(&self) -> Result<Changes, Refused> {
        let sources = self.sources.clone();
        let read = tokio::task::spawn_blocking(move || Config::load(sources)).await;
        let new = read.expect("reading ends, and panics take the process").map_err(Refused::Configuration)?;
        // The plan that runs stays; but a file that no relay would start with is wrong.
        Plan::new(&new, Machine::detect()).map_err(Refused::Memory)?;
        let old = self.shared.config.load_full();
        let (config, changes) = old.reloaded(new);
        self.destination.reload(&config).await.map_err(Refused::Destination)?;
        if config.log != old.log {
            self.log.set(&config.log);
        }
        self.take_over(Arc::new(config)).await;
        Ok(changes)
    }

    /// Has everybody go by these settings, in the order in which an event passes.
    async fn take_over(&self, config: Arc<Config>) {
        let Shared { config: current, registry, rejects, orders, returns, .. } = &*self.shared;
        current.store(Arc::clone(&config));
        registry.reload(Arc::clone(&config));
        rejects.iter().for_each(|rejects| rejects.keep_at_most(config.rejected_samples));
        if timeout(ADOPTING_MAX, orders.reload(returns)).await.is_err() {
            warn!("a shard has not answered for {ADOPTING_MAX:?}: it goes by the old settings until it does");
        }
        let (done, is_done) = oneshot::channel();
        if self.delivery.send(Command::Reload(config, done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}
