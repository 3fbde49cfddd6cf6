//! The table of the relay's settings, one row each: the only place where a setting's key, limits, default and
//! documentation stand (a stream's own are in [`super::stream`]). Their order is that of `--help` and of the
//! default configuration.

use std::time::Duration;

use super::Config;
use super::choices::{BodyHash, IoChoice, OnFull, Packing, PackingMode, SpoolMode, SyncAt};
use super::delivery_stream::{BYTES_PER_SECOND, CALLS_PER_SECOND, LEARNED, RECORDS_PER_SECOND, ceiling};
use super::name;
use super::setters::{
    read_endpoint_url, read_external_id, read_region, read_role_arn, set_handover, set_listen, set_log,
};
use super::setting::{Change, Group, Kind, Setting, field};

/// A number of events that stands for no limit.
pub(super) const UNLIMITED: u64 = u32::MAX as u64;

/// [`Packing::RECORD_BYTES_LIMIT`] as the table wants it.
pub(super) const RECORD_BYTES_LIMIT: u64 = Packing::RECORD_BYTES_LIMIT as u64;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const HOUR: Duration = Duration::from_secs(3600);

/// The most that [`Config::max_age`] may be.
pub(super) const MAX_AGE_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// A duration of nothing stands for none.
pub(super) fn some(duration: Duration) -> Option<Duration> {
    Some(duration).filter(|duration| !duration.is_zero())
}

/// The settings of the relay: keys of the file's top level, flags and variables.
pub(crate) static SETTINGS: &[Setting<Config>] = &[
    Setting {
        key: "listen",
        group: Group::Listening,
        help: "Address for clients; repeatable",
        doc: "Without --takeover no other process may listen on the address: a second relay by accident must \
              not take half the traffic.",
        default: r#"["127.0.0.1:15555"]"#,
        change: Change::Restart(field!(listen)),
        kind: Kind::List {
            name: "ADDR",
            form: "IP:PORT, such as \"0.0.0.0:15555\" or \"[::]:15555\", or \"unix:PATH\"",
            set: set_listen,
        },
    },
    Setting {
        key: "admin",
        group: Group::Listening,
        help: "Address of the admin HTTP server",
        doc: "It serves metrics, health and status, and has no password: who reaches it can drain the relay.",
        default: r#""127.0.0.1:9155""#,
        change: Change::Restart(field!(admin)),
        kind: Kind::Text {
            name: "ADDR",
            form: "IP:PORT, such as \"127.0.0.1:9155\" or \"[::1]:9155\"",
            set: |config, text| {
                config.admin = text.parse().map_err(
                    |_| "not an address; write IP:PORT, such as \"127.0.0.1:9155\" or \"[::1]:9155\"",
                )?;
                Ok(())
            },
        },
    },
    Setting {
        key: "max_connections",
        group: Group::Listening,
        help: "Most connections open at one time",
        doc: "Further ones are closed at once and counted. Open files and memory may bound it lower (`standpipe check` \
              says to how many).",
        default: "20_000",
        change: Change::Restart(field!(max_connections)),
        kind: Kind::Count { from: 1, to: 1_000_000, word: None, set: |c, n| c.max_connections = n as usize },
    },
    Setting {
        key: "sync_at",
        group: Group::Listening,
        help: "When a !sync of a client is answered",
        doc: "\"delivered\": once the destination has accepted what it covers. \"stored\": also once that is \
              synced to the spool, for hosts whose disk outlives the process.",
        default: r#""delivered""#,
        change: Change::Restart(field!(sync_at)),
        kind: Kind::Choice {
            names: &SyncAt::NAMES,
            set: |config, index| config.sync_at = SyncAt::ALL[index],
        },
    },
    Setting {
        key: "tcp_keepalive",
        group: Group::Listening,
        help: "Silence after which a peer is asked whether it still lives",
        doc: "It is given up after as long again. Below the idle time-out of what stands between: 350s for a Network \
              Load Balancer. \"0s\" leaves it to the system, which asks nobody.",
        default: r#""60s""#,
        change: Change::Restart(field!(tcp_keepalive)),
        kind: Kind::Duration {
            from: ms(0),
            to: Duration::from_secs(9 * 3600),
            set: |config, d| config.tcp_keepalive = d,
        },
    },
    Setting {
        key: "max_connection_age",
        group: Group::Listening,
        help: "Age at which a connection is told to leave",
        doc: "So that connections spread again after a fleet has grown. It is taken up to a fifth shorter at random. A \
              connection is closed between two frames, with every answer written; a sender that never pauses, never \
              syncs and does not see that it was told stays. \"0s\": as old as it likes.",
        default: r#""0s""#,
        change: Change::Reload(field!(max_connection_age)),
        kind: Kind::Duration {
            from: ms(0),
            to: Duration::from_secs(365 * 24 * 3600),
            set: |config, d| config.max_connection_age = Some(d).filter(|d| !d.is_zero()),
        },
    },
    Setting {
        key: "rejected_samples",
        group: Group::Listening,
        help: "Rejected frames that /status shows of each reason",
        doc: "The last ones, with the address of who sent them and the first 128 bytes, whatever these are. \
              0 keeps none.",
        default: "16",
        change: Change::Reload(field!(rejected_samples)),
        kind: Kind::Count {
            from: 0,
            to: 100,
            word: None,
            set: |config, count| config.rejected_samples = count as usize,
        },
    },
    Setting {
        key: "takeover",
        group: Group::Listening,
        help: "Take over from a relay that runs on the same host",
        doc: "It hands over its listening sockets, so that no connection is refused, and drains. Where none hands \
              over, this one listens on the same addresses beside whoever does.",
        default: "false",
        change: Change::Restart(field!(takeover)),
        kind: Kind::Switch { set: |config, on| config.takeover = on },
    },
    Setting {
        key: "handover",
        group: Group::Listening,
        help: "Name under which the next relay finds this one",
        doc: "Both must have the same. \"auto\" is the admin address. Only a process of the same user, in the same \
              network namespace, can take over. Empty: none can.",
        default: r#""auto""#,
        change: Change::Restart(field!(handover)),
        kind: Kind::Text {
            name: "NAME",
            form: "\"auto\", a name of at most 64 characters, or empty",
            set: set_handover,
        },
    },
    Setting {
        key: "destination",
        group: Group::Destination,
        help: "Where events go",
        doc: "\"directory:PATH\" writes files below PATH, laid out as Firehose lays out S3. \"firehose\" is \
              Amazon Data Firehose. \"relay:HOST:PORT\" is another relay, or a fleet of them behind one name, \
              which is synced with. \"null\" accepts and forgets, for measuring.",
        default: r#""directory:./standpipe-data""#,
        change: Change::Restart(field!(destination)),
        kind: Kind::Text {
            name: "DESTINATION",
            form: "\"directory:PATH\", \"firehose\", \"relay:HOST:PORT\" or \"null\"",
            set: |config, text| text.parse().map(|destination| config.destination = destination),
        },
    },
    Setting {
        key: "endpoint_url",
        group: Group::Destination,
        help: "Endpoint to call instead of the AWS region's own",
        doc: "For VPC endpoints, emulators and tests. Empty: as the AWS settings say (AWS_ENDPOINT_URL and \
              the profile), else the region's own.",
        default: r#""""#,
        change: Change::Reload(field!(delivery_stream_defaults.endpoint_url)),
        kind: Kind::Text {
            name: "URL",
            form: "a URL with http:// or https://, or empty",
            set: |config, text| {
                read_endpoint_url(text).map(|url| config.delivery_stream_defaults.endpoint_url = url)
            },
        },
    },
    Setting {
        key: "region",
        group: Group::Destination,
        help: "AWS region",
        doc: "Empty: as the AWS settings say (AWS_REGION, the profile, the instance's metadata). Where a reload \
              takes it away, that of the start stays.",
        default: r#""""#,
        change: Change::Reload(field!(delivery_stream_defaults.region)),
        kind: Kind::Text {
            name: "REGION",
            form: "a region such as \"eu-central-1\", or empty",
            set: |config, text| {
                read_region(text).map(|region| config.delivery_stream_defaults.region = region)
            },
        },
    },
    Setting {
        key: "role_arn",
        group: Group::Destination,
        help: "AWS role that is assumed to deliver",
        doc: "For delivery streams of another account: the role is that account's, and its trust policy lets the \
              identity of this process assume it. Empty: that identity delivers itself.",
        default: r#""""#,
        change: Change::Reload(field!(delivery_stream_defaults.role_arn)),
        kind: Kind::Text {
            name: "ARN",
            form: "a role such as \"arn:aws:iam::123456789012:role/standpipe\", or empty",
            set: |config, text| {
                read_role_arn(text).map(|role| config.delivery_stream_defaults.role_arn = role)
            },
        },
    },
    Setting {
        key: "external_id",
        group: Group::Destination,
        help: "External id with which roles are assumed",
        doc: "What a role's trust policy asks for as sts:ExternalId. Empty: none.",
        default: r#""""#,
        change: Change::Reload(field!(delivery_stream_defaults.external_id)),
        kind: Kind::Text {
            name: "ID",
            form: "2 to 1,224 of A-Z a-z 0-9 and + = , . @ : / - _, or nothing",
            set: |config, text| {
                read_external_id(text).map(|id| config.delivery_stream_defaults.external_id = id)
            },
        },
    },
    Setting {
        key: "delivery_stream",
        group: Group::Destination,
        help: "Delivery stream of a stream that has no mapping",
        doc: "{stream}, at most once, stands for the stream's name; without it all streams go to one \
              delivery stream. Only for the destination \"firehose\".",
        default: r#""{stream}""#,
        change: Change::Reload(field!(delivery_stream)),
        kind: Kind::Text {
            name: "TEMPLATE",
            form: "a name of A-Z a-z 0-9 _ . -, such as \"prod-{stream}\"",
            set: |config, text| name::check_template(text).map(|()| config.delivery_stream = text.into()),
        },
    },
    Setting {
        key: "linger",
        group: Group::Streams,
        help: "Longest that an event waits for others before it is sent",
        doc: "Longer means fuller records and fewer calls, and a later delivery.",
        default: r#""1s""#,
        change: Change::Reload(field!(linger)),
        kind: Kind::Duration {
            from: ms(10),
            to: Duration::from_secs(900),
            set: |config, d| config.linger = d,
        },
    },
    Setting {
        key: "max_frame_bytes",
        group: Group::Streams,
        help: "Longest payload of a frame, in bytes",
        doc: "Its line feed does not count. A longer frame is skipped and counted as rejected. The most that \
              fits into one record of Firehose is the default.",
        default: "1_023_999",
        change: Change::Restart(field!(frame_bytes_max)),
        kind: Kind::Size {
            from: 1,
            to: RECORD_BYTES_LIMIT - 1,
            word: None,
            set: |config, bytes| config.frame_bytes_max = bytes as usize,
        },
    },
    Setting {
        key: "only_configured_streams",
        group: Group::Streams,
        help: "Accept only streams that have a [streams.NAME] table",
        doc: "Frames of other streams are counted as rejected.",
        default: "false",
        change: Change::Reload(field!(only_configured_streams)),
        kind: Kind::Switch { set: |config, on| config.only_configured_streams = on },
    },
    Setting {
        key: "max_age",
        group: Group::Streams,
        help: "Age beyond which an event is no longer delivered",
        doc: "Counted from receiving it, on disk as in memory; what is older is dropped and counted, or kept as a dead \
              letter where dead_letter is set. A batch goes when the youngest event in it is so old. 0s: events are \
              never too old.",
        default: r#""0s""#,
        change: Change::Reload(field!(max_age)),
        kind: Kind::Duration { from: ms(0), to: MAX_AGE_LIMIT, set: |config, d| config.max_age = some(d) },
    },
    Setting {
        key: "max_streams",
        group: Group::Streams,
        help: "Most streams known at one time",
        doc: "Frames of further streams are counted as rejected. A stream that is idle and empty for an hour \
              gives its place up.",
        default: "20_000",
        change: Change::Reload(field!(max_streams)),
        kind: Kind::Count { from: 1, to: 1_000_000, word: None, set: |c, n| c.max_streams = n as usize },
    },
    Setting {
        key: "max_stream_labels",
        group: Group::Streams,
        help: "Most streams with a metrics label of their own",
        doc: "Configured streams come first; the rest are counted under \"_other\".",
        default: "1_000",
        change: Change::Restart(field!(max_stream_labels)),
        kind: Kind::Count {
            from: 1,
            to: 1_000_000,
            word: None,
            set: |c, n| c.max_stream_labels = n as usize,
        },
    },
    Setting {
        key: "packing",
        group: Group::Packing,
        help: "Pack many events into a record, or one",
        doc: "Firehose bills every record rounded up to 5 KiB: \"full\" is the cheap one. \"single\" is for \
              consumers that take a record for an event.",
        default: r#""full""#,
        change: Change::Reload(field!(packing.mode)),
        kind: Kind::Choice {
            names: &PackingMode::NAMES,
            set: |config, index| config.packing.mode = PackingMode::ALL[index],
        },
    },
    Setting {
        key: "max_record_events",
        group: Group::Packing,
        help: "Most events in a record",
        doc: "500 is the most where Firehose de-aggregates records for dynamic partitioning.",
        default: r#""unlimited""#,
        change: Change::Reload(field!(packing.record_events_max)),
        kind: Kind::Count {
            from: 1,
            to: UNLIMITED - 1,
            word: Some(("unlimited", UNLIMITED)),
            set: |config, count| config.packing.record_events_max = count as u32,
        },
    },
    Setting {
        key: "max_record_bytes",
        group: Group::Packing,
        help: "Most bytes in a record, before base64",
        doc: "Every event counts with its line feed. An event that is longer travels alone in its record, \
              which is then larger than this, but never larger than Firehose's limit of 1,024,000 bytes.",
        default: "1_024_000",
        change: Change::Reload(field!(packing.record_bytes_max)),
        kind: Kind::Size {
            from: 1,
            to: RECORD_BYTES_LIMIT,
            word: None,
            set: |config, bytes| config.packing.record_bytes_max = bytes as u32,
        },
    },
    Setting {
        key: "memory",
        group: Group::Resources,
        help: "Limit of all memory",
        doc: "\"auto\" is a quarter of the smaller of the host's memory and the cgroup's limit. `standpipe \
              check` prints what it is spent on.",
        default: r#""auto""#,
        change: Change::Restart(field!(memory)),
        kind: Kind::Size {
            from: 8 << 20,
            to: 16 << 40,
            word: Some(("auto", 0)),
            set: |config, bytes| config.memory = Some(bytes).filter(|bytes| *bytes > 0),
        },
    },
    Setting {
        key: "on_full",
        group: Group::Resources,
        help: "What a stream does that holds all that it may",
        doc: "\"wait\" pauses a connection that brings more, and no other. \"drop\" drops what comes and \
              counts it.",
        default: r#""wait""#,
        change: Change::Reload(field!(on_full)),
        kind: Kind::Choice {
            names: &OnFull::NAMES,
            set: |config, index| config.on_full = OnFull::ALL[index],
        },
    },
    Setting {
        key: "shards",
        group: Group::Resources,
        help: "Threads that read connections",
        doc: "Each is pinned to a CPU of its own. \"auto\" is one less than the CPUs that the process may \
              use, and at least one.",
        default: r#""auto""#,
        change: Change::Restart(field!(shards)),
        kind: Kind::Count {
            from: 1,
            to: 256,
            word: Some(("auto", 0)),
            set: |config, count| config.shards = Some(count as usize).filter(|count| *count > 0),
        },
    },
    Setting {
        key: "io",
        group: Group::Resources,
        help: "How sockets are read",
        doc: "\"auto\" takes io_uring, and epoll, with a warning that says why, where the system refuses it. \
              \"uring\" does not start where it is refused.",
        default: r#""auto""#,
        change: Change::Restart(field!(io)),
        kind: Kind::Choice { names: &IoChoice::NAMES, set: |config, index| config.io = IoChoice::ALL[index] },
    },
    Setting {
        key: "spool",
        group: Group::Spool,
        help: "Directory for events on disk",
        doc: "Every process has a directory of its own in it, and takes over those that others left. Empty: \
              there is no spool, and what is in memory when the relay is killed is lost.",
        default: r#""""#,
        change: Change::Restart(field!(spool)),
        kind: Kind::Text {
            name: "DIR",
            form: "the path of a directory, or empty",
            set: |config, text| {
                config.spool = Some(text.into()).filter(|_| !text.is_empty());
                Ok(())
            },
        },
    },
    Setting {
        key: "spool_mode",
        group: Group::Spool,
        help: "What goes to the spool",
        doc: "\"overflow\" writes what there is no memory for: the oldest waiting events of a stream near its \
              share. \"always\" writes every event, before and beside its delivery, so that a kill loses only \
              what was received within the last linger.",
        default: r#""overflow""#,
        change: Change::Restart(field!(spool_mode)),
        kind: Kind::Choice {
            names: &SpoolMode::NAMES,
            set: |config, index| config.spool_mode = SpoolMode::ALL[index],
        },
    },
    Setting {
        key: "spool_limit",
        group: Group::Spool,
        help: "Most bytes on disk",
        doc: "Once they are reached nothing more is written, and on_full decides what happens at a stream's \
              share of memory.",
        default: r#""10GiB""#,
        change: Change::Reload(field!(spool_limit)),
        kind: Kind::Size { from: 1 << 20, to: 1 << 50, word: None, set: |c, bytes| c.spool_limit = bytes },
    },
    Setting {
        key: "spool_free_floor",
        group: Group::Spool,
        help: "Bytes to leave free on the spool's file system",
        doc: "The spool stops growing before others run out of disk.",
        default: r#""1GiB""#,
        change: Change::Reload(field!(spool_free_floor)),
        kind: Kind::Size { from: 0, to: 1 << 50, word: None, set: |c, bytes| c.spool_free_floor = bytes },
    },
    Setting {
        key: "spool_keep_sent",
        group: Group::Spool,
        help: "How long to keep a spool file once everything in it is delivered",
        doc: "Kept files count towards spool_limit, and give way before it is reached.",
        default: r#""0s""#,
        change: Change::Reload(field!(spool_keep_sent)),
        kind: Kind::Duration {
            from: ms(0),
            to: Duration::from_secs(30 * 24 * 3600),
            set: |config, d| config.spool_keep_sent = d,
        },
    },
    Setting {
        key: "dead_letter",
        group: Group::Spool,
        help: "Directory for events that can never be delivered",
        doc: "Those that the destination refuses for what they are, and those older than max_age. `standpipe send \
              --dead-letter DIR` sends them again. Several relays may share it. Empty: they are dropped and counted.",
        default: r#""""#,
        change: Change::Restart(field!(dead_letter)),
        kind: Kind::Text {
            name: "DIR",
            form: "the path of a directory, or empty",
            set: |config, text| {
                config.dead_letter = Some(text.into()).filter(|_| !text.is_empty());
                Ok(())
            },
        },
    },
    Setting {
        key: "dead_letter_limit",
        group: Group::Spool,
        help: "Most bytes of dead letters",
        doc: "Once they are reached, what can never be delivered is dropped, until files are removed.",
        default: r#""1GiB""#,
        change: Change::Reload(field!(dead_letter_limit)),
        kind: Kind::Size {
            from: 1 << 20,
            to: 1 << 50,
            word: None,
            set: |c, bytes| c.dead_letter_limit = bytes,
        },
    },
    Setting {
        key: "max_calls",
        group: Group::Calls,
        help: "Most calls in flight in all",
        doc: "A call is up to 4 MiB before base64.",
        default: "64",
        change: Change::Reload(field!(max_calls)),
        kind: Kind::Count { from: 1, to: 10_000, word: None, set: |config, n| config.max_calls = n as usize },
    },
    Setting {
        key: "body_hash",
        group: Group::Calls,
        help: "How the bodies of calls are hashed for their signature",
        doc: "\"grouped\" hashes bodies that are ready together side by side where the processor has SHA \
              extensions or AVX-512, at about half the cost. \"standard\" hashes every body by itself.",
        default: r#""grouped""#,
        change: Change::Restart(field!(body_hash)),
        kind: Kind::Choice {
            names: &BodyHash::NAMES,
            set: |config, index| config.body_hash = BodyHash::ALL[index],
        },
    },
    Setting {
        key: "max_lane_calls",
        group: Group::Calls,
        help: "Most calls in flight to one delivery stream",
        doc: "Never more than max_calls, whatever stands here. A delivery stream that fails has one.",
        default: "8",
        change: Change::Reload(field!(max_lane_calls)),
        kind: Kind::Count {
            from: 1,
            to: 10_000,
            word: None,
            set: |config, n| config.max_lane_calls = n as usize,
        },
    },
    Setting {
        key: "max_bytes_per_second",
        group: Group::Calls,
        help: "Most bytes a second to one delivery stream",
        doc: "Of records, before base64: what its quota counts. Several relays share the quota: give each its part. \
              \"auto\" has no ceiling; the rate is learned from throttling.",
        default: r#""auto""#,
        change: Change::Reload(field!(delivery_stream_defaults.max_bytes_per_second)),
        kind: Kind::Size {
            from: BYTES_PER_SECOND.0,
            to: BYTES_PER_SECOND.1,
            word: LEARNED,
            set: |config, rate| config.delivery_stream_defaults.max_bytes_per_second = ceiling(rate),
        },
    },
    Setting {
        key: "max_records_per_second",
        group: Group::Calls,
        help: "Most records a second to one delivery stream",
        doc: "As max_bytes_per_second, for records. \"auto\" has no ceiling; only bytes are learned.",
        default: r#""auto""#,
        change: Change::Reload(field!(delivery_stream_defaults.max_records_per_second)),
        kind: Kind::Count {
            from: RECORDS_PER_SECOND.0,
            to: RECORDS_PER_SECOND.1,
            word: LEARNED,
            set: |config, rate| config.delivery_stream_defaults.max_records_per_second = ceiling(rate),
        },
    },
    Setting {
        key: "max_calls_per_second",
        group: Group::Calls,
        help: "Most calls a second to one delivery stream",
        doc: "As max_bytes_per_second, for calls. \"auto\" has no ceiling; only bytes are learned.",
        default: r#""auto""#,
        change: Change::Reload(field!(delivery_stream_defaults.max_calls_per_second)),
        kind: Kind::Count {
            from: CALLS_PER_SECOND.0,
            to: CALLS_PER_SECOND.1,
            word: LEARNED,
            set: |config, rate| config.delivery_stream_defaults.max_calls_per_second = ceiling(rate),
        },
    },
    Setting {
        key: "call_timeout",
        group: Group::Calls,
        help: "Longest that a call may take",
        doc: "Connecting is a part of it. What became of a call that is cut off is unknown: it is sent again \
              and may be a duplicate. Another relay may take longer to deliver, but has to answer a ping in this time.",
        default: r#""30s""#,
        change: Change::Restart(field!(call_timeout)),
        kind: Kind::Duration { from: ms(100), to: HOUR, set: |config, d| config.call_timeout = d },
    },
    Setting {
        key: "connect_timeout",
        group: Group::Calls,
        help: "Longest that connecting may take",
        doc: "Never more than call_timeout, whatever stands here.",
        default: r#""3s""#,
        change: Change::Restart(field!(connect_timeout)),
        kind: Kind::Duration { from: ms(10), to: HOUR, set: |config, d| config.connect_timeout = d },
    },
    Setting {
        key: "retry_base",
        group: Group::Calls,
        help: "Upper bound of the wait before the first retry",
        doc: "Each further one doubles it, up to retry_max; the wait is random below the bound. There is no \
              limit to the number of retries.",
        default: r#""100ms""#,
        change: Change::Reload(field!(retry_base)),
        kind: Kind::Duration { from: ms(1), to: HOUR, set: |config, d| config.retry_base = d },
    },
    Setting {
        key: "retry_max",
        group: Group::Calls,
        help: "Upper bound of the wait before any retry",
        doc: "",
        default: r#""30s""#,
        change: Change::Reload(field!(retry_max)),
        kind: Kind::Duration { from: ms(1), to: HOUR, set: |config, d| config.retry_max = d },
    },
    Setting {
        key: "park_probe",
        group: Group::Calls,
        help: "How often a parked delivery stream is tried",
        doc: "A delivery stream is parked when it does not exist, or refuses its calls for what they are.",
        default: r#""30s""#,
        change: Change::Reload(field!(park_probe)),
        kind: Kind::Duration { from: ms(10), to: HOUR, set: |config, d| config.park_probe = d },
    },
    Setting {
        key: "maintenance_file",
        group: Group::Stopping,
        help: "File whose presence puts the relay into maintenance",
        doc: "As POST /maintenance does: /readyz says 503, and events are accepted and delivered as before. It is \
              looked for once a second. Empty: there is none.",
        default: r#""""#,
        change: Change::Reload(field!(maintenance_file)),
        kind: Kind::Text {
            name: "FILE",
            form: "the path of a file, or empty",
            set: |config, text| {
                config.maintenance_file = Some(text.into()).filter(|_| !text.is_empty());
                Ok(())
            },
        },
    },
    Setting {
        key: "pre_drain_delay",
        group: Group::Stopping,
        help: "How long to go on accepting after SIGTERM",
        doc: "For load balancers that need a while to notice. /readyz says 503 from its beginning on. It comes before \
              drain_deadline, and a second signal cuts it short.",
        default: r#""0s""#,
        change: Change::Reload(field!(pre_drain_delay)),
        kind: Kind::Duration { from: ms(0), to: HOUR, set: |config, d| config.pre_drain_delay = d },
    },
    Setting {
        key: "drain_deadline",
        group: Group::Stopping,
        help: "Longest that delivering the rest may take",
        doc: "Whoever stops the relay must wait longer than pre_drain_delay and this together before killing \
              it (Kubernetes waits 30 s by default, systemd 90 s).",
        default: r#""25s""#,
        change: Change::Reload(field!(drain_deadline)),
        kind: Kind::Duration { from: ms(100), to: HOUR, set: |config, d| config.drain_deadline = d },
    },
    Setting {
        key: "drain_close_rate",
        group: Group::Stopping,
        help: "Connections told to leave within a second while draining",
        doc: "So that their senders do not come to the other relays all at once. Where 3/10 of drain_deadline are too \
              short for all of them, they leave faster.",
        default: "1_000",
        change: Change::Reload(field!(drain_close_rate)),
        kind: Kind::Count {
            from: 1,
            to: 1_000_000,
            word: None,
            set: |config, n| config.drain_close_rate = n as usize,
        },
    },
    Setting {
        key: "log",
        group: Group::Logging,
        help: "Log filter: a level, and levels for parts",
        doc: "Levels are error, warn, info, debug, trace and off; parts are written as \
              \"info,standpipe::shard=debug\".",
        default: r#""info""#,
        change: Change::Reload(field!(log)),
        kind: Kind::Text {
            name: "FILTER",
            form: "a level, such as \"info\", and part=level, with commas",
            set: set_log,
        },
    },
];
