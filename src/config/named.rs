//! The tables that are named after something: `[streams.NAME]` and `[delivery_streams.NAME]`. What may be their name
//! and which keys they have; not what stands in them.

use super::delivery_stream::DELIVERY_STREAM_SETTINGS;
use super::name;
use super::raw::Target;
use super::stream::STREAM_SETTINGS;

/// A kind of such tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Stream,
    DeliveryStream,
}

impl Named {
    pub(super) const ALL: [Self; 2] = [Self::Stream, Self::DeliveryStream];

    /// The key of the table that holds them.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Stream => "streams",
            Self::DeliveryStream => "delivery_streams",
        }
    }

    /// What each of them is for, in words.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::DeliveryStream => "delivery stream",
        }
    }

    /// Whether one may have this name; a sentence where not.
    pub(super) fn check_name(self, name: &str) -> Result<(), String> {
        match self {
            Self::Stream => name::check_stream(name),
            Self::DeliveryStream => name::check_template(name),
        }
    }

    /// The keys that one may have.
    pub(super) fn keys(self) -> Vec<&'static str> {
        match self {
            Self::Stream => STREAM_SETTINGS.iter().map(|setting| setting.key).collect(),
            Self::DeliveryStream => DELIVERY_STREAM_SETTINGS.iter().map(|setting| setting.key).collect(),
        }
    }

    /// What a value under `key` in the table of `name` is for.
    pub(super) fn target(self, name: &str, key: &str) -> Option<Target> {
        match self {
            Self::Stream => STREAM_SETTINGS
                .iter()
                .find(|setting| setting.key == key)
                .map(|setting| Target::Stream(name.to_owned(), setting)),
            Self::DeliveryStream => DELIVERY_STREAM_SETTINGS
                .iter()
                .find(|setting| setting.key == key)
                .map(|setting| Target::DeliveryStream(name.to_owned(), setting)),
        }
    }
}
