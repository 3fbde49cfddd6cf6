//! The configuration: what an operator decides, read at start and again where a reload is asked for.
//!
//! Every setting stands in one row of `table` (and `stream`, for one stream): key, kind, limits, default and
//! documentation. From the rows come the keys of the TOML file, the `STANDPIPE_*` variables, the flags,
//! `--help` and the text of `standpipe config`. Reading has two steps: each source gives raw values with the
//! place where each was written (`file`, `words`), and `resolve` applies them in order (defaults, file,
//! environment, flags), so that the later source wins and yet every value is checked.
//!
//! Invariants: a [`Config`] that [`Config::load`] returns is within all documented limits; unknown keys are
//! refused; all errors are reported at once. What depends on the machine (`shards`, `memory`) stays `None`
//! here where it is to be found out, so that the same sources give the same `Config` on every host.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod choices;
mod delivery_stream;
mod document;
mod errors;
mod file;
pub mod name;
mod named;
mod raw;
mod reach;
mod reload;
mod resolve;
mod setters;
mod setting;
mod stream;
mod table;
pub mod units;
mod words;

pub use self::choices::{
    BodyHash, DestinationChoice, IoChoice, ListenAddress, OnFull, Packing, PackingMode, SpoolMode, SyncAt,
};
pub use self::delivery_stream::{ByDeliveryStream, DeliveryStreamSettings, DeliveryStreams};
pub use self::errors::{Error, Errors};
pub use self::reload::Changes;
pub(crate) use self::setting::{Kind, Setting};
pub(crate) use self::table::SETTINGS;

/// Everything that an operator can decide, resolved and within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect; at least one address, none twice.
    pub listen: Vec<ListenAddress>,
    /// When a sync is answered; `Stored` only where there is a spool.
    pub sync_at: SyncAt,
    /// Where the admin HTTP server listens.
    pub admin: SocketAddr,
    /// Where calls go.
    pub destination: DestinationChoice,
    /// How calls are made to delivery streams without a table of their own.
    pub delivery_stream_defaults: DeliveryStreamSettings,
    /// The delivery stream of a stream without a mapping of its own; `{stream}`, at most once, stands for the
    /// stream's name. See [`name::fill_template`], which checks the result.
    pub delivery_stream: String,
    /// The number of shard threads, 1 to 256; `None`: one less than the CPUs that the process may use.
    pub shards: Option<usize>,
    /// Which driver reads the sockets.
    pub io: IoChoice,
    /// The longest that an event waits for others in an open buffer.
    pub linger: Duration,
    /// The limit of all memory, in bytes; `None`: a quarter of the smaller of RAM and cgroup limit.
    pub memory: Option<u64>,
    /// What happens to an event whose stream holds all that it may.
    pub on_full: OnFull,
    /// The directory below which every process has its spool; `None`: there is none.
    pub spool: Option<PathBuf>,
    /// What goes to the spool.
    pub spool_mode: SpoolMode,
    /// The most bytes that the spool's files may have.
    pub spool_limit: u64,
    /// Bytes that the spool leaves free on its file system.
    pub spool_free_floor: u64,
    /// How long a file of the spool is kept once everything in it is delivered.
    pub spool_keep_sent: Duration,
    /// The directory below which dead letters are kept; `None`: what can never be delivered is dropped.
    pub dead_letter: Option<PathBuf>,
    /// The most bytes that the files of dead letters may have.
    pub dead_letter_limit: u64,
    /// The age beyond which an event is no longer delivered, for streams without one of their own.
    pub max_age: Option<Duration>,
    /// How events are packed into records, for streams without packing of their own.
    pub packing: Packing,
    /// The longest payload of a frame, in bytes without its LF; 1 to 1,023,999.
    pub frame_bytes_max: usize,
    /// The most connections open at one time.
    pub max_connections: usize,
    /// The most stream names known at one time.
    pub max_streams: usize,
    /// The most streams with a metrics label of their own; the rest count in `_other`.
    pub max_stream_labels: usize,
    /// Whether a stream must have a `[streams.NAME]` table to be accepted.
    pub only_configured_streams: bool,
    /// The most calls in flight in all.
    pub max_calls: usize,
    /// How bodies are hashed for the signature; only `firehose` needs it.
    pub body_hash: BodyHash,
    /// The most calls in flight a lane; never more than `max_calls`.
    pub max_lane_calls: usize,
    /// The longest that one call may take, from its connection to the end of its answer.
    pub call_timeout: Duration,
    /// The longest that connecting may take, within `call_timeout`.
    pub connect_timeout: Duration,
    /// The upper bound of the first wait before a retry; each further one doubles it.
    pub retry_base: Duration,
    /// The upper bound of every wait before a retry; never less than `retry_base`.
    pub retry_max: Duration,
    /// How often a parked lane tries one call.
    pub park_probe: Duration,
    /// How long a connection may be silent before its peer is asked whether it still lives; zero: as the system has it.
    pub tcp_keepalive: Duration,
    /// How old a connection may become; `None`: as old as it likes.
    pub max_connection_age: Option<Duration>,
    /// While this file is there, the relay is in maintenance.
    pub maintenance_file: Option<PathBuf>,
    /// How long the relay still accepts connections after SIGTERM.
    pub pre_drain_delay: Duration,
    /// The longest that draining may take after that.
    pub drain_deadline: Duration,
    /// Connections that are told to leave within a second of a drain, at most.
    pub drain_close_rate: usize,
    /// The rejected frames kept of each reason, for `/status`; 0: none.
    pub rejected_samples: usize,
    /// Whether the relay takes over from one that runs.
    pub takeover: bool,
    /// The name under which relays find each other to hand over: "auto" is the admin address; empty: not at all.
    pub handover: String,
    /// Which log lines are written, as a tracing filter such as `info,standpipe::shard=debug`.
    pub log: String,
    /// The configured streams by name (`[streams.NAME]` in the file).
    pub streams: BTreeMap<String, StreamConfig>,
    /// The configured delivery streams (`[delivery_streams.NAME]` in the file), with the relay's own values where
    /// one has none. See [`Self::delivery_stream_settings`].
    pub delivery_streams: DeliveryStreams,
}

/// What is configured for one stream, with the relay's own values where the stream has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// The delivery streams that the stream is spread over, none twice; empty: the one of the template.
    /// Only for `firehose`.
    pub delivery_streams: Vec<String>,
    /// How the stream's events are packed into records.
    pub packing: Packing,
    /// What happens to an event when the stream holds all that it may.
    pub on_full: OnFull,
    /// The age beyond which an event of it is no longer delivered.
    pub max_age: Option<Duration>,
}

/// What the configuration is made from, in ascending precedence; beneath it all lie the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The TOML file. Where there is none, the variable `STANDPIPE_CONFIG` may name it.
    pub file: Option<PathBuf>,
    /// The environment; only names that begin with `STANDPIPE_` are looked at.
    pub environment: Vec<(OsString, OsString)>,
    /// The settings given as flags, as (key, value); a list has one entry an element.
    pub flags: Vec<(String, OsString)>,
}

impl Config {
    /// Reads all sources and resolves them.
    ///
    /// # Errors
    ///
    /// All that is wrong in any of the sources, at once.
    pub fn load(sources: Sources) -> Result<Config, Errors> {
        let mut errors = Errors::default();
        let (environment, file_from_environment) = words::read_environment(&sources.environment, &mut errors);
        let flags = words::read_flags(&sources.flags, &mut errors);
        let mut layers = vec![file::read_defaults()];
        if let Some(path) = sources.file.or(file_from_environment) {
            layers.push(file::read(&path, &mut errors));
        }
        layers.extend([environment, flags]);
        resolve::resolve(layers, errors)
    }

    /// How calls to the delivery stream of this name are made: as its table says, or that of the best template.
    pub fn delivery_stream_settings(&self, name: &str) -> DeliveryStreamSettings {
        self.delivery_streams.find(name).unwrap_or(&self.delivery_stream_defaults).clone()
    }

    /// A sentence where settings of Firehose stand beside another destination, which has no use for them: most likely that
    /// was forgotten.
    pub fn without_effect(&self) -> Option<String> {
        let has_none = self.delivery_stream_defaults == DeliveryStreamSettings::default()
            && self.delivery_streams == DeliveryStreams::default();
        (self.destination != DestinationChoice::Firehose && !has_none).then(|| {
            format!(
                "settings of delivery streams, such as region or [delivery_streams], have no effect with the destination \
                 {}; for Firehose, set destination = \"firehose\"",
                self.destination
            )
        })
    }

    /// What this becomes where `new` is reloaded: the reloadable settings are those of `new`, the others stay as they
    /// are. Says which of either differ.
    pub fn reloaded(&self, new: Config) -> (Config, Changes) {
        reload::merge(self, new)
    }

    /// What a file with this text makes of the defaults, without a file: for fuzzing.
    #[cfg(fuzzing)]
    pub(crate) fn of_text(text: &str) -> Result<Config, Errors> {
        let mut errors = Errors::default();
        let layers = vec![file::read_defaults(), file::parse("fuzz.toml".into(), text, &mut errors)];
        resolve::resolve(layers, errors)
    }

    /// The commented default configuration: a TOML file in which every setting stands with what it does, its
    /// limits and its default. Lines that begin with `#` and a letter are settings, lines that begin with `#
    /// ` are prose.
    pub fn default_toml() -> String {
        document::default_toml()
    }
}

impl Sources {
    /// The file that is read, where there is one.
    pub fn file(&self) -> Option<PathBuf> {
        let of_environment = || words::read_environment(&self.environment, &mut Errors::default()).1;
        self.file.clone().or_else(of_environment)
    }
}

impl Default for Config {
    /// What a relay without any file, variable or flag runs with.
    fn default() -> Self {
        Config::load(Sources::default()).expect("the defaults in the table are within their own limits")
    }
}

#[cfg(test)]
mod tests;
