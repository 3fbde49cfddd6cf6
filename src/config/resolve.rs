//! From raw values to the configuration: every value is checked, the later source wins, streams take the
//! relay's values where they have none of their own, and what no setting can see alone is checked at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::delivery_stream::DeliveryStreamOptions;
use super::errors::{Errors, Place};
use super::named::Named;
use super::raw::{Given, Layer, Target};
use super::reach;
use super::stream::StreamOptions;
use super::units::format_duration;
use super::{
    BodyHash, Config, DeliveryStreamSettings, DeliveryStreams, DestinationChoice, IoChoice, ListenAddress,
    OnFull, Packing, PackingMode, SpoolMode, SyncAt,
};

/// Applies the layers in ascending precedence, the defaults first.
pub(super) fn resolve(layers: Vec<Layer>, errors: Errors) -> Result<Config, Errors> {
    let mut draft = Draft {
        config: blank(),
        streams: BTreeMap::new(),
        delivery_streams: BTreeMap::new(),
        tables: BTreeMap::new(),
        places: BTreeMap::new(),
        wrong: BTreeSet::new(),
        errors,
    };
    for layer in layers {
        draft.apply(layer);
    }
    draft.resolve_streams();
    draft.resolve_delivery_streams();
    draft.check();
    draft.errors.into_result(draft.config)
}

/// A configuration in the making.
struct Draft {
    config: Config,
    streams: BTreeMap<String, StreamOptions>,
    delivery_streams: BTreeMap<String, DeliveryStreamOptions>,
    /// Where the table of each delivery stream begins.
    tables: BTreeMap<String, Place>,
    /// Where each of the relay's settings got its value.
    places: BTreeMap<&'static str, Place>,
    /// The settings that had an error, of which nothing more is said.
    wrong: BTreeSet<&'static str>,
    errors: Errors,
}

impl Draft {
    fn apply(&mut self, layer: Layer) {
        for (named, name, place) in layer.tables {
            match named {
                Named::Stream => _ = self.stream(name),
                Named::DeliveryStream => {
                    self.tables.insert(name.clone(), place);
                    self.delivery_streams.entry(name).or_default();
                }
            }
        }
        for given in layer.given {
            self.apply_one(given);
        }
    }

    fn stream(&mut self, name: String) -> &mut StreamOptions {
        let options = StreamOptions { name: name.clone(), ..StreamOptions::default() };
        self.streams.entry(name).or_insert(options)
    }

    fn apply_one(&mut self, given: Given) {
        let result = match given.target {
            Target::Relay(setting) => {
                let result = setting.kind.apply(&mut self.config, &given.raw);
                if result.is_err() {
                    self.wrong.insert(setting.key);
                }
                self.places.insert(setting.key, given.place.clone());
                result
            }
            Target::Stream(stream, setting) => setting.kind.apply(self.stream(stream), &given.raw),
            Target::DeliveryStream(name, setting) => {
                setting.kind.apply(self.delivery_streams.entry(name).or_default(), &given.raw)
            }
        };
        if let Err(message) = result {
            self.errors.push(given.place, message);
        }
    }

    fn resolve_streams(&mut self) {
        for (name, options) in std::mem::take(&mut self.streams) {
            let stream = options.resolve(&self.config);
            self.config.streams.insert(name, stream);
        }
    }

    fn resolve_delivery_streams(&mut self) {
        for (name, options) in std::mem::take(&mut self.delivery_streams) {
            let settings = options.resolve(&self.config.delivery_stream_defaults);
            self.config.delivery_streams.insert(name, settings);
        }
    }

    /// Checks what concerns two settings at once.
    fn check(&mut self) {
        let config = &mut self.config;
        config.max_lane_calls = config.max_lane_calls.min(config.max_calls);
        config.connect_timeout = config.connect_timeout.min(config.call_timeout);
        self.check_retries();
        self.check_addresses();
        self.check_sync();
        self.check_streams();
        self.check_delivery_streams();
    }

    fn check_retries(&mut self) {
        let (base, max) = (self.config.retry_base, self.config.retry_max);
        if base > max {
            let (base, max) = (format_duration(base), format_duration(max));
            self.refuse(
                ["retry_base", "retry_max"],
                format!("retry_base ({base}) is above retry_max ({max})"),
            );
        }
    }

    fn check_addresses(&mut self) {
        let admin = self.config.admin;
        let is_admin =
            |address: &ListenAddress| matches!(address, ListenAddress::Tcp(tcp) if clash(*tcp, admin));
        if self.config.listen.iter().any(is_admin) {
            let message =
                format!("listen and admin both want port {}; give one of them another", admin.port());
            self.refuse(["listen", "admin"], message);
        }
    }

    fn check_sync(&mut self) {
        if self.config.sync_at == SyncAt::Stored && !has_spool(&self.config) {
            let message =
                "there is no spool where anything could be stored; configure one, or write \"delivered\"";
            self.refuse(["sync_at"], message);
        }
    }

    fn check_streams(&mut self) {
        let (configured, most) = (self.config.streams.len(), self.config.max_streams);
        if configured > most {
            let message = format!("{configured} streams are configured, but max_streams is {most}; raise it");
            self.refuse(["max_streams"], message);
        }
        if self.config.only_configured_streams && configured == 0 {
            let message =
                "no stream is configured, so that every event would be refused; add [streams.NAME] tables";
            self.refuse(["only_configured_streams"], message);
        }
    }

    /// A table for nothing is refused and not only warned of: its name is most likely misspelt, and what it says of
    /// the region, the role and the rate would be missed silently, by events that are delivered all the same.
    fn check_delivery_streams(&mut self) {
        let tables = || self.config.delivery_streams.iter();
        let has_role = |settings: &DeliveryStreamSettings| settings.role_arn.is_some();
        let mut wrong = Vec::new();
        for (name, settings) in tables() {
            if settings.external_id.is_some() && !has_role(settings) {
                wrong.push((name, "external_id is for a role that is assumed; give a role_arn too"));
            }
        }
        if self.config.destination == DestinationChoice::Firehose {
            let message = "no stream can be mapped to it; see the spelling, delivery_stream and the streams' \
                           delivery_streams";
            wrong.extend(reach::out_of_reach(&self.config).into_iter().map(|name| (name, message)));
        }
        for (name, message) in wrong {
            self.errors.push(self.tables[name].clone(), message);
        }
        let defaults = &self.config.delivery_stream_defaults;
        if defaults.external_id.is_some() && !has_role(defaults) && !tables().any(|(_, one)| has_role(one)) {
            self.refuse(
                ["external_id", "role_arn"],
                "external_id is for a role that is assumed; give a role_arn too",
            );
        }
    }

    /// An error of several settings, said at the place that has the last word, unless one is wrong in itself.
    fn refuse<const N: usize>(&mut self, keys: [&'static str; N], message: impl Into<String>) {
        if keys.iter().any(|key| self.wrong.contains(key)) {
            return;
        }
        let places = keys.iter().filter_map(|key| self.places.get(key));
        if let Some(place) = places.max_by_key(|place| place.rank()) {
            self.errors.push(place.clone(), message);
        }
    }
}

/// Whether batches are written to disk before they are delivered.
fn has_spool(config: &Config) -> bool {
    config.spool.is_some()
}

/// Whether both can not be bound: the same port of the same address, where a wildcard is every address of its
/// family. Port 0 never clashes.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let is_same_family = a.is_ipv4() == b.is_ipv4();
    let is_same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && is_same_family && is_same_ip
}

/// What the fields hold before the defaults of the table are applied, which set every one of them.
fn blank() -> Config {
    Config {
        listen: Vec::new(),
        sync_at: SyncAt::Delivered,
        admin: SocketAddr::from(([0, 0, 0, 0], 0)),
        destination: DestinationChoice::Null,
        delivery_stream_defaults: DeliveryStreamSettings::default(),
        delivery_stream: String::new(),
        shards: None,
        io: IoChoice::Auto,
        linger: Duration::ZERO,
        memory: None,
        on_full: OnFull::Wait,
        spool: None,
        spool_mode: SpoolMode::Overflow,
        spool_limit: 0,
        spool_free_floor: 0,
        spool_keep_sent: Duration::ZERO,
        dead_letter: None,
        dead_letter_limit: 0,
        max_age: None,
        packing: Packing { mode: PackingMode::Full, record_events_max: 0, record_bytes_max: 0 },
        frame_bytes_max: 0,
        max_connections: 0,
        max_streams: 0,
        max_stream_labels: 0,
        only_configured_streams: false,
        max_calls: 0,
        body_hash: BodyHash::Grouped,
        max_lane_calls: 0,
        call_timeout: Duration::ZERO,
        connect_timeout: Duration::ZERO,
        retry_base: Duration::ZERO,
        retry_max: Duration::ZERO,
        park_probe: Duration::ZERO,
        tcp_keepalive: Duration::ZERO,
        max_connection_age: None,
        maintenance_file: None,
        pre_drain_delay: Duration::ZERO,
        drain_deadline: Duration::ZERO,
        drain_close_rate: 0,
        rejected_samples: 16,
        takeover: false,
        handover: String::new(),
        log: String::new(),
        streams: BTreeMap::new(),
        delivery_streams: DeliveryStreams::default(),
    }
}
