//! What is configured for single delivery streams: the rows of a `[delivery_streams.NAME]` table, how they give way
//! to the relay's, and which table is the one of a delivery stream. It knows nothing of AWS but what its names and
//! limits look like.

use std::collections::BTreeMap;

use super::name;
use super::setters::{read_endpoint_url, read_external_id, read_region, read_role_arn};
use super::setting::{Change, Group, Kind, Setting, Word, field};

/// How calls to a delivery stream are made, and how fast they may be. What is `None` for an address or an identity is
/// left to the AWS settings of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryStreamSettings {
    /// The AWS region; `None`: that of the AWS settings (environment, profile, instance metadata).
    pub region: Option<String>,
    /// The role that calls are signed as, `arn:PARTITION:iam::ACCOUNT:role/NAME`; `None`: the process's own identity.
    pub role_arn: Option<String>,
    /// What the role's trust policy asks for as `sts:ExternalId`; only where there is a role.
    pub external_id: Option<String>,
    /// An endpoint to call instead of the region's own; `http://` or `https://`.
    pub endpoint_url: Option<String>,
    /// The most bytes of records, before base64, within a second; `None`: learned from throttling.
    pub max_bytes_per_second: Option<u64>,
    /// The most records within a second; `None`: no ceiling.
    pub max_records_per_second: Option<u64>,
    /// The most calls within a second; `None`: no ceiling.
    pub max_calls_per_second: Option<u64>,
}

/// The tables of delivery streams.
pub type DeliveryStreams = ByDeliveryStream<DeliveryStreamSettings>;

/// Something for the delivery streams of a name or a template. A name has precedence over a template, and among templates the one with more
/// letters of its own, or else with more of them in front of `{stream}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByDeliveryStream<T> {
    names: BTreeMap<String, T>,
    /// In descending precedence.
    templates: Vec<(String, T)>,
}

impl<T> ByDeliveryStream<T> {
    /// What there is for a delivery stream of this name, if anything.
    pub fn find(&self, name: &str) -> Option<&T> {
        self.entry(name).map(|(_, value)| value)
    }

    /// The name or the template that it stands under.
    pub(super) fn table_of(&self, name: &str) -> Option<&str> {
        self.entry(name).map(|(table, _)| table.as_str())
    }

    fn entry(&self, name: &str) -> Option<(&String, &T)> {
        let of_template = || self.templates.iter().find(|(template, _)| name::matches(template, name));
        self.names
            .get_key_value(name)
            .or_else(|| of_template().map(|(template, settings)| (template, settings)))
    }

    /// All of them: names, then templates.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        let templates = self.templates.iter().map(|(template, settings)| (template, settings));
        self.names.iter().chain(templates).map(|(name, settings)| (name.as_str(), settings))
    }

    /// Puts it under a name or a template, which is not there yet.
    pub(crate) fn insert(&mut self, name: String, value: T) {
        if !name::is_template(&name) {
            self.names.insert(name, value);
            return;
        }
        let precedence = |template: &str| std::cmp::Reverse(name::precedence(template));
        let at = self.templates.partition_point(|(other, _)| precedence(other) <= precedence(&name));
        self.templates.insert(at, (name, value));
    }
}

impl<T> Default for ByDeliveryStream<T> {
    fn default() -> Self {
        Self { names: BTreeMap::new(), templates: Vec::new() }
    }
}

/// The settings of one delivery stream as its table has them; the outer `None` takes the relay's.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeliveryStreamOptions {
    pub region: Option<Option<String>>,
    pub role_arn: Option<Option<String>>,
    pub external_id: Option<Option<String>>,
    pub endpoint_url: Option<Option<String>>,
    pub max_bytes_per_second: Option<Option<u64>>,
    pub max_records_per_second: Option<Option<u64>>,
    pub max_calls_per_second: Option<Option<u64>>,
}

impl DeliveryStreamOptions {
    /// The delivery stream's settings in a relay with these of its own.
    pub(super) fn resolve(self, relay: &DeliveryStreamSettings) -> DeliveryStreamSettings {
        let role_arn = self.role_arn.unwrap_or_else(|| relay.role_arn.clone());
        let relays_id = || relay.external_id.clone().filter(|_| role_arn.is_some());
        DeliveryStreamSettings {
            region: self.region.unwrap_or_else(|| relay.region.clone()),
            external_id: self.external_id.unwrap_or_else(relays_id),
            role_arn,
            endpoint_url: self.endpoint_url.unwrap_or_else(|| relay.endpoint_url.clone()),
            max_bytes_per_second: self.max_bytes_per_second.unwrap_or(relay.max_bytes_per_second),
            max_records_per_second: self.max_records_per_second.unwrap_or(relay.max_records_per_second),
            max_calls_per_second: self.max_calls_per_second.unwrap_or(relay.max_calls_per_second),
        }
    }
}

/// What a rate has instead of a number: it is learned.
pub(super) const LEARNED: Word = Some(("auto", 0));

/// [`LEARNED`] stands for no ceiling.
pub(super) fn ceiling(rate: u64) -> Option<u64> {
    Some(rate).filter(|rate| *rate > 0)
}

/// The limits of the rates: a small share of the smallest quota, so that a fleet can divide one, and far beyond what
/// any delivery stream takes.
pub(super) const BYTES_PER_SECOND: (u64, u64) = (1_000, 1_000_000_000_000);
pub(super) const RECORDS_PER_SECOND: (u64, u64) = (1, 1_000_000_000);
pub(super) const CALLS_PER_SECOND: (u64, u64) = (1, 1_000_000);

/// The settings of one delivery stream: keys of a `[delivery_streams.NAME]` table.
pub(crate) static DELIVERY_STREAM_SETTINGS: &[Setting<DeliveryStreamOptions>] = &[
    Setting {
        key: "region",
        group: Group::Destination,
        help: "As the relay's region, for this delivery stream",
        doc: "Where the relay has an endpoint_url, this table needs one too, or an empty one: endpoints belong to a \
              region.",
        default: "",
        change: Change::Reload(field!(region)),
        kind: Kind::Text {
            name: "REGION",
            form: "a region such as \"eu-central-1\", or empty",
            set: |options, text| read_region(text).map(|region| options.region = Some(region)),
        },
    },
    Setting {
        key: "role_arn",
        group: Group::Destination,
        help: "As the relay's role_arn, for this delivery stream",
        doc: "Empty: the identity of the process itself.",
        default: "",
        change: Change::Reload(field!(role_arn)),
        kind: Kind::Text {
            name: "ARN",
            form: "a role such as \"arn:aws:iam::123456789012:role/standpipe\", or empty",
            set: |options, text| read_role_arn(text).map(|role| options.role_arn = Some(role)),
        },
    },
    Setting {
        key: "external_id",
        group: Group::Destination,
        help: "As the relay's external_id, for this delivery stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(external_id)),
        kind: Kind::Text {
            name: "ID",
            form: "2 to 1,224 of A-Z a-z 0-9 and + = , . @ : / - _, or nothing",
            set: |options, text| read_external_id(text).map(|id| options.external_id = Some(id)),
        },
    },
    Setting {
        key: "endpoint_url",
        group: Group::Destination,
        help: "As the relay's endpoint_url, for this delivery stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(endpoint_url)),
        kind: Kind::Text {
            name: "URL",
            form: "a URL with http:// or https://, or empty",
            set: |options, text| read_endpoint_url(text).map(|url| options.endpoint_url = Some(url)),
        },
    },
    Setting {
        key: "max_bytes_per_second",
        group: Group::Calls,
        help: "As the relay's max_bytes_per_second, for this delivery stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(max_bytes_per_second)),
        kind: Kind::Size {
            from: BYTES_PER_SECOND.0,
            to: BYTES_PER_SECOND.1,
            word: LEARNED,
            set: |options, rate| options.max_bytes_per_second = Some(ceiling(rate)),
        },
    },
    Setting {
        key: "max_records_per_second",
        group: Group::Calls,
        help: "As the relay's max_records_per_second, for this delivery stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(max_records_per_second)),
        kind: Kind::Count {
            from: RECORDS_PER_SECOND.0,
            to: RECORDS_PER_SECOND.1,
            word: LEARNED,
            set: |options, rate| options.max_records_per_second = Some(ceiling(rate)),
        },
    },
    Setting {
        key: "max_calls_per_second",
        group: Group::Calls,
        help: "As the relay's max_calls_per_second, for this delivery stream",
        doc: "",
        default: "",
        change: Change::Reload(field!(max_calls_per_second)),
        kind: Kind::Count {
            from: CALLS_PER_SECOND.0,
            to: CALLS_PER_SECOND.1,
            word: LEARNED,
            set: |options, rate| options.max_calls_per_second = Some(ceiling(rate)),
        },
    },
];
