//! Streams: what all shards and delivery share of one, and the registry that knows them by name. The bytes a
//! shard gathers for a stream are not here but in `buffer`.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::{self, Config, DestinationChoice, OnFull, Packing};
use crate::frame::{self, Reject};
use crate::linger;
use crate::memory::Account;
use crate::metrics::{Ages, Cell, Label, Metrics};

/// What is shared of one stream.
#[derive(Debug)]
pub struct Stream {
    /// Never used twice in one process, even for the same name.
    pub id: u64,
    /// The name in the frame.
    pub name: Arc<str>,
    /// Where its instants lie within `linger`; the same on every shard.
    pub phase: usize,
    /// The counters that it counts in.
    pub label: Arc<Label>,
    /// What is configured for it now: read where a batch, a call or a cap is reached, never for each event.
    pub settings: ArcSwap<Settings>,
    /// The memory that it holds.
    pub account: Arc<Account>,
    /// Set by delivery while every one of its lanes is parked by a permanent refusal.
    pub parked: AtomicBool,
    /// One a shard, which writes it: when the first event of its open buffer was received, in nanoseconds since
    /// the epoch of [`Metrics`]; 0 where it has none. A label's cells could not say: many streams may share one.
    pub open_since: Box<[Cell]>,
}

/// What is configured for one stream, by its own table or by what holds for all. A reload may change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How its events are packed into records.
    pub packing: Packing,
    /// What happens at its memory cap.
    pub on_full: OnFull,
    /// The age beyond which its events are no longer delivered.
    pub max_age: Option<Duration>,
    /// The delivery streams that it is delivered to, at least one.
    pub delivery_streams: Box<[Arc<str>]>,
}

/// Every stream that is known, by name.
#[derive(Debug)]
pub struct Registry {
    metrics: Arc<Metrics>,
    next_id: AtomicU64,
    known: Mutex<Known>,
}

/// What a reload changes as one.
#[derive(Debug)]
struct Known {
    config: Arc<Config>,
    streams: HashMap<Box<[u8]>, Arc<Stream>, foldhash::fast::RandomState>,
}

impl Registry {
    /// A registry that knows no stream yet. The configured streams get their labels first.
    pub fn new(config: Arc<Config>, metrics: Arc<Metrics>) -> Self {
        for name in config.streams.keys() {
            metrics.label(name);
        }
        let known = Known { config, streams: HashMap::default() };
        Self { metrics, next_id: AtomicU64::new(0), known: Mutex::new(known) }
    }

    /// The stream of a name that a shard sees for the first time, or that it has forgotten.
    ///
    /// # Errors
    /// Where the name is not allowed, or too long for the template of delivery streams; where it is not
    /// configured although it must be; or where it is one too many.
    pub fn resolve(&self, name: &[u8]) -> Result<Arc<Stream>, Reject> {
        let mut known = self.known();
        if !frame::is_stream_name(name) {
            return Err(Reject::BadName);
        }
        let text = std::str::from_utf8(name).expect("a stream name is ASCII");
        let settings = Settings::admit(&known.config, text)?;
        if let Some(stream) = known.streams.get(name) {
            return Ok(Arc::clone(stream));
        }
        if known.streams.len() >= known.config.max_streams {
            return Err(Reject::TooManyStreams);
        }
        let stream = Arc::new(self.create(text, settings));
        known.streams.insert(name.into(), Arc::clone(&stream));
        Ok(stream)
    }

    /// The stream of a name that is on disk: whether it is configured, or one too many, was decided when it came
    /// in. A name that the template of delivery streams cannot take stands for itself.
    pub fn resolve_spooled(&self, name: &str) -> Arc<Stream> {
        let mut known = self.known();
        if let Some(stream) = known.streams.get(name.as_bytes()) {
            return Arc::clone(stream);
        }
        let targets = delivery_streams(&known.config, name).unwrap_or_else(|_| Box::new([name.into()]));
        let stream = Arc::new(self.create(name, Settings::new(&known.config, name, targets)));
        known.streams.insert(name.as_bytes().into(), Arc::clone(&stream));
        stream
    }

    /// Has all streams follow another configuration, those that are known and those that come. One that is admitted no
    /// longer, since it has no table or its name does not fit into the template, keeps its delivery streams for what is
    /// held of it.
    pub fn reload(&self, config: Arc<Config>) {
        for name in config.streams.keys() {
            self.metrics.label(name);
        }
        let mut known = self.known();
        for stream in known.streams.values() {
            let current = stream.settings.load();
            let targets = delivery_streams(&config, &stream.name);
            let targets = targets.unwrap_or_else(|_| current.delivery_streams.clone());
            let settings = Settings::new(&config, &stream.name, targets);
            if **current != settings {
                stream.settings.store(Arc::new(settings));
            }
        }
        known.config = config;
    }

    /// Whether a stream of this name has come.
    ///
    /// # Errors
    /// Where its frames are not taken.
    pub fn knows(&self, name: &str) -> Result<bool, Reject> {
        let known = self.known();
        Settings::admit(&known.config, name)?;
        Ok(known.streams.contains_key(name.as_bytes()))
    }

    /// Of each of these names, whether its frames are not taken any more.
    pub fn refuses<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<bool> {
        let config = Arc::clone(&self.known().config);
        names.map(|name| Settings::admit(&config, name).is_err()).collect()
    }

    /// Forgets the streams that nobody but the registry holds any more: idle, empty, swept by every shard.
    pub fn sweep(&self) {
        self.known().streams.retain(|_, stream| Arc::strong_count(stream) > 1);
    }

    /// The streams known now.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.known().streams.values().cloned().collect()
    }

    /// Notes how old the oldest event in an open buffer of each stream is.
    pub fn note_ages(&self, ages: &mut Ages, now: Instant) {
        for stream in self.known().streams.values() {
            let since = stream.open_since.iter().map(Cell::get).filter(|since| *since > 0).min();
            if let Some(since) = since.map(|nanos| self.metrics.epoch + Duration::from_nanos(nanos)) {
                ages.note(stream.label.name(), now.saturating_duration_since(since));
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, name: &str, settings: Settings) -> Stream {
        Stream {
            id: self.next_id.fetch_add(1, Relaxed),
            name: name.into(),
            phase: phase(name),
            label: self.metrics.label(name),
            settings: ArcSwap::from_pointee(settings),
            account: Arc::default(),
            parked: AtomicBool::new(false),
            open_since: self.metrics.shards.iter().map(|_| Cell::default()).collect(),
        }
    }
}

impl Settings {
    fn new(config: &Config, name: &str, delivery_streams: Box<[Arc<str>]>) -> Self {
        let configured = config.streams.get(name);
        Self {
            packing: configured.map_or(config.packing, |stream| stream.packing),
            on_full: configured.map_or(config.on_full, |stream| stream.on_full),
            max_age: configured.map_or(config.max_age, |stream| stream.max_age),
            delivery_streams,
        }
    }

    /// Those of a stream whose frames are taken.
    fn admit(config: &Config, name: &str) -> Result<Self, Reject> {
        if config.only_configured_streams && !config.streams.contains_key(name) {
            return Err(Reject::UnknownStream);
        }
        Ok(Self::new(config, name, delivery_streams(config, name)?))
    }
}

/// Where a stream is delivered to. Only Firehose has delivery streams; elsewhere a stream keeps its name.
fn delivery_streams(config: &Config, name: &str) -> Result<Box<[Arc<str>]>, Reject> {
    if config.destination != DestinationChoice::Firehose {
        return Ok(Box::new([name.into()]));
    }
    let mapped = config.streams.get(name).map_or(&[][..], |stream| &stream.delivery_streams);
    if !mapped.is_empty() {
        return Ok(mapped.iter().map(|name| name.as_str().into()).collect());
    }
    match config::name::fill_template(&config.delivery_stream, name) {
        Ok(filled) => Ok(Box::new([filled.into()])),
        Err(_) => Err(Reject::BadName),
    }
}

/// A stream's slot on the wheel of `linger`: from its name alone, so that it is the same on every shard.
fn phase(name: &str) -> usize {
    let hash = foldhash::fast::FixedState::with_seed(0).hash_one(name);
    usize::try_from(hash % linger::SLOTS as u64).expect("a remainder of 256 fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_under_a_shared_label_is_of_what_is_open_still() {
        let config = Arc::new(Config::default());
        let metrics = Metrics::new(Instant::now(), 2, Vec::new(), 1);
        let registry = Registry::new(config, Arc::clone(&metrics));
        let stream = |name: &str| registry.resolve(name.as_bytes()).unwrap();
        let (own, first, second) = (stream("own"), stream("first"), stream("second"));
        assert_eq!((first.label.name(), second.label.name()), (crate::metrics::OTHER, crate::metrics::OTHER));
        let at = |seconds: u64| metrics.epoch + Duration::from_secs(seconds);
        let ages = |now: u64| {
            let mut ages = Ages::default();
            registry.note_ages(&mut ages, at(now));
            [own.label.name(), first.label.name()].map(|label| ages.of(label).as_secs())
        };
        first.open_since[0].set(1_000_000_000);
        second.open_since[1].set(3_000_000_000);
        assert_eq!(ages(10), [0, 9]);
        // The first is sealed while the second is open: under one cell for both, the age would go on from 1.
        first.open_since[0].set(0);
        assert_eq!(ages(11), [0, 8]);
        second.open_since[1].set(0);
        own.open_since[1].set(4_000_000_000);
        assert_eq!(ages(12), [8, 0]);
    }
}
