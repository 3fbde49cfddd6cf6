//! The settings of one stream: the rows of its table, and how they give way to the relay's.

use std::time::Duration;

use super::choices::{OnFull, Packing, PackingMode};
use super::name;
use super::setters::each;
use super::setting::{Change, Group, Kind, Setting, field};
use super::table::{MAX_AGE_LIMIT, RECORD_BYTES_LIMIT, UNLIMITED, some};
use super::{Config, StreamConfig};

/// The settings of one stream as its table has them; `None` takes the relay's.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamOptions {
    /// The stream's own, for the templates among its delivery streams.
    pub name: String,
    pub delivery_streams: Vec<String>,
    pub mode: Option<PackingMode>,
    pub record_events_max: Option<u32>,
    pub record_bytes_max: Option<u32>,
    pub on_full: Option<OnFull>,
    pub max_age: Option<Option<Duration>>,
}

impl StreamOptions {
    /// The stream's configuration in this relay.
    pub(super) fn resolve(self, relay: &Config) -> StreamConfig {
        let packing = relay.packing;
        StreamConfig {
            delivery_streams: self.delivery_streams,
            packing: Packing {
                mode: self.mode.unwrap_or(packing.mode),
                record_events_max: self.record_events_max.unwrap_or(packing.record_events_max),
                record_bytes_max: self.record_bytes_max.unwrap_or(packing.record_bytes_max),
            },
            on_full: self.on_full.unwrap_or(relay.on_full),
            max_age: self.max_age.unwrap_or(relay.max_age),
        }
    }
}

/// The settings of one stream: keys of a `[streams.NAME]` table.
pub(crate) static STREAM_SETTINGS: &[Setting<StreamOptions>] = &[
    Setting {
        key: "delivery_streams",
        group: Group::Destination,
        help: "Delivery streams that the stream is spread over",
        doc: "Their quotas add up. {stream} stands for the stream's name, as in delivery_stream, which says where the \
              stream goes without this. Only for the destination \"firehose\"; others take no notice.",
        default: "",
        change: Change::Reload(field!(delivery_streams)),
        kind: Kind::List {
            name: "NAMES",
            form: "names of A-Z a-z 0-9 _ . -, such as [\"clicks-1\", \"clicks-2\"]",
            set: set_delivery_streams,
        },
    },
    Setting {
        key: "packing",
        group: Group::Packing,
        help: "As the relay's packing, for this stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(mode)),
        kind: Kind::Choice {
            names: &PackingMode::NAMES,
            set: |stream, index| stream.mode = Some(PackingMode::ALL[index]),
        },
    },
    Setting {
        key: "max_record_events",
        group: Group::Packing,
        help: "As the relay's max_record_events, for this stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(record_events_max)),
        kind: Kind::Count {
            from: 1,
            to: UNLIMITED - 1,
            word: Some(("unlimited", UNLIMITED)),
            set: |stream, count| stream.record_events_max = Some(count as u32),
        },
    },
    Setting {
        key: "max_record_bytes",
        group: Group::Packing,
        help: "As the relay's max_record_bytes, for this stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(record_bytes_max)),
        kind: Kind::Size {
            from: 1,
            to: RECORD_BYTES_LIMIT,
            word: None,
            set: |stream, bytes| stream.record_bytes_max = Some(bytes as u32),
        },
    },
    Setting {
        key: "on_full",
        group: Group::Resources,
        help: "As the relay's on_full, for this stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(on_full)),
        kind: Kind::Choice {
            names: &OnFull::NAMES,
            set: |stream, index| stream.on_full = Some(OnFull::ALL[index]),
        },
    },
    Setting {
        key: "max_age",
        group: Group::Streams,
        help: "As the relay's max_age, for this stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(max_age)),
        kind: Kind::Duration {
            from: Duration::ZERO,
            to: MAX_AGE_LIMIT,
            set: |stream, age| stream.max_age = Some(some(age)),
        },
    },
];

fn set_delivery_streams(stream: &mut StreamOptions, texts: &[&str]) -> Result<(), String> {
    let names = each(texts, "a delivery stream", |text| {
        name::check_template(text).and_then(|()| name::fill_template(text, &stream.name))
    })?;
    if let Some(twice) = (1..names.len()).find(|index| names[..*index].contains(&names[*index])) {
        return Err(format!("\"{}\" stands in it twice", names[twice]));
    }
    stream.delivery_streams = names;
    Ok(())
}
